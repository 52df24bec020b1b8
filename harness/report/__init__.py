# SPDX-License-Identifier: GPL-2.0-only
"""Reports of a run, one module a format; all of them read ``model.RunModel``."""
