"""Time as the engine sees it: a clock is anything with ``monotonic()`` and ``time()``, as the `time` module is."""

from __future__ import annotations

import math
import time

from ._check import got
from ._typing import TYPE_CHECKING, when_asked_for

if TYPE_CHECKING:
    from typing import Any

    from ._protocols import Clock as Clock
else:
    __getattr__, __dir__ = when_asked_for(__name__, "Clock")


class CarefulClock:
    """A user's clock that cannot hurt a call: where it raises or answers nonsense, the last good time stands.

    The `time` module needs no such care and is used bare.
    """

    __slots__ = ("_clock", "_monotonic", "_wall", "fault")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._monotonic: float | None = None
        self._wall = 0.0
        self.fault: BaseException | None = None
        """What went wrong since the engine last looked."""

    def monotonic(self) -> float:
        last = self._monotonic
        now = self._ask(self._clock.monotonic, last or 0.0)
        self._monotonic = now = now if last is None else max(last, now)
        return now

    def time(self) -> float:
        self._wall = self._ask(self._clock.time, self._wall)
        return self._wall

    def _ask(self, function: Any, last: float) -> float:
        try:
            answer = float(function())
            if not math.isfinite(answer):
                raise ValueError(f"a clock must give finite seconds, got {answer}")
        except Exception as error:
            self.fault = error
            return last
        return answer

    def __repr__(self) -> str:
        return repr(self._clock)


def as_clock(value: Any) -> Clock:
    """`value` made safe, or the `time` module for ``None``.

    Raises:
        TypeError: it lacks ``monotonic()`` or ``time()``.
    """
    if value is None or value is time:
        return time
    if isinstance(value, type) or not (
        callable(getattr(value, "monotonic", None)) and callable(getattr(value, "time", None))
    ):
        raise TypeError(f"clock must be an object with monotonic() and time(), got {got(value)}")
    return CarefulClock(value)
