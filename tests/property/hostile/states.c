/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * bpf/departure.h, verdict.h, fair_share.h, demand.h and token_bucket.h with states that no program of ours leaves:
 * nothing is computed that C does not define, and the limit holds.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#undef __always_inline
#define __always_inline inline __attribute__((always_inline))

#include "departure.h"
#include "input.h"
#include "use.h"

#define PACKETS 24
#define LARGEST 66000 /* bytes */

static __u64 a_rate(void)
{
	return below(2) ? 8000 + below(1000000) : 8000 + any() % 12499992000;
}

static struct packet a_packet(void)
{
	struct packet it = { .bytes = 40 + below(below(2) ? 1460 : LARGEST - 40), .segments = 1 + below(50) };
	__u64 flags = any();

	it.tcp = flags & 1;
	it.control = it.tcp && flags & 2;
	it.handshake = it.control && flags & 4;
	it.paced = it.tcp && flags & 8;
	it.held = it.tcp && flags & 16;
	it.early = it.tcp && flags & 32;
	it.idle = it.tcp && flags & 64;
	it.begins = it.early && it.idle && flags & 128;
	it.refused = it.idle && flags & 256;
	it.waited = it.refused && flags & 512;
	it.elsewhere = it.tcp && flags & 1024;
	it.starved = it.tcp && flags & 2048;
	it.round_trip_ns = awkward() % 5000000000;
	return it;
}

static void one(void)
{
	struct rate_limit_state state;
	struct fair_share_mark marks[4];
	__u64 rate = a_rate(), bucket = below(2) ? rate : 2048 + any() % (1ULL << below(41)), now = 1 + (any() >> 2);
	__u64 begin = now, latest = now, passed = 0;
	bool queue = below(2);
	__u64 most;

	spoil(&state, sizeof(state));
	spoil(marks, sizeof(marks));
	/* Copies of what the configuration said, which modules check. */
	state.rate = below(4) ? a_rate() : 0;
	state.bucket = 2048 + any() % (1ULL << below(41));
	if (below(2)) {
		fair_share_change_limit(&state, rate, bucket, now);
	} else {
		state.rate = rate;
		state.bucket = bucket;
	}
	for (int i = 0; i < PACKETS; i++) {
		struct packet packet = a_packet();
		struct fair_share_mark *mark = packet.tcp && below(4) ? &marks[below(4)] : NULL;
		struct answer answer;

		if (below(8) == 0)
			demand_join(&state, now);
		if (queue && departure_matters(state.tokens, state.rate, &packet))
			packet.room = departure_room(&state, &packet);
		answer = verdict_charge(&state, mark, &packet, now, below(8));
		check(departure_wait(&state, &packet, now) <= NANOSECONDS, "a packet waits for more than a second");
		if (below(8) == 0)
			state.waiting_size = departure_size(&state, &packet);
		demand_offer(&state.fair, packet.early);
		if (answer.verdict != VERDICT_DROP)
			passed += packet.bytes;
		if (answer.verdict != VERDICT_DROP && below(16) == 0) {
			verdict_refund(&state, mark, answer, &packet);
			passed -= packet.bytes;
		}
		/* Also a little back, as between two processors. */
		now = below(8) ? now + (any() >> (34 + below(30))) : now - below(1000000);
		latest = now > latest ? now : latest;
	}
	most = bucket + (__u64)((unsigned __int128)rate * (latest - begin) / NANOSECONDS) + 1 + 65536 + LARGEST;
	/* What waits. */
	if (queue)
		most += rate / 1000 * (VERDICT_QUEUE_MS + VERDICT_QUEUE_REFUSED_MS);
	check(passed <= most, "more passed than may");
}
