# SPDX-License-Identifier: GPL-2.0-only
"""A VM that goes on from a snapshot is not to be what the others from it are."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys
import time
from typing import Any

from . import system

# include/uapi/linux/random.h
_RNDADDENTROPY = 0x40085203
_RNDRESEEDCRNG = 0x5207

_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_MACHINE_ID = "/etc/machine-id"


def renew(entropy: bytes, now: float, hostname: str) -> dict[str, Any]:
    """Gives the kernel randomness, the time and a name of its own; gives what it is then.

    Nobody may have read the boot ID before the snapshot: it is made when it is first asked
    for (drivers/char/random.c: proc_do_uuid), and stays.
    """
    # First, so that nothing below is what another VM would have got.
    fd = os.open("/dev/urandom", os.O_WRONLY | os.O_CLOEXEC)
    try:
        pool = struct.pack("=ii", len(entropy) * 8, len(entropy)) + entropy
        fcntl.ioctl(fd, _RNDADDENTROPY, pool)
        # Takes it over at once (drivers/char/random.c: random_ioctl), the vDSO's too.
        fcntl.ioctl(fd, _RNDRESEEDCRNG)
    finally:
        os.close(fd)
    time.clock_settime(time.CLOCK_REALTIME, now)
    socket.sethostname(hostname)
    with open(_MACHINE_ID, "w") as file:
        file.write(os.urandom(16).hex() + "\n")
    if "random" in sys.modules:
        sys.modules["random"].seed()
    return {
        "hostname": socket.gethostname(),
        "boot_id": (system.read(_BOOT_ID) or "").strip(),
        "machine_id": (system.read(_MACHINE_ID) or "").strip(),
        "time": time.time(),
        "uptime": system.uptime(),
    }
