# SPDX-License-Identifier: GPL-2.0-only
"""Scenarios from their JSON form (docs/writing-scenarios.md)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from harness.agent import abi
from harness.arch import ARM64, named
from harness.errors import UsageError
from harness.policy.attachers import ATTACHERS

from . import check, parsestir
from .fields import Data, flag, function, number, one_of, text
from .functions import FUNCTIONS, TEST_MODULE
from .steps import (
    ANY,
    FTRACE_ENABLED,
    MISUSES,
    REACHES,
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
    Scenario,
    Step,
    Stir,
    Unload,
    Write,
)

#: What goes through virtme-ng and QEMU to the kernel as it is.
_BOOT_WORD = re.compile(r"[A-Za-z0-9_.,:=/-]+")


def _attach(data: Data) -> Attach:
    several = data.get("functions", [data.get("function")])
    if not isinstance(several, list) or not several:
        raise UsageError(f"'functions' is a list of names: {json.dumps(dict(data))}")
    functions = tuple(function(name) for name in several)
    if len(set(functions)) < len(functions):
        raise UsageError(f"a step names a function twice: {json.dumps(dict(data))}")
    identity, attacher = text(data, "id"), one_of(data, "attacher", tuple(ATTACHERS))
    if ATTACHERS[attacher].single and len(functions) > 1:
        raise UsageError(f"{attacher} goes on one function", "attach one for each")
    # A trampoline is told which function it serves by a lane's first argument only.
    several_of_a_slot = ATTACHERS[attacher].family == "direct" and len(functions) > 1
    if several_of_a_slot and any(f == ANY or FUNCTIONS[f].lane is None for f in functions):
        raise UsageError(f"{attacher} on several functions takes lanes only")
    far = flag(data, "far")
    if far and ATTACHERS[attacher].family != "direct":
        raise UsageError(f"{attacher} has no far trampoline", "those of a module have one")
    wait = _wait(data)
    if not wait and ATTACHERS[attacher].ops != "livepatch":
        raise UsageError(f"{attacher} has no transition to wait for", "leave out 'wait'")
    return Attach(identity, attacher, functions, flag(data, "unless_attached"), far, wait)


def _wait(data: Data) -> bool:
    return flag(data, "wait", True)


def _write(data: Data) -> Write:
    sysctl, value = text(data, "sysctl"), text(data, "value")
    if sysctl != FTRACE_ENABLED or value not in ("0", "1"):
        raise UsageError(
            f"cannot write {value!r} to {sysctl!r}", f"known: {FTRACE_ENABLED}, 0 or 1"
        )
    return Write(sysctl, value)


def _hold(data: Data) -> Hold:
    holding = [f.name for f in FUNCTIONS.values() if f.holds]
    return Hold(text(data, "id"), one_of(data, "function", holding))


def _modify(data: Data) -> Modify:
    alternate = data.get("alternate")
    if (
        not isinstance(alternate, int)
        or isinstance(alternate, bool)
        or alternate not in range(abi.ALTERNATES)
    ):
        raise UsageError(
            f"'alternate' is 0 or 1, or 2 or 3 for those far away: {json.dumps(dict(data))}"
        )
    return Modify(text(data, "id"), alternate)


def _module(data: Data) -> str:
    return one_of(data, "module", (TEST_MODULE,))


def _unload(data: Data) -> Unload:
    _module(data)
    return Unload()


def _load(data: Data) -> Load:
    _module(data)
    return Load()


#: How each step is read, by its ``do``.
STEPS: dict[str, Callable[[Data], Step]] = {
    "attach": _attach,
    "detach": lambda data: Detach(text(data, "id")),
    "disable": lambda data: Disable(text(data, "id"), _wait(data)),
    "enable": lambda data: Enable(text(data, "id"), _wait(data)),
    "force": lambda data: Force(text(data, "id")),
    "modify": _modify,
    "write": _write,
    "call": lambda data: Call(one_of(data, "context", ("process", "softirq"), "process")),
    "hold": _hold,
    "release": lambda data: Release(text(data, "id")),
    "unload": _unload,
    "load": _load,
    "misuse": lambda data: Misuse(one_of(data, "what", MISUSES), function(data.get("function"))),
    "stir": lambda data: parsestir.stir(data, step_from_json),
}


def step_from_json(data: object) -> Step:
    """The step that a step object describes; raises UsageError for none."""
    if not isinstance(data, dict):
        raise UsageError(f"a step is an object, not {json.dumps(data)}")
    make = STEPS.get(str(data.get("do")))
    if make is None:
        raise UsageError(f"there is no step {data.get('do')!r}", f"known: {', '.join(STEPS)}")
    return make(data)


def scenario_from_json(data: object) -> Scenario:
    """The scenario that a file describes; raises UsageError where it does not."""
    if not isinstance(data, dict):
        raise UsageError("a scenario file holds one JSON object")
    name, functions, steps = (data.get(key) for key in ("name", "functions", "steps"))
    if not isinstance(name, str) or not name:
        raise UsageError("a scenario needs a name")
    if not isinstance(steps, list) or not steps:
        raise UsageError(f"scenario {name!r} needs steps")
    parsed = tuple(step_from_json(step) for step in steps)
    used = {f for step in parsed for f in check.functions_of(step)}
    if functions is None:
        functions = sorted(used)
    if not isinstance(functions, list) or not functions:
        raise UsageError(f"scenario {name!r} needs functions to look at, each named once")
    looked_at = tuple(function(f) for f in functions)
    if len(set(looked_at)) < len(looked_at):
        raise UsageError(f"scenario {name!r} needs functions to look at, each named once")
    if missing := used - set(looked_at):
        raise UsageError(
            f"scenario {name!r} uses {', '.join(sorted(missing))}, not among its functions"
        )
    check.together(name, parsed)
    return Scenario(
        name,
        looked_at,
        parsed,
        _matrix(name, data.get("matrix")),
        watch=flag(data, "watch"),
        ends_vm=flag(data, "ends_vm"),
        **_wants(name, parsed, data),
    )


def _wants(name: str, steps: Sequence[Step], data: Data) -> dict[str, Any]:
    """What a scenario wants of the VM; raises UsageError for what there is not."""
    arch, reach, boot = (data.get(key) or "" for key in ("arch", "reach", "boot"))
    if arch:
        arch = named(str(arch)).name
    if reach and reach not in REACHES:
        raise UsageError(
            f"scenario {name!r}: there is no reach {reach!r}", f"known: {', '.join(REACHES)}"
        )
    far = any(
        (isinstance(step, Attach) and step.far)
        or (isinstance(step, Modify) and step.alternate >= abi.FAR_ALTERNATE)
        for step in steps
    )
    if (far or reach) and arch != ARM64.name:
        what = "a reach" if reach else "far trampolines"
        raise UsageError(
            f"scenario {name!r}: {what} elsewhere than on arm64", f'add "arch": "{ARM64.name}"'
        )
    words = boot or []
    if not isinstance(words, list) or not all(
        isinstance(word, str) and _BOOT_WORD.fullmatch(word) for word in words
    ):
        raise UsageError(f"scenario {name!r}: 'boot' is a list of words for the kernel")
    cpus = number(data, "cpus", 1, 1)
    if cpus < 2 and any(isinstance(step, Stir) for step in steps):
        raise UsageError(
            f"scenario {name!r}: to stir takes more than one CPU", 'add "cpus": 2 to the scenario'
        )
    return {"arch": arch, "reach": str(reach), "boot": tuple(words), "cpus": cpus}


def _matrix(name: str, value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not (
        isinstance(value, list)
        and len(value) in (2, 3)
        and all(isinstance(v, str) and v in ATTACHERS for v in value)
    ):
        raise UsageError(f"scenario {name!r}: matrix names two or three attachers in their order")
    return tuple(value)
