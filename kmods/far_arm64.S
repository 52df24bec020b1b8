/* SPDX-License-Identifier: GPL-2.0-only */
/* The trampolines of cohabit_far.ko. See far.c. */
#define COHABIT_TRAMP(nr)	cohabit_far_tramp_##nr
#define COHABIT_TRAMP_NUMBER(nr)	16+nr

#include "direct_arm64.S"
