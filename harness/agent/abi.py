# SPDX-License-Identifier: GPL-2.0-only
"""kmods/cohabit_abi.h in Python (tests/unit/test_abi.py compares the two)."""

from __future__ import annotations

import ctypes

ABI_VERSION = 1
NAME_LEN = 64
MAX_ARGS = 8
SLOTS = 8

ERRNO_BASE = 200
TAG_ORIGINAL = 1
TAG_LIVEPATCH_A = 2
TAG_LIVEPATCH_B = 3
TAG_FMOD_RET_A = 4
TAG_FMOD_RET_B = 5
TAG_IPMODIFY = 8

KIND_OPS = 0
KIND_IPMODIFY = 1
KIND_DIRECT = 2

F_SAVE_REGS = 1
F_OPS_FUNC = 2

#: Arguments for the test functions: different in every place and larger than
#: 32 bits in none, so that a swapped or cut argument changes the checksum.
TEST_ARGS = [0x101, 0x2202, 0x33303, 0x44404, 0x55505, 0x66606, 0x77707, 0x88808]
#: The one argument of the sleeping function is how long, in ms.
SLEEP_ARGS = [1]


def arguments(nr_args: int, may_sleep: bool) -> list[int]:
    """What a test function is called with."""
    return (SLEEP_ARGS if may_sleep else TEST_ARGS)[:nr_args]


def body_of_tag(tag: int) -> str:
    """The name of the body behind a tag; ``tag-N`` for one that nobody has."""
    names = {
        TAG_ORIGINAL: "original",
        TAG_LIVEPATCH_A: "livepatch-a",
        TAG_LIVEPATCH_B: "livepatch-b",
        TAG_FMOD_RET_A: "fmod_ret-a",
        TAG_FMOD_RET_B: "fmod_ret-b",
    }
    if TAG_IPMODIFY <= tag < TAG_IPMODIFY + SLOTS:
        return "ipmodify-%d" % (tag - TAG_IPMODIFY)
    return names.get(tag, "tag-%d" % tag)


def checksum(args: list[int]) -> int:
    """What a test function returns in its lower 32 bits for these arguments."""
    return sum((i + 1) * arg for i, arg in enumerate(args)) & 0xFFFFFFFF


class Attach(ctypes.Structure):
    """struct cohabit_attach"""

    _fields_ = [
        ("kind", ctypes.c_uint32),
        ("slot", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("func", ctypes.c_char * NAME_LEN),
    ]


class Stat(ctypes.Structure):
    """struct cohabit_stat"""

    _fields_ = [
        ("kind", ctypes.c_uint32),
        ("slot", ctypes.c_uint32),
        ("reset", ctypes.c_uint32),
        ("nr_args", ctypes.c_uint32),
        ("hits", ctypes.c_uint64),
        ("others", ctypes.c_uint64),
        ("args", ctypes.c_uint64 * MAX_ARGS),
        ("share_self", ctypes.c_uint64),
        ("share_peer", ctypes.c_uint64),
        ("unshare_peer", ctypes.c_uint64),
    ]


class Info(ctypes.Structure):
    """struct cohabit_info"""

    _fields_ = [
        ("abi", ctypes.c_uint32),
        ("has_direct", ctypes.c_uint32),
        ("has_ops_func", ctypes.c_uint32),
        ("klp_save_regs", ctypes.c_uint32),
    ]


class Call(ctypes.Structure):
    """struct cohabit_call"""

    _fields_ = [
        ("func", ctypes.c_char * NAME_LEN),
        ("args", ctypes.c_uint64 * MAX_ARGS),
        ("ret", ctypes.c_uint64),
    ]


_NONE, _WRITE, _READ = 0, 1, 2


def _ioc(direction: int, number: int, size: int) -> int:
    """include/uapi/asm-generic/ioctl.h: _IOC(), type 'c'."""
    return direction << 30 | size << 16 | ord("c") << 8 | number


IOC_INFO = _ioc(_READ, 0x40, ctypes.sizeof(Info))
IOC_CALLER = _ioc(_NONE, 0x41, 0)
IOC_ATTACH = _ioc(_WRITE, 0x42, ctypes.sizeof(Attach))
IOC_DETACH = _ioc(_WRITE, 0x43, ctypes.sizeof(Attach))
IOC_STAT = _ioc(_READ | _WRITE, 0x44, ctypes.sizeof(Stat))
IOC_CALL = _ioc(_READ | _WRITE, 0x45, ctypes.sizeof(Call))
