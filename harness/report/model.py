# SPDX-License-Identifier: GPL-2.0-only
"""What ``events.jsonl`` says, read or fed live (the format: docs/events.md).

``RunModel.feed`` takes one event at a time, so the same class serves the
display during a run and every report afterwards.  It fails closed: what has no
result counts as failed, and a PASS that its own steps contradict is a FAIL.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from harness.errors import InfraError
from harness.report.views import (
    HARMLESS,
    NO_RESULT,
    VERDICTS,
    Group,
    Kernel,
    LogLine,
    Mismatch,
    Note,
    Report,
    Run,
    Scenario,
    Step,
    Vm,
    tally,
)

FORMAT = 1
"""The version of the event format that this reader knows."""


def _text(event: Mapping[str, Any], key: str) -> str:
    """The value as text; null and a missing key are alike."""
    value = event.get(key)
    return "" if value is None else str(value)


class RunModel:
    """A run, as far as its events were fed.

    ``truncated`` is set by ``read``: the last line was cut off in the middle.
    """

    def __init__(self) -> None:
        self.run = Run()
        self.kernels: dict[str, Kernel] = {}
        self.vms: dict[str, Vm] = {}
        self.attempts: dict[str, Scenario] = {}
        self.groups: dict[str, Group] = {}
        self.notes: list[Note] = []
        self.reports: dict[str, Report] = {}
        self.seconds = 0.0
        self.truncated = False
        self._next_seq = 0
        self._tries: dict[tuple[str, str], list[str]] = {}
        self._reports_of: dict[str, list[str]] = {}
        self._counting: list[Scenario] | None = None

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
        self._counting = None
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
        """The attempts that count, in the order they began: see ``tries``."""
        if self._counting is None:
            counting = {s.id for key in self._tries for s in self.tries(*key)}
            self._counting = [s for s in self.attempts.values() if s.id in counting]
        return self._counting

    def tries(self, kernel: str, name: str) -> list[Scenario]:
        """The attempts that count at one scenario on one kernel.

        A LOST or INFRA attempt that was repeated is not among them, nor one that failed in
        a restored VM and was repeated in one that was booted, nor a start in a group that
        was void and followed by another; any other verdict stands, whatever came after it.
        """
        found = [self.attempts[i] for i in self._tries.get((kernel, name), ())]
        last = max((s.attempt for s in found), default=0)
        final = found[-1] if found else None
        return [
            s
            for s in found
            if (s.attempt >= last or s.recorded_verdict not in NO_RESULT)
            and (not (s.regrouped or s.disputed) or s is final)
        ]

    def of_kernel(self, kernel: str) -> list[Scenario]:
        """The scenarios of one kernel that count."""
        return [s for s in self.scenarios if s.kernel == kernel]

    def repeated(self) -> list[Scenario]:
        """The attempts that don't count, because a second one followed."""
        counting = {s.id for s in self.scenarios}
        return [s for s in self.attempts.values() if s.id not in counting]

    def disputes(self) -> list[tuple[Scenario, list[Scenario]]]:
        """The attempts that failed in a restored VM, each with what counts instead.

        That is empty where nothing does: it was not run again.
        """
        return [
            (s, [other for other in self.tries(s.kernel, s.name) if other.id != s.id])
            for s in self.attempts.values()
            if s.disputed
        ]

    def counts(self) -> dict[str, int]:
        """Scenarios by verdict, worst first, without zeros."""
        return tally(self.scenarios)

    def witnessed_steps(self) -> int:
        """Steps with a result, over all attempts."""
        return sum(s.observed is not None for a in self.attempts.values() for s in a.steps)

    def not_started(self) -> int:
        """Scenarios that were planned and never began."""
        return max(0, self.run.planned - len(self._tries))

    def failures(self) -> list[Scenario]:
        """Every scenario without a harmless verdict, worst first."""
        return sorted((s for s in self.scenarios if s.verdict not in HARMLESS), key=_rank)

    def vm_failures(self) -> list[Vm]:
        """VMs whose trouble no scenario has as its own verdict.

        Nor a group.  LOST and INFRA are left out once every planned scenario has
        begun (then another VM took over).
        """
        told = {
            s.vm for s in self.attempts.values() if s.verdict not in HARMLESS and not s.regrouped
        } | {g.vm for g in self.groups.values() if g.verdict not in HARMLESS}
        return [
            vm
            for vm in self.vms.values()
            if vm.verdict
            and vm.id not in told
            and (vm.verdict not in NO_RESULT or self.not_started())
        ]

    def group_failures(self) -> list[Group]:
        """Groups that came to grief without a scenario to stand for it, worst first."""
        return sorted(
            (
                g
                for g in self.groups.values()
                if g.verdict not in HARMLESS and not self.attributed(g) and not self.settled(g)
            ),
            key=_rank,
        )

    def alone(self, group: Group) -> list[Scenario]:
        """The later starts of a group's members, whose start in the group was void."""
        void = [s for s in map(self.attempts.get, group.scenarios) if s and s.regrouped]
        return [a for s in void for a in self.tries(s.kernel, s.name) if a.id != s.id]

    def settled(self, group: Group) -> bool:
        """Whether a booted VM has decided on what went wrong with a group in a restored one."""
        void = [s for s in map(self.attempts.get, group.scenarios) if s and s.regrouped]
        return group.disputed and all(
            any(a.id != s.id and a.finished for a in self.tries(s.kernel, s.name)) for s in void
        )

    def attributed(self, group: Group) -> bool:
        """Whether a member had a group's accident again alone, and so stands for it.

        A report of the kernel that is a known difference makes the member XFAIL.
        """
        return any(
            s.verdict == group.verdict
            or (s.verdict == "XFAIL" and s.reason.startswith(group.reason))
            for s in self.alone(group)
        )

    def reports_of(self, thing: Scenario | Group | Vm) -> list[Report]:
        """The kernel's reports in an attempt or a group; of a VM those that came in neither."""
        return [self.reports[i] for i in self._reports_of.get(thing.id, ())]

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
            cohabit=_text(e, "cohabit"),
            argv=tuple(e.get("argv", ())),
            started=_text(e, "started"),
            host=e.get("host", {}),
            planned=int(e.get("planned", 0)),
        )

    def _on_kernel(self, e: Mapping[str, Any]) -> None:
        kernel = str(e["kernel"])
        left_out = int(e.get("left_out", 0))
        self.run = replace(self.run, planned=self.run.planned - left_out)
        self.kernels[kernel] = Kernel(
            kernel,
            reference=_text(e, "reference"),
            release=_text(e, "release"),
            arch=_text(e, "arch"),
            origin=_text(e, "origin"),
            profile=_text(e, "profile"),
            profile_why=_text(e, "profile_why"),
            options=tuple(map(str, e.get("options", ()))),
        )

    def _on_vm_start(self, e: Mapping[str, Any]) -> None:
        vm = str(e["vm"])
        kernel = _text(e, "kernel")
        self.kernels.setdefault(kernel, self.kernel_of(kernel))
        self.vms[vm] = Vm(
            vm,
            kernel,
            engine=_text(e, "engine"),
            start=_text(e, "start"),
            start_why=_text(e, "start_why"),
            accel=_text(e, "accel"),
            accel_why=_text(e, "accel_why"),
            qemu=_text(e, "qemu"),
            cpu=_text(e, "cpu"),
            cpu_cost=_text(e, "cpu_cost"),
            cpus=int(e.get("cpus", 0)),
            memory_mb=int(e.get("memory_mb", 0)),
            command=tuple(e.get("command", ())),
            started_t=self.seconds,
        )

    def _on_vm_ready(self, e: Mapping[str, Any]) -> None:
        vm = self.vms[e["vm"]]
        self.vms[vm.id] = replace(vm, boot_s=e.get("boot_s"), facts=e.get("facts", {}))

    def _on_vm_end(self, e: Mapping[str, Any]) -> None:
        vm = self.vms[e["vm"]]
        self.vms[vm.id] = replace(
            vm,
            reason=_text(e, "reason"),
            verdict=_text(e, "verdict"),
            detail=_text(e, "detail"),
            console_tail=tuple(e.get("console_tail") or ()),
            backtraces=tuple(e.get("backtraces") or ()),
        )

    def _on_scenario_start(self, e: Mapping[str, Any]) -> None:
        matrix = e.get("matrix")
        kernel = _text(e, "kernel")
        self.kernels.setdefault(kernel, self.kernel_of(kernel))
        scenario = str(e["scenario"])
        name = _text(e, "name") or scenario
        self._tries.setdefault((kernel, name), []).append(scenario)
        self.attempts[scenario] = Scenario(
            scenario,
            name=name,
            kernel=kernel,
            vm=_text(e, "vm"),
            profile=_text(e, "profile"),
            attempt=int(e.get("attempt", 1)),
            functions=tuple(e.get("functions", ())),
            matrix=tuple(map(str, matrix)) if matrix else None,
            planned=tuple(e.get("steps", ())),
            started_t=self.seconds,
            attachers=tuple(map(str, e.get("attachers") or matrix or ())),
            group=_text(e, "group"),
        )

    def _on_scenario_regroup(self, e: Mapping[str, Any]) -> None:
        scenario = self.attempts[e["scenario"]]
        if scenario.finished and scenario.failed:
            return
        self.attempts[scenario.id] = replace(
            scenario, regrouped=_text(e, "reason") or "its group", recorded_verdict=""
        )

    def _on_scenario_confirm(self, e: Mapping[str, Any]) -> None:
        scenario = self.attempts[e["scenario"]]
        self.attempts[scenario.id] = replace(scenario, disputed=True)

    def _on_group_confirm(self, e: Mapping[str, Any]) -> None:
        group = self.groups[e["group"]]
        self.groups[group.id] = replace(group, disputed=True)

    def _on_group_start(self, e: Mapping[str, Any]) -> None:
        group = str(e["group"])
        self.groups[group] = Group(
            group,
            vm=_text(e, "vm"),
            kernel=_text(e, "kernel"),
            scenarios=tuple(map(str, e.get("scenarios", ()))),
            started_t=self.seconds,
        )

    def _on_group_end(self, e: Mapping[str, Any]) -> None:
        group = self.groups[e["group"]]
        self.groups[group.id] = replace(
            group,
            recorded_verdict=_text(e, "verdict") or "FAIL",
            recorded_reason=_text(e, "reason"),
            ended_t=self.seconds,
        )

    def _on_step_start(self, e: Mapping[str, Any]) -> None:
        scenario = self.attempts[e["scenario"]]
        step = Step(int(e["index"]), e.get("step", {}), e.get("predicted") or {}, self.seconds)
        self.attempts[scenario.id] = replace(scenario, steps=(*scenario.steps, step))

    def _on_step_skip(self, e: Mapping[str, Any]) -> None:
        scenario = self.attempts[e["scenario"]]
        skipped = scenario.skipped | {int(e["index"])}
        self.attempts[scenario.id] = replace(scenario, skipped=skipped)

    def _on_step_end(self, e: Mapping[str, Any]) -> None:
        scenario = self.attempts[e["scenario"]]
        begun = next(s for s in scenario.steps if s.index == e["index"])
        done = replace(
            begun,
            observed=e.get("observed") or {},
            mismatches=tuple(
                Mismatch(
                    _text(m, "witness"),
                    _text(m, "what"),
                    m.get("expected"),
                    m.get("seen"),
                    _text(m, "rule"),
                )
                for m in e.get("mismatches", ())
            ),
            registry_text=_text(e, "registry_text"),
            log=tuple(
                LogLine(m.get("level"), m.get("t"), _text(m, "text")) for m in e.get("log", ())
            ),
            agent_s=e.get("agent_s"),
            group_s=e.get("group_s"),
            host_s=e.get("host_s"),
        )
        steps = tuple(done if s is begun else s for s in scenario.steps)
        self.attempts[scenario.id] = replace(scenario, steps=steps)

    def _on_scenario_end(self, e: Mapping[str, Any]) -> None:
        scenario = self.attempts[e["scenario"]]
        ended = replace(
            scenario,
            recorded_verdict=_text(e, "verdict") or "FAIL",
            recorded_reason=_text(e, "reason"),
            xfail=_text(e, "xfail"),
            ended_t=self.seconds,
        )
        if ended.verdict == "PASS":
            ended = replace(ended, steps=tuple(step.outline for step in ended.steps))
        self.attempts[scenario.id] = ended

    def _on_report(self, e: Mapping[str, Any]) -> None:
        report = Report(
            str(e["report"]),
            vm=_text(e, "vm"),
            when=_text(e, "when"),
            kind=_text(e, "kind"),
            title=_text(e, "title"),
            fingerprint=_text(e, "fingerprint"),
            lines=tuple(map(str, e.get("lines", ()))),
            scenarios=tuple(map(str, e.get("scenarios", ()))),
            group=_text(e, "group"),
            index=e.get("index"),
        )
        self.reports[report.id] = report
        concerned = [*report.scenarios, report.group] if report.scenarios else [report.vm]
        for thing in filter(None, concerned):
            self._reports_of.setdefault(thing, []).append(report.id)

    def _on_decoded(self, e: Mapping[str, Any]) -> None:
        lines = tuple(map(str, e.get("lines", ())))
        if "report" in e:
            self.reports[e["report"]] = replace(self.reports[e["report"]], decoded=lines)
        else:
            self.vms[e["vm"]] = replace(self.vms[e["vm"]], decoded=lines)

    def _on_note(self, e: Mapping[str, Any]) -> None:
        self.notes.append(Note(self.seconds, _text(e, "level"), _text(e, "text")))

    def _on_run_end(self, e: Mapping[str, Any]) -> None:
        self.run = replace(self.run, ended=True, interrupted=bool(e.get("interrupted")))


Model = TypeVar("Model", bound=RunModel)


def _rank(thing: Scenario | Group) -> int:
    """For sorting, worst verdict first; one that nobody knows is worse than all."""
    return VERDICTS.index(thing.verdict) if thing.verdict in VERDICTS else -1


def read(path: Path) -> RunModel:
    """The run in ``path``, as ``read_into`` has it."""
    return read_into(RunModel(), path)


def read_into(model: Model, path: Path) -> Model:
    """``model`` with the run in ``path`` fed to it: a run's directory or its events.jsonl.

    A last line that was cut off (a killed run) is tolerated and told by
    ``truncated``.  Raises InfraError if there is no record, or if it is damaged
    anywhere else.
    """
    file = path / "events.jsonl" if path.is_dir() else path
    try:
        with file.open(encoding="utf-8", errors="replace", newline="\n") as lines:
            for number, line in enumerate(lines, 1):
                if not _feed_line(model, line, f"{file}, line {number},"):
                    break
    except OSError as error:
        raise InfraError(
            f"cannot read the record of the run {file}: {error.strerror}",
            "Give the directory that `cohabit run` named at its end.",
        ) from error
    return model


def _feed_line(model: RunModel, line: str, where: str) -> bool:
    """Feeds one line; False for a last one that was cut off."""
    try:
        event = json.loads(line)
        if not isinstance(event, dict):
            raise ValueError("not an object")
    except ValueError as error:
        if not line.endswith("\n"):
            model.truncated = True
            return False
        raise InfraError(
            f"{where} is not an event: {error}",
            "The file was changed or the disk was full; run again.",
        ) from error
    try:
        model.feed(event)
    except (KeyError, StopIteration, TypeError, ValueError) as error:
        raise InfraError(
            f"{where} is not an event that can follow: {error!r}",
            "The file was changed; run again.",
        ) from error
    return True


def exit_status(model: RunModel, ending: bool = False) -> int:
    """The exit status that a run deserves; ``ending``: its ``run_end`` is about to be written.

    0 all passed (or XFAIL, SKIP) and at least one passed; 1 something failed, or
    the record ends early; 3 the only trouble is LOST or INFRA, or nothing was
    tested; 130 interrupted.  A group in trouble that no scenario stands for counts
    like a scenario.
    """
    if model.run.interrupted:
        return 130
    scenarios = model.scenarios
    vms, groups = model.vm_failures(), model.group_failures()
    others = {vm.verdict for vm in vms} | {group.verdict for group in groups}
    if any(s.failed for s in scenarios) or others - NO_RESULT:
        return 1
    if others or any(s.verdict in NO_RESULT for s in scenarios):
        return 3
    if (model.cut_short and not ending) or model.not_started():
        return 1
    verdicts = {s.verdict for s in scenarios}
    if "PASS" in verdicts:
        return 0
    return 1 if "XFAIL" in verdicts else 3
