/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What is known of a packet when its verdict is decided. */
#ifndef LIMITER_PACKET_H
#define LIMITER_PACKET_H

struct packet {
	__u32 bytes;    /* IP bytes, with the headers of every segment */
	__u32 segments; /* IP packets */
	bool tcp;       /* of a connection that can be told a rate; all else is foreign */
	bool control;   /* TCP without payload: SYN, FIN, RST, acknowledgements */
	bool handshake; /* control, of a connection that is being made: SYN, SYN-ACK */
	/* For TCP with payload, from its connection (connection.h): */
	bool paced;   /* the connection paces itself at a rate that it was told */
	bool held;    /* only pacing keeps the connection from sending more */
	bool early;   /* TCP did not pace it: one of the connection's first ten segments */
	bool idle;    /* nothing of its connection is in flight: after a drop TCP waits for a timer instead of an ACK */
	bool begins;  /* early and idle, and none of its data was ever acknowledged */
	bool refused; /* idle, and the connection's last packet with data was dropped */
	bool waited;  /* refused, and TCP has waited for its timer since */
	/* For the connection at one rule: */
	bool elsewhere;      /* another rule is the connection's bottleneck */
	bool starved;        /* nothing of the connection has passed for seconds */
	__u64 round_trip_ns; /* 0: not known yet */
	__u64 room;          /* bytes of debt that its device lets it wait for, see departure.h; 0: it does not wait */
};

/*
 * A packet packed into one number, since functions that are verified on their own take and return only scalars
 * (charge.h): bytes, 16 bits of segments, two bits for the index of the bottleneck rule, and flags.
 */
#define PACKET_SEGMENTS 32 /* each is the field's first bit */
#define PACKET_BOTTLENECK 48
#define PACKET_TCP 50
#define PACKET_CONTROL 51
#define PACKET_PACED 52
#define PACKET_HELD 53
#define PACKET_EARLY 54
#define PACKET_IDLE 55
#define PACKET_BEGINS 56
#define PACKET_REFUSED 57
#define PACKET_WAITED 58
#define PACKET_CLOCK 59 /* TCP's time stamp was taken as it began to send */
#define PACKET_STARVED 60
#define PACKET_HANDSHAKE 61
#define PACKET_FOLLOWS 62 /* an earlier packet of its connection waits for its departure time */
#define PACKET_SEGMENTS_MOST 0xffff

static __always_inline __u64 packet_pack(const struct packet *packet)
{
	__u64 segments = packet->segments & PACKET_SEGMENTS_MOST;

	return packet->bytes | segments << PACKET_SEGMENTS | (__u64)packet->tcp << PACKET_TCP |
	       (__u64)packet->control << PACKET_CONTROL | (__u64)packet->paced << PACKET_PACED |
	       (__u64)packet->held << PACKET_HELD | (__u64)packet->early << PACKET_EARLY |
	       (__u64)packet->idle << PACKET_IDLE | (__u64)packet->begins << PACKET_BEGINS |
	       (__u64)packet->refused << PACKET_REFUSED | (__u64)packet->waited << PACKET_WAITED |
	       (__u64)packet->handshake << PACKET_HANDSHAKE;
}

static __always_inline struct packet packet_unpack(__u64 packed)
{
	return (struct packet){
		.bytes = packed,
		.segments = packed >> PACKET_SEGMENTS & PACKET_SEGMENTS_MOST,
		.tcp = packed >> PACKET_TCP & 1,
		.control = packed >> PACKET_CONTROL & 1,
		.paced = packed >> PACKET_PACED & 1,
		.held = packed >> PACKET_HELD & 1,
		.early = packed >> PACKET_EARLY & 1,
		.idle = packed >> PACKET_IDLE & 1,
		.begins = packed >> PACKET_BEGINS & 1,
		.refused = packed >> PACKET_REFUSED & 1,
		.waited = packed >> PACKET_WAITED & 1,
		.starved = packed >> PACKET_STARVED & 1,
		.handshake = packed >> PACKET_HANDSHAKE & 1,
	};
}
#endif
