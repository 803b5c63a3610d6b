"""Trippers decide whether the circuit trips: rules, joined by ``&`` and ``|`` to a tree (see `_tripping`)."""

from __future__ import annotations

import math

from . import _check
from ._limits import NO_LIMITS, Limits
from ._text import calls_in_words
from ._tripping import Tripper
from ._typing import TYPE_CHECKING, final, when_asked_for
from .metric import Metric, Verdict, compared, rate_in_words
from .state import CLOSED, State

if TYPE_CHECKING:
    from ._protocols import TripperLike
else:
    __getattr__, __dir__ = when_asked_for(__name__, "TripperLike")

__all__ = [
    "DEFAULT_TRIPPER",
    "AvgLatency",
    "Closed",
    "FailureRate",
    "FailureStreak",
    "HalfOpened",
    "MinRequests",
    "SlowRate",
    "Tripper",
    "TripperLike",
]


class _InState(Tripper):
    """A rule about the state alone; it narrows its branch and needs no evidence."""

    steady = True
    state: State

    def __call__(self, metric: Metric, state: State, consecutive_failures: int, /) -> bool:
        return state == self.state

    def applies(self, state: State) -> bool:
        return state == self.state

    def spare(self, metric: Metric, consecutive_failures: int) -> float:
        return 0 if self.state == CLOSED else math.inf

    def explain(self, metric: Metric, state: State, consecutive_failures: int, *, patient: bool = True) -> Verdict:
        return Verdict(repr(self), state == self.state)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


@final
class Closed(_InState):
    """Narrows a branch to a closed circuit.

    >>> rule = Closed() & MinRequests(10) & FailureRate(0.5)
    """

    state = State.CLOSED


@final
class HalfOpened(_InState):
    """Narrows a branch to a half-open circuit, whose window holds the probes alone."""

    state = State.HALF_OPEN


class _Limited(Tripper):
    """A rule with a figure to reach."""

    kind: str
    limit: float

    @property
    def limits(self) -> Limits:
        return Limits({self.kind: self.limit})


@final
class MinRequests(_Limited):
    """The bar of evidence: true once `n` calls are in the window.

    Below it its branch neither trips nor declares recovery. In a half-open circuit older than
    `half_open_timeout` it counts as met, so that few calls still decide.

    Raises:
        TypeError, ValueError: `n` is not a whole number of at least 1.
    """

    kind = "min_requests"
    steady = True

    def __init__(self, n: int) -> None:
        self.n = self.limit = _check.whole(n, "MinRequests(n)")
        self.bars = (self.n,)

    def least(self, state: State) -> int:
        return self.n

    def __call__(self, metric: Metric, state: State, consecutive_failures: int, /) -> bool:
        return metric.total_count >= self.n

    def evidenced(self, metric: Metric, state: State, *, patient: bool = True) -> bool:
        return metric.total_count >= (self.n if patient else 1)

    def trips(self, metric: Metric, state: State, consecutive_failures: int, *, patient: bool = True) -> bool:
        return metric.total_count >= (self.n if patient else 1)

    def explain(self, metric: Metric, state: State, consecutive_failures: int, *, patient: bool = True) -> Verdict:
        met = self.evidenced(metric, state, patient=patient)
        need = f"{self.n} needed" + ("" if patient or metric.total_count >= self.n else ", waived after waiting")
        return compared(self, met, f"{calls_in_words(metric.total_count)} seen ({need})", metric.total_count, self.n)

    def __repr__(self) -> str:
        return f"MinRequests({self.n})"


@final
class FailureRate(_Limited):
    """True once failures per call reach `ratio`.

    Raises:
        TypeError, ValueError: `ratio` is not a number above 0 and at most 1.

    >>> metric = Metric(total_count=100, failure_count=62, total_duration=1.0, slow_count=0)
    >>> str(FailureRate(0.5).explain(metric, State.CLOSED, 3))
    'failure rate 62.0 % (limit 50.0 %, 62 of 100 calls)'
    """

    kind = "failure_rate"
    steady = True

    def __init__(self, ratio: float) -> None:
        self.ratio = self.limit = _check.number(ratio, "FailureRate(ratio)", above=0, at_most=1)

    def __call__(self, metric: Metric, state: State, consecutive_failures: int, /) -> bool:
        total = metric.total_count  # `metric.failure_rate`, without a call
        return total > 0 and metric.failure_count / total >= self.ratio

    def spare(self, metric: Metric, consecutive_failures: int) -> float:
        # The window never shrinks meanwhile. The product may be rounded up to a whole number: hence one less.
        return max(math.floor(self.ratio * metric.total_count) - metric.failure_count - 1, 0)

    def explain(self, metric: Metric, state: State, consecutive_failures: int, *, patient: bool = True) -> Verdict:
        met = self.trips(metric, state, consecutive_failures)
        text = rate_in_words("failure rate", metric.failure_rate, self.ratio, metric.failure_count, metric.total_count)
        return compared(self, met, text, metric.failure_rate, self.ratio)

    def __repr__(self) -> str:
        return f"FailureRate({self.ratio:g})"


@final
class SlowRate(_Limited):
    """True once slow calls per call reach `ratio`.

    Slow is a call that reached the circuit's `slow_threshold`, or `threshold` seconds where given. A threshold
    that `configure` brings in counts the calls from then on in a `TimeWindow`, and all calls held in a `CountWindow`.

    Raises:
        TypeError, ValueError: `ratio` is not a number above 0 and at most 1, or `threshold` not one above 0.
    """

    kind = "slow_rate"
    steady = True

    def __init__(self, ratio: float, threshold: float | None = None) -> None:
        self.ratio = self.limit = _check.number(ratio, "SlowRate(ratio)", above=0, at_most=1)
        self.threshold = None if threshold is None else _check.number(threshold, "SlowRate(threshold=)", above=0)
        if self.threshold is not None:
            self.thresholds = frozenset((self.threshold,))

    @property
    def limits(self) -> Limits:
        # a threshold of its own makes it a share of other calls than those that the circuit calls slow
        return super().limits if self.threshold is None else NO_LIMITS

    def _count(self, metric: Metric) -> int:
        return metric.slow_count if self.threshold is None else metric.slow_counts.get(self.threshold, 0)

    def __call__(self, metric: Metric, state: State, consecutive_failures: int, /) -> bool:
        return metric.total_count > 0 and self._count(metric) / metric.total_count >= self.ratio

    def spare(self, metric: Metric, consecutive_failures: int) -> float:
        return 0 if self(metric, CLOSED, consecutive_failures) else math.inf

    def explain(self, metric: Metric, state: State, consecutive_failures: int, *, patient: bool = True) -> Verdict:
        met = self.trips(metric, state, consecutive_failures)
        rate = self._count(metric) / metric.total_count if metric.total_count else None
        what = "slow rate" if self.threshold is None else f"slow rate (from {self.threshold:g} s)"
        text = rate_in_words(what, rate, self.ratio, self._count(metric), metric.total_count)
        return compared(self, met, text, rate, self.ratio)

    def __repr__(self) -> str:
        more = "" if self.threshold is None else f", threshold={self.threshold:g}"
        return f"SlowRate({self.ratio:g}{more})"


@final
class AvgLatency(_Limited):
    """True once the mean duration in the window reaches `seconds`.

    Raises:
        TypeError, ValueError: `seconds` is not a number above 0.
    """

    kind = "avg_latency"

    def __init__(self, seconds: float) -> None:
        self.seconds = self.limit = _check.number(seconds, "AvgLatency(seconds)", above=0)

    def __call__(self, metric: Metric, state: State, consecutive_failures: int, /) -> bool:
        mean = metric.avg_duration
        return mean is not None and mean >= self.seconds

    def explain(self, metric: Metric, state: State, consecutive_failures: int, *, patient: bool = True) -> Verdict:
        met = self.trips(metric, state, consecutive_failures)
        mean = metric.avg_duration
        seen = "no call yet" if mean is None else f"average latency {mean:.3f} s"
        return compared(self, met, f"{seen} (limit {self.seconds:g} s)", mean, self.seconds)

    def __repr__(self) -> str:
        return f"AvgLatency({self.seconds:g})"


@final
class FailureStreak(_Limited):
    """True once `n` calls in a row have failed; ignored and cancelled calls neither add nor break.

    Raises:
        TypeError, ValueError: `n` is not a whole number of at least 1.
    """

    kind = "failure_streak"
    steady = True

    def __init__(self, n: int) -> None:
        self.n = self.limit = _check.whole(n, "FailureStreak(n)")

    def __call__(self, metric: Metric, state: State, consecutive_failures: int, /) -> bool:
        return consecutive_failures >= self.n

    def spare(self, metric: Metric, consecutive_failures: int) -> float:
        return max(self.n - consecutive_failures - 1, 0)

    def explain(self, metric: Metric, state: State, consecutive_failures: int, *, patient: bool = True) -> Verdict:
        met = self.trips(metric, state, consecutive_failures)
        text = (
            f"{consecutive_failures} {'failure' if consecutive_failures == 1 else 'failures'} in a row (limit {self.n})"
        )
        return compared(self, met, text, consecutive_failures, self.n)

    def __repr__(self) -> str:
        return f"FailureStreak({self.n})"


DEFAULT_TRIPPER: Tripper = (Closed() & MinRequests(100) & FailureRate(0.5)) | (
    HalfOpened() & MinRequests(10) & FailureRate(0.5)
)
"""Half of at least 100 calls, or of at least 10 probes."""
