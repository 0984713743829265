/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a packet tells a rule of what its connection wants, and what the connection is offered for it: the controller's
 * input and output (fair_share.h). Pure, and runs under the state's lock.
 */
#ifndef LIMITER_DEMAND_H
#define LIMITER_DEMAND_H

#include "fair_share.h"
#include "packet.h"

/* fair_share_mark.flags: in this epoch the connection */
#define FAIR_SHARE_ACTIVE 1    /* sent data */
#define FAIR_SHARE_HELD 2      /* was held back by pacing alone, when its last packet left */
#define FAIR_SHARE_KNOWN 4     /* sent in the epoch before, too */
#define FAIR_SHARE_ELSEWHERE 8 /* was held back by another rule */

/*
 * New segments are counted on TCP's account up to this debt, half of what is refused (verdict.h); the bucket pays the
 * rest.
 */
#define EARLY_LEAD (50 * MILLISECONDS)
/* New connections that have not sent anything yet, and for which room is left. */
#define SILENT_MOST 20
#define FOREIGN_MOST (1ULL << 33) /* bytes in an epoch: more times nanoseconds would overflow */

/*
 * What a packet of TCP with data tells of its connection: that it is there, and whether it wants more than it gets. Of
 * early ones only the sum counts: TCP sends them as fast as it can, whatever it wants.
 */
static __always_inline void demand_observe(struct fair_share *fair, struct fair_share_mark *mark,
					   const struct packet *packet, bool wants, __u64 now)
{
	bool held = wants && !packet->elsewhere;

	if (mark->epoch != fair->epoch)
		*mark = (struct fair_share_mark){
			.epoch = fair->epoch,
			.flags = mark->epoch + 1 == fair->epoch ? FAIR_SHARE_KNOWN : 0,
		};
	if (packet->control)
		return;
	if ((!packet->early || held) && !(mark->flags & FAIR_SHARE_ACTIVE)) {
		mark->flags |= FAIR_SHARE_ACTIVE;
		fair->active++;
		if (!packet->paced)
			fair->unpaced++;
		if (fair->active > fair->active_before)
			fair->active_before = fair->active;
	}
	if (wants && packet->elsewhere && !(mark->flags & FAIR_SHARE_ELSEWHERE)) {
		mark->flags |= FAIR_SHARE_ELSEWHERE;
		fair->elsewhere++;
	}
	if (held && !(mark->flags & FAIR_SHARE_HELD)) {
		mark->flags |= FAIR_SHARE_HELD;
		fair->modest_bytes -= mark->bytes < fair->modest_bytes ? mark->bytes : fair->modest_bytes;
		fair->holders++;
		/* One that was not there in the last epoch: all would have too much until this one ends. */
		if ((!(mark->flags & FAIR_SHARE_KNOWN) || !fair->holders_before) &&
		    fair->holders > fair->holders_before) {
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

/*
 * A packet of TCP passed or was dropped here. `mark` is what is known of its connection; NULL: nothing, it counts as
 * modest. Whoever was dropped wants its share, or the others would fill the rate without it, and the guard would drop
 * whatever it tries, until it is given up. Not so one that begins: it may have little to say.
 */
static __always_inline void demand_note(struct fair_share *fair, struct fair_share_mark *mark,
					const struct packet *packet, bool passed, __u64 now)
{
	__u64 rate = fair->paced_rate ? fair->paced_rate : 1;

	if (mark && (passed || !packet->begins))
		demand_observe(fair, mark, packet, packet->held || !passed, now);
	if (!passed)
		return;
	/*
	 * What TCP does not pace the bucket pays, and the paced give way: to new connections not so far that the guard
	 * would stop them, to those that cannot be told by what is left of the rate.
	 */
	if ((packet->paced || packet->control) && (!packet->early || fair_share_lead(fair, now) < (__s64)EARLY_LEAD))
		fair->clock_ns += packet->bytes * NANOSECONDS / rate;
	if (packet->bytes > fair->burst && fair->burst < BURST_LARGEST) {
		fair->burst = packet->bytes < BURST_LARGEST ? packet->bytes : BURST_LARGEST;
		fair->period_ns = fair_share_period(fair, rate);
	}
	if (packet->early)
		fair->early_bytes += packet->bytes;
	fair->begun += packet->begins;
	/* A share is of data: acknowledgements come beside it. */
	if (mark && !packet->control)
		mark->bytes += packet->bytes;
	if (mark && mark->flags & FAIR_SHARE_HELD && !packet->control)
		return;
	fair->modest_bytes += packet->bytes;
	if (mark && mark->bytes > fair->largest_bytes)
		fair->largest_bytes = mark->bytes;
}

/* Another rule dropped a packet that passed here. What it tells of its connection's wishes stays true. */
static __always_inline void demand_refund(struct fair_share *fair, const struct packet *packet)
{
	fair->clock_ns -= packet->bytes * NANOSECONDS / (fair->paced_rate ? fair->paced_rate : 1);
}

/* What is foreign was offered, whether it passes or not: what passes depends on what TCP leaves. */
static __always_inline void demand_note_foreign(struct fair_share *fair, const struct packet *packet)
{
	if (fair->foreign_bytes < FOREIGN_MOST)
		fair->foreign_bytes += packet->bytes;
	if (packet->bytes > fair->foreign_burst)
		fair->foreign_burst = packet->bytes;
}

/*
 * What a connection may send. A new one leaves room for the others that are new, and have begun to send; and for a few
 * that have not, since most never do. None of them changes what the others may until it is seen to be held.
 */
static __always_inline __u64 demand_offer(const struct fair_share *fair, bool early)
{
	__u64 most = fair->share ? fair->share : fair->paced_rate;
	__u64 silent = fair->newcomers > fair->begun ? fair->newcomers - fair->begun : 0;
	__u64 connections = (__u64)fair->holders_before + fair->begun + (silent < SILENT_MOST ? silent : SILENT_MOST);

	if (early && connections && most > fair->paced_rate / connections)
		most = fair->paced_rate / connections;
	return most > SHARE_LEAST ? most : SHARE_LEAST;
}

/* A connection was established: what it may send. */
static __always_inline __u64 demand_join(struct rate_limit_state *state, __u64 now)
{
	struct fair_share *fair = &state->fair;

	token_bucket_refill(state, state->rate, state->bucket, now);
	fair_share_advance(state, now);
	fair->newcomers++;
	if (!fair->share)
		fair_share_fill(fair, fair->period_ns, now);
	return demand_offer(fair, true);
}

/* A connection's round trip time. */
static __always_inline void demand_hear(struct fair_share *fair, __u64 round_trip_ns)
{
	if (round_trip_ns > fair->lag_ns && round_trip_ns <= LAG_LONGEST)
		fair->lag_ns = round_trip_ns;
}

/* Packets without payload, offered. What has not been told a rate yet shakes hands. */
static __always_inline void demand_note_control(struct fair_share *fair, const struct packet *packet)
{
	fair->control_bytes += packet->bytes;
	if (!packet->paced)
		fair->handshake_bytes += packet->bytes;
}
#endif
