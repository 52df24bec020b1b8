# SPDX-License-Identifier: GPL-2.0-only
"""What a function's call site must hold on arm64: which way a call takes to a direct trampoline.

arch/arm64/kernel/ftrace.c: ftrace_make_call, ftrace_modify_call and
ftrace_find_callable_addr; arch/arm64/kernel/entry-ftrace.S: ftrace_caller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from harness.scenario.functions import FUNCTIONS

from . import history, rules
from .behaviour import works
from .profile import Profile
from .state import State


@dataclass(frozen=True)
class SitePrediction:
    """``path``: ``nop``, ``direct`` (a BL to the trampoline), ``ftrace_caller`` (a BL to that,
    which goes on to the trampoline) or ``absent`` (its module is not loaded);
    ``reach``: whether a BL could lead to the trampoline (``near``, ``far``), None where
    there is none; ``calls_back``: whether the ops that is stored before the function is
    the direct call's, so that ftrace_caller itself finds the trampoline.
    """

    path: str
    reach: str | None = None
    calls_back: bool = False

    def to_json(self) -> dict[str, Any]:
        """As in docs/events.md."""
        return {"path": self.path, "reach": self.reach, "calls_back": self.calls_back}


def predict(state: State, function: str, profile: Profile, reach: str) -> SitePrediction:
    """What the call site must be; ``reach``: see harness.scenario.steps.Scenario."""
    if state.unloaded and FUNCTIONS[function].module:
        return SitePrediction("absent")
    now = history.record_state(state, function, profile)
    direct = next((a for a in state.on(function) if a.kind.direct), None)
    where = None
    if direct is not None:
        where = reach if direct.kind.bpf else ("far" if direct.far else "near")
    if not now.count or not works(state, function, profile):
        return SitePrediction("nop", where)
    # ftrace_get_addr_new: a direct call is the address to be called only while it is alone.
    alone = direct is not None and now.count == 1
    bl = alone and (where == "near" or not profile.has(rules.BRANCH_RANGE.name))
    path = "direct" if bl else "ftrace_caller"
    return SitePrediction(path, where, alone and profile.form.call_ops)
