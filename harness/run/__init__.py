# SPDX-License-Identifier: GPL-2.0-only
"""Running scenarios: the session, the schedule, the record."""
