# SPDX-License-Identifier: GPL-2.0-only
"""Rules about who is refused, and about what no user should do."""

from __future__ import annotations

import errno

from harness.errno_names import ENOTSUPP

from .rule import (
    ARM64,
    ARM64_DIRECT,
    FTRACE,
    TRAMPOLINE,
    X86,
    Rule,
)

# --- who is refused ---------------------------------------------------------------------------

ONE_IPMODIFY = Rule(
    "one-ipmodify",
    FTRACE + "__ftrace_hash_update_ipmodify",
    "A function has at most one ftrace_ops with IPMODIFY; its livepatches share one.",
    ("livepatch+ipmodify/*", "ipmodify+ipmodify/*", "*/many/ipmodify-on:*"),
    errno.EBUSY,
)
SELF_MUST_AGREE = Rule(
    "self-must-agree",
    FTRACE + "__ftrace_hash_update_ipmodify (FTRACE_OPS_CMD_ENABLE_SHARE_IPMODIFY_SELF)",
    "A direct call comes to a function with an IPMODIFY ops only if it has an ops_func that "
    "agrees.",
    ("livepatch+direct/attach:ab/*", "direct+ipmodify/attach:ba/*", "direct-refuse+*/last"),
    errno.EBUSY,
    since=(6, 0),
    arm64=ARM64_DIRECT,
    needs="direct_calls",
)
PEER_MUST_AGREE = Rule(
    "peer-must-agree",
    FTRACE + "prepare_direct_functions_for_ipmodify",
    "An IPMODIFY ops comes to a function with a direct call only if that one's ops_func agrees.",
    ("livepatch+direct/attach:ba/*", "direct+ipmodify/attach:ab/*", "direct-refuse+*/first"),
    errno.EBUSY,
    since=(6, 0),
    arm64=ARM64_DIRECT,
    needs="direct_calls",
)
REFUSAL_IS_VERBATIM = Rule(
    "refusal-is-verbatim",
    FTRACE + "__ftrace_hash_update_ipmodify, prepare_direct_functions_for_ipmodify",
    "What an ops_func answers is what the attach gives.",
    ("direct-refuse+livepatch/*", "direct-refuse+ipmodify/*"),
    since=(6, 0),
    arm64=ARM64_DIRECT,
    needs="direct_calls",
)
PEERS_ASKED_AT_REGISTRATION = Rule(
    "peers-asked-at-registration",
    FTRACE + "register_ftrace_function, ftrace_hash_move_and_update_ops",
    "Direct calls are asked when an IPMODIFY ops is registered, not when one that is registered "
    "gets another function (docs/findings/filter-skips-direct.md).",
    ("kprobe-post/second-skips-direct",),
    since=(6, 0),
    arches=X86,
    differs="arm64's kprobes are breakpoints, and no other IPMODIFY ops gets a second function.",
)
ONE_DIRECT = Rule(
    "one-direct",
    FTRACE + "register_ftrace_direct, update_ftrace_direct_add",
    "A function has at most one direct call; all BPF programs of it share one trampoline.",
    ("direct+direct/*", "direct+fentry/*", "direct+fexit/*", "*/many/direct-on:*"),
    errno.EBUSY,
    # Before, direct calls were IPMODIFY, and one-ipmodify says the same.
    since=(6, 0),
    arm64=ARM64_DIRECT,
    needs="direct_calls",
    differs="A BPF trampoline that finds a direct call gives EINVAL on x86-64 from 7.0 on, "
    "where all of them share one ops and go through update_ftrace_direct_add. arm64 has "
    "an ops for each trampoline, and register_ftrace_direct gives EBUSY.",
)
PERMANENT_NEEDS_ENABLED = Rule(
    "permanent-needs-enabled",
    FTRACE + "__register_ftrace_function",
    "A PERMANENT ops is not registered while kernel.ftrace_enabled is 0.",
    ("livepatch/ftrace_enabled:attach-while-off",),
    errno.EBUSY,
    until=(7, 2),
)
PERMANENT_KEEPS_ENABLED = Rule(
    "permanent-keeps-enabled",
    FTRACE + "ftrace_enable_sysctl, is_permanent_ops_registered",
    "kernel.ftrace_enabled cannot be set to 0 while a PERMANENT ops is registered.",
    ("livepatch/ftrace_enabled:off-on",),
    errno.EBUSY,
    until=(7, 2),
)
DISABLING_DEPRECATED = Rule(
    "disabling-deprecated",
    FTRACE + "ftrace_enable_sysctl of 7.3",
    "kernel.ftrace_enabled cannot be set to 0 at all.",
    ("*/ftrace_enabled:*",),
    errno.EOPNOTSUPP,
    since=(7, 3),
)
DEAD = Rule(
    "dead-ftrace",
    FTRACE + "ftrace_kill, ftrace_startup, ftrace_set_addr, ftrace_enable_sysctl",
    "Once ftrace has shut itself down, nothing is attached any more.",
    ("misuse/kill-ftrace", "misuse/kill-ftrace/kprobe"),
    errno.ENODEV,
    differs="On arm64 kprobes need no ftrace: they still come, hit and go.",
)
NOT_MODIFIABLE = Rule(
    "fmod_ret-where",
    "kernel/bpf/verifier.c: check_attach_modify_return",
    "fmod_ret goes on error-injectable functions and on those called security_*.",
    ("fmod_ret/where-it-must-not-be",),
    errno.EINVAL,
)
TRAMPOLINE_ARGS = Rule(
    "trampoline-args",
    "arch/x86/net/bpf_jit_comp.c: arch_prepare_bpf_trampoline; arch/arm64/net/bpf_jit_comp.c: "
    "arch_bpf_trampoline_size",
    "A BPF trampoline is not made for a function with more arguments than it can pass on.",
    ("fentry/alone/on:cohabit_f10", "fexit/alone/on:cohabit_f10"),
    ENOTSUPP,
    until=(6, 5),
    arm64=(ARM64_DIRECT[0], (6, 15)),
    needs="direct_calls",
    differs="As many as go in registers: 6 on x86-64, 8 on arm64. The stack's came with 6.6 and, "
    "on arm64, with 6.16 (commit 9014cf56f13d); from then on it is 12 on both.",
)
TOO_MANY_PROGRAMS = Rule(
    "trampoline-links",
    TRAMPOLINE + "__bpf_trampoline_link_prog (BPF_MAX_TRAMP_LINKS)",
    "A function takes so many BPF programs and no more.",
    ("fentry/up-to-the-limit",),
    errno.E2BIG,
    arm64=ARM64_DIRECT,
    needs="direct_calls",
    differs="From 7.2 on a trampoline has to fit into a page, so the most is 36 on x86-64 and "
    "37 on arm64; 38 on both before (include/linux/bpf.h).",
)

DIRECT_NEEDS_CALL_OPS = Rule(
    "direct-needs-call-ops",
    "arch/arm64/Kconfig: HAVE_DYNAMIC_FTRACE_WITH_DIRECT_CALLS; include/linux/ftrace.h: "
    "register_ftrace_direct",
    "Without CALL_OPS (with CFI, or optimised for size by gcc) there are no direct calls: a module "
    "that asks for one is told so by a stub.",
    ("direct/alone*", "direct-share/alone*"),
    errno.ENODEV,
    until=(7, 2),
    arches=ARM64,
    needs="!direct_calls",
    differs="x86-64 has direct calls wherever ftrace is dynamic. On arm64 the way to a trampoline "
    "that is out of a branch's reach goes by the pointer before the function, CALL_OPS; 7.3 has a "
    "way without. Before 6.4 arm64 has none at all.",
)
BPF_NEEDS_DIRECT = Rule(
    "bpf-needs-direct",
    TRAMPOLINE + "register_fentry",
    "Where there are no direct calls, BPF puts no trampoline on a function that ftrace knows.",
    ("fentry/alone*", "fexit/alone*", "fmod_ret/alone*"),
    ENOTSUPP,
    until=(7, 2),
    arches=ARM64,
    needs="!direct_calls",
    differs="As direct-needs-call-ops; the errno is BPF's own.",
)

# --- what no user should do -------------------------------------------------------------------

UNKNOWN_DIRECT = Rule(
    "unknown-direct",
    FTRACE + "check_direct_multi, unregister_ftrace_direct, modify_ftrace_direct",
    "A direct ops that is not registered can be neither modified nor unregistered.",
    ("misuse/direct-unregister-unknown", "misuse/direct-modify-unknown"),
    errno.EINVAL,
    since=(5, 16),
    arm64=ARM64_DIRECT,
    needs="direct_calls",
    differs="Where arm64 has no direct calls, each of these is a stub that gives ENODEV.",
)
REGISTERED_ONCE = Rule(
    "registered-once",
    FTRACE + "register_ftrace_direct",
    "A direct ops that is registered is not registered again.",
    ("misuse/direct-register-twice",),
    errno.EINVAL,
    since=(5, 16),
    arm64=ARM64_DIRECT,
    needs="direct_calls",
    differs="Where arm64 has no direct calls, each of these is a stub that gives ENODEV.",
)
ENABLED_ONCE = Rule(
    "enabled-once",
    FTRACE + "__register_ftrace_function",
    "An ops that is registered is not registered again, and the kernel warns.",
    ("misuse/ops-register-twice",),
    errno.EBUSY,
)
FILTER_NEEDED = Rule(
    "filter-needed",
    FTRACE + "__ftrace_hash_update_ipmodify",
    "An IPMODIFY ops names its functions.",
    ("misuse/ipmodify-no-filter",),
    errno.EINVAL,
)
DIRECT_FILTER_NEEDED = Rule(
    "direct-filter-needed",
    FTRACE + "register_ftrace_direct",
    "A direct ops names its functions.",
    ("misuse/direct-no-filter",),
    errno.EINVAL,
    since=(5, 16),
    arm64=ARM64_DIRECT,
    needs="direct_calls",
    differs="Where arm64 has no direct calls, each of these is a stub that gives ENODEV.",
)
NO_NOTRACE = Rule(
    "no-notrace",
    FTRACE + "ftrace_hash_move",
    "An IPMODIFY ops has no list of functions to leave out.",
    ("misuse/ipmodify-notrace",),
    errno.EINVAL,
)
IPMODIFY_OR_DIRECT = Rule(
    "ipmodify-or-direct",
    FTRACE + "__ftrace_hash_update_ipmodify",
    "No ops is IPMODIFY and direct: the kernel warns, and lets it pass.",
    ("misuse/ipmodify-and-direct",),
    since=(6, 0),
    arm64=ARM64_DIRECT,
)

#: Each misuse, the rule that answers it, what it gives, and of the report that the kernel
#: makes of it text in the title; then such text of others that may follow.
MISUSES: dict[str, tuple[Rule, int, tuple[str, ...]]] = {
    "direct-unregister-unknown": (UNKNOWN_DIRECT, errno.EINVAL, ()),
    "direct-modify-unknown": (UNKNOWN_DIRECT, errno.EINVAL, ()),
    "direct-register-twice": (REGISTERED_ONCE, errno.EINVAL, ()),
    "direct-no-filter": (DIRECT_FILTER_NEEDED, errno.EINVAL, ()),
    "ipmodify-no-filter": (FILTER_NEEDED, errno.EINVAL, ()),
    "ipmodify-notrace": (NO_NOTRACE, errno.EINVAL, ()),
    "ops-register-twice": (ENABLED_ONCE, errno.EBUSY, ("kernel/trace/ftrace.c",)),
    "ipmodify-and-direct": (
        IPMODIFY_OR_DIRECT,
        0,
        ("__ftrace_hash_update_ipmodify", "kernel/trace/ftrace.c"),
    ),
    "kill-ftrace": (DEAD, 0, ()),
}
