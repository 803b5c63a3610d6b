"""Traces and log records as they leave the process: over OTLP/HTTP, to a receiver that decodes them."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
pytest.importorskip("opentelemetry.instrumentation.httpx")
pytest.importorskip("httpx")

import httpx
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter

from fluxgate import Bus, CallNotPermittedError, CircuitBreaker, Closed, Cooldown, FailureStreak, permits
from fluxgate.events import ListenerFailed
from fluxgate.listeners.opentelemetry import Mode, TracingListener
from fluxgate.testing import EventRecorder, VirtualClock
from tests.conformance.service import Answer, Service, refused_url
from tests.otlp_receiver import OtlpReceiver, poll
from tests.running import Running

ERROR = 2  # https://opentelemetry.io/docs/specs/otel/trace/api/#set-status
RESOURCE = Resource({"service.name": "shop"})


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback is reached without a proxy, and exporters read no setting of the machine's."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name in ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_COMPRESSION"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def receiver() -> Generator[OtlpReceiver, None, None]:
    with OtlpReceiver().running() as running:
        yield running


@pytest.fixture
def service() -> Generator[Service, None, None]:
    with Service().running() as running:
        yield running


class Exporting:
    """Providers that export to an address in batches, a listener on them, and a circuit that one failure opens."""

    def __init__(self, url: str, mode: Mode = "spans", timeout: float = 10, queue_size: int = 2048) -> None:
        exporter = OTLPSpanExporter(f"{url}/v1/traces", timeout=timeout)
        self.provider = TracerProvider(resource=RESOURCE, shutdown_on_exit=False)
        self.processor = BatchSpanProcessor(
            exporter, queue_size, schedule_delay_millis=50, max_export_batch_size=min(512, queue_size)
        )
        self.provider.add_span_processor(self.processor)
        self.logger_provider = LoggerProvider(RESOURCE, shutdown_on_exit=False)
        logs = BatchLogRecordProcessor(OTLPLogExporter(f"{url}/v1/logs", timeout=timeout), schedule_delay_millis=50)
        self.logger_provider.add_log_record_processor(logs)
        self.tracer = self.provider.get_tracer("shop")
        self.bus, self.clock = Bus(), VirtualClock()
        self.subscription = self.bus.attach(TracingListener(self.provider, mode, self.logger_provider))
        self.failures = EventRecorder(ListenerFailed)
        self.bus.attach(self.failures)

    def circuit(self, name: str = "payments", **rules: Any) -> CircuitBreaker:
        standard = {"tripper": Closed() & FailureStreak(1), "retry": Cooldown(30), "permit": permits.All()}
        return CircuitBreaker(name, bus=self.bus, clock=self.clock, **{**standard, **rules})

    @contextmanager
    def running(self) -> Iterator[Exporting]:
        """Shut the providers down in the end."""
        try:
            yield self
        finally:
            self.subscription.close()
            self.provider.shutdown()
            self.logger_provider.shutdown()
        assert self.failures.events_seen == []


def test_an_outage_as_a_backend_sees_it(receiver: OtlpReceiver, service: Service) -> None:
    """One run: request, call and HTTP spans nest; a trip, a refusal, a recovery; the outage with links; log records."""
    service.script.extend([Answer(status=503), Answer()])
    with Exporting(receiver.url).running() as exporting, httpx.Client(base_url=service.url) as client:
        HTTPXClientInstrumentor.instrument_client(client, tracer_provider=exporting.provider)
        cb = exporting.circuit()

        @cb
        def pay() -> None:
            client.post("/charges").raise_for_status()

        with exporting.tracer.start_as_current_span("tripping request"):
            with pytest.raises(httpx.HTTPStatusError):
                pay()
        with exporting.tracer.start_as_current_span("refused request"):
            with pytest.raises(CallNotPermittedError):
                pay()
        exporting.clock.advance(30)
        with exporting.tracer.start_as_current_span("probing request"):
            pay()

        call = "circuit_breaker payments"
        tripping, refused, probing = (receiver.span(f"{each} request") for each in ("tripping", "refused", "probing"))
        failure = receiver.span(call, fluxgate__outcome="failure")
        success = receiver.span(call, fluxgate__outcome="success")
        refusal = receiver.span(call, fluxgate__decision="rejected")
        outage = receiver.span("circuit_breaker outage payments")
        receiver.wait_for(lambda: len(receiver.logs) == 3, "three changes of state")

    for parent, child in ((tripping, failure), (refused, refusal), (probing, success)):
        assert child.item.parent_span_id == parent.item.span_id
        assert child.item.trace_id == parent.item.trace_id
        assert (child.scope, child.resource["service.name"]) == ("fluxgate", "shop")
    http = [span for span in receiver.traces if span.scope == "opentelemetry.instrumentation.httpx"]
    assert [span.item.parent_span_id for span in http] == [failure.item.span_id, success.item.span_id]

    assert failure.item.status.code == ERROR
    assert "503" in failure.item.status.message
    assert failure.attributes["error.type"] == "httpx.HTTPStatusError"
    assert (refusal.item.status.code, refusal.attributes["fluxgate.retry_after"]) == (ERROR, 30.0)
    assert (success.item.status.code, success.attributes["fluxgate.circuit.state"]) == (0, "half_open")
    assert (tripping.item.status.code, tripping.attributes) == (0, {})

    assert outage.item.parent_span_id == b""
    assert outage.item.trace_id not in {span.item.trace_id for span in (tripping, refused, probing)}
    assert (outage.item.end_time_unix_nano - outage.item.start_time_unix_nano) / 1e9 == 30
    assert [(link.span_id, link.trace_id) for link in outage.item.links] == [
        (span.item.span_id, span.item.trace_id) for span in (failure, success)
    ]
    assert outage.attributes["fluxgate.outage.end"] == "recovered"
    assert len(outage.item.events) == 3

    causes = [failure, probing, success]
    for record, cause, state in zip(receiver.logs, causes, ("open", "half_open", "closed"), strict=True):
        assert record.item.event_name == "fluxgate.circuit.state_change"
        assert record.attributes["fluxgate.circuit.new_state"] == state
        assert (record.item.trace_id, record.item.span_id) == (cause.item.trace_id, cause.item.span_id)
    assert receiver.logs[0].item.severity_text == "WARN"
    assert receiver.logs[0].item.body.string_value.startswith("circuit 'payments' went from closed to open: ")


@pytest.mark.parametrize("mode", ["annotate", "spans"])
def test_odd_names_do_not_cost_the_batch(receiver: OtlpReceiver, mode: Mode) -> None:
    """A lone surrogate in a circuit's name and in an error's text would make the exporter drop all that it holds."""
    with Exporting(receiver.url, mode).running() as exporting:
        cb = exporting.circuit("pay\n\ud800", retry=Cooldown(30))
        with exporting.tracer.start_as_current_span("GET /"):
            for text in ("\udfff\x00", "refused"):
                cb.call_with_fallback(int, lambda error: 0, text)
        cb.reset()
        receiver.span("circuit_breaker outage pay\\n\\ud800", fluxgate__outage__end="reset")
        receiver.span("GET /")
        receiver.wait_for(lambda: len(receiver.logs) == 2, "two changes of state")


def test_a_collector_that_hangs_holds_up_nobody(receiver: OtlpReceiver) -> None:
    """While it says nothing callers go on, however many; what found no room is dropped, and later spans arrive."""
    receiver.answering.clear()
    with Exporting(receiver.url, queue_size=64).running() as exporting:
        cb = exporting.circuit(tripper=FailureStreak(10**6))
        cb.call(int)
        assert receiver.asked.wait(20), "nothing was sent"
        calling = Running(lambda: [cb.call(int) for _ in range(1000)])
        assert calling.done(), "callers wait for the collector"
        assert receiver.traces == []
        receiver.answering.set()
        poll(lambda: len(receiver.traces) > 1, "spans after the collector came back")
        assert len(receiver.traces) < 1000


def test_a_collector_that_is_down_harms_nobody() -> None:
    """Calls, refusals and changes of state go their way; shutting down takes no longer than the exporter's timeout."""
    with Exporting(refused_url(), timeout=0.2).running() as exporting:
        cb = exporting.circuit()
        assert cb.call(int, "3") == 3
        with pytest.raises(ValueError, match="invalid literal"):
            cb.call(int, "x")
        with pytest.raises(CallNotPermittedError):
            cb.call(int)
        exporting.provider.force_flush(1000)
        cb.reset()
        assert cb.call(int, "3") == 3
        ending = Running(exporting.provider.shutdown)
        assert ending.done()


@pytest.mark.parametrize("error", [RuntimeError("disk full"), ValueError("no such host")])
def test_an_exporter_that_raises_never_reaches_the_caller(error: Exception) -> None:
    """Not even where spans are exported at once, in the caller's own thread."""
    asked = threading.Event()

    class Raising(SpanExporter):
        def export(self, spans: Any) -> Any:
            asked.set()
            raise error

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(Raising()))
    bus = Bus()
    subscription = bus.attach(TracingListener(provider, "spans"))
    cb = CircuitBreaker("payments", tripper=FailureStreak(1), bus=bus)
    assert cb.call(int, "3") == 3
    assert asked.is_set()
    with pytest.raises(ValueError, match="invalid literal"):
        cb.call(int, "x")
    with pytest.raises(CallNotPermittedError):
        cb.call(int)
    subscription.close()
