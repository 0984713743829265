/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Departure times: where the packet's own device has the queueing discipline fq, which holds a packet until its time,
 * a packet that the bucket cannot pay yet waits there until the bucket will have paid for what went before. So the
 * bucket is the queue's virtual clock. Without fq such a packet is dropped. Pure.
 */
#ifndef LIMITER_DEPARTURE_H
#define LIMITER_DEPARTURE_H

#include "verdict.h"

/* No datagram waits for longer than this part of a second, 50 ms; for TCP see VERDICT_QUEUE_MS. */
#define DEPARTURE_HORIZON_PART 20
/*
 * Packets of a rule that wait. fq drops what is more than a hundred of a socket (flow_limit), for which the bucket has
 * paid by then. IP sends a large datagram as fragments of about this size, each of which waits by itself.
 */
#define DEPARTURE_PACKETS 60
#define DEPARTURE_FRAGMENT 1500
/* Weight of a packet in the average size of those that wait. */
#define DEPARTURE_SIZE_WEIGHT 8

/* Whether the answer to a packet may depend on whether its device holds it. */
static __always_inline bool departure_matters(__s64 tokens, __u64 rate, const struct packet *packet)
{
	/* Large datagrams have to find all their tokens, and without fq no connection begins below some. */
	return tokens <= (packet->begins ? (__s64)(rate / VERDICT_WAIT_PART) : packet->tcp ? 0 : packet->bytes);
}

/* What takes one place in the device's queue of this packet, bytes. GSO packets are cut behind it. */
static __always_inline __u32 departure_piece(const struct packet *packet)
{
	return packet->segments == 1 && packet->bytes > DEPARTURE_FRAGMENT ? DEPARTURE_FRAGMENT : packet->bytes;
}

/*
 * The debt in bytes that packets which wait may leave, where the packet's device holds it. Not by this packet's size
 * while others wait: small packets would find no room beside large ones.
 */
static __always_inline __u64 departure_room(const struct rate_limit_state *state, const struct packet *packet)
{
	__u32 size = state->tokens < 0 && state->waiting_size ? state->waiting_size : departure_piece(packet);
	__u64 room = state->rate / DEPARTURE_HORIZON_PART, most = DEPARTURE_PACKETS * (__u64)size;

	/* These do not wait. One byte says that data before them may. */
	if (packet->tcp && packet->control)
		return 1;
	return room < most ? room : most;
}

/*
 * How long a packet waits that has passed. TCP that is paced waits only for its own clock, not behind datagrams,
 * as long as no more than TCP's debt leaves before it is paid. Packets without data do not wait.
 */
static __always_inline __u64 departure_wait(const struct rate_limit_state *state, const struct packet *packet,
					    __u64 now)
{
	__s64 before = state->tokens + packet->bytes, lead = fair_share_lead(&state->fair, now);
	__u64 rate = state->rate ? state->rate : 1, wait, least;

	if (before >= 0 || (packet->tcp && packet->control))
		return 0;
	wait = (__u64)-before * NANOSECONDS / rate;
	if (packet->tcp && packet->paced) {
		/* What the packet itself has added to its clock is not waited for. */
		lead -= packet->bytes * NANOSECONDS / (state->fair.paced_rate ? state->fair.paced_rate : 1);
		before += verdict_half_debt(rate);
		least = before < 0 ? (__u64)-before * NANOSECONDS / rate : 0;
		if (lead < (__s64)least)
			lead = least;
		if (lead < (__s64)wait)
			wait = lead;
	}
	return wait < NANOSECONDS ? wait : NANOSECONDS;
}

/*
 * The average size of what waits, with one more packet that has passed. The first one begins anew. Packets without data
 * do not wait.
 */
static __always_inline __u32 departure_size(const struct rate_limit_state *state, const struct packet *packet)
{
	__u64 before = state->waiting_size;

	if (packet->tcp && packet->control)
		return before;
	if (state->tokens + packet->bytes >= 0 || !before)
		return departure_piece(packet);
	return (before * (DEPARTURE_SIZE_WEIGHT - 1) + departure_piece(packet)) / DEPARTURE_SIZE_WEIGHT;
}
#endif
