/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a packet tells of its connection, and what the connection is told. Pure: pacing.h reads the kernel's socket,
 * tests/simulation has one of its own.
 */
#ifndef LIMITER_CONNECTION_H
#define LIMITER_CONNECTION_H

#include "layout.h"
#include "packet.h"

/* TCP does not pace its first segments. */
#define UNPACED_SEGMENTS 10
/* Somebody who was refused waits for TCP's timer, 200 ms or more, unless he has more to send. */
#define REFUSED_WAIT_NS 100000000
/* bbr stays a hundredth below what it may send, and says so. */
#define NEARLY 16
/*
 * However slow, a nearby socket makes packets as large as half its congestion window (since 5.18): of minutes, at the
 * lowest rates. So the window is clamped to packets that last this long, and some round trips.
 */
#define SLOW_PACKET_US 20000
#define SLOW_WINDOW_LEAST 4
/* A share below this needs the clamp; and lets no more than two segments go at first where the bucket is poor. */
#define SLOW_SHARE 2500000 /* bytes per second */
#define SLOW_INITIAL_WINDOW 2
/* From this on (34 Gbit/s) a rate does not fit into what a program can set, on every kernel so far. */
#define PACING_MOST 0xffffffffULL

/* Of a rule that limits nothing: more than any offer. */
#define OFFER_NONE (LIMITER_UNPACED >> 1)

/* rate_limit_pacing.flags: bits */
#define CONNECTION_MORE 0    /* its last packet left data unsent */
#define CONNECTION_WAITED 1  /* what it sends now began with waiting for its time */
#define CONNECTION_REFUSED 2 /* its last packet with data was refused */

/* A TCP socket as one of its packets with data leaves. */
struct connection {
	__u64 now_ns;      /* TCP's clock */
	__u64 timer_ns;    /* the time for which its pacing timer was set last */
	__u64 pacing_rate; /* at which it paces itself now; bytes of payload per second, as the others */
	__u64 most_rate;   /* SO_MAX_PACING_RATE as it is now */
	__s32 unsent;      /* bytes behind the packet */
	__s32 room;        /* bytes that its peer takes behind the packet */
	__u32 sent;        /* segments with data that it ever offered, with this packet's */
	__u32 out;         /* segments on the way, without this packet's */
	__u32 window;      /* congestion window, segments */
	__u32 mss;         /* payload of a full segment */
	__u32 headers;     /* of a segment */
	__u32 acked;       /* 1: data of it was acknowledged */
};

/* 1 where a < b. Not a comparison: the verifier follows each branch with everything that comes after it. */
static __always_inline __u32 connection_less(__u64 a, __u64 b)
{
	return (a - b) >> 63;
}

/* It paces itself as it was told. */
static __always_inline bool connection_paced(const struct rate_limit_pacing *pacing)
{
	return pacing->set && pacing->set != LIMITER_UNPACED;
}

/* Averages the payload of its segments over the last eight. */
static __always_inline void connection_note_segment(const struct connection *seen, struct rate_limit_pacing *pacing,
						    const struct packet *packet)
{
	__u32 segments = packet->segments ? packet->segments : 1, weight = segments < 8 ? segments : 8;
	__u32 segment = packet->bytes / segments;

	segment = segment > seen->headers ? segment - seen->headers : 1;
	pacing->segment = pacing->segment ? (pacing->segment * (8 - weight) + segment * weight) / 8 : segment;
	if (!pacing->segment)
		pacing->segment = 1;
}

/*
 * Looks at a connection as it offers a packet with data.
 *
 * It is held when only pacing keeps it from sending more: there is more to send and room in both windows; or all is
 * sent, and that began with waiting for the pacing timer, which keeps the time for which it was last set. So a
 * connection whose every answer is one packet is seen, too. What TCP does not pace tells nothing.
 *
 * Whoever raises SO_MAX_PACING_RATE above what the connection was told is not paced until it is told again: what cannot
 * be told a rate is foreign.
 */
static __always_inline void connection_look(const struct connection *seen, struct rate_limit_pacing *pacing,
					    struct packet *packet)
{
	__u32 flags = pacing->flags, refused = flags >> CONNECTION_REFUSED & 1;
	__u32 before = flags >> CONNECTION_MORE & 1, more = connection_less(0, (__s64)seen->unsent);
	bool paced = connection_paced(pacing);
	__u32 early = paced & connection_less(seen->sent, UNPACED_SEGMENTS + packet->segments);
	__u32 idle = connection_less(seen->out, 1);
	__u32 waited =
		(before & flags >> CONNECTION_WAITED) | (~before & connection_less(pacing->sent_ns, seen->timer_ns));
	/* What is left of a window and smaller than a segment is not sent. */
	__u32 able = ~connection_less((__s64)seen->room, seen->mss) &
		     connection_less(seen->out + packet->segments, seen->window);
	/* It would go faster: neither its process nor its congestion control wants less. */
	__u32 willing = ~connection_less(seen->pacing_rate, pacing->set - pacing->set / NEARLY) &
			connection_less(pacing->set >> 1, (pacing->own - 1) >> 1);

	waited &= 1;
	packet->paced = paced;
	packet->early = early;
	packet->idle = idle;
	packet->begins = early & idle & ~seen->acked & 1;
	packet->refused = refused & idle;
	packet->waited = refused & idle & ~connection_less(seen->now_ns - pacing->sent_ns, REFUSED_WAIT_NS) & 1;
	packet->held = paced & ~connection_less(seen->sent, UNPACED_SEGMENTS) & willing &
		       ((more & able) | (~more & waited)) & 1;
	packet->tcp = !(paced & connection_less(pacing->set >> 1, (seen->most_rate - 1) >> 1));
	pacing->flags = refused << CONNECTION_REFUSED | more << CONNECTION_MORE | waited << CONNECTION_WAITED;
	pacing->sent_ns = seen->now_ns;
	connection_note_segment(seen, pacing, packet);
}

/* What became of a packet with data. */
static __always_inline void connection_note_verdict(struct rate_limit_pacing *pacing, bool dropped)
{
	pacing->flags = (pacing->flags & ~(1U << CONNECTION_REFUSED)) | (__u32)dropped << CONNECTION_REFUSED;
}

/* A rule's offer: the smallest of them is the connection's share, and its rule the one that binds. */
static __always_inline void connection_take_offer(struct rate_limit_pacing *pacing, __u32 place, __u64 share)
{
	if (share < pacing->share) {
		pacing->share = share;
		pacing->tightest = place;
	}
}

/* Payload of its segments: a full one's, unless it sends small ones. */
static __always_inline __u64 connection_segment(const struct rate_limit_pacing *pacing, __u64 mss)
{
	__u64 segment = pacing->segment;

	return segment && segment < mss - mss / 8 ? segment : mss;
}

/* Pacing counts payload, a share whole packets. */
static __always_inline __u64 connection_payload(const struct rate_limit_pacing *pacing, __u64 mss, __u64 headers)
{
	__u64 segment = connection_segment(pacing, mss), share = pacing->share, rate;

	/* Nothing known, or nothing to be told; a product of such numbers would overflow. */
	if (!segment || share > 2 * PACING_MOST)
		return share;
	rate = share * segment / (segment + headers);
	return rate ? rate : 1;
}

/* The congestion window that a share needs, in segments, where it is a low one; else 0. */
static __always_inline __u32 connection_window(const struct rate_limit_pacing *pacing, __u64 mss, __u64 round_trip_us)
{
	__u64 segment = connection_segment(pacing, mss), window;

	if (pacing->share >= SLOW_SHARE || !segment)
		return 0;
	window = 2 * pacing->share * (SLOW_PACKET_US + round_trip_us) / 1000000 / segment;
	return window > SLOW_WINDOW_LEAST ? window : SLOW_WINDOW_LEAST;
}
#endif
