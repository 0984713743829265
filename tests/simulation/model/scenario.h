/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the tests hand in and get back; tests/simulation/simulator.py says the same in Python. Times are nanoseconds. */
#ifndef SIMULATION_SCENARIO_H
#define SIMULATION_SCENARIO_H

#include <stdint.h>

enum kind {
	KIND_RENO,
	KIND_CUBIC,
	KIND_BBR,
	KIND_UDP,
	KIND_ACKS, /* a TCP connection that only receives: it sends acknowledgements */
};

struct flow_spec {
	uint64_t start, stop;
	uint64_t round_trip;
	uint64_t rate;       /* of the application, bytes of data per second; 0: as fast as it can */
	uint64_t chunk;      /* bytes that the application writes at a time */
	uint64_t window;     /* of the peer, bytes */
	uint64_t own_pacing; /* bytes per second, the program's own; 0: none */
	uint32_t kind;
	uint32_t mss, headers; /* of a segment, bytes */
	uint32_t unpaced;      /* its pacing cannot be set */
};

/* The limit from a time on. */
struct change {
	uint64_t at, rate, bucket;
};

struct scenario {
	uint64_t seed;
	uint64_t duration;
	uint64_t clock_skew;  /* a packet's clock was read up to this long before it is charged */
	uint64_t timer_delay; /* timers fire up to this late */
	uint64_t garbage_at;  /* fills the controller's state with random bytes; 0: never */
	uint32_t garbage_kind;
	uint32_t large_bursts; /* packets grow with nearness, as since Linux 5.18 */
	uint32_t flows, changes, bins;
	const struct flow_spec *flow;
	const struct change *change; /* at least one, the first at 0 */
	const uint64_t *bin;         /* ends of the spans of time that are counted apart */
};

struct bin_result {
	uint64_t bytes, drops, notices; /* drops: packets of TCP */
};

/* Of a flow in a bin. */
struct flow_result {
	uint64_t bytes;
	uint32_t packets, held; /* that passed; of them, those of a connection that pacing alone held back */
};

struct result {
	int64_t worst_excess; /* bytes that passed in some interval, above rate * time + bucket */
	uint64_t events;
	uint64_t share;           /* at the end */
	struct bin_result *bin;   /* [bins] */
	struct flow_result *flow; /* [bins][flows] */
};

int simulate(const struct scenario *scenario, struct result *result);
#endif
