"""What a circuit tells: immutable, typed events.

Every event carries the circuit's name, the Unix time, its number in the circuit's own gapless sequence of
published events, and the state of the circuit at that moment (after the move, for a `StateChanged`).
Durations and waits are seconds, rates are ratios from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ._check import got
from ._limits import Limits
from ._record import Record
from ._typing import TYPE_CHECKING, cast
from .metric import Metric, Verdict
from .state import State, Trigger

if TYPE_CHECKING:
    from typing import Any


class LastError(Record):
    """An error without the object: its type's full name, and its text as `fluxgate.redact` left it."""

    __slots__ = ("type", "text")

    type: str
    text: str

    def __str__(self) -> str:
        return f"{self.type}: {self.text}" if self.text else self.type

    def to_dict(self) -> dict[str, str]:
        """Both in plain types, ready for JSON."""
        return {"type": self.type, "text": self.text}


class Opening(Record):
    """What opened a circuit, as a refusal tells it."""

    __slots__ = ("at", "metrics", "failing_since", "last_error", "trace_id", "span_id")

    at: float
    """Unix time in seconds."""
    metrics: Metric
    """The window that decided."""
    failing_since: float | None
    """Unix time of the first failure in that window."""
    last_error: LastError | None
    trace_id: str | None
    """The trace of the call that decided, where OpenTelemetry had a current span."""
    span_id: str | None


class Event(Record):
    """What all events carry. A listener that asks for `Event` receives every type."""

    __slots__ = ("circuit_name", "timestamp", "sequence", "state")

    circuit_name: str
    timestamp: float
    """Unix time in seconds."""
    sequence: int
    """1, 2, 3, ... per circuit, in the order in which things happened."""
    state: State

    def to_dict(self) -> dict[str, Any]:
        """The event in plain types, ready for JSON; `event` names its type."""
        return {"event": type(self).__name__, **{name: _plain(getattr(self, name)) for name in self.fields}}


class CallStarted(Event):
    """A call was admitted."""

    __slots__ = ("call_id",)

    call_id: int
    """The same in the event that ends the call; unique within the circuit."""


class CallEnded(Event):
    """Base of the four outcomes."""

    __slots__ = ("call_id", "duration", "stale")

    call_id: int
    duration: float
    """Seconds from admission to outcome."""
    stale: bool
    """It belongs to an earlier generation, or to a probe that had lost its place, and decided nothing."""


class CallSucceeded(CallEnded):
    """The call returned a value that no tracker judged a failure."""

    __slots__ = ("slow",)

    slow: bool
    """It reached the circuit's `slow_threshold`."""


class CallFailed(CallEnded):
    """The tracker judged the exception, or the returned value, a failure."""

    __slots__ = ("error_type", "error", "slow")

    error_type: str
    error: str
    """The text, redacted and cut to 200 characters."""
    slow: bool


class CallIgnored(CallEnded):
    """The call raised an exception that the tracker does not count; it is not in the window."""

    __slots__ = ("error_type",)

    error_type: str


class CallCancelled(CallEnded):
    """The call was cancelled or interrupted; it is not in the window."""

    __slots__ = ()


class CallRejected(Event):
    """The circuit refused a call."""

    __slots__ = ("retry_after", "reason")

    retry_after: float | None
    """Seconds until it tries again; ``None`` when only a person can close it."""
    reason: str
    """``open``, ``forced_open``, ``probes_in_flight`` (no place free) or ``not_chosen`` (by the permit)."""


class FallbackUsed(Event):
    """A call failed or was refused, and its fallback runs."""

    __slots__ = ("error_type",)

    error_type: str


class StateChanged(Event):
    """The circuit moved from one state to another."""

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
        "trace_id",
        "span_id",
    )

    old_state: State
    new_state: State
    trigger: Trigger
    metrics: Metric
    """The window that decided."""
    verdict: Verdict
    """Why, as a sentence (``str``) and as a tree (``to_dict()``)."""
    wait: float | None
    """Seconds until the first probe, when opening; ``None`` when not, or when only a person can close it."""
    reopens: int
    """Failed recoveries since the circuit was last closed."""
    generation: int
    """The number of the generation that begins with this change."""
    failing_since: float | None
    """Unix time of the first failure in the window."""
    last_error: LastError | None
    """The last failure in the window."""
    trace_id: str | None
    """The trace of the call that caused the change (32 hexadecimal digits), where OpenTelemetry had a current span."""
    span_id: str | None
    """That span (16 hexadecimal digits)."""

    @property
    def reason(self) -> str:
        """The verdict's sentence."""
        return str(self.verdict)


Signal = StateChanged


class WouldOpen(Event):
    """In shadow mode: the circuit would have opened now."""

    __slots__ = ("metrics", "verdict", "failing_since", "last_error", "trace_id", "span_id")

    metrics: Metric
    verdict: Verdict
    failing_since: float | None
    last_error: LastError | None
    trace_id: str | None
    """As in `StateChanged`: of the call that would have opened it."""
    span_id: str | None

    @property
    def reason(self) -> str:
        """The verdict's sentence."""
        return str(self.verdict)


class _Described(Event):
    __slots__ = ("window", "tracker", "tripper", "retry", "permit", "limits")

    window: str
    tracker: str
    tripper: str
    retry: str
    permit: str
    limits: Mapping[str, float]
    """The lowest limit of each kind by which the tripper trips while the circuit is closed: see `Tripper.limits`."""

    def __init__(self, **values: Any) -> None:
        if isinstance(limits := values.get("limits"), Mapping):
            values["limits"] = Limits(cast("Mapping[str, float]", limits))  # one that cannot be changed
        super().__init__(**values)


class CircuitCreated(_Described):
    """A circuit came to be, with these rules in words."""

    __slots__ = ()


class Reconfigured(_Described):
    """Rules were swapped in place; the words are those in force now."""

    __slots__ = ("changed",)

    changed: tuple[str, ...]
    """The names of the parameters that were given."""


class CircuitRetired(Event):
    """The circuit is gone: retired, or no longer referenced by anyone."""

    __slots__ = ()


class ListenerFailed(Event):
    """Something plugged in raised: a listener, or a rule of the user's. The caller did not notice."""

    __slots__ = ("listener", "role", "error_type", "error", "count")

    listener: str
    """What failed, in words."""
    role: str
    """``listener``, ``tracker``, ``tripper``, ``permit``, ``retry`` or ``clock``."""
    error_type: str
    error: str
    count: int
    """How often this one has failed so far."""


class EventsDropped(Event):
    """A background queue was full and its oldest events went."""

    __slots__ = ("listener", "count")

    listener: str
    count: int
    """How many went since the last such event."""


EVENT_TYPES: tuple[type[Event], ...] = (
    CallStarted,
    CallSucceeded,
    CallFailed,
    CallIgnored,
    CallCancelled,
    CallRejected,
    FallbackUsed,
    StateChanged,
    WouldOpen,
    Reconfigured,
    CircuitCreated,
    CircuitRetired,
    ListenerFailed,
    EventsDropped,
)


def is_event_type(kind: Any) -> bool:
    """Whether a listener can ask for it."""
    return isinstance(kind, type) and issubclass(kind, Event) and any(issubclass(leaf, kind) for leaf in EVENT_TYPES)


def concrete(kinds: Iterable[type[Event]]) -> frozenset[type[Event]]:
    """The event types that these stand for: a base (`Event`, `CallEnded`) stands for all beneath it.

    Raises:
        TypeError: not an event type.
    """
    kinds = tuple(kinds)
    for kind in kinds:
        if not is_event_type(kind):
            raise TypeError(f"event types are classes from fluxgate.events, got {got(kind)}")
    return frozenset(leaf for leaf in EVENT_TYPES if issubclass(leaf, kinds))


def _plain(value: Any) -> Any:
    if isinstance(value, (Metric, Verdict, LastError)):
        return value.to_dict()
    if isinstance(value, Limits):
        return dict(value)
    if isinstance(value, tuple):
        return list(map(_plain, value))  # pyright: ignore[reportUnknownArgumentType]
    return str(value) if isinstance(value, (State, Trigger)) else value
