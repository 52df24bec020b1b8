# SPDX-License-Identifier: GPL-2.0-only
"""Who is refused, with which errno: the rules that look at a state and a step to come.

A check gives the errno that refuses, or None where it has nothing against it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from harness.errno_names import ENOTSUPP
from harness.scenario.functions import FUNCTIONS

from . import ops, rules
from .profile import Profile
from .rules import Rule
from .state import Attached, State

Check = Callable[[State, Attached, Profile], int | None]


def _asks(state: State, new: Attached, function: str) -> bool:
    """Whether the core is asked at all: not if the ops it needs is on that function already.

    A second livepatch, BPF program or kprobe of a function joins the first.
    """
    if new.kind.ops not in ("livepatch", "bpf", "kprobe"):
        return True
    return not any(old.kind.ops == new.kind.ops for old in state.on(function))


def _asked(state: State, new: Attached) -> list[str]:
    return [f for f in new.functions if _asks(state, new, f)]


def _wants_ipmodify(new: Attached, profile: Profile) -> bool:
    kind = new.kind
    if kind.posts:
        return ops.on_ftrace(new, profile) and profile.has("kprobe-post-is-ipmodify")
    return kind.ipmodify or (kind.direct and profile.semantics.direct_is_ipmodify)


def _dead(state: State, new: Attached, profile: Profile) -> int | None:
    return errno.ENODEV if state.dead and ops.on_ftrace(new, profile) else None


def _no_direct_calls(_state: State, new: Attached, profile: Profile) -> int | None:
    """A direct call of a module's own."""
    there = profile.semantics.direct_calls or not new.kind.direct or new.kind.bpf
    return None if there else errno.ENODEV


def _no_trampolines(_state: State, new: Attached, profile: Profile) -> int | None:
    return None if profile.semantics.direct_calls or not new.kind.bpf else ENOTSUPP


def _no_regs(_state: State, new: Attached, profile: Profile) -> int | None:
    refused = new.attacher == "ops-regs" and not profile.semantics.saves_regs
    return errno.EINVAL if refused else None


def _one_transition(state: State, new: Attached, _profile: Profile) -> int | None:
    return errno.EBUSY if new.kind.ops == "livepatch" and state.pending() else None


def _not_modifiable(_state: State, new: Attached, _profile: Profile) -> int | None:
    if new.attacher != "fmod_ret":
        return None
    return None if all(FUNCTIONS[f].fmod_ret for f in new.functions) else errno.EINVAL


def _too_many_args(_state: State, new: Attached, profile: Profile) -> int | None:
    limit = profile.semantics.trampoline_args
    if new.kind.bpf and any(FUNCTIONS[f].nr_args > limit for f in new.functions):
        return ENOTSUPP
    return None


def _too_many_programs(state: State, new: Attached, profile: Profile) -> int | None:
    if not new.kind.bpf:
        return None
    for function in new.functions:
        there = [
            a
            for a in state.on(function)
            if a.kind.bpf and (a.attacher != "fmod_ret" or profile.semantics.fmod_ret_counts)
        ]
        if len(there) >= profile.semantics.trampoline_links:
            return errno.E2BIG
    return None


def _one_direct(state: State, new: Attached, profile: Profile) -> int | None:
    if not new.kind.direct:
        return None
    for function in _asked(state, new):
        if any(old.kind.direct for old in state.on(function)):
            return profile.semantics.bpf_after_direct if new.kind.bpf else errno.EBUSY
    return None


def _one_ipmodify(state: State, new: Attached, profile: Profile) -> int | None:
    if not _wants_ipmodify(new, profile):
        return None
    for function in _asked(state, new):
        if any(ops.is_ipmodify(old, function, state, profile) for old in state.on(function)):
            return errno.EBUSY
    return None


def _self_must_agree(state: State, new: Attached, profile: Profile) -> int | None:
    """A direct call that comes to an IPMODIFY ops."""
    if profile.semantics.direct_is_ipmodify or not new.kind.direct or new.kind.agrees:
        return None
    for function in _asked(state, new):
        if any(ops.is_ipmodify(old, function, state, profile) for old in state.on(function)):
            asked = new.kind.refuses and not profile.semantics.share_is_flag
            verbatim = asked and profile.has("refusal-is-verbatim")
            return _UNWILLING if verbatim else profile.semantics.direct_refused
    return None


def _peer_must_agree(state: State, new: Attached, profile: Profile) -> int | None:
    """An IPMODIFY ops that comes to a direct call."""
    if profile.semantics.direct_is_ipmodify or not _wants_ipmodify(new, profile):
        return None
    if new.kind.posts and state.post_armed and profile.has("peers-asked-at-registration"):
        return None
    for function in _asked(state, new):
        for old in state.on(function):
            if old.kind.refuses and profile.has("refusal-is-verbatim"):
                return _UNWILLING
            if old.kind.direct and not old.kind.agrees:
                return errno.EBUSY
    return None


#: What the ops_func of ``direct-refuse`` says (kmods/direct.c): an errno that nothing
#: else on the way gives.
_UNWILLING = errno.EXDEV


def _permanent_while_off(state: State, new: Attached, profile: Profile) -> int | None:
    if state.ftrace_enabled or not ops.is_permanent(new, profile):
        return None
    if profile.semantics.permanent_stays or not _asked(state, new):
        return None
    if new.kind.direct and any(old.kind.direct for old in state.attached):
        return None  # direct_ops is registered already; it only gets one more address.
    return errno.EBUSY


#: In the order in which the kernel comes to them.
CHECKS: tuple[tuple[Rule, Check], ...] = (
    (rules.NOT_MODIFIABLE, _not_modifiable),
    (rules.ONE_TRANSITION, _one_transition),
    (rules.TOO_MANY_PROGRAMS, _too_many_programs),
    (rules.TRAMPOLINE_ARGS, _too_many_args),
    (rules.BPF_NEEDS_DIRECT, _no_trampolines),
    (rules.DIRECT_NEEDS_CALL_OPS, _no_direct_calls),
    (rules.DEAD, _dead),
    (rules.SAVE_REGS_NEEDS_SUPPORT, _no_regs),
    (rules.ONE_DIRECT, _one_direct),
    (rules.PEER_MUST_AGREE, _peer_must_agree),
    (rules.PERMANENT_NEEDS_ENABLED, _permanent_while_off),
    (rules.ONE_IPMODIFY, _one_ipmodify),
    (rules.SELF_MUST_AGREE, _self_must_agree),
)


def refusal(state: State, new: Attached, profile: Profile) -> tuple[int, Rule] | None:
    """The errno that refuses the attach and the rule that says so; None if it is welcome."""
    for rule, check in CHECKS:
        if profile.has(rule.name) and (error := check(state, new, profile)):
            return error, rule
    return None


def disabling_refused(state: State, profile: Profile) -> tuple[int, Rule] | None:
    """The errno for writing 0 to kernel.ftrace_enabled and its rule; None if it is allowed."""
    if profile.semantics.disabling and profile.has(rules.DISABLING_DEPRECATED.name):
        error, rule = profile.semantics.disabling, rules.DISABLING_DEPRECATED
    elif (
        any(ops.is_permanent(a, profile) for a in state.attached if a.active)
        and not profile.semantics.permanent_stays
        and profile.has(rules.PERMANENT_KEEPS_ENABLED.name)
    ):
        error, rule = errno.EBUSY, rules.PERMANENT_KEEPS_ENABLED
    else:
        return None
    return error, rule
