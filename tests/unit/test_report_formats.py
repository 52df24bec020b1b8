# SPDX-License-Identifier: GPL-2.0-only
"""KTAP, JUnit and JSON: read back by parsers, not by eye."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from junitparser import Error, Failure, JUnitXml, Skipped
from sample_events import NEW, OLD, Event, SampleRun, full_run, passing_run, write
from test_report_model import model_of

from harness.report import jsonout, junit, ktap
from harness.report.model import read


@dataclass
class Result:
    passed: bool
    name: str
    directive: str
    diagnostics: list[str]
    children: list[Result] = field(default_factory=list)


def parse_ktap(lines: list[str], depth: int = 0) -> list[Result]:
    """A strict reader of Documentation/dev-tools/ktap.rst: version, plan, numbering, nesting."""
    pad = "  " * depth
    assert lines.pop(0) == f"{pad}KTAP version 1"
    planned: int | None = None
    results: list[Result] = []
    diagnostics: list[str] = []
    children: list[Result] = []
    while lines and lines[0].startswith(pad):
        line = lines[0][len(pad) :]
        if line == "  KTAP version 1":
            children = parse_ktap(lines, depth + 1)
            continue
        assert not line.startswith(" "), line
        lines.pop(0)
        if match := re.fullmatch(r"1\.\.(\d+)", line):
            assert planned is None
            planned = int(match[1])
        elif match := re.fullmatch(r"(ok|not ok) (\d+) ([^#]*?)(?: # ([A-Z]+)(?: .*)?)?", line):
            assert int(match[2]) == len(results) + 1
            result = Result(match[1] == "ok", match[3], match[4] or "", diagnostics, children)
            results.append(result)
            diagnostics, children = [], []
        else:
            assert line.startswith("#"), line
            diagnostics.append(line)
    assert planned == len(results)
    return results


def ktap_of(events: list[Event]) -> list[Result]:
    return parse_ktap(ktap.render(model_of(events)).splitlines())


def test_ktap_nests_scenarios_in_kernels() -> None:
    old, new = ktap_of(full_run())
    assert (old.name, new.name) == (OLD, NEW)
    assert len(old.children) == len(new.children) == 82
    assert not old.passed
    by_name = {r.name: r for r in new.children}
    for name, expected in {
        "pair/livepatch+fentry": (True, ""),
        "pair/livepatch+fexit": (False, ""),
        "pair/direct-share+livepatch": (True, "XFAIL"),
        "pair/ipmodify+direct-share": (False, "TIMEOUT"),
        "pair/ops+direct": (False, ""),
        "pair/ops-regs+fmod_ret": (False, "ERROR"),
    }.items():
        assert (by_name[name].passed, by_name[name].directive) == expected, name
    assert {r.directive for r in old.children} == {"", "SKIP"}
    told = "\n".join(by_name["pair/livepatch+fexit"].diagnostics)
    assert "- livepatch-a\n#    + original" in told
    assert "repeat: cohabit run" in told


def test_ktap_of_a_passing_run_passes() -> None:
    (only,) = ktap_of(passing_run())
    assert only.passed
    assert all(r.passed for r in only.children)


def test_ktap_of_a_run_without_end_does_not_pass() -> None:
    results = ktap_of(passing_run()[:-1])
    assert results[0].passed
    assert (results[1].name, results[1].passed) == ("run-complete", False)
    interrupted = ktap_of(SampleRun((NEW,), ("ops",), {}).end(interrupted=True))
    assert not interrupted[-1].passed


def test_ktap_names_cannot_forge_directives() -> None:
    events = passing_run()
    for event in events:
        if event["type"] == "scenario_start":
            event["name"] += " # SKIP\nnot ok 7 forged"
    (only,) = ktap_of(events)
    assert len(only.children) == 10
    assert {r.directive for r in only.children} == {""}


def boot_failure() -> list[Event]:
    events = passing_run()
    seq = events[-1]["seq"]
    extra: list[Event] = [
        {"type": "vm_start", "vm": "vm7", "kernel": NEW},
        {
            "type": "vm_end", "vm": "vm7", "reason": "died", "verdict": "BOOT_FAIL",
            "detail": "panic: no init", "console_tail": ["Kernel panic\x00\x1b[1m!"],
        },
    ]  # fmt: skip
    tail = [*extra, events[-1]]
    return [*events[:-1], *({**e, "seq": seq + n, "t": 99.0} for n, e in enumerate(tail))]


def test_a_boot_failure_is_a_failed_test_everywhere() -> None:
    (only,) = ktap_of(boot_failure())
    assert not only.passed
    assert (only.children[-1].name, only.children[-1].directive) == ("vm7", "ERROR")
    xml = JUnitXml.fromstring(junit.render(model_of(boot_failure())).encode())
    (suite,) = list(xml)
    assert suite.errors == 1


def test_junit_counts_and_results(tmp_path: Path) -> None:
    file = tmp_path / "junit.xml"
    file.write_text(junit.render(model_of(full_run())))
    xml = JUnitXml.fromfile(str(file))
    assert (xml.tests, xml.failures, xml.errors, xml.skipped) == (164, 4, 1, 18)
    suites = {s.name: s for s in xml}
    assert set(suites) == {OLD, NEW}
    assert 'name="vm0" value="virtme tcg QEMU 10.0.2 CPU qemu64"' in file.read_text()
    cases = {c.name: c for c in suites[NEW]}
    (failure,) = cases["pair/livepatch+fexit"].result
    assert isinstance(failure, Failure)
    assert "expected livepatch-a, saw original" in str(failure.message)
    assert "+ original" in str(failure.text)
    assert isinstance(cases["pair/ops-regs+fmod_ret"].result[0], Error)
    (xfail,) = cases["pair/direct-share+livepatch"].result
    assert isinstance(xfail, Skipped)
    assert (xfail.type, str(xfail.message)[:17]) == ("xfail", "direct-share-peer")
    hang = cases["pair/ipmodify+direct-share"]
    assert "red <b>" in str(hang.system_err)
    assert hang.time >= 60


def test_junit_of_a_cut_run_has_an_error(tmp_path: Path) -> None:
    model = read(write(passing_run(), tmp_path, cut=30))
    xml = JUnitXml.fromstring(junit.render(model).encode())
    assert (xml.tests, xml.errors) == (11, 1)


@pytest.mark.parametrize("bad", ["\x00", "\x1b[2J", "\ufffe", "\ud800", "]]>", "<&>"])
def test_junit_survives_what_a_console_can_say(bad: str) -> None:
    events = full_run()
    for event in events:
        if event["type"] == "vm_end" and event.get("console_tail"):
            event["console_tail"] = [bad]
        if event["type"] == "step_end":
            event["registry_text"] = bad
        if event["type"] == "scenario_end":
            event["reason"] = f"why {bad}"
    JUnitXml.fromstring(junit.render(model_of(events)).encode("utf-8"))


def test_json_sums_up() -> None:
    summary = json.loads(jsonout.render(model_of(full_run())))
    assert summary["exit_status"] == 1
    assert summary["complete"] is True
    assert summary["counts"]["PASS"] == 141
    assert summary["witnessed_steps"] == 528
    old, new = summary["kernels"]
    assert old["matrix"]["rows"][0] == "PrSrrrrPP"
    assert new["matrix"]["attachers"][3] == "fentry"
    assert old["vms"][0]["accel_why"].startswith("/dev/kvm")
    assert len(summary["scenarios"]) == 166
    assert sum(s["counts"] for s in summary["scenarios"]) == 164
    failed = next(s for s in summary["scenarios"] if s["verdict"] == "FAIL")
    assert failed["steps"][1]["mismatches"][0]["expected"] == [16]
    assert failed["steps"][1]["as_predicted"] is False


def test_json_of_a_cut_run(tmp_path: Path) -> None:
    summary = json.loads(jsonout.render(read(write(passing_run(), tmp_path, cut=30))))
    assert (summary["complete"], summary["truncated"], summary["exit_status"]) == (False, True, 1)
