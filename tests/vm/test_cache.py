# SPDX-License-Identifier: GPL-2.0-only
"""The cache is damaged, shared, or all there is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from conftest import Warm
from world import OPS, World, assert_booted, verdicts

BUILDING = "building the kernel modules for"
PASSED = {f"{OPS}#1": "PASS"}


def test_truncated_module(world: World, warm: Warm) -> None:
    module = world.cache / "objects/modules" / warm.key("modules") / "tree/cohabit.ko"
    size = module.stat().st_size
    os.truncate(module, size // 2)
    run = world.run("run", OPS)
    assert run.end() == 0, run.told
    said = [line for line in run.err.splitlines() if line.startswith("cache: ")]
    release = warm.kernel.release
    assert said == [
        f"cache: modules for {release} is damaged (cohabit.ko has {size // 2} bytes instead of "
        f"{size}); making it anew"
    ]
    assert BUILDING in run.err
    assert module.stat().st_size > size // 2
    assert_booted(run.events, 1)
    assert verdicts(run.events) == PASSED
    world.assert_nothing_left()


def test_two_runs_at_once(world: World) -> None:
    """Both need modules that are not there: one builds them, the other waits."""
    shutil.rmtree(world.cache / "objects/modules")
    runs = [world.start("run", OPS), world.start("run", OPS)]
    for run in runs:
        assert run.end() == 0, run.told
        assert_booted(run.events, 1)
        assert verdicts(run.events) == PASSED
    assert sum(run.err.count(BUILDING) for run in runs) == 1
    world.assert_nothing_left()


def test_without_network(world: World, tmp_path: Path) -> None:
    """What is cached needs no network and no package tool."""
    called = tmp_path / "called"
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("apt-get", "apt-config", "apt-cache", "mmdebstrap", "dpkg-deb"):
        tool = tools / name
        tool.write_text(f'#!/bin/sh\necho "$0" "$@" >>{called}\nexit 97\n', encoding="ascii")
        tool.chmod(0o755)
    world.environment["PATH"] = f"{tools}:{os.environ['PATH']}"
    world.prefix = ("unshare", *(() if os.geteuid() == 0 else ("-r",)), "-n")
    run = world.run("run", OPS)
    assert run.end() == 0, run.told
    assert_booted(run.events, 1)
    assert verdicts(run.events) == PASSED
    assert not called.exists(), called.read_text(encoding="utf-8")
    world.assert_nothing_left()
