# SPDX-License-Identifier: GPL-2.0-only
"""What a step itself gives (its errno, its messages), and the state that it leaves."""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace

from harness.agent import abi
from harness.scenario.functions import FUNCTIONS
from harness.scenario.steps import (
    Attach,
    Call,
    Detach,
    Disable,
    Enable,
    Force,
    Hold,
    Load,
    Misuse,
    Modify,
    Release,
    Step,
    Stir,
    TraceAll,
    Unload,
    Write,
)

from . import history, ops, refusals, rules
from .attachers import ATTACHERS
from .behaviour import body_of
from .profile import Profile
from .rules import Rule
from .slots import stirred_slots
from .state import Attached, Held, State


@dataclass(frozen=True)
class Act:
    """What a step itself must give, and the rule behind it.

    ``report``: text in the title of a report that the kernel must make of it, and in those
    of further ones that may follow; ``held``: the body that a call which is let go must
    have gone through.
    """

    errno: int
    rule: Rule
    log: tuple[str, ...] = ()
    report: tuple[str, ...] = ()
    held: str | None = None


def planned(state: State, step: Attach, slot: int | None = None) -> Attached:
    """The attachment that an attach step would make, in the lowest free slot or a given one."""
    if slot is None:
        slot = state.free_slot(step.attacher, step.functions)
    alternate = abi.FAR_ALTERNATE if step.far else 0
    return Attached(step.id, step.attacher, step.functions, slot, alternate=alternate)


def transition(
    state: State, step: Step, profile: Profile, slot: int | None = None
) -> tuple[Act, State]:
    """What the step gives, and the state that it leaves.

    ``slot``: of an attachment that is one with others (harness/run/company.py).
    """
    act, after = _act(state, step, profile, slot)
    act = replace(act, errno=profile.errnos.get(act.rule.name, act.errno))
    moved = {f for a in (*state.attached, *after.attached) for f in a.functions}
    if isinstance(step, Attach) and (kind := ATTACHERS[step.attacher]).core:
        # Nothing else moves, and groups have many functions.
        moved = moved if kind.exclusive else set(step.functions)
    elif isinstance(step, Detach) and (gone := state.get(step.id)):
        moved = set(gone.functions)
    marked = history.modified(state, after, tuple(moved), profile)
    return act, replace(after, modified=marked)


def _act(state: State, step: Step, profile: Profile, slot: int | None) -> tuple[Act, State]:
    if isinstance(step, Attach):
        return _attach(state, planned(state, step, slot), profile)
    if isinstance(step, Detach):
        return _detach(state, step, profile)
    if isinstance(step, Write):
        return _write(state, step, profile)
    if isinstance(step, Call):
        return Act(0, rules.CALLS), state
    if isinstance(step, (Disable, Enable, Force)):
        return _livepatch(state, step, profile)
    if isinstance(step, Modify):
        return _modify(state, step, profile)
    if isinstance(step, Hold):
        held = Held(step.id, step.function, body_of(state, step.function, profile))
        return Act(0, rules.CALLS), replace(state, held=(*state.held, held))
    if isinstance(step, Release):
        return _release(state, step)
    if isinstance(step, Misuse):
        return _misuse(state, step, profile)
    if isinstance(step, Stir):
        return Act(0, rules.CALLS), _stirred(state, step, profile)
    return _module(state, step, profile)


def _attach(state: State, new: Attached, profile: Profile) -> tuple[Act, State]:
    refused = refusals.refusal(state, new, profile)
    if not refused:
        if not profile.has(rules.WELCOME.name):
            return Act(errno.EINVAL, rules.WELCOME), state
        waits = new.kind.ops == "livepatch" and state.holds(new.functions)
        if waits and profile.has(rules.PENDING_TRANSITION.name):
            new = replace(new, phase="enabling")
        return Act(0, rules.WELCOME), history.arrive(state, new, profile)
    error, rule = refused
    log: tuple[str, ...] = ()
    by_ftrace = rule not in (rules.ONE_TRANSITION, rules.DEAD)
    if new.kind.ops == "livepatch" and by_ftrace and profile.has(rules.LIVEPATCH_SAYS_WHY.name):
        # kernel/livepatch/patch.c: klp_patch_func. Of several functions it is the first.
        log = ("livepatch: failed to register ftrace handler for function '",)
        if len(new.functions) == 1:
            log = (f"{log[0]}{new.functions[0]}' ({-error})",)
    if not profile.has(rules.REFUSED_NO_TRACE.name):
        state = history.arrive(state, new, profile)
    elif rule in (rules.PERMANENT_NEEDS_ENABLED, rules.ONE_IPMODIFY):
        state = history.asked(state, new, profile)
    return Act(error, rule, log), state


def _detach(state: State, step: Detach, profile: Profile) -> tuple[Act, State]:
    gone = state.get(step.id)
    assert gone is not None
    if gone.kind.ops == "livepatch":
        if gone.phase == "on" and state.pending():
            return _answer(errno.EBUSY, rules.ONE_TRANSITION, profile), state
        if gone.forced and profile.has(rules.FORCED_STAYS.name):
            after = history.withdraw(state, gone, profile) if gone.active else state
            return _answer(errno.EWOULDBLOCK, rules.FORCED_STAYS, profile), after
    if state.dead and gone.kind.ops != "livepatch" and ops.on_ftrace(gone, profile):
        return _answer(errno.ENODEV, rules.DEAD, profile), state
    if not profile.has(rules.DETACH_ALWAYS.name):
        return Act(errno.EBUSY, rules.DETACH_ALWAYS), state
    return Act(0, rules.DETACH_ALWAYS), history.leave(state, step.id, profile)


def _write(state: State, step: Write, profile: Profile) -> tuple[Act, State]:
    if state.dead:
        return _answer(errno.ENODEV, rules.DEAD, profile), state
    if step.value == "0" and state.ftrace_enabled:
        if forbidden := refusals.disabling_refused(state, profile):
            return Act(*forbidden), state
        awake = history.permanent(state, profile) if profile.semantics.permanent_stays else ()
        off = replace(state, ftrace_enabled=False, awake=frozenset(awake))
        return Act(0, rules.OFF_IS_OFF), off
    if step.value == "1":
        state = replace(state, ftrace_enabled=True, awake=frozenset())
    return Act(0, rules.OFF_IS_OFF), state


def _livepatch(state: State, step: Disable | Enable | Force, profile: Profile) -> tuple[Act, State]:
    """The files of /sys/kernel/livepatch/<patch> (kernel/livepatch/core.c)."""
    patch = state.get(step.id)
    assert patch is not None
    if patch.phase == "off":
        return _answer(errno.ENOENT, rules.DISABLED_IS_GONE, profile), state
    pending = patch.phase == "enabling"
    if isinstance(step, Force):
        if not pending:
            return _answer(errno.EINVAL, rules.FORCE_ENDS_TRANSITION, profile), state
        if not profile.has(rules.FORCE_ENDS_TRANSITION.name):
            return Act(0, rules.FORCE_ENDS_TRANSITION), state
        pinned = profile.semantics.force_pins
        on = replace(patch, phase="on", forced=pinned)
        return Act(0, rules.FORCE_ENDS_TRANSITION), state.changed(on)
    if isinstance(step, Enable):
        return _answer(errno.EINVAL, rules.NO_CHANGE_IS_INVALID, profile), state
    if not pending and state.pending():
        return _answer(errno.EBUSY, rules.ONE_TRANSITION, profile), state
    rule = rules.TRANSITION_REVERSES if pending else rules.DETACH_ALWAYS
    if not profile.has(rule.name):
        return Act(0, rule), state
    return Act(0, rule), history.withdraw(state, patch, profile)


def _modify(state: State, step: Modify, profile: Profile) -> tuple[Act, State]:
    direct = state.get(step.id)
    assert direct is not None
    if not profile.has(rules.MODIFY_MOVES.name):
        return Act(0, rules.MODIFY_MOVES), state
    return Act(0, rules.MODIFY_MOVES), history.modify(state, direct, step.alternate, profile)


def _release(state: State, step: Release) -> tuple[Act, State]:
    """The call returns; a transition that waited for it ends."""
    held = next(h for h in state.held if h.id == step.id)
    state = replace(state, held=tuple(h for h in state.held if h.id != step.id))
    patch = state.pending()
    if patch and not state.holds(patch.functions):
        state = state.changed(replace(patch, phase="on"))
    return Act(0, rules.CALLS, held=held.body), state


def _misuse(state: State, step: Misuse, profile: Profile) -> tuple[Act, State]:
    """Calls that no user should make: what each must give (kmods/misuse.c)."""
    rule, error, report = rules.MISUSES[step.what]
    if step.what == "kill-ftrace":
        return Act(0, rule), replace(state, dead=profile.has(rule.name))
    if step.what.startswith("direct-") and not profile.semantics.direct_calls:
        return _answer(errno.ENODEV, rules.DIRECT_NEEDS_CALL_OPS, profile), state
    if not profile.has(rule.name):
        return Act(0, rule), state
    return Act(error, rule, report=report), state


def _module(state: State, step: Unload | Load, profile: Profile) -> tuple[Act, State]:
    """The module that holds the test functions goes or comes back."""
    if isinstance(step, Load):
        absent = not profile.has(rules.MODULE_COMES.name)
        return Act(0, rules.MODULE_COMES), replace(state, unloaded=absent)
    there = [a for a in state.attached if any(FUNCTIONS[f].module for f in a.functions)]
    holds = any(
        a.kind.bpf or (a.attacher == "kprobe-multi" and profile.semantics.multi_pins) for a in there
    )
    if holds and profile.has(rules.BPF_HOLDS_MODULE.name):
        return _answer(errno.EWOULDBLOCK, rules.BPF_HOLDS_MODULE, profile), state
    if not profile.has(rules.MODULE_GOES.name):
        return Act(errno.EWOULDBLOCK, rules.MODULE_GOES), state
    # Its records go with it, and what they remember.
    after = replace(
        state,
        unloaded=True,
        modified=frozenset(f for f in state.modified if FUNCTIONS[f].module is None),
        awake=frozenset(f for f in state.awake if FUNCTIONS[f].module is None),
    )
    return Act(0, rules.MODULE_GOES), after


def _stirred(state: State, stir: Stir, profile: Profile) -> State:
    """The state after ``stir``: each stirrer's cycle leaves all as it was, but for what records
    remember of it, and that they do whatever the order."""
    slots = stirred_slots(state, stir.stirrers)
    for step in stir.steps:
        gone = isinstance(step, Detach | Disable | Enable | Modify) and not state.get(step.id)
        if gone or isinstance(step, TraceAll):
            continue
        slot = slots[step.id] if isinstance(step, Attach) else None
        _, state = transition(state, step, profile, slot)
    # How often an ops_func was asked depends on how many cycles there were, and their order.
    kept = tuple(replace(a, uncounted=True) if a.kind.agrees else a for a in state.attached)
    return replace(state, attached=kept)


def _answer(error: int, rule: Rule, profile: Profile) -> Act:
    """A refusal, unless the model was told to forget the rule."""
    return Act(error if profile.has(rule.name) else 0, rule)
