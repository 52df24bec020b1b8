# SPDX-License-Identifier: GPL-2.0-only
"""QEMU's machine protocol on a socket that QEMU connects to."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self

from qemu.qmp import ExecuteError, QMPClient, QMPError

#: What asking the monitor may raise.
TROUBLE = (OSError, EOFError, TimeoutError, QMPError)


class NotConnectedError(Exception):
    """QEMU did not even connect."""


class RefusedError(Exception):
    """QEMU answered that it will not do what it was asked for."""


class Monitor:
    """A connection to QEMU; every wait ends after ``patience`` seconds.

    ``listener`` is what QEMU connects to.  Raises NotConnectedError, or one of TROUBLE.
    """

    def __init__(self, listener: socket.socket, patience: float) -> None:
        self.patience = patience
        listener.settimeout(patience)
        try:
            self._connection = listener.accept()[0]
        except TimeoutError as error:
            raise NotConnectedError from error
        self._client = QMPClient()
        self._runner = asyncio.Runner()
        try:
            self._wait(self._client.connect(self._connection))
        except BaseException:
            self._runner.close()
            self._connection.close()
            raise

    def _wait(self, what: Coroutine[Any, Any, object]) -> object:
        return self._runner.run(asyncio.wait_for(what, self.patience))

    def ask(self, command: str, arguments: dict[str, object] | None = None) -> object:
        """A command's answer; raises RefusedError, or one of TROUBLE."""
        try:
            return self._wait(self._client.execute(command, arguments))
        except ExecuteError as error:
            raise RefusedError(f"{command}: {error}") from error

    def close(self) -> None:
        """Hangs up."""
        try:
            self._wait(self._client.disconnect())
        except TROUBLE:
            # QEMU is gone, or does not answer: so be it.
            pass
        finally:
            self._runner.close()
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
