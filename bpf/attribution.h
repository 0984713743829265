/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which rules a packet is charged to: those of its socket's cgroup and of the cgroups above it. Never those of the
 * current task: most of TCP's packets leave from softirq, where "current" is whoever was interrupted.
 *
 * The way up is walked once for a cgroup, not for a packet. The answer, also that there is none, stays valid until a
 * member is added or removed anywhere.
 */
#ifndef LIMITER_ATTRIBUTION_H
#define LIMITER_ATTRIBUTION_H

#include <bpf/bpf_core_read.h>

#include "maps.h"

#define ATTRIBUTION_SLOT_BITS 16
#define ATTRIBUTION_SLOTS (1 << ATTRIBUTION_SLOT_BITS)
#define ATTRIBUTION_FACTOR 0xf5ef807705b5ec69ULL /* random and odd: no bit is lost */

/* Innermost rule first: it is the likeliest to drop, and nothing needs to be given back then. 0 ends the list. */
struct attribution {
	__u64 rules[LIMITER_MAX_NESTED];
};

/*
 * One slot for all cgroups whose ids have one hash (attribution_index). A slot is written and read without a lock:
 * `check` fits only the rules that it was written with, for one cgroup in one generation, so a slot that belongs to
 * another, is old or half written is not believed. An array, because its lookup is inlined: a hash lookup costs ten
 * times as much.
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
 * A sum with powers of a factor that was drawn by lot: that two different answers have one sum is as likely as guessing
 * 64 bits.
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
 * Ids are given out one after the other to a cgroup and to each of its files, so those of cgroups are evenly spaced:
 * their low bits alone would leave most slots unused.
 */
static __always_inline __u32 attribution_index(__u64 cgroup)
{
	cgroup *= ATTRIBUTION_FACTOR;
	cgroup ^= cgroup >> 32;
	cgroup *= ATTRIBUTION_FACTOR;
	return cgroup >> (64 - ATTRIBUTION_SLOT_BITS);
}

static __always_inline void attribution_add(struct attribution *found, __u64 rule)
{
	/* Two cgroups on one way up may be members of one rule: it is charged once. */
	for (int i = 0; i < LIMITER_MAX_NESTED; i++)
		if (found->rules[i] == rule)
			return;
/* Moved up rather than appended: constant offsets, so the verifier need not follow every combination. */
#pragma unroll
	for (int i = LIMITER_MAX_NESTED - 1; i > 0; i--)
		found->rules[i] = found->rules[i - 1];
	found->rules[0] = rule;
}

/*
 * Adds the rule that the socket's ancestor at `level` is a member of. False below the socket's own cgroup. `released`
 * leaves out rules whose own cgroup it is.
 */
static __always_inline bool attribution_add_level(struct __sk_buff *skb, int level, bool released,
						  struct attribution *found)
{
	__u64 ancestor = bpf_skb_ancestor_cgroup_id(skb, level), *rule;

	if (!ancestor)
		return false;
	rule = bpf_map_lookup_elem(&rate_limit_member_map, &ancestor);
	if (rule && !(released && *rule == ancestor))
		attribution_add(found, *rule);
	return true;
}

/*
 * An MPTCP socket sends through sockets of its own, of which user space can't bind any: what it is bound to is copied
 * to them, and by BPF_F_CLONE to what they accept.
 */
enum bpf_func_id___mptcp { BPF_FUNC_skc_to_mptcp_sock___mptcp };

static __always_inline struct rate_limit_socket *attribution_bound_mptcp(struct bpf_sock *sk)
{
	struct rate_limit_socket *bound, *own;
	struct mptcp_sock *whole;

	/* Since 5.19. */
	if (!bpf_core_enum_value_exists(enum bpf_func_id___mptcp, BPF_FUNC_skc_to_mptcp_sock___mptcp))
		return NULL;
	whole = bpf_skc_to_mptcp_sock(sk);
	bound = whole ? bpf_sk_storage_get(&rate_limit_socket_map, whole, NULL, 0) : NULL;
	if (!bound)
		return NULL;
	own = bpf_sk_storage_get(&rate_limit_socket_map, sk, bound, BPF_SK_STORAGE_GET_F_CREATE);
	if (own)
		own->rule = bound->rule;
	return bound;
}

/*
 * A socket that is open when its process is moved keeps the cgroup that it was made in for life. Moved into a rule, it
 * was bound to the rule by hand, and is charged to it and to the rule that holds for the whole host. Moved out again,
 * it was released: the rule that it may have been made in no longer holds for it, those that limit its cgroups in place
 * do. False when the way up decides.
 */
static __always_inline bool attribution_bound(struct __sk_buff *skb, bool mptcp, bool *released,
					      struct attribution *found)
{
	struct bpf_sock *sk = skb->sk;
	struct rate_limit_socket *bound;
	__u64 rule;

	if (!sk)
		return false;
	bound = mptcp ? attribution_bound_mptcp(sk) : NULL;
	if (!bound)
		bound = bpf_sk_storage_get(&rate_limit_socket_map, sk, NULL, 0);
	if (!bound)
		return false;
	rule = bound->rule;
	*released = rule == LIMITER_RELEASED;
	if (!bpf_map_lookup_elem(&rate_limit_config_map, &rule))
		return false;
	attribution_add_level(skb, 0, false, found);
	attribution_add(found, rule);
	return true;
}

static __always_inline void attribution_walk(struct __sk_buff *skb, bool released, struct attribution *found)
{
	*found = (struct attribution){};
	for (int level = 0; level < LIMITER_MAX_DEPTH; level++)
		if (!attribution_add_level(skb, level, released, found))
			break;
}

/* What is known of a cgroup in this generation; false where nothing is. */
static __always_inline bool attribution_cached(__u64 cgroup, __u32 generation, struct attribution *found)
{
	__u32 index = attribution_index(cgroup);
	struct attribution_slot *slot = bpf_map_lookup_elem(&attribution_cache, &index);

	if (!slot)
		return false;
	*found = slot->found;
	/* What is checked must be what is used, not a second read of the slot. */
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

/* As vmlinux.h has it from 5.15 on; the program may be built on an older kernel. */
struct sock_cgroup_data___pointer {
	struct cgroup *cgroup;
} __attribute__((preserve_access_index));

/* A socket's cgroup where no helper tells it; NULL before 5.15. */
static __always_inline struct cgroup *attribution_cgroup(const struct tcp_sock *tcp)
{
	const struct sock_cgroup_data___pointer *data = (const void *)&tcp->inet_conn.icsk_inet.sk.sk_cgrp_data;

	return bpf_core_field_exists(data->cgroup) ? data->cgroup : NULL;
}

/*
 * Finds the rules of a packet; false when there are none. Packets without a socket of this host have none. `generation`
 * was read before: members that change during the walk make the answer stale, not wrong for ever.
 */
static __always_inline bool attribution_find(struct __sk_buff *skb, __u32 bound_sockets, __u32 generation,
					     struct attribution *found)
{
	bool released = false;
	__u64 cgroup;

	if (bound_sockets && attribution_bound(skb, bound_sockets > 1, &released, found))
		return true;
	cgroup = bpf_skb_cgroup_id(skb);
	if (!cgroup)
		return false;
	if (released) {
		/* The cache is for the cgroup's other sockets. */
		attribution_walk(skb, released, found);
	} else if (!attribution_cached(cgroup, generation, found)) {
		attribution_walk(skb, released, found);
		attribution_remember(cgroup, generation, found);
	}
	return found->rules[0];
}
#endif
