// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Limits what leaves the sockets of cgroups. Attached once, high in the tree;
 * which rules hold for a packet is looked up (attribution.h), it is measured
 * (wire.h), and each rule's bucket decides (charge.h, verdict.h, token_bucket.h).
 *
 * No kernel structure is read, only the context: one object fits every kernel
 * from 5.10 on.
 */
#include "vmlinux.h"

#include <bpf/bpf_helpers.h>

#include "layout.h"
#include "wire.h"
#include "charge.h"
#include "attribution.h"

char LICENSE[] SEC("license") = "GPL";

SEC("cgroup_skb/egress")
int limit_egress(struct __sk_buff *skb)
{
	struct attribution attribution = {};
	struct packet packet;

	if (!attribution_find(skb, &attribution))
		return VERDICT_PASS;
	wire_measure(skb, &packet);
	return charge_rules(attribution.rules, &packet);
}
