# SPDX-License-Identifier: GPL-2.0-only
"""Path independence: who is on a function decides what is seen of it, not how they got there.

Pure: the events of runs (docs/events.md) go in.  Of each set of attachers on a function
the record, the behaviour and the errno of each next act are collected, and all pairs of
histories that differ in them are reported.  What is known to depend on the past is
excepted by name (harness/histories.py).  Nothing here asks the model: what is attached is
what the kernel said.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from harness import oracle
from harness.agent import abi
from harness.histories import EXCEPTIONS, Difference, History, Pair, Past, Place
from harness.policy.attachers import ATTACHERS, Attacher
from harness.policy.state import Attached
from harness.scenario.functions import FUNCTIONS

Event = Mapping[str, Any]
#: What is compared, by its name, such as ``flag R`` or ``hits of ops#1``.
View = tuple[tuple[str, str], ...]


# --- walking a scenario -----------------------------------------------------------------------


@dataclass
class _Function:
    """A function as the kernel's answers have it."""

    order: list[str] = field(default_factory=list)
    armed: bool = False
    left_regs: bool = False


@dataclass
class _Walk:
    """One scenario, step by step.

    ``special``: something was done after which nothing is compared any more; ``held``,
    ``unloaded``, ``off`` and ``pending``: calls in progress, the module of the functions
    gone, ftrace turned off and livepatch transitions, meanwhile; ``breakpoints``: kprobes
    are no users of ftrace, so that what they were has no bearing on any record.
    """

    kernel: str
    title: str
    functions: tuple[str, ...]
    here: list[Attached] = field(default_factory=list)
    past: dict[str, _Function] = field(default_factory=dict)
    step: Event = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    breakpoints: bool = False
    special: bool = False
    unloaded: bool = False
    off: bool = False
    pending: bool = False
    found: list[tuple[Place, View, History]] = field(default_factory=list)

    @property
    def comparable(self) -> bool:
        return not (self.special or self.off or self.pending or self.held or self.unloaded)

    def on(self, function: str) -> list[Attached]:
        return [a for a in self.here if function in a.functions]

    def history(self, function: str, index: int) -> History:
        past = self.past[function]
        elsewhere = any(p.armed for f, p in self.past.items() if f != function)
        return History(
            self.title, index, tuple(past.order), Past(past.armed, past.left_regs, elsewhere)
        )

    def done(self, index: int, seen: Event) -> None:
        """Takes what a step gave."""
        error, step = int(seen["errno"]), self.step
        self._answer(index, error)
        getattr(self, f"_do_{step['do']}", self._something)(error)
        patches = seen["livepatch"]
        for patch in [a for a in self.here if a.kind.ops == "livepatch"]:
            # Disabled, displaced, or gone though its module is not: it has no files then.
            if patch.module not in patches:
                self._gone(patch)
        self.pending = any(values["transition"] for values in patches.values())
        self.off = seen["sysctl"]["kernel.ftrace_enabled"] != 1
        if self.comparable:
            for function in self.functions:
                if function in FUNCTIONS and function in seen["behaviour"]:
                    self._look(index, function, seen)

    # --- what each step does ----------------------------------------------------------------

    def _do_attach(self, error: int) -> None:
        step = self.step
        functions = tuple(step.get("functions") or [step["function"]])
        new = Attached(step["id"], step["attacher"], functions, int(step["slot"]))
        if error:
            self._note("!", new)
            return
        if exclusive := new.kind.exclusive:
            # kernel/trace/trace.c: tracing_set_tracer. The old one has gone by then.
            for other in [a for a in self.here if a.kind.exclusive == exclusive]:
                if other.attacher != new.attacher:
                    self._gone(other)
        arms = new.kind.posts and not self.breakpoints
        for function in functions:
            if arms and not any(a.kind.ops == "kprobe" for a in self.on(function)):
                self.past[function].armed = True
        self.here.append(new)
        self._note("+", new)

    def _do_detach(self, error: int) -> None:
        gone = self._named()
        if gone and not error:
            self._gone(gone)

    def _do_hold(self, error: int) -> None:
        self.held.add(self.step["id"])

    def _do_release(self, error: int) -> None:
        self.held.discard(self.step["id"])

    def _do_misuse(self, error: int) -> None:
        self.special = self.special or not error

    def _do_unload(self, error: int) -> None:
        """Whoever is on a module that goes keeps half of what it has; if nobody is, it is new
        when it comes back."""
        if error:
            return
        gone = [f for f in self.functions if f in FUNCTIONS and FUNCTIONS[f].module]
        self.special = self.special or any(self.on(f) for f in gone)
        self.unloaded = True
        for function in gone:
            self.past[function] = _Function([*self.past[function].order, "(unloaded)"])

    def _do_load(self, error: int) -> None:
        self.unloaded = self.unloaded and bool(error)

    def _do_force(self, error: int) -> None:
        self.special = self.special or not error

    def _something(self, error: int) -> None:
        """What changes nobody's being there, or is seen in the sysctl or among livepatches."""

    def _named(self) -> Attached | None:
        return next((a for a in self.here if a.id == self.step["id"]), None)

    def _note(self, sign: str, attached: Attached) -> None:
        for function in attached.functions:
            self.past[function].order.append(sign + attached.attacher)

    def _gone(self, attached: Attached) -> None:
        self._note("-", attached)
        self.here.remove(attached)
        kind = attached.kind
        for function in attached.functions:
            past, left = self.past[function], self.on(function)
            # kernel/trace/ftrace.c: the ops that stays for other functions is a kprobe's,
            # or one of all direct calls (5.15 and older, 7.0 and newer).
            past.left_regs |= (kind.ops == "kprobe" or kind.direct) and not self.breakpoints
            past.left_regs &= bool(left)
            past.armed &= any(a.kind.ops == "kprobe" for a in left)

    # --- what is seen -----------------------------------------------------------------------

    def _answer(self, index: int, error: int) -> None:
        """The errno of an act on one function, which depends on who was there before."""
        step = self.step
        if not self.comparable or step["do"] not in ("attach", "detach"):
            return
        named = self._named()
        if step["do"] == "attach":
            functions = tuple(step.get("functions") or [step["function"]])
            attacher = step["attacher"]
        elif named is None:
            return
        else:
            functions, attacher = named.functions, named.attacher
        if len(functions) != 1 or functions[0] not in FUNCTIONS:
            return
        place = Place.of(
            self.kernel,
            self.on(functions[0]),
            f"{step['do']} {attacher}",
            _where(functions[0], ATTACHERS[attacher]),
        )
        view = (("errno", oracle.errno_text(error)),)
        self.found.append((place, view, self.history(functions[0], index)))

    def _look(self, index: int, function: str, seen: Event) -> None:
        here = self.on(function)
        roles = _roles(here)
        bodies = {a.body: roles[a.id] for a in here}
        behaviour = seen["behaviour"][function]
        view = _record_view(seen["registry"].get(function))
        view["body"] = bodies.get(behaviour["body"], behaviour["body"])
        for identity, hits in behaviour["hits"].items():
            if identity in roles or hits:
                view[f"hits of {roles.get(identity, 'one that is not there')}"] = str(hits)
        history = self.history(function, index)
        self.found.append((Place.of(self.kernel, here), tuple(sorted(view.items())), history))
        if (body := _returned(function, behaviour["ret"])) is not None:
            place = Place.of(self.kernel, here, "return value")
            self.found.append((place, (("of", bodies.get(body, body)),), history))


def _roles(here: Iterable[Attached]) -> dict[str, str]:
    """For each attachment's id its attacher and a number, by their order of arrival.

    So the one order that matters is in it: the newest livepatch and the newest fmod_ret
    program decide, and they are the last of their number.
    """
    numbers: dict[str, int] = {}
    roles = {}
    for attached in here:
        number = numbers[attached.attacher] = numbers.get(attached.attacher, 0) + 1
        roles[attached.id] = f"{attached.attacher}#{number}"
    return roles


def _where(function: str, kind: Attacher) -> str:
    """What of a function may decide whether an attacher may go there at all."""
    if not kind.bpf:
        return ""
    target = FUNCTIONS[function]
    words = []
    if target.nr_args > 6:
        words.append(f"with {target.nr_args} arguments")
    if kind.name == "fmod_ret" and not target.fmod_ret:
        words.append("that takes no fmod_ret")
    return " ".join(words)


def _record_view(record: Event | None) -> dict[str, str]:
    if record is None:
        return {"record": "none"}
    direct = str(record["direct"] or "none")
    # Which of them, and whether it lies near or far, a scenario chooses.
    if direct.startswith("bpf_trampoline_"):
        direct = "bpf_trampoline_*"
    elif direct.startswith(("cohabit_direct_tramp_", "cohabit_far_tramp_")):
        direct = "cohabit_*_tramp_*"
    return {
        "record": "there",
        "count": str(record["count"]),
        **{f"flag {letter}": "yes" for letter in record["flags"]},
        "direct": direct,
        "jmp": "yes" if record["jmp"] else "no",
        "ops": str(record.get("ops", "none")),
    }


def _returned(function: str, value: int | None) -> str | None:
    """The body that a return value tells of; None where nobody saw one, or it tells nothing."""
    target = FUNCTIONS[function]
    if value is None or target.witnessed == "text":
        return None
    if target.witnessed == "tag":
        return abi.body_of_tag(value >> 32)
    return abi.body_of_tag(-value - abi.ERRNO_BASE) if value else "original"


# --- all of them ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Disagreement:
    """Two histories of one place that differ, and in what.

    ``times``: how many more histories show the one and the other; ``excepted``: names of
    the exceptions that cover all differences, empty where one is not covered.
    """

    pair: Pair
    differences: tuple[Difference, ...]
    times: tuple[int, int]
    excepted: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For ``cohabit paths --json``."""
        place = self.pair.place
        return {
            "kernel": place.kernel,
            "attachers": list(place.attachers),
            "asks": place.asks,
            "where": place.where,
            "differences": [vars(d) for d in self.differences],
            "histories": [
                {"scenario": h.scenario, "step": h.step, "order": list(h.order), "times": times}
                for h, times in zip((self.pair.first, self.pair.second), self.times, strict=True)
            ],
            "excepted": list(self.excepted),
        }


@dataclass
class Report:
    """What was looked at, and what disagrees.

    ``observations`` of ``places``; ``several``: places that more than one order led to;
    ``left_out``: scenarios that ended in a known difference, by its name.
    """

    observations: int
    places: int
    several: int
    disagreements: list[Disagreement]
    left_out: dict[str, int]

    @property
    def unexplained(self) -> list[Disagreement]:
        """Those that no exception covers."""
        return [d for d in self.disagreements if not d.excepted]


@dataclass
class _Seen:
    """One view of a place: the first history of each order that showed it, by its past."""

    histories: dict[Past, dict[tuple[str, ...], History]] = field(default_factory=dict)

    def add(self, history: History) -> None:
        self.histories.setdefault(history.past, {}).setdefault(history.order, history)


class Paths:
    """Collects what was seen; ``report`` compares it.

    ``run`` sets apart the scenarios of several runs.
    """

    def __init__(self) -> None:
        self._walks: dict[tuple[str, str], _Walk] = {}
        self._arches: dict[str, str] = {}
        self._places: dict[Place, dict[View, _Seen]] = {}
        self._observations = 0
        self._left_out: collections.Counter[str] = collections.Counter()

    def feed(self, event: Event, run: str = "") -> None:
        """Takes the next event of a run; those that it does not need are left alone."""
        kind = event["type"]
        key = run, str(event.get("scenario"))
        if kind == "kernel":
            self._arches[event["kernel"]] = event["arch"]
        elif kind == "scenario_start":
            title = f"{run}:{event['name']}" if run else str(event["name"])
            functions = tuple(event["functions"])
            kernel = event["kernel"]
            walk = _Walk(kernel, title, functions, breakpoints=self._arches.get(kernel) == "arm64")
            walk.past = {f: _Function() for f in functions}
            self._walks[key] = walk
        elif (known := self._walks.get(key)) is None:
            return
        elif kind == "step_start":
            known.step = event["step"]
        elif kind == "step_end":
            known.done(int(event["index"]), event["observed"])
        elif kind == "scenario_end":
            del self._walks[key]
            # A known difference (docs/findings) leaves a kernel that shows nothing any more.
            if event["verdict"] == "XFAIL":
                self._left_out[str(event.get("xfail", ""))] += 1
            else:
                self._keep(known)

    def _keep(self, walk: _Walk) -> None:
        for place, view, history in walk.found:
            self._observations += 1
            self._places.setdefault(place, {}).setdefault(view, _Seen()).add(history)

    def report(self) -> Report:
        """Everything that was fed, those that were cut off in the middle too."""
        for walk in self._walks.values():
            self._keep(walk)
        self._walks.clear()
        found: list[Disagreement] = []
        several = 0
        for place, views in self._places.items():
            orders = {o for s in views.values() for h in s.histories.values() for o in h}
            several += len(orders) > 1
            for (one, seen), (other, also) in itertools.combinations(views.items(), 2):
                found += _disagreements(place, one, seen, other, also)
        return Report(self._observations, len(self._places), several, found, dict(self._left_out))


def _disagreements(
    place: Place, one: View, seen: _Seen, other: View, also: _Seen
) -> Iterator[Disagreement]:
    """All that two views of a place come to: histories with one past stand for each other."""
    differences = tuple(_differ(dict(one), dict(other)))
    for first, second in itertools.product(seen.histories.values(), also.histories.values()):
        pair = Pair(place, next(iter(first.values())), next(iter(second.values())))
        names = [next((e.name for e in EXCEPTIONS if e.covers(pair, d)), "") for d in differences]
        yield Disagreement(
            pair,
            differences,
            (len(first) - 1, len(second) - 1),
            tuple(dict.fromkeys(names)) if all(names) else (),
        )


def _differ(one: Mapping[str, str], other: Mapping[str, str]) -> Iterator[Difference]:
    for what in dict.fromkeys((*one, *other)):
        absent = "no" if what.startswith("flag ") else "none"
        first, second = one.get(what, absent), other.get(what, absent)
        if first != second:
            yield Difference(what, first, second)
