# SPDX-License-Identifier: GPL-2.0-only
"""The slots of what stirrers attach: no two of them share one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from harness.scenario.steps import Attach, Stirrer

from .state import Attached, State


def stirred_slots(state: State, stirrers: Sequence[Stirrer]) -> dict[str, int]:
    """The slot of each id that is attached in ``state`` or by a stirrer.

    An id keeps its slot for good, so that a stirrer may take away what was there before
    and bring it back.  A slot equals the attacher's number of slots where too few are free.
    """
    slots = {attached.id: attached.slot for attached in state.attached}
    for stirrer in stirrers:
        for step in stirrer.steps:
            if isinstance(step, Attach) and step.id not in slots:
                slot = state.free_slot(step.attacher, step.functions)
                slots[step.id] = slot
                new = Attached(step.id, step.attacher, step.functions, slot)
                state = replace(state, attached=(*state.attached, new))
    return slots
