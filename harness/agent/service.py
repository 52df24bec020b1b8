# SPDX-License-Identifier: GPL-2.0-only
"""What the agent can be asked for: one method a request."""

from __future__ import annotations

import os
import platform
import time
from typing import Any, Optional

from . import attachers, system
from .attachers import Attachment, BpfAttachment, Control, KmodAttachment, LivepatchAttachment
from .bpf import Programs
from .calls import Caller

TRACEFS = "/sys/kernel/tracing/"
FTRACE_ENABLED = "/proc/sys/kernel/ftrace_enabled"
TEST_MODULE = "cohabit_funcs"
#: More of a registry text than this is somebody tracing everything.
REGISTRY_LIMIT = 1 << 20


class Service:
    """The state between requests: what is loaded and attached."""

    def __init__(self) -> None:
        self._functions: dict[str, dict[str, Any]] = {}
        self._caller = Caller()
        self._attached: dict[str, Attachment] = {}
        self._control: Optional[Control] = None
        self._programs: Optional[Programs] = None
        self._bpf_source = ""
        self._reload_bpf = False
        self._log = system.KernelLog()
        #: Seconds that the kernel has for what it does by itself.
        self._patience = 30.0

    def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answers one request; raises for one that makes no sense."""
        operation = getattr(self, "do_" + str(request["op"]), None)
        if operation is None:
            raise ValueError("no such request: %r" % request["op"])
        arguments = {k: v for k, v in request.items() if k not in ("op", "id")}
        result: dict[str, Any] = operation(**arguments)
        return result

    def do_hello(
        self,
        functions: dict[str, dict[str, Any]],
        bpf_source: str,
        patience: float,
        reload_bpf: bool,
    ) -> dict[str, Any]:
        """Takes the table of functions; gives facts about the kernel.

        ``reload_bpf``: load a BPF program anew for each attach.
        """
        self._reload_bpf = reload_bpf
        self._functions = functions
        self._bpf_source = bpf_source
        self._patience = patience
        return {
            "release": platform.release(),
            "machine": platform.machine(),
            "python": platform.python_version(),
            "cpus": os.cpu_count(),
            "pid": os.getpid(),
            "ftrace_enabled": self._ftrace_enabled(),
            "livepatch": os.path.isdir("/sys/kernel/livepatch"),
            "vmlinux_btf": os.path.exists("/sys/kernel/btf/vmlinux"),
            "uptime": float((system.read("/proc/uptime") or "0").split()[0]),
            "clocksource": (
                system.read("/sys/devices/system/clocksource/clocksource0/current_clocksource")
                or ""
            ).strip(),
        }

    def do_modules(self) -> dict[str, Any]:
        """Loads the control module and the test functions; gives what they can."""
        for name in ("cohabit", TEST_MODULE):
            if not system.module_loaded(name):
                error = system.load_module("%s/%s.ko" % (attachers.KMODS, name))
                if error:
                    raise OSError(error, "loading %s.ko: %s" % (name, os.strerror(error)))
        self._control = Control()
        info = self._control.info
        return {
            "direct": bool(info.has_direct),
            "ops_func": bool(info.has_ops_func),
            "livepatch_save_regs": bool(info.klp_save_regs),
            "module_btf": os.path.exists("/sys/kernel/btf/" + TEST_MODULE),
        }

    def do_compile(self) -> dict[str, Any]:
        """Imports bcc and compiles all BPF programs."""
        if self._programs is None:
            self._programs = Programs(self._functions, self._bpf_source, self._reload_bpf)
        return {}

    def do_begin(self, functions: list[str]) -> dict[str, Any]:
        """Makes ready for a scenario over these functions; gives the first observation."""
        for name in functions:
            self._caller.prepare(self._functions[name])
        # Once, so that what a first call does besides (sockets, families) is over.
        for name in functions:
            self._caller.call(self._functions[name])
        return self._observe(functions)

    def do_step(self, step: dict[str, Any], functions: list[str]) -> dict[str, Any]:
        """Does one step, then observes; ``errno`` is the step's."""
        error, remark = self._act(step)
        result = self._observe(functions)
        result["errno"] = error
        result["remark"] = remark
        return result

    def do_observe(self, functions: list[str]) -> dict[str, Any]:
        """Observes without acting."""
        return self._observe(functions)

    def do_clean(self) -> dict[str, Any]:
        """Takes away whatever a scenario left; ``residue`` is what could not be removed."""
        residue = []
        if self._ftrace_enabled() != 1:
            system.write(FTRACE_ENABLED, "1")
        for name in reversed(list(self._attached)):
            error, remark = self._detach(name)
            if error:
                residue.append("%s: errno %d %s" % (name, error, remark))
        for patch in attachers.livepatches():
            residue.append("livepatch %s" % patch)
        text = (system.read(TRACEFS + "enabled_functions") or "").strip()
        if text:
            residue.append("enabled_functions: " + text.splitlines()[0])
        return {"residue": residue, "log": self._log.take(), "log_complete": self._log.complete}

    def do_read(self, path: str) -> dict[str, Any]:
        """A file's text."""
        return {"text": system.read(path)}

    def do_write(self, path: str, text: str) -> dict[str, Any]:
        """One write to a file; its errno."""
        return {"errno": system.write(path, text)}

    def _act(self, step: dict[str, Any]) -> tuple[int, str]:
        do = step["do"]
        if do == "attach":
            return self._attach(step)
        if do == "detach":
            return self._detach(step["id"])
        if do == "write":
            return system.write("/proc/sys/" + step["sysctl"].replace(".", "/"), step["value"]), ""
        if do == "call":
            return 0, ""
        raise ValueError("no such step: %r" % do)

    def _attach(self, step: dict[str, Any]) -> tuple[int, str]:
        attachment = self._make(step["attacher"], step["function"], int(step["slot"]))
        error, remark = attachment.attach(time.monotonic() + self._patience)
        if error == 0:
            self._attached[step["id"]] = attachment
        return error, remark

    def _make(self, kind: str, function: str, slot: int) -> Attachment:
        if kind == "livepatch":
            return LivepatchAttachment(kind, function, slot)
        if kind in ("fentry", "fexit", "fmod_ret"):
            if self._programs is None:
                self.do_compile()
            assert self._programs is not None
            return BpfAttachment(kind, function, slot, self._programs)
        if self._control is None:
            raise ValueError("the control module is not loaded")
        return KmodAttachment(kind, function, slot, self._control)

    def _detach(self, name: str) -> tuple[int, str]:
        attachment = self._attached.get(name)
        if attachment is None:
            raise ValueError("nothing attached is called %r" % name)
        error, remark = attachment.detach(time.monotonic() + self._patience)
        if error == 0:
            del self._attached[name]
        return error, remark

    @staticmethod
    def _ftrace_enabled() -> int:
        """The sysctl; -1 where it can't be read: ftrace has shut itself down (ENODEV)."""
        return int((system.read(FTRACE_ENABLED) or "-1").strip())

    def _observe(self, functions: list[str]) -> dict[str, Any]:
        enabled = system.read(TRACEFS + "enabled_functions")
        touched = system.read(TRACEFS + "touched_functions")
        calls = {}
        for name in functions:
            for attachment in self._attached.values():
                attachment.stat(reset=True)
            result = self._caller.call(self._functions[name])
            # Those on other functions count too: they must not have been hit.
            result["seen"] = {
                identity: stat
                for identity, attachment in self._attached.items()
                if (stat := attachment.stat(reset=False)) is not None
                and (attachment.function == name or stat["hits"])
            }
            calls[name] = result
        return {
            "enabled_functions": enabled[:REGISTRY_LIMIT] if enabled is not None else None,
            "touched_functions": touched[:REGISTRY_LIMIT] if touched is not None else None,
            "calls": calls,
            "livepatch": attachers.livepatches(),
            "ftrace_enabled": self._ftrace_enabled(),
            # Last, so that what the calls above caused is in it.
            "log": self._log.take(),
            "log_complete": self._log.complete,
        }
