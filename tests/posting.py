"""What the tests of listeners that post over HTTP share: a service on loopback, and waits that take no time."""

from __future__ import annotations

import logging
import re
from collections.abc import Generator
from threading import Event
from typing import Any

import pytest

from fluxgate import Bus, CircuitBreaker, Closed, Cooldown, FailureStreak, Metric, permits
from fluxgate.events import EventsDropped, LastError, ListenerFailed
from fluxgate.listeners import _http
from fluxgate.listeners.alerts import Alert, AlertListener
from fluxgate.testing import EventRecorder, VirtualClock
from tests.conformance.service import Service
from tests.running import PATIENCE

SECRETS = re.compile(r"S3CR3T|T0K3N")
"""Part of all that nobody may see."""


class Waits:
    """Takes the place of waiting: the clock moves on at once."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.seconds: list[float] = []

    def __call__(self, closing: Event, seconds: float) -> bool:
        self.seconds.append(round(seconds, 3))
        self.clock.advance(seconds)
        return closing.is_set()


class Everything(logging.Handler):
    """Keeps what any logger says, with tracebacks."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(logging.Formatter("%(name)s %(message)s").format(record))

    def of(self, name: str) -> list[str]:
        """What one logger said."""
        return [line for line in self.lines if line.startswith(f"{name} ")]


class Post:
    """A service, a bus with one listener that posts to it, and what happens to both."""

    def __init__(self, service: Service, clock: VirtualClock, waits: Waits) -> None:
        self.service = service
        self.clock = clock
        self.waits = waits.seconds
        self.bus = Bus()
        self.news = EventRecorder(ListenerFailed, EventsDropped)
        self.bus.attach(self.news)

    def circuit(self, name: str = "payments", **rules: Any) -> CircuitBreaker:
        """A circuit that one failure opens for a minute, and that one success closes."""
        rules = {
            "tripper": Closed() & FailureStreak(1),
            "retry": Cooldown(60),
            "permit": permits.All(),
            "bus": self.bus,
            "clock": self.clock,
            **rules,
        }
        return CircuitBreaker(name, **rules)

    def flush(self) -> None:
        """Wait until all is delivered, or has failed."""
        assert self.bus.flush(PATIENCE)

    def advance(self, seconds: float) -> None:
        """Let time pass once all is delivered: what is on its way would take it for a slow answer."""
        self.flush()
        self.clock.advance(seconds)

    def alert(self, alerts: AlertListener) -> None:
        """Attach it and have it look around first: what it sees of a circuit then explains less than an event."""
        self.bus.attach(alerts)
        alerts.tick()

    @property
    def errors(self) -> list[str]:
        """What failed, in words."""
        return [event.error for event in self.news.of(ListenerFailed)]


@pytest.fixture
def service() -> Generator[Service, None, None]:
    """A scripted HTTP service on a free port."""
    with Service().running() as running:
        yield running


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    """No wait takes time, and chance is always the highest."""
    waits = Waits(VirtualClock())
    monkeypatch.setattr(_http, "pause", waits)
    monkeypatch.setattr(_http, "chance", lambda: 1.0)
    return waits


@pytest.fixture
def post(service: Service, waits: Waits) -> Post:
    """A service and a bus."""
    return Post(service, waits.clock, waits)


@pytest.fixture
def logged() -> Generator[Everything, None, None]:
    """All that is logged, at whatever level."""
    handler = Everything()
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler
    root.removeHandler(handler)
    root.setLevel(before)


def break_(circuit: CircuitBreaker, error: str = "no route") -> None:
    """One failure."""

    def fail() -> None:
        raise ConnectionError(error)

    circuit.call_with_fallback(fail, lambda error: None)


def an_alert(**values: Any) -> Alert:
    """An alert that fires."""
    known: dict[str, Any] = {
        "alert": "CircuitStuckOpen",
        "status": "firing",
        "severity": "critical",
        "circuit_name": "payments",
        "listener": None,
        "summary": "circuit 'payments' has not closed for 300 s: 1 failure in a row (limit 1)",
        "runbook": "https://runbooks.example/CircuitStuckOpen.md",
        "since": 1_700_000_000.0,
        "reason": "1 failure in a row (limit 1)",
        "metrics": Metric(total_count=1, failure_count=1, total_duration=0.5, slow_count=0),
        "failing_since": 1_700_000_000.0,
        "last_error": LastError(type="ConnectionError", text="no route"),
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
        "span_id": "00f067aa0ba902b7",
        "timestamp": 1_700_000_300.0,
        "fingerprint": "00112233445566aa",
    }
    return Alert(**{**known, **values})
