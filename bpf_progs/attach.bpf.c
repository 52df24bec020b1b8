/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The BPF attachers: fentry, fexit, fmod_ret and kprobe-multi programs that
 * count calls of the caller under test and record what they saw.
 *
 * The agent appends one FENTRY(), FEXIT(), ... line for each kind and number of
 * arguments, compiles the whole text once a VM, and loads the results itself,
 * any number of times: the three numbers below are in the instructions as they
 * are here, and are replaced before each load.
 */

#define MAX_ARGS 10

#define TGID	0x5eed0000	/* the thread group of the caller under test */
#define INDEX	0x5eed0001	/* of the program's element in "seen" */
#define RETURNS	0x5eed0002	/* FMOD_RET: the value; FMOD_RET_TAG: the tag */

struct seen {
	u64 hits;		/* calls by the caller under test */
	u64 others;		/* calls by anybody else */
	u64 args[MAX_ARGS];	/* of the caller's last call */
	u64 ret;		/* return value: fexit only */
};

/* The agent maps it: reading and clearing all of it costs no system call. */
BPF_F_TABLE("array", u32, struct seen, seen, NR_SEEN, BPF_F_MMAPABLE);

static __always_inline struct seen *hit(u32 index)
{
	struct seen *s = seen.lookup(&index);

	if (!s)
		return NULL;
	if ((u32)(bpf_get_current_pid_tgid() >> 32) != TGID) {
		__sync_fetch_and_add(&s->others, 1);
		return NULL;
	}
	__sync_fetch_and_add(&s->hits, 1);
	return s;
}

/*
 * The verifier lets a program read no more than the arguments its function
 * has, hence the constant loop bound (kernel/bpf/btf.c: btf_ctx_access).
 */
#define RECORD_ARGS(s, ctx, nr)						\
	do {								\
		_Pragma("unroll")					\
		for (int i = 0; i < (nr); i++)				\
			(s)->args[i] = (ctx)[i];			\
	} while (0)

#define FENTRY(sym, nr)							\
int sym(unsigned long long *ctx)					\
{									\
	struct seen *s = hit(INDEX);					\
									\
	if (s)								\
		RECORD_ARGS(s, ctx, nr);				\
	return 0;							\
}

#define FEXIT(sym, nr)							\
int sym(unsigned long long *ctx)					\
{									\
	struct seen *s = hit(INDEX);					\
									\
	if (s) {							\
		RECORD_ARGS(s, ctx, nr);				\
		s->ret = ctx[nr];					\
	}								\
	return 0;							\
}

/* Only the caller under test gets the value; everybody else the real function. */
#define FMOD_RET(sym, nr)						\
int sym(unsigned long long *ctx)					\
{									\
	struct seen *s = hit(INDEX);					\
									\
	if (!s)								\
		return 0;						\
	RECORD_ARGS(s, ctx, nr);					\
	return RETURNS;							\
}

/* As a test function does: the tag, and the checksum of the arguments. */
#define FMOD_RET_TAG(sym, nr)						\
unsigned long long sym(unsigned long long *ctx)				\
{									\
	struct seen *s = hit(INDEX);					\
	u64 sum = 0;							\
									\
	if (!s)								\
		return 0;						\
	RECORD_ARGS(s, ctx, nr);					\
	_Pragma("unroll")						\
	for (int i = 0; i < (nr); i++)					\
		sum += (i + 1) * ctx[i];				\
	return (u64)RETURNS << 32 | (sum & 0xffffffff);			\
}

/*
 * One link covers many functions: which one it is comes with the call. That
 * helper is newer than what some of the kernels' headers know. The places are
 * those of the argument registers in struct pt_regs, in units of 8 bytes.
 */
static u64 (*attach_cookie)(void *ctx) = (void *)174;

#ifdef __x86_64__
#define REG_ARGS	{ 14, 13, 12, 11, 9, 8 }
#else
#define REG_ARGS	{ 0, 1, 2, 3, 4, 5, 6, 7 }
#endif

#define KPROBE_MULTI(sym)						\
int sym(unsigned long long *ctx)					\
{									\
	const int places[] = REG_ARGS;					\
	struct seen *s = hit(attach_cookie(ctx));			\
									\
	if (!s)								\
		return 0;						\
	_Pragma("unroll")						\
	for (int i = 0; i < (int)(sizeof(places) / sizeof(*places)); i++) \
		s->args[i] = ctx[places[i]];				\
	return 0;							\
}
