# SPDX-License-Identifier: GPL-2.0-only
"""Files and lines for addresses (harness/kernels/decode.py), with stand-ins for the script.

What the real one prints was recorded from that of 7.2 on a kernel 7.2.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.errors import InfraError
from harness.kernels import decode
from harness.kernels.decode import Decoded, Decoder
from harness.kernels.model import Kernel
from vm import namespace

RELEASE = "7.2.12-cohabit"

SAID = {
    "bpf_tracing_link_release+0x45/0x50": (
        "bpf_tracing_link_release at kernel/bpf/syscall.c:3655 (discriminator 1)",
    ),
    "bpf_link_free+0x4b/0x100": ("bpf_link_free at kernel/bpf/syscall.c:3412",),
    "do_syscall_64+0x85/0x3f0": (
        "do_syscall_x64 at arch/x86/entry/syscall_64.c:66",
        "(inlined by) do_syscall_64 at arch/x86/entry/syscall_64.c:97",
    ),
    "cohabit_exit+0xf": ("cohabit_exit at /build/main.c:240",),
    "nop_func+0x3/0x10": ("nop_func at ??:?",),
    "__probestub_devres_log+0x8/0x10": (
        "__probestub_devres_log at /src/drivers/base/./trace.h:41",
    ),
}
SIZES = {"cohabit_exit+0xf": "/0x5a"}
REPORT = (
    "[    6.135321] WARNING: kernel/bpf/syscall.c:3655 at bpf_tracing_link_release+0x45/0x50, "
    "CPU#0: python3/55",
    "[    6.136319] CPU: 0 UID: 0 PID: 55 Comm: python3 Tainted: G           O        7.2.12",
    "[    6.137202] RIP: 0010:bpf_tracing_link_release+0x45/0x50",
    "[    6.138916] Call Trace:",
    "[    6.139761]  <TASK>",
    "[    6.139900]  bpf_tracing_link_release+0x45/0x50",
    "[    6.140217]  bpf_link_free+0x4c/0x100",
    "[    6.140415]  ? t_start+0xa6/0x140",
    "[    6.140500]  cohabit_exit+0x10/0x60 [cohabit 4a5525bf5531d582cf4b887f8a1d853519d65f38]",
    "[    6.140501]  virtio_probe+0x10/0x60 [virtio]",
    "[    6.140520]  0xffffffffc0004095",
    "[    6.140530]  bpf_prog_6deef7357e7b4530_hit+0x1a/0x2c",
    "[    6.140587]  do_syscall_64+0x86/0x3f0",
    "[    6.140884] RIP: 0033:0x7fe0793ab3a7",
)


def canned(directory: Path, said: dict[str, tuple[str, ...]] = SAID) -> Path:
    """A faddr2line that says this, and notes in ``asked`` what it was asked for."""
    lines = [f'echo "$@" >>{directory}/asked', "shift", 'for place; do case "$place" in']
    for place, text in said.items():
        told = [f"{place}{SIZES.get(place, '')}:", *text, ""]
        lines.append(f"{place}) printf '%s\\n' {' '.join(repr(line) for line in told)} ;;")
    lines += ['*) echo "no match for $place" >&2 ;;', "esac; done"]
    script = directory / "faddr2line"
    script.write_text("\n".join(lines) + "\n")
    return script


def bash(script: str) -> list[str]:
    return ["bash", "-c", script]


def decoder(script: Path, **more: Any) -> Decoder:
    options: dict[str, Any] = {
        "objects": {"": "vmlinux", "cohabit": "cohabit.ko"},
        "command": bash,
        "prefixes": {"/src/": "", "/build/": "kmods/"},
        **more,
    }
    return Decoder(str(script), **options)


def asked(directory: Path) -> set[str]:
    words = [line.split() for line in (directory / "asked").read_text().splitlines()]
    return {f"{line[0]} {place}" for line in words for place in line[1:]}


def test_addresses_become_files_and_lines(tmp_path: Path) -> None:
    done = decoder(canned(tmp_path)).decode([REPORT])
    assert done == Decoded(
        (
            (
                "[    6.135321] WARNING: kernel/bpf/syscall.c:3655 at bpf_tracing_link_release "
                "(kernel/bpf/syscall.c:3655), CPU#0: python3/55",
                REPORT[1],
                "[    6.137202] RIP: 0010:bpf_tracing_link_release (kernel/bpf/syscall.c:3655)",
                *REPORT[3:5],
                "[    6.139900]  bpf_tracing_link_release (kernel/bpf/syscall.c:3655)",
                "[    6.140217]  bpf_link_free (kernel/bpf/syscall.c:3412)",
                REPORT[7],
                "[    6.140500]  cohabit_exit (kmods/main.c:240) "
                "[cohabit 4a5525bf5531d582cf4b887f8a1d853519d65f38]",
                *REPORT[9:12],
                "[    6.140587]  do_syscall_64 "
                "(arch/x86/entry/syscall_64.c:66 arch/x86/entry/syscall_64.c:97)",
                REPORT[13],
            ),
        ),
        "",
    )


def test_what_is_asked_for(tmp_path: Path) -> None:
    """Each address once; that of a call, but of a fault itself; no guesses, no foreign names."""
    known = frozenset({"bpf_tracing_link_release", "bpf_link_free", "do_syscall_64", "t_start"})
    decoder(canned(tmp_path), known=known).decode([REPORT, REPORT, ["nothing"]])
    assert asked(tmp_path) == {
        "vmlinux bpf_tracing_link_release+0x45/0x50",
        "vmlinux bpf_link_free+0x4b/0x100",
        "vmlinux do_syscall_64+0x85/0x3f0",
        "cohabit.ko cohabit_exit+0xf",
    }
    number = len((tmp_path / "asked").read_text().split())
    assert number == len(asked(tmp_path)) + len((tmp_path / "asked").read_text().splitlines())


def test_two_reports_with_one_frame_in_different_roles(tmp_path: Path) -> None:
    """The same text is an instruction in one report and a return address in the other."""
    said = {
        "f+0x45/0x50": ("f at kernel/a.c:10",),
        "f+0x44/0x50": ("f at kernel/a.c:9",),
    }
    reports = [["RIP: 0010:f+0x45/0x50", " f+0x45/0x50"], [" f+0x45/0x50"]]
    done = decoder(canned(tmp_path, said)).decode(reports)
    assert done.reports == (
        ("RIP: 0010:f (kernel/a.c:10)", " f (kernel/a.c:10)"),
        (" f (kernel/a.c:9)",),
    )


def test_what_the_script_does_not_know_stays(tmp_path: Path) -> None:
    lines = (" nop_func+0x4/0x10", " gone+0x1/0x2", " __probestub_devres_log+0x9/0x10")
    done = decoder(canned(tmp_path)).decode([lines])
    assert done.reports == ((*lines[:2], " __probestub_devres_log (drivers/base/trace.h:41)"),)


def test_one_of_two_is_no_answer(tmp_path: Path) -> None:
    """Two functions of the same name and size: both are printed."""
    said = {"show+0x4/0x10": ("show at a.c:1", "", "show+0x4/0x10:", "show at b.c:2")}
    done = decoder(canned(tmp_path, said)).decode([[" show+0x5/0x10"]])
    assert done.reports == ((" show+0x5/0x10",),)
    assert done.note == "none of 1 addresses was found"


def test_sizes_tell_functions_of_a_name_apart(tmp_path: Path) -> None:
    said = {"show+0x4/0x10": ("show at a.c:1",), "show+0x4/0x20": ("show at b.c:2",)}
    done = decoder(canned(tmp_path, said)).decode([[" show+0x5/0x20", " show+0x5/0x10"]])
    assert done.reports == ((" show (b.c:2)", " show (a.c:1)"),)


def test_the_start_of_a_function_is_itself(tmp_path: Path) -> None:
    said = {"f+0x0/0x50": ("f at kernel/a.c:8",)}
    done = decoder(canned(tmp_path, said)).decode([[" f+0x0/0x50"]])
    assert done.reports == ((" f (kernel/a.c:8)",),)


def test_nothing_to_ask_for_runs_nothing(tmp_path: Path) -> None:
    done = decoder(canned(tmp_path)).decode([["no address", "x+0x1/0x2 [elsewhere]"], []])
    assert done == Decoded((("no address", "x+0x1/0x2 [elsewhere]"), ()), "")
    assert not (tmp_path / "asked").exists()


def test_what_a_guest_prints_is_no_command(tmp_path: Path) -> None:
    lines = ["$(touch x)+0x1/0x2", "`id`+0x1/0x2", "a;id+0x1/0x2", 'f"+0x1/0x2', "a$b+0x2/0x3"]
    decoder(canned(tmp_path)).decode([lines])
    assert asked(tmp_path) == {"vmlinux id+0x0/0x2", "vmlinux a$b+0x1/0x3"}


def test_a_script_that_fails_is_told(tmp_path: Path) -> None:
    script = tmp_path / "faddr2line"
    script.write_text("echo 'ERROR: CONFIG_DEBUG_INFO not enabled' >&2; exit 1\n")
    done = decoder(script).decode([REPORT])
    assert done.reports == (REPORT,)
    assert "none of 5 addresses was found" in done.note
    assert "CONFIG_DEBUG_INFO not enabled" in done.note


def test_patience_has_an_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "never")
    stuck = decoder(canned(tmp_path), command=lambda _: bash(f"read line <{tmp_path}/never"))
    done = stuck.decode([REPORT], patience=0.0)
    assert done.reports == (REPORT,)
    assert done.note == "after 0 s 0 of 5 addresses were found"


def test_what_was_cut_short_is_not_believed() -> None:
    said = ["object ", "f+0x1/0x9:", "g at a.c:1", "(inlined by) f at a.c:2", "", "h+0x1/0x9:",
            "i at a.c:3"]  # fmt: skip
    reader = Decoder("", {}, bash)
    assert dict(reader._read(said, cut=True)) == {("", "f", 1, 9): "a.c:1 a.c:2"}
    assert dict(reader._read(said, cut=False)) == {
        ("", "f", 1, 9): "a.c:1 a.c:2", ("", "h", 1, 9): "a.c:3",
    }  # fmt: skip


def test_an_interrupt_leaves_nothing_running(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "never")
    script = f"echo $$ >{tmp_path}/pid; kill -INT {os.getpid()}; read line <{tmp_path}/never"
    with pytest.raises(KeyboardInterrupt):
        decoder(canned(tmp_path), command=lambda _: bash(script)).decode([["f+0x1/0x2"]])
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_missing_program_has_words(tmp_path: Path) -> None:
    gone = decoder(canned(tmp_path), command=lambda _: ["no-such-program"])
    with pytest.raises(InfraError, match="no-such-program was not found"):
        gone.decode([REPORT])


# --- a kernel -------------------------------------------------------------------------------

SOURCE = """\
int helper(int x);
static inline __attribute__((always_inline)) int inner(int x)
{
	return helper(x) + 1;
}
int outer(int x)
{
	x += 3;
	x = inner(x);
	x ^= helper(7);
	return x;
}
"""
#: The kernel's, without its care for sizes and sections.
STAND_IN = """\
object=$1; shift
for place; do
    name=${place%+*} offset=${place#*+}; offset=${offset%/*}
    base=$(nm "$object" | awk -v name="$name" '$3 == name {print $1}')
    echo "$name+$offset/0x100:"
    addr2line -fpie "$object" "$(printf %x $((0x$base + offset)))"
    echo
done
"""


def compiled(target: Path, source: str) -> None:
    """An object with debug info whose source is ``source``."""
    target.parent.mkdir(parents=True, exist_ok=True)
    code = target.with_suffix(".c")
    code.write_text(SOURCE)
    words = ["gcc", "-g", "-O1", "-c", f"-ffile-prefix-map={code}={source}", "-o"]
    subprocess.run([*words, str(target), str(code)], check=True)
    code.unlink()


def behind_first_call(target: Path) -> int:
    """The offset in outer() of the instruction behind its first call."""
    words = ["objdump", "-d", "--no-show-raw-insn", "--disassemble=outer", str(target)]
    shown = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    rows = [(int(m[1], 16), m[2]) for m in re.finditer(r"^ +([0-9a-f]+):\s+(\S+)", shown, re.M)]
    calls = [n for n, (_, what) in enumerate(rows) if what.startswith("call")]
    return rows[calls[0] + 1][0] - rows[0][0]


def kernel(tree: Path) -> Kernel:
    boot = tree / "boot"
    boot.mkdir(parents=True)
    (boot / f"System.map-{RELEASE}").write_text("ffffffff81000000 T outer\n")
    (tree / f"usr/lib/modules/{RELEASE}/kernel/net").mkdir(parents=True)
    return Kernel(
        "tree:.", RELEASE, "x86_64", (7, 2), boot / "vmlinuz", tree, None,
        boot / f"System.map-{RELEASE}", "a tree", True,
    )  # fmt: skip


def test_what_a_kernel_needs(tmp_path: Path) -> None:
    plain = kernel(tmp_path)
    assert "no debug info" in decode.obstacle(plain)
    debug = decode.debug_info(plain)
    debug.parent.mkdir(parents=True)
    debug.touch()
    assert "no scripts/faddr2line" in decode.obstacle(plain)
    (tmp_path / decode.DEBUG / "scripts").mkdir()
    (tmp_path / decode.DEBUG / "scripts/faddr2line").touch()
    assert decode.obstacle(plain) == ""


def test_a_kernel_and_its_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a root file system of its own, for which the host's /usr stands in."""
    root, kmods, mountpoint = tmp_path / "root", tmp_path / "kmods", tmp_path / "mnt"
    for directory in (root / "usr", mountpoint):
        directory.mkdir(parents=True)
    for name in ("bin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    real = namespace.chroot_command

    def with_usr(*args: Any, binds: Sequence[Any], **more: Any) -> list[str]:
        return real(*args, binds=[(Path("/usr"), "usr", False), *binds], **more)

    monkeypatch.setattr(namespace, "chroot_command", with_usr)
    ours = kernel(tmp_path / "tree")
    compiled(decode.debug_info(ours), "/src/kernel/a.c")
    compiled(kmods / "cohabit_x.ko", "/build/x.c")
    compiled(ours.modules / "kernel/net/a-b.ko", "/src/net/b.c")
    scripts = ours.tree / decode.DEBUG / "scripts"
    scripts.mkdir()
    (scripts / "faddr2line").write_text(STAND_IN)
    offset = behind_first_call(kmods / "cohabit_x.ko")
    frame = f" outer+{offset:#x}/0x100"
    made = decode.of_kernel(ours, kmods, root, mountpoint)
    done = made.decode([[frame, f"{frame} [cohabit_x]", f"{frame} [a_b]", f"{frame} [c]"]])
    # The call is inlined, and the instruction behind it is another statement's.
    assert done.reports == (
        (
            " outer (kernel/a.c:4 kernel/a.c:9)",
            " outer (kmods/x.c:4 kmods/x.c:9) [cohabit_x]",
            " outer (net/b.c:4 net/b.c:9) [a_b]",
            f"{frame} [c]",
        ),
    )
    assert done.note == ""
    assert list(mountpoint.iterdir()) == []
