# SPDX-License-Identifier: GPL-2.0-only
"""Which options a configuration lost, and why, from small Kconfig files."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.arch import ARCHES
from harness.kernels import build, kconfig
from harness.kernels.kconfig import Lost


def test_the_last_word_counts() -> None:
    text = 'CONFIG_A=y\n# CONFIG_A is not set\nCONFIG_B="x y"\n# a remark\nCONFIG_C=m\n'
    assert kconfig.options(text) == {"CONFIG_A": "n", "CONFIG_B": '"x y"', "CONFIG_C": "m"}


def test_lost() -> None:
    wanted = {"CONFIG_A": "y", "CONFIG_B": "m", "CONFIG_C": "n", "CONFIG_D": "n", "CONFIG_E": "y"}
    config = {"CONFIG_A": "m", "CONFIG_B": "y", "CONFIG_C": "y"}
    assert kconfig.lost(wanted, config) == [
        Lost("CONFIG_A", "y", "m"),
        Lost("CONFIG_C", "n", "y"),
        Lost("CONFIG_E", "y", "n"),
    ]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "kernel/livepatch").mkdir(parents=True)
    (tmp_path / "kernel/livepatch/Kconfig").write_text(
        "config HAVE_LIVEPATCH\n\tbool\n\n"
        "if NEVER\nconfig OTHER\n\tbool\nendif\n"
        "if MODULES\n"
        'config LIVEPATCH\n\tbool "Kernel Live Patching"\n'
        "\tdepends on DYNAMIC_FTRACE_WITH_REGS || \\\n\t\tDYNAMIC_FTRACE_WITH_ARGS\n"
        "\tdepends on SYSFS\n\thelp\n\t  Needs LIVEPATCH, of course.\nendif\n"
        "config LAST\n\tbool\n\tdepends on LIVEPATCH"
    )
    for arch in ("x86", "s390"):
        (tmp_path / "arch" / arch).mkdir(parents=True)
        (tmp_path / "arch" / arch / "Kconfig").write_text(
            f"menuconfig THERE\n\tbool\n\tdepends on IN_{arch.upper()}\n"
        )
    return tmp_path


def test_what_stood_in_the_way(source: Path) -> None:
    config = {"CONFIG_MODULES": "y", "CONFIG_DYNAMIC_FTRACE_WITH_ARGS": "n", "CONFIG_SYSFS": "y"}
    assert kconfig.obstacles("CONFIG_LIVEPATCH", source, "x86", config) == (
        "kernel/livepatch/Kconfig:9 depends on DYNAMIC_FTRACE_WITH_REGS || "
        "DYNAMIC_FTRACE_WITH_ARGS (not set: DYNAMIC_FTRACE_WITH_REGS, DYNAMIC_FTRACE_WITH_ARGS)"
    )
    assert kconfig.obstacles("CONFIG_LAST", source, "x86", config) == (
        "kernel/livepatch/Kconfig:17 depends on LIVEPATCH (not set: LIVEPATCH)"
    )


def test_what_the_architecture_has_not(tmp_path: Path) -> None:
    (tmp_path / "kernel").mkdir()
    (tmp_path / "kernel/Kconfig").write_text(
        "config LIVEPATCH\n\tbool\n\tdepends on HAVE_LIVEPATCH && SYSFS\n"
        "config DIRECT\n\tbool\n\tdepends on HAVE_DIRECT || HAVE_OTHER\n"
        "config PLAIN\n\tbool\n\tdepends on SYSFS\n"
    )
    (tmp_path / "arch/x86").mkdir(parents=True)
    (tmp_path / "arch/x86/Kconfig").write_text("config X86\n\tselect HAVE_LIVEPATCH\n")
    (tmp_path / "arch/arm64").mkdir()
    (tmp_path / "arch/arm64/Kconfig").write_text("config ARM64\n\tselect HAVE_DIRECT if ARGS\n")

    def needed(option: str, srcarch: str, **config: str) -> str:
        values = {f"CONFIG_{name}": value for name, value in config.items()}
        return kconfig.out_of_reach(f"CONFIG_{option}", tmp_path, srcarch, values)

    assert needed("LIVEPATCH", "arm64") == "HAVE_LIVEPATCH"
    assert needed("LIVEPATCH", "x86", HAVE_LIVEPATCH="y") == "", "SYSFS can be had"
    assert needed("DIRECT", "arm64") == "", "where there is ARGS"
    assert needed("DIRECT", "x86") == "HAVE_DIRECT, HAVE_OTHER"
    assert needed("PLAIN", "arm64") == ""


@pytest.mark.parametrize(
    ("condition", "met"),
    [
        ("A", True),
        ("!A", False),
        ("B || A", True),
        ("A && (B || !C)", True),
        ("A && (B || C = y)", False),
        ("M = m && A!=n", True),
        ("64BIT", True),
        ("A if B", True),
        ("(A", True),
    ],
)
def test_conditions(condition: str, met: bool) -> None:
    config = {"CONFIG_A": "y", "CONFIG_M": "m", "CONFIG_64BIT": "y"}
    assert kconfig.holds(condition, config) is met


def test_blocks_and_architectures(source: Path) -> None:
    assert kconfig.obstacles("CONFIG_OTHER", source, "x86", {}) == (
        "kernel/livepatch/Kconfig:5 depends on NEVER (not set: NEVER)"
    )
    assert kconfig.obstacles("CONFIG_THERE", source, "x86", {}) == (
        "arch/x86/Kconfig:1 depends on IN_X86 (not set: IN_X86)"
    )


def test_nothing_to_tell(source: Path) -> None:
    assert kconfig.obstacles("CONFIG_NONE", source, "x86", {}) == "this tree has no such option"
    assert kconfig.obstacles("CONFIG_HAVE_LIVEPATCH", source, "x86", {}).endswith(
        "only other options select it"
    )


#: What virtme-ng attaches by where there is no PCI, and only arm64 needs.
BACK = {"x86_64": set[str](), "arm64": {"CONFIG_VIRTIO_MMIO"}}


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("flavour", build.FLAVOURS)
def test_fragments_agree_with_each_other(flavour: str, arch: str) -> None:
    """A flavour adds; but for the kernel's name it takes nothing back."""
    common = kconfig.options(build.FRAGMENT.read_text(encoding="utf-8"))
    both = kconfig.options(build.Options(flavour, arch=arch).fragments())
    changed = {name for name in common if both[name] != common[name]}
    assert changed <= {"CONFIG_LOCALVERSION", *BACK[arch]}
    assert all(name.startswith("CONFIG_") for name in both)


def test_kernels_are_told_apart_by_their_names() -> None:
    each = [build.Options(flavour, arch=arch) for flavour in build.FLAVOURS for arch in ARCHES]
    names = [kconfig.options(options.fragments())["CONFIG_LOCALVERSION"] for options in each]
    assert names == [
        *('"-cohabit"', '"-cohabit-arm64"'),
        *('"-cohabit-debug"', '"-cohabit-debug-arm64"'),
        *('"-cohabit-kasan"', '"-cohabit-kasan-arm64"'),
    ]
    assert [options.told for options in each[:2]] == ["plain", "plain, arm64"]


def test_the_users_file_has_the_last_word() -> None:
    extra = build.Options(extra="# CONFIG_SMP is not set\n").fragments()
    assert kconfig.options(extra)["CONFIG_SMP"] == "n"
