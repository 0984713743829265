/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Here the verdict is decided: what one rule does with a packet, why, and how the rule counts it. Pure: all of it runs
 * under the state's lock.
 *
 * verdict_charge() is the entry. A packet is dropped if the bucket holds no more tokens than one bound, and passes with
 * a congestion notice if it would leave fewer than another. verdict_bounds() finds the bounds and their reasons from
 * what the packet is.
 */
#ifndef LIMITER_VERDICT_H
#define LIMITER_VERDICT_H

#include "demand.h"
#include "use.h"

/*
 * What the hook returns. Never 0, which is EPERM to the sender. A drop is like one by a full qdisc: UDP loses the
 * packet, TCP keeps it queued and slows down. A notice makes TCP slow down (like ECN, but without the receiver), and
 * does nothing to other traffic.
 */
enum verdict {
	VERDICT_PASS = 1,
	VERDICT_DROP = 2,
	VERDICT_PASS_WITH_NOTICE = 3,
};
#define VERDICT_MASK 3
#define VERDICT_PASSES 1 /* set in both verdicts that pass */

/*
 * TCP may run into a debt that UDP may not: an eighth of a second of the rate, and at most the largest ordinary GSO
 * packet, which any packet may leave behind anyway. So what passes in any time t stays within rate * t plus one bucket
 * plus one such packet, or one and a half where TCP is paced. Without this debt a flood of UDP, which takes each token
 * as it comes, would leave TCP nothing, and each drop would cost TCP its ACK clock.
 *
 * Data may use half of the debt. The other half is for control packets; otherwise connections could not be made, closed
 * or acknowledged beside busy ones. It is also for data of an idle connection, where a drop costs most: TCP then waits
 * 200 ms for its timer, and the second time half a second more, whereas a busy connection retries at the next ACK.
 */
#define VERDICT_DEBT_BYTES 65536
#define VERDICT_DEBT_PART 8
/* For paced TCP: two segments, however low the rate. */
#define VERDICT_PACED_DEBT_LEAST 3000
/*
 * TCP gets notices below this many tokens, so that it slows down before drops: a sixteenth of a second of the rate, and
 * at most half of the bucket.
 */
#define VERDICT_NOTICE_PART 16
/* Paced TCP may lead its rate by this and twice its lag before packets are dropped. */
#define VERDICT_GUARD_LEAD (100 * MILLISECONDS)
/* ... and by this where packets wait in the device's queue: by what early ones may wait there. */
#define VERDICT_GUARD_QUEUE DEMAND_EARLY_QUEUE
/* What TCP may wait for in that queue, and what is added for who was refused once, and has waited for the timer. */
#define VERDICT_QUEUE_MS (DEMAND_EARLY_QUEUE / MILLISECONDS)
#define VERDICT_QUEUE_REFUSED_MS 30
/* A packet that lasts longer than this at its share is a lump: its connection's window is too large. */
#define VERDICT_LUMP_LONGEST_MS 100
/*
 * Parts of a second: TCP's wait for its timer after a drop; and what connections that begin leave to the others at
 * most.
 */
#define VERDICT_WAIT_PART 5
#define VERDICT_BEGIN_PART 3
/* Parts of the rate: more control packets than this are a flood; of handshakes half as many are. */
#define VERDICT_CONTROL_PART 2
#define VERDICT_HANDSHAKE_PART 4

#define VERDICT_TOKENS_LOWEST (-0x7fffffffffffffffLL - 1)
#define VERDICT_TOKENS_HIGHEST 0x7fffffffffffffffLL

struct bound {
	__s64 tokens;
	enum limiter_reason reason;
};

struct bounds {
	struct bound drop;   /* with this many tokens or fewer the packet is dropped */
	struct bound notice; /* a packet that leaves fewer tokens than this passes with a notice */
};

struct answer {
	enum verdict verdict;
	enum limiter_reason reason; /* of the drop or notice */
	__u32 counted;              /* DEMAND_* */
};

/* The debt in bytes that TCP may have. */
static __always_inline __s64 verdict_debt(__u64 rate)
{
	return rate / VERDICT_DEBT_PART < VERDICT_DEBT_BYTES ? rate / VERDICT_DEBT_PART : VERDICT_DEBT_BYTES;
}

/* The half of it that all data of paced TCP may use. */
static __always_inline __s64 verdict_half_debt(__u64 rate)
{
	__s64 half = verdict_debt(rate) / 2;

	return half > VERDICT_PACED_DEBT_LEAST ? half : VERDICT_PACED_DEBT_LEAST;
}

/*
 * The debt in bytes that TCP may have where its packets can wait. Some of it is for who was refused before, and more
 * for packets without data.
 */
static __always_inline __s64 verdict_queue(__u64 rate, const struct packet *packet)
{
	__u64 ms = VERDICT_QUEUE_MS + packet->refused * VERDICT_QUEUE_REFUSED_MS;

	return packet->control ? rate / 1000 * (VERDICT_QUEUE_MS + VERDICT_QUEUE_REFUSED_MS) + verdict_debt(rate) / 2
			       : rate / 1000 * ms;
}

/*
 * The bound at which a packet leaves at most this debt: one byte less than just enough. A larger packet passes if there
 * is no debt yet.
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
 * Bounds of foreign traffic. A large datagram must find its bytes above TCP's part of the debt, or it would leave TCP
 * none. Datagrams take each token as it comes, so a flood of them keeps the bucket at their bound. Beside TCP the bound
 * leaves half of the reserve on top of TCP's debt; otherwise connections whose bursts coincide would see drops.
 */
static __always_inline void verdict_foreign(const struct rate_limit_state *state, const struct packet *packet,
					    bool paces, struct bounds *bounds)
{
	__s64 whole = packet->bytes < state->bucket ? packet->bytes : state->bucket;
	__s64 half = verdict_half_debt(state->rate);

	bounds->drop = (struct bound){ whole > half ? whole - half - 1 : 0, LIMITER_REASON_EMPTY };
	bounds->drop.tokens -= packet->room;
	if (paces && state->fair.active_before && fair_share_flooded(state))
		verdict_raise(&bounds->drop, fair_share_reserve(state) / 2, LIMITER_REASON_TCP_RESERVE);
}

/*
 * Control packets go before data until they are a flood: an outsider may ask for any number of acknowledgements, and a
 * process may make any number of connections. The two are counted apart, so connections can still be made beside many
 * acknowledgements.
 */
static __always_inline bool verdict_floods(const struct rate_limit_state *state, const struct packet *packet)
{
	return packet->handshake ? state->fair.handshake_rate >= state->rate / VERDICT_HANDSHAKE_PART
				 : state->fair.control_rate >= state->rate / VERDICT_CONTROL_PART;
}

/*
 * Tokens below which no connection begins: what connections that have begun need while TCP waits for its timer. It
 * grows with the square of early traffic's part of the rate: beside little of it the paced connections give way, but
 * where most traffic is early nothing does. What accrues during the wait must still fit into the bucket.
 */
static __always_inline __s64 verdict_begin(const struct rate_limit_state *state)
{
	__u64 rate = state->rate, part = state->fair.early_rate / (rate / 1024 + 1), wait = rate / VERDICT_WAIT_PART;
	__u64 begin = rate / 1024 * part / 1024 * part / VERDICT_BEGIN_PART;
	__s64 room = state->bucket - wait;

	if (begin > wait)
		begin = wait;
	return (__s64)begin < room ? (__s64)begin : room;
}

/*
 * Admission. There is no queue at this hook, so some packets have to be dropped: the first data of connections, while
 * tokens are left for the connections that have begun. A connection that tries again before TCP's timer (its process
 * closed it, or wrote more) finds half of the reserve, and is paced from then on. One that has waited for the timer
 * goes before all others. None is dropped only because datagrams took the tokens.
 */
static __always_inline void verdict_admit(const struct rate_limit_state *state, const struct packet *packet,
					  struct bounds *bounds)
{
	__s64 begin = verdict_begin(state), half = fair_share_reserve(state) / 2;

	if (!packet->begins || packet->waited || packet->room || fair_share_flooded(state))
		return;
	if (packet->refused && begin > half)
		begin = half;
	verdict_raise(&bounds->drop, begin, LIMITER_REASON_ADMISSION);
}

/*
 * The guard behind pacing. Tokens that UDP took are no reason to slow down paced TCP, which has its own part of the
 * rate. Only TCP's own lead is, once it exceeds what pacing can leave while a share is on its way.
 */
static __always_inline void verdict_guard(const struct rate_limit_state *state, const struct packet *packet, __u64 now,
					  struct bounds *bounds)
{
	const struct fair_share *fair = &state->fair;
	__s64 allowed = VERDICT_GUARD_LEAD + 2 * fair->lag_ns + (packet->room ? VERDICT_GUARD_QUEUE : 0),
	      lead = fair_share_lead(fair, now);
	/* A single segment cannot be made smaller. */
	bool lump = fair->share && packet->bytes > FAIR_SHARE_BURST_SMALLEST && packet->segments > 1 &&
		    packet->bytes * 1000ULL > VERDICT_LUMP_LONGEST_MS * fair->share;

	/*
	 * A lump's connection must shrink its window. A lump that was built for a higher limit and that the bucket
	 * cannot pay would mean a long silence afterwards.
	 */
	if (lump) {
		bounds->notice = (struct bound){ VERDICT_TOKENS_HIGHEST, LIMITER_REASON_LUMP };
		if (!packet->starved)
			verdict_raise(&bounds->drop, packet->bytes - verdict_half_debt(state->rate) - 1,
				      LIMITER_REASON_LUMP);
	}
	/* While there are tokens, the bucket pays. */
	if (state->tokens > 0)
		return;
	/*
	 * Pacing itself pays back the lead of a held connection. A smaller window on top would slow it for long on a
	 * long path.
	 */
	if (lead > allowed >> 1 && !packet->held)
		verdict_raise(&bounds->notice, VERDICT_TOKENS_HIGHEST, LIMITER_REASON_AHEAD);
	if (lead > allowed && !packet->starved)
		verdict_raise(&bounds->drop, VERDICT_TOKENS_HIGHEST, LIMITER_REASON_AHEAD);
}

/*
 * Bounds of paced data. It has its part of the rate, so it passes at any size: otherwise large packets would wait for
 * UDP for ever. An idle connection may leave the whole debt.
 */
static __always_inline void verdict_paced(const struct rate_limit_state *state, const struct packet *packet, __u64 now,
					  struct bounds *bounds)
{
	__s64 half = verdict_half_debt(state->rate), idle = verdict_debt(state->rate) - packet->bytes;

	bounds->drop.tokens = packet->idle && idle > half ? -idle : -half;
	if (packet->room)
		bounds->drop.tokens = -verdict_queue(state->rate, packet) - VERDICT_PACED_DEBT_LEAST;
	if (packet->early || packet->waited)
		verdict_admit(state, packet, bounds);
	else
		verdict_guard(state, packet, now, bounds);
}

static __always_inline struct bounds verdict_bounds(const struct rate_limit_state *state, const struct packet *packet,
						    __u64 now, bool paces)
{
	struct bounds bounds = { { 0, LIMITER_REASON_DEBT }, { VERDICT_TOKENS_LOWEST, LIMITER_REASON_LOW } };
	__u64 rate = state->rate, bucket = state->bucket;

	if (!packet->tcp) {
		verdict_foreign(state, packet, paces, &bounds);
	} else if (packet->paced && !packet->control) {
		verdict_paced(state, packet, now, &bounds);
	} else {
		bounds.notice.tokens =
			rate / VERDICT_NOTICE_PART < bucket / 2 ? rate / VERDICT_NOTICE_PART : bucket / 2;
		bounds.drop.tokens =
			verdict_leave(packet->control ? verdict_debt(rate) : verdict_debt(rate) / 2, packet);
		/* A notice for what does not wait would only make the data behind it slower. */
		if (packet->room) {
			bounds.drop.tokens = -verdict_queue(rate, packet);
			bounds.notice.tokens = packet->control ? VERDICT_TOKENS_LOWEST : bounds.drop.tokens >> 1;
		}
	}
	return bounds;
}

/* Decides on a packet after the refill. If it passes, takes its tokens and counts it. */
static __always_inline struct answer verdict_take(struct rate_limit_state *state, const struct bounds *bounds,
						  const struct packet *packet, __u64 now)
{
	if (state->tokens <= bounds->drop.tokens) {
		use_withhold(state, now);
		state->drops[bounds->drop.reason % LIMITER_REASONS] += packet->segments;
		state->dropped_bytes += packet->bytes;
		return (struct answer){ VERDICT_DROP, bounds->drop.reason, 0 };
	}
	token_bucket_take(state, packet->bytes);
	state->packets += packet->segments;
	state->bytes += packet->bytes;
	if (state->tokens >= bounds->notice.tokens)
		return (struct answer){ VERDICT_PASS, LIMITER_REASON_UNKNOWN, 0 };
	use_withhold(state, now);
	state->notices[bounds->notice.reason % LIMITER_REASONS] += packet->segments;
	return (struct answer){ VERDICT_PASS_WITH_NOTICE, bounds->notice.reason, 0 };
}

/* Undoes verdict_charge() for a packet that passed here and was dropped by another rule. */
static __always_inline void verdict_refund(struct rate_limit_state *state, struct fair_share_mark *mark,
					   struct answer answer, const struct packet *packet)
{
	token_bucket_refund(state, packet->bytes);
	state->packets -= packet->segments;
	state->bytes -= packet->bytes;
	if (answer.verdict == VERDICT_PASS_WITH_NOTICE)
		state->notices[answer.reason % LIMITER_REASONS] -= packet->segments;
	demand_refund(&state->fair, mark, packet, answer.counted);
}

/*
 * One rule's whole answer to a packet. `mark` belongs to the packet's connection, NULL without one; `paces` says
 * whether sockets are told their shares.
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
	answer = verdict_take(state, &bounds, packet, now);
	if (!paces)
		return answer;
	if (packet->held && !packet->elsewhere && !packet->control)
		use_bind(state, now);
	if (packet->tcp)
		answer.counted = demand_note(&state->fair, mark, packet, answer.verdict != VERDICT_DROP, now);
	else
		answer.counted = demand_note_foreign(&state->fair, packet);
	return answer;
}
#endif
