// SPDX-License-Identifier: GPL-2.0-only
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt
#define COHABIT_KLP_BODY	"livepatch-c"
#define COHABIT_KLP_TAG		(COHABIT_TAG_LIVEPATCH + 2)
#include "livepatch.c"
