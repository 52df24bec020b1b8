# SPDX-License-Identifier: GPL-2.0-only
"""From a state and a step: every witness, predicted, and the state after it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from harness.scenario.steps import (
    Attach,
    Detach,
    Disable,
    Enable,
    Force,
    Load,
    Modify,
    Release,
    Step,
    Unload,
)

from . import history, ops
from .acts import Act, planned, transition
from .behaviour import BehaviourPrediction, behaviour, works
from .profile import Profile
from .rules import Rule
from .site import SitePrediction
from .site import predict as site
from .state import State

__all__ = ["Prediction", "RecordPrediction", "applies", "planned", "predict", "witnesses"]


@dataclass(frozen=True)
class RecordPrediction:
    """What a function's record must show.

    ``direct`` is the target's name or its beginning; ``jmp`` None means that both
    are right, for the reason in ``why_either``; ``ops`` is the callback of the only
    user, where the record names that.
    """

    count: int
    flags: frozenset[str]
    direct: str | None = None
    jmp: bool | None = False
    why_either: str = ""
    ops: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As in docs/events.md."""
        either = {"why_either": {"jmp": self.why_either}} if self.jmp is None else {}
        return {
            "count": self.count,
            "flags": sorted(self.flags),
            "direct": self.direct,
            "jmp": self.jmp,
            **either,
            **({"ops": self.ops} if self.ops else {}),
        }


@dataclass(frozen=True)
class Prediction:
    """Every witness of a step; ``rule`` is the one that decided its errno.

    ``report``: text in the title of a report that the kernel must make, and in those of
    further ones that may follow; ``held``: the body of a call that was let go; ``site``:
    the functions' call sites, of a scenario that promises a reach.
    """

    errno: tuple[int, ...]
    rule: Rule
    registry: dict[str, RecordPrediction | None]
    behaviour: dict[str, BehaviourPrediction]
    livepatch: dict[str, dict[str, int]]
    ftrace_enabled: int
    log: tuple[str, ...] = ()
    report: tuple[str, ...] = ()
    held: str | None = None
    site: dict[str, SitePrediction] = field(default_factory=dict)

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
            **({"report": self.report[0]} if self.report else {}),
            **({"held": {"body": self.held}} if self.held else {}),
            **({"site": {f: s.to_json() for f, s in self.site.items()}} if self.site else {}),
        }


def applies(state: State, step: Step) -> bool:
    """Whether the step is done at all: what is not there cannot leave; see Attach too."""
    if isinstance(step, Attach):
        return not step.unless_attached or state.get(step.id) is None
    if isinstance(step, Detach | Disable | Enable | Force | Modify):
        return state.get(step.id) is not None
    if isinstance(step, Release):
        return any(held.id == step.id for held in state.held)
    if isinstance(step, Unload | Load):
        return state.unloaded is isinstance(step, Load)
    return True


def predict(
    state: State, step: Step, functions: tuple[str, ...], profile: Profile, reach: str = ""
) -> tuple[Prediction, State]:
    """What every witness must say after the step, and the state that it leaves.

    ``reach``: what the scenario promises.
    """
    act, after = transition(state, step, profile)
    return witnesses(after, act, functions, profile, reach), after


def witnesses(
    state: State, act: Act, functions: tuple[str, ...], profile: Profile, reach: str = ""
) -> Prediction:
    """What every witness must say in a state, after an act that led there."""
    return Prediction(
        errno=(act.errno,),
        rule=act.rule,
        registry={f: record(state, f, profile) for f in functions},
        behaviour={f: behaviour(state, f, profile) for f in functions},
        livepatch=_livepatches(state),
        ftrace_enabled=-1 if state.dead else int(state.ftrace_enabled),
        log=act.log,
        report=act.report,
        held=act.held,
        site={f: site(state, f, profile, reach) for f in functions} if reach else {},
    )


def _livepatches(state: State) -> dict[str, dict[str, int]]:
    """/sys/kernel/livepatch; a patch that is off has no directory there any more."""
    return {
        a.module: {
            "enabled": 1,
            "transition": int(a.phase == "enabling"),
        }
        for a in state.attached
        if a.kind.ops == "livepatch" and a.active
    }


def record(state: State, function: str, profile: Profile) -> RecordPrediction | None:
    """What enabled_functions must show (t_show: the wanted state, not what is patched in)."""
    now = history.record_state(state, function, profile)
    here = state.on(function)
    if not now.count or not works(state, function, profile):
        return None
    permanent = any(ops.is_permanent(a, profile) for a in here)
    flags = {
        letter
        for letter, there in (
            ("R", now.regs),
            ("I", now.ipmodify),
            ("D", now.direct),
            ("O", now.call_ops),
            ("M", function in state.modified),
            ("P", permanent and profile.form.shows_permanent),
        )
        if there
    }
    direct = None
    if profile.has("direct-is-shown"):
        for attached in here:
            if attached.kind.bpf:
                direct = "bpf_trampoline_"
            elif attached.kind.direct:
                direct = attached.trampoline
    jmp, why = _jmp(state, function, profile)
    user = next(a for a in here if ops.on_ftrace(a, profile))
    named = ops.callback(user) if now.call_ops else None
    return RecordPrediction(now.count, frozenset(flags), direct, jmp, why, named)


def _jmp(state: State, function: str, profile: Profile) -> tuple[bool | None, str]:
    """Whether the trampoline is jumped to (include/linux/bpf.h: bpf_trampoline_use_jmp)."""
    here = state.on(function)
    calls = profile.form.jmp and any(a.kind.calls_original for a in here)
    if not calls or not profile.has("original-is-jumped-to"):
        return False, ""
    if any(ops.is_ipmodify(a, function, state, profile) for a in here if not a.kind.direct):
        # One that shares with IPMODIFY needs the address on the stack, so it is called.
        return not profile.has("shared-is-called"), ""
    if function in state.still_shared:
        return False, ""
    if function in state.stale_share and profile.has("share-outlives-programs"):
        return None, "the trampoline of the last program may still be there, with its share flag"
    return True, ""
