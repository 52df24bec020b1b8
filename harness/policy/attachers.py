# SPDX-License-Identifier: GPL-2.0-only
"""The attachers: kinds of things that hook a function, and what the policy asks of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: Which ftrace_ops an attacher uses: one for each attachment (``own``), one for
#: all livepatches of a function (kernel/livepatch/patch.c: klp_patch_func), or
#: one for all BPF programs of it (kernel/bpf/trampoline.c: one trampoline).
Ops = Literal["own", "livepatch", "bpf"]


@dataclass(frozen=True)
class Attacher:
    """What is true of an attacher on every kernel.

    ``ipmodify``: its ops may change where the call goes; ``direct``: it replaces
    the call's target; ``agrees``: its direct ops have an ops_func that agrees to
    share with IPMODIFY; ``permanent``: its ops must not be turned off by
    kernel.ftrace_enabled; ``save_regs``: it asks for all registers;
    ``counts``: it counts its own hits; ``slots``: how many of them can be on one
    kernel at a time; ``family``: attachers that take their slots from one store.
    """

    name: str
    ops: Ops = "own"
    ipmodify: bool = False
    direct: bool = False
    agrees: bool = False
    permanent: bool = False
    save_regs: bool = False
    counts: bool = True
    slots: int = 8
    family: str = ""

    @property
    def bpf(self) -> bool:
        """Whether it is a BPF program on a trampoline."""
        return self.ops == "bpf"

    @property
    def calls_original(self) -> bool:
        """Whether its trampoline calls the function itself (BPF_TRAMP_F_CALL_ORIG)."""
        return self.name in ("fexit", "fmod_ret")


ATTACHERS: dict[str, Attacher] = {
    a.name: a
    for a in (
        Attacher(
            "livepatch", ops="livepatch", ipmodify=True, permanent=True, counts=False, slots=2
        ),
        Attacher("direct", direct=True, family="direct"),
        Attacher("direct-share", direct=True, agrees=True, family="direct"),
        Attacher("fentry", ops="bpf", direct=True, agrees=True, slots=2),
        Attacher("fexit", ops="bpf", direct=True, agrees=True, slots=2),
        Attacher("fmod_ret", ops="bpf", direct=True, agrees=True, slots=2),
        Attacher("ipmodify", ipmodify=True),
        Attacher("ops", family="ops"),
        Attacher("ops-regs", save_regs=True, family="ops"),
    )
}
