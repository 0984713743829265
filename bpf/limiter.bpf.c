// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Limits what leaves the sockets of cgroups. Attached once, high in the tree.
 *
 * limit_egress sees every packet: which rules hold for it is looked up (attribution.h), it is measured (wire.h,
 * pacing.h), and each rule decides (charge.h, verdict.h, token_bucket.h) and learns what its connections want
 * (fair_share.h). pace_sockets tells each TCP socket its share once a round trip; settle_sockets brings the
 * sockets of a network namespace in line with the rules at once (pacing.h, settle.h).
 *
 * One object fits every kernel from 5.10 on; where the kernel refuses one of the last two, the first still limits.
 */
#include "vmlinux.h"

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "attribution.h"
#include "charge.h"
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

	if (!ctl)
		return VERDICT_PASS;
	generation = generation_of(ctl);
	/* No rule was ever made. */
	if (!generation)
		return VERDICT_PASS;
	if (!attribution_find(skb, ctl->bound_sockets, generation, &found))
		return VERDICT_PASS;
	return charge_rules(skb, found.rules, generation, ctl->pacing == LIMITER_PACING_ON);
}

SEC("sockops")
int pace_sockets(struct bpf_sock_ops *ops)
{
	struct rate_limit_control *ctl;
	struct rate_limit_pacing *pacing;
	struct bpf_sock *sk = ops->sk;
	struct tcp_sock *tcp;
	bool established;

	established = ops->op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB || ops->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB;
	if (!established && ops->op != BPF_SOCK_OPS_RTT_CB)
		return 1;
	if (!sk)
		return 1;
	/* Made by the first packet, its SYN or SYN-ACK: without it no rule holds. */
	pacing = bpf_sk_storage_get(&rate_limit_pacing_map, sk, NULL, 0);
	tcp = pacing ? bpf_skc_to_tcp_sock(sk) : NULL;
	ctl = tcp ? control() : NULL;
	if (!ctl)
		return 1;
	if (established)
		pacing_begin(ops, tcp, pacing, generation_of(ctl));
	else if (!pacing_follow(ops, tcp, pacing, generation_of(ctl), ctl->pacing == LIMITER_PACING_ON))
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
