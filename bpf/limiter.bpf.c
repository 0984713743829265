// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Limits what the sockets of cgroups send. Attached once, high in the tree.
 *
 * limit_egress sees every packet. It finds the rules that hold for the packet (attribution.h), checks whether the
 * packet was charged before it was encrypted (ipsec.h), and measures it (wire.h, pacing.h). Each rule then decides
 * (charge.h, verdict.h, token_bucket.h) and learns what its connections want (demand.h, fair_share.h). pace_sockets
 * tells each TCP socket its share once a round trip. settle_sockets brings all sockets of a network namespace in line
 * with the rules at once (pacing.h, settle.h). carry_over takes counters over from an earlier layout (carry.h).
 * limit_and_trace has the place of limit_egress while somebody looks at what it decides (trace.h).
 *
 * One object fits every kernel from 5.10 on. Where the kernel refuses one of the other programs, limit_egress still
 * limits.
 */
#include "vmlinux.h"

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "attribution.h"
#include "carry.h"
#include "charge.h"
#include "ipsec.h"
#include "pacing.h"
#include "settle.h"
#include "trace.h"

char LICENSE[] SEC("license") = "GPL";

/* Must be read before anything that a writer changes before it raises the generation. */
static __always_inline __u32 generation_of(const struct rate_limit_control *control)
{
	return *(volatile const __u32 *)&control->generation;
}

/* A packet's verdict. What it comes from is for who traces. */
static __always_inline int limit(struct __sk_buff *skb, struct decision *decision)
{
	struct rate_limit_control *ctl = control();
	__u32 generation;
	int verdict;
	__u64 told;

	if (!ctl)
		return VERDICT_PASS;
	generation = generation_of(ctl);
	/* No rule was ever made. */
	if (!generation)
		return VERDICT_PASS;
	if (!attribution_find(skb, ctl->tagged_sockets, generation, &decision->found))
		return VERDICT_PASS;
	if (ipsec_suspected(skb) && ipsec_charged(skb))
		return VERDICT_PASS;
	told = (__u64)generation << CHARGE_GENERATION;
	told |= ctl->pacing == LIMITER_PACING_ON ? CHARGE_PACES : 0;
	told |= ctl->departure == LIMITER_DEPARTURE_AUTO ? CHARGE_MAY_ASK : 0;
	verdict = charge_rules(skb, decision, told);
	if (ipsec_seen && verdict != VERDICT_DROP)
		ipsec_give(skb);
	return verdict;
}

SEC("cgroup_skb/egress")
int limit_egress(struct __sk_buff *skb)
{
	struct decision decision = {};

	return limit(skb, &decision);
}

/* In the place of limit_egress while somebody looks, see trace.h. */
SEC("cgroup_skb/egress")
int limit_and_trace(struct __sk_buff *skb)
{
	struct decision decision = {};
	int verdict = limit(skb, &decision);

	trace_packet(skb, &decision, TRACED_OUT, verdict);
	return verdict;
}

/* While somebody looks: what arrives, which no rule limits. */
SEC("cgroup_skb/ingress")
int trace_arrival(struct __sk_buff *skb)
{
	struct decision none = {};

	trace_packet(skb, &none, TRACED_IN, VERDICT_PASS);
	return 1;
}

/* While somebody looks: sockets that the process makes whose packets he wants to see. */
SEC("cgroup/sock_create")
int trace_creation(struct bpf_sock *sk)
{
	if (trace_filter.process && bpf_get_current_pid_tgid() >> 32 == trace_filter.process)
		bpf_sk_storage_get(&trace_socket_map, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	return 1;
}

/* While somebody looks: what another program of the egress hook refuses, ours knows nothing of. */
SEC("tp_btf/kfree_skb")
int BPF_PROG(trace_refusal, struct sk_buff *skb, void *location)
{
	trace_refused(skb, (__u64)location);
	return 0;
}

/* Run by user space, never attached, while an earlier layout is left. */
SEC("tc")
int carry_over(struct __sk_buff *skb)
{
	return carry_run(skb);
}

/*
 * A connection's first packet (SYN or SYN-ACK) leaves this storage for it; a listener's SYN-ACK leaves it for the
 * accepted socket. There is none after a SYN cookie or with TCP Fast Open: then the rules are known from other
 * connections of the cgroup. Failing that, the connection asks to be called back in a round trip, when its own packets
 * will have found them.
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
		/* While the host has no rule, nothing will ever be known. */
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
			pacing_begin(ops, tcp, pacing, generation, ctl->departure == LIMITER_DEPARTURE_AUTO);
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
