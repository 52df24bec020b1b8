# SPDX-License-Identifier: GPL-2.0-only
"""What the agent passes on of the registry."""

from __future__ import annotations

from harness.agent.observe import records_of
from harness.ftrace import parse

TEXT = "".join(f"function_{n} (0)           \n" for n in range(50_000)) + (
    "cohabit_hot [cohabit_funcs] (1)         M \ttramp: 0xffffffffc0428000 "
    "(cohabit_ops_hit+0x0/0x1a0 [cohabit]) ->cohabit_ops_hit+0x0/0x1a0 [cohabit]\n"
    "rtnl_getlink (2) R D M\n"
    "\tdirect-->cohabit_direct_tramp_0+0x0/0x10\n"
    "rtnl_getlink_not (1)\n"
)


def test_records_of_the_functions_under_test_are_kept_however_many_there_are() -> None:
    kept = records_of(TEXT, ["cohabit_hot", "rtnl_getlink"])
    assert kept is not None
    found = parse(kept)
    assert not found.unknown
    assert {r.function for r in found.records} == {"cohabit_hot", "rtnl_getlink"}
    assert all("M" in r.flags for r in found.records)
    assert kept.count("\n") == 3


def test_a_kernel_without_the_file() -> None:
    assert records_of(None, ["cohabit_hot"]) is None
    assert records_of("", ["cohabit_hot"]) == ""
