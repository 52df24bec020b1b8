# SPDX-License-Identifier: GPL-2.0-only
"""The rules of the policy: what each says, where the kernel has it, and what would notice.

The model asks for a rule by its name (Profile.has) wherever it uses it, so that
``cohabit rules --survivors`` can take each away and see whether anything contradicts.
Three tables have them: who is refused, what attachers are, what is seen of them.
"""

from __future__ import annotations

from . import rules_attached, rules_refused, rules_shown
from .rule import Rule as Rule
from .rules_attached import *  # noqa: F403
from .rules_refused import *  # noqa: F403
from .rules_shown import *  # noqa: F403

#: All of them, by name.
RULES: dict[str, Rule] = {
    rule.name: rule
    for table in (rules_refused, rules_attached, rules_shown)
    for rule in vars(table).values()
    if isinstance(rule, Rule)
}
