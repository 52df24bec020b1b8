# SPDX-License-Identifier: GPL-2.0-only
"""Steps and scenarios, and their JSON form (docs/writing-scenarios.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.errors import UsageError
from harness.policy.attachers import ATTACHERS
from harness.policy.state import Attached, State

from .functions import FUNCTIONS

FTRACE_ENABLED = "kernel.ftrace_enabled"


@dataclass(frozen=True)
class Attach:
    """Attach ``attacher`` to ``function`` under the name ``id``.

    ``unless_attached``: left out when that id is attached already; with it one
    scenario serves kernels that refused the id before and kernels that did not.
    """

    id: str
    attacher: str
    function: str
    unless_attached: bool = False

    def to_json(self) -> dict[str, Any]:
        """The step object."""
        step: dict[str, Any] = {
            "do": "attach", "id": self.id, "attacher": self.attacher, "function": self.function
        }  # fmt: skip
        if self.unless_attached:
            step["unless_attached"] = True
        return step

    def __str__(self) -> str:
        return f"attach {self.id}: {self.attacher} to {self.function}"


@dataclass(frozen=True)
class Detach:
    """Detach what was attached as ``id``; left out when that was refused."""

    id: str

    def to_json(self) -> dict[str, Any]:
        """The step object."""
        return {"do": "detach", "id": self.id}

    def __str__(self) -> str:
        return f"detach {self.id}"


@dataclass(frozen=True)
class Write:
    """Write ``value`` to a sysctl."""

    sysctl: str
    value: str

    def to_json(self) -> dict[str, Any]:
        """The step object."""
        return {"do": "write", "sysctl": self.sysctl, "value": self.value}

    def __str__(self) -> str:
        return f"write {self.value} to {self.sysctl}"


@dataclass(frozen=True)
class Call:
    """Only call the functions and look."""

    def to_json(self) -> dict[str, Any]:
        """The step object."""
        return {"do": "call"}

    def __str__(self) -> str:
        return "call"


Step = Attach | Detach | Write | Call


def _text(data: Mapping[str, Any], key: str) -> str:
    value = data.get(key)
    if not isinstance(value, str) or not value:
        raise UsageError(f"a step needs {key!r} as text: {json.dumps(dict(data))}")
    return value


def step_from_json(data: object) -> Step:
    """The step that a step object describes; raises UsageError for none."""
    if not isinstance(data, dict):
        raise UsageError(f"a step is an object, not {json.dumps(data)}")
    do = data.get("do")
    if do == "attach":
        unless_attached = data.get("unless_attached", False)
        if not isinstance(unless_attached, bool):
            raise UsageError(f"'unless_attached' is true or false: {json.dumps(data)}")
        step = Attach(
            _text(data, "id"), _text(data, "attacher"), _text(data, "function"), unless_attached
        )
        if step.attacher not in ATTACHERS:
            raise UsageError(
                f"there is no attacher {step.attacher!r}", f"known: {', '.join(ATTACHERS)}"
            )
        if step.function not in FUNCTIONS:
            raise UsageError(
                f"there is no function {step.function!r}", f"known: {', '.join(FUNCTIONS)}"
            )
        if step.attacher == "fmod_ret" and not FUNCTIONS[step.function].fmod_ret:
            able = ", ".join(f.name for f in FUNCTIONS.values() if f.fmod_ret)
            raise UsageError(
                f"fmod_ret does not go on {step.function}",
                f"BPF takes it on error-injectable and security_* functions only: {able}",
            )
        return step
    if do == "detach":
        return Detach(_text(data, "id"))
    if do == "write":
        sysctl, value = _text(data, "sysctl"), _text(data, "value")
        if sysctl != FTRACE_ENABLED or value not in ("0", "1"):
            raise UsageError(
                f"cannot write {value!r} to {sysctl!r}", f"known: {FTRACE_ENABLED}, 0 or 1"
            )
        return Write(sysctl, value)
    if do == "call":
        return Call()
    raise UsageError(f"there is no step {do!r}", "known: attach, detach, write, call")


@dataclass(frozen=True)
class Scenario:
    """``matrix``: the two attachers in their order, where this is a cell of the pair matrix."""

    name: str
    functions: tuple[str, ...]
    steps: tuple[Step, ...]
    matrix: tuple[str, str] | None = None

    @property
    def attachers(self) -> frozenset[str]:
        """All attachers in it."""
        return frozenset(s.attacher for s in self.steps if isinstance(s, Attach))

    def to_json(self) -> dict[str, Any]:
        """The replay form."""
        data: dict[str, Any] = {
            "name": self.name,
            "functions": list(self.functions),
            "steps": [step.to_json() for step in self.steps],
        }
        if self.matrix:
            data["matrix"] = list(self.matrix)
        return data


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
    attached = {s.function for s in parsed if isinstance(s, Attach)}
    if functions is None:
        functions = sorted(attached)
    if not isinstance(functions, list) or not all(
        isinstance(f, str) and f in FUNCTIONS for f in functions
    ):
        raise UsageError(f"scenario {name!r}: functions must be of {', '.join(FUNCTIONS)}")
    if not functions or len(set(functions)) < len(functions):
        raise UsageError(f"scenario {name!r} needs functions to look at, each named once")
    if missing := attached - set(functions):
        raise UsageError(
            f"scenario {name!r} attaches to {', '.join(sorted(missing))}, not among its functions"
        )
    _check_ids(name, parsed)
    return Scenario(name, tuple(functions), parsed, _matrix(name, data.get("matrix")))


def _check_ids(name: str, steps: Sequence[Step]) -> None:
    """Raises UsageError for steps that don't go together, or ask for more than there is."""
    ids: set[str] = set()
    state = State()
    for step in steps:
        if isinstance(step, Detach):
            if step.id not in ids:
                raise UsageError(
                    f"scenario {name!r} detaches {step.id!r}, which it never attaches before"
                )
            state = state.without(step.id)
        elif isinstance(step, Attach):
            if step.id in ids and not step.unless_attached:
                raise UsageError(
                    f"scenario {name!r} attaches {step.id!r} twice",
                    'use another id, or "unless_attached": true',
                )
            ids.add(step.id)
            if state.get(step.id):
                continue
            slot = state.free_slot(step.attacher, step.function)
            if slot == ATTACHERS[step.attacher].slots:
                raise UsageError(
                    f"scenario {name!r} attaches more than {slot} of {step.attacher} at a time",
                    "detach one before",
                )
            state = state.with_attached(Attached(step.id, step.attacher, step.function, slot))


def _matrix(name: str, value: object) -> tuple[str, str] | None:
    if value is None:
        return None
    if not (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(v, str) and v in ATTACHERS for v in value)
    ):
        raise UsageError(f"scenario {name!r}: matrix names two attachers, first and second")
    return value[0], value[1]
