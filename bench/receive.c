// SPDX-License-Identifier: GPL-2.0-or-later
/*
 *   receive ADDRESS PORT   swallows TCP and UDP on PORT, sends back what comes to PORT + 1
 *   count DEVICE           every 10 ms, what a device of this namespace received; lines: time bytes packets
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

static void receive(char **arguments)
{
	static bool echoes[MAX_DESCRIPTORS];
	struct sockaddr_in where = place(arguments[0], atoi(arguments[1]));
	int one = 1, poll = check(epoll_create1(0), "epoll_create1"),
	    udp = check(socket(AF_INET, SOCK_DGRAM, 0), "socket");
	int sink = listen_at(arguments[0], atoi(arguments[1])), echo = listen_at(arguments[0], atoi(arguments[1]) + 1);
	struct epoll_event events[MAX_EVENTS];

	/* Never read: what its buffer cannot take is thrown away after it crossed the device, where it is counted. */
	check(bind(udp, (struct sockaddr *)&where, sizeof(where)), "bind");
	watch(poll, sink, EPOLLIN);
	watch(poll, echo, EPOLLIN);
	ready(now());
	while (!stopped) {
		int count = epoll_wait(poll, events, MAX_EVENTS, -1);

		for (int index = 0; index < count; index++) {
			int descriptor = events[index].data.fd;
			ssize_t length;

			if (descriptor == sink || descriptor == echo) {
				int accepted = check(accept(descriptor, NULL, NULL), "accept");

				watch(poll, accepted, EPOLLIN);
				echoes[accepted] = descriptor == echo;
				setsockopt(accepted, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
				continue;
			}
			/* MSG_TRUNC: taken from the queue, not copied. */
			length = echoes[descriptor] ? recv(descriptor, block, BLOCK, 0)
						    : recv(descriptor, NULL, 1 << 20, MSG_TRUNC);
			if (length > 0 && echoes[descriptor])
				length = send(descriptor, block, length, MSG_NOSIGNAL);
			if (length <= 0)
				close(descriptor);
		}
	}
}

static void count(char **arguments)
{
	struct sched_param lowest = { .sched_priority = 1 };
	uint64_t next = now();

	/* So that a busy machine does not move the samples; where that is not allowed, the time stamps still hold. */
	sched_setscheduler(0, SCHED_FIFO, &lowest);
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
		} while (after - before > MILLISECOND && !stopped);
		uint64_t *sample = keep();
		sample[0] = after;
		sample[1] = bytes;
		sample[2] = packets;
		next += 10 * MILLISECOND;
		sleep_until(next);
	}
	print_kept(3);
}

int main(int count_of_arguments, char **arguments)
{
	static const struct program programs[] = { { "receive", 2, receive }, { "count", 1, count }, {} };

	return run_program(programs, count_of_arguments, arguments);
}
