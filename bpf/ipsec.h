/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * IPsec traffic through a tunnel device passes the hook twice, each time with its socket: unencrypted on that device
 * (xfrm, vti; also gre, vxlan and others whose packets a policy encrypts), and encrypted on the device below. It is
 * charged the first time, where TCP can still be seen and paced. Traffic that only a policy encrypts passes here once,
 * encrypted, and is charged then.
 *
 * An encrypted packet passes uncharged if three things hold, none of which its sender can forge:
 * - The kernel's IPsec made it (IPSKB_XFRM_TRANSFORMED). Neither a raw socket nor a datagram that looks like ESP, from
 *   any port, has that flag.
 * - It has been through a device before, where the hook has seen it: the first device that sends a packet sets
 *   sender_cpu. So a socket that sends some packets unencrypted and others through a policy is charged for all of them.
 * - Its socket has credit: the bytes that it was charged for unencrypted, plus what encryption may add to them. One
 *   path leads through a device but past the hook, a VRF with a queueing discipline; without credit, everything that a
 *   policy encrypts there would pass.
 *
 * So in every arrangement, no more passes uncharged than was charged before, plus what encryption adds. Where one of
 * the three cannot be known, packets are charged twice: with lockdown=confidentiality, which forbids the look; where
 * one IPsec device sends through another; and for the very first packets.
 *
 * Without IPsec the cost is one look at each packet's protocol, and for UDP at its port.
 */
#ifndef LIMITER_IPSEC_H
#define LIMITER_IPSEC_H

#include <bpf/bpf_endian.h>

#include "kernel_memory.h"
#include "wire.h"

/* From net/ip.h, linux/ipv6.h: macros, which vmlinux.h lacks. */
#define IPSKB_XFRM_TRANSFORMED 4
#define IP6SKB_XFRM_TRANSFORMED 1
#define ETH_P_IP 0x0800
/* The source port of ESP in UDP (RFC 3948). It is not seen behind IPv4 options, which a tunnel does not add. */
#define IPSEC_UDP_PORT 4500
/*
 * Bytes that may be added to each packet: the tunnel's headers (IPv6, UDP, ESP with initialisation vector, padding and
 * check value: 121; vxlan: 50 more), and the headers of each further segment of a GSO packet.
 */
#define IPSEC_OVERHEAD 256
/*
 * A datagram larger than the tunnel's packets is fragmented before encryption, hardly ever into smaller pieces than
 * this.
 */
#define IPSEC_PIECE 1024
/* More than the queues of encryption hold. */
#define IPSEC_CREDIT_MOST (1 << 20)

/* Socket storage: bytes that may pass uncharged. Not pinned: when the program is replaced, a few are charged twice. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __s64);
} ipsec_credit_map SEC(".maps");

/* Whether this host has seen such a packet: until then no socket needs credit. */
bool ipsec_seen;

/* Every kernel has these, but not every vmlinux.h. */
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

/* Whether it looks like an IPsec packet, which anybody can make. */
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

/* Whether the kernel's IPsec made the packet after it had been through a device. The context is the packet itself. */
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

/* Whether a packet that looks like IPsec was charged before it was encrypted. Not inlined: see charge.h. */
__noinline bool ipsec_charged(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;
	__s64 *credit;

	if (!kernel_memory || !sk || !ipsec_made(skb))
		return false;
	if (!ipsec_seen)
		ipsec_seen = true;
	credit = bpf_sk_storage_get(&ipsec_credit_map, sk, NULL, 0);
	/* Another CPU may take from it meanwhile. Then it becomes negative, and is paid back first. */
	if (!credit || *credit < skb->len)
		return false;
	__sync_fetch_and_add(credit, -(__s64)skb->len);
	return true;
}

/* Gives credit for a charged packet that may now be encrypted, at once or later in the queues of a crypto device. */
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
