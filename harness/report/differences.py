# SPDX-License-Identifier: GPL-2.0-only
"""What differs between the kernels of a run, scenario by scenario, grouped.

Two kernels are compared step by step until an errno differs: from there on
they are in different states, and any further difference only follows from it.
Equal differences of several scenarios make one group, so that "refused here,
accepted there" is one line and not eighty.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from harness.report.model import RunModel
from harness.report.views import Scenario, Step
from harness.report.words import bodies, errno_name, flags, step_title


@dataclass(frozen=True)
class Difference:
    """``what`` differs in the scenarios ``names``; ``values`` has one text a kernel."""

    what: str
    values: tuple[str, ...]
    names: tuple[str, ...]

    def by_value(self, kernels: list[str]) -> dict[str, list[str]]:
        """Each value with the kernels that have it; ``kernels`` as in ``find``."""
        found: dict[str, list[str]] = {}
        for kernel, value in zip(kernels, self.values, strict=True):
            found.setdefault(value, []).append(kernel)
        return found


def find(model: RunModel) -> list[Difference]:
    """The groups: verdicts and errnos first, then bodies, then flags; empty for one kernel.

    ``values`` are in the order of ``model.kernels``; ``not run`` where a kernel
    has no such scenario.
    """
    kernels = list(model.kernels)
    if len(kernels) < 2:
        return []
    by_name: dict[str, dict[str, Scenario]] = {}
    for scenario in model.scenarios:
        by_name.setdefault(scenario.name, {})[scenario.kernel] = scenario
    groups: dict[tuple[int, str, tuple[str, ...]], list[str]] = {}
    for name, found in by_name.items():
        for rank, what, values in _compare([found.get(k) for k in kernels]):
            groups.setdefault((rank, what, values), []).append(name)
    ordered = sorted(groups.items(), key=lambda item: (item[0][0], -len(item[1])))
    return [Difference(what, values, tuple(names)) for (_, what, values), names in ordered]


def _compare(runs: list[Scenario | None]) -> list[tuple[int, str, tuple[str, ...]]]:
    """(rank, what, value by kernel) for each difference of one scenario."""
    result: dict[tuple[int, str, tuple[str, ...]], None] = {}
    ran = [s for s in runs if s is not None]

    def compare(facts: list[dict[tuple[int, str], str]], missing: str) -> bool:
        differs = False
        for rank, what in dict.fromkeys(key for f in facts for key in f):
            found = [f.get((rank, what), missing) for f in facts]
            if len(set(found)) > 1:
                differs = True
                texts = iter(found)
                values = tuple("not run" if s is None else next(texts) for s in runs)
                result[rank, what, values] = None
        return differs

    compare([{(0, "verdict"): s.verdict} for s in ran], "")
    names = [renumbered(s) for s in ran]
    for index in range(min((len(s.steps) for s in ran), default=0)):
        label = _label(ran[0], index)
        steps = [s.steps[index] for s in ran]
        if any(step.observed is None for step in steps):
            break
        if compare([{(1, f"errno of {label}"): errno_name(s.errno)} for s in steps], ""):
            break
        compare(
            [_bodies(step, own, label) for step, own in zip(steps, names, strict=True)], "no body"
        )
        compare([_flags(step) for step in steps], "not set")
    return list(result)


def _bodies(step: Step, names: dict[str, str], label: str) -> dict[tuple[int, str], str]:
    found = {f: names[body] for f, body in bodies(step).items()}
    if len(set(found.values())) == 1:
        return {(2, f"body that runs after {label}"): next(iter(found.values()))}
    return {(2, f"body of {f} that runs after {label}"): body for f, body in found.items()}


def renumbered(scenario: Scenario) -> dict[str, str]:
    """Bodies to names by the order in which the scenario came to them.

    Which slot an attachment gets depends on what else runs beside it on that kernel.
    """
    names: dict[str, str] = {}
    kinds: Counter[str] = Counter()
    for step in scenario.steps:
        for body in bodies(step).values():
            kind, dash, slot = body.rpartition("-")
            if not dash:
                names[body] = body
            elif body not in names:
                number = kinds[kind]
                names[body] = f"{kind}-{chr(ord('a') + number) if slot.isalpha() else number}"
                kinds[kind] += 1
    return names


def _flags(step: Step) -> dict[tuple[int, str], str]:
    found = flags(step)
    if len(set(found.values())) == 1:
        return {(3, f"flag {x}"): "set" for x in sorted(next(iter(found.values())))}
    return {(3, f"flag {x} of {f}"): "set" for f, letters in found.items() for x in sorted(letters)}


def _label(scenario: Scenario, index: int) -> str:
    """A name for a step that scenarios of the same shape share, so that they group."""
    step = scenario.steps[index]
    if step.do in {"attach", "detach"}:
        same = [s for s in scenario.steps if s.do == step.do]
        ordinal = ("first", "second", "third")[n] if (n := same.index(step)) < 3 else f"{n + 1}th"
        return f"{ordinal} {step.do}"
    return step_title(step.spec, scenario.attacher_of)
