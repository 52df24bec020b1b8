// SPDX-License-Identifier: GPL-2.0-only
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt
#define COHABIT_KLP_BODY	"livepatch-b"
#define COHABIT_KLP_TAG		(COHABIT_TAG_LIVEPATCH + 1)
#include "livepatch.c"
