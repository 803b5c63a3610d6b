"""One outage, told everywhere: whoever hears of it, by whatever way, hears the same."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")
pytest.importorskip("uvicorn")
pytest.importorskip("structlog")
pytest.importorskip("prometheus_client")
pytest.importorskip("opentelemetry.sdk.trace")
pytest.importorskip("opentelemetry.instrumentation.fastapi")

import httpx
import structlog
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

import fluxgate
from fluxgate import Bus, CallNotPermittedError, CircuitBreaker, FailureRate, MinRequests
from fluxgate.listeners import names
from fluxgate.listeners.alerts import AlertListener, CircuitOpen
from fluxgate.listeners.opentelemetry import TracingListener
from fluxgate.listeners.prometheus import PrometheusListener
from fluxgate.listeners.structlog import StructlogListener
from fluxgate.listeners.webhook import WebhookListener
from fluxgate.testing import VirtualClock
from tests.conformance.service import Answer, Service
from tests.conformance.test_fastapi import serving

SECRET = "token=s3cret"
CALLS = 4
TRIP = CALLS - 1  # the call that opens the circuit, counted from 0


class Told:
    """What each listener made of the outage."""

    def __init__(self) -> None:
        self.browser: dict[str, Any] = {}
        """What the application's client was answered when it was refused."""
        self.errors: list[CallNotPermittedError] = []
        self.log = io.StringIO()
        self.alert_log = io.StringIO()
        self.spans: Any = InMemorySpanExporter()
        self.records: Any = InMemoryLogRecordExporter()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.exposition = ""
        self.documents: list[dict[str, Any]] = []

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.log.getvalue() + self.alert_log.getvalue()).splitlines()]

    def line(self, event: str) -> dict[str, Any]:
        (line,) = (line for line in self.lines() if line["event"] == event)
        return line

    def span(self, name: str) -> Any:
        (span,) = (span for span in self.spans.get_finished_spans() if span.name == name)
        return span

    def requests(self) -> list[Any]:
        """The server's spans of the application's requests, in order."""
        servers = [span for span in self.spans.get_finished_spans() if span.name == "POST /checkout"]
        assert len(servers) == CALLS + 1
        return sorted(servers, key=lambda span: int(span.start_time))

    def document(self, kind: str) -> dict[str, Any]:
        (found,) = (document for document in self.documents if document["type"] == kind)
        data: dict[str, Any] = found["data"]
        return data

    def everything(self) -> str:
        """All that was told, as text."""
        return "\n".join(
            [
                self.log.getvalue(),
                self.alert_log.getvalue(),
                json.dumps(self.browser),
                json.dumps(self.documents),
                *(span.to_json() for span in self.spans.get_finished_spans() if span.name.startswith("circuit")),
                *(record.to_json() for record in self.records.get_finished_logs()),
                self.exposition,
            ]
        )


def json_logger(sink: io.StringIO) -> Any:
    return structlog.wrap_logger(
        structlog.PrintLogger(sink),
        processors=[structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(20),
    )


def application(told: Told, circuit: CircuitBreaker, upstream: str, clock: VirtualClock) -> FastAPI:
    """A shop whose payments go through the circuit."""
    app = FastAPI()

    @app.post("/checkout")
    @circuit
    def checkout() -> dict[str, str]:
        clock.advance(0.3)
        with httpx.Client(trust_env=False) as client:
            client.get(f"{upstream}/pay?{SECRET}").raise_for_status()
        return {"paid": "yes"}

    @app.exception_handler(CallNotPermittedError)
    def refused(request: Request, error: CallNotPermittedError) -> JSONResponse:
        told.errors.append(error)
        opening = error.opening
        assert opening is not None
        told.browser = {
            "detail": error.message,
            "reason": str(error.verdict),
            "failing_since": opening.failing_since,
            "trace_id": opening.trace_id,
        }
        return JSONResponse(told.browser, 503)

    @app.exception_handler(httpx.HTTPStatusError)
    def failed(request: Request, error: httpx.HTTPStatusError) -> JSONResponse:
        return JSONResponse({"detail": "the payment failed"}, 502)

    return app


@pytest.fixture(scope="module")
def told() -> Told:
    """One outage of an application that has every listener, over real HTTP."""
    told, clock, bus = Told(), VirtualClock(), Bus()
    provider, logs = TracerProvider(), LoggerProvider()
    provider.add_span_processor(SimpleSpanProcessor(told.spans))
    logs.add_log_record_processor(SimpleLogRecordProcessor(told.records))
    fluxgate.redact(lambda text: text.replace(SECRET, "***"))
    with Service().running() as upstream, Service().running() as receiver:
        webhook = WebhookListener(receiver.url)
        listeners: list[Any] = [
            StructlogListener(json_logger(told.log)),
            AlertListener([CircuitOpen()], sink=json_logger(told.alert_log), clock=clock),
            PrometheusListener(told.registry),
            TracingListener(provider, mode="spans", logger_provider=logs),
            webhook,
        ]
        subscriptions = [bus.attach(listener) for listener in listeners]
        circuit = CircuitBreaker("payments", tripper=MinRequests(CALLS) & FailureRate(0.5), clock=clock, bus=bus)
        app = application(told, circuit, upstream.url, clock)
        FastAPIInstrumentor.instrument_app(app, tracer_provider=provider)
        try:
            with serving(app) as url, httpx.Client(base_url=url, trust_env=False) as browser:
                upstream.script.append(Answer())
                upstream.default = Answer(503)
                codes = [browser.post("/checkout").status_code for _ in range(CALLS + 1)]
            assert codes == [200, 502, 502, 502, 503]
            assert bus.flush()
            told.exposition = generate_latest(told.registry).decode()  # type: ignore[no-untyped-call]
            for subscription in subscriptions:
                subscription.close()
        finally:
            FastAPIInstrumentor.uninstrument_app(app)
            fluxgate.redact(None)
        told.documents = [json.loads(request.body) for request in receiver.received]
    provider.shutdown()
    logs.shutdown()
    return told


@pytest.fixture
def trip(told: Told) -> Any:
    """The server's span of the request whose call opened the circuit."""
    return told.requests()[TRIP]


@pytest.fixture
def trace_id(trip: Any) -> str:
    return f"{trip.context.trace_id:032x}"


REASON = "4 calls seen (4 needed) and failure rate 75.0 % (limit 50.0 %, 3 of 4 calls)"
BEGAN = 1_700_000_000.0
FAILING_SINCE = BEGAN + 0.6  # when the second of the calls, of 0.3 s each, had failed
FAILING_SINCE_ISO = "2023-11-14T22:13:20.600Z"
FIGURES = {"failure_rate": 0.75, "slow_rate": 0.0, "total_count": 4, "failure_count": 3, "avg_duration": 0.3}


def test_the_exception_tells_it(told: Told, trace_id: str) -> None:
    """The refused caller has the reason, the figures, since when, and the trace of the call that opened the circuit."""
    (error,) = told.errors
    opening = error.opening
    assert opening is not None
    assert str(error.verdict) == REASON
    assert opening.metrics.failure_rate == FIGURES["failure_rate"]
    assert (opening.metrics.total_count, opening.metrics.failure_count) == (4, 3)
    assert opening.failing_since == pytest.approx(FAILING_SINCE)
    assert opening.trace_id == trace_id
    assert told.browser == {
        "detail": f"circuit 'payments' is open: {REASON}; retry after 60.0 s",
        "reason": REASON,
        "failing_since": opening.failing_since,
        "trace_id": trace_id,
    }


@pytest.mark.parametrize("event", ["circuit_opened", names.ALERT_FIRING])
def test_the_log_line_and_the_alert_tell_it(told: Told, trace_id: str, event: str) -> None:
    """Both have the same keys with the same values, and the trace of that call."""
    line = told.line(event)
    assert line["reason"] == REASON
    assert {key: line[key] for key in FIGURES} == FIGURES
    assert line["failing_since"] == FAILING_SINCE_ISO
    assert line["trace_id"] == trace_id
    assert "503" in line["last_error"]


def test_the_line_about_refusals_points_to_the_refused_request(told: Told) -> None:
    """The refusal has a trace of its own: the request that was refused."""
    line = told.line("calls_rejected")
    assert line["trace_id"] == f"{told.requests()[-1].context.trace_id:032x}"
    assert line["rejected"] == 1


def test_the_spans_tell_it(told: Told, trip: Any) -> None:
    """The call's span is a child of the request's; the outage's span has the reason and is linked to that call."""
    calls = [
        span
        for span in told.spans.get_finished_spans()
        if span.name == names.call_span_name("payments") and span.parent
    ]
    tripping = next(span for span in calls if span.context.trace_id == trip.context.trace_id)
    parents = {span.context.span_id: span.name for span in told.spans.get_finished_spans()}
    assert parents[tripping.parent.span_id] == "POST /checkout"
    assert tripping.attributes[names.OUTCOME_ATTRIBUTE] == "failure"
    outage = told.span(names.outage_span_name("payments"))
    assert outage.attributes[names.REASON_ATTRIBUTE] == REASON
    assert outage.links[0].context.trace_id == trip.context.trace_id
    (record,) = (each.log_record for each in told.records.get_finished_logs())
    assert record.event_name == names.STATE_CHANGE_EVENT
    assert record.trace_id == trip.context.trace_id
    assert record.attributes[names.REASON_ATTRIBUTE] == REASON


def test_the_exemplar_tells_it(told: Told, trace_id: str) -> None:
    """The histogram's exemplar of failures leads to the trace of the call that opened the circuit."""
    families = text_string_to_metric_families(told.exposition)  # type: ignore[no-untyped-call]
    (duration,) = (family for family in families if family.name == names.CALL_DURATION.series)
    exemplars = {
        sample.exemplar.labels["trace_id"]
        for sample in duration.samples
        if sample.exemplar is not None and sample.labels["outcome"] == "failure"
    }
    assert trace_id in exemplars


@pytest.mark.parametrize("kind", ["circuit_opened"])
def test_the_webhook_tells_it(told: Told, trace_id: str, kind: str) -> None:
    """The document has the same reason, figures, time and trace."""
    data = told.document(kind)
    assert data["reason"] == REASON
    assert {key: pytest.approx(data["metrics"][key]) for key in FIGURES} == FIGURES
    assert data["failing_since"] == pytest.approx(FAILING_SINCE)
    assert data["trace_id"] == trace_id


def test_nobody_tells_the_secret(told: Told) -> None:
    """The errors' texts went through `fluxgate.redact` on every way."""
    everything = told.everything()
    assert SECRET not in everything
    assert everything.count("***") >= 4
