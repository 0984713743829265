/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What TCP knows of a connection, and how the connection is told its share. TCP paces itself to SO_MAX_PACING_RATE with
 * timers of its own, under any queueing discipline or none.
 *
 * The egress program leaves a connection's share in its socket storage. The callback of each round trip then tells the
 * socket, because only there is setsockopt available. So a sender hears of a new share one round trip later.
 */
#ifndef LIMITER_PACING_H
#define LIMITER_PACING_H

#include "connection.h"
#include "queue.h"
#include "rule_state.h"
#include "tcp_states.h"

/* From asm-generic/socket.h, linux/tcp.h, linux/bpf.h: macros, which vmlinux.h lacks. */
#define SOL_SOCKET 1
#define SOCK_STREAM 1
#define SO_MAX_PACING_RATE 47
#define SOL_TCP 6
#define PACING_WINDOW_UNCLAMPED 0x7fffffff
/* Bytes of IP and TCP header per segment, with time stamps. */
#define PACING_HEADERS_IPV4 52
#define PACING_HEADERS_IPV6 72
#define AF_INET6 10
/* As vmlinux.h has it since 6.1; the program may be built on an older kernel. */
enum bpf_func_id___settle { BPF_FUNC_user_ringbuf_drain___settle };

static __always_inline __u64 pacing_headers(const struct tcp_sock *tcp)
{
	return tcp->inet_conn.icsk_inet.sk.__sk_common.skc_family == AF_INET6 ? PACING_HEADERS_IPV6
									      : PACING_HEADERS_IPV4;
}

/* In units of 2^20 ns: wraps after 52 days. */
static __always_inline __u32 pacing_time(__u64 now)
{
	return now >> 20;
}

/*
 * TCP retries what was dropped every half second, and gives the connection up at the fifteenth try. So the guard lets a
 * starved connection through in time, even at the least share that there is (fair_share.h).
 */
static __always_inline bool pacing_starved(const struct rate_limit_pacing *pacing, __u64 now)
{
	return (__s32)(pacing_time(now) - pacing->passed) > (__s32)pacing_time(FAIR_SHARE_EPOCH_LONGEST);
}

/*
 * Adds to a TCP packet what its connection tells, once for all rules. snd_nxt still points to the packet's beginning.
 * The packet's headers are counted as data, which errs by a few bytes towards "not held". A connection without storage
 * cannot be told a rate, and is foreign. Not inlined: see charge.h.
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
	/* A raw socket can send the TCP protocol without being TCP's. */
	if (!tcp || tcp->inet_conn.icsk_inet.sk.sk_type != SOCK_STREAM)
		return packet_pack(&packet);
	pacing = bpf_sk_storage_get(&rate_limit_pacing_map, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!pacing)
		return packet_pack(&packet);
	packet.tcp = true;
	packet.paced = connection_paced(pacing);
	packet.handshake = packet.control && tcp_is_in(tcp, TCP_STATES_OPENING);
	pacing->round_trip_us = tcp->srtt_us >> 3;
	/* Replaced by the offers of the rules that limit the connection. */
	pacing->share = OFFER_NONE;
	more = (__u64)(pacing->tightest % LIMITER_MAX_NESTED) << PACKET_BOTTLENECK;
	more |= (__u64)connection_less(tcp->tcp_clock_cache, pacing->departs_ns) << PACKET_FOLLOWS;
	if (!packet.control && tcp_sends_data(tcp)) {
		seen.now_ns = tcp->tcp_clock_cache;
		seen.timer_ns = tcp->pacing_timer.node.expires;
		seen.departs_ns = tcp->tcp_wstamp_ns;
		seen.pacing_rate = tcp->inet_conn.icsk_inet.sk.sk_pacing_rate;
		seen.most_rate = tcp->inet_conn.icsk_inet.sk.sk_max_pacing_rate;
		seen.unsent = tcp->write_seq - tcp->snd_nxt - packet.bytes;
		seen.room = tcp->snd_una + tcp->snd_wnd - tcp->snd_nxt - packet.bytes;
		seen.sent = tcp->data_segs_out;
		seen.out = tcp->packets_out;
		seen.window = tcp->snd_cwnd;
		seen.mss = tcp->mss_cache;
		seen.headers = pacing_headers(tcp);
		/* The SYN counts as one byte. */
		seen.acked = connection_less(1, tcp->bytes_acked);
		if (!(pacing->flags & 1 << CONNECTION_REFUSED))
			pacing->passed = pacing_time(pacing->sent_ns);
		more |= (__u64)pacing_starved(pacing, seen.now_ns) << PACKET_STARVED;
		connection_look(&seen, pacing, &packet);
		/*
		 * In each of these states TCP reads the clock when it begins to send data, and that time stamp is right
		 * for all that leaves then.
		 */
		more |= 1ULL << PACKET_CLOCK;
	}
	return packet_pack(&packet) | more;
}

/* Confirms that the rule holds for the connection now, at this index among its rules. */
static __always_inline void pacing_confirm(struct rate_limit_pacing *pacing, int index, __u64 rule, __u32 generation)
{
	if (pacing->generation == generation && pacing->rules[index] == rule)
		return;
	/*
	 * The first index is confirmed first, and begins a new generation: the rules behind it hold only once they are
	 * confirmed.
	 */
	if (pacing->generation != generation)
		for (int i = 1; i < LIMITER_MAX_NESTED; i++)
			pacing->rules[i] = 0;
	/*
	 * With the same rule, the mark stays: it says what the connection counts as in this epoch, which a change does
	 * not end.
	 */
	if (pacing->rules[index] && pacing->rules[index] != rule)
		pacing->marks[index] = (struct fair_share_mark){};
	pacing->rules[index] = rule;
	pacing->generation = generation;
}

/* The value that SO_MAX_PACING_RATE has after it was set to a rate. */
static __always_inline __u64 pacing_settable(__u64 rate)
{
	return rate < PACING_MOST ? rate : LIMITER_UNPACED;
}

/* `target` is what setsockopt takes in this type of program. Returns false where the kernel refuses. */
static __always_inline bool pacing_set(void *target, const struct tcp_sock *tcp, struct rate_limit_pacing *pacing,
				       __u64 rate)
{
	__u32 value = pacing_settable(rate); /* all bits: no limit */

	if (pacing_settable(rate) != tcp->inet_conn.icsk_inet.sk.sk_max_pacing_rate &&
	    bpf_setsockopt(target, SOL_SOCKET, SO_MAX_PACING_RATE, &value, sizeof(value)))
		return false;
	/* Read back, so that whatever the kernel made of it is later recognised as ours. */
	pacing->set = tcp->inet_conn.icsk_inet.sk.sk_max_pacing_rate;
	return true;
}

/*
 * Clamps the window, but only where settle_sockets can undo it (6.1): user space could not. A tighter clamp that is not
 * ours (a route's) stays. Setting the clamp also sets ssthresh: removing it restarts slow start.
 */
static __always_inline void pacing_clamp(void *target, const struct tcp_sock *tcp, struct rate_limit_pacing *pacing,
					 __u32 window)
{
	__u32 value = window ? window : PACING_WINDOW_UNCLAMPED;

	if (!bpf_core_enum_value_exists(enum bpf_func_id___settle, BPF_FUNC_user_ringbuf_drain___settle))
		return;
	if (!pacing->clamp && window >= tcp->snd_cwnd_clamp)
		return;
	/*
	 * A clamp that is up to a quarter too large is left. But a window that is already larger shrinks only after a
	 * congestion notice, and then to ssthresh, which the notice has set. So then the clamp is set once more.
	 */
	if (!window == !pacing->clamp && window <= pacing->clamp && window >= pacing->clamp - pacing->clamp / 4 &&
	    (!window || tcp->snd_cwnd <= pacing->clamp))
		return;
	if (!bpf_setsockopt(target, SOL_TCP, TCP_BPF_SNDCWND_CLAMP, &value, sizeof(value)))
		pacing->clamp = window;
}

/* Tells a socket its share. A pacing rate that we did not set comes from its process; the lower of both holds. */
static __always_inline void pacing_tell(void *target, const struct tcp_sock *tcp, struct rate_limit_pacing *pacing)
{
	__u64 actual = tcp->inet_conn.icsk_inet.sk.sk_max_pacing_rate;
	__u64 rate = connection_payload(pacing, tcp->mss_cache, pacing_headers(tcp));

	/* To a process's own rate of 0, TCP does not pace itself either. */
	if (!pacing->set || actual != pacing->set)
		pacing->own = actual ? actual : LIMITER_UNPACED;
	pacing_set(target, tcp, pacing, rate < pacing->own ? rate : pacing->own);
	pacing_clamp(target, tcp, pacing, connection_window(pacing, tcp->mss_cache, tcp->srtt_us >> 3));
}

/*
 * Releases a socket: gives it back the rate that its process wants (none, above 34 Gbit/s). Returns whether it could.
 * TCP goes on pacing itself, to its own estimate of the path. A packet that already waits for its time still leaves
 * only then.
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

/* A connection comes under its rules: finds its share. Returns true where one of their buckets is poor. */
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

/* Asks for a callback each round trip. Setting the flags replaces those of other programs, so these are kept. */
static __always_inline void pacing_call_back(struct bpf_sock_ops *ops)
{
	bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_RTT_CB_FLAG);
}

/* Whether the device that the connection's route leads to holds packets. */
static __always_inline bool pacing_waits(const struct tcp_sock *tcp)
{
	const struct dst_entry *route = tcp->inet_conn.icsk_inet.sk.sk_dst_cache;

	return kernel_memory && route && queue_of_device((__u64)BPF_CORE_READ(route, dev));
}

/* `departs`: packets may wait for their departure time. */
static __always_inline void pacing_begin(struct bpf_sock_ops *ops, const struct tcp_sock *tcp,
					 struct rate_limit_pacing *pacing, __u32 generation, bool departs)
{
	__u64 segment = tcp->mss_cache + pacing_headers(tcp);
	__u32 window = CONNECTION_SLOW_INITIAL_WINDOW;
	bool poor;

	pacing_call_back(ops);
	poor = pacing_join(pacing, generation);
	if (poor && ops->snd_cwnd > window && connection_begins_slowly(pacing, segment, departs && pacing_waits(tcp)))
		bpf_setsockopt(ops, SOL_TCP, TCP_BPF_IW, &window, sizeof(window));
	pacing_tell(ops, tcp, pacing);
}

/*
 * Called once a round trip. A rule that holds brings the socket's generation up to date with each packet. If a second
 * round trip passes in one generation without such a packet, no rule holds any more: none has seen what was sent since
 * the first. Then this releases the socket and returns false.
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
