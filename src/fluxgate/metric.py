"""The sums of a window, and the verdict that a tripper reaches on them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from . import _check
from ._record import Record
from ._text import calls_in_words
from ._typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

_NO_COUNTS: Mapping[float, int] = MappingProxyType({})


class Metric(Record):
    """What a window holds at one moment: counts of calls, and durations in seconds.

    >>> metric = Metric(total_count=4, failure_count=1, total_duration=2.0, slow_count=0)
    >>> metric.failure_rate, metric.avg_duration
    (0.25, 0.5)
    """

    __slots__ = ("total_count", "failure_count", "total_duration", "slow_count", "slow_counts")

    total_count: int
    """Calls recorded: successes and failures; ignored and cancelled calls are not."""
    failure_count: int
    total_duration: float
    """The sum of the durations, in seconds."""
    slow_count: int
    """Calls that reached the circuit's `slow_threshold`."""
    slow_counts: Mapping[float, int]
    """Calls that reached each threshold (seconds) which a `SlowRate(ratio, threshold=...)` names."""

    def __init__(
        self,
        *,
        total_count: int,
        failure_count: int,
        total_duration: float,
        slow_count: int,
        slow_counts: Mapping[float, int] = _NO_COUNTS,
    ) -> None:
        if not isinstance(slow_counts, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"slow_counts must be a mapping from thresholds to counts, got {_check.got(slow_counts)}")
        super().__init__(
            total_count=_check.whole(total_count, "total_count", at_least=0),
            failure_count=_check.whole(failure_count, "failure_count", at_least=0),
            total_duration=_check.number(total_duration, "total_duration", at_least=0),
            slow_count=_check.whole(slow_count, "slow_count", at_least=0),
            slow_counts=MappingProxyType(dict(slow_counts)),
        )

    def __hash__(self) -> int:
        return hash(self.values()[:-1])  # a mapping has no hash

    def __reduce__(self) -> tuple[Any, ...]:
        # a mapping proxy cannot be pickled, and events travel between processes
        return make_metric, (*self.values()[:-1], dict(self.slow_counts))

    @property
    def failure_rate(self) -> float | None:
        """Failures per call, 0–1; ``None`` when the window is empty."""
        return self.failure_count / self.total_count if self.total_count else None

    @property
    def slow_rate(self) -> float | None:
        """Slow calls per call, 0–1; ``None`` when the window is empty."""
        return self.slow_count / self.total_count if self.total_count else None

    @property
    def avg_duration(self) -> float | None:
        """Mean duration in seconds; ``None`` when the window is empty."""
        return self.total_duration / self.total_count if self.total_count else None

    def to_dict(self) -> dict[str, Any]:
        """The sums and the rates in plain types, ready for JSON."""
        return {
            "total_count": self.total_count,
            "failure_count": self.failure_count,
            "failure_rate": self.failure_rate,
            "total_duration": self.total_duration,
            "avg_duration": self.avg_duration,
            "slow_count": self.slow_count,
            "slow_rate": self.slow_rate,
            "slow_counts": {str(threshold): count for threshold, count in self.slow_counts.items()},
        }


def make_metric(total: int, failures: int, duration: float, slow: int, slow_counts: dict[float, int]) -> Metric:
    """A `Metric` from the sums in their order, for the windows: they make one at each evaluation."""
    draft = Metric.drafts()
    draft.total_count = total
    draft.failure_count = failures
    draft.total_duration = duration
    draft.slow_count = slow
    draft.slow_counts = MappingProxyType(slow_counts) if slow_counts else _NO_COUNTS
    draft.__class__ = Metric
    return draft  # type: ignore[no-any-return]


class Verdict(Record):
    """A rule's answer with its reasons: true when the rule was met, one sentence as text, a tree as a dict.

    >>> verdict = Verdict("FailureRate(0.5)", True, "failure rate 62.0 % (limit 50.0 %)", observed=0.62, limit=0.5)
    >>> bool(verdict), str(verdict)
    (True, 'failure rate 62.0 % (limit 50.0 %)')
    """

    __slots__ = ("rule", "met", "text", "observed", "limit", "parts", "joined_by")

    rule: str
    """The rule in words, as its ``repr`` gives it."""
    met: bool
    """Whether the rule was met."""
    text: str
    """What a single rule saw; empty where it adds nothing to the sentence."""
    observed: float | None
    """The figure that was compared, in the rule's own unit (a ratio 0–1, seconds or a count)."""
    limit: float | None
    """What it was compared with, in the same unit."""
    parts: tuple[Verdict, ...]
    """The verdicts of the rules that this one is made of."""
    joined_by: str
    """``"and"`` or ``"or"`` where there are parts."""

    def __init__(
        self,
        rule: str,
        met: bool,
        text: str = "",
        observed: float | None = None,
        limit: float | None = None,
        parts: tuple[Verdict, ...] = (),
        joined_by: str = "",
    ) -> None:
        super().__init__(
            rule=rule, met=met, text=text, observed=observed, limit=limit, parts=parts, joined_by=joined_by
        )

    def __bool__(self) -> bool:
        return self.met

    def __str__(self) -> str:
        return self._sentence() or f"{self.rule} {'was' if self.met else 'was not'} met"

    def _sentence(self) -> str:
        if not self.parts:
            return self.text
        telling, word = self.parts, self.joined_by
        if word == "or":  # the branches that fired explain a trip; where none did, all of them explain that
            telling = tuple(part for part in self.parts if part.met == self.met)
            word = "or" if self.met else "and"
        sentences = dict.fromkeys(part._sentence() for part in telling)
        return f" {word} ".join(sentence for sentence in sentences if sentence)

    def to_dict(self) -> dict[str, Any]:
        """The whole tree in plain types, ready for JSON; figures only where a rule compared some."""
        tree: dict[str, Any] = {"rule": self.rule, "met": self.met}
        if self.text:
            tree["text"] = self.text
        if self.observed is not None or self.limit is not None:
            tree |= {"observed": self.observed, "limit": self.limit}
        if self.parts:
            tree |= {"joined_by": self.joined_by, "parts": [part.to_dict() for part in self.parts]}
        return tree


def rate_in_words(what: str, rate: float | None, limit: float, part: int, whole: int) -> str:
    """A rate beside its limit, for the verdict of a rule."""
    seen = "no call yet" if rate is None else f"{what} {rate:.1%}".replace("%", " %")
    return f"{seen} (limit {limit * 100:.1f} %, {part} of {calls_in_words(whole)})"


def compared(rule: object, met: bool, text: str, observed: float | None, limit: float) -> Verdict:
    """The verdict of a rule that compares a figure with its limit."""
    return Verdict(repr(rule), met, text, observed, limit)
