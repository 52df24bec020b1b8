# SPDX-License-Identifier: GPL-2.0-only
"""Running steps through the model, for the tests of harness/policy."""

from __future__ import annotations

from dataclasses import replace

from harness.policy.predict import Prediction, RecordPrediction, applies, predict
from harness.policy.profile import NAMED, Profile, choose
from harness.policy.state import State
from harness.scenario.steps import FTRACE_ENABLED, Attach, Step, Write

F = "security_task_getpgid"
"""A function that takes every attacher."""
OTHER = "cmdline_proc_show"
"""One that takes all but fmod_ret."""

OFF, ON = Write(FTRACE_ENABLED, "0"), Write(FTRACE_ENABLED, "1")
V5_10, V6_1, V6_12, V7_2, V7_3 = (choose(f"{a}.{b}.0", {}) for a, b in NAMED)
PROFILES = {p.name: p for p in (V5_10, V6_1, V6_12, V7_2, V7_3)}
#: arm64's, and one that was built without CALL_OPS.
ARM6_12, ARM7_2, ARM7_3 = (choose(f"{a}.{b}.0", {}, arch="arm64") for a, b in NAMED[2:])
ARM_BARE = choose("7.2.0", {"CONFIG_DYNAMIC_FTRACE_WITH_ARGS": "y"}, arch="arm64")


def run(
    profile: Profile,
    *steps: Step,
    functions: tuple[str, ...] = (F,),
    state: State | None = None,
    reach: str = "",
) -> tuple[list[Prediction], State]:
    """Predictions of the steps that are done, and the state they leave."""
    state = state or State()
    found = []
    for step in steps:
        if applies(state, step):
            prediction, state = predict(state, step, functions, profile, reach)
            found.append(prediction)
    return found, state


def on(identity: str, attacher: str, *functions: str, again: bool = False) -> Attach:
    """One attach step, to F if nothing else is said."""
    return Attach(identity, attacher, functions or (F,), unless_attached=again)


def attach(*attachers: str, function: str = F) -> list[Step]:
    """Attach steps with the ids a, b, c ..."""
    return [on(chr(ord("a") + i), kind, function) for i, kind in enumerate(attachers)]


def outcome(profile: Profile, first: str, second: str) -> tuple[int, str]:
    """Errno and rule of the second attach to one function."""
    found, _ = run(profile, *attach(first, second))
    assert found[0].errno == (0,)
    assert len(found[1].errno) == 1
    return found[1].errno[0], found[1].rule.name


def untold(state: State) -> State:
    """The state without what direct calls were told, which also a refused attach changes."""
    attached = tuple(replace(a, shares=(0, 0, 0), sharing=False) for a in state.attached)
    return replace(state, attached=attached)


def shown(record: RecordPrediction | None) -> tuple[int, str] | None:
    """Count and flags of a record, in the registry's order of letters."""
    if record is None:
        return None
    assert record.flags <= set("RPIDOM")
    return record.count, "".join(letter for letter in "RPIDOM" if letter in record.flags)
