# SPDX-License-Identifier: GPL-2.0-only
"""The picture of one scenario as numbers: lanes, bars, crosses and bands, in pixels.

A column is a step and the state after it.  A lane is an attachment, its bar runs
from attach to detach; under the lanes, one band a function says which body ran.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from harness.report.views import Scenario, Step
from harness.report.words import errno_name, plural

LEFT, COLUMN, HEAD, ROW = 136, 92, 40, 28
_PAD = 8


@dataclass(frozen=True)
class Mark:
    """A text at a place; ``kind`` is its CSS class."""

    x: int
    y: int
    text: str
    kind: str = ""


@dataclass(frozen=True)
class Block:
    """A rectangle (a bar or a part of a band) and the text in it."""

    x: int
    y: int
    width: int
    text: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Head:
    """What stands over a column: the step's number (from 1) and act."""

    x: int
    number: int
    text: str
    bad: bool


@dataclass(frozen=True)
class Timeline:
    """Everything in the picture of a scenario."""

    width: int
    height: int
    heads: tuple[Head, ...]
    labels: tuple[Mark, ...]
    bars: tuple[Block, ...]
    crosses: tuple[Mark, ...]
    hits: tuple[Mark, ...]
    bands: tuple[Block, ...]


def build(scenario: Scenario) -> Timeline:
    """The picture of the steps that were begun; one that did not apply has no column."""
    steps = tuple(replace(step, index=column) for column, step in enumerate(scenario.steps))
    attachments = list(scenario.attachers().items())
    functions = list(scenario.functions)
    labels, bars, crosses, hits = [], [], [], []
    for row, (name, attacher) in enumerate(attachments):
        y = HEAD + row * ROW
        labels.append(Mark(0, y, f"{name} {attacher}"))
        for begin, end in _spans(steps, name):
            bars.append(Block(_x(begin), y, _x(end) - _x(begin)))
        for step in steps:
            if step.do == "attach" and step.spec.get("id") == name and step.errno != 0:
                why = errno_name(step.errno)
                crosses.append(Mark(_x(step.index), y, why, "no" if step.refused else "un"))
        hits += [Mark(_x(i) + _PAD, y, plural(n, "hit")) for i, n in _hits(steps, name)]
    bands = []
    for row, function in enumerate(functions, len(attachments)):
        y = HEAD + row * ROW
        labels.append(Mark(0, y, f"{function}()" if len(functions) > 1 else "body that ran", "fn"))
        bands += _band(steps, function, y)
    return Timeline(
        width=_x(len(steps)) + _PAD,
        height=HEAD + (len(attachments) + len(functions)) * ROW,
        heads=tuple(_head(step, column) for column, step in enumerate(scenario.steps)),
        labels=tuple(labels),
        bars=tuple(bars),
        crosses=tuple(crosses),
        hits=tuple(hits),
        bands=tuple(bands),
    )


def _x(column: int) -> int:
    return LEFT + column * COLUMN


def _head(step: Step, column: int) -> Head:
    text = f"{step.do} {step.spec.get('id', '')}".strip()
    return Head(_x(column), step.index + 1, text, bool(step.mismatches) or step.observed is None)


def _spans(steps: tuple[Step, ...], name: str) -> list[tuple[int, int]]:
    """Columns from which and to which an attachment was there."""
    spans: list[tuple[int, int]] = []
    begin: int | None = None
    for step in steps:
        if step.spec.get("id") != name or step.errno != 0:
            continue
        if step.do == "attach":
            begin = step.index
        elif step.do == "detach" and begin is not None:
            spans.append((begin, step.index))
            begin = None
    return spans if begin is None else [*spans, (begin, len(steps))]


def _hits(steps: tuple[Step, ...], name: str) -> list[tuple[int, int]]:
    """(step, hits per call) where the attachment's hits were counted."""
    found = []
    for step in steps:
        behaviour = ((step.observed or {}).get("behaviour") or {}).values()
        counts = [(b or {}).get("hits", {}).get(name) for b in behaviour]
        known = [int(n) for n in counts if n is not None]
        if known:
            found.append((step.index, sum(known)))
    return found


def _band(steps: tuple[Step, ...], function: str, y: int) -> list[Block]:
    """Neighbouring steps with the same body are one part."""
    parts: list[Block] = []
    kinds = {"original": "b0"}
    for step in steps:
        behaviour = ((step.observed or {}).get("behaviour") or {}).get(function) or {}
        body = str(behaviour.get("body", ""))
        x = _x(step.index)
        if not body:
            continue
        kind = kinds.setdefault(body, f"b{min(len(kinds), 3)}")
        last = parts[-1] if parts else None
        if last is not None and last.text == body and last.x + last.width == x:
            parts[-1] = Block(last.x, y, last.width + COLUMN, body, kind)
        else:
            parts.append(Block(x, y, COLUMN, body, kind))
    return parts
