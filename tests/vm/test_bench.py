# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's own selftests/livepatch, that ``cohabit bench`` compares with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Warm

from harness.arch import host
from harness.kernels import selftests
from harness.kernels.selftests import DIRECTORY, Selftests
from harness.run.selftests import run
from harness.target.vm import VmTarget

pytestmark = pytest.mark.full


def maker(warm: Warm, tests: Selftests, directory: Path) -> Callable[[str], VmTarget]:
    machine = tests.add_to(warm.machine)
    return lambda name: VmTarget(machine, "", directory / name)


def test_a_script_of_the_kernel(warm: Warm, tmp_path: Path) -> None:
    said: list[str] = []
    theirs = selftests.prepare(warm.kernel, warm.setup.tools(host()), warm.setup.store, said.append)
    assert theirs.source.startswith("linux-source-6.12 6.12.")
    assert {"test-livepatch.sh", "test-shadow-vars.sh", "test-syscall.sh"} <= {*theirs.scripts}
    (script,) = run(maker(warm, theirs, tmp_path), ["test-shadow-vars.sh"], said.append)
    assert script.trouble == ""
    assert [test.outcome for test in script.tests] == ["ok"]
    assert script.seconds > 0
    assert said[-1].startswith("selftests/livepatch/test-shadow-vars.sh: 1 ok, ")


SCRIPTS = {
    "test-1.sh": "touch /tmp/mark; echo 'TEST: one ... ok'",
    "test-2.sh": "test -e /tmp/mark && echo 'TEST: two ... not ok' && exit 1",
    "test-3.sh": "test -e /tmp/mark || echo 'TEST: three ... ok'",
    "test-4.sh": "echo c >/proc/sysrq-trigger",
    "test-5.sh": "echo 'TEST: five ... ok'",
}


def test_trouble_is_followed_by_a_fresh_machine(warm: Warm, tmp_path: Path) -> None:
    """Whether a script failed or the kernel crashed."""
    directory = tmp_path / "layer" / DIRECTORY
    directory.mkdir(parents=True)
    for name, text in SCRIPTS.items():
        (directory / name).write_text(text + "\n", encoding="utf-8")
    ours = Selftests(tmp_path / "layer", "ours", tuple(SCRIPTS))
    done = run(maker(warm, ours, tmp_path), ours.scripts, lambda _: None)
    assert [script.name for script in done] == list(SCRIPTS)
    assert [[test.outcome for test in script.tests] for script in done] == [
        ["ok"], ["not ok"], ["ok"], [], ["ok"],
    ]  # fmt: skip
    troubles = [script.trouble for script in done]
    assert troubles[1] == "two: not ok"
    assert "sysrq triggered crash" in troubles[3].lower()
    assert [bool(trouble) for trouble in troubles] == [False, True, False, True, False]
    names = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert names == {"selftests0", "selftests2", "selftests4"}
