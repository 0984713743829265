/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a packet tells about its connection, and what the connection is told. Pure: pacing.h reads the kernel's socket,
 * and tests/simulation has a socket of its own.
 */
#ifndef LIMITER_CONNECTION_H
#define LIMITER_CONNECTION_H

#include "layout.h"
#include "packet.h"

/* TCP does not pace its first segments. */
#define CONNECTION_UNPACED_SEGMENTS 10
/* After a drop TCP waits for its timer, 200 ms or more, unless its process writes more before. */
#define CONNECTION_WAIT_NS 100000000
/*
 * A connection that paces itself this little slower still counts as willing: bbr deliberately stays one percent below.
 */
#define CONNECTION_NEARLY 16
/*
 * Since 5.18 TCP on a short path builds packets of up to half the congestion window, however low its pacing rate; at
 * the lowest rates one packet is minutes of data. So clamp the window to packets of this duration plus some round
 * trips.
 */
#define CONNECTION_SLOW_PACKET_US 20000
#define CONNECTION_SLOW_WINDOW_LEAST 4
/* A share below this needs the clamp, and starts with only two segments where the bucket is poor. */
#define CONNECTION_SLOW_SHARE 2500000 /* bytes per second */
#define CONNECTION_SLOW_INITIAL_WINDOW 2
#define CONNECTION_BEGIN_PART 10
/* BPF programs cannot set a rate from here on (34 Gbit/s), on any kernel so far. */
#define PACING_MOST 0xffffffffULL

/* The offer of a rule that limits nothing: more than any other. */
#define OFFER_NONE (LIMITER_UNPACED >> 1)

/* rate_limit_pacing.flags: bits */
#define CONNECTION_MORE 0    /* its last packet left data unsent */
#define CONNECTION_WAITED 1  /* what it sends now began with a wait for the pacing timer */
#define CONNECTION_REFUSED 2 /* its last packet with data was dropped */

/* A TCP socket at the moment when one of its packets with data leaves. */
struct connection {
	__u64 now_ns;      /* TCP's time stamp */
	__u64 timer_ns;    /* when its pacing timer was last set to expire */
	__u64 departs_ns;  /* when TCP lets the packet depart, if fq paces for TCP; else not after now_ns */
	__u64 pacing_rate; /* its current pacing rate; this and the next are bytes of payload per second */
	__u64 most_rate;   /* its current SO_MAX_PACING_RATE */
	__s32 unsent;      /* bytes queued behind the packet */
	__s32 room;        /* bytes that the peer's window still allows behind the packet */
	__u32 sent;        /* segments with data that it has ever sent, with this packet's */
	__u32 out;         /* segments in flight, without this packet's */
	__u32 window;      /* congestion window, segments */
	__u32 mss;         /* payload of a full segment */
	__u32 headers;     /* bytes per segment */
	__u32 acked;       /* 1: the peer has acknowledged some of its data */
};

/* 1 where a < b. Not a comparison, since the verifier would follow each branch through everything after it. */
static __always_inline __u32 connection_less(__u64 a, __u64 b)
{
	return (a - b) >> 63;
}

/* Whether it paces itself at a rate that it was told. */
static __always_inline bool connection_paced(const struct rate_limit_pacing *pacing)
{
	return pacing->set && pacing->set != LIMITER_UNPACED;
}

/* Averages the payload of its last eight segments. */
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
 * Examines a connection as it sends a packet with data.
 *
 * It is held when only pacing keeps it from sending more. Either it has more to send and both windows have room. Or all
 * is sent, and that began with a wait for the pacing timer, whose last expiry time the socket keeps, or for fq, which
 * paces in the timer's place where the device has it; so a connection that answers each request with a single packet is
 * detected too. Segments that TCP does not pace tell nothing.
 *
 * A process that raises SO_MAX_PACING_RATE above the rate that its connection was told escapes pacing until it is told
 * again. Until then the connection is foreign.
 */
static __always_inline void connection_look(const struct connection *seen, struct rate_limit_pacing *pacing,
					    struct packet *packet)
{
	__u32 flags = pacing->flags, refused = flags >> CONNECTION_REFUSED & 1;
	__u32 before = flags >> CONNECTION_MORE & 1, more = connection_less(0, (__s64)seen->unsent);
	bool paced = connection_paced(pacing);
	__u32 early = paced & connection_less(seen->sent, CONNECTION_UNPACED_SEGMENTS + packet->segments);
	__u32 idle = connection_less(seen->out, 1);
	__u32 waited =
		(before & flags >> CONNECTION_WAITED) | (~before & (connection_less(pacing->sent_ns, seen->timer_ns) |
								    connection_less(seen->now_ns, seen->departs_ns)));
	/* TCP does not use the rest of a window if it is smaller than a segment. */
	__u32 able = ~connection_less((__s64)seen->room, seen->mss) &
		     connection_less(seen->out + packet->segments, seen->window);
	/* It would go faster: neither its process nor its congestion control wants less. */
	__u32 willing = ~connection_less(seen->pacing_rate, pacing->set - pacing->set / CONNECTION_NEARLY) &
			connection_less(pacing->set >> 1, (pacing->own - 1) >> 1);

	waited &= 1;
	packet->paced = paced;
	packet->early = early;
	packet->idle = idle;
	packet->begins = early & idle & ~seen->acked & 1;
	packet->refused = refused & idle;
	packet->waited = refused & idle & ~connection_less(seen->now_ns - pacing->sent_ns, CONNECTION_WAIT_NS) & 1;
	packet->held = paced & ~connection_less(seen->sent, CONNECTION_UNPACED_SEGMENTS) & willing &
		       ((more & able) | (~more & waited)) & 1;
	packet->tcp = !(paced & connection_less(pacing->set >> 1, (seen->most_rate - 1) >> 1));
	pacing->flags = refused << CONNECTION_REFUSED | more << CONNECTION_MORE | waited << CONNECTION_WAITED;
	pacing->sent_ns = seen->now_ns;
	connection_note_segment(seen, pacing, packet);
}

/* Notes whether a packet with data was dropped. */
static __always_inline void connection_note_verdict(struct rate_limit_pacing *pacing, bool dropped)
{
	pacing->flags = (pacing->flags & ~(1U << CONNECTION_REFUSED)) | (__u32)dropped << CONNECTION_REFUSED;
}

/* Takes a rule's offer. The smallest offer is the connection's share, and that rule its bottleneck. */
static __always_inline void connection_take_offer(struct rate_limit_pacing *pacing, __u32 index, __u64 share)
{
	if (share < pacing->share) {
		pacing->share = share;
		pacing->tightest = index;
	}
}

/* Payload of its segments: a full segment's unless it sends small ones. */
static __always_inline __u64 connection_segment(const struct rate_limit_pacing *pacing, __u64 mss)
{
	__u64 segment = pacing->segment;

	return segment && segment < mss - mss / 8 ? segment : mss;
}

/* The pacing rate for a share: pacing counts payload, a share counts whole packets. */
static __always_inline __u64 connection_payload(const struct rate_limit_pacing *pacing, __u64 mss, __u64 headers)
{
	__u64 segment = connection_segment(pacing, mss), share = pacing->share, rate;

	/* Nothing is known or nothing is to be told; with such numbers the product would overflow. */
	if (!segment || share > 2 * PACING_MOST)
		return share;
	rate = share * segment / (segment + headers);
	return rate ? rate : 1;
}

/*
 * Whether a connection begins with few segments, where a bucket is poor: TCP's first ten would be dropped. Not where
 * they can wait in the device's queue for no longer than CONNECTION_BEGIN_PART of a second.
 */
static __always_inline bool connection_begins_slowly(const struct rate_limit_pacing *pacing, __u64 segment, bool waits)
{
	return pacing->share < CONNECTION_SLOW_SHARE &&
	       !(waits && CONNECTION_UNPACED_SEGMENTS * segment <= pacing->share / CONNECTION_BEGIN_PART);
}

/* The congestion window, in segments, that a low share needs; 0 for other shares. */
static __always_inline __u32 connection_window(const struct rate_limit_pacing *pacing, __u64 mss, __u64 round_trip_us)
{
	__u64 segment = connection_segment(pacing, mss), window;

	if (pacing->share >= CONNECTION_SLOW_SHARE || !segment)
		return 0;
	window = 2 * pacing->share * (CONNECTION_SLOW_PACKET_US + round_trip_us) / 1000000 / segment;
	return window > CONNECTION_SLOW_WINDOW_LEAST ? window : CONNECTION_SLOW_WINDOW_LEAST;
}
#endif
