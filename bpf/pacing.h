/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Sockets: what TCP knows of a connection, and what it is told. TCP paces itself to SO_MAX_PACING_RATE with timers of
 * its own, whatever queueing discipline there is or is not.
 *
 * The egress program leaves a connection's share in its socket storage, and the callback of each round trip tells the
 * socket: setsockopt exists only there. So whoever sends hears of a new share one round trip later.
 */
#ifndef LIMITER_PACING_H
#define LIMITER_PACING_H

#include "connection.h"
#include "rule_state.h"
#include "tcp_states.h"

/* asm-generic/socket.h, linux/tcp.h, linux/bpf.h: macros, which vmlinux.h lacks. */
#define SOL_SOCKET 1
#define SOCK_STREAM 1
#define SO_MAX_PACING_RATE 47
#define SOL_TCP 6
#define WINDOW_UNCLAMPED 0x7fffffff
/* Of a segment: IP and TCP header, with time stamps. */
#define HEADERS_IPV4 52
#define HEADERS_IPV6 72
#define AF_INET6 10
/* As vmlinux.h has it from 6.1 on; the program may be built on an older kernel. */
enum bpf_func_id___settle { BPF_FUNC_user_ringbuf_drain___settle };

static __always_inline __u64 pacing_headers(const struct tcp_sock *tcp)
{
	return tcp->inet_conn.icsk_inet.sk.__sk_common.skc_family == AF_INET6 ? HEADERS_IPV6 : HEADERS_IPV4;
}

/* In 2^20 ns: it comes round after 52 days. */
static __always_inline __u32 pacing_time(__u64 now)
{
	return now >> 20;
}

/*
 * Every half second TCP tries again to send what was dropped, and the fifteenth time gives its connection up. The guard
 * lets everyone through in time, with the least share that there is (fair_share.h).
 */
static __always_inline bool pacing_starved(const struct rate_limit_pacing *pacing, __u64 now)
{
	return (__s32)(pacing_time(now) - pacing->passed) > (__s32)pacing_time(EPOCH_LONGEST);
}

/*
 * Adds to a TCP packet what its connection tells, once for all rules: snd_nxt is still where the packet begins. Its
 * headers are counted as if they were data, which errs by a few bytes on the side of "not held". Not inlined: charge.h.
 * Without storage a connection cannot be told a rate, and is foreign.
 */
__noinline __u64 pacing_look(struct __sk_buff *skb, __u64 measured)
{
	struct packet packet = packet_unpack(measured);
	struct bpf_sock *sk = skb->sk;
	struct rate_limit_pacing *pacing;
	struct connection seen = {};
	struct tcp_sock *tcp;
	__u64 more;

	packet.tcp = false;
	tcp = sk ? bpf_skc_to_tcp_sock(sk) : NULL;
	/* A raw socket may send the same protocol, and is none of TCP's. */
	if (!tcp || tcp->inet_conn.icsk_inet.sk.sk_type != SOCK_STREAM)
		return packet_pack(&packet);
	pacing = bpf_sk_storage_get(&rate_limit_pacing_map, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!pacing)
		return packet_pack(&packet);
	packet.tcp = true;
	packet.paced = connection_paced(pacing);
	pacing->round_trip_us = tcp->srtt_us >> 3;
	/* Each rule that limits it makes this an offer. */
	pacing->share = OFFER_NONE;
	more = (__u64)(pacing->tightest % LIMITER_MAX_NESTED) << PACKET_BOTTLENECK;
	if (!packet.control && tcp_sends_data(tcp)) {
		seen.now_ns = tcp->tcp_clock_cache;
		seen.timer_ns = tcp->pacing_timer.node.expires;
		seen.pacing_rate = tcp->inet_conn.icsk_inet.sk.sk_pacing_rate;
		seen.most_rate = tcp->inet_conn.icsk_inet.sk.sk_max_pacing_rate;
		seen.unsent = tcp->write_seq - tcp->snd_nxt - packet.bytes;
		seen.room = tcp->snd_una + tcp->snd_wnd - tcp->snd_nxt - packet.bytes;
		seen.sent = tcp->data_segs_out;
		seen.out = tcp->packets_out;
		seen.window = tcp->snd_cwnd;
		seen.mss = tcp->mss_cache;
		seen.headers = pacing_headers(tcp);
		/* The SYN counts as a byte. */
		seen.acked = connection_less(1, tcp->bytes_acked);
		if (!(pacing->flags & 1 << CONNECTION_REFUSED))
			pacing->passed = pacing_time(pacing->sent_ns);
		more |= (__u64)pacing_starved(pacing, seen.now_ns) << PACKET_STARVED;
		connection_look(&seen, pacing, &packet);
		/*
		 * In each of these states it reads the clock whenever it begins to send data, for all that leaves then.
		 */
		more |= 1ULL << PACKET_CLOCK;
	}
	return packet_pack(&packet) | more;
}

/* The rule holds for the connection now, and is the `place`th that does. */
static __always_inline void pacing_confirm(struct rate_limit_pacing *pacing, int place, __u64 rule, __u32 generation)
{
	if (pacing->generation == generation && pacing->rules[place] == rule)
		return;
	/* The first is confirmed first: what does not follow holds no more. */
	if (pacing->generation != generation)
		for (int i = 1; i < LIMITER_MAX_NESTED; i++)
			pacing->rules[i] = 0;
	/* Of the same rule it says what the connection was counted as in this epoch, which a change does not end. */
	if (pacing->rules[place] && pacing->rules[place] != rule)
		pacing->marks[place] = (struct fair_share_mark){};
	pacing->rules[place] = rule;
	pacing->generation = generation;
}

/* What SO_MAX_PACING_RATE reads as after it was set to a rate. */
static __always_inline __u64 pacing_settable(__u64 rate)
{
	return rate < PACING_MOST ? rate : LIMITER_UNPACED;
}

/* `target`: what the program type's setsockopt wants. False where the kernel refuses. */
static __always_inline bool pacing_set(void *target, const struct tcp_sock *tcp, struct rate_limit_pacing *pacing,
				       __u64 rate)
{
	__u32 value = pacing_settable(rate); /* all bits: none */

	if (pacing_settable(rate) != tcp->inet_conn.icsk_inet.sk.sk_max_pacing_rate &&
	    bpf_setsockopt(target, SOL_SOCKET, SO_MAX_PACING_RATE, &value, sizeof(value)))
		return false;
	/* Read back: whatever the kernel made of it is what later is known as ours. */
	pacing->set = tcp->inet_conn.icsk_inet.sk.sk_max_pacing_rate;
	return true;
}

/*
 * Only where settle_sockets can undo it (6.1): user space could not. What else clamps the window (a route) more tightly
 * stays. Setting it sets ssthresh, too: without a clamp, slow start begins again.
 */
static __always_inline void pacing_clamp(void *target, const struct tcp_sock *tcp, struct rate_limit_pacing *pacing,
					 __u32 window)
{
	__u32 value = window ? window : WINDOW_UNCLAMPED;

	if (!bpf_core_enum_value_exists(enum bpf_func_id___settle, BPF_FUNC_user_ringbuf_drain___settle))
		return;
	if (!pacing->clamp && window >= tcp->snd_cwnd_clamp)
		return;
	/*
	 * A little less is near enough. A window that is larger already only shrinks after a congestion notice, and
	 * then to ssthresh, which the notice has set: so it is set once more.
	 */
	if (!window == !pacing->clamp && window <= pacing->clamp && window >= pacing->clamp - pacing->clamp / 4 &&
	    (!window || tcp->snd_cwnd <= pacing->clamp))
		return;
	if (!bpf_setsockopt(target, SOL_TCP, TCP_BPF_SNDCWND_CLAMP, &value, sizeof(value)))
		pacing->clamp = window;
}

/* Tells a socket its share. What it has that it was not given, its process has set: the lower of both holds. */
static __always_inline void pacing_tell(void *target, const struct tcp_sock *tcp, struct rate_limit_pacing *pacing)
{
	__u64 actual = tcp->inet_conn.icsk_inet.sk.sk_max_pacing_rate;
	__u64 rate = connection_payload(pacing, tcp->mss_cache, pacing_headers(tcp));

	/* TCP does not pace itself to 0 either. */
	if (!pacing->set || actual != pacing->set)
		pacing->own = actual ? actual : LIMITER_UNPACED;
	pacing_set(target, tcp, pacing, rate < pacing->own ? rate : pacing->own);
	pacing_clamp(target, tcp, pacing, connection_window(pacing, tcp->mss_cache, tcp->srtt_us >> 3));
}

/*
 * Gives a socket back what its process wants (beyond 34 Gbit/s: none), and says whether it could. TCP goes on pacing
 * itself, to its own idea of the path; a packet that already waits for its time leaves only then.
 */
static __always_inline bool pacing_release(void *target, const struct tcp_sock *tcp, struct rate_limit_pacing *pacing)
{
	if (pacing->set && pacing->set == tcp->inet_conn.icsk_inet.sk.sk_max_pacing_rate &&
	    !pacing_set(target, tcp, pacing, pacing->own))
		return false;
	pacing_clamp(target, tcp, pacing, 0);
	pacing->set = 0;
	return true;
}

/* A connection comes under its rules: the share that they leave it. True where one of their buckets is poor. */
static __always_inline bool pacing_join(struct rate_limit_pacing *pacing, __u32 generation)
{
	__u64 joined, poor = 0;

	pacing->share = LIMITER_UNPACED;
	for (int i = 0; i < LIMITER_MAX_NESTED; i++) {
		pacing->marks[i] = (struct fair_share_mark){};
		joined = pacing->rules[i] ? rule_join(pacing->rules[i], generation) : OFFER_NONE;
		poor |= joined & RULE_POOR;
		connection_take_offer(pacing, i, joined & ~RULE_POOR);
	}
	pacing->flags = 0;
	pacing->segment = 0;
	pacing->sent_ns = bpf_ktime_get_ns();
	pacing->passed = pacing_time(pacing->sent_ns);
	return poor;
}

/* Asks to be called once a round trip. It replaces what other programs want, so that is kept. */
static __always_inline void pacing_call_back(struct bpf_sock_ops *ops)
{
	bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_RTT_CB_FLAG);
}

static __always_inline void pacing_begin(struct bpf_sock_ops *ops, const struct tcp_sock *tcp,
					 struct rate_limit_pacing *pacing, __u32 generation)
{
	__u32 window = SLOW_INITIAL_WINDOW;
	bool poor;

	pacing_call_back(ops);
	poor = pacing_join(pacing, generation);
	if (poor && pacing->share < SLOW_SHARE && ops->snd_cwnd > window)
		bpf_setsockopt(ops, SOL_TCP, TCP_BPF_IW, &window, sizeof(window));
	pacing_tell(ops, tcp, pacing);
}

/*
 * Once a round trip. A rule that holds brings the socket's generation up to date with each packet. A second round trip
 * in one generation without such a packet says that none holds any more: what was sent since the first, no rule has
 * seen. Then the socket is released, and the answer is false.
 */
static __always_inline bool pacing_follow(struct bpf_sock_ops *ops, const struct tcp_sock *tcp,
					  struct rate_limit_pacing *pacing, __u32 generation, bool on)
{
	if (on && pacing->generation == generation) {
		if (pacing->share)
			pacing_tell(ops, tcp, pacing);
		return true;
	}
	if (on && pacing->suspected != generation) {
		pacing->suspected = generation;
		return true;
	}
	return !pacing_release(ops, tcp, pacing);
}
#endif
