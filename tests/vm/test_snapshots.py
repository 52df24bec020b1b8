# SPDX-License-Identifier: GPL-2.0-only
"""The engine `direct`, and VMs that go on from a snapshot."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import world as places
from conftest import Warm
from test_accidents import PANIC, SYSRQ, Ask, Sabotage, panic, stick
from world import DIRECT, KERNEL, OPS, World, of_type, read_events, verdicts, wait_for

from harness.agent.abi import LANES
from harness.arch import host
from harness.cli.setup import Setup
from harness.kernels.model import Kernel
from harness.kernels.store import Store, default_root
from harness.policy import profile
from harness.report.model import exit_status, read
from harness.report.words import state_of_run
from harness.run.programs import Programs
from harness.run.record import Record
from harness.run.schedule import Schedule, Work
from harness.run.template import KIND, KernelTemplate
from harness.scenario import catalogue
from harness.target.snapshot import Template
from harness.target.vm import VmTarget
from vm.snapshot import SnapshotError

IPMODIFY = "ipmodify/alone/on:cohabit_f1"
#: Scenarios that can go side by side.
BESIDE = (OPS, "ops-regs/alone/on:cohabit_f3")
#: Which 6.12 grants, and 5.10 refused: sharing is from 6.0 on.
SHARED = "livepatch+fentry/attach:ab/detach:ab"
#: Lines of random numbers, from the kernel and from Python's own generator.
RANDOM = "import os, random; print(os.getrandom(16).hex(), random.random())"


@dataclass(frozen=True)
class Direct:
    """Machines of the engine `direct`, in the user's own cache."""

    setup: Setup
    kernel: Kernel
    template: Template

    def target(self, console: Path, template: Template | None = None) -> VmTarget:
        return self.setup.target(self.kernel, console, template=template)

    def other_template(
        self, store: Store, notes: list[str], qemu: tuple[int, ...] = ()
    ) -> KernelTemplate:
        """One that keeps its snapshots elsewhere, and what it says in ``notes``."""
        _, program = self.setup.accelerator(self.kernel)
        programs = Programs(self.setup.store.state, host())
        machine = self.setup.machine(self.kernel)
        version = qemu or program.version
        return KernelTemplate(machine, version, self.kernel, programs, store, notes.append)


@pytest.fixture(scope="module")
def direct(warm: Warm) -> Iterator[Direct]:
    setup = Setup(Store(default_root()), warm.machine.accelerator.name, engine="direct")
    kernel = setup.kernel(KERNEL)
    template = setup.template(kernel, Programs(setup.store.state, host()), print)
    assert template is not None
    yield Direct(setup, kernel, template)
    setup.store.close()


@pytest.fixture
def shared(warm: Warm) -> Iterator[World]:
    """A place with the user's own cache, for what breaks nothing."""
    with places.world(warm.options) as made:
        made.environment["COHABIT_CACHE"] = str(default_root())
        yield made


@pytest.fixture
def bare(direct: Direct) -> Iterator[World]:
    """A place with a cache that has all but snapshots; nothing in it may be changed."""
    with places.world(("--accel", direct.setup.wanted_accel)) as made:
        for kind in (default_root() / "objects").iterdir():
            if kind.name != KIND:
                (made.cache / "objects" / kind.name).mkdir(parents=True)
                for entry in kind.iterdir():
                    (made.cache / "objects" / kind.name / entry.name).symlink_to(entry)
        shutil.copytree(default_root() / "state", made.cache / "state")
        yield made


@pytest.mark.parametrize(
    ("options", "start"),
    [
        (("--engine", "virtme"), "cold"),
        (("--engine", "direct", "--no-snapshots"), "cold"),
        (("--engine", "direct"), "snapshot"),
    ],
    ids=("virtme", "direct", "snapshot"),
)
def test_the_same_by_each_engine(shared: World, options: tuple[str, ...], start: str) -> None:
    """A module, a livepatch and BPF; what the guest is made of is the same."""
    run = shared.run("run", DIRECT, SHARED, *options, "--jobs", "1")
    assert run.end() == 0, run.told
    assert verdicts(run.events) == {f"{DIRECT}#1": "PASS", f"{SHARED}#1": "PASS"}
    (began,) = of_type(run.events, "vm_start")
    assert (began["engine"], began["start"], began["start_why"]) == (options[1], start, "")
    assert any("Linux version 6.12" in line for line in run.console("vm0"))
    shared.assert_nothing_left()


def test_restored_vms_are_not_the_same(direct: Direct, tmp_path: Path) -> None:
    """Neither are they in what is random, nor by name; and they know what time it is."""
    begins, lines = [], []
    for name in ("one", "two"):
        target = direct.target(tmp_path / name, direct.template)
        try:
            begins.append(dict(target.start()))
            now = time.time()
            argv = ["python3", "-c", f"{RANDOM}; import time; print(time.time())"]
            result = target.request({"op": "run", "argv": argv, "timeout": 60}, 10)["result"]
            lines.append(result["output"].split())
            assert abs(float(lines[-1][2]) - now) < 30
        finally:
            target.stop()
    assert [b["start"] for b in begins] == ["snapshot", "snapshot"]
    one, two = (b["identity"] for b in begins)
    for key in ("boot_id", "machine_id", "hostname"):
        assert one[key]
        assert one[key] != two[key]
    assert abs(two["time"] - one["time"]) < 60
    assert lines[0][0] != lines[1][0]
    assert lines[0][1] != lines[1][1]


def test_a_damaged_snapshot_costs_a_boot(direct: Direct, tmp_path: Path) -> None:
    """Found before it is used, it is made anew; found by QEMU, the VM boots. Both are said."""
    store, notes = Store(tmp_path / "cache"), list[str]()
    template = direct.other_template(store, notes)
    snapshot = template.get(lambda _: None)
    assert snapshot.made_s > 0
    with snapshot.memory.open("r+b") as memory:
        memory.seek(1 << 20)
        memory.write(b"anything else")
    again = direct.other_template(store, notes)
    found = again.get(lambda _: None)
    assert found.made_s > 0
    assert any("its memory has changed; making it anew" in note for note in notes), notes
    with found.state.open("r+b") as state:
        state.truncate(1000)
    target = direct.target(tmp_path / "console", again)
    try:
        began = target.start()
        assert began["start"] == "cold"
        assert began["start_why"].startswith("the snapshot cannot be used: ")
        argv = ["true"]
        reply = target.request({"op": "run", "argv": argv, "timeout": 60}, 12)
        assert reply["result"]["status"] == 0
    finally:
        target.stop()
    assert store.entries(KIND) == []
    store.close()


def test_ended_while_it_is_made(bare: World, direct: Direct) -> None:
    """Killed or interrupted: nothing is left, and no snapshot."""
    for number, status in ((signal.SIGKILL, -9), (signal.SIGINT, 130)):
        run = bare.start("run", OPS, "--engine", "direct", "--jobs", "2")
        run.event("note", text=f"{direct.kernel.release}: booting once, for a snapshot")
        run.qemu()
        os.kill(run.popen.pid, number)
        assert run.end() == status, run.told
        wait_for("the processes' end", lambda: not bare.processes())
    bare.assert_nothing_left()
    assert not any((bare.cache / "objects").glob(f"{KIND}/*"))


def test_two_runs_make_one(bare: World) -> None:
    runs = [bare.start("run", OPS, "--engine", "direct") for _ in range(2)]
    for run in runs:
        assert run.end() == 0, run.told
        assert [e["start"] for e in of_type(run.events, "vm_start")] == ["snapshot"]
    made = [of_type(run.events, "vm_start")[0]["made_s"] > 0 for run in runs]
    assert sorted(made) == [False, True]
    assert len(list((bare.cache / "objects").glob(f"{KIND}/*"))) == 1
    bare.assert_nothing_left()


def test_no_snapshot(direct: Direct, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old QEMU, no room: that is said, and no VM is booted for nothing."""
    store = Store(tmp_path / "cache")
    old = direct.other_template(store, [], (8, 1, 5))
    with pytest.raises(SnapshotError, match="snapshots need QEMU 8"):
        old.get(lambda _: pytest.fail("a VM was made"))
    monkeypatch.setattr("harness.run.template._ROOM", 1 << 60)
    template = direct.other_template(store, [])
    with pytest.raises(SnapshotError, match="no room for a snapshot: "):
        template.get(lambda _: pytest.fail("a VM was made"))
    assert list((tmp_path / "cache/tmp").iterdir()) == []
    store.close()


def test_a_failure_is_confirmed(shared: World) -> None:
    """6.12 held to 5.10's policy fails on each VM alike."""
    words = ("--engine", "direct", "--profile", "v5.10", "--jobs", "1")
    run = shared.run("run", OPS, SHARED, *words)
    assert run.end() == 1, run.told
    assert verdicts(run.events) == {
        f"{OPS}#1": "PASS",
        f"{SHARED}#1": "FAIL",
        f"{SHARED}#1#alone#cold": "FAIL",
    }
    assert [e["start"] for e in of_type(run.events, "vm_start")] == ["snapshot", "cold"]
    assert "1 failure in restored VMs confirmed in VMs that were booted" in run.out
    assert "2 scenarios: 1 FAIL, 1 PASS" in run.out
    shared.assert_nothing_left()


class Sabotaged(VmTarget):
    """A restored VM on which attaching some kind of thing is not what was asked for."""

    sabotages: Mapping[str, Sabotage] = {"ops": panic, "ipmodify": stick}

    def request(self, message: Mapping[str, Any], timeout: float) -> Mapping[str, Any]:
        """See Target."""
        ask: Ask = super().request
        for act in message.get("acts", ()):
            if sabotage := self.sabotages.get(act.get("attacher", "")):
                return sabotage(ask, message)
        return ask(message, timeout)


def sabotaged_run(direct: Direct, output: Path, names: Sequence[str], together: int) -> None:
    """Scenarios on one VM at a time; restored ones are sabotaged."""
    kernel, machine = direct.kernel, direct.setup.machine(direct.kernel)
    with Record(output) as record:

        def make(name: str) -> VmTarget:
            return Sabotaged(machine, "", record.console(name), direct.template)

        def make_cold(name: str) -> VmTarget:
            return VmTarget(machine, "", record.console(name))

        chosen = profile.choose(kernel.release, kernel.config, arch=kernel.arch)
        scenarios = catalogue.select(names)
        work = Work(kernel.release, chosen, make, scenarios, make_cold=make_cold)
        record.event("run_start", format=1, planned=len(names))
        Schedule([work], record, 1, together).run()
        record.event("run_end", interrupted=False)


def test_what_only_a_restored_vm_does(direct: Direct, tmp_path: Path) -> None:
    """The booted one decides, and the report says that they differ. SysRq comes by a BREAK."""
    sabotaged_run(direct, tmp_path / "out", [DIRECT, OPS, IPMODIFY], 1)
    events = read_events(tmp_path / "out/events.jsonl")
    assert verdicts(events) == {
        f"{DIRECT}#1": "PASS",
        f"{OPS}#1": "CRASH",
        f"{IPMODIFY}#1": "HANG",
        f"{OPS}#1#alone#cold": "PASS",
        f"{IPMODIFY}#1#alone#cold": "PASS",
    }
    starts = [e["start"] for e in of_type(events, "vm_start")]
    assert starts == ["snapshot", "snapshot", "cold"]
    (hung,) = of_type(events, "vm_end", verdict="HANG")
    assert hung["backtraces"][0].startswith("CPU 0: at ")
    assert SYSRQ in hung["backtraces"]
    model = read(tmp_path / "out")
    assert model.counts() == {"PASS": 3}
    assert exit_status(model) == 0
    told, on = "\n".join(state_of_run(model)), direct.kernel.release
    assert f"{OPS} on {on}: CRASH in a restored VM ({PANIC}), but PASS" in told
    assert f"{IPMODIFY} on {on}: HANG in a restored VM" in told


def test_what_a_group_does_only_in_a_restored_vm(direct: Direct, tmp_path: Path) -> None:
    """It is run again as a group, and only what goes wrong then counts."""
    sabotaged_run(direct, tmp_path / "out", BESIDE, LANES)
    events = read_events(tmp_path / "out/events.jsonl")
    assert verdicts(events) == {f"{name}#1#cold": "PASS" for name in BESIDE}
    assert [e["start"] for e in of_type(events, "vm_start")] == ["snapshot", "cold"]
    groups = [len(e["scenarios"]) for e in of_type(events, "group_start")]
    assert groups == [len(BESIDE)] * 2
    model = read(tmp_path / "out")
    assert exit_status(model) == 0
    (line,) = [text for text in state_of_run(model) if "restored" in text]
    assert f"CRASH in a restored VM ({PANIC}), not seen again in one that was booted" in line
