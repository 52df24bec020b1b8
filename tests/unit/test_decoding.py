# SPDX-License-Identifier: GPL-2.0-only
"""After a run: what is decoded, and how what can't be is told (harness/run/decoding.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harness.errors import InfraError
from harness.kernels import decode
from harness.kernels.decode import Decoded
from harness.kernels.model import Kernel
from harness.report.model import RunModel
from harness.run.decoding import Booted, decode_reports
from harness.run.record import FORMAT, Record

NEW, OLD = "7.2.12-cohabit", "6.12.117+deb13-cloud-amd64"
Event = dict[str, Any]


def kernel(directory: Path, release: str, debug: bool) -> Kernel:
    tree = directory / release
    made = Kernel("r", release, "x86_64", (7, 2), tree / "i", tree, None, None, "origin", True)
    if debug:
        for path in (decode.debug_info(made), tree / decode.DEBUG / "scripts/faddr2line"):
            path.parent.mkdir(parents=True)
            path.touch()
    return made


@dataclass
class Loud:
    """Decodes to capitals, all that has an address."""

    asked: list[Sequence[str]] = field(default_factory=list)
    note: str = ""
    error: BaseException | None = None

    def decode(self, reports: Sequence[Sequence[str]]) -> Decoded:
        if self.error:
            raise self.error
        self.asked += reports
        shown = (tuple(x.upper() if "+0x" in x else x for x in r) for r in reports)
        return Decoded(tuple(shown), self.note)


class Run:
    """A run of two kernels: one VM each, a scenario of each verdict, a report in each."""

    def __init__(self, directory: Path, loud: Loud | None = None) -> None:
        self.loud = loud or Loud()
        self.made: list[tuple[Kernel, Path, bool]] = []
        self.events: list[Event] = []
        self.model = RunModel()
        tested = [
            Booted(kernel(directory, NEW, True), directory / "kmods"),
            Booted(kernel(directory, OLD, False), directory),
        ]
        listeners = (self.model.feed, lambda event: self.events.append(dict(event)))
        with Record(directory / "run", listeners) as record:
            record.event("run_start", format=FORMAT)
            for vm, release in (("vm0", NEW), ("vm1", OLD)):
                self._vm(record, vm, release)
            self.before = len(self.events)
            decode_reports(record, self.model, tested, self._make)

    def _make(self, of: Kernel, modules: Path, mountpoint: Path) -> Any:
        self.made.append((of, modules, mountpoint.is_dir()))
        return self.loud

    @staticmethod
    def _vm(record: Record, vm: str, release: str) -> None:
        record.event("vm_start", vm=vm, kernel=release)
        for number, verdict in enumerate(("PASS", "XFAIL", "SPLAT")):
            name = f"{release}/{verdict}"
            record.event("scenario_start", scenario=name, name=verdict, kernel=release, vm=vm)
            record.event(
                "report", report=f"{vm}:r{number}", vm=vm, when="begin", scenarios=[name],
                kind="WARN", title="WARNING", lines=[f"{verdict}:", f" f{number}+0x1/0x2"],
            )  # fmt: skip
            record.event("scenario_end", scenario=name, verdict=verdict, reason="")
        record.event(
            "report", report=f"{vm}:r9", vm=vm, when="boot", kind="lockdep", title="WARNING",
            lines=["nothing with an address"],
        )  # fmt: skip
        record.event("vm_end", vm=vm, reason="died", verdict="HANG", backtraces=[" g+0x3/0x4"])

    @property
    def after(self) -> list[Event]:
        return self.events[self.before :]

    def notes(self) -> list[tuple[str, str]]:
        return [(e["level"], e["text"]) for e in self.after if e["type"] == "note"]


def test_what_is_decoded(tmp_path: Path) -> None:
    """No promise of a step's, nothing twice, nothing of a kernel without debug info."""
    run = Run(tmp_path)
    assert run.loud.asked == [
        ("XFAIL:", " f1+0x1/0x2"),
        ("SPLAT:", " f2+0x1/0x2"),
        ("nothing with an address",),
        (" g+0x3/0x4",),
    ]
    found = [
        {k: v for k, v in e.items() if k not in ("seq", "t")}
        for e in run.after
        if e["type"] != "note"
    ]
    assert found == [
        {"type": "decoded", "report": "vm0:r1", "lines": ["XFAIL:", " F1+0X1/0X2"]},
        {"type": "decoded", "report": "vm0:r2", "lines": ["SPLAT:", " F2+0X1/0X2"]},
        {"type": "decoded", "vm": "vm0", "lines": [" G+0X3/0X4"]},
    ]
    assert run.notes() == [
        ("info", f"{NEW}: decoding 4 reports"),
        (
            "info",
            f"{OLD}: the kernel's reports are not decoded: there is no debug info "
            "(only what is built from a tree has it)",
        ),
    ]
    ((of, modules, mountable),) = run.made
    assert (of.release, modules, mountable) == (NEW, tmp_path / "kmods", True)


def test_what_was_decoded_is_read_again(tmp_path: Path) -> None:
    model = Run(tmp_path).model
    assert model.reports["vm0:r2"].text == ("SPLAT:", " F2+0X1/0X2")
    assert model.reports["vm0:r0"].text == ("PASS:", " f0+0x1/0x2")
    assert model.vms["vm0"].stacks == (" G+0X3/0X4",)
    assert model.vms["vm1"].stacks == (" g+0x3/0x4",)


@pytest.mark.parametrize(
    "error", [InfraError("no mirror", "set one"), OSError(28, "No space left on device")]
)
def test_a_failure_is_a_note(tmp_path: Path, error: Exception) -> None:
    run = Run(tmp_path, Loud(error=error))
    assert [e["type"] for e in run.after] == ["note", "note", "note"]
    assert run.notes()[1] == ("warning", f"{NEW}: the kernel's reports are not decoded: {error}")


def test_what_is_missing_is_a_note(tmp_path: Path) -> None:
    run = Run(tmp_path, Loud(note="after 9 s 1 of 7 addresses were found"))
    assert ("warning", f"{NEW}: decoding the kernel's reports: after 9 s 1 of 7 addresses "
            "were found") in run.notes()  # fmt: skip
    assert sum(e["type"] == "decoded" for e in run.after) == 3


def test_an_interrupt_goes_through(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        Run(tmp_path, Loud(error=KeyboardInterrupt()))


def test_without_reports_nothing_is_said(tmp_path: Path) -> None:
    model, events = RunModel(), []
    with Record(tmp_path / "run", (model.feed, events.append)) as record:
        record.event("run_start", format=FORMAT)
        decode_reports(record, model, [Booted(kernel(tmp_path, NEW, True), tmp_path)], _never)
    assert len(events) == 1


def _never(*_: object) -> Any:
    raise AssertionError
