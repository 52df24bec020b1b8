# SPDX-License-Identifier: GPL-2.0-only
"""The step ``stir``: functions are called without a pause while others change their code.

Hammers call functions and check each result; stirrers, each a thread of the agent,
repeat cycles of ordinary steps meanwhile (docs/consistency.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .steps import Step

#: What can be hammered: by a kernel thread on each CPU, by a process on each CPU, or by
#: processes that each call once, forked by one on each CPU.
HAMMERED: dict[str, tuple[str, ...]] = {
    "kernel": ("cohabit_hot", "cmdline_proc_show", "version_proc_show"),
    "user": (
        "cmdline_proc_show",
        "version_proc_show",
        "rtnl_getlink",
        "ctrl_getfamily",
        "security_task_getpgid",
    ),
    "fork": ("cmdline_proc_show", "security_task_getpgid"),
}

#: Tracers that can be put on all functions; ``nop`` takes them off again.
ALL_TRACERS = ("function", "function_graph", "nop")

#: How a hammer can be made wrong, to see that this is noticed.
FAULTS = ("", "body", "counter", "stall")

CALLS, PATCHES, ROUNDS, SECONDS = 1_000_000, 1_000, 1, 280


@dataclass(frozen=True)
class TraceAll:
    """A tracer on all functions, in a tracing instance of its own; a step of stirrers only.

    function_graph goes to the top instance where no other can have it.
    """

    tracer: str

    def to_json(self) -> dict[str, Any]:
        """The step object."""
        return {"do": "trace-all", "tracer": self.tracer}

    def __str__(self) -> str:
        return "trace no more" if self.tracer == "nop" else f"trace all functions by {self.tracer}"


@dataclass(frozen=True)
class Hammer:
    """Calls ``function`` as fast as it can, on each CPU: ``by`` is one of HAMMERED."""

    function: str
    by: str

    def to_json(self) -> dict[str, Any]:
        """As in the step object."""
        return {"function": self.function, "by": self.by}


@dataclass(frozen=True)
class Stirrer:
    """Repeats ``steps`` from the first to the last; the last leaves all as it was.

    ``rest``: after each cycle it rests so many times as long as that took; who holds a lock
    for seconds leaves the others none otherwise.
    """

    name: str
    steps: tuple[Step | TraceAll, ...]
    rest: int = 0

    def to_json(self) -> dict[str, Any]:
        """As in the step object."""
        steps = [step.to_json() for step in self.steps]
        return {"name": self.name, "steps": steps, **({"rest": self.rest} if self.rest else {})}


@dataclass(frozen=True)
class Stir:
    """Hammers and stirrers at once, until enough was tried.

    That is ``calls`` of all hammers, ``patches`` of the first hammer's call site,
    ``rounds`` of each stirrer, and ``at_least`` so many seconds; or ``seconds`` went by.
    ``seed`` is that of the stirrers' pauses; ``widen_us``: microseconds for which each
    window between two steps of a patch is held open; ``fault``: a hammer made wrong on
    purpose (FAULTS).
    """

    hammers: tuple[Hammer, ...]
    stirrers: tuple[Stirrer, ...]
    calls: int = CALLS
    patches: int = PATCHES
    rounds: int = ROUNDS
    seconds: int = SECONDS
    at_least: int = 0
    seed: int = 1
    widen_us: int = 0
    fault: str = ""

    @property
    def hammered(self) -> tuple[str, ...]:
        """The functions that are hammered, each once; the call site of the first is counted."""
        return tuple(dict.fromkeys(hammer.function for hammer in self.hammers))

    @property
    def steps(self) -> tuple[Step | TraceAll, ...]:
        """All steps of all stirrers, one stirrer after the other."""
        return tuple(step for stirrer in self.stirrers for step in stirrer.steps)

    def to_json(self) -> dict[str, Any]:
        """The step object."""
        return {
            "do": "stir",
            "hammers": [hammer.to_json() for hammer in self.hammers],
            "stirrers": [stirrer.to_json() for stirrer in self.stirrers],
            "calls": self.calls,
            "patches": self.patches,
            "rounds": self.rounds,
            "seconds": self.seconds,
            **({"at_least": self.at_least} if self.at_least else {}),
            "seed": self.seed,
            "widen_us": self.widen_us,
            "fault": self.fault,
        }

    def __str__(self) -> str:
        called = ", ".join(self.hammered) or "nothing"
        return f"stir by {', '.join(s.name for s in self.stirrers)}, hammering {called}"
