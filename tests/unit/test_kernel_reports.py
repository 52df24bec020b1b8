# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's reports in the record, with the step that each came in (harness/run/reports.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from model_kernel import Event, ModelKernel
from policy_help import OTHER, on

from harness.policy import known
from harness.policy.known import Known
from harness.policy.profile import choose
from harness.report.model import read
from harness.run.record import Record
from harness.run.reports import Reports
from harness.run.schedule import Schedule, Work
from harness.scenario.functions import FUNCTIONS
from harness.scenario.steps import Call, Detach, Misuse, Scenario
from harness.target.console import Console
from harness.target.protocol import TargetGoneError, TargetSilentError

CONSOLES = Path(__file__).parent.parent / "data/console"
RELEASE = "6.12.0-model"
LANES = [f.name for f in FUNCTIONS.values() if f.lane is not None]
SPLAT = (
    "------------[ cut here ]------------",
    "WARNING: CPU: 0 PID: 7 at kernel/livepatch/core.c:99 klp_odd+0x1/0x2",
    "Call Trace:",
    " <TASK>",
    " enabled_store+0x114/0x160",
    " </TASK>",
    "---[ end trace 0000000000000000 ]---",
)


class Odd(ModelKernel):
    """A model kernel to which things happen: what, by request (``acts`` are numbered from 1).

    ``"splat"`` is a report in the log, ``"gone"`` and ``"silent"`` the end of the kernel.
    """

    def __init__(self, what: Mapping[str, str], console: Sequence[str] = ()) -> None:
        super().__init__(RELEASE, choose(RELEASE, {}))
        self.what, self.console, self.acts = what, console, 0

    def request(self, message: Mapping[str, Any], timeout: float) -> Mapping[str, Any]:
        name = str(message["op"])
        if name == "acts":
            self.acts += 1
            name = f"acts {self.acts}"
        what = self.what.get(name)
        if what == "gone":
            raise TargetGoneError("it is gone")
        if what == "silent":
            raise TargetSilentError
        if what:
            self._log += SPLAT
        return super().request(message, timeout)

    def backtraces(self) -> Sequence[str]:
        return ("CPU 0: at ffffffff8bb16eef", " schedule+0x27/0xa0")

    def crash(self) -> str | None:
        return "BUG: it crashed" if "gone" in self.what.values() else None


def run(
    directory: Path, what: Mapping[str, str], *scenarios: Scenario, console: str = "",
    together: int = 1,
) -> list[Event]:  # fmt: skip
    """The events of a run of one VM with these accidents, then of any number without."""
    events: list[Event] = []
    with Record(directory, (lambda event: events.append(dict(event)),)) as record:

        def make(vm: str) -> ModelKernel:
            if vm != "vm0":
                return ModelKernel(RELEASE, choose(RELEASE, {}))
            if console:
                lines = Console(record.console(vm))
                lines.feed(0.0, (CONSOLES / f"{console}.log").read_bytes())
                lines.close()
            return Odd(what)

        work = Work(RELEASE, choose(RELEASE, {}), make, scenarios)
        Schedule([work], record, 1, together).run()
    return events


def reports(events: Sequence[Event]) -> list[Event]:
    return [e for e in events if e["type"] == "report"]


def pair(name: str = "pair", function: str = OTHER) -> Scenario:
    steps = on("a", "ops", function), on("b", "ops-regs", function), Detach("a"), Detach("b")
    return Scenario(name, (function,), steps)


PAIR = f"{RELEASE}/pair#1"


def test_a_report_is_told_with_its_step(tmp_path: Path) -> None:
    (found,) = reports(run(tmp_path, {"acts 3": "splat"}, pair()))
    assert {k: v for k, v in found.items() if k not in ("seq", "t", "lines")} == {
        "type": "report",
        "report": "vm0:r0",
        "vm": "vm0",
        "when": "step",
        "index": 2,
        "scenarios": [PAIR],
        "kind": "WARN",
        "title": SPLAT[1],
        "fingerprint": "WARN: enabled_store",
    }
    assert [line.split("] ", 1)[1] for line in found["lines"]] == list(SPLAT)


@pytest.mark.parametrize(("when", "request_"), [("begin", "begin"), ("clean", "clean")])
def test_between_steps_it_says_so(tmp_path: Path, when: str, request_: str) -> None:
    (found,) = reports(run(tmp_path, {request_: "splat"}, pair()))
    assert (found["when"], found["scenarios"]) == (when, [PAIR])
    assert "index" not in found


def test_side_by_side_it_is_told_once_for_all(tmp_path: Path) -> None:
    scenarios = [pair(f"p{n}", lane) for n, lane in enumerate(LANES[:3])]
    events = run(tmp_path, {"acts 2": "splat"}, *scenarios, together=3)
    (found,) = reports(events)
    assert (found["when"], found["index"], found["group"]) == ("step", 1, "vm0:g1")
    assert found["scenarios"] == [f"{RELEASE}/p{n}#1" for n in range(3)]


@pytest.mark.parametrize(("title", "verdict"), [("klp_odd", "XFAIL"), ("klp_even", "SPLAT")])
def test_a_known_report_of_a_company_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, title: str, verdict: str
) -> None:
    """All of its scenarios are run again, each alone, all the same."""
    entry = Known("odd", ("nothing",), "page", (6, 12), (6, 12), title, company=True)
    monkeypatch.setattr(known, "KNOWN", (entry,))
    scenarios = [pair(f"p{n}", lane) for n, lane in enumerate(LANES[:3])]
    events = run(tmp_path, {"acts 2": "splat"}, *scenarios, together=3)
    (ended,) = [e for e in events if e["type"] == "group_end"]
    assert (ended["verdict"], SPLAT[1] in ended["reason"]) == (verdict, True)
    assert ("(page)" in ended["reason"]) is (verdict == "XFAIL")
    assert [e["verdict"] for e in events if e["type"] == "scenario_end"] == ["PASS"] * 3
    model = read(tmp_path)
    assert [g.verdict for g in model.group_failures()] == ([] if verdict == "XFAIL" else ["SPLAT"])


@pytest.mark.parametrize(
    ("notes", "verdicts"), [("", {"PASS"}), ("its own", {"PASS"}), ("others'", {"INFRA"})]
)
def test_another_build_than_was_meant_is_noticed(
    tmp_path: Path, notes: str, verdicts: set[str]
) -> None:
    """Of one release there may be any number of kernels."""
    events: list[Event] = []
    with Record(tmp_path, (lambda event: events.append(dict(event)),)) as record:

        def make(_vm: str) -> ModelKernel:
            return ModelKernel(RELEASE, choose(RELEASE, {}))

        work = Work(RELEASE, choose(RELEASE, {}), make, [pair()], notes)
        Schedule([work], record, 1, 1).run()
    ended = {e.get("verdict") for e in events if e["type"] in ("scenario_end", "vm_end")} - {None}
    assert (ended or {"PASS"}) == verdicts, ended


def test_what_a_step_is_to_cause_is_a_report_too(tmp_path: Path) -> None:
    """The record has it, whatever becomes of it."""
    misuse = Scenario("twice", (OTHER,), (Misuse("ops-register-twice", OTHER),), ends_vm=True)
    events = run(tmp_path, {}, misuse)
    assert [e["verdict"] for e in events if e["type"] == "scenario_end"] == ["PASS"]
    assert [r["index"] for r in reports(events)] == [0]


def test_a_crash_is_taken_from_the_console(tmp_path: Path) -> None:
    events = run(tmp_path, {"acts 2": "gone"}, pair(), console="6.12-null")
    (found,) = reports(events)
    assert (found["when"], found["index"], found["scenarios"]) == ("step", 1, [PAIR])
    assert found["kind"] == "oops"
    assert found["title"].startswith("BUG: kernel NULL pointer dereference, address:")
    assert "RIP: 0010:null_deref+0xc/0x20 [mon]" in found["lines"]
    order = [e["type"] for e in events if e["type"] in ("report", "vm_end")]
    assert order[:2] == ["report", "vm_end"]


def test_what_the_log_told_is_not_told_again(tmp_path: Path) -> None:
    """The console has a report that came with a reply, and the one that nothing followed."""
    console = [*SPLAT, *SPLAT, "BUG: kernel NULL pointer dereference, address: 0", "Call Trace:",
               " f+0x1/0x2", "---[ end trace 0000000000000000 ]---"]  # fmt: skip
    path = tmp_path / "console-vm0.log"
    path.write_text("".join(f"{0.5:10.3f} {line}\n" for line in console))
    events: list[Event] = []
    with Record(tmp_path, (lambda event: events.append(dict(event)),)) as record:
        told = Reports(record, "vm0", lambda: {"when": "boot"})
        log = [{"level": 4, "t": float(n), "text": text} for n, text in enumerate(SPLAT)]
        assert told.of_reply({"log": log}) == [SPLAT[1]]
        told.of_console(path, asked=False)
    assert [e["report"] for e in events] == ["vm0:r0", "vm0:r1", "vm0:r2"]
    assert [e["kind"] for e in events] == ["WARN", "WARN", "oops"]


def test_backtraces_that_were_asked_for_are_no_report(tmp_path: Path) -> None:
    events = run(tmp_path, {"acts 1": "silent"}, pair(), console="6.12-sysrq-l")
    assert reports(events) == []
    ends = [e for e in events if e["type"] == "vm_end"]
    assert ends[0]["verdict"] == "HANG"


@pytest.mark.parametrize(("end", "kinds"), [("silent", []), ("gone", ["panic"])])
def test_a_panic_by_our_own_nmi_is_no_report(tmp_path: Path, end: str, kinds: list[str]) -> None:
    """A kernel that hangs may panic when it is asked for backtraces; that of others counts."""
    events = run(tmp_path, {"acts 1": end}, pair(), console="6.12-kill-init")
    assert [e["kind"] for e in reports(events)] == kinds


def test_a_kernel_that_does_not_boot(tmp_path: Path) -> None:
    events = run(tmp_path, {"hello": "gone"}, pair(), console="6.12-no-root")
    (found,) = [e for e in reports(events) if e["vm"] == "vm0"]
    assert found["when"] == "boot"
    assert "scenarios" not in found
    assert found["kind"] == "panic"


def test_without_a_console_nothing_is_lost(tmp_path: Path) -> None:
    events = run(tmp_path, {"acts 1": "gone"}, pair(), Scenario("call", (OTHER,), (Call(),)))
    assert reports(events) == []
    verdicts = [e["verdict"] for e in events if e["type"] == "scenario_end"]
    assert verdicts == ["CRASH", "PASS"]
