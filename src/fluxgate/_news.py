"""What the machine leaves to be told, and the letters in which it waits for its listeners."""

from __future__ import annotations

from contextvars import copy_context

from ._record import Record
from ._typing import TYPE_CHECKING, cast
from .events import Event, LastError, Opening, StateChanged, WouldOpen
from .metric import Metric, Verdict
from .state import FORCED_OPEN, HALF_OPEN, OPEN, State, Trigger

if TYPE_CHECKING:
    from typing import Any

    from ._subscription import Subscription

Cause = tuple[type[object], str]
"""The type of an exception or of a value that was judged a failure, and its text, fit to be shown."""


class Hit(Record):
    """Shadow mode: a move that would have been made; its fields are those of its event."""

    __slots__ = ("timestamp", "state", "metrics", "verdict", "failing_since", "last_error", "trace_id", "span_id")
    kind = cast("type[Event]", WouldOpen)

    timestamp: float
    state: State
    metrics: Metric
    verdict: Verdict
    failing_since: float | None
    last_error: LastError | None
    trace_id: str | None
    span_id: str | None

    def opening(self, before: Opening | None) -> Opening | None:
        """On what the circuit is open from then on."""
        return before


class Change(Hit):
    """A move that was made; its fields are those of its event."""

    __slots__ = ("old_state", "new_state", "trigger", "wait", "reopens", "generation")
    kind = StateChanged

    old_state: State
    new_state: State
    trigger: Trigger
    wait: float | None
    reopens: int
    generation: int

    def opening(self, before: Opening | None) -> Opening | None:
        if self.new_state is HALF_OPEN:
            return before  # a probe's refusal still tells what had opened the circuit
        if self.new_state not in (OPEN, FORCED_OPEN):
            return None
        return Opening(
            at=self.timestamp,
            metrics=self.metrics,
            failing_since=self.failing_since,
            last_error=self.last_error,
            trace_id=self.trace_id,
            span_id=self.span_id,
        )


class Fault(Record):
    """A rule of the user's that raised."""

    __slots__ = ("role", "rule", "error")

    role: str
    rule: object
    error: BaseException


class FaultOfTheCalls(Fault):
    """A tracker that raised the very error that it was to judge, which goes on to the caller."""

    __slots__ = ()


class Letter:
    """Something to be told, with those who were listening when it happened."""

    __slots__ = ("context", "given", "item", "receivers")

    def __init__(self, item: Any, receivers: tuple[Subscription, ...]) -> None:
        self.item = item
        self.context = copy_context()  # whoever delivers may be another thread or task
        self.receivers = receivers
        self.given = 0


class _Farewell:
    """The last thing in the outbox of a retired circuit."""


FAREWELL: Any = _Farewell()
