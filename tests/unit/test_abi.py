# SPDX-License-Identifier: GPL-2.0-only
"""harness/agent/abi.py says what kmods/cohabit_abi.h says.

The header is read twice: by a few regular expressions, which need nothing, and
by a C compiler where there is one, which knows sizes, offsets and ioctl numbers
better than anybody.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from harness.agent import abi
from harness.policy.attachers import ATTACHERS

REPOSITORY = Path(__file__).resolve().parents[2]
KMODS = REPOSITORY / "kmods"
HEADER = (KMODS / "cohabit_abi.h").read_text(encoding="utf-8")
CODE = re.sub(r"/\*.*?\*/", "", HEADER, flags=re.DOTALL)

STRUCTURES: dict[str, type[ctypes.Structure]] = {
    "cohabit_attach": abi.Attach,
    "cohabit_modify": abi.Modify,
    "cohabit_stat": abi.Stat,
    "cohabit_stats": abi.Stats,
    "cohabit_address": abi.Address,
    "cohabit_site": abi.Site,
    "cohabit_misuse": abi.Misuse,
    "cohabit_info": abi.Info,
    "cohabit_call": abi.Call,
    "cohabit_calls": abi.Calls,
    "cohabit_hammer": abi.Hammer,
    "cohabit_allow": abi.Allow,
    "cohabit_hammered": abi.Hammered,
    "cohabit_hammereds": abi.Hammereds,
    "cohabit_window": abi.Window,
    "cohabit_windowed": abi.Windowed,
    "cohabit_text": abi.Text,
}
TYPES: dict[str, Any] = {
    "__u8": ctypes.c_uint8,
    "__u32": ctypes.c_uint32,
    "__u64": ctypes.c_uint64,
    "char": ctypes.c_char,
}
#: What an ioctl's argument may be besides a structure: nothing, or a number.
SIMPLE: dict[str, int] = {"": 0, "__u32": 4}


def header_constants() -> dict[str, int]:
    """Each #define of a number, and each enumerator, without its prefix."""
    found = {}
    pattern = r"^#define COHABIT_(\w+)\s+(\d+|0x[0-9a-f]+)\s*$"
    for name, value in re.findall(pattern, CODE, re.MULTILINE):
        found[name] = int(value, 0)
    for name, bit in re.findall(r"^#define COHABIT_(\w+)\s+\(1u << (\d+)\)", CODE, re.MULTILINE):
        found[name] = 1 << int(bit)
    for name, value in re.findall(r"^\s+COHABIT_(\w+)\s*=\s*(\d+),", CODE, re.MULTILINE):
        found[name] = int(value)
    return found


def header_fields(structure: str) -> list[tuple[str, str, str]]:
    """Type, name and number of elements ("" for none) of each field."""
    body = re.search(rf"struct {structure} \{{(.*?)\n\}};", CODE, re.DOTALL)
    assert body, structure
    return re.findall(r"(\w+) (\w+)(?:\[(\w+)\])?;", body[1])


def header_ioctls() -> dict[str, tuple[str, int, str]]:
    """Direction, number and argument of each ioctl."""
    pattern = (
        r"^#define COHABIT_(IOC_\w+)\s+_(IO|IOR|IOW|IOWR)\('c', (\w+)(?:, (?:struct )?(\w+))?\)"
    )
    return {
        name: (direction, int(number, 16), structure)
        for name, direction, number, structure in re.findall(pattern, CODE, re.MULTILINE)
    }


def python_constants() -> dict[str, int]:
    """All numbers of the module but the ioctls, each misuse under its name in C."""
    found = {
        name: value
        for name, value in vars(abi).items()
        if name.isupper() and isinstance(value, int) and not name.startswith(("_", "IOC_"))
    }
    for name, value in abi.MISUSES.items():
        found["MISUSE_" + name.upper().replace("-", "_")] = value
    return found


def test_constants() -> None:
    constants = header_constants()
    assert len(constants) >= 35
    assert python_constants() == constants


def test_the_header_has_nothing_that_was_not_looked_at() -> None:
    defined = set(re.findall(r"^#define (COHABIT_\w+)", CODE, re.MULTILINE)) - {"COHABIT_ABI_H"}
    looked_at = {f"COHABIT_{n}" for n in (*header_constants(), *header_ioctls())}
    assert defined <= looked_at
    assert set(re.findall(r"^struct (\w+) \{", CODE, re.MULTILINE)) == set(STRUCTURES)
    enumerators = re.findall(r"^\s+COHABIT_(\w+)\b.*,", CODE, re.MULTILINE)
    assert enumerators
    assert set(enumerators) <= set(header_constants())


@pytest.mark.parametrize("structure", STRUCTURES)
def test_structures(structure: str) -> None:
    expected = []
    for kind, name, length in header_fields(structure):
        ctype = TYPES[kind]
        if length:
            ctype = ctype * header_constants()[length.removeprefix("COHABIT_")]
        expected.append((name, ctype))
    assert expected
    assert STRUCTURES[structure]._fields_ == expected


def test_no_padding() -> None:
    """Padding would hand a few bytes of kernel stack to the caller."""
    for structure in STRUCTURES.values():
        sizes = sum(ctypes.sizeof(field[1]) for field in structure._fields_)
        assert ctypes.sizeof(structure) == sizes


def test_ioctl_numbers() -> None:
    bits = {"IO": 0, "IOW": 1, "IOR": 2, "IOWR": 3}
    expected = {}
    for name, (direction, number, structure) in header_ioctls().items():
        size = SIMPLE[structure] if structure in SIMPLE else ctypes.sizeof(STRUCTURES[structure])
        expected[name] = bits[direction] << 30 | size << 16 | ord("c") << 8 | number
    assert len(set(expected.values())) == len(expected) >= 11
    assert {n: v for n, v in vars(abi).items() if n.startswith("IOC_")} == expected


#: How many bodies there are behind a tag.
BODIES = {
    "TAG_ORIGINAL": 1,
    "TAG_LIVEPATCH": abi.LIVEPATCHES,
    "TAG_IPMODIFY": abi.SLOTS,
    "TAG_FMOD_RET": abi.FMOD_RETS,
}
TAGS = [getattr(abi, name) + slot for name, count in BODIES.items() for slot in range(count)]


def test_names_of_bodies_are_those_beside_the_tags() -> None:
    words = dict(re.findall(r"^#define COHABIT_(TAG_\w+)\s+\d+\s+/\* (\S+?):? ", HEADER, re.M))
    assert set(words) == set(BODIES)
    for name, body in words.items():
        for slot in range(BODIES[name]):
            expected = body.replace("<slot>", str(slot)).replace("<letter>", "abcd"[slot % 4])
            assert abi.body_of_tag(getattr(abi, name) + slot) == expected
    for tag in sorted({0, *range(300)} - set(TAGS)):
        assert abi.body_of_tag(tag) == f"tag-{tag}"


def test_tags_leave_room_for_each_other() -> None:
    assert len(set(TAGS)) == len(TAGS)
    assert len({abi.body_of_tag(tag) for tag in TAGS}) == len(TAGS)
    # A slot is one digit of the body's name, and an errno of ours is none of the kernel's.
    assert abi.SLOTS <= 10
    assert 133 < abi.ERRNO_BASE < abi.ERRNO_BASE + max(TAGS) < 512
    # A set of tags is a number of 64 bits, whose last says something else.
    assert max(TAGS) < abi.ALLOW_MONOTONIC < abi.TAGS == 64
    assert ATTACHERS["livepatch"].slots <= abi.LIVEPATCHES
    assert ATTACHERS["fmod_ret"].slots <= abi.FMOD_RETS
    ours = [a.slots for a in ATTACHERS.values() if a.family or a.name == "ipmodify"]
    assert ours
    assert max(ours) <= abi.SLOTS


@pytest.mark.parametrize("count", range(abi.MAX_ARGS + 1))
def test_checksum_tells_swapped_cut_and_missing_arguments(count: int) -> None:
    args = abi.arguments(count, may_sleep=False)
    assert len(args) == count
    whole = abi.checksum(args)
    for first in range(count):
        assert abi.checksum([*args[:first], 0, *args[first + 1 :]]) != whole
        assert abi.checksum([*args[:first], args[first] & 0xFF, *args[first + 1 :]]) != whole
        for second in range(first):
            swapped = list(args)
            swapped[first], swapped[second] = swapped[second], swapped[first]
            assert abi.checksum(swapped) != whole
    assert abi.checksum([2**32 - 1] * count) < 2**32


def test_sleeping_and_holding_take_their_own_argument() -> None:
    assert abi.arguments(1, may_sleep=True) == [1]
    assert abi.arguments(1, may_sleep=False) != [1]
    assert abi.arguments(1, may_sleep=False, holds=True) == [0]


def test_the_hammered_function_is_told_to_count_nowhere() -> None:
    args = abi.arguments(6, may_sleep=False, hot=True)
    assert args[0] == 0
    assert args[1:] == abi.arguments(6, may_sleep=False)[1:]


def test_lanes_are_told_by_their_first_argument() -> None:
    calls = [abi.arguments(6, may_sleep=False, lane=lane) for lane in range(abi.LANES)]
    assert all(len(call) == 6 for call in calls)
    assert [call[0] - abi.LANE_ARG for call in calls] == list(range(abi.LANES))
    assert len({abi.checksum(call) for call in calls}) == abi.LANES
    assert {tuple(call[1:]) for call in calls} == {tuple(abi.TEST_ARGS[1:6])}
    # Nothing else that is called with six arguments is taken for a lane.
    assert abi.arguments(6, may_sleep=False)[0] < abi.LANE_ARG
    assert [abi.lane_function(n) for n in (0, 7, 99, 127)] == [
        "security_cohabit_000", "security_cohabit_007",
        "security_cohabit_099", "security_cohabit_127",
    ]  # fmt: skip


def test_names_as_attach_wants_them() -> None:
    longest = "f" * (abi.NAME_LEN - 1)
    array = abi.names(["cohabit_f0", longest])
    assert bytes(array) == b"cohabit_f0".ljust(abi.NAME_LEN, b"\0") + longest.encode() + b"\0"


PROGRAM = """
#include <stddef.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include "cohabit_abi.h"
#define NUMBER(name) printf("%s %lld\\n", #name, (long long)(name))
#define SIZE(type) printf("sizeof %s %zu\\n", #type, sizeof(struct type))
#define OFFSET(type, field) \\
    printf("offsetof %s.%s %zu\\n", #type, #field, offsetof(struct type, field))
int main(void)
{
@LINES@
    return 0;
}
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What a C program that includes the header prints."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    lines = [f"NUMBER(COHABIT_{n});" for n in (*header_constants(), *header_ioctls())]
    for structure in STRUCTURES:
        lines.append(f"SIZE({structure});")
        lines += [f"OFFSET({structure}, {field});" for _, field, _ in header_fields(structure)]
    directory = tmp_path_factory.mktemp("abi")
    source = directory / "abi.c"
    source.write_text(PROGRAM.replace("@LINES@", "\n".join(lines)), encoding="utf-8")
    command = [
        compiler,
        "-Wall",
        "-Werror",
        f"-I{KMODS}",
        "-o",
        str(directory / "abi"),
        str(source),
    ]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode and "fatal error: linux/" in built.stderr:
        pytest.skip("no kernel headers for programs")
    assert built.returncode == 0, built.stderr
    output = subprocess.run([directory / "abi"], capture_output=True, text=True, check=True).stdout
    return {k: int(v) for k, v in (line.rsplit(" ", 1) for line in output.splitlines())}


def test_compiler_agrees_about_numbers(compiled: dict[str, int]) -> None:
    numbers = python_constants() | {n: v for n, v in vars(abi).items() if n.startswith("IOC_")}
    for name, value in numbers.items():
        assert compiled[f"COHABIT_{name}"] == value, name


@pytest.mark.parametrize("structure", STRUCTURES)
def test_compiler_agrees_about_layout(structure: str, compiled: dict[str, int]) -> None:
    python = STRUCTURES[structure]
    assert compiled[f"sizeof {structure}"] == ctypes.sizeof(python)
    for field in python._fields_:
        assert compiled[f"offsetof {structure}.{field[0]}"] == getattr(python, field[0]).offset
