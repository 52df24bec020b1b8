# SPDX-License-Identifier: GPL-2.0-only
"""The command line: one module a command; only here errors become exit statuses."""
