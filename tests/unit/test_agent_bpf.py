# SPDX-License-Identifier: GPL-2.0-only
"""What the agent makes of bpf_progs/attach.bpf.c and of compiled programs, without a kernel."""

from __future__ import annotations

import dataclasses
import re
import struct
from pathlib import Path

import pytest

from harness.agent import abi, bpf
from harness.scenario.functions import FUNCTIONS

SOURCE = Path(__file__).resolve().parents[2] / "bpf_progs" / "attach.bpf.c"
TEXT = SOURCE.read_text(encoding="utf-8")
TABLE = {name: dataclasses.asdict(function) for name, function in FUNCTIONS.items()}

#: FMOD_RET(fmod_ret_1, 1) as bcc 0.31 compiled it on 6.12; its map was file descriptor 10.
FMOD_RET = bytes.fromhex(
    "bf16000000000000b70100000100ed5e631afcff00000000181100000a00000000000000000000"
    "00bfa200000000000007020000fcffffff8500000001000000bf07000000000000150709000000"
    "0000850000000e000000180100000000000000000000ffffffff5f100000000000001801000000"
    "000000000000000000ed5e1d10040000000000b701000001000000db17080000000000b7000000"
    "000000000500050000000000b701000001000000db1700000000000079610000000000007b1710"
    "0000000000b70000000200ed5e9500000000000000"
)


def values(code: bytes) -> list[int]:
    """The immediate value of each instruction."""
    return [value for (value,) in struct.iter_unpack("<4xi", code)]


def test_numbers_of_the_source() -> None:
    defined = dict(re.findall(r"^#define (\w+)\s+(0x5eed\w+)", TEXT, re.M))
    assert {name: int(value, 16) for name, value in defined.items()} == {
        "TGID": bpf.TGID,
        "INDEX": bpf.INDEX,
        "RETURNS": bpf.RETURNS,
    }
    maximum = re.search(r"^#define MAX_ARGS (\d+)", TEXT, re.M)
    assert maximum
    assert int(maximum[1]) == abi.MAX_ARGS


def test_element_is_struct_seen() -> None:
    body = re.search(r"struct seen \{(.*?)\};", TEXT, re.S)
    assert body
    fields = re.findall(r"u64 (\w+)(?:\[(\w+)\])?;", body[1])
    assert [name for name, _ in fields] == ["hits", "others", "args", "ret"]
    assert bpf._SEEN.size == 8 * sum(abi.MAX_ARGS if length else 1 for _, length in fields)


def test_patched_puts_numbers_and_the_map_in() -> None:
    numbers = {bpf.TGID: 4711, bpf.INDEX: 17, bpf.RETURNS: -216}
    code = bpf.patched(FMOD_RET, numbers, 42)
    changed = {
        at: (old, new)
        for at, (old, new) in enumerate(zip(values(FMOD_RET), values(code), strict=True))
        if old != new
    }
    assert changed == {
        1: (bpf.INDEX, 17),
        3: (10, 42),
        15: (bpf.TGID, 4711),
        25: (bpf.RETURNS, -216),
    }
    # Nothing but values changes.
    assert re.sub(rb"(?s)(.{4}).{4}", rb"\1", code) == re.sub(rb"(?s)(.{4}).{4}", rb"\1", FMOD_RET)


def test_patching_once_leaves_the_compiled_program_as_it_is() -> None:
    first = bpf.patched(FMOD_RET, {bpf.INDEX: 1}, 5)
    second = bpf.patched(FMOD_RET, {bpf.INDEX: 2}, 5)
    assert (values(first)[1], values(second)[1]) == (1, 2)
    assert values(FMOD_RET)[1] == bpf.INDEX


def test_source_has_a_program_for_all_that_can_be_attached() -> None:
    whole, symbols = bpf.source(TEXT, TABLE.values())
    lines = whole.splitlines()
    assert len(symbols) == len(set(symbols))
    for function in TABLE.values():
        for kind in bpf.KINDS:
            if kind != "fmod_ret" or function["fmod_ret"]:
                assert bpf._symbol(kind, function) in symbols
    assert bpf._symbol("kprobe-multi", TABLE["cohabit_f8"]) in symbols
    macros = set(re.findall(r"^#define ([A-Z_]+)\(sym", TEXT, re.M))
    for symbol in symbols:
        (line,) = [text for text in lines if re.match(rf"[A-Z_]+\({symbol}\b", text)]
        assert line.partition("(")[0] in macros
    # One for each kind and number of arguments, not one for each function.
    assert len(symbols) < 20 < len(TABLE)


@pytest.mark.parametrize(
    ("kind", "function", "symbol"),
    [
        ("fentry", "cmdline_proc_show", "fentry_2"),
        ("fexit", "cohabit_f8", "fexit_8"),
        ("fmod_ret", "security_task_getpgid", "fmod_ret_1"),
        ("fmod_ret", abi.lane_function(3), "fmod_ret_tag_6"),
        ("kprobe-multi", abi.lane_function(3), "kprobe_multi"),
    ],
)
def test_symbol(kind: str, function: str, symbol: str) -> None:
    assert bpf._symbol(kind, TABLE[function]) == symbol
