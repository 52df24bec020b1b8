# SPDX-License-Identifier: GPL-2.0-only
"""Virtual machines: QEMU, root file system, virtme-ng, console, sockets."""
