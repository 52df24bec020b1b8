# SPDX-License-Identifier: GPL-2.0-only
"""`cohabit explain` as a command: where texts come from, mistakes, what goes out."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_explain import GOLDEN, golden

from harness.cli import explain as command
from harness.cli.main import main

REPOSITORY = Path(__file__).resolve().parents[2]
REGISTRY = REPOSITORY / "tests" / "data" / "registry"
BOTH = str(REGISTRY / "6.12.117-amd64-livepatch_bpf.txt")


def call(*argv: str) -> int:
    """The exit status, argparse's own included."""
    try:
        return main(["explain", *argv])
    except SystemExit as end:
        assert isinstance(end.code, int)
        return end.code


def program(*argv: str, text: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """The whole program, with a text on its standard input."""
    return subprocess.run(
        [sys.executable, "-m", "harness.cli", "explain", *argv],
        cwd=REPOSITORY, input=text, capture_output=True, check=False,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


@pytest.mark.parametrize("name", GOLDEN)
def test_a_file_and_standard_input_are_alike(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(str(REGISTRY / f"{name}.txt")) == 0
    output = capsys.readouterr()
    assert output.err == ""
    assert output.out
    if name == GOLDEN[0]:
        for argv in ((), ("-",)):
            done = program(*argv, text=golden(name))
            assert (done.returncode, done.stdout.decode(), done.stderr) == (0, output.out, b"")


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(BOTH, "--json", "--what-if", "livepatch") == 0
    data = json.loads(capsys.readouterr().out)
    (record,) = data["records"]
    assert record["function"] == "cmdline_proc_show"
    assert record["module"] is None
    assert record["count"] == 2
    assert list(record["flags"]) == ["R", "I", "D", "M"]
    assert [user["kind"] for user in record["users"]] == ["bpf", "ipmodify"]
    (answer,) = record["what_if"]["livepatch"]
    assert answer["kernels"] == [{"arch": "x86-64", "from": "6.4", "to": "7.3"}]
    assert answer["answer"] == "depends"
    assert answer["cases"][1]["errno"] == 16
    assert answer["cases"][1]["errno_name"] == "EBUSY"
    assert answer["cases"][1]["rule"] == "one-ipmodify"
    assert data["rules"]["one-ipmodify"]["source"].startswith("kernel/trace/ftrace.c")
    assert data["kernels"] == {"x86-64": {"from": "6.4", "to": "7.3"}}


def test_options(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--release", "6.12.117+deb13-cloud-amd64", "--arch", "x86-64")
    assert call(BOTH, *options, "--function", "vfs_*", "--function", "nobody_here") == 0
    output = capsys.readouterr().out
    assert "0 of 1 function, as printed by Linux 6.12 on x86-64" in output
    assert "nothing is called vfs_*" in output
    assert "\nnobody_here\n  not in the registry: nothing is attached\n" in output


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("missing",), "cannot read missing: No such file"),
        (("/",), "cannot read /: Is a directory"),
        (("/proc/self/mem",), "cannot read /proc/self/mem"),
        ((BOTH, "--what-if", "direct-refuse"), "--what-if"),
        ((BOTH, "--release", "soon"), "'soon' is not a kernel release"),
        ((BOTH, "--release", "4.19"), "older than direct calls"),
        ((BOTH, "--arch", "riscv"), "--arch"),
        ((BOTH, "--kernel", "debian:6.12"), "--kernel has a text of its own"),
        ((BOTH, "--with", "livepatch"), "add --kernel REF"),
        ((sys.executable,), "this is no text of ftrace's function registry"),
    ],
)
def test_mistakes(argv: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*argv) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert words in output.err


def test_endless_input() -> None:
    with Path("/dev/zero").open("rb") as zero:
        done = subprocess.run(
            [sys.executable, "-m", "harness.cli", "explain"],
            cwd=REPOSITORY, stdin=zero, capture_output=True, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert b"more than 32 MB" in done.stderr


def test_reader_that_has_seen_enough(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes(golden("6.12.117-amd64-function_glob") * 500)
    line = f"{sys.executable} -m harness.cli explain {file} --json | head -c 10"
    done = subprocess.run(["sh", "-c", line], cwd=REPOSITORY, capture_output=True, check=False)
    assert (done.stdout, done.stderr) == (b'{"function', b"")


# --- this machine -----------------------------------------------------------------------------


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Standard input is a terminal."""
    primary, secondary = os.openpty()
    with os.fdopen(secondary) as keyboard:
        monkeypatch.setattr(sys, "stdin", keyboard)
        yield
    os.close(primary)


def test_at_a_terminal_it_is_this_machine_s_own(
    terminal: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    file = tmp_path / "enabled_functions"
    file.write_bytes(b"")
    monkeypatch.setattr(command, "LOCAL", (tmp_path / "missing", file))
    assert call("--json", "--function", "vfs_read", "--what-if", "ops") == 0
    data = json.loads(capsys.readouterr().out)
    first, second = platform.release().split(".")[:2]
    for kernel in data["kernels"].values():
        assert kernel == {"from": f"{first}.{second}", "to": f"{first}.{second}"}


def test_where_there_is_none(
    terminal: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(command, "LOCAL", (tmp_path / "none", tmp_path / "nor there"))
    assert call() == 3
    assert capsys.readouterr().err.splitlines() == [
        f"cohabit: cannot read {tmp_path}/none: No such file or directory",
        "  as root: mount -t tracefs tracefs /sys/kernel/tracing; or give a file: "
        "cohabit explain FILE",
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_where_it_is_for_root(
    terminal: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    file = tmp_path / "enabled_functions"
    file.write_bytes(b"")
    file.chmod(0)
    monkeypatch.setattr(command, "LOCAL", (file,))
    assert call() == 3
    assert f"sudo cat {file} | cohabit explain --release" in capsys.readouterr().err


def test_colours_are_for_terminals_only() -> None:
    assert b"\x1b" not in program(BOTH, "--what-if", "livepatch").stdout
