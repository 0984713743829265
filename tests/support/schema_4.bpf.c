// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The program as it was with schema 4 (bpf/ of 7a2615c in one file, without its comments), for the tests of what the next
 * schemas take over. Not to be changed.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>

#define LIMITER_SCHEMA 4
#define LIMITER_MAX_RULES 65536
#define LIMITER_MAX_MEMBERS 131072
#define LIMITER_MAX_NESTED 4
#define LIMITER_MAX_DEPTH 16
struct rate_limit_config {
	__u64 rate_bps;
	__u64 bucket_size;
};
struct fair_share {
	__u64 share;
	__u64 paced_rate;
	__u64 clock_ns;
	__u64 epoch;
	__u64 epoch_start_ns;
	__u64 period_ns;
	__u64 lag_ns;
	__u64 modest_bytes;
	__u64 largest_bytes;
	__u64 control_bytes;
	__u64 control_rate;
	__u64 handshake_bytes;
	__u64 handshake_rate;
	__u64 foreign_bytes;
	__u64 foreign_rate;
	__u64 foreign_latest;
	__u64 early_bytes;
	__u64 early_rate;
	__u32 active;
	__u32 active_before;
	__u32 unpaced;
	__u32 unpaced_before;
	__u32 holders;
	__u32 holders_before;
	__u32 elsewhere;
	__u32 elsewhere_before;
	__u32 newcomers;
	__u32 burst;
	__u32 foreign_burst;
	__u32 begun;
};
enum limiter_reason {
	LIMITER_REASON_UNKNOWN,
	LIMITER_REASON_EMPTY,
	LIMITER_REASON_TCP_RESERVE,
	LIMITER_REASON_DEBT,
	LIMITER_REASON_ADMISSION,
	LIMITER_REASON_AHEAD,
	LIMITER_REASON_LUMP,
	LIMITER_REASON_LOW,
	LIMITER_REASONS,
};
struct rate_limit_state {
	__s64 tokens;
	__u64 last_update_ns;
	struct bpf_spin_lock lock;
	__u32 fraction;
	__u64 packets;
	__u64 bytes;
	__u64 dropped_bytes;
	__u64 rate;
	__u64 bucket;
	__u32 generation;
	__u32 reserved;
	__u64 limit;
	__u64 use_start_ns;
	__u64 use_bytes;
	__u64 use_rate;
	struct fair_share fair;
	__u64 drops[LIMITER_REASONS];
	__u64 notices[LIMITER_REASONS];
};
#define LIMITER_COUNTERS (3 + 2 * LIMITER_REASONS)
struct rate_limit_carried {
	__s64 tokens;
	__u64 reference_ns;
	__u64 counters[LIMITER_COUNTERS];
};
#define LIMITER_MAX_EDGES 262144
#define LIMITER_MAX_NAME 255
#define LIMITER_MAX_STAR_TEXT 127
struct rate_limit_edge {
	__u32 above;
	__u32 shape;
	char name[LIMITER_MAX_NAME + 1];
};
#define LIMITER_MAX_SHAPES 4
struct rate_limit_node {
	__u64 rule;
	__u32 each;
	__u32 shapes[LIMITER_MAX_SHAPES];
	__u32 reserved;
};
struct rate_limit_graph {
	__u64 root;
	__u32 node;
	__u32 reserved;
};
struct rate_limit_socket {
	__u64 rule;
};
#define LIMITER_RELEASED 0
struct fair_share_mark {
	__u64 epoch;
	__u32 bytes;
	__u32 flags;
};
struct rate_limit_pacing {
	__u64 rules[LIMITER_MAX_NESTED];
	__u64 share;
	__u64 set;
	__u64 own;
	__u64 sent_ns;
	__u32 generation;
	__u32 suspected;
	__u32 tightest;
	__u32 passed;
	__u32 clamp;
	__u32 flags;
	__u32 segment;
	__u32 round_trip_us;
	struct fair_share_mark marks[LIMITER_MAX_NESTED];
};
#define LIMITER_UNPACED (~0ULL)
enum limiter_pacing {
	LIMITER_PACING_OFF,
	LIMITER_PACING_ON,
	LIMITER_PACING_REFUSED,
};
struct rate_limit_control {
	__u32 schema;
	__u32 generation;
	__u32 tagged_sockets;
	__u32 program_id;
	__u32 pacing;
	__u32 reserved;
	char identity[64];
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, LIMITER_MAX_RULES);
	__type(key, __u64);
	__type(value, struct rate_limit_config);
} rate_limit_config_map SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, LIMITER_MAX_RULES);
	__type(key, __u64);
	__type(value, struct rate_limit_state);
} rate_limit_state_map SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, LIMITER_MAX_MEMBERS);
	__type(key, __u64);
	__type(value, __u64);
} rate_limit_member_map SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, LIMITER_MAX_EDGES);
	__type(key, struct rate_limit_edge);
	__type(value, __u32);
} rate_limit_edge_map SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, LIMITER_MAX_EDGES);
	__type(key, __u32);
	__type(value, struct rate_limit_node);
} rate_limit_node_map SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct rate_limit_graph);
} rate_limit_graph_map SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct rate_limit_socket);
} rate_limit_socket_map SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct rate_limit_pacing);
} rate_limit_pacing_map SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct rate_limit_control);
} rate_limit_control_map SEC(".maps");
static __always_inline struct rate_limit_control *control(void)
{
	__u32 index = 0;
	return bpf_map_lookup_elem(&rate_limit_control_map, &index);
}
const volatile bool kernel_memory SEC(".rodata.memory") = true;
#define GRAPH_NEW_SYN_RECV 12
#define GRAPH_MAX_DEPTH 64
struct sock_cgroup_data___tagged {
	__u64 val;
} __attribute__((preserve_access_index));
struct sock_cgroup_data___named {
	struct cgroup *cgroup;
} __attribute__((preserve_access_index));
struct cgroup___ancestors {
	struct cgroup *ancestors[0];
} __attribute__((preserve_access_index));
struct graph_blank {
	__u8 zeros[sizeof(struct rate_limit_state)];
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct graph_blank);
} graph_blank_map SEC(".maps");
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
	for (int i = 0; i < GRAPH_MAX_DEPTH; i++) {
		if (BPF_CORE_READ(cgroup, level) <= (int)level)
			return cgroup;
		cgroup = (void *)BPF_CORE_READ(cgroup, self.parent) - bpf_core_field_offset(struct cgroup, self);
	}
	return NULL;
}
__noinline __u32 graph_step(__u64 cgroup, __u32 level, __u32 above)
{
	struct rate_limit_edge edge = { .above = above };
	struct rate_limit_node *node;
	struct cgroup *here;
	const char *name;
	__u32 *found;
	long length;
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
	if (!blank || !config || bpf_map_lookup_elem(&rate_limit_config_map, &cgroup))
		return false;
	bucket = config->bucket_size;
	bpf_map_update_elem(&rate_limit_state_map, &cgroup, blank, BPF_NOEXIST);
	state = bpf_map_lookup_elem(&rate_limit_state_map, &cgroup);
	if (!state)
		return false;
	bpf_spin_lock(&state->lock);
	if (state->limit != rule) {
		state->limit = rule;
		state->generation = 0;
		state->tokens = bucket;
	}
	bpf_spin_unlock(&state->lock);
	return true;
}
__noinline __u64 graph_rule(__u32 number, __u64 cgroup)
{
	struct rate_limit_node *node = bpf_map_lookup_elem(&rate_limit_node_map, &number);
	__u64 rule;
	if (!node)
		return 0;
	rule = node->rule;
	return rule && node->each && graph_budget(rule, cgroup) ? cgroup : rule;
}
static __always_inline __u32 graph_follow(const struct rate_limit_graph *graph, __u64 cgroup, __u64 way, __u32 level,
					  __u32 above)
{
	if (cgroup == graph->root)
		return graph->node;
	return above ? graph_step(way, level, above) : 0;
}
static __always_inline struct rate_limit_graph graph_in_use(void)
{
	__u32 index = 0;
	struct rate_limit_graph *graph = bpf_map_lookup_elem(&rate_limit_graph_map, &index);
	return graph && kernel_memory ? *graph : (struct rate_limit_graph){};
}
#define ATTRIBUTION_SLOT_BITS 16
#define ATTRIBUTION_SLOTS (1 << ATTRIBUTION_SLOT_BITS)
#define ATTRIBUTION_FACTOR 0xf5ef807705b5ec69ULL
struct attribution {
	__u64 rules[LIMITER_MAX_NESTED];
};
struct attribution_slot {
	__u64 check;
	struct attribution found;
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, ATTRIBUTION_SLOTS);
	__type(key, __u32);
	__type(value, struct attribution_slot);
} attribution_cache SEC(".maps");
static __always_inline __u64 attribution_check(__u64 cgroup, __u32 generation, const struct attribution *found)
{
	__u64 factor = ATTRIBUTION_FACTOR, check = cgroup + generation * factor;
#pragma unroll
	for (int i = 0; i < LIMITER_MAX_NESTED; i++) {
		factor *= ATTRIBUTION_FACTOR;
		check += found->rules[i] * factor;
	}
	return check;
}
static __always_inline __u32 attribution_index(__u64 cgroup)
{
	cgroup *= ATTRIBUTION_FACTOR;
	cgroup ^= cgroup >> 32;
	cgroup *= ATTRIBUTION_FACTOR;
	return cgroup >> (64 - ATTRIBUTION_SLOT_BITS);
}
static __always_inline void attribution_add(struct attribution *found, __u64 rule)
{
	for (int i = 0; i < LIMITER_MAX_NESTED; i++)
		if (found->rules[i] == rule)
			return;
#pragma unroll
	for (int i = LIMITER_MAX_NESTED - 1; i > 0; i--)
		found->rules[i] = found->rules[i - 1];
	found->rules[0] = rule;
}
static __always_inline void attribution_add_cgroup(__u64 cgroup, __u32 node, bool released, struct attribution *found)
{
	__u64 *member = bpf_map_lookup_elem(&rate_limit_member_map, &cgroup), rule = 0;
	if (member)
		rule = released && *member == cgroup ? 0 : *member;
	else if (node)
		rule = graph_rule(node, cgroup);
	if (rule)
		attribution_add(found, rule);
}
enum bpf_func_id___mptcp { BPF_FUNC_skc_to_mptcp_sock___mptcp };
static __always_inline struct rate_limit_socket *attribution_tag_mptcp(struct bpf_sock *sk)
{
	struct rate_limit_socket *tag, *own;
	struct mptcp_sock *whole;
	if (!bpf_core_enum_value_exists(enum bpf_func_id___mptcp, BPF_FUNC_skc_to_mptcp_sock___mptcp))
		return NULL;
	whole = bpf_skc_to_mptcp_sock(sk);
	tag = whole ? bpf_sk_storage_get(&rate_limit_socket_map, whole, NULL, 0) : NULL;
	if (!tag)
		return NULL;
	own = bpf_sk_storage_get(&rate_limit_socket_map, sk, tag, BPF_SK_STORAGE_GET_F_CREATE);
	if (own)
		own->rule = tag->rule;
	return tag;
}
static __always_inline bool attribution_tagged(struct __sk_buff *skb, bool mptcp, bool *released,
					       struct attribution *found)
{
	struct bpf_sock *sk = skb->sk;
	struct rate_limit_socket *tag;
	struct rate_limit_graph graph;
	__u64 rule, top;
	if (!sk)
		return false;
	tag = mptcp ? attribution_tag_mptcp(sk) : NULL;
	if (!tag)
		tag = bpf_sk_storage_get(&rate_limit_socket_map, sk, NULL, 0);
	if (!tag)
		return false;
	rule = tag->rule;
	*released = rule == LIMITER_RELEASED;
	if (!bpf_map_lookup_elem(&rate_limit_config_map, &rule))
		return false;
	top = bpf_skb_ancestor_cgroup_id(skb, 0);
	graph = graph_in_use();
	attribution_add_cgroup(top, graph_follow(&graph, top, 0, 0, 0), false, found);
	attribution_add(found, rule);
	return true;
}
static __always_inline void attribution_walk(struct __sk_buff *skb, bool released, struct attribution *found)
{
	struct rate_limit_graph graph = graph_in_use();
	__u64 way = graph.node ? graph_cgroup(skb) : 0, cgroup;
	__u32 node = 0;
	*found = (struct attribution){};
	for (int level = 0; level < LIMITER_MAX_DEPTH; level++) {
		cgroup = bpf_skb_ancestor_cgroup_id(skb, level);
		if (!cgroup)
			break;
		if (way)
			node = graph_follow(&graph, cgroup, way, level, node);
		attribution_add_cgroup(cgroup, node, released, found);
	}
}
static __always_inline bool attribution_cached(__u64 cgroup, __u32 generation, struct attribution *found)
{
	__u32 index = attribution_index(cgroup);
	struct attribution_slot *slot = bpf_map_lookup_elem(&attribution_cache, &index);
	if (!slot)
		return false;
	*found = slot->found;
	barrier();
	return attribution_check(cgroup, generation, found) == slot->check;
}
static __always_inline void attribution_remember(__u64 cgroup, __u32 generation, const struct attribution *found)
{
	__u32 index = attribution_index(cgroup);
	struct attribution_slot *slot = bpf_map_lookup_elem(&attribution_cache, &index);
	if (!slot)
		return;
	slot->found = *found;
	slot->check = attribution_check(cgroup, generation, found);
}
static __always_inline struct cgroup *attribution_cgroup(const struct tcp_sock *tcp)
{
	const struct sock_cgroup_data___named *data = (const void *)&tcp->inet_conn.icsk_inet.sk.sk_cgrp_data;
	return bpf_core_field_exists(data->cgroup) ? data->cgroup : NULL;
}
static __always_inline bool attribution_find(struct __sk_buff *skb, __u32 tagged_sockets, __u32 generation,
					     struct attribution *found)
{
	bool released = false;
	__u64 cgroup;
	if (tagged_sockets && attribution_tagged(skb, tagged_sockets > 1, &released, found))
		return true;
	cgroup = bpf_skb_cgroup_id(skb);
	if (!cgroup)
		return false;
	if (released) {
		attribution_walk(skb, released, found);
	} else if (!attribution_cached(cgroup, generation, found)) {
		attribution_walk(skb, released, found);
		attribution_remember(cgroup, generation, found);
	}
	return found->rules[0];
}
#define CARRY_MOST 16
#define CARRY_ETHERNET 14
struct carry {
	__u64 rule;
	__s64 tokens;
	__u64 counters[LIMITER_COUNTERS];
};
struct carry_request {
	__u64 now;
	struct carry carries[];
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, LIMITER_MAX_RULES);
	__type(key, __u64);
	__type(value, struct rate_limit_carried);
} rate_limit_carried_map SEC(".maps");
static __always_inline void carry_to(struct rate_limit_state *state, struct rate_limit_carried *carried,
				     const struct carry *carry, __u64 now)
{
	const __u64 *drops = carry->counters + 3, *notices = drops + LIMITER_REASONS;
	__u64 reference = carried->reference_ns;
	bpf_spin_lock(&state->lock);
	if ((__s64)state->last_update_ns < 0)
		state->last_update_ns = reference;
	state->tokens += carry->tokens;
	state->packets += carry->counters[0];
	state->bytes += carry->counters[1];
	state->dropped_bytes += carry->counters[2];
	for (int i = 0; i < LIMITER_REASONS; i++) {
		state->drops[i] += drops[i];
		state->notices[i] += notices[i];
	}
	bpf_spin_unlock(&state->lock);
	carried->tokens += carry->tokens;
	for (int i = 0; i < LIMITER_COUNTERS; i++)
		carried->counters[i] += carry->counters[i];
}
static __always_inline int carry_run(struct __sk_buff *skb)
{
	struct carry_request *request = (void *)(long)skb->data + CARRY_ETHERNET;
	void *end = (void *)(long)skb->data_end;
	struct rate_limit_carried *carried;
	struct rate_limit_state *state;
	struct carry *carry;
	__u64 now, rule;
	if ((void *)(request + 1) > end)
		return 0;
	now = bpf_ktime_get_ns();
	request->now = now;
	for (int i = 0; i < CARRY_MOST; i++) {
		carry = &request->carries[i];
		if ((void *)(carry + 1) > end)
			break;
		rule = carry->rule;
		state = bpf_map_lookup_elem(&rate_limit_state_map, &rule);
		carried = bpf_map_lookup_elem(&rate_limit_carried_map, &rule);
		if (state && carried)
			carry_to(state, carried, carry, now);
	}
	return 0;
}
struct packet {
	__u32 bytes;
	__u32 segments;
	bool tcp;
	bool control;
	bool handshake;
	bool paced;
	bool held;
	bool early;
	bool idle;
	bool begins;
	bool refused;
	bool waited;
	bool elsewhere;
	bool starved;
	__u64 round_trip_ns;
};
#define PACKET_SEGMENTS 32
#define PACKET_BOTTLENECK 48
#define PACKET_TCP 50
#define PACKET_CONTROL 51
#define PACKET_PACED 52
#define PACKET_HELD 53
#define PACKET_EARLY 54
#define PACKET_IDLE 55
#define PACKET_BEGINS 56
#define PACKET_REFUSED 57
#define PACKET_WAITED 58
#define PACKET_CLOCK 59
#define PACKET_STARVED 60
#define PACKET_HANDSHAKE 61
#define PACKET_SEGMENTS_MOST 0xffff
static __always_inline __u64 packet_pack(const struct packet *packet)
{
	__u64 segments = packet->segments & PACKET_SEGMENTS_MOST;
	return packet->bytes | segments << PACKET_SEGMENTS | (__u64)packet->tcp << PACKET_TCP |
	       (__u64)packet->control << PACKET_CONTROL | (__u64)packet->paced << PACKET_PACED |
	       (__u64)packet->held << PACKET_HELD | (__u64)packet->early << PACKET_EARLY |
	       (__u64)packet->idle << PACKET_IDLE | (__u64)packet->begins << PACKET_BEGINS |
	       (__u64)packet->refused << PACKET_REFUSED | (__u64)packet->waited << PACKET_WAITED |
	       (__u64)packet->handshake << PACKET_HANDSHAKE;
}
static __always_inline struct packet packet_unpack(__u64 packed)
{
	return (struct packet){
		.bytes = packed,
		.segments = packed >> PACKET_SEGMENTS & PACKET_SEGMENTS_MOST,
		.tcp = packed >> PACKET_TCP & 1,
		.control = packed >> PACKET_CONTROL & 1,
		.paced = packed >> PACKET_PACED & 1,
		.held = packed >> PACKET_HELD & 1,
		.early = packed >> PACKET_EARLY & 1,
		.idle = packed >> PACKET_IDLE & 1,
		.begins = packed >> PACKET_BEGINS & 1,
		.refused = packed >> PACKET_REFUSED & 1,
		.waited = packed >> PACKET_WAITED & 1,
		.starved = packed >> PACKET_STARVED & 1,
		.handshake = packed >> PACKET_HANDSHAKE & 1,
	};
}
#define CONNECTION_UNPACED_SEGMENTS 10
#define CONNECTION_WAIT_NS 100000000
#define CONNECTION_NEARLY 16
#define CONNECTION_SLOW_PACKET_US 20000
#define CONNECTION_SLOW_WINDOW_LEAST 4
#define CONNECTION_SLOW_SHARE 2500000
#define CONNECTION_SLOW_INITIAL_WINDOW 2
#define PACING_MOST 0xffffffffULL
#define OFFER_NONE (LIMITER_UNPACED >> 1)
#define CONNECTION_MORE 0
#define CONNECTION_WAITED 1
#define CONNECTION_REFUSED 2
struct connection {
	__u64 now_ns;
	__u64 timer_ns;
	__u64 pacing_rate;
	__u64 most_rate;
	__s32 unsent;
	__s32 room;
	__u32 sent;
	__u32 out;
	__u32 window;
	__u32 mss;
	__u32 headers;
	__u32 acked;
};
static __always_inline __u32 connection_less(__u64 a, __u64 b)
{
	return (a - b) >> 63;
}
static __always_inline bool connection_paced(const struct rate_limit_pacing *pacing)
{
	return pacing->set && pacing->set != LIMITER_UNPACED;
}
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
static __always_inline void connection_look(const struct connection *seen, struct rate_limit_pacing *pacing,
					    struct packet *packet)
{
	__u32 flags = pacing->flags, refused = flags >> CONNECTION_REFUSED & 1;
	__u32 before = flags >> CONNECTION_MORE & 1, more = connection_less(0, (__s64)seen->unsent);
	bool paced = connection_paced(pacing);
	__u32 early = paced & connection_less(seen->sent, CONNECTION_UNPACED_SEGMENTS + packet->segments);
	__u32 idle = connection_less(seen->out, 1);
	__u32 waited =
		(before & flags >> CONNECTION_WAITED) | (~before & connection_less(pacing->sent_ns, seen->timer_ns));
	__u32 able = ~connection_less((__s64)seen->room, seen->mss) &
		     connection_less(seen->out + packet->segments, seen->window);
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
static __always_inline void connection_note_verdict(struct rate_limit_pacing *pacing, bool dropped)
{
	pacing->flags = (pacing->flags & ~(1U << CONNECTION_REFUSED)) | (__u32)dropped << CONNECTION_REFUSED;
}
static __always_inline void connection_take_offer(struct rate_limit_pacing *pacing, __u32 place, __u64 share)
{
	if (share < pacing->share) {
		pacing->share = share;
		pacing->tightest = place;
	}
}
static __always_inline __u64 connection_segment(const struct rate_limit_pacing *pacing, __u64 mss)
{
	__u64 segment = pacing->segment;
	return segment && segment < mss - mss / 8 ? segment : mss;
}
static __always_inline __u64 connection_payload(const struct rate_limit_pacing *pacing, __u64 mss, __u64 headers)
{
	__u64 segment = connection_segment(pacing, mss), share = pacing->share, rate;
	if (!segment || share > 2 * PACING_MOST)
		return share;
	rate = share * segment / (segment + headers);
	return rate ? rate : 1;
}
static __always_inline __u32 connection_window(const struct rate_limit_pacing *pacing, __u64 mss, __u64 round_trip_us)
{
	__u64 segment = connection_segment(pacing, mss), window;
	if (pacing->share >= CONNECTION_SLOW_SHARE || !segment)
		return 0;
	window = 2 * pacing->share * (CONNECTION_SLOW_PACKET_US + round_trip_us) / 1000000 / segment;
	return window > CONNECTION_SLOW_WINDOW_LEAST ? window : CONNECTION_SLOW_WINDOW_LEAST;
}
#define NANOSECONDS 1000000000ULL
#define TOKEN_DEBT_MOST (1 << 20)
static __always_inline void token_bucket_fill(struct rate_limit_state *state, __u64 bucket)
{
	state->tokens = bucket;
	state->fraction = 0;
}
static __always_inline void token_bucket_refill(struct rate_limit_state *state, __u64 rate, __u64 bucket, __u64 now)
{
	__u64 accrued, part, whole = 0, elapsed;
	if (now > state->last_update_ns) {
		elapsed = now - state->last_update_ns;
		state->last_update_ns = now;
		if (elapsed >= NANOSECONDS) {
			__u64 seconds = elapsed / NANOSECONDS;
			if (state->tokens >= (__s64)bucket || seconds > (bucket - state->tokens) / rate) {
				token_bucket_fill(state, bucket);
				return;
			}
			whole = seconds * rate;
			elapsed -= seconds * NANOSECONDS;
		}
		part = elapsed * rate;
		accrued = part / NANOSECONDS;
		part = part - accrued * NANOSECONDS + state->fraction;
		if (part >= NANOSECONDS) {
			part -= NANOSECONDS;
			accrued++;
		}
		state->fraction = part;
		state->tokens += whole + accrued;
	} else if (state->last_update_ns - now > NANOSECONDS) {
		state->last_update_ns = now;
	}
	if (state->tokens < -(__s64)(rate + TOKEN_DEBT_MOST))
		state->tokens = 0;
	if (state->tokens >= (__s64)bucket)
		token_bucket_fill(state, bucket);
}
#define TOKEN_SPAN_PARTS 16000
#define TOKEN_SPAN_MOST (64ULL * TOKEN_SPAN_PARTS)
static __always_inline __s64 token_bucket_scaled(const struct rate_limit_state *state, __u64 before)
{
	__u64 span = state->tokens * TOKEN_SPAN_PARTS / before;
	return span < TOKEN_SPAN_MOST ? (__s64)(span * state->rate / TOKEN_SPAN_PARTS) : state->tokens;
}
static __always_inline void token_bucket_take(struct rate_limit_state *state, __u32 bytes)
{
	state->tokens -= bytes;
}
static __always_inline void token_bucket_refund(struct rate_limit_state *state, __u32 bytes)
{
	state->tokens += bytes;
}
#define MILLISECONDS 1000000ULL
#define FAIR_SHARE_EPOCH_SHORTEST (10 * MILLISECONDS)
#define FAIR_SHARE_EPOCH_LONGEST (4 * NANOSECONDS)
#define FAIR_SHARE_EPOCHS_FORGET 4
#define FAIR_SHARE_FORGET_SHORTEST (500 * MILLISECONDS)
#define FAIR_SHARE_CORRECTION_SHORTEST (100 * MILLISECONDS)
#define FAIR_SHARE_CORRECTION_SLOWNESS 4
#define FAIR_SHARE_SPEND_SHORTEST (200 * MILLISECONDS)
#define FAIR_SHARE_LAG_LONGEST NANOSECONDS
#define FAIR_SHARE_CONNECTIONS_MOST 65535
#define FAIR_SHARE_BURST_SMALLEST 3000
#define FAIR_SHARE_BURST_LEAST 300
#define FAIR_SHARE_BURST_LARGEST 65535
#define FAIR_SHARE_LEAST (FAIR_SHARE_BURST_SMALLEST / 4)
#define FAIR_SHARE_RESERVE_PART 10
#define FAIR_SHARE_SAVED_PART 4
#define FAIR_SHARE_FOREIGN_PART 2
#define FAIR_SHARE_AVERAGE_MS 100
#define FAIR_SHARE_CLUMP_MOST 16
static __always_inline __u64 fair_share_period(const struct fair_share *fair, __u64 rate)
{
	__u64 connections = fair->holders_before;
	__u64 period;
	if (connections > FAIR_SHARE_CONNECTIONS_MOST)
		connections = FAIR_SHARE_CONNECTIONS_MOST;
	period = (connections + 1) * fair->burst * 3 / 2 * NANOSECONDS / rate;
	if (period < FAIR_SHARE_EPOCH_SHORTEST)
		return FAIR_SHARE_EPOCH_SHORTEST;
	return period < FAIR_SHARE_EPOCH_LONGEST ? period : FAIR_SHARE_EPOCH_LONGEST;
}
static __always_inline __s64 fair_share_lead(const struct fair_share *fair, __u64 now)
{
	return fair->clock_ns - now;
}
static __always_inline __u64 fair_share_slowness(const struct fair_share *fair, __u64 shortest)
{
	__u64 slowness = FAIR_SHARE_CORRECTION_SLOWNESS * (fair->period_ns + fair->lag_ns);
	return slowness > shortest ? slowness : shortest;
}
static __always_inline void fair_share_fill(struct fair_share *fair, __u64 elapsed, __u64 now)
{
	__u64 modest = fair->modest_bytes * NANOSECONDS / elapsed;
	__u64 holders = fair->holders_before, rest = fair->paced_rate, largest;
	__u64 correction = fair_share_slowness(fair, FAIR_SHARE_CORRECTION_SHORTEST);
	__u64 early = fair->early_rate < fair->paced_rate ? fair->early_rate : fair->paced_rate;
	__s64 lead = fair_share_lead(fair, now), most = correction / 4;
	__u64 level;
	if (early > fair->paced_rate - early)
		early = fair->paced_rate - early;
	level = (fair->paced_rate - early) / (fair->active_before ? fair->active_before : 1);
	if (!holders) {
		largest = fair->largest_bytes * NANOSECONDS / elapsed;
		modest -= largest < modest ? largest : modest;
		holders = 1;
	}
	rest = rest > modest ? rest - modest : 0;
	if (rest / holders > level)
		level = rest / holders;
	if (lead > most)
		lead = most;
	if (lead < -most)
		lead = -most;
	correction = (correction - lead) * 1024 / correction;
	fair->share = level / 1024 * correction + level % 1024 * correction / 1024;
	if (fair->share < FAIR_SHARE_LEAST)
		fair->share = FAIR_SHARE_LEAST;
}
static __always_inline void fair_share_forget(struct rate_limit_state *state, __u64 now)
{
	struct fair_share *fair = &state->fair;
	__u64 rate = state->rate;
	fair->share = 0;
	fair->paced_rate = rate;
	fair->clock_ns = now;
	fair->epoch += 2;
	fair->epoch_start_ns = now;
	fair->lag_ns = 0;
	fair->modest_bytes = 0;
	fair->largest_bytes = 0;
	fair->control_bytes = 0;
	fair->control_rate = 0;
	fair->handshake_bytes = 0;
	fair->handshake_rate = 0;
	fair->foreign_bytes = 0;
	fair->foreign_burst = 0;
	fair->foreign_rate = 0;
	fair->foreign_latest = 0;
	fair->early_bytes = 0;
	fair->early_rate = 0;
	fair->active = 0;
	fair->active_before = 0;
	fair->unpaced = 0;
	fair->unpaced_before = 0;
	fair->holders = 0;
	fair->holders_before = 0;
	fair->elsewhere = 0;
	fair->elsewhere_before = 0;
	fair->newcomers = 0;
	fair->begun = 0;
	fair->burst = FAIR_SHARE_BURST_SMALLEST;
	fair->period_ns = fair_share_period(fair, rate);
}
static __always_inline __s64 fair_share_reserve(const struct rate_limit_state *state)
{
	__u64 reserve = state->rate / FAIR_SHARE_RESERVE_PART, half = state->bucket / 2;
	return reserve < half ? reserve : half;
}
static __always_inline __u64 fair_share_per_second(__u64 bytes, __u64 elapsed, __u64 most)
{
	__u64 latest = bytes * NANOSECONDS / elapsed;
	return latest < most ? latest : most;
}
static __always_inline __u64 fair_share_average(__u64 average, __u64 latest, __u64 elapsed, __u64 most)
{
	__u64 weight = elapsed / MILLISECONDS;
	if (average > most)
		average = most;
	weight = weight * 1024 / (weight + FAIR_SHARE_AVERAGE_MS);
	return (average * (1024 - weight) + latest * weight) / 1024;
}
static __always_inline void fair_share_average_clumps(struct rate_limit_state *state, __u64 elapsed)
{
	struct fair_share *fair = &state->fair;
	__u64 rate = state->rate, most = FAIR_SHARE_CLUMP_MOST * rate, early, control, handshake;
	fair->foreign_latest = fair_share_per_second(fair->foreign_bytes, elapsed, rate);
	fair->foreign_rate = fair_share_average(fair->foreign_rate, fair->foreign_latest, elapsed, rate);
	early = fair_share_per_second(fair->early_bytes, elapsed, most);
	fair->early_rate = fair_share_average(fair->early_rate, early, elapsed, most);
	control = fair_share_per_second(fair->control_bytes, elapsed, most);
	fair->control_rate = fair_share_average(fair->control_rate, control, elapsed, most);
	handshake = fair_share_per_second(fair->handshake_bytes, elapsed, most);
	fair->handshake_rate = fair_share_average(fair->handshake_rate, handshake, elapsed, most);
}
static __always_inline bool fair_share_flooded(const struct rate_limit_state *state)
{
	const struct fair_share *fair = &state->fair;
	return fair->foreign_rate >= state->rate / FAIR_SHARE_FOREIGN_PART ||
	       fair->foreign_latest >= state->rate / FAIR_SHARE_FOREIGN_PART;
}
static __always_inline __u64 fair_share_paced_rate(const struct rate_limit_state *state)
{
	const struct fair_share *fair = &state->fair;
	__u64 most = state->rate / FAIR_SHARE_FOREIGN_PART,
	      foreign = fair->foreign_rate < most ? fair->foreign_rate : most;
	__s64 spare = state->tokens - fair_share_reserve(state);
	__u64 span = fair_share_slowness(fair, FAIR_SHARE_SPEND_SHORTEST) / MILLISECONDS, rate = state->rate - foreign,
	      saved;
	if (spare >= 0) {
		if (fair_share_flooded(state))
			spare = spare > fair->foreign_burst ? spare - fair->foreign_burst : 0;
		return rate + spare * 1000ULL / span;
	}
	if (fair_share_flooded(state))
		return rate;
	saved = -spare * 1000ULL / span;
	return rate - (saved < rate / FAIR_SHARE_SAVED_PART ? saved : rate / FAIR_SHARE_SAVED_PART);
}
static __always_inline void fair_share_next_epoch(struct rate_limit_state *state, __u64 elapsed, __u64 now)
{
	struct fair_share *fair = &state->fair;
	fair_share_average_clumps(state, elapsed);
	fair->paced_rate = fair_share_paced_rate(state);
	fair->active_before = fair->active;
	fair->unpaced_before = fair->unpaced;
	fair->holders_before = fair->holders;
	fair->elsewhere_before = fair->elsewhere;
	if (fair_share_lead(fair, now) < 0)
		fair->clock_ns = now;
	fair_share_fill(fair, elapsed, now);
	fair->active = 0;
	fair->unpaced = 0;
	fair->holders = 0;
	fair->elsewhere = 0;
	fair->newcomers = 0;
	fair->begun = 0;
	fair->modest_bytes = 0;
	fair->largest_bytes = 0;
	fair->control_bytes = 0;
	fair->handshake_bytes = 0;
	fair->foreign_bytes = 0;
	fair->early_bytes = 0;
	fair->epoch++;
	fair->epoch_start_ns = now;
	fair->lag_ns -= fair->lag_ns >> 4;
	if (fair->burst > FAIR_SHARE_BURST_LEAST)
		fair->burst -= fair->burst >> 2;
	fair->foreign_burst -= fair->foreign_burst >> 7;
	fair->period_ns = fair_share_period(fair, state->rate);
}
static __always_inline bool fair_share_beyond(__s64 lead, __u64 rate)
{
	return lead > (__s64)NANOSECONDS && lead > (__s64)(NANOSECONDS + TOKEN_DEBT_MOST * NANOSECONDS / rate);
}
static __always_inline __u64 fair_share_paced_most(const struct rate_limit_state *state)
{
	return state->rate + state->bucket * (NANOSECONDS / FAIR_SHARE_SPEND_SHORTEST);
}
static __always_inline void fair_share_advance(struct rate_limit_state *state, __u64 now)
{
	struct fair_share *fair = &state->fair;
	__s64 elapsed = now - fair->epoch_start_ns, lead = fair_share_lead(fair, now);
	__u64 connections = 1ULL + fair->active_before + fair->holders_before + fair->newcomers;
	__u64 rate = state->rate;
	if (elapsed < -(__s64)NANOSECONDS ||
	    elapsed > (__s64)(FAIR_SHARE_EPOCHS_FORGET * fair->period_ns + FAIR_SHARE_FORGET_SHORTEST) ||
	    fair_share_beyond(lead, rate) || !fair->period_ns || fair->period_ns > FAIR_SHARE_EPOCH_LONGEST ||
	    fair->lag_ns > FAIR_SHARE_LAG_LONGEST || fair->paced_rate > fair_share_paced_most(state) ||
	    fair->paced_rate < rate / FAIR_SHARE_FOREIGN_PART / 2 ||
	    (fair->share && 4 * fair->share * connections < fair->paced_rate)) {
		fair_share_forget(state, now);
		return;
	}
	if (elapsed >= (__s64)fair->period_ns)
		fair_share_next_epoch(state, elapsed, now);
}
static __always_inline void fair_share_change_tokens(struct rate_limit_state *state, __u64 before)
{
	__s64 scaled = token_bucket_scaled(state, before), least = scaled;
	if (state->rate > before && least > fair_share_reserve(state))
		least = fair_share_reserve(state);
	if (state->rate < before && least < FAIR_SHARE_BURST_LARGEST)
		least = FAIR_SHARE_BURST_LARGEST;
	if (state->rate > before ? state->tokens < least : state->tokens > least)
		state->tokens = least;
}
static __always_inline void fair_share_change_limit(struct rate_limit_state *state, __u64 rate, __u64 bucket, __u64 now)
{
	struct fair_share *fair = &state->fair;
	__u64 before = state->rate;
	if (before)
		token_bucket_refill(state, before, state->bucket, now);
	state->rate = rate;
	state->bucket = bucket;
	if (before != rate) {
		if (before && state->tokens > 0)
			fair_share_change_tokens(state, before);
		fair->paced_rate = rate;
		fair->period_ns = fair_share_period(fair, rate);
		if (fair->share)
			fair_share_fill(fair, fair->period_ns, now);
	} else if (fair->paced_rate > fair_share_paced_most(state)) {
		fair->paced_rate = fair_share_paced_most(state);
	}
}
#define FAIR_SHARE_ACTIVE 1
#define FAIR_SHARE_HELD 2
#define FAIR_SHARE_KNOWN 4
#define FAIR_SHARE_ELSEWHERE 8
#define DEMAND_EARLY_LEAD (50 * MILLISECONDS)
#define DEMAND_SILENT_MOST 20
#define DEMAND_FOREIGN_MOST (1ULL << 33)
static __always_inline void demand_observe(struct fair_share *fair, struct fair_share_mark *mark,
					   const struct packet *packet, bool wants, __u64 now)
{
	bool held = wants && !packet->elsewhere;
	if (mark->epoch != fair->epoch)
		*mark = (struct fair_share_mark){
			.epoch = fair->epoch,
			.flags = mark->epoch + 1 == fair->epoch ? FAIR_SHARE_KNOWN : 0,
		};
	if (packet->control)
		return;
	if ((!packet->early || held) && !(mark->flags & FAIR_SHARE_ACTIVE)) {
		mark->flags |= FAIR_SHARE_ACTIVE;
		fair->active++;
		if (!packet->paced)
			fair->unpaced++;
		if (fair->active > fair->active_before)
			fair->active_before = fair->active;
	}
	if (wants && packet->elsewhere && !(mark->flags & FAIR_SHARE_ELSEWHERE)) {
		mark->flags |= FAIR_SHARE_ELSEWHERE;
		fair->elsewhere++;
	}
	if (held && !(mark->flags & FAIR_SHARE_HELD)) {
		mark->flags |= FAIR_SHARE_HELD;
		fair->modest_bytes -= mark->bytes < fair->modest_bytes ? mark->bytes : fair->modest_bytes;
		fair->holders++;
		if ((!(mark->flags & FAIR_SHARE_KNOWN) || !fair->holders_before) &&
		    fair->holders > fair->holders_before) {
			fair->holders_before = fair->holders;
			fair_share_fill(fair, fair->period_ns, now);
		}
	} else if (!held && mark->flags & FAIR_SHARE_HELD) {
		mark->flags &= ~FAIR_SHARE_HELD;
		fair->modest_bytes += mark->bytes;
		fair->holders -= fair->holders > 0;
	}
}
static __always_inline void demand_note(struct fair_share *fair, struct fair_share_mark *mark,
					const struct packet *packet, bool passed, __u64 now)
{
	__u64 rate = fair->paced_rate ? fair->paced_rate : 1;
	if (mark && (passed || !packet->begins))
		demand_observe(fair, mark, packet, packet->held || !passed, now);
	if (!passed)
		return;
	if ((packet->paced || packet->control) &&
	    (!packet->early || fair_share_lead(fair, now) < (__s64)DEMAND_EARLY_LEAD))
		fair->clock_ns += packet->bytes * NANOSECONDS / rate;
	if (packet->bytes > fair->burst && fair->burst < FAIR_SHARE_BURST_LARGEST) {
		fair->burst = packet->bytes < FAIR_SHARE_BURST_LARGEST ? packet->bytes : FAIR_SHARE_BURST_LARGEST;
		fair->period_ns = fair_share_period(fair, rate);
	}
	if (packet->early)
		fair->early_bytes += packet->bytes;
	fair->begun += packet->begins;
	if (mark && !packet->control)
		mark->bytes += packet->bytes;
	if (mark && mark->flags & FAIR_SHARE_HELD && !packet->control)
		return;
	fair->modest_bytes += packet->bytes;
	if (mark && mark->bytes > fair->largest_bytes)
		fair->largest_bytes = mark->bytes;
}
static __always_inline void demand_refund(struct fair_share *fair, const struct packet *packet)
{
	fair->clock_ns -= packet->bytes * NANOSECONDS / (fair->paced_rate ? fair->paced_rate : 1);
}
static __always_inline void demand_note_foreign(struct fair_share *fair, const struct packet *packet)
{
	if (fair->foreign_bytes < DEMAND_FOREIGN_MOST)
		fair->foreign_bytes += packet->bytes;
	if (packet->bytes > fair->foreign_burst)
		fair->foreign_burst = packet->bytes;
}
static __always_inline __u64 demand_offer(const struct fair_share *fair, bool early)
{
	__u64 most = fair->share ? fair->share : fair->paced_rate;
	__u64 silent = fair->newcomers > fair->begun ? fair->newcomers - fair->begun : 0;
	__u64 connections =
		(__u64)fair->holders_before + fair->begun + (silent < DEMAND_SILENT_MOST ? silent : DEMAND_SILENT_MOST);
	if (early && connections && most > fair->paced_rate / connections)
		most = fair->paced_rate / connections;
	return most > FAIR_SHARE_LEAST ? most : FAIR_SHARE_LEAST;
}
static __always_inline __u64 demand_join(struct rate_limit_state *state, __u64 now)
{
	struct fair_share *fair = &state->fair;
	token_bucket_refill(state, state->rate, state->bucket, now);
	fair_share_advance(state, now);
	fair->newcomers++;
	if (!fair->share)
		fair_share_fill(fair, fair->period_ns, now);
	return demand_offer(fair, true);
}
static __always_inline void demand_hear(struct fair_share *fair, __u64 round_trip_ns)
{
	if (round_trip_ns > fair->lag_ns && round_trip_ns <= FAIR_SHARE_LAG_LONGEST)
		fair->lag_ns = round_trip_ns;
}
static __always_inline void demand_note_control(struct fair_share *fair, const struct packet *packet)
{
	fair->control_bytes += packet->bytes;
	if (packet->handshake)
		fair->handshake_bytes += packet->bytes;
}
static __always_inline struct rate_limit_state *rule_state(const __u64 *rule, __u32 generation)
{
	struct rate_limit_config *config;
	struct rate_limit_state *state;
	__u64 rate, bucket, now, limit;
	state = bpf_map_lookup_elem(&rate_limit_state_map, rule);
	if (!state || state->generation == generation)
		return state;
	limit = state->limit ? state->limit : *rule;
	config = bpf_map_lookup_elem(&rate_limit_config_map, &limit);
	if (!config)
		return NULL;
	rate = config->rate_bps;
	bucket = config->bucket_size;
	if (!rate)
		return NULL;
	now = bpf_ktime_get_ns();
	bpf_spin_lock(&state->lock);
	fair_share_change_limit(state, rate, bucket, now);
	state->generation = generation;
	bpf_spin_unlock(&state->lock);
	return state;
}
#define RULE_POOR (1ULL << 63)
#define RULE_POOR_BYTES 32768
__noinline __u64 rule_join(__u64 rule, __u32 generation)
{
	struct rate_limit_state *state = rule_state(&rule, generation);
	__u64 now = bpf_ktime_get_ns(), share;
	if (!state)
		return OFFER_NONE;
	bpf_spin_lock(&state->lock);
	share = demand_join(state, now);
	if (state->tokens < RULE_POOR_BYTES)
		share |= RULE_POOR;
	bpf_spin_unlock(&state->lock);
	return share;
}
#define TCP_STATES_SENDING                                                                                        \
	(1 << TCP_ESTABLISHED | 1 << TCP_CLOSE_WAIT | 1 << TCP_FIN_WAIT1 | 1 << TCP_CLOSING | 1 << TCP_LAST_ACK | \
	 1 << TCP_SYN_RECV)
#define TCP_STATES_OPENING (1 << TCP_SYN_SENT | 1 << TCP_SYN_RECV | 1 << TCP_LISTEN)
static __always_inline bool tcp_is_in(const struct tcp_sock *tcp, __u32 states)
{
	return 1U << (tcp->inet_conn.icsk_inet.sk.__sk_common.skc_state & 31) & states;
}
static __always_inline bool tcp_sends_data(const struct tcp_sock *tcp)
{
	return tcp_is_in(tcp, TCP_STATES_SENDING);
}
#define SOL_SOCKET 1
#define SOCK_STREAM 1
#define SO_MAX_PACING_RATE 47
#define SOL_TCP 6
#define PACING_WINDOW_UNCLAMPED 0x7fffffff
#define PACING_HEADERS_IPV4 52
#define PACING_HEADERS_IPV6 72
#define AF_INET6 10
enum bpf_func_id___settle { BPF_FUNC_user_ringbuf_drain___settle };
static __always_inline __u64 pacing_headers(const struct tcp_sock *tcp)
{
	return tcp->inet_conn.icsk_inet.sk.__sk_common.skc_family == AF_INET6 ? PACING_HEADERS_IPV6
									      : PACING_HEADERS_IPV4;
}
static __always_inline __u32 pacing_time(__u64 now)
{
	return now >> 20;
}
static __always_inline bool pacing_starved(const struct rate_limit_pacing *pacing, __u64 now)
{
	return (__s32)(pacing_time(now) - pacing->passed) > (__s32)pacing_time(FAIR_SHARE_EPOCH_LONGEST);
}
__noinline __u64 pacing_look(struct __sk_buff *skb, __u64 measured)
{
	struct packet packet = packet_unpack(measured);
	struct bpf_sock *sk = skb->sk;
	struct rate_limit_pacing *pacing;
	struct connection seen = {};
	struct tcp_sock *tcp;
	__u64 more;
	packet.tcp = false;
	tcp = sk ? bpf_skc_to_tcp_sock(sk) : NULL;
	if (!tcp || tcp->inet_conn.icsk_inet.sk.sk_type != SOCK_STREAM)
		return packet_pack(&packet);
	pacing = bpf_sk_storage_get(&rate_limit_pacing_map, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!pacing)
		return packet_pack(&packet);
	packet.tcp = true;
	packet.paced = connection_paced(pacing);
	packet.handshake = packet.control && tcp_is_in(tcp, TCP_STATES_OPENING);
	pacing->round_trip_us = tcp->srtt_us >> 3;
	pacing->share = OFFER_NONE;
	more = (__u64)(pacing->tightest % LIMITER_MAX_NESTED) << PACKET_BOTTLENECK;
	if (!packet.control && tcp_sends_data(tcp)) {
		seen.now_ns = tcp->tcp_clock_cache;
		seen.timer_ns = tcp->pacing_timer.node.expires;
		seen.pacing_rate = tcp->inet_conn.icsk_inet.sk.sk_pacing_rate;
		seen.most_rate = tcp->inet_conn.icsk_inet.sk.sk_max_pacing_rate;
		seen.unsent = tcp->write_seq - tcp->snd_nxt - packet.bytes;
		seen.room = tcp->snd_una + tcp->snd_wnd - tcp->snd_nxt - packet.bytes;
		seen.sent = tcp->data_segs_out;
		seen.out = tcp->packets_out;
		seen.window = tcp->snd_cwnd;
		seen.mss = tcp->mss_cache;
		seen.headers = pacing_headers(tcp);
		seen.acked = connection_less(1, tcp->bytes_acked);
		if (!(pacing->flags & 1 << CONNECTION_REFUSED))
			pacing->passed = pacing_time(pacing->sent_ns);
		more |= (__u64)pacing_starved(pacing, seen.now_ns) << PACKET_STARVED;
		connection_look(&seen, pacing, &packet);
		more |= 1ULL << PACKET_CLOCK;
	}
	return packet_pack(&packet) | more;
}
static __always_inline void pacing_confirm(struct rate_limit_pacing *pacing, int place, __u64 rule, __u32 generation)
{
	if (pacing->generation == generation && pacing->rules[place] == rule)
		return;
	if (pacing->generation != generation)
		for (int i = 1; i < LIMITER_MAX_NESTED; i++)
			pacing->rules[i] = 0;
	if (pacing->rules[place] && pacing->rules[place] != rule)
		pacing->marks[place] = (struct fair_share_mark){};
	pacing->rules[place] = rule;
	pacing->generation = generation;
}
static __always_inline __u64 pacing_settable(__u64 rate)
{
	return rate < PACING_MOST ? rate : LIMITER_UNPACED;
}
static __always_inline bool pacing_set(void *target, const struct tcp_sock *tcp, struct rate_limit_pacing *pacing,
				       __u64 rate)
{
	__u32 value = pacing_settable(rate);
	if (pacing_settable(rate) != tcp->inet_conn.icsk_inet.sk.sk_max_pacing_rate &&
	    bpf_setsockopt(target, SOL_SOCKET, SO_MAX_PACING_RATE, &value, sizeof(value)))
		return false;
	pacing->set = tcp->inet_conn.icsk_inet.sk.sk_max_pacing_rate;
	return true;
}
static __always_inline void pacing_clamp(void *target, const struct tcp_sock *tcp, struct rate_limit_pacing *pacing,
					 __u32 window)
{
	__u32 value = window ? window : PACING_WINDOW_UNCLAMPED;
	if (!bpf_core_enum_value_exists(enum bpf_func_id___settle, BPF_FUNC_user_ringbuf_drain___settle))
		return;
	if (!pacing->clamp && window >= tcp->snd_cwnd_clamp)
		return;
	if (!window == !pacing->clamp && window <= pacing->clamp && window >= pacing->clamp - pacing->clamp / 4 &&
	    (!window || tcp->snd_cwnd <= pacing->clamp))
		return;
	if (!bpf_setsockopt(target, SOL_TCP, TCP_BPF_SNDCWND_CLAMP, &value, sizeof(value)))
		pacing->clamp = window;
}
static __always_inline void pacing_tell(void *target, const struct tcp_sock *tcp, struct rate_limit_pacing *pacing)
{
	__u64 actual = tcp->inet_conn.icsk_inet.sk.sk_max_pacing_rate;
	__u64 rate = connection_payload(pacing, tcp->mss_cache, pacing_headers(tcp));
	if (!pacing->set || actual != pacing->set)
		pacing->own = actual ? actual : LIMITER_UNPACED;
	pacing_set(target, tcp, pacing, rate < pacing->own ? rate : pacing->own);
	pacing_clamp(target, tcp, pacing, connection_window(pacing, tcp->mss_cache, tcp->srtt_us >> 3));
}
static __always_inline bool pacing_release(void *target, const struct tcp_sock *tcp, struct rate_limit_pacing *pacing)
{
	if (pacing->set && pacing->set == tcp->inet_conn.icsk_inet.sk.sk_max_pacing_rate &&
	    !pacing_set(target, tcp, pacing, pacing->own))
		return false;
	pacing_clamp(target, tcp, pacing, 0);
	pacing->set = 0;
	return true;
}
static __always_inline bool pacing_join(struct rate_limit_pacing *pacing, __u32 generation)
{
	__u64 joined, poor = 0;
	pacing->share = LIMITER_UNPACED;
	for (int i = 0; i < LIMITER_MAX_NESTED; i++) {
		pacing->marks[i] = (struct fair_share_mark){};
		joined = pacing->rules[i] ? rule_join(pacing->rules[i], generation) : OFFER_NONE;
		poor |= joined & RULE_POOR;
		connection_take_offer(pacing, i, joined & ~RULE_POOR);
	}
	pacing->flags = 0;
	pacing->segment = 0;
	pacing->sent_ns = bpf_ktime_get_ns();
	pacing->passed = pacing_time(pacing->sent_ns);
	return poor;
}
static __always_inline void pacing_call_back(struct bpf_sock_ops *ops)
{
	bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_RTT_CB_FLAG);
}
static __always_inline void pacing_begin(struct bpf_sock_ops *ops, const struct tcp_sock *tcp,
					 struct rate_limit_pacing *pacing, __u32 generation)
{
	__u32 window = CONNECTION_SLOW_INITIAL_WINDOW;
	bool poor;
	pacing_call_back(ops);
	poor = pacing_join(pacing, generation);
	if (poor && pacing->share < CONNECTION_SLOW_SHARE && ops->snd_cwnd > window)
		bpf_setsockopt(ops, SOL_TCP, TCP_BPF_IW, &window, sizeof(window));
	pacing_tell(ops, tcp, pacing);
}
static __always_inline bool pacing_follow(struct bpf_sock_ops *ops, const struct tcp_sock *tcp,
					  struct rate_limit_pacing *pacing, __u32 generation, bool on)
{
	if (on && pacing->generation == generation) {
		if (pacing->share)
			pacing_tell(ops, tcp, pacing);
		return true;
	}
	if (on && pacing->suspected != generation) {
		pacing->suspected = generation;
		return true;
	}
	return !pacing_release(ops, tcp, pacing);
}
static __always_inline void use_measure(struct rate_limit_state *state, __u64 now)
{
	__s64 elapsed = now - state->use_start_ns;
	if (elapsed < (__s64)NANOSECONDS && elapsed > -(__s64)NANOSECONDS)
		return;
	state->use_rate = elapsed > 0 && state->bytes > state->use_bytes
				  ? (state->bytes - state->use_bytes) * NANOSECONDS / elapsed
				  : 0;
	state->use_bytes = state->bytes;
	state->use_start_ns = now;
}
enum verdict {
	VERDICT_PASS = 1,
	VERDICT_DROP = 2,
	VERDICT_PASS_WITH_NOTICE = 3,
};
#define VERDICT_MASK 3
#define VERDICT_PASSES 1
#define VERDICT_DEBT_BYTES 65536
#define VERDICT_DEBT_PART 8
#define VERDICT_PACED_DEBT_LEAST 3000
#define VERDICT_NOTICE_PART 16
#define VERDICT_GUARD_LEAD (100 * MILLISECONDS)
#define VERDICT_LUMP_LONGEST_MS 100
#define VERDICT_WAIT_PART 5
#define VERDICT_BEGIN_PART 3
#define VERDICT_CONTROL_PART 2
#define VERDICT_HANDSHAKE_PART 4
#define VERDICT_TOKENS_LOWEST (-0x7fffffffffffffffLL - 1)
#define VERDICT_TOKENS_HIGHEST 0x7fffffffffffffffLL
struct bound {
	__s64 tokens;
	enum limiter_reason reason;
};
struct bounds {
	struct bound drop;
	struct bound notice;
};
struct answer {
	enum verdict verdict;
	enum limiter_reason reason;
};
static __always_inline __s64 verdict_debt(__u64 rate)
{
	return rate / VERDICT_DEBT_PART < VERDICT_DEBT_BYTES ? rate / VERDICT_DEBT_PART : VERDICT_DEBT_BYTES;
}
static __always_inline __s64 verdict_half_debt(__u64 rate)
{
	__s64 half = verdict_debt(rate) / 2;
	return half > VERDICT_PACED_DEBT_LEAST ? half : VERDICT_PACED_DEBT_LEAST;
}
static __always_inline __s64 verdict_leave(__s64 debt, const struct packet *packet)
{
	return packet->bytes <= debt ? (__s64)packet->bytes - debt - 1 : 0;
}
static __always_inline void verdict_raise(struct bound *bound, __s64 tokens, enum limiter_reason reason)
{
	if (bound->tokens >= tokens)
		return;
	bound->tokens = tokens;
	bound->reason = reason;
}
static __always_inline void verdict_foreign(const struct rate_limit_state *state, const struct packet *packet,
					    bool paces, struct bounds *bounds)
{
	__s64 whole = packet->bytes < state->bucket ? packet->bytes : state->bucket;
	__s64 half = verdict_half_debt(state->rate);
	bounds->drop = (struct bound){ whole > half ? whole - half - 1 : 0, LIMITER_REASON_EMPTY };
	if (paces && state->fair.active_before && fair_share_flooded(state))
		verdict_raise(&bounds->drop, fair_share_reserve(state) / 2, LIMITER_REASON_TCP_RESERVE);
}
static __always_inline bool verdict_floods(const struct rate_limit_state *state, const struct packet *packet)
{
	return packet->handshake ? state->fair.handshake_rate >= state->rate / VERDICT_HANDSHAKE_PART
				 : state->fair.control_rate >= state->rate / VERDICT_CONTROL_PART;
}
static __always_inline __s64 verdict_begin(const struct rate_limit_state *state)
{
	__u64 rate = state->rate, part = state->fair.early_rate / (rate / 1024 + 1), wait = rate / VERDICT_WAIT_PART;
	__u64 begin = rate / 1024 * part / 1024 * part / VERDICT_BEGIN_PART;
	__s64 room = state->bucket - wait;
	if (begin > wait)
		begin = wait;
	return (__s64)begin < room ? (__s64)begin : room;
}
static __always_inline void verdict_admit(const struct rate_limit_state *state, const struct packet *packet,
					  struct bounds *bounds)
{
	__s64 begin = verdict_begin(state), half = fair_share_reserve(state) / 2;
	if (!packet->begins || packet->waited || fair_share_flooded(state))
		return;
	if (packet->refused && begin > half)
		begin = half;
	verdict_raise(&bounds->drop, begin, LIMITER_REASON_ADMISSION);
}
static __always_inline void verdict_guard(const struct rate_limit_state *state, const struct packet *packet, __u64 now,
					  struct bounds *bounds)
{
	const struct fair_share *fair = &state->fair;
	__s64 allowed = VERDICT_GUARD_LEAD + 2 * fair->lag_ns, lead = fair_share_lead(fair, now);
	bool lump = fair->share && packet->bytes > FAIR_SHARE_BURST_SMALLEST && packet->segments > 1 &&
		    packet->bytes * 1000ULL > VERDICT_LUMP_LONGEST_MS * fair->share;
	if (lump) {
		bounds->notice = (struct bound){ VERDICT_TOKENS_HIGHEST, LIMITER_REASON_LUMP };
		if (!packet->starved)
			verdict_raise(&bounds->drop, packet->bytes - verdict_half_debt(state->rate) - 1,
				      LIMITER_REASON_LUMP);
	}
	if (state->tokens > 0)
		return;
	if (2 * lead > allowed && !packet->held)
		verdict_raise(&bounds->notice, VERDICT_TOKENS_HIGHEST, LIMITER_REASON_AHEAD);
	if (lead > allowed && !packet->starved)
		verdict_raise(&bounds->drop, VERDICT_TOKENS_HIGHEST, LIMITER_REASON_AHEAD);
}
static __always_inline void verdict_paced(const struct rate_limit_state *state, const struct packet *packet, __u64 now,
					  struct bounds *bounds)
{
	__s64 half = verdict_half_debt(state->rate), idle = verdict_debt(state->rate) - packet->bytes;
	bounds->drop.tokens = packet->idle && idle > half ? -idle : -half;
	if (packet->early || packet->waited)
		verdict_admit(state, packet, bounds);
	else
		verdict_guard(state, packet, now, bounds);
}
static __always_inline struct bounds verdict_bounds(const struct rate_limit_state *state, const struct packet *packet,
						    __u64 now, bool paces)
{
	struct bounds bounds = { { 0, LIMITER_REASON_DEBT }, { VERDICT_TOKENS_LOWEST, LIMITER_REASON_LOW } };
	__u64 rate = state->rate, bucket = state->bucket;
	if (!packet->tcp) {
		verdict_foreign(state, packet, paces, &bounds);
	} else if (packet->paced && !packet->control) {
		verdict_paced(state, packet, now, &bounds);
	} else {
		bounds.notice.tokens =
			rate / VERDICT_NOTICE_PART < bucket / 2 ? rate / VERDICT_NOTICE_PART : bucket / 2;
		bounds.drop.tokens =
			verdict_leave(packet->control ? verdict_debt(rate) : verdict_debt(rate) / 2, packet);
	}
	return bounds;
}
static __always_inline struct answer verdict_take(struct rate_limit_state *state, const struct bounds *bounds,
						  const struct packet *packet)
{
	if (state->tokens <= bounds->drop.tokens) {
		state->drops[bounds->drop.reason % LIMITER_REASONS] += packet->segments;
		state->dropped_bytes += packet->bytes;
		return (struct answer){ VERDICT_DROP, bounds->drop.reason };
	}
	token_bucket_take(state, packet->bytes);
	state->packets += packet->segments;
	state->bytes += packet->bytes;
	if (state->tokens >= bounds->notice.tokens)
		return (struct answer){ VERDICT_PASS, LIMITER_REASON_UNKNOWN };
	state->notices[bounds->notice.reason % LIMITER_REASONS] += packet->segments;
	return (struct answer){ VERDICT_PASS_WITH_NOTICE, bounds->notice.reason };
}
static __always_inline void verdict_refund(struct rate_limit_state *state, struct answer answer,
					   const struct packet *packet)
{
	token_bucket_refund(state, packet->bytes);
	state->packets -= packet->segments;
	state->bytes -= packet->bytes;
	if (answer.verdict == VERDICT_PASS_WITH_NOTICE)
		state->notices[answer.reason % LIMITER_REASONS] -= packet->segments;
}
static __always_inline struct answer verdict_charge(struct rate_limit_state *state, struct fair_share_mark *mark,
						    struct packet *packet, __u64 now, bool paces)
{
	struct bounds bounds;
	struct answer answer;
	token_bucket_refill(state, state->rate, state->bucket, now);
	use_measure(state, now);
	if (paces) {
		fair_share_advance(state, now);
		demand_hear(&state->fair, packet->round_trip_ns);
		if (packet->tcp && packet->control) {
			demand_note_control(&state->fair, packet);
			packet->tcp = !verdict_floods(state, packet);
		}
	}
	bounds = verdict_bounds(state, packet, now, paces);
	answer = verdict_take(state, &bounds, packet);
	if (!paces)
		return answer;
	if (packet->tcp)
		demand_note(&state->fair, mark, packet, answer.verdict != VERDICT_DROP, now);
	else
		demand_note_foreign(&state->fair, packet);
	return answer;
}
#define WIRE_MAX_EXTENSIONS 4
#define WIRE_IPV4_VERSION 4
#define WIRE_IPV4_HEADER 20
#define WIRE_IPV4_PROTOCOL 9
#define WIRE_IPV6_HEADER 40
#define WIRE_IPV6_NEXT 6
#define WIRE_UDP_HEADER 8
#define WIRE_TCP_HEADER 20
#define WIRE_TCP_OFFSET 12
#define NEXTHDR_HOP 0
#define NEXTHDR_ROUTING 43
#define NEXTHDR_DEST 60
static __always_inline __u8 wire_byte(struct __sk_buff *skb, __u32 offset)
{
	__u8 byte = 0;
	bpf_skb_load_bytes(skb, offset, &byte, sizeof(byte));
	return byte;
}
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
__noinline __u64 wire_measure_gso(struct __sk_buff *skb)
{
	__u32 bytes = skb->len, segments = skb->gso_segs, size = skb->gso_size, header;
	struct packet packet;
	bool tcp = false;
	header = wire_segment_header(skb, &tcp);
	if (!segments && size && bytes > header)
		segments = (bytes - header + size - 1) / size;
	if (!segments)
		segments = 1;
	packet = (struct packet){ .bytes = bytes + (segments - 1) * header, .segments = segments, .tcp = tcp };
	return packet_pack(&packet);
}
__noinline __u64 wire_measure_plain(struct __sk_buff *skb)
{
	struct packet packet = { .bytes = skb->len, .segments = 1 };
	packet.tcp = wire_is_tcp(skb, &packet.control);
	return packet_pack(&packet);
}
static __always_inline __u64 wire_measure(struct __sk_buff *skb)
{
	return skb->gso_size ? wire_measure_gso(skb) : wire_measure_plain(skb);
}
#define CHARGE_CLOCK_OLDEST 100000000
#define CHARGE_REASON 8
__noinline int charge_rule(struct __sk_buff *skb, __u64 rule, __u64 measured, __u32 place, __u64 generation_paces)
{
	__u32 generation = generation_paces >> 1;
	bool paces = generation_paces & 1;
	struct rate_limit_state *state = rule_state(&rule, generation);
	struct packet packet = packet_unpack(measured);
	struct rate_limit_pacing *pacing = NULL;
	struct bpf_sock *sk = skb->sk;
	struct answer answer;
	__u64 now, share;
	if (!state)
		return 0;
	place %= LIMITER_MAX_NESTED;
	if (paces && packet.tcp && sk)
		pacing = bpf_sk_storage_get(&rate_limit_pacing_map, sk, NULL, 0);
	now = pacing && measured >> PACKET_CLOCK & 1 ? pacing->sent_ns : 0;
	if (!now || now + CHARGE_CLOCK_OLDEST < state->last_update_ns)
		now = bpf_ktime_get_ns();
	if (pacing) {
		pacing_confirm(pacing, place, rule, generation);
		packet.round_trip_ns = pacing->round_trip_us * 1000ULL;
		packet.elsewhere = (measured >> PACKET_BOTTLENECK) % LIMITER_MAX_NESTED != place;
	}
	bpf_spin_lock(&state->lock);
	answer = verdict_charge(state, pacing ? &pacing->marks[place] : NULL, &packet, now, paces);
	share = demand_offer(&state->fair, packet.early);
	bpf_spin_unlock(&state->lock);
	if (pacing) {
		if (!packet.control)
			connection_note_verdict(pacing, answer.verdict == VERDICT_DROP);
		connection_take_offer(pacing, place, share);
	}
	return answer.verdict | answer.reason << CHARGE_REASON;
}
__noinline int charge_refund(__u64 rule, __u64 measured, int answered, bool paces)
{
	struct rate_limit_state *state = bpf_map_lookup_elem(&rate_limit_state_map, &rule);
	struct packet packet = packet_unpack(measured);
	struct answer answer = { answered & VERDICT_MASK, answered >> CHARGE_REASON };
	if (!state)
		return 0;
	bpf_spin_lock(&state->lock);
	verdict_refund(state, answer, &packet);
	if (paces && packet.tcp && !packet.early)
		demand_refund(&state->fair, &packet);
	bpf_spin_unlock(&state->lock);
	return 0;
}
static __always_inline int charge_rules(struct __sk_buff *skb, const __u64 rules[LIMITER_MAX_NESTED], __u32 generation,
					bool paces)
{
	__u64 measured = wire_measure(skb), generation_paces = (__u64)generation << 1 | paces;
	int answers[LIMITER_MAX_NESTED] = {};
	bool notice = false, dropped = false;
	if (paces && measured >> PACKET_TCP & 1)
		measured = pacing_look(skb, measured);
#pragma unroll
	for (int i = 0; i < LIMITER_MAX_NESTED; i++) {
		if (!rules[i])
			break;
		answers[i] = charge_rule(skb, rules[i], measured, i, generation_paces);
		if ((answers[i] & VERDICT_MASK) == VERDICT_PASS_WITH_NOTICE)
			notice = true;
		if ((answers[i] & VERDICT_MASK) == VERDICT_DROP) {
			dropped = true;
			break;
		}
	}
	if (!dropped)
		return notice ? VERDICT_PASS_WITH_NOTICE : VERDICT_PASS;
#pragma unroll
	for (int i = 0; i < LIMITER_MAX_NESTED - 1; i++)
		if (answers[i] & VERDICT_PASSES)
			charge_refund(rules[i], measured, answers[i], paces);
	return VERDICT_DROP;
}
#define IPSKB_XFRM_TRANSFORMED 4
#define IP6SKB_XFRM_TRANSFORMED 1
#define ETH_P_IP 0x0800
#define IPSEC_UDP_PORT 4500
#define IPSEC_OVERHEAD 256
#define IPSEC_PIECE 1024
#define IPSEC_CREDIT_MOST (1 << 20)
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __s64);
} ipsec_credit_map SEC(".maps");
bool ipsec_seen;
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
__noinline bool ipsec_charged(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;
	__s64 *credit;
	if (!kernel_memory || !sk || !ipsec_made(skb))
		return false;
	if (!ipsec_seen)
		ipsec_seen = true;
	credit = bpf_sk_storage_get(&ipsec_credit_map, sk, NULL, 0);
	if (!credit || *credit < skb->len)
		return false;
	__sync_fetch_and_add(credit, -(__s64)skb->len);
	return true;
}
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
#define TCP_BPF_SOCK_OPS_CB_FLAGS 1008
static __always_inline void settle_find(struct tcp_sock *tcp, struct attribution *found)
{
	struct rate_limit_socket *tag = bpf_sk_storage_get(&rate_limit_socket_map, tcp, NULL, 0);
	struct rate_limit_graph graph = graph_in_use();
	__u64 way = graph_cgroup_of(&tcp->inet_conn.icsk_inet.sk);
	bool released = tag && tag->rule == LIMITER_RELEASED;
	struct cgroup *here;
	__u32 node = 0;
	int levels;
	__u64 id;
	if (tag && !released && !bpf_map_lookup_elem(&rate_limit_config_map, &tag->rule))
		tag = NULL;
	levels = way ? BPF_CORE_READ((struct cgroup *)way, level) + 1 : 0;
	if (tag && !released && levels)
		levels = 1;
	for (int level = 0; level < LIMITER_MAX_DEPTH && level < levels; level++) {
		here = graph_ancestor((struct cgroup *)way, level);
		id = BPF_CORE_READ(here, kn, id);
		if (graph.node)
			node = graph_follow(&graph, id, way, level, node);
		attribution_add_cgroup(id, node, released, found);
	}
	if (tag && !released)
		attribution_add(found, tag->rule);
}
static __always_inline void settle(struct tcp_sock *tcp, __u32 generation, bool on)
{
	struct rate_limit_pacing *pacing;
	struct attribution found = {};
	__u32 flags = tcp->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_RTT_CB_FLAG;
	bool called_back = tcp->bpf_sock_ops_cb_flags == flags;
	if (on)
		settle_find(tcp, &found);
	pacing = bpf_sk_storage_get(&rate_limit_pacing_map, tcp, NULL, 0);
	if (!found.rules[0]) {
		if (!pacing)
			return;
		if (pacing_release(tcp, tcp, pacing))
			bpf_sk_storage_delete(&rate_limit_pacing_map, tcp);
		return;
	}
	if ((called_back && pacing) || !tcp_sends_data(tcp))
		return;
	if (!called_back && bpf_setsockopt(tcp, SOL_TCP, TCP_BPF_SOCK_OPS_CB_FLAGS, &flags, sizeof(flags)))
		return;
	if (!pacing) {
		pacing = bpf_sk_storage_get(&rate_limit_pacing_map, tcp, NULL, BPF_SK_STORAGE_GET_F_CREATE);
		if (!pacing)
			return;
#pragma unroll
		for (int i = 0; i < LIMITER_MAX_NESTED; i++)
			pacing->rules[i] = found.rules[i];
	}
	pacing_join(pacing, generation);
	pacing_tell(tcp, tcp, pacing);
}
char LICENSE[] SEC("license") = "GPL";
static __always_inline __u32 generation_of(const struct rate_limit_control *control)
{
	return *(volatile const __u32 *)&control->generation;
}
SEC("cgroup_skb/egress")
int limit_egress(struct __sk_buff *skb)
{
	struct rate_limit_control *ctl = control();
	struct attribution found = {};
	__u32 generation;
	int verdict;
	if (!ctl)
		return VERDICT_PASS;
	generation = generation_of(ctl);
	if (!generation)
		return VERDICT_PASS;
	if (!attribution_find(skb, ctl->tagged_sockets, generation, &found))
		return VERDICT_PASS;
	if (ipsec_suspected(skb) && ipsec_charged(skb))
		return VERDICT_PASS;
	verdict = charge_rules(skb, found.rules, generation, ctl->pacing == LIMITER_PACING_ON);
	if (ipsec_seen && verdict != VERDICT_DROP)
		ipsec_give(skb);
	return verdict;
}
SEC("tc")
int carry_over(struct __sk_buff *skb)
{
	return carry_run(skb);
}
static __always_inline struct rate_limit_pacing *established(struct bpf_sock_ops *ops, struct bpf_sock *sk,
							     const struct tcp_sock *tcp, __u32 generation)
{
	struct rate_limit_pacing *pacing = bpf_sk_storage_get(&rate_limit_pacing_map, sk, NULL, 0), fresh = {};
	struct attribution found = {};
	struct cgroup *cgroup;
	if (pacing)
		return pacing;
	cgroup = attribution_cgroup(tcp);
	if (!cgroup || !attribution_cached(cgroup->kn->id, generation, &found)) {
		if (generation)
			pacing_call_back(ops);
		return NULL;
	}
	if (!found.rules[0])
		return NULL;
#pragma unroll
	for (int i = 0; i < LIMITER_MAX_NESTED; i++)
		fresh.rules[i] = found.rules[i];
	return bpf_sk_storage_get(&rate_limit_pacing_map, sk, &fresh, BPF_SK_STORAGE_GET_F_CREATE);
}
SEC("sockops")
int pace_sockets(struct bpf_sock_ops *ops)
{
	struct rate_limit_control *ctl;
	struct rate_limit_pacing *pacing;
	struct bpf_sock *sk = ops->sk;
	struct tcp_sock *tcp;
	__u32 generation;
	bool on;
	if (!sk)
		return 1;
	switch (ops->op) {
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
	case BPF_SOCK_OPS_RTT_CB:
		break;
	default:
		return 1;
	}
	tcp = bpf_skc_to_tcp_sock(sk);
	ctl = control();
	if (!tcp || !ctl)
		return 1;
	generation = generation_of(ctl);
	on = ctl->pacing == LIMITER_PACING_ON;
	if (ops->op != BPF_SOCK_OPS_RTT_CB) {
		pacing = on ? established(ops, sk, tcp, generation) : NULL;
		if (pacing)
			pacing_begin(ops, tcp, pacing, generation);
		return 1;
	}
	pacing = bpf_sk_storage_get(&rate_limit_pacing_map, sk, NULL, 0);
	if (pacing && !pacing_follow(ops, tcp, pacing, generation, on))
		bpf_sk_storage_delete(&rate_limit_pacing_map, sk);
	return 1;
}
SEC("iter/tcp")
int settle_sockets(struct bpf_iter__tcp *context)
{
	struct sock_common *sk = context->sk_common;
	struct rate_limit_control *ctl = control();
	struct tcp_sock *tcp;
	if (!sk || !ctl)
		return 0;
	tcp = bpf_skc_to_tcp_sock(sk);
	if (tcp)
		settle(tcp, generation_of(ctl), ctl->pacing == LIMITER_PACING_ON);
	return 0;
}
