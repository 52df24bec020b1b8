# SPDX-License-Identifier: GPL-2.0-only
"""Kernels from a tree: built in the user's own cache, because from nothing takes ten minutes.

The first of these tests pays for it where nobody has built one yet.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import world as places
from conftest import Warm
from world import REPOSITORY, Running, World, of_type, verdicts, wait_for

from harness.kernels import trees
from harness.kernels.store import default_root

TREE = "source:7.2"
PAIR = "livepatch+ipmodify/attach:ab/detach:ab/on:cohabit_f1"
MUTANT = REPOSITORY / "tests/mutants/two-ipmodify.patch"
#: Seconds. A build from nothing on a slow machine, and then some.
PATIENCE = 3000.0
BROKEN = """\
--- a/kernel/trace/ftrace.c
+++ b/kernel/trace/ftrace.c
@@ -1,3 +1,4 @@
 // SPDX-License-Identifier: GPL-2.0
+int cohabit_broken(void) { return no_such_thing; }
 /*
  * Infrastructure for profiling code inserted by 'gcc -pg'.
"""
LATE = """\
--- a/kernel/trace/ftrace.c
+++ b/kernel/trace/ftrace.c
@@ -1,3 +1,3 @@
 // SPDX-License-Identifier: GPL-2.0
 /*
- * Infrastructure for what was never profiled.
+ * Infrastructure for nothing.
"""


@pytest.fixture
def here(warm: Warm) -> Iterator[World]:
    """A place whose cache is the user's own: nothing in it may be broken."""
    with places.world(warm.options) as made:
        made.environment["COHABIT_CACHE"] = str(default_root())
        yield made


def patch(world: World, name: str, text: str) -> str:
    """A file of the patch."""
    path = world.path / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def new_patch(world: World) -> str:
    """A patch to ftrace.c that no kernel in the cache has."""
    text = MUTANT.read_text(encoding="utf-8")
    return patch(world, "new.patch", text.replace("(!ops->func)", f"(!ops->func) /* {uuid4()} */"))


def run(world: World, *words: str) -> Running:
    """Runs PAIR on a kernel that is built for it."""
    running = world.start("run", PAIR, "--kernel", TREE, *words, kernel=False)
    running.end(PATIENCE)
    return running


def test_the_kernel_is_built_and_as_promised(here: World) -> None:
    done = run(here)
    assert done.popen.returncode == 0, done.told
    (ready,) = of_type(done.events, "vm_ready")
    assert ready["facts"]["release"].endswith("-cohabit")
    assert verdicts(done.events) == {f"{PAIR}#1": "PASS"}
    here.assert_nothing_left()


def test_a_patch_that_breaks_a_rule_is_noticed(here: World) -> None:
    done = run(here, "--series", str(MUTANT))
    assert done.popen.returncode == 1, done.told
    (kernel,) = of_type(done.events, "kernel")
    assert kernel["options"] == ["--series", str(MUTANT)]
    assert set(verdicts(done.events).values()) == {"FAIL"}
    assert "0 where EBUSY" in done.out or "EBUSY" in done.out


def test_the_first_error_of_a_build_is_told(here: World) -> None:
    done = run(here, "--series", patch(here, "broken.patch", BROKEN))
    assert done.popen.returncode == 3, done.told
    assert "kernel/trace/ftrace.c:2:" in done.err
    assert "'no_such_thing' undeclared" in done.err
    assert "the full log is in" in done.err
    assert not of_type(done.events, "vm_start")
    here.assert_nothing_left()


def test_a_patch_that_does_not_apply_is_shown(here: World) -> None:
    done = run(here, "--series", patch(here, "late.patch", LATE))
    assert done.popen.returncode == 2, done.told
    assert "late.patch" in done.err
    assert "kernel/trace/ftrace.c" in done.err
    assert "- * Infrastructure for what was never profiled." in done.err


def _compiling() -> bool:
    """Whether ftrace.c is being compiled, wherever: the workspace is not the test's own."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        # The compiler itself, and not kbuild's questions to it.
        if b"/src/kernel/trace/ftrace.c" in words and words[0].endswith(b"cc1"):
            return True
    return False


def test_interrupted_in_the_middle_of_a_build(here: World) -> None:
    building = here.start("build", TREE, "--series", new_patch(here))

    def look() -> bool:
        assert building.popen.poll() is None, building.told
        return _compiling()

    wait_for("the compiler", look, lambda: building.told, PATIENCE)
    os.killpg(building.popen.pid, signal.SIGINT)
    assert building.end() == 130, building.told
    wait_for("the compiler's end", lambda: not _compiling())
    here.assert_nothing_left()


def test_two_builds_of_one_tree_at_once(here: World) -> None:
    words = [TREE, "--series", new_patch(here)]
    both = [here.start("build", *words) for _ in range(2)]
    for one in both:
        assert one.end(PATIENCE) == 0, one.told
    assert sum("waiting for it" in one.err for one in both) == 1
    assert both[0].out.splitlines()[:2] == both[1].out.splitlines()[:2]


@pytest.fixture(scope="session")
def linux(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository with Debian's source, as a user's own."""
    directory = tmp_path_factory.mktemp("tree") / "linux"
    trees.checkout(trees.resolve(TREE, warm.setup.store, print), directory)
    git = ["git", "-C", str(directory), "-c", "user.name=T", "-c", "user.email=t@example.org"]
    # It would go on packing in the background.
    git += ["-c", "gc.auto=0", "-c", "maintenance.auto=false"]
    for words in (["init", "-q"], ["add", "-Af"], ["commit", "-qm", "all"]):
        subprocess.run([*git, *words], check=True)
    return directory


def _mounted(script: str) -> tuple[str, ...]:
    """The beginning of a command line that sees mounts of its own."""
    user = () if os.geteuid() == 0 else ("-r",)
    return ("unshare", *user, "-m", "sh", "-ec", f'{script}; exec "$@"', "sh")


@pytest.mark.full
def test_a_read_only_tree_with_uncommitted_changes(here: World, linux: Path) -> None:
    """What is built is what is there; nothing comes or goes in the user's directory."""
    source = linux / "init/main.c"
    text = source.read_text(encoding="utf-8")
    assert '"Kernel command line: "' in text
    source.write_text(text.replace('"Kernel command', '"Uncommitted command', 1), encoding="utf-8")

    def seen() -> dict[Path, int]:
        places = [*linux.iterdir(), *(linux / ".git").rglob("*")]
        return {path: path.stat().st_mtime_ns for path in places}

    before = seen()
    # Root may write to what nobody may; a read-only mount says no to everybody.
    bind = f"mount --bind {linux} {linux}; mount -o remount,bind,ro {linux}"
    here.prefix = _mounted(bind)
    done = here.start("run", PAIR, "--kernel", f"tree:{linux}", kernel=False)
    assert done.end(PATIENCE) == 0, done.told
    (kernel,) = of_type(done.events, "kernel")
    assert kernel["origin"].endswith("with 1 uncommitted change")
    assert any("Uncommitted command line: " in line for line in done.console("vm0"))
    assert seen() == before


@pytest.mark.full
def test_a_disk_that_fills_up_in_the_middle_of_a_build(here: World) -> None:
    """With room for the sources, and for some of the objects."""
    work = default_root() / "work"
    # Workspaces that are there are not asked for their room.
    names = " ".join(path.name for path in work.iterdir())
    here.prefix = _mounted(f"mount -t tmpfs -o size=2100m none {work}; cd {work}; mkdir {names}")
    done = here.start("build", TREE, "--series", new_patch(here))
    assert done.end(PATIENCE) == 3, done.told
    assert "No space left on device" in done.err
    assert "cohabit kernels prune" in done.err
    here.assert_nothing_left()
