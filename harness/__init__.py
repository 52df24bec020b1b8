# SPDX-License-Identifier: GPL-2.0-only
"""cohabit: which attachers can live on one kernel function, with evidence."""

__version__ = "0.1.0"
