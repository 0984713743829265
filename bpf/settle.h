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
/* More levels than anyone has. */
#define SETTLE_MAX_DEPTH 32

/* The rules of a socket, in any order; as attribution.h does for a packet, without helpers that only know packets. */
static __always_inline void settle_find(struct tcp_sock *tcp, struct rate_limit_pacing *pacing)
{
	struct rate_limit_socket *bound = bpf_sk_storage_get(&rate_limit_socket_map, tcp, NULL, 0);
	struct cgroup *cgroup = attribution_cgroup(tcp);
	bool released = bound && bound->rule == LIMITER_RELEASED;
	struct attribution found = {};
	__u64 id, *rule;

	if (bound && !released && !bpf_map_lookup_elem(&rate_limit_config_map, &bound->rule))
		bound = NULL;
	for (int i = 0; i < SETTLE_MAX_DEPTH && cgroup; i++) {
		id = BPF_CORE_READ(cgroup, kn, id);
		rule = bpf_map_lookup_elem(&rate_limit_member_map, &id);
		/* Of those above a socket that is bound to a rule only the root counts. */
		if (rule && BPF_CORE_READ(cgroup, level) < LIMITER_MAX_DEPTH && !(released && *rule == id) &&
		    (!bound || released || !BPF_CORE_READ(cgroup, level)))
			attribution_add(&found, *rule);
		cgroup = BPF_CORE_READ(cgroup, self.parent, cgroup);
	}
	if (bound && !released)
		attribution_add(&found, bound->rule);
#pragma unroll
	for (int i = 0; i < LIMITER_MAX_NESTED; i++)
		pacing->rules[i] = found.rules[i];
}

static __always_inline void settle(struct tcp_sock *tcp, __u32 generation, bool on)
{
	struct rate_limit_pacing found = {}, *pacing;
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
	 * Already followed; or it has nothing to send, and what a listener accepts is followed from its beginning. The
	 * callback alone says nothing: it stays after an earlier rule, and another program may have asked for it.
	 */
	if ((called_back && pacing) || !tcp_sends_data(tcp))
		return;
	if (!called_back && bpf_setsockopt(tcp, SOL_TCP, TCP_BPF_SOCK_OPS_CB_FLAGS, &flags, sizeof(flags)))
		return;
	pacing = bpf_sk_storage_get(&rate_limit_pacing_map, tcp, &found, BPF_SK_STORAGE_GET_F_CREATE);
	if (!pacing)
		return;
	pacing_join(pacing, generation);
	pacing_tell(tcp, tcp, pacing);
}
#endif
