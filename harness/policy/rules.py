# SPDX-License-Identifier: GPL-2.0-only
"""The rules of the policy, each with its name and the kernel function it is from.

A rule about errno looks at a state and an attachment that is to come and says
which errno refuses it, or None where it has nothing against it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass

from harness.errno_names import ENOTSUPP
from harness.scenario.functions import FUNCTIONS

from .profile import Semantics
from .state import Attached, State

Check = Callable[[State, Attached, Semantics], int | None]


@dataclass(frozen=True)
class Rule:
    """``name``; ``source``: kernel file and function; ``text``: what it says."""

    name: str
    source: str
    text: str


@dataclass(frozen=True)
class AttachRule(Rule):
    """A rule that may refuse an attach."""

    check: Check


def _ipmodify(a: Attached, semantics: Semantics) -> bool:
    """Whether its ops carries FTRACE_OPS_FL_IPMODIFY."""
    return a.kind.ipmodify or (a.kind.direct and semantics.direct_is_ipmodify)


def _permanent(a: Attached, semantics: Semantics) -> bool:
    return a.kind.permanent or (a.kind.direct and semantics.direct_is_permanent)


def _same_ops(a: Attached, b: Attached) -> bool:
    """Whether both use one ftrace_ops of that function."""
    return a.function == b.function and a.kind.ops == b.kind.ops != "own"


def _joins(state: State, new: Attached) -> bool:
    """Whether the ops it needs is registered already, so that nothing is asked."""
    return any(_same_ops(old, new) for old in state.on(new.function))


def _permanent_while_off(state: State, new: Attached, semantics: Semantics) -> int | None:
    if state.ftrace_enabled or not _permanent(new, semantics) or _joins(state, new):
        return None
    if new.kind.direct and any(old.kind.direct for old in state.attached):
        return None  # direct_ops is registered already; it only gets one more address.
    return errno.EBUSY


def _one_ipmodify(state: State, new: Attached, semantics: Semantics) -> int | None:
    if _joins(state, new) or not _ipmodify(new, semantics):
        return None
    clash = any(_ipmodify(old, semantics) for old in state.on(new.function))
    return errno.EBUSY if clash else None


def _direct_must_agree(state: State, new: Attached, semantics: Semantics) -> int | None:
    if semantics.direct_is_ipmodify or _joins(state, new):
        return None
    here = state.on(new.function)
    if new.kind.direct and not new.kind.agrees and any(old.kind.ipmodify for old in here):
        return errno.EBUSY
    if new.kind.ipmodify and any(old.kind.direct and not old.kind.agrees for old in here):
        return errno.EBUSY
    return None


def _one_direct(state: State, new: Attached, semantics: Semantics) -> int | None:
    if not new.kind.direct or _joins(state, new):
        return None
    if not any(old.kind.direct for old in state.on(new.function)):
        return None
    return semantics.bpf_after_direct if new.kind.bpf else errno.EBUSY


def _too_many_args(_state: State, new: Attached, semantics: Semantics) -> int | None:
    if new.kind.bpf and FUNCTIONS[new.function].nr_args > semantics.trampoline_args:
        return ENOTSUPP
    return None


ATTACH_RULES: tuple[AttachRule, ...] = (
    AttachRule(
        "trampoline-args",
        "arch/x86/net/bpf_jit_comp.c: arch_prepare_bpf_trampoline",
        "A BPF trampoline is not made for a function with more arguments than it can pass on.",
        _too_many_args,
    ),
    AttachRule(
        "one-direct",
        "kernel/trace/ftrace.c: register_ftrace_direct, update_ftrace_direct_add",
        "A function has at most one direct call; all BPF programs of it share one trampoline.",
        _one_direct,
    ),
    AttachRule(
        "one-ipmodify",
        "kernel/trace/ftrace.c: __ftrace_hash_update_ipmodify",
        "A function has at most one ftrace_ops with IPMODIFY; its livepatches share one.",
        _one_ipmodify,
    ),
    AttachRule(
        "direct-must-agree",
        "kernel/trace/ftrace.c: __ftrace_hash_update_ipmodify, "
        "prepare_direct_functions_for_ipmodify",
        "A direct call and an IPMODIFY ops share a function only if the direct ops has an "
        "ops_func that agrees.",
        _direct_must_agree,
    ),
    AttachRule(
        "permanent-needs-enabled",
        "kernel/trace/ftrace.c: __register_ftrace_function",
        "A PERMANENT ops is not registered while kernel.ftrace_enabled is 0.",
        _permanent_while_off,
    ),
)

PERMANENT_KEEPS_ENABLED = Rule(
    "permanent-keeps-enabled",
    "kernel/trace/ftrace.c: ftrace_enable_sysctl, is_permanent_ops_registered",
    "kernel.ftrace_enabled cannot be set to 0 while a PERMANENT ops is registered.",
)
DETACH_ALWAYS = Rule(
    "detach-always",
    "kernel/trace/ftrace.c: unregister_ftrace_function, unregister_ftrace_direct",
    "Whatever was attached can be detached, in any order.",
)
REFUSED_NO_TRACE = Rule(
    "refused-no-trace",
    "kernel/trace/ftrace.c: __ftrace_hash_update_ipmodify (rollback), register_ftrace_direct",
    "A refused attach leaves record, behaviour and later answers as they were.",
)
RECORD_COUNTS_OPS = Rule(
    "record-counts-ops",
    "kernel/trace/ftrace.c: __ftrace_hash_rec_update, t_show",
    "A record shows how many ftrace_ops trace its function and what they ask for.",
)
CALL_BEHAVIOUR = Rule(
    "call-behaviour",
    "arch/x86/kernel/ftrace_64.S: ftrace_regs_caller; kernel/livepatch/patch.c: "
    "klp_ftrace_handler; kernel/bpf/trampoline.c: bpf_trampoline_update",
    "Every attacher sees each call once; the newest livepatch (or the IPMODIFY ops) chooses "
    "the body; a fmod_ret that returns an error takes its place.",
)
DISABLING_DEPRECATED = Rule(
    "disabling-deprecated",
    "kernel/trace/ftrace.c of 7.3: ftrace_enable_sysctl",
    "kernel.ftrace_enabled cannot be set to 0 at all (7.3 and newer).",
)
OFF_IS_OFF = Rule(
    "off-is-off",
    "kernel/trace/ftrace.c: ftrace_shutdown_sysctl, ftrace_startup_enable",
    "While kernel.ftrace_enabled is 0 no call site calls anything; 1 brings all back.",
)
RULES: tuple[Rule, ...] = (
    *ATTACH_RULES,
    PERMANENT_KEEPS_ENABLED,
    DISABLING_DEPRECATED,
    DETACH_ALWAYS,
    REFUSED_NO_TRACE,
    RECORD_COUNTS_OPS,
    CALL_BEHAVIOUR,
    OFF_IS_OFF,
)


def refusal(state: State, new: Attached, semantics: Semantics) -> tuple[int, Rule] | None:
    """The errno that refuses the attach and the rule that says so; None if it is welcome."""
    for rule in ATTACH_RULES:
        error = rule.check(state, new, semantics)
        if error:
            return error, rule
    return None


def disabling_refused(state: State, semantics: Semantics) -> tuple[int, Rule] | None:
    """The errno for writing 0 to kernel.ftrace_enabled and its rule; None if it is allowed."""
    if semantics.disabling:
        return semantics.disabling, DISABLING_DEPRECATED
    if any(_permanent(a, semantics) for a in state.attached):
        return errno.EBUSY, PERMANENT_KEEPS_ENABLED
    return None
