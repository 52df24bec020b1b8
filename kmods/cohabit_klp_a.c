// SPDX-License-Identifier: GPL-2.0-only
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt
#define COHABIT_KLP_BODY	"livepatch-a"
#define COHABIT_KLP_TAG		(COHABIT_TAG_LIVEPATCH + 0)
#include "livepatch.c"
