/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a trace and user space tell each other. core/tracing.py describes the same structs in Python, and a test compares
 * every offset. Both come from one version, so this is no part of the schema.
 */
#ifndef LIMITER_TRACED_H
#define LIMITER_TRACED_H

#include "layout.h"

/* What was decided: a reason for a drop or a notice (enum limiter_reason), or one of these. core/tracing.py has words. */
enum traced_outcome {
	TRACED_PASSED = LIMITER_REASONS,
	TRACED_EXEMPT,    /* no rule holds for the packet */
	TRACED_ENCRYPTED, /* it was charged before it was encrypted */
};

/* Functions of the kernel in which a packet ends that a program of the egress hook has refused. */
#define TRACED_PLACES 3

/* Cgroups that can be asked for at a time. */
#define TRACED_CGROUPS 65536

/* Which packets are told of; set before the program is loaded. */
struct traced_filter {
	__u64 duration_ns; /* since the program's first packet; after that nothing is told */
	__u64 rule;        /* only packets that this rule holds for; 0: any */
	__u64 address[2];  /* only from or to it: bytes as in the packet, an IPv4 address in the first four */
	__u64 mask[2];     /* bits of the address that count */
	__u64 refused[2 * TRACED_PLACES]; /* where each of these functions begins and ends */
	__u32 version;                    /* of the address: 4 or 6; 0: any address */
	__u32 port;                       /* only from or to it; 0: any */
	__u32 outcomes;                   /* a bit for each outcome that is wanted */
	__u32 cgroups;                    /* 1: only sockets of the cgroups in trace_cgroup_map, and below them */
	__u32 sockets;                    /* 1: only sockets in trace_socket_map */
	__u32 process;                    /* whose new sockets come into trace_socket_map; 0: nobody's */
};

/* One rule's part in a decision. */
struct traced_rule {
	__u64 cgroup;  /* that has a budget of it; 0: it was the rule's own state that was charged */
	__u64 rule;    /* 0: none */
	__s64 tokens;  /* when all had decided */
	__u64 share;   /* of one connection; 0: not known */
	__u32 verdict; /* 0: the rule limits nothing, or was not asked */
	__u32 reason;  /* of a drop or notice */
};

/* If all are used, there may be more. */
#define TRACED_PROGRAMS 8

enum traced_kind {
	TRACED_OUT,     /* a packet that leaves */
	TRACED_IN,      /* one that arrives */
	TRACED_REFUSED, /* the kernel ended a packet since a program refused it: only time and context are set */
};

/* What is told of a packet. */
struct traced_packet {
	__u64 time_ns;  /* CLOCK_MONOTONIC */
	__u64 context;  /* address of the kernel's packet */
	__u64 cgroup;   /* of its socket; 0: it has none */
	__u64 cookie;   /* of its socket */
	__u64 measured; /* packet_pack() */
	__u64 share;    /* of its connection; 0: none */
	__u32 kind;     /* enum traced_kind */
	__u32 verdict;
	__u32 outcome;    /* enum traced_outcome */
	__u32 bottleneck; /* index of the rule that made the smallest offer to its connection */
	__u8 version;     /* 4 or 6 */
	__u8 protocol;
	__be16 ports[2]; /* source, target; 0: it has none */
	__u8 reserved[2];
	__u64 source[2]; /* addresses */
	__u64 target[2];
	struct traced_rule rules[LIMITER_MAX_NESTED];
	__u32 programs[TRACED_PROGRAMS]; /* ids of those that run for it, in order; 0: no more, or not known */
};

/* trace_state_map: one entry, key 0 */
struct traced_state {
	__u64 begin_ns; /* the program's first packet */
	__u64 told;
	__u64 lost; /* for want of room */
};
#endif
