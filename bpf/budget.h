/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Budgets: with `each`, every cgroup at a node has a state of its own, with the rule's limit. Its key follows from the
 * cgroup's names (graph_budget), so a cgroup that is removed and made again has the budget that it had, with its debt.
 * There is no daemon that would remove those of cgroups that are gone, so new budgets do: each takes a slot, and the
 * budget that had it before goes if it has rested (a clock hand). A rested budget is like a new one, so whether its
 * cgroup lives does not matter: with its next packet it is made again (graph_again). What it counted is added to its
 * rule's own state first.
 *
 * Of two CPUs that remove one budget, the one that sets LIMITER_NO_RULE adds its counters. Nothing is charged to it
 * after that: whoever finds it so looks for the budget again.
 */
#ifndef LIMITER_BUDGET_H
#define LIMITER_BUDGET_H

#include "maps.h"
#include "token_bucket.h"

/* Slots that are looked at before more are used, and before a cgroup has to share. */
#define BUDGET_TRIES 8
#define BUDGET_SLOTS_LEAST 16

/* In a section of its own: tests have fewer slots, and less patience. */
struct budget_policy {
	__u32 slots;
	__u32 rest_seconds;
};
/* After 20 s nothing that the controller learned holds: fair_share_advance() forgets it after 16.5 s at most. */
const volatile struct budget_policy budget_policy SEC(".rodata.budget") = { LIMITER_MAX_BUDGETS, 20 };

/* What a new budget begins as: a value with a lock can't be the source of another. */
struct budget_blank {
	__u8 before[__builtin_offsetof(struct rate_limit_state, limit)];
	__u64 limit;
	__u8 behind[sizeof(struct rate_limit_state) - __builtin_offsetof(struct rate_limit_state, limit) - 8];
};
const volatile struct budget_blank budget_blank = { .limit = LIMITER_NO_RULE };

/*
 * The clock hand, and the slots in use, which are doubled when all that the hand meets are taken. So memory goes by the
 * budgets that are in use at a time, not by all that ever were. A new program begins anew, and finds its way in a few
 * packets. Not exact: CPUs may use the same hand, but never the same slot. The first budget ever takes slot 0, by which
 * user space sees that there may be some.
 */
__u32 budget_hand;
__u32 budget_slots = BUDGET_SLOTS_LEAST;

/* Whether a budget is like a new one. */
static __always_inline bool budget_rested(const struct rate_limit_state *state, __u64 rate, __u64 bucket, __u64 now)
{
	__u64 seconds = (now - state->last_update_ns) / NANOSECONDS;

	if (now < state->last_update_ns || seconds < budget_policy.rest_seconds)
		return false;
	return state->tokens >= (__s64)bucket || seconds > (bucket - state->tokens) / rate;
}

/* Adds to a rule's own state what a budget has counted. */
static __always_inline void budget_fold(struct rate_limit_state *own, const struct rate_limit_state *budget)
{
	own->packets += budget->packets;
	own->bytes += budget->bytes;
	/* What is used in this second is the state's own traffic. */
	own->use_bytes += budget->bytes;
	own->once_bytes += budget->once_bytes;
	own->dropped_bytes += budget->dropped_bytes;
	for (int i = 0; i < LIMITER_REASONS; i++) {
		own->drops[i] += budget->drops[i];
		own->notices[i] += budget->notices[i];
	}
	own->delayed_packets += budget->delayed_packets;
	own->delay_ns += budget->delay_ns;
	own->swept++;
}

/* Removes a budget that has rested; in any case one whose rule is gone, or if `used`. False where it stays. */
__noinline bool budget_sweep(__u64 budget, __u64 now, bool used)
{
	struct rate_limit_state *state = bpf_map_lookup_elem(&rate_limit_state_map, &budget), *own;
	struct rate_limit_config *config;
	__u64 rule, rate = 1, bucket = 0;
	bool mine = false;

	if (!state)
		return true;
	rule = state->limit;
	if (!rule)
		return true;
	if (rule == LIMITER_NO_RULE)
		return false;
	config = bpf_map_lookup_elem(&rate_limit_config_map, &rule);
	if (config) {
		rate = config->rate_bps;
		bucket = config->bucket_size;
	}
	bpf_spin_lock(&state->lock);
	if (state->limit == rule && (used || !config || !rate || budget_rested(state, rate, bucket, now))) {
		state->limit = LIMITER_NO_RULE;
		mine = true;
	}
	bpf_spin_unlock(&state->lock);
	if (!mine)
		return false;
	own = bpf_map_lookup_elem(&rate_limit_state_map, &rule);
	if (own) {
		bpf_spin_lock(&own->lock);
		budget_fold(own, state);
		bpf_spin_unlock(&own->lock);
	}
	bpf_map_delete_elem(&rate_limit_state_map, &budget);
	return true;
}

/* Finds a slot for a new budget; false where all that are looked at are taken. */
__noinline bool budget_place(__u64 budget, __u64 now)
{
	struct rate_limit_slot *slot;
	__u32 hand, slots;
	__u64 before;
	bool taken;

	for (int i = 0; i < 2 * BUDGET_TRIES; i++) {
		slots = budget_slots;
		if (i == BUDGET_TRIES) {
			if (slots >= budget_policy.slots)
				return false;
			budget_hand = slots;
			budget_slots = slots *= 2;
		}
		hand = budget_hand < slots ? budget_hand : 0;
		budget_hand = hand + 1;
		slot = bpf_map_lookup_elem(&rate_limit_slot_map, &hand);
		if (!slot)
			return false;
		before = slot->budget;
		/* It had a budget before, of another rule. */
		if (before == budget)
			return true;
		if (before && !budget_sweep(before, now, false))
			continue;
		bpf_spin_lock(&slot->lock);
		taken = slot->budget == before;
		if (taken)
			slot->budget = budget;
		bpf_spin_unlock(&slot->lock);
		if (taken)
			return true;
	}
	return false;
}

/* Gives a cgroup a budget of a rule, with a full bucket, unless its names have one. False where there is no room. */
__noinline bool budget_make(__u64 rule, __u64 budget, __u64 cgroup)
{
	struct rate_limit_state *state = bpf_map_lookup_elem(&rate_limit_state_map, &budget);
	struct rate_limit_config *config;
	__u64 bucket, now;

	if (state && state->limit == rule) {
		/* The kernel counts ids up: the sockets of a cgroup that is gone do not bring it back. */
		if (state->cgroup < cgroup)
			state->cgroup = cgroup;
		return true;
	}
	config = bpf_map_lookup_elem(&rate_limit_config_map, &rule);
	/* A rule's own state is no budget. */
	if (!config || (state && !state->limit))
		return false;
	bucket = config->bucket_size;
	now = bpf_ktime_get_ns();
	if (state)
		budget_sweep(budget, now, true);
	/* No other CPU uses it before it has a slot and says whose it is, and none while it is being removed. */
	if (bpf_map_update_elem(&rate_limit_state_map, &budget, (const void *)&budget_blank, BPF_NOEXIST)) {
		state = bpf_map_lookup_elem(&rate_limit_state_map, &budget);
		return state && state->limit == rule;
	}
	state = bpf_map_lookup_elem(&rate_limit_state_map, &budget);
	if (!state)
		return false;
	if (!budget_place(budget, now)) {
		bpf_map_delete_elem(&rate_limit_state_map, &budget);
		return false;
	}
	bpf_spin_lock(&state->lock);
	state->limit = rule;
	state->cgroup = cgroup;
	state->generation = 0;
	state->tokens = bucket;
	state->last_update_ns = now;
	/* No connection's mark is of an epoch of this budget. */
	state->fair.epoch = now;
	bpf_spin_unlock(&state->lock);
	return true;
}

/* Counts a packet that shares the rule's own state. */
static __always_inline void budget_count_shared(__u64 rule)
{
	struct rate_limit_state *own = bpf_map_lookup_elem(&rate_limit_state_map, &rule);

	if (!own)
		return;
	bpf_spin_lock(&own->lock);
	own->shared_packets++;
	bpf_spin_unlock(&own->lock);
}
#endif
