// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The program as it was with schema 2 (bpf/ of f3aae22 in one file, without its comments), for the tests of what the next
 * schemas take over. Not to be changed.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>

#define LIMITER_SCHEMA 2
#define LIMITER_MAX_RULES 65536
#define LIMITER_MAX_MEMBERS 131072

#define LIMITER_MAX_NESTED 4

#define LIMITER_MAX_DEPTH 16

struct rate_limit_config {
	__u64 rate_bps;
	__u64 bucket_size;
};

struct fair_share {
	__u64 share;
	__u64 paced_rate;
	__u64 clock_ns;
	__u64 epoch;
	__u64 epoch_start_ns;
	__u64 period_ns;
	__u64 lag_ns;
	__u64 modest_bytes;
	__u64 foreign_bytes;
	__u64 foreign_rate;
	__u32 active;
	__u32 active_before;
	__u32 unpaced;
	__u32 unpaced_before;
	__u32 holders;
	__u32 holders_before;
	__u32 newcomers;
	__u32 burst;
};

struct rate_limit_state {
	__s64 tokens;
	__u64 last_update_ns;
	struct bpf_spin_lock lock;
	__u32 fraction;
	__u64 packets;
	__u64 bytes;
	__u64 dropped_packets;
	__u64 dropped_bytes;
	__u64 congestion_marks;
	__u64 rate;
	__u64 bucket;
	__u32 generation;
	__u32 earned_us;
	struct fair_share fair;
};

struct rate_limit_socket {
	__u64 rule;
};
#define LIMITER_RELEASED 0

struct fair_share_mark {
	__u64 epoch;
	__u32 bytes;
	__u32 flags;
};

struct rate_limit_pacing {
	__u64 rules[LIMITER_MAX_NESTED];
	__u64 share;
	__u64 set;
	__u64 own;
	__u32 generation;
	__u32 suspected;
	__u32 tightest;
	__u32 passed;
	__u32 clamp;
	__u32 reserved;
	struct fair_share_mark marks[LIMITER_MAX_NESTED];
};
#define LIMITER_UNPACED (~0ULL)

enum limiter_pacing {
	LIMITER_PACING_OFF,
	LIMITER_PACING_ON,
	LIMITER_PACING_REFUSED,
};

struct rate_limit_control {
	__u32 schema;
	__u32 generation;
	__u32 bound_sockets;
	__u32 program_id;
	__u32 pacing;
	__u32 reserved;
	char identity[64];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, LIMITER_MAX_RULES);
	__type(key, __u64);
	__type(value, struct rate_limit_config);
} rate_limit_config_map SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, LIMITER_MAX_RULES);
	__type(key, __u64);
	__type(value, struct rate_limit_state);
} rate_limit_state_map SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, LIMITER_MAX_MEMBERS);
	__type(key, __u64);
	__type(value, __u64);
} rate_limit_member_map SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct rate_limit_socket);
} rate_limit_socket_map SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct rate_limit_pacing);
} rate_limit_pacing_map SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct rate_limit_control);
} rate_limit_control_map SEC(".maps");

static __always_inline struct rate_limit_control *control(void)
{
	__u32 index = 0;

	return bpf_map_lookup_elem(&rate_limit_control_map, &index);
}

#define ATTRIBUTION_SLOT_BITS 16
#define ATTRIBUTION_SLOTS (1 << ATTRIBUTION_SLOT_BITS)
#define ATTRIBUTION_FACTOR 0xf5ef807705b5ec69ULL

struct attribution {
	__u64 rules[LIMITER_MAX_NESTED];
};

struct attribution_slot {
	__u64 check;
	struct attribution found;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, ATTRIBUTION_SLOTS);
	__type(key, __u32);
	__type(value, struct attribution_slot);
} attribution_cache SEC(".maps");

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

static __always_inline __u32 attribution_index(__u64 cgroup)
{
	cgroup *= ATTRIBUTION_FACTOR;
	cgroup ^= cgroup >> 32;
	cgroup *= ATTRIBUTION_FACTOR;
	return cgroup >> (64 - ATTRIBUTION_SLOT_BITS);
}

static __always_inline void attribution_add(struct attribution *found, __u64 rule)
{

	for (int i = 0; i < LIMITER_MAX_NESTED; i++)
		if (found->rules[i] == rule)
			return;

#pragma unroll
	for (int i = LIMITER_MAX_NESTED - 1; i > 0; i--)
		found->rules[i] = found->rules[i - 1];
	found->rules[0] = rule;
}

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

enum bpf_func_id___mptcp { BPF_FUNC_skc_to_mptcp_sock___mptcp };

static __always_inline struct rate_limit_socket *attribution_bound_mptcp(struct bpf_sock *sk)
{
	struct rate_limit_socket *bound, *own;
	struct mptcp_sock *whole;

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

static __always_inline bool attribution_cached(__u64 cgroup, __u32 generation, struct attribution *found)
{
	__u32 index = attribution_index(cgroup);
	struct attribution_slot *slot = bpf_map_lookup_elem(&attribution_cache, &index);

	if (!slot)
		return false;
	*found = slot->found;

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

struct sock_cgroup_data___pointer {
	struct cgroup *cgroup;
} __attribute__((preserve_access_index));

static __always_inline struct cgroup *attribution_cgroup(const struct tcp_sock *tcp)
{
	const struct sock_cgroup_data___pointer *data = (const void *)&tcp->inet_conn.icsk_inet.sk.sk_cgrp_data;

	return bpf_core_field_exists(data->cgroup) ? data->cgroup : NULL;
}

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

		attribution_walk(skb, released, found);
	} else if (!attribution_cached(cgroup, generation, found)) {
		attribution_walk(skb, released, found);
		attribution_remember(cgroup, generation, found);
	}
	return found->rules[0];
}

struct packet {
	__u32 bytes;
	__u32 segments;
	bool tcp;

	bool held;
	bool paced;
	bool starved;
	__u64 round_trip_ns;
};

#define NANOSECONDS 1000000000ULL

#define TOKEN_DEBT_MOST (1 << 20)

static __always_inline void token_bucket_fill(struct rate_limit_state *state, __u64 bucket)
{
	state->tokens = bucket;
	state->fraction = 0;
}

static __always_inline void token_bucket_refill(struct rate_limit_state *state, __u64 rate, __u64 bucket, __u64 now)
{
	__u64 accrued, part, whole = 0, elapsed;

	if (now > state->last_update_ns) {
		elapsed = now - state->last_update_ns;
		state->last_update_ns = now;
		if (elapsed >= NANOSECONDS) {
			__u64 seconds = elapsed / NANOSECONDS;

			if (state->tokens >= (__s64)bucket || seconds > (bucket - state->tokens) / rate) {
				token_bucket_fill(state, bucket);
				return;
			}
			whole = seconds * rate;
			elapsed -= seconds * NANOSECONDS;
		}
		part = elapsed * rate;
		accrued = part / NANOSECONDS;
		part = part - accrued * NANOSECONDS + state->fraction;
		if (part >= NANOSECONDS) {
			part -= NANOSECONDS;
			accrued++;
		}
		state->fraction = part;
		state->tokens += whole + accrued;
	} else if (state->last_update_ns - now > NANOSECONDS) {
		state->last_update_ns = now;
	}
	if (state->tokens < -(__s64)(rate + TOKEN_DEBT_MOST))
		state->tokens = 0;

	if (state->tokens >= (__s64)bucket)
		token_bucket_fill(state, bucket);
}

static __always_inline void token_bucket_take(struct rate_limit_state *state, __u32 bytes)
{
	state->tokens -= bytes;
}

static __always_inline void token_bucket_refund(struct rate_limit_state *state, __u32 bytes)
{
	state->tokens += bytes;
}

enum verdict {
	VERDICT_PASS = 1,
	VERDICT_DROP = 2,
	VERDICT_PASS_WITH_NOTICE = 3,
};

#define TCP_DEBT_BYTES 65536
#define TCP_DEBT_SHARE 8

#define CONTROL_PACKET_BYTES 128

#define PACED_DEBT_LEAST 3000

#define NOTICE_SHARE 16

#define TOKENS_LOWEST (-0x7fffffffffffffffLL - 1)
#define TOKENS_HIGHEST 0x7fffffffffffffffLL

struct thresholds {
	__s64 drop;
	__s64 notice;
};

static __always_inline struct thresholds verdict_thresholds(__u64 rate, __u64 bucket, const struct packet *packet)
{
	struct thresholds thresholds = { .drop = 0, .notice = TOKENS_LOWEST };
	__s64 debt = rate / TCP_DEBT_SHARE;

	if (!packet->tcp)
		return thresholds;
	thresholds.notice = rate / NOTICE_SHARE < bucket / 2 ? rate / NOTICE_SHARE : bucket / 2;
	if (debt > TCP_DEBT_BYTES)
		debt = TCP_DEBT_BYTES;
	if (packet->bytes > CONTROL_PACKET_BYTES)
		debt /= 2;

	if (packet->paced && packet->bytes > CONTROL_PACKET_BYTES) {
		thresholds.drop = debt > PACED_DEBT_LEAST ? -debt : -PACED_DEBT_LEAST;
		return thresholds;
	}

	if (packet->bytes <= debt)
		thresholds.drop = (__s64)packet->bytes - debt - 1;
	return thresholds;
}

static __always_inline enum verdict verdict_take(struct rate_limit_state *state, const struct thresholds *thresholds,
						 const struct packet *packet)
{
	if (state->tokens <= thresholds->drop) {
		state->dropped_packets += packet->segments;
		state->dropped_bytes += packet->bytes;
		return VERDICT_DROP;
	}
	token_bucket_take(state, packet->bytes);
	state->packets += packet->segments;
	state->bytes += packet->bytes;
	if (state->tokens >= thresholds->notice)
		return VERDICT_PASS;
	state->congestion_marks += packet->segments;
	return VERDICT_PASS_WITH_NOTICE;
}

static __always_inline void verdict_refund(struct rate_limit_state *state, enum verdict verdict,
					   const struct packet *packet)
{
	token_bucket_refund(state, packet->bytes);
	state->packets -= packet->segments;
	state->bytes -= packet->bytes;
	if (verdict == VERDICT_PASS_WITH_NOTICE)
		state->congestion_marks -= packet->segments;
}

#define MILLISECONDS 1000000ULL
#define MICROSECONDS 1000ULL
#define EPOCH_SHORTEST (10 * MILLISECONDS)
#define EPOCH_LONGEST (4 * NANOSECONDS)

#define EPOCHS_FORGET 4

#define CORRECTION_SHORTEST (100 * MILLISECONDS)
#define CORRECTION_SLOWNESS 4

#define LAG_LONGEST NANOSECONDS
#define CONNECTIONS_MOST 65535

#define BURST_SMALLEST 3000
#define BURST_LARGEST 65535

#define SHARE_LEAST (BURST_SMALLEST / 4)

#define CREDIT_MOST (100 * MILLISECONDS)

#define EARNED_SHARE 32
#define EARNED_MOST (200 * MILLISECONDS)

#define RESERVE_SHARE 10
#define MISSING_SHARE 40

#define GUARD_DEBT (100 * MILLISECONDS)

#define FOREIGN_SHARE 2
#define FOREIGN_AVERAGE_MS 100

#define FAIR_SHARE_ACTIVE 1
#define FAIR_SHARE_HELD 2
#define FAIR_SHARE_KNOWN 4

static __always_inline __u64 fair_share_period(const struct fair_share *fair, __u64 rate)
{
	__u64 connections = fair->active_before;
	__u64 period;

	if (connections > CONNECTIONS_MOST)
		connections = CONNECTIONS_MOST;
	period = (connections + 1) * fair->burst * 3 / 2 * NANOSECONDS / rate;
	if (period < EPOCH_SHORTEST)
		return EPOCH_SHORTEST;
	return period < EPOCH_LONGEST ? period : EPOCH_LONGEST;
}

static __always_inline __s64 fair_share_debt(const struct fair_share *fair, __u64 now)
{
	return fair->clock_ns - now;
}

static __always_inline void fair_share_fill(struct fair_share *fair, __u64 elapsed, __u64 now)
{
	__u64 modest = fair->modest_bytes * NANOSECONDS / elapsed;
	__u64 rest = fair->paced_rate > modest ? fair->paced_rate - modest : 0;
	__u64 connections = (__u64)fair->active_before + fair->newcomers;
	__u64 correction = CORRECTION_SLOWNESS * (fair->period_ns + fair->lag_ns);
	__u64 level = fair->paced_rate / (connections ? connections : 1);
	__s64 debt = fair_share_debt(fair, now), most;

	if (fair->holders_before && rest / fair->holders_before > level)
		level = rest / fair->holders_before;
	if (correction < CORRECTION_SHORTEST)
		correction = CORRECTION_SHORTEST;
	most = correction / 4;
	if (debt > most)
		debt = most;
	if (debt < -most)
		debt = -most;

	correction = (correction - debt) * 1024 / correction;
	fair->share = level / 1024 * correction + level % 1024 * correction / 1024;
	if (fair->share < SHARE_LEAST)
		fair->share = SHARE_LEAST;
}

static __always_inline void fair_share_forget(struct rate_limit_state *state, __u64 now)
{
	struct fair_share *fair = &state->fair;
	__u64 rate = state->rate;

	state->earned_us = 0;
	fair->share = 0;
	fair->paced_rate = rate;
	fair->clock_ns = now;

	fair->epoch += 2;
	fair->epoch_start_ns = now;
	fair->lag_ns = 0;
	fair->modest_bytes = 0;
	fair->foreign_bytes = 0;
	fair->foreign_rate = 0;
	fair->active = 0;
	fair->active_before = 0;
	fair->unpaced = 0;
	fair->unpaced_before = 0;
	fair->holders = 0;
	fair->holders_before = 0;
	fair->newcomers = 0;
	fair->burst = BURST_SMALLEST;
	fair->period_ns = fair_share_period(fair, rate);
}

static __always_inline void fair_share_settle_clock(struct rate_limit_state *state, __u64 elapsed, __u64 now)
{
	struct fair_share *fair = &state->fair;
	__u64 rate = state->rate, half = state->bucket / 2, reserve = rate / RESERVE_SHARE, missing;
	__u64 credit = fair->lag_ns + (fair->period_ns < CREDIT_MOST ? fair->period_ns : CREDIT_MOST);
	__u64 earned = state->earned_us * MICROSECONDS, most = EARNED_MOST + 2 * fair->lag_ns;

	if (fair->holders_before && fair_share_debt(fair, now) > -(__s64)credit)
		earned += elapsed / EARNED_SHARE;
	if (earned > most)
		earned = most;
	state->earned_us = earned / MICROSECONDS;
	credit += earned;
	if (half > rate)
		half = rate;
	if (credit > half * NANOSECONDS / rate)
		credit = half * NANOSECONDS / rate;
	if (fair_share_debt(fair, now) < -(__s64)credit)
		fair->clock_ns = now - credit;
	if (reserve > half)
		reserve = half;

	if (fair->paced_rate <= rate - rate / FOREIGN_SHARE || state->tokens >= (__s64)reserve)
		return;
	missing = reserve - state->tokens;
	if (missing > rate / MISSING_SHARE)
		missing = rate / MISSING_SHARE;
	missing = missing * NANOSECONDS / rate;
	if ((__s64)missing > fair_share_debt(fair, now))
		fair->clock_ns = now + missing;
}

static __always_inline void fair_share_average_foreign(struct fair_share *fair, __u64 rate, __u64 elapsed)
{
	__u64 latest = fair->foreign_bytes * NANOSECONDS / elapsed, weight = elapsed / MILLISECONDS;

	if (fair->foreign_rate > rate)
		fair->foreign_rate = rate;
	if (latest > rate)
		latest = rate;
	weight = weight * 1024 / (weight + FOREIGN_AVERAGE_MS);
	fair->foreign_rate = (fair->foreign_rate * (1024 - weight) + latest * weight) / 1024;
}

static __always_inline void fair_share_next_epoch(struct rate_limit_state *state, __u64 elapsed, __u64 now)
{
	struct fair_share *fair = &state->fair;
	__u64 rate = state->rate;
	__u64 foreign;

	fair_share_average_foreign(fair, rate, elapsed);
	foreign = fair->foreign_rate;
	if (foreign > rate / FOREIGN_SHARE)
		foreign = rate / FOREIGN_SHARE;
	fair->paced_rate = rate - foreign;
	fair->active_before = fair->active;
	fair->unpaced_before = fair->unpaced;
	fair->holders_before = fair->holders + fair->newcomers;
	fair_share_settle_clock(state, elapsed, now);
	fair_share_fill(fair, elapsed, now);
	fair->active = 0;
	fair->unpaced = 0;
	fair->holders = 0;
	fair->newcomers = 0;
	fair->modest_bytes = 0;
	fair->foreign_bytes = 0;
	fair->epoch++;
	fair->epoch_start_ns = now;
	fair->lag_ns -= fair->lag_ns >> 4;
	if (fair->burst > BURST_SMALLEST)
		fair->burst -= fair->burst >> 2;
	fair->period_ns = fair_share_period(fair, rate);
}

static __always_inline bool fair_share_beyond(__s64 debt, __u64 rate)
{
	return debt > (__s64)NANOSECONDS && debt > (__s64)(NANOSECONDS + TOKEN_DEBT_MOST * NANOSECONDS / rate);
}

static __always_inline __u64 fair_share_memory(const struct rate_limit_state *state)
{
	return EPOCHS_FORGET * state->fair.period_ns + 2 * state->earned_us * MICROSECONDS;
}

static __always_inline void fair_share_advance(struct rate_limit_state *state, __u64 now)
{
	struct fair_share *fair = &state->fair;
	__s64 elapsed = now - fair->epoch_start_ns, debt = fair_share_debt(fair, now);
	__u64 connections = 1ULL + fair->active_before + fair->holders_before + fair->newcomers;
	__u64 rate = state->rate;

	if (elapsed < -(__s64)NANOSECONDS || elapsed > (__s64)fair_share_memory(state) ||
	    fair_share_beyond(debt, rate) || !fair->period_ns || fair->period_ns > EPOCH_LONGEST ||
	    fair->lag_ns > LAG_LONGEST || fair->paced_rate > rate || fair->paced_rate < rate / FOREIGN_SHARE ||
	    (fair->share && 2 * fair->share * connections < fair->paced_rate)) {
		fair_share_forget(state, now);
		return;
	}
	if (elapsed >= (__s64)fair->period_ns)
		fair_share_next_epoch(state, elapsed, now);
}

static __always_inline void fair_share_change_rate(struct rate_limit_state *state, __u64 rate, __u64 now)
{
	struct fair_share *fair = &state->fair;

	state->earned_us = 0;
	fair->paced_rate = rate;
	fair->period_ns = fair_share_period(fair, rate);
	if (fair->share)
		fair_share_fill(fair, fair->period_ns, now);
}

static __always_inline void fair_share_observe(struct fair_share *fair, struct fair_share_mark *mark,
					       const struct packet *packet, bool held, __u64 now)
{
	if (mark->epoch != fair->epoch)
		*mark = (struct fair_share_mark){
			.epoch = fair->epoch,
			.flags = mark->epoch + 1 == fair->epoch ? FAIR_SHARE_KNOWN : 0,
		};
	if (packet->bytes > CONTROL_PACKET_BYTES && !(mark->flags & FAIR_SHARE_ACTIVE)) {
		mark->flags |= FAIR_SHARE_ACTIVE;
		fair->active++;
		if (!packet->paced)
			fair->unpaced++;
		if (fair->active > fair->active_before)
			fair->active_before = fair->active;
	}
	if (held && !(mark->flags & FAIR_SHARE_HELD)) {
		mark->flags |= FAIR_SHARE_HELD;
		fair->modest_bytes -= mark->bytes < fair->modest_bytes ? mark->bytes : fair->modest_bytes;
		fair->holders++;

		if (!(mark->flags & FAIR_SHARE_KNOWN) && fair->holders > fair->holders_before) {
			fair->holders_before = fair->holders;
			fair_share_fill(fair, fair->period_ns, now);
		}
	} else if (!held && mark->flags & FAIR_SHARE_HELD) {

		mark->flags &= ~FAIR_SHARE_HELD;
		fair->modest_bytes += mark->bytes;
		fair->holders -= fair->holders > 0;
	}
}

static __always_inline void fair_share_sent(struct fair_share *fair, struct fair_share_mark *mark,
					    const struct packet *packet, __u64 now)
{
	__u64 rate = fair->paced_rate ? fair->paced_rate : 1;

	fair->clock_ns += packet->bytes * NANOSECONDS / rate;
	if (packet->bytes > fair->burst && fair->burst < BURST_LARGEST) {
		fair->burst = packet->bytes < BURST_LARGEST ? packet->bytes : BURST_LARGEST;
		fair->period_ns = fair_share_period(fair, rate);
	}
	if (mark) {
		fair_share_observe(fair, mark, packet, packet->held, now);
		mark->bytes += packet->bytes;
	}
	if (!mark || !(mark->flags & FAIR_SHARE_HELD))
		fair->modest_bytes += packet->bytes;
}

static __always_inline void fair_share_refused(struct fair_share *fair, struct fair_share_mark *mark,
					       const struct packet *packet, __u64 now)
{
	if (mark && packet->bytes > CONTROL_PACKET_BYTES)
		fair_share_observe(fair, mark, packet, true, now);
}

static __always_inline void fair_share_refund(struct fair_share *fair, const struct packet *packet)
{
	fair->clock_ns -= packet->bytes * NANOSECONDS / (fair->paced_rate ? fair->paced_rate : 1);
}

static __always_inline void fair_share_foreign(struct fair_share *fair, const struct packet *packet)
{
	fair->foreign_bytes += packet->bytes;
}

static __always_inline __u64 fair_share_join(struct rate_limit_state *state, __u64 now)
{
	struct fair_share *fair = &state->fair;
	__u64 most;

	token_bucket_refill(state, state->rate, state->bucket, now);
	fair_share_advance(state, now);
	fair->newcomers++;
	most = fair->paced_rate / ((__u64)fair->holders_before + fair->newcomers);
	if (!fair->share || fair->share > most)
		fair->share = most > SHARE_LEAST ? most : SHARE_LEAST;
	return fair->share;
}

static __always_inline void fair_share_hear(struct fair_share *fair, __u64 round_trip_ns)
{
	if (round_trip_ns > fair->lag_ns && round_trip_ns <= LAG_LONGEST)
		fair->lag_ns = round_trip_ns;
}

static __always_inline void fair_share_guard(const struct fair_share *fair, const struct packet *packet, __u64 now,
					     struct thresholds *thresholds)
{
	__s64 allowed = GUARD_DEBT + 2 * fair->lag_ns, debt = fair_share_debt(fair, now);

	if (!packet->paced || packet->bytes <= CONTROL_PACKET_BYTES)
		return;

	thresholds->notice = 2 * debt > allowed && !packet->held ? TOKENS_HIGHEST : TOKENS_LOWEST;
	if (debt > allowed && !packet->starved)
		thresholds->drop = TOKENS_HIGHEST;
}

static __always_inline enum verdict fair_share_charge(struct rate_limit_state *state, struct fair_share_mark *mark,
						      const struct packet *packet, __u64 now, bool paces)
{
	struct thresholds thresholds = verdict_thresholds(state->rate, state->bucket, packet);
	enum verdict verdict;

	token_bucket_refill(state, state->rate, state->bucket, now);
	if (!paces)
		return verdict_take(state, &thresholds, packet);
	fair_share_advance(state, now);
	fair_share_hear(&state->fair, packet->round_trip_ns);
	fair_share_guard(&state->fair, packet, now, &thresholds);
	verdict = verdict_take(state, &thresholds, packet);
	if (!packet->tcp)
		fair_share_foreign(&state->fair, packet);
	else if (verdict == VERDICT_DROP)
		fair_share_refused(&state->fair, mark, packet, now);
	else
		fair_share_sent(&state->fair, mark, packet, now);
	return verdict;
}

static __always_inline struct rate_limit_state *rule_state(const __u64 *rule, __u32 generation)
{
	struct rate_limit_config *config;
	struct rate_limit_state *state;
	__u64 rate, bucket, now;

	state = bpf_map_lookup_elem(&rate_limit_state_map, rule);
	if (!state || state->generation == generation)
		return state;
	config = bpf_map_lookup_elem(&rate_limit_config_map, rule);
	if (!config)
		return NULL;
	rate = config->rate_bps;
	bucket = config->bucket_size;
	if (!rate)
		return NULL;
	now = bpf_ktime_get_ns();
	bpf_spin_lock(&state->lock);
	if (state->rate != rate)
		fair_share_change_rate(state, rate, now);
	state->rate = rate;
	state->bucket = bucket;
	state->generation = generation;
	bpf_spin_unlock(&state->lock);
	return state;
}

__noinline __u64 rule_join(__u64 rule, __u32 generation)
{

	struct rate_limit_state *state = rule_state(&rule, generation);
	__u64 now = bpf_ktime_get_ns(), share;

	if (!state)
		return LIMITER_UNPACED;
	bpf_spin_lock(&state->lock);
	share = fair_share_join(state, now);
	bpf_spin_unlock(&state->lock);
	return share;
}

#define SOL_SOCKET 1
#define SO_MAX_PACING_RATE 47
#define SOL_TCP 6

#define SLOW_START_SLOWLY 2500000
#define SLOW_INITIAL_WINDOW 2

#define SLOW_PACKET_US 50000
#define SLOW_WINDOW_LEAST 4
#define WINDOW_UNCLAMPED 0x7fffffff

#define PACING_MOST 0xffffffffULL

#define HEADERS_IPV4 52
#define HEADERS_IPV6 72
#define AF_INET6 10

#define NEARLY 16

enum bpf_func_id___settle { BPF_FUNC_user_ringbuf_drain___settle };

static __always_inline struct rate_limit_pacing *pacing_measure(struct bpf_sock *sk, struct packet *packet, __u64 *now)
{
	struct rate_limit_pacing *pacing;
	struct tcp_sock *tcp;
	__s32 unsent, window;

	pacing = bpf_sk_storage_get(&rate_limit_pacing_map, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	tcp = pacing ? bpf_skc_to_tcp_sock(sk) : NULL;
	if (!tcp)
		return NULL;
	unsent = tcp->write_seq - tcp->snd_nxt - packet->bytes;
	window = tcp->snd_una + tcp->snd_wnd - tcp->snd_nxt - packet->bytes;
	packet->paced = pacing->set && pacing->set != LIMITER_UNPACED;

	packet->held = packet->paced && unsent > 0 && window >= (__s32)tcp->mss_cache &&
		       tcp->packets_out + packet->segments < tcp->snd_cwnd &&

		       pacing->set != pacing->own &&
		       tcp->inet_conn.icsk_inet.sk.sk_pacing_rate >= pacing->set - pacing->set / NEARLY;
	packet->round_trip_ns = (__u64)(tcp->srtt_us >> 3) * 1000;

	if (packet->bytes > CONTROL_PACKET_BYTES &&
	    tcp->inet_conn.icsk_inet.sk.__sk_common.skc_state == TCP_ESTABLISHED)
		*now = tcp->tcp_clock_cache;
	return pacing;
}

static __always_inline __u32 pacing_time(__u64 now)
{
	return now >> 20;
}

static __always_inline bool pacing_starved(const struct rate_limit_pacing *pacing, __u64 now)
{
	return (__s32)(pacing_time(now) - pacing->passed) > (__s32)pacing_time(EPOCH_LONGEST);
}

static __always_inline void pacing_confirm(struct rate_limit_pacing *pacing, int place, __u64 rule, __u32 generation)
{
	if (pacing->generation == generation && pacing->rules[place] == rule)
		return;

	if (pacing->generation != generation)
		for (int i = 1; i < LIMITER_MAX_NESTED; i++)
			pacing->rules[i] = 0;

	if (pacing->rules[place] && pacing->rules[place] != rule)
		pacing->marks[place] = (struct fair_share_mark){};
	pacing->rules[place] = rule;
	pacing->generation = generation;
}

static __always_inline __u64 pacing_settable(__u64 rate)
{
	return rate < PACING_MOST ? rate : LIMITER_UNPACED;
}

static __always_inline __u64 pacing_payload(const struct tcp_sock *tcp, __u64 share)
{
	__u64 headers = tcp->inet_conn.icsk_inet.sk.__sk_common.skc_family == AF_INET6 ? HEADERS_IPV6 : HEADERS_IPV4;
	__u64 segment = tcp->mss_cache, rate;

	if (!segment || share > 2 * PACING_MOST)
		return share;
	rate = share * segment / (segment + headers);
	return rate ? rate : 1;
}

static __always_inline bool pacing_set(void *target, const struct tcp_sock *tcp, struct rate_limit_pacing *pacing,
				       __u64 rate)
{
	__u32 value = pacing_settable(rate);

	if (pacing_settable(rate) != tcp->inet_conn.icsk_inet.sk.sk_max_pacing_rate &&
	    bpf_setsockopt(target, SOL_SOCKET, SO_MAX_PACING_RATE, &value, sizeof(value)))
		return false;

	pacing->set = tcp->inet_conn.icsk_inet.sk.sk_max_pacing_rate;
	return true;
}

static __always_inline __u32 pacing_window(const struct tcp_sock *tcp, __u64 share)
{
	__u64 segment = tcp->mss_cache, window;

	if (share >= SLOW_START_SLOWLY || !segment)
		return 0;
	window = 2 * share * (SLOW_PACKET_US + (tcp->srtt_us >> 3)) / 1000000 / segment;
	return window > SLOW_WINDOW_LEAST ? window : SLOW_WINDOW_LEAST;
}

static __always_inline void pacing_clamp(void *target, const struct tcp_sock *tcp, struct rate_limit_pacing *pacing,
					 __u32 window)
{
	__u32 value = window ? window : WINDOW_UNCLAMPED;

	if (!bpf_core_enum_value_exists(enum bpf_func_id___settle, BPF_FUNC_user_ringbuf_drain___settle))
		return;
	if (window == pacing->clamp || (!pacing->clamp && window >= tcp->snd_cwnd_clamp))
		return;

	if (window && window < pacing->clamp && window > pacing->clamp - pacing->clamp / 4)
		return;
	if (!bpf_setsockopt(target, SOL_TCP, TCP_BPF_SNDCWND_CLAMP, &value, sizeof(value)))
		pacing->clamp = window;
}

static __always_inline void pacing_tell(void *target, const struct tcp_sock *tcp, struct rate_limit_pacing *pacing)
{
	__u64 actual = tcp->inet_conn.icsk_inet.sk.sk_max_pacing_rate;
	__u64 rate = pacing_payload(tcp, pacing->share);

	if (!pacing->set || actual != pacing->set)
		pacing->own = actual;
	pacing_set(target, tcp, pacing, rate < pacing->own ? rate : pacing->own);
	pacing_clamp(target, tcp, pacing, pacing_window(tcp, pacing->share));
}

static __always_inline bool pacing_release(void *target, const struct tcp_sock *tcp, struct rate_limit_pacing *pacing)
{
	if (pacing->set && pacing->set == tcp->inet_conn.icsk_inet.sk.sk_max_pacing_rate &&
	    !pacing_set(target, tcp, pacing, pacing->own))
		return false;
	pacing_clamp(target, tcp, pacing, 0);
	pacing->set = 0;
	return true;
}

static __always_inline void pacing_join(struct rate_limit_pacing *pacing, __u32 generation)
{
	__u64 least = LIMITER_UNPACED, share;

	for (int i = 0; i < LIMITER_MAX_NESTED; i++) {
		pacing->marks[i] = (struct fair_share_mark){};
		share = pacing->rules[i] ? rule_join(pacing->rules[i], generation) : LIMITER_UNPACED;
		if (share < least) {
			least = share;
			pacing->tightest = i;
		}
	}
	pacing->share = least;
	pacing->passed = pacing_time(bpf_ktime_get_ns());
}

static __always_inline void pacing_call_back(struct bpf_sock_ops *ops)
{
	bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_RTT_CB_FLAG);
}

static __always_inline void pacing_begin(struct bpf_sock_ops *ops, const struct tcp_sock *tcp,
					 struct rate_limit_pacing *pacing, __u32 generation)
{
	__u32 window = SLOW_INITIAL_WINDOW;

	pacing_call_back(ops);
	pacing_join(pacing, generation);
	if (pacing->share < SLOW_START_SLOWLY && ops->snd_cwnd > window)
		bpf_setsockopt(ops, SOL_TCP, TCP_BPF_IW, &window, sizeof(window));
	pacing_tell(ops, tcp, pacing);
}

static __always_inline bool pacing_follow(struct bpf_sock_ops *ops, const struct tcp_sock *tcp,
					  struct rate_limit_pacing *pacing, __u32 generation, bool on)
{
	if (on && pacing->generation == generation) {
		if (pacing->share)
			pacing_tell(ops, tcp, pacing);
		return true;
	}
	if (on && pacing->suspected != generation) {
		pacing->suspected = generation;
		return true;
	}
	return !pacing_release(ops, tcp, pacing);
}

#define WIRE_MAX_EXTENSIONS 4
#define WIRE_IPV4_VERSION 4
#define WIRE_IPV4_HEADER 20
#define WIRE_IPV4_PROTOCOL 9
#define WIRE_IPV6_HEADER 40
#define WIRE_IPV6_NEXT 6
#define WIRE_UDP_HEADER 8
#define NEXTHDR_HOP 0
#define NEXTHDR_ROUTING 43
#define NEXTHDR_DEST 60

static __always_inline __u8 wire_byte(struct __sk_buff *skb, __u32 offset)
{
	__u8 byte = 0;

	bpf_skb_load_bytes(skb, offset, &byte, sizeof(byte));
	return byte;
}

static __always_inline __u32 wire_segment_header(struct __sk_buff *skb, bool *tcp)
{
	__u8 first = wire_byte(skb, 0), protocol;
	__u32 offset;

	if (first >> 4 == WIRE_IPV4_VERSION) {
		offset = (first & 0xf) * 4;
		protocol = wire_byte(skb, WIRE_IPV4_PROTOCOL);
	} else {
		offset = WIRE_IPV6_HEADER;
		protocol = wire_byte(skb, WIRE_IPV6_NEXT);
		for (int i = 0; i < WIRE_MAX_EXTENSIONS; i++) {

			if (protocol == IPPROTO_IPV6) {
				protocol = wire_byte(skb, offset + WIRE_IPV6_NEXT);
				offset += WIRE_IPV6_HEADER;
				continue;
			}
			if (protocol == IPPROTO_IPIP) {
				protocol = wire_byte(skb, offset + WIRE_IPV4_PROTOCOL);
				offset += (wire_byte(skb, offset) & 0xf) * 4;
				break;
			}
			if (protocol != NEXTHDR_HOP && protocol != NEXTHDR_ROUTING && protocol != NEXTHDR_DEST)
				break;
			protocol = wire_byte(skb, offset);
			offset += (wire_byte(skb, offset + 1) + 1) * 8;
		}
	}
	*tcp = protocol == IPPROTO_TCP;
	if (*tcp)
		return offset + (wire_byte(skb, offset + 12) >> 4) * 4;
	return offset + WIRE_UDP_HEADER;
}

static __always_inline bool wire_is_tcp(struct __sk_buff *skb)
{
	__u8 *ip = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;

	if ((void *)ip + WIRE_IPV4_HEADER > end)
		return false;
	return ip[ip[0] >> 4 == WIRE_IPV4_VERSION ? WIRE_IPV4_PROTOCOL : WIRE_IPV6_NEXT] == IPPROTO_TCP;
}

static __always_inline __u64 wire_pack(__u32 bytes, __u32 segments, bool tcp)
{
	return (__u64)tcp << 63 | (__u64)segments << 32 | bytes;
}

__noinline __u64 wire_measure_gso(struct __sk_buff *skb)
{
	__u32 bytes = skb->len, segments = skb->gso_segs, size = skb->gso_size, header;
	bool tcp = false;

	header = wire_segment_header(skb, &tcp);

	if (!segments && size && bytes > header)
		segments = (bytes - header + size - 1) / size;
	if (!segments)
		segments = 1;
	return wire_pack(bytes + (segments - 1) * header, segments, tcp);
}

static __always_inline __u64 wire_measure(struct __sk_buff *skb)
{
	return skb->gso_size ? wire_measure_gso(skb) : wire_pack(skb->len, 1, wire_is_tcp(skb));
}

static __always_inline struct packet wire_packet(__u64 measured)
{
	return (struct packet){
		.bytes = measured,
		.segments = measured << 1 >> 33,
		.tcp = measured >> 63,
	};
}

__noinline int charge_rule(struct __sk_buff *skb, __u64 rule, __u64 measured, __u32 place, __u64 generation_paces)
{
	__u32 generation = generation_paces >> 1;
	bool paces = generation_paces & 1;
	struct rate_limit_state *state = rule_state(&rule, generation);
	struct packet packet = wire_packet(measured);
	struct rate_limit_pacing *pacing = NULL;
	struct bpf_sock *sk = skb->sk;
	enum verdict verdict;
	__u64 now = 0, share;

	if (!state)
		return 0;
	place %= LIMITER_MAX_NESTED;
	if (paces && packet.tcp && sk)
		pacing = pacing_measure(sk, &packet, &now);

	if (!now)
		now = bpf_ktime_get_ns();
	if (pacing) {
		pacing_confirm(pacing, place, rule, generation);

		if (pacing->tightest != place)
			packet.held = false;
		packet.starved = pacing_starved(pacing, now);
	}
	bpf_spin_lock(&state->lock);
	verdict = fair_share_charge(state, pacing ? &pacing->marks[place] : NULL, &packet, now, paces);
	share = state->fair.share;
	bpf_spin_unlock(&state->lock);
	if (!pacing)
		return verdict;
	if (verdict != VERDICT_DROP)
		pacing->passed = pacing_time(now);

	if (share && (!place || share < pacing->share)) {
		pacing->share = share;
		pacing->tightest = place;
	}
	return verdict;
}

__noinline int charge_refund(__u64 rule, __u64 measured, int verdict, bool paces)
{
	struct rate_limit_state *state = bpf_map_lookup_elem(&rate_limit_state_map, &rule);
	struct packet packet = wire_packet(measured);

	if (!state)
		return 0;
	bpf_spin_lock(&state->lock);
	verdict_refund(state, verdict, &packet);
	if (paces && packet.tcp)
		fair_share_refund(&state->fair, &packet);
	bpf_spin_unlock(&state->lock);
	return 0;
}

static __always_inline int charge_rules(struct __sk_buff *skb, const __u64 rules[LIMITER_MAX_NESTED], __u32 generation,
					bool paces)
{
	__u64 measured = wire_measure(skb), generation_paces = (__u64)generation << 1 | paces;
	int verdicts[LIMITER_MAX_NESTED] = {};
	bool notice = false, dropped = false;

#pragma unroll
	for (int i = 0; i < LIMITER_MAX_NESTED; i++) {
		if (!rules[i])
			break;
		verdicts[i] = charge_rule(skb, rules[i], measured, i, generation_paces);
		if (verdicts[i] == VERDICT_PASS_WITH_NOTICE)
			notice = true;
		if (verdicts[i] == VERDICT_DROP) {
			dropped = true;
			break;
		}
	}

	if (!dropped)
		return notice ? VERDICT_PASS_WITH_NOTICE : VERDICT_PASS;
#pragma unroll
	for (int i = 0; i < LIMITER_MAX_NESTED - 1; i++)
		if (verdicts[i] == VERDICT_PASS || verdicts[i] == VERDICT_PASS_WITH_NOTICE)
			charge_refund(rules[i], measured, verdicts[i], paces);
	return VERDICT_DROP;
}

#define TCP_BPF_SOCK_OPS_CB_FLAGS 1008

#define SETTLE_MAX_DEPTH 32

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

	if ((called_back && pacing) || tcp->inet_conn.icsk_inet.sk.__sk_common.skc_state != TCP_ESTABLISHED)
		return;
	if (!called_back && bpf_setsockopt(tcp, SOL_TCP, TCP_BPF_SOCK_OPS_CB_FLAGS, &flags, sizeof(flags)))
		return;
	pacing = bpf_sk_storage_get(&rate_limit_pacing_map, tcp, &found, BPF_SK_STORAGE_GET_F_CREATE);
	if (!pacing)
		return;
	pacing_join(pacing, generation);
	pacing_tell(tcp, tcp, pacing);
}

char LICENSE[] SEC("license") = "GPL";

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

	if (!generation)
		return VERDICT_PASS;
	if (!attribution_find(skb, ctl->bound_sockets, generation, &found))
		return VERDICT_PASS;
	return charge_rules(skb, found.rules, generation, ctl->pacing == LIMITER_PACING_ON);
}

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
