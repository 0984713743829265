/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Congestion control, in segments: reno and cubic as far as they act without loss, and bbr (version 1). A congestion
 * notice, or a packet that was dropped before it left, reduces the window (CWR); bbr does not listen to either.
 */
#ifndef SIMULATION_CONGESTION_H
#define SIMULATION_CONGESTION_H

#include <math.h>

#include "walk.h"

#define BBR_HIGH_GAIN 2.89
#define BBR_MARGIN 0.99
#define BBR_LEAST_WINDOW 4
#define BBR_PROBE_LASTS (200 * MILLISECONDS)

static void congestion_enter_reduction(struct flow *flow)
{
	if (flow->reducing || flow->spec->kind == KIND_BBR)
		return;
	flow->reducing = true;
	flow->reduction_end = flow->sent;
	flow->reduction_from = flow->window;
	flow->reduction_delivered = flow->reduction_sent = 0;
	flow->cubic_most = flow->window;
	flow->cubic_start = 0;
	flow->threshold = flow->spec->kind == KIND_CUBIC ? flow->window * 0.7 : flow->window / 2;
	if (flow->threshold < 2)
		flow->threshold = 2;
}

/* Proportional rate reduction. */
static void congestion_reduce(struct flow *flow, uint32_t acked)
{
	int64_t more;

	flow->reduction_delivered += acked;
	if (flow->out > flow->threshold)
		more = ((int64_t)flow->reduction_delivered * flow->threshold + flow->reduction_from - 1) /
			       flow->reduction_from -
		       flow->reduction_sent;
	else
		more = flow->threshold - flow->out < acked ? flow->threshold - flow->out : acked;
	flow->window = flow->out + (more > 0 ? more : 0);
	if (!flow->window)
		flow->window = 1;
	if (flow->acked >= flow->reduction_end) {
		flow->reducing = false;
		flow->window = flow->threshold;
	}
}

static bool congestion_limited(const struct flow *flow)
{
	return flow->window_limited || (flow->window < flow->threshold && flow->window < 2 * flow->most_out);
}

static void congestion_clamp(struct flow *flow)
{
	if (flow->window > flow->clamp)
		flow->window = flow->clamp;
}

/* A clamp cuts a window only as it would grow: one that is larger already, and not filled, stays. */
static void congestion_grow(struct simulation *sim, struct flow *flow, uint32_t acked)
{
	if (!congestion_limited(flow))
		return;
	if (flow->window < flow->threshold) {
		flow->window += acked;
		if (flow->window > flow->threshold)
			flow->window = flow->threshold;
		congestion_clamp(flow);
		return;
	}
	if (flow->spec->kind == KIND_RENO) {
		flow->growth += (double)acked / flow->window;
	} else {
		double most = flow->cubic_most > flow->window ? flow->cubic_most : flow->window;
		double seconds, target;

		if (!flow->cubic_start) {
			flow->cubic_start = sim->now;
			flow->cubic_most = most;
		}
		seconds = (sim->now - flow->cubic_start + flow->least_round_trip) / 1e9;
		target = seconds - cbrt(flow->cubic_most * 0.3 / 0.4);
		target = flow->cubic_most + 0.4 * target * target * target;
		flow->growth += target > flow->window ? (target - flow->window) / flow->window * acked
						      : acked / (100.0 * flow->window);
	}
	if (flow->growth >= 1) {
		uint32_t whole = flow->growth < acked ? flow->growth : acked;

		flow->window += whole;
		flow->growth = 0;
	}
	congestion_clamp(flow);
}

static double bbr_target(const struct flow *flow, double gain)
{
	return gain * flow->bbr.bandwidth * flow->least_round_trip / 1e9 / flow->spec->mss;
}

static double bbr_pacing_gain(const struct flow *flow)
{
	switch (flow->bbr.mode) {
	case BBR_STARTUP:
		return BBR_HIGH_GAIN;
	case BBR_DRAIN:
		return 1 / BBR_HIGH_GAIN;
	case BBR_PROBE_BANDWIDTH:
		return flow->bbr.phase == 0 ? 1.25 : flow->bbr.phase == 1 ? 0.75 : 1;
	default:
		return 1;
	}
}

static void bbr_start(struct simulation *sim, struct flow *flow)
{
	flow->bbr.round_trip_stamp = sim->now;
	flow->pacing_rate = BBR_HIGH_GAIN * flow->window * flow->spec->mss * 1e9 / flow->spec->round_trip;
}

/* Samples that the application or a probe of the round trip kept low say nothing, and make none older. */
static void bbr_sample(struct flow *flow, uint64_t bandwidth, bool app_limited, bool round)
{
	struct bbr *bbr = &flow->bbr;
	uint32_t slot;

	bbr->rounds += round;
	slot = bbr->rounds % BBR_ROUNDS;
	if (!app_limited || bandwidth >= bbr->bandwidth) {
		if (bbr->seen[slot].round != bbr->rounds || bandwidth > bbr->seen[slot].most) {
			bbr->seen[slot].round = bbr->rounds;
			bbr->seen[slot].most = bandwidth;
		}
		bbr->bandwidth = 0;
		for (int i = 0; i < BBR_ROUNDS; i++)
			if (bbr->seen[i].round + BBR_ROUNDS > bbr->rounds && bbr->seen[i].most > bbr->bandwidth)
				bbr->bandwidth = bbr->seen[i].most;
	}
	if (bbr->mode != BBR_STARTUP || !round || app_limited)
		return;
	if (bbr->bandwidth >= bbr->full_bandwidth * 1.25) {
		bbr->full_bandwidth = bbr->bandwidth;
		bbr->full_count = 0;
	} else if (++bbr->full_count >= 3) {
		bbr->mode = BBR_DRAIN;
	}
}

static void bbr_next_phase(struct simulation *sim, struct flow *flow)
{
	struct bbr *bbr = &flow->bbr;

	if (bbr->mode == BBR_DRAIN && flow->out <= bbr_target(flow, 1)) {
		bbr->mode = BBR_PROBE_BANDWIDTH;
		/* Any but the slow one. */
		bbr->phase = random_to(&sim->random, 6) + 1;
		bbr->phase = bbr->phase == 1 ? 0 : bbr->phase;
		bbr->phase_start = sim->now;
	} else if (bbr->mode == BBR_PROBE_BANDWIDTH) {
		bool full = sim->now - bbr->phase_start > flow->least_round_trip;

		if ((bbr->phase > 1 && full) || (bbr->phase == 0 && full && flow->out >= bbr_target(flow, 1.25)) ||
		    (bbr->phase == 1 && (full || flow->out <= bbr_target(flow, 1)))) {
			bbr->phase = (bbr->phase + 1) % 8;
			bbr->phase_start = sim->now;
		}
	}
	if (bbr->mode != BBR_PROBE_ROUND_TRIP && sim->now - bbr->round_trip_stamp > sim->scenario->probe_every) {
		bbr->mode = BBR_PROBE_ROUND_TRIP;
		bbr->window_before = flow->window;
		bbr->probe_end = sim->now + BBR_PROBE_LASTS + flow->least_round_trip;
	} else if (bbr->mode == BBR_PROBE_ROUND_TRIP && sim->now > bbr->probe_end) {
		bbr->round_trip_stamp = sim->now;
		bbr->mode = bbr->full_count >= 3 ? BBR_PROBE_BANDWIDTH : BBR_STARTUP;
		bbr->phase_start = sim->now;
		if (flow->window < bbr->window_before)
			flow->window = bbr->window_before;
	}
	if (bbr->mode == BBR_PROBE_ROUND_TRIP)
		flow->app_limited_until = flow->delivered + flow->sent - flow->acked;
}

static void bbr_acked(struct simulation *sim, struct flow *flow, const struct in_flight *packet)
{
	uint64_t sending = packet->sent_at - packet->first_sent_at, acking = sim->now - packet->delivered_at;
	uint64_t interval = sending > acking ? sending : acking;
	bool round = packet->delivered >= flow->bbr.round_end;
	double target, rate;

	if (round)
		flow->bbr.round_end = flow->delivered;
	if (interval >= flow->least_round_trip)
		bbr_sample(flow, (flow->delivered - packet->delivered) * 1e9 / interval, packet->app_limited, round);
	bbr_next_phase(sim, flow);
	rate = bbr_pacing_gain(flow) * flow->bbr.bandwidth * BBR_MARGIN;
	if (rate >= 1 && (flow->bbr.mode != BBR_STARTUP || rate > flow->pacing_rate))
		flow->pacing_rate = rate;
	target = bbr_target(flow, flow->bbr.mode == BBR_PROBE_BANDWIDTH ? 2 : BBR_HIGH_GAIN);
	/* Room for three packets, as large as TCP makes them. */
	target += 3.0 * (flow->pacing_rate / 1024 < GSO_LARGEST ? flow->pacing_rate / 1024 : GSO_LARGEST) /
			  flow->spec->mss +
		  6;
	if (flow->bbr.mode == BBR_PROBE_ROUND_TRIP)
		target = BBR_LEAST_WINDOW;
	if (flow->bbr.full_count >= 3)
		flow->window = flow->window + packet->segments < target ? flow->window + packet->segments : target;
	else if (flow->window < target || flow->delivered < (uint64_t)WINDOW_INITIAL * flow->spec->mss)
		flow->window += packet->segments;
	if (flow->window < BBR_LEAST_WINDOW)
		flow->window = BBR_LEAST_WINDOW;
	congestion_clamp(flow);
}

/* A packet was acknowledged: window and pacing rate. */
static void congestion_acked(struct simulation *sim, struct flow *flow, const struct in_flight *packet)
{
	if (flow->spec->kind == KIND_BBR) {
		bbr_acked(sim, flow, packet);
	} else {
		uint32_t most;

		if (flow->reducing)
			congestion_reduce(flow, packet->segments);
		else
			congestion_grow(sim, flow, packet->segments);
		most = flow->window > flow->out ? flow->window : flow->out;
		flow->pacing_rate = (flow->window < flow->threshold / 2 ? 2.0 : 1.2) * most * flow->spec->mss * 1e9 /
				    flow->smoothed_round_trip;
	}
	if (flow->pacing.set && flow->pacing_rate > flow->pacing.set)
		flow->pacing_rate = flow->pacing.set;
}
#endif
