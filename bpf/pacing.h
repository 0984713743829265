/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Sockets: what TCP knows of a connection, and what it is told. TCP paces itself to SO_MAX_PACING_RATE with timers of its
 * own, whatever queueing discipline there is or is not.
 *
 * The egress program leaves a connection's share in its socket storage, and the callback of each round trip tells the
 * socket: setsockopt exists only there. So whoever sends hears of a new share one round trip later.
 */
#ifndef LIMITER_PACING_H
#define LIMITER_PACING_H

#include "rule_state.h"
#include "tcp_states.h"

/* asm-generic/socket.h, linux/tcp.h, linux/bpf.h: macros, which vmlinux.h lacks. */
#define SOL_SOCKET 1
#define SO_MAX_PACING_RATE 47
#define SOL_TCP 6
/* A share below this lets no more than two segments go before the first round trip: TCP does not pace its first ten. */
#define SLOW_START_SLOWLY 2500000 /* bytes per second */
#define SLOW_INITIAL_WINDOW 2
/*
 * However slow, a socket so near makes packets as large as half its congestion window (since 5.18): of minutes, at the
 * lowest rates. So the window is clamped to packets that last this long, and some round trips.
 */
#define SLOW_PACKET_US 50000
#define SLOW_WINDOW_LEAST 4
#define WINDOW_UNCLAMPED 0x7fffffff
/* From this on (34 Gbit/s) a rate does not fit into what a program can set, on every kernel so far. */
#define PACING_MOST 0xffffffffULL
/* Of a segment: IP and TCP header, with time stamps. */
#define HEADERS_IPV4 52
#define HEADERS_IPV6 72
#define AF_INET6 10
/* bbr stays a hundredth below what it may, and says so. */
#define NEARLY 16

/* As vmlinux.h has it from 6.1 on; the program may be built on an older kernel. */
enum bpf_func_id___settle { BPF_FUNC_user_ringbuf_drain___settle };

/*
 * Looks at the connection of a TCP packet while it leaves: snd_nxt is still where the packet begins. Its headers are
 * counted as if they were data, which errs by a few bytes on the side of "not held". NULL where there is no memory for
 * its storage.
 */
static __always_inline struct rate_limit_pacing *pacing_measure(struct bpf_sock *sk, struct packet *packet, __u64 *now)
{
	struct rate_limit_pacing *pacing;
	struct tcp_sock *tcp;
	__s32 unsent, window;

	pacing = bpf_sk_storage_get(&rate_limit_pacing_map, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	tcp = pacing ? bpf_skc_to_tcp_sock(sk) : NULL;
	if (!tcp)
		return NULL;
	unsent = tcp->write_seq - tcp->snd_nxt - packet->bytes;
	window = tcp->snd_una + tcp->snd_wnd - tcp->snd_nxt - packet->bytes;
	packet->paced = pacing->set && pacing->set != LIMITER_UNPACED;
	/* What is left of a window and smaller than a segment is not sent. */
	packet->held = packet->paced && unsent > 0 && window >= (__s32)tcp->mss_cache &&
		       tcp->packets_out + packet->segments < tcp->snd_cwnd &&
		       /* It would go faster: neither its process nor its congestion control wants less. */
		       pacing->set != pacing->own &&
		       tcp->inet_conn.icsk_inet.sk.sk_pacing_rate >= pacing->set - pacing->set / NEARLY;
	packet->round_trip_ns = (__u64)(tcp->srtt_us >> 3) * 1000;
	/*
	 * TCP reads the clock whenever it begins to send data, in each of these states, for all that leaves then; not
	 * always to acknowledge some, and never in a listener, whose SYN-ACKs may be as large as its options make them.
	 */
	if (packet->bytes > CONTROL_PACKET_BYTES && tcp_sends_data(tcp))
		*now = tcp->tcp_clock_cache;
	return pacing;
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

/* Pacing counts data alone, a share whole packets. */
static __always_inline __u64 pacing_payload(const struct tcp_sock *tcp, __u64 share)
{
	__u64 headers = tcp->inet_conn.icsk_inet.sk.__sk_common.skc_family == AF_INET6 ? HEADERS_IPV6 : HEADERS_IPV4;
	__u64 segment = tcp->mss_cache, rate;

	/* Nothing known, or nothing to be told; a product of such numbers would overflow. */
	if (!segment || share > 2 * PACING_MOST)
		return share;
	rate = share * segment / (segment + headers);
	return rate ? rate : 1;
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

/* The congestion window that a share needs, in segments, where it is a low one; else 0. */
static __always_inline __u32 pacing_window(const struct tcp_sock *tcp, __u64 share)
{
	__u64 segment = tcp->mss_cache, window;

	if (share >= SLOW_START_SLOWLY || !segment)
		return 0;
	window = 2 * share * (SLOW_PACKET_US + (tcp->srtt_us >> 3)) / 1000000 / segment;
	return window > SLOW_WINDOW_LEAST ? window : SLOW_WINDOW_LEAST;
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
	if (window == pacing->clamp || (!pacing->clamp && window >= tcp->snd_cwnd_clamp))
		return;
	/* A little less is near enough. */
	if (window && window < pacing->clamp && window > pacing->clamp - pacing->clamp / 4)
		return;
	if (!bpf_setsockopt(target, SOL_TCP, TCP_BPF_SNDCWND_CLAMP, &value, sizeof(value)))
		pacing->clamp = window;
}

/* Tells a socket its share. What it has that it was not given, its process has set: the lower of both holds. */
static __always_inline void pacing_tell(void *target, const struct tcp_sock *tcp, struct rate_limit_pacing *pacing)
{
	__u64 actual = tcp->inet_conn.icsk_inet.sk.sk_max_pacing_rate;
	__u64 rate = pacing_payload(tcp, pacing->share);

	if (!pacing->set || actual != pacing->set)
		pacing->own = actual;
	pacing_set(target, tcp, pacing, rate < pacing->own ? rate : pacing->own);
	pacing_clamp(target, tcp, pacing, pacing_window(tcp, pacing->share));
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

/* A connection comes under its rules: the share that they leave it. */
static __always_inline void pacing_join(struct rate_limit_pacing *pacing, __u32 generation)
{
	__u64 least = LIMITER_UNPACED, share;

	for (int i = 0; i < LIMITER_MAX_NESTED; i++) {
		pacing->marks[i] = (struct fair_share_mark){};
		share = pacing->rules[i] ? rule_join(pacing->rules[i], generation) : LIMITER_UNPACED;
		if (share < least) {
			least = share;
			pacing->tightest = i;
		}
	}
	pacing->share = least;
	pacing->passed = pacing_time(bpf_ktime_get_ns());
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

	pacing_call_back(ops);
	pacing_join(pacing, generation);
	if (pacing->share < SLOW_START_SLOWLY && ops->snd_cwnd > window)
		bpf_setsockopt(ops, SOL_TCP, TCP_BPF_IW, &window, sizeof(window));
	pacing_tell(ops, tcp, pacing);
}

/*
 * Once a round trip. A rule that holds brings the socket's generation up to date with each packet. A second round trip
 * in one generation without such a packet says that none holds any more: what was sent since the first, no rule has seen.
 * Then the socket is released, and the answer is false.
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
