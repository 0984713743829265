/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What user space and the program share: the pinned maps' keys and values.
 * plugins/module_utils/_limiter/core/layout.py says the same in Python; a test
 * holds the two together, offset by offset. A change of layout needs a new
 * LIMITER_SCHEMA, since a running host keeps its maps over an upgrade.
 *
 * The type that stands for "which rule" is always the cgroup id of the rule's
 * own cgroup, <cgroup2>/speed_limiter/<name>: 64 bits, never used again.
 */
#ifndef LIMITER_LAYOUT_H
#define LIMITER_LAYOUT_H

#define LIMITER_SCHEMA 1
#define LIMITER_MAX_RULES 65536
#define LIMITER_MAX_MEMBERS 131072
/* Most rules that can hold on one way up from a socket's cgroup. */
#define LIMITER_MAX_NESTED 4
/*
 * Cgroup levels that are searched for rules, from the root down. More than 16
 * would cost the 5.10 verifier seconds, 32 is more than it accepts.
 */
#define LIMITER_MAX_DEPTH 16

/* rate_limit_config_map: rule -> */
struct rate_limit_config {
	__u64 rate_bps;    /* bytes per second, in spite of its name (the seed's) */
	__u64 bucket_size; /* bytes */
};

/* rate_limit_state_map: rule -> */
struct rate_limit_state {
	__s64 tokens;              /* bytes that may be sent now; negative is debt */
	__u64 last_update_ns;      /* CLOCK_MONOTONIC at the last refill; never moves back */
	struct bpf_spin_lock lock; /* protects this whole struct */
	__u32 fraction;            /* of a token, in 1e-9 bytes; 0 .. 999,999,999 */
	__u64 packets;             /* passed: IP packets as on the wire (each GSO segment is one) */
	__u64 bytes;               /* passed: IP bytes on the wire */
	__u64 dropped_packets;
	__u64 dropped_bytes;
	__u64 congestion_marks; /* packets that passed with a congestion notice */
};

/* rate_limit_member_map: id of a cgroup whose sockets are charged -> rule (__u64) */

/* rate_limit_socket_map: socket storage; sockets that were open when their process was moved to a rule */
struct rate_limit_socket {
	__u64 rule; /* or LIMITER_RELEASED: its process was moved out of a rule again */
};
#define LIMITER_RELEASED 0

/* rate_limit_control_map: one entry, key 0 */
struct rate_limit_control {
	__u32 schema;        /* LIMITER_SCHEMA of who made the maps */
	__u32 generation;    /* +1 after every change of members; makes cached attributions stale; 0: never had any */
	__u32 bound_sockets; /* 0: none was ever bound by hand, so none is looked up; 1: some were; 2: of MPTCP, too */
	__u32 program_id;    /* kernel's id of the program that `identity` speaks of */
	char identity[64];   /* what was loaded: "source:<sha256, 48 hex digits>" or "object:..."; NUL-padded */
};
#endif
