/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What is behind the rules: nothing, or fq. It holds a packet until its time, drops what is too much for one socket
 * (flow_limit) or for all together (limit), or would wait for longer than its horizon.
 */
#ifndef SIMULATION_QUEUE_H
#define SIMULATION_QUEUE_H

#include "flow.h"

#define FRAGMENT 1480

/* As bpf/queue.h: not where half of what may wait waits. */
static uint64_t queue_room(const struct simulation *sim, const struct flow_spec *spec,
			   const struct rate_limit_state *state, const struct packet *packet)
{
	if (!spec->waits || 2 * sim->waiting >= sim->scenario->limit)
		return 0;
	if (!departure_matters(state->tokens, state->rate, packet))
		return 0;
	return departure_room(state, packet);
}

/* It leaves the host. */
static void queue_out(struct simulation *sim, struct flow *flow, const struct packet *packet)
{
	const struct flow_spec *spec = flow->spec;

	for (uint32_t place = 0; place < spec->rules; place++) {
		flow_bin(sim, spec->rule[place])->bytes += packet->bytes;
		limiter_count(&sim->limiter[spec->rule[place]], packet, sim->now);
	}
	flow_count(sim, flow, packet);
}

/* What it takes of fq's places: IP has cut a large datagram into fragments. */
static uint32_t queue_places(const struct packet *packet)
{
	return !packet->tcp && packet->segments == 1 ? 1 + (packet->bytes - 1) / FRAGMENT : 1;
}

/* False where fq drops it. */
static bool queue_add(struct simulation *sim, struct flow *flow, const struct packet *packet, uint64_t departs)
{
	const struct scenario *scenario = sim->scenario;
	struct flow_result *result = flow_result(sim, flow);
	uint32_t place, places = queue_places(packet);

	if (departs <= sim->now && !flow->waiting_count) {
		queue_out(sim, flow, packet);
		return true;
	}
	if (departs - sim->now > scenario->horizon || sim->waiting + places > scenario->limit ||
	    flow->waiting_places + places > scenario->flow_limit || flow->waiting_count == WAITING_MOST) {
		result->lost++;
		return false;
	}
	if (!flow->waiting)
		flow->waiting = malloc(WAITING_MOST * sizeof(*flow->waiting));
	if (!flow->waiting) {
		sim->failed = 1;
		return false;
	}
	for (place = flow->waiting_count; place && flow->waiting[place - 1].at <= departs; place--)
		flow->waiting[place] = flow->waiting[place - 1];
	flow->waiting[place] = (struct waiting){ departs, *packet };
	flow->waiting_count++;
	flow->waiting_places += places;
	sim->waiting += places;
	if (departs - sim->now > result->wait)
		result->wait = departs - sim->now;
	flow_arm(sim, flow, TIMER_DEPART, flow->waiting[flow->waiting_count - 1].at);
	return true;
}

/* The time of the next one has come. */
static void queue_depart(struct simulation *sim, struct flow *flow)
{
	struct packet packet = flow->waiting[--flow->waiting_count].packet;

	flow->waiting_places -= queue_places(&packet);
	sim->waiting -= queue_places(&packet);
	if (flow->waiting_count)
		flow_arm(sim, flow, TIMER_DEPART, flow->waiting[flow->waiting_count - 1].at);
	queue_out(sim, flow, &packet);
}
#endif
