# SPDX-License-Identifier: GPL-2.0-only
"""Scenarios: named lists of steps over functions, as plain data."""
