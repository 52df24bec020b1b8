# SPDX-License-Identifier: GPL-2.0-only
"""Scenarios from their JSON form (docs/writing-scenarios.md)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from harness.agent import abi
from harness.arch import ARM64, named
from harness.errors import UsageError
from harness.policy.attachers import ATTACHERS
from harness.policy.state import Attached, State

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
    Unload,
    Write,
)

_Data = Mapping[str, Any]
#: What goes through virtme-ng and QEMU to the kernel as it is.
_BOOT_WORD = re.compile(r"[A-Za-z0-9_.,:=/-]+")


def _text(data: _Data, key: str) -> str:
    value = data.get(key)
    if not isinstance(value, str) or not value:
        raise UsageError(f"a step needs {key!r} as text: {json.dumps(dict(data))}")
    return value


def _flag(data: _Data, key: str) -> bool:
    value = data.get(key, False)
    if not isinstance(value, bool):
        raise UsageError(f"{key!r} is true or false: {json.dumps(dict(data))}")
    return value


def _one_of(data: _Data, key: str, known: Sequence[str], default: str | None = None) -> str:
    value = data.get(key, default) if default else _text(data, key)
    if value not in known:
        raise UsageError(f"there is no {key} {value!r}", f"known: {', '.join(known)}")
    return str(value)


def _function(name: object) -> str:
    if not isinstance(name, str) or (name != ANY and name not in FUNCTIONS):
        shown = [f.name for f in FUNCTIONS.values() if f.lane is None]
        raise UsageError(
            f"there is no function {name!r}",
            f"known: {ANY}, {', '.join(shown)}, and the lanes security_cohabit_000 ...",
        )
    return name


def _attach(data: _Data) -> Attach:
    several = data.get("functions", [data.get("function")])
    if not isinstance(several, list) or not several:
        raise UsageError(f"'functions' is a list of names: {json.dumps(dict(data))}")
    functions = tuple(_function(name) for name in several)
    if len(set(functions)) < len(functions):
        raise UsageError(f"a step names a function twice: {json.dumps(dict(data))}")
    identity, attacher = _text(data, "id"), _one_of(data, "attacher", tuple(ATTACHERS))
    if ATTACHERS[attacher].single and len(functions) > 1:
        raise UsageError(f"{attacher} goes on one function", "attach one for each")
    # A trampoline is told which function it serves by a lane's first argument only.
    several_of_a_slot = ATTACHERS[attacher].family == "direct" and len(functions) > 1
    if several_of_a_slot and any(f == ANY or FUNCTIONS[f].lane is None for f in functions):
        raise UsageError(f"{attacher} on several functions takes lanes only")
    far = _flag(data, "far")
    if far and ATTACHERS[attacher].family != "direct":
        raise UsageError(f"{attacher} has no far trampoline", "those of a module have one")
    return Attach(identity, attacher, functions, _flag(data, "unless_attached"), far)


def _write(data: _Data) -> Write:
    sysctl, value = _text(data, "sysctl"), _text(data, "value")
    if sysctl != FTRACE_ENABLED or value not in ("0", "1"):
        raise UsageError(
            f"cannot write {value!r} to {sysctl!r}", f"known: {FTRACE_ENABLED}, 0 or 1"
        )
    return Write(sysctl, value)


def _hold(data: _Data) -> Hold:
    holding = [f.name for f in FUNCTIONS.values() if f.holds]
    return Hold(_text(data, "id"), _one_of(data, "function", holding))


def _modify(data: _Data) -> Modify:
    alternate = data.get("alternate")
    if (
        not isinstance(alternate, int)
        or isinstance(alternate, bool)
        or alternate not in range(abi.ALTERNATES)
    ):
        raise UsageError(
            f"'alternate' is 0 or 1, or 2 or 3 for those far away: {json.dumps(dict(data))}"
        )
    return Modify(_text(data, "id"), alternate)


def _module(data: _Data) -> str:
    return _one_of(data, "module", (TEST_MODULE,))


def _unload(data: _Data) -> Unload:
    _module(data)
    return Unload()


def _load(data: _Data) -> Load:
    _module(data)
    return Load()


#: How each step is read, by its ``do``.
STEPS: dict[str, Callable[[_Data], Step]] = {
    "attach": _attach,
    "detach": lambda data: Detach(_text(data, "id")),
    "disable": lambda data: Disable(_text(data, "id")),
    "enable": lambda data: Enable(_text(data, "id")),
    "force": lambda data: Force(_text(data, "id")),
    "modify": _modify,
    "write": _write,
    "call": lambda data: Call(_one_of(data, "context", ("process", "softirq"), "process")),
    "hold": _hold,
    "release": lambda data: Release(_text(data, "id")),
    "unload": _unload,
    "load": _load,
    "misuse": lambda data: Misuse(_one_of(data, "what", MISUSES), _function(data.get("function"))),
}


def step_from_json(data: object) -> Step:
    """The step that a step object describes; raises UsageError for none."""
    if not isinstance(data, dict):
        raise UsageError(f"a step is an object, not {json.dumps(data)}")
    make = STEPS.get(str(data.get("do")))
    if make is None:
        raise UsageError(f"there is no step {data.get('do')!r}", f"known: {', '.join(STEPS)}")
    return make(data)


def _functions_of(step: Step) -> tuple[str, ...]:
    if isinstance(step, Attach):
        return step.functions
    return (step.function,) if isinstance(step, Hold | Misuse) else ()


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
    used = {f for step in parsed for f in _functions_of(step)}
    if functions is None:
        functions = sorted(used)
    if not isinstance(functions, list) or not functions:
        raise UsageError(f"scenario {name!r} needs functions to look at, each named once")
    looked_at = tuple(_function(f) for f in functions)
    if len(set(looked_at)) < len(looked_at):
        raise UsageError(f"scenario {name!r} needs functions to look at, each named once")
    if missing := used - set(looked_at):
        raise UsageError(
            f"scenario {name!r} uses {', '.join(sorted(missing))}, not among its functions"
        )
    _check_ids(name, parsed)
    return Scenario(
        name,
        looked_at,
        parsed,
        _matrix(name, data.get("matrix")),
        watch=_flag(data, "watch"),
        ends_vm=_flag(data, "ends_vm"),
        **_wants(name, parsed, data),
    )


def _wants(name: str, steps: Sequence[Step], data: _Data) -> dict[str, Any]:
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
    return {"arch": arch, "reach": str(reach), "boot": tuple(words)}


def _check_ids(name: str, steps: Sequence[Step]) -> None:
    """Raises UsageError for steps that don't go together, or ask for more than there is."""
    ids: set[str] = set()
    held: set[str] = set()
    state = State()
    unloaded = False
    for step in steps:
        unloaded = isinstance(step, Unload) or (unloaded and not isinstance(step, Load))
        if unloaded and any(f == ANY or FUNCTIONS[f].module for f in _functions_of(step)):
            raise UsageError(f"scenario {name!r}: {step} while {TEST_MODULE} may be unloaded")
        if isinstance(step, Attach):
            if step.id in ids and not step.unless_attached:
                raise UsageError(
                    f"scenario {name!r} attaches {step.id!r} twice",
                    'use another id, or "unless_attached": true',
                )
            ids.add(step.id)
            if state.get(step.id) is None:
                state = _attached(name, state, step)
        elif isinstance(step, Hold):
            if step.id in held:
                raise UsageError(f"scenario {name!r} holds {step.id!r} twice", "use another id")
            held.add(step.id)
        elif isinstance(step, Release):
            if step.id not in held:
                raise UsageError(f"scenario {name!r} releases {step.id!r}, which it never held")
        elif isinstance(step, Detach | Disable | Enable | Force | Modify):
            if step.id not in ids:
                raise UsageError(
                    f"scenario {name!r}: {step.do if not isinstance(step, Modify) else 'modify'} "
                    f"of {step.id!r}, which it never attaches before"
                )
            _check_kind(name, state, step)
            if isinstance(step, Detach):
                left = tuple(a for a in state.attached if a.id != step.id)
                state = State(attached=left)


def _attached(name: str, state: State, step: Attach) -> State:
    kind = ATTACHERS[step.attacher]
    slot = state.free_slot(step.attacher, step.functions)
    if slot == kind.slots:
        raise UsageError(
            f"scenario {name!r} attaches more than {slot} of {step.attacher} at a time",
            "detach one before",
        )
    here = {a.attacher for f in step.functions for a in state.on(f)}
    if not kind.twice and step.attacher in here:
        raise UsageError(
            f"scenario {name!r} attaches {step.attacher} twice to one function",
            "the kernel has one, which takes more functions but none twice",
        )
    return State(attached=(*state.attached, Attached(step.id, step.attacher, step.functions, slot)))


def _check_kind(name: str, state: State, step: Step) -> None:
    """Steps for livepatches are for livepatches, those for direct calls for direct calls."""
    attached = state.get(step.id) if isinstance(step, Modify | Disable | Enable | Force) else None
    if attached is None:
        return
    if isinstance(step, Modify):
        fits = attached.kind.direct and not attached.kind.bpf
    else:
        fits = attached.kind.ops == "livepatch"
    if not fits:
        raise UsageError(f"scenario {name!r}: {step} does not go with {attached.attacher}")


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
