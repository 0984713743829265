/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How much of a rule is used: what passed in the last second or so; and when it last held somebody back. Pure, and runs
 * under the state's lock.
 */
#ifndef LIMITER_USE_H
#define LIMITER_USE_H

#include "token_bucket.h"

/* Epochs, beside a second, after which nobody is held back any more: as in user space, core/pacing.py. */
#define USE_PAUSE_EPOCHS 4

/* Must be called for every packet, before it is counted: ends the span of time when it is over. */
static __always_inline void use_measure(struct rate_limit_state *state, __u64 now)
{
	__s64 elapsed = now - state->use_start_ns;

	/* As in token_bucket.h, `now` may be slightly older than what another CPU wrote; a second older is garbage. */
	if (elapsed < (__s64)NANOSECONDS && elapsed > -(__s64)NANOSECONDS)
		return;
	/*
	 * At most one second of the rate and one bucket passed within the span. Refunds since may leave less than
	 * nothing.
	 */
	state->use_rate = elapsed > 0 && state->bytes > state->use_bytes
				  ? (state->bytes - state->use_bytes) * NANOSECONDS / elapsed
				  : 0;
	state->use_bytes = state->bytes;
	state->use_start_ns = now;
}

/*
 * Must be called for every packet of a connection that this rule holds, and as below. A pause as long as this ends what
 * lasted.
 */
static __always_inline void use_bind(struct rate_limit_state *state, __u64 now)
{
	__s64 elapsed = now - state->use_bound_ns, pause = NANOSECONDS + USE_PAUSE_EPOCHS * state->fair.period_ns;

	if (elapsed > pause || elapsed < -(__s64)NANOSECONDS)
		state->use_since_ns = now;
	state->use_bound_ns = now;
}

/* Must be called for every packet that is dropped or gets a notice. */
static __always_inline void use_withhold(struct rate_limit_state *state, __u64 now)
{
	state->use_withheld_ns = now;
	use_bind(state, now);
}

/* Must be called for every packet that has to wait for its departure time. Not under the lock: each is one number. */
static __always_inline void use_delay(struct rate_limit_state *state, __u64 now)
{
	state->use_delayed_ns = now;
	use_bind(state, now);
}
#endif
