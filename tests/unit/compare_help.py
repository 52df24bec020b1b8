# SPDX-License-Identifier: GPL-2.0-only
"""Runs for the tests of compare: made of events, and compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from policy_events import PAIR, PolicyRun, pairs
from recorded import RUNS
from sample_events import NEW, Event, SampleRun

from harness.report.compare import (
    Comparison,
    compare,
)
from harness.report.compareread import WholeRun

MANY = RUNS / "5.10-6.1-7.2-7.3"
THREE = ("livepatch", "fentry", "ops")


def fed(events: list[Event]) -> WholeRun:
    run = WholeRun()
    for number, event in enumerate(events):
        run.feed({**event, "seq": number})
    return run


def sample(trouble: dict[tuple[str, str], str] | None = None) -> list[Event]:
    """A run of nine pairs and one other scenario; ``trouble``: pairs that go wrong."""
    there = {(NEW, *pair): what for pair, what in (trouble or {}).items()}
    return SampleRun((NEW,), THREE, there).end()


def both(base: list[Event], head: list[Event]) -> Comparison:
    return compare(fed(base), fed(head))


def ids(comparison: Comparison) -> list[str]:
    return [change.id for change in comparison.changes]


def policy(troubled: bool = False) -> list[Event]:
    """A run with groups; an accident of the second is seen again alone, one of the first not."""
    some = list(pairs())[:192]
    if not troubled:
        return PolicyRun(some).end()
    accidents = {1: ("SPLAT", False), 2: ("CRASH", True)}
    return PolicyRun(some, [PAIR], accidents).end()


PASSED = ("fentry", "ops")
NAME = "pair/fentry+ops"


def edited(change: Callable[[Event], None], name: str = NAME, index: int = 1) -> list[Event]:
    """The sample with one step's two events changed (``predicted``, ``observed``)."""
    events: list[Event] = json.loads(json.dumps(sample()))
    scenario = next(e["scenario"] for e in events if e.get("name") == name)
    for event in events:
        if event.get("scenario") == scenario and event.get("index") == index:
            change(event)
    return events


def logged(*texts: str, level: Any = 4) -> list[Event]:
    log = [{"level": level, "t": 3.0 + n, "text": text} for n, text in enumerate(texts)]
    return edited(lambda event: event.update(log=log) if "log" in event else None)
