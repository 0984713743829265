/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * bpf/connection.h with sockets that no kernel has and with what no program of ours keeps of one: nothing is computed
 * that C does not define, and what a connection is told is never more than its share.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#undef __always_inline
#define __always_inline inline __attribute__((always_inline))

#include "input.h"
#include "connection.h"

#define PACKETS 8

static void one(void)
{
	struct rate_limit_pacing pacing;
	struct connection seen;

	spoil(&pacing, sizeof(pacing));
	for (int i = 0; i < PACKETS; i++) {
		struct packet packet = { .bytes = awkward(), .segments = awkward(), .tcp = true };
		__u64 headers, mss = awkward() & 0xffff, round_trip_us = awkward() & 0xffffffff;

		spoil(&seen, sizeof(seen));
		headers = seen.headers & 0xff;
		connection_look(&seen, &pacing, &packet);
		check(pacing.segment, "a segment has no payload");
		check(!packet.held || packet.paced, "held, and not paced");
		check(!packet.waited || packet.refused, "it has waited, and was not refused");
		connection_note_verdict(&pacing, below(2));
		pacing.share = LIMITER_UNPACED;
		for (__u32 index = 0; index < LIMITER_MAX_NESTED; index++) {
			__u64 offer = awkward() & ~(1ULL << 63);

			connection_take_offer(&pacing, index, offer);
			check(pacing.share <= offer, "more than a rule offers");
		}
		check(connection_payload(&pacing, mss, headers) <= (pacing.share ? pacing.share : 1), "more than its share");
		connection_window(&pacing, mss, round_trip_us);
		if (below(2))
			spoil(&pacing, sizeof(pacing));
	}
}
