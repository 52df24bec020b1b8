# SPDX-License-Identifier: GPL-2.0-only
"""Errnos by the names that the kernel's sources use."""

from __future__ import annotations

import errno

#: include/linux/errno.h; not for user space, but BPF lets it through.
ENOTSUPP = 524

_OURS = {
    # Python calls it ENOTSUP; the kernel has no such name.
    errno.EOPNOTSUPP: "EOPNOTSUPP",
    # include/linux/errno.h: the kernel's own, seen where one gets out.
    512: "ERESTARTSYS",
    517: "EPROBE_DEFER",
    ENOTSUPP: "ENOTSUPP",
}


def name(number: int) -> str:
    """``EBUSY`` for 16; ``errno 4711`` for one without a name."""
    return _OURS.get(number) or errno.errorcode.get(number, f"errno {number}")
