# SPDX-License-Identifier: GPL-2.0-only
"""Mirrors from real apt configuration, and real apt runs against a signed archive."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from debian_archive import DAY, Archive

from harness.errors import InfraError, UsageError
from harness.kernels import apt
from harness.kernels.apt import Apt, GoneError, Mirrors, choose_mirrors, find_mirrors

needs_gpg = pytest.mark.skipif(shutil.which("gpg") is None, reason="gpg signs the test archive")

SOURCES = """\
Types: deb
# http://snapshot.test/archive/debian/20250520T000000Z
URIs: http://mirror.test/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb deb-src
URIs: http://security.test/debian-security/
Suites: bookworm-security
Components: main

Types: deb
URIs: http://disabled.test/debian
Suites: bookworm
Components: main
Enabled: no
"""

LIST = """\
# deb http://comment.test/debian bookworm main
deb [arch=amd64 signed-by=/k.gpg] http://tools.test/apt bookworm main
deb [arch=amd64] mirror+file:/etc/mirrors.list trixie main
deb-src http://source.test/debian trixie main
deb http://mirror.test/debian trixie-updates main  # a comment
deb http://sec.test/debian-security trixie-security main
"""


@pytest.fixture(autouse=True)
def no_user_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    """Let apt believe that the machine has these sources and nothing else."""
    etc = tmp_path / "etc"
    (etc / "parts").mkdir(parents=True)
    (etc / "lists/partial").mkdir(parents=True)
    (etc / "status").write_text("")
    (etc / "parts" / name).write_text(text)
    conf = etc / "apt.conf"
    conf.write_text(
        f'Dir::Etc::sourcelist "/dev/null"; Dir::Etc::sourceparts "{etc}/parts";'
        f'Dir::State::lists "{etc}/lists"; Dir::State::status "{etc}/status";'
        f'Dir::Cache::pkgcache ""; Dir::Cache::srcpkgcache "";'
        'Acquire::http::Proxy "http://proxy.test:3128"; Acquire::Check-Valid-Until "false";'
        'Acquire::https::CAInfo "/etc/ca.pem"; APT::Architecture "amd64";'
    )
    monkeypatch.setenv("APT_CONFIG", str(conf))


def configure(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config/cohabit/config.toml"
    path.parent.mkdir(parents=True)
    path.write_text(text)


def test_mirrors_from_deb822(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(tmp_path, monkeypatch, "debian.sources", SOURCES)
    expected = Mirrors("http://mirror.test/debian", "http://security.test/debian-security")
    assert find_mirrors() == expected


def test_mirrors_from_one_line_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\n".join(line for line in LIST.splitlines() if "tools.test" not in line)
    machine(tmp_path, monkeypatch, "some.list", text + "\n")
    assert find_mirrors() == Mirrors(
        "mirror+file:/etc/mirrors.list", "http://sec.test/debian-security"
    )


def test_other_repositories_do_not_confuse() -> None:
    rows = [
        ("http://tools.test/apt", "bookworm", ""),
        ("http://mirror.test/debian", "bookworm", ""),
        ("http://mirror.test/debian", "bookworm-updates", ""),
        ("http://known.test/debian-other", "bookworm", ""),
    ]
    assert choose_mirrors(rows) == ("http://mirror.test/debian", None)
    rows.append(("http://odd.test/d", "stable", "Debian"))
    assert choose_mirrors(rows)[0] == "http://odd.test/d"
    assert choose_mirrors([("http://browser.test/deb", "stable", "")]) == (None, None)
    assert choose_mirrors([("http://ubuntu.test/ubuntu", "noble", "Ubuntu")]) == (None, None)


def test_no_mirror_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(tmp_path, monkeypatch, "u.list", "deb http://ubuntu.test/ubuntu noble main\n")
    with pytest.raises(UsageError) as caught:
        find_mirrors()
    assert str(tmp_path / "config/cohabit/config.toml") in caught.value.remedy
    assert "mirror =" in caught.value.remedy


def test_configuration_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(tmp_path, monkeypatch, "debian.sources", SOURCES)
    configure(tmp_path, '[debian]\nmirror = "http://mine.test/d"\n')
    assert find_mirrors() == Mirrors("http://mine.test/d", None)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[debian", "can't be read"),
        ("debian = 1", "must be a table"),
        ('[debian]\nmiror = "http://x.test/d"', "unknown key debian.miror"),
        ('[debian]\nmirror = "http://x.test/d main\\ndeb http://evil.test"', "must be an address"),
        ("[debian]\nmirror = 3", "must be an address"),
    ],
)
def test_bad_configuration(tmp_path: Path, text: str, complaint: str) -> None:
    configure(tmp_path, text)
    with pytest.raises(UsageError, match=complaint):
        find_mirrors()


def test_proxies_are_taken_over_and_trust_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(tmp_path, monkeypatch, "debian.sources", SOURCES)
    options = apt.acquire_options()
    assert 'Acquire::http::Proxy "http://proxy.test:3128";' in options
    assert 'Acquire::https::CAInfo "/etc/ca.pem";' in options
    assert not any("Valid" in option for option in options)


def test_missing_keyring_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apt, "KEYRING", tmp_path / "no.gpg")
    with pytest.raises(InfraError) as caught:
        apt.source_line("http://mirror.test/debian", "trixie")
    assert "debian-archive-keyring" in caught.value.remedy


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Archive]:
    made = Archive(tmp_path / "archive")
    monkeypatch.setattr(apt, "KEYRING", made.keyring)
    monkeypatch.delenv("http_proxy", raising=False)
    yield made
    made.close()


def one_package(archive: Archive, name: str = "linux-image-9.9.1-cloud-amd64") -> str:
    return archive.deb(name, "9.9.1-1", {"boot/vmlinuz-9.9.1": "image"})


def packages(archive: Archive, tmp_path: Path, said: list[str], **options: bool) -> list[str]:
    state = Apt(tmp_path / "state", Mirrors(archive.uri, None), said.append)
    return [package.name for package in state.kernel_packages(**options)]


@needs_gpg
def test_lists_are_fetched_once_a_day(archive: Archive, tmp_path: Path) -> None:
    archive.publish("trixie", [one_package(archive), archive.deb("hello", "1", {})])
    said: list[str] = []
    assert packages(archive, tmp_path, said) == ["linux-image-9.9.1-cloud-amd64"]
    assert any(line.startswith("debian: skipping bullseye:") for line in said)
    assert any("no security mirror is known" in line for line in said)
    before = len(archive.requests)
    # Not even when asked for fresh ones, for a few minutes.
    packages(archive, tmp_path, said, fresh=True)
    assert len(archive.requests) == before
    (index,) = (tmp_path / "state").glob("*/kernels.json")
    for age, fresh in ((3600, True), (DAY + 60, False)):
        os.utime(index, (time.time() - age,) * 2)
        packages(archive, tmp_path, said, fresh=fresh)
        assert len(archive.requests) > before
        before = len(archive.requests)


@needs_gpg
def test_expired_and_unsigned_suites_are_skipped(archive: Archive, tmp_path: Path) -> None:
    archive.publish("trixie", [one_package(archive)])
    archive.publish("sid", [one_package(archive, "linux-image-9.9.2-cloud-amd64")], valid_for=-DAY)
    archive.publish("forky", [one_package(archive, "linux-image-9.9.3-cloud-amd64")])
    release = archive.top / "dists/forky/InRelease"
    release.write_text(release.read_text().replace("Codename: forky", "Codename: forgd"))
    said: list[str] = []
    assert packages(archive, tmp_path, said) == ["linux-image-9.9.1-cloud-amd64"]
    (sid,) = [line for line in said if "skipping sid" in line]
    assert "its Release file is expired (invalid since" in sid
    (forky,) = [line for line in said if "skipping forky" in line]
    assert "BADSIG" in forky or "not valid" in forky or "invalid" in forky


@needs_gpg
def test_a_list_that_was_tampered_with_is_refused(archive: Archive, tmp_path: Path) -> None:
    archive.publish("trixie", [one_package(archive)])
    path = archive.top / "dists/trixie/main/binary-amd64/Packages"
    path.write_text(path.read_text().replace("9.9.1-cloud", "9.9.9-cloud"))
    with pytest.raises(InfraError, match="no Debian suite can be fetched"):
        packages(archive, tmp_path, [])


@needs_gpg
def test_old_lists_serve_when_the_network_is_gone(archive: Archive, tmp_path: Path) -> None:
    archive.publish("trixie", [one_package(archive)])
    first = packages(archive, tmp_path, [])
    archive.disconnect()
    (index,) = (tmp_path / "state").glob("*/kernels.json")
    os.utime(index, (0, 0))
    said: list[str] = []
    assert packages(archive, tmp_path, said) == first
    assert "using older package lists" in said[-1]


@needs_gpg
def test_no_network_and_no_lists(archive: Archive, tmp_path: Path) -> None:
    archive.disconnect()
    with pytest.raises(InfraError, match="no Debian suite can be fetched") as caught:
        packages(archive, tmp_path, [])
    assert "network" in caught.value.remedy


@needs_gpg
def test_download(archive: Archive, tmp_path: Path) -> None:
    archive.publish("trixie", [one_package(archive)])
    state = Apt(tmp_path / "state", Mirrors(archive.uri, None), lambda _: None)
    wanted = state.kernel_packages()
    (deb,) = state.download(wanted, tmp_path)
    assert deb.stat().st_size == wanted[0].size
    deb.unlink()
    (pool,) = (archive.top / "pool").iterdir()
    content = pool.read_bytes()
    pool.write_bytes(content[:-1] + b"!")
    with pytest.raises(InfraError, match=r"downloading .* failed") as caught:
        state.download(wanted, tmp_path)
    assert not isinstance(caught.value, GoneError)
    pool.unlink()
    with pytest.raises(GoneError, match=r"9\.9\.1-1_amd64\.deb .* gone from the mirror"):
        state.download(wanted, tmp_path)
