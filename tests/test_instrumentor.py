"""FluxgateInstrumentor: ``opentelemetry-instrument`` and a program that names no listener."""

from __future__ import annotations

import doctest
import os
import subprocess
import sys
from collections.abc import Generator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("opentelemetry.distro")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http")

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]
from opentelemetry.sdk.trace import TracerProvider

from fluxgate import Bus, CircuitBreaker, FailureStreak, bus
from fluxgate.errors import MissingExtraError
from fluxgate.listeners import instrumentor, names, opentelemetry
from fluxgate.listeners.instrumentor import FluxgateInstrumentor
from tests.otlp_receiver import OtlpReceiver
from tests.running import script

APPLICATION = """
from fluxgate import CircuitBreaker, Closed, FailureStreak
from opentelemetry import trace

payments = CircuitBreaker("payments", tripper=Closed() & FailureStreak(1))


@payments(fallback=lambda error: 0)
def charge(amount):
    return int(amount)


tracer = trace.get_tracer("app")
for amount in ("10", "ten", "10"):
    with tracer.start_as_current_span(f"charge {amount}"):
        charge(amount)
"""


@pytest.fixture
def receiver() -> Generator[OtlpReceiver, None, None]:
    with OtlpReceiver().running() as running:
        yield running


def instrumented(source: str, url: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program under ``opentelemetry-instrument``, which exports traces and logs to `url` and nothing else."""
    program = folder / "app.py"
    program.write_text(source, "utf-8")
    command = [str(Path(sys.executable).with_name("opentelemetry-instrument")), sys.executable, str(program)]
    kept = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    environment = {
        "OTEL_SERVICE_NAME": "shop",
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_LOGS_EXPORTER": "otlp",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_ENDPOINT": url,
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "httpx,fastapi,asgi",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        **environment,
    }
    done = subprocess.run(command, env=kept | environment, capture_output=True, text=True, cwd=folder, timeout=60)
    assert done.returncode == 0, done.stderr
    return done


def test_a_program_that_names_no_listener_is_annotated(receiver: OtlpReceiver, tmp_path: Path) -> None:
    """Its own spans have the decisions; the trip is a log record; the outage ends with the program, unfinished."""
    done = instrumented(APPLICATION, receiver.url, tmp_path)
    assert done.stderr == ""
    receiver.wait_for(lambda: len(receiver.traces) >= 4 and len(receiver.logs) >= 1, "spans and a log record")
    assert sorted(span.item.name for span in receiver.traces) == [
        "charge 10",
        "charge 10",
        "charge ten",
        "circuit_breaker outage payments",
    ]
    success = receiver.span("charge 10", fluxgate__outcome="success")
    failure = receiver.span("charge ten", fluxgate__outcome="failure")
    refusal = receiver.span("charge 10", fluxgate__outcome="rejected")
    outage = receiver.span("circuit_breaker outage payments", fluxgate__outage__end="unfinished")
    assert success.attributes["fluxgate.decision"] == failure.attributes["fluxgate.decision"] == "permitted"
    assert refusal.attributes["fluxgate.reason"] == "open"
    assert outage.resource["service.name"] == "shop"
    assert [link.span_id for link in outage.item.links] == [failure.item.span_id]
    (record,) = receiver.logs
    assert (record.item.event_name, record.scope) == (names.STATE_CHANGE_EVENT, "fluxgate")
    assert (record.item.trace_id, record.item.span_id) == (failure.item.trace_id, failure.item.span_id)


def test_the_environment_names_the_mode(receiver: OtlpReceiver, tmp_path: Path) -> None:
    """With ``OTEL_PYTHON_FLUXGATE_MODE=spans`` each call has a span of its own, also beside `fluxgate.observe`."""
    source = "import fluxgate\nfluxgate.observe()\n" + APPLICATION
    instrumented(source, receiver.url, tmp_path, OTEL_PYTHON_FLUXGATE_MODE=" Spans ")
    call = "circuit_breaker payments"
    receiver.wait_for(lambda: len(receiver.traces) >= 7 and len(receiver.logs) >= 1, "spans and a log record")
    calls = [span for span in receiver.traces if span.item.name == call]
    assert sorted(span.attributes["fluxgate.outcome"] for span in calls) == ["failure", "rejected", "success"]
    failure = receiver.span(call, fluxgate__outcome="failure")
    assert failure.item.parent_span_id == receiver.span("charge ten").item.span_id
    assert receiver.span("charge ten").attributes == {}
    changes = [record for record in receiver.logs if record.item.event_name == names.STATE_CHANGE_EVENT]
    assert [record.item.span_id for record in changes] == [failure.item.span_id]
    assert len(receiver.traces) == 7, receiver.summary()


def test_a_wrong_mode_is_one_warning_and_the_default(receiver: OtlpReceiver, tmp_path: Path) -> None:
    """It quotes the variable, what it holds and what it may be."""
    done = instrumented(APPLICATION, receiver.url, tmp_path, OTEL_PYTHON_FLUXGATE_MODE="span")
    warning = "OTEL_PYTHON_FLUXGATE_MODE must be 'annotate' or 'spans', got 'span' (str): using 'annotate'"
    assert done.stderr.strip() == warning
    receiver.span("charge ten", fluxgate__outcome="failure")


def test_it_can_be_switched_off(receiver: OtlpReceiver, tmp_path: Path) -> None:
    """By the name under which it is registered, as every instrumentation."""
    instrumented(APPLICATION, receiver.url, tmp_path, OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="fluxgate,httpx,fastapi")
    receiver.wait_for(lambda: len(receiver.traces) >= 3, "the program's own spans")
    assert {span.scope for span in receiver.traces} == {"app"}
    assert receiver.logs == []


def test_it_is_registered() -> None:
    """Under the entry-point group that ``opentelemetry-instrument`` looks into."""
    (point,) = [each for each in entry_points(group="opentelemetry_instrumentor") if each.name == "fluxgate"]
    assert point.load() is FluxgateInstrumentor
    assert issubclass(FluxgateInstrumentor, BaseInstrumentor)
    assert FluxgateInstrumentor().instrumentation_dependencies() == ()


@pytest.fixture
def process_bus(monkeypatch: pytest.MonkeyPatch) -> Bus:
    """A bus in the place of the process's own."""
    own = Bus()
    monkeypatch.setattr(instrumentor, "attach", own.attach)
    return own


def test_instrument_and_uninstrument_leave_nothing_behind(process_bus: Bus) -> None:
    """What one attaches the other detaches, as often as one likes; an outage is ended."""
    provider = TracerProvider(shutdown_on_exit=False)
    cb = CircuitBreaker("payments", tripper=FailureStreak(1), bus=process_bus)
    cb.call(int)
    lane = cb._core.lane
    assert lane is not None
    for _ in range(3):
        FluxgateInstrumentor().instrument(tracer_provider=provider, mode="spans")
        (tracing,) = [sub for sub in process_bus._subscriptions if sub.outlet.name == "TracingListener"]
        listener: Any = tracing.outlet.listener
        assert listener.mode == "spans"
        cb.call_with_fallback(int, lambda error: 0, "x")
        assert listener._outages._going_on
        FluxgateInstrumentor().uninstrument()
        assert listener._outages._going_on == {}
        assert not tracing.active
        assert (process_bus._subscriptions, process_bus._outlets) == ((), {})
        cb.reset()
        cb.call(int)
        assert cb._core.lane is not None


def test_what_it_is_given_goes_to_the_listeners(process_bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Providers reach their listeners, metrics too where there are any; what it does not know it passes over."""
    given: list[Any] = []

    class Metrics:
        def __init__(self, meter_provider: Any = None) -> None:
            given.append(meter_provider)

        def __call__(self, event: Any) -> None:
            pass

    monkeypatch.setattr(opentelemetry, "OpenTelemetryMetricsListener", Metrics, raising=False)
    monkeypatch.setenv(names.MODE_VARIABLE, "spans")
    provider = TracerProvider(shutdown_on_exit=False)
    FluxgateInstrumentor().instrument(tracer_provider=provider, meter_provider="meters", excluded_urls="x")
    try:
        listeners: list[Any] = [sub.outlet.listener for sub in process_bus._subscriptions]
        tracing, metrics = listeners
        assert tracing.destination.tracer_provider is provider
        assert tracing.mode == "spans"
        assert isinstance(metrics, Metrics)
        assert given == ["meters"]
    finally:
        FluxgateInstrumentor().uninstrument()


def test_a_failure_half_way_leaves_nothing_attached(process_bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a listener cannot be made, none is attached."""

    def broken(meter_provider: Any = None) -> Any:
        raise RuntimeError("no meters")

    monkeypatch.setattr(opentelemetry, "OpenTelemetryMetricsListener", broken, raising=False)
    with pytest.raises(RuntimeError, match="no meters"):
        FluxgateInstrumentor().instrument()
    assert process_bus._subscriptions == ()


def test_one_that_cannot_be_attached_leaves_nothing_attached(process_bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither listener stays where the second fails."""

    def broken(listener: Any, subscription: Any) -> None:
        raise RuntimeError("no meters")

    monkeypatch.setattr(opentelemetry.OpenTelemetryMetricsListener, "attached", broken)
    with pytest.raises(RuntimeError, match="no meters"):
        FluxgateInstrumentor().instrument()
    assert process_bus._subscriptions == ()


def test_beside_a_listener_by_hand_it_does_not_write_twice(process_bus: Bus) -> None:
    """The one that was attached first writes."""
    provider = TracerProvider(shutdown_on_exit=False)
    FluxgateInstrumentor().instrument(tracer_provider=provider)
    try:
        process_bus.attach(opentelemetry.TracingListener(provider))
        cb = CircuitBreaker("payments", bus=process_bus)
        with provider.get_tracer("shop").start_as_current_span("GET /") as span:
            cb.call_with_fallback(int, lambda error: 0, "x")
        shown: Any = span
        assert [event.name for event in shown.events] == ["fluxgate.call.failed", "fluxgate.fallback.used"]
    finally:
        FluxgateInstrumentor().uninstrument()


def test_a_missing_library_is_named() -> None:
    """The module imports without it, and the class says what to install."""
    script(
        "import sys\n"
        "sys.modules['opentelemetry'] = None\n"
        "from fluxgate.errors import MissingExtraError\n"
        "from fluxgate.listeners.instrumentor import FluxgateInstrumentor\n"
        "try:\n"
        "    FluxgateInstrumentor()\n"
        "except MissingExtraError as error:\n"
        "    text = str(error)\n"
        "expected = ('FluxgateInstrumentor needs opentelemetry-instrumentation, which is not installed: '\n"
        "    \"install Fluxgate with its extra 'opentelemetry'\")\n"
        "assert text == expected, text\n"
    )
    assert issubclass(MissingExtraError, ImportError)


def test_the_examples_are_true() -> None:
    """The docstring's example gives what it says, and leaves nothing on the process's bus."""
    before = bus.default._subscriptions
    result = doctest.testmod(instrumentor)
    assert result.attempted >= 5
    assert result.failed == 0
    assert bus.default._subscriptions == before
