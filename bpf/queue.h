/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The packet's own device, as far as it holds packets until their departure time: if the queueing discipline of each of
 * its queues is fq. Any other one ignores the time, or has its own use for it (etf). So this is read anew from the
 * kernel for each packet that has to wait; a device's queueing discipline may be replaced at any time.
 */
#ifndef LIMITER_QUEUE_H
#define LIMITER_QUEUE_H

#include "departure.h"
#include "kernel_memory.h"
#include "maps.h"
#include "wire.h"

/* Queues of a device that are looked at; an administrator may have given a leaf of mq another kind. */
#define QUEUE_MOST 64
/* fq sends packets of this priority at once, whatever their time is: the kernel's TC_PRIO_CONTROL, by its lowest bits. */
#define QUEUE_AT_ONCE 7
#define QUEUE_AT_ONCE_MASK 15
#define QUEUE_LONGEST_NS 1000000000
/* More than departure_room() is for packets of any size. */
#define QUEUE_ROOM_MOST ((1 << 28) - 1)

/* Every kernel has these, but not every vmlinux.h. */
struct Qdisc_ops___queue {
	char id[16];
} __attribute__((preserve_access_index));

struct qdisc_skb_head___queue {
	__u32 qlen;
} __attribute__((preserve_access_index));

struct Qdisc___queue {
	const struct Qdisc_ops___queue *ops;
	__u32 limit;
	struct qdisc_skb_head___queue q;
} __attribute__((preserve_access_index));

struct netdev_queue___queue {
	struct Qdisc___queue *qdisc;
} __attribute__((preserve_access_index));

struct net_device___queue {
	struct netdev_queue___queue *_tx;
	unsigned int real_num_tx_queues;
} __attribute__((preserve_access_index));

static __always_inline bool queue_is_fq(const struct Qdisc_ops___queue *ops)
{
	char id[4] = {};

	bpf_probe_read_kernel(id, sizeof(id), (const void *)ops + bpf_core_field_offset(ops->id));
	return id[0] == 'f' && id[1] == 'q' && !id[2];
}

/* Where half of what may wait waits, what another process sends has to find room. */
static __always_inline bool queue_is_busy(struct Qdisc___queue *qdisc)
{
	return 2 * BPF_CORE_READ(qdisc, q.qlen) >= BPF_CORE_READ(qdisc, limit);
}

/* Whether a device holds packets: each of its queues is fq, and none is busy. Not inlined: see charge.h. */
__noinline bool queue_of_device(__u64 device)
{
	const struct net_device___queue *dev = (const void *)device;
	const struct Qdisc_ops___queue *ops;
	struct netdev_queue___queue *first;
	struct Qdisc___queue *qdisc;
	__u32 count;

	/* Here, too: the verifier walks each function by itself, whoever calls it. */
	if (!kernel_memory)
		return false;
	first = BPF_CORE_READ(dev, _tx);
	qdisc = first ? BPF_CORE_READ(first, qdisc) : NULL;
	ops = qdisc ? BPF_CORE_READ(qdisc, ops) : NULL;
	if (!ops || !queue_is_fq(ops) || queue_is_busy(qdisc))
		return false;
	count = BPF_CORE_READ(dev, real_num_tx_queues);
	for (__u32 i = 1; i < QUEUE_MOST && i < count; i++) {
		first = (void *)first + bpf_core_type_size(struct netdev_queue);
		qdisc = BPF_CORE_READ(first, qdisc);
		if (!qdisc || BPF_CORE_READ(qdisc, ops) != ops || queue_is_busy(qdisc))
			return false;
	}
	return true;
}

/*
 * Whether more than one host may get the packet: multicast and broadcast. The kernel sends a copy to its own sockets,
 * with the departure time as the time of its arrival.
 */
__noinline bool queue_copies(struct __sk_buff *skb)
{
	if (wire_byte(skb, 0) >> 4 == WIRE_IPV4_VERSION)
		return wire_byte(skb, WIRE_IPV4_DESTINATION) >= WIRE_IPV4_MULTICAST;
	return wire_byte(skb, WIRE_IPV6_DESTINATION) == WIRE_IPV6_MULTICAST;
}

/* Whether the packet's device holds it. */
__noinline bool queue_holds(struct __sk_buff *context)
{
	const struct sk_buff *skb = (const void *)context;

	if (!kernel_memory || (context->priority & QUEUE_AT_ONCE_MASK) == QUEUE_AT_ONCE)
		return false;
	return queue_of_device((__u64)BPF_CORE_READ(skb, dev)) && !queue_copies(context);
}

/* departure_room() where the packet's device holds it, else 0. */
__noinline __u64 queue_room(struct __sk_buff *skb, __u64 rule, __u64 measured)
{
	struct packet packet = packet_unpack(measured);
	struct rate_limit_state *state;
	__u64 room;

	if (!queue_holds(skb))
		return 0;
	state = bpf_map_lookup_elem(&rate_limit_state_map, &rule);
	if (!state)
		return 0;
	room = departure_room(state, &packet);
	return room < QUEUE_ROOM_MOST ? room : QUEUE_ROOM_MOST;
}

/*
 * How long a packet that has passed waits for a rule, or `most` if that is longer. Counts it, each of its segments. Not
 * exact beside another CPU, whose packet it may wait for too.
 */
__noinline __u64 queue_wait(__u64 rule, __u64 measured, __u64 most)
{
	struct rate_limit_state *state = rule ? bpf_map_lookup_elem(&rate_limit_state_map, &rule) : NULL;
	struct packet packet = packet_unpack(measured);
	__u64 now, wait;

	if (!state)
		return most;
	now = bpf_ktime_get_ns();
	state->waiting_size = departure_size(state, &packet);
	wait = departure_wait(state, &packet, now);
	if (!wait)
		return most;
	use_delay(state, now);
	__sync_fetch_and_add(&state->delayed_packets, packet.segments);
	__sync_fetch_and_add(&state->delay_ns, wait * packet.segments);
	return wait > most ? wait : most;
}

/*
 * Gives a packet its departure time: `wait` from now, but not before what its connection has sent earlier. A later time
 * that is there already, TCP's or its process's (SO_TXTIME), stays.
 */
__noinline int queue_depart(struct __sk_buff *skb, __u64 wait)
{
	__u64 now = bpf_ktime_get_ns(), departs = now + wait;
	struct rate_limit_pacing *pacing = NULL;
	struct bpf_sock *sk = skb->sk;

	if (!queue_holds(skb))
		return 0;
	if (sk)
		pacing = bpf_sk_storage_get(&rate_limit_pacing_map, sk, NULL, 0);
	if (pacing && pacing->departs_ns - departs < QUEUE_LONGEST_NS)
		departs = pacing->departs_ns;
	if (departs <= now)
		return 0;
	if (pacing)
		pacing->departs_ns = departs;
	if (skb->tstamp < departs)
		skb->tstamp = departs;
	return 0;
}
#endif
