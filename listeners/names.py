"""The words that listeners write: one catalogue, from which dashboards, alerts and documentation take theirs."""

from collections.abc import Mapping
from logging import DEBUG, ERROR, INFO, WARNING
from typing import Final

from fluxgate.events import (
    EVENT_TYPES,
    CallCancelled,
    CallFailed,
    CallIgnored,
    CallRejected,
    CallStarted,
    CallSucceeded,
    CircuitCreated,
    CircuitRetired,
    Event,
    EventsDropped,
    FallbackUsed,
    ListenerFailed,
    Reconfigured,
    StateChanged,
    WouldOpen,
)
from fluxgate.state import State

# -- log lines ----------------------------------------------------------------------------------------------------

LOGGER: Final = "fluxgate.events"
"""The logger that the log listeners write to, unless told otherwise."""

TRANSITION_NAMES: Final[Mapping[State, str]] = {
    State.OPEN: "circuit_opened",
    State.HALF_OPEN: "circuit_half_opened",
    State.CLOSED: "circuit_closed",
    State.FORCED_OPEN: "circuit_forced_open",
    State.DISABLED: "circuit_disabled",
    State.METRICS_ONLY: "circuit_metrics_only",
}
"""What a `StateChanged` is called, by the state that it leads to."""

EVENT_NAMES: Final[Mapping[type[Event], str]] = {
    WouldOpen: "circuit_would_open",
    Reconfigured: "circuit_reconfigured",
    CircuitCreated: "circuit_created",
    CircuitRetired: "circuit_retired",
    CallStarted: "call_started",
    CallSucceeded: "call_succeeded",
    CallFailed: "call_failed",
    CallIgnored: "call_ignored",
    CallCancelled: "call_cancelled",
    CallRejected: "calls_rejected",
    FallbackUsed: "fallback_used",
    ListenerFailed: "listener_failed",
    EventsDropped: "events_dropped",
}
"""What every other event is called."""

LOG_LEVELS: Final[Mapping[str, int]] = {
    "circuit_opened": WARNING,
    "circuit_half_opened": INFO,
    "circuit_closed": INFO,
    "circuit_forced_open": WARNING,
    "circuit_disabled": INFO,
    "circuit_metrics_only": INFO,
    "circuit_would_open": WARNING,
    "circuit_reconfigured": INFO,
    "circuit_created": DEBUG,
    "circuit_retired": DEBUG,
    "call_started": DEBUG,
    "call_succeeded": DEBUG,
    "call_failed": DEBUG,
    "call_ignored": DEBUG,
    "call_cancelled": DEBUG,
    "calls_rejected": WARNING,
    "fallback_used": DEBUG,
    "listener_failed": ERROR,
    "events_dropped": WARNING,
}
"""At which level each is written."""

_WINDOW = ("failure_rate", "slow_rate", "total_count", "failure_count", "avg_duration")
_RULES = ("window", "tracker", "tripper", "retry", "permit")
_CALL = ("circuit_name", "state", "call_id")
_OUTCOME = (*_CALL, "duration", "stale")

LOG_KEYS: Final[Mapping[type[Event], tuple[str, ...]]] = {
    StateChanged: (
        *("circuit_name", "old_state", "new_state", "trigger", "reason", *_WINDOW),
        *("retry_after", "reopens", "failing_since", "last_error", "generation", "sequence"),
    ),
    WouldOpen: ("circuit_name", "state", "reason", *_WINDOW, "failing_since", "last_error", "sequence"),
    Reconfigured: ("circuit_name", "state", "changed", *_RULES, "sequence"),
    CircuitCreated: ("circuit_name", "state", *_RULES, "sequence"),
    CircuitRetired: ("circuit_name", "state", "sequence"),
    CallStarted: (*_CALL, "sequence"),
    CallSucceeded: (*_OUTCOME, "slow", "sequence"),
    CallFailed: (*_OUTCOME, "slow", "error_type", "error", "sequence"),
    CallIgnored: (*_OUTCOME, "error_type", "sequence"),
    CallCancelled: (*_OUTCOME, "sequence"),
    CallRejected: ("circuit_name", "state", "reason", "retry_after", "sequence"),
    FallbackUsed: ("circuit_name", "state", "error_type", "sequence"),
    ListenerFailed: ("circuit_name", "role", "listener", "error_type", "error", "count", "sequence"),
    EventsDropped: ("circuit_name", "listener", "count", "sequence"),
}
"""What is written of each event, in this order; what has no value is left out."""

REJECTED: Final = "rejected"
"""The calls that a `calls_rejected` line stands for; summed over the lines, all that were refused."""
SUPPRESSED: Final = "suppressed"
"""How many of what a line stands for came without a line of their own."""
TRACE_KEYS: Final = ("trace_id", "span_id")
"""Where OpenTelemetry has a current span: 32 and 16 hexadecimal digits."""


def log_name(event: Event) -> str:
    """What the event is called in a log line."""
    return TRANSITION_NAMES[event.new_state] if isinstance(event, StateChanged) else EVENT_NAMES[type(event)]


def log_names(kind: type[Event]) -> tuple[str, ...]:
    """All that events of a type may be called; a base stands for all types beneath it."""
    names = [EVENT_NAMES[leaf] for leaf in EVENT_TYPES if leaf in EVENT_NAMES and issubclass(leaf, kind)]
    return (*(TRANSITION_NAMES.values() if issubclass(StateChanged, kind) else ()), *names)
