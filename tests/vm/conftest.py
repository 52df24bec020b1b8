# SPDX-License-Identifier: GPL-2.0-only
"""What tests on real kernels share: one warm cache, and copies of it that they may break."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import world as places
from world import KERNEL, World

from harness.cli.setup import Setup, check_needs
from harness.kernels.model import Kernel
from harness.kernels.store import Store, default_root
from vm.machine import Machine


@dataclass(frozen=True)
class Warm:
    """The user's own cache with all that a run on KERNEL needs; not to be damaged."""

    setup: Setup
    kernel: Kernel
    machine: Machine

    @property
    def options(self) -> tuple[str, ...]:
        """So that no test tries KVM again."""
        return ("--accel", self.machine.accelerator.name)

    def _entries(self) -> Iterator[Path]:
        objects = self.setup.store.root / "objects"
        shared = [path for path, _ in self.machine.shares]
        paths = [*self.machine.layers, self.machine.qemu, *shared]
        for path in paths:
            if path.is_relative_to(objects):
                kind, key, *_ = path.relative_to(objects).parts
                yield objects / kind / key

    def clone(self, cache: Path, copied: tuple[str, ...] = ("modules",)) -> None:
        """Makes a cache of the same content; only the kinds in ``copied`` may be changed."""
        for entry in self._entries():
            target = cache / "objects" / entry.parent.name / entry.name
            target.parent.mkdir(parents=True)
            if entry.parent.name in copied:
                shutil.copytree(entry, target, symlinks=True)
            else:
                target.symlink_to(entry)
        (cache / "state").mkdir()
        series = {KERNEL.partition(":")[2]: {"key": self.key("kernel"), "when": time.time()}}
        (cache / "state/debian-series.json").write_text(json.dumps(series), encoding="utf-8")

    def key(self, kind: str) -> str:
        """The name of the one entry of a kind."""
        return next(entry.name for entry in self._entries() if entry.parent.name == kind)


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """Fetches and builds what is missing (the first time: minutes, and the network)."""
    check_needs(default_root())
    setup = Setup(Store(default_root()))
    kernel = setup.kernel(KERNEL)
    yield Warm(setup, kernel, setup.machine(kernel))
    setup.store.close()


@pytest.fixture
def world(warm: Warm) -> Iterator[World]:
    """A place with a warm cache that the test may break."""
    with places.world(warm.options) as made:
        warm.clone(made.cache)
        yield made


@pytest.fixture
def empty_world(warm: Warm) -> Iterator[World]:
    """A place with an empty cache."""
    with places.world(warm.options) as made:
        yield made


@pytest.fixture
def long_scenario(tmp_path: Path) -> Path:
    """A scenario that is still going on when a test that saw it begin has acted."""
    data = {
        "name": "long",
        "functions": ["cohabit_sleep"],
        "steps": [{"do": "call"}] * 50,
    }
    path = tmp_path / "long.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything below this directory boots kernels, or stands beside what does."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vm)
