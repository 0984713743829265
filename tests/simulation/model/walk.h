/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A packet on its way through all rules that hold for it: what bpf/charge.h does, which needs the kernel. */
#ifndef SIMULATION_WALK_H
#define SIMULATION_WALK_H

#include "flow.h"

#define POOR 32768 /* RULE_POOR_BYTES of bpf/rule_state.h */

/* At one rule. `pacing`: of the packet's connection, NULL where it has no storage. */
static struct answer walk_rule(struct simulation *sim, struct limiter *limiter, struct rate_limit_pacing *pacing,
			      uint32_t place, struct packet packet)
{
	struct answer answer = limiter_charge(limiter, pacing ? &pacing->marks[place] : NULL, &packet, sim->now);

	if (!pacing)
		return answer;
	if (!packet.control)
		connection_note_verdict(pacing, answer.verdict == VERDICT_DROP);
	connection_take_offer(pacing, place, demand_offer(&limiter->state.fair, packet.early));
	return answer;
}

static enum verdict walk_rules(struct simulation *sim, const struct flow_spec *spec, struct rate_limit_pacing *pacing,
			       const struct packet *offered)
{
	struct packet packet = packet_unpack(packet_pack(offered));
	struct answer answer[RULES_MOST];
	enum verdict verdict = VERDICT_PASS;
	uint32_t binds = pacing ? pacing->tightest : 0;

	packet.round_trip_ns = offered->round_trip_ns;
	packet.starved = offered->starved;
	if (pacing)
		pacing->share = OFFER_NONE;
	for (uint32_t place = 0; place < spec->rules; place++) {
		packet.elsewhere = pacing && binds != place;
		answer[place] = walk_rule(sim, &sim->limiter[spec->rule[place]], pacing, place, packet);
		if (answer[place].verdict != VERDICT_DROP)
			continue;
		flow_bin(sim, spec->rule[place])->drops += packet.tcp;
		while (place--)
			limiter_refund(&sim->limiter[spec->rule[place]], pacing ? &pacing->marks[place] : NULL, &packet,
				       answer[place]);
		return VERDICT_DROP;
	}
	for (uint32_t place = 0; place < spec->rules; place++) {
		struct bin_result *bin = flow_bin(sim, spec->rule[place]);

		bin->bytes += packet.bytes;
		limiter_count(&sim->limiter[spec->rule[place]], &packet, sim->now);
		if (answer[place].verdict == VERDICT_PASS_WITH_NOTICE) {
			bin->notices++;
			verdict = VERDICT_PASS_WITH_NOTICE;
		}
	}
	return verdict;
}

/* A connection was established: its rules' offers. True where a bucket is poor. */
static bool walk_join(struct simulation *sim, const struct flow_spec *spec, struct rate_limit_pacing *pacing)
{
	bool poor = false;

	pacing->share = LIMITER_UNPACED;
	for (uint32_t place = 0; place < spec->rules; place++) {
		struct limiter *limiter = &sim->limiter[spec->rule[place]];
		uint64_t offer = demand_join(&limiter->state, limiter_clock(limiter, sim->now));

		pacing->marks[place] = (struct fair_share_mark){};
		poor |= limiter->state.tokens < POOR;
		connection_take_offer(pacing, place, offer);
	}
	return poor;
}
#endif
