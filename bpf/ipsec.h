/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What IPsec sends passes the hook twice where it goes through a device of its own: as it is, on the tunnel's device
 * (xfrm, vti; and gre, vxlan and others whose packets a policy encrypts), and encrypted, on the device below, with its
 * socket both times. It is charged the first time, where TCP can still be seen and paced. What a policy alone encrypts
 * comes here encrypted only, and is charged then.
 *
 * An encrypted packet passes uncharged where three things hold, none of which its sender can make up:
 * - The kernel's IPsec made it (IPSKB_XFRM_TRANSFORMED). Neither what a raw socket sends nor a datagram that looks like
 *   ESP, from whatever port, has that mark.
 * - It went through a device before (the first one that sends a packet sets sender_cpu), where the hook has seen it. So
 *   a socket that sends some packets as they are and others encrypted by a policy is charged for all of them.
 * - Its socket has credit: as many bytes as were charged for what it sent as it is, and what encryption may add to
 *   these. One way leads through a device and past the hook, a VRF with a queueing discipline; without credit, all that
 *   a policy encrypts there would pass. So whatever anybody arranges, no more passes uncharged than was charged before,
 *   with what encryption adds. Where one of the three cannot be known, packets are charged twice: in
 *   lockdown=confidentiality, which forbids to look, where IPsec goes through IPsec's device, and the first packets of
 *   all.
 *
 * Without IPsec the cost is a look at each packet's protocol, and for UDP at its port.
 */
#ifndef LIMITER_IPSEC_H
#define LIMITER_IPSEC_H

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>

#include "wire.h"

/* net/ip.h, linux/ipv6.h: macros, which vmlinux.h lacks. */
#define IPSKB_XFRM_TRANSFORMED 4
#define IP6SKB_XFRM_TRANSFORMED 1
#define ETH_P_IP 0x0800
/* From which UDP carries ESP (RFC 3948). Behind options of IPv4, which a tunnel has none of, it is not seen. */
#define IPSEC_UDP_PORT 4500
/*
 * Bytes that may be added to each packet: headers of a tunnel (IPv6, UDP, ESP with initialisation vector, padding and
 * check value: 121; vxlan: 50 more) and, to each segment of a GSO packet but the first, its own headers.
 */
#define IPSEC_OVERHEAD 256
/*
 * A datagram larger than the tunnel's packets is cut before it is encrypted, hardly ever into smaller pieces than
 * these.
 */
#define IPSEC_PIECE 1024
/* More than encryption has in its queues. */
#define IPSEC_CREDIT_MOST (1 << 20)

/*
 * Socket storage: the bytes that may pass uncharged. Not pinned: when the program is replaced, a few are charged twice.
 */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __s64);
} ipsec_credit_map SEC(".maps");

/* False where the kernel forbids BPF to read its memory: then it is not tried. In a section of its own, set by name. */
const volatile bool ipsec_looks SEC(".rodata.ipsec") = true;
/* Whether there was such a packet on this host: before, no socket needs credit. */
bool ipsec_seen;

/* As every kernel has them, and not every vmlinux.h. */
struct sk_buff___ipsec {
	unsigned int sender_cpu;
	char cb[48];
} __attribute__((preserve_access_index));

struct inet_skb_parm___ipsec {
	__u16 flags;
} __attribute__((preserve_access_index));

struct inet6_skb_parm___ipsec {
	__u16 flags;
} __attribute__((preserve_access_index));

/* Whether it looks like a packet of IPsec, which anybody can make. */
static __always_inline bool ipsec_suspected(struct __sk_buff *skb)
{
	__u8 *ip = (void *)(long)skb->data, protocol;
	void *end = (void *)(long)skb->data_end;
	__u32 header = WIRE_IPV4_HEADER;

	if ((void *)ip + WIRE_IPV4_HEADER > end)
		return false;
	protocol = ip[WIRE_IPV4_PROTOCOL];
	if (ip[0] >> 4 != WIRE_IPV4_VERSION) {
		protocol = ip[WIRE_IPV6_NEXT];
		header = WIRE_IPV6_HEADER;
	}
	if (protocol == IPPROTO_UDP)
		return (void *)ip + header + WIRE_UDP_HEADER <= end &&
		       *(__be16 *)(ip + header) == bpf_htons(IPSEC_UDP_PORT);
	return protocol == IPPROTO_ESP || protocol == IPPROTO_AH || protocol == IPPROTO_COMP;
}

/* Whether the kernel's IPsec made the packet, after it had gone through a device. The context is the packet itself. */
static __always_inline bool ipsec_made(struct __sk_buff *context)
{
	struct sk_buff___ipsec *skb = (void *)context;
	void *control = (void *)skb + bpf_core_field_offset(skb->cb);
	struct inet6_skb_parm___ipsec *ipv6 = control;
	struct inet_skb_parm___ipsec *ipv4 = control;

	if (!bpf_core_field_exists(skb->sender_cpu) || !BPF_CORE_READ(skb, sender_cpu))
		return false;
	if (context->protocol == bpf_htons(ETH_P_IP))
		return bpf_core_field_exists(ipv4->flags) && BPF_CORE_READ(ipv4, flags) & IPSKB_XFRM_TRANSFORMED;
	return bpf_core_field_exists(ipv6->flags) && BPF_CORE_READ(ipv6, flags) & IP6SKB_XFRM_TRANSFORMED;
}

/* Whether a packet that looks like one of IPsec was charged before it was encrypted. Not inlined: see charge.h. */
__noinline bool ipsec_charged(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;
	__s64 *credit;

	if (!ipsec_looks || !sk || !ipsec_made(skb))
		return false;
	if (!ipsec_seen)
		ipsec_seen = true;
	credit = bpf_sk_storage_get(&ipsec_credit_map, sk, NULL, 0);
	/* Another CPU may take of it meanwhile: it is less than nothing then, and paid back first. */
	if (!credit || *credit < skb->len)
		return false;
	__sync_fetch_and_add(credit, -(__s64)skb->len);
	return true;
}

/* A packet was charged that may be encrypted now, at once or, in the queues of a crypto device, later. */
__noinline bool ipsec_give(struct __sk_buff *skb)
{
	__u32 pieces = 1 + skb->gso_segs + skb->len / IPSEC_PIECE;
	struct bpf_sock *sk = skb->sk;
	__s64 *credit;

	if (!sk || ipsec_suspected(skb))
		return false;
	credit = bpf_sk_storage_get(&ipsec_credit_map, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!credit || *credit >= IPSEC_CREDIT_MOST)
		return false;
	__sync_fetch_and_add(credit, (__s64)skb->len + pieces * IPSEC_OVERHEAD);
	return true;
}
#endif
