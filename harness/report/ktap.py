# SPDX-License-Identifier: GPL-2.0-only
"""KTAP version 1 (Documentation/dev-tools/ktap.rst): kernel > scenario, with diagnostics.

XFAIL and SKIP are ``ok`` with a directive, as the kernel's own selftests print
them (tools/testing/selftests/kselftest.h).
"""

from __future__ import annotations

from harness.report import stirred, traces
from harness.report.model import RunModel
from harness.report.views import HARMLESS, Group, Report, Scenario, Vm
from harness.report.words import (
    brief,
    diff,
    effect,
    group_lines,
    outcome,
    printable,
    repeat_command,
    state_of_run,
    step_title,
    subject,
)

_VERSION = "KTAP version 1"

#: The directive of a result line; SPLAT, CRASH and FAIL are plain ``not ok``.
_DIRECTIVES = {
    "SKIP": "SKIP", "XFAIL": "XFAIL", "HANG": "TIMEOUT", "LOST": "ERROR", "INFRA": "ERROR",
    "BOOT_FAIL": "ERROR",
}  # fmt: skip


def render(model: RunModel) -> str:
    """The run as KTAP.

    What no scenario tells is a test of its own: a VM or a group in trouble, and a
    run that did not come to its end (``run-complete``).
    """
    tests = [(k.id, _kernel(model, k.id)) for k in model.kernels.values()]
    state = state_of_run(model)
    incomplete = model.cut_short or model.run.interrupted or bool(model.not_started())
    lines = [_VERSION, f"1..{len(tests) + incomplete}"]
    for number, (kernel, (subtest, passed)) in enumerate(tests, 1):
        lines += [f"  {line}" for line in subtest]
        lines.append(_result(passed, number, kernel))
    lines += _comments(state)
    if incomplete:
        lines.append(_result(False, len(tests) + 1, "run-complete", "ERROR", state[0]))
    return "\n".join(lines) + "\n"


def _kernel(model: RunModel, kernel: str) -> tuple[list[str], bool]:
    """The lines of one subtest, and whether it passed."""
    about = model.kernel_of(kernel)
    scenarios = model.of_kernel(kernel)
    others: list[tuple[str, str, str, list[str]]] = [
        (vm.id, vm.verdict, vm.detail, vm_lines(vm))
        for vm in model.vm_failures()
        if vm.kernel == kernel
    ]
    others += [
        (f"group {group.id}", group.verdict, group.reason, group_diagnostics(model, group))
        for group in model.group_failures()
        if group.kernel == kernel
    ]
    lines = [_VERSION, f"# Subtest: {_name(kernel)}"]
    lines += _comments([f"{about.reference}, {about.arch}, profile {about.profile}"])
    for vm in model.vms_of(kernel):
        lines += _comments([f"{vm.id}: {vm.how}, {vm.accel}, QEMU {vm.qemu}, CPU {vm.cpu}"])
    lines.append(f"1..{len(scenarios) + len(others)}")
    for number, scenario in enumerate(scenarios, 1):
        if scenario.verdict not in HARMLESS:
            lines += _comments(diagnostics(model, scenario))
        elif account := stirred.of_scenario(model, scenario):
            lines += _comments(stirred.lines(account))
        lines.append(
            _result(
                scenario.verdict in HARMLESS,
                number,
                scenario.name,
                _DIRECTIVES.get(scenario.verdict, ""),
                scenario.xfail or brief(scenario.reason),
            )
        )
    for number, (name, verdict, why, told) in enumerate(others, len(scenarios) + 1):
        lines += _comments(told)
        lines.append(_result(False, number, name, _DIRECTIVES.get(verdict, ""), brief(why)))
    return lines, not others and all(s.verdict in HARMLESS for s in scenarios)


def _result(passed: bool, number: int, name: str, directive: str = "", why: str = "") -> str:
    line = f"{'ok' if passed else 'not ok'} {number} {_name(name)}"
    if directive:
        line += f" # {directive} {' '.join(printable(why).split())}".rstrip()
    return line


def diagnostics(model: RunModel, scenario: Scenario) -> list[str]:
    """All that a failed scenario has to tell, as lines: steps, contradictions, log, console."""
    lines = [f"{scenario.name}: {scenario.verdict}: {scenario.reason}"]
    for row in scenario.rows:
        title = f"{row.index + 1}. {step_title(row.spec, scenario.attacher_of)}"
        step = row.step
        if step is None:
            lines.append(f"{title}: {row.note}")
            continue
        done = effect(step)
        title = f"{title}: {outcome(step)}"
        lines.append(f"{title} -> {done}" if done else title)
        if (account := stirred.of_scenario(model, scenario)) and account.step is step:
            lines += [f"   {line}" for line in stirred.lines(account)]
        for mismatch in step.mismatches:
            lines.append(f"   {subject(mismatch)} ({mismatch.rule})")
            lines += [f"   {sign} {text}" for sign, text in diff(mismatch)]
    reports = model.reports_of(scenario)
    for step in scenario.bad_steps:
        lines += [f"   registry: {line}" for line in step.registry_text.splitlines()]
        lines += [f"   {line.stamped}" for line in traces.other_lines(step, reports)]
    for report in reports:
        lines += report_lines(model, report)
    vm = model.vms.get(scenario.vm)
    if vm is not None and vm.verdict == scenario.verdict:
        lines += vm_lines(vm)
    return [*lines, f"repeat: {repeat_command(model, scenario.kernel, scenario.name)}"]


def group_diagnostics(model: RunModel, group: Group) -> list[str]:
    """A group's trouble: what it was, its members, and its VM's end where that says the same."""
    lines = [f"group {group.id}: {group.verdict}: {group.reason}", *group_lines(model, group)]
    for report in model.reports_of(group):
        lines += report_lines(model, report)
    vm = model.vms.get(group.vm)
    return lines + (vm_lines(vm) if vm is not None and vm.verdict == group.verdict else [])


def vm_lines(vm: Vm) -> list[str]:
    """A VM's trouble: what it was, the console's end, the stacks."""
    return [f"{vm.id}: {vm.verdict}: {vm.detail}", *vm.console_tail, *vm.stacks]


def report_lines(model: RunModel, report: Report) -> list[str]:
    """A report of the kernel: where it came, and its call trace."""
    shown = traces.shown(report, traces.LIMIT)
    return [f"report of the kernel {traces.where(model, report)}:", *(f"   {x}" for x in shown)]


def _comments(lines: list[str]) -> list[str]:
    return [f"# {part}".rstrip() for line in lines for part in printable(line).split("\n")]


def _name(text: str) -> str:
    """A description: one line, and no ``#``, which would begin a directive."""
    return " ".join(printable(text).replace("#", "_").split())
