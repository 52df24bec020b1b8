# SPDX-License-Identifier: GPL-2.0-only
"""Building a kernel from a source tree, inside a root file system of our own.

virtme-ng's configuration comes first, then Kconfig.fragment and what the architecture, the
flavour and the user add.  Sources and objects of a tree stay in a workspace of the cache, so
that the next build of that tree, patched or at another revision, compiles what changed.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata, util
from pathlib import Path

from harness import arch as arches
from harness.errors import InfraError
from harness.kernels import decode, kconfig, workspace
from harness.kernels.git import Git
from harness.kernels.model import Kernel
from harness.kernels.modules import first_error
from harness.kernels.programs import check_disk_full, stream
from harness.kernels.store import Store
from harness.kernels.trees import Tree, checkout
from harness.kernels.unpack import finish, kernel_in
from vm import namespace, rootfs

Say = Callable[[str], None]

REPOSITORY = Path(__file__).resolve().parents[2]
FRAGMENT = REPOSITORY / "Kconfig.fragment"
ADDITIONS = Path(__file__).parent / "fragments"
"""What an architecture or a flavour adds to FRAGMENT, one file each."""

FLAVOURS = ("plain", "debug", "kasan")

RECIPE = "3"
"""Counts up whenever building changes what comes out of the same tree."""

_TOOLS = Path(__file__).parent / "tools"
_LOG = "build.log"
#: Lines of kbuild's that stand for a step: "  CC      kernel/fork.o".
_STEP = re.compile(r"^  [A-Z]\S* +\S")
_TELL_EVERY_S = 15.0
#: Steps of a build from nothing, for the first estimate; then the cache knows better.
_STEPS = {"x86_64": 2300, "arm64": 1650}


@dataclass(frozen=True)
class Options:
    """How a tree is built: ``extra`` is the text of the user's fragment, jobs as for make.

    ``debug_info``: keep what decode.py needs, about 180 MB.
    """

    flavour: str = "plain"
    extra: str = ""
    jobs: int = 0
    arch: str = "x86_64"
    debug_info: bool = True

    @property
    def told(self) -> str:
        """Flavour and architecture in words."""
        return workspace.told(self.flavour, self.arch)

    def fragments(self) -> str:
        """All fragments in their order: a later one has the last word."""
        files = [FRAGMENT, ADDITIONS / self.arch, ADDITIONS / self.flavour]
        parts = [path.read_text(encoding="utf-8") for path in files]
        if self.arch != arches.X86_64.name:
            # Kernels are told apart by their releases, also in one run over two architectures.
            words = kconfig.options("\n".join(parts))["CONFIG_LOCALVERSION"].strip('"')
            parts.append(f'CONFIG_LOCALVERSION="{words}-{self.arch}"\n')
        return "\n".join([*parts, self.extra])


def build(tree: Tree, options: Options, root: Path, store: Store, say: Say) -> Kernel:
    """Return the kernel that ``tree`` makes, from the cache if it was built before.

    ``root`` is a root file system with a depmod (vm.rootfs.tools_root).  For another
    architecture than the host's it is cross-built.  Raises InfraError with the first error when
    the build fails, with the options that the configuration did not keep, or when there is
    no room on the disk.
    """
    fragments = options.fragments()
    arch = arches.ARCHES[options.arch]
    builder = rootfs.builder_root(store, say, arch)
    inputs = {
        "tree": tree.oid,
        "arch": options.arch,
        "flavour": options.flavour,
        "config": hashlib.sha256(fragments.encode()).hexdigest(),
        "builder": builder.parent.name,
        "virtme": _virtme_version().decode(),
        "recipe": RECIPE,
        **({} if options.debug_info else {"debug_info": "no"}),
    }
    label = f"{tree.release} ({options.told}) of {tree.reference}"

    def make(target: Path) -> list[str]:
        with workspace.opened(tree, options.arch, options.flavour, store, say) as work:
            job = _Job(tree, options, fragments, builder, work, store, say)
            release = job.run(target)
        return finish(target, release, root, arch)

    final = store.get("built", inputs, make, label=label, say=say)
    (image,) = final.glob("boot/vmlinuz-*")
    release = image.name.removeprefix("vmlinuz-")
    kernel = kernel_in(
        final, reference=tree.reference, release=release, origin=tree.origin, arch=arch
    )
    abi = (final / f"boot/abi-{release}").read_text(encoding="ascii")
    notes = hashlib.sha256((final / f"boot/notes-{release}").read_bytes()).hexdigest()
    return replace(kernel, abi=abi, notes=notes)


def _virtme_version() -> bytes:
    return metadata.version("virtme-ng").encode()


def _virtme() -> Path:
    """Where virtme-ng's Python package is."""
    found = util.find_spec("virtme")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent


class _Job:
    """One build in its workspace."""

    def __init__(
        self, tree: Tree, options: Options, fragments: str, builder: Path, work: Path,
        store: Store, say: Say,
    ) -> None:  # fmt: skip
        self.tree, self.options, self.fragments = tree, options, fragments
        self.arch = arches.ARCHES[options.arch]
        self.builder, self.work, self.store, self.say = builder, work, store, say
        self.source, self.out = work / "src", work / "out"
        self.ccache = workspace.ccache(store)
        for directory in (self.out, self.ccache):
            directory.mkdir(exist_ok=True)
        self.log = work / _LOG
        self.log.write_text("", encoding="utf-8")
        self.what = f"building {tree.release} ({options.told})"

    def run(self, target: Path) -> str:
        """Build into the cache entry ``target``; return the release."""
        changed = checkout(self.tree, self.source)
        self._configure(changed)
        self._compile()
        release = (self.out / "include/config/kernel.release").read_text(encoding="ascii").strip()
        self._stage(target, release)
        return release

    # --- configuration ----------------------------------------------------------------------

    def _configure(self, changed: Sequence[str]) -> None:
        """Make ``.config`` anew when anything that it depends on has changed."""
        stamp = self.work / "configured"
        key = hashlib.sha256(self.fragments.encode() + _virtme_version()).hexdigest()
        config = self.out / ".config"
        kconfig_changed = any(Path(name).name.startswith("Kconfig") for name in changed)
        known = stamp.read_text(encoding="ascii") if stamp.exists() else ""
        if config.exists() and known == key and not kconfig_changed:
            return
        stamp.unlink(missing_ok=True)
        self.say(f"configuring {self.tree.release} ({self.options.told})")
        fragment = self.work / "fragment"
        fragment.write_text(self.fragments, encoding="utf-8")
        arch = self.arch.name
        # virtme-ng's own additions come after a --custom file; ours have the last word.
        self._shell(
            "cd /src && export PYTHONPATH=/virtme && rm -f /out/.config\n"
            'python3 -c "from virtme.commands.configkernel import main; main()"'
            f" --allnoconfig --arch {arch} --custom /job/fragment O=/out </dev/null\n"
            "cat /job/fragment >>/out/.config\n"
            f"{self._make_words()} olddefconfig\n",
            f"configuring {self.tree.release}",
        )
        self._check_config()
        stamp.write_text(key, encoding="ascii")

    def _check_config(self) -> None:
        config = kconfig.options((self.out / ".config").read_text(encoding="utf-8"))
        wanted = kconfig.options(self.fragments)
        problems, absent, stayed = [], [], []
        for item in kconfig.lost(wanted, config):
            if item.wanted == "n":
                stayed.append(item.option)
                continue
            why = kconfig.obstacles(item.option, self.source, self.arch.srcarch, config)
            srcarch = self.arch.srcarch
            if why.startswith("this tree has no") or kconfig.out_of_reach(
                item.option, self.source, srcarch, config
            ):
                absent.append(item.option)
            else:
                problems.append(f"{item.option}={item.wanted} became {item.got}: {why}")
        if absent:
            self.say(
                f"note: {self.tree.release} has no {', '.join(absent)} on {self.arch.policy}; "
                "scenarios that need it will be skipped"
            )
        if stayed:
            self.say(f"note: others select {', '.join(stayed)}, which no scenario needs")
        if problems:
            raise InfraError(
                f"the configuration of {self.tree.reference} lost what cohabit needs:"
                + "".join(f"\n    {problem}" for problem in problems),
                "add what is missing by --config FILE",
            )

    # --- compilation ------------------------------------------------------------------------

    def _compile(self) -> None:
        target = Path(self.arch.image).name
        jobs = self.options.jobs or len(os.sched_getaffinity(0))
        # Every build makes modpost before it compiles the kernel: one that was interrupted
        # has fewer steps left, and these would spoil the next estimate.
        counter = _Counter(self, cold=not (self.out / "scripts/mod/modpost").exists())
        self._shell(f"{self._make_words()} -j{jobs} {target} modules\n", self.what, counter.line)
        counter.finished()

    def _make_words(self) -> str:
        # The builder's own key stands for the compiler: its path and times say nothing.
        words = ["make", "-C", "/src", "O=/out", f"ARCH={self.arch.name}"]
        words += ["CC=/tools/cc", 'HOSTCC="ccache gcc"', "KBUILD_BUILD_USER=cohabit"]
        words += ["KBUILD_BUILD_HOST=cohabit", 'KBUILD_BUILD_TIMESTAMP="1 Jan 2020"']
        return " ".join(words)

    def _stage(self, target: Path, release: str) -> None:
        """Lay the built kernel out as Debian's packages unpack."""
        stage = self.work / "stage"
        shutil.rmtree(stage, ignore_errors=True)
        headers = f"usr/src/linux-headers-{release}"
        (stage / headers).mkdir(parents=True)
        make, objcopy = self._make_words(), f"{self.arch.cross}objcopy"
        install = f"$(srctree)/scripts/package/install-extmod-build /stage/{headers}"
        if not self.arch.native:
            # Otherwise it makes modpost anew with the kernel's compiler, to run there: what
            # modules are built with runs here.
            install = f"HOSTCC=$(CC) {install}"
        self._shell(
            f"{make} -s modules_install INSTALL_MOD_PATH=/stage DEPMOD=true\n"
            f"{make} -s run-command KBUILD_RUN_COMMAND='{install}'\n"
            f"cp /out/.config /stage/{headers}/.config\n"
            # What module builds want of it is its BTF.
            f"{objcopy} --only-section=.BTF /out/vmlinux /stage/{headers}/vmlinux\n"
            # What the running kernel shows in /sys/kernel/notes: that this one runs.
            f"{objcopy} -O binary --only-section=.notes /out/vmlinux /stage/notes\n",
            f"installing {release}",
        )
        modules = stage / "lib/modules" / release
        for name in ("build", "source"):
            (modules / name).unlink(missing_ok=True)
            (modules / name).symlink_to(f"/usr/src/{Path(headers).name}")
        boot = stage / "boot"
        boot.mkdir()
        shutil.copyfile(self.out / self.arch.image, boot / f"vmlinuz-{release}")
        shutil.copyfile(self.out / ".config", boot / f"config-{release}")
        shutil.copyfile(self.out / "System.map", boot / f"System.map-{release}")
        (stage / "notes").rename(boot / f"notes-{release}")
        (boot / f"abi-{release}").write_text(self._abi(stage / headers), encoding="ascii")
        if self.options.debug_info:
            self._keep_debug_info(stage, release)
        for item in stage.iterdir():
            # The same file system: the cache has both.
            item.rename(target / item.name)

    def _keep_debug_info(self, stage: Path, release: str) -> None:
        """Lay out what decode.py needs.  Not compressed: that takes longer than all of this."""
        for name in ("boot", "scripts"):
            (stage / decode.DEBUG / name).mkdir(parents=True)
        self._shell(
            f"{self.arch.cross}objcopy --only-keep-debug /out/vmlinux "
            f"/stage/{decode.DEBUG}/boot/vmlinux-{release}\n",
            f"keeping the debug info of {release}",
        )
        for name in decode.SCRIPTS:
            script = self.source / "scripts" / name
            if script.is_file():
                shutil.copy(script, stage / decode.DEBUG / "scripts")

    def _abi(self, headers: Path) -> str:
        """A hash of what module builds take from the kernel: a patch to a .c file changes none."""
        digest = hashlib.sha256(self.builder.parent.name.encode())
        directories = ("include", f"arch/{self.arch.srcarch}/include", "scripts", "tools")
        words = ["rev-parse", *(f"{self.tree.oid}:{name}" for name in directories)]
        ids = Git(self.tree.repository).run(*words, what="looking for the headers").stdout
        digest.update(ids.encode())
        for name in (".config", "Module.symvers", "vmlinux", "include/config/kernel.release"):
            digest.update((headers / name).read_bytes())
        return digest.hexdigest()

    # --- running programs -------------------------------------------------------------------

    def _shell(self, script: str, what: str, line: Callable[[str], None] | None = None) -> None:
        """Run a script in the builder's root; raise InfraError with the first error."""
        for name in ("root", "stage"):
            (self.work / name).mkdir(exist_ok=True)
        command = namespace.chroot_command(
            ["sh", "-e", "-c", script],
            lowers=[self.builder],
            mountpoint=self.work / "root",
            binds=[
                (self.source, "src", False),
                (self.out, "out", True),
                (self.work / "stage", "stage", True),
                (self.work, "job", False),
                (self.ccache, "ccache", True),
                (_virtme(), "virtme/virtme", False),
                (_TOOLS, "tools", False),
            ],
            env={
                "CCACHE_DIR": "/ccache",
                "CCACHE_COMPILERCHECK": f"string:{self.builder.parent.name}",
                # Saves one of two passes of the preprocessor for what is not cached yet.
                "CCACHE_DEPEND": "1",
                "CCACHE_MAXSIZE": "5G",
                # For make, tools/cc and virtme-ng's configuration alike.
                "CROSS_COMPILE": self.arch.cross,
            },
        )
        status = stream(command, what=what, log=self.log, line=line)
        if status == 0:
            return
        text = self.log.read_text(encoding="utf-8", errors="replace")
        check_disk_full(text, self.work)
        kept = self.store.state / f"build-{self.tree.repository.stem}.log"
        shutil.copyfile(self.log, kept)
        error = first_error(text).replace("/src/", "")
        raise InfraError(f"{what} failed:{error}", f"the full log is in {kept}")


class _Counter:
    """Tells from time to time how far a build is."""

    def __init__(self, job: _Job, cold: bool) -> None:
        self._job, self._cold = job, cold
        self._memory = job.store.state / f"steps-{job.options.arch}-{job.options.flavour}"
        self._steps = 0
        self._begun = self._told = time.monotonic()
        job.say(f"{job.what}{', from nothing' if cold else ''}")

    def _total(self) -> int:
        try:
            return int(self._memory.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return _STEPS[self._job.options.arch]

    def line(self, text: str) -> None:
        """Take a line of kbuild's output."""
        if not _STEP.match(text):
            return
        self._steps += 1
        now = time.monotonic()
        if now - self._told < _TELL_EVERY_S:
            return
        self._told = now
        where = text.split()[-1]
        if not self._cold:
            self._job.say(f"{self._job.what}: {self._steps} steps, at {where}")
            return
        total = max(self._total(), self._steps)
        left = (now - self._begun) / self._steps * (total - self._steps)
        self._job.say(
            f"{self._job.what}: {self._steps} of about {total} steps, "
            f"about {left / 60:.0f} min left, at {where}"
        )

    def finished(self) -> None:
        """Keep the number of steps for the next estimate."""
        took = time.monotonic() - self._begun
        self._job.say(f"built {self._job.tree.release} in {took:.0f} s, {self._steps} steps")
        if self._cold:
            self._memory.write_text(str(self._steps), encoding="ascii")
