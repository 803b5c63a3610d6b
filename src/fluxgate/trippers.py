"""Trippers decide whether the circuit trips.

A tripper is a tree: rules joined by ``&`` and ``|``. Besides the plain question (is it met?) the engine asks
the tree five things about its structure, so that evidence and recovery follow from the rules themselves:

applies(state)      whether some branch concerns that state (`Closed` and `HalfOpened` say so)
evidenced(...)      whether every branch that applies has seen the calls that it needs
bars                the call counts at which a plain success can turn the answer
steady              whether apart from those bars a plain success (neither failed nor slow) can only lower it
limits              the figures by which it trips while the circuit is closed
"""

from collections.abc import Callable, Iterable
from typing import Any, Protocol, final

from . import _check
from ._limits import NO_LIMITS, Limits, limits_of
from ._text import in_words
from .metric import Metric, Verdict
from .state import CLOSED, State


class TripperLike(Protocol):
    """The least that serves as a tripper. It runs under the engine's lock: it must be pure and quick."""

    def __call__(self, metric: Metric, state: State, consecutive_failures: int, /) -> bool: ...


class Tripper:
    """Base of the trippers; adds ``&`` and ``|`` and the words for the verdict.

    A subclass defines ``__call__(metric, state, consecutive_failures)``, and may override `explain`.
    """

    bars: tuple[int, ...] = ()
    steady: bool = False
    thresholds: frozenset[float] = frozenset()
    """The slow thresholds (seconds) that it reads from `Metric.slow_counts`."""

    @property
    def limits(self) -> Limits:
        """The lowest limit of each kind by which it trips while the circuit is closed; a rule of the user's has none.

        `failure_rate` and `slow_rate` are ratios 0–1, `avg_latency` is seconds, `failure_streak` and `min_requests`
        are calls. What is joined by ``&`` has the highest of its parts; branches for `HalfOpened` alone do not count,
        nor does a `SlowRate` with a threshold of its own, which is not the circuit's slow rate.

        >>> dict(DEFAULT_TRIPPER.limits)
        {'min_requests': 100.0, 'failure_rate': 0.5}
        """
        return NO_LIMITS

    def __call__(self, metric: Metric, state: State, consecutive_failures: int, /) -> bool:
        """Whether the rule is met by the window's sums."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(metric, state, consecutive_failures)")

    def applies(self, state: State) -> bool:
        """Whether some branch concerns this state."""
        return True

    def evidenced(self, metric: Metric, state: State, *, patient: bool = True) -> bool:
        """Whether each branch that applies has the calls that it needs: one, where `MinRequests` does not say."""
        return metric.total_count > 0

    def least(self, state: State) -> int:
        """The fewest calls with which a branch that applies can trip."""
        return 1

    def trips(self, metric: Metric, state: State, consecutive_failures: int, *, patient: bool = True) -> bool:
        """Whether it trips. Once the engine is no longer `patient`, `MinRequests` counts as met."""
        return metric.total_count > 0 and bool(self(metric, state, consecutive_failures))

    def explain(self, metric: Metric, state: State, consecutive_failures: int, *, patient: bool = True) -> Verdict:
        """The same answer with its reasons."""
        met = self.trips(metric, state, consecutive_failures, patient=patient)
        return Verdict(repr(self), met, f"{self!r} {'is' if met else 'is not'} met after {_calls(metric.total_count)}")

    def __bool__(self) -> bool:
        raise TypeError(f"{self!r} has no truth value: combine trippers with & and |, not with `and` and `or`")

    def __and__(self, other: TripperLike) -> "Tripper":
        return _AllOf((self, as_tripper(other, "the right side of &")))

    def __rand__(self, other: TripperLike) -> "Tripper":
        return _AllOf((as_tripper(other, "the left side of &"), self))

    def __or__(self, other: TripperLike) -> "Tripper":
        return _AnyOf((self, as_tripper(other, "the right side of |")))

    def __ror__(self, other: TripperLike) -> "Tripper":
        return _AnyOf((as_tripper(other, "the left side of |"), self))


class _InState(Tripper):
    """A rule about the state alone; it narrows its branch and needs no evidence."""

    steady = True
    state: State

    def __call__(self, metric: Metric, state: State, consecutive_failures: int, /) -> bool:
        return state == self.state

    def applies(self, state: State) -> bool:
        return state == self.state

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
        return _compared(self, met, f"{_calls(metric.total_count)} seen ({need})", metric.total_count, self.n)

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
        total = metric.total_count  # `metric.failure_rate`, without a call: it is asked at each failure
        return total > 0 and metric.failure_count / total >= self.ratio

    def explain(self, metric: Metric, state: State, consecutive_failures: int, *, patient: bool = True) -> Verdict:
        met = self.trips(metric, state, consecutive_failures)
        text = _rate("failure rate", metric.failure_rate, self.ratio, metric.failure_count, metric.total_count)
        return _compared(self, met, text, metric.failure_rate, self.ratio)

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

    def explain(self, metric: Metric, state: State, consecutive_failures: int, *, patient: bool = True) -> Verdict:
        met = self.trips(metric, state, consecutive_failures)
        rate = self._count(metric) / metric.total_count if metric.total_count else None
        what = "slow rate" if self.threshold is None else f"slow rate (from {self.threshold:g} s)"
        text = _rate(what, rate, self.ratio, self._count(metric), metric.total_count)
        return _compared(self, met, text, rate, self.ratio)

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
        return _compared(self, met, f"{seen} (limit {self.seconds:g} s)", mean, self.seconds)

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

    def explain(self, metric: Metric, state: State, consecutive_failures: int, *, patient: bool = True) -> Verdict:
        met = self.trips(metric, state, consecutive_failures)
        text = (
            f"{consecutive_failures} {'failure' if consecutive_failures == 1 else 'failures'} in a row (limit {self.n})"
        )
        return _compared(self, met, text, consecutive_failures, self.n)

    def __repr__(self) -> str:
        return f"FailureStreak({self.n})"


@final
class _Plain(Tripper):
    """A plain callable in a tripper's clothes."""

    def __init__(self, judge: TripperLike) -> None:
        self.judge = judge

    def __call__(self, metric: Metric, state: State, consecutive_failures: int, /) -> bool:
        return bool(self.judge(metric, state, consecutive_failures))

    def __repr__(self) -> str:
        return getattr(self.judge, "__qualname__", None) or repr(self.judge)


class _Joined(Tripper):
    symbol: str
    word: str
    parts: tuple[Tripper, ...]
    decide: Callable[[Iterable[object]], bool]
    add_up: Callable[[Iterable[Limits]], Limits]

    def __init__(self, parts: tuple[Tripper, ...]) -> None:
        # a & b & c is one list of three, so that verdicts read as one sentence
        self.parts = tuple(leaf for part in parts for leaf in (part.parts if isinstance(part, type(self)) else (part,)))
        self.bars = tuple(sorted({bar for part in parts for bar in part.bars}))
        self.steady = all(part.steady for part in parts)
        self.thresholds = frozenset().union(*(part.thresholds for part in parts))

    @property
    def limits(self) -> Limits:
        telling = [part for part in self.parts if part.applies(CLOSED)] if self.applies(CLOSED) else ()
        return self.add_up(map(limits_of, telling))

    def __call__(self, metric: Metric, state: State, consecutive_failures: int, /) -> bool:
        return self.decide(part(metric, state, consecutive_failures) for part in self.parts)

    def applies(self, state: State) -> bool:
        return self.decide(part.applies(state) for part in self.parts)

    def evidenced(self, metric: Metric, state: State, *, patient: bool = True) -> bool:
        return all(part.evidenced(metric, state, patient=patient) for part in self.parts if part.applies(state))

    def explain(self, metric: Metric, state: State, consecutive_failures: int, *, patient: bool = True) -> Verdict:
        # a branch about another state has nothing to say here
        telling = [part for part in self.parts if part.applies(state)] or self.parts
        parts = tuple(_explained(part, metric, state, consecutive_failures, patient) for part in telling)
        return Verdict(repr(self), self.decide(part.met for part in parts), parts=parts, joined_by=self.word)

    def __repr__(self) -> str:
        # & binds tighter than |, so only alternatives within a conjunction need their brackets
        shown = (f"({part!r})" if isinstance(part, _Joined) else repr(part) for part in self.parts)
        return f" {self.symbol} ".join(shown)


@final
class _AllOf(_Joined):
    symbol = "&"
    word = "and"
    decide = staticmethod(all)
    add_up = Limits.all_of

    def trips(self, metric: Metric, state: State, consecutive_failures: int, *, patient: bool = True) -> bool:
        for part in self.parts:  # noqa: SIM110 - a generator would cost as much as the rules
            if not part.trips(metric, state, consecutive_failures, patient=patient):
                return False
        return True

    def least(self, state: State) -> int:
        return max(part.least(state) for part in self.parts)


@final
class _AnyOf(_Joined):
    symbol = "|"
    word = "or"
    decide = staticmethod(any)
    add_up = Limits.any_of

    def trips(self, metric: Metric, state: State, consecutive_failures: int, *, patient: bool = True) -> bool:
        fault: Exception | None = None
        for part in self.parts:
            try:
                if part.trips(metric, state, consecutive_failures, patient=patient):
                    return True
            except Exception as error:  # the rules beside a broken one still decide
                fault = error
        if fault is not None:
            raise fault
        return False

    def least(self, state: State) -> int:
        return min((part.least(state) for part in self.parts if part.applies(state)), default=1)


def as_tripper(value: Any, what: str) -> Tripper:
    """`value` as a `Tripper`, a plain callable being wrapped.

    Raises:
        TypeError: a class, or something that cannot be called.
    """
    _check.instance(value, what, "a tripper")
    if isinstance(value, Tripper):
        return value
    return _Plain(_check.function(value, what))


DEFAULT_TRIPPER: Tripper = (Closed() & MinRequests(100) & FailureRate(0.5)) | (
    HalfOpened() & MinRequests(10) & FailureRate(0.5)
)
"""Half of at least 100 calls, or of at least 10 probes."""


def _explained(rule: Tripper, metric: Metric, state: State, consecutive_failures: int, patient: bool) -> Verdict:
    try:
        return rule.explain(metric, state, consecutive_failures, patient=patient)
    except Exception:  # what the others saw is worth telling all the same
        return Verdict(in_words(rule), False, f"{in_words(rule)} failed")


def _calls(count: int) -> str:
    return f"{count} {'call' if count == 1 else 'calls'}"


def _rate(what: str, rate: float | None, limit: float, part: int, whole: int) -> str:
    seen = "no call yet" if rate is None else f"{what} {rate:.1%}".replace("%", " %")
    return f"{seen} (limit {limit * 100:.1f} %, {part} of {_calls(whole)})"


def _compared(rule: Tripper, met: bool, text: str, observed: float | None, limit: float) -> Verdict:
    return Verdict(repr(rule), met, text, observed, limit)
