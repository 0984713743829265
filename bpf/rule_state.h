/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A rule's state, and how a change of its configuration reaches it. */
#ifndef LIMITER_RULE_STATE_H
#define LIMITER_RULE_STATE_H

#include "connection.h"
#include "demand.h"
#include "maps.h"

/*
 * Returns a rule's state with its configuration as of `generation`. The configuration is copied because one more
 * look-up per packet costs more than all the arithmetic. NULL where configuration or state is missing because the rule
 * is being made or removed: it then limits nothing.
 */
static __always_inline struct rate_limit_state *rule_state(const __u64 *rule, __u32 generation)
{
	struct rate_limit_config *config;
	struct rate_limit_state *state;
	__u64 rate, bucket, now, limit;

	state = bpf_map_lookup_elem(&rate_limit_state_map, rule);
	if (!state || state->generation == generation)
		return state;
	limit = state->limit ? state->limit : *rule;
	config = bpf_map_lookup_elem(&rate_limit_config_map, &limit);
	if (!config)
		return NULL;
	rate = config->rate_bps;
	bucket = config->bucket_size;
	if (!rate)
		return NULL;
	now = bpf_ktime_get_ns();
	bpf_spin_lock(&state->lock);
	fair_share_change_limit(state, rate, bucket, now);
	state->generation = generation;
	bpf_spin_unlock(&state->lock);
	return state;
}

/* A bit beside a share: the bucket is poor, which means that it has less than a new connection may send at once. */
#define RULE_POOR (1ULL << 63)
#define RULE_POOR_BYTES 32768

/*
 * A connection comes under a rule: returns its share there, and whether the bucket is poor. Not inlined: see charge.h.
 */
__noinline __u64 rule_join(__u64 rule, __u32 generation)
{
	/* A rule that was just made has not seen a packet yet. */
	struct rate_limit_state *state = rule_state(&rule, generation);
	__u64 now = bpf_ktime_get_ns(), share;

	/* The rule limits nothing. */
	if (!state)
		return OFFER_NONE;
	bpf_spin_lock(&state->lock);
	share = demand_join(state, now);
	if (state->tokens < RULE_POOR_BYTES)
		share |= RULE_POOR;
	bpf_spin_unlock(&state->lock);
	return share;
}
#endif
