/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The controller's input and output (fair_share.h): what a packet tells a rule about the demand of its connection, and
 * what the rule offers the connection. Pure, and runs under the state's lock.
 */
#ifndef LIMITER_DEMAND_H
#define LIMITER_DEMAND_H

#include "fair_share.h"
#include "packet.h"

/* fair_share_mark.flags: in this epoch the connection ... */
#define FAIR_SHARE_ACTIVE 1    /* ... sent data */
#define FAIR_SHARE_HELD 2      /* ... was held when its last packet left */
#define FAIR_SHARE_KNOWN 4     /* ... had a packet in the epoch before, too */
#define FAIR_SHARE_ELSEWHERE 8 /* ... was held by another rule */

/*
 * Early segments count on TCP's virtual clock until it leads by this much, half of what the guard allows (verdict.h).
 * The bucket pays for the rest.
 */
#define DEMAND_EARLY_LEAD (50 * MILLISECONDS)
/*
 * ... where they can wait in the device's queue. TCP's shortest timer ends after 200 ms, and it would send again what
 * only waits.
 */
#define DEMAND_EARLY_QUEUE (160 * MILLISECONDS)
/* Room is left for this many new connections that have not sent anything yet. */
#define DEMAND_SILENT_MOST 20
/* What was counted of a packet that passed: bits, so that a refund takes back just that. */
#define DEMAND_TCP 1    /* as TCP */
#define DEMAND_CLOCK 2  /* on TCP's virtual clock */
#define DEMAND_MODEST 4 /* as what a modest connection sent */
#define DEMAND_FOREIGN 8
#define DEMAND_FOREIGN_MOST (1ULL << 33) /* bytes in an epoch: times nanoseconds, more would overflow */

/*
 * Learns from a TCP packet with data that its connection exists, and whether it wants more than it gets. Of early
 * packets only the sum counts: TCP sends them as fast as it can, whatever it wants.
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
		/* It did not count in the last epoch, so all shares would be too large until this one ends. */
		if ((!(mark->flags & FAIR_SHARE_KNOWN) || !fair->holders_before) &&
		    fair->holders > fair->holders_before) {
			fair->holders_before = fair->holders;
			fair_share_fill(fair, fair->period_ns, now);
		}
	} else if (!held && mark->flags & FAIR_SHARE_HELD) {
		/* It gets all that it wants, which is what it sent in this epoch. */
		mark->flags &= ~FAIR_SHARE_HELD;
		fair->modest_bytes += mark->bytes;
		fair->holders -= fair->holders > 0;
	}
}

/*
 * Notes a TCP packet that passed or was dropped here. `mark` is what the rule knows of its connection; a connection
 * without one counts as modest. A connection whose packet was dropped wants its share: otherwise the others would fill
 * the rate without it, and the guard would drop its every try until TCP gives up. A connection that begins is an
 * exception: it may have little to send. Returns what it counted, as bits.
 */
static __always_inline __u32 demand_note(struct fair_share *fair, struct fair_share_mark *mark,
					 const struct packet *packet, bool passed, __u64 now)
{
	__u64 rate = fair->paced_rate ? fair->paced_rate : 1;
	__u32 counted = DEMAND_TCP;

	if (mark && (passed || !packet->begins))
		demand_observe(fair, mark, packet, packet->held || !passed, now);
	if (!passed)
		return 0;
	/*
	 * The bucket pays for what TCP does not pace. Paced connections give way: to early segments, but not so far
	 * that the guard would drop paced packets; to unpaced TCP, through what its modest bytes leave of the rate.
	 */
	if ((packet->paced || packet->control) &&
	    (!packet->early ||
	     fair_share_lead(fair, now) < (__s64)(packet->room ? DEMAND_EARLY_QUEUE : DEMAND_EARLY_LEAD))) {
		fair->clock_ns += packet->bytes * NANOSECONDS / rate;
		counted |= DEMAND_CLOCK;
	}
	if (packet->bytes > fair->burst && fair->burst < FAIR_SHARE_BURST_LARGEST) {
		fair->burst = packet->bytes < FAIR_SHARE_BURST_LARGEST ? packet->bytes : FAIR_SHARE_BURST_LARGEST;
		fair->period_ns = fair_share_period(fair, rate);
	}
	if (packet->early)
		fair->early_bytes += packet->bytes;
	fair->begun += packet->begins;
	/* A share is for data; acknowledgements come on top. */
	if (mark && !packet->control)
		mark->bytes += packet->bytes;
	if (mark && mark->flags & FAIR_SHARE_HELD && !packet->control)
		return counted;
	fair->modest_bytes += packet->bytes;
	if (mark && mark->bytes > fair->largest_bytes)
		fair->largest_bytes = mark->bytes;
	return counted | DEMAND_MODEST;
}

/*
 * Counts foreign traffic as it is sent, whether it passes or not: how much passes depends on what TCP leaves. Returns
 * what it counted.
 */
static __always_inline __u32 demand_note_foreign(struct fair_share *fair, const struct packet *packet)
{
	if (fair->foreign_bytes < DEMAND_FOREIGN_MOST)
		fair->foreign_bytes += packet->bytes;
	if (packet->bytes > fair->foreign_burst)
		fair->foreign_burst = packet->bytes;
	return DEMAND_FOREIGN;
}

/* The epoch may have ended since the bytes were counted. */
static __always_inline __u64 demand_less(__u64 bytes, __u32 some)
{
	return bytes > some ? bytes - some : 0;
}

/*
 * Another rule dropped a packet that passed here: takes back what was counted of it. It used nothing of this rule's
 * rate, and TCP sends it again. What it says about its connection stays true: that it is there, and whether it is held;
 * so do control packets and the sizes of bursts, which tell how traffic is sent.
 */
static __always_inline void demand_refund(struct fair_share *fair, struct fair_share_mark *mark,
					  const struct packet *packet, __u32 counted)
{
	if (counted & DEMAND_FOREIGN)
		fair->foreign_bytes = demand_less(fair->foreign_bytes, packet->bytes);
	if (counted & DEMAND_CLOCK)
		fair->clock_ns -= packet->bytes * NANOSECONDS / (fair->paced_rate ? fair->paced_rate : 1);
	if (counted & DEMAND_MODEST)
		fair->modest_bytes = demand_less(fair->modest_bytes, packet->bytes);
	if (!(counted & DEMAND_TCP))
		return;
	if (packet->early)
		fair->early_bytes = demand_less(fair->early_bytes, packet->bytes);
	fair->begun -= packet->begins && fair->begun;
	if (mark && !packet->control && mark->epoch == fair->epoch)
		mark->bytes = demand_less(mark->bytes, packet->bytes);
}

/*
 * What a connection may send. A new one leaves room for the other new ones that have begun to send, and for a few that
 * have not, since most of those never do. None of them changes what the others may send until it is found to be held.
 */
static __always_inline __u64 demand_offer(const struct fair_share *fair, bool early)
{
	__u64 most = fair->share ? fair->share : fair->paced_rate;
	__u64 silent = fair->newcomers > fair->begun ? fair->newcomers - fair->begun : 0;
	__u64 connections =
		(__u64)fair->holders_before + fair->begun + (silent < DEMAND_SILENT_MOST ? silent : DEMAND_SILENT_MOST);

	if (early && connections && most > fair->paced_rate / connections)
		most = fair->paced_rate / connections;
	return most > FAIR_SHARE_LEAST ? most : FAIR_SHARE_LEAST;
}

/* A connection was established: returns what it may send. */
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

/* Learns a connection's round trip time. */
static __always_inline void demand_hear(struct fair_share *fair, __u64 round_trip_ns)
{
	if (round_trip_ns > fair->lag_ns && round_trip_ns <= FAIR_SHARE_LAG_LONGEST)
		fair->lag_ns = round_trip_ns;
}

/* Counts control packets, dropped or not. */
static __always_inline void demand_note_control(struct fair_share *fair, const struct packet *packet)
{
	fair->control_bytes += packet->bytes;
	if (packet->handshake)
		fair->handshake_bytes += packet->bytes;
}
#endif
