"""The parameters of a circuit, validated in one place for construction and `configure`."""

from __future__ import annotations

from collections.abc import Callable

from . import _check
from ._limits import limits_of
from ._record import Record
from ._text import in_words
from ._tripping import Tripper, as_tripper
from ._typing import TYPE_CHECKING
from .permits import Permit, Random, as_permit
from .retries import Cooldown, Retry, as_retry
from .state import CLOSED
from .trackers import All, Tracker, as_tracker
from .trippers import DEFAULT_TRIPPER
from .windows import CountWindow, Window

if TYPE_CHECKING:
    from typing import Any


class Rules(Record):
    """Immutable, so that circuits with the defaults share one, and a call reads a consistent set."""

    __slots__ = (
        "window",
        "tracker",
        "tripper",
        "retry",
        "permit",
        "slow_threshold",
        "max_half_open_calls",
        "half_open_timeout",
        "plain_below",
    )

    window: Window
    tracker: Tracker
    tripper: Tripper
    retry: Retry
    permit: Permit
    slow_threshold: float
    max_half_open_calls: int
    half_open_timeout: float
    plain_below: float
    """A success shorter than this is slow by no threshold of the tripper's or the circuit's."""

    def words(self) -> dict[str, str]:
        """The rules as their reprs give them, for events and metrics."""
        return {name: in_words(getattr(self, name)) for name in ("window", "tracker", "tripper", "retry", "permit")}

    def described(self) -> dict[str, Any]:
        """What events tell of them: their words, and the limits as figures."""
        return {**self.words(), "limits": limits_of(self.tripper)}


def _window(value: Any, what: str) -> Window:
    _check.instance(value, what, "a window")
    if not isinstance(value, Window):
        also = f"; for the last {value} calls pass CountWindow({value})" if isinstance(value, int) else ""
        raise TypeError(f"{what} must be CountWindow(size) or TimeWindow(seconds), got {_check.got(value)}{also}")
    return value


def _slow_threshold(value: Any, what: str) -> float:
    return _check.number(value, what, above=0, finite=False)


def _timeout(value: Any, what: str) -> float:
    return _check.number(value, what, above=0)


_ACCEPT: dict[str, Callable[[Any, str], Any]] = {
    "window": _window,
    "tracker": as_tracker,
    "tripper": as_tripper,
    "retry": as_retry,
    "permit": as_permit,
    "slow_threshold": _slow_threshold,
    "max_half_open_calls": _check.whole,
    "half_open_timeout": _timeout,
}
CHANGEABLE = tuple(name for name in _ACCEPT if name != "window")
"""What `configure` can change; type checkers read it from `_protocols.Changes`."""


def given(**parameters: Any) -> dict[str, Any]:
    """Those that are not ``None``: a falsy window or rule is still one."""
    return {name: value for name, value in parameters.items() if value is not None}


def amend(rules: Rules, *, stacklevel: int = 3, **parameters: Any) -> Rules:
    """`rules` with each parameter checked and put in.

    Raises:
        TypeError, ValueError: a parameter is not what it must be; the text names and quotes it.
    """
    accepted = {
        name: _ACCEPT[name](value, name) for name, value in parameters.items() if value is not getattr(rules, name)
    }
    if all(isinstance(value, (int, float)) and value == getattr(rules, name) for name, value in accepted.items()):
        return rules  # circuits with the defaults share one
    tripper: Tripper = accepted.get("tripper", rules.tripper)
    slowest = min((accepted.get("slow_threshold", rules.slow_threshold), *tripper.thresholds))
    changed = rules.__replace__(**accepted, plain_below=slowest)
    if tripper.applies(CLOSED) and tripper.least(CLOSED) > changed.window.capacity:
        text = f"{changed.window!r} never holds the {tripper.least(CLOSED)} calls that {tripper!r} needs"
        import warnings  # here, since a program that has no need of it imports sooner

        warnings.warn(f"{text}: a closed circuit cannot trip by it", UserWarning, stacklevel=stacklevel)
    return changed


DEFAULT_RULES = Rules(
    window=CountWindow(100),
    tracker=All(),
    tripper=DEFAULT_TRIPPER,
    retry=Cooldown(60),
    permit=Random(0.5),
    slow_threshold=60.0,
    max_half_open_calls=10,
    half_open_timeout=30.0,
    plain_below=60.0,
)
