/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What user space and the programs share: the keys and values of the pinned maps.
 * plugins/module_utils/_limiter/core/layout.py describes the same structs in Python, and a test compares every offset.
 * The layout of all maps together is the schema: a running host keeps its maps over an upgrade, so every change of a
 * layout needs a new LIMITER_SCHEMA.
 *
 * A rule's id is always the cgroup id of the rule's own cgroup, <cgroup2>/speed_limiter/<name>: 64 bits that the kernel
 * never uses again.
 */
#ifndef LIMITER_LAYOUT_H
#define LIMITER_LAYOUT_H

#define LIMITER_SCHEMA 5
#define LIMITER_MAX_RULES 65536
/* Cgroups that have a budget of their own. Rules always find room beside them. A power of two. */
#define LIMITER_MAX_BUDGETS 65536
#define LIMITER_MAX_MEMBERS 131072
/* Most rules that can hold on one way up from a socket's cgroup to the root. */
#define LIMITER_MAX_NESTED 4
/*
 * Levels of cgroups that are searched for rules, from the root down. More than 16 cost the 5.10 verifier seconds; it
 * does not accept 32.
 */
#define LIMITER_MAX_DEPTH 16

/* rate_limit_config_map: rule -> */
struct rate_limit_config {
	__u64 rate_bps;    /* bytes per second, despite its name */
	__u64 bucket_size; /* bytes */
};

/*
 * What the controller (fair_share.h) knows of a rule. An epoch is a few packets of each connection and at least 10 ms.
 * Rates are in IP bytes per second.
 */
struct fair_share {
	__u64 share;           /* what one connection may send per second; 0: not known yet */
	__u64 paced_rate;      /* what all TCP together may send: the rate without foreign traffic, plus spent tokens */
	__u64 clock_ns;        /* virtual clock: when TCP's bytes would have left at paced_rate; beyond now: its lead */
	__u64 epoch;           /* number */
	__u64 epoch_start_ns;  /* CLOCK_MONOTONIC */
	__u64 period_ns;       /* length of an epoch */
	__u64 lag_ns;          /* longest recent round trip: how long a share takes to be heard */
	__u64 modest_bytes;    /* this epoch: sent by modest connections, which want no more than they get */
	__u64 largest_bytes;   /* this epoch: the most that one of them sent */
	__u64 control_bytes;   /* this epoch: control packets of TCP, passed or not */
	__u64 control_rate;    /* the same per second, averaged */
	__u64 handshake_bytes; /* this epoch: those of connections that are being made, passed or not */
	__u64 handshake_rate;  /* the same per second, averaged */
	__u64 foreign_bytes;   /* this epoch: foreign traffic, passed or not */
	__u64 foreign_rate;    /* the same per second, averaged; no more than the rule's rate */
	__u64 foreign_latest;  /* ... in the last epoch */
	__u64 early_bytes;     /* this epoch: early segments that passed */
	__u64 early_rate;      /* the same per second, averaged */
	__u32 active;          /* connections that sent data in this epoch */
	__u32 active_before;   /* ... in the last one */
	__u32 unpaced;         /* the active ones that do not pace themselves */
	__u32 unpaced_before;  /* ... in the last one */
	__u32 holders;         /* connections that are held by this rule, in this epoch */
	__u32 holders_before;  /* ... in the last one */
	__u32 elsewhere;       /* connections that are held by another rule, in this epoch */
	__u32 elsewhere_before;
	__u32 newcomers;     /* connections established in this epoch */
	__u32 burst;         /* bytes of TCP's largest recent packet */
	__u32 foreign_burst; /* bytes of the largest recent foreign packet */
	__u32 begun;         /* connections that began to send in this epoch */
};

/*
 * Why a packet was dropped, or passed with a congestion notice; core/reasons.py has the words. Their number is a power
 * of two.
 */
enum limiter_reason {
	LIMITER_REASON_UNKNOWN,     /* counted by a version without reasons */
	LIMITER_REASON_EMPTY,       /* the bucket has no tokens left for foreign traffic */
	LIMITER_REASON_TCP_RESERVE, /* ... or only those that are left to TCP */
	LIMITER_REASON_DEBT,        /* TCP has used all the debt that it may have */
	LIMITER_REASON_ADMISSION,   /* a connection's first data: connections that have begun need the tokens */
	LIMITER_REASON_AHEAD,       /* TCP leads its rate by more than pacing can explain */
	LIMITER_REASON_LUMP,        /* one packet lasts too long at its connection's share */
	LIMITER_REASON_LOW,         /* the bucket runs low for unpaced TCP (a notice only) */
	LIMITER_REASONS,
};

/* rate_limit_state_map: rule, or the key of a budget, which follows from its cgroup's names (graph.h) -> */
struct rate_limit_state {
	__s64 tokens;              /* bytes that may be sent now; negative is debt */
	__u64 last_update_ns;      /* CLOCK_MONOTONIC at the last refill; never moves back */
	struct bpf_spin_lock lock; /* protects this struct, but what queue.h writes */
	__u32 fraction;            /* of a token, in 1e-9 bytes; 0 .. 999,999,999 */
	__u64 packets;             /* passed: IP packets as on the wire (each GSO segment is one) */
	__u64 bytes;               /* passed: IP bytes on the wire */
	__u64 dropped_bytes;
	__u64 rate; /* a copy of the configuration as of `generation`: saves a look-up per packet */
	__u64 bucket;
	__u32 generation; /* 0: not copied yet */
	__u32 swept;      /* budgets of this rule that were removed; what they counted is in this state's counters */
	__u64 limit;      /* of a budget: its rule, or LIMITER_NO_RULE; 0: this is a rule's own state */
	__u64 cgroup;     /* of a budget: the newest of the cgroups that had its names one after the other */
	__u64 shared_packets;  /* packets of cgroups for whose budgets there was no room: they share this state */
	__u64 use_start_ns;    /* start of the second or so in which use is measured */
	__u64 use_bytes;       /* `bytes` at that time */
	__u64 use_rate;        /* what passed in the second before, per second */
	__u64 use_withheld_ns; /* when a packet was last dropped or got a notice */
	__u64 use_delayed_ns;  /* when a packet last had to wait for its departure time */
	__u64 use_bound_ns;    /* when the rule last held somebody back, by these or as a bottleneck */
	__u64 use_since_ns;    /* since when it did so, without a break */
	__u64 once_bytes;      /* of `bytes`, those that no rule further in has counted: of all rules, each byte once */
	struct fair_share fair;
	__u64 drops[LIMITER_REASONS];   /* packets dropped, by reason */
	__u64 notices[LIMITER_REASONS]; /* packets passed with a congestion notice, by reason */
	__u64 delayed_packets;          /* passed, and waited for their departure time: see departure.h */
	__u64 delay_ns;                 /* ... in all */
	__u32 waiting_size;             /* average of those that wait, bytes */
	__u32 reserved;
};

/* As `limit`: of a budget that is being made or removed. */
#define LIMITER_NO_RULE (~0ULL)

/* Counters of a state, in this order: packets, bytes, dropped_bytes, drops, notices, delayed_packets and delay_ns. */
#define LIMITER_COUNTERS (5 + 2 * LIMITER_REASONS)

/*
 * rate_limit_carried_map: rule -> what its state has of its state in an earlier layout. It exists only while one layout
 * takes the place of another, see carry.h.
 */
struct rate_limit_carried {
	__s64 tokens;       /* as of `reference_ns` */
	__u64 reference_ns; /* CLOCK_MONOTONIC when the states were copied */
	__u64 counters[LIMITER_COUNTERS];
};

/* rate_limit_slot_map: an index, below LIMITER_MAX_BUDGETS (__u32) -> where each budget has its place, see budget.h */
struct rate_limit_slot {
	struct bpf_spin_lock lock;
	__u32 secret; /* of slot 0: what the keys of budgets begin with (graph.h) */
	__u64 budget; /* its key; 0: free */
};

/*
 * rate_limit_member_map: id of a member, a cgroup whose sockets are charged -> rule (__u64). With this bit, which no id
 * has, it is a leaf: it was made to put processes in this rule.
 */
#define LIMITER_LEAF (1ULL << 63)

/*
 * rate_limit_edge_map: a node and the name of a cgroup below it -> the node of that cgroup (__u32). With a shape `name`
 * stands for all names that begin and end alike: it holds the text before the star, then the text behind it.
 */
#define LIMITER_MAX_EDGES 262144
#define LIMITER_MAX_NAME 255
#define LIMITER_MAX_STAR_TEXT 127
struct rate_limit_edge {
	__u32 above;
	__u32 shape; /* 0: the whole name; else 1 << 16 | bytes before the star << 8 | bytes behind it, 127 of each at most */
	char name[LIMITER_MAX_NAME + 1]; /* padded with NUL */
};

/* rate_limit_node_map: node (__u32; never 0) -> */
#define LIMITER_MAX_SHAPES 4
struct rate_limit_node {
	__u64 rule;                       /* 0: none here, but further down */
	__u32 each;                       /* 1: every cgroup at this node has a budget of its own */
	__u32 shapes[LIMITER_MAX_SHAPES]; /* of names below, the most specific first; 0: no more */
	__u32 strange; /* bits of the low 5 bits of first bytes that names of none of the shapes have */
};

/* rate_limit_graph_map: one entry, key 0: the graph in use */
struct rate_limit_graph {
	__u64 root;   /* id of the cgroup at which paths begin: / of the cgroup2 mount */
	__u32 node;   /* of the root; 0: no rule is named by a pattern */
	__u32 source; /* checksum of the places that it was made of */
};

/*
 * rate_limit_place_map: number (__u32) -> a pattern of cgroup paths, and the rule that holds for what it names. User
 * space makes the graph of all of them; no program reads it.
 */
#define LIMITER_MAX_PLACES 65536
#define LIMITER_MAX_PATTERN 1008
struct rate_limit_place {
	__u64 rule;
	__u32 each; /* 1: every cgroup that it names has a budget of its own */
	__u32 reserved;
	char pattern[LIMITER_MAX_PATTERN]; /* "/system.slice/web-*.service", padded with NUL */
};

/* rate_limit_socket_map: socket storage, the tag of a socket that was open when its process was moved into a rule */
struct rate_limit_socket {
	__u64 rule; /* or LIMITER_RELEASED: its process was moved out of a rule again */
};
#define LIMITER_RELEASED 0

/*
 * rate_limit_pacing_map: socket storage of every TCP socket under a rule, listeners included. Accepted sockets get a
 * copy. Only the programs write to it.
 */
struct fair_share_mark {
	__u64 epoch; /* the epoch of the rule that the other fields are about */
	__u32 bytes; /* sent in it before the connection was held */
	__u32 flags; /* FAIR_SHARE_*, see demand.h */
};

struct rate_limit_pacing {
	__u64 rules[LIMITER_MAX_NESTED]; /* hold for the socket, as of `generation` */
	__u64 share;                     /* the smallest of their offers, as of the socket's last packet */
	__u64 set;                       /* the SO_MAX_PACING_RATE that we set; 0: none */
	__u64 own;                       /* the one that its process set; all bits: none */
	__u64 sent_ns;                   /* TCP's time stamp when it last sent data */
	__u32 generation;
	__u32 suspected; /* the generation in which a round trip passed without a packet under a rule */
	__u32 tightest;  /* index of the bottleneck: the rule that made the smallest offer */
	__u32 passed;    /* when its last packet passed: CLOCK_MONOTONIC in units of 2^20 ns, about a millisecond */
	__u32 clamp;     /* the congestion window clamp that we set, in segments; 0: none */
	__u32 flags;     /* CONNECTION_*, see connection.h */
	__u32 segment;   /* recent payload of its segments, bytes */
	__u32 round_trip_us;
	struct fair_share_mark marks[LIMITER_MAX_NESTED];
	__u64 departs_ns; /* CLOCK_MONOTONIC when the latest of its packets departs that had to wait */
};
#define LIMITER_UNPACED (~0ULL)

/* Whether sockets are paced. If not, the token bucket alone limits, for this reason: */
enum limiter_pacing {
	LIMITER_PACING_OFF,     /* pacing: false of speed_limit_program, or unloading: sockets are released */
	LIMITER_PACING_ON,      /* pace_sockets is attached */
	LIMITER_PACING_REFUSED, /* the kernel did not load or attach pace_sockets */
};

/* Whether packets wait where their device has fq, see departure.h: */
enum limiter_departure {
	LIMITER_DEPARTURE_AUTO,
	LIMITER_DEPARTURE_OFF, /* departure: off of speed_limit_program */
};

/* rate_limit_control_map: one entry, key 0 */
struct rate_limit_control {
	__u32 schema;     /* the maps' LIMITER_SCHEMA */
	__u32 generation; /* +1 after each change of members or limits: cached answers become stale; 0: no rule yet */
	__u32 tagged_sockets; /* 1: sockets were tagged, so tags are looked up; 2: also MPTCP sockets; 0: none ever */
	__u32 program_id;     /* the kernel's id of the program that `identity` names */
	__u32 pacing;         /* enum limiter_pacing */
	__u32 blind;       /* 1: limit_egress was loaded without its looks into the kernel's memory, kernel_memory.h */
	char identity[60]; /* what was loaded: "source:<sha256, 48 hex digits>" or "object:..."; NUL-padded */
	__u32 departure;   /* enum limiter_departure */
};
#endif
