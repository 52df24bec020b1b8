# SPDX-License-Identifier: GPL-2.0-only
"""The compiler of kernel builds (harness/kernels/tools/cc): what ccache may answer for."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

CC = Path(__file__).resolve().parents[2] / "harness/kernels/tools/cc"


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A ccache and a gcc that say who they are, and what they were asked."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for name in ("ccache", "gcc", "aarch64-linux-gnu-gcc"):
        path = directory / name
        path.write_text(f'#!/bin/sh\necho {name} "$@"\n', encoding="ascii")
        path.chmod(0o755)
    return directory


@pytest.mark.parametrize(
    ("name", "text", "cached"),
    [
        ("fork.c", "int f;", True),
        # ccache sees no change of the file that these take in.
        ("piggy.S", '.incbin "vmlinux.bin.lz4"', False),
        ("entry.S", "nop", False),
        ("configs.c", 'asm(".incbin \\"config_data.gz\\"");', False),
    ],
)
def test_what_takes_in_other_files_is_compiled_anew(
    tmp_path: Path, programs: Path, name: str, text: str, cached: bool
) -> None:
    source = tmp_path / name
    source.write_text(text, encoding="ascii")
    words = ["-Wp,-MMD,x.o.d", "-I.", "-c", "-o", "x.o", str(source)]
    env = {"PATH": f"{programs}:/usr/bin:/bin"}
    done = subprocess.run([CC, *words], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.split() == [*(["ccache"] if cached else []), "gcc", *words]


def test_its_answers_are_gccs(programs: Path) -> None:
    env = {"PATH": f"{programs}:/usr/bin:/bin"}
    done = subprocess.run([CC, "--version"], capture_output=True, text=True, check=True, env=env)
    assert done.stdout == "ccache gcc --version\n"


@pytest.mark.parametrize(("name", "first"), [("fork.c", "ccache"), ("entry.S", None)])
def test_the_compiler_of_a_cross_build(
    tmp_path: Path, programs: Path, name: str, first: str | None
) -> None:
    (tmp_path / name).write_text("", encoding="ascii")
    env = {"PATH": f"{programs}:/usr/bin:/bin", "CROSS_COMPILE": "aarch64-linux-gnu-"}
    words = [CC, "-c", str(tmp_path / name)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=env)
    called = [*([first] if first else []), "aarch64-linux-gnu-gcc"]
    assert done.stdout.split() == [*called, "-c", str(tmp_path / name)]
