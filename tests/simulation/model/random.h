/* SPDX-License-Identifier: GPL-2.0-or-later */
/* splitmix64: the same numbers from the same seed on every machine. */
#ifndef SIMULATION_RANDOM_H
#define SIMULATION_RANDOM_H

#include <stdint.h>

struct random {
	uint64_t state;
};

static inline uint64_t random_next(struct random *random)
{
	uint64_t value = random->state += 0x9e3779b97f4a7c15ULL;

	value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ULL;
	value = (value ^ (value >> 27)) * 0x94d049bb133111ebULL;
	return value ^ (value >> 31);
}

/* 0 .. most */
static inline uint64_t random_to(struct random *random, uint64_t most)
{
	return most + 1 ? random_next(random) % (most + 1) : random_next(random);
}
#endif
