"""All listeners at once, and what can go wrong with them: callers never notice, and losses are counted and visible."""

from __future__ import annotations

import gc
import io
import logging
import os
import threading
from collections.abc import Generator
from typing import Any

import pytest

pytest.importorskip("httpx")
pytest.importorskip("structlog")
pytest.importorskip("prometheus_client")
pytest.importorskip("opentelemetry.sdk.trace")

import structlog
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry, generate_latest

from fluxgate import Bus, CallNotPermittedError, CircuitBreaker, FailureStreak, Never
from fluxgate.events import CallEnded, Event
from fluxgate.listeners.alerts import Alert, AlertListener, EventsLost, ListenerFailing
from fluxgate.listeners.log import LogListener
from fluxgate.listeners.opentelemetry import OpenTelemetryMetricsListener, TracingListener
from fluxgate.listeners.prometheus import PrometheusListener
from fluxgate.listeners.structlog import StructlogListener
from fluxgate.listeners.webhook import WebhookListener
from fluxgate.testing import VirtualClock
from tests.conformance.service import Answer, Service, refused_url
from tests.running import PATIENCE, Running, arrives, script, together


class Everything:
    """A bus with every listener that needs nothing from outside."""

    def __init__(self) -> None:
        self.bus = Bus()
        self.clock = VirtualClock()
        self.registry = CollectorRegistry()
        self.alerts: list[Alert] = []
        self.log = io.StringIO()
        logger = structlog.wrap_logger(
            structlog.PrintLogger(self.log),
            processors=[structlog.processors.JSONRenderer()],
            wrapper_class=structlog.make_filtering_bound_logger(10),
        )
        plain = logging.Logger("quiet", logging.DEBUG)  # noqa: LOG001 - of others pytest keeps every record
        plain.addHandler(logging.NullHandler())
        self.reader = InMemoryMetricReader()
        self.listeners: list[Any] = [
            StructlogListener(logger),
            LogListener(plain),
            AlertListener([ListenerFailing(failures=1), EventsLost()], sink=self.alerts.append, clock=self.clock),
            PrometheusListener(self.registry),
            TracingListener(TracerProvider(), mode="spans"),
            OpenTelemetryMetricsListener(MeterProvider([self.reader])),
        ]
        self.subscriptions = [self.bus.attach(listener) for listener in self.listeners]

    def circuit(self, name: str = "payments", **rules: Any) -> CircuitBreaker:
        rules = {"bus": self.bus, "clock": self.clock, "tripper": FailureStreak(2), "retry": Never(), **rules}
        return CircuitBreaker(name, **rules)

    def value(self, series: str, **labels: str) -> float:
        found = self.registry.get_sample_value(series, labels)
        assert found is not None, f"{series}{labels} is absent"
        return found

    def close(self) -> None:
        for subscription in self.subscriptions:
            subscription.close()


@pytest.fixture
def all_of_them() -> Generator[Everything, None, None]:
    everything = Everything()
    yield everything
    everything.close()


def fails() -> None:
    raise ConnectionError("no route")


def failing_call(circuit: CircuitBreaker) -> None:
    with pytest.raises((ConnectionError, CallNotPermittedError)):
        circuit.call(fails)


def test_a_listener_that_raises_in_every_call_is_counted_and_alerted(all_of_them: Everything) -> None:
    """Callers get their own results; the metric, the log and the alert name the listener, each failure counted."""

    class Broken:
        events = (CallEnded,)

        def __call__(self, event: Event) -> None:
            raise LookupError("no table")

    circuit = all_of_them.circuit()
    with circuit.attach(Broken()):
        for _ in range(50):
            assert circuit.call(int, "7") == 7
    name = Broken.__qualname__
    assert all_of_them.value("circuit_breaker_listener_failures_total", listener=name) == 50
    assert [(alert.alert, alert.status, alert.listener) for alert in all_of_them.alerts] == [
        ("ListenerFailing", "firing", name)
    ]
    assert '"event": "listener_failed"' in all_of_them.log.getvalue()


def test_a_full_queue_is_counted_and_alerted(all_of_them: Everything) -> None:
    """Behind a listener that hangs the oldest events go; how many is in the metric, the log and the alert."""
    inside, free = threading.Event(), threading.Event()
    received: list[Event] = []

    class Hanging:
        events = (CallEnded,)

        def __call__(self, event: Event) -> None:
            inside.set()
            assert arrives(free)
            received.append(event)

    circuit = all_of_them.circuit()
    subscription = circuit.attach(Hanging(), delivery="background", queue_size=10)
    circuit.call(int)
    assert arrives(inside)
    for _ in range(100):
        circuit.call(int)
    free.set()
    subscription.close()
    name = Hanging.__qualname__
    lost = all_of_them.value("circuit_breaker_events_dropped_total", listener=name)
    assert len(received) + lost == 101
    assert lost == 90
    assert [(alert.alert, alert.listener) for alert in all_of_them.alerts] == [("EventsLost", name)]
    assert '"event": "events_dropped"' in all_of_them.log.getvalue()


@pytest.mark.parametrize("receiver", ["hangs", "down"])
def test_a_receiver_that_hangs_or_is_down_holds_up_no_caller(all_of_them: Everything, receiver: str) -> None:
    """Calls in several threads go through while the webhook's receiver says nothing, or is not there."""
    with Service().running() as service:
        service.default = Answer(hang=True)
        url = service.url if receiver == "hangs" else refused_url()
        subscription = all_of_them.bus.attach(WebhookListener(url, timeout=30, retries=0))
        circuit = all_of_them.circuit()
        results: list[int] = []

        def calls() -> None:
            results.extend(circuit.call(int, "7") for _ in range(50))

        circuit.disable()
        together(*[calls] * 4)
        assert results == [7] * 200
        service.ending.set()
        closing = Running(subscription.close)
        assert closing.done()


def test_nothing_is_kept_of_circuits_that_go(all_of_them: Everything) -> None:
    """Circuits that come, trip, refuse and go leave no series, no alert and no object behind."""
    sdk = all_of_them.subscriptions.pop()  # OpenTelemetry's own SDK keeps every attribute set that it has counted
    assert type(all_of_them.listeners.pop()) is OpenTelemetryMetricsListener
    sdk.close()

    def come_and_go(name: str) -> None:
        circuit = all_of_them.circuit(name)
        for _ in range(3):
            failing_call(circuit)
        circuit.retire()

    def generation(count: int) -> int:
        for index in range(count):
            come_and_go(f"circuit-{index}")
        all_of_them.log.seek(0)
        all_of_them.log.truncate()
        gc.collect()
        return len(gc.get_objects())

    before = generation(20)
    after = generation(500)
    assert b"circuit-" not in generate_latest(all_of_them.registry)
    assert after - before < 100, "less than one object in five circuits: none of them is kept"


def exit_status(child: int) -> int:
    """How a child of this process ended; one that hangs fails the test."""
    statuses: list[int] = []
    assert Running(lambda: statuses.append(os.waitpid(child, 0)[1])).done(), "the child hangs"
    return statuses[0]


def test_a_forked_child_uses_every_listener(all_of_them: Everything) -> None:
    """Forked while other threads call, the child's calls go on, with every listener, and so do the parent's."""
    all_of_them.subscriptions.pop(0).close()  # structlog's PrintLogger has a lock that no fork releases
    circuit = all_of_them.circuit(tripper=FailureStreak(10**9))
    stop = threading.Event()

    def calls() -> None:
        while not stop.is_set():
            circuit.call(int)

    running = [Running(calls) for _ in range(2)]
    try:
        assert type(all_of_them.listeners[0]) is StructlogListener
        for _ in range(5):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    for _ in range(20):
                        circuit.call(int)
                    circuit.force_open()
                    all_of_them.bus.flush(5)
                    state = all_of_them.registry.get_sample_value(
                        "circuit_breaker_state", {"circuit_name": "payments", "state": "forced_open"}
                    )
                    code = 0 if state == 1.0 else 2
                finally:
                    os._exit(code)
            assert exit_status(child) == 0
    finally:
        stop.set()
    assert all(each.done() for each in running)


EXIT = """
import sys
from fluxgate import CircuitBreaker, FailureStreak, attach
from fluxgate.listeners.webhook import WebhookListener
from fluxgate.listeners.alerts import AlertListener, CircuitOpen

attach(AlertListener([CircuitOpen()], sink=WebhookListener(sys.argv[1], timeout=60, retries=5)))
attach(WebhookListener(sys.argv[1], timeout=60, retries=5))
circuits = [CircuitBreaker(f"payments-{n}", tripper=FailureStreak(1)) for n in range(20)]
for circuit in circuits:
    circuit.call_with_fallback(int, lambda error: 0, "many")
print("done", flush=True)
"""


@pytest.mark.parametrize("receiver", ["hangs", "down", "answers"])
def test_the_interpreter_ends_in_the_middle_of_delivery(receiver: str) -> None:
    """A program whose last events are being sent ends by itself, with what could be sent within two seconds."""
    with Service().running() as service:
        service.default = Answer(hang=receiver == "hangs")
        url = refused_url() if receiver == "down" else service.url
        done = script(EXIT, url, timeout=PATIENCE)
        assert "done" in done.stdout
        if receiver == "answers":
            assert len(service.paths) == 40
        service.ending.set()


def test_every_listener_hears_the_same_from_many_threads(all_of_them: Everything) -> None:
    """Totals in both metrics and in the log are exact, whatever the threads do."""
    circuit = all_of_them.circuit(tripper=FailureStreak(10**9))

    def calls() -> None:
        for index in range(250):
            if index % 5:
                circuit.call(int)
            else:
                failing_call(circuit)

    together(*[calls] * 4)
    assert all_of_them.bus.flush()
    count = "circuit_breaker_call_duration_seconds_count"
    assert all_of_them.value(count, circuit_name="payments", outcome="success") == 800
    assert all_of_them.value(count, circuit_name="payments", outcome="failure") == 200
    log = all_of_them.log.getvalue()
    assert (log.count('"event": "call_succeeded"'), log.count('"event": "call_failed"')) == (800, 200)
    assert {point: value for point, value in durations(all_of_them.reader).items() if value} == {
        "success": 800,
        "failure": 200,
    }


def durations(reader: Any) -> dict[str, int]:
    """Calls by outcome, as OpenTelemetry's histogram counts them."""
    data = reader.get_metrics_data()
    points = [
        point
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == "circuit_breaker.call.duration"
        for point in metric.data.data_points
    ]
    return {str(point.attributes["outcome"]): point.count for point in points}
