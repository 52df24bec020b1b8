# SPDX-License-Identifier: GPL-2.0-only
"""Whether the steps of a scenario go together, and ask for no more than there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from harness.errors import UsageError
from harness.policy.attachers import ATTACHERS
from harness.policy.slots import stirred_slots
from harness.policy.state import Attached, State

from .functions import FUNCTIONS, TEST_MODULE
from .steps import (
    ANY,
    Attach,
    Detach,
    Disable,
    Enable,
    Force,
    Hold,
    Load,
    Misuse,
    Modify,
    Release,
    Step,
    Stir,
    Stirrer,
    TraceAll,
    Unload,
    Write,
)


def functions_of(step: Step | TraceAll) -> tuple[str, ...]:
    """The functions that a step names; of ``stir`` those that are hammered or stirred."""
    if isinstance(step, Attach):
        return step.functions
    if isinstance(step, Stir):
        named = (*step.hammered, *(f for s in step.steps for f in functions_of(s)))
        return tuple(dict.fromkeys(named))
    return (step.function,) if isinstance(step, Hold | Misuse) else ()


def together(name: str, steps: Sequence[Step]) -> None:
    """Raises UsageError for steps that don't go together, or ask for more than there is."""
    attaches: dict[str, Attach] = {}
    held: set[str] = set()
    state = State()
    unloaded = False
    for step in steps:
        unloaded = isinstance(step, Unload) or (unloaded and not isinstance(step, Load))
        if unloaded and _on_module(step):
            raise UsageError(f"scenario {name!r}: {step} while {TEST_MODULE} may be unloaded")
        if isinstance(step, Attach | Disable | Enable) and not step.wait:
            raise UsageError(
                f"scenario {name!r}: only a stirrer need not wait: {step}", "leave out 'wait'"
            )
        if isinstance(step, Attach):
            if step.id in attaches and not step.unless_attached:
                raise UsageError(
                    f"scenario {name!r} attaches {step.id!r} twice",
                    'use another id, or "unless_attached": true',
                )
            attaches[step.id] = step
            if state.get(step.id) is None:
                state = _attached(name, state, step)
        elif isinstance(step, Hold):
            if step.id in held:
                raise UsageError(f"scenario {name!r} holds {step.id!r} twice", "use another id")
            held.add(step.id)
        elif isinstance(step, Release):
            if step.id not in held:
                raise UsageError(f"scenario {name!r} releases {step.id!r}, which it never held")
        elif isinstance(step, Stir):
            _stir(name, state, attaches, step)
        elif isinstance(step, Detach | Disable | Enable | Force | Modify):
            _known(name, step, attaches)
            state = _moved(name, state, step)
    if sum(isinstance(step, Stir) for step in steps) > 1:
        raise UsageError(f"scenario {name!r} stirs twice", "make it two scenarios")


def _on_module(step: Step | TraceAll) -> bool:
    return any(f == ANY or FUNCTIONS[f].module for f in functions_of(step))


def _known(
    where: str, step: Detach | Disable | Enable | Force | Modify, ids: dict[str, Attach]
) -> None:
    if step.id not in ids:
        what = "modify" if isinstance(step, Modify) else step.do
        raise UsageError(
            f"scenario {where!r}: {what} of {step.id!r}, which it never attaches before"
        )


def _attached(name: str, state: State, step: Attach) -> State:
    kind = ATTACHERS[step.attacher]
    slot = state.free_slot(step.attacher, step.functions)
    if slot == kind.slots:
        raise _too_many(name, step.attacher, slot)
    here = {a.attacher for f in step.functions for a in state.on(f)}
    if not kind.twice and step.attacher in here:
        raise UsageError(
            f"scenario {name!r} attaches {step.attacher} twice to one function",
            "the kernel has one, which takes more functions but none twice",
        )
    return State(attached=(*state.attached, Attached(step.id, step.attacher, step.functions, slot)))


def _too_many(name: str, attacher: str, slots: int) -> UsageError:
    return UsageError(
        f"scenario {name!r} attaches more than {slots} of {attacher} at a time",
        "detach one before",
    )


def _moved(name: str, state: State, step: Detach | Disable | Enable | Force | Modify) -> State:
    """The state after a step on something attached, where that is there."""
    attached = state.get(step.id)
    if attached is None:
        return state
    if isinstance(step, Detach):
        return State(attached=tuple(a for a in state.attached if a.id != step.id))
    if isinstance(step, Modify):
        fits = attached.kind.direct and not attached.kind.bpf
    else:
        fits = attached.kind.ops == "livepatch"
    if not fits:
        raise UsageError(f"scenario {name!r}: {step} does not go with {attached.attacher}")
    if isinstance(step, Modify):
        return state.changed(replace(attached, alternate=step.alternate))
    return state


def _stir(name: str, state: State, attaches: dict[str, Attach], stir: Stir) -> None:
    """Stirrers that leave all as it was, and never take each other's slots."""
    if ANY in functions_of(stir):
        raise UsageError(f"scenario {name!r}: 'any' has no meaning in a stir", "name a function")
    owners: dict[str, str] = {}
    for stirrer in stir.stirrers:
        if Unload() in stirrer.steps and any(FUNCTIONS[f].module for f in stir.hammered):
            raise UsageError(
                f"scenario {name!r}: {stirrer.name} unloads {TEST_MODULE}, whose function is "
                "hammered",
                "hammer one of vmlinux",
            )
        _stirrer(f"{name}, stirrer {stirrer.name}", state, attaches, stirrer)
        for step in stirrer.steps:
            identity = getattr(step, "id", "")
            owner = owners.setdefault(identity, stirrer.name)
            if identity and owner != stirrer.name:
                raise UsageError(
                    f"scenario {name!r}: stirrers {owner} and {stirrer.name} both use {identity!r}",
                    "give each ids of its own",
                )
    slots = stirred_slots(state, stir.stirrers)
    for step in stir.steps:
        if isinstance(step, Attach) and slots[step.id] == ATTACHERS[step.attacher].slots:
            raise _too_many(name, step.attacher, slots[step.id])


def _stirrer(where: str, before: State, attaches: dict[str, Attach], stirrer: Stirrer) -> None:
    """One stirrer's cycle, alone: it ends where it began."""
    known, state = dict(attaches), before
    held: list[str] = []
    unloaded, enabled, tracer = False, "1", "nop"
    for step in stirrer.steps:
        unloaded = isinstance(step, Unload) or (unloaded and not isinstance(step, Load))
        if unloaded and _on_module(step):
            raise UsageError(f"scenario {where!r}: {step} while {TEST_MODULE} is unloaded")
        if isinstance(step, Attach):
            if step.unless_attached:
                raise UsageError(f"scenario {where!r}: 'unless_attached' has no meaning here")
            first = known.setdefault(step.id, step)
            if _kind(first) != _kind(step) or state.get(step.id) is not None:
                raise UsageError(f"scenario {where!r} attaches {step.id!r} twice")
            new = Attached(step.id, step.attacher, step.functions, 0)
            state = State(attached=(*state.attached, new))
        elif isinstance(step, Detach | Disable | Enable | Force | Modify):
            _known(where, step, known)
            state = _moved(where, state, step)
        elif isinstance(step, Hold):
            held.append(step.id)
        elif isinstance(step, Release):
            if step.id not in held:
                raise UsageError(f"scenario {where!r} releases {step.id!r}, which it never held")
            held.remove(step.id)
        elif isinstance(step, Write):
            enabled = step.value
        elif isinstance(step, TraceAll):
            tracer = step.tracer
    left = _left(before, state)
    left += [f"call {identity!r} is held" for identity in held]
    left += [f"{TEST_MODULE} is unloaded"] if unloaded else []
    left += ["ftrace is off"] if enabled != "1" else []
    left += ["all functions are traced"] if tracer != "nop" else []
    if left:
        raise UsageError(
            f"scenario {where!r} does not end where it begins: {'; '.join(left)}",
            "end its cycle with the steps that take this back",
        )


def _kind(step: Attach) -> tuple[str, tuple[str, ...], bool]:
    return step.attacher, step.functions, step.far


def _left(before: State, after: State) -> list[str]:
    """What a cycle has changed, in words."""
    was = {a.id: a for a in before.attached}
    there = {a.id: a for a in after.attached}
    found = [f"{identity!r} is attached" for identity in there if identity not in was]
    found += [f"{identity!r} is gone" for identity in was if identity not in there]
    found += [
        f"{identity!r} goes to another trampoline"
        for identity, attached in there.items()
        if identity in was and attached.alternate != was[identity].alternate
    ]
    return found
