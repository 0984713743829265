// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Limits what leaves the sockets of cgroups. Attached once, high in the tree.
 *
 * limit_egress sees every packet: which rules hold for it is looked up (attribution.h), whether it was charged before
 * it was encrypted (ipsec.h), it is measured (wire.h, pacing.h), and each rule decides (charge.h, verdict.h,
 * token_bucket.h) and learns what its connections want (demand.h, fair_share.h). pace_sockets tells each TCP socket its
 * share once a round trip; settle_sockets brings the sockets of a network namespace in line with the rules at once
 * (pacing.h, settle.h).
 *
 * One object fits every kernel from 5.10 on; where the kernel refuses one of the last two, the first still limits.
 */
#include "vmlinux.h"

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "attribution.h"
#include "charge.h"
#include "ipsec.h"
#include "pacing.h"
#include "settle.h"

char LICENSE[] SEC("license") = "GPL";

/* To be read before anything that a writer changes before it raises the generation. */
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
	/* No rule was ever made. */
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

/*
 * What a connection's first packet, its SYN or SYN-ACK, left for it (a listener's SYN-ACK for what it accepts). There
 * is none where a SYN cookie was answered, and with TCP Fast Open: then the cgroup's other connections know the rules.
 * If there are none either, the connection is called back in a round trip, when its own packets will have told.
 */
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
		/* Without a rule on the host nothing is ever known. */
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
