/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What libFuzzer gives as numbers, of which those are likelier that go wrong more often than others do. Where it has
 * given fewer than are needed, the rest follow from these.
 */
#ifndef HOSTILE_INPUT_H
#define HOSTILE_INPUT_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const uint8_t *input, *input_end;
static uint64_t dice;

static inline uint64_t noise(void)
{
	dice ^= dice << 13;
	dice ^= dice >> 7;
	dice ^= dice << 17;
	return dice;
}

static inline uint64_t any(void)
{
	uint64_t number;

	if (input_end - input < (ptrdiff_t)sizeof(number))
		return noise();
	memcpy(&number, input, sizeof(number));
	input += sizeof(number);
	return number;
}

static inline uint64_t below(uint64_t end)
{
	if (end > 256)
		return any() % end;
	return (input < input_end ? *input++ : noise()) % end;
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

static inline void spoil(void *place, size_t size)
{
	uint64_t *words = place;

	for (size_t i = 0; i < size / sizeof(*words); i++)
		words[i] = below(4) ? awkward() : awkward() << 32 | (awkward() & 0xffffffff);
}

static inline void check(int holds, const char *what)
{
	if (holds)
		return;
	fprintf(stderr, "%s\n", what);
	abort();
}

/* What each program tries. */
static void one(void);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	input = data;
	input_end = data + size;
	dice = size * 2 + 1;
	for (size_t i = 0; i < size; i++)
		dice = (dice ^ data[i]) * 0x100000001b3;
	dice |= 1;
	one();
	return 0;
}
#endif
