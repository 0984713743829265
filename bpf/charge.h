/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Charges a packet to the rules that hold for it. Two locks cannot be held at
 * once, so the rules are charged one after the other, and those that were
 * already charged get their tokens back when a later one drops the packet.
 */
#ifndef LIMITER_CHARGE_H
#define LIMITER_CHARGE_H

#include "verdict.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, LIMITER_MAX_RULES);
	__type(key, __u64);
	__type(value, struct rate_limit_config);
} rate_limit_config_map SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, LIMITER_MAX_RULES);
	__type(key, __u64);
	__type(value, struct rate_limit_state);
} rate_limit_state_map SEC(".maps");

/* A rule that has no configuration or no state (it is being made or removed) limits nothing: NULL. */
static __always_inline struct rate_limit_state *charge_rule(const __u64 *rule, const struct packet *packet, __u64 now,
							    enum verdict *verdict)
{
	struct rate_limit_config *config;
	struct rate_limit_state *state;
	struct thresholds thresholds;
	__u64 rate, bucket;

	config = bpf_map_lookup_elem(&rate_limit_config_map, rule);
	state = bpf_map_lookup_elem(&rate_limit_state_map, rule);
	if (!config || !state)
		return NULL;
	rate = config->rate_bps;
	bucket = config->bucket_size;
	thresholds = verdict_thresholds(rate, bucket, packet);
	bpf_spin_lock(&state->lock);
	token_bucket_refill(state, rate, bucket, now);
	*verdict = verdict_take(state, &thresholds, packet);
	bpf_spin_unlock(&state->lock);
	return state;
}

static __always_inline enum verdict charge_rules(const __u64 rules[LIMITER_MAX_NESTED], const struct packet *packet)
{
	struct rate_limit_state *charged[LIMITER_MAX_NESTED] = {};
	enum verdict verdicts[LIMITER_MAX_NESTED] = {};
	enum verdict verdict = VERDICT_PASS;
	__u64 now = bpf_ktime_get_ns();

/* Unrolled: the 5.10 verifier takes only constant offsets into the stack. */
#pragma unroll
	for (int i = 0; i < LIMITER_MAX_NESTED; i++) {
		if (!rules[i])
			break;
		charged[i] = charge_rule(&rules[i], packet, now, &verdicts[i]);
		if (!charged[i])
			continue;
		if (verdicts[i] == VERDICT_DROP) {
			charged[i] = NULL;
			verdict = VERDICT_DROP;
			break;
		}
		if (verdicts[i] == VERDICT_PASS_WITH_NOTICE)
			verdict = VERDICT_PASS_WITH_NOTICE;
	}
	if (verdict != VERDICT_DROP)
		return verdict;
#pragma unroll
	for (int i = 0; i < LIMITER_MAX_NESTED - 1; i++) {
		if (!charged[i])
			continue;
		bpf_spin_lock(&charged[i]->lock);
		verdict_refund(charged[i], verdicts[i], packet);
		bpf_spin_unlock(&charged[i]->lock);
	}
	return VERDICT_DROP;
}
#endif
