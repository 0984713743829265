/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A trace: limit_and_trace decides as limit_egress does, and also tells what it decided, and why, of the packets that
 * user space asked for. It has the place of limit_egress only while a trace lasts. All of this costs nothing otherwise:
 * limit_egress is compiled without it.
 *
 * It never waits for who reads: what finds no room in the ring buffer is counted and left out. It ends by itself after
 * its time, since who began it may have been killed.
 */
#ifndef LIMITER_TRACE_H
#define LIMITER_TRACE_H

#include <bpf/bpf_endian.h>

#include "attribution.h"
#include "charge.h"
#include "packet.h"
#include "traced.h"
#include "wire.h"

const volatile struct traced_filter trace_filter SEC(".rodata.trace") = { .duration_ns = ~0ULL, .outcomes = ~0U };

/* 3,800 packets, which is more than comes between two looks of who reads. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} trace_ring SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct traced_state);
} trace_state_map SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, TRACED_CGROUPS);
	__type(key, __u64);
	__type(value, __u32);
} trace_cgroup_map SEC(".maps");

/* Accepted sockets get a copy, since they belong to the same process. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, __u32);
} trace_socket_map SEC(".maps");

/*
 * Packets that were told as passing, by their addresses, with the cookies of their sockets. Addresses are used again: so
 * every packet that our program sees takes what it finds out.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, __u64);
} trace_passed_map SEC(".maps");

/* From where to where a packet goes. */
struct traced_way {
	__u64 source[2];
	__u64 target[2];
	__be16 ports[2];
	__u8 version;
	__u8 protocol;
};

/* The trace's state, if the trace is not over. */
static __always_inline struct traced_state *trace_running(__u64 now)
{
	__u32 index = 0;
	struct traced_state *state = bpf_map_lookup_elem(&trace_state_map, &index);

	if (!state)
		return NULL;
	if (!state->begin_ns)
		state->begin_ns = now;
	return now - state->begin_ns < trace_filter.duration_ns ? state : NULL;
}

/* Whether the socket's cgroup is one that was asked for, or below one. Not inlined: charge.h. */
__noinline bool trace_in_cgroup(struct __sk_buff *skb)
{
	__u64 cgroup;

	for (int level = 0; level < LIMITER_MAX_DEPTH; level++) {
		cgroup = bpf_skb_ancestor_cgroup_id(skb, level);
		if (!cgroup)
			break;
		if (bpf_map_lookup_elem(&trace_cgroup_map, &cgroup))
			return true;
	}
	return false;
}

/* Whether the packet's socket is one that was asked for. Not inlined: charge.h. */
__noinline bool trace_in_socket(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;

	return sk && bpf_sk_storage_get(&trace_socket_map, sk, NULL, 0);
}

static __always_inline void trace_find_way(struct __sk_buff *skb, struct traced_way *way)
{
	__u8 first = wire_byte(skb, 0);
	__u32 header;

	way->version = first >> 4;
	if (way->version == WIRE_IPV4_VERSION) {
		header = (first & 0xf) * 4;
		way->protocol = wire_byte(skb, WIRE_IPV4_PROTOCOL);
		bpf_skb_load_bytes(skb, 12, way->source, 4);
		bpf_skb_load_bytes(skb, 16, way->target, 4);
	} else {
		header = WIRE_IPV6_HEADER;
		way->protocol = wire_byte(skb, WIRE_IPV6_NEXT);
		bpf_skb_load_bytes(skb, 8, way->source, 16);
		bpf_skb_load_bytes(skb, 24, way->target, 16);
	}
	if (way->protocol == IPPROTO_TCP || way->protocol == IPPROTO_UDP)
		bpf_skb_load_bytes(skb, header, way->ports, sizeof(way->ports));
}

static __always_inline bool trace_is_address(const __u64 address[2])
{
	return !((address[0] ^ trace_filter.address[0]) & trace_filter.mask[0]) &&
	       !((address[1] ^ trace_filter.address[1]) & trace_filter.mask[1]);
}

static __always_inline bool trace_is_way(const struct traced_way *way)
{
	__be16 port = bpf_htons(trace_filter.port);

	if (port && way->ports[0] != port && way->ports[1] != port)
		return false;
	if (!trace_filter.version)
		return true;
	return way->version == trace_filter.version && (trace_is_address(way->source) || trace_is_address(way->target));
}

/* The rule that a state belongs to. */
static __always_inline __u64 trace_owner(__u64 key)
{
	struct rate_limit_state *state = bpf_map_lookup_elem(&rate_limit_state_map, &key);

	return state && state->limit && state->limit != LIMITER_NO_RULE ? state->limit : key;
}

/* Whether a rule that was asked for is among those that hold. Not inlined: charge.h. */
__noinline bool trace_has_rule(__u64 first, __u64 second, __u64 third, __u64 fourth)
{
	_Static_assert(LIMITER_MAX_NESTED == 4, "trace_has_rule() compares four");
	__u64 rule = trace_filter.rule;

	return trace_owner(first) == rule || trace_owner(second) == rule || trace_owner(third) == rule ||
	       trace_owner(fourth) == rule;
}

static __always_inline void trace_rule(struct traced_rule *told, __u64 key, __u32 answer)
{
	struct rate_limit_state *state = bpf_map_lookup_elem(&rate_limit_state_map, &key);

	told->cgroup = 0;
	told->rule = key;
	told->tokens = 0;
	told->share = 0;
	told->verdict = answer & VERDICT_MASK;
	told->reason = answer >> CHARGE_REASON;
	if (!state)
		return;
	if (state->limit && state->limit != LIMITER_NO_RULE) {
		told->rule = state->limit;
		told->cgroup = state->cgroup;
	}
	told->tokens = state->tokens;
	told->share = state->fair.share;
}

/*
 * The programs that the kernel runs for this packet, whatever becomes of them or of the cgroup. Since 5.15 its lists have
 * numbers of their own, which for these two hooks are what they were.
 */
static __always_inline void trace_programs(struct __sk_buff *skb, enum traced_kind kind,
					   __u32 programs[TRACED_PROGRAMS])
{
	const struct bpf_prog_array *list;
	const struct bpf_prog *program;
	const struct cgroup *cgroup;

	if (!kernel_memory)
		return;
	cgroup = (const void *)graph_cgroup(skb);
	if (!cgroup)
		return;
	if (kind == TRACED_IN)
		list = BPF_CORE_READ(cgroup, bpf.effective[BPF_CGROUP_INET_INGRESS]);
	else
		list = BPF_CORE_READ(cgroup, bpf.effective[BPF_CGROUP_INET_EGRESS]);
#pragma unroll
	for (int i = 0; i < TRACED_PROGRAMS; i++) {
		program = BPF_CORE_READ(list, items[i].prog);
		if (!program)
			break;
		programs[i] = BPF_CORE_READ(program, aux, id);
	}
}

/* What was decided: the reason of a drop or of a notice, or what else became of the packet. */
static __always_inline __u32 trace_outcome(const struct decision *decision, __u32 verdict)
{
	__u32 outcome = TRACED_PASSED;
	__u64 any = 0;

	if (!decision->measured)
		return decision->found.rules[0] ? TRACED_ENCRYPTED : TRACED_EXEMPT;
#pragma unroll
	for (int i = 0; i < LIMITER_MAX_NESTED; i++) {
		any |= decision->found.rules[i];
		if (verdict != VERDICT_PASS && (decision->answers[i] & VERDICT_MASK) == verdict)
			outcome = decision->answers[i] >> CHARGE_REASON;
	}
	/* An inner rule may have gone meanwhile: charge.h. */
	return any ? outcome : TRACED_EXEMPT;
}

/*
 * Tells of a packet, if it is asked for. Not inlined: so it has a stack of its own, of which limit_egress and what that
 * calls leave none on 5.10.
 */
static __noinline void trace_packet(struct __sk_buff *skb, const struct decision *decision, enum traced_kind kind,
				    __u32 verdict)
{
	__u32 outcome = trace_outcome(decision, verdict);
	__u64 now = bpf_ktime_get_ns(), context = (__u64)skb, cookie;
	const __u64 *rules = decision->found.rules;
	struct traced_state *state = trace_running(now);
	struct rate_limit_pacing *pacing = NULL;
	struct traced_way way = {};
	struct traced_packet *packet;
	struct bpf_sock *sk = skb->sk;

	if (!state)
		return;
	if (kind == TRACED_OUT && trace_filter.refused[0])
		bpf_map_delete_elem(&trace_passed_map, &context);
	if (!(trace_filter.outcomes >> (outcome & 31) & 1))
		return;
	if (trace_filter.cgroups && !trace_in_cgroup(skb))
		return;
	if (trace_filter.sockets && !trace_in_socket(skb))
		return;
	if (trace_filter.rule && !trace_has_rule(rules[0], rules[1], rules[2], rules[3]))
		return;
	trace_find_way(skb, &way);
	if (!trace_is_way(&way))
		return;
	cookie = bpf_get_socket_cookie(skb);
	if (sk)
		pacing = bpf_sk_storage_get(&rate_limit_pacing_map, sk, NULL, 0);
	packet = bpf_ringbuf_reserve(&trace_ring, sizeof(*packet), 0);
	if (!packet) {
		__sync_fetch_and_add(&state->lost, 1);
		return;
	}
	__sync_fetch_and_add(&state->told, 1);
	__builtin_memset(packet, 0, sizeof(*packet));
	packet->time_ns = now;
	packet->context = context;
	packet->cgroup = bpf_skb_cgroup_id(skb);
	packet->cookie = cookie;
	packet->measured = decision->measured ? decision->measured : wire_measure(skb);
	packet->kind = kind;
	packet->verdict = verdict;
	packet->outcome = outcome;
	packet->version = way.version;
	packet->protocol = way.protocol;
	packet->source[0] = way.source[0];
	packet->source[1] = way.source[1];
	packet->target[0] = way.target[0];
	packet->target[1] = way.target[1];
	packet->ports[0] = way.ports[0];
	packet->ports[1] = way.ports[1];
	if (pacing) {
		packet->share = pacing->share;
		packet->bottleneck = pacing->tightest;
	}
#pragma unroll
	for (int i = 0; i < LIMITER_MAX_NESTED; i++)
		if (rules[i])
			trace_rule(&packet->rules[i], rules[i], decision->answers[i]);
	trace_programs(skb, kind, packet->programs);
	/* Who reads looks from time to time: to wake him for each packet would cost the sender more than all else. */
	bpf_ringbuf_submit(packet, BPF_RB_NO_WAKEUP);
	if (kind == TRACED_OUT && trace_filter.refused[0] && verdict & VERDICT_PASSES)
		bpf_map_update_elem(&trace_passed_map, &context, &cookie, BPF_ANY);
}

/* The kernel ends a packet: told if it does so because a program refused it, and it was told as passing. */
static __always_inline void trace_refused(struct sk_buff *skb, __u64 location)
{
	__u64 context = (__u64)skb, now, *passed;
	struct traced_state *state;
	struct traced_packet *packet;
	struct sock *sk = skb->sk;
	bool here = false;

#pragma unroll
	for (int i = 0; i < TRACED_PLACES; i++)
		here |= location >= trace_filter.refused[2 * i] && location < trace_filter.refused[2 * i + 1];
	if (!here || !sk)
		return;
	passed = bpf_map_lookup_elem(&trace_passed_map, &context);
	/* Another one has had the address since, which our program is not attached to. A SYN-ACK had its listener's. */
	if (!passed ||
	    (*passed != (__u64)sk->__sk_common.skc_cookie.counter && sk->__sk_common.skc_state != GRAPH_NEW_SYN_RECV))
		return;
	bpf_map_delete_elem(&trace_passed_map, &context);
	now = bpf_ktime_get_ns();
	state = trace_running(now);
	if (!state)
		return;
	packet = bpf_ringbuf_reserve(&trace_ring, sizeof(*packet), 0);
	if (!packet) {
		__sync_fetch_and_add(&state->lost, 1);
		return;
	}
	__builtin_memset(packet, 0, sizeof(*packet));
	packet->time_ns = now;
	packet->context = context;
	packet->kind = TRACED_REFUSED;
	bpf_ringbuf_submit(packet, BPF_RB_NO_WAKEUP);
}
#endif
