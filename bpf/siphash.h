/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SipHash-1-3 of a text (Aumasson and Bernstein, SipHash: a fast short-input PRF, 2012), eight bytes at a time, which is
 * what Python and Rust use for names that somebody else may have chosen. Pure.
 */
#ifndef LIMITER_SIPHASH_H
#define LIMITER_SIPHASH_H

#define SIPHASH_ROUNDS_AT_THE_END 3
/* Where the last eight bytes, which may be fewer than eight of the text, have the length of the text. */
#define SIPHASH_LENGTH 56

struct siphash {
	__u64 v0, v1, v2, v3;
};

static __always_inline void siphash_round(struct siphash *hash)
{
	hash->v0 += hash->v1;
	hash->v2 += hash->v3;
	hash->v1 = (hash->v1 << 13 | hash->v1 >> 51) ^ hash->v0;
	hash->v3 = (hash->v3 << 16 | hash->v3 >> 48) ^ hash->v2;
	hash->v0 = hash->v0 << 32 | hash->v0 >> 32;
	hash->v2 += hash->v1;
	hash->v0 += hash->v3;
	hash->v1 = (hash->v1 << 17 | hash->v1 >> 47) ^ hash->v2;
	hash->v3 = (hash->v3 << 21 | hash->v3 >> 43) ^ hash->v0;
	hash->v2 = hash->v2 << 32 | hash->v2 >> 32;
}

/* With a key of 64 bits, twice. */
static __always_inline struct siphash siphash_begin(__u64 key)
{
	return (struct siphash){
		0x736f6d6570736575ULL ^ key,
		0x646f72616e646f6dULL ^ key,
		0x6c7967656e657261ULL ^ key,
		0x7465646279746573ULL ^ key,
	};
}

static __always_inline void siphash_add(struct siphash *hash, __u64 bytes)
{
	hash->v3 ^= bytes;
	siphash_round(hash);
	hash->v0 ^= bytes;
}

static __always_inline __u64 siphash_end(struct siphash *hash)
{
	hash->v2 ^= 0xff;
	for (int i = 0; i < SIPHASH_ROUNDS_AT_THE_END; i++)
		siphash_round(hash);
	return hash->v0 ^ hash->v1 ^ hash->v2 ^ hash->v3;
}
#endif
