# SPDX-License-Identifier: GPL-2.0-only
"""A place of its own for a cohabit that is to fail: what it wrote, and what it left behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
KERNEL = "debian:6.12"
#: Scenarios of two steps, for tests that are about something else.
OPS = "ops/alone/on:cohabit_f1"
DIRECT = "direct/alone/on:cohabit_f1"
#: Seconds after which a test gives up waiting. What is waited for comes long before.
PATIENCE = 240.0
_POLL = 0.1

Event = dict[str, Any]


def wait_for(
    what: str,
    condition: Callable[[], Any],
    details: Callable[[], str] = str,
    patience: float = PATIENCE,
) -> Any:
    """The first true value of ``condition``; fails the test when there is none in time."""
    deadline = time.monotonic() + patience
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited in vain for {what}\n{details()}")
        time.sleep(_POLL)
    return value


def read_events(path: Path) -> list[Event]:
    """The whole lines of an events.jsonl, as far as it is written."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def of_type(events: Sequence[Event], kind: str, **values: Any) -> list[Event]:
    """The events of a type that have these values."""
    return [
        e for e in events
        if e["type"] == kind and all(e.get(key) == value for key, value in values.items())
    ]  # fmt: skip


def verdicts(events: Sequence[Event]) -> dict[str, str]:
    """Scenario names with ``#`` and the attempt, and how they ended."""
    return {e["scenario"].partition("/")[2]: e["verdict"] for e in of_type(events, "scenario_end")}


def assert_booted(events: Sequence[Event], count: int) -> None:
    """So many VMs came up, each with the agent on a 6.12."""
    ready = of_type(events, "vm_ready")
    assert [e["facts"]["release"][:5] for e in ready] == ["6.12."] * count


def mounts() -> list[str]:
    """The mounts that this process sees."""
    return Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()


@dataclass
class Running:
    """A cohabit that was started, in a session of its own as a terminal would have it."""

    world: World
    popen: subprocess.Popen[bytes]
    output: Path
    stdout: Path
    stderr: Path

    @property
    def out(self) -> str:
        return self.stdout.read_text(encoding="utf-8")

    @property
    def err(self) -> str:
        return self.stderr.read_text(encoding="utf-8")

    @property
    def told(self) -> str:
        """Everything there is to say when a test fails."""
        return f"stdout:\n{self.out}\nstderr:\n{self.err}"

    @property
    def events(self) -> list[Event]:
        return read_events(self.output / "events.jsonl")

    def console(self, vm: str) -> list[str]:
        """The lines of a VM's console."""
        return (self.output / f"console-{vm}.log").read_text(encoding="utf-8").splitlines()

    def event(self, kind: str, **values: Any) -> Event:
        """The first such event; waits for it."""

        def look() -> list[Event]:
            # Asked first: what was written before the end is there then.
            over = self.popen.poll() is not None
            found = of_type(self.events, kind, **values)
            assert found or not over, f"ended without {kind} {values}\n{self.told}"
            return found

        event: Event = wait_for(f"{kind} {values}", look, lambda: self.told)[0]
        return event

    def qemu(self) -> int:
        """The process id of the one QEMU; waits for it."""

        def look() -> list[int]:
            assert self.popen.poll() is None, self.told
            found = [p for p in self.world.processes() if _is_guest(p)]
            # The script in front of QEMU is two processes for a moment.
            return found if len(found) == 1 else []

        return int(wait_for("one QEMU", look, lambda: self.told)[0])

    def end(self, patience: float = PATIENCE) -> int:
        """The exit status; waits for it."""
        wait_for("the end", lambda: self.popen.poll() is not None, lambda: self.told, patience)
        assert self.popen.returncode is not None
        return self.popen.returncode


def _is_guest(pid: int) -> bool:
    # Whatever starts QEMU has its arguments as text inside one of its own.
    return b"-kernel" in _content(Path(f"/proc/{pid}/cmdline")).split(b"\0")


@dataclass
class World:
    """Directories for one test: ``cache``, ``home``, ``tmp``, ``run`` (the VMs') and ``out``."""

    path: Path
    options: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()
    python: str = sys.executable
    user: str | None = None
    repository: Path = REPOSITORY
    _started: list[Running] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("cache", "home", "tmp", "run", "out"):
            (self.path / name).mkdir()

    @property
    def cache(self) -> Path:
        return self.path / "cache"

    def start(self, command: str, *words: str, kernel: bool = True) -> Running:
        """Starts ``cohabit COMMAND WORDS``; a run's record goes into ``out``."""
        number = len(self._started)
        output = self.path / "out" / str(number)
        argv = [*self.prefix, self.python, "-m", "harness.cli", command, *words]
        if command in ("run", "shell"):
            argv += self.options
            argv += ["--kernel", KERNEL] if kernel else []
        if command == "run":
            argv += ["--output", str(output)]
        kept = {k: os.environ[k] for k in ("PATH", "LANG", "COHABIT_QEMU") if k in os.environ}
        paths = [self.path / "out" / f"{number}.{name}" for name in ("stdout", "stderr")]
        with paths[0].open("wb") as stdout, paths[1].open("wb") as stderr:
            popen = subprocess.Popen(
                argv,
                cwd=self.repository,
                env=kept | {
                    "PYTHONPATH": str(self.repository),
                    "PYTHONDONTWRITEBYTECODE": "1",
                    "COHABIT_CACHE": str(self.cache),
                    "HOME": str(self.path / "home"),
                    "TMPDIR": str(self.path / "tmp"),
                    "XDG_RUNTIME_DIR": str(self.path / "run"),
                } | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
                user=self.user,
                group=None if self.user is None else "nogroup",
                extra_groups=None if self.user is None else [],
            )  # fmt: skip
        running = Running(self, popen, output, *paths)
        self._started.append(running)
        return running

    def run(self, command: str, *words: str, kernel: bool = True) -> Running:
        """Starts it and waits for its end."""
        running = self.start(command, *words, kernel=kernel)
        running.end()
        return running

    def processes(self) -> list[int]:
        """Processes that have anything to do with this place, by name, settings or mounts."""
        found = []
        for directory in Path("/proc").glob("[0-9]*"):
            pid = int(directory.name)
            if pid != os.getpid() and any(
                # By its name alone: in mountinfo a tmpfs at /tmp has no /tmp in front.
                os.fsencode(self.path.name) in _content(directory / name)
                for name in ("cmdline", "environ", "mountinfo")
            ):
                found.append(pid)
        return found

    def files(self) -> list[Path]:
        """Files that nobody needs any more, the cache's half-made entries among them."""
        places = [self.path / name for name in ("home", "tmp", "run")] + [self.cache / "tmp"]
        return [found for place in places if place.is_dir() for found in place.iterdir()]

    def assert_nothing_left(self) -> None:
        """No process, mount, socket or temporary file of ours is there."""
        wait_for("the processes' end", lambda: not self.processes(), self._told)
        left = [str(path) for path in self.files()]
        assert not left, left
        mounted = [line for line in mounts() if str(self.path) in line]
        assert not mounted, mounted

    def _told(self) -> str:
        return "\n".join(
            f"{pid}: {_content(Path(f'/proc/{pid}/cmdline'))[:300]!r}" for pid in self.processes()
        )

    def close(self) -> None:
        """Ends what a failed test left running, and removes everything."""
        for running in self._started:
            if running.popen.poll() is None:
                running.popen.kill()
                running.popen.wait()
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.path)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@contextlib.contextmanager
def world(options: Sequence[str] = ()) -> Iterator[World]:
    """An empty place; its path is short, because virtiofsd's socket lies in it."""
    made = World(Path(tempfile.mkdtemp(prefix="cohabit-t-")), tuple(options))
    try:
        yield made
    finally:
        made.close()
