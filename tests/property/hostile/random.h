/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Numbers that go wrong more often than others do. */
#ifndef HOSTILE_RANDOM_H
#define HOSTILE_RANDOM_H

#include <stdint.h>

static uint64_t dice;

static inline uint64_t any(void)
{
	dice ^= dice << 13;
	dice ^= dice >> 7;
	dice ^= dice << 17;
	return dice;
}

static inline uint64_t below(uint64_t end)
{
	return any() % end;
}

/* 0, all ones, powers of two, those beside them, and any other number of so many bits. */
static inline uint64_t awkward(void)
{
	uint64_t power = 1ULL << below(64);

	switch (below(6)) {
	case 0:
		return 0;
	case 1:
		return ~0ULL;
	case 2:
		return power;
	case 3:
		return power - 1;
	case 4:
		return -power;
	default:
		return any() >> below(64);
	}
}
#endif
