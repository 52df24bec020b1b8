# SPDX-License-Identifier: GPL-2.0-only
"""JUnit XML, as CI servers read it: one suite a kernel, one case a scenario."""

from __future__ import annotations

import io

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

from harness.report import ktap, stirred
from harness.report.model import RunModel
from harness.report.views import NO_RESULT, Scenario
from harness.report.words import brief, printable, state_of_run


def render(model: RunModel) -> str:
    """The run as JUnit XML.

    FAIL and the kernel's accidents are failures; LOST, INFRA, a VM or a group in
    trouble and a run without an end are errors; SKIP and XFAIL are skipped, with the reason.
    """
    xml = JUnitXml("cohabit")
    for kernel in model.kernels.values():
        suite = TestSuite(printable(kernel.id))
        suite.timestamp = model.run.started
        properties = {
            "reference": kernel.reference, "arch": kernel.arch, "profile": kernel.profile,
            "origin": kernel.origin,
        }  # fmt: skip
        for vm in model.vms_of(kernel.id):
            properties[vm.id] = f"{vm.how} {vm.accel} QEMU {vm.qemu} CPU {vm.cpu}"
        for name, value in properties.items():
            suite.add_property(name, printable(value))
        suite.add_testcases([_case(model, s) for s in model.of_kernel(kernel.id)])
        for vm in model.vm_failures():
            if vm.kernel == kernel.id:
                suite.add_testcase(
                    _error(kernel.id, vm.id, f"{vm.verdict}: {brief(vm.detail)}", ktap.vm_lines(vm))
                )
        for group in model.group_failures():
            if group.kernel == kernel.id:
                why = f"{group.verdict}: {brief(group.reason)}"
                lines = ktap.group_diagnostics(model, group)
                suite.add_testcase(_error(kernel.id, f"group {group.id}", why, lines))
        xml.add_testsuite(suite)
    if model.cut_short or model.run.interrupted or model.not_started():
        suite = TestSuite("run")
        state = state_of_run(model)
        suite.add_testcase(_error("run", "run-complete", state[0], state))
        xml.add_testsuite(suite)
    out = io.BytesIO()
    xml.write(out)
    return out.getvalue().decode("utf-8")


def _case(model: RunModel, scenario: Scenario) -> TestCase:
    case = TestCase(printable(scenario.name), _class(scenario.kernel), round(scenario.seconds, 3))
    message = printable(brief(scenario.reason))
    if account := stirred.of_scenario(model, scenario):
        case.system_out = printable("\n".join(stirred.lines(account)))
    verdict = scenario.verdict
    if verdict == "PASS":
        return case
    if verdict == "SKIP":
        case.result = [Skipped(message, "skip")]
    elif verdict == "XFAIL":
        case.result = [Skipped(f"{printable(scenario.xfail)}: {message}", "xfail")]
    else:
        kind = Error if verdict in NO_RESULT else Failure
        result = kind(message, verdict)
        result.text = printable("\n".join(ktap.diagnostics(model, scenario)))
        case.result = [result]
        vm = model.vms.get(scenario.vm)
        if vm is not None and vm.console_tail:
            case.system_err = printable("\n".join(vm.console_tail))
    return case


def _error(kernel: str, name: str, message: str, lines: list[str]) -> TestCase:
    case = TestCase(name, _class(kernel), 0.0)
    error = Error(printable(message), "error")
    error.text = printable("\n".join(lines))
    case.result = [error]
    return case


def _class(kernel: str) -> str:
    """CI servers cut class names at dots, and a release has dots."""
    return f"cohabit.{printable(kernel).replace('.', '_')}"
