# SPDX-License-Identifier: GPL-2.0-only
"""The options that say how long, and how, functions are called while their code changes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from harness.errors import UsageError
from harness.scenario.parsestir import WIDEST_US
from harness.scenario.steps import Scenario, Stir

#: Seconds that it may last beyond those that it has to: to make up for what is missing then.
_MORE = 60


def add_options(parser: argparse._ActionsContainer) -> None:
    """Adds them; what is left out stays as a scenario has it."""
    group = parser.add_argument_group(
        "stirring",
        "for scenarios that call functions without a pause while their code changes (`cohabit list "
        "consistency`; docs/consistency.md)",
    )
    group.add_argument(
        "--calls", type=_number, metavar="N", help="calls that are wanted (usually 1000000)"
    )
    group.add_argument(
        "--patches", type=_number, metavar="N",
        help="how often the call site has to be rewritten (usually 1000)",
    )  # fmt: skip
    group.add_argument("--seconds", type=_number, metavar="N", help="go on for at least so long")
    group.add_argument(
        "--seed", type=_number, metavar="N", help="another seed of the pauses between steps"
    )
    group.add_argument(
        "--widen-us", type=_number, metavar="N",
        help="hold each window between two steps of a patch open for so many microseconds "
        "(x86-64)",
    )  # fmt: skip


def _number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 on")
    return int(text)


def _given(args: argparse.Namespace) -> dict[str, int]:
    """The options that were given, by their names in a ``stir``."""
    names = ("calls", "patches", "seconds", "seed", "widen_us")
    values = {name: getattr(args, name, None) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def overridden(scenarios: Sequence[Scenario], args: argparse.Namespace) -> tuple[Scenario, ...]:
    """The scenarios with what the options say instead of what they say themselves.

    Raises UsageError where an option was given and no scenario stirs, or for a value that
    there is not.
    """
    given = _given(args)
    if not given:
        return tuple(scenarios)
    first = "--" + next(iter(given)).replace("_", "-")
    if not any(scenario.stir for scenario in scenarios):
        raise UsageError(
            f"{first} is for scenarios that stir, and none of these does",
            "name some: `cohabit list consistency` shows them",
        )
    if given.get("widen_us", 0) > WIDEST_US:
        raise UsageError(f"--widen-us takes {WIDEST_US} at most")
    return tuple(_with(scenario, given) for scenario in scenarios)


def _with(scenario: Scenario, given: dict[str, int]) -> Scenario:
    steps = tuple(_stir(s, given) if isinstance(s, Stir) else s for s in scenario.steps)
    return replace(scenario, steps=steps)


def _stir(stir: Stir, given: dict[str, int]) -> Stir:
    changed: dict[str, Any] = dict(given)
    # Where nobody calls anything, or nothing is patched, none can be wanted.
    for name, there in (
        ("calls", stir.calls), ("patches", stir.patches), ("widen_us", len(stir.hammers)),
    ):  # fmt: skip
        if not there:
            changed.pop(name, None)
    if (seconds := changed.pop("seconds", None)) is not None:
        changed |= {"at_least": seconds, "seconds": max(stir.seconds, seconds + _MORE)}
    return replace(stir, **changed)
