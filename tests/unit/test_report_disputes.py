# SPDX-License-Identifier: GPL-2.0-only
"""Failures in VMs that went on from a snapshot: a VM that was booted decides."""

from __future__ import annotations

from typing import Any

import pytest

from harness.report.model import RunModel, exit_status
from harness.report.words import state_of_run

K = "6.12.1"


class Run:
    """A record that is made up event by event."""

    def __init__(self, planned: int = 1) -> None:
        self.model = RunModel()
        self._seq = 0
        self.event("run_start", format=1, planned=planned)
        self.event("vm_start", vm="vm0", kernel=K, start="snapshot")
        self.event("vm_start", vm="vm1", kernel=K, start="cold")

    def event(self, kind: str, **values: Any) -> None:
        self.model.feed({"seq": self._seq, "t": self._seq, "type": kind, **values})
        self._seq += 1

    def start(self, name: str, more: str = "", vm: str = "vm0", attempt: int = 1) -> str:
        identity = f"{K}/{name}#{attempt}{more}"
        self.event(
            "scenario_start",
            scenario=identity,
            name=name,
            kernel=K,
            vm=vm,
            attempt=attempt,
            steps=[],
        )
        return identity

    def ran(self, name: str, verdict: str, reason: str = "", **more: Any) -> str:
        identity = self.start(name, **more)
        self.event("scenario_end", scenario=identity, verdict=verdict, reason=reason)
        return identity

    def end(self) -> RunModel:
        self.event("run_end", interrupted=False)
        return self.model


def failed_when_restored(verdict: str = "FAIL") -> Run:
    run = Run()
    identity = run.ran("one", verdict, "flags: expected D")
    run.event("scenario_confirm", scenario=identity)
    return run


@pytest.mark.parametrize("verdict", ["FAIL", "SPLAT", "CRASH", "HANG", "LOST"])
def test_not_confirmed(verdict: str) -> None:
    run = failed_when_restored(verdict)
    run.ran("one", "PASS", more="#alone#cold", vm="vm1")
    model = run.end()
    assert model.counts() == {"PASS": 1}
    assert exit_status(model) == 0
    (line,) = state_of_run(model)
    assert line.startswith(f"one on {K}: {verdict} in a restored VM (flags: expected D), but PASS")


def test_confirmed() -> None:
    run = failed_when_restored()
    run.ran("one", "FAIL", "flags: expected D", more="#alone#cold", vm="vm1")
    model = run.end()
    assert model.counts() == {"FAIL": 1}
    assert exit_status(model) == 1
    assert state_of_run(model) == ["1 failure in restored VMs confirmed in VMs that were booted."]


def test_another_failure_is_told_apart() -> None:
    run = failed_when_restored("CRASH")
    run.ran("one", "FAIL", "errno", more="#alone#cold", vm="vm1")
    model = run.end()
    assert model.counts() == {"FAIL": 1}
    (line,) = state_of_run(model)
    assert "CRASH in a restored VM (flags: expected D), but FAIL (errno) in one" in line


def test_what_was_not_run_again_stands() -> None:
    model = failed_when_restored().end()
    assert model.counts() == {"FAIL": 1}
    assert exit_status(model) == 1
    assert state_of_run(model) == ["one failed in a restored VM and was not run in a booted one."]


def test_what_began_and_did_not_end_fails() -> None:
    run = failed_when_restored()
    run.start("one", "#alone#cold", "vm1")
    model = run.end()
    assert model.counts() == {"FAIL": 1}
    assert exit_status(model) == 1


def test_lost_in_the_booted_one_has_its_second_attempt() -> None:
    run = failed_when_restored("LOST")
    run.ran("one", "LOST", "gone", more="#alone#cold", vm="vm1")
    run.ran("one", "PASS", more="#alone#cold", vm="vm1", attempt=2)
    model = run.end()
    assert model.counts() == {"PASS": 1}
    assert exit_status(model) == 0


def group(again: str | None, verdict: str = "PASS") -> RunModel:
    """Two scenarios crash a restored VM; ``again``: how they end in a booted one."""
    run = Run(2)
    ids = [run.start(name) for name in ("one", "two")]
    run.event("group_start", group="vm0:g1", vm="vm0", kernel=K, scenarios=ids)
    for identity in ids:
        run.event("scenario_regroup", scenario=identity, reason="panic")
    run.event("group_end", group="vm0:g1", verdict="CRASH", reason="panic")
    run.event("group_confirm", group="vm0:g1")
    run.event("vm_end", vm="vm0", reason="died", verdict="CRASH", detail="panic")
    if again is not None:
        ids = [run.start(name, "#cold", "vm1") for name in ("one", "two")]
        run.event("group_start", group="vm1:g2", vm="vm1", kernel=K, scenarios=ids)
        for identity in ids:
            if verdict == "PASS":
                run.event("scenario_end", scenario=identity, verdict=again, reason="")
            else:
                run.event("scenario_regroup", scenario=identity, reason="panic")
        run.event("group_end", group="vm1:g2", verdict=verdict, reason="panic")
        if verdict != "PASS":
            for name in ("one", "two"):
                run.ran(name, again, more="#alone#cold", vm="vm1")
    return run.end()


def test_a_group_that_is_well_when_booted() -> None:
    model = group("PASS")
    assert model.group_failures() == []
    assert model.vm_failures() == []
    assert exit_status(model) == 0
    told = f"vm0:g1 on {K}: CRASH in a restored VM (panic), not seen again in one that was booted"
    assert told in state_of_run(model)


def test_a_group_that_is_not_run_again() -> None:
    model = group(None)
    assert [g.id for g in model.group_failures()] == ["vm0:g1"]
    assert exit_status(model) == 1


def test_a_group_that_crashes_the_booted_one_too() -> None:
    """Its members pass when they are alone: the booted group's failure stands."""
    model = group("PASS", "CRASH")
    assert [g.id for g in model.group_failures()] == ["vm1:g2"]
    assert exit_status(model) == 1
