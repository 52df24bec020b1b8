# SPDX-License-Identifier: GPL-2.0-only
"""Where the kernel under test runs."""
