# SPDX-License-Identifier: GPL-2.0-only
"""What the kernel's function registry says, as typed values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Column(StrEnum):
    """The flag letters of a record (kernel/trace/ftrace.c:t_show).

    5.10 and 6.1 print R I D; 6.4 and later R I D O M.  Which column a letter
    stands in differs by release, so compare sets of letters.
    """

    #: An attacher wants all registers saved.
    REGS = "R"
    #: An attacher may change the instruction pointer.
    IPMODIFY = "I"
    #: A direct trampoline is attached.
    DIRECT = "D"
    #: The call site reaches its one ftrace_ops without a list (arm64).
    CALL_OPS = "O"
    #: The record was changed by IPMODIFY or DIRECT at some time; never cleared.
    MODIFIED = "M"
    #: A permanent attacher; from a patch of 2019 that was not merged so.
    PERMANENT = "P"


@dataclass(frozen=True)
class Symbol:
    """One address as ``%pS`` prints it (kernel/kallsyms.c:__sprint_symbol).

    Either a name with ``offset`` and ``size`` in bytes, and ``module`` where it
    is not in vmlinux; or, where no symbol covers it, only ``address`` (an empty
    ``name``).  ``text`` is what was printed.
    """

    text: str
    name: str
    offset: int | None = None
    size: int | None = None
    module: str | None = None
    address: int | None = None

    @property
    def label(self) -> str:
        """The symbol without what differs from boot to boot and build to build.

        Name, module and an offset that is not 0; an address without a name
        becomes ``0x..``, but NULL stays ``0x0``.
        """
        if self.address is not None:
            return "0x.." if self.address else "0x0"
        offset = f"+{self.offset:#x}" if self.offset else ""
        module = f" [{self.module}]" if self.module else ""
        return f"{self.name}{offset}{module}"


@dataclass(frozen=True)
class SubOps:
    """One ``{...}`` of a ``subops:`` list (kernel/trace/ftrace.c:print_subops).

    A function graph user has ``entry`` and ``ret`` (0x0 for an absent handler);
    any other user has ``func``, and ``trampoline`` and ``call`` if it has a
    trampoline of its own.
    """

    entry: Symbol | None = None
    ret: Symbol | None = None
    func: Symbol | None = None
    trampoline: Symbol | None = None
    call: Symbol | None = None


@dataclass(frozen=True)
class Trampoline:
    """A ``tramp:`` entry: the trampoline, its ops' function, the call inside it.

    ``call`` is the ``->`` target, which x86 prints for an allocated trampoline.
    """

    trampoline: Symbol
    func: Symbol
    call: Symbol | None = None
    subops: tuple[SubOps, ...] = ()


@dataclass(frozen=True)
class Ops:
    """An ``ops:`` entry: the ftrace_ops that the call site names, and its function."""

    ops: Symbol
    func: Symbol
    subops: tuple[SubOps, ...] = ()


@dataclass(frozen=True)
class Record:
    """One function of the registry.

    ``module`` is None for vmlinux.  ``count`` is the number of top-level
    ftrace_ops; ``flags`` holds the letters of ``Column``.  ``call`` is the
    ``->`` target printed without a ``tramp:`` (x86: the common trampoline is in
    use).  ``direct`` is the direct trampoline, ``direct_jmp`` says that it is
    jumped to, not called.  ``invalid`` marks a site whose function the linker
    dropped (``__ftrace_invalid_address___N``; count 0, nothing else).

    ``errors`` has the kernel's own markers of a broken registry
    (``tramp: ERROR!``, ``ops: ERROR!``).  ``unknown`` has the pieces that the
    grammar did not understand, verbatim: a caller must not treat a record that
    has some as fully compared.  ``raw`` is the physical lines, joined by a
    newline.
    """

    function: str
    module: str | None = None
    count: int = 0
    flags: frozenset[str] = frozenset()
    tramp: tuple[Trampoline, ...] = ()
    call: Symbol | None = None
    ops: tuple[Ops, ...] = ()
    direct: Symbol | None = None
    direct_jmp: bool = False
    invalid: bool = False
    errors: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    raw: str = ""

    @property
    def title(self) -> str:
        """The function's name, with `` [module]`` if it is not in vmlinux."""
        return f"{self.function} [{self.module}]" if self.module else self.function


@dataclass(frozen=True)
class Registry:
    """A whole file: its records in printed order, and the lines that are none.

    ``unknown`` has those lines verbatim.  The kernel's own empty file is a
    registry without records and without unknown lines.
    """

    records: tuple[Record, ...] = ()
    unknown: tuple[str, ...] = ()

    def get(self, function: str, module: str | None = None) -> Record | None:
        """Return the record of a function, or None.

        With a ``module`` only its function matches.  Without one vmlinux's is
        meant, and where vmlinux has none hooked, the first module's of that
        name.  Of several static functions of one name the first printed is
        taken: the file does not tell them apart.
        """
        elsewhere: Record | None = None
        for record in self.records:
            if record.function != function:
                continue
            if record.module == module:
                return record
            if module is None and elsewhere is None:
                elsewhere = record
        return elsewhere

    def functions(self) -> tuple[str, ...]:
        """Return the title of each valid record, in printed order."""
        return tuple(record.title for record in self.records if not record.invalid)
