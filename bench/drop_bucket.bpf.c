// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What the benchmarks compare with: a token bucket as it is commonly written in eBPF, that only drops. With two corrections in
 * its favour: the rule is found by the socket's cgroup instead of the running task's, and the verdict is 2, which TCP
 * takes as a full queue, instead of 0, which kills UDP programs with EPERM. Its arithmetic is the usual one: whole
 * tokens, and what is cut off is lost.
 */
#include "vmlinux.h"

#include <bpf/bpf_helpers.h>

#define NANOSECONDS 1000000000ULL

char LICENSE[] SEC("license") = "GPL";

struct rule {
	__u64 rate;   /* bytes per second */
	__u64 bucket; /* bytes */
	__u64 tokens;
	__u64 last_update_ns;
	struct bpf_spin_lock lock;
	__u32 reserved;
};

/* id of a cgroup -> rule */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, __u64);
	__type(value, struct rule);
} drop_rules SEC(".maps");

SEC("cgroup_skb/egress")
int drop_bucket(struct __sk_buff *skb)
{
	__u64 cgroup = bpf_skb_cgroup_id(skb), now = bpf_ktime_get_ns(), length = skb->len;
	struct rule *rule = bpf_map_lookup_elem(&drop_rules, &cgroup);
	int verdict = 2;

	if (!rule)
		return 1;
	bpf_spin_lock(&rule->lock);
	if (now > rule->last_update_ns) {
		rule->tokens += (now - rule->last_update_ns) * rule->rate / NANOSECONDS;
		if (rule->tokens > rule->bucket)
			rule->tokens = rule->bucket;
		rule->last_update_ns = now;
	}
	if (rule->tokens >= length) {
		rule->tokens -= length;
		verdict = 1;
	}
	bpf_spin_unlock(&rule->lock);
	return verdict;
}
