/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Whether the program may look into the kernel's memory, where no helper says what it has to know. */
#ifndef LIMITER_KERNEL_MEMORY_H
#define LIMITER_KERNEL_MEMORY_H

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

/* False where the kernel forbids it (lockdown=confidentiality): then it is not tried. In a section of its own, set by name. */
const volatile bool kernel_memory SEC(".rodata.memory") = true;
#endif
