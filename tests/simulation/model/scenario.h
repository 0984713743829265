/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the tests hand in and get back; tests/simulation/simulator.py says the same in Python. Times are nanoseconds. */
#ifndef SIMULATION_SCENARIO_H
#define SIMULATION_SCENARIO_H

#include <stdint.h>

#define RULES_MOST 4 /* LIMITER_MAX_NESTED */

enum kind {
	KIND_RENO,
	KIND_CUBIC,
	KIND_BBR,
	KIND_UDP,
	KIND_ACKS, /* a TCP connection that only receives: it sends acknowledgements */
};

/* Of TCP: what its connections are used for. */
enum use {
	USE_STREAM, /* one connection, established already, sends at a rate or as fast as it can */
	USE_OPEN,   /* connections begin at some interval, whatever becomes of the others; each gives one answer */
	USE_KEPT,   /* each slot is a connection that is asked again when it has answered */
	USE_NEW,    /* the same with a new connection for each request */
};

struct flow_spec {
	uint64_t start, stop;
	uint64_t round_trip;
	uint64_t rate;       /* of the application, bytes of data per second; 0: as fast as it can */
	uint64_t chunk;      /* bytes that the application writes at a time */
	uint64_t window;     /* of the peer, bytes */
	uint64_t own_pacing; /* bytes per second, the program's own; 0: none */
	uint64_t low_water; /* an application that writes more only when less than this is unsent; 0: whenever it can */
	uint64_t every;     /* USE_OPEN: between beginnings, on average */
	uint64_t answer;    /* bytes that each request is answered with; 0: the connection is only made and closed */
	uint64_t answer_most; /* 0: `answer`; else it is evenly between both */
	uint64_t pause;       /* between an answer and the next request */
	uint64_t requests;    /* in all; 0: no end */
	uint32_t kind, use;
	uint32_t mss, headers; /* of a segment, bytes; of datagrams, where `gso` */
	uint32_t slots;        /* connections at a time, at most */
	uint32_t passive;      /* the limited side is the one that is connected to */
	uint32_t regular;      /* USE_OPEN: not a Poisson process */
	uint32_t unpaced;      /* its pacing cannot be set */
	uint32_t foreign;      /* TCP without socket storage */
	uint32_t gso;          /* datagrams are cut into segments behind the rule */
	uint32_t rules;        /* that hold for it, the innermost first */
	uint32_t rule[RULES_MOST];
	uint32_t clump; /* datagrams at a time */
	uint32_t waits; /* its device has fq */
};

/* A rule's limit from a time on. */
struct change {
	uint64_t at, rate, bucket, rule;
};

struct scenario {
	uint64_t seed;
	uint64_t duration;
	uint64_t clock_skew;        /* a packet's clock was read up to this long before it is charged */
	uint64_t timer_delay;       /* timers fire up to this late */
	uint64_t probe_every;       /* bbr measures the round trip anew, which takes it 200 ms */
	uint64_t garbage_at;        /* fills the first rule's controller with random bytes; 0: never */
	uint64_t horizon;           /* of fq: what departs later is dropped */
	uint32_t limit, flow_limit; /* packets that fq holds, and those of one socket */
	uint32_t garbage_kind;
	uint32_t large_bursts; /* packets grow with nearness, as since Linux 5.18 */
	uint32_t flows, changes, bins, rules;
	const struct flow_spec *flow;
	const struct change *change; /* the first ones at 0, one for each rule */
	const uint64_t *bin;         /* ends of the spans of time that are counted apart */
};

/* Of a rule in a bin. */
struct bin_result {
	uint64_t bytes, drops, notices; /* drops: packets of TCP */
};

/* Of a flow's connections in a bin. */
struct flow_result {
	uint64_t bytes;
	uint64_t silence;       /* longest time in which a connection that had something to send could not send it */
	uint32_t packets, held; /* that passed; of them, those of a connection that pacing alone held back */
	uint32_t drops;         /* packets that some rule dropped */
	uint32_t lost;          /* packets that fq dropped */
	uint64_t wait;          /* longest in fq */
};

/* A request, from when it was made to when its answer had arrived; or to the end. */
struct request_result {
	uint64_t at, took;
	uint32_t flow, answered;
};

struct result {
	int64_t worst_excess[RULES_MOST]; /* bytes that passed in some interval, above rate * time + bucket */
	uint64_t events;
	uint64_t requests, requests_most;
	struct bin_result *bin;         /* [bins][rules] */
	struct flow_result *flow;       /* [bins][flows] */
	struct request_result *request; /* [requests_most] */
};

int simulate(const struct scenario *scenario, struct result *result);
#endif
