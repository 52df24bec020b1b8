# SPDX-License-Identifier: GPL-2.0-only
"""The acts that a scenario is made of, each with its errno."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Optional

from . import abi, bpf, observe, system
from .attachers import KMOD_KINDS, Attachment, Control, KmodAttachment, Outcome
from .calls import Caller
from .links import BpfAttachment, Links, MultiAttachment
from .livepatch import LivepatchAttachment, in_transition, livepatches
from .observe import Counters
from .tracers import TRACEFS, TRACERS, TracerAttachment, Tracing

if TYPE_CHECKING:
    from .stir import Stir


class Acts:
    """What is attached, held and loaded, and how that changes.

    ``functions`` is the table of functions; ``sources`` gets whatever counts hits;
    ``patience``: seconds that the kernel has for what it does by itself;
    ``reload_bpf``: load a BPF program anew for each attach.
    """

    def __init__(
        self,
        functions: dict[str, dict[str, Any]],
        caller: Caller,
        sources: list[Counters],
        patience: float,
        reload_bpf: bool,
    ) -> None:
        self._functions = functions
        self._caller = caller
        self._sources = sources
        self._patience = patience
        self._reload_bpf = reload_bpf
        self._attached: dict[str, Attachment] = {}
        self._control: Optional[Control] = None
        self._links: Optional[Links] = None
        self._tracing: Optional[Tracing] = None
        self._unloaded: set[str] = set()
        self._lock = threading.Lock()
        #: The stir step that is being done.
        self.stir: Optional[Stir] = None

    def use_control(self, control: Control) -> None:
        """Gives the control module, once it is loaded."""
        self._control = control
        self._sources.append(control)

    def use_programs(self, code: dict[str, bytes]) -> None:
        """Gives the compiled BPF programs."""
        programs = bpf.Programs(self._functions, code, self._reload_bpf)
        self._links = Links(programs, self._functions)
        self._sources.append(self._links)

    @property
    def has_programs(self) -> bool:
        """Whether BPF programs were given."""
        return self._links is not None

    def act(self, act: dict[str, Any]) -> dict[str, Any]:
        """Does one act; ``errno``, ``remark``, ``s`` that it took, what was ``held``, ``done``
        (only where it is False: see Outcome), and of a stir step's end what was ``stirred``.

        Threads can do acts at once, each with attachments of its own.
        """
        method = getattr(self, "_do_" + str(act["do"]).replace("-", "_"), None)
        if method is None:
            raise ValueError("no such act: %r" % act["do"])
        began = time.monotonic()
        outcome: Outcome = method(act)
        return {
            "errno": outcome.errno,
            "remark": outcome.remark,
            "s": round(time.monotonic() - began, 6),
            "held": outcome.held,
            **({} if outcome.done else {"done": False}),
            **({"stirred": outcome.stirred} if outcome.stirred is not None else {}),
        }

    def sites(self, functions: list[str]) -> dict[str, dict[str, Any]]:
        """The call site of each function: see Control.site."""
        return {name: self._module().site(name) for name in functions}

    # --- while hammers and stirrers run -----------------------------------------------------

    @property
    def control(self) -> Control:
        """The control module; raises ValueError before it is loaded."""
        return self._module()

    @property
    def sources(self) -> list[Counters]:
        """Whatever counts hits."""
        return self._sources

    def attachments(self) -> dict[str, Attachment]:
        """What is attached, by its id."""
        return dict(self._attached)

    def present(self, act: dict[str, Any]) -> bool:
        """Whether what the act makes, takes away or changes is there."""
        if act["do"] in ("load", "unload"):
            return system.module_loaded(act["module"])
        return act["id"] in self._attached or act["id"] in self._caller.held()

    def functions_of(self, act: dict[str, Any]) -> list[str]:
        """The functions that an act is about, as far as it tells."""
        if "functions" in act:
            return list(act["functions"])
        attachment = self._attached.get(act.get("id", ""))
        return list(attachment.functions) if attachment else []

    def begin_stir(
        self, step: dict[str, Any], allowed: dict[str, list[str]], patience: Optional[float]
    ) -> None:
        """Starts the hammers and the stirrers of a stir step; see Stir."""
        from .stir import Stir

        if self.stir is not None:
            raise ValueError("hammers are at work already")
        patience = self._patience if patience is None else patience
        self.stir = Stir(self, step, allowed, self._functions, patience)
        try:
            self.stir.start()
        except BaseException:
            self.stir = None
            raise

    def prepare_stir(self, steps: list[dict[str, Any]]) -> None:
        """Makes ready for these acts of stirrers."""
        unloads = any(step["do"] == "unload" for step in steps)
        if unloads:
            self._caller.close()
        if any(step["do"] == "trace-all" or step.get("attacher") in TRACERS for step in steps):
            self._traces()
        if self._tracing is not None:
            self._tracing.begin_stir(moving=unloads)

    def finish_stir(self) -> None:
        """As it was before prepare_stir."""
        if self._tracing is not None:
            self._tracing.end_stir()

    def _do_stir_end(self, act: dict[str, Any]) -> Outcome:
        if self.stir is None:
            raise ValueError("no hammers are at work")
        stir, self.stir = self.stir, None
        return Outcome(0, stirred=stir.end())

    def _do_trace_all(self, act: dict[str, Any]) -> Outcome:
        return self._traces().everything(act["tracer"])

    def _traces(self) -> Tracing:
        with self._lock:
            if self._tracing is None:
                self._tracing = Tracing(self._functions)
                self._sources.append(self._tracing)
            return self._tracing

    # --- the acts ---------------------------------------------------------------------------

    def _module(self) -> Control:
        if self._control is None:
            raise ValueError("the control module is not loaded")
        return self._control

    def _bpf(self) -> Links:
        if self._links is None:
            raise ValueError("the BPF programs are not compiled")
        return self._links

    def _deadline(self, act: dict[str, Any]) -> float:
        return time.monotonic() + float(act.get("patience", self._patience))

    def _get(self, act: dict[str, Any]) -> Attachment:
        attachment = self._attached.get(act["id"])
        if attachment is None:
            raise ValueError("nothing attached is called %r" % act["id"])
        return attachment

    def _livepatch(self, act: dict[str, Any]) -> LivepatchAttachment:
        attachment = self._get(act)
        if not isinstance(attachment, LivepatchAttachment):
            raise ValueError("%r is no livepatch" % act["id"])
        return attachment

    def _do_attach(self, act: dict[str, Any]) -> Outcome:
        attachment = self._make(act)
        outcome = attachment.attach(self._deadline(act), bool(act.get("wait", True)))
        if outcome.errno == 0:
            self._attached[attachment.identity] = attachment
        return outcome

    def _make(self, act: dict[str, Any]) -> Attachment:
        identity, kind, functions = act["id"], act["attacher"], act["functions"]
        slot = int(act["slot"])
        if identity in self._attached:
            raise ValueError("%r is attached already" % identity)
        if kind in ("livepatch", "livepatch-replace"):
            table = [self._functions[name] for name in functions]
            replace = kind == "livepatch-replace" or bool(act.get("replace"))
            return LivepatchAttachment(identity, kind, table, slot, replace)
        if kind in TRACERS:
            return TracerAttachment(identity, kind, functions, slot, self._traces())
        if kind in bpf.KINDS:
            return BpfAttachment(identity, kind, functions, slot, self._bpf())
        if kind == "kprobe-multi":
            return MultiAttachment(identity, functions, slot, self._bpf(), self._module())
        if kind in KMOD_KINDS:
            far = bool(act.get("far"))
            return KmodAttachment(identity, kind, functions, slot, self._module(), far)
        raise ValueError("no such attacher: %r" % kind)

    def _do_detach(self, act: dict[str, Any]) -> Outcome:
        outcome = self._get(act).detach(self._deadline(act))
        if outcome.errno == 0 and outcome.done:
            del self._attached[act["id"]]
        return outcome

    def _do_disable(self, act: dict[str, Any]) -> Outcome:
        return self._livepatch(act).disable(self._deadline(act), bool(act.get("wait", True)))

    def _do_enable(self, act: dict[str, Any]) -> Outcome:
        return self._livepatch(act).enable(self._deadline(act), bool(act.get("wait", True)))

    def _do_force(self, act: dict[str, Any]) -> Outcome:
        return self._livepatch(act).force(self._deadline(act))

    def _do_modify(self, act: dict[str, Any]) -> Outcome:
        attachment = self._get(act)
        if not isinstance(attachment, KmodAttachment):
            raise ValueError("%r is no direct attachment" % act["id"])
        return attachment.modify(int(act["alternate"]))

    def _do_write(self, act: dict[str, Any]) -> Outcome:
        path = "/proc/sys/" + act["sysctl"].replace(".", "/")
        return Outcome(system.write(path, act["value"]))

    def _do_misuse(self, act: dict[str, Any]) -> Outcome:
        argument = abi.Misuse(what=abi.MISUSES[act["what"]], func=act["function"].encode())
        return Outcome(self._module().request(abi.IOC_MISUSE, argument))

    def _do_call(self, act: dict[str, Any]) -> Outcome:
        """The observation calls."""
        return Outcome(0)

    def _do_hold(self, act: dict[str, Any]) -> Outcome:
        return Outcome(*self._caller.hold(act["id"], act["function"], self._deadline(act)))

    def _do_release(self, act: dict[str, Any]) -> Outcome:
        deadline = self._deadline(act)
        held = self._caller.release(act["id"], deadline)
        # A transition that it held up ends now.
        if held and act.get("wait", True):
            system.wait(lambda: not in_transition(), deadline)
        return Outcome(0, "" if held else "the call did not return", held=held)

    def _do_unload(self, act: dict[str, Any]) -> Outcome:
        # What we hold for no user of it would keep it.
        self._caller.close()
        if self._links is not None:
            self._links.programs.forget(act["module"])
        error = system.unload_module(act["module"], self._deadline(act))
        if not error:
            self._unloaded.add(act["module"])
        return Outcome(error)

    def _do_load(self, act: dict[str, Any]) -> Outcome:
        error = system.load_module(system.kmod(act["module"]))
        if not error:
            self._unloaded.discard(act["module"])
        return Outcome(error)

    def clean(self) -> list[str]:
        """Takes away whatever was left; what could not be removed, in words."""
        residue = []
        if self.stir is not None:
            stir, self.stir = self.stir, None
            residue += stir.abort()
        if observe.ftrace_enabled() != 1:
            system.write(observe.FTRACE_ENABLED, "1")
        for name in self._caller.held():
            if self._do_release({"id": name}).held is None:
                residue.append("call %s does not return" % name)
        for name in reversed(list(self._attached)):
            outcome = self._do_detach({"id": name})
            if outcome.errno or not outcome.done:
                residue.append("%s: errno %d %s" % (name, outcome.errno, outcome.remark))
        if self._tracing is not None:
            residue += self._tracing.reset()
        for module in list(self._unloaded):
            error = self._do_load({"module": module}).errno
            if error:
                residue.append("loading %s: errno %d" % (module, error))
        residue += ["livepatch %s" % patch for patch in livepatches()]
        text = (system.read(TRACEFS + "enabled_functions") or "").strip()
        if text:
            residue.append("enabled_functions: " + text.splitlines()[0])
        return residue
