/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The states in which a TCP connection sends data: not only while it is open on both sides. */
#ifndef LIMITER_TCP_STATES_H
#define LIMITER_TCP_STATES_H

/*
 * Closed by its peer alone, a connection sends on for as long as its process likes. Closed by its process, it sends
 * what is still queued, also when no process has it any more. With TCP Fast Open a server answers in SYN_RECV. The
 * others have nothing to send yet (and are told when they are established), or all of it is acknowledged (FIN_WAIT2).
 */
#define TCP_STATES_SENDING                                                                                        \
	(1 << TCP_ESTABLISHED | 1 << TCP_CLOSE_WAIT | 1 << TCP_FIN_WAIT1 | 1 << TCP_CLOSING | 1 << TCP_LAST_ACK | \
	 1 << TCP_SYN_RECV)

static __always_inline bool tcp_sends_data(const struct tcp_sock *tcp)
{
	return 1U << (tcp->inet_conn.icsk_inet.sk.__sk_common.skc_state & 31) & TCP_STATES_SENDING;
}
#endif
