// SPDX-License-Identifier: GPL-2.0-or-later
/*
 *   sink ADDRESS PORT          swallows TCP and UDP
 *   echo ADDRESS PORT HURRY    sends TCP back; HURRY 1: before anything else on its CPU
 *   count DEVICE PAUSE         every PAUSE milliseconds, what a device of this namespace received; lines: time bytes packets
 */
#include "traffic.h"

static int listen_at(const char *address, int port)
{
	struct sockaddr_in where = place(address, port);
	int one = 1, listener = check(socket(AF_INET, SOCK_STREAM, 0), "socket");

	check(setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)), "SO_REUSEADDR");
	check(bind(listener, (struct sockaddr *)&where, sizeof(where)), "bind");
	check(listen(listener, 1024), "listen");
	return listener;
}

/* Accepts, and gives what comes on each connection to `take`, which says whether the connection goes on. */
static void serve(int listener, bool (*take)(int connection))
{
	int one = 1, poll = check(epoll_create1(0), "epoll_create1");
	struct epoll_event events[MAX_EVENTS];

	watch(poll, listener, EPOLLIN);
	ready(now());
	while (!stopped) {
		int count = epoll_wait(poll, events, MAX_EVENTS, -1);

		for (int index = 0; index < count; index++) {
			int descriptor = events[index].data.fd;

			if (descriptor == listener) {
				descriptor = check(accept(listener, NULL, NULL), "accept");
				setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
				watch(poll, descriptor, EPOLLIN);
			} else if (!take(descriptor)) {
				end_connection(poll, descriptor);
			}
		}
	}
}

/* MSG_TRUNC: taken from the queue, not copied. */
static bool swallow(int connection)
{
	return recv(connection, NULL, 1 << 20, MSG_TRUNC) > 0;
}

static bool send_back(int connection)
{
	ssize_t length = recv(connection, block, BLOCK, 0);

	return length > 0 && send(connection, block, length, MSG_NOSIGNAL) == length;
}

static void sink(char **arguments)
{
	struct sockaddr_in where = place(arguments[0], atoi(arguments[1]));
	int udp = check(socket(AF_INET, SOCK_DGRAM, 0), "socket");

	/* Never read: what its buffer cannot take is thrown away after it crossed the device, where it is counted. */
	check(bind(udp, (struct sockaddr *)&where, sizeof(where)), "bind");
	serve(listen_at(arguments[0], atoi(arguments[1])), swallow);
}

static void echo(char **arguments)
{
	if (atoi(arguments[2]))
		hurry();
	serve(listen_at(arguments[0], atoi(arguments[1])), send_back);
}

static void count(char **arguments)
{
	uint64_t next = now(), pause = strtoull(arguments[1], NULL, 10) * MILLISECOND;

	hurry();
	ready(next);
	while (!stopped) {
		unsigned long long bytes = 0, packets = 0;
		uint64_t before, after;
		char line[512];
		FILE *file;

		do {
			before = now();
			file = fopen("/proc/thread-self/net/dev", "r");
			if (!file)
				fail("/proc/thread-self/net/dev");
			while (fgets(line, sizeof(line), file)) {
				char *colon = strchr(line, ':'), *name = line + strspn(line, " ");

				if (colon && !strncmp(name, arguments[0], colon - name) && !arguments[0][colon - name])
					sscanf(colon + 1, "%llu %llu", &bytes, &packets);
			}
			fclose(file);
			after = now();
		} while (after - before > pause / 10 && !stopped);
		uint64_t *sample = keep();
		sample[0] = after;
		sample[1] = bytes;
		sample[2] = packets;
		next += pause;
		sleep_until(next);
	}
	print_kept(3);
}

int main(int count_of_arguments, char **arguments)
{
	static const struct program programs[] = {
		{ "sink", 2, sink }, { "echo", 3, echo }, { "count", 2, count }, {}
	};

	return run_program(programs, count_of_arguments, arguments);
}
