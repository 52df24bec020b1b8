# SPDX-License-Identifier: GPL-2.0-only
"""Attachers that are BPF programs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any, Union

from .attachers import Attachment, Control, Outcome, Seen
from .bpf import Link, Programs

#: Slept between two system calls of many, in seconds.  RCU tasks' grace periods, which
#: trampolines need, wait until each task has slept (kernel/rcu/tasks.h: check_holdout_task);
#: a loop of system calls without it holds them up until the kernel complains of it.
_BREATH = 1e-6

#: What a kprobe's context has of the arguments: those in registers, eight on arm64
#: (bpf_progs/attach.bpf.c: REG_ARGS).
_REGISTERS = 8 if os.uname().machine == "aarch64" else 6


class Links:
    """What is attached by BPF, and its counters; ``functions`` is the table of functions."""

    def __init__(self, programs: Programs, functions: dict[str, dict[str, Any]]) -> None:
        self.programs = programs
        self.attached: list[Union[BpfAttachment, MultiAttachment]] = []
        self._nr_args = {name: int(f["nr_args"]) for name, f in functions.items()}

    def clear(self) -> None:
        """See observe.Counters."""
        self.programs.clear()

    def seen(self) -> Iterator[Seen]:
        """See observe.Counters."""
        for attachment in self.attached:
            for name, element in attachment.elements():
                hits, others, *args, ret = self.programs.seen(element)
                count = self._nr_args[name]
                if attachment.kind == "kprobe-multi":
                    count = min(count, _REGISTERS)
                result: dict[str, Any] = {"hits": hits, "others": others}
                # Before the first call nothing was recorded.
                result["args"] = args[:count] if hits else []
                if attachment.kind == "fexit" and hits:
                    result["ret"] = ret
                yield attachment.identity, name, result


class BpfAttachment(Attachment):
    """A tracing program on each of its functions: one after the other, all or none."""

    def __init__(
        self, identity: str, kind: str, functions: list[str], slot: int, links: Links
    ) -> None:
        super().__init__(identity, kind, functions, slot)
        self._links = links
        self._made: dict[str, Link] = {}

    def attach(self, deadline: float, wait: bool) -> Outcome:
        """See Attachment."""
        for name in self.functions:
            link = self._links.programs.attach(self.kind, name, self.slot)
            if link.errno:
                self._close()
                remark = link.remark if len(self.functions) == 1 else name + ": " + link.remark
                return Outcome(link.errno, remark)
            self._made[name] = link
            time.sleep(_BREATH)
        self._links.attached.append(self)
        return Outcome(0)

    def detach(self, deadline: float) -> Outcome:
        """See Attachment."""
        self._close()
        self._links.attached.remove(self)
        return Outcome(0)

    def _close(self) -> None:
        for name, link in self._made.items():
            self._links.programs.detach(self.kind, name, self.slot, link)
            time.sleep(_BREATH)
        self._made = {}

    def elements(self) -> Iterator[tuple[str, int]]:
        """Each function with the element that its hits are counted in."""
        for name, link in self._made.items():
            yield name, link.elements[0]

    def total(self) -> dict[str, int]:
        """``hits`` by all callers, and ``misses``, of all its functions."""
        programs = self._links.programs
        hits = sum(sum(programs.seen(element)[:2]) for _, element in self.elements())
        missed = [programs.missed(self.kind, name, self.slot) for name in self._made]
        return {"hits": hits, "misses": sum(missed)}


class MultiAttachment(Attachment):
    """One kprobe-multi link on all its functions."""

    def __init__(
        self, identity: str, functions: list[str], slot: int, links: Links, control: Control
    ) -> None:
        super().__init__(identity, "kprobe-multi", functions, slot)
        self._links = links
        self._control = control
        self._made = Link(0)

    def attach(self, deadline: float, wait: bool) -> Outcome:
        """See Attachment."""
        addresses = []
        for name in self.functions:
            error, address = self._control.address(name)
            if error:
                return Outcome(error, "no address of " + name)
            addresses.append(address)
        self._made = self._links.programs.attach_multi(addresses)
        if not self._made.errno:
            self._links.attached.append(self)
        return Outcome(self._made.errno, self._made.remark)

    def detach(self, deadline: float) -> Outcome:
        """See Attachment."""
        self._links.programs.detach_multi(self._made)
        self._links.attached.remove(self)
        return Outcome(0)

    def elements(self) -> Iterator[tuple[str, int]]:
        """Each function with the element that its hits are counted in."""
        for index, name in enumerate(self.functions):
            yield name, self._made.elements[index]

    def total(self) -> dict[str, int]:
        """``hits`` by all callers, of all its functions, and ``misses`` of the program."""
        programs = self._links.programs
        hits = sum(sum(programs.seen(element)[:2]) for _, element in self.elements())
        return {"hits": hits, "misses": programs.missed_multi()}
