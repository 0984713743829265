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

#include "kernel_memory.h"
#include "maps.h"

/* include/net/tcp_states.h: of a request_sock, which has its listener's cgroup. */
#define GRAPH_NEW_SYN_RECV 12

/* Levels that are climbed before 6.1: more cgroups above each other lead to no pattern. */
#define GRAPH_MAX_DEPTH 64

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

/* What a new budget begins as: a value with a lock can't be the source of another. */
struct graph_blank {
	__u8 zeros[sizeof(struct rate_limit_state)];
};

/* Not pinned. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct graph_blank);
} graph_blank_map SEC(".maps");

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

/* The cgroup at a level of the way to another one. */
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
	/* The way up from below is as long as the way is deep, and users make it. */
	for (int i = 0; i < GRAPH_MAX_DEPTH; i++) {
		if (BPF_CORE_READ(cgroup, level) <= (int)level)
			return cgroup;
		cgroup = (void *)BPF_CORE_READ(cgroup, self.parent) - bpf_core_field_offset(struct cgroup, self);
	}
	return NULL;
}

/*
 * One level down: the node of the cgroup at a level of the way to `cgroup`. Its parent is at the node `above`. 0: no
 * pattern leads on. Not inlined: charge.h.
 */
__noinline __u32 graph_step(__u64 cgroup, __u32 level, __u32 above)
{
	struct rate_limit_edge edge = { .above = above };
	struct rate_limit_node *node;
	struct cgroup *here;
	const char *name;
	__u32 *found;
	long length;

	/* Here, too: before 6.8 the verifier also walks functions that nobody calls. */
	if (!kernel_memory)
		return 0;
	here = graph_ancestor((void *)cgroup, level);
	if (!here)
		return 0;
	name = BPF_CORE_READ(here, kn, name);
	length = bpf_probe_read_kernel_str(edge.name, sizeof(edge.name), name) - 1;
	if (length <= 0)
		return 0;
	found = bpf_map_lookup_elem(&rate_limit_edge_map, &edge);
	if (found)
		return *found;
	node = bpf_map_lookup_elem(&rate_limit_node_map, &above);
	if (!node)
		return 0;
	for (int i = 0; i < LIMITER_MAX_SHAPES; i++) {
		__u32 shape = node->shapes[i], before = shape >> 8 & 0x7f, behind = shape & 0x7f;

		if (!shape)
			break;
		if (length < before + behind)
			continue;
		__builtin_memset(edge.name, 0, sizeof(edge.name));
		edge.shape = shape;
		bpf_probe_read_kernel(edge.name, before, name);
		bpf_probe_read_kernel(edge.name + before, behind, name + length - behind);
		found = bpf_map_lookup_elem(&rate_limit_edge_map, &edge);
		if (found)
			return *found;
	}
	return 0;
}

/* Makes a cgroup's own budget of a rule, with a full bucket, where it has none of it yet. False where there is no room. */
static __always_inline bool graph_budget(__u64 rule, __u64 cgroup)
{
	struct rate_limit_state *state = bpf_map_lookup_elem(&rate_limit_state_map, &cgroup);
	struct rate_limit_config *config;
	struct graph_blank *blank;
	__u32 index = 0;
	__u64 bucket;

	if (state && state->limit == rule)
		return true;
	blank = bpf_map_lookup_elem(&graph_blank_map, &index);
	config = bpf_map_lookup_elem(&rate_limit_config_map, &rule);
	/* A rule's own state is no budget. */
	if (!blank || !config || bpf_map_lookup_elem(&rate_limit_config_map, &cgroup))
		return false;
	bucket = config->bucket_size;
	bpf_map_update_elem(&rate_limit_state_map, &cgroup, blank, BPF_NOEXIST);
	state = bpf_map_lookup_elem(&rate_limit_state_map, &cgroup);
	if (!state)
		return false;
	bpf_spin_lock(&state->lock);
	/* Just made, or of a rule that it had before. */
	if (state->limit != rule) {
		state->limit = rule;
		state->generation = 0;
		state->tokens = bucket;
	}
	bpf_spin_unlock(&state->lock);
	return true;
}

/* The rule of a cgroup at a node, or the cgroup's own budget of that rule; 0: none. Not inlined: charge.h. */
__noinline __u64 graph_rule(__u32 number, __u64 cgroup)
{
	struct rate_limit_node *node = bpf_map_lookup_elem(&rate_limit_node_map, &number);
	__u64 rule;

	if (!node)
		return 0;
	rule = node->rule;
	/* Where there is no room for another budget they share the rule's. */
	return rule && node->each && graph_budget(rule, cgroup) ? cgroup : rule;
}

/* The node of a cgroup at a level of the way to `way`. Its parent is at the node `above`. */
static __always_inline __u32 graph_follow(const struct rate_limit_graph *graph, __u64 cgroup, __u64 way, __u32 level,
					  __u32 above)
{
	if (cgroup == graph->root)
		return graph->node;
	return above ? graph_step(way, level, above) : 0;
}

/* One look at the graph in use. It has no node where there is none, or where the kernel forbids BPF to read memory. */
static __always_inline struct rate_limit_graph graph_in_use(void)
{
	__u32 index = 0;
	struct rate_limit_graph *graph = bpf_map_lookup_elem(&rate_limit_graph_map, &index);

	return graph && kernel_memory ? *graph : (struct rate_limit_graph){};
}
#endif
