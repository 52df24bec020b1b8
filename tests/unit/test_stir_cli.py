# SPDX-License-Identifier: GPL-2.0-only
"""Stirring from the command line: the numbers, the CPUs of VMs, how many there are at a time."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from stir_kernel import StirringKernel

from harness.cli.main import main, parser
from harness.cli.run import boots, chosen
from harness.cli.setup import Setup
from harness.errors import UsageError
from harness.kernels.model import Kernel
from harness.kernels.store import Store
from harness.policy.profile import choose
from harness.run.record import Record
from harness.run.schedule import Schedule, Work
from harness.scenario import catalogue
from harness.scenario.steps import Scenario, Stir
from vm import qemu
from vm.machine import Accelerator

NAME = "consistency/ops/livepatch/on:cohabit_hot"


def picked(*argv: str) -> tuple[Scenario, ...]:
    return chosen(parser().parse_args(["run", *argv]))


def stir(*argv: str) -> Stir:
    (scenario,) = picked(*argv)
    assert scenario.stir is not None
    return scenario.stir


# --- options --------------------------------------------------------------------------------


def test_without_options_it_is_as_the_catalogue_has_it() -> None:
    assert picked(NAME) == catalogue.select([NAME])


def test_options_take_the_place_of_its_numbers() -> None:
    found = stir(NAME, "--calls", "7", "--patches", "8", "--seed", "9", "--widen-us", "10")
    assert (found.calls, found.patches, found.seed, found.widen_us) == (7, 8, 9, 10)
    assert (found.seconds, found.at_least) == (280, 0)


@pytest.mark.parametrize(("seconds", "limit"), [(30, 280), (180, 280), (1800, 1860)])
def test_seconds_are_the_least_and_raise_the_limit(seconds: int, limit: int) -> None:
    found = stir(NAME, "--seconds", str(seconds))
    assert (found.at_least, found.seconds) == (seconds, limit)


def test_a_file_is_overridden_too_and_others_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    (scenario,) = catalogue.select([NAME])
    path.write_text(json.dumps(scenario.to_json() | {"name": "mine"}), encoding="utf-8")
    plain, mine = picked("livepatch/stack-of-four", "--replay", str(path), "--seed", "3")
    assert (plain,) == catalogue.select(["livepatch/stack-of-four"])
    assert mine.stir is not None
    assert mine.stir.seed == 3


def test_without_hammers_nothing_is_called(tmp_path: Path) -> None:
    (scenario,) = catalogue.select([NAME])
    data = scenario.to_json()
    for key in ("hammers", "calls", "patches"):
        del data["steps"][1][key]
    path = tmp_path / "races.json"
    path.write_text(json.dumps(data | {"name": "mine"}), encoding="utf-8")
    found = stir("--replay", str(path), "--calls", "5", "--seconds", "6", "--widen-us", "7")
    assert (found.calls, found.patches, found.widen_us, found.at_least) == (0, 0, 0, 6)


def test_patches_are_not_wanted_where_there_are_none() -> None:
    found = stir(
        "consistency/direct-modify/livepatch/on:cohabit_hot", "--patches", "9", "--calls", "8"
    )
    assert (found.calls, found.patches) == (8, 0)


@pytest.mark.parametrize("option", ["--calls", "--patches", "--seconds", "--seed", "--widen-us"])
def test_an_option_that_no_scenario_heeds_is_a_mistake(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "livepatch/stack-of-four", option, "5"]) == 2
    said = capsys.readouterr().err
    assert f"{option} is for scenarios that stir, and none of these does" in said
    assert "cohabit list consistency" in said


@pytest.mark.parametrize("value", ["x", "-1", "1.5", ""])
def test_a_number_that_is_none(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["run", NAME, f"--calls={value}"])
    assert end.value.code == 2
    assert "is no number from 0 on" in capsys.readouterr().err


def test_windows_have_a_limit() -> None:
    with pytest.raises(UsageError, match="takes 100000 at most"):
        picked(NAME, "--widen-us", "100001")


def test_list_shows_them_by_glob_and_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "consistency"]) == 0
    names = capsys.readouterr().out.splitlines()
    assert names == [s.name for s in catalogue.select(["consistency/*"])]
    assert main(["list", "--steps", NAME]) == 0
    assert "stir by ops, hammering cohabit_hot" in capsys.readouterr().out
    assert main(["list", "--json", NAME]) == 0
    assert json.loads(capsys.readouterr().out)["cpus"] == 2


# --- virtual CPUs ---------------------------------------------------------------------------


def test_scenarios_with_other_wants_get_vms_of_their_own() -> None:
    found = boots(picked(NAME, "livepatch/stack-of-four"), "x86_64")
    assert {wants: [s.name for s in group] for wants, group in found.items()} == {
        ((), 1): ["livepatch/stack-of-four"],
        ((), 2): [NAME],
    }


def _setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpus: int = 1) -> Setup:
    setup = Setup(Store(tmp_path / "cache"), "tcg", cpus)
    old = qemu.Qemu(Path("/bin/true"), (7, 2, 0), "COHABIT_QEMU")
    chosen_accel = Accelerator("tcg", "asked for")
    monkeypatch.setattr(Setup, "accelerator", lambda *_: (chosen_accel, old))
    return setup


def test_an_old_qemu_is_refused_before_anything_boots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel.__new__(Kernel)
    object.__setattr__(kernel, "arch", "x86_64")
    object.__setattr__(kernel, "image", tmp_path / "image")
    setup = _setup(tmp_path, monkeypatch)
    with pytest.raises(UsageError) as caught:
        setup.machine(kernel, (), 2)
    assert str(caught.value) == (
        "QEMU 7.2.0 (COHABIT_QEMU) will not do for 2 virtual CPUs: before 8.1 it kills emulated "
        "guests with several that patch code\n"
        "  leave out scenarios that stir, or unset COHABIT_QEMU to have a newer one"
    )
    with pytest.raises(UsageError, match="leave out --cpus, or unset"):
        _setup(tmp_path, monkeypatch, 2).machine(kernel)


class Counted(StirringKernel):
    """Counts the CPUs of all that are there at a time; ``meeting``: all must be there at once."""

    meeting: threading.Barrier | None = None

    lock = threading.Lock()
    now = 0
    most = 0
    cpus = 1

    def start(self) -> Any:
        with Counted.lock:
            Counted.now += self.cpus
            Counted.most = max(Counted.most, Counted.now)
        if Counted.meeting:
            Counted.meeting.wait(30)
        return super().start()

    def stop(self) -> None:
        with Counted.lock:
            Counted.now -= self.cpus


def _run(directory: Path, cpus: tuple[int, ...], jobs: int, host: int, meeting: int = 0) -> int:
    """The most CPUs that VMs had at a time; works with so many CPUs for each VM.

    ``meeting``: so many VMs are there at once, or none of them goes on.
    """
    Counted.now = Counted.most = 0
    Counted.meeting = threading.Barrier(meeting) if meeting else None
    works = []
    profile = choose("6.12.0", {})
    for number, count in enumerate(cpus):
        (scenario,) = catalogue.select(["livepatch/stack-of-four" if count == 1 else NAME])
        release = f"6.12.{number}-model"

        def make(_vm: str, count: int = count, release: str = release) -> Counted:
            made = Counted(release, profile)
            made.cpus = count
            return made

        works.append(Work(release, profile, make, [scenario], cpus=count))
    with Record(directory) as record:
        Schedule(works, record, jobs, host_cpus=host).run()
    lines = (directory / "events.jsonl").read_text(encoding="utf-8").splitlines()
    ends = [e for e in map(json.loads, lines) if e["type"] == "scenario_end"]
    assert [e["verdict"] for e in ends] == ["PASS"] * len(cpus)
    return Counted.most


def test_vms_with_several_cpus_run_one_at_a_time_on_a_small_host(tmp_path: Path) -> None:
    assert _run(tmp_path / "a", (2, 2, 2), 3, 2) == 2
    assert _run(tmp_path / "b", (2, 1, 1, 2), 4, 2) == 2
    assert _run(tmp_path / "c", (2, 2), 2, 4, meeting=2) == 4


def test_one_runs_even_where_the_host_has_too_few(tmp_path: Path) -> None:
    assert _run(tmp_path, (2, 2), 2, 1) == 2


def test_vms_with_one_cpu_are_as_many_as_there_are_jobs(tmp_path: Path) -> None:
    assert _run(tmp_path, (1, 1, 1, 1), 4, 1, meeting=4) == 4
