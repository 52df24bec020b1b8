# SPDX-License-Identifier: GPL-2.0-only
"""What may be the case when, as far as the times of steps that overlap tell."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

Values = frozenset[str]


@dataclass
class Span:
    """From one time to another, in seconds, each of ``values`` may be."""

    begin: float
    end: float
    values: Values


@dataclass
class Timeline:
    """Spans without gaps, the last without an end."""

    spans: deque[Span] = field(default_factory=deque)

    @classmethod
    def of(cls, *values: str) -> Timeline:
        """One that was always so."""
        return cls(deque([Span(-math.inf, math.inf, frozenset(values))]))

    @property
    def last(self) -> Values:
        """What may be from now on."""
        return self.spans[-1].values

    def between(self, begin: float, end: float) -> Values:
        """All that may be at some time of an interval, both ends included."""
        return frozenset().union(
            *(s.values for s in self.spans if s.begin <= end and s.end >= begin)
        )

    def before(self, time: float) -> Values:
        """All that may be just before a time at which a step began."""
        found = [s.values for s in self.spans if s.begin < time <= s.end]
        return frozenset().union(*found) if found else self.spans[0].values

    def step(self, begin: float, end: float, meanwhile: Values, after: Values) -> None:
        """A step was done: ``meanwhile`` may be beside what was, ``after`` is then.

        No step may begin before the last one ended.
        """
        before = self.spans[-1]
        before.end = begin
        self.spans.append(Span(begin, end, before.values | meanwhile | after))
        self.spans.append(Span(end, math.inf, after))

    def may(self, begin: float, values: Values, where: Values) -> None:
        """From a time on ``values`` may be, too, wherever any of ``where`` may."""
        spans: deque[Span] = deque()
        for span in self.spans:
            concerned = span.end > begin and span.values & where
            if concerned and span.begin < begin:
                spans.append(Span(span.begin, begin, span.values))
                span.begin = begin
            if concerned:
                span.values |= values
            spans.append(span)
        self.spans = spans

    def forget(self, before: float) -> None:
        """Lets go of what ended before a time."""
        while len(self.spans) > 1 and self.spans[0].end < before:
            self.spans.popleft()
