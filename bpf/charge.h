/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Charges a packet to the rules that hold for it. Two locks cannot be held at once, so the rules are charged one after
 * the other, and those that were already charged get their tokens back when a later one drops the packet.
 */
#ifndef LIMITER_CHARGE_H
#define LIMITER_CHARGE_H

#include "pacing.h"
#include "verdict.h"
#include "wire.h"

/* Nanoseconds that TCP's clock may be behind a rule's: packets of several CPUs. */
#define CLOCK_OLDEST 100000000
/* A struct answer in one number: the verdict, and from this bit on the reason. */
#define ANSWER_REASON 8

/*
 * Charges the rule that is the `place`th of its socket: an answer, or 0 where it limits nothing. This and the others
 * that are not inlined are verified once, each for itself: if they were, the verifier would follow every combination of
 * what they do, for minutes (5.10). There such functions take and give only numbers, and the context; five at most.
 */
__noinline int charge_rule(struct __sk_buff *skb, __u64 rule, __u64 measured, __u32 place, __u64 generation_paces)
{
	__u32 generation = generation_paces >> 1;
	bool paces = generation_paces & 1;
	struct rate_limit_state *state = rule_state(&rule, generation);
	struct packet packet = packet_unpack(measured);
	struct rate_limit_pacing *pacing = NULL;
	struct bpf_sock *sk = skb->sk;
	struct answer answer;
	__u64 now, share;

	if (!state)
		return 0;
	place %= LIMITER_MAX_NESTED;
	if (paces && packet.tcp && sk)
		pacing = bpf_sk_storage_get(&rate_limit_pacing_map, sk, NULL, 0);
	/* Read before the lock is taken: no helper may be called under it. */
	now = pacing && measured >> PACKET_CLOCK & 1 ? pacing->sent_ns : 0;
	/* TCP's is old where it sends again after an ICMP message. */
	if (!now || now + CLOCK_OLDEST < state->last_update_ns)
		now = bpf_ktime_get_ns();
	if (pacing) {
		pacing_confirm(pacing, place, rule, generation);
		packet.round_trip_ns = pacing->round_trip_us * 1000ULL;
		/* For the whole walk it is the rule that bound the last packet. */
		packet.elsewhere = (measured >> PACKET_BINDS) % LIMITER_MAX_NESTED != place;
	}
	bpf_spin_lock(&state->lock);
	answer = verdict_charge(state, pacing ? &pacing->marks[place] : NULL, &packet, now, paces);
	share = demand_offer(&state->fair, packet.early);
	bpf_spin_unlock(&state->lock);
	if (pacing) {
		if (!packet.control)
			connection_note_verdict(pacing, answer.verdict == VERDICT_DROP);
		connection_take_offer(pacing, place, share);
	}
	return answer.verdict | answer.reason << ANSWER_REASON;
}

/* Another rule dropped the packet, after this one had let it pass. */
__noinline int charge_refund(__u64 rule, __u64 measured, int answered, bool paces)
{
	struct rate_limit_state *state = bpf_map_lookup_elem(&rate_limit_state_map, &rule);
	struct packet packet = packet_unpack(measured);
	struct answer answer = { answered & VERDICT_MASK, answered >> ANSWER_REASON };

	if (!state)
		return 0;
	bpf_spin_lock(&state->lock);
	verdict_refund(state, answer, &packet);
	if (paces && packet.tcp && !packet.early)
		demand_refund(&state->fair, &packet);
	bpf_spin_unlock(&state->lock);
	return 0;
}

static __always_inline int charge_rules(struct __sk_buff *skb, const __u64 rules[LIMITER_MAX_NESTED], __u32 generation,
					bool paces)
{
	__u64 measured = wire_measure(skb), generation_paces = (__u64)generation << 1 | paces;
	int answers[LIMITER_MAX_NESTED] = {};
	bool notice = false, dropped = false;

	if (paces && measured >> PACKET_TCP & 1)
		measured = pacing_look(skb, measured);
/* Unrolled: the 5.10 verifier takes only constant offsets into the stack. */
#pragma unroll
	for (int i = 0; i < LIMITER_MAX_NESTED; i++) {
		if (!rules[i])
			break;
		answers[i] = charge_rule(skb, rules[i], measured, i, generation_paces);
		if ((answers[i] & VERDICT_MASK) == VERDICT_PASS_WITH_NOTICE)
			notice = true;
		if ((answers[i] & VERDICT_MASK) == VERDICT_DROP) {
			dropped = true;
			break;
		}
	}
	/* In constants: the verifier does not know what a function can answer. */
	if (!dropped)
		return notice ? VERDICT_PASS_WITH_NOTICE : VERDICT_PASS;
#pragma unroll
	for (int i = 0; i < LIMITER_MAX_NESTED - 1; i++)
		if (answers[i] & VERDICT_PASSES)
			charge_refund(rules[i], measured, answers[i], paces);
	return VERDICT_DROP;
}
#endif
