/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A connection, or a source of datagrams, as far as its sending depends on it. Bytes are of data, without headers. */
#ifndef SIMULATION_FLOW_H
#define SIMULATION_FLOW_H

#include "limiter.h"
#include "timers.h"

/* The clock does not begin at 0, which stands for "never" here and there. */
#define EPOCH (1000 * NANOSECONDS)
#define UNLIMITED UINT64_MAX
#define MICROSECONDS 1000ULL
#define WINDOW_INITIAL 10
#define GSO_LARGEST 65536

/* Each flow has one of each. */
enum timer {
	TIMER_START,
	TIMER_STOP,
	TIMER_PACING,
	TIMER_ACK,    /* the next acknowledgement arrives */
	TIMER_WRITE,  /* the application writes */
	TIMER_RETRY,  /* nothing is in flight that could be acknowledged */
	TIMER_NEXT,   /* the next step of a connection that is made, asked and closed (life.h) */
	TIMER_BEGIN,  /* of a group's first: its next connection begins */
	TIMER_DEPART, /* the next packet that waits in fq departs */
	TIMERS,
};

struct in_flight {
	uint64_t acked_at;
	uint64_t end; /* of its data in the connection */
	uint32_t segments;
	bool app_limited;
	/* What bbr measures the delivery rate with. */
	uint64_t sent_at, first_sent_at, delivered, delivered_at;
};

/* In fq, in the order of their times. */
struct waiting {
	uint64_t at;
	struct packet packet;
};

#define WAITING_MOST 512

enum bbr_mode { BBR_STARTUP, BBR_DRAIN, BBR_PROBE_BANDWIDTH, BBR_PROBE_ROUND_TRIP };

#define BBR_ROUNDS 10

struct bbr {
	enum bbr_mode mode;
	uint64_t rounds, round_end; /* in bytes delivered */
	uint64_t bandwidth;         /* most in the last rounds that tell, bytes per second */
	struct {
		uint64_t round, most;
	} seen[BBR_ROUNDS];
	uint64_t full_bandwidth;
	uint32_t full_count, phase, window_before;
	uint64_t phase_start, probe_end, round_trip_stamp;
};

enum phase {
	PHASE_NONE,    /* the slot is free */
	PHASE_OPENING, /* its SYN, or SYN-ACK, was not sent yet */
	PHASE_OPENED,  /* ... is on its way */
	PHASE_ASKED,   /* a request is being answered */
	PHASE_CLOSED,  /* as seen from here */
};

/* The connections of one flow_spec. */
struct group {
	uint32_t first, slots, number;
	uint64_t requests;
	bool stopped;
	struct rate_limit_pacing listener;
};

struct flow {
	const struct flow_spec *spec;
	struct group *group;
	uint32_t number;
	bool open;
	enum phase phase;
	uint64_t asked_at, retry_after; /* of a SYN, or SYN-ACK */
	uint64_t wanting_since;         /* has something to send, and sent nothing, since; 0: nothing to send */
	/* As in the program: socket storage. */
	struct rate_limit_pacing pacing;
	uint32_t clamp; /* of the window, segments; INT32_MAX: none */

	uint64_t pacing_rate, next_departure, last_sent, last_departure;
	uint64_t written, sent, acked, chunk_left; /* chunk_left: of the buffer that the next packet is cut from */
	uint64_t segments_out, segments_offered;   /* ever; those that were refused count among the second */
	uint64_t usage_end, round_end, reduction_end;
	uint64_t smoothed_round_trip, least_round_trip;
	uint32_t window, threshold, out, most_out; /* segments */
	uint32_t reduction_from, reduction_delivered, reduction_sent;
	bool reducing, window_limited, odd_segment;
	uint64_t used_since; /* used_most: of the window, since then */
	uint32_t used_most, quick_acks;
	uint64_t waited_for; /* the pacing timer's last time */
	double growth, cubic_most;
	uint64_t cubic_start;

	uint64_t delivered, delivered_at, first_sent_at, app_limited_until;
	struct bbr bbr;

	struct in_flight *ring;
	uint32_t ring_size, ring_first, ring_count;
	struct waiting *waiting; /* the next one last */
	uint32_t waiting_count, waiting_places;
};

struct simulation {
	const struct scenario *scenario;
	struct result *result;
	struct limiter limiter[RULES_MOST];
	struct timers timers;
	struct random random;
	struct group *group;
	struct flow *flow;
	uint32_t slots;
	uint32_t waiting; /* packets in fq */
	uint64_t now;
	uint32_t bin;
	int failed; /* out of memory */
};

static void flow_arm(struct simulation *sim, const struct flow *flow, enum timer timer, uint64_t at)
{
	timers_arm(&sim->timers, flow->number * TIMERS + timer, at);
}

static void flow_disarm(struct simulation *sim, const struct flow *flow, enum timer timer)
{
	timers_stop(&sim->timers, flow->number * TIMERS + timer);
}

static bool flow_armed(const struct simulation *sim, const struct flow *flow, enum timer timer)
{
	return sim->timers.position[flow->number * TIMERS + timer] != TIMER_IDLE;
}

static bool flow_greedy(const struct flow *flow)
{
	return flow->spec->use == USE_STREAM && !flow->spec->rate && !flow->spec->low_water;
}

/* Of a rule, in this span of time. */
static struct bin_result *flow_bin(struct simulation *sim, uint32_t rule)
{
	return &sim->result->bin[sim->bin * sim->scenario->rules + rule];
}

static struct flow_result *flow_result(struct simulation *sim, const struct flow *flow)
{
	return &sim->result->flow[(uint64_t)sim->bin * sim->scenario->flows + flow->group->number];
}

static void flow_want(struct simulation *sim, struct flow *flow)
{
	if (!flow->wanting_since)
		flow->wanting_since = sim->now;
}

/* It sends, or the scenario ends. `more`: it goes on to want. */
static void flow_progress(struct simulation *sim, struct flow *flow, bool more)
{
	struct flow_result *result = flow_result(sim, flow);

	if (flow->wanting_since && sim->now - flow->wanting_since > result->silence)
		result->silence = sim->now - flow->wanting_since;
	flow->wanting_since = more ? sim->now : 0;
}

static void flow_count(struct simulation *sim, struct flow *flow, const struct packet *packet)
{
	struct flow_result *result = flow_result(sim, flow);

	result->bytes += packet->bytes;
	result->packets++;
	result->held += packet->held;
}

static struct in_flight *flow_push(struct simulation *sim, struct flow *flow)
{
	if (flow->ring_count == flow->ring_size) {
		uint32_t size = flow->ring_size ? flow->ring_size * 2 : 16;
		struct in_flight *ring = malloc(size * sizeof(*ring));

		if (!ring) {
			sim->failed = 1;
			return NULL;
		}
		for (uint32_t i = 0; i < flow->ring_count; i++)
			ring[i] = flow->ring[(flow->ring_first + i) % flow->ring_size];
		free(flow->ring);
		flow->ring = ring;
		flow->ring_size = size;
		flow->ring_first = 0;
	}
	return &flow->ring[(flow->ring_first + flow->ring_count++) % flow->ring_size];
}
#endif
