/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The exact arithmetic of a token bucket. It uses no helpers, so it runs under the lock and also compiles for user
 * space, where it is tested against exact fractions.
 *
 * tokens + fraction / 1e9 is always the true value: nothing is rounded, whatever the interval between packets. This
 * holds for rates up to 18e9 bytes per second (a remainder below one second times the rate stays within 64 bits),
 * buckets up to 2^47 bytes, and any idle time that fits into 64 bits of nanoseconds.
 */
#ifndef LIMITER_TOKEN_BUCKET_H
#define LIMITER_TOKEN_BUCKET_H

#include "layout.h"

#define NANOSECONDS 1000000000ULL /* in a second; also the fractions of a token */
/*
 * More than any packet and any bound of verdict.h can leave behind, beside one second of the rate. A larger debt, or a
 * last refill more than a second ahead, is garbage (somebody wrote to the map, or the time comes from another clock),
 * and is forgotten.
 */
#define TOKEN_DEBT_MOST (1 << 20)

static __always_inline void token_bucket_fill(struct rate_limit_state *state, __u64 bucket)
{
	state->tokens = bucket;
	state->fraction = 0;
}

/*
 * Adds the tokens accrued since the last refill, up to the bucket. `now` was read before the lock was taken, since no
 * helper can be called under it. So it may be slightly older than the last refill on another CPU. Then nothing accrues,
 * and the time of the last refill stays; otherwise the same nanoseconds would be paid twice.
 */
static __always_inline void token_bucket_refill(struct rate_limit_state *state, __u64 rate, __u64 bucket, __u64 now)
{
	__u64 accrued, part, whole = 0, elapsed;

	if (now > state->last_update_ns) {
		elapsed = now - state->last_update_ns;
		state->last_update_ns = now;
		if (elapsed >= NANOSECONDS) {
			__u64 seconds = elapsed / NANOSECONDS;

			/*
			 * After these seconds the bucket is full, whatever it held before; the product below could
			 * overflow.
			 */
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
	/* Also where nothing accrued: the bucket may have become smaller, or a refund may have come late. */
	if (state->tokens >= (__s64)bucket)
		token_bucket_fill(state, bucket);
}

/* In 1/16 ms: with a finer unit the largest bucket would overflow 64 bits. */
#define TOKEN_SPAN_PARTS 16000
#define TOKEN_SPAN_MOST (64ULL * TOKEN_SPAN_PARTS)

/*
 * Scales the saved tokens so that they last as long at the new rate as at the one before. More than a minute's worth is
 * a quota, not a reserve, and stays as it is.
 */
static __always_inline __s64 token_bucket_scaled(const struct rate_limit_state *state, __u64 before)
{
	__u64 span = (__u64)state->tokens * TOKEN_SPAN_PARTS / before;

	return span < TOKEN_SPAN_MOST ? (__s64)(span * state->rate / TOKEN_SPAN_PARTS) : state->tokens;
}

/* May leave a debt, which is paid back before anything else passes. So packets larger than the bucket pass too. */
static __always_inline void token_bucket_take(struct rate_limit_state *state, __u32 bytes)
{
	state->tokens -= bytes;
}

/* The next refill cuts off what overflows the bucket, before it can be used. */
static __always_inline void token_bucket_refund(struct rate_limit_state *state, __u32 bytes)
{
	state->tokens += bytes;
}
#endif
