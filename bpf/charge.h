/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Charges a packet to each rule that holds for it, one after the other, since two locks cannot be held at once. When a
 * later rule drops the packet, those already charged get their tokens back.
 */
#ifndef LIMITER_CHARGE_H
#define LIMITER_CHARGE_H

#include "attribution.h"
#include "graph.h"
#include "pacing.h"
#include "queue.h"
#include "verdict.h"
#include "wire.h"

/* How far TCP's time stamp, in nanoseconds, may be behind the rule's last refill: packets come from several CPUs. */
#define CHARGE_CLOCK_OLDEST 100000000
/* A struct answer packed into one number: the verdict, and each from its bit on what was counted, and the reason. */
#define CHARGE_COUNTED 2
#define CHARGE_COUNTED_MASK 0xf
#define CHARGE_REASON 8
#define CHARGE_WAITS 6
/* Instead: it depends on whether the packet's device holds it. */
#define CHARGE_ASKS (1 << 7)
/* What charge_rule() is told, in one number: bits, and from their bits on the generation and the packet's room. */
#define CHARGE_PACES 1
#define CHARGE_MAY_ASK 2
#define CHARGE_GENERATION 2
#define CHARGE_ROOM 34

/*
 * The room of a packet; all bits where it depends on the packet's device, which was not looked at yet. Not inlined:
 * what is known of the packet then would be walked apart.
 */
__noinline __u64 charge_room(__s64 tokens, __u64 rate, __u64 measured, __u64 told)
{
	struct packet packet = packet_unpack(measured);

	if (!(told & CHARGE_MAY_ASK))
		return told >> CHARGE_ROOM;
	return departure_matters(tokens, rate, &packet) ? ~0ULL : 0;
}

/*
 * Charges one rule; `index` is its number among the rules of the socket. Returns an answer, or 0 where the rule limits
 * nothing.
 *
 * A `__noinline` function is verified once, on its own. Inlined, the 5.10 verifier walks every combination for minutes.
 * On 5.10 it may take only the context and scalars, five at most.
 */
__noinline int charge_rule(struct __sk_buff *skb, __u64 rule, __u64 measured, __u32 index, __u64 told)
{
	__u32 generation = told >> CHARGE_GENERATION;
	bool paces = told & CHARGE_PACES;
	struct rate_limit_state *state = rule_state(&rule, generation);
	struct packet packet = packet_unpack(measured);
	struct rate_limit_pacing *pacing = NULL;
	struct bpf_sock *sk = skb->sk;
	struct answer answer;
	__u64 now, share;

	if (!state)
		return 0;
	index %= LIMITER_MAX_NESTED;
	if (paces && packet.tcp && sk)
		pacing = bpf_sk_storage_get(&rate_limit_pacing_map, sk, NULL, 0);
	/* Read before the lock is taken: no helper may be called under it. */
	now = pacing && measured >> PACKET_CLOCK & 1 ? pacing->sent_ns : 0;
	/* TCP's time stamp is old where TCP retransmits after an ICMP message. */
	if (!now || now + CHARGE_CLOCK_OLDEST < state->last_update_ns)
		now = bpf_ktime_get_ns();
	if (pacing) {
		pacing_confirm(pacing, index, rule, generation);
		packet.round_trip_ns = pacing->round_trip_us * 1000ULL;
		/* For all rules of this packet, the bottleneck is that of the connection's last packet. */
		packet.elsewhere = (measured >> PACKET_BOTTLENECK) % LIMITER_MAX_NESTED != index;
	}
	/* Read without the lock: who comes in between finds what there is, or is dropped. */
	packet.room = charge_room(state->tokens, state->rate, measured, told);
	if ((__s64)packet.room < 0)
		return CHARGE_ASKS;
	bpf_spin_lock(&state->lock);
	/* It was swept meanwhile: what it counts now would be lost. */
	if (state->limit == LIMITER_NO_RULE) {
		bpf_spin_unlock(&state->lock);
		return 0;
	}
	answer = verdict_charge(state, pacing ? &pacing->marks[index] : NULL, &packet, now, paces);
	if (!index && answer.verdict & VERDICT_PASSES)
		state->once_bytes += packet.bytes;
	share = demand_offer(&state->fair, packet.early);
	bpf_spin_unlock(&state->lock);
	if (pacing) {
		if (!packet.control)
			connection_note_verdict(pacing, answer.verdict == VERDICT_DROP);
		connection_take_offer(pacing, index, share);
	}
	return answer.verdict | answer.counted << CHARGE_COUNTED | answer.reason << CHARGE_REASON |
	       connection_less(0, packet.room) << CHARGE_WAITS;
}

/* Another rule dropped the packet after this one had passed it. */
__noinline int charge_refund(struct __sk_buff *skb, __u64 rule, __u64 measured, __u32 index, int answered)
{
	struct rate_limit_state *state = bpf_map_lookup_elem(&rate_limit_state_map, &rule);
	struct answer answer = { answered & VERDICT_MASK, answered >> CHARGE_REASON,
				 answered >> CHARGE_COUNTED & CHARGE_COUNTED_MASK };
	struct packet packet = packet_unpack(measured);
	struct rate_limit_pacing *pacing = NULL;
	struct bpf_sock *sk = skb->sk;

	if (!state)
		return 0;
	index %= LIMITER_MAX_NESTED;
	if (answer.counted & DEMAND_TCP && sk)
		pacing = bpf_sk_storage_get(&rate_limit_pacing_map, sk, NULL, 0);
	bpf_spin_lock(&state->lock);
	if (!index)
		state->once_bytes -= packet.bytes;
	verdict_refund(state, pacing ? &pacing->marks[index] : NULL, answer, &packet);
	bpf_spin_unlock(&state->lock);
	return 0;
}

/* What a verdict comes from. */
struct decision {
	struct attribution found;
	__u64 measured;                    /* packet_pack(); 0: nothing was charged */
	__u16 answers[LIMITER_MAX_NESTED]; /* of the rules, as charge_rule() returns them; 0: it was not asked */
};

/*
 * Charges one rule. If that depends on it, looks whether the device holds the packet. Not in charge_rule(), whose stack
 * leaves none for it on 5.10.
 */
static __always_inline int charge(struct __sk_buff *skb, __u64 rule, __u64 measured, __u32 index, __u64 told)
{
	int answer = charge_rule(skb, rule, measured, index, told);

	if (answer != CHARGE_ASKS)
		return answer;
	told = (told & ~(__u64)CHARGE_MAY_ASK) | queue_room(skb, rule, measured) << CHARGE_ROOM;
	return charge_rule(skb, rule, measured, index, told);
}

/* Charges the rules that were found. */
static __always_inline int charge_rules(struct __sk_buff *skb, struct decision *decision, __u64 told)
{
	__u64 measured = wire_measure(skb), wait = 0;
	__u64 *rules = decision->found.rules;
	__u16 *answers = decision->answers;
	bool notice = false, dropped = false;
	__u32 waits = 0;

	if (told & CHARGE_PACES && measured >> PACKET_TCP & 1)
		measured = pacing_look(skb, measured);
	decision->measured = measured;
/* Unrolled: the 5.10 verifier takes only constant offsets into the stack. */
#pragma unroll
	for (int i = 0; i < LIMITER_MAX_NESTED; i++) {
		if (!rules[i])
			break;
		answers[i] = charge(skb, rules[i], measured, i, told);
		/* The rule limits nothing, unless it is a budget that was swept. */
		if (!answers[i]) {
			rules[i] = graph_again(skb, rules[i]);
			if (rules[i])
				answers[i] = charge(skb, rules[i], measured, i, told);
		}
		waits |= answers[i];
		if ((answers[i] & VERDICT_MASK) == VERDICT_PASS_WITH_NOTICE)
			notice = true;
		if ((answers[i] & VERDICT_MASK) == VERDICT_DROP) {
			dropped = true;
			break;
		}
	}
	/* Constants, since the verifier does not know what a function may return. */
	if (!dropped) {
		if ((waits >> CHARGE_WAITS | measured >> PACKET_FOLLOWS) & 1) {
#pragma unroll
			for (int i = 0; i < LIMITER_MAX_NESTED; i++)
				wait = queue_wait(rules[i], measured, wait);
			queue_depart(skb, wait);
		}
		return notice ? VERDICT_PASS_WITH_NOTICE : VERDICT_PASS;
	}
#pragma unroll
	for (int i = 0; i < LIMITER_MAX_NESTED - 1; i++)
		if (answers[i] & VERDICT_PASSES)
			charge_refund(skb, rules[i], measured, i, answers[i]);
	return VERDICT_DROP;
}
#endif
