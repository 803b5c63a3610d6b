"""What an alert is, and where it may go."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

from fluxgate import _check
from fluxgate._functions import is_async
from fluxgate._record import Record
from fluxgate.errors import MissingExtraError
from fluxgate.events import LastError
from fluxgate.metric import Metric

from ._eventlog import Writer
from ._render import line, value_of
from .log import LogWriter
from .names import ALERT_FIRING, ALERT_KEYS, ALERT_LEVELS, ALERT_LOGGER, ALERT_RESOLVED, Severity
from .structlog import StructlogWriter, is_logger


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


Sink = Callable[[Alert], object]


class _LogSink:
    """Writes alerts as log lines."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def __call__(self, alert: Alert) -> None:
        level = ALERT_LEVELS[alert.severity] if alert.status == "firing" else logging.INFO
        if self._writer.enabled(level):
            self._writer.write(level, alert.event, line(alert, ALERT_KEYS))


def as_sink(value: Any, author: str) -> Sink:
    """A logger, or a callable, as something that takes an alert; the default for ``None``.

    Raises:
        TypeError: it is neither, or a coroutine function.
    """
    _check.instance(value, "sink", "a logger or a callable")
    if value is None:
        try:
            return _LogSink(StructlogWriter(None, ALERT_LOGGER, author))
        except MissingExtraError:
            value = logging.getLogger(ALERT_LOGGER)
    if isinstance(value, logging.Logger):
        return _LogSink(LogWriter(value, author))
    if not callable(value) and is_logger(value):
        return _LogSink(StructlogWriter(value, ALERT_LOGGER, author))
    if not callable(value):
        raise TypeError(f"sink must be a logger or a callable, got {_check.got(value)}")
    if is_async(value):
        raise TypeError(f"sink must be a plain callable, got the coroutine function {_check.title(value)}")
    return value  # type: ignore[no-any-return]


def several(sink: Any) -> tuple[Any, ...]:
    """The sinks of a list, or the one.

    Raises:
        ValueError: the list is empty.
    """
    given = tuple(cast("Sequence[Any]", sink)) if isinstance(sink, (list, tuple)) else (sink,)
    if not given:
        raise ValueError("sink must be a logger, a callable or several, got none")
    return given
