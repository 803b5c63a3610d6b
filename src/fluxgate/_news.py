"""What the machine leaves to be told."""

from __future__ import annotations

from ._record import Record
from .events import LastError
from .metric import Metric, Verdict
from .state import State, Trigger

Cause = tuple[type[object], str]
"""The type of an exception or of a value that was judged a failure, and its text, fit to be shown."""


class Change(Record):
    """A move that was made."""

    __slots__ = (
        "old_state",
        "new_state",
        "trigger",
        "metrics",
        "verdict",
        "wait",
        "reopens",
        "generation",
        "failing_since",
        "last_error",
    )

    old_state: State
    new_state: State
    trigger: Trigger
    metrics: Metric
    verdict: Verdict
    wait: float | None
    reopens: int
    generation: int
    failing_since: float | None
    last_error: LastError | None


class Hit(Record):
    """Shadow mode: a move that would have been made."""

    __slots__ = ("metrics", "verdict", "failing_since", "last_error")

    metrics: Metric
    verdict: Verdict
    failing_since: float | None
    last_error: LastError | None


class Fault(Record):
    """A rule of the user's that raised."""

    __slots__ = ("role", "rule", "error")

    role: str
    rule: object
    error: BaseException


class FaultOfTheCalls(Fault):
    """A tracker that raised the very error that it was to judge, which goes on to the caller."""

    __slots__ = ()
