/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Timers that can be moved: a heap of the armed ones. Equal times fire in the order of their numbers. */
#ifndef SIMULATION_TIMERS_H
#define SIMULATION_TIMERS_H

#include <stdint.h>
#include <stdlib.h>

#define TIMER_IDLE UINT32_MAX
#define TIMERS_ARITY 4

struct timers {
	uint32_t *heap;     /* [count] numbers of timers, the next to fire first */
	uint32_t *position; /* [all] in the heap, or TIMER_IDLE */
	uint64_t *at;       /* [all] */
	uint32_t count;
};

static int timers_make(struct timers *timers, uint32_t all)
{
	timers->heap = malloc(all * sizeof(*timers->heap));
	timers->position = malloc(all * sizeof(*timers->position));
	timers->at = calloc(all, sizeof(*timers->at));
	timers->count = 0;
	for (uint32_t i = 0; timers->position && i < all; i++)
		timers->position[i] = TIMER_IDLE;
	return timers->heap && timers->position && timers->at ? 0 : -1;
}

static void timers_free(struct timers *timers)
{
	free(timers->heap);
	free(timers->position);
	free(timers->at);
}

static inline int timers_before(const struct timers *timers, uint32_t a, uint32_t b)
{
	return timers->at[a] < timers->at[b] || (timers->at[a] == timers->at[b] && a < b);
}

static inline void timers_place(struct timers *timers, uint32_t slot, uint32_t timer)
{
	timers->heap[slot] = timer;
	timers->position[timer] = slot;
}

static inline void timers_rise(struct timers *timers, uint32_t slot, uint32_t timer)
{
	while (slot) {
		uint32_t parent = (slot - 1) / TIMERS_ARITY;

		if (!timers_before(timers, timer, timers->heap[parent]))
			break;
		timers_place(timers, slot, timers->heap[parent]);
		slot = parent;
	}
	timers_place(timers, slot, timer);
}

static inline void timers_sink(struct timers *timers, uint32_t slot, uint32_t timer)
{
	for (;;) {
		uint32_t first = slot * TIMERS_ARITY + 1, least = first;

		if (first >= timers->count)
			break;
		for (uint32_t child = first + 1; child < first + TIMERS_ARITY && child < timers->count; child++)
			if (timers_before(timers, timers->heap[child], timers->heap[least]))
				least = child;
		if (!timers_before(timers, timers->heap[least], timer))
			break;
		timers_place(timers, slot, timers->heap[least]);
		slot = least;
	}
	timers_place(timers, slot, timer);
}

static inline void timers_arm(struct timers *timers, uint32_t timer, uint64_t at)
{
	uint32_t slot = timers->position[timer];

	timers->at[timer] = at;
	if (slot == TIMER_IDLE) {
		timers_rise(timers, timers->count++, timer);
		return;
	}
	timers_sink(timers, slot, timer);
	timers_rise(timers, timers->position[timer], timer);
}

static inline void timers_stop(struct timers *timers, uint32_t timer)
{
	uint32_t slot = timers->position[timer], last;

	if (slot == TIMER_IDLE)
		return;
	timers->position[timer] = TIMER_IDLE;
	last = timers->heap[--timers->count];
	if (last == timer)
		return;
	timers_sink(timers, slot, last);
	timers_rise(timers, timers->position[last], last);
}
#endif
