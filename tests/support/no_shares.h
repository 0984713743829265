/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * In place of bpf/fair_share.h, whose verification is nine tenths of a load: every rule charges and paces as ever, offers
 * each connection its whole rate, and drops nothing. For tests that load hundreds of times, and are about the order of
 * what a task does (tests/support/limiter.py).
 */
#ifndef LIMITER_FAIR_SHARE_H
#define LIMITER_FAIR_SHARE_H

#include "vmlinux.h"

#include <bpf/bpf_helpers.h>

#include "use.h"
#include "verdict.h"

#define FAIR_SHARE_EPOCH_LONGEST (4 * NANOSECONDS)
#define FAIR_SHARE_HELD 2
#define FAIR_SHARE_ELSEWHERE 8

static __always_inline void fair_share_change_limit(struct rate_limit_state *state, __u64 rate, __u64 bucket, __u64 now)
{
	state->rate = rate;
	state->bucket = bucket;
	state->fair.paced_rate = rate;
}

static __always_inline __u64 fair_share_offer(const struct fair_share *fair, bool early)
{
	return fair->paced_rate;
}

static __always_inline __u64 fair_share_join(struct rate_limit_state *state, __u64 now)
{
	return fair_share_offer(&state->fair, true);
}

static __always_inline enum verdict fair_share_charge(struct rate_limit_state *state, struct fair_share_mark *mark,
						      struct packet *packet, __u64 now, bool paces)
{
	state->packets += packet->segments;
	state->bytes += packet->bytes;
	return VERDICT_PASS;
}

static __always_inline void fair_share_refund(struct fair_share *fair, const struct packet *packet)
{
}
#endif
