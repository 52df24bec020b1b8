# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's own selftests/livepatch: out of a source package, and what they print."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from debian_archive import Archive

from harness.errors import InfraError
from harness.kernels import apt, selftests
from harness.kernels.model import Kernel
from harness.kernels.store import Store
from harness.run.selftests import Rate, Result, Script, parse

DATA = Path(__file__).parents[1] / "data/selftests"
NAME = "linux-source-9.9"
SCRIPTS = "tools/testing/selftests/livepatch"
NEW = {
    "Makefile": "of the kernel",
    f"{SCRIPTS}/functions.sh": "functions",
    f"{SCRIPTS}/test-some.sh": "some",
    f"{SCRIPTS}/test_modules/Makefile": "obj-m",
    f"{SCRIPTS}/test_modules/test_klp.c": "module",
    "tools/testing/selftests/livepatch-other/test-no.sh": "no",
    "lib/vsprintf.c": "no",
}
OLD = {
    f"{SCRIPTS}/functions.sh": "functions",
    "lib/livepatch/Makefile": "obj-$(CONFIG_TEST_LIVEPATCH)",
    "lib/livepatch/test_klp.c": "module",
}


def recorded(name: str) -> str:
    return (DATA / f"{name}.txt").read_text(encoding="utf-8")


def test_tests_that_went_well() -> None:
    names = ("basic function patching", "multiple livepatches", "atomic replace livepatch")
    assert parse(recorded("ok")) == tuple(Result(name, "ok") for name in names)


@pytest.mark.parametrize(
    ("name", "outcome", "reason"),
    [
        ("not-ok", "not ok", "livepatch kselftest(s) failed"),
        (
            "error",
            "not ok",
            "insmod: ERROR: could not insert module test_modules/test_klp_livepatch.ko: "
            "File exists",
        ),
        ("skip", "SKIP", "failed to set kernel.ftrace_enabled = 0"),
        ("timeout", "not ok", "it has no result"),
    ],
)
def test_tests_that_did_not(name: str, outcome: str, reason: str) -> None:
    (test,) = parse(recorded(name))
    assert (test.outcome, test.reason) == (outcome, reason)


def test_standard_error_before_a_result() -> None:
    text = recorded("ok").replace("... ok", "... sysctl: cannot stat\nok", 1)
    assert [test.outcome for test in parse(text)] == ["ok"] * 3


def test_nothing_was_tested() -> None:
    assert parse("skip all tests: must be run as root\n") == ()


def test_only_scripts_that_went_well_count() -> None:
    two = (Result("a", "ok"), Result("b", "ok"))
    scripts = [
        Script("test-1.sh", 4.0, two, ""),
        Script("test-2.sh", 6.0, two, ""),
        Script("test-3.sh", 100.0, (*two, Result("c", "not ok")), "c: not ok"),
    ]
    assert Rate.of(scripts) == Rate(4, 10.0)
    assert Rate.of(scripts).a_second == 0.4
    assert Rate.of(scripts[2:]).a_second == 0.0


def source(files: Mapping[str, str]) -> bytes:
    """What is in a linux-source package."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz") as tar:
        for path, text in files.items():
            member = tarfile.TarInfo(f"{NAME}/{path}")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return packed.getvalue()


def deb(directory: Path, content: bytes) -> Path:
    """A package that holds it."""
    tree = directory / "package"
    for path, data in (
        (f"usr/src/{NAME}.tar.xz", content),
        ("usr/share/doc/copyright", b"free"),
        ("DEBIAN/control", b"Package: x\nVersion: 1\nArchitecture: all\nMaintainer: T <t@t>\n"),
    ):
        (tree / path).parent.mkdir(parents=True)
        (tree / path).write_bytes(data)
    target = directory / "source.deb"
    words = ["dpkg-deb", "--root-owner-group", "-Znone", "-b", str(tree), str(target)]
    subprocess.run(words, check=True, capture_output=True)
    return target


def content(tree: Path) -> dict[str, str]:
    files = (path for path in tree.rglob("*") if path.is_file())
    return {str(path.relative_to(tree)): path.read_text() for path in files}


@pytest.mark.parametrize(("files", "kind"), [(NEW, "new"), (OLD, "old")])
def test_unpack(tmp_path: Path, files: Mapping[str, str], kind: str) -> None:
    selftests.unpack(deb(tmp_path, source(files)), tmp_path / "tree")
    found = content(tmp_path / "tree")
    makefile = found.pop("modules/Makefile")
    assert f"M=$(CURDIR)/{kind} " in makefile
    expected = {
        "scripts/functions.sh": "functions",
        f"modules/{kind}/Makefile": next(v for v in files.values() if v.startswith("obj")),
        f"modules/{kind}/test_klp.c": "module",
    }
    if files is NEW:
        expected["scripts/test-some.sh"] = "some"
    assert found == expected


@pytest.mark.parametrize("lacking", [f"{SCRIPTS}/functions.sh", "lib/livepatch/"])
def test_source_without_the_tests(tmp_path: Path, lacking: str) -> None:
    files = {path: text for path, text in OLD.items() if not path.startswith(lacking)}
    with pytest.raises(InfraError, match=r"source\.deb has no selftests/livepatch") as caught:
        selftests.unpack(deb(tmp_path, source(files)), tmp_path / "tree")
    assert lacking in caught.value.remedy


@pytest.mark.parametrize("damage", ["no package", "cut", "no source", "changed source"])
def test_damaged_package(tmp_path: Path, damage: str) -> None:
    packed = source(NEW)
    half = len(packed) // 2
    changed = packed[:half] + b"?" * 16 + packed[half + 16 :]
    path = deb(tmp_path, {"no source": b"?", "changed source": changed}.get(damage, packed))
    whole = path.read_bytes()
    if damage == "no package":
        path.write_bytes(b"?" * 1000)
    elif damage == "cut":
        # In the padding: what is wanted is all there.
        path.write_bytes(whole[:-600])
    with pytest.raises(InfraError, match=r"source\.deb can't be unpacked:\s+\S"):
        selftests.unpack(path, tmp_path / "tree")


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Archive]:
    if shutil.which("gpg") is None:
        pytest.skip("gpg signs the test archive")
    made = Archive(tmp_path / "archive")
    monkeypatch.setattr(apt, "KEYRING", made.keyring)
    monkeypatch.delenv("http_proxy", raising=False)
    config = tmp_path / "config/cohabit/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(f'[debian]\nmirror = "{made.uri}"\n')
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    yield made
    made.close()


def publish(archive: Archive, *versions: str) -> None:
    packed = source(NEW)
    stanzas = [archive.deb(NAME, v, {f"usr/src/{NAME}.tar.xz": packed}) for v in versions]
    archive.publish("trixie", [archive.deb("linux-image-9.9.1-cloud-amd64", "1", {}), *stanzas])


def taken(tmp_path: Path, said: list[str], version: str) -> str:
    """The version of the source that is taken for a kernel of that version."""
    store = Store(tmp_path / "cache")
    found, tree = selftests.fetch(NAME, f"Debian's linux {version}", store, said.append)
    assert (tree / "scripts/test-some.sh").is_file()
    store.close()
    return found


def test_the_kernels_own_version_is_taken(archive: Archive, tmp_path: Path) -> None:
    publish(archive, "9.9.2-1", "9.9.10-1", "9.9.9-1")
    said: list[str] = []
    assert taken(tmp_path, said, "9.9.9-1") == "9.9.9-1"
    assert any(line.startswith(f"fetching {NAME} 9.9.9-1") for line in said)
    # From now on without the network and its lists.
    archive.disconnect()
    shutil.rmtree(tmp_path / "cache/state")
    assert taken(tmp_path, said, "9.9.9-1") == "9.9.9-1"


def test_else_the_newest(archive: Archive, tmp_path: Path) -> None:
    publish(archive, "9.9.2-1", "9.9.10-1", "9.9.9-1")
    assert taken(tmp_path, [], "9.9.8-1") == "9.9.10-1"


def test_one_that_is_gone_from_the_mirror(archive: Archive, tmp_path: Path) -> None:
    publish(archive, "9.9.2-1", "9.9.10-1", "9.9.9-1")
    (archive.top / "pool" / f"{NAME}_9.9.9-1_amd64.deb").unlink()
    said: list[str] = []
    assert taken(tmp_path, said, "9.9.9-1") == "9.9.10-1"
    assert any("9.9.9-1_amd64.deb is in the package list and gone" in line for line in said)


def test_no_source_package(archive: Archive, tmp_path: Path) -> None:
    publish(archive)
    with pytest.raises(InfraError, match=f"no reachable Debian suite has {NAME}") as caught:
        taken(tmp_path, [], "9.9.9-1")
    assert "Debian" in caught.value.remedy


@pytest.mark.parametrize("option", ["CONFIG_LIVEPATCH", "CONFIG_DYNAMIC_DEBUG"])
def test_kernel_that_cannot_run_them(tmp_path: Path, option: str) -> None:
    options = {"CONFIG_LIVEPATCH": "y", "CONFIG_DYNAMIC_DEBUG": "y"}
    del options[option]
    config = tmp_path / "config"
    config.write_text("".join(f"{name}={value}\n" for name, value in options.items()))
    kernel = Kernel(
        reference="path:x",
        release="9.9.1",
        arch="x86_64",
        version=(9, 9),
        image=tmp_path / "vmlinuz",
        tree=tmp_path,
        config_file=config,
        system_map=None,
        origin="x",
        headers=True,
    )
    with pytest.raises(InfraError, match=rf"9\.9\.1 can't run selftests/livepatch.*{option}"):
        selftests.prepare(kernel, tmp_path, Store(tmp_path / "cache"), lambda _: None)
