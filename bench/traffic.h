/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the programs of receive.c and send.c share. Each says "ready" and the time before its first packet, works until SIGTERM,
 * and only then prints what it recorded, so that recording disturbs nothing. Times are CLOCK_MONOTONIC in nanoseconds.
 */
#ifndef BENCH_TRAFFIC_H
#define BENCH_TRAFFIC_H

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define NANOSECONDS 1000000000ULL
#define MILLISECOND 1000000ULL
#define BLOCK 65536
#define MAX_DESCRIPTORS 4096
#define MAX_EVENTS 64

static volatile sig_atomic_t stopped;
static char block[BLOCK];

static void stop(int signal)
{
	(void)signal;
	stopped = 1;
}

static void fail(const char *what)
{
	fprintf(stderr, "traffic: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int check(int result, const char *what)
{
	if (result < 0)
		fail(what);
	return result;
}

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * NANOSECONDS + time.tv_nsec;
}

static void sleep_until(uint64_t when)
{
	struct timespec time = { .tv_sec = when / NANOSECONDS, .tv_nsec = when % NANOSECONDS };

	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL);
}

/* Before other programs: what they do on a busy machine is not measured. Where that is not allowed, it is. */
static inline void hurry(void)
{
	struct sched_param lowest = { .sched_priority = 1 };

	sched_setscheduler(0, SCHED_FIFO, &lowest);
}

static void ready(uint64_t since)
{
	printf("ready %llu\n", (unsigned long long)since);
	fflush(stdout);
}

/* What is printed at the end: lines kept in memory. */
static struct {
	uint64_t (*line)[8];
	size_t count, room;
} kept;

static uint64_t *keep(void)
{
	if (kept.count == kept.room) {
		kept.room = kept.room ? 2 * kept.room : 65536;
		kept.line = realloc(kept.line, kept.room * sizeof(*kept.line));
		if (!kept.line)
			fail("memory");
	}
	return kept.line[kept.count++];
}

static void print_kept(int columns)
{
	for (size_t index = 0; index < kept.count; index++)
		for (int column = 0; column < columns; column++)
			printf("%llu%c", (unsigned long long)kept.line[index][column],
			       column + 1 < columns ? ' ' : '\n');
}

static struct sockaddr_in place(const char *address, int port)
{
	struct sockaddr_in where = { .sin_family = AF_INET, .sin_port = htons(port) };

	if (inet_pton(AF_INET, address, &where.sin_addr) != 1)
		fail(address);
	return where;
}

static void watch(int poll, int descriptor, uint32_t events)
{
	struct epoll_event event = { .events = events, .data.fd = descriptor };

	if (descriptor >= MAX_DESCRIPTORS) {
		errno = EMFILE;
		fail("descriptors");
	}
	check(epoll_ctl(poll, EPOLL_CTL_ADD, descriptor, &event), "epoll_ctl");
}

/* Where another process has borrowed the socket (pidfd_getfd), closing it alone would not end its events. */
static inline void end_connection(int poll, int connection)
{
	epoll_ctl(poll, EPOLL_CTL_DEL, connection, NULL);
	close(connection);
}

struct program {
	const char *name;
	int arguments; /* that it needs */
	void (*run)(char **arguments);
};

/* Runs the one of `programs`, which end with an empty one, that is named by the first argument. */
static int run_program(const struct program *programs, int count, char **arguments)
{
	struct sigaction action = { .sa_handler = stop };

	sigaction(SIGTERM, &action, NULL);
	/* Nothing outlives a benchmark that was killed. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (; programs->name; programs++)
		if (count > 1 && !strcmp(arguments[1], programs->name) && count - 2 >= programs->arguments) {
			programs->run(arguments + 2);
			return 0;
		}
	fprintf(stderr, "%s: the head of its source says how it is used\n", arguments[0]);
	return 2;
}
#endif
