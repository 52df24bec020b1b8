# SPDX-License-Identifier: GPL-2.0-only
"""What the agent can be asked for: one method a request."""

from __future__ import annotations

import importlib
import os
import platform
from typing import Any, Optional

from . import bpf, observe, system
from .acts import Acts
from .attachers import Control
from .calls import Caller
from .observe import Counters, Observer, Watch
from .tracers import TRACEFS

TEST_MODULE = "cohabit_funcs"


class Service:
    """The state between requests; ``do_hello`` has to come first."""

    def __init__(self) -> None:
        self._functions: dict[str, dict[str, Any]] = {}
        self._bpf_source = ""
        self._state: Optional[tuple[Caller, Observer, Acts]] = None
        self._greeting: tuple[Any, ...] = ()
        self._facts: dict[str, Any] = {}
        self._modules: dict[str, Any] = {}

    def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answers one request; raises for one that makes no sense."""
        operation = getattr(self, "do_" + str(request["op"]), None)
        if operation is None:
            raise ValueError("no such request: %r" % request["op"])
        arguments = {k: v for k, v in request.items() if k not in ("op", "id")}
        result: dict[str, Any] = operation(**arguments)
        return result

    def _parts(self) -> tuple[Caller, Observer, Acts]:
        if self._state is None:
            raise ValueError("nobody said hello")
        return self._state

    def do_hello(
        self,
        functions: dict[str, dict[str, Any]],
        bpf_source: str,
        patience: float,
        reload_bpf: bool,
    ) -> dict[str, Any]:
        """Takes the table of functions; gives facts about the kernel.

        The same greeting once more changes nothing.

        ``patience``: seconds that the kernel has for what it does by itself;
        ``reload_bpf``: load a BPF program anew for each attach.
        """
        greeting = (functions, bpf_source, patience, reload_bpf)
        if self._state is not None and self._greeting == greeting:
            # A restored VM: all of this is there, from before.
            return {**self._facts, "uptime": system.uptime(), "compiled": self.compiled}
        self._greeting = greeting
        self._functions = functions
        self._bpf_source = bpf_source
        caller = Caller(functions)
        sources: list[Counters] = []
        observer = Observer(caller, sources)
        acts = Acts(functions, caller, sources, patience, reload_bpf)
        self._state = caller, observer, acts
        self._modules = {}
        self._facts = {
            "release": platform.release(),
            "machine": platform.machine(),
            "notes": system.digest("/sys/kernel/notes"),
            "python": platform.python_version(),
            "cpus": os.cpu_count(),
            "pid": os.getpid(),
            "ftrace_enabled": observe.ftrace_enabled(),
            "livepatch": os.path.isdir("/sys/kernel/livepatch"),
            # kernel/locking/lockdep_proc.c
            "lockdep": os.path.exists("/proc/lockdep_stats"),
            "kaslr": system.kaslr(),
            "vmlinux_btf": os.path.exists("/sys/kernel/btf/vmlinux"),
            "kprobe_multi": bpf.has_kprobe_multi(),
            "tracers": (system.read(TRACEFS + "available_tracers") or "").split(),
            "clocksource": (
                system.read("/sys/devices/system/clocksource/clocksource0/current_clocksource")
                or ""
            ).strip(),
        }
        return {**self._facts, "uptime": system.uptime(), "compiled": False}

    @property
    def compiled(self) -> bool:
        """Whether BPF programs were given."""
        return self._state is not None and self._state[2].has_programs

    def do_restored(self, entropy: str, now: float, hostname: str) -> dict[str, Any]:
        """Makes a VM that goes on from a snapshot one of its own; gives what it is now.

        ``entropy``: random bytes in hexadecimal; ``now``: the time, in seconds since the
        epoch.  Needs no hello.
        """
        from . import restored

        return restored.renew(bytes.fromhex(entropy), now, hostname)

    def do_modules(self) -> dict[str, Any]:
        """Loads the control module and the test functions; gives what they can."""
        _, _, acts = self._parts()
        if self._modules:
            return self._modules
        for name in ("cohabit", TEST_MODULE):
            if not system.module_loaded(name):
                error = system.load_module(system.kmod(name))
                if error:
                    raise OSError(error, "loading %s.ko: %s" % (name, os.strerror(error)))
        control = Control()
        acts.use_control(control)
        self._modules = {
            "direct": bool(control.info.has_direct),
            "ops_func": bool(control.info.has_ops_func),
            "livepatch_save_regs": bool(control.info.klp_save_regs),
            "fprobe": bool(control.info.has_fprobe),
            "has_modify": bool(control.info.has_modify),
            "kprobes_on_ftrace": bool(control.info.kprobes_on_ftrace),
            "module_btf": os.path.exists("/sys/kernel/btf/" + TEST_MODULE),
        }
        return self._modules

    def do_compile(
        self, programs: Optional[dict[str, str]] = None, import_bcc: bool = False
    ) -> dict[str, Any]:
        """Compiles all BPF programs; gives their instructions in hexadecimal.

        ``programs``: what an earlier compilation gave, on any kernel, instead: it takes
        seconds under emulation, and depends on the source alone.  ``import_bcc``: imports
        bcc also where it is not needed for this.
        """
        if import_bcc:
            importlib.import_module("bcc")
        _, _, acts = self._parts()
        if programs is None:
            code = bpf.compiled(self._bpf_source, self._functions.values())
        else:
            code = {symbol: bytes.fromhex(text) for symbol, text in programs.items()}
        if not acts.has_programs:
            acts.use_programs(code)
        return {"programs": {symbol: insns.hex() for symbol, insns in code.items()}}

    def do_begin(self, functions: list[str]) -> dict[str, Any]:
        """Makes ready for scenarios over these functions; gives the first observation."""
        caller, observer, _ = self._parts()
        caller.prepare(functions)
        # Once, so that what a first call does besides (sockets, families) is over.
        caller.call(functions, "process")
        return observer.observe(functions, "process", touched=True)

    def do_acts(
        self,
        acts: list[dict[str, Any]],
        functions: list[str],
        context: str = "process",
        watch: bool = False,
        sites: bool = False,
    ) -> dict[str, Any]:
        """Does acts one after the other, whatever each gives; then observes once.

        ``results`` has what each gave; ``watched``, with ``watch``, what was to be seen in
        the registry meanwhile; ``sites``, with ``sites``, the functions' call sites
        (Control.site).
        """
        _, observer, doer = self._parts()
        if watch:
            with Watch() as watching:
                results = [doer.act(act) for act in acts]
            watched = {"watched": watching.result()}
        else:
            results, watched = [doer.act(act) for act in acts], {}
        seen = {"sites": doer.sites(functions)} if sites else {}
        return {"results": results, **watched, **seen, **observer.observe(functions, context)}

    def do_stir(
        self,
        step: dict[str, Any],
        functions: list[str],
        allowed: Optional[dict[str, list[str]]] = None,
        patience: Optional[float] = None,
    ) -> dict[str, Any]:
        """Starts the hammers and the stirrers of a stir step, which go on after the reply.

        ``allowed``: the bodies that calls of each function may meet; ``patience``: seconds
        for one act of a stirrer, else as in hello.  The act ``stir-end`` ends it.
        """
        _, _, doer = self._parts()
        doer.begin_stir(step, {**step.get("allowed", {}), **(allowed or {})}, patience)
        return {"started": True}

    def do_stirred(self, wait: float = 0.0) -> dict[str, Any]:
        """How far the stir step is, after ``wait`` seconds or when it is over.

        See Stir.progress.
        """
        _, observer, doer = self._parts()
        if doer.stir is None:
            raise ValueError("no hammers are at work")
        observer.log.look()
        return doer.stir.progress(wait)

    def do_observe(self, functions: list[str]) -> dict[str, Any]:
        """Observes without acting."""
        _, observer, _ = self._parts()
        return observer.observe(functions, "process")

    def do_clean(self) -> dict[str, Any]:
        """Takes away whatever a scenario left; ``residue`` is what could not be removed."""
        _, observer, acts = self._parts()
        residue = acts.clean()
        return {
            "residue": residue,
            "log": observer.log.take(),
            "log_complete": observer.log.complete,
        }

    def do_run(self, argv: list[str], timeout: float) -> dict[str, Any]:
        """Runs a program; see programs.run. Needs no hello."""
        from . import programs

        return programs.run(argv, timeout)

    def do_read(self, path: str) -> dict[str, Any]:
        """A file's text."""
        return {"text": system.read(path)}

    def do_write(self, path: str, text: str) -> dict[str, Any]:
        """One write to a file; its errno."""
        return {"errno": system.write(path, text)}
