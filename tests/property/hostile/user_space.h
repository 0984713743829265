/* SPDX-License-Identifier: GPL-2.0-or-later */
/* bpf/budget.h in user space, with maps of its own: one rule, the cgroups that have budgets of it, and their slots. */
#ifndef HOSTILE_USER_SPACE_H
#define HOSTILE_USER_SPACE_H

#include <stdbool.h>
#include <errno.h>
#include <string.h>
#include <linux/bpf.h>
#undef __always_inline
#define __always_inline inline __attribute__((always_inline))
#undef __noinline
#define __noinline static __attribute__((noinline, unused))
#define SEC(name)
#define __uint(name, value) int (*name)[value]
#define __type(name, value) __typeof__(value) *name
static void *bpf_map_lookup_elem(void *map, const void *key);
static long bpf_map_update_elem(void *map, const void *key, const void *value, __u64 flags);
static long bpf_map_delete_elem(void *map, const void *key);
static __u64 clock_ns;
static __u64 bpf_ktime_get_ns(void) { return clock_ns; }
static void bpf_spin_lock(struct bpf_spin_lock *lock) { (void)lock; }
static void bpf_spin_unlock(struct bpf_spin_lock *lock) { (void)lock; }
/* What a loader sets. */
#define const
#include "budget.h"
#undef const

#ifndef STATES
#define STATES 512
#endif
static struct { __u64 key; bool used; struct rate_limit_state state; } states[STATES];
static struct rate_limit_slot slots[LIMITER_MAX_BUDGETS];
static struct rate_limit_config config;

static void *bpf_map_lookup_elem(void *map, const void *key)
{
	if (map == &rate_limit_slot_map)
		return &slots[*(const __u32 *)key];
	if (map == &rate_limit_config_map)
		return *(const __u64 *)key == 1 && config.rate_bps ? &config : NULL;
	for (int i = 0; i < STATES; i++)
		if (states[i].used && states[i].key == *(const __u64 *)key)
			return &states[i].state;
	return NULL;
}

static long bpf_map_update_elem(void *map, const void *key, const void *value, __u64 flags)
{
	if (bpf_map_lookup_elem(map, key))
		return -EEXIST;
	for (int i = 0; i < STATES; i++) {
		if (states[i].used)
			continue;
		states[i].used = true;
		states[i].key = *(const __u64 *)key;
		memcpy(&states[i].state, value, sizeof(states[i].state));
		return 0;
	}
	return -E2BIG;
}

static long bpf_map_delete_elem(void *map, const void *key)
{
	for (int i = 0; i < STATES; i++) {
		if (states[i].used && states[i].key == *(const __u64 *)key) {
			states[i].used = false;
			return 0;
		}
	}
	return -ENOENT;
}
#endif
