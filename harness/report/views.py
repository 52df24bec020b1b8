# SPDX-License-Identifier: GPL-2.0-only
"""Frozen views of the things that a run's record names (docs/events.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from sys import intern
from typing import Any

#: Ended by an accident of the kernel under test.
ACCIDENTS = frozenset({"SPLAT", "CRASH", "HANG", "BOOT_FAIL"})
#: No result, and not the kernel's fault as far as is known.
NO_RESULT = frozenset({"LOST", "INFRA"})
#: What became of a step without a record.
NOT_REACHED, LEFT_OUT = "not reached", "left out, it did not apply"
#: Nothing to worry about.
HARMLESS = frozenset({"PASS", "XFAIL", "SKIP"})
#: All verdicts, worst first: the order of every list and sum.
VERDICTS = (
    "CRASH", "HANG", "SPLAT", "BOOT_FAIL", "FAIL", "LOST", "INFRA", "XFAIL", "SKIP", "PASS",
)  # fmt: skip


@dataclass(frozen=True)
class Kernel:
    """A kernel under test; ``reference`` and ``options`` are what the user asked for."""

    id: str
    reference: str = ""
    release: str = ""
    arch: str = ""
    origin: str = ""
    profile: str = ""
    profile_why: str = ""
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Vm:
    """A VM of the run; ``verdict`` is empty unless it came to grief.  ``boot_s`` in seconds.

    ``start`` is ``snapshot`` where it went on from one; ``start_why``: why it did not.
    """

    id: str
    kernel: str
    engine: str = ""
    start: str = ""
    start_why: str = ""
    accel: str = ""
    accel_why: str = ""
    qemu: str = ""
    cpu: str = ""
    cpu_cost: str = ""
    cpus: int = 0
    memory_mb: int = 0
    command: tuple[str, ...] = ()
    started_t: float = 0.0
    boot_s: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    verdict: str = ""
    detail: str = ""
    console_tail: tuple[str, ...] = ()
    backtraces: tuple[str, ...] = ()
    decoded: tuple[str, ...] = ()

    @property
    def how(self) -> str:
        """The engine, and whether the VM went on from a snapshot."""
        return f"{self.engine}, from a snapshot" if self.start == "snapshot" else self.engine

    @property
    def stacks(self) -> tuple[str, ...]:
        """The backtraces, with files and lines where they were decoded."""
        return self.decoded or self.backtraces


@dataclass(frozen=True)
class Report:
    """What the kernel complained of.

    ``when`` and, in a step, its ``index`` say what was being done, ``scenarios`` by whom
    (ids), side by side in a ``group`` if that is set.  ``lines`` are as they were shown,
    ``decoded`` the same with files and lines, empty where that was not done.
    """

    id: str
    vm: str
    when: str
    kind: str
    title: str
    fingerprint: str
    lines: tuple[str, ...]
    scenarios: tuple[str, ...] = ()
    group: str = ""
    index: int | None = None
    decoded: tuple[str, ...] = ()

    @property
    def text(self) -> tuple[str, ...]:
        """The lines, decoded if possible."""
        return self.decoded or self.lines


@dataclass(frozen=True)
class Mismatch:
    """One contradiction between prediction and observation; ``rule`` predicted it."""

    witness: str
    what: str
    expected: Any
    seen: Any
    rule: str


@dataclass(frozen=True)
class LogLine:
    """A kernel message; ``t`` in seconds since the guest booted."""

    level: int | str | None
    t: float | None
    text: str

    @property
    def stamped(self) -> str:
        """The line as the kernel prints it: ``<4>[   12.345678] text``."""
        return f"{'' if self.level is None else f'<{self.level}>'}{self.plain}"

    @property
    def plain(self) -> str:
        """The same without the level, as a console shows it and a report has it."""
        return f"{'' if self.t is None else f'[{self.t:12.6f}] '}{self.text}"


@dataclass(frozen=True, slots=True)
class Step:
    """A step that was begun; ``observed`` is None as long as it has no result.

    ``agent_s`` is its time in the guest, its share of ``group_s`` where scenarios
    ran side by side: what the whole phase took.
    """

    index: int
    spec: Mapping[str, Any]
    predicted: Mapping[str, Any]
    t: float
    observed: Mapping[str, Any] | None = None
    mismatches: tuple[Mismatch, ...] = ()
    registry_text: str = ""
    log: tuple[LogLine, ...] = ()
    agent_s: float | None = None
    group_s: float | None = None
    host_s: float | None = None

    @property
    def do(self) -> str:
        """The act: attach, detach, call, write …"""
        return str(self.spec.get("do", ""))

    @property
    def errno(self) -> int | None:
        """The observed errno; None if the step has no result."""
        if self.observed is None:
            return None
        value = self.observed.get("errno")
        return value if isinstance(value, int) else None

    @property
    def refused(self) -> bool:
        """Whether the kernel said no."""
        return bool(self.errno)

    @property
    def as_predicted(self) -> bool:
        """Whether the observed errno is one of the predicted ones."""
        allowed = self.predicted.get("errno", ())
        return self.errno in (allowed if isinstance(allowed, list) else [allowed])

    @property
    def outline(self) -> Step:
        """The step with what a report says of a passed scenario, and no more.

        A full run has a quarter of a million steps, nearly all of them of passed ones.
        """
        seen = self.observed or {}
        behaviour = (seen.get("behaviour") or {}).items()
        registry = (seen.get("registry") or {}).items()
        sites, stirred = seen.get("site") or {}, seen.get("stirred")
        return replace(
            self,
            predicted={"errno": self.predicted.get("errno", ())},
            observed={
                "errno": seen.get("errno"),
                "behaviour": {
                    intern(f): {"body": intern(str(b.get("body", ""))), "hits": b.get("hits") or {}}
                    for f, b in behaviour
                    if b
                },
                "registry": {intern(f): {"flags": (r or {}).get("flags")} for f, r in registry},
                "held": seen.get("held"),
                **({"site": sites} if sites else {}),
                **({"stirred": stirred} if stirred else {}),
            },
            registry_text="",
            log=(),
        )


@dataclass(frozen=True)
class Row:
    """A planned step and what became of it; without ``step``, ``note`` says why."""

    index: int
    spec: Mapping[str, Any]
    step: Step | None
    note: str = ""


@dataclass(frozen=True)
class Scenario:
    """One attempt at a scenario.

    ``planned`` are the step objects it was to do; ``skipped`` the indexes of those
    that did not apply (detaching what had been refused).  ``matrix`` and
    ``attachers`` are in order of arrival.  ``group`` is set where it ran side by
    side with others; ``regrouped`` says why that start was void; ``disputed``: it failed in
    a VM that went on from a snapshot, so that one that was booted has to confirm it.
    """

    id: str
    name: str
    kernel: str
    vm: str
    profile: str
    attempt: int
    functions: tuple[str, ...]
    matrix: tuple[str, ...] | None
    planned: tuple[Mapping[str, Any], ...]
    started_t: float
    attachers: tuple[str, ...] = ()
    group: str = ""
    regrouped: str = ""
    disputed: bool = False
    steps: tuple[Step, ...] = ()
    skipped: frozenset[int] = frozenset()
    recorded_verdict: str = ""
    recorded_reason: str = ""
    xfail: str = ""
    ended_t: float | None = None

    @property
    def finished(self) -> bool:
        """Whether the record has the scenario's end."""
        return bool(self.recorded_verdict)

    @cached_property
    def verdict(self) -> str:
        """The verdict that counts."""
        if not self.finished or self._contradiction:
            return "FAIL"
        return self.recorded_verdict

    @property
    def reason(self) -> str:
        """Why the verdict is what it is."""
        if not self.finished:
            return "not finished"
        return self._contradiction or self.recorded_reason

    @property
    def failed(self) -> bool:
        """Whether the kernel (or an unknown cause) is to blame; LOST and INFRA are not failures."""
        return self.verdict not in HARMLESS and self.verdict not in NO_RESULT

    @property
    def seconds(self) -> float:
        """Host time from start to end, or its share of a group's time in the guest.

        0 if it did not end.
        """
        if self.ended_t is None:
            return 0.0
        if self.group:
            return sum(step.agent_s or 0.0 for step in self.steps)
        return self.ended_t - self.started_t

    @property
    def bad_steps(self) -> tuple[Step, ...]:
        """The steps that explain a failure: with a mismatch, or without a result."""
        bad = tuple(s for s in self.steps if s.mismatches or s.observed is None)
        if bad or self.verdict in HARMLESS:
            return bad
        return self.steps[-1:]

    @property
    def rows(self) -> tuple[Row, ...]:
        """All planned steps in order, done or not."""
        done = {step.index: step for step in self.steps}
        rows = []
        for index in range(max(len(self.planned), len(self.steps))):
            step = done.get(index)
            if step is not None:
                rows.append(Row(index, step.spec, step))
            elif index < len(self.planned):
                note = LEFT_OUT if index in self.skipped else NOT_REACHED
                rows.append(Row(index, self.planned[index], None, note))
        return tuple(rows)

    @cached_property
    def attacher_of(self) -> dict[str, str]:
        """Attachment id to attacher in order of arrival, by the planned steps."""
        return {
            str(s.get("id")): str(s.get("attacher"))
            for s in self.planned or tuple(step.spec for step in self.steps)
            if s.get("do") == "attach"
        }

    @cached_property
    def departure(self) -> tuple[int, ...]:
        """The attachments in order of departure, each by its place in the order of arrival.

        (1, 0) of a pair: who came second leaves first.  Who is never told to leave is last.
        """
        arrived = list(self.attacher_of)
        leaving = dict.fromkeys(str(s.get("id")) for s in self.planned if s.get("do") == "detach")
        ids = dict.fromkeys([*leaving, *arrived])
        return tuple(arrived.index(name) for name in ids if name in self.attacher_of)

    @cached_property
    def refused(self) -> bool:
        """Whether the kernel refused one of its attaches."""
        return any(s.do == "attach" and s.refused for s in self.steps)

    @cached_property
    def _contradiction(self) -> str:
        if self.recorded_verdict != "PASS":
            return ""
        if self.regrouped:
            return f"recorded as PASS, but void: {self.regrouped}"
        for step in self.steps:
            if step.mismatches or step.observed is None:
                fault = "has mismatches" if step.mismatches else "has no result"
                return f"recorded as PASS, but step {step.index + 1} {fault}"
        if left := sum(row.note == NOT_REACHED for row in self.rows):
            done = len(self.planned) - left
            return f"recorded as PASS after {done} of {len(self.planned)} steps"
        return ""


@dataclass(frozen=True)
class Group:
    """Scenarios that ran side by side on one VM; ``disputed`` as in Scenario."""

    id: str
    vm: str
    kernel: str
    scenarios: tuple[str, ...]
    started_t: float
    recorded_verdict: str = ""
    recorded_reason: str = ""
    ended_t: float | None = None
    disputed: bool = False

    @property
    def verdict(self) -> str:
        """The verdict that counts."""
        return self.recorded_verdict or "FAIL"

    @property
    def reason(self) -> str:
        """Why the verdict is what it is."""
        return self.recorded_reason if self.recorded_verdict else "not finished"


def tally(scenarios: Iterable[Scenario]) -> dict[str, int]:
    """How many have which verdict, worst first, without zeros."""
    found = Counter(s.verdict for s in scenarios)
    unknown = sorted(set(found) - set(VERDICTS))
    return {v: found[v] for v in (*unknown, *VERDICTS) if found[v]}


@dataclass(frozen=True)
class Note:
    """Something said during the run."""

    t: float
    level: str
    text: str


@dataclass(frozen=True)
class Run:
    """How the run began, and (``ended``) how it ended."""

    cohabit: str = ""
    argv: tuple[str, ...] = ()
    started: str = ""
    host: Mapping[str, Any] = field(default_factory=dict)
    planned: int = 0
    ended: bool = False
    interrupted: bool = False
