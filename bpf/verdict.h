/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What becomes of a packet at one rule, and the rule's counters. Pure, like
 * token_bucket.h: all of it runs under the state's lock.
 */
#ifndef LIMITER_VERDICT_H
#define LIMITER_VERDICT_H

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
 * Bytes up to which a TCP packet counts as control: SYN, FIN and pure ACKs with
 * all their options, over IPv6 too. They pass into a debt of their own, or a
 * connection could neither be made nor closed, nor acknowledge what it receives,
 * while others use up the bucket. Small UDP has no such reserve: a flood of it would
 * hold the bucket in debt for ever.
 */
#define CONTROL_PACKET_BYTES 128
/*
 * That debt: an eighth of a second of the rate, and never more than the largest
 * ordinary GSO packet, which any rule may run into debt by anyway.
 */
#define CONTROL_DEBT_BYTES (65536 - CONTROL_PACKET_BYTES)
#define CONTROL_DEBT_SHARE 8
/*
 * Tokens under which TCP is told to slow down, before it runs into drops: a
 * sixteenth of a second of the rate, and at most half of the bucket.
 */
#define NOTICE_SHARE 16

#define TOKENS_LOWEST (-0x7fffffffffffffffLL - 1)

struct thresholds {
	__s64 drop;   /* at or below this many tokens the packet is dropped */
	__s64 notice; /* below this many, what passes passes with a notice */
};

static __always_inline struct thresholds verdict_thresholds(__u64 rate, __u64 bucket, const struct packet *packet)
{
	struct thresholds thresholds = { .drop = 0, .notice = TOKENS_LOWEST };
	__u64 debt = rate / CONTROL_DEBT_SHARE;

	if (!packet->tcp)
		return thresholds;
	thresholds.notice = rate / NOTICE_SHARE < bucket / 2 ? rate / NOTICE_SHARE : bucket / 2;
	if (packet->bytes <= CONTROL_PACKET_BYTES)
		thresholds.drop = -(__s64)(debt < CONTROL_DEBT_BYTES ? debt : CONTROL_DEBT_BYTES);
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
