# SPDX-License-Identifier: GPL-2.0-only
"""What a build log says."""

from __future__ import annotations

from harness.kernels.modules import first_error, warnings

LOG = """\
make: Entering directory '/build'
  CC [M]  /build/main.o
/build/main.c: In function 'start':
/build/main.c:7:9: warning: unused variable 'x' [-Wunused-variable]
    7 |     int x;
      |         ^
/build/main.c:8:5: error: implicit declaration of function 'foo'
    8 |     foo();
      |     ^~~
make[2]: *** [scripts/Makefile.build:229: /build/main.o] Error 1
"""


def test_first_error_has_its_lines() -> None:
    expected = [
        "/build/main.c:8:5: error: implicit declaration of function 'foo'",
        "    8 |     foo();",
        "      |     ^~~",
    ]
    assert first_error(LOG) == "".join(f"\n    {line}" for line in expected)


def test_other_errors() -> None:
    modpost = 'CC x\nERROR: modpost: "foo" [/build/a.ko] undefined!\nmake: *** Error 1\n'
    assert first_error(modpost) == '\n    ERROR: modpost: "foo" [/build/a.ko] undefined!'
    assert "No rule" in first_error("a\nmake: *** No rule to make target 'x'.  Stop.\n")
    assert first_error("one\ntwo\n") == "\n    one\n    two"


def test_warnings() -> None:
    log = LOG + "WARNING: modpost: missing MODULE_LICENSE() in /build/a.o\n  LD [M] warning.o\n"
    assert warnings(log).splitlines() == [
        "/build/main.c:7:9: warning: unused variable 'x' [-Wunused-variable]",
        "WARNING: modpost: missing MODULE_LICENSE() in /build/a.o",
    ]
    assert warnings("  CC a.o\n") == ""
