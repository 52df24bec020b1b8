# SPDX-License-Identifier: GPL-2.0-only
"""The report for a terminal, at the end of a run and from ``cohabit report``."""

from __future__ import annotations

import io
import textwrap
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.report import differences, matrix, sites, stirred, traces
from harness.report.matrix import LEGEND, Matrix, Triple, departure_words, mark_of
from harness.report.model import RunModel
from harness.report.views import HARMLESS, Group, Kernel, Report, Scenario, Step, Vm
from harness.report.words import (
    brief,
    command_line,
    diff,
    duration,
    effect,
    group_lines,
    outcome,
    plural,
    printable,
    repeat_command,
    some,
    state_of_run,
    step_title,
    subject,
    whereabouts,
)

MIN_WIDTH, MAX_WIDTH = 80, 100

_MARK_STYLES = {
    "P": "green", "r": "cyan", "F": "bold red", "!": "bold white on red", "?": "bold yellow",
    "x": "yellow", "S": "dim", "·": "dim",
}  # fmt: skip
_VERDICT_STYLES = {"PASS": "green", "XFAIL": "yellow", "SKIP": "dim", "LOST": "bold yellow",
                   "INFRA": "bold yellow"}  # fmt: skip

#: Lines of a console's end; the whole is in the run's console-<vm>.log.
_TAIL = 15


def verdict_style(verdict: str) -> str:
    """The rich style of a verdict."""
    return _VERDICT_STYLES.get(verdict, "bold red")


def render(model: RunModel, width: int = MAX_WIDTH, color: bool = False) -> str:
    """The whole report as text, ``width`` columns wide within 80 to 100.

    With ``color``, terminal escapes are in it; NO_COLOR in the environment
    turns them off again.
    """
    out = io.StringIO()
    console = Console(
        file=out,
        width=min(max(width, MIN_WIDTH), MAX_WIDTH),
        force_terminal=color,
        force_jupyter=False,
        color_system="standard" if color else None,
        highlight=False,
        markup=False,
        emoji=False,
    )
    _Writer(model, console).write()
    lines = (line.rstrip() for line in out.getvalue().split("\n"))
    return "\n".join(lines)


class _Writer:
    """Writes the sections of one report to one console."""

    def __init__(self, model: RunModel, console: Console) -> None:
        self.model = model
        self.console = console
        #: The groups that are in the report.
        self._groups: set[str] = set()

    def write(self) -> None:
        """The sections, in order."""
        run = self.model.run
        self._line(f"cohabit {run.cohabit}, {run.started}: {command_line(self.model)}")
        for kernel in self.model.kernels.values():
            self._environment(kernel)
        self._matrices()
        self._differences()
        self._sites()
        self._stirred()
        for vm in self.model.vm_failures():
            self._vm(vm)
        groups = self.model.group_failures()
        for group in groups:
            self._group(group)
        self._groups = {group.id for group in groups}
        told = {scenario for group in groups for scenario in group.scenarios}
        for scenario in self.model.failures():
            # A run that was cut short leaves a hundred of a group open, all at one step.
            if scenario.finished or scenario.id not in told:
                self._scenario(scenario)
        self._known()
        self._counts()

    def _line(self, text: str = "", style: str = "", indent: int = 0) -> None:
        """One paragraph, wrapped at words with its indent kept."""
        width = self.console.width - indent
        for part in _wrap(printable(text), width):
            self.console.print(Text(" " * indent + part, style), soft_wrap=True)

    def _raw(self, text: str, indent: int, style: str = "") -> None:
        """Lines of the kernel, as they are: never wrapped, so that they can be copied."""
        for line in text.rstrip("\n").split("\n"):
            self.console.print(Text(" " * indent + printable(line), style), soft_wrap=True)

    def _heading(self, text: str, style: str = "bold") -> None:
        self._line()
        self._line(text, style)

    def _environment(self, kernel: Kernel) -> None:
        self._line(f"{kernel.release} ({kernel.arch}), {kernel.reference}", "bold")
        for vm in self.model.vms_of(kernel.id)[:1]:
            why = f" ({vm.accel_why})" if vm.accel_why else ""
            self._line(f"{vm.accel}{why}", indent=2)
            machine = f"QEMU {vm.qemu}, CPU {vm.cpu} x {vm.cpus}, {vm.memory_mb} MB"
            self._line(f"{machine}, engine {vm.how}", indent=2)
            if vm.cpu_cost:
                self._line(f"CPU {vm.cpu}: {vm.cpu_cost}", indent=2)
        why = f" ({kernel.profile_why})" if kernel.profile_why else ""
        self._line(f"profile {kernel.profile}{why}", indent=2)
        self._line(f"from {kernel.origin}", indent=2)

    def _matrices(self) -> None:
        found = [m for k in self.model.kernels if (m := matrix.build(self.model, k)) is not None]
        for one in found:
            self._heading(f"Pair matrix of {one.kernel}: row attached first, column second")
            self.console.print(_grid(one))
        cells = [cell for one in found for cell in one.cells]
        for kernel in self.model.kernels:
            if triples := matrix.triples(self.model, kernel):
                self._heading(f"Triples of {kernel}")
                self._triples(triples)
                cells += [cell for triple in triples for cell in triple.cells]
        if not cells:
            return
        self._line()
        if found and len(found[0].departures) > 1:
            ways = "; ".join(departure_words(d) for d in found[0].departures)
            self._line(f"In a pair, from the left: {ways}.", indent=2)
        for letter in matrix.marks_used(cells):
            text = Text("  ").append(letter, _MARK_STYLES[letter]).append(f"  {LEGEND[letter]}")
            self.console.print(text)

    def _triples(self, triples: list[Triple]) -> None:
        """A line for each three that need a look, one for all others."""
        troubled = [t for t in triples if t.troubles]
        for triple in troubled:
            names = " + ".join(triple.attachers)
            orders = plural(len(triple.scenarios), "order")
            self._line(f"{triple.mark}  {names}: {triple.troubles} of {orders}", "bold red", 2)
        fine = [t for t in triples if not t.troubles]
        marks = Counter(mark_of(s) for t in fine for s in t.scenarios)
        if fine:
            counts = ", ".join(f"{marks[m]} {m}" for m in LEGEND if marks[m])
            others = "other set" if troubled else "set"
            orders = plural(sum(marks.values()), "order")
            self._line(f"{plural(len(fine), others)} of three in {orders}: {counts}", indent=2)

    def _differences(self) -> None:
        found = differences.find(self.model)
        if not found:
            return
        self._heading("What differs between the kernels")
        for one in found:
            self._line(one.what, indent=2)
            width = max(len(value) for value in one.values)
            for value, kernels in one.by_value(list(self.model.kernels)).items():
                self._line(f"{value:{width}}  {', '.join(kernels)}", indent=4)
            self._line(f"{plural(len(one.names), 'scenario')}: {some(one.names)}", "dim", 4)

    def _sites(self) -> None:
        """Each way that calls took to a direct trampoline, and which instruction did it."""
        for kernel in self.model.kernels:
            if not (found := sites.ways(self.model, kernel)):
                continue
            self._heading(f"Call sites of {kernel}")
            for way in found:
                self._line(f"{way.decoded} ({way.instruction}); {way.trampoline}", indent=2)
                names = f"{plural(len(way.scenarios), 'scenario')}: {some(way.scenarios, 2)}"
                self._line(names, "dim", 4)

    def _stirred(self) -> None:
        """How much was tried while code changed, and what that excludes."""
        for kernel in self.model.kernels:
            if not (found := stirred.accounts(self.model, kernel)):
                continue
            self._heading(f"Consistency while code changed, {kernel}")
            for one in found:
                verdict = one.scenario.verdict
                self._line(f"{verdict}  {one.scenario.name}", verdict_style(verdict), 2)
                # What failed is told in full below.
                short = verdict not in HARMLESS
                for line in [stirred.brief(one)] if short else stirred.said(one):
                    self._line(line, indent=4)
            if any(one.tcg for one in found):
                self._line(stirred.TCG, "dim", 2)

    def _vm(self, vm: Vm) -> None:
        self._heading(
            f"{vm.verdict}  {vm.id}, {vm.kernel}: {brief(vm.detail)}", verdict_style(vm.verdict)
        )
        for report in self.model.reports_of(vm):
            self._report(report, 2)
        self._vm_lines(vm)

    def _group(self, group: Group) -> None:
        self._heading(
            f"{group.verdict}  group {group.id}, {group.kernel}: {brief(group.reason)}",
            verdict_style(group.verdict),
        )
        for line in group_lines(self.model, group):
            self._line(line, indent=2)
        for report in self.model.reports_of(group):
            self._report(report, 2)
        vm = self.model.vms.get(group.vm)
        if vm is not None and vm.verdict == group.verdict:
            self._vm_lines(vm)

    def _vm_lines(self, vm: Vm) -> None:
        for title, lines in (
            (f"the end of console-{vm.id}.log:", vm.console_tail[-_TAIL:]),
            ("stacks:", vm.stacks),
        ):
            if lines:
                self._line(title, indent=2)
                self._raw("\n".join(lines), 4)

    def _report(self, report: Report, indent: int) -> None:
        """Where a report of the kernel came, and its call trace."""
        place = f"the kernel's report {traces.where(self.model, report)}"
        if indent > 2 and report.group in self._groups:
            self._line(f"{place}, as in group {report.group}: {report.title}", indent=indent)
            return
        self._line(f"{place}:", indent=indent)
        self._raw("\n".join(traces.shown(report, traces.LIMIT)), indent + 2)

    def _known(self) -> None:
        """Reports that are known differences: of several alike the first."""
        found = traces.known(self.model)
        if found:
            self._heading("Reports of the kernel that are known differences")
        for one in found:
            more = f", and of {plural(one.more, 'more scenario')}" if one.more else ""
            what = f"{one.scenario.xfail}, {one.scenario.kernel}"
            place = traces.where(self.model, one.report)
            self._line(f"{what}: {place} of {one.scenario.name}{more}", indent=2)
            self._raw("\n".join(traces.shown(one.report, traces.LIMIT)), 4)

    def _scenario(self, scenario: Scenario) -> None:
        verdict = scenario.verdict
        self._heading(f"{verdict}  {scenario.name}", verdict_style(verdict))
        self._line(f"{whereabouts(scenario)}: {brief(scenario.reason)}", indent=2)
        reports = self.model.reports_of(scenario)
        for row in scenario.rows:
            if row.step is not None:
                self._step(scenario, row.step, [r for r in reports if r.index == row.index])
            else:
                title = step_title(row.spec, scenario.attacher_of)
                self._line(f"{row.index + 1}. {title}: {row.note}", "dim", 2)
        for report in reports:
            if report.index is None:
                self._report(report, 5)
        if "\n" in scenario.reason:
            self._line("the whole reason:", indent=2)
            self._raw(scenario.reason, 4)
        vm = self.model.vms.get(scenario.vm)
        if vm is not None and vm.verdict == verdict:
            self._vm_lines(vm)
        again = repeat_command(self.model, scenario.kernel, scenario.name)
        self._line(f"repeat: {again}", indent=2)

    def _step(self, scenario: Scenario, step: Step, reports: Sequence[Report]) -> None:
        title = f"{step.index + 1}. {step_title(step.spec, scenario.attacher_of)}: {outcome(step)}"
        done = effect(step)
        self._line(f"{title} -> {done}" if done else title, indent=2)
        if (account := stirred.of_scenario(self.model, scenario)) and account.step is step:
            for text in stirred.lines(account):
                self._line(text.strip(), indent=7 if text.startswith(" ") else 5)
        if step not in scenario.bad_steps:
            for report in reports:
                self._report(report, 5)
            return
        for mismatch in step.mismatches:
            self._line(subject(mismatch), indent=5)
            for sign, text in diff(mismatch):
                self._raw(f"{sign} {text}", 7, "red" if sign == "-" else "green")
            if mismatch.rule:
                self._line(f"predicted by {mismatch.rule}", indent=7)
        if step.registry_text:
            self._line("registry:", indent=5)
            self._raw(step.registry_text, 7)
        for report in reports:
            self._report(report, 5)
        if others := traces.other_lines(step, reports):
            self._line("kernel log:", indent=5)
            for line in others:
                self._raw(line.stamped, 7)

    def _counts(self) -> None:
        self._line()
        for text in dict.fromkeys(n.text for n in self.model.notes if n.level == "warning"):
            self._line(f"warning: {brief(text)}", "yellow")
        for line in state_of_run(self.model):
            self._line(line, "bold yellow")
        counts = self.model.counts()
        total = Text(plural(sum(counts.values()), "scenario"))
        for n, (verdict, count) in enumerate(counts.items()):
            total.append(": " if n == 0 else ", ")
            total.append(f"{count} {verdict}", verdict_style(verdict))
        steps = plural(self.model.witnessed_steps(), "witnessed step")
        total.append(f"; {steps}; {duration(self.model.seconds)}")
        self.console.print(total)


def _wrap(text: str, width: int) -> list[str]:
    """At spaces only: a scenario's name must stay one word to be copied."""
    return textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False) or [""]


def _grid(one: Matrix) -> Table:
    """The cells; columns are numbered because eighteen names fit no terminal."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("", justify="right")
    table.add_column("")
    for number in range(1, len(one.attachers) + 1):
        table.add_column(str(number), justify="right", min_width=2, no_wrap=True)
    for number, (name, row) in enumerate(zip(one.attachers, one.rows, strict=True), 1):
        pairs = [Text().join(Text(c.mark, _MARK_STYLES[c.mark]) for c in pair) for pair in row]
        table.add_row(f"  {number}", name, *pairs)
    return table
