# SPDX-License-Identifier: GPL-2.0-only
"""The functions under test: where they live, what they take, how to call them.

This table is the only list of them on the Python side; the agent gets it with
its first request, bpf_progs are generated from it, and tests/unit compares it
with the bodies in kmods/.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from harness.agent import abi

#: The module that holds the test functions.
TEST_MODULE = "cohabit_funcs"

#: How the agent makes the kernel call a function, exactly once.
Trigger = Literal["read", "rtnl_getlink", "ctrl_getfamily", "getpgid", "ioctl"]

#: How the body that ran is told: by the text that was read, by the (negative)
#: return value, or by the tag in the upper half of a test function's result.
Witnessed = Literal["text", "errno", "tag"]


@dataclass(frozen=True)
class Function:
    """A traceable kernel function under test.

    ``module`` is None for vmlinux.  ``nr_args`` counts all arguments;
    ``may_sleep`` says whether the body sleeps; ``fmod_ret`` whether BPF may
    attach a fmod_ret program (kernel/bpf/verifier.c:check_attach_modify_return).
    ``lane``: its number, of those that are there for scenarios to run side by side;
    ``holds``: a call of it can be kept asleep; ``hot``: hammers call it by its address.
    """

    name: str
    nr_args: int
    trigger: Trigger
    witnessed: Witnessed
    path: str = ""
    module: str | None = None
    may_sleep: bool = False
    fmod_ret: bool = False
    lane: int | None = None
    holds: bool = False
    hot: bool = False


def _test(
    name: str, nr_args: int, may_sleep: bool = False, holds: bool = False, hot: bool = False
) -> Function:
    return Function(
        name, nr_args, "ioctl", "tag",
        module=TEST_MODULE, may_sleep=may_sleep, holds=holds, hot=hot,
    )  # fmt: skip


def _lane(number: int) -> Function:
    # Called security_*, because that is where BPF takes fmod_ret programs.
    return Function(
        abi.lane_function(number), 6, "ioctl", "tag",
        module=TEST_MODULE, fmod_ret=True, lane=number,
    )  # fmt: skip


FUNCTIONS: dict[str, Function] = {
    f.name: f
    for f in (
        Function("cmdline_proc_show", 2, "read", "text", path="/proc/cmdline"),
        Function("version_proc_show", 2, "read", "text", path="/proc/version"),
        Function("rtnl_getlink", 3, "rtnl_getlink", "errno"),
        Function("ctrl_getfamily", 2, "ctrl_getfamily", "errno"),
        # Only security_* functions and error-injectable ones take fmod_ret.
        Function("security_task_getpgid", 1, "getpgid", "errno", fmod_ret=True),
        _test("cohabit_f0", 0),
        _test("cohabit_f1", 1),
        _test("cohabit_f3", 3),
        _test("cohabit_f6", 6),
        # More than x86-64 has argument registers, and more than arm64 has: the rest is on the
        # stack.
        _test("cohabit_f8", 8),
        _test("cohabit_f10", 10),
        _test("cohabit_sleep", 1, may_sleep=True),
        _test("cohabit_hold", 1, holds=True),
        _test("cohabit_hot", 6, hot=True),
        *(_lane(number) for number in range(abi.LANES)),
    )
}
