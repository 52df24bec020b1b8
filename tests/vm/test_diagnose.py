# SPDX-License-Identifier: GPL-2.0-only
"""A QEMU that itself does not answer must not hold up the run."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from vm.diagnose import backtraces
from vm.monitor import Monitor
from vm.process import Process

GREETING = b"""{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": ""},
"capabilities": []}}""".replace(b"\n", b" ")


@dataclass
class Guest:
    """The part of a Process that is asked, with this test on QEMU's side."""

    listener: socket.socket
    qemu: socket.socket
    sysrq: tuple[str, ...] = ("keyboard",)

    def monitor(self, patience: float) -> Monitor:
        return Monitor(self.listener, patience)


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as qemu:
        listener.bind(str(tmp_path / "qmp.sock"))
        listener.listen(1)
        yield Guest(listener, qemu)


def ask(guest: Guest) -> list[str]:
    return backtraces(cast(Process, cast(Any, guest)), lambda _texts, _seconds: False, 0.2)


def test_no_connection(guest: Guest) -> None:
    assert ask(guest) == ["QEMU's monitor did not connect"]


@pytest.mark.parametrize(
    ("do", "error"),
    [
        (lambda _: None, "TimeoutError"),
        (lambda qemu: qemu.sendall(GREETING + b"\r\n"), "TimeoutError"),
        (lambda qemu: qemu.close(), "ConnectError"),
        (lambda qemu: qemu.sendall(b"no JSON\r\n"), "ConnectError"),
    ],
    ids=("silent", "greets", "closed", "garbled"),
)
def test_no_answer(guest: Guest, do: Callable[[socket.socket], None], error: str) -> None:
    guest.qemu.connect(guest.listener.getsockname())
    do(guest.qemu)
    assert ask(guest) == [f"QEMU's monitor does not answer ({error})"]
