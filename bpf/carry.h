/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How a new layout of the state takes over from an earlier one. User space copies the states; then the new program
 * takes the old one's place; then this adds what the old one left and counted until then. The new program is counting
 * by then, so that happens under the state's lock. What was added is noted in the same run, in which nobody can be
 * killed: it can be asked for again, and nothing is added twice.
 *
 * Until then a state has few tokens, and gets none for the time before its first packet: its last refill seems to be
 * ahead. So the two programs never spend the same tokens.
 */
#ifndef LIMITER_CARRY_H
#define LIMITER_CARRY_H

#include "maps.h"

/* Rules in one run: their requests fit into a page. */
#define CARRY_MOST 16
#define CARRY_ETHERNET 14

struct carry {
	__u64 rule;
	__s64 tokens;
	__u64 counters[LIMITER_COUNTERS];
};

/* What user space hands over, behind an Ethernet header. The answer is CLOCK_MONOTONIC as programs see it. */
struct carry_request {
	__u64 now;
	struct carry carries[];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, LIMITER_MAX_RULES + LIMITER_MAX_BUDGETS);
	__type(key, __u64);
	__type(value, struct rate_limit_carried);
} rate_limit_carried_map SEC(".maps");

static __always_inline void carry_to(struct rate_limit_state *state, struct rate_limit_carried *carried,
				     const struct carry *carry, __u64 now)
{
	const __u64 *drops = carry->counters + 3, *notices = drops + LIMITER_REASONS,
		    *delays = notices + LIMITER_REASONS;
	__u64 reference = carried->reference_ns;

	bpf_spin_lock(&state->lock);
	/* No packet has come yet: what has accrued since the states were copied is this state's. */
	if ((__s64)state->last_update_ns < 0)
		state->last_update_ns = reference;
	state->tokens += carry->tokens;
	state->packets += carry->counters[0];
	state->bytes += carry->counters[1];
	state->dropped_bytes += carry->counters[2];
	for (int i = 0; i < LIMITER_REASONS; i++) {
		state->drops[i] += drops[i];
		state->notices[i] += notices[i];
	}
	state->delayed_packets += delays[0];
	state->delay_ns += delays[1];
	bpf_spin_unlock(&state->lock);
	carried->tokens += carry->tokens;
	for (int i = 0; i < LIMITER_COUNTERS; i++)
		carried->counters[i] += carry->counters[i];
}

static __always_inline int carry_run(struct __sk_buff *skb)
{
	struct carry_request *request = (void *)(long)skb->data + CARRY_ETHERNET;
	void *end = (void *)(long)skb->data_end;
	struct rate_limit_carried *carried;
	struct rate_limit_state *state;
	struct carry *carry;
	__u64 now, rule;

	if ((void *)(request + 1) > end)
		return 0;
	now = bpf_ktime_get_ns();
	request->now = now;
	for (int i = 0; i < CARRY_MOST; i++) {
		carry = &request->carries[i];
		if ((void *)(carry + 1) > end)
			break;
		rule = carry->rule;
		state = bpf_map_lookup_elem(&rate_limit_state_map, &rule);
		carried = bpf_map_lookup_elem(&rate_limit_carried_map, &rule);
		if (state && carried)
			carry_to(state, carried, carry, now);
	}
	return 0;
}
#endif
