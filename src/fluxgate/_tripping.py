"""What all trippers have, and how rules are joined to trees.

Besides the plain question (is it met?) the engine asks the tree six things about its structure, so that evidence and
recovery follow from the rules themselves:

applies(state)      whether some branch concerns that state (`Closed` and `HalfOpened` say so)
evidenced(...)      whether every branch that applies has seen the calls that it needs
bars                the call counts at which a plain success can turn the answer
steady              whether apart from those bars a plain success (neither failed nor slow) can only lower it
spare(...)          how many failures cannot trip it yet
limits              the figures by which it trips while the circuit is closed
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from . import _check
from ._limits import NO_LIMITS, Limits, limits_of
from ._text import calls_in_words, in_words
from ._typing import TYPE_CHECKING, final
from .metric import Metric, Verdict
from .state import CLOSED, State

if TYPE_CHECKING:
    from typing import Any

    from ._protocols import TripperLike


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

        >>> from fluxgate.trippers import DEFAULT_TRIPPER
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

    def spare(self, metric: Metric, consecutive_failures: int) -> float:
        """How many more failures surely do not trip a closed circuit, whatever successes come between.

        As long as neither is slow by its `thresholds`, and no call is forgotten by time: 0 where it cannot tell.
        """
        return 0

    def explain(self, metric: Metric, state: State, consecutive_failures: int, *, patient: bool = True) -> Verdict:
        """The same answer with its reasons."""
        met = self.trips(metric, state, consecutive_failures, patient=patient)
        return Verdict(
            repr(self), met, f"{self!r} {'is' if met else 'is not'} met after {calls_in_words(metric.total_count)}"
        )

    def __bool__(self) -> bool:
        raise TypeError(f"{self!r} has no truth value: combine trippers with & and |, not with `and` and `or`")

    def __and__(self, other: TripperLike) -> Tripper:
        return _AllOf((self, as_tripper(other, "the right side of &")))

    def __rand__(self, other: TripperLike) -> Tripper:
        return _AllOf((as_tripper(other, "the left side of &"), self))

    def __or__(self, other: TripperLike) -> Tripper:
        return _AnyOf((self, as_tripper(other, "the right side of |")))

    def __ror__(self, other: TripperLike) -> Tripper:
        return _AnyOf((as_tripper(other, "the left side of |"), self))


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

    def spare(self, metric: Metric, consecutive_failures: int) -> float:
        return max(part.spare(metric, consecutive_failures) for part in self.parts)

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

    def spare(self, metric: Metric, consecutive_failures: int) -> float:
        return min(part.spare(metric, consecutive_failures) for part in self.parts)

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


def _explained(rule: Tripper, metric: Metric, state: State, consecutive_failures: int, patient: bool) -> Verdict:
    try:
        return rule.explain(metric, state, consecutive_failures, patient=patient)
    except Exception:  # what the others saw is worth telling all the same
        return Verdict(in_words(rule), False, f"{in_words(rule)} failed")
