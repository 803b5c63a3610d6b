"""The words that listeners write: one catalogue, from which dashboards, alerts and documentation take theirs."""

from collections.abc import Mapping
from logging import DEBUG, ERROR, INFO, WARNING
from typing import Final, Literal, NamedTuple

from fluxgate.events import (
    EVENT_TYPES,
    CallCancelled,
    CallEnded,
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

TRACE_KEYS: Final = ("trace_id", "span_id")
"""Where OpenTelemetry has a current span: 32 and 16 hexadecimal digits. Any line may have them."""

_WINDOW = ("failure_rate", "slow_rate", "total_count", "failure_count", "avg_duration")
_RULES = ("window", "tracker", "tripper", "retry", "permit")
_CALL = ("circuit_name", "state", "call_id")
_OUTCOME = (*_CALL, "duration", "stale")

LOG_KEYS: Final[Mapping[type[Event], tuple[str, ...]]] = {
    StateChanged: (
        *("circuit_name", "old_state", "new_state", "trigger", "reason", *_WINDOW),
        *("retry_after", "reopens", "failing_since", "last_error", "generation", "sequence", *TRACE_KEYS),
    ),
    WouldOpen: ("circuit_name", "state", "reason", *_WINDOW, "failing_since", "last_error", "sequence", *TRACE_KEYS),
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


def log_name(event: Event) -> str:
    """What the event is called in a log line."""
    return TRANSITION_NAMES[event.new_state] if isinstance(event, StateChanged) else EVENT_NAMES[type(event)]


def log_names(kind: type[Event]) -> tuple[str, ...]:
    """All that events of a type may be called; a base stands for all types beneath it."""
    names = [EVENT_NAMES[leaf] for leaf in EVENT_TYPES if leaf in EVENT_NAMES and issubclass(leaf, kind)]
    return (*(TRANSITION_NAMES.values() if issubclass(StateChanged, kind) else ()), *names)


# -- metrics ------------------------------------------------------------------------------------------------------

OUTCOMES: Final[Mapping[type[CallEnded], str]] = {
    CallSucceeded: "success",
    CallFailed: "failure",
    CallIgnored: "ignored",
    CallCancelled: "cancelled",
}
"""How a call ended, in one word."""

_UNIT_SUFFIXES = {"s": "_seconds"}


class Instrument(NamedTuple):
    """One metric, for Prometheus and OpenTelemetry alike."""

    name: str
    """In OpenTelemetry."""
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    """UCUM, as OpenTelemetry wants it; what is in braces only says what is counted."""
    labels: tuple[str, ...]
    """Labels in Prometheus, attributes in OpenTelemetry: the same words, so that one dashboard reads both."""
    help: str

    @property
    def series(self) -> str:
        """In Prometheus: what OpenTelemetry's own rules make of the name.

        https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/
        """
        total = "_total" if self.kind == "counter" else ""
        return self.name.replace(".", "_") + _UNIT_SUFFIXES.get(self.unit, "") + total


_CIRCUIT = ("circuit_name",)

STATE: Final = Instrument(
    "circuit_breaker.state", "gauge", "", (*_CIRCUIT, "state"), "1 for the state that the circuit is in, else 0."
)
TRANSITIONS: Final = Instrument(
    "circuit_breaker.state_transition",
    "counter",
    "{transition}",
    (*_CIRCUIT, "old_state", "new_state"),
    "Changes of state.",
)
CALL_DURATION: Final = Instrument(
    "circuit_breaker.call.duration",
    "histogram",
    "s",
    (*_CIRCUIT, "outcome"),
    "Duration of admitted calls in seconds, by how they ended.",
)
SLOW_CALLS: Final = Instrument(
    "circuit_breaker.slow_calls", "counter", "{call}", _CIRCUIT, "Calls that reached the circuit's slow threshold."
)
REJECTED_CALLS: Final = Instrument(
    "circuit_breaker.rejected_calls",
    "counter",
    "{call}",
    (*_CIRCUIT, "state"),
    "Calls that the circuit refused, by the state in which it did.",
)
PROBES: Final = Instrument(
    "circuit_breaker.probes",
    "counter",
    "{call}",
    (*_CIRCUIT, "outcome"),
    "Settled probes of a half-open circuit, by how they ended.",
)
FALLBACK_CALLS: Final = Instrument(
    "circuit_breaker.fallback_calls", "counter", "{call}", _CIRCUIT, "Calls that a fallback answered."
)
WOULD_OPEN: Final = Instrument(
    "circuit_breaker.would_open",
    "counter",
    "{event}",
    _CIRCUIT,
    "How often the circuit would have opened while it was in metrics_only.",
)
STATE_CHANGED: Final = Instrument(
    "circuit_breaker.state_changed.timestamp", "gauge", "s", _CIRCUIT, "Unix time of the last change of state."
)
FAILURE_RATE: Final = Instrument(
    "circuit_breaker.failure_rate", "gauge", "", _CIRCUIT, "Share of failures in the window, from 0 to 1."
)
SLOW_RATE: Final = Instrument(
    "circuit_breaker.slow_rate", "gauge", "", _CIRCUIT, "Share of slow calls in the window, from 0 to 1."
)
LIMIT: Final = Instrument(
    "circuit_breaker.limit",
    "gauge",
    "",
    (*_CIRCUIT, "rule"),
    "The lowest limit of each kind of rule by which the circuit trips while it is closed.",
)
CIRCUIT_INFO: Final = Instrument(
    "circuit_breaker.info",
    "gauge",
    "",
    (*_CIRCUIT, "tripper", "window", "retry", "permit"),
    "Always 1; the circuit's rules in words.",
)
LISTENER_FAILURES: Final = Instrument(
    "circuit_breaker.listener_failures",
    "counter",
    "{failure}",
    ("listener",),
    "Errors raised by listeners, and by rules of the program's own.",
)
EVENTS_DROPPED: Final = Instrument(
    "circuit_breaker.events_dropped",
    "counter",
    "{event}",
    ("listener",),
    "Events that went because a background listener's queue was full.",
)

INSTRUMENTS: Final = (
    STATE,
    TRANSITIONS,
    CALL_DURATION,
    SLOW_CALLS,
    REJECTED_CALLS,
    PROBES,
    FALLBACK_CALLS,
    WOULD_OPEN,
    STATE_CHANGED,
    FAILURE_RATE,
    SLOW_RATE,
    LIMIT,
    CIRCUIT_INFO,
    LISTENER_FAILURES,
    EVENTS_DROPPED,
)
"""Every metric."""

OTHER_LISTENERS: Final = "others"
"""The label of listeners, and rules, that are too many to have one each."""

BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the duration histogram, in seconds: from a cache's answer to the default `slow_threshold`."""

# -- traces -------------------------------------------------------------------------------------------------------

SCOPE: Final = "fluxgate"
"""The instrumentation scope of spans, log records and metrics."""
CIRCUIT_ATTRIBUTE: Final = "fluxgate.circuit.name"
STATE_ATTRIBUTE: Final = "fluxgate.circuit.state"
DECISION_ATTRIBUTE: Final = "fluxgate.decision"
"""`PERMITTED` or `REFUSED`."""
PERMITTED: Final = "permitted"
REFUSED: Final = "rejected"
OUTCOME_ATTRIBUTE: Final = "fluxgate.outcome"
"""One of `OUTCOMES`, or `REFUSED`."""
RETRY_AFTER_ATTRIBUTE: Final = "fluxgate.retry_after"
"""Seconds."""
REASON_ATTRIBUTE: Final = "fluxgate.reason"
"""Why a call was refused, in a word; why a circuit changed its state, in a sentence."""
STALE_ATTRIBUTE: Final = "fluxgate.stale"
SLOW_ATTRIBUTE: Final = "fluxgate.slow"
ERROR_ATTRIBUTE: Final = "error.type"
"""As the semantic conventions have it: https://opentelemetry.io/docs/specs/semconv/registry/attributes/error/"""
ERROR_TEXT_ATTRIBUTE: Final = "error.message"
"""From the same place: what `fluxgate.redact` left of the text."""

CALL_SPAN_EVENTS: Final[Mapping[type[Event], str]] = {
    CallSucceeded: "fluxgate.call.succeeded",
    CallFailed: "fluxgate.call.failed",
    CallIgnored: "fluxgate.call.ignored",
    CallCancelled: "fluxgate.call.cancelled",
    CallRejected: "fluxgate.call.rejected",
    FallbackUsed: "fluxgate.fallback.used",
}
"""What a call leaves on a span that is not its own; a success only where it was stale."""

STATE_CHANGE_EVENT: Final = "fluxgate.circuit.state_change"
"""The event name of the log record that a change of state becomes, and of its mark on the outage's span."""
REOPENS_ATTRIBUTE: Final = "fluxgate.reopens"

CHANGE_ATTRIBUTES: Final[Mapping[str, str]] = {
    "circuit_name": CIRCUIT_ATTRIBUTE,
    "old_state": "fluxgate.circuit.old_state",
    "new_state": "fluxgate.circuit.new_state",
    "trigger": "fluxgate.trigger",
    "reason": REASON_ATTRIBUTE,
    **{key: f"fluxgate.window.{key}" for key in _WINDOW},
    "retry_after": RETRY_AFTER_ATTRIBUTE,
    "reopens": REOPENS_ATTRIBUTE,
    "failing_since": "fluxgate.failing_since",
}
"""What a change of state has as attributes, by the keys of its log line."""

MODE_VARIABLE: Final = "OTEL_PYTHON_FLUXGATE_MODE"
"""The environment variable in which ``opentelemetry-instrument`` finds the mode of the traces."""

LINK_ATTRIBUTE: Final = "fluxgate.link"
"""Why an outage is linked to a span: `TRIP_LINK` or `PROBE_LINK`."""
TRIP_LINK: Final = "trip"
PROBE_LINK: Final = "probe"
OUTAGE_END_ATTRIBUTE: Final = "fluxgate.outage.end"
"""How an outage ended: one of `OUTAGE_ENDS`, `RESET`, `RETIRED` or `UNFINISHED`."""
OUTAGE_ENDS: Final[Mapping[State, str]] = {
    State.CLOSED: "recovered",
    State.DISABLED: "disabled",
    State.METRICS_ONLY: "metrics_only",
    State.FORCED_OPEN: "forced_open",
}
RESET: Final = "reset"
"""Closed by a person, without evidence of recovery."""
RETIRED: Final = "retired"
UNFINISHED: Final = "unfinished"
"""The listener was detached, or the program ended."""


def call_span_name(circuit_name: str) -> str:
    """What the span around a call is called."""
    return f"circuit_breaker {circuit_name}"


def outage_span_name(circuit_name: str) -> str:
    """What the span of an outage, from trip to recovery, is called."""
    return f"circuit_breaker outage {circuit_name}"


# -- alerts -------------------------------------------------------------------------------------------------------


ALERT_LOGGER: Final = "fluxgate.alerts"
"""The logger that alerts are written to, unless told otherwise."""

RUNBOOKS: Final = "dashboards/runbooks/"
"""Where the runbooks are, unless told otherwise: in the distribution, and in what is exported from it."""

Severity = Literal["critical", "warning", "info"]

ALERT_LEVELS: Final[Mapping[Severity, int]] = {"critical": ERROR, "warning": WARNING, "info": INFO}
"""At which level an alert is written as it fires; that it has resolved is INFO."""


class AlertName(NamedTuple):
    """An alert, in logs and in Prometheus alike."""

    name: str
    severity: Severity
    runbook: str
    """The page in ``dashboards/runbooks``."""


def _alert(name: str, severity: Severity) -> AlertName:
    return AlertName(name, severity, f"{name}.md")


CIRCUIT_OPEN: Final = _alert("CircuitOpen", "warning")
CIRCUIT_STUCK_OPEN: Final = _alert("CircuitStuckOpen", "critical")
CIRCUIT_FLAPPING: Final = _alert("CircuitFlapping", "warning")
REJECTING_CALLS: Final = _alert("RejectingCalls", "warning")
SLOW_CIRCUIT: Final = _alert("SlowCircuit", "warning")
LISTENER_FAILING: Final = _alert("ListenerFailing", "warning")
EVENTS_LOST: Final = _alert("EventsLost", "warning")

ALERTS: Final = (
    CIRCUIT_OPEN,
    CIRCUIT_STUCK_OPEN,
    CIRCUIT_FLAPPING,
    REJECTING_CALLS,
    SLOW_CIRCUIT,
    LISTENER_FAILING,
    EVENTS_LOST,
)
"""Every alert that a process can tell of itself."""

FLEET_WIDE_OUTAGE: Final = _alert("FleetWideOutage", "critical")
"""Many circuits of many are open at once, which only Prometheus sees."""

PROMETHEUS_ALERTS: Final = (*ALERTS, FLEET_WIDE_OUTAGE)
"""Every alert of the Prometheus rules."""

ALERT_FIRING: Final = "alert_firing"
ALERT_RESOLVED: Final = "alert_resolved"
ALERT_KEYS: Final = (
    *("alert", "status", "severity", "circuit_name", "listener", "summary", "runbook", "since"),
    *("reason", *_WINDOW, "failing_since", "last_error", *TRACE_KEYS),
)
"""What is written of an alert, in this order; what has no value is left out."""
