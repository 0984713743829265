// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * One bulk connection that tries to get more than its share, by what any user may do:
 *   keys ADDRESS PORT       so many TCP_MD5SIG keys, for addresses that it never talks to, that its socket has no room for
 *                           anything of BPF's
 *   pacing ADDRESS PORT     takes its pacing rate back to infinity every 0.2 ms
 *   tiny ADDRESS PORT       segments of one byte
 *   small ADDRESS PORT      the smallest segments that can be agreed on: the other end answers with a flood of ACKs
 */
#include "traffic.h"

#include <limits.h>

#define KEYS_MOST 100000
#define SMALLEST_SEGMENT 88
#define PAUSE (MILLISECOND / 5)

static int socket_of(struct sockaddr_in *where, char **arguments)
{
	struct linger at_once = { .l_onoff = 1, .l_linger = 0 };
	int connection = check(socket(AF_INET, SOCK_STREAM, 0), "socket");

	*where = place(arguments[0], atoi(arguments[1]));
	check(setsockopt(connection, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once)), "SO_LINGER");
	return connection;
}

static void connect_to(int connection, const struct sockaddr_in *where)
{
	ready(now());
	check(connect(connection, (const struct sockaddr *)where, sizeof(*where)), "connect");
}

/* Until it is stopped; `size` bytes with each call. */
static void send_all(int connection, size_t size)
{
	while (!stopped)
		if (send(connection, block, size, MSG_NOSIGNAL) < 0 && errno != EINTR)
			fail("send");
}

static void keys(char **arguments)
{
	struct sockaddr_in where, other = { .sin_family = AF_INET };
	struct tcp_md5sig key = { .tcpm_keylen = 1 };
	int connection = socket_of(&where, arguments);

	for (int index = 0; index < KEYS_MOST; index++) {
		other.sin_addr.s_addr = htonl(0x7f000001 + index);
		memcpy(&key.tcpm_addr, &other, sizeof(other));
		if (setsockopt(connection, IPPROTO_TCP, TCP_MD5SIG, &key, sizeof(key)) < 0) {
			if (errno != ENOMEM)
				fail("TCP_MD5SIG");
			break;
		}
	}
	connect_to(connection, &where);
	send_all(connection, BLOCK);
}

static void pacing(char **arguments)
{
	unsigned long infinity = ULONG_MAX;
	struct sockaddr_in where;
	int connection = socket_of(&where, arguments);

	connect_to(connection, &where);
	while (!stopped) {
		setsockopt(connection, SOL_SOCKET, SO_MAX_PACING_RATE, &infinity, sizeof(infinity));
		send(connection, block, BLOCK, MSG_NOSIGNAL | MSG_DONTWAIT);
		sleep_until(now() + PAUSE);
	}
}

static void tiny(char **arguments)
{
	int one = 1, room = 1 << 20;
	struct sockaddr_in where;
	int connection = socket_of(&where, arguments);

	setsockopt(connection, SOL_SOCKET, SO_SNDBUF, &room, sizeof(room));
	check(setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)), "TCP_NODELAY");
	connect_to(connection, &where);
	while (!stopped)
		/* MSG_EOR: what is queued is not put into one segment with what comes after it. */
		if (send(connection, block, 1, MSG_NOSIGNAL | MSG_EOR) < 0 && errno != EINTR)
			fail("send");
}

static void small(char **arguments)
{
	int size = SMALLEST_SEGMENT;
	struct sockaddr_in where;
	int connection = socket_of(&where, arguments);

	check(setsockopt(connection, IPPROTO_TCP, TCP_MAXSEG, &size, sizeof(size)), "TCP_MAXSEG");
	connect_to(connection, &where);
	send_all(connection, BLOCK);
}

int main(int count_of_arguments, char **arguments)
{
	static const struct program programs[] = {
		{ "keys", 2, keys }, { "pacing", 2, pacing }, { "tiny", 2, tiny }, { "small", 2, small }, {}
	};

	return run_program(programs, count_of_arguments, arguments);
}
