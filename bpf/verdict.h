/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What becomes of a packet at one rule, why, and the rule's counters. Pure: all of it runs under the state's lock.
 *
 * verdict_charge() is the whole of it. A packet is dropped where the bucket has no more tokens than a bound, and passes
 * with a notice where it leaves fewer than another. What the bounds are, and the reason that they stand for, depends on
 * what the packet is (verdict_bounds).
 */
#ifndef LIMITER_VERDICT_H
#define LIMITER_VERDICT_H

#include "demand.h"
#include "use.h"

/*
 * What the hook returns. Never 0: that is EPERM to the sender. A drop is what a full qdisc does: UDP loses the packet,
 * TCP keeps it queued and slows down. A notice makes TCP slow down (like ECN, but without the receiver); on anything
 * else it has no effect.
 */
enum verdict {
	VERDICT_PASS = 1,
	VERDICT_DROP = 2,
	VERDICT_PASS_WITH_NOTICE = 3,
};
#define VERDICT_MASK 3
#define VERDICT_PASSES 1 /* the bit of both that pass */

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
 * Tokens under which TCP is told to slow down, before it runs into drops: a sixteenth of a second of the rate, and at
 * most half of the bucket.
 */
#define NOTICE_SHARE 16
/* What paced TCP may be ahead of its rate, and twice its lag, before packets are dropped. */
#define GUARD_LEAD (100 * MILLISECONDS)
/* Bytes of a packet that last longer than this at its share are a lump: its connection's window is too large. */
#define LUMP_LONGEST_MS 100
/* Of a second: as long as TCP waits for its timer after a refusal; and what those that begin leave others at most. */
#define WAIT_SHARE 5
#define BEGIN_SHARE 3
/* Of the rate: packets without payload beyond it are a flood; of connections that are being made half as many are. */
#define CONTROL_SHARE 2
#define HANDSHAKE_SHARE 4

#define TOKENS_LOWEST (-0x7fffffffffffffffLL - 1)
#define TOKENS_HIGHEST 0x7fffffffffffffffLL

struct bound {
	__s64 tokens;
	enum limiter_reason reason;
};

struct bounds {
	struct bound drop;   /* with so many tokens or fewer the packet is dropped */
	struct bound notice; /* what leaves fewer than this passes with a notice */
};

struct answer {
	enum verdict verdict;
	enum limiter_reason reason; /* of a drop or a notice */
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

/*
 * So that a packet leaves no more than a debt; a larger packet passes if there is none. One byte less than just that.
 */
static __always_inline __s64 verdict_leave(__s64 debt, const struct packet *packet)
{
	return packet->bytes <= debt ? (__s64)packet->bytes - debt - 1 : 0;
}

static __always_inline void verdict_raise(struct bound *bound, __s64 tokens, enum limiter_reason reason)
{
	if (bound->tokens >= tokens)
		return;
	bound->tokens = tokens;
	bound->reason = reason;
}

/*
 * What cannot be told a rate. A large datagram finds its bytes above TCP's part of the debt, or it would leave TCP
 * none. Datagrams take each token as it comes, so that a flood of them keeps the bucket at their bound. Where there is
 * TCP they leave it half of the reserve beside its debt, or connections whose bursts meet by chance would be refused.
 */
static __always_inline void verdict_foreign(const struct rate_limit_state *state, const struct packet *packet,
					    bool paces, struct bounds *bounds)
{
	__s64 whole = packet->bytes < state->bucket ? packet->bytes : state->bucket;
	__s64 half = verdict_half_debt(state->rate);

	bounds->drop = (struct bound){ whole > half ? whole - half - 1 : 0, LIMITER_REASON_EMPTY };
	if (paces && state->fair.active_before && fair_share_flooded(state))
		verdict_raise(&bounds->drop, fair_share_reserve(state) / 2, LIMITER_REASON_TCP_RESERVE);
}

/*
 * Packets without payload go before data until they are a flood: somebody outside may ask for as many acknowledgements
 * as he likes, and a process may make as many connections. Connections can still be made beside many acknowledgements.
 */
static __always_inline bool verdict_floods(const struct rate_limit_state *state, const struct packet *packet)
{
	return packet->paced ? state->fair.control_rate >= state->rate / CONTROL_SHARE
			     : state->fair.handshake_rate >= state->rate / HANDSHAKE_SHARE;
}

/*
 * Tokens below which no connection begins: what those that have begun need while TCP waits for its timer. It grows with
 * the square of their part of the rate: beside a few the paced give way, but where most is new nothing does. And what
 * accrues meanwhile must find room in the bucket.
 */
static __always_inline __s64 verdict_begin(const struct rate_limit_state *state)
{
	__u64 rate = state->rate, part = state->fair.early_rate / (rate / 1024 + 1), wait = rate / WAIT_SHARE;
	__u64 begin = rate / 1024 * part / 1024 * part / BEGIN_SHARE;
	__s64 room = state->bucket - wait;

	if (begin > wait)
		begin = wait;
	return (__s64)begin < room ? (__s64)begin : room;
}

/*
 * No queue can be had, so that some have to be refused: those that begin, while there are tokens left for those that
 * have begun. Whoever tries again before his time (his program closed the connection, or wrote more) finds half of the
 * reserve, and is paced from then on; whoever has waited goes before all others. But nobody is refused since datagrams
 * took the tokens.
 */
static __always_inline void verdict_admit(const struct rate_limit_state *state, const struct packet *packet,
					  struct bounds *bounds)
{
	__s64 begin = verdict_begin(state), half = fair_share_reserve(state) / 2;

	if (!packet->begins || packet->waited || fair_share_flooded(state))
		return;
	if (packet->refused && begin > half)
		begin = half;
	verdict_raise(&bounds->drop, begin, LIMITER_REASON_ADMISSION);
}

/*
 * Behind pacing the bucket is only the guard. Tokens that UDP took are no reason to slow down paced TCP, which has its
 * part of the rate; its own debt is, when it is more than pacing can leave while a share is on its way.
 */
static __always_inline void verdict_guard(const struct rate_limit_state *state, const struct packet *packet, __u64 now,
					  struct bounds *bounds)
{
	const struct fair_share *fair = &state->fair;
	__s64 allowed = GUARD_LEAD + 2 * fair->lag_ns, lead = fair_share_lead(fair, now);
	/* A segment can't be made smaller. */
	bool lump = fair->share && packet->bytes > BURST_SMALLEST && packet->segments > 1 &&
		    packet->bytes * 1000ULL > LUMP_LONGEST_MS * fair->share;

	/*
	 * Its window must shrink. A lump that the bucket can't pay, made for a higher limit, would be silence
	 * afterwards.
	 */
	if (lump) {
		bounds->notice = (struct bound){ TOKENS_HIGHEST, LIMITER_REASON_LUMP };
		if (!packet->starved)
			verdict_raise(&bounds->drop, packet->bytes - verdict_half_debt(state->rate) - 1,
				      LIMITER_REASON_LUMP);
	}
	/* The bucket pays. */
	if (state->tokens > 0)
		return;
	/*
	 * What pacing holds back pays its debt; with a smaller window, too, it would be slow for long if it is far
	 * away.
	 */
	if (2 * lead > allowed && !packet->held)
		verdict_raise(&bounds->notice, TOKENS_HIGHEST, LIMITER_REASON_AHEAD);
	if (lead > allowed && !packet->starved)
		verdict_raise(&bounds->drop, TOKENS_HIGHEST, LIMITER_REASON_AHEAD);
}

/*
 * Paced data has its part of the rate: it passes whatever its size, or large packets would wait for UDP for ever. Idle,
 * it may leave the whole debt.
 */
static __always_inline void verdict_paced(const struct rate_limit_state *state, const struct packet *packet, __u64 now,
					  struct bounds *bounds)
{
	__s64 half = verdict_half_debt(state->rate), idle = verdict_debt(state->rate) - packet->bytes;

	bounds->drop.tokens = packet->idle && idle > half ? -idle : -half;
	if (packet->early || packet->waited)
		verdict_admit(state, packet, bounds);
	else
		verdict_guard(state, packet, now, bounds);
}

static __always_inline struct bounds verdict_bounds(const struct rate_limit_state *state, const struct packet *packet,
						    __u64 now, bool paces)
{
	struct bounds bounds = { { 0, LIMITER_REASON_DEBT }, { TOKENS_LOWEST, LIMITER_REASON_LOW } };
	__u64 rate = state->rate, bucket = state->bucket;

	if (!packet->tcp) {
		verdict_foreign(state, packet, paces, &bounds);
	} else if (packet->paced && !packet->control) {
		verdict_paced(state, packet, now, &bounds);
	} else {
		bounds.notice.tokens = rate / NOTICE_SHARE < bucket / 2 ? rate / NOTICE_SHARE : bucket / 2;
		bounds.drop.tokens =
			verdict_leave(packet->control ? verdict_debt(rate) : verdict_debt(rate) / 2, packet);
	}
	return bounds;
}

/* Decides on a packet after the refill, takes its tokens if it passes, and counts it. */
static __always_inline struct answer verdict_take(struct rate_limit_state *state, const struct bounds *bounds,
						  const struct packet *packet)
{
	if (state->tokens <= bounds->drop.tokens) {
		state->drops[bounds->drop.reason % LIMITER_REASONS] += packet->segments;
		state->dropped_bytes += packet->bytes;
		return (struct answer){ VERDICT_DROP, bounds->drop.reason };
	}
	token_bucket_take(state, packet->bytes);
	state->packets += packet->segments;
	state->bytes += packet->bytes;
	if (state->tokens >= bounds->notice.tokens)
		return (struct answer){ VERDICT_PASS, LIMITER_REASON_UNKNOWN };
	state->notices[bounds->notice.reason % LIMITER_REASONS] += packet->segments;
	return (struct answer){ VERDICT_PASS_WITH_NOTICE, bounds->notice.reason };
}

/* Undoes verdict_take() for a packet that passed here and that another rule dropped. */
static __always_inline void verdict_refund(struct rate_limit_state *state, struct answer answer,
					   const struct packet *packet)
{
	token_bucket_refund(state, packet->bytes);
	state->packets -= packet->segments;
	state->bytes -= packet->bytes;
	if (answer.verdict == VERDICT_PASS_WITH_NOTICE)
		state->notices[answer.reason % LIMITER_REASONS] -= packet->segments;
}

/*
 * One rule's whole answer to a packet. `mark` is its connection's, NULL where it has none; `paces`: sockets are told.
 */
static __always_inline struct answer verdict_charge(struct rate_limit_state *state, struct fair_share_mark *mark,
						    struct packet *packet, __u64 now, bool paces)
{
	struct bounds bounds;
	struct answer answer;

	token_bucket_refill(state, state->rate, state->bucket, now);
	use_measure(state, now);
	if (paces) {
		fair_share_advance(state, now);
		demand_hear(&state->fair, packet->round_trip_ns);
		if (packet->tcp && packet->control) {
			demand_note_control(&state->fair, packet);
			packet->tcp = !verdict_floods(state, packet);
		}
	}
	bounds = verdict_bounds(state, packet, now, paces);
	answer = verdict_take(state, &bounds, packet);
	if (!paces)
		return answer;
	if (packet->tcp)
		demand_note(&state->fair, mark, packet, answer.verdict != VERDICT_DROP, now);
	else
		demand_note_foreign(&state->fair, packet);
	return answer;
}
#endif
