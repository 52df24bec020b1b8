# SPDX-License-Identifier: GPL-2.0-only
"""The architectures by their names, and on the command line."""

from __future__ import annotations

import argparse
import platform

import pytest

from harness.arch import ARCHES, ARM64, X86_64, host, named
from harness.cli.setup import DEFAULT_KERNELS, add_arch_option, one_arch
from harness.errors import InfraError, UsageError


@pytest.mark.parametrize("name", ["arm64", "aarch64"])
def test_any_name_will_do(name: str) -> None:
    assert named(name) is ARM64


def test_an_unknown_one_names_the_known() -> None:
    with pytest.raises(UsageError, match="'riscv64' is no architecture") as caught:
        named("riscv64")
    assert "x86_64, arm64" in caught.value.remedy


def test_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    for arch in ARCHES.values():
        monkeypatch.setattr(platform, "machine", lambda arch=arch: arch.machine)
        assert host() is arch
        assert [other for other in ARCHES.values() if other.native] == [arch]
    monkeypatch.setattr(platform, "machine", lambda: "s390x")
    with pytest.raises(InfraError, match="does not run on s390x"):
        host()


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_arch_option(parser)
    return parser.parse_args(words)


def test_one_or_both() -> None:
    assert one_arch(parsed()) is None
    assert one_arch(parsed("--arch", "arm64")) is ARM64
    both = parsed("--arch", "x86_64,arm64,aarch64")
    assert both.arches == (X86_64, ARM64)
    with pytest.raises(UsageError, match="one architecture at a time"):
        one_arch(both)
    with pytest.raises(argparse.ArgumentError, match="'mips' is no architecture"):
        parsed("--arch", "arm64,mips")


def test_each_has_a_default_kernel() -> None:
    assert DEFAULT_KERNELS.keys() == ARCHES.keys()
