# SPDX-License-Identifier: GPL-2.0-only
"""The reference model: from a state and a step it predicts every witness.

Pure: no I/O, nothing read from the kernel but what the caller hands in.
"""
