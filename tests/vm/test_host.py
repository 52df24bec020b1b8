# SPDX-License-Identifier: GPL-2.0-only
"""The host is at fault, or the command line: one message, the right status, nothing left."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Warm
from world import OPS, REPOSITORY, Running, World, assert_booted, of_type, verdicts, wait_for
from world import world as new_world


def assert_refused(run: Running, status: int, *texts: str) -> None:
    """It ended with one message that has these texts, and booted nothing."""
    assert run.end() == status, run.told
    message = run.err[run.err.index("cohabit: ") :]
    for text in texts:
        assert text in message, run.told
    assert run.err.count("cohabit: ") == 1, run.told
    assert "Traceback" not in run.err
    assert not of_type(run.events, "vm_start")
    run.world.assert_nothing_left()


def test_module_that_does_not_compile(world: World) -> None:
    world.repository = world.path / "repository"
    for name in ("harness", "vm", "kmods", "bpf_progs"):
        shutil.copytree(
            REPOSITORY / name,
            world.repository / name,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    source = world.repository / "kmods/ops.c"
    text = source.read_text(encoding="utf-8")
    source.write_text(f"{text}\nint cohabit_broken(void) {{ return nowhere; }}\n", encoding="utf-8")
    line = text.count("\n") + 2
    run = world.run("run", OPS)
    assert_refused(run, 3, "building the modules for 6.12.", "the full log is in ")
    assert re.search(rf"\bops\.c:{line}:\d+: error: .*nowhere", run.err), run.told
    log = Path(run.err.rpartition("the full log is in ")[2].strip())
    assert "cohabit_broken" in log.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("reference", "texts"),
    [
        ("6.12", ("'6.12' is no kernel reference", "debian:6.12")),
        ("path:/nonexistent", ("/nonexistent is not a directory",)),
        ("path:{tmp}", ("no x86_64 or arm64 kernel image in {tmp}", "boot/vmlinuz-*")),
    ],
    ids=("form", "missing", "empty"),
)
def test_no_such_kernel(
    world: World, tmp_path: Path, reference: str, texts: tuple[str, ...]
) -> None:
    def filled(text: str) -> str:
        return text.format(tmp=tmp_path)

    run = world.run("run", OPS, "--kernel", filled(reference), kernel=False)
    assert_refused(run, 2, *(filled(text) for text in texts))


@pytest.mark.full
def test_no_such_release(world: World) -> None:
    """Needs the network: only the archive knows what there is."""
    for reference, near in (("debian:9.9", "there are "), ("debian:6.12.9999+deb13", "near it: ")):
        run = world.run("run", OPS, "--kernel", reference, kernel=False)
        assert_refused(run, 2, reference, near, "6.12")


# A file system of its own for one directory, which only this run sees: the caller's
# words are the size, the directory, what to do first, and the command.
_SMALL = """
mount -t tmpfs -o "size=$1" none "$2" || exit 99
eval "$3" || exit 98
dir=$2; shift 3
"$@"
status=$?
[ -z "$(find "$dir/tmp" -mindepth 1 2>/dev/null)" ] || exit 97
exit $status
"""


def small(world: World, size: str, directory: Path, first: str = ":") -> None:
    """Lets the next run find a small file system at ``directory``."""
    directory.mkdir(exist_ok=True)
    user = () if os.geteuid() == 0 else ("-r",)
    world.prefix = (
        "unshare", *user, "-m", "sh", "-c", _SMALL, "sh", size, str(directory), first,
    )  # fmt: skip


def test_no_room_for_a_cache(empty_world: World) -> None:
    """Told before anything is fetched."""
    small(empty_world, "20m", empty_world.cache)
    run = empty_world.run("run", OPS)
    text = f"room in {empty_world.cache}"
    assert_refused(run, 3, f"this machine lacks {text}", "COHABIT_CACHE", "cohabit kernels prune")


def test_room_runs_out_while_building(world: World, warm: Warm, tmp_path: Path) -> None:
    """There is room as such, but only for a few files more than the sources are."""
    shutil.rmtree(world.cache / "objects/modules")
    saved = tmp_path / "cache"
    shutil.copytree(world.cache, saved, symlinks=True)
    files = 20 + len(list((REPOSITORY / "kmods").iterdir()))
    fill = (
        f'cp -a "{saved}/." "$2" && '
        'used=$(df --output=iused "$2" | tail -n 1) && '
        f'mount -o "remount,nr_inodes=$((used + {files}))" "$2"'
    )
    small(world, "2g", world.cache, fill)
    run = world.run("run", OPS)
    assert_refused(run, 3, f"no room for the cache in {world.cache}", "cohabit kernels prune")
    assert f"building the kernel modules for {warm.kernel.release}" in run.err


def test_room_for_the_record_runs_out(world: World) -> None:
    """While the guest boots: its console is more than that."""
    small(world, "16k", world.path / "out/0")
    run = world.run("run", OPS)
    assert run.end() == 3, run.told
    assert "vm0: booting" in run.err
    assert (
        f"cohabit: cannot record the console in {run.output}/console-vm0.log: No space" in run.err
    )
    assert run.err.count("cohabit: ") == 1
    assert "Traceback" not in run.err
    world.assert_nothing_left()


@contextlib.contextmanager
def ordinary_user(home: Path) -> Iterator[str]:
    """Makes a user with what an ordinary one has; it is gone afterwards."""
    name = f"cohabit-t{os.getpid()}"
    first = 3_000_000_000
    add = ["useradd", "--no-create-home", "--home-dir", str(home), "--shell", "/bin/sh"]
    add += ["--no-user-group", "--gid", "nogroup", name]
    subprocess.run(add, check=True)
    try:
        ids = f"{first}-{first + 65535}"
        grant = ["usermod", "--add-subuids", ids, "--add-subgids", ids, name]
        subprocess.run(grant, check=True)
        yield name
    finally:
        subprocess.run(["userdel", name], check=True)


_NOT_COPIED = shutil.ignore_patterns(".git", ".*_cache", "__pycache__", "mypy*", "ruff*")


def environment_for(user: str, world: World) -> None:
    """Gives the world a copy of repository and packages, and a Python that the user may run.

    Ours may lie in a home directory that nobody else can enter.
    """
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    directory, world.repository = world.path / "python", world.path / "repository"
    packages = directory / "lib" / version / "site-packages"
    shutil.copytree(REPOSITORY, world.repository, ignore=_NOT_COPIED)
    shutil.copytree(sysconfig.get_path("purelib"), packages, ignore=_NOT_COPIED)
    (directory / "bin").mkdir()
    python = directory / "bin/python3"
    for script in Path(sys.executable).parent.glob("v[ni][gr]*"):
        body = script.read_text(encoding="utf-8").partition("\n")[2]
        (directory / "bin" / script.name).write_text(f"#!{python}\n{body}", encoding="utf-8")
        (directory / "bin" / script.name).chmod(0o755)
    world.python = str(python)
    for base in (Path(sys.executable).resolve(), *Path("/usr").glob(f"bin/{version}")):
        (directory / "pyvenv.cfg").write_text(f"home = {base.parent}\n", encoding="utf-8")
        python.unlink(missing_ok=True)
        python.symlink_to(base)
        try:
            subprocess.run(
                [str(python), "-c", "import harness.cli.main, virtme_ng.run"],
                cwd=world.repository, user=user, group="nogroup", extra_groups=[], check=True,
                env={"PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True,
            )  # fmt: skip
        except (OSError, subprocess.CalledProcessError):
            continue
        return
    pytest.skip(f"there is no {version} that another user may run")


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user: every test here shows it")
def test_ordinary_user(warm: Warm) -> None:
    """With a cache of their own, in which everything is theirs."""
    with new_world(warm.options) as world, ordinary_user(world.path / "home") as user:
        world.path.chmod(0o755)
        environment_for(user, world)
        warm.clone(world.cache, ("kernel", "rootfs", "qemu", "modules"))
        subprocess.run(["chown", "-R", f"{user}:nogroup", str(world.path)], check=True)
        world.user = user
        run = world.run("run", OPS)
        if run.end() == 3 and "this machine lacks user namespaces" in run.err:
            pytest.skip("this machine (a chroot, a container) has no user namespaces")
        assert run.end() == 0, run.told
        assert_booted(run.events, 1)
        assert verdicts(run.events) == {f"{OPS}#1": "PASS"}
        world.assert_nothing_left()
        # Disks are made without mounting anything, and memory may be mapped by anybody.
        direct = world.run("run", OPS, "--engine", "direct")
        assert direct.end() == 0, direct.told
        assert [e["start"] for e in of_type(direct.events, "vm_start")] == ["snapshot"]
        killed = world.start("run", OPS)
        killed.event("vm_start")
        killed.qemu()
        killed.popen.kill()
        wait_for("the VM's end", lambda: not world.processes(), lambda: killed.told)
