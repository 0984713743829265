// SPDX-License-Identifier: GPL-2.0-or-later
/*
 *   closed ADDRESS PORT HURRY WORKERS BYTES KEPT [COUNT]
 *                           each worker asks answer.c for BYTES, and again as soon as it has them: on one connection
 *                           (KEPT 1) or on a new one each time (KEPT 0); until COUNT answers have come in all.
 *   open ADDRESS PORT HURRY RATE SEND BYTES
 *                           RATE new connections a second, whatever becomes of those before: each sends SEND bytes of
 *                           nothing, or asks answer.c for BYTES, and closes.
 *   calm ADDRESS PORT HURRY PAUSE BYTES
 *                           asks answer.c for BYTES on one connection, PAUSE microseconds between an answer and the next
 * HURRY 1: before anything else on its CPU. Lines, one for each answer or connection: when it began, how long it took, its
 * worker, and 1 if it failed, 2 if it had not ended at the end of all.
 */
#include "traffic.h"

#include <sys/resource.h>

#include "request.h"

/* By descriptor. */
static struct visit {
	uint64_t begin;
	uint32_t left; /* of the answer */
	int worker;
	bool connected, waits;
} visits[MAX_DESCRIPTORS];

static struct sockaddr_in where;
static uint32_t bytes, sending; /* of an answer; to be sent without one */
static bool kept_connections;
static int poll_descriptor;
static uint64_t started, finished, wanted = UINT64_MAX;

static void record(const struct visit *visit, int failed)
{
	uint64_t *line = keep();

	line[0] = visit->begin;
	line[1] = now() - visit->begin;
	line[2] = visit->worker;
	line[3] = failed;
	finished++;
}

static void begin_connection(int worker)
{
	int one = 1, connection = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);

	if (connection < 0 && errno == EMFILE)
		return;
	check(connection, "socket");
	check(setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)), "TCP_NODELAY");
	visits[connection] = (struct visit){ .begin = now(), .worker = worker, .waits = true };
	started++;
	if (connect(connection, (struct sockaddr *)&where, sizeof(where)) < 0 && errno != EINPROGRESS)
		fail("connect");
	watch(poll_descriptor, connection, EPOLLOUT);
}

static void ask(int connection)
{
	struct request request = { .bytes = bytes, .last = !kept_connections };

	visits[connection].left = bytes;
	send(connection, &request, sizeof(request), MSG_NOSIGNAL);
}

/* Whether there is anything to wait for on it. */
static bool connected(int connection)
{
	struct epoll_event event = { .events = EPOLLIN, .data.fd = connection };
	int error = 0;
	socklen_t length = sizeof(error);

	visits[connection].connected = true;
	check(getsockopt(connection, SOL_SOCKET, SO_ERROR, &error, &length), "SO_ERROR");
	if (error || !bytes) {
		if (!error && sending)
			send(connection, block, sending, MSG_NOSIGNAL);
		record(&visits[connection], error != 0);
		return false;
	}
	ask(connection);
	check(epoll_ctl(poll_descriptor, EPOLL_CTL_MOD, connection, &event), "epoll_ctl");
	return true;
}

/* Whether the connection goes on. MSG_TRUNC: taken from the queue, not copied. */
static bool take(int connection)
{
	struct visit *visit = &visits[connection];
	ssize_t length = recv(connection, NULL, 1 << 20, MSG_TRUNC | MSG_DONTWAIT);

	if (length < 0 && errno == EAGAIN)
		return true;
	if (length <= 0) {
		record(visit, 1);
		return false;
	}
	visit->left -= length < visit->left ? length : visit->left;
	if (visit->left)
		return true;
	record(visit, 0);
	if (!kept_connections || started >= wanted)
		return false;
	visit->begin = now();
	started++;
	ask(connection);
	return true;
}

/* What came of `event`; whether its connection ended. */
static bool ended(const struct epoll_event *event)
{
	int connection = event->data.fd;

	if (visits[connection].connected ? take(connection) : connected(connection))
		return false;
	visits[connection].waits = false;
	end_connection(poll_descriptor, connection);
	return true;
}

static void print_all(void)
{
	for (int connection = 0; connection < MAX_DESCRIPTORS; connection++)
		if (visits[connection].waits)
			record(&visits[connection], 2);
	print_kept(4);
}

static void prepare(char **arguments)
{
	struct rlimit descriptors = { MAX_DESCRIPTORS, MAX_DESCRIPTORS };

	setrlimit(RLIMIT_NOFILE, &descriptors);
	where = place(arguments[0], atoi(arguments[1]));
	poll_descriptor = check(epoll_create1(0), "epoll_create1");
	if (atoi(arguments[2]))
		hurry();
	ready(now());
}

static void closed_loop(char **arguments)
{
	struct epoll_event events[MAX_EVENTS];
	int workers = atoi(arguments[3]);

	bytes = atoi(arguments[4]);
	kept_connections = atoi(arguments[5]);
	if (arguments[6])
		wanted = strtoull(arguments[6], NULL, 10);
	prepare(arguments);
	for (int worker = 0; worker < workers && started < wanted; worker++)
		begin_connection(worker);
	while (!stopped && finished < wanted) {
		int count = epoll_wait(poll_descriptor, events, MAX_EVENTS, -1);

		for (int index = 0; index < count; index++) {
			int worker = visits[events[index].data.fd].worker;

			if (ended(&events[index]) && started < wanted && !stopped)
				begin_connection(worker);
		}
	}
	print_all();
}

static void open_loop(char **arguments)
{
	struct epoll_event events[MAX_EVENTS];
	uint64_t rate = strtoull(arguments[3], NULL, 10), begin = now(), due = 0;

	sending = atoi(arguments[4]);
	bytes = atoi(arguments[5]);
	prepare(arguments);
	while (!stopped) {
		int count = epoll_wait(poll_descriptor, events, MAX_EVENTS, 1);

		for (int index = 0; index < count; index++)
			ended(&events[index]);
		/* Those for which there is no descriptor are not made later. */
		for (uint64_t now_due = (now() - begin) / 1000 * rate / 1000000; due < now_due; due++)
			begin_connection(0);
	}
	print_all();
}

static void calm(char **arguments)
{
	uint64_t pause = strtoull(arguments[3], NULL, 10) * 1000;
	struct timeval second = { .tv_sec = 1 };
	struct visit *visit;
	int connection;

	bytes = atoi(arguments[4]);
	kept_connections = true;
	prepare(arguments);
	connection = check(socket(AF_INET, SOCK_STREAM, 0), "socket");
	/* So that it can be stopped while an answer is not coming. */
	setsockopt(connection, SOL_SOCKET, SO_RCVTIMEO, &second, sizeof(second));
	check(connect(connection, (struct sockaddr *)&where, sizeof(where)), "connect");
	visit = &visits[connection];
	while (!stopped) {
		visit->begin = now();
		ask(connection);
		while (visit->left && !stopped) {
			ssize_t length = recv(connection, NULL, visit->left, MSG_TRUNC);

			if (!length)
				fail("closed");
			if (length > 0)
				visit->left -= length;
		}
		record(visit, visit->left ? 2 : 0);
		sleep_until(now() + pause);
	}
	print_kept(4);
}

int main(int count_of_arguments, char **arguments)
{
	static const struct program programs[] = {
		{ "closed", 6, closed_loop }, { "open", 6, open_loop }, { "calm", 5, calm }, {}
	};

	return run_program(programs, count_of_arguments, arguments);
}
