# SPDX-License-Identifier: GPL-2.0-only
"""From a state and a step: every witness, predicted, and the state after it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from harness.agent import abi
from harness.scenario.functions import FUNCTIONS
from harness.scenario.steps import Attach, Call, Detach, Step, Write

from . import rules
from .profile import Form, Profile
from .rules import Rule
from .state import Attached, RecordState, State


@dataclass(frozen=True)
class RecordPrediction:
    """What a function's record must show.

    ``direct`` is the target's name or its beginning; ``jmp`` None means that both
    are right, for the reason in ``why_either``.
    """

    count: int
    flags: frozenset[str]
    direct: str | None = None
    jmp: bool | None = False
    why_either: str = ""

    def to_json(self) -> dict[str, Any]:
        """As in docs/events.md."""
        either = {"why_either": {"jmp": self.why_either}} if self.jmp is None else {}
        return {
            "count": self.count,
            "flags": sorted(self.flags),
            "direct": self.direct,
            "jmp": self.jmp,
            **either,
        }


@dataclass(frozen=True)
class BehaviourPrediction:
    """What one call must do; ``ret`` is what fexit programs must see, as the caller's C type."""

    body: str
    hits: dict[str, int] = field(default_factory=dict)
    ret: int | None = None
    args: tuple[int, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """As in docs/events.md."""
        return {
            "body": self.body,
            "hits": self.hits,
            "ret": self.ret,
            "args": "agree" if self.args is None else list(self.args),
        }


@dataclass(frozen=True)
class Prediction:
    """Every witness of a step; ``rule`` is the one that decided its errno."""

    errno: tuple[int, ...]
    rule: Rule
    registry: dict[str, RecordPrediction | None]
    behaviour: dict[str, BehaviourPrediction]
    livepatch: dict[str, dict[str, int]]
    ftrace_enabled: int
    log: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As in docs/events.md."""
        return {
            "errno": list(self.errno),
            "rule": self.rule.name,
            "registry": {f: r.to_json() if r else None for f, r in self.registry.items()},
            "behaviour": {f: b.to_json() for f, b in self.behaviour.items()},
            "livepatch": self.livepatch,
            "sysctl": {"kernel.ftrace_enabled": self.ftrace_enabled},
            "log": list(self.log),
        }


def applies(state: State, step: Step) -> bool:
    """Whether the step is done at all: see Attach.unless_attached and Detach."""
    if isinstance(step, Detach):
        return state.get(step.id) is not None
    if isinstance(step, Attach) and step.unless_attached:
        return state.get(step.id) is None
    return True


def planned(state: State, step: Attach) -> Attached:
    """The attachment that an attach step would make."""
    slot = state.free_slot(step.attacher, step.function)
    return Attached(step.id, step.attacher, step.function, slot)


def predict(
    state: State, step: Step, functions: tuple[str, ...], profile: Profile
) -> tuple[Prediction, State]:
    """What every witness must say after the step, and the state that it leaves."""
    error, rule, after, log = _act(state, step, profile)
    after = replace(after, modified=_modified(state, after, functions, profile.form))
    return (
        Prediction(
            errno=(error,),
            rule=rule,
            registry={f: _record(after, f, profile.form) for f in functions},
            behaviour={f: _behaviour(after, f) for f in functions},
            livepatch={
                f"cohabit_klp_{'ab'[a.slot]}": {"enabled": 1, "transition": 0}
                for a in after.attached
                if a.attacher == "livepatch"
            },
            ftrace_enabled=int(after.ftrace_enabled),
            log=log,
        ),
        after,
    )


def _act(state: State, step: Step, profile: Profile) -> tuple[int, Rule, State, tuple[str, ...]]:
    """Errno, the rule behind it, the state after, and what the log must have."""
    if isinstance(step, Attach):
        new = planned(state, step)
        refused = rules.refusal(state, new, profile.semantics)
        if not refused:
            return 0, rules.RECORD_COUNTS_OPS, state.with_attached(new), ()
        log: tuple[str, ...] = ()
        if new.attacher == "livepatch":
            # kernel/livepatch/patch.c: klp_patch_func
            log = (
                f"livepatch: failed to register ftrace handler for function "
                f"'{new.function}' ({-refused[0]})",
            )
        return refused[0], refused[1], state, log
    if isinstance(step, Detach):
        return 0, rules.DETACH_ALWAYS, state.without(step.id), ()
    if isinstance(step, Write):
        if step.value == "0" and state.ftrace_enabled:
            if forbidden := rules.disabling_refused(state, profile.semantics):
                return *forbidden, state, ()
            return 0, rules.OFF_IS_OFF, replace(state, ftrace_enabled=False), ()
        return 0, rules.OFF_IS_OFF, replace(state, ftrace_enabled=step.value == "1"), ()
    assert isinstance(step, Call)
    return 0, rules.CALL_BEHAVIOUR, state, ()


def _record_state(state: State, function: str, form: Form) -> RecordState:
    """The ftrace record as the core keeps it (__ftrace_hash_rec_update)."""
    here = state.on(function)
    own = sum(a.kind.ops == "own" for a in here)
    shared = len({a.kind.ops for a in here if a.kind.ops != "own"})
    ipmodify = any(a.kind.ipmodify for a in here)
    direct = any(a.kind.direct for a in here)
    return RecordState(
        count=own + shared,
        # call_direct_funcs() needs all registers on x86-64 (MULTI_FLAGS, direct_ops).
        regs=direct
        or any(a.kind.save_regs for a in here)
        or (ipmodify and form.ipmodify_saves_regs),
        ipmodify=ipmodify or (direct and form.direct_shows_ipmodify),
        direct=direct,
    )


def _modified(
    before: State, after: State, functions: tuple[str, ...], form: Form
) -> frozenset[str]:
    """Functions whose record has M: set when the call site is rewritten, never cleared.

    kernel/trace/ftrace.c: ftrace_check_record sets FTRACE_FL_MODIFIED where it
    does not return early because nothing about the call site changes.
    """
    found = set(after.modified)
    if not form.modified:
        return frozenset()
    for function in functions:
        was = _record_state(before, function, form)
        now = _record_state(after, function, form)
        old = was.patched if before.ftrace_enabled and was.count else None
        new = now.patched if after.ftrace_enabled and now.count else None
        if new is not None and new != old and (now.direct or now.ipmodify):
            found.add(function)
    return frozenset(found)


def _record(state: State, function: str, form: Form) -> RecordPrediction | None:
    """What enabled_functions must show (t_show: the wanted state, not what is patched in)."""
    now = _record_state(state, function, form)
    if not now.count or not state.ftrace_enabled:
        return None
    flags = {
        letter
        for letter, there in (
            ("R", now.regs),
            ("I", now.ipmodify),
            ("D", now.direct),
            ("M", function in state.modified),
        )
        if there
    }
    here = state.on(function)
    direct = None
    for attached in here:
        if attached.kind.bpf:
            direct = "bpf_trampoline_"
        elif attached.kind.direct:
            direct = f"cohabit_direct_tramp_{attached.slot}"
    jmp, why = _jmp(state, function, form)
    return RecordPrediction(now.count, frozenset(flags), direct, jmp, why)


def _jmp(state: State, function: str, form: Form) -> tuple[bool | None, str]:
    """Whether the trampoline is jumped to (include/linux/bpf.h: bpf_trampoline_use_jmp)."""
    here = state.on(function)
    calls = form.jmp and any(a.kind.calls_original for a in here)
    # One that shares with IPMODIFY needs the address on the stack, so it is called.
    if not calls or any(a.kind.ipmodify for a in here):
        return False, ""
    if function in state.stale_share:
        return None, "the trampoline of the last program may still be there, with its share flag"
    return True, ""


_TAGS = {
    abi.body_of_tag(tag): tag for tag in (*range(abi.TAG_ORIGINAL, abi.TAG_IPMODIFY + abi.SLOTS),)
}


def _behaviour(state: State, function: str) -> BehaviourPrediction:
    """What one call does, on the caller's side and on each attacher's."""
    here = state.on(function)
    active = state.ftrace_enabled
    body = "original"
    hits = {a.id: int(active) for a in here if a.kind.counts}
    if active:
        # The newest livepatch is on top of the function's stack (klp_ftrace_handler).
        for attached in here:
            if attached.kind.ipmodify:
                body = attached.body
        overrides = [a for a in here if a.attacher == "fmod_ret"]
        if overrides:
            # Programs run newest first (__bpf_trampoline_link_prog: hlist_add_head),
            # and the first error ends the row (invoke_bpf_mod_ret).
            body = overrides[-1].body
            hits.update({a.id: 0 for a in overrides[:-1]})
    target = FUNCTIONS[function]
    ret: int | None = None
    args: tuple[int, ...] | None = None
    if target.witnessed == "tag":
        args = tuple(abi.arguments(target.nr_args, target.may_sleep))
        ret = _TAGS[body] << 32 | abi.checksum(list(args))
    elif target.witnessed == "text" or body == "original":
        ret = 0
    else:
        ret = -(abi.ERRNO_BASE + _TAGS[body])
    return BehaviourPrediction(body, hits, ret, args)
