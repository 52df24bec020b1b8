# SPDX-License-Identifier: GPL-2.0-only
"""``cohabit run`` is interrupted or killed: nothing of it stays."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from world import OPS, Running, World, assert_booted, of_type, verdicts, wait_for

from harness.report.model import read

INTERRUPTS = (signal.SIGINT, signal.SIGTERM)


def booting(world: World) -> Running:
    """A run whose VM has just been started."""
    run = world.start("run", OPS)
    run.event("vm_start")
    run.qemu()
    return run


def running(world: World, scenario: Path) -> Running:
    """A run in the middle of a scenario."""
    run = world.start("run", OPS, "--replay", str(scenario), "--jobs", "1")
    identity = run.event("scenario_start", name="long")["scenario"]
    run.event("step_start", scenario=identity, index=2)
    return run


def building(world: World) -> Running:
    """A run that builds the kernel modules."""
    shutil.rmtree(world.cache / "objects/modules")
    run = world.start("run", OPS)

    def compiling() -> bool:
        assert run.popen.poll() is None, run.told
        return any(_name(pid) == "cc1" for pid in world.processes())

    wait_for("the compiler", compiling, lambda: run.told)
    return run


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def interrupt(run: Running, number: int) -> None:
    """As a terminal does it: to the whole group. Or as ``kill`` does: to the one process."""
    if number == signal.SIGINT:
        os.killpg(run.popen.pid, number)
    else:
        os.kill(run.popen.pid, number)


def assert_interrupted(run: Running) -> None:
    """Status, report and record say so, and nothing else is there."""
    assert run.end() == 130, run.told
    assert "interrupted" in run.out.lower()
    assert "Traceback" not in run.err
    last = run.events[-1]
    assert (last["type"], last["interrupted"], last["exit_status"]) == ("run_end", True, 130)
    assert read(run.output).run.interrupted
    run.world.assert_nothing_left()


@pytest.mark.parametrize("number", INTERRUPTS, ids=lambda n: n.name)
def test_interrupted_while_booting(world: World, number: signal.Signals) -> None:
    run = booting(world)
    interrupt(run, number)
    assert_interrupted(run)
    assert [e["reason"] for e in of_type(run.events, "vm_end")] == ["stopped"]


def test_interrupted_while_building(world: World) -> None:
    run = building(world)
    interrupt(run, signal.SIGINT)
    assert_interrupted(run)
    assert not of_type(run.events, "vm_start")


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.full)],
    ids=lambda n: n.name,
)  # fmt: skip
def test_interrupted_while_running(
    world: World, long_scenario: Path, number: signal.Signals
) -> None:
    """Also by a person who does not wait for the first one's effect."""
    run = running(world, long_scenario)
    while run.popen.poll() is None:
        interrupt(run, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.popen.wait(0.05)
    assert_interrupted(run)
    assert_booted(run.events, 1)
    assert verdicts(run.events) == {f"{OPS}#1": "PASS"}
    assert [e["reason"] for e in of_type(run.events, "vm_end")] == ["stopped"]


def test_interrupted_shell(world: World) -> None:
    shell = world.start("shell", "--command", "sleep 1000")
    shell.qemu()
    interrupt(shell, signal.SIGTERM)
    assert shell.end() == 130, shell.told
    assert "cohabit: interrupted" in shell.err
    world.assert_nothing_left()


def assert_killed(run: Running) -> None:
    """The VM goes with the run; the next run takes away its directory, and says so."""
    world = run.world
    # A guest that stands still cannot find out by itself that nobody listens any more.
    os.kill(run.qemu(), signal.SIGSTOP)
    os.kill(run.popen.pid, signal.SIGKILL)
    assert run.end() == -signal.SIGKILL
    wait_for("the VM's end", lambda: not world.processes(), lambda: run.told)
    assert [path.name[:11] for path in world.files()] == ["cohabit-vm-"]
    assert run.events[-1]["type"] != "run_end"
    # It gets no further than to what it was asked for.
    following = world.run("run", OPS, "--kernel", "path:/nonexistent", kernel=False)
    assert following.end() == 2, following.told
    assert "removed what 1 killed VM(s) had left" in following.err
    world.assert_nothing_left()


def test_killed_while_booting(world: World) -> None:
    assert_killed(booting(world))


@pytest.mark.full
def test_killed_while_running(world: World, long_scenario: Path) -> None:
    run = running(world, long_scenario)
    assert_killed(run)
    assert_booted(run.events, 1)
    report = world.run("report", str(run.output))
    assert report.end() == 1
    assert "long" in report.out
