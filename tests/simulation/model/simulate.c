// SPDX-License-Identifier: GPL-2.0-or-later
/* Discrete events: flows, rules that they pass, and nothing behind them but distance. */
#include "life.h"

#define DATAGRAM_HEADERS 28
#define ACKNOWLEDGEMENT 52

/* Times between the writes of an application, or between datagrams, vary by a fifth of their mean. */
static uint64_t pause_of(struct simulation *sim, uint64_t bytes, uint64_t rate)
{
	uint64_t mean = bytes * NANOSECONDS / rate;

	return mean - mean / 10 + random_to(&sim->random, mean / 5);
}

static void datagram(struct simulation *sim, struct flow *flow)
{
	const struct flow_spec *spec = flow->spec;
	bool tcp = spec->kind == KIND_ACKS;
	uint64_t departs;
	struct packet packet = { .segments = 1, .tcp = tcp, .control = tcp, .paced = tcp };

	if (spec->gso)
		packet.segments = (spec->chunk + spec->mss - 1) / spec->mss;
	packet.round_trip_ns = tcp ? spec->round_trip : 0;
	packet.bytes = tcp ? ACKNOWLEDGEMENT : spec->chunk + packet.segments * DATAGRAM_HEADERS;
	walk_rules(sim, flow, tcp ? &flow->pacing : NULL, &packet, &departs);
}

static void write_some(struct simulation *sim, struct flow *flow)
{
	const struct flow_spec *spec = flow->spec;

	if (!flow->open)
		return;
	if (spec->low_water) {
		while (flow->written - flow->sent < spec->low_water)
			tcp_written(sim, flow, spec->chunk);
		return;
	}
	flow_arm(sim, flow, TIMER_WRITE, sim->now + pause_of(sim, spec->clump * spec->chunk, spec->rate));
	if (spec->kind >= KIND_UDP) {
		for (uint32_t i = 0; i < spec->clump; i++)
			datagram(sim, flow);
		return;
	}
	/* A program waits when its buffer is full. */
	if (flow->written - flow->sent < 4 * spec->chunk + (1 << 20))
		tcp_written(sim, flow, spec->chunk);
}

static void start(struct simulation *sim, struct flow *flow)
{
	const struct flow_spec *spec = flow->spec;

	if (spec->stop)
		flow_arm(sim, flow, TIMER_STOP, EPOCH + spec->stop);
	if (spec->use != USE_STREAM) {
		life_start(sim, flow);
		return;
	}
	flow->open = true;
	if (spec->kind < KIND_UDP)
		tcp_start(sim, flow);
	if (spec->rate) {
		flow_arm(sim, flow, TIMER_WRITE,
			 sim->now + random_to(&sim->random, spec->chunk * NANOSECONDS / spec->rate));
	} else if (spec->low_water) {
		write_some(sim, flow);
	} else {
		flow_want(sim, flow);
		tcp_send(sim, flow);
	}
}

static void stop(struct flow *flow)
{
	flow->group->stopped = true;
	if (flow->spec->use != USE_STREAM)
		return;
	flow->open = false;
	if (!tcp_unsent(flow))
		flow->wanting_since = 0;
}

static void fire(struct simulation *sim, uint32_t timer)
{
	struct flow *flow = &sim->flow[timer / TIMERS];

	switch (timer % TIMERS) {
	case TIMER_START:
		start(sim, flow);
		break;
	case TIMER_STOP:
		stop(flow);
		break;
	case TIMER_PACING:
		tcp_send(sim, flow);
		break;
	case TIMER_RETRY:
		tcp_probe(sim, flow);
		break;
	case TIMER_ACK:
		tcp_acked(sim, flow);
		break;
	case TIMER_WRITE:
		write_some(sim, flow);
		break;
	case TIMER_NEXT:
		life_step(sim, flow);
		break;
	case TIMER_BEGIN:
		life_arrive(sim, flow);
		break;
	case TIMER_DEPART:
		queue_depart(sim, flow);
		tcp_departed(sim, flow);
		break;
	}
	life_look(sim, flow);
}

/* What a map that was tampered with, or a clock that jumped, may hold. */
static void spoil(struct simulation *sim)
{
	struct limiter *limiter = &sim->limiter[0];
	struct fair_share *fair = &limiter->state.fair;
	const uint64_t hours = 5 * 3600 * NANOSECONDS;

	switch (sim->scenario->garbage_kind) {
	case 0:
		for (size_t i = 0; i < sizeof(*fair); i++)
			((unsigned char *)fair)[i] = random_next(&sim->random);
		break;
	case 1:
		memset(fair, 0xff, sizeof(*fair));
		break;
	case 2:
		memset(fair, 0, sizeof(*fair));
		break;
	case 3:
		fair->clock_ns += hours;
		break;
	case 4:
		fair->clock_ns -= hours;
		fair->epoch_start_ns -= hours;
		break;
	case 5:
		fair->epoch_start_ns += hours;
		break;
	case 6: /* nothing that could not be */
		fair->share = fair->share / 4 + random_to(&sim->random, fair->share);
		fair->paced_rate = limiter->rate - random_to(&sim->random, limiter->rate / FAIR_SHARE_FOREIGN_PART);
		fair->period_ns = FAIR_SHARE_EPOCH_SHORTEST + random_to(&sim->random, 3 * fair->period_ns);
		fair->epoch_start_ns = sim->now - random_to(&sim->random, fair->period_ns);
		fair->clock_ns = sim->now + random_to(&sim->random, NANOSECONDS) - NANOSECONDS / 2;
		fair->lag_ns = random_to(&sim->random, FAIR_SHARE_LAG_LONGEST);
		fair->modest_bytes = random_to(&sim->random, limiter->rate);
		fair->foreign_bytes = random_to(&sim->random, limiter->rate);
		fair->active = random_to(&sim->random, 2 * fair->active + 1);
		fair->active_before = random_to(&sim->random, 2 * fair->active_before + 1);
		fair->holders = random_to(&sim->random, 2 * fair->holders + 1);
		fair->holders_before = random_to(&sim->random, 2 * fair->holders_before + 1);
		fair->newcomers = random_to(&sim->random, 2 * fair->newcomers + 1);
		fair->burst = random_to(&sim->random, FAIR_SHARE_BURST_LARGEST);
		break;
	}
}

static int prepare(struct simulation *sim)
{
	const struct scenario *scenario = sim->scenario;
	uint32_t slot = 0;

	for (uint32_t i = 0; i < scenario->flows; i++)
		sim->slots += scenario->flow[i].slots;
	sim->group = calloc(scenario->flows, sizeof(*sim->group));
	sim->flow = calloc(sim->slots, sizeof(*sim->flow));
	if (timers_make(&sim->timers, sim->slots * TIMERS) || !sim->flow || !sim->group)
		return -1;
	for (uint32_t i = 0; i < scenario->flows; i++) {
		const struct flow_spec *spec = &scenario->flow[i];

		sim->group[i].first = slot;
		sim->group[i].slots = spec->slots;
		sim->group[i].number = i;
		for (uint32_t one = 0; one < spec->slots; one++, slot++) {
			sim->flow[slot].spec = spec;
			sim->flow[slot].group = &sim->group[i];
			sim->flow[slot].number = slot;
			flow_arm(sim, &sim->flow[slot], TIMER_START, sim->now + spec->start);
		}
	}
	return 0;
}

static void run(struct simulation *sim)
{
	const struct scenario *scenario = sim->scenario;
	uint32_t change = scenario->rules;
	bool spoiled = !scenario->garbage_at;

	while (sim->timers.count && !sim->failed) {
		uint32_t timer = sim->timers.heap[0];
		uint64_t at = sim->timers.at[timer];

		/* What happens to a rule comes before the flows' next event. */
		if (change < scenario->changes && scenario->change[change].at + EPOCH <= at) {
			const struct change *next = &scenario->change[change++];

			sim->now = next->at + EPOCH;
			limiter_change(&sim->limiter[next->rule], next, sim->now);
			continue;
		}
		if (!spoiled && scenario->garbage_at + EPOCH <= at) {
			sim->now = scenario->garbage_at + EPOCH;
			spoiled = true;
			spoil(sim);
			continue;
		}
		if (at - EPOCH >= scenario->duration)
			break;
		sim->now = at;
		while (sim->bin < scenario->bins - 1 && scenario->bin[sim->bin] + EPOCH <= at)
			sim->bin++;
		timers_stop(&sim->timers, timer);
		fire(sim, timer);
		sim->result->events++;
	}
	sim->now = EPOCH + scenario->duration;
	for (uint32_t i = 0; i < sim->slots && !sim->failed; i++)
		life_end(sim, &sim->flow[i]);
}

/* 0, or -1 without memory. */
int simulate(const struct scenario *scenario, struct result *result)
{
	struct simulation sim = { .scenario = scenario, .result = result, .now = EPOCH, .random = { scenario->seed } };
	int failed;

	for (uint32_t i = 0; i < scenario->rules; i++) {
		sim.limiter[i].skew = scenario->clock_skew;
		sim.limiter[i].random.state = ~scenario->seed - i;
		limiter_start(&sim.limiter[i], &scenario->change[i], sim.now);
	}
	failed = prepare(&sim);
	if (!failed) {
		run(&sim);
		failed = sim.failed;
		for (uint32_t i = 0; i < scenario->rules; i++)
			result->worst_excess[i] = sim.limiter[i].worst / (int64_t)NANOSECONDS + 1;
	}
	for (uint32_t i = 0; sim.flow && i < sim.slots; i++) {
		free(sim.flow[i].ring);
		free(sim.flow[i].waiting);
	}
	free(sim.flow);
	free(sim.group);
	timers_free(&sim.timers);
	return failed ? -1 : 0;
}
