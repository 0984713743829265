/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How fast each TCP connection of a rule may send, so that all together send at exactly the rate: the max-min fair share,
 * found by filling up (water filling; Bertsekas and Gallager, Data Networks, 6.5.2).
 *
 * A connection is *held* when only pacing stops it (demand.h). What the others (the modest) send is what they want;
 * the held share the rest equally. A rule that holds nobody offers what is left and what its largest connection has, so
 * that whoever begins to want more finds it (consistent marking; Charny, Clark and Jain, 1995). What can't be told a rate
 * is foreign. Pure, and runs under the state's lock: it compiles for user space, where tests/simulation drives it.
 *
 * A share is heard a round trip later, sockets pace a little off what they are told, and TCP sends its first ten segments
 * unpaced. The bucket holds the sum of all this: what it has above its reserve is spent, what it lacks is saved again.
 * Beside a flood of datagrams it says nothing of TCP. So a clock, which each byte of TCP moves on by its time at TCP's
 * rate, is TCP's own account.
 */
#ifndef LIMITER_FAIR_SHARE_H
#define LIMITER_FAIR_SHARE_H

#include "token_bucket.h"

#define MILLISECONDS 1000000ULL /* in nanoseconds */
#define MICROSECONDS 1000ULL
#define EPOCH_SHORTEST (10 * MILLISECONDS)
#define EPOCH_LONGEST (4 * NANOSECONDS)
/* Without a packet for so many epochs, and so long, nothing that was seen before says anything. */
#define EPOCHS_FORGET 4
#define FORGET_SHORTEST (500 * MILLISECONDS)
/* The correction takes this long, or as many epochs and lags: a quicker one would overshoot. */
#define CORRECTION_SHORTEST (100 * MILLISECONDS)
#define CORRECTION_SLOWNESS 4
/* What the bucket holds above its reserve is spent in this time, or in as many epochs and lags. */
#define SPEND_SHORTEST (200 * MILLISECONDS)
/* What any honest state stays within; anything else is garbage, and is forgotten. */
#define LAG_LONGEST NANOSECONDS
#define CONNECTIONS_MOST 65535
/* TCP sends two segments at once at least, however slow it is paced; if it has so much. */
#define BURST_SMALLEST 3000
#define BURST_LEAST 300
#define BURST_LARGEST 65535
/*
 * A burst in four seconds. A socket that waits for its time to send hears of nothing before: told less, it would be
 * deaf for longer than anyone waits. Where there are so many connections that this is too much, the guard limits.
 */
#define SHARE_LEAST (BURST_SMALLEST / 4)
/* What the bucket should hold (a tenth of a second), and how much of the rate is saved for it at most. */
#define RESERVE_SHARE 10
#define SAVED_SHARE 4
/* What does not pace itself may have as much as TCP, if both want all. */
#define FOREIGN_SHARE 2
#define AVERAGE_MS 100
/* Times the rate: what all that waited at once may send for a while. */
#define CLUMP_MOST 16

/* A new epoch is long enough for each connection that is held to send a burst in it. Of the others the sum counts. */
static __always_inline __u64 fair_share_period(const struct fair_share *fair, __u64 rate)
{
	__u64 connections = fair->holders_before;
	__u64 period;

	if (connections > CONNECTIONS_MOST)
		connections = CONNECTIONS_MOST;
	period = (connections + 1) * fair->burst * 3 / 2 * NANOSECONDS / rate;
	if (period < EPOCH_SHORTEST)
		return EPOCH_SHORTEST;
	return period < EPOCH_LONGEST ? period : EPOCH_LONGEST;
}

/* Nanoseconds by which TCP is ahead of its rate; negative: behind. */
static __always_inline __s64 fair_share_debt(const struct fair_share *fair, __u64 now)
{
	return fair->clock_ns - now;
}

/* Nanoseconds over which an error is corrected: long enough to be stable at any distance. */
static __always_inline __u64 fair_share_slowness(const struct fair_share *fair, __u64 shortest)
{
	__u64 slowness = CORRECTION_SLOWNESS * (fair->period_ns + fair->lag_ns);

	return slowness > shortest ? slowness : shortest;
}

/* The level up to which connections are filled, from what was sent in the last `elapsed` nanoseconds. */
static __always_inline void fair_share_fill(struct fair_share *fair, __u64 elapsed, __u64 now)
{
	__u64 modest = fair->modest_bytes * NANOSECONDS / elapsed;
	__u64 holders = fair->holders_before, rest = fair->paced_rate, largest;
	__u64 correction = fair_share_slowness(fair, CORRECTION_SHORTEST);
	__u64 level = fair->paced_rate / (fair->active_before ? fair->active_before : 1);
	__s64 debt = fair_share_debt(fair, now), most = correction / 4;

	if (!holders) {
		largest = fair->largest_bytes * NANOSECONDS / elapsed;
		modest -= largest < modest ? largest : modest;
		holders = 1;
	}
	rest = rest > modest ? rest - modest : 0;
	/* Never below the share of all: what the modest sent may have been a burst. */
	if (rest / holders > level)
		level = rest / holders;
	if (debt > most)
		debt = most;
	if (debt < -most)
		debt = -most;
	/* In 1024ths: level times nanoseconds would overflow. */
	correction = (correction - debt) * 1024 / correction;
	fair->share = level / 1024 * correction + level % 1024 * correction / 1024;
	if (fair->share < SHARE_LEAST)
		fair->share = SHARE_LEAST;
}

static __always_inline void fair_share_forget(struct rate_limit_state *state, __u64 now)
{
	struct fair_share *fair = &state->fair;
	__u64 rate = state->rate;

	fair->share = 0;
	fair->paced_rate = rate;
	fair->clock_ns = now;
	/* By two: no connection is known from the last one. */
	fair->epoch += 2;
	fair->epoch_start_ns = now;
	fair->lag_ns = 0;
	fair->modest_bytes = 0;
	fair->largest_bytes = 0;
	fair->control_bytes = 0;
	fair->control_rate = 0;
	fair->handshake_bytes = 0;
	fair->handshake_rate = 0;
	fair->foreign_bytes = 0;
	fair->foreign_burst = 0;
	fair->foreign_rate = 0;
	fair->foreign_latest = 0;
	fair->early_bytes = 0;
	fair->early_rate = 0;
	fair->active = 0;
	fair->active_before = 0;
	fair->unpaced = 0;
	fair->unpaced_before = 0;
	fair->holders = 0;
	fair->holders_before = 0;
	fair->elsewhere = 0;
	fair->elsewhere_before = 0;
	fair->newcomers = 0;
	fair->begun = 0;
	fair->burst = BURST_SMALLEST;
	fair->period_ns = fair_share_period(fair, rate);
}

/* What the bucket should hold, for what comes unpaced. */
static __always_inline __s64 fair_share_reserve(const struct rate_limit_state *state)
{
	__u64 reserve = state->rate / RESERVE_SHARE, half = state->bucket / 2;

	return reserve < half ? reserve : half;
}

/* Bytes of the last `elapsed` nanoseconds, per second, up to a bound; and their average over AVERAGE_MS. */
static __always_inline __u64 fair_share_per_second(__u64 bytes, __u64 elapsed, __u64 most)
{
	__u64 latest = bytes * NANOSECONDS / elapsed;

	return latest < most ? latest : most;
}

static __always_inline __u64 fair_share_average(__u64 average, __u64 latest, __u64 elapsed, __u64 most)
{
	__u64 weight = elapsed / MILLISECONDS;

	if (average > most)
		average = most;
	weight = weight * 1024 / (weight + AVERAGE_MS);
	return (average * (1024 - weight) + latest * weight) / 1024;
}

/*
 * Averages what comes in clumps. Of what a clump of datagrams has beyond FOREIGN_SHARE nothing is taken from TCP, so
 * without the average TCP would get the gaps between them as well, and both together more than the rate.
 */
static __always_inline void fair_share_average_clumps(struct rate_limit_state *state, __u64 elapsed)
{
	struct fair_share *fair = &state->fair;
	__u64 rate = state->rate, most = CLUMP_MOST * rate, early, control, handshake;

	fair->foreign_latest = fair_share_per_second(fair->foreign_bytes, elapsed, rate);
	fair->foreign_rate = fair_share_average(fair->foreign_rate, fair->foreign_latest, elapsed, rate);
	early = fair_share_per_second(fair->early_bytes, elapsed, most);
	fair->early_rate = fair_share_average(fair->early_rate, early, elapsed, most);
	control = fair_share_per_second(fair->control_bytes, elapsed, rate);
	fair->control_rate = fair_share_average(fair->control_rate, control, elapsed, rate);
	handshake = fair_share_per_second(fair->handshake_bytes, elapsed, rate);
	fair->handshake_rate = fair_share_average(fair->handshake_rate, handshake, elapsed, rate);
}

/* Datagrams beyond their part, now or on average, take every token that there is. */
static __always_inline bool fair_share_flooded(const struct rate_limit_state *state)
{
	const struct fair_share *fair = &state->fair;

	return fair->foreign_rate >= state->rate / FOREIGN_SHARE || fair->foreign_latest >= state->rate / FOREIGN_SHARE;
}

/*
 * What TCP may send per second: what is foreign has up to its part, what the bucket has above its reserve is spent, and
 * what it lacks (taken by datagrams, by connections that started) is saved again: at exactly the rate it would stay
 * empty, and packets be dropped. But datagrams beyond their part take whatever is saved: then TCP has its own account,
 * the clock, alone. What a large datagram has to find in the bucket is not spent.
 */
static __always_inline __u64 fair_share_paced_rate(const struct rate_limit_state *state)
{
	const struct fair_share *fair = &state->fair;
	__u64 most = state->rate / FOREIGN_SHARE, foreign = fair->foreign_rate < most ? fair->foreign_rate : most;
	__s64 spare = state->tokens - fair_share_reserve(state);
	/* In milliseconds: a bucket times nanoseconds would overflow. */
	__u64 span = fair_share_slowness(fair, SPEND_SHORTEST) / MILLISECONDS, rate = state->rate - foreign, saved;

	if (spare >= 0) {
		if (fair_share_flooded(state))
			spare = spare > fair->foreign_burst ? spare - fair->foreign_burst : 0;
		return rate + spare * 1000ULL / span;
	}
	if (fair_share_flooded(state))
		return rate;
	saved = -spare * 1000ULL / span;
	return rate - (saved < rate / SAVED_SHARE ? saved : rate / SAVED_SHARE);
}

static __always_inline void fair_share_next_epoch(struct rate_limit_state *state, __u64 elapsed, __u64 now)
{
	struct fair_share *fair = &state->fair;

	fair_share_average_clumps(state, elapsed);
	fair->paced_rate = fair_share_paced_rate(state);
	fair->active_before = fair->active;
	fair->unpaced_before = fair->unpaced;
	fair->holders_before = fair->holders;
	fair->elsewhere_before = fair->elsewhere;
	/* Time in which nothing was sent is saved by the bucket. */
	if (fair_share_debt(fair, now) < 0)
		fair->clock_ns = now;
	fair_share_fill(fair, elapsed, now);
	fair->active = 0;
	fair->unpaced = 0;
	fair->holders = 0;
	fair->elsewhere = 0;
	fair->newcomers = 0;
	fair->begun = 0;
	fair->modest_bytes = 0;
	fair->largest_bytes = 0;
	fair->control_bytes = 0;
	fair->handshake_bytes = 0;
	fair->foreign_bytes = 0;
	fair->early_bytes = 0;
	fair->epoch++;
	fair->epoch_start_ns = now;
	fair->lag_ns -= fair->lag_ns >> 4;
	if (fair->burst > BURST_LEAST)
		fair->burst -= fair->burst >> 2;
	/* Slower: a large datagram may come once in a second. */
	fair->foreign_burst -= fair->foreign_burst >> 7;
	fair->period_ns = fair_share_period(fair, state->rate);
}

/* A debt that no packet can have left: a large one at a low rate is seconds. */
static __always_inline bool fair_share_beyond(__s64 debt, __u64 rate)
{
	return debt > (__s64)NANOSECONDS && debt > (__s64)(NANOSECONDS + TOKEN_DEBT_MOST * NANOSECONDS / rate);
}

/* The most that it can be, with a full bucket. */
static __always_inline __u64 fair_share_paced_most(const struct rate_limit_state *state)
{
	return state->rate + state->bucket * (NANOSECONDS / SPEND_SHORTEST);
}

/* To be called for every packet, before anything else: ends the epoch when it is over. */
static __always_inline void fair_share_advance(struct rate_limit_state *state, __u64 now)
{
	struct fair_share *fair = &state->fair;
	__s64 elapsed = now - fair->epoch_start_ns, debt = fair_share_debt(fair, now);
	__u64 connections = 1ULL + fair->active_before + fair->holders_before + fair->newcomers;
	__u64 rate = state->rate;

	/*
	 * `now` was read before the lock was taken and may be a little older than what another CPU wrote. A second
	 * is no little while: the map was tampered with, or comes from another time namespace. Nor does an honest share
	 * leave out half of the rate: who was told next to nothing would be deaf to anything better.
	 */
	if (elapsed < -(__s64)NANOSECONDS || elapsed > (__s64)(EPOCHS_FORGET * fair->period_ns + FORGET_SHORTEST) ||
	    fair_share_beyond(debt, rate) || !fair->period_ns || fair->period_ns > EPOCH_LONGEST ||
	    fair->lag_ns > LAG_LONGEST || fair->paced_rate > fair_share_paced_most(state) ||
	    fair->paced_rate < rate / FOREIGN_SHARE / 2 ||
	    (fair->share && 2 * fair->share * connections < fair->paced_rate)) {
		fair_share_forget(state, now);
		return;
	}
	if (elapsed >= (__s64)fair->period_ns)
		fair_share_next_epoch(state, elapsed, now);
}

/*
 * What is saved when the rate changes. A higher rate begins with its reserve, if the lower one had its own: it would have
 * to save it first. A lower one begins with what lasts as long, or with one packet that was made for the higher.
 */
static __always_inline void fair_share_change_tokens(struct rate_limit_state *state, __u64 before)
{
	__s64 scaled = token_bucket_scaled(state, before), least = scaled;

	if (state->rate > before && least > fair_share_reserve(state))
		least = fair_share_reserve(state);
	if (state->rate < before && least < BURST_LARGEST)
		least = BURST_LARGEST;
	if (state->rate > before ? state->tokens < least : state->tokens > least)
		state->tokens = least;
}

/*
 * The limit changes: what is known of the connections is not lost, and they hear of it with their next packet.
 */
static __always_inline void fair_share_change_limit(struct rate_limit_state *state, __u64 rate, __u64 bucket, __u64 now)
{
	struct fair_share *fair = &state->fair;
	__u64 before = state->rate;

	if (before)
		token_bucket_refill(state, before, state->bucket, now);
	state->rate = rate;
	state->bucket = bucket;
	if (before != rate) {
		if (before && state->tokens > 0)
			fair_share_change_tokens(state, before);
		fair->paced_rate = rate;
		fair->period_ns = fair_share_period(fair, rate);
		if (fair->share)
			fair_share_fill(fair, fair->period_ns, now);
	} else if (fair->paced_rate > fair_share_paced_most(state)) {
		fair->paced_rate = fair_share_paced_most(state);
	}
}
#endif
