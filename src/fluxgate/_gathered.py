"""Calls that have gathered, to be recorded together; a window holds durations, of failures as negative numbers."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Collection
from struct import pack

FAILED_AT_ONCE = -5e-324
"""How a failure that took no time is held: the negative number nearest to zero."""
_SIGN = 7 if sys.byteorder == "little" else 0
"""The byte of a packed number that begins with its sign."""


class Failure(float):
    """A failed call among those that have gathered: its duration, negative."""

    __slots__ = ("at", "duration")

    duration: float
    at: float
    """Unix time in seconds."""


def failure_of(duration: float, at: float) -> Failure:
    """A failed call that took so long, in seconds."""
    failure = Failure(-duration or FAILED_AT_ONCE)
    failure.duration = duration
    failure.at = at
    return failure


class Gathered:
    """Calls that are slow by no threshold, in the order in which they ended, to be recorded together."""

    __slots__ = ("duration", "failures", "held")

    def __init__(self, calls: Collection[float]) -> None:
        packed = pack(f"{len(calls)}d", *calls)  # an array takes three times as long to read them one by one
        failures: list[Failure] = []
        if not packed[_SIGN::8].isascii():  # whether one is negative, in a twentieth of the time that `min` takes
            # a success is where a clock was set back under us
            calls = [call if isinstance(call, Failure) else max(call, 0.0) for call in calls]
            failures = [call for call in calls if isinstance(call, Failure)]
            packed = pack(f"{len(calls)}d", *calls)
        self.held = array("d", packed)
        """Their durations, a failure's being negative."""
        self.failures = failures
        self.duration = sum(calls) + sum([failure.duration - failure for failure in failures])
        """How long they took together, in seconds."""

    def streak_after(self, streak: int) -> int:
        """How many have failed since the last success, where before them it was that many."""
        failed = 0
        for held in reversed(self.held):
            if held >= 0:
                return failed
            failed += 1
        return streak + failed
