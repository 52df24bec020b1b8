# SPDX-License-Identifier: GPL-2.0-only
"""How much a ``stir`` tried, and what that says, in words (docs/consistency.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from harness import errno_names
from harness.consistency import CONFIDENCE, WRONG, Tried, first_wrong, tried
from harness.report.model import RunModel
from harness.report.views import HARMLESS, Scenario, Step

#: What has counted how often the call site was rewritten.
_COUNTED_BY = {
    "text-poke": "counted by a probe in the kernel's patching",
    "site": "seen by looks at the call site: no fewer",
}
_BY = {"kernel": "the kernel", "user": "user space"}

TCG = (
    "Under TCG: emulated CPUs run the same instructions, but they take turns, and how their "
    "memory accesses are ordered and how they interleave is QEMU's doing, so a rate that is "
    "excluded here is not excluded on a real machine."
)


@dataclass(frozen=True)
class Account:
    """What one scenario's stir has to tell; ``tcg``: whether emulated CPUs limit the claim."""

    scenario: Scenario
    step: Step
    stirred: Mapping[str, Any]
    tcg: bool

    @property
    def tried(self) -> Tried:
        """How much was tried."""
        return tried(self.stirred)

    @property
    def excluded(self) -> float | None:
        """The rate of wrong calls that is excluded; None where nothing can be said."""
        return self.tried.excluded if self.scenario.verdict in HARMLESS else None

    @property
    def excluded_inside(self) -> float | None:
        """The same of calls inside windows."""
        return self.tried.excluded_inside if self.scenario.verdict in HARMLESS else None


def of_step(step: Step) -> Mapping[str, Any] | None:
    """What came of a step that is a ``stir``, else None."""
    found = (step.observed or {}).get("stirred")
    return found if isinstance(found, Mapping) else None


def of_scenario(model: RunModel, scenario: Scenario) -> Account | None:
    """The account of a scenario that stirred, None of any other."""
    for step in scenario.steps:
        if (found := of_step(step)) is not None:
            vm = model.vms.get(scenario.vm)
            return Account(scenario, step, found, vm is not None and vm.accel == "tcg")
    return None


def accounts(model: RunModel, kernel: str) -> list[Account]:
    """All accounts of a kernel's scenarios that count."""
    found = (of_scenario(model, scenario) for scenario in model.of_kernel(kernel))
    return [account for account in found if account is not None]


def number(value: int) -> str:
    """``1,000,234``."""
    return f"{value:,}"


def rate(value: float) -> str:
    """``3.0e-06 (1 in 333,809)``."""
    return f"{value:.1e} (1 in {number(round(1 / value))})" if value else "0"


def lines(account: Account) -> list[str]:
    """All of it: what was tried, what that excludes, the first wrong call; TCG last."""
    return [*said(account), *([TCG] if account.tcg else [])]


def said(account: Account) -> list[str]:
    """The same without the sentence about TCG, which is alike for all of a kernel."""
    return [
        *_calls(account.tried),
        _patches(account.tried),
        *_windows(account.tried),
        *_excluded(account),
        *_first(account.stirred),
        *_refused(account),
        f"seed {account.stirred.get('seed', '?')}",
    ]


def brief(account: Account) -> str:
    """One line: calls, patches, and the rate that they exclude."""
    done = account.tried
    text = f"{number(done.calls)} calls, {number(done.patches)} patches"
    if done.inside:
        text += f", {number(done.inside)} calls inside windows"
    if done.wrong:
        return f"{text}: {number(done.wrong)} wrong"
    if account.excluded is None:
        return text
    return f"{text}: wrong calls above {rate(account.excluded)} excluded"


def _calls(done: Tried) -> Iterator[str]:
    places: dict[tuple[str, str], list[str]] = {}
    for (function, by, cpu), calls in done.hammers.items():
        places.setdefault((function, by), []).append(f"{number(calls)} on CPU {cpu}")
    each = "; ".join(
        f"{function} by {_BY.get(by, by)} {', '.join(where)}"
        for (function, by), where in places.items()
    )
    if each:
        yield f"{number(done.calls)} calls in {done.seconds:.1f} s: {each}"


def _patches(done: Tried) -> str:
    rounds = ", ".join(f"{number(n)} of {name}" for name, n in done.rounds.items())
    by = _COUNTED_BY.get(done.by, done.by)
    told = f" ({by})" if by else ""
    return f"{number(done.patches)} patches of the call site{told}; rounds: {rounds or 'none'}"


def _windows(done: Tried) -> Iterator[str]:
    if done.widen_us:
        yield (
            f"{number(done.windows)} windows held open for {number(done.widen_us)} us each: "
            f"{number(done.inside)} calls inside"
        )
    elif done.inside:
        yield f"{number(done.inside)} calls inside windows"


def _excluded(account: Account) -> Iterator[str]:
    sure, done = f"{CONFIDENCE:.0%}", account.tried
    if done.wrong:
        yield f"{number(done.wrong)} wrong, {done.wrong / max(done.calls, 1):.1e} of all calls"
    elif account.excluded is not None:
        text = f"no wrong call: a rate above {rate(account.excluded)} is excluded at {sure}"
        if account.excluded_inside is not None:
            text += f", of calls inside windows above {rate(account.excluded_inside)}"
        yield text
    elif done.calls:
        yield f"no wrong call was seen, but with {account.scenario.verdict} that excludes nothing"


def _first(stirred: Mapping[str, Any]) -> Iterator[str]:
    if (one := first_wrong(stirred)) is None:
        return
    kind = str(one["kind"])
    after = ""
    if "began" in stirred:
        after = f"{float(one['t']) - float(stirred['began']):.3f} s after the beginning, at "
    yield (
        f"the first wrong call: {one['function']} by {_BY.get(str(one['by']), one['by'])}, "
        f"{after}{float(one['t']):.6f} s on CPU {one['cpu']}, its call {number(int(one['call']))}, "
        f"{WRONG.get(kind, kind)}: {one['seen']}"
    )
    yield from (f"  {frame}" for frame in one.get("stack") or ())
    yield from (f"  meanwhile {words}" for words in one.get("meanwhile") or ())


def _refused(account: Account) -> Iterator[str]:
    """What stirrers' steps gave beside 0."""
    stirrers = {str(s.get("name")): s for s in account.step.spec.get("stirrers") or ()}
    for name, found in (account.stirred.get("outcomes") or {}).items():
        steps = (stirrers.get(name) or {}).get("steps") or ()
        told = [
            f"{steps[at].get('do', '?') if at < len(steps) else '?'} {errno_names.name(error)} "
            f"{number(times)} times"
            for at, error, times in found
            if error
        ]
        if told:
            yield f"{name} was refused: {', '.join(told)}"
    for name, words in (account.stirred.get("left") or {}).items():
        yield f"{name}: {words}"


def as_json(account: Account) -> dict[str, Any]:
    """For the JSON report."""
    done = account.tried
    return {
        "calls": done.calls,
        "wrong": done.wrong,
        "hammers": [
            {"function": function, "by": by, "cpu": cpu, "calls": calls}
            for (function, by, cpu), calls in done.hammers.items()
        ],
        "patches": done.patches,
        "patches_by": done.by,
        "windows": done.windows,
        "inside": done.inside,
        "widen_us": done.widen_us,
        "rounds": dict(done.rounds),
        "seconds": done.seconds,
        "seed": account.stirred.get("seed"),
        "confidence": CONFIDENCE,
        "excluded": account.excluded,
        "excluded_inside": account.excluded_inside,
        "first_wrong": first_wrong(account.stirred),
        "emulated": account.tcg,
    }
