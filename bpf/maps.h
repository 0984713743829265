/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The pinned maps, which stay when the programs are replaced. Their keys and values are in layout.h. */
#ifndef LIMITER_MAPS_H
#define LIMITER_MAPS_H

#include "layout.h"

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
	__uint(max_entries, LIMITER_MAX_RULES + LIMITER_MAX_BUDGETS);
	__type(key, __u64);
	__type(value, struct rate_limit_state);
} rate_limit_state_map SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, LIMITER_MAX_BUDGETS);
	__type(key, __u32);
	__type(value, struct rate_limit_slot);
} rate_limit_slot_map SEC(".maps");

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
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, LIMITER_MAX_PLACES);
	__type(key, __u32);
	__type(value, struct rate_limit_place);
} rate_limit_place_map SEC(".maps");

/* Accepted sockets get a copy, since they belong to the rule too. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct rate_limit_socket);
} rate_limit_socket_map SEC(".maps");

/* Accepted sockets get a copy, so they know their rules before they send anything. */
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
#endif
