"""Permits choose which calls a half-open circuit admits as probes, beneath its `max_half_open_calls`."""

from __future__ import annotations

from . import _check
from ._chance import chance
from ._typing import TYPE_CHECKING, final, when_asked_for

if TYPE_CHECKING:
    from typing import Any

    from ._protocols import PermitLike
else:
    __getattr__, __dir__ = when_asked_for(__name__, "PermitLike")

__all__ = ["All", "Permit", "PermitLike", "RampUp", "Random"]


class Permit:
    """Base of the permits. A subclass defines ``__call__(elapsed)``."""

    def __call__(self, elapsed: float, /) -> bool:
        """Whether to admit a call `elapsed` seconds after the circuit became half-open."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(elapsed)")


@final
class All(Permit):
    """Every call is a probe, up to `max_half_open_calls` at a time."""

    def __call__(self, elapsed: float, /) -> bool:
        return True

    def __repr__(self) -> str:
        return "All()"


@final
class Random(Permit):
    """Each call is a probe with this probability, 0–1.

    Raises:
        TypeError, ValueError: `ratio` is not a number above 0 and at most 1.
    """

    def __init__(self, ratio: float) -> None:
        self.ratio = _check.number(ratio, "Random(ratio)", above=0, at_most=1)

    def __call__(self, elapsed: float, /) -> bool:
        return chance() < self.ratio

    def __repr__(self) -> str:
        return f"Random({self.ratio:g})"


@final
class RampUp(Permit):
    """A probability that grows in a straight line from `initial` to `final` (0–1) over `duration` seconds.

    Raises:
        TypeError, ValueError: a ratio is not in 0–1, `final` is 0 or below `initial`, or `duration` is not above 0.

    >>> RampUp(0.0, 1.0, 60).ratio(15)
    0.25
    """

    def __init__(self, initial: float, final: float, duration: float) -> None:
        self.initial = _check.number(initial, "RampUp(initial)", at_least=0, at_most=1)
        self.final = _check.number(final, "RampUp(final)", above=0, at_least=self.initial, at_most=1)
        self.duration = _check.number(duration, "RampUp(duration)", above=0)

    def ratio(self, elapsed: float) -> float:
        """The probability after `elapsed` seconds, 0–1."""
        share = min(max(elapsed / self.duration, 0.0), 1.0)
        return self.initial + (self.final - self.initial) * share

    def __call__(self, elapsed: float, /) -> bool:
        return chance() < self.ratio(elapsed)

    def __repr__(self) -> str:
        return f"RampUp({self.initial:g}, {self.final:g}, {self.duration:g})"


@final
class _Plain(Permit):
    """A plain callable in a permit's clothes."""

    def __init__(self, choose: PermitLike) -> None:
        self.choose = choose

    def __call__(self, elapsed: float, /) -> bool:
        return bool(self.choose(elapsed))

    def __repr__(self) -> str:
        return getattr(self.choose, "__qualname__", None) or repr(self.choose)


def as_permit(value: Any, what: str) -> Permit:
    """`value` as a `Permit`, a plain callable being wrapped.

    Raises:
        TypeError: a class, or something that cannot be called.
    """
    _check.instance(value, what, "a permit")
    if isinstance(value, Permit):
        return value
    return _Plain(_check.function(value, what))
