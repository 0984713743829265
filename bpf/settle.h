/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Every TCP socket of one network namespace, brought in line with the rules in one pass: user space reads the pinned
 * iterator after it changed something. Without it (before 6.1) sockets notice by themselves, with their next packets;
 * those that were open before their rule was made are then limited by the bucket alone.
 */
#ifndef LIMITER_SETTLE_H
#define LIMITER_SETTLE_H

#include "attribution.h"
#include "pacing.h"
#include "tcp_states.h"

/* Since 6.12; refused with EINVAL before. */
#define TCP_BPF_SOCK_OPS_CB_FLAGS 1008
/* The rules of a socket, in any order; as attribution.h does for a packet, without helpers that only know packets. */
static __always_inline void settle_find(struct tcp_sock *tcp, const struct rate_limit_control *control,
					struct attribution *found)
{
	struct rate_limit_socket *bound = bpf_sk_storage_get(&rate_limit_socket_map, tcp, NULL, 0);
	__u64 way = places_cgroup_of(&tcp->inet_conn.icsk_inet.sk);
	bool released = bound && bound->rule == LIMITER_RELEASED;
	struct cgroup *here;
	__u32 place = 0;
	int levels;
	__u64 id;

	if (bound && !released && !bpf_map_lookup_elem(&rate_limit_config_map, &bound->rule))
		bound = NULL;
	levels = way ? BPF_CORE_READ((struct cgroup *)way, level) + 1 : 0;
	/* Of those above a socket that is bound to a rule only the root counts. */
	if (bound && !released && levels)
		levels = 1;
	for (int level = 0; level < LIMITER_MAX_DEPTH && level < levels; level++) {
		here = places_ancestor((struct cgroup *)way, level);
		id = BPF_CORE_READ(here, kn, id);
		if (control->places)
			place = places_follow(control, id, way, level, place);
		attribution_add_cgroup(id, place, released, found);
	}
	if (bound && !released)
		attribution_add(found, bound->rule);
}

static __always_inline void settle(struct tcp_sock *tcp, const struct rate_limit_control *control, __u32 generation)
{
	struct rate_limit_pacing *pacing;
	struct attribution found = {};
	__u32 flags = tcp->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_RTT_CB_FLAG;
	bool called_back = tcp->bpf_sock_ops_cb_flags == flags;

	if (control->pacing == LIMITER_PACING_ON)
		settle_find(tcp, control, &found);
	pacing = bpf_sk_storage_get(&rate_limit_pacing_map, tcp, NULL, 0);
	if (!found.rules[0]) {
		if (!pacing)
			return;
		if (pacing_release(tcp, tcp, pacing))
			bpf_sk_storage_delete(&rate_limit_pacing_map, tcp);
		return;
	}
	/*
	 * Already followed; or it has nothing to send, and what a listener accepts is followed from its beginning. The
	 * callback alone says nothing: it stays after an earlier rule, and another program may have asked for it.
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
