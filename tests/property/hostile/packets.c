/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * bpf/wire.h: every combination of headers is measured as it was built, and what is cut, or is no packet at all, is
 * read within its bounds.
 */
#include <netinet/in.h>
#include <stdbool.h>
#define __sk_buff uapi_sk_buff /* its pointers have 32 bits */
#include <linux/bpf.h>
#undef __sk_buff
#undef __always_inline
#define __always_inline inline __attribute__((always_inline))
#define __noinline __attribute__((noinline))

#include "input.h"

struct __sk_buff {
	unsigned long data, data_end; /* the linear part */
	__u32 len, gso_segs, gso_size;
	const __u8 *all; /* of `len` bytes */
};

static long bpf_skb_load_bytes(const struct __sk_buff *skb, __u32 offset, void *to, __u32 length)
{
	if (offset > skb->len || length > skb->len - offset) {
		memset(to, 0, length);
		return -14;
	}
	memcpy(to, skb->all + offset, length);
	return 0;
}

#include "wire.h"

#define MOST 4096
#define MOST_HEADERS 512

struct built {
	__u8 bytes[MOST];
	__u32 header, length;
	bool tcp, plain; /* plain: TCP that can be seen without a search */
};

static void extension(struct built *it, __u8 next)
{
	__u32 eights = below(3);

	it->bytes[it->header] = next;
	it->bytes[it->header + 1] = eights;
	it->header += (eights + 1) * 8;
}

static void ipv4(struct built *it, __u8 protocol)
{
	__u32 words = 5 + below(11);

	it->bytes[it->header] = 0x40 | words;
	it->bytes[it->header + WIRE_IPV4_PROTOCOL] = protocol;
	it->header += words * 4;
}

static void ipv6(struct built *it, __u8 next)
{
	it->bytes[it->header] = 0x60;
	it->bytes[it->header + WIRE_IPV6_NEXT] = next;
	it->header += WIRE_IPV6_HEADER;
}

/* IPv4; or IPv6 with as many headers before TCP or UDP as a sender's stack makes. */
static void build(struct built *it)
{
	static const __u8 kinds[] = { NEXTHDR_HOP, NEXTHDR_ROUTING, NEXTHDR_DEST, IPPROTO_IPV6, IPPROTO_IPIP };
	__u8 chain[WIRE_MAX_EXTENSIONS + 1], transport = below(2) ? IPPROTO_TCP : IPPROTO_UDP;
	__u32 count = 0;

	for (__u32 i = 0; i < MOST_HEADERS; i += sizeof(__u64)) {
		__u64 number = noise();

		memcpy(it->bytes + i, &number, sizeof(number));
	}
	it->header = 0;
	it->tcp = it->plain = transport == IPPROTO_TCP;
	if (below(3) == 0) {
		ipv4(it, transport);
	} else {
		while (count < WIRE_MAX_EXTENSIONS && below(2)) {
			chain[count] = kinds[below(sizeof(kinds))];
			if (chain[count++] == IPPROTO_IPIP)
				break; /* the last that is looked behind */
		}
		it->plain = it->plain && !count;
		chain[count] = transport;
		ipv6(it, chain[0]);
		for (__u32 i = 0; i < count; i++) {
			if (chain[i] == IPPROTO_IPV6)
				ipv6(it, chain[i + 1]);
			else if (chain[i] == IPPROTO_IPIP)
				ipv4(it, chain[i + 1]);
			else
				extension(it, chain[i + 1]);
		}
	}
	if (it->tcp) {
		__u32 words = 5 + below(11);

		it->bytes[it->header + WIRE_TCP_OFFSET] = words << 4 | below(16);
		it->header += words * 4;
	} else {
		it->header += WIRE_UDP_HEADER;
	}
	it->length = it->header + (below(4) ? below(MOST - it->header) : 0);
}

/* The linear part and the whole packet end where memory ends, so a byte too far is an error. */
static struct packet measured(const __u8 *bytes, __u32 length, __u32 linear, __u32 segments, __u32 size)
{
	__u8 *head = malloc(linear ? linear : 1), *all = malloc(length ? length : 1);
	struct __sk_buff skb = { .len = length, .gso_segs = segments, .gso_size = size, .all = all };
	struct packet packet;

	memcpy(head, bytes, linear);
	memcpy(all, bytes, length);
	skb.data = (unsigned long)head;
	skb.data_end = skb.data + linear;
	packet = packet_unpack(wire_measure(&skb));
	free(head);
	free(all);
	return packet;
}

static void a_whole_packet(void)
{
	static struct built it;
	struct packet packet;
	__u32 segments, size, payload;

	build(&it);
	payload = it.length - it.header;
	packet = measured(it.bytes, it.length, it.length, 0, 0);
	check(packet.bytes == it.length && packet.segments == 1, "a plain packet's size");
	check(packet.tcp == it.plain, "a plain packet's protocol");
	check(packet.control == (it.plain && !payload), "a plain packet's payload");
	size = 1 + below(1500);
	segments = below(3) ? 1 + payload / size : 0;
	packet = measured(it.bytes, it.length, it.header, segments, size);
	if (!segments)
		segments = payload ? (payload + size - 1) / size : 1;
	check(packet.segments == segments, "a GSO packet's segments");
	check(packet.bytes == it.length + (segments - 1) * it.header, "a GSO packet's size");
	check(packet.tcp == it.tcp, "a GSO packet's protocol");
}

static void a_spoiled_packet(void)
{
	static struct built it;
	struct packet packet;
	__u32 length, linear;

	build(&it);
	for (__u32 changes = below(12); changes; changes--)
		it.bytes[below(it.header + 8)] = awkward();
	length = below(3) ? below(it.length + 1) : it.length;
	linear = below(3) ? below(length + 1) : length;
	packet = measured(it.bytes, length, linear, below(2) ? 0 : below(65536), below(2) ? 0 : 1 + below(65535));
	check(packet.bytes >= length, "less than its length is charged");
}

static void any_bytes(void)
{
	__u32 segments = below(2) ? 0 : below(65536);
	__u32 size = below(2) ? 0 : 1 + below(65535), linear = any(), length = input_end - input;
	struct packet packet;

	packet = measured(input, length, linear < length ? linear : length, segments, size);
	check(packet.bytes >= length, "less than its length is charged");
}

static void one(void)
{
	switch (below(3)) {
	case 0:
		return a_whole_packet();
	case 1:
		return a_spoiled_packet();
	default:
		return any_bytes();
	}
}
