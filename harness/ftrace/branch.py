# SPDX-License-Identifier: GPL-2.0-only
"""Instructions of arm64 that a call site, and the way from there, is made of.

Encodings: Arm Architecture Reference Manual (DDI 0487), C4.1 "A64 instruction set
encoding"; ``pc`` is the address of the instruction that is meant.
"""

from __future__ import annotations

from collections.abc import Sequence

#: How far a BL leads, in bytes either way: 26 bits of instructions.
REACH = 1 << 27
_WORD = 4
_MASK = (1 << 64) - 1
#: HINT #0; BTI is HINT #32 to #38, in steps of two.
_NOP = 0xD503201F
_BTI = frozenset(0xD503241F | kind << 6 for kind in range(4))


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value


def is_nop(instruction: int) -> bool:
    """Whether it does nothing."""
    return instruction == _NOP


def bl_target(instruction: int, pc: int) -> int | None:
    """Where a BL (branch with link) leads; None for any other instruction."""
    if instruction >> 26 != 0b100101:
        return None
    return (pc + _WORD * _signed(instruction & 0x3FFFFFF, 26)) & _MASK


def in_reach(target: int, pc: int) -> bool:
    """Whether a BL can lead there (arch/arm64/kernel/ftrace.c: reachable_by_bl)."""
    return -REACH <= target - pc < REACH


def veneer_target(instructions: Sequence[int], pc: int) -> int | None:
    """Where a module's veneer leads: an address in a register, and a branch to it.

    None where the instructions at ``pc`` are none (arch/arm64/kernel/module-plts.c:
    get_plt_entry; ADRP and ADD, before 4.20 MOVN and MOVK).
    """
    register: dict[int, int] = {}
    for offset, word in enumerate(instructions):
        at = pc + _WORD * offset
        rd = word & 0x1F
        if word in _BTI:
            continue
        if word & 0x9F000000 == 0x90000000:  # ADRP: pages from this one
            pages = _signed((word >> 5 & 0x7FFFF) << 2 | word >> 29 & 3, 21)
            register[rd] = ((at & ~0xFFF) + (pages << 12)) & _MASK
        elif word & 0x9F000000 == 0x10000000:  # ADR: bytes from here
            register[rd] = (at + _signed((word >> 5 & 0x7FFFF) << 2 | word >> 29 & 3, 21)) & _MASK
        elif word & 0xFFC00000 == 0x91000000:  # ADD (immediate), 64 bits, not shifted
            source = register.get(word >> 5 & 0x1F)
            if source is None:
                return None
            register[rd] = (source + (word >> 10 & 0xFFF)) & _MASK
        elif word & 0xFF800000 in (0x92800000, 0xD2800000):  # MOVN, MOVZ
            value = (word >> 5 & 0xFFFF) << 16 * (word >> 21 & 3)
            register[rd] = value if word & 0xFF800000 == 0xD2800000 else ~value & _MASK
        elif word & 0xFF800000 == 0xF2800000:  # MOVK: 16 bits of what is there
            shift = 16 * (word >> 21 & 3)
            if rd not in register:
                return None
            register[rd] = register[rd] & ~(0xFFFF << shift) | (word >> 5 & 0xFFFF) << shift
        elif word & 0xFFFFFC1F == 0xD61F0000:  # BR
            return register.get(word >> 5 & 0x1F)
        else:
            return None
    return None
