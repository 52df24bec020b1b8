# SPDX-License-Identifier: GPL-2.0-only
"""The VM does not get as far as the agent."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import Warm
from world import DIRECT, OPS, World, of_type, verdicts

from harness.policy import profile
from harness.run.programs import Programs
from harness.run.record import Record
from harness.run.session import AccidentError, Session
from harness.target.vm import VmTarget


def other_qemu(warm: Warm, path: Path, script: str) -> Path:
    """A QEMU that does something else than asked; ``$qemu`` is the real one."""
    head = f'#!/bin/sh\nqemu={warm.machine.qemu}\n[ "$1" != --version ] || exec "$qemu" "$@"\n'
    path.write_text(f"{head}{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def test_kernel_that_panics(world: World, warm: Warm, tmp_path: Path) -> None:
    """It will do so again: not tried again, and nothing else is on this kernel."""
    script = """
for word; do
    shift
    case $word in *virtme_hostname=*) word="rdinit=/nonexistent $word";; esac
    set -- "$@" "$word"
done
exec "$qemu" "$@"
"""
    world.environment["COHABIT_QEMU"] = str(other_qemu(warm, tmp_path / "qemu", script))
    run = world.run("run", OPS, DIRECT)
    assert run.end() == 1, run.told
    reason = "Kernel panic - not syncing: VFS: Unable to mount root fs"
    assert verdicts(run.events) == {f"{OPS}#1": "BOOT_FAIL", f"{DIRECT}#1": "BOOT_FAIL"}
    for event in of_type(run.events, "scenario_end"):
        assert event["reason"].startswith(reason)
    (end,) = of_type(run.events, "vm_end")
    assert (end["reason"], end["verdict"]) == ("died", "BOOT_FAIL")
    assert any("Linux version 6.12." in line for line in run.console("vm0"))
    assert reason in run.out
    world.assert_nothing_left()


def test_qemu_that_dies(world: World, warm: Warm, tmp_path: Path) -> None:
    """Nobody knows why, so there is a second VM; and then that was it."""
    script = 'echo "no such luck" >&2; kill -9 $$'
    world.environment["COHABIT_QEMU"] = str(other_qemu(warm, tmp_path / "qemu", script))
    run = world.run("run", OPS, DIRECT)
    assert run.end() == 3, run.told
    assert verdicts(run.events) == {f"{OPS}#1": "LOST", f"{DIRECT}#1": "LOST"}
    ends = of_type(run.events, "vm_end")
    assert [(e["vm"], e["reason"], e["verdict"]) for e in ends] == [
        ("vm0", "died", "LOST"),
        ("vm1", "died", "LOST"),
    ]
    assert all("no such luck" in e["detail"] for e in ends)
    world.assert_nothing_left()


class Hurried(VmTarget):
    """Does not wait as long as a boot may take."""

    def request(self, message: Mapping[str, Any], timeout: float) -> Mapping[str, Any]:
        """See Target."""
        return super().request(message, 0.1)


def test_guest_that_does_nothing(
    empty_world: World, warm: Warm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even an NMI gets an answer from a CPU that never ran; QEMU has one."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(empty_world.path / "run"))
    machine = dataclasses.replace(
        warm.machine, qemu=other_qemu(warm, tmp_path / "qemu", 'exec "$qemu" "$@" -S'), cpus=2
    )
    target = Hurried(machine, "", tmp_path / "console")
    chosen = profile.choose(warm.kernel.release, warm.kernel.config, arch=warm.kernel.arch)
    with Record(tmp_path / "record") as record:
        session = Session(target, "vm0", warm.kernel.release, chosen, record, Programs())
        try:
            with pytest.raises(AccidentError) as caught:
                session.start()
        finally:
            target.stop()
    assert str(caught.value) == "BOOT_FAIL: the agent did not come up"
    assert caught.value.backtraces[:3] == [
        "CPU 0: at 0000fff0",
        "CPU 1: at 0000fff0",
        "the kernel answered neither SysRq nor an NMI",
    ]
    empty_world.assert_nothing_left()
