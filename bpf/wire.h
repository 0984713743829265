/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The size of a packet on the wire: IP bytes and IP packets.
 *
 * At this hook a packet begins with its IP header, and a GSO packet is still one packet, with only the headers of its
 * first segment. Not counted are the link layer's header, which is not known yet, and the headers of IP fragments,
 * which are made after the hook.
 */
#ifndef LIMITER_WIRE_H
#define LIMITER_WIRE_H

#include "packet.h"

/* The search for the transport header skips this many extension headers; a sender's stack makes at most these four. */
#define WIRE_MAX_EXTENSIONS 4
#define WIRE_IPV4_VERSION 4
#define WIRE_IPV4_HEADER 20
#define WIRE_IPV4_PROTOCOL 9 /* offset */
#define WIRE_IPV4_DESTINATION 16
#define WIRE_IPV4_MULTICAST 0xe0 /* an address that begins with this or more; the last is broadcast */
#define WIRE_IPV6_HEADER 40
#define WIRE_IPV6_NEXT 6 /* offset */
#define WIRE_IPV6_DESTINATION 24
#define WIRE_IPV6_MULTICAST 0xff
#define WIRE_UDP_HEADER 8
#define WIRE_TCP_HEADER 20
#define WIRE_TCP_OFFSET 12
#define NEXTHDR_HOP 0
#define NEXTHDR_ROUTING 43
#define NEXTHDR_DEST 60

static __always_inline __u8 wire_byte(struct __sk_buff *skb, __u32 offset)
{
	__u8 byte = 0;

	/* A helper, since direct access cannot read outside the linear part. Few packets come here. */
	bpf_skb_load_bytes(skb, offset, &byte, sizeof(byte));
	return byte;
}

/* Bytes of headers, from IP to transport, at the beginning of each segment of a GSO packet. */
static __always_inline __u32 wire_segment_header(struct __sk_buff *skb, bool *tcp)
{
	__u8 first = wire_byte(skb, 0), protocol;
	__u32 offset;

	if (first >> 4 == WIRE_IPV4_VERSION) {
		offset = (first & 0xf) * 4;
		protocol = wire_byte(skb, WIRE_IPV4_PROTOCOL);
	} else {
		offset = WIRE_IPV6_HEADER;
		protocol = wire_byte(skb, WIRE_IPV6_NEXT);
		for (int i = 0; i < WIRE_MAX_EXTENSIONS; i++) {
			/* SRv6 encapsulates before this hook. */
			if (protocol == IPPROTO_IPV6) {
				protocol = wire_byte(skb, offset + WIRE_IPV6_NEXT);
				offset += WIRE_IPV6_HEADER;
				continue;
			}
			if (protocol == IPPROTO_IPIP) {
				protocol = wire_byte(skb, offset + WIRE_IPV4_PROTOCOL);
				offset += (wire_byte(skb, offset) & 0xf) * 4;
				break;
			}
			if (protocol != NEXTHDR_HOP && protocol != NEXTHDR_ROUTING && protocol != NEXTHDR_DEST)
				break;
			protocol = wire_byte(skb, offset);
			offset += (wire_byte(skb, offset + 1) + 1) * 8;
		}
	}
	*tcp = protocol == IPPROTO_TCP;
	if (*tcp)
		return offset + (wire_byte(skb, offset + 12) >> 4) * 4;
	return offset + WIRE_UDP_HEADER;
}

/*
 * Reads the packet directly, since one helper call costs as much as all of this. Does not see TCP behind an extension
 * header.
 */
static __always_inline bool wire_is_tcp(struct __sk_buff *skb, bool *control)
{
	__u8 *ip = (void *)(long)skb->data, *tcp;
	void *end = (void *)(long)skb->data_end;
	__u32 header = WIRE_IPV6_HEADER;

	if ((void *)ip + WIRE_IPV4_HEADER > end)
		return false;
	if (ip[0] >> 4 == WIRE_IPV4_VERSION) {
		if (ip[WIRE_IPV4_PROTOCOL] != IPPROTO_TCP)
			return false;
		header = (ip[0] & 0xf) * 4;
	} else if (ip[WIRE_IPV6_NEXT] != IPPROTO_TCP) {
		return false;
	}
	tcp = ip + header;
	if ((void *)tcp + WIRE_TCP_HEADER <= end)
		*control = header + (tcp[WIRE_TCP_OFFSET] >> 4) * 4 >= skb->len;
	return true;
}

/* Measures a GSO packet. Not inlined: see charge.h. */
__noinline __u64 wire_measure_gso(struct __sk_buff *skb)
{
	__u32 bytes = skb->len, segments = skb->gso_segs, size = skb->gso_size, header;
	struct packet packet;
	bool tcp = false;

	/* Certain now, even behind the extension header that BIG TCP adds. */
	header = wire_segment_header(skb, &tcp);
	/* gso_segs is 0 where the kernel has not counted (a packet from a guest, a SYN-ACK). */
	if (!segments && size && bytes > header)
		segments = (bytes - header + size - 1) / size;
	if (!segments)
		segments = 1;
	packet = (struct packet){ .bytes = bytes + (segments - 1) * header, .segments = segments, .tcp = tcp };
	return packet_pack(&packet);
}

/* Measures any other packet. Not inlined: see charge.h. */
__noinline __u64 wire_measure_plain(struct __sk_buff *skb)
{
	struct packet packet = { .bytes = skb->len, .segments = 1 };

	packet.tcp = wire_is_tcp(skb, &packet.control);
	return packet_pack(&packet);
}

/* Measures a packet: its bytes, its segments and whether it is TCP, packed. */
static __always_inline __u64 wire_measure(struct __sk_buff *skb)
{
	return skb->gso_size ? wire_measure_gso(skb) : wire_measure_plain(skb);
}
#endif
