# SPDX-License-Identifier: GPL-2.0-only
"""Steps and scenarios (docs/writing-scenarios.md)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from .functions import TEST_MODULE
from .stir import Hammer, Stir, Stirrer, TraceAll

__all__ = [
    "ANY",
    "FTRACE_ENABLED",
    "MISUSES",
    "REACHES",
    "Attach",
    "Call",
    "Detach",
    "Disable",
    "Enable",
    "Force",
    "Hammer",
    "Hold",
    "Load",
    "Misuse",
    "Modify",
    "Release",
    "Scenario",
    "Step",
    "Stir",
    "Stirrer",
    "TraceAll",
    "Unload",
    "Write",
]

FTRACE_ENABLED = "kernel.ftrace_enabled"


@dataclass(frozen=True)
class Attach:
    """Attach ``attacher`` to ``functions`` (one attachment, whatever their number) under ``id``.

    ``unless_attached``: left out when that id is attached already; with it one
    scenario serves kernels that refused the id before and kernels that did not.
    ``far``: of a direct call, its trampoline is one of those that are far from all
    functions.  ``wait``: for a livepatch's transition; only stirrers need not.
    """

    id: str
    attacher: str
    functions: tuple[str, ...]
    unless_attached: bool = False
    far: bool = False
    wait: bool = True

    def to_json(self) -> dict[str, Any]:
        """The step object."""
        step: dict[str, Any] = {"do": "attach", "id": self.id, "attacher": self.attacher}
        if len(self.functions) == 1:
            step["function"] = self.functions[0]
        else:
            step["functions"] = list(self.functions)
        if self.unless_attached:
            step["unless_attached"] = True
        if self.far:
            step["far"] = True
        if not self.wait:
            step["wait"] = False
        return step

    def __str__(self) -> str:
        where = (
            self.functions[0] if len(self.functions) == 1 else f"{len(self.functions)} functions"
        )
        return f"attach {self.id}: {'far ' if self.far else ''}{self.attacher} to {where}"


@dataclass(frozen=True)
class _OfId:
    """A step that has nothing but the id of an attachment (or of a held call)."""

    id: str

    do: ClassVar[str]

    def to_json(self) -> dict[str, Any]:
        """The step object."""
        return {"do": self.do, "id": self.id}

    def __str__(self) -> str:
        return f"{self.do} {self.id}"


@dataclass(frozen=True)
class Detach(_OfId):
    """Detach what was attached as ``id``; left out when that was refused."""

    do = "detach"


@dataclass(frozen=True)
class _Waiting(_OfId):
    """One that starts a transition; ``wait`` for its end: only stirrers need not."""

    wait: bool = True

    def to_json(self) -> dict[str, Any]:
        """The step object."""
        return {**super().to_json(), **({} if self.wait else {"wait": False})}


@dataclass(frozen=True)
class Disable(_Waiting):
    """Write 0 to a livepatch's ``enabled``; its module stays loaded.

    Where its transition is pending, this reverses it.
    """

    do = "disable"


@dataclass(frozen=True)
class Enable(_Waiting):
    """Write 1 to a livepatch's ``enabled``."""

    do = "enable"


@dataclass(frozen=True)
class Force(_OfId):
    """Write 1 to a livepatch's ``force``: its pending transition ends at once."""

    do = "force"


@dataclass(frozen=True)
class Modify:
    """Point a direct call at another of its attachment's trampolines.

    They are two, 0 and 1, and two that are far from all functions, 2 and 3.
    """

    id: str
    alternate: int

    def to_json(self) -> dict[str, Any]:
        """The step object."""
        return {"do": "modify", "id": self.id, "alternate": self.alternate}

    def __str__(self) -> str:
        return f"modify {self.id}: trampoline {self.alternate}"


@dataclass(frozen=True)
class Write:
    """Write ``value`` to a sysctl."""

    sysctl: str
    value: str

    def to_json(self) -> dict[str, Any]:
        """The step object."""
        return {"do": "write", "sysctl": self.sysctl, "value": self.value}

    def __str__(self) -> str:
        return f"write {self.value} to {self.sysctl}"


@dataclass(frozen=True)
class Call:
    """Only call the functions, in a context (``process`` or ``softirq``), and look."""

    context: str = "process"

    def to_json(self) -> dict[str, Any]:
        """The step object."""
        return {"do": "call", **({"context": self.context} if self.context != "process" else {})}

    def __str__(self) -> str:
        return "call" if self.context == "process" else f"call in {self.context}"


@dataclass(frozen=True)
class Hold:
    """Call a function and leave the call asleep in it until ``Release``."""

    id: str
    function: str

    def to_json(self) -> dict[str, Any]:
        """The step object."""
        return {"do": "hold", "id": self.id, "function": self.function}

    def __str__(self) -> str:
        return f"hold {self.id}: a call of {self.function}"


@dataclass(frozen=True)
class Release(_OfId):
    """Let a held call return, and look which body it went through."""

    do = "release"


@dataclass(frozen=True)
class Unload:
    """Unload the module that holds the test functions."""

    def to_json(self) -> dict[str, Any]:
        """The step object."""
        return {"do": "unload", "module": TEST_MODULE}

    def __str__(self) -> str:
        return f"unload {TEST_MODULE}"


@dataclass(frozen=True)
class Load:
    """Load that module again."""

    def to_json(self) -> dict[str, Any]:
        """The step object."""
        return {"do": "load", "module": TEST_MODULE}

    def __str__(self) -> str:
        return f"load {TEST_MODULE}"


#: Calls that no user of ftrace should make (kmods/misuse.c).
MISUSES = (
    "direct-unregister-unknown",
    "direct-modify-unknown",
    "direct-register-twice",
    "direct-no-filter",
    "ipmodify-no-filter",
    "ipmodify-notrace",
    "ops-register-twice",
    "ipmodify-and-direct",
    "kill-ftrace",
)


@dataclass(frozen=True)
class Misuse:
    """Make a call that no user of ftrace should make, on a function of its own."""

    what: str
    function: str

    def to_json(self) -> dict[str, Any]:
        """The step object."""
        return {"do": "misuse", "what": self.what, "function": self.function}

    def __str__(self) -> str:
        return f"misuse {self.what} on {self.function}"


Step = (
    Attach
    | Detach
    | Disable
    | Enable
    | Force
    | Modify
    | Write
    | Call
    | Hold
    | Release
    | Unload
    | Load
    | Misuse
    | Stir
)


#: Where a trampoline can be, seen from a call site.
REACHES = ("near", "far")

#: In place of a function: a test function that no other scenario uses meanwhile.
ANY = "any"


@dataclass(frozen=True)
class Scenario:
    """A named list of steps over one or more functions.

    ``matrix``: the attachers in their order of arrival, where this is a cell of the
    matrix of pairs or of triples; ``watch``: the registry is read all the time while
    the steps are done; ``ends_vm``: the kernel is not to be used after it, even if
    all went as it should.

    ``arch``: the only architecture that it is for; ``reach``: where BPF trampolines must
    be, and with it the call sites are looked at: ``near``, where a BL leads, or ``far``
    (a module's are near, unless they are the far ones); ``boot``: words that the
    kernel's command line must have; ``cpus``: virtual CPUs that the VM must have.
    """

    name: str
    functions: tuple[str, ...]
    steps: tuple[Step, ...]
    matrix: tuple[str, ...] | None = None
    watch: bool = False
    ends_vm: bool = False
    arch: str = ""
    reach: str = ""
    boot: tuple[str, ...] = ()
    cpus: int = 1

    @property
    def all_steps(self) -> tuple[Step | TraceAll, ...]:
        """The steps, each ``stir`` followed by those of its stirrers."""
        return tuple(
            s
            for step in self.steps
            for s in (step, *(step.steps if isinstance(step, Stir) else ()))
        )

    @property
    def stir(self) -> Stir | None:
        """Its ``stir`` step, if it has one."""
        return next((s for s in self.steps if isinstance(s, Stir)), None)

    @property
    def attachers(self) -> tuple[str, ...]:
        """All attachers in it, each once, in order of arrival; those of stirrers too."""
        return tuple(dict.fromkeys(s.attacher for s in self.all_steps if isinstance(s, Attach)))

    def placed(self, function: str) -> Scenario:
        """The scenario with a function in ANY's place."""
        steps = tuple(
            replace(s, functions=tuple(function if f == ANY else f for f in s.functions))
            if isinstance(s, Attach)
            else s
            for s in self.steps
        )
        functions = tuple(function if f == ANY else f for f in self.functions)
        return replace(self, functions=functions, steps=steps)

    def to_json(self) -> dict[str, Any]:
        """The replay form."""
        data: dict[str, Any] = {
            "name": self.name,
            "functions": list(self.functions),
            "steps": [step.to_json() for step in self.steps],
        }
        if self.matrix:
            data["matrix"] = list(self.matrix)
        if self.watch:
            data["watch"] = True
        if self.ends_vm:
            data["ends_vm"] = True
        data |= self.wants()
        return data

    def wants(self) -> dict[str, Any]:
        """Of the replay form, what it wants of the VM beside what is usual."""
        wanted = {
            "arch": self.arch,
            "reach": self.reach,
            "boot": list(self.boot),
            "cpus": self.cpus if self.cpus != 1 else 0,
        }
        return {key: value for key, value in wanted.items() if value}
