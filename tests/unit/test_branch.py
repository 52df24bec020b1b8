# SPDX-License-Identifier: GPL-2.0-only
"""Instructions of arm64: as binutils assembles them, and as kernels had them at call sites."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.ftrace import branch
from harness.ftrace.site import Site, of_agent, of_record

SITES: list[dict[str, Any]] = json.loads(
    (Path(__file__).resolve().parents[1] / "data" / "sites.json").read_text(encoding="utf-8")
)
PC = 0xFFFF80008065DDCC
NOP, B, BLR, BTI_J, BTI_C = 0xD503201F, 0x14000004, 0xD63F0220, 0xD503249F, 0xD503245F
BR_X16, BR_X17, BR_X30 = 0xD61F0200, 0xD61F0220, 0xD61F03C0


def number(text: str | None) -> int:
    return int(text, 16) if text else 0


@pytest.mark.parametrize(
    ("instruction", "target"),
    [
        (0x94839EFD, 0xFFFF8000827459C0),
        (0x97E7AD5B, 0xFFFF800080049338),
        (0x95FFFFFF, PC + branch.REACH - 4),
        (0x96000000, PC - branch.REACH),
        (0x94000000, PC),
        (NOP, None),
        (B, None),
        (BLR, None),
        (0, None),
    ],
)
def test_where_a_bl_leads(instruction: int, target: int | None) -> None:
    assert branch.bl_target(instruction, PC) == target
    assert branch.is_nop(instruction) is (instruction == NOP)


@given(st.integers(-(branch.REACH // 4), branch.REACH // 4 - 1).map(lambda words: 4 * words))
def test_all_of_a_bls_reach(offset: int) -> None:
    instruction = 0x94000000 | offset // 4 & 0x3FFFFFF
    assert branch.bl_target(instruction, PC) == PC + offset
    assert branch.in_reach(PC + offset, PC)


@pytest.mark.parametrize(
    ("offset", "there"),
    [(0x7FFFFFC, True), (0x8000000, False), (-0x8000000, True), (-0x8000004, False)],
)
def test_where_a_bls_reach_ends(offset: int, there: bool) -> None:
    assert branch.in_reach(PC + offset, PC) is there


VENEER = [0xB005C6F0, 0x910CE210, BR_X16, 0]
AT = 0xFFFFD4DB0236CB54


@pytest.mark.parametrize(
    ("instructions", "target"),
    [
        (VENEER, 0xFFFFD4DB0DC49338),
        ([BTI_C, BR_X16], None),
        # movn x17, #0x1234; movk x17, #0x8004, lsl #16; movk x17, #0x8000, lsl #32
        ([0x92824691, 0xF2B00091, 0xF2D00011, BR_X17], 0xFFFF80008004EDCB),
        # movz x16, #0x9338; movk x16, #0x8004, lsl #16
        ([0xD2926710, 0xF2B00090, BR_X16], 0x80049338),
        # adr x16, . - 1024, with a landing pad before it
        ([BTI_J, 0x10FFE010, BR_X16], AT + 4 - 1024),
        ([0x10FFE010, BR_X17], None),
        ([0x910CE210, BR_X16], None),
        ([0xF2B00091, BR_X17], None),
        ([BR_X30], None),
        ([NOP], None),
        (VENEER[:2], None),
        ([], None),
    ],
)
def test_where_a_veneer_leads(instructions: list[int], target: int | None) -> None:
    assert branch.veneer_target(instructions, AT) == target


def test_an_adrp_counts_pages_from_its_own() -> None:
    page = AT & ~0xFFF
    assert branch.veneer_target(VENEER, page) == branch.veneer_target(VENEER, page + 0xFFC)
    beyond = branch.veneer_target(VENEER, page + 0x1000)
    assert beyond == (branch.veneer_target(VENEER, page) or 0) + 0x1000


def test_what_was_recorded_is_all_there_is() -> None:
    found = {(s["path"], s["reach"], bool(s["veneer"])) for s in SITES}
    assert found == {
        ("nop", None, False),
        ("direct", "near", False),
        ("ftrace_caller", None, False),
        ("ftrace_caller", "near", False),
        ("ftrace_caller", "far", False),
        ("ftrace_caller", "far", True),
    }
    assert len({s["kernel"] for s in SITES}) >= 2


@pytest.mark.parametrize("recorded", SITES, ids=lambda s: f"{s['kernel'][:4]}-{s['decoded'][:20]}")
def test_call_sites_of_real_kernels(recorded: dict[str, Any]) -> None:
    data = {k: v for k, v in recorded.items() if k not in ("kernel", "function")}
    assert of_record(data).to_json() == data
    veneer = [number(word) for word in recorded["veneer"] or ["0x0"] * 4]
    reply = {
        "address": number(recorded["address"]),
        "caller": number(recorded["ftrace_caller"]),
        "trampoline": number(recorded["trampoline"]),
        "ops": number(recorded["ops"]),
        "direct_call": number(recorded["direct_call"]),
        "instruction": number(recorded["instruction"]),
        "veneer": veneer,
    }
    assert of_agent(reply, recorded["name"] or "").to_json() == data


TRAMPOLINE, CALLER = 0xFFFF8000827459C0, 0xFFFF800080049338


def test_a_call_site_that_leads_nowhere_known() -> None:
    elsewhere = Site(PC, CALLER, TRAMPOLINE, 0, 0, 0x94839EFE, (NOP, NOP, NOP, NOP))
    assert elsewhere.path == "unknown"
    assert elsewhere.decoded == "bl 0xffff8000827459c4"
    strange = Site(PC, CALLER, TRAMPOLINE, instruction=B)
    assert (strange.path, strange.decoded) == ("unknown", ".inst 0x14000004")
    gone = Site(PC, CALLER, 0, instruction=0x94839EFD)
    assert (gone.path, gone.reach, gone.distance) == ("unknown", None, None)


def test_a_direct_call_needs_the_ops_that_knows_it() -> None:
    right = Site(PC, CALLER, TRAMPOLINE, 0, TRAMPOLINE, 0x97E7AD5B)
    assert right.calls_back
    assert not Site(PC, CALLER, TRAMPOLINE, 0, TRAMPOLINE + 16, 0x97E7AD5B).calls_back
    assert not Site(PC, CALLER, 0, 0, 0, 0x97E7AD5B).calls_back


def test_a_look_that_failed() -> None:
    failed = of_agent({"errno": 3})
    assert failed.to_json() == {"errno": 3}
    assert of_record(failed.to_json()) == failed
