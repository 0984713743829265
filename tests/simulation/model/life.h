/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Connections that are made, asked, answer and are closed. The limited side either connects, or is connected to; the other
 * one asks, with packets that are not limited, and each answer's end acknowledges all of it.
 */
#ifndef SIMULATION_LIFE_H
#define SIMULATION_LIFE_H

#include "tcp.h"

#define SYN_BYTES 60
#define SYN_RETRY NANOSECONDS
#define JITTER (20 * MICROSECONDS)

static void life_step_after(struct simulation *sim, struct flow *flow, uint64_t delay)
{
	flow_arm(sim, flow, TIMER_NEXT, sim->now + delay + random_to(&sim->random, JITTER));
}

static uint64_t life_answer(struct simulation *sim, const struct flow_spec *spec)
{
	if (spec->answer_most <= spec->answer)
		return spec->answer;
	return spec->answer + random_to(&sim->random, spec->answer_most - spec->answer);
}

/* `at`: when whoever asked has the answer, or the end of the scenario. */
static void life_record(struct simulation *sim, const struct flow *flow, uint64_t at, bool answered)
{
	struct result *result = sim->result;

	if (result->requests < result->requests_most)
		result->request[result->requests++] =
			(struct request_result){ flow->asked_at - EPOCH, at - flow->asked_at, flow->group->number,
						 answered };
}

/* Whether the group may ask once more; counts it. */
static bool life_may_ask(struct flow *flow)
{
	const struct flow_spec *spec = flow->spec;

	if (flow->group->stopped || (spec->requests && flow->group->requests >= spec->requests))
		return false;
	flow->group->requests++;
	return true;
}

/* All is sent. */
static void life_answered(struct simulation *sim, struct flow *flow)
{
	const struct flow_spec *spec = flow->spec;

	/* The last of it may still wait in fq. */
	uint64_t waits = flow->last_departure > sim->now ? flow->last_departure - sim->now : 0;

	life_record(sim, flow, sim->now + waits + spec->round_trip / 2, true);
	if (spec->use == USE_KEPT) {
		flow->phase = PHASE_OPENED;
		life_step_after(sim, flow, waits + spec->round_trip + spec->pause);
		return;
	}
	flow->phase = PHASE_CLOSED;
	flow->open = false;
	life_step_after(sim, flow, waits + spec->round_trip + (spec->use == USE_NEW ? spec->pause : 0));
}

/* After whatever may have sent something: the last data carry the FIN, unless they were gone before it was asked for. */
static void life_look(struct simulation *sim, struct flow *flow)
{
	if (flow->phase == PHASE_ASKED && !tcp_unsent(flow) && !flow_armed(sim, flow, TIMER_RETRY))
		life_answered(sim, flow);
}

/* A request arrives, and acknowledges whatever was sent before it. */
static void life_ask(struct simulation *sim, struct flow *flow)
{
	const struct flow_spec *spec = flow->spec;

	if (spec->use == USE_KEPT) {
		if (!life_may_ask(flow))
			return;
		flow->asked_at = sim->now - spec->round_trip / 2;
	}
	while (flow->ring_count)
		tcp_acked(sim, flow);
	flow_disarm(sim, flow, TIMER_ACK);
	flow->phase = PHASE_ASKED;
	tcp_written(sim, flow, life_answer(sim, spec));
	if (spec->use != USE_KEPT && !tcp_unsent(flow))
		tcp_send_control(sim, flow);
	life_look(sim, flow);
}

/* As another connection: of the last one, only what belongs to the slot stays. */
static void life_reset(struct simulation *sim, struct flow *flow)
{
	struct flow fresh = { .spec = flow->spec, .group = flow->group, .number = flow->number };

	fresh.ring = flow->ring;
	fresh.ring_size = flow->ring_size;
	/* What still waits of the last one departs all the same. */
	fresh.waiting = flow->waiting;
	fresh.waiting_count = flow->waiting_count;
	fresh.waiting_places = flow->waiting_places;
	*flow = fresh;
	for (uint32_t timer = TIMER_PACING; timer <= TIMER_NEXT; timer++)
		flow_disarm(sim, flow, timer);
}

/* Its SYN; or its SYN-ACK, which its listener sends. */
static void life_open(struct simulation *sim, struct flow *flow)
{
	const struct flow_spec *spec = flow->spec;
	struct rate_limit_pacing *pacing = spec->passive ? &flow->group->listener : &flow->pacing;
	struct packet packet = { .bytes = SYN_BYTES, .segments = 1, .tcp = !spec->foreign, .control = true };
	uint64_t departs;

	packet.handshake = true;
	if (walk_rules(sim, flow, spec->foreign ? NULL : pacing, &packet, &departs) == VERDICT_DROP) {
		/* The peer of a listener waits twice as long each time; who connects tries each half second. */
		life_step_after(sim, flow, flow->retry_after ? flow->retry_after : SYN_RETRY);
		flow->retry_after =
			spec->passive ? 2 * (flow->retry_after ? flow->retry_after : SYN_RETRY) : RESOURCE_PROBE;
		return;
	}
	flow_progress(sim, flow, false);
	flow->phase = PHASE_OPENED;
	life_step_after(sim, flow, departs - sim->now + spec->round_trip);
}

static void life_begin(struct simulation *sim, struct flow *flow)
{
	if (!life_may_ask(flow))
		return;
	life_reset(sim, flow);
	flow->phase = PHASE_OPENING;
	flow->asked_at = sim->now - (flow->spec->passive ? flow->spec->round_trip / 2 : 0);
	flow_want(sim, flow);
	life_open(sim, flow);
}

/* Established. */
static void life_opened(struct simulation *sim, struct flow *flow)
{
	tcp_start(sim, flow);
	/* Whoever connects acknowledges the handshake; whoever is connected to, the end of a connection that asks nothing. */
	if (!flow->spec->passive || !flow->spec->answer)
		tcp_send_control(sim, flow);
	life_ask(sim, flow);
}

static void life_step(struct simulation *sim, struct flow *flow)
{
	switch (flow->phase) {
	case PHASE_NONE:
		break;
	case PHASE_OPENING:
		life_open(sim, flow);
		break;
	case PHASE_OPENED:
		if (flow->open)
			life_ask(sim, flow);
		else
			life_opened(sim, flow);
		break;
	case PHASE_ASKED:
		break;
	case PHASE_CLOSED:
		flow->phase = PHASE_NONE;
		if (flow->spec->use == USE_NEW)
			life_begin(sim, flow);
		break;
	}
}

/* Of a group's first slot: the time has come for another connection. It does without one where no slot is free. */
static void life_arrive(struct simulation *sim, struct flow *first)
{
	const struct flow_spec *spec = first->spec;
	uint64_t after = spec->every;

	if (first->group->stopped)
		return;
	if (!spec->regular)
		after = -log((random_to(&sim->random, (1 << 30) - 1) + 1.0) / (1 << 30)) * spec->every;
	flow_arm(sim, first, TIMER_BEGIN, sim->now + after);
	for (uint32_t i = 0; i < first->group->slots; i++) {
		if (first[i].phase == PHASE_NONE) {
			life_begin(sim, &first[i]);
			return;
		}
	}
}

/* The scenario ends: whoever still waits has waited so long. */
static void life_end(struct simulation *sim, struct flow *flow)
{
	if (flow->phase == PHASE_OPENING || flow->phase == PHASE_ASKED ||
	    (flow->phase == PHASE_OPENED && flow->spec->use != USE_KEPT))
		life_record(sim, flow, sim->now, false);
	if (flow->wanting_since)
		flow_progress(sim, flow, true);
}

static void life_start(struct simulation *sim, struct flow *flow)
{
	switch (flow->spec->use) {
	case USE_OPEN:
		if (flow == &sim->flow[flow->group->first])
			life_arrive(sim, flow);
		break;
	case USE_KEPT:
		tcp_start(sim, flow);
		flow->phase = PHASE_OPENED;
		life_step_after(sim, flow, random_to(&sim->random, 10 * MILLISECONDS));
		break;
	case USE_NEW:
		life_begin(sim, flow);
		break;
	}
}
#endif
