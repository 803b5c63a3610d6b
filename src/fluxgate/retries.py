"""Retries say how long an open circuit waits before its first probe.

The engine asks once an opening, so that jitter is drawn once and the promised `retry_after` stays true.
"""

from __future__ import annotations

import math

from . import _check
from ._chance import chance
from ._typing import TYPE_CHECKING, final, when_asked_for

if TYPE_CHECKING:
    from typing import Any

    from ._protocols import RetryLike
else:
    __getattr__, __dir__ = when_asked_for(__name__, "RetryLike")

__all__ = ["Always", "Backoff", "Cooldown", "Never", "Retry", "RetryAfter", "RetryLike"]


class Retry:
    """Base of the retries. A subclass defines ``wait(reopens)``."""

    def wait(self, reopens: int, /) -> float:
        """Seconds to stay open; `reopens` counts the failed recoveries so far (0 at the first opening)."""
        raise NotImplementedError(f"{type(self).__name__} must define wait(reopens)")

    def hint(self, outcome: Any, wall: float, /) -> float | None:
        """Seconds that a failed outcome (exception or value) itself asks for, seen at Unix time `wall`."""
        return None

    def wait_after(self, reopens: int, hint: float | None, /) -> float:
        """Seconds to stay open, given what the last failure asked for, if it did."""
        return self.wait(reopens)


def _jitter(value: Any, what: str) -> float:
    return _check.number(value, f"{what}(jitter_ratio=)", at_least=0, at_most=1)


def _spread(seconds: float, ratio: float) -> float:
    return seconds * (1 + ratio * (2 * chance() - 1)) if ratio else seconds


@final
class Cooldown(Retry):
    """The same wait each time, in seconds; up to `jitter_ratio` of it shorter or longer.

    Raises:
        TypeError, ValueError: `duration` is not a number of at least 0, or `jitter_ratio` not one of 0–1.

    >>> Cooldown(30).wait(5)
    30.0
    """

    def __init__(self, duration: float, jitter_ratio: float = 0) -> None:
        self.duration = _check.number(duration, "Cooldown(duration)", at_least=0)
        self.jitter_ratio = _jitter(jitter_ratio, "Cooldown")

    def wait(self, reopens: int, /) -> float:
        return _spread(self.duration, self.jitter_ratio)

    def __repr__(self) -> str:
        return f"Cooldown({self.duration:g}{_more(jitter_ratio=self.jitter_ratio)})"


@final
class Backoff(Retry):
    """Waits ``initial * multiplier ** reopens`` seconds, jittered, and never more than `max_duration`.

    The exponential backoff of RFC 9110's advice to clients and of most retry libraries; where there is jitter,
    the cap lies that much below `max_duration`, so that capped waits still spread.

    Raises:
        TypeError, ValueError: a duration is not a positive number, `multiplier` is below 1, `max_duration` is below
            `initial`, or `jitter_ratio` not in 0–1.

    >>> [Backoff(1).wait(n) for n in (0, 1, 2, 20)]
    [1.0, 2.0, 4.0, 300.0]
    """

    def __init__(
        self, initial: float, multiplier: float = 2, max_duration: float = 300, jitter_ratio: float = 0
    ) -> None:
        self.initial = _check.number(initial, "Backoff(initial)", above=0)
        self.multiplier = _check.number(multiplier, "Backoff(multiplier=)", at_least=1)
        self.max_duration = _check.number(max_duration, "Backoff(max_duration=)", at_least=self.initial)
        self.jitter_ratio = _jitter(jitter_ratio, "Backoff")

    def wait(self, reopens: int, /) -> float:
        try:
            grown = self.initial * self.multiplier**reopens
        except OverflowError:
            grown = math.inf
        cap = self.max_duration / (1 + self.jitter_ratio)
        return _spread(min(grown, cap), self.jitter_ratio)

    def __repr__(self) -> str:
        more = _more(jitter_ratio=self.jitter_ratio)
        return f"Backoff({self.initial:g}, multiplier={self.multiplier:g}, max_duration={self.max_duration:g}{more})"


@final
class Always(Retry):
    """No wait: the next call after an opening is a probe."""

    def wait(self, reopens: int, /) -> float:
        return 0.0

    def __repr__(self) -> str:
        return "Always()"


@final
class Never(Retry):
    """Open until a person or a program says otherwise; `retry_after` is ``None``."""

    def wait(self, reopens: int, /) -> float:
        return math.inf

    def __repr__(self) -> str:
        return "Never()"


@final
class RetryAfter(Retry):
    """Waits as long as the dependency asked for, else as `fallback` says.

    The last failure is asked: for an attribute `retry_after` (seconds), then for a ``Retry-After`` header
    (RFC 9110 section 10.2.3: seconds or an HTTP date) in its `headers` or in its `response`'s, which is how
    httpx, requests and aiohttp carry it. What it asks for is cut at `max_duration` seconds.

    Raises:
        TypeError, ValueError: `fallback` is not a retry, or `max_duration` not a positive number.

    >>> class TooManyRequests(Exception):
    ...     headers = {"Retry-After": "7"}
    >>> retry = RetryAfter(Cooldown(60))
    >>> retry.wait_after(0, retry.hint(TooManyRequests(), 0.0)), retry.wait_after(0, None)
    (7.0, 60.0)
    """

    def __init__(self, fallback: RetryLike, max_duration: float = 3600) -> None:
        self.fallback = as_retry(fallback, "RetryAfter(fallback)")
        self.max_duration = _check.number(max_duration, "RetryAfter(max_duration=)", above=0)

    def wait(self, reopens: int, /) -> float:
        return self.fallback.wait(reopens)

    def hint(self, outcome: Any, wall: float, /) -> float | None:
        asked = getattr(outcome, "retry_after", None)
        if asked is None:
            asked = _header(outcome)
        seconds = _seconds(asked, wall)
        return None if seconds is None else min(max(seconds, 0.0), self.max_duration)

    def wait_after(self, reopens: int, hint: float | None, /) -> float:
        return self.wait(reopens) if hint is None else hint

    def __repr__(self) -> str:
        return f"RetryAfter({self.fallback!r}{_more(max_duration=self.max_duration, unless=3600)})"


def _header(outcome: Any) -> Any:
    for carrier in (outcome, getattr(outcome, "response", None)):
        headers = getattr(carrier, "headers", None)
        if headers is not None:
            for name in ("Retry-After", "retry-after"):  # a plain dict does not fold case
                value = headers.get(name)
                if value is not None:
                    return value
    return None


def _seconds(asked: Any, wall: float) -> float | None:
    if isinstance(asked, str):
        try:
            asked = float(asked)
        except ValueError:
            return _until(asked, wall)
    if isinstance(asked, bool) or not isinstance(asked, (int, float)):
        return None
    try:
        seconds = float(asked)
    except OverflowError:
        seconds = math.inf if asked > 0 else -math.inf
    return None if math.isnan(seconds) else seconds


def _until(http_date: str, wall: float) -> float | None:
    from email.utils import (  # here, since it would double the time of `import fluxgate`
        mktime_tz,
        parsedate_tz,
    )

    parsed = parsedate_tz(http_date)
    try:
        return None if parsed is None else mktime_tz(parsed) - wall
    except (ValueError, OverflowError):
        return None


@final
class _Plain(Retry):
    """A plain class with ``wait(reopens)`` in a retry's clothes."""

    def __init__(self, retry: RetryLike) -> None:
        self.retry = retry

    def wait(self, reopens: int, /) -> float:
        return self.retry.wait(reopens)

    def __repr__(self) -> str:
        return repr(self.retry)


def as_retry(value: Any, what: str) -> Retry:
    """`value` as a `Retry`, a plain object with ``wait(reopens)`` being wrapped.

    Raises:
        TypeError: a class, a bare number, or something without ``wait``.
    """
    _check.instance(value, what, "a retry")
    if isinstance(value, Retry):
        return value
    if not callable(getattr(value, "wait", None)):
        also = f"; for a fixed wait pass Cooldown({value!r})" if isinstance(value, (int, float)) else ""
        raise TypeError(f"{what} must be a retry with wait(reopens), got {_check.got(value)}{also}")
    return _Plain(value)


def _more(*, unless: float = 0, **option: float) -> str:
    return "".join(f", {name}={value:g}" for name, value in option.items() if value != unless)
