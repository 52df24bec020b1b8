/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The BPF attachers: fentry, fexit and fmod_ret programs that count calls of
 * the caller under test and record what they saw.
 *
 * The agent appends one FENTRY(), FEXIT() or FMOD_RET() line for each program
 * and compiles the whole text once a VM. A program's symbol is its own, so that
 * two programs can be loaded for one function; which function a program is for
 * is said when it is loaded.
 */

#define MAX_ARGS 8

struct seen {
	u64 hits;		/* calls by the caller under test */
	u64 others;		/* calls by anybody else */
	u64 args[MAX_ARGS];	/* of the caller's last call */
	u64 ret;		/* return value: fexit only */
};

BPF_ARRAY(seen, struct seen, NR_PROGS);
/* The thread group of the caller under test. */
BPF_ARRAY(caller, u32, 1);

static __always_inline struct seen *hit(u32 index)
{
	u32 zero = 0;
	u32 *tgid = caller.lookup(&zero);
	struct seen *s = seen.lookup(&index);

	if (!tgid || !s)
		return NULL;
	if ((u32)(bpf_get_current_pid_tgid() >> 32) != *tgid) {
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

#define FENTRY(sym, index, nr)						\
int sym(unsigned long long *ctx)					\
{									\
	struct seen *s = hit(index);					\
									\
	if (s)								\
		RECORD_ARGS(s, ctx, nr);				\
	return 0;							\
}

#define FEXIT(sym, index, nr)						\
int sym(unsigned long long *ctx)					\
{									\
	struct seen *s = hit(index);					\
									\
	if (s) {							\
		RECORD_ARGS(s, ctx, nr);				\
		s->ret = ctx[nr];					\
	}								\
	return 0;							\
}

/* Only the caller under test gets the error; everybody else the real function. */
#define FMOD_RET(sym, index, nr, error)					\
int sym(unsigned long long *ctx)					\
{									\
	struct seen *s = hit(index);					\
									\
	if (!s)								\
		return 0;						\
	RECORD_ARGS(s, ctx, nr);					\
	return error;							\
}
