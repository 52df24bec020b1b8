# SPDX-License-Identifier: GPL-2.0-only
"""Direct trampolines where a BL leads, and where it does not (arm64).

There a call site reaches 128 MB either way.  Module trampolines are near with
``nokaslr``, when modules are loaded next to the kernel, and their far ones are loaded
elsewhere (kmods/reserve.c).  BPF trampolines lie at the beginning of all addresses for
code: that is where the kernel is with ``nokaslr``, and otherwise the kernel, and the
modules with it, are far from there (arch/arm64/mm/init.c: execmem_arch_setup).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from harness.arch import ARM64
from harness.policy.attachers import ATTACHERS

from .functions import FUNCTIONS
from .steps import REACHES, Attach, Call, Detach, Load, Modify, Scenario, Step, Unload

_VMLINUX = "cmdline_proc_show"
_MODULE = "cohabit_f8"
_NO_KASLR = ("nokaslr",)

#: By attacher who comes to its function besides, and whether afterwards or before.
_BESIDE: dict[str, tuple[tuple[str, bool], ...]] = {
    "direct": (("ops", True), ("ops", False), ("function-tracer", True)),
    "direct-share": (
        ("ipmodify", True), ("ipmodify", False), ("livepatch", True), ("livepatch", False),
    ),
    "fentry": (("ops", True), ("ops", False), ("ipmodify", True), ("ipmodify", False)),
    "fexit": (
        ("function-tracer", True), ("ipmodify", True), ("ipmodify", False),
        ("livepatch", True), ("livepatch", False),
    ),
}  # fmt: skip


def _boot(attacher: str, reach: str) -> tuple[str, ...]:
    bpf = ATTACHERS[attacher].bpf
    return () if bpf and reach == "far" else _NO_KASLR


def _scenario(name: str, direct: Attach, reach: str, *steps: Step) -> Scenario:
    """One on the function that ``direct`` is on."""
    function = direct.functions[0]
    where = "module" if FUNCTIONS[function].module else "vmlinux"
    return Scenario(
        f"reach/{direct.attacher}/{reach}/{name}/on:{where}",
        (function,),
        steps,
        arch=ARM64.name,
        reach=reach,
        boot=_boot(direct.attacher, reach),
    )


def reaches() -> Iterator[Scenario]:
    """Each direct call, near and far: alone, beside a second user, and modified."""
    for attacher in _BESIDE:
        bpf = ATTACHERS[attacher].bpf
        for reach in REACHES:
            far = not bpf and reach == "far"
            direct = Attach("d", attacher, (_VMLINUX,), far=far)
            yield _scenario("alone", direct, reach, direct, Call(), Detach("d"))
            for second, afterwards in _BESIDE[attacher]:
                yield _beside(direct, second, afterwards, reach)
            if not bpf:
                yield from _modified(direct, reach)
            # With nokaslr modules lie below the kernel and BPF above it, now and then out
            # of reach.
            if not bpf or reach == "far":
                direct = replace(direct, functions=(_MODULE,))
                yield _scenario("alone", direct, reach, direct, Call(), Detach("d"))
                yield _beside(direct, "ops", True, reach)
                if attacher == "direct":
                    yield from _modified(direct, reach)
    yield _with_kaslr()


def _with_kaslr() -> Scenario:
    """Far from a kernel and from modules that are far from each other; these come again."""
    first = Attach("d", "direct", (_VMLINUX,), far=True)
    second = Attach("e", "direct", (_MODULE,), far=True)
    return Scenario(
        "reach/direct/far/with-kaslr",
        (_VMLINUX, _MODULE),
        (
            first,
            second,
            Modify("e", 0),
            Modify("e", 3),
            Detach("d"),
            Detach("e"),
            Unload(),
            Load(),
            replace(second, far=False, unless_attached=True),
            Modify("e", 2),
            Detach("e"),
        ),
        arch=ARM64.name,
        reach="far",
    )


def _beside(direct: Attach, second: str, afterwards: bool, reach: str) -> Scenario:
    """A second user comes after the direct call, or before it, and leaves first."""
    other = Attach("s", second, direct.functions)
    name = f"{'then' if afterwards else 'after'}:{second}"
    arrivals = (direct, other) if afterwards else (other, direct)
    return _scenario(name, direct, reach, *arrivals, Detach("s"), Detach("d"))


def _modified(direct: Attach, reach: str) -> Iterator[Scenario]:
    """From one trampoline to another, of its own reach and of the other, and back."""
    first, other, across = (2, 3, 0) if reach == "far" else (0, 1, 2)
    gone = Detach("d")
    yield _scenario("modify", direct, reach, direct, Modify("d", other), Modify("d", first), gone)
    yield _scenario(
        "modify-across", direct, reach,
        direct, Modify("d", across), Call(), Modify("d", first), Modify("d", across), gone,
    )  # fmt: skip
    second = Attach("s", "ops", direct.functions)
    yield _scenario(
        "modify-beside:ops", direct, reach,
        direct, second, Modify("d", across), Detach("s"), Modify("d", first), gone,
    )  # fmt: skip
