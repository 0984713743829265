/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A packet on its way through all rules that hold for it: what bpf/charge.h does, and bpf/queue.h, which need the kernel. */
#ifndef SIMULATION_WALK_H
#define SIMULATION_WALK_H

#include "queue.h"

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

/* When a packet departs that has passed all its rules: now, or later. */
static uint64_t walk_departure(struct simulation *sim, const struct flow_spec *spec, struct rate_limit_pacing *pacing,
			       const struct packet *packet, bool waits)
{
	uint64_t departs = sim->now;

	if (!spec->waits || (!waits && !(pacing && pacing->departs_ns > sim->now)))
		return departs;
	for (uint32_t place = 0; place < spec->rules; place++) {
		struct rate_limit_state *state = &sim->limiter[spec->rule[place]].state;
		uint64_t wait = departure_wait(state, packet, sim->now);

		state->waiting_size = departure_size(state, packet);
		if (sim->now + wait > departs)
			departs = sim->now + wait;
	}
	if (pacing && pacing->departs_ns > departs)
		departs = pacing->departs_ns;
	if (pacing)
		pacing->departs_ns = departs;
	return departs;
}

/* `departs`: when it leaves, if it passes. */
static enum verdict walk_rules(struct simulation *sim, struct flow *flow, struct rate_limit_pacing *pacing,
			       const struct packet *offered, uint64_t *departs)
{
	const struct flow_spec *spec = flow->spec;
	struct packet packet = packet_unpack(packet_pack(offered));
	struct answer answer[RULES_MOST];
	enum verdict verdict = VERDICT_PASS;
	uint32_t binds = pacing ? pacing->tightest : 0;
	bool waits = false;

	packet.round_trip_ns = offered->round_trip_ns;
	packet.starved = offered->starved;
	if (pacing)
		pacing->share = OFFER_NONE;
	for (uint32_t place = 0; place < spec->rules; place++) {
		struct limiter *limiter = &sim->limiter[spec->rule[place]];

		packet.elsewhere = pacing && binds != place;
		packet.room = queue_room(sim, spec, &limiter->state, &packet);
		waits |= packet.room > 0;
		answer[place] = walk_rule(sim, limiter, pacing, place, packet);
		if (answer[place].verdict != VERDICT_DROP)
			continue;
		flow_bin(sim, spec->rule[place])->drops += packet.tcp;
		while (place--)
			limiter_refund(&sim->limiter[spec->rule[place]], pacing ? &pacing->marks[place] : NULL, &packet,
				       answer[place]);
		flow_result(sim, flow)->drops++;
		return VERDICT_DROP;
	}
	for (uint32_t place = 0; place < spec->rules; place++) {
		if (answer[place].verdict == VERDICT_PASS_WITH_NOTICE) {
			flow_bin(sim, spec->rule[place])->notices++;
			verdict = VERDICT_PASS_WITH_NOTICE;
		}
	}
	*departs = walk_departure(sim, spec, pacing, &packet, waits);
	packet.held = offered->held;
	return queue_add(sim, flow, &packet, *departs) ? verdict : VERDICT_DROP;
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
