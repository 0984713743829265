/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What becomes of a packet at one rule, and the rule's counters. Pure, like
 * token_bucket.h: all of it runs under the state's lock.
 */
#ifndef LIMITER_VERDICT_H
#define LIMITER_VERDICT_H

#include "packet.h"
#include "token_bucket.h"

/*
 * What the hook returns. Never 0: that is EPERM to the sender. A drop is what a
 * full qdisc does: UDP loses the packet, TCP keeps it queued and slows down. A
 * notice makes TCP slow down (like ECN, but without the receiver); on anything
 * else it has no effect.
 */
enum verdict {
	VERDICT_PASS = 1,
	VERDICT_DROP = 2,
	VERDICT_PASS_WITH_NOTICE = 3,
};

/*
 * TCP may run into a debt that UDP may not: an eighth of a second of the rate, and never more than the largest ordinary
 * GSO packet, which any packet may leave behind anyway. So what passes in any time t stays within rate * t, one bucket
 * and one such packet, or one and a half where TCP is paced. Without it a flood of UDP, which takes each token as it
 * comes, would leave TCP nothing, and TCP would lose its ACK clock at every drop.
 *
 * Data may use half of that debt. The rest is for packets without payload, or connections could not be made, closed or
 * acknowledged beside busy ones; and for data whose refusal is dear: with nothing on the way TCP waits 200 ms for its
 * timer, and the second time half a second more, where else the next acknowledgement tries again.
 */
#define TCP_DEBT_BYTES 65536
#define TCP_DEBT_SHARE 8
/* Of paced TCP: two segments, however low the rate. */
#define PACED_DEBT_LEAST 3000
/*
 * Tokens under which TCP is told to slow down, before it runs into drops: a
 * sixteenth of a second of the rate, and at most half of the bucket.
 */
#define NOTICE_SHARE 16

#define TOKENS_LOWEST (-0x7fffffffffffffffLL - 1)
#define TOKENS_HIGHEST 0x7fffffffffffffffLL

struct thresholds {
	__s64 drop;   /* with this many tokens or less the packet is dropped */
	__s64 notice; /* what leaves fewer than this passes with a notice */
};

/* Bytes that TCP may owe. */
static __always_inline __s64 verdict_debt(__u64 rate)
{
	return rate / TCP_DEBT_SHARE < TCP_DEBT_BYTES ? rate / TCP_DEBT_SHARE : TCP_DEBT_BYTES;
}

/* Half of them, which all of paced TCP's data may. */
static __always_inline __s64 verdict_half_debt(__u64 rate)
{
	__s64 half = verdict_debt(rate) / 2;

	return half > PACED_DEBT_LEAST ? half : PACED_DEBT_LEAST;
}

/* So that a packet leaves no more than a debt; a larger packet passes if there is none. One byte less than just that. */
static __always_inline __s64 verdict_leave(__s64 debt, const struct packet *packet)
{
	return packet->bytes <= debt ? (__s64)packet->bytes - debt - 1 : 0;
}

/*
 * Paced data has its part of the rate: it passes whatever its size, or large packets would wait for UDP for ever. Idle,
 * it may leave the whole debt.
 */
static __always_inline __s64 verdict_paced(__u64 rate, const struct packet *packet)
{
	__s64 half = verdict_half_debt(rate), idle = verdict_debt(rate) - packet->bytes;

	return packet->idle && idle > half ? -idle : -half;
}

static __always_inline struct thresholds verdict_thresholds(__u64 rate, __u64 bucket, const struct packet *packet)
{
	struct thresholds thresholds = { .drop = 0, .notice = TOKENS_LOWEST };
	__s64 whole = packet->bytes < bucket ? packet->bytes : bucket;

	if (!packet->tcp) {
		/* A datagram finds its bytes above TCP's part of the debt: a large one would leave TCP none. */
		if (whole > verdict_half_debt(rate))
			thresholds.drop = whole - verdict_half_debt(rate) - 1;
		return thresholds;
	}
	thresholds.notice = rate / NOTICE_SHARE < bucket / 2 ? rate / NOTICE_SHARE : bucket / 2;
	if (packet->control)
		thresholds.drop = verdict_leave(verdict_debt(rate), packet);
	else if (packet->paced)
		thresholds.drop = verdict_paced(rate, packet);
	else
		thresholds.drop = verdict_leave(verdict_debt(rate) / 2, packet);
	return thresholds;
}

/* Decides on a packet after the refill, takes its tokens if it passes, and counts it. */
static __always_inline enum verdict verdict_take(struct rate_limit_state *state, const struct thresholds *thresholds,
						 const struct packet *packet)
{
	if (state->tokens <= thresholds->drop) {
		state->dropped_packets += packet->segments;
		state->dropped_bytes += packet->bytes;
		return VERDICT_DROP;
	}
	token_bucket_take(state, packet->bytes);
	state->packets += packet->segments;
	state->bytes += packet->bytes;
	if (state->tokens >= thresholds->notice)
		return VERDICT_PASS;
	state->congestion_marks += packet->segments;
	return VERDICT_PASS_WITH_NOTICE;
}

/* Undoes verdict_take() for a packet that passed here and that another rule dropped. */
static __always_inline void verdict_refund(struct rate_limit_state *state, enum verdict verdict,
					   const struct packet *packet)
{
	token_bucket_refund(state, packet->bytes);
	state->packets -= packet->segments;
	state->bytes -= packet->bytes;
	if (verdict == VERDICT_PASS_WITH_NOTICE)
		state->congestion_marks -= packet->segments;
}
#endif
