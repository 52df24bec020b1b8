# SPDX-License-Identifier: GPL-2.0-only
"""kmods/cohabit_abi.h in Python (tests/unit/test_abi.py compares the two)."""

from __future__ import annotations

import ctypes
from typing import Optional

ABI_VERSION = 5
NAME_LEN = 64
MAX_ARGS = 10
SLOTS = 8
MAX_FUNCS = 128
LANES = 128
LIVEPATCHES = 4
FMOD_RETS = 40
MAX_CALLS = 1024
VENEER = 4
ALTERNATES = 4
FAR_ALTERNATE = 2
TAGS = 64
TEXT_BYTES = 32
HAMMER_STACK = 512
ALLOW_MONOTONIC = 63

ERRNO_BASE = 200
TAG_ORIGINAL = 1
TAG_LIVEPATCH = 2
TAG_IPMODIFY = 8
TAG_FMOD_RET = 16

KIND_OPS = 0
KIND_IPMODIFY = 1
KIND_DIRECT = 2
KIND_KPROBE = 3
KIND_KRETPROBE = 4
KIND_FPROBE = 5

F_SAVE_REGS = 1
F_OPS_FUNC = 2
F_POST = 4
F_EXIT = 8
F_OPS_REFUSE = 16
F_FAR = 32

#: By their names in scenarios (harness/scenario/steps.py: MISUSES).
MISUSES = {
    "direct-unregister-unknown": 0,
    "direct-modify-unknown": 1,
    "direct-register-twice": 2,
    "direct-no-filter": 3,
    "ipmodify-no-filter": 4,
    "ipmodify-notrace": 5,
    "ops-register-twice": 6,
    "ipmodify-and-direct": 7,
    "kill-ftrace": 8,
}

HAMMER_CALL = 0
HAMMER_READ = 1

FAULT_NONE = 0
FAULT_BODY = 1
FAULT_COUNTER = 2
FAULT_STALL = 3

WRONG_BODY = 0
WRONG_BACK = 1
WRONG_ARGS = 2
WRONG_NONE = 3
WRONG_SEVERAL = 4
WRONG_RESULT = 5
WRONGS = 6

CONTEXT_PROCESS = 0
CONTEXT_SOFTIRQ = 1

#: The first argument of lane n is this + n.
LANE_ARG = 0x1000

#: Arguments for the test functions: different in every place and larger than
#: 32 bits in none, so that a swapped or cut argument changes the checksum.
TEST_ARGS = [
    0x101, 0x2202, 0x33303, 0x44404, 0x55505, 0x66606, 0x77707, 0x88808, 0x99909, 0xAAA0A,
]  # fmt: skip
#: The one argument of the sleeping function is how long, in ms.
SLEEP_ARGS = [1]
#: The one argument of the holding function: 0 doesn't wait, anything else does.
HOLD_ARGS = [0]
#: The hammered function's first argument is where it counts; 0: nowhere.
HOT_ARGS = [0, *TEST_ARGS[1:6]]


def lane_function(lane: int) -> str:
    """The name of a lane's test function."""
    return "security_cohabit_%03d" % lane


def arguments(
    nr_args: int,
    may_sleep: bool,
    lane: Optional[int] = None,
    holds: bool = False,
    hot: bool = False,
) -> list[int]:
    """What a test function is called with.

    ``lane`` is its lane; ``holds``: it is cohabit_hold; ``hot``: it is cohabit_hot.
    """
    if hot:
        return HOT_ARGS[:nr_args]
    if holds:
        return HOLD_ARGS[:nr_args]
    if may_sleep:
        return SLEEP_ARGS[:nr_args]
    if lane is not None:
        return [LANE_ARG + lane, *TEST_ARGS[1:nr_args]]
    return TEST_ARGS[:nr_args]


def body_of_tag(tag: int) -> str:
    """The name of the body behind a tag; ``tag-N`` for one that nobody has."""
    if tag == TAG_ORIGINAL:
        return "original"
    if TAG_LIVEPATCH <= tag < TAG_LIVEPATCH + LIVEPATCHES:
        return "livepatch-%s" % "abcd"[tag - TAG_LIVEPATCH]
    if TAG_IPMODIFY <= tag < TAG_IPMODIFY + SLOTS:
        return "ipmodify-%d" % (tag - TAG_IPMODIFY)
    if TAG_FMOD_RET <= tag < TAG_FMOD_RET + FMOD_RETS:
        return "fmod_ret-%d" % (tag - TAG_FMOD_RET)
    return "tag-%d" % tag


def checksum(args: list[int]) -> int:
    """What a test function returns in its lower 32 bits for these arguments."""
    return sum((i + 1) * arg for i, arg in enumerate(args)) & 0xFFFFFFFF


class Attach(ctypes.Structure):
    """struct cohabit_attach; ``names`` makes what its field of that name points to."""

    _fields_ = [
        ("kind", ctypes.c_uint32),
        ("slot", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("nr", ctypes.c_uint32),
        ("names", ctypes.c_uint64),
    ]


class Modify(ctypes.Structure):
    """struct cohabit_modify; ``alternate`` is 0 or 1, or 2 or 3 for those that are far."""

    _fields_ = [("slot", ctypes.c_uint32), ("alternate", ctypes.c_uint32)]


class Stat(ctypes.Structure):
    """struct cohabit_stat"""

    _fields_ = [
        ("kind", ctypes.c_uint32),
        ("slot", ctypes.c_uint32),
        ("index", ctypes.c_uint32),
        ("nr_args", ctypes.c_uint32),
        ("hits", ctypes.c_uint64),
        ("others", ctypes.c_uint64),
        ("args", ctypes.c_uint64 * MAX_ARGS),
        ("ret", ctypes.c_uint64),
        ("share_self", ctypes.c_uint64),
        ("share_peer", ctypes.c_uint64),
        ("unshare_peer", ctypes.c_uint64),
        ("misses", ctypes.c_uint64),
        ("through", ctypes.c_uint64 * ALTERNATES),
        ("via", ctypes.c_uint32),
        ("has_ret", ctypes.c_uint32),
    ]


class Stats(ctypes.Structure):
    """struct cohabit_stats"""

    _fields_ = [
        ("stats", ctypes.c_uint64),
        ("nr", ctypes.c_uint32),
        ("reset", ctypes.c_uint32),
    ]


class Address(ctypes.Structure):
    """struct cohabit_address"""

    _fields_ = [("func", ctypes.c_char * NAME_LEN), ("address", ctypes.c_uint64)]


class Site(ctypes.Structure):
    """struct cohabit_site"""

    _fields_ = [
        ("func", ctypes.c_char * NAME_LEN),
        ("address", ctypes.c_uint64),
        ("caller", ctypes.c_uint64),
        ("trampoline", ctypes.c_uint64),
        ("ops", ctypes.c_uint64),
        ("direct_call", ctypes.c_uint64),
        ("instruction", ctypes.c_uint32),
        ("has_ops", ctypes.c_uint32),
        ("veneer", ctypes.c_uint32 * VENEER),
    ]


class Misuse(ctypes.Structure):
    """struct cohabit_misuse"""

    _fields_ = [
        ("what", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("func", ctypes.c_char * NAME_LEN),
    ]


class Info(ctypes.Structure):
    """struct cohabit_info"""

    _fields_ = [
        ("abi", ctypes.c_uint32),
        ("has_direct", ctypes.c_uint32),
        ("has_ops_func", ctypes.c_uint32),
        ("klp_save_regs", ctypes.c_uint32),
        ("has_fprobe", ctypes.c_uint32),
        ("has_modify", ctypes.c_uint32),
        ("kprobes_on_ftrace", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
    ]


class Call(ctypes.Structure):
    """struct cohabit_call"""

    _fields_ = [
        ("func", ctypes.c_char * NAME_LEN),
        ("args", ctypes.c_uint64 * MAX_ARGS),
        ("ret", ctypes.c_uint64),
        ("context", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
    ]


class Calls(ctypes.Structure):
    """struct cohabit_calls"""

    _fields_ = [
        ("calls", ctypes.c_uint64),
        ("nr", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
    ]


class Hammer(ctypes.Structure):
    """struct cohabit_hammer"""

    _fields_ = [
        ("func", ctypes.c_char * NAME_LEN),
        ("path", ctypes.c_char * NAME_LEN),
        ("allowed", ctypes.c_uint64),
        ("how", ctypes.c_uint32),
        ("fault", ctypes.c_uint32),
    ]


class Allow(ctypes.Structure):
    """struct cohabit_allow"""

    _fields_ = [("func", ctypes.c_char * NAME_LEN), ("allowed", ctypes.c_uint64)]


class Hammered(ctypes.Structure):
    """struct cohabit_hammered"""

    _fields_ = [
        ("func", ctypes.c_char * NAME_LEN),
        ("cpu", ctypes.c_uint32),
        ("first_kind", ctypes.c_uint32),
        ("calls", ctypes.c_uint64),
        ("bodies", ctypes.c_uint64 * TAGS),
        ("wrong", ctypes.c_uint64 * WRONGS),
        ("first_call", ctypes.c_uint64),
        ("first_ns", ctypes.c_uint64),
        ("first_result", ctypes.c_uint64),
        ("first_cpu", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("first_stack", ctypes.c_char * HAMMER_STACK),
    ]


class Hammereds(ctypes.Structure):
    """struct cohabit_hammereds"""

    _fields_ = [
        ("stats", ctypes.c_uint64),
        ("nr", ctypes.c_uint32),
        ("stop", ctypes.c_uint32),
    ]


class Window(ctypes.Structure):
    """struct cohabit_window"""

    _fields_ = [
        ("func", ctypes.c_char * NAME_LEN),
        ("delay_us", ctypes.c_uint32),
        ("on", ctypes.c_uint32),
    ]


class Windowed(ctypes.Structure):
    """struct cohabit_windowed"""

    _fields_ = [
        ("pokes", ctypes.c_uint64),
        ("at_site", ctypes.c_uint64),
        ("windows", ctypes.c_uint64),
        ("inside", ctypes.c_uint64),
        ("most", ctypes.c_uint64),
        ("delay_us", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
    ]


class Text(ctypes.Structure):
    """struct cohabit_text"""

    _fields_ = [("func", ctypes.c_char * NAME_LEN), ("bytes", ctypes.c_uint8 * TEXT_BYTES)]


_NONE, _WRITE, _READ = 0, 1, 2


def _ioc(direction: int, number: int, size: int) -> int:
    """include/uapi/asm-generic/ioctl.h: _IOC(), type 'c'."""
    return direction << 30 | size << 16 | ord("c") << 8 | number


IOC_INFO = _ioc(_READ, 0x40, ctypes.sizeof(Info))
IOC_CALLER = _ioc(_NONE, 0x41, 0)
IOC_ATTACH = _ioc(_WRITE, 0x42, ctypes.sizeof(Attach))
IOC_DETACH = _ioc(_WRITE, 0x43, ctypes.sizeof(Attach))
IOC_STATS = _ioc(_READ | _WRITE, 0x44, ctypes.sizeof(Stats))
IOC_CALLS = _ioc(_WRITE, 0x45, ctypes.sizeof(Calls))
IOC_MODIFY = _ioc(_WRITE, 0x46, ctypes.sizeof(Modify))
IOC_ADDRESS = _ioc(_READ | _WRITE, 0x47, ctypes.sizeof(Address))
IOC_SITE = _ioc(_READ | _WRITE, 0x4A, ctypes.sizeof(Site))
IOC_KEEP_CLEAR = _ioc(_NONE, 0x4B, 0)
IOC_MISUSE = _ioc(_WRITE, 0x4C, ctypes.sizeof(Misuse))
IOC_RESTORE = _ioc(_NONE, 0x4D, 0)
IOC_HAMMER = _ioc(_WRITE, 0x4E, ctypes.sizeof(Hammer))
IOC_ALLOW = _ioc(_WRITE, 0x4F, ctypes.sizeof(Allow))
IOC_HAMMERED = _ioc(_READ | _WRITE, 0x50, ctypes.sizeof(Hammereds))
IOC_WINDOW = _ioc(_WRITE, 0x51, ctypes.sizeof(Window))
IOC_WINDOWED = _ioc(_READ, 0x52, ctypes.sizeof(Windowed))
IOC_TEXT = _ioc(_READ | _WRITE, 0x53, ctypes.sizeof(Text))
IOC_RELEASE = _ioc(_NONE, 0x48, 0)
IOC_HELD = _ioc(_READ, 0x49, ctypes.sizeof(ctypes.c_uint32))


def names(functions: list[str]) -> ctypes.Array[ctypes.Array[ctypes.c_char]]:
    """An array that Attach.names can point to (``ctypes.addressof``); keep it while it is used."""
    array = (ctypes.c_char * NAME_LEN * len(functions))()
    for index, function in enumerate(functions):
        array[index].value = function.encode()
    return array
