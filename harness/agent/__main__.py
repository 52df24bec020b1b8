# SPDX-License-Identifier: GPL-2.0-only
"""The agent's entry: answers requests from a port until the other side closes it."""

from __future__ import annotations

import os
import resource
import sys
import time
import traceback

from .channel import Reader, pack
from .service import Service


def _write(fd: int, data: bytes) -> None:
    # A virtio-serial port takes at most 32 KB a write.
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view[:32768]) :]


def main(port: str) -> int:
    """Serves one harness; 0 when it said goodbye or closed the port."""
    fd_in, fd_out = (0, 1) if port == "-" else (os.open(port, os.O_RDWR | os.O_CLOEXEC),) * 2
    reader = Reader(lambda size: os.read(fd_in, size))
    service = Service()
    while True:
        request = reader.message()
        if request is None or request.get("op") == "bye":
            return 0
        reply = {"id": request.get("id"), "t0": time.monotonic()}
        user = resource.getrusage(resource.RUSAGE_SELF).ru_utime
        try:
            reply["result"] = service.handle(request)
        except Exception:
            reply["error"] = traceback.format_exc()
        reply["t1"] = time.monotonic()
        reply["user"] = resource.getrusage(resource.RUSAGE_SELF).ru_utime - user
        _write(fd_out, pack(reply))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
