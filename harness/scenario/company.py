# SPDX-License-Identifier: GPL-2.0-only
"""Which scenarios can be run side by side, each on a function of its own."""

from __future__ import annotations

from collections.abc import Sequence

from harness.policy.attachers import ATTACHERS

from .functions import FUNCTIONS
from .steps import ANY, Attach, Detach, Scenario

Shape = tuple[tuple[str, int, bool], ...]

#: Functions of vmlinux for scenarios whose function does not matter, where BPF cannot
#: be put on functions of modules; the last is the one that takes fmod_ret.
VMLINUX = ("cmdline_proc_show", "version_proc_show", "rtnl_getlink", "ctrl_getfamily")
VMLINUX_FMOD_RET = "security_task_getpgid"


def sociable(scenario: Scenario) -> bool:
    """Whether others may run beside it.

    Not if it touches what all share (a sysctl, the test module, transitions that wait),
    nor where company changes the outcome: a kprobe with a post_handler is asked less
    once another is there (docs/findings/filter-skips-direct.md), and may not be there
    at all (docs/findings/kprobe-arm-lost.md).  Nor a pair in which a direct call's
    ops_func is asked about the other: how often can only be told of an attachment
    that is not the whole company's.
    """
    if scenario.watch or scenario.ends_vm or len(scenario.functions) != 1:
        return False
    # A call site is looked at by its function's name, and tells of one attachment.
    if scenario.reach:
        return False
    if not all(isinstance(step, Attach | Detach) for step in scenario.steps):
        return False
    kinds = [ATTACHERS[name] for name in scenario.attachers]
    if len({kind.name for kind in kinds if kind.exclusive}) > 1:
        return False
    where = scenario.functions[0]
    a_lane = where == ANY or FUNCTIONS[where].lane is not None
    if not a_lane and any(kind.family == "direct" for kind in kinds):
        # A trampoline tells lanes apart and nothing else: each would need a slot.
        return False
    asked = any(kind.family == "direct" and (kind.agrees or kind.refuses) for kind in kinds)
    if asked and len(kinds) == 2 and any(kind.ipmodify for kind in kinds):
        return False
    if any(kind.posts for kind in kinds):
        return not any(
            kind.direct or kind.ipmodify or kind.ops == "kprobe" for kind in kinds if not kind.posts
        )
    return all(kind.core for kind in kinds)


def shape(scenario: Scenario) -> Shape:
    """What two scenarios must have in common to go in step: the same acts in the same order.

    Attachments are numbered by their arrival, whatever their ids.
    """
    numbers: dict[str, int] = {}
    found = []
    for step in scenario.steps:
        assert isinstance(step, Attach | Detach)
        number = numbers.setdefault(step.id, len(numbers))
        again = isinstance(step, Attach) and step.unless_attached
        found.append((type(step).__name__, number, again))
    return tuple(found)


def exclusive(scenario: Scenario) -> frozenset[str]:
    """Attachers in it of which the kernel takes only one kind at a time."""
    return frozenset(name for name in scenario.attachers if ATTACHERS[name].exclusive)


def places(scenario: Scenario, module_btf: bool) -> Sequence[str]:
    """Functions that may take ANY's place in it; its own where it has none.

    ``module_btf``: BPF programs can be loaded for functions of modules.
    """
    if ANY not in scenario.functions:
        return scenario.functions
    if module_btf or not any(ATTACHERS[name].bpf for name in scenario.attachers):
        return [f.name for f in FUNCTIONS.values() if f.lane is not None]
    return (VMLINUX_FMOD_RET,) if "fmod_ret" in scenario.attachers else VMLINUX


#: Scenarios of a company with a direct call that cannot be one with others; each has a
#: slot for itself, and the others need up to six.
_TRAMPOLINES = 2


#: Users of the function graph. Where one is on a function and another on another, the kernel
#: calls the first for both (docs/findings/fgraph-bit-zero.md).
_RETURNS = frozenset({"fprobe-exit", "function-graph"})


def _own_trampoline(scenario: Scenario, where: str) -> bool:
    direct = any(ATTACHERS[name].family == "direct" for name in scenario.attachers)
    return direct and FUNCTIONS[where].lane is None


def gather(
    first: Scenario, others: Sequence[Scenario], module_btf: bool, limit: int
) -> list[Scenario]:
    """A scenario and those that can go beside it, in their order, each with a function.

    ``first`` alone where it is not sociable; ``limit`` is the most that there may be.
    """
    if not sociable(first):
        if ANY not in first.functions:
            return [first]
        where_to = places(first, module_btf)
        free_one = next((f for f in where_to if f not in first.functions), where_to[0])
        return [first.placed(free_one)]
    free = {f.name for f in FUNCTIONS.values()}
    wanted, tracers = shape(first), exclusive(first)
    chosen: list[Scenario] = []
    trampolines = 0
    returns: frozenset[str] = frozenset()
    for scenario in (first, *others):
        if len(chosen) == limit:
            break
        if not sociable(scenario) or shape(scenario) != wanted:
            continue
        if len(tracers | exclusive(scenario)) > 1:
            continue
        of_it = _RETURNS.intersection(scenario.attachers)
        if returns and of_it and len(returns | of_it) > 1:
            continue
        where = next((f for f in places(scenario, module_btf) if f in free), None)
        if where is None:
            continue
        if _own_trampoline(scenario, where):
            if trampolines == _TRAMPOLINES:
                continue
            trampolines += 1
        free.discard(where)
        tracers |= exclusive(scenario)
        returns |= of_it
        chosen.append(scenario.placed(where) if ANY in scenario.functions else scenario)
    return chosen
