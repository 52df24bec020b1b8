# SPDX-License-Identifier: GPL-2.0-only
"""Consistency while code changes: what a ``stir`` must give, and what came of it.

Pure: from the state, the step and the profile a promise (``expect``), from the promise and
the agent's result a judgement (``judge``), and how much all that can say (``tried``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.oracle import Mismatch
from harness.policy import concurrent, refusals, rules
from harness.policy.acts import planned, transition
from harness.policy.behaviour import behaviour
from harness.policy.predict import applies
from harness.policy.profile import Profile
from harness.policy.state import Attached, State
from harness.scenario.steps import Attach, Detach, Disable, Enable, Scenario, Stir, Write

#: With so much certainty a rate of wrong calls is excluded.
CONFIDENCE = 0.95

#: What each kind of wrong result is.
WRONG = {
    "body": "met a body that was not allowed then",
    "back": "met the old body after the new one",
    "args": "got its arguments changed",
    "none": "ran no body",
    "several": "ran more than one body",
    "result": "returned what no body returns",
}
_RULES = {
    "body": rules.IPMODIFY_CHOOSES_BODY.name,
    "back": rules.PENDING_TRANSITION.name,
}
#: What the agent counts no calls of (harness/agent/stir.py: Throughout).
_UNCOUNTED = frozenset({"tracer", "graph", "livepatch"})
#: In the agent's words for a stirrer that did not come back: the kernel said no to the end.
_REFUSED = re.compile(r"errno (\d+) to the end")


@dataclass(frozen=True)
class Throughout:
    """An attachment that is there all the time: how many calls it must have counted.

    All of its functions' (``exact``), or no more than those: while ftrace is off nobody is
    called.  ``direct``: what it counted is to be the sum over its trampolines, too.
    """

    functions: tuple[str, ...]
    exact: bool = True
    direct: bool = False

    def to_json(self) -> dict[str, Any]:
        """As in docs/events.md."""
        return {"functions": list(self.functions), "exact": self.exact, "direct": self.direct}


@dataclass(frozen=True)
class Expected:
    """What a stir promises, and how much of it has to be tried.

    ``allowed``: by function the bodies that calls of it may meet at all; ``throughout``:
    by id; ``hammers``: functions, and by whom; ``rounds`` by stirrer.
    """

    allowed: Mapping[str, frozenset[str]]
    throughout: Mapping[str, Throughout]
    hammers: tuple[tuple[str, str], ...]
    calls: int
    patches: int
    rounds: Mapping[str, int]
    cpus: int

    def to_json(self) -> dict[str, Any]:
        """As in docs/events.md."""
        return {
            "allowed": {f: sorted(bodies) for f, bodies in self.allowed.items()},
            "throughout": {i: one.to_json() for i, one in self.throughout.items()},
            "calls": self.calls,
            "patches": self.patches,
            "rounds": dict(self.rounds),
        }


@dataclass(frozen=True)
class Judgement:
    """``mismatches``: the kernel (or who stands for it) broke a promise; ``untrusted``: why
    nothing can be said, in words: the hammers are wrong, or too little was tried."""

    mismatches: tuple[Mismatch, ...] = ()
    untrusted: tuple[str, ...] = ()


# --- the promise ----------------------------------------------------------------------------


def expect(state: State, stir: Stir, profile: Profile, cpus: int) -> Expected:
    """What must come of a stir that begins in ``state``."""
    moved = {s.id for s in stir.steps if isinstance(s, Attach | Detach | Disable | Enable)}
    throughout = {
        a.id: Throughout(
            tuple(f for f in a.functions if f in stir.hammered),
            exact=not _may_be_off(state, stir, profile),
            direct=a.kind.direct and not a.kind.bpf,
        )
        for a in state.attached
        if a.id not in moved and _counts(state, a, stir, profile)
    }
    return Expected(
        allowed={f: concurrent.allowed(state, stir.stirrers, f, profile) for f in stir.hammered},
        throughout=throughout,
        hammers=tuple((hammer.function, hammer.by) for hammer in stir.hammers),
        calls=stir.calls,
        patches=stir.patches,
        rounds={stirrer.name: stir.rounds for stirrer in stir.stirrers},
        cpus=cpus,
    )


def _counts(state: State, attached: Attached, stir: Stir, profile: Profile) -> bool:
    """Whether it must see each call of what is hammered."""
    hammered = [f for f in attached.functions if f in stir.hammered]
    if (
        not attached.kind.counts
        or attached.kind.ops in _UNCOUNTED
        or attached.attacher == "instance"
    ):
        return False
    seen = (behaviour(state, f, profile).hits.get(attached.id) for f in hammered)
    return bool(hammered) and all(hits == 1 for hits in seen)


def _may_be_off(state: State, stir: Stir, profile: Profile) -> bool:
    """Whether a stirrer may turn ftrace off."""
    writes = any(isinstance(s, Write) and s.value == "0" for s in stir.steps)
    return writes and refusals.disabling_refused(state, profile) is None


def nothing_to_stir(scenario: Scenario, profile: Profile) -> str | None:
    """Why a scenario's stir means nothing on a kernel; None where it does.

    What is to stay is refused there, or whatever a stirrer is about.
    """
    state, stir = State(), scenario.stir
    if stir is None:
        return None
    for step in scenario.steps:
        if isinstance(step, Stir):
            break
        if isinstance(step, Attach) and (
            refused := refusals.refusal(state, planned(state, step), profile)
        ):
            return f"{step.attacher} cannot stay there on this kernel (rule {refused[1].name})"
        if applies(state, step):
            _, state = transition(state, step, profile)
    refusing = ""
    for stirrer in stir.stirrers:
        first = next((s for s in stirrer.steps if isinstance(s, Attach)), None)
        refused = refusals.refusal(state, planned(state, first), profile) if first else None
        if refused is None:
            # One that does something is enough; that others are refused is looked at, too.
            return None
        refusing = refused[1].name
    return f"all that is stirred is refused on this kernel (rule {refusing})"


# --- the judgement --------------------------------------------------------------------------


def judge(expected: Expected, stirred: Mapping[str, Any]) -> Judgement:
    """What the agent's result (docs/events.md: ``stirred``) says of the promise."""
    mismatches = (
        *_wrong(expected, stirred),
        *_exact(expected, stirred),
        *_left(stirred),
    )
    untrusted = (
        *_hammers(expected, stirred),
        *_stalled(expected, stirred),
        *_uncounted(expected, stirred),
        *_missing(expected, stirred),
    )
    return Judgement(mismatches, untrusted)


def _threads(stirred: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(stirred.get("hammers") or ())


def _told(thread: Mapping[str, Any]) -> str:
    return f"{thread['function']} by {_by(str(thread['by']))} on CPU {thread['cpu']}"


def _by(who: str) -> str:
    return {"kernel": "the kernel", "user": "user space"}.get(who, who)


def _wrong(expected: Expected, stirred: Mapping[str, Any]) -> list[Mismatch]:
    """One contradiction for each function and kind of wrong result."""
    counts: dict[tuple[str, str], int] = {}
    calls: dict[str, int] = {}
    first: dict[tuple[str, str], Mapping[str, Any]] = {}
    for thread in _threads(stirred):
        function = str(thread["function"])
        calls[function] = calls.get(function, 0) + int(thread["calls"])
        for kind, number in (thread.get("wrong") or {}).items():
            if number:
                counts[function, kind] = counts.get((function, kind), 0) + int(number)
        if one := thread.get("first"):
            key = function, str(one["kind"])
            known = first.get(key)
            if known is None or float(one["t"]) < float(known["t"]):
                first[key] = {**one, "by": thread["by"]}
    found = []
    for (function, kind), number in sorted(counts.items()):
        bodies = " or ".join(sorted(expected.allowed.get(function, ())))
        want = f"only {bodies}" if kind in ("body", "back") else "no such call"
        seen = f"{number} of {calls[function]} calls {WRONG.get(kind, kind)}"
        if one := first.get((function, kind)):
            seen += (
                f"; the first at {float(one['t']):.6f} s on CPU {one['cpu']}, call {one['call']} "
                f"by {_by(str(one['by']))}: {one['seen']}"
            )
        rule = _RULES.get(kind, rules.CALLS.name)
        found.append(Mismatch("consistency", f"{function} calls: {kind}", want, seen, rule))
    return found


def _exact(expected: Expected, stirred: Mapping[str, Any]) -> list[Mismatch]:
    """Those who were there all the time, who count each call."""
    found = []
    counted = stirred.get("throughout") or {}
    for identity, wanted in expected.throughout.items():
        if identity not in counted:
            continue
        one = counted[identity]
        calls = sum(int(t["calls"]) for t in _threads(stirred) if t["function"] in wanted.functions)
        hits, misses = int(one["hits"]), int(one.get("misses", 0))
        seen = f"{hits}" + (f" and {misses} misses" if misses else "")
        wrong = hits + misses != calls if wanted.exact else hits + misses > calls
        want = f"{calls}" if wanted.exact else f"at most {calls}"
        if wrong:
            difference = hits + misses - calls
            seen += f" ({difference:+d})"
            found.append(
                Mismatch("consistency", f"hits of {identity}", want, seen, rules.CALLS.name)
            )
        if wanted.direct and (via := one.get("via")) and sum(via.values()) != hits:
            told = ", ".join(f"{n} through {name}" for name, n in via.items())
            found.append(
                Mismatch(
                    "consistency", f"trampolines of {identity}", str(hits), told,
                    rules.MODIFY_MOVES.name,
                )
            )  # fmt: skip
    return found


def _left(stirred: Mapping[str, Any]) -> list[Mismatch]:
    """Stirrers that the kernel did not let come back to where they began."""
    return [
        Mismatch(
            "errno", f"the end of stirrer {name}", "as it was before", words,
            rules.DETACH_ALWAYS.name,
        )
        for name, words in (stirred.get("left") or {}).items()
        if _REFUSED.search(str(words))
    ]  # fmt: skip


def _hammers(expected: Expected, stirred: Mapping[str, Any]) -> list[str]:
    """Hammers whose own counts don't go together."""
    found = []
    for thread in _threads(stirred):
        calls, wrong = int(thread["calls"]), thread.get("wrong") or {}
        bodies = thread.get("bodies") or {}
        results = sum(bodies.values()) + wrong.get("none", 0) + wrong.get("result", 0)
        if results != calls:
            found.append(f"the hammer of {_told(thread)} has {results} results of {calls} calls")
        allowed = expected.allowed.get(str(thread["function"]), frozenset())
        others = sum(n for body, n in bodies.items() if body not in allowed)
        if others > wrong.get("body", 0):
            found.append(
                f"the hammer of {_told(thread)} took {others - wrong.get('body', 0)} calls for "
                "right that were not"
            )
        if failed := thread.get("failed"):
            found.append(f"the hammer of {_told(thread)} gave up: {failed}")
    for name, words in (stirred.get("left") or {}).items():
        if not _REFUSED.search(str(words)):
            found.append(f"{name} did not end as it should: {words}")
    return found


def _stalled(expected: Expected, stirred: Mapping[str, Any]) -> list[str]:
    """CPUs whose hammer made no call."""
    made = {(t["function"], t["by"], t["cpu"]): int(t["calls"]) for t in _threads(stirred)}
    cpus = max(expected.cpus, int(stirred.get("cpus", 0)))
    found = []
    if int(stirred.get("cpus", 0)) < expected.cpus:
        found.append(f"the machine has {stirred.get('cpus', 0)} CPUs, not {expected.cpus}")
    for function, by in expected.hammers:
        idle = [str(cpu) for cpu in range(cpus) if not made.get((function, by, cpu))]
        if idle:
            which = "CPU" if len(idle) == 1 else "CPUs"
            found.append(
                f"the hammer of {function} by {_by(by)} made no call on {which} {', '.join(idle)}"
            )
    return found


def _uncounted(expected: Expected, stirred: Mapping[str, Any]) -> list[str]:
    counted = stirred.get("throughout") or {}
    return [f"nobody counted the hits of {i}" for i in expected.throughout if i not in counted]


def _missing(expected: Expected, stirred: Mapping[str, Any]) -> list[str]:
    """What was tried too little of."""
    calls = sum(int(thread["calls"]) for thread in _threads(stirred))
    rounds = stirred.get("rounds") or {}
    parts = [
        f"{got} of {wanted} {what}"
        for what, got, wanted in (
            ("calls", calls, expected.calls),
            ("patches", int(stirred.get("patches", 0)), expected.patches),
            *(
                (f"rounds of {name}", int(rounds.get(name, 0)), wanted)
                for name, wanted in expected.rounds.items()
            ),
        )
        if got < wanted
    ]
    widened, windows = int(stirred.get("widen_us", 0)), int(stirred.get("windows", 0))
    if widened and not windows:
        parts.append("no window was held open")
    elif widened and not int(stirred.get("inside", 0)):
        parts.append(f"no call fell into any of {windows} windows")
    return [f"too little was tried: {', '.join(parts)}"] if parts else []


# --- how much it says -----------------------------------------------------------------------


def excluded(calls: int, confidence: float = CONFIDENCE) -> float:
    """The rate of wrong calls that none in so many exclude: a higher one would have shown."""
    if calls <= 0:
        return 1.0
    return float(1.0 - (1.0 - confidence) ** (1.0 / calls))


@dataclass(frozen=True)
class Tried:
    """How much was tried: all calls, and those inside windows; how many were wrong.

    ``hammers``: calls by function, by whom, and CPU; ``by``: what counted the patches.
    """

    calls: int
    wrong: int
    hammers: Mapping[tuple[str, str, int], int]
    patches: int
    by: str
    windows: int
    inside: int
    widen_us: int
    rounds: Mapping[str, int]
    seconds: float

    @property
    def excluded(self) -> float | None:
        """See ``excluded``; None where there were wrong ones."""
        return None if self.wrong or not self.calls else excluded(self.calls)

    @property
    def excluded_inside(self) -> float | None:
        """The same of calls inside windows; None where there were none."""
        return None if self.wrong or not self.inside else excluded(self.inside)


def tried(stirred: Mapping[str, Any]) -> Tried:
    """From the agent's result."""
    threads = _threads(stirred)
    return Tried(
        calls=sum(int(t["calls"]) for t in threads),
        wrong=sum(int(n) for t in threads for n in (t.get("wrong") or {}).values()),
        hammers={
            (str(t["function"]), str(t["by"]), int(t["cpu"])): int(t["calls"]) for t in threads
        },
        patches=int(stirred.get("patches", 0)),
        by=str(stirred.get("patches_by", "")),
        windows=int(stirred.get("windows", 0)),
        inside=int(stirred.get("inside", 0)),
        widen_us=int(stirred.get("widen_us", 0)),
        rounds={str(name): int(n) for name, n in (stirred.get("rounds") or {}).items()},
        seconds=float(stirred.get("elapsed", 0.0)),
    )


def first_wrong(stirred: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The first wrong call of all hammers, with ``function`` and ``by``; None if there was none."""
    found = [
        {**t["first"], "function": t["function"], "by": t["by"]}
        for t in _threads(stirred)
        if t.get("first")
    ]
    return min(found, key=lambda one: float(one["t"]), default=None)
