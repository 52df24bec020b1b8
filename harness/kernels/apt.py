# SPDX-License-Identifier: GPL-2.0-only
"""Debian packages through apt, in a state of our own.

apt does what it is good at: it reads the machine's sources, talks to the mirror
and proxy that the machine is set up with, and checks signatures and hashes.
Its lists, status and configuration live in the cache, so the machine's own
package state is neither read nor changed, and no privileges are needed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.arch import X86_64, Arch
from harness.errors import InfraError, UsageError
from harness.kernels.programs import plain_env, run, tail

Say = Callable[[str], None]

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

SUITES = (
    "bullseye",
    "bullseye-security",
    "bookworm",
    "bookworm-security",
    "bookworm-backports",
    "trixie",
    "trixie-security",
    "trixie-backports",
    "forky",
    "sid",
)
"""Where kernels are looked for.  One that can't be fetched, or whose Release file
is out of date (development suites on slow mirrors), is skipped with a line."""

_HELPER = Path("/usr/lib/apt/apt-helper")
_CODENAMES = "bullseye|bookworm|trixie|forky|duke|sid"
_ALIASES = "stable|oldstable|oldoldstable|testing|unstable"
_DAY = 24 * 3600.0
# A reference that is not in the lists refreshes them, but not at every typing error.
_SOON = 600.0
_WANTED = re.compile(
    rb"^Package: (linux-(?:image|headers|binary|modules|base|kbuild|source)-[^\n]*\d[^\n]*)$", re.M
)
_FIELD = re.compile(r"^(Package|Version|Depends|Filename|SHA256|Size): (.*)$", re.M)


@dataclass(frozen=True)
class Mirrors:
    """Addresses of the Debian archive and (None: not known) of its security archive."""

    archive: str
    security: str | None


@dataclass(frozen=True)
class Package:
    """A package as a signed index lists it; ``uri`` is its full address, ``size`` in bytes."""

    name: str
    version: str
    suite: str
    depends: str
    uri: str
    sha256: str
    size: int


class GoneError(InfraError):
    """A package stands in the index and is not in the pool any more."""


def keyring() -> Path:
    """Return the Debian archive keyring; raises InfraError when it is not installed."""
    if not KEYRING.is_file():
        raise InfraError(
            f"Debian's archive keys are missing ({KEYRING}): no package could be verified",
            "install the package debian-archive-keyring",
        )
    return KEYRING


def find_mirrors() -> Mirrors:
    """Return the mirrors from the user's configuration, else from the machine's apt sources.

    The configuration is ``[debian] mirror`` and ``security`` in cohabit/config.toml
    below $XDG_CONFIG_HOME.  Raises UsageError when neither names a mirror.
    """
    path = _config_path()
    section = _config_section(path)
    archive, security = section.get("mirror"), section.get("security")
    if archive is None:
        found, found_security = _machine_mirrors()
        archive, security = found, security or found_security
    if archive is None:
        raise UsageError(
            "no Debian mirror is known: this machine's apt sources name none",
            f'write these lines into {path}:\n    [debian]\n    mirror = "http://HOST/debian"\n'
            '    security = "http://HOST/debian-security"',
        )
    return Mirrors(archive, security)


def _config_path() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".config") / "cohabit/config.toml"


def _config_section(path: Path) -> dict[str, str]:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} can't be read: {error}") from error
    section = data.get("debian", {})
    if not isinstance(section, dict):
        raise UsageError(f"{path}: debian must be a table")
    for name, value in section.items():
        if name not in ("mirror", "security"):
            raise UsageError(f"{path}: unknown key debian.{name}", "known: mirror, security")
        # The value becomes part of a line of apt's sources.
        if not isinstance(value, str) or not re.fullmatch(r"[a-z+]+:[^\s\[\]]+", value):
            raise UsageError(f"{path}: debian.{name} must be an address, not {value!r}")
    return section


def _machine_mirrors() -> tuple[str | None, str | None]:
    """Ask apt which of the machine's sources are Debian's archive and security archive."""
    form = "$(REPO_URI)\t$(RELEASE)\t$(COMPONENT)\t$(ORIGIN)"
    rows: list[tuple[str, str, str]] = []
    # Without --no-release-info apt tells the origin, but only of fetched lists.
    for extra in ([], ["--no-release-info"]):
        done = run(
            ["apt-get", "indextargets", *extra, "--format", form, "Identifier: Packages"],
            what="reading this machine's apt sources",
            where=Path("/"),
            check=False,
        )
        for line in done.stdout.splitlines():
            uri, release, component, origin = line.split("\t")
            if component in ("main", "updates/main"):
                # The slash that apt adds would spoil mirror+file: addresses.
                rows.append((uri.rstrip("/"), release, origin))
    return choose_mirrors(rows)


def choose_mirrors(rows: Sequence[tuple[str, str, str]]) -> tuple[str | None, str | None]:
    """Pick the archive and the security archive from (address, release, origin) rows.

    Other repositories use Debian's release names too, so those are preferred that
    apt knows to be Debian's, that also offer -updates, or have "debian" as a part
    of their path.  A wrong guess is caught by the signature.
    """
    updates = {uri for uri, release, _ in rows if release.endswith("-updates")}
    archive: dict[str, int] = {}
    security: dict[str, int] = {}
    for uri, release, origin in rows:
        score = 4 * (origin == "Debian") + 2 * (uri in updates)
        score += bool(re.search(r"/debian(-security)?(/|$)", uri))
        if re.fullmatch(rf"({_CODENAMES}|{_ALIASES})(-security|/updates)", release):
            security[uri] = max(security.get(uri, 0), score)
        elif re.fullmatch(_CODENAMES, release) or (score and re.fullmatch(_ALIASES, release)):
            archive[uri] = max(archive.get(uri, 0), score)
    best = max(archive, key=lambda uri: archive[uri], default=None)
    return best, max(security, key=lambda uri: security[uri], default=None)


def acquire_options() -> list[str]:
    """Return the machine's ``Acquire`` settings for proxies, certificates and retries.

    Each is one line of apt configuration.  Nothing about validity or trust is taken over.
    """
    done = run(
        ["apt-config", "dump", "--no-empty", "--format", "%F %v%n"],
        what="reading this machine's apt configuration",
        where=Path("/"),
        check=False,
    )
    kept = re.compile(r"Acquire::(https?::.*|Retries|ForceIPv[46]) (\S.*)")
    found = (kept.fullmatch(line) for line in done.stdout.splitlines())
    return [f'Acquire::{m[1]} "{m[2]}";' for m in found if m and '"' not in m[2]]


def source_line(uri: str, suite: str) -> str:
    """Return the line of apt's sources for ``suite`` of Debian at ``uri``, signature checked."""
    return f"deb [signed-by={keyring()}] {uri} {suite} main"


class Apt:
    """apt with its state below ``state``, one directory for each pair of mirrors.

    ``arch``: whose packages it lists; each architecture has a state of its own.
    """

    def __init__(self, state: Path, mirrors: Mirrors, say: Say, arch: Arch = X86_64) -> None:
        self._say = say
        self.mirrors = mirrors
        self._arch = arch
        name = hashlib.sha256(repr(mirrors).encode()).hexdigest()[:12]
        self._dir = state / (f"apt-{name}" if arch is X86_64 else f"apt-{name}-{arch.debian}")
        self._index = self._dir / "kernels.json"

    def kernel_packages(self, *, fresh: bool = False) -> list[Package]:
        """Return all packages of kernels, and of their sources, in the reachable suites.

        The answer is a day old at most, with ``fresh`` a few minutes.  When no
        suite can be reached an older one is used, and said to be.  Raises InfraError
        when there is none either.
        """
        with self._locked():
            age = time.time() - (self._index.stat().st_mtime if self._index.exists() else 0.0)
            if age > (_SOON if fresh else _DAY):
                self._refresh()
            rows = json.loads(self._index.read_text(encoding="utf-8"))
        return [Package(**row) for row in rows]

    def download(self, packages: Sequence[Package], directory: Path) -> list[Path]:
        """Download ``packages`` into ``directory``, each checked by its SHA-256.

        Raises GoneError when one is no longer in the pool, InfraError otherwise.
        """
        targets = [directory / f"{package.name}.deb" for package in packages]
        words: list[str] = []
        for package, target in zip(packages, targets, strict=True):
            words += [package.uri, str(target), f"SHA256:{package.sha256}"]
        with self._locked():
            done = run(
                [_HELPER, "download-file", *words],
                what="downloading kernel packages",
                where=directory,
                env=self._env(),
                check=False,
            )
        if done.returncode != 0 or not all(target.is_file() for target in targets):
            text = done.stderr or done.stdout
            gone = re.search(r"(\S+\.deb)\s.*\b404\b", text)
            if gone:
                raise GoneError(
                    f"{gone[1].rsplit('/', 1)[-1]} is in the package list and gone from the mirror"
                )
            raise InfraError(
                f"downloading {packages[0].name} failed{tail(text, 3)}",
                "check the network and apt's proxy settings",
            )
        return targets

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._dir.mkdir(parents=True, exist_ok=True)
        fd = os.open(self._dir / "cohabit.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _env(self) -> Mapping[str, str]:
        return plain_env(APT_CONFIG=str(self._dir / "apt.conf"))

    def _suites(self) -> dict[str, str]:
        found = {}
        for suite in SUITES:
            uri = self.mirrors.security if suite.endswith("-security") else self.mirrors.archive
            if uri is None:
                self._say(f"debian: skipping {suite}: no security mirror is known")
            else:
                found[suite] = uri
        return found

    def _configure(self, suites: Mapping[str, str]) -> None:
        for name in ("none", "lists/partial", "cache/archives/partial"):
            (self._dir / name).mkdir(parents=True, exist_ok=True)
        (self._dir / "status").write_text("", encoding="ascii")
        lines = [source_line(uri, suite) for suite, uri in suites.items()]
        (self._dir / "sources.list").write_text("\n".join(lines) + "\n", encoding="utf-8")
        options = {
            "Dir::Etc::main": "/dev/null",
            "Dir::Etc::parts": f"{self._dir}/none",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": f"{self._dir}/none",
            "Dir::Etc::sourcelist": f"{self._dir}/sources.list",
            "Dir::Etc::sourceparts": f"{self._dir}/none",
            "Dir::State": str(self._dir),
            "Dir::State::lists": f"{self._dir}/lists",
            "Dir::State::status": f"{self._dir}/status",
            "Dir::Cache": f"{self._dir}/cache",
            "APT::Architecture": self._arch.debian,
            "APT::Architectures": self._arch.debian,
            # The user _apt may not enter a home directory; there is nothing to
            # protect from downloads that are checked before anything opens them.
            "APT::Sandbox::User": "root" if os.geteuid() == 0 else "",
            "Acquire::Languages": "none",
            "Acquire::PDiffs": "false",
            "Acquire::GzipIndexes": "true",
            # Only the lists are wanted, not the package cache made from them (5 s).
            # apt complains about its absence, to no effect.
            "pkgCacheFile::Generate": "false",
        }
        text = [f'{name} "{value}";' for name, value in options.items()] + acquire_options()
        (self._dir / "apt.conf").write_text("\n".join(text) + "\n", encoding="utf-8")

    def _refresh(self) -> None:
        suites = self._suites()
        self._configure(suites)
        self._say(
            f"debian: fetching the package lists of {len(suites)} suites ({self._arch.debian})"
        )
        update = run(
            ["apt-get", "-q", "update"],
            what="apt-get update",
            where=self._dir,
            env=self._env(),
            check=False,
        )
        reasons = suite_problems(update.stderr, suites)
        files = self._list_files()
        reached = [suite for suite in suites if suite in files and suite not in reasons]
        if not reached:
            cause = next(iter(reasons.values()), "") or tail(update.stderr, 3)
            if self._index.exists():
                self._say(f"debian: no suite can be fetched ({cause}); using older package lists")
                return
            raise InfraError(
                f"no Debian suite can be fetched from {self.mirrors.archive}: {cause}",
                "check the network and the mirror (apt's sources, or cohabit/config.toml)",
            )
        for suite in suites:
            if suite not in reached:
                self._say(f"debian: skipping {suite}: {reasons.get(suite, 'it has no list')}")
        rows = [
            asdict(package)
            for suite in reached
            for package in self._scan(files[suite], suite, suites[suite])
        ]
        part = self._index.with_suffix(".part")
        part.write_text(json.dumps(rows), encoding="utf-8")
        part.replace(self._index)

    def _list_files(self) -> dict[str, Path]:
        # apt names the files without their compression.  Shown an empty list
        # directory it does not ask for its package cache first.
        done = run(
            [
                "apt-get",
                f"-oDir::State::lists={self._dir}/none",
                "-opkgCacheFile::Generate=true",
                "indextargets",
                "--no-release-info",
                "--format",
                "$(RELEASE)\t$(FILENAME)",
                "Identifier: Packages",
            ],
            what="reading apt's lists",
            where=self._dir,
            env=self._env(),
        )
        files: dict[str, Path] = {}
        for line in done.stdout.splitlines():
            suite, name = line.split("\t")
            for path in (self._dir / "lists").glob(f"{Path(name).name}*"):
                files.setdefault(suite, path)
        return files

    def _scan(self, path: Path, suite: str, uri: str) -> Iterator[Package]:
        text = run(
            [_HELPER, "cat-file", path], what=f"reading {suite}", where=self._dir, env=self._env()
        ).stdout.encode()
        for match in _WANTED.finditer(text):
            end = text.find(b"\n\n", match.start())
            stanza = text[match.start() : end if end >= 0 else len(text)].decode()
            fields = dict(_FIELD.findall(stanza))
            if fields["Package"].endswith("-dbg"):
                continue
            yield Package(
                name=fields["Package"],
                version=fields["Version"],
                suite=suite,
                depends=fields.get("Depends", ""),
                uri=f"{uri}/{fields['Filename']}",
                sha256=fields["SHA256"],
                size=int(fields["Size"]),
            )


def suite_problems(stderr: str, suites: Mapping[str, str]) -> dict[str, str]:
    """Return for each suite that apt complained about its first reason, in one line."""
    found: dict[str, str] = {}
    for line in stderr.splitlines():
        for suite in suites:
            if re.search(rf"(/dists/|\s){re.escape(suite)}(/| (In)?Release)", line):
                reason = re.sub(r"^[EW]: ", "", line)
                reason = re.sub(r"^Release file for \S+", "its Release file", reason)
                reason = re.sub(r"^Failed to fetch \S+\s+", "", reason)
                found.setdefault(suite, re.sub(r"\. [A-Z].*", "", reason).strip(" ."))
    return found
