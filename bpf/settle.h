/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Settles the TCP sockets of one network namespace: one pass brings all of them in line with the rules. User space
 * reads the pinned iterator after each change. Without it (before 6.1) sockets notice a change with their next packets,
 * and those that were open before their rule was made are limited by the bucket alone.
 */
#ifndef LIMITER_SETTLE_H
#define LIMITER_SETTLE_H

#include "attribution.h"
#include "pacing.h"
#include "tcp_states.h"

/* Since 6.12; EINVAL before. */
#define TCP_BPF_SOCK_OPS_CB_FLAGS 1008
/*
 * Finds the rules of a socket, in any order. attribution.h does the same for a packet, with helpers that exist only for
 * packets.
 */
static __always_inline void settle_find(struct tcp_sock *tcp, struct attribution *found)
{
	struct rate_limit_socket *tagged = bpf_sk_storage_get(&rate_limit_socket_map, tcp, NULL, 0);
	struct rate_limit_graph graph = graph_in_use();
	__u64 way = graph_cgroup_of(&tcp->inet_conn.icsk_inet.sk);
	__u64 id, tag = attribution_valid_tag(tagged ? tagged->rule : ATTRIBUTION_UNTAGGED);
	struct cgroup *here;
	__u32 node = 0;
	int levels;

	levels = way ? BPF_CORE_READ((struct cgroup *)way, level) + 1 : 0;
	for (int level = 0; level < LIMITER_MAX_DEPTH && level < levels; level++) {
		here = graph_ancestor((struct cgroup *)way, level);
		id = BPF_CORE_READ(here, kn, id);
		if (graph.node)
			node = graph_follow(&graph, id, way, level, node);
		attribution_add_cgroup(id, node, tag, way, level, found);
	}
	attribution_shares(found);
	attribution_add_tag(tag, found);
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
	/*
	 * Skip a socket that is already adopted, and one that has nothing to send: what a listener accepts is adopted
	 * from its start. The callback alone does not mean adopted: it outlives an earlier rule, and another program
	 * may have asked for it.
	 */
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
#endif
