# SPDX-License-Identifier: GPL-2.0-only
"""BPF programs as bcc compiled them: the same on every kernel of an architecture."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from pathlib import Path

_TREE = Path(__file__).resolve().parents[2]
SOURCE = _TREE / "bpf_progs" / "attach.bpf.c"
#: What decides what the compiler is given and how its output is read.
_INPUTS = (SOURCE, _TREE / "harness" / "agent" / "bpf.py", _TREE / "vm" / "rootfs.py")


class Programs:
    """Keeps compiled programs, in a directory for later runs too where one is given.

    ``arch``: of the guests that compile and load them.

    They are an agent's, by symbol, in hexadecimal.  Safe to use from several threads.
    A file that cannot be read or written is as good as none: what is compiled anew is
    the same.
    """

    def __init__(self, directory: Path | None = None, arch: str = "x86_64") -> None:
        self._lock = threading.Lock()
        self._programs: dict[str, str] | None = None
        self._path: Path | None = None
        digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in _INPUTS))
        #: What stands for all that they depend on.
        self.key = digest.hexdigest()
        if directory is not None:
            self._path = directory / f"bpf-programs-{arch}-{self.key[:16]}.json"
            with contextlib.suppress(OSError, ValueError):
                found = json.loads(self._path.read_text(encoding="ascii"))
                if isinstance(found, dict) and found:
                    self._programs = {str(k): str(v) for k, v in found.items()}

    @property
    def there(self) -> bool:
        """Whether nothing needs to be compiled any more."""
        with self._lock:
            return self._programs is not None

    def get(self) -> dict[str, str] | None:
        """The programs, or None where nobody has compiled them yet."""
        with self._lock:
            return self._programs

    def put(self, programs: dict[str, str]) -> None:
        """Keeps what was compiled; what is there already stays."""
        with self._lock:
            if self._programs is not None:
                return
            self._programs = dict(programs)
            if self._path is None:
                return
            with contextlib.suppress(OSError):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                # Renamed when whole: a run that ends here leaves no half of it.
                new = self._path.with_suffix(f".{os.getpid()}")
                new.write_text(json.dumps(self._programs), encoding="ascii")
                new.replace(self._path)
