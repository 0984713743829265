/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What ask.c asks of answer.c, in the byte order of the machine that both run on. */
#ifndef BENCH_REQUEST_H
#define BENCH_REQUEST_H

#include <stdint.h>

struct request {
	uint32_t bytes; /* of the answer */
	uint32_t last;  /* 1: the answering end closes the connection after it */
};
#endif
