# SPDX-License-Identifier: GPL-2.0-only
"""Livepatch modules: loading them, and their files in sysfs."""

from __future__ import annotations

import os
import time
from typing import Any

from . import system
from .attachers import Attachment, Outcome

SYSFS = "/sys/kernel/livepatch/"
#: Kernel memory is short for a moment, or another task holds BPF's trampoline
#: lock (kernel/bpf/trampoline.c: bpf_tramp_ftrace_ops_func): asked again.
_EAGAIN = 11
#: Seconds in which the kernel lets go of the module of a patch that it removed.
_FORCED_PATIENCE = 1.0
_UNENDED = "the transition did not end"


def livepatches() -> dict[str, dict[str, int]]:
    """The patches in /sys/kernel/livepatch with their ``enabled`` and ``transition``."""
    found: dict[str, dict[str, int]] = {}
    try:
        names = os.listdir(SYSFS)
    except FileNotFoundError:
        return found
    for name in sorted(names):
        values = {}
        for key in ("enabled", "transition"):
            text = system.read(SYSFS + name + "/" + key)
            if text is not None:
                values[key] = int(text)
        if values:
            found[name] = values
    return found


def in_transition() -> bool:
    """Whether a livepatch is on its way, in or out."""
    return any(patch.get("transition") for patch in livepatches().values())


def parameters(functions: list[dict[str, Any]], replace: bool) -> str:
    """The module's parameters: lanes as a bitmap (kmods/livepatch.c), all others by name."""
    lanes = sum(1 << f["lane"] for f in functions if f["lane"] is not None)
    names = [f["name"] for f in functions if f["lane"] is None]
    words = ["funcs=" + ",".join(names)] if names else []
    words += ["lanes=%x" % lanes] if lanes else []
    return " ".join(words + (["replace=1"] if replace else []))


class LivepatchAttachment(Attachment):
    """A livepatch module that patches its functions; ``replace``: instead of all others.

    ``functions`` are their descriptions (harness/scenario/functions.py as JSON).
    """

    def __init__(
        self, identity: str, kind: str, functions: list[dict[str, Any]], slot: int, replace: bool
    ) -> None:
        super().__init__(identity, kind, [f["name"] for f in functions], slot)
        self.module = "cohabit_klp_" + "abcd"[slot]
        self._parameters = parameters(functions, replace)
        self._forced = False

    def attach(self, deadline: float, wait: bool) -> Outcome:
        """See Attachment; what comes later is the end of the transition."""
        tries = 0
        while True:
            error = system.load_module(system.kmod(self.module), self._parameters)
            tries += 1
            if error != _EAGAIN or time.monotonic() > deadline:
                break
        remark = "" if tries == 1 else "EAGAIN %d times first" % (tries - 1)
        if error == 0 and wait and not system.wait(self._settled, deadline):
            return Outcome(0, _UNENDED, done=False)
        return Outcome(error, remark)

    def detach(self, deadline: float) -> Outcome:
        """See Attachment: disables it unless that is under way or over, and unloads it."""
        if livepatches().get(self.module, {}).get("enabled"):
            outcome = self.disable(deadline, wait=False)
            if outcome.errno:
                return outcome
        if not system.wait(self._gone, deadline):
            return Outcome(0, _UNENDED, done=False)
        if self._forced:
            # The kernel may never let go of its module (kernel/livepatch/core.c:
            # klp_free_patch_finish): no use in waiting long.
            deadline = min(deadline, time.monotonic() + _FORCED_PATIENCE)
        error = system.unload_module(self.module, deadline)
        return Outcome(error, "unload%s" % (": it was forced" * self._forced) if error else "")

    def disable(self, deadline: float, wait: bool) -> Outcome:
        """Writes 0 to ``enabled``; what comes later is that it vanishes from sysfs."""
        error = system.write(SYSFS + self.module + "/enabled", "0")
        if error == 0 and wait and not system.wait(self._gone, deadline):
            return Outcome(0, _UNENDED, done=False)
        return Outcome(error, "enabled" if error else "")

    def enable(self, deadline: float, wait: bool) -> Outcome:
        """Writes 1 to ``enabled``: turns a disabling transition round."""
        error = system.write(SYSFS + self.module + "/enabled", "1")
        if error == 0 and wait and not system.wait(self._settled, deadline):
            return Outcome(0, _UNENDED, done=False)
        return Outcome(error, "enabled" if error else "")

    def force(self, deadline: float) -> Outcome:
        """Writes 1 to ``force``; a later look of the kernel's own then ends the transition.

        kernel/livepatch/transition.c: klp_force_transition, klp_transition_work_fn.
        """
        error = system.write(SYSFS + self.module + "/force", "1")
        self._forced = self._forced or not error
        if error == 0 and not system.wait(lambda: self._settled() or self._gone(), deadline):
            return Outcome(0, _UNENDED, done=False)
        return Outcome(error, "force" if error else "")

    def _settled(self) -> bool:
        return livepatches().get(self.module, {}).get("transition") == 0

    def _gone(self) -> bool:
        return self.module not in livepatches()
