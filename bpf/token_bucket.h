/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The arithmetic of a token bucket: exact, and without helpers, so that it runs under the lock and compiles for user
 * space, where it is tested against exact fractions.
 *
 * tokens + fraction / 1e9 is always the true value: nothing is ever rounded, at whatever interval packets come. Holds
 * for rates up to 18e9 bytes per second (a remainder below one second times the rate stays within 64 bits), buckets up
 * to 2^47 bytes and any idle time that 64 bits of nanoseconds can say.
 */
#ifndef LIMITER_TOKEN_BUCKET_H
#define LIMITER_TOKEN_BUCKET_H

#include "layout.h"

#define NANOSECONDS 1000000000ULL /* in a second; and parts in a token */
/*
 * More than any packet and any threshold of verdict.h can leave behind, with a second of the rate: a debt beyond it, or
 * a refill more than a second ahead, is no history but garbage (a map that was written to, another clock's time), and
 * is forgotten.
 */
#define TOKEN_DEBT_MOST (1 << 20)

static __always_inline void token_bucket_fill(struct rate_limit_state *state, __u64 bucket)
{
	state->tokens = bucket;
	state->fraction = 0;
}

/*
 * Adds what has accrued since the last refill, up to the bucket. `now` was read before the lock was taken, since no
 * helper can be called under it, so it may be a little older than the last refill on another CPU: then nothing accrues,
 * and the time of the last refill stays, or the same nanoseconds would be paid twice.
 */
static __always_inline void token_bucket_refill(struct rate_limit_state *state, __u64 rate, __u64 bucket, __u64 now)
{
	__u64 accrued, part, whole = 0, elapsed;

	if (now > state->last_update_ns) {
		elapsed = now - state->last_update_ns;
		state->last_update_ns = now;
		if (elapsed >= NANOSECONDS) {
			__u64 seconds = elapsed / NANOSECONDS;

			/* After these seconds it is full, whatever came before; the product below could overflow. */
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
	/* Also where nothing accrued: the bucket may have been made smaller, or a refund have come late. */
	if (state->tokens >= (__s64)bucket)
		token_bucket_fill(state, bucket);
}

/* In 1/16 ms: a finer unit times the largest bucket would not fit into 64 bits. */
#define TOKEN_SPAN_PARTS 16000
#define TOKEN_SPAN_MOST (64ULL * TOKEN_SPAN_PARTS)

/*
 * Tokens that last as long at the state's rate as what is saved did at the one before. More than a minute's worth is no
 * reserve but a quota, and stays as it is.
 */
static __always_inline __s64 token_bucket_scaled(const struct rate_limit_state *state, __u64 before)
{
	__u64 span = state->tokens * TOKEN_SPAN_PARTS / before;

	return span < TOKEN_SPAN_MOST ? (__s64)(span * state->rate / TOKEN_SPAN_PARTS) : state->tokens;
}

/* May leave a debt, which is paid back before anything else passes: so packets larger than the bucket pass too. */
static __always_inline void token_bucket_take(struct rate_limit_state *state, __u32 bytes)
{
	state->tokens -= bytes;
}

/* What overflows the bucket is cut off by the next refill, before it can be used. */
static __always_inline void token_bucket_refund(struct rate_limit_state *state, __u32 bytes)
{
	state->tokens += bytes;
}
#endif
