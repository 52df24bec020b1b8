# SPDX-License-Identifier: GPL-2.0-only
"""Debian's stock kernels: ``debian:SERIES`` and ``debian:RELEASE``.

The packaging changed over the years (vocabulary: REL is ``uname -r``).  Up to 6.12
``linux-image-REL`` holds image, configuration and modules; from 7.2 on it is empty and
``linux-binary-REL``, ``linux-modules-REL`` and ``linux-base-REL`` hold them, and
``linux-binary-unsigned-REL`` may be all there is of the image.  Headers are
``linux-headers-REL``, its ``-common`` part and ``linux-kbuild-*``, found by dependency.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import arch as arches
from harness.arch import Arch
from harness.errors import CohabitError, InfraError, UsageError
from harness.kernels.apt import Apt, GoneError, Package, find_mirrors
from harness.kernels.model import Kernel
from harness.kernels.programs import not_found, run
from harness.kernels.store import Entry, Store
from harness.kernels.unpack import finish, kernel_in

Say = Callable[[str], None]

RECIPE = "1"
"""Counts up whenever unpacking changes what comes out."""

_DAY = 24 * 3600.0
_IMAGE = re.compile(
    r"linux-(?:image|binary-unsigned|binary)-(\d+\.\d+\.\d.*?-cloud-(?:amd64|arm64))(-unsigned)?"
)
# In the order of preference; the first that has the image wins.
_IMAGE_NAMES = (
    "linux-binary-{}",
    "linux-image-{}",
    "linux-image-{}-unsigned",
    "linux-binary-unsigned-{}",
)
_PARTS = re.compile(r"linux-(headers|kbuild|modules|base|binary|image)-[\w.+~-]*\d[\w.+~-]*")


@dataclass(frozen=True)
class Release:
    """One kernel that the lists offer: all packages it consists of."""

    release: str
    version: str
    packages: tuple[Package, ...]
    headers: bool


def older(one: str, other: str) -> bool:
    """Return whether Debian version ``one`` sorts before ``other``, by dpkg's own rules."""
    try:
        done = subprocess.run(["dpkg", "--compare-versions", one, "lt", other], check=False)
    except FileNotFoundError:
        raise not_found("dpkg", "comparing package versions") from None
    return done.returncode == 0


def _newest_first(releases: Iterable[Release]) -> list[Release]:
    def compare(one: Release, other: Release) -> int:
        if one.version == other.version:
            return (one.release > other.release) - (one.release < other.release)
        return -1 if older(one.version, other.version) else 1

    return sorted(releases, key=functools.cmp_to_key(compare), reverse=True)


def _in_series(release: str, series: str) -> bool:
    return release.startswith(f"{series}.")


def offers(packages: Sequence[Package], wanted: Callable[[str], bool]) -> list[Release]:
    """Return the releases that ``wanted`` says yes to and that have an image, newest first."""
    by_name: dict[str, list[Package]] = {}
    for package in packages:
        by_name.setdefault(package.name, []).append(package)
    found = {m[1] for name in by_name if (m := _IMAGE.fullmatch(name)) and wanted(m[1])}
    built = (_assemble(release, by_name) for release in found)
    return _newest_first(release for release in built if release)


def _assemble(release: str, by_name: Mapping[str, list[Package]]) -> Release | None:
    """Collect the packages of ``release``, following dependencies among kernel packages."""
    image: Package | None = None
    for form in _IMAGE_NAMES:
        for package in by_name.get(form.format(release), ()):
            # From 7.2 on linux-image-REL is empty and depends on the real one.
            empty = "linux-binary-" in package.depends
            if not empty and (image is None or older(image.version, package.version)):
                image = package
        if image:
            break
    if image is None:
        return None
    version = image.version
    wanted = [f"linux-modules-{release}", f"linux-base-{release}", f"linux-headers-{release}"]
    chosen = {image.name: image}
    while wanted:
        name = wanted.pop()
        candidates = by_name.get(name, [])
        exact = [package for package in candidates if package.version == version]
        if name in chosen or not candidates or name.startswith(("linux-image-", "linux-binary-")):
            continue
        if not exact and release in name:
            continue
        package = (exact or candidates)[0]
        chosen[name] = package
        wanted += (m[0] for m in _PARTS.finditer(package.depends))
    modern = image.name.startswith("linux-binary-")
    if modern and f"linux-modules-{release}" not in chosen:
        return None
    parts = " ".join(chosen)
    headers = f"linux-headers-{release}" in chosen and "-common" in parts and "kbuild" in parts
    packages = tuple(sorted(chosen.values(), key=lambda package: package.name))
    return Release(release, version, packages, headers)


def _inputs(release: Release) -> dict[str, str]:
    return {
        "release": release.release,
        "version": release.version,
        "packages": " ".join(f"{p.name}={p.version}" for p in release.packages),
        "recipe": RECIPE,
    }


class Debian:
    """Resolves ``debian:`` references.

    ``tools`` is a root file system whose programs the host runs; ``arch`` the kernels'
    architecture.
    """

    def __init__(self, store: Store, tools: Path, say: Say, arch: Arch) -> None:
        self._store = store
        self._tools = tools
        self._say = say
        self._arch = arch
        self._apts: dict[str, Apt] = {}

    def resolve(self, name: str) -> Kernel:
        """Return the kernel for ``name``, a series ("6.12") or a release ("6.12.117+deb13").

        Raises UsageError when there is no such kernel, InfraError when it can't be had.
        """
        series = re.fullmatch(r"\d+\.\d+", name) is not None
        cached = self._cached(name, series)
        if cached and (not series or self._is_recent(name, cached)):
            return self._kernel(name, cached.inputs, cached.label, [])
        try:
            chosen = self._choose(name, series)
        except UsageError:
            raise
        except InfraError as error:
            if not cached:
                raise
            self._say(f"debian:{name}: {error.message}; using {cached.inputs['release']}")
            return self._kernel(name, cached.inputs, cached.label, [])
        return self._fetch(name, series, chosen)

    def _cached(self, name: str, series: bool) -> Entry | None:
        """Return the newest kernel in the cache that ``name`` can mean."""
        newest: Entry | None = None
        for entry in self._store.entries("kernel"):
            if entry.inputs.get("recipe") != RECIPE:
                continue
            release = entry.inputs["release"]
            if not self._means(release, name, series):
                continue
            if newest is None or older(newest.inputs["version"], entry.inputs["version"]):
                newest = entry
        return newest

    def _means(self, release: str, name: str, series: bool) -> bool:
        """Whether ``name`` can mean that release."""
        if not release.endswith(_flavour(self._arch)):
            return False
        if series:
            return _in_series(release, name)
        return release in (name, name + _flavour(self._arch))

    def _remembered_as(self, name: str) -> str:
        return name if self._arch is arches.X86_64 else f"{name} {self._arch.name}"

    @property
    def _memory(self) -> Path:
        return self._store.state / "debian-series.json"

    def _is_recent(self, name: str, cached: Entry) -> bool:
        """Whether the series was looked up within a day, and is still what is cached."""
        memory = _read_json(self._memory).get(self._remembered_as(name))
        if not isinstance(memory, dict):
            return False
        when = memory.get("when")
        known = memory.get("key") == cached.key and isinstance(when, float)
        return known and isinstance(when, float) and 0 <= time.time() - when < _DAY

    def _remember(self, name: str, key: str) -> None:
        memory = _read_json(self._memory)
        memory[self._remembered_as(name)] = {"key": key, "when": time.time()}
        part = self._memory.with_suffix(".part")
        part.write_text(json.dumps(memory), encoding="utf-8")
        part.replace(self._memory)

    def _lists(self, arch: Arch) -> Apt:
        if arch.name not in self._apts:
            self._apts[arch.name] = Apt(self._store.state, find_mirrors(), self._say, arch)
        return self._apts[arch.name]

    def _packages(self, fresh: bool) -> list[Package]:
        """All packages of kernels: of that architecture, but the tools that the host runs."""
        found = self._lists(self._arch).kernel_packages(fresh=fresh)
        if self._arch.native:
            return found
        tools = self._lists(arches.host()).kernel_packages(fresh=fresh)
        return [
            *(package for package in found if not _is_tool(package)),
            *(package for package in tools if _is_tool(package)),
        ]

    def _choose(self, name: str, series: bool) -> list[Release]:
        def wanted(release: str) -> bool:
            return self._means(release, name, series)

        found: list[Release] = []
        for fresh in (False, True):
            packages = self._packages(fresh)
            found = offers(packages, wanted)
            if found:
                break
        else:
            raise _unknown(name, series, packages, self._arch)
        if not series:
            return found[:1]
        with_headers = [release for release in found if release.headers]
        if not with_headers:
            self._say(f"debian:{name}: there are images but no headers: no module can be built")
        return with_headers or found

    def _fetch(self, name: str, series: bool, chosen: Sequence[Release]) -> Kernel:
        for release in chosen:
            label = f"Debian {release.release}"
            try:
                kernel = self._kernel(name, _inputs(release), label, release.packages)
            except GoneError as error:
                if not series:
                    raise
                self._say(f"debian:{name}: {error.message}; trying the next older one")
                continue
            if series:
                found = self._store.find("kernel", _inputs(release))
                if found:
                    self._remember(name, found.key)
            return kernel
        raise InfraError(
            f"debian:{name}: every package of it in the lists is gone from the mirror",
            "try again later, or another mirror",
        )

    def _kernel(
        self, name: str, inputs: Mapping[str, str], label: str, packages: Sequence[Package]
    ) -> Kernel:
        release = inputs["release"]

        def make(tree: Path) -> list[str]:
            # A damaged entry is made anew from its own name: its packages first.
            needed = packages or self._choose(release, series=False)[0].packages
            total = sum(package.size for package in needed)
            self._say(f"fetching {label}: {len(needed)} packages, {total / 1e6:.0f} MB")
            with tempfile.TemporaryDirectory(dir=tree.parent) as scratch:
                for deb in self._lists(self._arch).download(needed, Path(scratch)):
                    run(["dpkg-deb", "-x", deb, tree], what=f"unpacking {deb.name}", where=tree)
            return finish(tree, release, self._tools, self._arch)

        tree = self._store.get("kernel", inputs, make, label=label, say=self._say)
        origin = f"Debian's linux {inputs['version']}"
        return kernel_in(
            tree, reference=f"debian:{name}", release=release, origin=origin, arch=self._arch
        )


def _flavour(arch: Arch) -> str:
    return f"-cloud-{arch.debian}"


def _is_tool(package: Package) -> bool:
    """Whether the host runs it: kbuild's programs, which work for every architecture."""
    return package.name.startswith("linux-kbuild-")


def of_name(name: str) -> Arch | None:
    """The architecture that a release says (``6.12.117+deb13-cloud-arm64``), None if it doesn't."""
    return next((a for a in arches.ARCHES.values() if name.endswith(_flavour(a))), None)


def _read_json(path: Path) -> dict[str, object]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _unknown(name: str, series: bool, packages: Sequence[Package], arch: Arch) -> CohabitError:
    flavour = _flavour(arch)
    every = offers(packages, lambda release: release.endswith(flavour))
    if series:
        known = list(dict.fromkeys(".".join(r.release.split(".")[:2]) for r in every))
        return UsageError(
            f"debian:{name}: no reachable suite has a cloud kernel of that series "
            f"for {arch.debian}",
            f"there are {', '.join(known)}",
        )
    names = [release.release for release in every]
    near = difflib.get_close_matches(name, [n.removesuffix(flavour) for n in names], 5, 0.5)
    return UsageError(
        f"debian:{name}: no reachable suite has that release for {arch.debian}",
        f"near it: {', '.join(near or names[:5])}",
    )
