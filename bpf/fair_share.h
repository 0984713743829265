/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The rate at which each TCP connection of a rule may send, so that together they send at exactly the rule's rate: the
 * max-min fair share, by water filling (Bertsekas and Gallager, Data Networks, 6.5.2).
 *
 * A connection is *held* when only pacing stops it (connection.h). The others are *modest*: what they send is what they
 * want. The held connections share the rest equally. A rule that holds none offers what is left plus what its largest
 * connection has, so a connection that begins to want more finds it (consistent marking; Charny, Clark and Jain, 1995).
 * Traffic that cannot be told a rate is *foreign*. All of this is pure and runs under the state's lock. It also
 * compiles for user space, where tests/simulation drives it.
 *
 * A sender hears of its share a round trip late, sockets pace slightly off the rate they are told, and TCP sends its
 * first ten segments unpaced. The level of the bucket is the sum of these errors. Tokens above its reserve are spent,
 * and tokens that it lacks are saved again. Beside a flood of datagrams the level says nothing about TCP. So TCP has an
 * account of its own, a virtual clock: each byte of TCP moves it on by the time that the byte takes at TCP's rate.
 */
#ifndef LIMITER_FAIR_SHARE_H
#define LIMITER_FAIR_SHARE_H

#include "token_bucket.h"

#define MILLISECONDS 1000000ULL /* in nanoseconds */
#define FAIR_SHARE_EPOCH_SHORTEST (10 * MILLISECONDS)
#define FAIR_SHARE_EPOCH_LONGEST (4 * NANOSECONDS)
/* After this many epochs plus this time without a packet, nothing learned before still holds. */
#define FAIR_SHARE_EPOCHS_FORGET 4
#define FAIR_SHARE_FORGET_SHORTEST (500 * MILLISECONDS)
/* An error is corrected over this time, or over this many epochs and lags if that is longer: faster would overshoot. */
#define FAIR_SHARE_CORRECTION_SHORTEST (100 * MILLISECONDS)
#define FAIR_SHARE_CORRECTION_SLOWNESS 4
/* The bucket's tokens above its reserve are spent over this time, or over the same number of epochs and lags. */
#define FAIR_SHARE_SPEND_SHORTEST (200 * MILLISECONDS)
/* Every honest state stays within these. Anything else is garbage and is forgotten. */
#define FAIR_SHARE_LAG_LONGEST NANOSECONDS
#define FAIR_SHARE_CONNECTIONS_MOST 65535
/*
 * Two segments, which TCP sends at once however slowly it is paced; the least that it sends when it has no more; its
 * largest packet.
 */
#define FAIR_SHARE_BURST_SMALLEST 3000
#define FAIR_SHARE_BURST_LEAST 300
#define FAIR_SHARE_BURST_LARGEST 65535
/*
 * 750 B/s: one two-segment burst every four seconds. A socket asleep on its pacing timer cannot see a new rate, so a
 * lower floor would make it unresponsive for longer. Where this floor times the connections exceeds the rate, the guard
 * limits.
 */
#define FAIR_SHARE_LEAST (FAIR_SHARE_BURST_SMALLEST / 4)
/* The reserve is a tenth of a second of the rate. At most a quarter of TCP's rate goes into saving it. */
#define FAIR_SHARE_RESERVE_PART 10
#define FAIR_SHARE_SAVED_PART 4
/* Foreign traffic may have as much as TCP where both want everything. */
#define FAIR_SHARE_FOREIGN_PART 2
#define FAIR_SHARE_AVERAGE_MS 100
/*
 * Bound of the average of early traffic, times the rate: connections whose waits end together send this fast for a
 * while.
 */
#define FAIR_SHARE_CLUMP_MOST 16

/* An epoch is long enough for each held connection to send a burst in it. Of the modest ones only the sum counts. */
static __always_inline __u64 fair_share_period(const struct fair_share *fair, __u64 rate)
{
	__u64 connections = fair->holders_before;
	__u64 period;

	if (connections > FAIR_SHARE_CONNECTIONS_MOST)
		connections = FAIR_SHARE_CONNECTIONS_MOST;
	period = (connections + 1) * fair->burst * 3 / 2 * NANOSECONDS / rate;
	if (period < FAIR_SHARE_EPOCH_SHORTEST)
		return FAIR_SHARE_EPOCH_SHORTEST;
	return period < FAIR_SHARE_EPOCH_LONGEST ? period : FAIR_SHARE_EPOCH_LONGEST;
}

/* Nanoseconds by which TCP is ahead of its rate; negative when it is behind. */
static __always_inline __s64 fair_share_lead(const struct fair_share *fair, __u64 now)
{
	return fair->clock_ns - now;
}

/* Nanoseconds over which an error is corrected: long enough to be stable at any round trip time. */
static __always_inline __u64 fair_share_slowness(const struct fair_share *fair, __u64 shortest)
{
	__u64 slowness = FAIR_SHARE_CORRECTION_SLOWNESS * (fair->period_ns + fair->lag_ns);

	return slowness > shortest ? slowness : shortest;
}

/* Sets the share: the level up to which water filling fills connections, from the last `elapsed` nanoseconds. */
static __always_inline void fair_share_fill(struct fair_share *fair, __u64 elapsed, __u64 now)
{
	__u64 modest = fair->modest_bytes * NANOSECONDS / elapsed;
	__u64 holders = fair->holders_before, rest = fair->paced_rate, largest;
	__u64 correction = fair_share_slowness(fair, FAIR_SHARE_CORRECTION_SHORTEST);
	__u64 early = fair->early_rate < fair->paced_rate ? fair->early_rate : fair->paced_rate;
	__s64 lead = fair_share_lead(fair, now), most = correction / 4;
	__u64 level;

	/*
	 * An equal part for all is the least. New connections are not counted, but their segments are sent in any case: the
	 * paced give way to them, the less the more of the rate is new.
	 */
	if (early > fair->paced_rate - early)
		early = fair->paced_rate - early;
	level = (fair->paced_rate - early) / (fair->active_before ? fair->active_before : 1);
	if (!holders) {
		largest = fair->largest_bytes * NANOSECONDS / elapsed;
		modest -= largest < modest ? largest : modest;
		holders = 1;
	}
	rest = rest > modest ? rest - modest : 0;
	/* What the modest connections sent may have been a single burst. */
	if (rest / holders > level)
		level = rest / holders;
	if (lead > most)
		lead = most;
	if (lead < -most)
		lead = -most;
	/* In 1024ths: the level times nanoseconds would overflow. */
	correction = (correction - lead) * 1024 / correction;
	fair->share = level / 1024 * correction + level % 1024 * correction / 1024;
	if (fair->share < FAIR_SHARE_LEAST)
		fair->share = FAIR_SHARE_LEAST;
}

static __always_inline void fair_share_forget(struct rate_limit_state *state, __u64 now)
{
	struct fair_share *fair = &state->fair;
	__u64 rate = state->rate;

	fair->share = 0;
	fair->paced_rate = rate;
	fair->clock_ns = now;
	/* By two, so that no connection counts as known from the epoch before. */
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
	fair->burst = FAIR_SHARE_BURST_SMALLEST;
	fair->period_ns = fair_share_period(fair, rate);
}

/* Tokens that the bucket should hold for traffic that comes unpaced. */
static __always_inline __s64 fair_share_reserve(const struct rate_limit_state *state)
{
	__u64 reserve = state->rate / FAIR_SHARE_RESERVE_PART, half = state->bucket / 2;

	return reserve < half ? reserve : half;
}

/*
 * Bytes of the last `elapsed` nanoseconds as a rate, up to a bound; and the average of such rates over
 * FAIR_SHARE_AVERAGE_MS.
 */
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
	weight = weight * 1024 / (weight + FAIR_SHARE_AVERAGE_MS);
	return (average * (1024 - weight) + latest * weight) / 1024;
}

/*
 * Averages traffic that comes in clumps. The part of a clump of datagrams beyond FAIR_SHARE_FOREIGN_PART is not taken
 * from TCP. So without the average TCP would also get the gaps between clumps, and both together would exceed the rate.
 */
static __always_inline void fair_share_average_clumps(struct rate_limit_state *state, __u64 elapsed)
{
	struct fair_share *fair = &state->fair;
	__u64 rate = state->rate, most = FAIR_SHARE_CLUMP_MOST * rate, early, control, handshake;

	fair->foreign_latest = fair_share_per_second(fair->foreign_bytes, elapsed, rate);
	fair->foreign_rate = fair_share_average(fair->foreign_rate, fair->foreign_latest, elapsed, rate);
	early = fair_share_per_second(fair->early_bytes, elapsed, most);
	fair->early_rate = fair_share_average(fair->early_rate, early, elapsed, most);
	control = fair_share_per_second(fair->control_bytes, elapsed, most);
	fair->control_rate = fair_share_average(fair->control_rate, control, elapsed, most);
	handshake = fair_share_per_second(fair->handshake_bytes, elapsed, most);
	fair->handshake_rate = fair_share_average(fair->handshake_rate, handshake, elapsed, most);
}

/* Whether datagrams are beyond their part, now or on average: then they take every token there is. */
static __always_inline bool fair_share_flooded(const struct rate_limit_state *state)
{
	const struct fair_share *fair = &state->fair;

	return fair->foreign_rate >= state->rate / FAIR_SHARE_FOREIGN_PART ||
	       fair->foreign_latest >= state->rate / FAIR_SHARE_FOREIGN_PART;
}

/*
 * What TCP may send per second. Foreign traffic has up to its part. Tokens above the reserve are spent, and tokens that
 * the bucket lacks (taken by datagrams or new connections) are saved again: at exactly the rate the bucket would stay
 * empty, and packets would be dropped. But datagrams beyond their part take whatever is saved, so TCP then goes by its
 * virtual clock alone. Tokens that a large datagram has to find in the bucket are not spent.
 */
static __always_inline __u64 fair_share_paced_rate(const struct rate_limit_state *state)
{
	const struct fair_share *fair = &state->fair;
	__u64 most = state->rate / FAIR_SHARE_FOREIGN_PART,
	      foreign = fair->foreign_rate < most ? fair->foreign_rate : most;
	__s64 spare = state->tokens - fair_share_reserve(state);
	/* In milliseconds: a bucket times nanoseconds would overflow. */
	__u64 span = fair_share_slowness(fair, FAIR_SHARE_SPEND_SHORTEST) / MILLISECONDS, rate = state->rate - foreign,
	      saved;

	if (spare >= 0) {
		if (fair_share_flooded(state))
			spare = spare > fair->foreign_burst ? spare - fair->foreign_burst : 0;
		return rate + spare * 1000ULL / span;
	}
	if (fair_share_flooded(state))
		return rate;
	saved = -spare * 1000ULL / span;
	return rate - (saved < rate / FAIR_SHARE_SAVED_PART ? saved : rate / FAIR_SHARE_SAVED_PART);
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
	/* Time in which TCP sends nothing is saved by the bucket, not by the clock. */
	if (fair_share_lead(fair, now) < 0)
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
	if (fair->burst > FAIR_SHARE_BURST_LEAST)
		fair->burst -= fair->burst >> 2;
	/* Slower: a large datagram may come only once a second. */
	fair->foreign_burst -= fair->foreign_burst >> 7;
	fair->period_ns = fair_share_period(fair, state->rate);
}

/* Whether TCP is further ahead than any packet can leave it: a large packet at a low rate lasts seconds. */
static __always_inline bool fair_share_beyond(__s64 lead, __u64 rate)
{
	return lead > (__s64)NANOSECONDS && lead > (__s64)(NANOSECONDS + TOKEN_DEBT_MOST * NANOSECONDS / rate);
}

/* The most that TCP's rate can be, with a full bucket. */
static __always_inline __u64 fair_share_paced_most(const struct rate_limit_state *state)
{
	return state->rate + state->bucket * (NANOSECONDS / FAIR_SHARE_SPEND_SHORTEST);
}

/* Must be called for every packet, before anything else: ends the epoch when its time is over. */
static __always_inline void fair_share_advance(struct rate_limit_state *state, __u64 now)
{
	struct fair_share *fair = &state->fair;
	__s64 elapsed = now - fair->epoch_start_ns, lead = fair_share_lead(fair, now);
	__u64 connections = 1ULL + fair->active_before + fair->holders_before + fair->newcomers;
	__u64 rate = state->rate;

	/*
	 * `now` was read before the lock was taken, so it may be slightly older than what another CPU wrote. A whole
	 * second is more than that: the map was tampered with, or the time comes from another time namespace. Nor does
	 * an honest share leave half of the rate unused: connections told next to nothing would not hear anything
	 * better.
	 */
	if (elapsed < -(__s64)NANOSECONDS ||
	    elapsed > (__s64)(FAIR_SHARE_EPOCHS_FORGET * fair->period_ns + FAIR_SHARE_FORGET_SHORTEST) ||
	    fair_share_beyond(lead, rate) || !fair->period_ns || fair->period_ns > FAIR_SHARE_EPOCH_LONGEST ||
	    fair->lag_ns > FAIR_SHARE_LAG_LONGEST || fair->paced_rate > fair_share_paced_most(state) ||
	    fair->paced_rate < rate / FAIR_SHARE_FOREIGN_PART / 2 ||
	    (fair->share && 4 * fair->share * connections < fair->paced_rate)) {
		fair_share_forget(state, now);
		return;
	}
	if (elapsed >= (__s64)fair->period_ns)
		fair_share_next_epoch(state, elapsed, now);
}

/*
 * Scales the saved tokens to a new rate. A higher rate begins with its reserve if the lower one had its own; otherwise
 * it would first have to save it. A lower rate begins with the tokens that last as long, or with those for one packet
 * that was built for the higher rate.
 */
static __always_inline void fair_share_change_tokens(struct rate_limit_state *state, __u64 before)
{
	__s64 scaled = token_bucket_scaled(state, before), least = scaled;

	if (state->rate > before && least > fair_share_reserve(state))
		least = fair_share_reserve(state);
	if (state->rate < before && least < FAIR_SHARE_BURST_LARGEST)
		least = FAIR_SHARE_BURST_LARGEST;
	if (state->rate > before ? state->tokens < least : state->tokens > least)
		state->tokens = least;
}

/*
 * Scales a debt to a lower rate, so that it is waited for as long as at the rate before: packets that wait for their
 * departure times have them already, and at the lower rate nothing would pass for seconds.
 */
static __always_inline void fair_share_change_debt(struct rate_limit_state *state, __u64 before)
{
	__u64 debt = 0 - (__u64)state->tokens;

	if (state->rate < before)
		state->tokens = 0 - debt * TOKEN_SPAN_PARTS / before * state->rate / TOKEN_SPAN_PARTS;
}

/* Keeps what is known of the connections; they hear of the new limit with their next packet. */
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
		else if (before)
			fair_share_change_debt(state, before);
		fair->paced_rate = rate;
		fair->period_ns = fair_share_period(fair, rate);
		if (fair->share)
			fair_share_fill(fair, fair->period_ns, now);
	} else if (fair->paced_rate > fair_share_paced_most(state)) {
		fair->paced_rate = fair_share_paced_most(state);
	}
}
#endif
