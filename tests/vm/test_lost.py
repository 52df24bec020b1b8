# SPDX-License-Identifier: GPL-2.0-only
"""QEMU goes away in the middle of a step."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from world import World, assert_booted, of_type, verdicts


def test_killed_qemu(world: World, long_scenario: Path) -> None:
    run = world.start("run", "ops/alone", "--replay", str(long_scenario), "--jobs", "1")
    vm = run.event("vm_start")["vm"]
    qemu = run.qemu()
    run.event("step_start", index=2, scenario=run.event("scenario_start", name="long")["scenario"])
    os.kill(qemu, signal.SIGKILL)
    status = run.end()
    print(run.told)
    events = run.events
    assert_booted(events, 2)
    assert verdicts(events) == {"ops/alone#1": "PASS", "long#1": "LOST", "long#2": "PASS"}
    world.assert_nothing_left()
    print(status, vm, of_type(events, "vm_end"))
    assert 0
