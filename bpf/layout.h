/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What user space and the program share: the pinned maps' keys and values. plugins/module_utils/_limiter/core/layout.py
 * says the same in Python; a test holds the two together, offset by offset. A change of layout needs a new
 * LIMITER_SCHEMA, since a running host keeps its maps over an upgrade.
 *
 * The type that stands for "which rule" is always the cgroup id of the rule's own cgroup,
 * <cgroup2>/speed_limiter/<name>: 64 bits, never used again.
 */
#ifndef LIMITER_LAYOUT_H
#define LIMITER_LAYOUT_H

#define LIMITER_SCHEMA 4
#define LIMITER_MAX_RULES 65536
#define LIMITER_MAX_MEMBERS 131072
/* Most rules that can hold on one way up from a socket's cgroup. */
#define LIMITER_MAX_NESTED 4
/*
 * Cgroup levels that are searched for rules, from the root down. More than 16 would cost the 5.10 verifier seconds, 32
 * is more than it accepts.
 */
#define LIMITER_MAX_DEPTH 16

/* rate_limit_config_map: rule -> */
struct rate_limit_config {
	__u64 rate_bps;    /* bytes per second, in spite of its name (the seed's) */
	__u64 bucket_size; /* bytes */
};

/*
 * What the controller (fair_share.h) knows of a rule. An epoch is a few packets of each connection, 10 ms at least.
 * Rates are of IP bytes per second.
 */
struct fair_share {
	__u64 share;          /* what one connection may send now, per second; 0: not known yet */
	__u64 paced_rate;     /* what all of TCP may send: the rate without what is foreign, and a part of the bucket */
	__u64 clock_ns;       /* when what TCP sent would have left at exactly paced_rate; later than now is a debt */
	__u64 epoch;          /* number */
	__u64 epoch_start_ns; /* CLOCK_MONOTONIC */
	__u64 period_ns;      /* an epoch's length */
	__u64 lag_ns;         /* longest round trip lately: how long a share takes to be heard */
	__u64 modest_bytes;   /* this epoch: sent by connections that want no more than they get */
	__u64 largest_bytes;  /* this epoch: the most that one of these sent */
	__u64 control_bytes;  /* this epoch: of TCP without payload, offered */
	__u64 control_rate;   /* the same per second, averaged; no more than the rule's rate */
	__u64 handshake_bytes; /* this epoch: of these, offered by what has not been told a rate */
	__u64 handshake_rate;  /* the same per second, averaged; no more than the rule's rate */
	__u64 foreign_bytes;   /* this epoch: offered by what can't be told a rate, dropped or not */
	__u64 foreign_rate;    /* the same per second, averaged; no more than the rule's rate */
	__u64 foreign_latest;  /* ... in the last epoch */
	__u64 early_bytes;     /* this epoch: sent by TCP unpaced, since connections are new */
	__u64 early_rate;      /* the same per second, averaged */
	__u32 active;          /* connections that sent data in this epoch */
	__u32 active_before;   /* ... in the last one */
	__u32 unpaced;         /* of the active, those that do not pace themselves */
	__u32 unpaced_before;  /* ... in the last one */
	__u32 holders;         /* connections that only this rule's pacing holds back, in this epoch */
	__u32 holders_before;  /* ... in the last one */
	__u32 elsewhere;       /* connections that another rule holds back, in this epoch */
	__u32 elsewhere_before;
	__u32 newcomers;     /* connections established in this epoch */
	__u32 burst;         /* bytes of TCP's largest packet lately */
	__u32 foreign_burst; /* bytes of the largest foreign one */
	__u32 begun;         /* connections that began to send in this epoch */
};

/* Why a packet was dropped, or passed with a notice; core/reasons.py has the words. A power of two of them. */
enum limiter_reason {
	LIMITER_REASON_UNKNOWN,     /* counted by a version that kept no reasons */
	LIMITER_REASON_EMPTY,       /* the bucket has no tokens for what cannot be told a rate */
	LIMITER_REASON_TCP_RESERVE, /* ... nor beside TCP, to which a part of the bucket is left */
	LIMITER_REASON_DEBT,        /* all that TCP may owe is owed */
	LIMITER_REASON_ADMISSION,   /* the first data of a connection: those that have begun need the tokens */
	LIMITER_REASON_AHEAD,       /* TCP is further ahead of its rate than pacing leaves it */
	LIMITER_REASON_LUMP,        /* one packet lasts too long at its connection's share */
	LIMITER_REASON_LOW,         /* the bucket runs low for TCP that is not paced (a notice only) */
	LIMITER_REASONS,
};

/* rate_limit_state_map: rule -> */
struct rate_limit_state {
	__s64 tokens;              /* bytes that may be sent now; negative is debt */
	__u64 last_update_ns;      /* CLOCK_MONOTONIC at the last refill; never moves back */
	struct bpf_spin_lock lock; /* protects this whole struct */
	__u32 fraction;            /* of a token, in 1e-9 bytes; 0 .. 999,999,999 */
	__u64 packets;             /* passed: IP packets as on the wire (each GSO segment is one) */
	__u64 bytes;               /* passed: IP bytes on the wire */
	__u64 dropped_bytes;
	__u64 rate; /* copies of the configuration, as of `generation`: one look-up less for a packet */
	__u64 bucket;
	__u32 generation; /* 0: not copied yet */
	__u32 reserved;
	__u64 use_start_ns; /* beginning of the second or so in which use is measured */
	__u64 use_bytes;    /* `bytes` then */
	__u64 use_rate;     /* what passed in the one before, per second */
	struct fair_share fair;
	__u64 drops[LIMITER_REASONS];   /* packets dropped, by reason */
	__u64 notices[LIMITER_REASONS]; /* packets that passed with a congestion notice, by reason */
};

/* rate_limit_member_map: id of a cgroup whose sockets are charged -> rule (__u64) */

/* rate_limit_socket_map: socket storage; sockets that were open when their process was moved to a rule */
struct rate_limit_socket {
	__u64 rule; /* or LIMITER_RELEASED: its process was moved out of a rule again */
};
#define LIMITER_RELEASED 0

/*
 * rate_limit_pacing_map: socket storage of every TCP socket under a rule, listeners included; copied to what they
 * accept. Only the programs write to it.
 */
struct fair_share_mark {
	__u64 epoch; /* of the rule, that the rest speaks of */
	__u32 bytes; /* sent in it, before the connection was held */
	__u32 flags; /* FAIR_SHARE_*, see fair_share.h */
};

struct rate_limit_pacing {
	__u64 rules[LIMITER_MAX_NESTED]; /* that hold for the socket, as of `generation` */
	__u64 share;                     /* the smallest of theirs, as of its last packet */
	__u64 set;                       /* the SO_MAX_PACING_RATE that it was given; 0: none */
	__u64 own;                       /* the one that its process wants; all bits: none */
	__u64 sent_ns;                   /* TCP's clock when it last offered data */
	__u32 generation;
	__u32 suspected; /* the generation in which a round trip passed without a packet under a rule */
	__u32 tightest;  /* place of the rule whose share it is */
	__u32 passed;    /* when its last packet passed: CLOCK_MONOTONIC in 2^20 ns, a millisecond or so */
	__u32 clamp;     /* the greatest congestion window that it was given, in segments; 0: none */
	__u32 flags;     /* CONNECTION_*, see connection.h */
	__u32 segment;   /* payload of its segments lately, bytes */
	__u32 round_trip_us;
	struct fair_share_mark marks[LIMITER_MAX_NESTED];
};
#define LIMITER_UNPACED (~0ULL)

/* Whether sockets are paced; if not, why: then the token bucket alone limits. */
enum limiter_pacing {
	LIMITER_PACING_OFF, /* not wanted (speed_limit_program: pacing: false), or being unloaded: sockets are released */
	LIMITER_PACING_ON,      /* pace_sockets is attached */
	LIMITER_PACING_REFUSED, /* the kernel did not load or attach pace_sockets */
};

/* rate_limit_control_map: one entry, key 0 */
struct rate_limit_control {
	__u32 schema;     /* LIMITER_SCHEMA of who made the maps */
	__u32 generation; /* +1 after every change of members or limits; makes what is cached stale; 0: never had any */
	__u32 tagged_sockets; /* 0: none was ever bound by hand, so none is looked up; 1: some were; 2: of MPTCP, too */
	__u32 program_id;     /* kernel's id of the program that `identity` speaks of */
	__u32 pacing;         /* enum limiter_pacing */
	__u32 reserved;
	char identity[64]; /* what was loaded: "source:<sha256, 48 hex digits>" or "object:..."; NUL-padded */
};
#endif
