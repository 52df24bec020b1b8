# SPDX-License-Identifier: GPL-2.0-only
"""Attachers that are a tracer of tracefs: function, function_graph, and one in an instance.

No tracer ever runs with an empty filter: that means all functions, and under
emulation minutes.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import re
import threading
from collections.abc import Iterable, Iterator
from typing import Any, Callable, Optional

from . import system
from .attachers import Attachment, Outcome, Seen

TRACEFS = "/sys/kernel/tracing/"
MODULES = "/proc/modules"
#: The tracer behind each attacher.
TRACERS = {
    "function-tracer": "function",
    "function-graph": "function_graph",
    "instance": "function",
}
_INSTANCE = "cohabit%d"
_ALL = "instances/cohabit_all/"

#: One call in a trace: the task's id and the function (kernel/trace/trace_output.c:
#: trace_print_context, trace_fn_trace; trace_functions_graph.c: print_graph_entry with
#: funcgraph-proc).  Modules' functions may have their module behind them.
_CALL = {
    "function": re.compile(r"-(\d+) +\[\d+\][^\n]*?: ([\w.$]+)(?: \[[\w.-]+\])? <-"),
    "function_graph": re.compile(
        r"^ *\d+\) [^|\n]*-(\d+) +\|[^|\n]*\| +([\w.$]+)(?: \[[\w.-]+\])?\(.*\)(?:;| \{)", re.M
    ),
}


def calls(tracer: str, text: str) -> dict[str, dict[int, int]]:
    """How often each task (by id) called each function, from a trace's text."""
    found: dict[str, dict[int, int]] = collections.defaultdict(lambda: collections.defaultdict(int))
    for task, function in _CALL[tracer].findall(text):
        found[function][int(task)] += 1
    return found


def title(name: str, module: Optional[str]) -> str:
    """A function as available_filter_functions names it."""
    return "%s [%s]" % (name, module) if module else name


class Numbers:
    """The functions' numbers in available_filter_functions, which set_ftrace_filter takes.

    A number is an index into the kernel's records (kernel/trace/ftrace.c:
    add_rec_by_index), of which that file has one line each, __ftrace_invalid_address__
    ones too.  A name instead makes the kernel look up the name of every function.

    ``functions`` is the table of functions.  The file is read again only when it must be:
    a module's records follow those of the modules that were loaded before it.
    """

    def __init__(self, functions: dict[str, dict[str, Any]], tracefs: str, modules: str) -> None:
        self._titles = {n: title(n, f["module"]) for n, f in functions.items()}
        self._modules = {f["module"] for f in functions.values() if f["module"]}
        self._path = tracefs + "available_filter_functions"
        self._loaded = modules
        #: The modules that the numbers are valid for, and the numbers; of one moment.
        self._known: tuple[Optional[tuple[str, ...]], dict[str, int]] = (None, {})
        #: Modules come and go at any time: only numbers that lie before them are known.
        self.moving = False

    def of(self, names: Iterable[str]) -> dict[str, int]:
        """Numbers by name; those that ftrace doesn't know now are left out."""
        order, (valid_for, known) = self._order(), self._known
        if order != valid_for and not (self.moving and valid_for):
            lines = (system.read(self._path) or "").split("\n")
            numbers = {line: number for number, line in enumerate(lines, 1)}
            known = {n: numbers[t] for n, t in self._titles.items() if t in numbers}
            self._known = order, known
        return {
            name: known[name]
            for name in names
            if name in known and not (self.moving and self._titles[name] != name)
        }

    def _order(self) -> tuple[str, ...]:
        """The modules in the order of loading, as far as they move our functions' records."""
        newest_first = [
            line.split(" ", 1)[0] for line in (system.read(self._loaded) or "").splitlines()
        ]
        order: list[str] = []
        moving: tuple[str, ...] = ()
        for module in reversed(newest_first):
            order.append(module)
            if module in self._modules:
                moving = tuple(order)
        return moving


def _changed(change: Callable[[str], None], path: str) -> int:
    """The errno of making or removing a directory."""
    try:
        change(path)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


class Instance:
    """One of the kernel's traces: its filter and its tracer, and who uses them.

    ``path`` is its directory below tracefs, "" for the top.
    """

    def __init__(self, path: str, numbers: Numbers) -> None:
        self._path = TRACEFS + path
        self._numbers = numbers
        self.users: list[TracerAttachment] = []
        self._tracer = "nop"

    def attach(self, user: TracerAttachment) -> Outcome:
        """Adds the user's functions to the filter and makes its tracer the current one."""
        covered = {name for other in self.users for name in other.functions}
        new = [name for name in user.functions if name not in covered]
        numbers = self._numbers.of(new)
        # What ftrace doesn't know by its name, so that the kernel says what is wrong with
        # it; first, because what came before a refused word stays in the filter.
        words = [name for name in new if name not in numbers]
        words += [str(number) for number in numbers.values()]
        error = self._filter(words, anew=not self.users)
        if error:
            return Outcome(error, "set_ftrace_filter")
        if user.tracer == "function_graph":
            # So that lines tell whose call it was.
            system.write(self._path + "options/funcgraph-proc", "1")
        error = self._run(user.tracer)
        if error:
            self._restrict(new)
            return Outcome(error, "current_tracer")
        self.users.append(user)
        return Outcome(0)

    def detach(self, user: TracerAttachment) -> Outcome:
        """Takes its functions away; with the last user of the current tracer that goes, too."""
        others = [other for other in self.users if other is not user]
        if not any(other.tracer == self._tracer for other in others):
            error = self._run("nop")
            if error:
                return Outcome(error, "current_tracer")
        self.users = others
        self._restrict(user.functions)
        return Outcome(0)

    def _restrict(self, gone: list[str]) -> None:
        """Takes functions out of the filter, unless somebody else has them in it."""
        left = {name for user in self.users for name in user.functions}
        moving = self._numbers.moving
        if not (left if moving else self._numbers.of(left)):
            # Nothing is left that could be called: an empty filter, but not of a tracer.
            self._run("nop")
            self._filter([], anew=True)
            return
        gone = [name for name in gone if name not in left]
        numbers = self._numbers.of(gone)
        words = ["!%d" % number for number in numbers.values()]
        # Their module may have gone this moment, and their names with it.
        words += ["!" + name for name in gone if moving and name not in numbers]
        self._filter(words, anew=False)

    def _run(self, tracer: str) -> int:
        error = system.write(self._path + "current_tracer", tracer)
        if not error:
            self._tracer = tracer
        return error

    def _filter(self, words: list[str], anew: bool) -> int:
        """Adds to the filter, or takes out what begins with !; ``anew``: of an empty one.

        The kernel takes one word a write, and does it all when the file is closed.
        """
        flags = os.O_WRONLY | os.O_CLOEXEC | (os.O_TRUNC if anew else os.O_APPEND)
        try:
            fd = os.open(self._path + "set_ftrace_filter", flags)
        except OSError as error:
            return error.errno or errno.EIO
        try:
            for word in words:
                os.write(fd, word.encode() + b" ")
        except OSError as error:
            return error.errno or errno.EIO
        finally:
            os.close(fd)
        return 0

    def drain(self) -> str:
        """What was traced since the last time.

        Through trace_pipe, which costs no grace period, as clearing the trace does. It
        must not stay open: the tracer could not be changed (kernel/trace/trace.c:
        tracing_set_tracer).
        """
        fd = os.open(self._path + "trace_pipe", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        text = bytearray()
        try:
            while data := os.read(fd, 1 << 16):
                text += data
        except BlockingIOError:
            pass
        finally:
            os.close(fd)
        return text.decode("utf-8", "backslashreplace")

    def seen(self) -> Iterator[Seen]:
        """See observe.Counters; a user whose tracer is not the current one sees nothing."""
        found = calls(self._tracer, self.drain()) if self._tracer in _CALL else {}
        own = os.getpid()
        for user in self.users:
            for name in user.functions:
                tasks = found.get(name, {}) if user.tracer == self._tracer else {}
                hits = tasks.get(own, 0)
                others = sum(tasks.values()) - hits
                yield user.identity, name, {"hits": hits, "others": others, "args": []}


class Tracing:
    """All of the kernel's traces that are ours to use; ``functions`` is the table of them.

    Threads can use it at once: one at a time the top, which is one object with one tracer.
    """

    def __init__(self, functions: dict[str, dict[str, Any]]) -> None:
        self._numbers = Numbers(functions, TRACEFS, MODULES)
        self._instances: dict[str, Instance] = {}
        self._top = threading.Lock()
        #: Whether the top traces all functions.
        self._top_all = False

    def _locked(self, path: str) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if path else self._top

    def attach(self, user: TracerAttachment, path: str) -> Outcome:
        """Attaches in the instance of that path, which is made for its first user."""
        with self._locked(path):
            return self._attach(user, path)

    def _attach(self, user: TracerAttachment, path: str) -> Outcome:
        if self._top_all and not path:
            return Outcome(errno.EBUSY, "the top traces all functions")
        if path not in self._instances:
            if path and (error := _changed(os.mkdir, TRACEFS + path)):
                return Outcome(error, "mkdir")
            self._instances[path] = Instance(path, self._numbers)
        outcome = self._instances[path].attach(user)
        if outcome.errno:
            self._leave(path)
        return outcome

    def detach(self, user: TracerAttachment, path: str) -> Outcome:
        """Detaches, and removes an instance that nobody needs any more."""
        with self._locked(path):
            outcome = self._instances[path].detach(user)
            error = self._leave(path)
        return outcome if outcome.errno or not error else Outcome(error, "rmdir")

    def everything(self, tracer: str) -> Outcome:
        """Runs a tracer on all functions, in an instance of its own; ``nop``: no more.

        What is called is not written down.  Where the kernel has function_graph for the top
        only (kernel/trace/trace.c: trace_ok_for_array, before 6.12) it is that.
        """
        own = TRACEFS + _ALL
        if tracer == "nop":
            if self._top_all:
                self._top_all = False
                return Outcome(system.write(TRACEFS + "current_tracer", "nop"), "the top")
            error = system.write(own + "current_tracer", "nop")
            return Outcome(error or _changed(os.rmdir, own))
        error = _changed(os.mkdir, own)
        if error not in (0, errno.EEXIST):
            return Outcome(error, "mkdir")
        system.write(own + "tracing_on", "0")
        error = system.write(own + "current_tracer", tracer)
        if error:
            _changed(os.rmdir, own)
        if error != errno.EINVAL or tracer != "function_graph":
            return Outcome(error)
        with self._top:
            if "" in self._instances:
                return Outcome(error, "the top has a filter")
            os.close(os.open(TRACEFS + "set_ftrace_filter", os.O_WRONLY | os.O_TRUNC))
            error = system.write(TRACEFS + "current_tracer", tracer)
            self._top_all = not error
        return Outcome(error, "the top")

    def begin_stir(self, moving: bool) -> None:
        """From now on nothing is written down; ``moving``: the functions' module comes and goes."""
        self._numbers.of(())
        self._numbers.moving = moving
        self._record("0")

    def end_stir(self) -> None:
        """All is as before."""
        self._numbers.moving = False
        self._record("1")

    def _record(self, on: str) -> None:
        for path in {"", *self._instances}:
            system.write(TRACEFS + path + "tracing_on", on)

    def _leave(self, path: str) -> int:
        if self._instances[path].users:
            return 0
        del self._instances[path]
        return _changed(os.rmdir, TRACEFS + path) if path else 0

    def reset(self) -> list[str]:
        """Removes what is left of ours when nobody needs it; what could not be removed."""
        residue = []
        for name in os.listdir(TRACEFS + "instances"):
            if name.startswith(_INSTANCE.rstrip("%d")):
                path = "%sinstances/%s/" % (TRACEFS, name)
                system.write(path + "current_tracer", "nop")
                try:
                    os.rmdir(path)
                except OSError as error:
                    residue.append("instance %s: errno %d" % (name, error.errno or 0))
        tracer = (system.read(TRACEFS + "current_tracer") or "nop").strip()
        if tracer != "nop":
            error_number = system.write(TRACEFS + "current_tracer", "nop")
            if error_number:
                residue.append("tracer %s: errno %d" % (tracer, error_number))
        self._instances.clear()
        return residue

    def clear(self) -> None:
        """See observe.Counters."""
        for instance in self._instances.values():
            instance.drain()

    def seen(self) -> Iterator[Seen]:
        """See observe.Counters."""
        for instance in self._instances.values():
            yield from instance.seen()


class TracerAttachment(Attachment):
    """A tracer on its functions; ``instance``: in one of its slot's own."""

    def __init__(
        self, identity: str, kind: str, functions: list[str], slot: int, tracing: Tracing
    ) -> None:
        super().__init__(identity, kind, functions, slot)
        self.tracer = TRACERS[kind]
        self._tracing = tracing
        self._path = "instances/%s/" % (_INSTANCE % slot) if kind == "instance" else ""

    def attach(self, deadline: float, wait: bool) -> Outcome:
        """See Attachment."""
        return self._tracing.attach(self, self._path)

    def detach(self, deadline: float) -> Outcome:
        """See Attachment."""
        return self._tracing.detach(self, self._path)
