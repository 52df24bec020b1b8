# SPDX-License-Identifier: GPL-2.0-only
"""The part that runs on the kernel under test.

It acts and observes; it knows no policy.  Standard library only (bcc and
pyroute2 are imported when a request needs them), Python 3.9 or newer, run as
``python3 -m agent PORT`` from the directory above.
"""
