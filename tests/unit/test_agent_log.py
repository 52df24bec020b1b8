# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's log as the agent reads it, where this machine lets us write to its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.agent.system import KernelLog

KMSG = Path("/dev/kmsg")


@pytest.mark.skipif(not os.access(KMSG, os.R_OK | os.W_OK), reason="no log to write to")
def test_what_was_looked_at_is_kept() -> None:
    log = KernelLog()
    log.take()
    mine = f"<6>cohabit test {os.getpid()}"
    with KMSG.open("w", encoding="ascii") as kmsg:
        kmsg.write(mine + " first\n")
        kmsg.flush()
        log.look()
        log.look()
        kmsg.write(mine + " second\n")
    texts = [str(record["text"]) for record in log.take()]
    assert [text for text in texts if text in (mine[3:] + " first", mine[3:] + " second")] == [
        mine[3:] + " first",
        mine[3:] + " second",
    ]
    assert log.complete
    assert not [r for r in log.take() if mine[3:] in str(r["text"])]
