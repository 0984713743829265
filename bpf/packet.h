/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What is known of a packet when its verdict is given. */
#ifndef LIMITER_PACKET_H
#define LIMITER_PACKET_H

struct packet {
	__u32 bytes;    /* IP bytes, with the headers of every segment */
	__u32 segments; /* IP packets */
	bool tcp;
	/* Of TCP, from its socket (pacing.h): */
	bool held;           /* only pacing holds the connection back */
	bool paced;          /* the connection paces itself as it was told */
	bool starved;        /* nothing of the connection has passed for seconds */
	__u64 round_trip_ns; /* 0: not known yet */
};
#endif
