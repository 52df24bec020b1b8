# SPDX-License-Identifier: GPL-2.0-only
"""QEMU goes away in the middle of a scenario: nobody knows why, so it is tried once more."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from world import OPS, World, assert_booted, of_type, verdicts


def test_killed_qemu(world: World, long_scenario: Path) -> None:
    run = world.start("run", OPS, "--replay", str(long_scenario), "--jobs", "1")
    run.event("vm_start")
    qemu = run.qemu()
    identity = run.event("scenario_start", name="long")["scenario"]
    run.event("step_start", scenario=identity, index=2)
    os.kill(qemu, signal.SIGKILL)
    assert run.end() == 0, run.told
    assert_booted(run.events, 2)
    assert verdicts(run.events) == {f"{OPS}#1": "PASS", "long#1": "LOST", "long#2": "PASS"}
    assert [(e["vm"], e["reason"]) for e in of_type(run.events, "vm_end")] == [
        ("vm0", "died"),
        ("vm1", "done"),
    ]
    assert "long: LOST: " in run.err
    assert "once more on a fresh VM" in run.err
    assert "1 scenario repeated" in run.out
    assert "2 scenarios: 2 PASS" in run.out
    world.assert_nothing_left()
