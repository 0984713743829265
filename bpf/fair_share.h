/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How fast each TCP connection of a rule may send, so that all together send at
 * exactly the rate: the max-min fair share, found by filling up (water filling).
 *
 * A connection is *held* when only pacing stops it: it has more to send, and room
 * in both windows. What the others (the modest) send is what they want; the held
 * share the rest equally. Pure, and runs under the state's lock: it compiles for
 * user space, where tests/simulation drives it.
 *
 * A share is heard a round trip later, and sockets pace a little off what they are
 * told. So the share is corrected by what was sent too much or too little since
 * then: the distance of a clock that each byte moves on by its time at the rate.
 */
#ifndef LIMITER_FAIR_SHARE_H
#define LIMITER_FAIR_SHARE_H

#include "verdict.h"

#define MILLISECONDS 1000000ULL /* in nanoseconds */
#define MICROSECONDS 1000ULL
#define EPOCH_SHORTEST (10 * MILLISECONDS)
#define EPOCH_LONGEST (4 * NANOSECONDS)
/* Epochs without a packet after which nothing that was seen before says anything. */
#define EPOCHS_FORGET 4
/* The correction takes this long, or as many epochs and lags: a quicker one would overshoot. */
#define CORRECTION_SHORTEST (100 * MILLISECONDS)
#define CORRECTION_SLOWNESS 4
/* What any honest state stays within; anything else is garbage, and is forgotten. */
#define LAG_LONGEST NANOSECONDS
#define CONNECTIONS_MOST 65535
/* TCP sends two segments at once at least, however slow it is paced. */
#define BURST_SMALLEST 3000
#define BURST_LARGEST 65535
/*
 * A burst in four seconds. A socket that waits for its time to send hears of nothing before: told less, it would be
 * deaf for longer than anyone waits. Where there are so many connections that this is too much, the guard limits.
 */
#define SHARE_LEAST (BURST_SMALLEST / 4)
/* What TCP may make up for later, besides its lag. */
#define CREDIT_MOST (100 * MILLISECONDS)
/*
 * And a part of the time in which it kept to its rate, up to this and twice its lag: every ten seconds bbr sends next to
 * nothing for 200 ms and a round trip. It has to be earned, or what slow start leaves unused would be made up for, too.
 */
#define EARNED_SHARE 32
#define EARNED_MOST (200 * MILLISECONDS)
/* What the bucket should hold beside (a tenth of a second), and how much of what is missing slows TCP down at once. */
#define RESERVE_SHARE 10
#define MISSING_SHARE 40
/* What paced TCP may be ahead of its rate, and twice its lag, before packets are dropped. */
#define GUARD_DEBT (100 * MILLISECONDS)
/* What does not pace itself may have as much as TCP, if both want all. */
#define FOREIGN_SHARE 2
#define FOREIGN_AVERAGE_MS 100

/* fair_share_mark.flags: in this epoch the connection */
#define FAIR_SHARE_ACTIVE 1 /* sent data */
#define FAIR_SHARE_HELD 2   /* was held back by pacing alone, when its last packet left */
#define FAIR_SHARE_KNOWN 4  /* sent in the epoch before, too */

/* A new epoch is long enough for each connection to send a burst in it. */
static __always_inline __u64 fair_share_period(const struct fair_share *fair, __u64 rate)
{
	__u64 connections = fair->active_before;
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

/* The level up to which connections are filled, from what was sent in the last `elapsed` nanoseconds. */
static __always_inline void fair_share_fill(struct fair_share *fair, __u64 elapsed, __u64 now)
{
	__u64 modest = fair->modest_bytes * NANOSECONDS / elapsed;
	__u64 rest = fair->paced_rate > modest ? fair->paced_rate - modest : 0;
	__u64 connections = (__u64)fair->active_before + fair->newcomers;
	__u64 correction = CORRECTION_SLOWNESS * (fair->period_ns + fair->lag_ns);
	__u64 level = fair->paced_rate / (connections ? connections : 1);
	__s64 debt = fair_share_debt(fair, now), most;

	/* Never below the share of all: what the modest sent may have been a burst. */
	if (fair->holders_before && rest / fair->holders_before > level)
		level = rest / fair->holders_before;
	if (correction < CORRECTION_SHORTEST)
		correction = CORRECTION_SHORTEST;
	most = correction / 4;
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

	state->earned_us = 0;
	fair->share = 0;
	fair->paced_rate = rate;
	fair->clock_ns = now;
	/* By two: no connection is known from the last one. */
	fair->epoch += 2;
	fair->epoch_start_ns = now;
	fair->lag_ns = 0;
	fair->modest_bytes = 0;
	fair->foreign_bytes = 0;
	fair->foreign_rate = 0;
	fair->active = 0;
	fair->active_before = 0;
	fair->unpaced = 0;
	fair->unpaced_before = 0;
	fair->holders = 0;
	fair->holders_before = 0;
	fair->newcomers = 0;
	fair->burst = BURST_SMALLEST;
	fair->period_ns = fair_share_period(fair, rate);
}

/*
 * Keeps the clock in line with the bucket. Time in which nothing was sent is not saved up for a burst; what an epoch and
 * a lag left unused is, as far as half of the bucket can pay for it. And what the bucket lost (to datagrams, to
 * connections that started, to a change of the rate) is saved again: at exactly the rate it would stay empty, and packets
 * be dropped.
 */
static __always_inline void fair_share_settle_clock(struct rate_limit_state *state, __u64 elapsed, __u64 now)
{
	struct fair_share *fair = &state->fair;
	__u64 rate = state->rate, half = state->bucket / 2, reserve = rate / RESERVE_SHARE, missing;
	__u64 credit = fair->lag_ns + (fair->period_ns < CREDIT_MOST ? fair->period_ns : CREDIT_MOST);
	__u64 earned = state->earned_us * MICROSECONDS, most = EARNED_MOST + 2 * fair->lag_ns;

	if (fair->holders_before && fair_share_debt(fair, now) > -(__s64)credit)
		earned += elapsed / EARNED_SHARE;
	if (earned > most)
		earned = most;
	state->earned_us = earned / MICROSECONDS;
	credit += earned;
	if (half > rate)
		half = rate;
	if (credit > half * NANOSECONDS / rate)
		credit = half * NANOSECONDS / rate;
	if (fair_share_debt(fair, now) < -(__s64)credit)
		fair->clock_ns = now - credit;
	if (reserve > half)
		reserve = half;
	/* Datagrams beyond their part take every token that there is. */
	if (fair->paced_rate <= rate - rate / FOREIGN_SHARE || state->tokens >= (__s64)reserve)
		return;
	missing = reserve - state->tokens;
	if (missing > rate / MISSING_SHARE)
		missing = rate / MISSING_SHARE;
	missing = missing * NANOSECONDS / rate;
	if ((__s64)missing > fair_share_debt(fair, now))
		fair->clock_ns = now + missing;
}

/*
 * Datagrams come in clumps. Of what a clump has beyond FOREIGN_SHARE nothing is taken from TCP, so without the average TCP
 * would get the gaps between them as well, and both together more than the rate.
 */
static __always_inline void fair_share_average_foreign(struct fair_share *fair, __u64 rate, __u64 elapsed)
{
	__u64 latest = fair->foreign_bytes * NANOSECONDS / elapsed, weight = elapsed / MILLISECONDS;

	if (fair->foreign_rate > rate)
		fair->foreign_rate = rate;
	if (latest > rate)
		latest = rate;
	weight = weight * 1024 / (weight + FOREIGN_AVERAGE_MS);
	fair->foreign_rate = (fair->foreign_rate * (1024 - weight) + latest * weight) / 1024;
}

static __always_inline void fair_share_next_epoch(struct rate_limit_state *state, __u64 elapsed, __u64 now)
{
	struct fair_share *fair = &state->fair;
	__u64 rate = state->rate;
	__u64 foreign;

	fair_share_average_foreign(fair, rate, elapsed);
	foreign = fair->foreign_rate;
	if (foreign > rate / FOREIGN_SHARE)
		foreign = rate / FOREIGN_SHARE;
	fair->paced_rate = rate - foreign;
	fair->active_before = fair->active;
	fair->unpaced_before = fair->unpaced;
	fair->holders_before = fair->holders + fair->newcomers;
	fair_share_settle_clock(state, elapsed, now);
	fair_share_fill(fair, elapsed, now);
	fair->active = 0;
	fair->unpaced = 0;
	fair->holders = 0;
	fair->newcomers = 0;
	fair->modest_bytes = 0;
	fair->foreign_bytes = 0;
	fair->epoch++;
	fair->epoch_start_ns = now;
	fair->lag_ns -= fair->lag_ns >> 4;
	if (fair->burst > BURST_SMALLEST)
		fair->burst -= fair->burst >> 2;
	fair->period_ns = fair_share_period(fair, rate);
}

/* A debt that no packet can have left: a large one at a low rate is seconds. */
static __always_inline bool fair_share_beyond(__s64 debt, __u64 rate)
{
	return debt > (__s64)NANOSECONDS && debt > (__s64)(NANOSECONDS + TOKEN_DEBT_MOST * NANOSECONDS / rate);
}

/* Nanoseconds without a packet after which nothing is known any more. What was earned is for such a pause. */
static __always_inline __u64 fair_share_memory(const struct rate_limit_state *state)
{
	return EPOCHS_FORGET * state->fair.period_ns + 2 * state->earned_us * MICROSECONDS;
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
	if (elapsed < -(__s64)NANOSECONDS || elapsed > (__s64)fair_share_memory(state) ||
	    fair_share_beyond(debt, rate) || !fair->period_ns || fair->period_ns > EPOCH_LONGEST ||
	    fair->lag_ns > LAG_LONGEST || fair->paced_rate > rate || fair->paced_rate < rate / FOREIGN_SHARE ||
	    (fair->share && 2 * fair->share * connections < fair->paced_rate)) {
		fair_share_forget(state, now);
		return;
	}
	if (elapsed >= (__s64)fair->period_ns)
		fair_share_next_epoch(state, elapsed, now);
}

/*
 * The rate was changed: what is known of the connections is not lost, and they hear of it with their next packet. What they
 * need to get used to more is not made up for.
 */
static __always_inline void fair_share_change_rate(struct rate_limit_state *state, __u64 rate, __u64 now)
{
	struct fair_share *fair = &state->fair;

	state->earned_us = 0;
	fair->paced_rate = rate;
	fair->period_ns = fair_share_period(fair, rate);
	if (fair->share)
		fair_share_fill(fair, fair->period_ns, now);
}

/* What a packet of TCP tells of its connection: that it is there, and whether it wants more than it gets. */
static __always_inline void fair_share_observe(struct fair_share *fair, struct fair_share_mark *mark,
					       const struct packet *packet, bool held, __u64 now)
{
	if (mark->epoch != fair->epoch)
		*mark = (struct fair_share_mark){
			.epoch = fair->epoch,
			.flags = mark->epoch + 1 == fair->epoch ? FAIR_SHARE_KNOWN : 0,
		};
	if (packet->bytes > CONTROL_PACKET_BYTES && !(mark->flags & FAIR_SHARE_ACTIVE)) {
		mark->flags |= FAIR_SHARE_ACTIVE;
		fair->active++;
		if (!packet->paced)
			fair->unpaced++;
		if (fair->active > fair->active_before)
			fair->active_before = fair->active;
	}
	if (held && !(mark->flags & FAIR_SHARE_HELD)) {
		mark->flags |= FAIR_SHARE_HELD;
		fair->modest_bytes -= mark->bytes < fair->modest_bytes ? mark->bytes : fair->modest_bytes;
		fair->holders++;
		/* One that was not there in the last epoch: all would have too much until this one ends. */
		if (!(mark->flags & FAIR_SHARE_KNOWN) && fair->holders > fair->holders_before) {
			fair->holders_before = fair->holders;
			fair_share_fill(fair, fair->period_ns, now);
		}
	} else if (!held && mark->flags & FAIR_SHARE_HELD) {
		/* It has all that it wanted, and that is what it sent in this epoch. */
		mark->flags &= ~FAIR_SHARE_HELD;
		fair->modest_bytes += mark->bytes;
		fair->holders -= fair->holders > 0;
	}
}

/* A packet of TCP passed. `mark` is what is known of its connection; NULL: nothing, it counts as modest. */
static __always_inline void fair_share_sent(struct fair_share *fair, struct fair_share_mark *mark,
					    const struct packet *packet, __u64 now)
{
	__u64 rate = fair->paced_rate ? fair->paced_rate : 1;

	fair->clock_ns += packet->bytes * NANOSECONDS / rate;
	if (packet->bytes > fair->burst && fair->burst < BURST_LARGEST) {
		fair->burst = packet->bytes < BURST_LARGEST ? packet->bytes : BURST_LARGEST;
		fair->period_ns = fair_share_period(fair, rate);
	}
	if (mark) {
		fair_share_observe(fair, mark, packet, packet->held, now);
		mark->bytes += packet->bytes;
	}
	if (!mark || !(mark->flags & FAIR_SHARE_HELD))
		fair->modest_bytes += packet->bytes;
}

/*
 * A packet of TCP was dropped here. Its connection wants its share, or the others would fill the rate without it, and
 * the guard would drop whatever it tries, until it is given up.
 */
static __always_inline void fair_share_refused(struct fair_share *fair, struct fair_share_mark *mark,
					       const struct packet *packet, __u64 now)
{
	if (mark && packet->bytes > CONTROL_PACKET_BYTES)
		fair_share_observe(fair, mark, packet, true, now);
}

/* Another rule dropped a packet that passed here. What it tells of its connection's wishes stays true. */
static __always_inline void fair_share_refund(struct fair_share *fair, const struct packet *packet)
{
	fair->clock_ns -= packet->bytes * NANOSECONDS / (fair->paced_rate ? fair->paced_rate : 1);
}

/* A packet of anything but TCP was offered, whether it passes or not: what passes depends on what TCP leaves. */
static __always_inline void fair_share_foreign(struct fair_share *fair, const struct packet *packet)
{
	fair->foreign_bytes += packet->bytes;
}

/* A connection was established: what it may send. It takes its part from what the others may, at once. */
static __always_inline __u64 fair_share_join(struct rate_limit_state *state, __u64 now)
{
	struct fair_share *fair = &state->fair;
	__u64 most;

	token_bucket_refill(state, state->rate, state->bucket, now);
	fair_share_advance(state, now);
	fair->newcomers++;
	most = fair->paced_rate / ((__u64)fair->holders_before + fair->newcomers);
	if (!fair->share || fair->share > most)
		fair->share = most > SHARE_LEAST ? most : SHARE_LEAST;
	return fair->share;
}

/* A connection's round trip time. */
static __always_inline void fair_share_hear(struct fair_share *fair, __u64 round_trip_ns)
{
	if (round_trip_ns > fair->lag_ns && round_trip_ns <= LAG_LONGEST)
		fair->lag_ns = round_trip_ns;
}

/*
 * Behind pacing the bucket is only the guard. Tokens that UDP took are no reason to slow down paced TCP, which has its
 * part of the rate; its own debt is, when it is more than pacing can leave while a share is on its way.
 */
static __always_inline void fair_share_guard(const struct fair_share *fair, const struct packet *packet, __u64 now,
					     struct thresholds *thresholds)
{
	__s64 allowed = GUARD_DEBT + 2 * fair->lag_ns, debt = fair_share_debt(fair, now);

	if (!packet->paced || packet->bytes <= CONTROL_PACKET_BYTES)
		return;
	/* What pacing holds back pays its debt; with a smaller window, too, it would be slow for long if it is far away. */
	thresholds->notice = 2 * debt > allowed && !packet->held ? TOKENS_HIGHEST : TOKENS_LOWEST;
	if (debt > allowed && !packet->starved)
		thresholds->drop = TOKENS_HIGHEST;
}

/* One rule's whole answer to a packet. `mark` is its connection's, NULL where it has none; `paces`: sockets are told. */
static __always_inline enum verdict fair_share_charge(struct rate_limit_state *state, struct fair_share_mark *mark,
						      const struct packet *packet, __u64 now, bool paces)
{
	struct thresholds thresholds = verdict_thresholds(state->rate, state->bucket, packet);
	enum verdict verdict;

	token_bucket_refill(state, state->rate, state->bucket, now);
	if (!paces)
		return verdict_take(state, &thresholds, packet);
	fair_share_advance(state, now);
	fair_share_hear(&state->fair, packet->round_trip_ns);
	fair_share_guard(&state->fair, packet, now, &thresholds);
	verdict = verdict_take(state, &thresholds, packet);
	if (!packet->tcp)
		fair_share_foreign(&state->fair, packet);
	else if (verdict == VERDICT_DROP)
		fair_share_refused(&state->fair, mark, packet, now);
	else
		fair_share_sent(&state->fair, mark, packet, now);
	return verdict;
}
#endif
