# SPDX-License-Identifier: GPL-2.0-only
"""A run's record with what a comparison needs beyond a report: facts, messages, sizes.

A report forgets most of what a passed scenario showed.  Here every step is kept as a list
of short facts in words that do not depend on the run: which lane a scenario was given and
which of an attacher's slots differ from run to run, and mean nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness import errno_names
from harness.monitor import Monitor
from harness.report.differences import renumbered
from harness.report.model import RunModel, read_into
from harness.report.views import Mismatch, Scenario, Step
from harness.report.words import brief, diff, printable, step_title, subject
from harness.scenario.functions import FUNCTIONS

#: Verdicts whose reason is what the kernel said.
_REPORTED = frozenset({"SPLAT", "CRASH"})
#: The worst level that is no warning any more (include/linux/kern_levels.h).
_NOTICE = 5
#: A number that differs from run to run and from build to build.
_NUMBER = re.compile(r"\b(?:0x)?[0-9a-f]*\d[0-9a-f]*\b|\d+")
#: What GCC appends to the names of functions that it specialised or split.
_CLONE = re.compile(r"(?<=\w)(?:\.(?:isra|constprop|part|cold)(?:\.\d+)?)+\b")
#: A body or a module that is one of several alike: ``livepatch-a``, ``fmod_ret-1``.
_COUNT = re.compile(r"\d[\d,]*")
_SLOT = re.compile(r"\b(livepatch|ipmodify|fmod_ret|cohabit_klp)([-_])(?:[a-z]|\d+)\b")
#: What a slow machine makes a kernel say, whatever was changed in it.
_SLOWNESS = re.compile(
    r"hrtimer: interrupt took|clocksource: |perf: interrupt took|workqueue: .* hogged CPU"
    r"|sched: RT throttling"
)


@dataclass(frozen=True)
class Fact:
    """One thing that a step showed: ``seen``, where the policy said ``predicted``.

    ``key`` names it alike in all runs (``flag I``, ``body of version_proc_show``).
    """

    key: str
    seen: str
    predicted: str


@dataclass(frozen=True)
class StepFacts:
    """What a step showed; ``act`` as in ``attach livepatch``, ``index`` from 0."""

    index: int
    act: str
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class Size:
    """What a kernel costs, where the record has it: bytes of its image, seconds to build it."""

    image_bytes: int | None = None
    build_s: float | None = None


class WholeRun(RunModel):
    """A run for comparing; fed like a RunModel.

    ``facts``: scenario id to its steps.  ``messages``: kernel id to each warning or report
    that this kernel gave, numbers masked, with the names of the scenarios that it came in.
    ``sizes`` by kernel id.
    """

    def __init__(self) -> None:
        super().__init__()
        self.facts: dict[str, tuple[StepFacts, ...]] = {}
        self.messages: dict[str, dict[str, list[str]]] = {}
        self.sizes: dict[str, Size] = {}
        # Thousands of steps show the same few things.
        self._known: dict[StepFacts, StepFacts] = {}

    def _on_kernel(self, e: Mapping[str, Any]) -> None:
        super()._on_kernel(e)
        image, build = e.get("image_bytes"), e.get("build_s")
        self.sizes[str(e["kernel"])] = Size(
            None if image is None else int(image), None if build is None else float(build)
        )

    def _on_step_end(self, e: Mapping[str, Any]) -> None:
        super()._on_step_end(e)
        self._heard(self.attempts[e["scenario"]], warnings(e.get("log", ())))

    def _on_scenario_end(self, e: Mapping[str, Any]) -> None:
        # The base class is about to forget most of it.
        scenario = self.attempts[e["scenario"]]
        found = facts(scenario)
        self.facts[scenario.id] = tuple(self._known.setdefault(f, f) for f in found)
        super()._on_scenario_end(e)
        if e.get("verdict") in _REPORTED:
            self._heard(scenario, [mask(str(e.get("reason") or ""))])

    def _heard(self, scenario: Scenario, texts: Iterable[str]) -> None:
        of_kernel = self.messages.setdefault(scenario.kernel, {})
        for text in filter(None, texts):
            names = of_kernel.setdefault(text, [])
            if scenario.name not in names[-1:]:
                names.append(scenario.name)


def read(path: Path) -> WholeRun:
    """The run in ``path``, as ``harness.report.model.read`` has it; raises as it does."""
    return read_into(WholeRun(), path)


def mask(text: str) -> str:
    """A kernel's message as one line, numbers and addresses as ``N``.

    What a compiler appends to the name of a function that it changed says nothing of the source.
    """
    text = _CLONE.sub("", text)
    return _NUMBER.sub("N", brief(printable(text)))


def warnings(log: Sequence[Mapping[str, Any]]) -> list[str]:
    """The warnings and worse among the records of a step, masked.

    A report of many lines is its title.  What only says that the machine is slow is left out.
    """
    if not any(_level(record) < _NOTICE for record in log):
        return []
    monitor = Monitor()
    records = [(_level(r), float(r.get("t") or 0.0), str(r.get("text", ""))) for r in log]
    reports = [*monitor.feed_records(records), *monitor.finish()]
    parts = {line.partition("] ")[2] for report in reports for line in report.lines}
    loose = [
        text for level, _, text in records
        if level < _NOTICE and text.split("\n")[0] not in parts
    ]  # fmt: skip
    texts = [*(report.title for report in reports), *loose]
    return [mask(text) for text in texts if text.strip() and not _SLOWNESS.match(text)]


def _level(record: Mapping[str, Any]) -> int:
    level = str(record.get("level"))
    return int(level) if level.isdecimal() else _NOTICE


# --- facts ------------------------------------------------------------------------------------


def places(scenario: Scenario) -> dict[str, str]:
    """The scenario's functions by words for reports: empty for its only one.

    Lanes are numbered in the scenario's own order: which one it got is chance.
    """
    if len(scenario.functions) == 1:
        return {scenario.functions[0]: ""}
    return {
        name: f"function {number}" if (f := FUNCTIONS.get(name)) and f.lane is not None else name
        for number, name in enumerate(scenario.functions, 1)
    }


def act(scenario: Scenario, spec: Mapping[str, Any]) -> str:
    """What a step does, in words that scenarios of a kind share: ``attach livepatch``."""
    do, who = str(spec.get("do", "?")), scenario.attacher_of.get(str(spec.get("id")))
    if do == "attach" or (who and do not in {"hold", "release"}):
        return f"{do} {spec.get('attacher') or who}"
    title = step_title(spec, scenario.attacher_of)
    for function, place in places(scenario).items():
        title = title.replace(function, place or "the function")
    return title


def contradiction(scenario: Scenario, step: Step, mismatch: Mismatch) -> str:
    """A mismatch as one line that equal ones of other scenarios and runs share."""
    if mismatch.witness == "consistency":
        # How many of how many, and when first, is another each time.
        told = (
            _COUNT.sub("N", str(t).partition(";")[0]) for t in (mismatch.expected, mismatch.seen)
        )
        mismatch = replace(mismatch, **dict(zip(("expected", "seen"), told, strict=True)))
    parts = diff(mismatch)
    wanted, seen = ("; ".join(t for s, t in parts if s == sign) or "none" for sign in "-+")
    line = f"{act(scenario, step.spec)}: {subject(mismatch)}: expected {wanted}, saw {seen}"
    for function, place in places(scenario).items():
        line = line.replace(f"{function} ", f"{place} " if place else "")
        line = line.replace(function, place or "the function")
    return brief(printable(_SLOT.sub(r"\1", line)))


def facts(scenario: Scenario) -> list[StepFacts]:
    """Each step that has a result as facts.  The scenario has its whole steps still."""
    names, where = renumbered(scenario), places(scenario)
    return [
        StepFacts(step.index, act(scenario, step.spec), tuple(_step(scenario, step, names, where)))
        for step in scenario.steps
        if step.observed is not None
    ]


def _step(
    scenario: Scenario, step: Step, names: Mapping[str, str], where: Mapping[str, str]
) -> Iterable[Fact]:
    seen, said = step.observed or {}, step.predicted
    allowed = said.get("errno", [])
    allowed = allowed if isinstance(allowed, list) else [allowed]
    yield Fact("errno", errno_text(step.errno), " or ".join(map(errno_text, allowed)))
    for function, place in where.items():
        views = (_view(w, function, names) for w in (seen, said))
        for key, one, other in _paired(*views):
            if one and other:
                yield Fact(f"{key} of {place}" if place else key, one, other)
    for key, value in (seen.get("sysctl") or {}).items():
        yield Fact(str(key), str(value), str((said.get("sysctl") or {}).get(key)))
    if stirred := seen.get("stirred"):
        wrong = {str(kind) for h in stirred.get("hammers") or () for kind in h.get("wrong") or ()}
        yield Fact("wrong calls", ", ".join(sorted(wrong)) or "none", "none")
    if held := seen.get("held"):
        yield Fact("held call", _body(str(held.get("body")), names), _held(said, names))
    if not scenario.group:
        # Of a company's livepatches nobody knows here whose they are.
        yield Fact("livepatches", _patches(seen), _patches(said))


def _paired(one: Mapping[str, str], other: Mapping[str, str]) -> Iterable[tuple[str, str, str]]:
    for key in dict.fromkeys([*one, *other]):
        missing = "no" if key.startswith("flag ") else "none"
        yield key, one.get(key, missing), other.get(key, missing)


def _view(witness: Mapping[str, Any], function: str, names: Mapping[str, str]) -> dict[str, str]:
    """A function's record and behaviour, by key; an empty value is not to be compared.

    M is left out: it tells what was done to the function before this scenario.
    """
    call = (witness.get("behaviour") or {}).get(function) or {}
    args = call.get("args")
    # A prediction has the values, which depend on the lane.
    found = {"args": args if isinstance(args, str) else "agree"}
    found["body"] = _body(str(call.get("body")), names)
    for of, count in (call.get("hits") or {}).items():
        # The policy leaves out whom it expects nothing of.
        found |= {f"hits of {of}": str(count)} if count else {}
    for of, counts in (call.get("shares") or {}).items():
        found[f"calls of ops_func of {of}"] = _words(counts)
    for of, which in (call.get("via") or {}).items():
        found[f"trampoline of {of}"] = str(which)
    record = (witness.get("registry") or {}).get(function)
    found["record"] = "none" if record is None else "there"
    if record is not None:
        found["count"] = str(record.get("count"))
        # Of a trampoline's symbol the number tells which one of many it is.
        found["direct call"] = str(record.get("direct") or "none").rstrip("_0123456789")
        jmp = record.get("jmp")
        found["direct(jmp)"] = "" if jmp is None else "yes" if jmp else "no"
        if record.get("ops"):
            found["ops"] = str(record["ops"])
        found |= {f"flag {x}": "set" for x in record.get("flags") or () if x != "M"}
    return found


def _words(values: Any) -> str:
    return " ".join(map(str, values)) if isinstance(values, Sequence) else str(values)


def _body(name: str, names: Mapping[str, str]) -> str:
    return names.get(name) or _SLOT.sub(r"\1", name)


def _held(said: Mapping[str, Any], names: Mapping[str, str]) -> str:
    held = said.get("held")
    return _body(str((held.get("body") if isinstance(held, Mapping) else held) or "none"), names)


def _patches(witness: Mapping[str, Any]) -> str:
    patches = (witness.get("livepatch") or {}).values()
    words = sorted(" ".join(f"{k} {p[k]}" for k in sorted(p)) for p in patches)
    return ", ".join(words) or "none"


def errno_text(number: int | None) -> str:
    """``EBUSY``, ``0`` or ``no result``."""
    if number is None:
        return "no result"
    return errno_names.name(number) if number else "0"
