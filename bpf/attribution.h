/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Attribution: which rules a packet is charged to. They are those of its socket's cgroup and of the cgroups above that,
 * never those of the current task: most TCP packets leave from softirq, where "current" is whatever was interrupted.
 *
 * The way up is walked once per cgroup and tag, not per packet. The answer, even "no rule", stays valid until a member
 * is added or removed anywhere.
 */
#ifndef LIMITER_ATTRIBUTION_H
#define LIMITER_ATTRIBUTION_H

#include <bpf/bpf_core_read.h>

#include "maps.h"
#include "graph.h"

#define ATTRIBUTION_SLOT_BITS 16
#define ATTRIBUTION_SLOTS (1 << ATTRIBUTION_SLOT_BITS)
#define ATTRIBUTION_FACTOR 0xf5ef807705b5ec69ULL     /* random and odd: no bit is lost */
#define ATTRIBUTION_TAG_FACTOR 0x9d1b8c2f64a7e3d5ULL /* another one */
/* In place of the tag of a socket that has none. */
#define ATTRIBUTION_UNTAGGED (~0ULL)

/*
 * Innermost rule first: it is the most likely to drop, and a packet that the first rule drops needs no refund. 0 ends
 * the list.
 */
struct attribution {
	__u64 rules[LIMITER_MAX_NESTED];
};

/*
 * One slot serves all cgroups with the same hash (attribution_index). For tagged sockets, cgroup and tag together stand
 * for a cgroup. Slots are read and written without a lock: `check` fits only the rules that it was written with, for one
 * cgroup in one generation. So a slot that belongs to another cgroup, is stale or half written does not pass for an
 * answer. The map is an array because array lookups are inlined: a hash lookup costs ten times as much.
 */
struct attribution_slot {
	__u64 check;
	struct attribution found;
};

/* Not pinned: it begins empty with every program. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, ATTRIBUTION_SLOTS);
	__type(key, __u32);
	__type(value, struct attribution_slot);
} attribution_cache SEC(".maps");

/*
 * A sum with powers of a randomly drawn factor: two different answers have the same sum as rarely as a guess of 64 bits
 * is right.
 */
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

/*
 * The kernel numbers a cgroup and each of its files consecutively, so cgroup ids are evenly spaced. Their low bits
 * alone would leave most slots unused.
 */
static __always_inline __u32 attribution_index(__u64 cgroup)
{
	cgroup *= ATTRIBUTION_FACTOR;
	cgroup ^= cgroup >> 32;
	cgroup *= ATTRIBUTION_FACTOR;
	return cgroup >> (64 - ATTRIBUTION_SLOT_BITS);
}

/* Not inlined: charge.h. */
__noinline bool attribution_has(__u64 rule, __u64 first, __u64 second, __u64 third, __u64 fourth)
{
	rule &= ~GRAPH_SHARES;
	return rule == (first & ~GRAPH_SHARES) || rule == (second & ~GRAPH_SHARES) || rule == (third & ~GRAPH_SHARES) ||
	       rule == (fourth & ~GRAPH_SHARES);
}

/* Whether one of four is a budget of a rule. Not inlined: charge.h. */
__noinline bool attribution_has_budget(__u64 rule, __u64 first, __u64 second, __u64 third, __u64 fourth)
{
	__u64 all[] = { first, second, third, fourth };
	struct rate_limit_state *state;

#pragma unroll
	for (int i = 0; i < LIMITER_MAX_NESTED; i++) {
		if (!all[i])
			return false;
		state = bpf_map_lookup_elem(&rate_limit_state_map, &all[i]);
		if (state && state->limit == rule)
			return true;
	}
	return false;
}

static __always_inline void attribution_add(struct attribution *found, __u64 rule)
{
	_Static_assert(LIMITER_MAX_NESTED == 4, "attribution_has() compares four");

	/*
	 * Two cgroups on the way up may be members of one rule: it is charged once. Where the cgroup above a leaf or of a
	 * tagged socket has a budget of the same rule, that is charged.
	 */
	if (attribution_has(rule, found->rules[0], found->rules[1], found->rules[2], found->rules[3]) ||
	    attribution_has_budget(rule, found->rules[0], found->rules[1], found->rules[2], found->rules[3]))
		return;
/* Shifted rather than appended: with constant offsets the verifier need not follow every combination. */
#pragma unroll
	for (int i = LIMITER_MAX_NESTED - 1; i > 0; i--)
		found->rules[i] = found->rules[i - 1];
	found->rules[0] = rule;
}

/*
 * The rule that a cgroup, at a level of the way to `way`, is a member of, or otherwise that of its node; 0: none. For a
 * tagged socket it leaves out a rule whose own cgroup or leaf it is: the tag says which rule the process was put in after
 * that. Not inlined: charge.h.
 */
__noinline __u64 attribution_rule(__u64 cgroup, __u32 node, __u64 tag, __u64 way, __u32 level)
{
	__u64 *member = bpf_map_lookup_elem(&rate_limit_member_map, &cgroup);

	if (!member)
		return node ? graph_rule(node, cgroup, way, level) : 0;
	if (tag != ATTRIBUTION_UNTAGGED && (*member == cgroup || *member & LIMITER_LEAF))
		return 0;
	return *member & ~LIMITER_LEAF;
}

static __always_inline void attribution_add_cgroup(__u64 cgroup, __u32 node, __u64 tag, __u64 way, __u32 level,
						   struct attribution *found)
{
	__u64 rule = attribution_rule(cgroup, node, tag, way, level);

	if (rule)
		attribution_add(found, rule);
}

/* Leaves only the rules. Returns whether one of the cgroups should have a budget of its own, and there is no room. */
static __always_inline bool attribution_shares(struct attribution *found)
{
	__u64 all = 0;

#pragma unroll
	for (int i = 0; i < LIMITER_MAX_NESTED; i++) {
		all |= found->rules[i];
		found->rules[i] &= ~GRAPH_SHARES;
	}
	return all & GRAPH_SHARES;
}

/*
 * An MPTCP socket sends through subflow sockets, which user space cannot tag. Its tag is copied to them, and by
 * BPF_F_CLONE to those that they accept.
 */
enum bpf_func_id___mptcp { BPF_FUNC_skc_to_mptcp_sock___mptcp };

static __always_inline struct rate_limit_socket *attribution_tag_mptcp(struct bpf_sock *sk)
{
	struct rate_limit_socket *tag, *own;
	struct mptcp_sock *whole;

	/* Since 5.19. */
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

/*
 * A socket keeps for life the cgroup that it was created in. So when a process is moved into a rule, its open sockets
 * are tagged with the rule. When the process is moved out again, they are tagged as released. Not inlined: charge.h.
 */
__noinline __u64 attribution_tag(struct __sk_buff *skb, bool mptcp)
{
	struct bpf_sock *sk = skb->sk;
	struct rate_limit_socket *tag;

	if (!sk)
		return ATTRIBUTION_UNTAGGED;
	tag = mptcp ? attribution_tag_mptcp(sk) : NULL;
	if (!tag)
		tag = bpf_sk_storage_get(&rate_limit_socket_map, sk, NULL, 0);
	return tag ? tag->rule : ATTRIBUTION_UNTAGGED;
}

/* A tag, if its rule is not gone: then the way up alone decides. Not inlined: charge.h. */
__noinline __u64 attribution_valid_tag(__u64 tag)
{
	if (tag == LIMITER_RELEASED || bpf_map_lookup_elem(&rate_limit_config_map, &tag))
		return tag;
	return ATTRIBUTION_UNTAGGED;
}

static __always_inline void attribution_add_tag(__u64 tag, struct attribution *found)
{
	if (tag != ATTRIBUTION_UNTAGGED && tag != LIMITER_RELEASED)
		attribution_add(found, tag);
}

/* Returns true as attribution_shares(). */
static __always_inline bool attribution_walk(struct __sk_buff *skb, __u64 tag, struct attribution *found)
{
	struct rate_limit_graph graph = graph_in_use();
	__u64 way = graph.node ? graph_near(graph_cgroup(skb)) : 0, cgroup;
	__u32 node = 0;

	*found = (struct attribution){};
	for (int level = 0; level < LIMITER_MAX_DEPTH; level++) {
		cgroup = bpf_skb_ancestor_cgroup_id(skb, level);
		/* Below the socket's own. */
		if (!cgroup)
			break;
		if (way)
			node = graph_follow(&graph, cgroup, way, level, node);
		attribution_add_cgroup(cgroup, node, tag, way, level, found);
	}
	return attribution_shares(found);
}

/* Looks up the rules of a cgroup in this generation; false where they are not known. */
static __always_inline bool attribution_cached(__u64 cgroup, __u32 generation, struct attribution *found)
{
	__u32 index = attribution_index(cgroup);
	struct attribution_slot *slot = bpf_map_lookup_elem(&attribution_cache, &index);

	if (!slot)
		return false;
	*found = slot->found;
	/* Check what will be used, not a second read of the slot. */
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

/* A socket's cgroup in programs that have no helper for it; NULL before 5.15. */
static __always_inline struct cgroup *attribution_cgroup(const struct tcp_sock *tcp)
{
	const struct sock_cgroup_data___named *data = (const void *)&tcp->inet_conn.icsk_inet.sk.sk_cgrp_data;

	return bpf_core_field_exists(data->cgroup) ? data->cgroup : NULL;
}

/*
 * Finds the rules of a packet; false when there are none, as for a packet without a socket of this host. A tagged socket
 * is charged to its tag's rule and to all that hold on the way up from the cgroup that it was created in. `generation`
 * was read before: if members change during the walk, the answer is stale at once instead of wrong for good.
 */
static __always_inline bool attribution_find(struct __sk_buff *skb, __u32 tagged_sockets, __u32 generation,
					     struct attribution *found)
{
	__u64 tag = tagged_sockets ? attribution_tag(skb, tagged_sockets > 1) : ATTRIBUTION_UNTAGGED;
	__u64 cgroup = bpf_skb_cgroup_id(skb), key;
	bool shares;

	if (!cgroup)
		return false;
	/* Sockets of one cgroup with different tags have different answers. */
	key = cgroup + (tag - ATTRIBUTION_UNTAGGED) * ATTRIBUTION_TAG_FACTOR;
	if (!attribution_cached(key, generation, found)) {
		tag = attribution_valid_tag(tag);
		shares = attribution_walk(skb, tag, found);
		attribution_add_tag(tag, found);
		/* Who has to share looks again at each packet: room may have come. */
		if (!shares)
			attribution_remember(key, generation, found);
	}
	return found->rules[0];
}
#endif
