# SPDX-License-Identifier: GPL-2.0-only
"""The attachers: kinds of things that hook a function, and what the policy asks of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: Whose ftrace_ops an attacher uses: one for each attachment (``own``), or one that
#: others use too.  Who exactly shares it depends on the release: policy/ops.py.
Ops = Literal["own", "livepatch", "bpf", "kprobe", "fprobe", "fprobe-exit", "graph", "tracer"]


@dataclass(frozen=True)
class Attacher:
    """What is true of an attacher on every kernel.

    ``ipmodify``: its ops may change where the call goes, and does; ``posts``: it has
    a kprobe post_handler, which takes an IPMODIFY ops though it redirects nothing;
    ``direct``: it replaces the call's target; ``agrees``: its direct ops have an
    ops_func that agrees to share with IPMODIFY, ``refuses``: one that never does;
    ``permanent``: its ops must not be turned off by kernel.ftrace_enabled;
    ``save_regs``: it asks for all registers; ``counts``: it counts its own hits;
    ``returns``: it sees the function's return value; ``slots``: how many of them can
    be on one kernel at a time; ``family``: attachers that take their slots from one
    store; ``twice``: two of it can be on one function; ``core``: it is in the
    matrices of pairs and triples; ``exclusive``: a thing of which the whole kernel
    has one, so that two attachers that both want it cannot be there at a time.
    """

    name: str
    ops: Ops = "own"
    ipmodify: bool = False
    posts: bool = False
    direct: bool = False
    agrees: bool = False
    refuses: bool = False
    permanent: bool = False
    save_regs: bool = False
    counts: bool = True
    returns: bool = False
    slots: int = 8
    family: str = ""
    twice: bool = True
    core: bool = True
    exclusive: str = ""

    @property
    def bpf(self) -> bool:
        """Whether it is a BPF program on a trampoline."""
        return self.ops == "bpf"

    @property
    def calls_original(self) -> bool:
        """Whether its trampoline calls the function itself (BPF_TRAMP_F_CALL_ORIG)."""
        return self.name in ("fexit", "fmod_ret")

    @property
    def single(self) -> bool:
        """Whether each attachment of it has one function (a trampoline is made for one)."""
        return self.bpf


#: BPF programs of a kind that can be on one function (kmods/cohabit_abi.h: TAG_FMOD_RET).
BPF_SLOTS = 40

ATTACHERS: dict[str, Attacher] = {
    a.name: a
    for a in (
        Attacher(
            "livepatch",
            ops="livepatch",
            ipmodify=True,
            permanent=True,
            counts=False,
            slots=4,
            family="livepatch",
        ),
        Attacher("direct", direct=True, family="direct"),
        Attacher("direct-share", direct=True, agrees=True, family="direct"),
        Attacher("fentry", ops="bpf", direct=True, agrees=True, slots=BPF_SLOTS),
        Attacher("fexit", ops="bpf", direct=True, agrees=True, returns=True, slots=BPF_SLOTS),
        Attacher("fmod_ret", ops="bpf", direct=True, agrees=True, slots=BPF_SLOTS),
        Attacher("ipmodify", ipmodify=True),
        Attacher("ops", family="ops"),
        Attacher("ops-regs", save_regs=True, family="ops"),
        Attacher("kprobe", ops="kprobe", save_regs=True, family="kprobe"),
        Attacher("kprobe-post", ops="kprobe", posts=True, save_regs=True, family="kprobe"),
        Attacher("kretprobe", ops="kprobe", save_regs=True, returns=True),
        Attacher("fprobe", ops="fprobe", family="fprobe"),
        Attacher("fprobe-exit", ops="fprobe-exit", returns=True, family="fprobe"),
        Attacher("kprobe-multi", ops="fprobe"),
        Attacher("function-tracer", ops="tracer", twice=False, exclusive="current_tracer"),
        Attacher("function-graph", ops="graph", twice=False, exclusive="current_tracer"),
        Attacher("instance"),
        # Beside the matrix: what takes the place of all livepatches, and a direct ops
        # whose ops_func says no.
        Attacher(
            "livepatch-replace",
            ops="livepatch",
            ipmodify=True,
            permanent=True,
            counts=False,
            slots=4,
            family="livepatch",
            core=False,
        ),
        Attacher("direct-refuse", direct=True, refuses=True, family="direct", core=False),
    )
}

#: Those of the matrices, in their order.
CORE: tuple[str, ...] = tuple(name for name, kind in ATTACHERS.items() if kind.core)
