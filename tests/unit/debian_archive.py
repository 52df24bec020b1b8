# SPDX-License-Identifier: GPL-2.0-only
"""A small signed Debian archive on this machine, served over HTTP, for real apt runs."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping
from email.utils import formatdate
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

DAY = 24 * 3600


class Archive:
    """Packages in suites; ``publish`` writes and signs the indices of one suite."""

    def __init__(self, top: Path) -> None:
        self.top = top / "debian"
        self._scratch = top / "scratch"
        self._home = top / "gnupg"
        self.keyring = top / "keyring.gpg"
        self._published = 0
        (self.top / "pool").mkdir(parents=True)
        self._home.mkdir(mode=0o700)
        words = ["--quick-gen-key", "archive@test", "ed25519", "sign", "never"]
        self._gpg("--passphrase", "", *words)
        self._gpg("-o", str(self.keyring), "--export")
        handler = partial(_Quiet, directory=str(top))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.requests = []  # type: ignore[attr-defined]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.uri = f"http://127.0.0.1:{self._server.server_address[1]}/debian"

    def close(self) -> None:
        self.disconnect()
        env = os.environ | {"GNUPGHOME": str(self._home)}
        subprocess.run(["gpgconf", "--kill", "all"], env=env, check=False)

    def disconnect(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def requests(self) -> list[str]:
        """The paths asked for so far."""
        found: list[str] = self._server.requests  # type: ignore[attr-defined]
        return found

    def deb(
        self,
        name: str,
        version: str,
        files: Mapping[str, str | bytes],
        depends: str = "",
        arch: str = "amd64",
    ) -> str:
        """Build a package; returns its stanza for ``publish``."""
        tree = self._scratch / name
        shutil.rmtree(tree, ignore_errors=True)
        for path, content in files.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_bytes(content.encode() if isinstance(content, str) else content)
        (tree / "DEBIAN").mkdir(parents=True, exist_ok=True)
        control = f"Package: {name}\nVersion: {version}\nArchitecture: {arch}\n"
        control += "Maintainer: T <t@test>\n"
        control += f"Depends: {depends}\n" if depends else ""
        (tree / "DEBIAN/control").write_text(f"{control}Description: test\n")
        target = self.top / "pool" / f"{name}_{version}_{arch}.deb"
        words = ["dpkg-deb", "--root-owner-group", "-Znone", "-b", str(tree), str(target)]
        subprocess.run(words, check=True, capture_output=True)
        packed = target.read_bytes()
        stanza = f"{control}Filename: pool/{target.name}\nSize: {len(packed)}\n"
        return f"{stanza}SHA256: {hashlib.sha256(packed).hexdigest()}\nDescription: test\n"

    def publish(self, suite: str, stanzas: list[str], *, valid_for: int = DAY) -> None:
        """Write Packages and a signed InRelease that is valid for some seconds."""
        dists = self.top / "dists" / suite
        sums = ""
        for arch in ("amd64", "arm64"):
            name = f"main/binary-{arch}/Packages"
            wanted = (f"Architecture: {arch}\n", "Architecture: all\n")
            found = [s for s in stanzas if any(line in s for line in wanted)]
            packages = "\n".join(found).encode()
            (dists / name).parent.mkdir(parents=True, exist_ok=True)
            (dists / name).write_bytes(packages)
            sums += f" {hashlib.sha256(packages).hexdigest()} {len(packages)} {name}\n"
        made = min(0, valid_for) - 60
        release = (
            f"Origin: Debian\nLabel: Debian\nSuite: {suite}\nCodename: {suite}\n"
            f"Date: {_date(made)}\nValid-Until: {_date(valid_for)}\n"
            f"Architectures: amd64 arm64\nComponents: main\nSHA256:\n{sums}"
        )
        (dists / "Release").write_text(release)
        (dists / "InRelease").unlink(missing_ok=True)
        self._gpg("-o", str(dists / "InRelease"), "--clearsign", str(dists / "Release"))
        # HTTP's times are whole seconds: two in one second would be one to apt.
        self._published += 10
        os.utime(dists / "InRelease", (time.time() - DAY + self._published,) * 2)

    def _gpg(self, *words: str) -> None:
        subprocess.run(
            ["gpg", "--homedir", str(self._home), "--batch", "--yes", *words],
            check=True,
            capture_output=True,
        )


def _date(seconds: int) -> str:
    return formatdate(time.time() + seconds, usegmt=True)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        self.server.requests.append(self.path)  # type: ignore[attr-defined]
