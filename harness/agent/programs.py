# SPDX-License-Identifier: GPL-2.0-only
"""Running a program on the machine under test (imported only when one is asked for)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from typing import Any

#: More output than this is of no use to anybody; what comes last is kept.
OUTPUT_LIMIT = 1 << 20


def run(argv: list[str], timeout: float) -> dict[str, Any]:
    """Runs ``argv`` in a session of its own and waits for it, ``timeout`` seconds at most.

    Gives ``status`` (the exit status, negative for a signal, None when time ran out),
    ``output`` (both streams, in the order written) and ``seconds``.  What it left running is
    killed.  Raises OSError where it cannot be started.
    """
    # No pipe: a program that outlives its parent would keep that open for ever.
    fd = os.memfd_create("output")
    with open(fd, "rb", buffering=0) as output:
        began = time.monotonic()
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=fd,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status: int | None = process.wait(timeout)
        except subprocess.TimeoutExpired:
            status = None
        seconds = time.monotonic() - began
        # The group's number stays taken as long as it has a member.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        output.seek(max(0, os.fstat(fd).st_size - OUTPUT_LIMIT))
        text = output.read().decode("utf-8", "backslashreplace")
    return {"status": status, "output": text, "seconds": seconds}
