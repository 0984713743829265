/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How TCP sends: a model of Linux's tcp_output.c with its internal pacing, and of the callback of each round trip. */
#ifndef SIMULATION_TCP_H
#define SIMULATION_TCP_H

#include "congestion.h"

#define RTO_LEAST (200 * MILLISECONDS)
/* TCP_RESOURCE_PROBE_INTERVAL: between tries that are refused locally. */
#define RESOURCE_PROBE (500 * MILLISECONDS)
#define DELAYED_ACK (40 * MILLISECONDS)
#define QUICK_ACKS 16
#define QUEUED_MOST 3
#define WAKE_UP (20 * MICROSECONDS)

/* A slow socket's window, or its packets would last for seconds. Setting it sets the threshold, too. */
static void tcp_clamp(struct flow *flow)
{
	uint32_t clamp = connection_window(&flow->pacing, flow->spec->mss, flow->smoothed_round_trip / MICROSECONDS);

	if (!clamp)
		clamp = INT32_MAX;
	if (clamp > flow->clamp || clamp < flow->clamp - flow->clamp / 4 || flow->window > flow->clamp)
		flow->clamp = flow->threshold = clamp;
}

static void tcp_take_share(struct flow *flow)
{
	struct rate_limit_pacing *pacing = &flow->pacing;
	uint64_t set;

	if (flow->spec->unpaced || flow->spec->foreign || !pacing->share)
		return;
	set = connection_payload(pacing, flow->spec->mss, flow->spec->headers);
	if (set > pacing->own)
		set = pacing->own;
	pacing->set = set < PACING_MOST ? set : LIMITER_UNPACED;
	tcp_clamp(flow);
	if (flow->pacing_rate > pacing->set)
		flow->pacing_rate = pacing->set;
}

static uint64_t tcp_unsent(const struct flow *flow)
{
	return flow_greedy(flow) ? flow->open ? 1ULL << 40 : 0 : flow->written - flow->sent;
}

/* Segments of a packet: about a millisecond, two at least. */
static uint64_t tcp_burst(const struct simulation *sim, const struct flow *flow)
{
	uint64_t bytes = flow->pacing_rate >> 10, nearness = flow->least_round_trip / MICROSECONDS >> 9;
	uint32_t least = 2;

	if (sim->scenario->large_bursts && nearness < 32)
		bytes += GSO_LARGEST >> nearness;
	if (bytes > GSO_LARGEST - 1 - 320)
		bytes = GSO_LARGEST - 1 - 320;
	if (flow->spec->kind == KIND_BBR && flow->pacing_rate < 1200000 / 8)
		least = 1;
	return bytes / flow->spec->mss > least ? bytes / flow->spec->mss : least;
}

/*
 * When the packet's acknowledgement arrives. A segment alone waits for the next packet, for 40 ms at most; but the first
 * ones of a connection are acknowledged at once.
 */
static uint64_t tcp_ack_time(struct simulation *sim, struct flow *flow, uint32_t segments)
{
	uint64_t at = flow->last_departure + flow->spec->round_trip + random_to(&sim->random, 20 * MICROSECONDS);

	if (flow->ring_count) {
		struct in_flight *last = &flow->ring[(flow->ring_first + flow->ring_count - 1) % flow->ring_size];

		if (flow->odd_segment && last->acked_at > at) {
			last->acked_at = at;
			if (flow->ring_count == 1)
				flow_arm(sim, flow, TIMER_ACK, at);
		}
		if (last->acked_at > at)
			at = last->acked_at;
	}
	if (flow->quick_acks < QUICK_ACKS) {
		flow->quick_acks++;
		return at;
	}
	flow->odd_segment = segments == 1 && !flow->odd_segment;
	return flow->odd_segment ? at + DELAYED_ACK : at;
}

static void tcp_sent(struct simulation *sim, struct flow *flow, const struct packet *packet, uint64_t bytes)
{
	uint64_t acked_at = tcp_ack_time(sim, flow, packet->segments), late = 0;
	struct in_flight *entry;

	if (!flow->out)
		flow->first_sent_at = flow->delivered_at = sim->now;
	flow->sent += bytes;
	entry = flow_push(sim, flow);
	if (!entry)
		return;
	*entry = (struct in_flight){ acked_at, flow->sent,          packet->segments, flow->app_limited_until > 0,
				     sim->now, flow->first_sent_at, flow->delivered,  flow->delivered_at };
	if (!flow_armed(sim, flow, TIMER_ACK))
		flow_arm(sim, flow, TIMER_ACK, acked_at);
	flow->out += packet->segments;
	flow->reduction_sent += packet->segments;
	flow->segments_out += packet->segments;
	/* The next departure: a timer that fired late is made up for, by half a packet at most. */
	if (sim->now > flow->next_departure) {
		late = sim->now - flow->next_departure;
		flow->next_departure = sim->now;
	}
	if (flow->pacing_rate != UNLIMITED && flow->segments_offered >= CONNECTION_UNPACED_SEGMENTS &&
	    !flow->spec->unpaced) {
		uint64_t lasts = bytes * NANOSECONDS / flow->pacing_rate;

		flow->next_departure += lasts - (late < lasts / 2 ? late : lasts / 2);
	}
	flow->last_sent = sim->now;
	flow_disarm(sim, flow, TIMER_RETRY);
}

/* A window that was not filled for longer than a retransmission would take shrinks towards what was used of it. */
static void tcp_shrink_unused(struct simulation *sim, struct flow *flow)
{
	uint32_t used;

	if (congestion_limited(flow)) {
		flow->used_most = 0;
		flow->used_since = sim->now;
		return;
	}
	if (flow->out > flow->used_most)
		flow->used_most = flow->out;
	if (flow->reducing || flow_greedy(flow) || flow->spec->kind == KIND_BBR ||
	    sim->now - flow->used_since < RTO_LEAST + flow->smoothed_round_trip)
		return;
	used = flow->used_most > WINDOW_INITIAL ? flow->used_most : WINDOW_INITIAL;
	if (used < flow->window) {
		if (flow->threshold < flow->window * 3 / 4)
			flow->threshold = flow->window * 3 / 4;
		flow->window = (flow->window + used) / 2;
	}
	flow->used_most = 0;
	flow->used_since = sim->now;
}

static void tcp_note_window(struct simulation *sim, struct flow *flow)
{
	bool limited = flow->out >= flow->window;

	if (flow->acked >= flow->usage_end || limited || (!flow->window_limited && flow->out > flow->most_out)) {
		flow->window_limited = limited;
		flow->most_out = flow->out;
		flow->usage_end = flow->sent;
	}
	tcp_shrink_unused(sim, flow);
}

/*
 * A packet meets the rules. Local congestion makes TCP slow down; with something in flight the next acknowledgement tries
 * again, else a timer does, which nothing that is refused meanwhile sets anew.
 */
static bool tcp_transmit(struct simulation *sim, struct flow *flow, struct packet *packet, bool more)
{
	struct rate_limit_pacing *pacing = flow->spec->foreign ? NULL : &flow->pacing;
	enum verdict verdict;

	packet->tcp = pacing && packet->tcp;
	packet->round_trip_ns = flow->smoothed_round_trip;
	packet->starved = sim->now - flow->last_sent > FAIR_SHARE_EPOCH_LONGEST;
	verdict = walk_rules(sim, flow, pacing, packet, &flow->last_departure);
	if (verdict != VERDICT_PASS)
		congestion_enter_reduction(flow);
	if (verdict == VERDICT_DROP) {
		if (!flow->out && !flow_armed(sim, flow, TIMER_RETRY))
			flow_arm(sim, flow, TIMER_RETRY, sim->now + flow->smoothed_round_trip + RTO_LEAST);
		return false;
	}
	flow_progress(sim, flow, more);
	return true;
}

/* A packet without data. It is not paced, nor acknowledged here. */
static bool tcp_send_control(struct simulation *sim, struct flow *flow)
{
	struct packet packet = { .bytes = flow->spec->headers, .segments = 1, .tcp = true, .control = true };

	packet.paced = flow->pacing.set && flow->pacing.set != LIMITER_UNPACED;
	return tcp_transmit(sim, flow, &packet, tcp_unsent(flow));
}

/* One packet, if TCP may send one. A probe is not paced, and a segment at most. */
static bool tcp_send_packet(struct simulation *sim, struct flow *flow, bool probe)
{
	uint64_t unsent = tcp_unsent(flow), room = flow->spec->window - (flow->sent - flow->acked), bytes, segments;
	uint32_t mss = flow->spec->mss, quota;
	struct packet packet = { .tcp = true };
	struct connection seen;

	/* A socket has few packets in a queue (TSQ). */
	if (flow->waiting_count >= QUEUED_MOST)
		return false;
	if (!unsent || flow->out >= flow->window || room < (unsent < mss ? unsent : mss))
		return false;
	if (flow->next_departure > sim->now && !probe) {
		flow->waited_for = flow->next_departure;
		if (!flow_armed(sim, flow, TIMER_PACING))
			flow_arm(sim, flow, TIMER_PACING,
				 flow->next_departure + random_to(&sim->random, sim->scenario->timer_delay));
		return false;
	}
	quota = flow->window - flow->out;
	if (quota > (flow->window > 1 ? flow->window / 2 : 1))
		quota = flow->window > 1 ? flow->window / 2 : 1;
	segments = tcp_burst(sim, flow);
	if (segments > quota)
		segments = quota;
	bytes = segments * mss;
	if (!flow->chunk_left)
		flow->chunk_left = flow_greedy(flow) ? (GSO_LARGEST - 1 - 320) / mss * mss : unsent;
	if (!flow->chunk_left)
		flow->chunk_left = mss;
	bytes = bytes < flow->chunk_left ? bytes : flow->chunk_left;
	bytes = bytes < unsent ? bytes : unsent;
	if (bytes > room)
		bytes = room < mss ? room : room / mss * mss;
	if (probe && bytes > mss)
		bytes = mss;
	packet.segments = (bytes + mss - 1) / mss;
	packet.bytes = bytes + packet.segments * flow->spec->headers;
	flow->segments_offered += packet.segments;
	seen = (struct connection){
		.now_ns = sim->now,
		.timer_ns = flow->waited_for,
		.pacing_rate = flow->pacing_rate,
		.most_rate = flow->pacing.set,
		.unsent = (unsent > 1 << 30 ? 1 << 30 : unsent) - packet.bytes,
		.room = (room > 1 << 30 ? 1 << 30 : room) - packet.bytes,
		.sent = flow->segments_offered,
		.out = flow->out,
		.window = flow->window,
		.mss = mss,
		.headers = flow->spec->headers,
		.acked = flow->acked > 0,
	};
	connection_look(&seen, &flow->pacing, &packet);
	if (!tcp_transmit(sim, flow, &packet, unsent > bytes))
		return false;
	flow->chunk_left -= bytes;
	if (unsent <= bytes)
		flow->app_limited_until = flow->delivered + flow->sent - flow->acked + bytes;
	tcp_sent(sim, flow, &packet, bytes);
	tcp_note_window(sim, flow);
	return true;
}

static void tcp_send(struct simulation *sim, struct flow *flow)
{
	while (tcp_send_packet(sim, flow, false))
		;
}

/* Nothing that was sent is on the way, and what was to be sent was refused. */
static void tcp_probe(struct simulation *sim, struct flow *flow)
{
	if (!flow->out && tcp_unsent(flow) && !tcp_send_packet(sim, flow, true))
		flow_arm(sim, flow, TIMER_RETRY, sim->now + RESOURCE_PROBE);
}

/* The SYN's round trip is over, and the program's callback ran. */
static void tcp_start(struct simulation *sim, struct flow *flow)
{
	const struct flow_spec *spec = flow->spec;

	flow->open = true;
	flow->pacing.own = spec->own_pacing ? spec->own_pacing : LIMITER_UNPACED;
	flow->window = WINDOW_INITIAL;
	flow->threshold = flow->clamp = INT32_MAX;
	flow->smoothed_round_trip = flow->least_round_trip = spec->round_trip;
	flow->pacing_rate = 2.0 * flow->window * spec->mss * 1e9 / spec->round_trip;
	flow->delivered_at = flow->last_sent = flow->used_since = sim->now;
	if (!spec->unpaced && !spec->foreign) {
		if (walk_join(sim, spec, &flow->pacing) &&
		    connection_begins_slowly(&flow->pacing, spec->mss + spec->headers, spec->waits))
			flow->window = CONNECTION_SLOW_INITIAL_WINDOW;
		tcp_take_share(flow);
	}
	if (spec->kind == KIND_BBR)
		bbr_start(sim, flow);
	if (flow->pacing.set && flow->pacing_rate > flow->pacing.set)
		flow->pacing_rate = flow->pacing.set;
}

static void tcp_measure_round_trip(struct flow *flow, uint64_t measured)
{
	flow->smoothed_round_trip += ((int64_t)measured - (int64_t)flow->smoothed_round_trip) / 8;
	if (measured < flow->least_round_trip)
		flow->least_round_trip = measured;
	if (flow->acked > flow->round_end) {
		flow->round_end = flow->sent;
		tcp_take_share(flow);
	}
}

/* There is room for more. */
static void tcp_wake_writer(struct simulation *sim, struct flow *flow)
{
	if (flow->spec->low_water && !flow_armed(sim, flow, TIMER_WRITE))
		flow_arm(sim, flow, TIMER_WRITE, sim->now + random_to(&sim->random, 2 * WAKE_UP));
}

static void tcp_acked(struct simulation *sim, struct flow *flow)
{
	struct in_flight packet = flow->ring[flow->ring_first];

	flow->ring_first = (flow->ring_first + 1) % flow->ring_size;
	if (--flow->ring_count)
		flow_arm(sim, flow, TIMER_ACK, flow->ring[flow->ring_first].acked_at);
	flow->out -= packet.segments;
	flow->delivered += packet.end - flow->acked;
	flow->delivered_at = sim->now;
	flow->first_sent_at = packet.sent_at;
	flow->acked = packet.end;
	if (flow->app_limited_until && flow->delivered > flow->app_limited_until)
		flow->app_limited_until = 0;
	tcp_measure_round_trip(flow, sim->now - packet.sent_at);
	congestion_acked(sim, flow, &packet);
	tcp_wake_writer(sim, flow);
	tcp_send(sim, flow);
}

/* One of its packets left fq: there is room for another one. */
static void tcp_departed(struct simulation *sim, struct flow *flow)
{
	if (flow->open && flow->spec->kind < KIND_UDP)
		tcp_send(sim, flow);
}

/* After a pause the window is that of a new connection. */
static void tcp_written(struct simulation *sim, struct flow *flow, uint64_t bytes)
{
	if (!flow->out && sim->now - flow->last_sent > RTO_LEAST + flow->smoothed_round_trip &&
	    flow->window > WINDOW_INITIAL && flow->spec->kind != KIND_BBR)
		flow->window = WINDOW_INITIAL;
	flow->written += bytes;
	flow_want(sim, flow);
	tcp_send(sim, flow);
}
#endif
