# SPDX-License-Identifier: GPL-2.0-only
"""``python -m harness.cli``: what the launcher runs."""

import sys

from .main import main

sys.exit(main())
