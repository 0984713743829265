/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * In place of bpf/verdict.h and bpf/departure.h, whose verification is most of a load: every packet is charged to its
 * rules and passes at once. For tests that load the program hundreds of times, and are about the order of what a task does (tests/support/limiter.py).
 */
#ifndef LIMITER_VERDICT_H
#define LIMITER_VERDICT_H
#define LIMITER_DEPARTURE_H

#include "vmlinux.h"

#include <bpf/bpf_helpers.h>

#include "demand.h"
#include "use.h"

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

/* Never. It looks at all, since the compiler leaves out what nobody reads, and the verifier wants it. */
static __always_inline bool departure_matters(__s64 tokens, __u64 rate, const struct packet *packet)
{
	return !rate && !packet->bytes && tokens == 1;
}

static __always_inline __u64 departure_room(const struct rate_limit_state *state, const struct packet *packet)
{
	return 0;
}

static __always_inline __u64 departure_wait(const struct rate_limit_state *state, const struct packet *packet,
					    __u64 now)
{
	return 0;
}

static __always_inline __u32 departure_size(const struct rate_limit_state *state, const struct packet *packet)
{
	return 0;
}
#endif
