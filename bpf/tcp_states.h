/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The states in which a TCP connection sends data, half-closed ones included. */
#ifndef LIMITER_TCP_STATES_H
#define LIMITER_TCP_STATES_H

/*
 * A connection that only its peer has closed sends for as long as its process likes. One that its process has closed
 * still sends what is queued, even after the process is gone. With TCP Fast Open a server answers in SYN_RECV. In all
 * other states there is nothing to send yet (the connection is told when it is established), or all of it is
 * acknowledged (FIN_WAIT2).
 */
#define TCP_STATES_SENDING                                                                                        \
	(1 << TCP_ESTABLISHED | 1 << TCP_CLOSE_WAIT | 1 << TCP_FIN_WAIT1 | 1 << TCP_CLOSING | 1 << TCP_LAST_ACK | \
	 1 << TCP_SYN_RECV)

/* A listener sends the SYN-ACKs of its connections. */
#define TCP_STATES_OPENING (1 << TCP_SYN_SENT | 1 << TCP_SYN_RECV | 1 << TCP_LISTEN)

static __always_inline bool tcp_is_in(const struct tcp_sock *tcp, __u32 states)
{
	return 1U << (tcp->inet_conn.icsk_inet.sk.__sk_common.skc_state & 31) & states;
}

static __always_inline bool tcp_sends_data(const struct tcp_sock *tcp)
{
	return tcp_is_in(tcp, TCP_STATES_SENDING);
}
#endif
