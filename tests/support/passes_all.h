/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * In place of bpf/verdict.h, whose verification is most of a load: every packet is charged to its rules and passes. For
 * tests that load the program hundreds of times, and are about the order of what a task does (tests/support/limiter.py).
 */
#ifndef LIMITER_VERDICT_H
#define LIMITER_VERDICT_H

#include "vmlinux.h"

#include <bpf/bpf_helpers.h>

#include "demand.h"

enum verdict {
	VERDICT_PASS = 1,
	VERDICT_DROP = 2,
	VERDICT_PASS_WITH_NOTICE = 3,
};
#define VERDICT_MASK 3
#define VERDICT_PASSES 1

struct answer {
	enum verdict verdict;
	enum limiter_reason reason;
	__u32 counted;
};

static __always_inline struct answer verdict_charge(struct rate_limit_state *state, struct fair_share_mark *mark,
						    struct packet *packet, __u64 now, bool paces)
{
	state->packets += packet->segments;
	state->bytes += packet->bytes;
	return (struct answer){ VERDICT_PASS, LIMITER_REASON_UNKNOWN, 0 };
}

static __always_inline void verdict_refund(struct rate_limit_state *state, struct fair_share_mark *mark,
					   struct answer answer, const struct packet *packet)
{
}
#endif
