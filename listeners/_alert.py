"""What an alert is."""

from typing import Any, Literal

from fluxgate._record import Record
from fluxgate.events import LastError
from fluxgate.metric import Metric

from ._render import value_of
from .names import ALERT_FIRING, ALERT_KEYS, ALERT_RESOLVED, Severity


class Alert(Record):
    """What a sink is given: something has begun to be wrong, or is over."""

    __slots__ = (
        *("alert", "status", "severity", "circuit_name", "listener", "summary", "runbook", "since", "reason"),
        *("metrics", "failing_since", "last_error", "trace_id", "span_id", "timestamp", "fingerprint"),
    )

    alert: str
    """The rule's name."""
    status: Literal["firing", "resolved"]
    severity: Severity
    circuit_name: str
    listener: str | None
    """What fails or is too slow, where the alert is about a listener or a rule of the program's own."""
    summary: str
    """One sentence, printable, at most 1,000 characters long."""
    runbook: str
    """The page that says what to do."""
    since: float
    """Unix time of the event with which it began; the same when it resolves."""
    reason: str | None
    """The sentence with which the circuit opened, or was found slow."""
    metrics: Metric | None
    """The window then."""
    failing_since: float | None
    """Unix time of the first failure in that window."""
    last_error: LastError | None
    trace_id: str | None
    """The trace of the call that opened it, where OpenTelemetry had a current span."""
    span_id: str | None
    timestamp: float
    """Unix time at which this was decided."""
    fingerprint: str
    """16 hexadecimal digits: the same for all alerts of one name about one circuit, or about one listener."""

    @property
    def event(self) -> str:
        """``alert_firing`` or ``alert_resolved``."""
        return ALERT_FIRING if self.status == "firing" else ALERT_RESOLVED

    def to_dict(self) -> dict[str, Any]:
        """Event name, time, fingerprint and what the log line has, in plain types, ready for JSON; times are Unix."""
        values = {key: value_of(self, key) for key in ALERT_KEYS}
        told = {key: str(value) if key == "last_error" else value for key, value in values.items() if value is not None}
        return {"event": self.event, "timestamp": self.timestamp, "fingerprint": self.fingerprint, **told}
