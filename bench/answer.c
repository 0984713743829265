// SPDX-License-Identifier: GPL-2.0-or-later
/*
 *   ADDRESS PORT HURRY      answers requests (request.h), each with as many bytes as it asks for, and closes when told so
 *                           or when the other end does; HURRY 1: before anything else on its CPU
 */
#include "traffic.h"

#include "request.h"

/* By descriptor: bytes still to be sent, and whether the connection ends with them. */
static struct {
	uint64_t left;
	bool last;
} answers[MAX_DESCRIPTORS];

static void accept_all(int poll, int listener)
{
	int one = 1, connection;

	while ((connection = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
		if (connection >= MAX_DESCRIPTORS) {
			close(connection);
			continue;
		}
		setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		answers[connection].left = 0;
		answers[connection].last = false;
		watch(poll, connection, EPOLLIN);
	}
}

/* Whether the connection goes on. */
static bool send_left(int poll, int connection)
{
	struct epoll_event event = { .events = EPOLLIN, .data.fd = connection };

	while (answers[connection].left) {
		uint64_t left = answers[connection].left;
		ssize_t sent = send(connection, block, left < BLOCK ? left : BLOCK, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (sent < 0 && errno != EAGAIN)
			return false;
		if (sent < 0) {
			event.events = EPOLLOUT;
			break;
		}
		answers[connection].left -= sent;
	}
	check(epoll_ctl(poll, EPOLL_CTL_MOD, connection, &event), "epoll_ctl");
	return answers[connection].left || !answers[connection].last;
}

/* Requests are so small that each comes whole. */
static bool answer_one(int poll, int connection)
{
	struct request request;

	if (!answers[connection].left) {
		if (recv(connection, &request, sizeof(request), MSG_DONTWAIT) != sizeof(request))
			return false;
		answers[connection].left = request.bytes;
		answers[connection].last = request.last;
	}
	return send_left(poll, connection);
}

static void answer(char **arguments)
{
	struct sockaddr_in where = place(arguments[0], atoi(arguments[1]));
	int one = 1, listener = check(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), "socket");
	int poll = check(epoll_create1(0), "epoll_create1");
	struct epoll_event events[MAX_EVENTS];

	if (atoi(arguments[2]))
		hurry();
	check(setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)), "SO_REUSEADDR");
	check(bind(listener, (struct sockaddr *)&where, sizeof(where)), "bind");
	check(listen(listener, MAX_DESCRIPTORS), "listen");
	watch(poll, listener, EPOLLIN);
	ready(now());
	while (!stopped) {
		int count = epoll_wait(poll, events, MAX_EVENTS, -1);

		for (int index = 0; index < count; index++) {
			int descriptor = events[index].data.fd;

			if (descriptor == listener)
				accept_all(poll, listener);
			else if (!answer_one(poll, descriptor))
				end_connection(poll, descriptor);
		}
	}
}

int main(int count_of_arguments, char **arguments)
{
	static const struct program programs[] = { { "requests", 3, answer }, {} };

	return run_program(programs, count_of_arguments, arguments);
}
