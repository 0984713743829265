/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Finds rules by the names of cgroups. User space compiles all patterns of cgroup paths into a graph (core/patterns.py).
 * The names of a socket's cgroups, from the root down, lead from node to node, and a node may have a rule. No id can go
 * stale: when a service restarts, its new cgroup leads to the same node.
 *
 * A graph never changes. The next one has other node numbers, and rate_limit_graph_map switches to it.
 */
#ifndef LIMITER_GRAPH_H
#define LIMITER_GRAPH_H

#include "budget.h"
#include "kernel_memory.h"
#include "maps.h"
#include "siphash.h"

/* include/net/tcp_states.h: of a request_sock, which has its listener's cgroup. */
#define GRAPH_NEW_SYN_RECV 12

/*
 * Before 6.1 the way up is climbed, and users make it as long as they like: so many levels in one climb, and so many
 * climbs. The kernel needs 17 GB for that many cgroups above each other.
 */
#define GRAPH_STEPS 1024
#define GRAPH_CLIMBS 64

/*
 * Bits that no rule's id has: the kernel would have to make 2^62 cgroups and files first. The first one is beside a rule,
 * the second one tells a budget's key from a rule.
 */
#define GRAPH_SHARES (1ULL << 63)
#define GRAPH_BUDGET (1ULL << 62)

/* Bytes of a shape's text. */
#define GRAPH_BEFORE(shape) ((shape) >> 8 & 0x7f)
#define GRAPH_BEHIND(shape) ((shape)&0x7f)

/* Before 5.15: a pointer, or, marked by its low bits, the numbers of net_cls and net_prio. */
struct sock_cgroup_data___tagged {
	__u64 val;
} __attribute__((preserve_access_index));

struct sock_cgroup_data___named {
	struct cgroup *cgroup;
} __attribute__((preserve_access_index));

/* Since 6.1. */
struct cgroup___ancestors {
	struct cgroup *ancestors[0];
} __attribute__((preserve_access_index));

/* A socket's cgroup, an address; 0 where there is none. */
static __always_inline __u64 graph_cgroup_of(const struct sock *sk)
{
	const struct sock_cgroup_data___tagged *tagged;
	const struct sock_cgroup_data___named *named;
	__u64 value;

	named = (const void *)__builtin_preserve_access_index(&sk->sk_cgrp_data);
	if (bpf_core_field_exists(named->cgroup))
		return (__u64)BPF_CORE_READ(named, cgroup);
	tagged = (const void *)named;
	value = BPF_CORE_READ(tagged, val);
	return value & 3 ? 0 : value;
}

/* The cgroup of a packet's socket, as bpf_skb_cgroup_id() finds it. The context is the packet itself. */
static __always_inline __u64 graph_cgroup(struct __sk_buff *context)
{
	const struct sk_buff *skb = (const void *)context;
	const struct sock *sk = BPF_CORE_READ(skb, sk);

	if (!sk)
		return 0;
	if (BPF_CORE_READ(sk, __sk_common.skc_state) == GRAPH_NEW_SYN_RECV)
		sk = BPF_CORE_READ((const struct request_sock *)sk, __req_common.skc_listener);
	return sk ? graph_cgroup_of(sk) : 0;
}

static __always_inline struct cgroup *graph_parent(const struct cgroup *cgroup)
{
	return (void *)BPF_CORE_READ(cgroup, self.parent) - bpf_core_field_offset(struct cgroup, self);
}

/* Up towards the deepest level at which patterns are looked for, as far as one climb comes. Not inlined: charge.h. */
__noinline __u64 graph_climb(__u64 cgroup)
{
	struct cgroup *here = (void *)cgroup;

	/* Here, too: the verifier walks each function by itself, whoever calls it. */
	if (!kernel_memory)
		return 0;
	for (int i = 0; i < GRAPH_STEPS && BPF_CORE_READ(here, level) >= LIMITER_MAX_DEPTH; i++)
		here = graph_parent(here);
	return (__u64)here;
}

/* The last cgroup on the way to one that patterns are looked for at, so that it is climbed once. Not inlined: charge.h. */
__noinline __u64 graph_near(__u64 cgroup)
{
	if (!kernel_memory || bpf_core_field_exists(((const struct cgroup___ancestors *)0)->ancestors))
		return cgroup;
	for (int i = 0; i < GRAPH_CLIMBS && BPF_CORE_READ((struct cgroup *)cgroup, level) >= LIMITER_MAX_DEPTH; i++)
		cgroup = graph_climb(cgroup);
	return cgroup;
}

/* The cgroup at a level of the way to another one, which before 6.1 is near enough: graph_near(). */
static __always_inline struct cgroup *graph_ancestor(struct cgroup *cgroup, __u32 level)
{
	const struct cgroup___ancestors *known = (const void *)cgroup;
	struct cgroup *above = NULL;
	const void *slot;

	if (bpf_core_field_exists(known->ancestors)) {
		slot = (const void *)cgroup + bpf_core_field_offset(known->ancestors) +
		       level % LIMITER_MAX_DEPTH * sizeof(above);
		bpf_probe_read_kernel(&above, sizeof(above), slot);
		return above;
	}
	for (int i = 0; i < LIMITER_MAX_DEPTH; i++) {
		if (BPF_CORE_READ(cgroup, level) <= (int)level)
			return cgroup;
		cgroup = graph_parent(cgroup);
	}
	return NULL;
}

/*
 * Where the kernel keeps the name of the cgroup at a level of the way to another one; 0: it has none. Not inlined, nor
 * called by graph_step(), whose key takes most of the stack: charge.h.
 */
__noinline __u64 graph_name(__u64 cgroup, __u32 level)
{
	struct cgroup *here;

	/* Here, too: the verifier walks each function by itself, whoever calls it. */
	if (!kernel_memory)
		return 0;
	here = graph_ancestor((void *)cgroup, level);
	return here ? (__u64)BPF_CORE_READ(here, kn, name) : 0;
}

/*
 * One level down: the node of the cgroup with a name, whose parent is at the node `above`. 0: no pattern leads on. Not
 * inlined: charge.h.
 */
__noinline __u32 graph_step(__u64 named, __u32 above)
{
	struct rate_limit_edge edge = { .above = above };
	/* Read each time: kept, they would take stack. */
	const volatile __u32 *shape = &edge.shape;
	const char *name = (const char *)named, *end;
	struct rate_limit_node *node;
	__u32 *found;

	if (!kernel_memory || !name)
		return 0;
	end = name + bpf_probe_read_kernel_str(edge.name, sizeof(edge.name), name) - 1;
	if (end <= name)
		return 0;
	found = bpf_map_lookup_elem(&rate_limit_edge_map, &edge);
	if (found)
		return *found;
	node = bpf_map_lookup_elem(&rate_limit_node_map, &edge.above);
	/* Most names look like no shape, and each look-up takes long. */
	if (!node || node->strange & 1U << (edge.name[0] & 31))
		return 0;
	for (int i = 0; i < LIMITER_MAX_SHAPES && !found; i++) {
		edge.shape = node->shapes[i];
		if (!*shape)
			break;
		if (name + GRAPH_BEFORE(*shape) > end - GRAPH_BEHIND(*shape))
			continue;
		__builtin_memset(edge.name, 0, sizeof(edge.name));
		bpf_probe_read_kernel(edge.name, GRAPH_BEFORE(*shape), name);
		bpf_probe_read_kernel(edge.name + GRAPH_BEFORE(*shape), GRAPH_BEHIND(*shape),
				      end - GRAPH_BEHIND(*shape));
		found = bpf_map_lookup_elem(&rate_limit_edge_map, &edge);
	}
	return found ? *found : 0;
}

/*
 * The hash of a whole name, 0 where there is none. `key` is a secret, or what came of the names below it. Not inlined:
 * charge.h.
 */
__noinline __u64 graph_hash(__u64 named, __u64 key)
{
	struct siphash hash = siphash_begin(key);
	/* Eight bytes of it as a number, and room for NUL. */
	struct {
		__u64 bytes;
		char nul;
	} part;
	const long whole = sizeof(part.bytes);
	long length = whole + 1;

	/* Here, too: the verifier walks each function by itself, whoever calls it. */
	if (!kernel_memory)
		return 0;
	for (int i = 0; i <= LIMITER_MAX_NAME && length > whole; i += whole) {
		part.bytes = 0;
		length = bpf_probe_read_kernel_str(&part, whole + 1, (const char *)named + i);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
		part.bytes = __builtin_bswap64(part.bytes);
#endif
		if (length <= whole)
			part.bytes |= (__u64)(i + length - 1) << SIPHASH_LENGTH;
		siphash_add(&hash, part.bytes);
	}
	/* Longer than any that a pattern could name, which the kernel allows: it shares its rule's state. */
	return length > whole ? 0 : siphash_end(&hash);
}

/*
 * What the keys of all budgets begin with: otherwise who may choose a name could choose one that shares another's budget.
 * It is drawn when the first budget is made, and stays as long as budgets do.
 */
static __always_inline __u32 graph_secret(void)
{
	__u32 index = 0, drawn;
	struct rate_limit_slot *slot = bpf_map_lookup_elem(&rate_limit_slot_map, &index);

	if (!slot)
		return 0;
	if (!slot->secret) {
		drawn = bpf_get_prandom_u32() | 1;
		bpf_spin_lock(&slot->lock);
		if (!slot->secret)
			slot->secret = drawn;
		bpf_spin_unlock(&slot->lock);
	}
	return slot->secret;
}

/*
 * The key of the budget of the cgroup at a level of the way to another one: a hash of its names, from the root of the
 * graph down, and of nothing else. 0: it is not below that root. Two that differ have one key as rarely as a guess of 62
 * bits is right. Every version has to make the same ones, since maps outlive programs. Not inlined: charge.h.
 */
__noinline __u64 graph_budget(__u64 way, __u32 level)
{
	__u32 index = 0;
	struct rate_limit_graph *graph = bpf_map_lookup_elem(&rate_limit_graph_map, &index);
	struct cgroup *here;
	struct kernfs_node *node;
	__u64 root, hash;

	/* Here, too: the verifier walks each function by itself, whoever calls it. */
	if (!kernel_memory || !graph)
		return 0;
	root = graph->root;
	hash = graph_secret();
	here = graph_ancestor((void *)way, level);
	for (int i = 0; i < LIMITER_MAX_DEPTH && here && hash; i++) {
		node = BPF_CORE_READ(here, kn);
		if (BPF_CORE_READ(node, id) == root)
			return GRAPH_BUDGET | hash % GRAPH_BUDGET;
		hash = graph_hash((__u64)BPF_CORE_READ(node, name), hash);
		here = graph_parent(here);
	}
	return 0;
}

/*
 * The rule of a cgroup at a node, or the cgroup's own budget of that rule; 0: none. It is at a level of the way to `way`.
 * Where there is no room for another budget: the rule's own state with GRAPH_SHARES. Not inlined: charge.h.
 */
__noinline __u64 graph_rule(__u32 number, __u64 cgroup, __u64 way, __u32 level)
{
	struct rate_limit_node *node = bpf_map_lookup_elem(&rate_limit_node_map, &number);
	__u64 rule, budget;

	if (!node)
		return 0;
	rule = node->rule;
	if (!rule || !node->each)
		return rule;
	budget = graph_budget(way, level);
	if (budget && budget_make(rule, budget, cgroup))
		return budget;
	budget_count_shared(rule);
	return rule | GRAPH_SHARES;
}

/* The node of a cgroup at a level of the way to `way`. Its parent is at the node `above`. */
static __always_inline __u32 graph_follow(const struct rate_limit_graph *graph, __u64 cgroup, __u64 way, __u32 level,
					  __u32 above)
{
	if (cgroup == graph->root)
		return graph->node;
	return above ? graph_step(graph_name(way, level), above) : 0;
}

/* One look at the graph in use. It has no node where there is none, or where the kernel forbids BPF to read memory. */
static __always_inline struct rate_limit_graph graph_in_use(void)
{
	__u32 index = 0;
	struct rate_limit_graph *graph = bpf_map_lookup_elem(&rate_limit_graph_map, &index);

	return graph && kernel_memory ? *graph : (struct rate_limit_graph){};
}

/*
 * Makes a budget again that was removed after its cgroup's rules were found. Returns what is charged in its place, 0
 * where it is no budget. Not inlined: charge.h.
 */
__noinline __u64 graph_again(struct __sk_buff *skb, __u64 budget)
{
	struct rate_limit_graph graph;
	__u64 way, cgroup;
	__u32 node = 0;

	/* Here, too: the verifier walks each function by itself, whoever calls it. */
	if (!kernel_memory || !(budget & GRAPH_BUDGET))
		return 0;
	way = graph_near(graph_cgroup(skb));
	if (!way)
		return 0;
	for (int level = 0; level < LIMITER_MAX_DEPTH; level++) {
		cgroup = bpf_skb_ancestor_cgroup_id(skb, level);
		if (!cgroup)
			return 0;
		/* Read each time: kept, it would take stack that graph_step() needs. */
		graph = graph_in_use();
		node = graph_follow(&graph, cgroup, way, level, node);
		if (node && graph_budget(way, level) == budget)
			return graph_rule(node, cgroup, way, level) & ~GRAPH_SHARES;
	}
	return 0;
}
#endif
