/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One rule: the program's own verdict_charge() decides, and a meter of what
 * passes knows nothing of it.
 */
#ifndef SIMULATION_LIMITER_H
#define SIMULATION_LIMITER_H

#include <stdbool.h>
#include <string.h>
#include <linux/bpf.h>
#undef __always_inline
#define __always_inline inline __attribute__((always_inline, unused))
#include "connection.h"
#include "departure.h"
#include "random.h"
#include "scenario.h"

struct limiter {
	struct rate_limit_state state;
	uint64_t rate;
	uint64_t skew;
	struct random random;
	/* The meter, in bytes * 1e-9: how much more passed than the rate allows, since the time for which that is most. */
	__int128 excess, worst;
	uint64_t metered, most_bucket;
};

static void limiter_meter(struct limiter *limiter, uint64_t now)
{
	limiter->excess -= (__int128)(now - limiter->metered) * limiter->rate;
	if (limiter->excess < 0)
		limiter->excess = 0;
	limiter->metered = now;
}

/* Read before the lock was taken, perhaps on another CPU. */
static uint64_t limiter_clock(struct limiter *limiter, uint64_t now)
{
	return limiter->skew && random_next(&limiter->random) % 8 == 0
		       ? now - random_to(&limiter->random, limiter->skew)
		       : now;
}

static void limiter_change(struct limiter *limiter, const struct change *change, uint64_t now)
{
	limiter_meter(limiter, now);
	limiter->rate = change->rate;
	if (change->bucket > limiter->most_bucket)
		limiter->most_bucket = change->bucket;
	fair_share_change_limit(&limiter->state, change->rate, change->bucket, now);
}

static void limiter_start(struct limiter *limiter, const struct change *change, uint64_t now)
{
	memset(&limiter->state, 0, sizeof(limiter->state));
	limiter->metered = now;
	limiter->rate = limiter->most_bucket = 0;
	limiter->excess = limiter->worst = 0;
	limiter->state.tokens = change->bucket;
	limiter->state.last_update_ns = now;
	limiter_change(limiter, change, now);
}

static struct answer limiter_charge(struct limiter *limiter, struct fair_share_mark *mark, struct packet *packet,
				    uint64_t now)
{
	return verdict_charge(&limiter->state, mark, packet, limiter_clock(limiter, now), true);
}

/* Another rule dropped it. */
static void limiter_refund(struct limiter *limiter, struct fair_share_mark *mark, const struct packet *packet,
			   struct answer answer)
{
	verdict_refund(&limiter->state, mark, answer, packet);
}

/* It left the host. */
static void limiter_count(struct limiter *limiter, const struct packet *packet, uint64_t now)
{
	limiter_meter(limiter, now);
	limiter->excess += (__int128)packet->bytes * NANOSECONDS;
	if (limiter->excess - (__int128)limiter->most_bucket * NANOSECONDS > limiter->worst)
		limiter->worst = limiter->excess - (__int128)limiter->most_bucket * NANOSECONDS;
}
#endif
