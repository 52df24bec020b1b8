# SPDX-License-Identifier: GPL-2.0-only
"""Kernel references, against a small signed archive with all of Debian's packagings."""

from __future__ import annotations

import lzma
import os
import shutil
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from debian_archive import Archive

from harness.arch import ARM64, X86_64, Arch, host
from harness.errors import InfraError, UsageError
from harness.kernels import apt, debian
from harness.kernels.apt import Package
from harness.kernels.debian import offers
from harness.kernels.model import Kernel
from harness.kernels.references import check, resolve
from harness.kernels.store import Store
from harness.kernels.unpack import image_release

pytestmark = pytest.mark.skipif(shutil.which("gpg") is None, reason="gpg signs the test archive")

# No package of the test archive has modules, so nothing of the root is used.
ROOT = Path("/nonexistent")


class World:
    """An archive with kernels, a cache, and what was said."""

    def __init__(self, tmp_path: Path) -> None:
        self.archive = Archive(tmp_path / "archive")
        self.stanzas: list[str] = []
        self.said: list[str] = []
        self.cache = tmp_path / "cache"

    def deb(
        self, name: str, version: str, files: dict[str, str], depends: str = "", arch: str = "amd64"
    ) -> None:
        self.stanzas.append(self.archive.deb(name, version, files, depends, arch))

    def old_style(self, release: str, version: str, *, headers: bool = True) -> None:
        """Packed as up to 6.12."""
        rel = f"{release}-cloud-amd64"
        boot = {f"boot/vmlinuz-{rel}": "image", f"boot/config-{rel}": "CONFIG_X86=y\n"}
        self.deb(f"linux-image-{rel}", version, boot, "kmod")
        self.deb(f"linux-image-{rel}-unsigned", version, {f"boot/vmlinuz-{rel}": "unsigned"})
        if headers:
            self.headers(release, version)

    def arm64(self, release: str, version: str) -> None:
        """As old_style, for the other architecture; kbuild's programs are there for both."""
        rel = f"{release}-cloud-arm64"
        boot = {f"boot/vmlinuz-{rel}": "image", f"boot/config-{rel}": "CONFIG_ARM64=y\n"}
        self.deb(f"linux-image-{rel}", version, boot, "kmod", "arm64")
        needs = f"linux-headers-{release}-common (= {version}), linux-kbuild-{release}"
        files = {f"usr/src/linux-headers-{rel}/Makefile": "include x\n"}
        self.deb(f"linux-headers-{rel}", version, files, needs, "arm64")
        common = {f"usr/src/linux-headers-{release}-common/Makefile": ""}
        self.deb(f"linux-headers-{release}-common", version, common, arch="all")
        for arch in ("amd64", "arm64"):
            kbuild = {f"usr/lib/linux-kbuild-{release}/scripts/runs-on": arch}
            self.deb(f"linux-kbuild-{release}", version, kbuild, arch=arch)

    def headers(self, release: str, version: str) -> None:
        rel = f"{release}-cloud-amd64"
        parts = f"linux-headers-{release}-common (= {version}), linux-kbuild-{release}, gcc-14"
        image = f"linux-image-{rel} (= {version}) | linux-image-{rel}-unsigned (= {version})"
        files = {f"usr/src/linux-headers-{rel}/Makefile": "include x\n"}
        link = f"lib/modules/{rel}/.keep"
        self.deb(f"linux-headers-{rel}", version, files | {link: ""}, f"{parts}, {image}")
        common = {f"usr/src/linux-headers-{release}-common/Makefile": ""}
        self.deb(f"linux-headers-{release}-common", version, common)
        kbuild = {f"usr/lib/linux-kbuild-{release}/scripts/basic": ""}
        self.deb(f"linux-kbuild-{release}", version, kbuild)

    def new_style(self, release: str, version: str, binary: str = "binary") -> None:
        """Packed as from 7.2 on."""
        rel = f"{release}-cloud-amd64"
        lib = f"usr/lib/modules/{rel}"
        needs = f"linux-{binary}-{rel} (= {version}), linux-modules-{rel} (= {version})"
        self.deb(f"linux-image-{rel}", version, {}, f"linux-base (>= 4), {needs}")
        name = "vmlinuz" if binary == "binary" else "vmlinuz.unsigned"
        self.deb(f"linux-{binary}-{rel}", version, {f"{lib}/{name}": f"{binary} image"})
        self.deb(f"linux-modules-{rel}", version, {"usr/share/doc/m/readme": ""})
        self.deb(f"linux-base-{rel}", version, {f"{lib}/config": "CONFIG_NEW=y\n"})

    def publish(self) -> None:
        self.archive.publish("trixie", self.stanzas)

    def resolve(self, reference: str, arch: Arch | None = None) -> Kernel:
        store = Store(self.cache)
        try:
            return resolve(reference, store, self.said.append, tools=lambda _: ROOT, arch=arch)
        finally:
            store.close()

    def age(self, seconds: float) -> None:
        """Make lists and remembered answers that much older."""
        for path in (self.cache / "state").glob("apt-*/kernels.json"):
            os.utime(path, (time.time() - seconds,) * 2)
        memory = self.cache / "state/debian-series.json"
        if memory.exists():
            memory.unlink()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tmp_path)
    config = tmp_path / "config/cohabit/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(f'[debian]\nmirror = "{made.archive.uri}"\n')
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("http_proxy", raising=False)
    monkeypatch.setattr(apt, "KEYRING", made.archive.keyring)
    # depmod is the one thing here that needs a real guest root.
    monkeypatch.setattr("harness.kernels.unpack._depmod", lambda *_: None)
    yield made
    made.archive.close()


@pytest.mark.parametrize("word", ["6.12", "debian", "debian:", "debian:x", "path:", "rpm:6.12"])
def test_forms(word: str) -> None:
    with pytest.raises(UsageError, match="no kernel reference") as caught:
        check(word)
    assert "debian:6.12" in caught.value.remedy


def test_newest_of_a_series_by_dpkg_order(world: World) -> None:
    for release, version in (
        ("9.12.9+deb13", "9.12.9-1"),
        ("9.12.10+deb12", "9.12.10-1~deb12u1"),
        ("9.12.10+deb13", "9.12.10-1"),
        ("9.1.99+deb13", "9.1.99-1"),
    ):
        world.old_style(release, version)
    world.publish()
    kernel = world.resolve("debian:9.12")
    assert kernel.release == "9.12.10+deb13-cloud-amd64"
    assert kernel.version == (9, 12)
    assert kernel.reference == "debian:9.12"
    assert kernel.image.read_text() == "image"
    assert kernel.config == {"CONFIG_X86": "y"}
    assert kernel.origin == "Debian's linux 9.12.10-1"
    assert "unsigned" not in kernel.origin
    assert (kernel.tree / "usr/src/linux-headers-9.12.10+deb13-common/Makefile").exists()
    assert (kernel.tree / "usr/lib/linux-kbuild-9.12.10+deb13/scripts/basic").exists()
    assert not (kernel.tree / "lib").exists()
    assert world.resolve("debian:9.12.10+deb12").release == "9.12.10+deb12-cloud-amd64"
    assert world.resolve("debian:9.1.99+deb13-cloud-amd64").version == (9, 1)


def test_headers_decide_within_a_series(world: World) -> None:
    world.old_style("9.2.1+t", "9.2.1-1")
    world.old_style("9.2.2+t", "9.2.2-1", headers=False)
    world.old_style("9.3.1+t", "9.3.1-1", headers=False)
    world.publish()
    assert world.resolve("debian:9.2").release == "9.2.1+t-cloud-amd64"
    exact = world.resolve("debian:9.2.2+t")
    assert not exact.headers
    assert world.resolve("debian:9.3").release == "9.3.1+t-cloud-amd64"
    assert any("no headers" in line for line in world.said)


@pytest.mark.parametrize("binary", ["binary", "binary-unsigned"])
def test_new_packaging(world: World, binary: str) -> None:
    world.new_style("9.4.1+t", "9.4.1-1", binary)
    world.publish()
    kernel = world.resolve("debian:9.4")
    assert kernel.image.name == "vmlinuz-9.4.1+t-cloud-amd64"
    assert kernel.image.read_text() == f"{binary} image"
    assert kernel.config == {"CONFIG_NEW": "y"}


def test_gone_from_the_pool(world: World) -> None:
    world.old_style("9.5.1+t", "9.5.1-1")
    world.old_style("9.5.2+t", "9.5.2-1")
    world.publish()
    (world.archive.top / "pool/linux-kbuild-9.5.2+t_9.5.2-1_amd64.deb").unlink()
    kernel = world.resolve("debian:9.5")
    assert kernel.release == "9.5.1+t-cloud-amd64"
    (line,) = [line for line in world.said if "gone from the mirror" in line]
    assert "linux-kbuild-9.5.2" in line
    assert "next older" in line
    with pytest.raises(InfraError, match="gone from the mirror"):
        world.resolve("debian:9.5.2+t")
    assert list((world.cache / "tmp").iterdir()) == []


def test_unknown_names_what_there_is(world: World) -> None:
    world.old_style("9.6.1+t", "9.6.1-1")
    world.publish()
    with pytest.raises(UsageError) as caught:
        world.resolve("debian:9.7")
    assert caught.value.remedy == "there are 9.6"
    with pytest.raises(UsageError) as caught:
        world.resolve("debian:9.6.2+t")
    assert caught.value.remedy == "near it: 9.6.1+t"


def test_warm_cache_asks_nobody(world: World) -> None:
    world.old_style("9.8.1+t", "9.8.1-1")
    world.publish()
    first = world.resolve("debian:9.8")
    world.archive.disconnect()
    shutil.rmtree(next((world.cache / "state").glob("apt-*")))
    world.said.clear()
    assert world.resolve("debian:9.8") == first
    assert world.resolve("debian:9.8.1+t").tree == first.tree
    assert world.said == []


def test_offline_a_series_is_the_newest_in_the_cache(world: World) -> None:
    world.old_style("9.9.9+t", "9.9.9-1")
    world.old_style("9.9.10+t", "9.9.10-1")
    world.publish()
    world.resolve("debian:9.9.10+t")
    world.resolve("debian:9.9.9+t")
    world.archive.disconnect()
    shutil.rmtree(next((world.cache / "state").glob("apt-*")))
    kernel = world.resolve("debian:9.9")
    assert kernel.release == "9.9.10+t-cloud-amd64"
    assert "using 9.9.10+t-cloud-amd64" in world.said[-1]


def test_a_series_moves_on_after_a_day(world: World) -> None:
    world.old_style("9.10.1+t", "9.10.1-1")
    world.publish()
    assert world.resolve("debian:9.10").release == "9.10.1+t-cloud-amd64"
    world.old_style("9.10.2+t", "9.10.2-1")
    world.publish()
    assert world.resolve("debian:9.10").release == "9.10.1+t-cloud-amd64"
    world.age(25 * 3600)
    assert world.resolve("debian:9.10").release == "9.10.2+t-cloud-amd64"


def test_damage_is_mended_from_the_mirror(world: World) -> None:
    world.old_style("9.11.1+t", "9.11.1-1")
    world.publish()
    kernel = world.resolve("debian:9.11")
    kernel.image.write_text("imag")
    assert world.resolve("debian:9.11").image.read_text() == "image"
    assert any("is damaged (boot/vmlinuz-9.11.1" in line for line in world.said)


def test_another_architecture(world: World) -> None:
    """Its own image and headers, and kbuild's programs for the host that runs them."""
    world.arm64("9.13.1+t", "9.13.1-1")
    world.old_style("9.13.2+t", "9.13.2-1")
    world.publish()
    kernel = world.resolve("debian:9.13", ARM64)
    assert (kernel.release, kernel.arch) == ("9.13.1+t-cloud-arm64", "arm64")
    assert (kernel.tree / f"usr/src/linux-headers-{kernel.release}/Makefile").is_file()
    assert kernel.config == {"CONFIG_ARM64": "y"}
    (runs_on,) = kernel.tree.glob("usr/lib/linux-kbuild-*/scripts/runs-on")
    assert runs_on.read_text() == host().debian
    assert world.resolve("debian:9.13", X86_64).arch == "x86_64"
    # Without a word the release says it, and --arch must not say otherwise.
    assert world.resolve("debian:9.13.1+t-cloud-arm64").tree == kernel.tree
    with pytest.raises(UsageError, match="is for arm64, not for x86_64"):
        world.resolve("debian:9.13.1+t-cloud-arm64", X86_64)
    with pytest.raises(
        UsageError, match="no reachable suite has a cloud kernel of that series for arm64"
    ):
        world.resolve("debian:9.14", ARM64)


def test_mixed_versions_are_not_put_together() -> None:
    def package(name: str, version: str) -> Package:
        return Package(name, version, "s", "", "u", "0", 1)

    rel = "9.1.1+t-cloud-amd64"
    found = offers(
        [package(f"linux-image-{rel}", "2"), package(f"linux-headers-{rel}", "1")],
        lambda _: True,
    )
    assert [(one.version, one.headers, len(one.packages)) for one in found] == [("2", False, 1)]
    assert debian.older("1~rc1", "1")


def bzimage(release: str) -> bytes:
    head = bytearray(0x400)
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x20E, 0x100)
    text = f"{release} (builder@test) #1 SMP".encode()
    head[0x300 : 0x300 + len(text)] = text
    return bytes(head)


def arm64_image(release: str) -> bytes:
    head = bytearray(0x400)
    head[0x38:0x3C] = b"ARM\x64"
    return bytes(head) + f"Linux version {release} (builder@test) #1 SMP".encode()


def test_directory(world: World, tmp_path: Path) -> None:
    directory = tmp_path / "my kernel"
    modules = directory / "lib/modules/9.1.0-mine+"
    (modules / "kernel").mkdir(parents=True)
    (modules / "kernel/a.ko.xz").write_bytes(lzma.compress(b"module"))
    (modules / "build").symlink_to("/usr/src/linux-headers-9.1.0-mine+")
    headers = directory / "usr/src/linux-headers-9.1.0-mine+"
    headers.mkdir(parents=True)
    (headers / "Makefile").write_text("")
    (directory / "vmlinuz").write_bytes(bzimage("9.1.0-mine+"))
    kernel = world.resolve(f"path:{directory}")
    assert (kernel.release, kernel.version, kernel.headers) == ("9.1.0-mine+", (9, 1), True)
    assert kernel.image.read_bytes() == bzimage("9.1.0-mine+")
    assert (kernel.modules / "kernel/a.ko").read_bytes() == b"module"
    assert not (kernel.modules / "kernel/a.ko.xz").exists()
    assert (kernel.modules / "build/Makefile").exists()
    assert (modules / "kernel/a.ko.xz").exists()
    assert kernel.config == {}
    # A new build in the same place is another kernel.
    (modules / "kernel/b.ko").write_bytes(b"more")
    again = world.resolve(f"path:{directory}")
    assert again.tree != kernel.tree
    assert (again.modules / "kernel/b.ko").exists()


def test_directory_without_or_with_two_kernels(world: World, tmp_path: Path) -> None:
    boot = tmp_path / "two/boot"
    boot.mkdir(parents=True)
    with pytest.raises(UsageError, match="no x86_64 or arm64 kernel image"):
        world.resolve(f"path:{tmp_path}/two")
    with pytest.raises(UsageError, match="is not a directory"):
        world.resolve(f"path:{tmp_path}/three")
    for release in ("9.1.0", "9.2.0"):
        (boot / f"vmlinuz-{release}").write_bytes(bzimage(release))
    with pytest.raises(UsageError, match=r"several kernels: 9\.1\.0, 9\.2\.0"):
        world.resolve(f"path:{tmp_path}/two")


def test_image_release(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bzimage("9.1.0"))
    assert image_release(path) == ("9.1.0", X86_64)
    path.write_bytes(arm64_image("9.1.0-cloud-arm64"))
    assert image_release(path) == ("9.1.0-cloud-arm64", ARM64)
    path.write_bytes(b"MZ" + bytes(2000))
    assert image_release(path) is None
