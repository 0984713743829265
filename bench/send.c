// SPDX-License-Identifier: GPL-2.0-or-later
/*
 *   tcp ADDRESS PORT CONNECTIONS CONGESTION [RATE]
 *                           as fast as it goes, or RATE bytes per second in all; lines, one a connection every 100 ms:
 *                           time connection rtt_us acked_bytes segments retransmits segment_bytes, and how
 *                           many connections the kernel has given up
 *   ping ADDRESS PORT PAUSE one byte to and fro, PAUSE microseconds between an answer and the next (0: as a program like
 *                           any other, else before all others); lines: time nanoseconds
 *   udp ADDRESS PORT RATE [SIZE [SEGMENT]]
 *                           datagrams of SIZE bytes (1400), RATE counted in IP bytes per second, fragments as one; or,
 *                           SIZE bytes at once, to be cut into datagrams of SEGMENT bytes by the kernel (UDP_SEGMENT); no lines
 */
#include "traffic.h"

#include <netinet/udp.h>

#define UDP_PAYLOAD 1400
#define UDP_HEADERS 28
#define UDP_BATCH 32

static int tcp_to(struct sockaddr_in where, const char *congestion)
{
	int one = 1, socket_fd = check(socket(AF_INET, SOCK_STREAM, 0), "socket");
	/* Closing throws away what is still queued: the next measurement begins with nothing on its way. */
	struct linger at_once = { .l_onoff = 1, .l_linger = 0 };

	check(setsockopt(socket_fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once)), "SO_LINGER");
	if (congestion)
		check(setsockopt(socket_fd, IPPROTO_TCP, TCP_CONGESTION, congestion, strlen(congestion)), congestion);
	else
		check(setsockopt(socket_fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)), "TCP_NODELAY");
	check(connect(socket_fd, (struct sockaddr *)&where, sizeof(where)), "connect");
	return socket_fd;
}

static void sample_connections(const int *connections, int count, int broken)
{
	for (int index = 0; index < count; index++) {
		struct tcp_info info = {};
		socklen_t length = sizeof(info);
		uint64_t *sample = keep();

		check(getsockopt(connections[index], IPPROTO_TCP, TCP_INFO, &info, &length), "TCP_INFO");
		sample[0] = now();
		sample[1] = index;
		sample[2] = info.tcpi_rtt;
		sample[3] = info.tcpi_bytes_acked;
		sample[4] = info.tcpi_data_segs_out;
		sample[5] = info.tcpi_total_retrans;
		sample[6] = info.tcpi_snd_mss;
		sample[7] = broken;
	}
}

static void send_tcp(char **arguments)
{
	static int connections[MAX_DESCRIPTORS];
	int broken = 0, count = atoi(arguments[2]), poll = check(epoll_create1(0), "epoll_create1");
	uint64_t rate = arguments[4] ? strtoull(arguments[4], NULL, 10) : 0, ticks = 0, tick = rate ? 10 : 100, expired;
	int timer = check(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK), "timerfd_create");
	struct itimerspec every = { { 0, tick * MILLISECOND }, { 0, tick * MILLISECOND } };
	struct epoll_event events[MAX_EVENTS];

	ready(now());
	for (int index = 0; index < count; index++) {
		connections[index] = tcp_to(place(arguments[0], atoi(arguments[1])), arguments[3]);
		if (!rate)
			watch(poll, connections[index], EPOLLOUT);
	}
	check(timerfd_settime(timer, 0, &every, NULL), "timerfd_settime");
	watch(poll, timer, EPOLLIN);
	while (!stopped) {
		int found = epoll_wait(poll, events, MAX_EVENTS, -1);

		for (int event = 0; event < found; event++) {
			if (events[event].data.fd != timer) {
				if (send(events[event].data.fd, block, BLOCK, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 &&
				    errno != EAGAIN) {
					/* The kernel gave it up; the others go on. */
					broken++;
					check(epoll_ctl(poll, EPOLL_CTL_DEL, events[event].data.fd, NULL), "epoll_ctl");
				}
				continue;
			}
			if (read(timer, &expired, sizeof(expired)) != sizeof(expired))
				continue;
			/* Limited by the program: each connection every 100 ms, one after the other. */
			for (uint64_t passed = 0; rate && passed < expired; passed++, ticks++)
				for (int index = ticks % 10; index < count; index += 10)
					for (uint64_t left = rate / 10 / count, size; left; left -= size) {
						size = left < BLOCK ? left : BLOCK;
						if (send(connections[index], block, size, MSG_DONTWAIT | MSG_NOSIGNAL) <
						    0)
							break;
					}
			if (!rate || ticks % 10 < expired)
				sample_connections(connections, count, broken);
		}
	}
	sample_connections(connections, count, broken);
	print_kept(8);
}

static void ping(char **arguments)
{
	uint64_t pause = strtoull(arguments[2], NULL, 10) * 1000;
	int connection = tcp_to(place(arguments[0], atoi(arguments[1])), NULL);
	struct timeval second = { .tv_sec = 1 };

	/* So that it can be stopped while an answer is not coming. */
	setsockopt(connection, SOL_SOCKET, SO_RCVTIMEO, &second, sizeof(second));
	if (pause)
		hurry();
	ready(now());
	while (!stopped) {
		uint64_t begin = now(), *sample;
		ssize_t answer;

		if (send(connection, block, 1, MSG_NOSIGNAL) != 1)
			fail("send");
		while ((answer = recv(connection, block, 1, 0)) < 0 && !stopped)
			;
		if (answer < 0)
			break;
		sample = keep();
		sample[0] = begin;
		sample[1] = now() - begin;
		if (pause)
			sleep_until(now() + pause);
	}
	print_kept(2);
}

static void send_udp(char **arguments)
{
	struct sockaddr_in where = place(arguments[0], atoi(arguments[1]));
	size_t size = arguments[3] ? atoi(arguments[3]) : UDP_PAYLOAD;
	int segment = arguments[3] && arguments[4] ? atoi(arguments[4]) : 0;
	uint64_t wire = size + UDP_HEADERS * (segment ? (size + segment - 1) / segment : 1);
	struct iovec payload = { block, size };
	struct mmsghdr messages[UDP_BATCH] = {};
	uint64_t rate = strtoull(arguments[2], NULL, 10), begin = now(), sent = 0;
	int sender = check(socket(AF_INET, SOCK_DGRAM, 0), "socket");

	for (int index = 0; index < UDP_BATCH; index++) {
		messages[index].msg_hdr.msg_iov = &payload;
		messages[index].msg_hdr.msg_iovlen = 1;
	}
	if (segment)
		check(setsockopt(sender, SOL_UDP, UDP_SEGMENT, &segment, sizeof(segment)), "UDP_SEGMENT");
	check(connect(sender, (struct sockaddr *)&where, sizeof(where)), "connect");
	ready(begin);
	while (!stopped) {
		uint64_t due = (now() - begin) / 1000 * rate / 1000000 / wire;

		/* A failed call sends nothing; it counts as sent, or a full queue would be asked without pause. */
		while (sent < due && !stopped) {
			int batch = due - sent < UDP_BATCH ? due - sent : UDP_BATCH;

			sendmmsg(sender, messages, batch, 0);
			sent += batch;
		}
		sleep_until(now() + MILLISECOND / 2);
	}
}

int main(int count_of_arguments, char **arguments)
{
	static const struct program programs[] = {
		{ "tcp", 4, send_tcp }, { "ping", 3, ping }, { "udp", 3, send_udp }, {}
	};

	return run_program(programs, count_of_arguments, arguments);
}
