# SPDX-License-Identifier: GPL-2.0-only
"""The picture of one scenario as a table: a column is a step and the state after it.

A lane is an attachment or a held call, with a bar from its coming to its going;
under them, a lane for each way in which the functions' bodies changed.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass

from harness.report import sites
from harness.report.views import Scenario, Step
from harness.report.words import errno_name, plural, short_title, some

#: Acts that change what a lane shows, and the CSS class from then on.
_BECOMES = {
    "attach": "on", "enable": "on", "hold": "on", "disable": "off", "detach": "", "release": "",
}  # fmt: skip
_REFUSED = "\N{BALLOT X}"


@dataclass(frozen=True)
class Head:
    """What stands over a column; ``number`` from 1; ``bad``: contradicted, or without result."""

    number: int
    text: str
    bad: bool


@dataclass(frozen=True)
class Part:
    """Neighbouring columns of a lane that show the same; ``kind`` has CSS classes.

    ``on`` is attached, ``off`` a disabled livepatch, ``no`` a promised refusal, ``un``
    another one or a step without a result, ``b0`` the function's own body, ``b1`` and
    so on another one's, ``ba`` a function that is not there.
    """

    span: int
    text: str
    kind: str


@dataclass(frozen=True)
class Lane:
    """A row; ``spans`` of its parts add up to the number of heads."""

    label: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Timeline:
    """Everything in the picture of a scenario."""

    heads: tuple[Head, ...]
    lanes: tuple[Lane, ...]


def build(scenario: Scenario) -> Timeline:
    """The picture of the steps that were begun; one that did not apply has no column."""
    steps = scenario.steps
    lanes = {name: f"{name} {attacher}" for name, attacher in scenario.attacher_of.items()}
    for step in steps:
        if step.do == "hold":
            lanes.setdefault(str(step.spec.get("id")), f"{step.spec.get('id')} held call")
    return Timeline(
        tuple(_head(step, lanes) for step in steps),
        (
            *(Lane(label, _merged(_lane(steps, name))) for name, label in lanes.items()),
            *_bodies(scenario),
            *_sites(scenario),
        ),
    )


def _head(step: Step, lanes: Container[str]) -> Head:
    text = short_title(step.spec)
    if step.refused and str(step.spec.get("id")) not in lanes:
        text += f" {_REFUSED} {errno_name(step.errno)}"
    return Head(step.index + 1, text, bool(step.mismatches) or step.observed is None)


def _lane(steps: tuple[Step, ...], name: str) -> Iterator[tuple[str, str]]:
    """(text, kind) for each step."""
    state = ""
    for step in steps:
        mine = step.spec.get("id") == name
        if mine and step.errno == 0:
            state = _BECOMES.get(step.do, state)
        if mine and step.errno != 0:
            text = f"{_REFUSED} {errno_name(step.errno)}" if step.errno else "no result"
            yield text, f"{state} {'no' if step.errno and step.as_predicted else 'un'}".strip()
        else:
            counted = _hits(step, name)
            yield "" if counted is None else plural(counted, "hit"), state


def _hits(step: Step, name: str) -> int | None:
    """Hits over all functions; None where none were counted."""
    behaviour = ((step.observed or {}).get("behaviour") or {}).values()
    counts = [(b or {}).get("hits", {}).get(name) for b in behaviour]
    known = [int(n) for n in counts if n is not None]
    return sum(known) if known else None


def _sites(scenario: Scenario) -> Iterator[Lane]:
    """What was at the call sites that were looked at."""
    seen = [dict(sites.of_step(step)) for step in scenario.steps]
    for function in scenario.functions:
        if any(function in found for found in seen):
            words = [sites.brief(found[function]) if function in found else "" for found in seen]
            yield Lane(f"call site of {function}()", _merged((text, "") for text in words))


def _bodies(scenario: Scenario) -> Iterator[Lane]:
    """Functions whose bodies changed alike share a lane."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for function in scenario.functions:
        alike.setdefault(tuple(_body(s, function) for s in scenario.steps), []).append(function)
    kinds = {"": "", "original": "b0", "absent": "ba"}
    for bodies, functions in alike.items():
        for body in bodies:
            others = sum(kind not in ("", "b0", "ba") for kind in kinds.values())
            kinds.setdefault(body, f"b{min(others + 1, 3)}")
        label = some([f"{f}()" for f in functions], 1)
        if len(scenario.functions) == 1:
            label = "body that ran"
        yield Lane(label, _merged((body, kinds[body]) for body in bodies))


def _body(step: Step, function: str) -> str:
    behaviour = ((step.observed or {}).get("behaviour") or {}).get(function) or {}
    return str(behaviour.get("body", ""))


def _merged(columns: Iterable[tuple[str, str]]) -> tuple[Part, ...]:
    parts: list[Part] = []
    for text, kind in columns:
        last = parts[-1] if parts else None
        if last is not None and (last.text, last.kind) == (text, kind):
            parts[-1] = Part(last.span + 1, text, kind)
        else:
            parts.append(Part(1, text, kind))
    return tuple(parts)
