/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * bpf/budget.h with states, slots and limits that no program of ours leaves: nothing is computed that C does not define,
 * and there are never more budgets than slots.
 */
#include "input.h"

#define STATES 32
#include "user_space.h"

#define CGROUPS 40 /* more than there is room for */
#define SLOTS 32
#define PACKETS 24

static void one(void)
{
	__u64 rule = 1, now = awkward();
	__u32 count = 0;

	memset(states, 0, sizeof(states));
	for (__u32 i = 0; i < SLOTS; i++)
		slots[i].budget = below(2) ? 2 + below(CGROUPS) : 0;
	budget_policy.slots = SLOTS;
	budget_policy.rest_seconds = below(2) ? 20 : awkward();
	budget_slots = 1 << below(6);
	budget_hand = awkward();
	config = (struct rate_limit_config){ awkward(), awkward() };
	bpf_map_update_elem(&rate_limit_state_map, &rule, &states[STATES - 1].state, BPF_NOEXIST);
	for (__u32 i = 0; i < PACKETS; i++) {
		__u64 cgroup = 2 + below(CGROUPS);
		struct rate_limit_state *state = bpf_map_lookup_elem(&rate_limit_state_map, &cgroup);

		clock_ns = now = below(4) ? now + (any() >> below(64)) : awkward();
		if (state && below(4) == 0) {
			spoil(state, sizeof(*state));
			state->limit = below(3) ? 1 : below(2) ? awkward() : LIMITER_NO_RULE;
		}
		if (below(3))
			budget_make(1, cgroup, cgroup);
		else
			budget_sweep(cgroup, now, below(2));
	}
	for (int i = 0; i < STATES; i++)
		count += states[i].used && states[i].state.limit == rule;
	check(count <= CGROUPS, "a cgroup has two budgets");
}
