"""Windows: the sliding record of calls, by count or by time.

`CountWindow` and `TimeWindow` are what users write: immutable descriptions that circuits may share. Each circuit
opens a record of its own from one: `CountRecord` costs 8 bytes a call, and half a byte for room to grow; `TimeRecord`
keeps sums in at most 100 slices, whatever the traffic.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Collection

from . import _check
from ._gathered import FAILED_AT_ONCE, Gathered
from ._typing import final
from .metric import Metric, make_metric

_SLICES = 100
_GATHERING = 1_000
# For all records that hold nothing, or count by no threshold: neither is written to.
_EMPTY = array("d")
_NO_COUNTS: list[int] = []


class Window:
    """Base of the two windows."""

    def open(self, slow_threshold: float, thresholds: Collection[float]) -> Record:
        """An empty record of this shape, for one circuit."""
        raise NotImplementedError

    @property
    def capacity(self) -> float:
        """The most calls that it can hold."""
        return math.inf

    @property
    def gathering(self) -> int | None:
        """Of the calls that gather before they are recorded, how many of the last suffice; ``None``: all count."""
        return None


@final
class CountWindow(Window):
    """The last `size` calls.

    Raises:
        TypeError, ValueError: `size` is not a whole number of at least 1.
    """

    def __init__(self, size: int) -> None:
        self.size = _check.whole(size, "CountWindow(size)")

    def open(self, slow_threshold: float, thresholds: Collection[float]) -> Record:
        return CountRecord(self.size, slow_threshold, thresholds)

    @property
    def capacity(self) -> float:
        return self.size

    @property
    def gathering(self) -> int | None:
        return self.size if self.size <= _GATHERING else None  # four times as large as in the window

    def __repr__(self) -> str:
        return f"CountWindow({self.size})"


@final
class TimeWindow(Window):
    """The calls that ended in the last `size` seconds.

    Time is cut into slices of ``size / 100``; a call is forgotten with its whole slice, at most one slice early and
    never late.

    Raises:
        TypeError, ValueError: `size` is not a number of at least 0.001.
    """

    def __init__(self, size: float) -> None:
        self.size = _check.number(size, "TimeWindow(size)", at_least=0.001)

    def open(self, slow_threshold: float, thresholds: Collection[float]) -> Record:
        return TimeRecord(self.size, slow_threshold, thresholds)

    def __repr__(self) -> str:
        return f"TimeWindow({self.size:g})"


class Record:
    """What one circuit has in its window. Not safe from threads: the core's lock guards it.

    `slow_threshold` and `thresholds` say which durations count as slow, and under which names.
    """

    __slots__ = ("slow_threshold", "streak", "thresholds")

    slow_threshold: float
    thresholds: tuple[float, ...]
    streak: int
    """Consecutive failures, also those that have left the window."""

    def add(self, now: float, wall: float, duration: float, failed: bool) -> None:
        """Record one call that ended at `now` (monotonic) and `wall` (Unix time)."""
        raise NotImplementedError

    def add_gathered(self, now: float, calls: list[float]) -> None:
        """Record those calls (see `_gathered`), each of which leaves the list in the very step that records it.

        So where a signal handler raises in the middle, the rest is there for the next; and one that calls the breaker
        in between records them itself.
        """
        raise NotImplementedError

    def metric(self, now: float) -> Metric:
        """The sums as of `now`."""
        raise NotImplementedError

    def total(self, now: float) -> int:
        """The number of calls held as of `now`."""
        raise NotImplementedError

    def failing_since(self, now: float) -> float | None:
        """Unix time of the first failure that is still held."""
        raise NotImplementedError

    def steady_until(self) -> float:
        """The monotonic time before which nothing held is forgotten by time."""
        return math.inf

    def rejudge(self, slow_threshold: float, thresholds: Collection[float]) -> None:
        """Change which durations count as slow."""
        raise NotImplementedError

    def is_slow(self, duration: float) -> bool:
        """Whether the duration reaches the circuit's slow threshold."""
        return duration >= self.slow_threshold


@final
class CountRecord(Record):
    """A ring of durations, a failure's being negative; grows with the calls until it is full.

    A signal handler, or a finalizer, may raise or record another call in the middle of `add` and `add_gathered`: what
    must agree changes there without a call in between, and so stays in step.
    """

    __slots__ = (
        "_counts",
        "_durations",
        "_failed_at",
        "_failures",
        "_floor",
        "_head",
        "_lap",
        "_laps",
        "_old_lap",
        "_size",
        "_slow",
    )

    def __init__(self, size: int, slow_threshold: float, thresholds: Collection[float]) -> None:
        self._size = size
        self._laps = 0  # with the head, how far it has come: the head alone may come round
        self._head: int = 0
        self.streak = 0
        self.thresholds = ()
        self._clear(0, 0)
        self.rejudge(slow_threshold, thresholds)

    def _clear(self, laps: int, head: int) -> None:
        counts = [0] * len(self.thresholds) if self.thresholds else _NO_COUNTS
        if self._laps != laps or self._head != head:
            return  # another call was recorded meanwhile
        self._laps += 1
        self._head = 0
        self._durations = _EMPTY
        self._failures = 0
        self._failed_at = _EMPTY  # of the last failures, some that have left the ring among them, until they are many
        self._slow = 0
        self._counts = counts
        # Two sums, of this lap around the ring and of what is left of the last one: each starts afresh with a
        # lap, so that adding and subtracting floats cannot drift for ever.
        self._lap = 0.0
        self._old_lap = 0.0

    def rejudge(self, slow_threshold: float, thresholds: Collection[float]) -> None:
        thresholds = tuple(sorted(thresholds))
        floor = min((slow_threshold, *thresholds))
        while True:
            laps, head = self._laps, self._head
            durations = [abs(held) for held in self._durations]
            slow = sum([duration >= slow_threshold for duration in durations])
            counts = [sum([duration >= threshold for duration in durations]) for threshold in thresholds] or _NO_COUNTS
            if self._head != head or self._laps != laps:
                continue  # another call was recorded meanwhile
            # From here on no call.
            self.slow_threshold = slow_threshold
            self.thresholds = thresholds
            self._floor = floor
            self._slow = slow
            self._counts = counts
            return

    def add(self, now: float, wall: float, duration: float, failed: bool) -> None:
        held, times = duration, _EMPTY
        if failed:
            held, times = -duration or FAILED_AT_ONCE, array("d", (wall,))
        if self._durations is _EMPTY:
            fresh = array("d")
            self._durations = self._durations or fresh  # making it may have recorded another call
        if duration >= self._floor:
            self._count_slow(duration, 1)
        head, gone = -1, _EMPTY
        while head != self._head:  # making the array may run a finalizer that records another call
            head = self._head
            gone = self._durations[head : head + 1]
        # From here on no call, and nothing made,
        old = 0.0
        if gone:
            old = gone[0]
            self._durations[head] = held
            if old < 0:
                self._failures -= 1
                self._old_lap += old
            else:
                self._old_lap -= old
        if failed:
            if self._failed_at is _EMPTY:
                self._failed_at = times
            else:
                self._failed_at += times
            self._failures += 1
            self.streak += 1
        else:
            self.streak = 0
        self._lap += duration
        self._head = head = head + 1
        if head == self._size:
            self._head = 0
            self._laps += 1
            self._old_lap, self._lap = self._lap, 0.0
        # up to here.
        if not gone:
            self._durations.append(held)
        if old < 0 or old >= self._floor:
            self._forget(old)

    def add_gathered(self, now: float, calls: list[float]) -> None:
        while calls:
            laps, head = self._laps, self._head
            if len(calls) >= self._size and self._durations is not _EMPTY:  # nothing older stays
                self._clear(laps, head)
                continue
            begin = max(len(calls) - self._size, 0)
            done = slice(0, begin + self._size - head)
            gathered = Gathered(calls[begin : done.stop])
            chunk = gathered.held
            end = head + len(chunk)
            old = self._durations[head:end]
            noted: list[float] = []
            if self._failures or self._slow or any(self._counts):
                floor = self._floor
                noted = [each for each in old if not 0 <= each < floor]
            failed = [each for each in noted if each < 0]
            more = len(gathered.failures) - len(failed)
            gone = sum(old) - 2 * sum(failed)
            times = array("d", [failure.at for failure in gathered.failures])
            streak = gathered.streak_after(self.streak)
            place = slice(head, end)
            if self._head != head or self._laps != laps:
                continue  # another call was recorded meanwhile, or these were
            # From here on no call, and nothing made,
            if self._durations is _EMPTY:
                self._durations = chunk
            else:
                self._durations[place] = chunk
            if times and self._failed_at is _EMPTY:
                self._failed_at = times
            elif times:
                self._failed_at += times
            self._failures += more
            self.streak = streak
            self._old_lap -= gone
            self._lap += gathered.duration
            self._head = end
            if end == self._size:
                self._head = 0
                self._laps += 1
                self._old_lap, self._lap = self._lap, 0.0
            del calls[done]
            # up to here.
            for each in noted:
                self._forget(each)

    def _forget(self, held: float) -> None:
        """Of a call that has left the ring, what is not in step with it."""
        if held < 0 and len(self._failed_at) > 2 * self._failures:
            del self._failed_at[: -self._failures or None]  # half of them, half as often as they come
        if abs(held) >= self._floor:
            self._count_slow(abs(held), -1)

    def _count_slow(self, duration: float, step: int) -> None:
        if duration >= self.slow_threshold:
            self._slow += step
        thresholds, counts = self.thresholds, self._counts  # at once: `rejudge` puts others there
        for index, threshold in enumerate(thresholds):
            if duration >= threshold:
                counts[index] += step

    def metric(self, now: float) -> Metric:
        duration = max(self._lap + self._old_lap, 0.0)
        counts = dict(zip(self.thresholds, self._counts, strict=True)) if self.thresholds else {}
        return make_metric(len(self._durations), self._failures, duration, self._slow, counts)

    def total(self, now: float) -> int:
        return len(self._durations)

    def failing_since(self, now: float) -> float | None:
        failures = self._failures
        # From here on no call, in which a signal handler's might let times go.
        first = self._failed_at[-failures : 1 - failures or None]
        return first[0] if failures else None


class _Slice:
    """The sums of one slice of time."""

    __slots__ = ("counts", "duration", "failures", "first_failure", "number", "slow", "total")

    def __init__(self, number: int) -> None:
        self.number = number
        self.total = 0
        self.failures = 0
        self.duration = 0.0
        self.slow = 0
        self.counts: dict[float, int] = {}
        """By threshold, where there are any."""
        self.first_failure = 0.0


@final
class TimeRecord(Record):
    """Sums by slice of time; only slices in which calls ended are kept."""

    __slots__ = ("_failures", "_number", "_slices", "_total", "_width")

    def __init__(self, size: float, slow_threshold: float, thresholds: Collection[float]) -> None:
        self._width = size / _SLICES
        self._slices: deque[_Slice] = deque()
        self._total = 0
        self._failures = 0
        self._number = -(2**63)  # before any clock
        self.streak = 0
        self.slow_threshold = slow_threshold
        self.thresholds = tuple(sorted(thresholds))

    def rejudge(self, slow_threshold: float, thresholds: Collection[float]) -> None:
        thresholds = tuple(sorted(thresholds))
        for each in [*self._slices]:
            for threshold in [*each.counts]:
                if threshold not in thresholds:
                    each.counts.pop(threshold, None)
        self.slow_threshold = slow_threshold
        self.thresholds = thresholds

    def add(self, now: float, wall: float, duration: float, failed: bool) -> None:
        here = self._slice(now)
        self._total += 1
        here.total += 1
        here.duration += duration
        if failed:
            if not here.failures:
                here.first_failure = wall
            self._failures += 1
            here.failures += 1
            self.streak += 1
        else:
            self.streak = 0
        if duration >= self.slow_threshold:
            here.slow += 1
        for threshold in self.thresholds:
            if duration >= threshold:
                if threshold in here.counts:
                    here.counts[threshold] += 1
                else:
                    here.counts[threshold] = 1

    def add_gathered(self, now: float, calls: list[float]) -> None:
        while calls:
            here = self._slice(now)
            total = here.total
            gathered = Gathered(calls[:])
            number, failures = len(gathered.held), gathered.failures
            failed, streak = len(failures), gathered.streak_after(self.streak)
            if here.total != total:
                continue  # another call was recorded meanwhile, or these were
            # From here on no call.
            self._total += number
            here.total += number
            here.duration += gathered.duration
            self.streak = streak
            if failed:
                if not here.failures:
                    here.first_failure = failures[0].at
                self._failures += failed
                here.failures += failed
            del calls[:]

    def _slice(self, now: float) -> _Slice:
        self._forget(now)
        if not self._slices or self._slices[-1].number < self._number:
            self._slices.append(_Slice(self._number))
        return self._slices[-1]

    def _forget(self, now: float) -> None:
        # never backwards: threads hand in their times slightly out of order
        self._number = max(self._number, math.floor(now / self._width))
        while True:  # not on that condition: a signal handler may come between it and the next line
            if not self._slices or self._slices[0].number > self._number - _SLICES:
                return
            gone = self._slices[0]
            self._total -= gone.total
            self._failures -= gone.failures
            self._slices.popleft()

    def metric(self, now: float) -> Metric:
        self._forget(now)
        slices = [*self._slices]  # meanwhile a signal handler may record a call
        counts = {threshold: sum(each.counts.get(threshold, 0) for each in slices) for threshold in self.thresholds}
        return make_metric(
            self._total,
            self._failures,
            sum(each.duration for each in slices),
            sum(each.slow for each in slices),
            counts,
        )

    def total(self, now: float) -> int:
        self._forget(now)
        return self._total

    def failing_since(self, now: float) -> float | None:
        self._forget(now)
        return next((each.first_failure for each in [*self._slices] if each.failures), None)

    def steady_until(self) -> float:
        return (self._number + 1) * self._width
