# SPDX-License-Identifier: GPL-2.0-only
"""What ``events.jsonl`` says, as typed views (the format: docs/events.md).

``RunModel.feed`` takes one event at a time, so the same class serves the
display during a run and every report afterwards.  It fails closed: what has no
result counts as failed, and a PASS that its own steps contradict is a FAIL.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.errors import InfraError

FORMAT = 1
"""The version of the event format that this reader knows."""

#: Ended by an accident of the kernel under test.
ACCIDENTS = frozenset({"SPLAT", "CRASH", "HANG", "BOOT_FAIL"})
#: No result, and not the kernel's fault as far as is known.
NO_RESULT = frozenset({"LOST", "INFRA"})
#: Nothing to worry about.
HARMLESS = frozenset({"PASS", "XFAIL", "SKIP"})
#: All verdicts, worst first: the order of every list and sum.
VERDICTS = (
    "CRASH", "HANG", "SPLAT", "BOOT_FAIL", "FAIL", "LOST", "INFRA", "XFAIL", "SKIP", "PASS",
)  # fmt: skip


@dataclass(frozen=True)
class Kernel:
    """A kernel under test; ``reference`` is what the user asked for."""

    id: str
    reference: str = ""
    release: str = ""
    arch: str = ""
    origin: str = ""
    profile: str = ""
    profile_why: str = ""


@dataclass(frozen=True)
class Vm:
    """A VM of the run; ``verdict`` is empty unless it came to grief.  ``boot_s`` in seconds."""

    id: str
    kernel: str
    engine: str = ""
    accel: str = ""
    accel_why: str = ""
    qemu: str = ""
    cpu: str = ""
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


@dataclass(frozen=True)
class Step:
    """A step that was begun; ``observed`` is None as long as it has no result."""

    index: int
    spec: Mapping[str, Any]
    predicted: Mapping[str, Any]
    t: float
    observed: Mapping[str, Any] | None = None
    mismatches: tuple[Mismatch, ...] = ()
    registry_text: str = ""
    log: tuple[LogLine, ...] = ()
    agent_s: float | None = None
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


@dataclass(frozen=True)
class Scenario:
    """One attempt at a scenario.  ``planned`` are the step objects it was to do."""

    id: str
    name: str
    kernel: str
    vm: str
    profile: str
    attempt: int
    functions: tuple[str, ...]
    matrix: tuple[str, str] | None
    planned: tuple[Mapping[str, Any], ...]
    started_t: float
    steps: tuple[Step, ...] = ()
    recorded_verdict: str = ""
    recorded_reason: str = ""
    xfail: str = ""
    ended_t: float | None = None

    @property
    def finished(self) -> bool:
        """Whether the record has the scenario's end."""
        return bool(self.recorded_verdict)

    @property
    def verdict(self) -> str:
        """The verdict that counts."""
        if not self.finished or self._contradiction():
            return "FAIL"
        return self.recorded_verdict

    @property
    def reason(self) -> str:
        """Why the verdict is what it is."""
        if not self.finished:
            return "not finished"
        return self._contradiction() or self.recorded_reason

    @property
    def failed(self) -> bool:
        """Whether the kernel (or an unknown cause) is to blame; LOST and INFRA are not failures."""
        return self.verdict not in HARMLESS and self.verdict not in NO_RESULT

    @property
    def seconds(self) -> float:
        """Host time from start to end; 0 if it did not end."""
        return 0.0 if self.ended_t is None else self.ended_t - self.started_t

    @property
    def bad_steps(self) -> tuple[Step, ...]:
        """The steps that explain a failure: with a mismatch, or without a result."""
        bad = tuple(s for s in self.steps if s.mismatches or s.observed is None)
        if bad or self.verdict in HARMLESS:
            return bad
        return self.steps[-1:]

    def attachers(self) -> dict[str, str]:
        """Attachment id to attacher, by the planned steps."""
        return {
            str(s.get("id")): str(s.get("attacher"))
            for s in self.planned or tuple(step.spec for step in self.steps)
            if s.get("do") == "attach"
        }

    def second_attach(self) -> Step | None:
        """The step that decides a matrix cell, if it was begun."""
        attaches = [s for s in self.steps if s.do == "attach"]
        return attaches[1] if len(attaches) > 1 else None

    def _contradiction(self) -> str:
        if self.recorded_verdict != "PASS":
            return ""
        for step in self.steps:
            if step.mismatches or step.observed is None:
                fault = "has mismatches" if step.mismatches else "has no result"
                return f"recorded as PASS, but step {step.index + 1} {fault}"
        if len(self.steps) < len(self.planned):
            return f"recorded as PASS after {len(self.steps)} of {len(self.planned)} steps"
        return ""


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


class RunModel:
    """A run, as far as its events were fed.

    ``truncated`` is set by ``read``: the last line was cut off in the middle.
    """

    def __init__(self) -> None:
        self.run = Run()
        self.kernels: dict[str, Kernel] = {}
        self.vms: dict[str, Vm] = {}
        self.attempts: dict[str, Scenario] = {}
        self.notes: list[Note] = []
        self.seconds = 0.0
        self.truncated = False
        self._next_seq = 0

    def feed(self, event: Mapping[str, Any]) -> None:
        """Take the next event.  Unknown types and keys are ignored.

        Raises InfraError for a gap in ``seq`` and for a format that is not ours.
        """
        seq = event.get("seq")
        if seq != self._next_seq:
            raise InfraError(
                f"the record of the run has a gap: event {seq} where {self._next_seq} was due",
                "The file was changed or the disk was full; run again.",
            )
        self._next_seq += 1
        self.seconds = float(event.get("t", self.seconds))
        handler = getattr(self, f"_on_{event.get('type')}", None)
        if handler is not None:
            handler(event)

    @property
    def cut_short(self) -> bool:
        """Whether the record ends before the run did."""
        return not self.run.ended

    @property
    def scenarios(self) -> list[Scenario]:
        """The attempts that count, in the order they began.

        A LOST or INFRA attempt that was repeated is not among them; any other
        verdict stands, whatever came after it.
        """
        last = {(s.kernel, s.name): s.attempt for s in self.attempts.values()}
        return [
            s
            for s in self.attempts.values()
            if s.attempt >= last[s.kernel, s.name] or s.recorded_verdict not in NO_RESULT
        ]

    def of_kernel(self, kernel: str) -> list[Scenario]:
        """The scenarios of one kernel that count."""
        return [s for s in self.scenarios if s.kernel == kernel]

    def repeated(self) -> list[Scenario]:
        """The attempts that don't count, because a second one followed."""
        counting = {s.id for s in self.scenarios}
        return [s for s in self.attempts.values() if s.id not in counting]

    def counts(self) -> dict[str, int]:
        """Scenarios by verdict, worst first, without zeros."""
        found = Counter(s.verdict for s in self.scenarios)
        unknown = sorted(set(found) - set(VERDICTS))
        return {v: found[v] for v in (*unknown, *VERDICTS) if found[v]}

    def witnessed_steps(self) -> int:
        """Steps with a result, over all attempts."""
        return sum(s.observed is not None for a in self.attempts.values() for s in a.steps)

    def not_started(self) -> int:
        """Scenarios that were planned and never began."""
        return max(0, self.run.planned - len({(s.kernel, s.name) for s in self.attempts.values()}))

    def failures(self) -> list[Scenario]:
        """Every scenario without a harmless verdict, worst first."""
        rank = {v: i for i, v in enumerate(VERDICTS)}
        bad = [s for s in self.scenarios if s.verdict not in HARMLESS]
        return sorted(bad, key=lambda s: rank.get(s.verdict, -1))

    def vm_failures(self) -> list[Vm]:
        """VMs whose trouble no scenario has as its own verdict.

        LOST and INFRA are left out once every planned scenario has begun
        (then another VM took over).
        """
        told = {s.vm for s in self.attempts.values() if s.verdict not in HARMLESS}
        return [
            vm
            for vm in self.vms.values()
            if vm.verdict
            and vm.id not in told
            and (vm.verdict not in NO_RESULT or self.not_started())
        ]

    def kernel_of(self, kernel: str) -> Kernel:
        """The kernel with this id, even if the record does not introduce it."""
        return self.kernels.get(kernel) or Kernel(kernel, reference=kernel, release=kernel)

    def vms_of(self, kernel: str) -> list[Vm]:
        """The VMs that ran a kernel."""
        return [vm for vm in self.vms.values() if vm.kernel == kernel]

    def _on_run_start(self, e: Mapping[str, Any]) -> None:
        if e.get("format") != FORMAT:
            raise InfraError(
                f"the record has format {e.get('format')}, this cohabit reads format {FORMAT}",
                "Use the cohabit that made the run.",
            )
        self.run = Run(
            str(e.get("cohabit", "")), tuple(e.get("argv", ())), str(e.get("started", "")),
            e.get("host", {}), int(e.get("planned", 0)),
        )  # fmt: skip

    def _on_kernel(self, e: Mapping[str, Any]) -> None:
        names = ("reference", "release", "arch", "origin", "profile", "profile_why")
        kernel = str(e["kernel"])
        self.kernels[kernel] = Kernel(kernel, *(str(e.get(n) or "") for n in names))

    def _on_vm_start(self, e: Mapping[str, Any]) -> None:
        names = ("engine", "accel", "accel_why", "qemu", "cpu")
        vm = str(e["vm"])
        self.vms[vm] = Vm(
            vm, str(e.get("kernel", "")), *(str(e.get(n) or "") for n in names),
            int(e.get("cpus", 0)), int(e.get("memory_mb", 0)), tuple(e.get("command", ())),
            started_t=self.seconds,
        )  # fmt: skip

    def _on_vm_ready(self, e: Mapping[str, Any]) -> None:
        vm = self.vms[e["vm"]]
        self.vms[vm.id] = replace(vm, boot_s=e.get("boot_s"), facts=e.get("facts", {}))

    def _on_vm_end(self, e: Mapping[str, Any]) -> None:
        vm = self.vms[e["vm"]]
        self.vms[vm.id] = replace(
            vm,
            reason=str(e.get("reason", "")),
            verdict=str(e.get("verdict") or ""),
            detail=str(e.get("detail") or ""),
            console_tail=tuple(e.get("console_tail") or ()),
            backtraces=tuple(e.get("backtraces") or ()),
        )

    def _on_scenario_start(self, e: Mapping[str, Any]) -> None:
        pair = e.get("matrix")
        scenario = str(e["scenario"])
        self.attempts[scenario] = Scenario(
            scenario, str(e.get("name", scenario)), str(e.get("kernel", "")), str(e.get("vm", "")),
            str(e.get("profile", "")), int(e.get("attempt", 1)), tuple(e.get("functions", ())),
            (str(pair[0]), str(pair[1])) if pair else None, tuple(e.get("steps", ())),
            started_t=self.seconds,
        )  # fmt: skip

    def _on_step_start(self, e: Mapping[str, Any]) -> None:
        scenario = self.attempts[e["scenario"]]
        step = Step(int(e["index"]), e.get("step", {}), e.get("predicted") or {}, self.seconds)
        self.attempts[scenario.id] = replace(scenario, steps=(*scenario.steps, step))

    def _on_step_end(self, e: Mapping[str, Any]) -> None:
        scenario = self.attempts[e["scenario"]]
        done = {
            "observed": e.get("observed") or {},
            "mismatches": tuple(
                Mismatch(
                    str(m.get("witness", "")), str(m.get("what", "")),
                    m.get("expected"), m.get("seen"), str(m.get("rule") or ""),
                )
                for m in e.get("mismatches", ())
            ),
            "registry_text": str(e.get("registry_text") or ""),
            "log": tuple(
                LogLine(line.get("level"), line.get("t"), str(line.get("text", "")))
                for line in e.get("log", ())
            ),
            "agent_s": e.get("agent_s"),
            "host_s": e.get("host_s"),
        }  # fmt: skip
        steps = tuple(replace(s, **done) if s.index == e["index"] else s for s in scenario.steps)
        self.attempts[scenario.id] = replace(scenario, steps=steps)

    def _on_scenario_end(self, e: Mapping[str, Any]) -> None:
        scenario = self.attempts[e["scenario"]]
        self.attempts[scenario.id] = replace(
            scenario,
            recorded_verdict=str(e.get("verdict") or "FAIL"),
            recorded_reason=str(e.get("reason") or ""),
            xfail=str(e.get("xfail") or ""),
            ended_t=self.seconds,
        )

    def _on_note(self, e: Mapping[str, Any]) -> None:
        self.notes.append(Note(self.seconds, str(e.get("level", "info")), str(e.get("text", ""))))

    def _on_run_end(self, e: Mapping[str, Any]) -> None:
        self.run = replace(self.run, ended=True, interrupted=bool(e.get("interrupted")))


def read(path: Path) -> RunModel:
    """The run in ``path``: a run's directory or its events.jsonl.

    A last line that was cut off (a killed run) is tolerated and told by
    ``truncated``.  Raises InfraError if there is no record, or if it is damaged
    anywhere else.
    """
    file = path / "events.jsonl" if path.is_dir() else path
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise InfraError(
            f"cannot read the record of the run {file}: {error.strerror}",
            "Give the directory that `cohabit run` named at its end.",
        ) from error
    model = RunModel()
    for number, line in enumerate(lines, 1):
        last = number == len(lines)
        if last and not line:
            break
        try:
            event = json.loads(line)
            if not isinstance(event, dict):
                raise ValueError("not an object")
        except ValueError as error:
            if last:
                model.truncated = True
                break
            raise InfraError(
                f"{file}, line {number}, is not an event: {error}",
                "The file was changed or the disk was full; run again.",
            ) from error
        try:
            model.feed(event)
        except (KeyError, TypeError, ValueError) as error:
            raise InfraError(
                f"{file}, line {number}, is not an event that can follow: {error!r}",
                "The file was changed; run again.",
            ) from error
    return model


def exit_status(model: RunModel) -> int:
    """The exit status that a run deserves.

    0 all passed (or XFAIL, SKIP) and at least one passed; 1 something failed, or
    the record ends early; 3 the only trouble is LOST or INFRA, or nothing was
    tested; 130 interrupted.
    """
    if model.run.interrupted:
        return 130
    vms = model.vm_failures()
    if any(s.failed for s in model.scenarios) or any(v.verdict not in NO_RESULT for v in vms):
        return 1
    if vms or any(s.verdict in NO_RESULT for s in model.scenarios):
        return 3
    if model.cut_short or model.not_started():
        return 1
    verdicts = {s.verdict for s in model.scenarios}
    if "PASS" in verdicts:
        return 0
    return 1 if "XFAIL" in verdicts else 3
