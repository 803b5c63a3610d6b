"""TracingListener: decisions on spans, spans of calls and outages, and changes of state as log records."""

from __future__ import annotations

import asyncio
import contextvars
import doctest
import gc
import os
import re
import sys
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from pathlib import Path
from threading import Event
from typing import Any, ClassVar

import pytest

pytest.importorskip("opentelemetry.sdk")

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry._logs import SeverityNumber
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

import fluxgate
from fluxgate import (
    AsyncCircuitBreaker,
    Bus,
    CallNotPermittedError,
    CircuitBreaker,
    Closed,
    Cooldown,
    FailureStreak,
    TypeOf,
    permits,
)
from fluxgate.errors import MissingExtraError
from fluxgate.events import CallFailed, CallStarted, ListenerFailed, StateChanged
from fluxgate.listeners import load, names, opentelemetry
from fluxgate.listeners.opentelemetry import Mode, TracingListener
from fluxgate.testing import EventRecorder, VirtualClock
from tests.running import PATIENCE, Running, arrives, restless, run_async, script, together

MODES: tuple[Mode, ...] = ("annotate", "spans")
each_mode = pytest.mark.parametrize("mode", MODES)
REFUSAL = "fluxgate.errors.CallNotPermittedError"


class Traced:
    """Providers that keep what they are given, a listener on them, and circuits on a bus and a clock of their own."""

    def __init__(self, mode: Mode = "annotate", sampler: Any = None, **options: Any) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler, shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.records: Any = InMemoryLogRecordExporter()  # type: ignore[no-untyped-call]
        self.logger_provider = LoggerProvider(shutdown_on_exit=False)
        self.logger_provider.add_log_record_processor(SimpleLogRecordProcessor(self.records))
        self.tracer = self.provider.get_tracer("shop")
        self.bus = Bus()
        self.clock = VirtualClock()
        self.listener = TracingListener(self.provider, mode, self.logger_provider)
        self.failures = EventRecorder(ListenerFailed)
        self.subscription = self.bus.attach(self.listener, **options)
        self.bus.attach(self.failures)

    def rules(self, **rules: Any) -> dict[str, Any]:
        """One failure opens for a minute, and one success closes."""
        standard = {"tripper": Closed() & FailureStreak(1), "retry": Cooldown(60), "permit": permits.All()}
        return {**standard, "bus": self.bus, "clock": self.clock, **rules}

    def circuit(self, name: str = "payments", **rules: Any) -> CircuitBreaker:
        return CircuitBreaker(name, **self.rules(**rules))

    def async_circuit(self, name: str = "payments", **rules: Any) -> AsyncCircuitBreaker:
        return AsyncCircuitBreaker(name, **self.rules(**rules))

    @property
    def spans(self) -> list[ReadableSpan]:
        """Those that have ended, in that order; no listener may have failed meanwhile."""
        assert self.failures.events_seen == []
        return list(self.exporter.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    def only(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span

    def calls(self) -> list[ReadableSpan]:
        """The spans of calls and refusals."""
        return [span for span in self.spans if span.name == "circuit_breaker payments"]

    def outages(self) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name.startswith("circuit_breaker outage")]

    def log_records(self) -> list[Any]:
        return [each.log_record for each in self.records.get_finished_logs()]

    @property
    def going_on(self) -> dict[str, Any]:
        """What the listener keeps of outages."""
        kept: dict[str, Any] = self.listener._outages._going_on
        return kept


@pytest.fixture(autouse=True)
def nothing_current() -> Iterator[None]:
    """A test ends with the OpenTelemetry context with which it began."""
    before = contexts.get_current()
    yield
    assert contexts.get_current() is before


def fail(error: BaseException | None = None) -> None:
    raise ConnectionError("no route") if error is None else error


def try_to(call: Callable[..., Any], *args: Any) -> Any:
    """Whatever comes of it."""
    try:
        return call(*args)
    except (ConnectionError, CallNotPermittedError, KeyError):
        return None


def told(span: Any) -> dict[str, Any]:
    """Its attributes, or an event's or a record's, without the common beginning of their names."""
    return {key.removeprefix("fluxgate."): value for key, value in (span.attributes or {}).items()}


def marks(span: ReadableSpan) -> list[str]:
    return [event.name.removeprefix("fluxgate.") for event in span.events]


def id_of(span: Any) -> int:
    """The span id of a span, of a link or of what is current where a call runs."""
    context = span.get_span_context() if hasattr(span, "get_span_context") else span.context
    return int(context.span_id)


# -- annotate ---------------------------------------------------------------------------------------------------------


def test_a_success_is_noted_on_the_current_span() -> None:
    """The span has the circuit, its state, the decision and the outcome; no event and no span of its own."""
    traced = Traced()
    with traced.tracer.start_as_current_span("GET /"):
        assert traced.circuit().call(int, "3") == 3
    (span,) = traced.spans
    assert span.attributes == {
        names.CIRCUIT_ATTRIBUTE: "payments",
        names.STATE_ATTRIBUTE: "closed",
        names.DECISION_ATTRIBUTE: "permitted",
        names.OUTCOME_ATTRIBUTE: "success",
    }
    assert marks(span) == []
    assert span.status.status_code is StatusCode.UNSET


def test_a_refusal_is_noted_with_its_reason_and_its_wait() -> None:
    """The refused caller's span says that and why the circuit refused, and when it will try again."""
    traced = Traced()
    cb = traced.circuit()
    try_to(cb.call, fail)
    traced.clock.advance(15)
    with traced.tracer.start_as_current_span("GET /"):
        try_to(cb.call, int)
    span = traced.only("GET /")
    assert told(span) == {
        "circuit.name": "payments",
        "circuit.state": "open",
        "decision": "rejected",
        "outcome": "rejected",
        "reason": "open",
        "retry_after": 45.0,
        "error.type": REFUSAL,
    }
    assert [told(event) for event in span.events] == [told(span)]
    assert marks(span) == ["call.rejected"]
    assert span.status.status_code is StatusCode.UNSET, "whether it bore the refusal is not ours to say"


def test_an_error_without_a_text_has_no_text() -> None:
    """What has no value is left out, on the event and in the log record."""
    traced = Traced()
    cb = traced.circuit()
    with traced.tracer.start_as_current_span("GET /"):
        try_to(cb.call, fail, ConnectionError())
    (event,) = traced.only("GET /").events
    for each in (event, traced.log_records()[0]):
        assert told(each)["error.type"] == "ConnectionError"
        assert "error.message" not in told(each)


def test_only_a_person_can_close_it_so_no_wait_is_told() -> None:
    """A forced-open circuit's refusal has no `retry_after`."""
    traced = Traced()
    cb = traced.circuit()
    cb.force_open()
    with traced.tracer.start_as_current_span("GET /"):
        try_to(cb.call, int)
    assert told(traced.only("GET /")).get("reason") == "forced_open"
    assert names.RETRY_AFTER_ATTRIBUTE not in (traced.only("GET /").attributes or {})


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ("ok", {"outcome": "success", "decision": "permitted"}),
        ("failed ok", {"outcome": "failure", "decision": "permitted", "error.type": "ConnectionError"}),
        ("ok ignored", {"outcome": "ignored", "decision": "permitted", "error.type": "KeyError"}),
        ("failed ignored", {"outcome": "failure", "decision": "permitted", "error.type": "ConnectionError"}),
        ("cancelled ok", {"outcome": "cancelled", "decision": "permitted"}),
        (
            "failed forced ok",
            {"outcome": "rejected", "decision": "rejected", "error.type": REFUSAL, "reason": "forced_open"},
        ),
        (
            "forced refused ok failed",
            {
                "outcome": "rejected",
                "decision": "rejected",
                "error.type": REFUSAL,
                "reason": "open",
                "retry_after": 60.0,
            },
        ),
        (
            "refused forced",
            {
                "outcome": "rejected",
                "decision": "rejected",
                "error.type": REFUSAL,
                "reason": "open",
                "retry_after": 60.0,
            },
        ),
    ],
)
def test_of_several_calls_in_a_span_the_gravest_is_its_attributes(calls: str, expected: dict[str, Any]) -> None:
    """A refusal over a failure over the rest, never a mix of two; each that did not succeed is an event."""
    traced = Traced()
    kinds: dict[str, Any] = {"tripper": FailureStreak(100), "tracker": ~TypeOf(KeyError)}
    steady, forced, opened = traced.circuit(**kinds), traced.circuit(), traced.circuit()
    forced.force_open()
    try_to(opened.call, fail)

    def cancelled() -> None:
        held = steady.acquire()
        held.cancel()

    does: dict[str, Callable[[], Any]] = {
        "ok": lambda: steady.call(int),
        "failed": lambda: steady.call(fail),
        "ignored": lambda: steady.call(fail, KeyError("x")),
        "cancelled": cancelled,
        "forced": lambda: forced.call(int),
        "refused": lambda: opened.call(int),
    }
    with traced.tracer.start_as_current_span("GET /"):
        for call in calls.split():
            try_to(does[call])
    span = traced.only("GET /")
    attributes = told(span)
    del attributes["circuit.name"], attributes["circuit.state"]
    assert attributes == expected
    assert len(marks(span)) == sum(call != "ok" for call in calls.split())


def test_threads_that_share_a_span_mix_no_decisions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure that is written while another thread writes a success is the graver all the same."""
    traced = Traced()
    cb = traced.circuit(tripper=FailureStreak(100))
    failing: list[Running] = []
    with traced.tracer.start_as_current_span("GET /") as span:
        write, context = span.set_attributes, contextvars.copy_context()

        def write_slowly(attributes: Any) -> None:
            if not failing:
                failing.append(Running(lambda: context.run(try_to, cb.call, fail)))
                failing[0].done(0.2)
            write(attributes)

        monkeypatch.setattr(span, "set_attributes", write_slowly)
        cb.call(int)
        assert failing[0].done()
    assert told(span)["outcome"] == "failure"
    assert told(span)["error.type"] == "ConnectionError"


def test_nothing_is_written_where_no_span_records() -> None:
    """Without a span, with one that is not sampled, and with one that has ended, a call goes its way in silence."""
    traced = Traced()
    cb = traced.circuit(tripper=FailureStreak(9))
    quiet = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False).get_tracer("shop")
    try_to(cb.call, fail)
    with quiet.start_as_current_span("GET /"):
        try_to(cb.call, fail)
    with traced.tracer.start_as_current_span("GET /") as span:
        span.end()
        try_to(cb.call, fail)
        held = cb.acquire()
        held.success()
    assert told(traced.only("GET /")) == {}


def test_a_call_that_outlives_its_span_is_not_written(caplog: pytest.LogCaptureFixture) -> None:
    """A span that has ended before the call is left alone, without a word from the SDK."""
    traced = Traced()
    with traced.tracer.start_as_current_span("GET /"):
        held = traced.circuit().acquire()
    held.failure(ConnectionError("no route"))
    assert told(traced.only("GET /")) == {}
    assert caplog.records == []


def test_a_span_that_cannot_be_remembered_is_written_all_the_same() -> None:
    """Spans of another making may have no weak references: each call then writes its attributes."""

    class Slotted(trace.NonRecordingSpan):
        __hash__ = None  # type: ignore[assignment]
        seen: ClassVar[list[Any]] = []

        def is_recording(self) -> bool:
            return True

        def set_attributes(self, attributes: Any) -> None:
            self.seen.append(attributes[names.OUTCOME_ATTRIBUTE])

    traced = Traced()
    cb = traced.circuit(tripper=FailureStreak(9))
    with trace.use_span(Slotted(trace.INVALID_SPAN_CONTEXT)):
        try_to(cb.call, fail)
        cb.call(int)
    assert Slotted.seen == ["failure", "success"]
    assert traced.spans == []


# -- spans ------------------------------------------------------------------------------------------------------------


def test_a_call_has_a_span_whose_children_are_its_own() -> None:
    """The call's span stands between the caller's and what the call itself begins."""
    traced = Traced("spans")
    cb = traced.circuit()

    @cb
    def pay() -> None:
        with traced.tracer.start_as_current_span("POST /charges"):
            pass

    with traced.tracer.start_as_current_span("GET /") as request:
        pay()
        assert trace.get_current_span() is request
    child, call, parent = traced.spans
    assert (child.name, call.name, parent.name) == ("POST /charges", "circuit_breaker payments", "GET /")
    assert child.parent is not None
    assert call.parent is not None
    assert (child.parent.span_id, call.parent.span_id) == (id_of(call), id_of(parent))
    assert call.kind is SpanKind.INTERNAL
    assert call.instrumentation_scope is not None
    assert (call.instrumentation_scope.name, call.instrumentation_scope.version) == ("fluxgate", "1.0.0.dev0")
    assert told(call) == {
        "circuit.name": "payments",
        "circuit.state": "closed",
        "decision": "permitted",
        "outcome": "success",
    }
    assert call.status.status_code is StatusCode.UNSET
    assert told(parent) == {}


@pytest.mark.parametrize(
    ("error", "outcome", "status", "text", "kind"),
    [
        (ConnectionError("no route"), "failure", StatusCode.ERROR, "no route", "ConnectionError"),
        (ConnectionError(), "failure", StatusCode.ERROR, None, "ConnectionError"),
        (KeyError("fork"), "ignored", StatusCode.UNSET, None, "KeyError"),
        (KeyboardInterrupt(), "cancelled", StatusCode.UNSET, None, None),
    ],
)
def test_a_failure_is_an_error_and_nothing_else_is(
    error: BaseException, outcome: str, status: StatusCode, text: str | None, kind: str | None
) -> None:
    """An ignored or a cancelled call says so in its outcome and is no error."""
    traced = Traced("spans")
    cb = traced.circuit(tripper=FailureStreak(9), tracker=~TypeOf(KeyError))
    with pytest.raises(type(error)):
        cb.call(fail, error)
    (span,) = traced.calls()
    assert (span.status.status_code, span.status.description) == (status, text)
    assert told(span).get("outcome") == outcome
    assert (span.attributes or {}).get(names.ERROR_ATTRIBUTE) == kind


def test_a_refused_call_is_a_short_error_span() -> None:
    """It says why, and when the circuit will try again; nothing runs in it."""
    traced = Traced("spans")
    cb = traced.circuit()
    try_to(cb.call, fail)
    with traced.tracer.start_as_current_span("GET /") as request:
        try_to(cb.call, int)
    _, span = traced.calls()
    assert span.parent is not None
    assert span.parent.span_id == id_of(request)
    assert told(span)["decision"] == "rejected"
    assert (told(span)["reason"], told(span)["retry_after"], told(span)["error.type"]) == ("open", 60.0, REFUSAL)
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "circuit 'payments' is open; retry after 60.0 s"


def test_slow_and_stale_calls_are_marked() -> None:
    """What counted as slow says so, and so does what came too late to count."""
    traced = Traced("spans")
    cb = traced.circuit(slow_threshold=5)
    cb.call(traced.clock.advance, 6)
    held = cb.acquire()
    cb.reset()
    held.success()
    slow, stale = map(told, traced.calls())
    assert (slow.get("slow"), slow.get("stale")) == (True, None)
    assert (stale.get("slow"), stale.get("stale")) == (None, True)


def test_a_stale_success_is_an_event_on_the_annotated_span() -> None:
    """It decided nothing, which its outcome alone would not say."""
    traced = Traced()
    cb = traced.circuit()
    with traced.tracer.start_as_current_span("GET /"):
        held = cb.acquire()
        cb.reset()
        held.success()
    (event,) = traced.only("GET /").events
    assert (event.name, told(event)["stale"]) == (names.CALL_SPAN_EVENTS[fluxgate.events.CallSucceeded], True)


def test_nested_breakers_nest_their_spans() -> None:
    """The inner circuit's span is a child of the outer's; its refusal is no failure of the outer circuit."""
    traced = Traced("spans")
    outer, inner = traced.circuit("outer"), traced.circuit("inner")
    inner.force_open()
    with pytest.raises(CallNotPermittedError):
        outer.call(lambda: inner.call(int))
    refused, call = traced.spans
    assert (refused.name, call.name) == ("circuit_breaker inner", "circuit_breaker outer")
    assert refused.parent is not None
    assert refused.parent.span_id == id_of(call)
    assert (told(call)["outcome"], told(call)["error.type"]) == ("ignored", REFUSAL)
    assert call.status.status_code is StatusCode.UNSET


def test_an_unsampled_trace_stays_unsampled() -> None:
    """Where the sampler drops the call's span, its children inherit that, and nothing is written."""
    traced = Traced("spans", sampler=ALWAYS_OFF)
    seen: list[Any] = []
    traced.circuit().call(lambda: seen.append(trace.get_current_span().get_span_context()))
    assert traced.spans == []
    assert seen[0].is_valid
    assert not seen[0].trace_flags.sampled


def test_an_exporters_own_traffic_has_no_spans() -> None:
    """A circuit around an exporter's client must not make spans of exporting spans."""
    traced = Traced("spans")
    cb = traced.circuit()
    token = contexts.attach(contexts.set_value(contexts._SUPPRESS_INSTRUMENTATION_KEY, True))
    try:
        try_to(cb.call, fail)
        try_to(cb.call, fail)
    finally:
        contexts.detach(token)
    assert traced.calls() == []


def test_an_exporters_own_traffic_is_no_decision_of_the_requests() -> None:
    """A span is exported within its parent, which goes on and says nothing of the exporter's circuit."""
    traced = Traced()
    cb = traced.circuit()
    with traced.tracer.start_as_current_span("GET /") as request:
        token = contexts.attach(contexts.set_value(contexts._SUPPRESS_INSTRUMENTATION_KEY, True))
        try:
            try_to(cb.call, fail)
            cb.call_with_fallback(int, lambda error: 0)
        finally:
            contexts.detach(token)
    assert told(request) == {}
    assert marks(traced.only("GET /")) == []


def test_a_span_that_the_call_ended_itself_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    """The SDK would complain about a second end."""
    traced = Traced("spans")
    traced.circuit().call(lambda: trace.get_current_span().end())
    assert len(traced.calls()) == 1
    assert caplog.records == []


@each_mode
def test_a_fallback_is_told_on_the_span_around_the_call(mode: Mode) -> None:
    """In both modes it is an event of the caller's span, since the call is over when its fallback runs."""
    traced = Traced(mode)
    cb = traced.circuit()
    cb.call_with_fallback(fail, lambda error: 0, None)
    with traced.tracer.start_as_current_span("GET /"):
        cb.call_with_fallback(fail, lambda error: 0, None)
    event = traced.only("GET /").events[-1]
    assert event.name == "fluxgate.fallback.used"
    assert told(event) == {"circuit.name": "payments", "circuit.state": "open", "error.type": REFUSAL}


@each_mode
def test_what_comes_instead_of_a_call_is_told_while_the_callers_span_lasts(mode: Mode) -> None:
    """Another thread may be telling this circuit's events meanwhile: a span that has ended takes nothing more."""
    traced = Traced(mode)
    cb = traced.circuit()
    busy, ended = Event(), Event()

    def hold_up(event: StateChanged) -> None:
        busy.set()
        assert arrives(ended)

    traced.bus.attach(hold_up)
    telling = Running(cb.force_open)
    assert arrives(busy)
    with traced.tracer.start_as_current_span("GET /"):
        assert cb.call_with_fallback(int, lambda error: 0, None) == 0
    ended.set()
    assert telling.done()
    request = traced.only("GET /")
    if mode == "annotate":
        assert told(request)["decision"] == "rejected"
        assert marks(request) == ["call.rejected", "fallback.used"]
    else:
        assert marks(request) == ["fallback.used"]
        (refused,) = traced.calls()
        assert refused.end_time is not None
        assert request.end_time is not None
        assert refused.end_time <= request.end_time


# -- texts ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def redacted() -> Iterator[None]:
    fluxgate.redact(lambda text: text.replace("s3cret", "***"))
    yield
    fluxgate.redact(None)


@each_mode
@pytest.mark.usefixtures("redacted")
def test_no_error_text_escapes_redaction(mode: Mode) -> None:
    """What `fluxgate.redact` takes out is in no span, event, status, link or log record."""
    traced = Traced(mode)
    cb = traced.circuit()
    with traced.tracer.start_as_current_span("GET /"):
        with pytest.raises(ConnectionError):
            cb.call(fail, ConnectionError("token=s3cret"))
    cb.reset()
    shown = "".join(span.to_json() for span in traced.spans) + str(
        [(each.body, each.attributes) for each in traced.log_records()]
    )
    assert "token=***" in shown
    assert "s3cret" not in shown
    assert "Traceback" not in shown


@each_mode
def test_odd_names_and_texts_are_written_as_one_printable_line(mode: Mode) -> None:
    """Line breaks, escapes and lone surrogates are escaped: no exporter chokes on them."""
    traced = Traced(mode)
    cb = traced.circuit("pay\n\x1b[31m\ud800\"'" + "x" * 2000)
    with traced.tracer.start_as_current_span("GET /"):
        try_to(cb.call, fail, ConnectionError("\ud800\nline two"))
        try_to(cb.call, int)
        cb.call_with_fallback(int, lambda error: 0)
    cb.reset()
    for span in traced.spans:
        texts = [span.name, span.status.description or ""]
        for each in (span, *span.events, *span.links):
            texts += map(str, told(each).values())
        assert all(text.isprintable() and len(text) < 1200 for text in texts), texts
    for record in traced.log_records():
        assert all(str(text).isprintable() for text in (record.body, *record.attributes.values()))


# -- contexts ---------------------------------------------------------------------------------------------------------


@each_mode
def test_concurrent_tasks_keep_to_their_own_spans(mode: Mode) -> None:
    """Calls that wait at the same time each have their own span or annotate their own, and leave it current."""
    traced = Traced(mode)
    cb = traced.async_circuit(tripper=FailureStreak(99))

    @cb
    async def pay(number: int) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        with traced.tracer.start_as_current_span(f"charge {number}"):
            await asyncio.sleep(0)
        if number % 2:
            raise ConnectionError(number)

    async def request(number: int) -> None:
        with traced.tracer.start_as_current_span(f"GET /{number}") as span:
            try:
                await pay(number)
            except ConnectionError:
                pass
            assert trace.get_current_span() is span

    async def main() -> None:
        await asyncio.gather(*map(request, range(8)))

    run_async(main())
    by_id = {id_of(span): span for span in traced.spans}
    for number in range(8):
        child = traced.only(f"charge {number}")
        assert child.parent is not None
        parent = by_id[child.parent.span_id]
        assert told(parent)["outcome"] == ("failure" if number % 2 else "success")
        if mode == "spans":
            assert parent.name == "circuit_breaker payments"
            assert parent.parent is not None
            parent = by_id[parent.parent.span_id]
        assert parent.name == f"GET /{number}"


@each_mode
def test_threads_keep_to_their_own_spans(mode: Mode) -> None:
    """The same holds for threads, which switch as often as they can."""
    traced = Traced(mode)
    cb = traced.circuit(tripper=FailureStreak(10**6))

    def work(number: int) -> None:
        for _ in range(30):
            with traced.tracer.start_as_current_span(f"GET /{number}") as span:
                cb.call(lambda: traced.tracer.start_span(f"charge {number}").end())
                assert trace.get_current_span() is span

    with restless():
        together(*(lambda number=number: work(number) for number in range(4)))
    by_id = {id_of(span): span for span in traced.spans}
    for number in range(4):
        charges = traced.named(f"charge {number}")
        assert len(charges) == 30
        for charge in charges:
            assert charge.parent is not None
            parent = by_id[charge.parent.span_id]
            if mode == "spans":
                assert parent.parent is not None
                parent = by_id[parent.parent.span_id]
            assert parent.name == f"GET /{number}"
    outcomes = [told(span).get("outcome") for span in (traced.calls() or traced.spans)]
    assert outcomes.count("success") == 120


def test_an_async_block_that_wait_for_enters_leaves_nothing_current(caplog: pytest.LogCaptureFixture) -> None:
    """`wait_for` may enter it in another task: it is left where it is left, without a word."""
    traced = Traced("spans")
    cb = traced.async_circuit()

    async def main() -> None:
        with traced.tracer.start_as_current_span("GET /") as request:
            await asyncio.wait_for(cb.__aenter__(), PATIENCE)
            await cb.__aexit__(None, None, None)
            assert trace.get_current_span() is request
            async with cb:
                assert trace.get_current_span() is not request
            assert trace.get_current_span() is request

    run_async(main())
    assert [told(span)["outcome"] for span in traced.calls()] == ["success", "success"]
    assert caplog.records == []


def test_a_cancelled_call_ends_its_span() -> None:
    """Cancellation is no error: the span ends, with its outcome."""
    traced = Traced("spans")
    cb = traced.async_circuit()

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await cb.call(asyncio.sleep, PATIENCE)

    run_async(main())
    (span,) = traced.calls()
    assert (told(span)["outcome"], span.status.status_code) == ("cancelled", StatusCode.UNSET)


@pytest.mark.parametrize("leave_early", [False, True])
def test_a_generators_span_is_never_current_where_it_is_consumed(leave_early: bool) -> None:
    """It lasts as long as the iteration; in between, the consumer's own span is current."""
    traced = Traced("spans")
    cb = traced.circuit()

    @cb
    def feed() -> Generator[int, None, None]:
        yield from (1, 2)

    with traced.tracer.start_as_current_span("GET /") as request:
        stream = feed()
        for _ in stream:
            assert trace.get_current_span() is request
            if leave_early:
                break
    assert len(traced.calls()) == (0 if leave_early else 1)
    stream.close()
    (span,) = traced.calls()
    assert span.parent is not None
    assert span.parent.span_id == id_of(request)
    assert told(span)["outcome"] == ("cancelled" if leave_early else "success")


def test_generators_may_be_closed_elsewhere(caplog: pytest.LogCaptureFixture) -> None:
    """An async generator that another task closes, and one that the collector closes, end their spans in silence."""
    traced = Traced("spans")
    cb = traced.async_circuit()

    @cb
    async def feed() -> AsyncGenerator[int, None]:
        yield 1
        yield 2

    async def main() -> None:
        closed, dropped = feed(), feed()
        with traced.tracer.start_as_current_span("GET /") as request:
            assert await anext(closed) == 1
            assert await anext(dropped) == 1
            assert trace.get_current_span() is request
        await asyncio.create_task(closed.aclose())
        del dropped
        gc.collect()
        await asyncio.sleep(0)

    run_async(main())
    assert [told(span)["outcome"] for span in traced.calls()] == ["cancelled", "cancelled"]
    assert caplog.records == []


def test_an_acquired_calls_span_is_not_current() -> None:
    """It may be settled anywhere, in another thread too."""
    traced = Traced("spans")
    with traced.tracer.start_as_current_span("GET /") as request:
        held = traced.circuit().acquire()
        assert trace.get_current_span() is request
    together(held.success)
    (span,) = traced.calls()
    assert told(span)["outcome"] == "success"
    assert span.parent is not None
    assert span.parent.span_id == id_of(request)


def test_a_block_may_be_left_in_another_context_than_it_was_entered(caplog: pytest.LogCaptureFixture) -> None:
    """Entered here and left in a copy of this context, or the other way round: no complaint, and no span stays."""
    traced = Traced("spans")
    cb = traced.circuit()
    inner = contextvars.copy_context()

    inner.run(cb.__enter__)
    assert not trace.get_current_span().get_span_context().is_valid
    with trace.use_span(traced.tracer.start_span("GET /")) as request:
        cb.__exit__(None, None, None)
        assert trace.get_current_span() is request, "what is current here is nothing of the block's"
    (call,) = traced.calls()
    assert told(call)["outcome"] == "success"

    outer = contextvars.copy_context()

    def entered_outside() -> None:
        cb.__enter__()
        copy = contextvars.copy_context()
        copy.run(cb.__exit__, None, None, None)
        assert not copy.run(trace.get_current_span).get_span_context().is_valid

    outer.run(entered_outside)
    assert len(traced.calls()) == 2
    assert caplog.records == []


@pytest.mark.parametrize("order", ["first", "last", "between"])
def test_blocks_in_generators_may_end_in_any_order(order: str, caplog: pytest.LogCaptureFixture) -> None:
    """Streams that are read side by side leave nothing current, whichever is at its end first."""
    traced = Traced("spans")
    cb = traced.circuit()

    def stream() -> Generator[int, None, None]:
        with cb:
            yield 1

    before = contexts.get_current()
    streams = [stream() for _ in range(3)]
    for each in streams:
        next(each)
    for index in {"first": (0, 1, 2), "last": (2, 1, 0), "between": (1, 2, 0)}[order]:
        streams[index].close()
    assert contexts.get_current() is before
    assert len(traced.calls()) == 3
    assert caplog.records == []


def test_what_the_call_leaves_attached_goes_with_it() -> None:
    """A function that forgets to detach a span does not leave it current for its caller."""
    traced = Traced("spans")
    leaked = traced.tracer.start_span("leaked")
    with traced.tracer.start_as_current_span("GET /") as request:
        traced.circuit().call(contexts.attach, trace.set_span_in_context(leaked))
        assert trace.get_current_span() is request


def test_a_plugged_in_context_is_detached_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenTelemetry's context may be another than contextvars: then its own `detach` is called."""
    detached: list[object] = []
    monkeypatch.setattr(contexts, "attach", lambda context: "token")
    monkeypatch.setattr(contexts, "detach", detached.append)
    traced = Traced("spans")
    traced.circuit().call(int)
    assert detached == ["token"]
    assert len(traced.calls()) == 1


# -- changes of state -------------------------------------------------------------------------------------------------


@each_mode
def test_a_change_of_state_is_a_log_record_in_the_trace_that_caused_it(mode: Mode) -> None:
    """It has an event name, a sentence, the figures, and the ids of the tripping call's span."""
    traced = Traced(mode)
    cb = traced.circuit()
    with traced.tracer.start_as_current_span("GET /") as request:
        try_to(cb.call, fail)
    (record,) = traced.log_records()
    cause = request if mode == "annotate" else traced.calls()[0]
    assert record.event_name == "fluxgate.circuit.state_change"
    assert (record.trace_id, record.span_id) == (request.get_span_context().trace_id, id_of(cause))
    assert (record.severity_number, record.severity_text) == (SeverityNumber.WARN, "WARN")
    assert record.timestamp == 1_700_000_000 * 10**9
    assert record.observed_timestamp > record.timestamp
    assert record.body == "circuit 'payments' went from closed to open: 1 failure in a row (limit 1)"
    assert told(record) == {
        "circuit.name": "payments",
        "circuit.old_state": "closed",
        "circuit.new_state": "open",
        "trigger": "tripper",
        "reason": "1 failure in a row (limit 1)",
        "window.failure_rate": 1.0,
        "window.slow_rate": 0.0,
        "window.total_count": 1,
        "window.failure_count": 1,
        "window.avg_duration": 0.0,
        "retry_after": 60.0,
        "reopens": 0,
        "failing_since": "2023-11-14T22:13:20.000Z",
        "error.type": "ConnectionError",
        "error.message": "no route",
    }


def test_only_what_opens_is_a_warning() -> None:
    """Opening and forcing open warn; every other change informs, and names no error."""
    traced = Traced()
    cb = traced.circuit()
    try_to(cb.call, fail)
    traced.clock.advance(60)
    cb.call(int)
    cb.force_open()
    cb.disable()
    seen = [(told(record)["circuit.new_state"], record.severity_text) for record in traced.log_records()]
    assert seen == [
        ("open", "WARN"),
        ("half_open", "INFO"),
        ("closed", "INFO"),
        ("forced_open", "WARN"),
        ("disabled", "INFO"),
    ]
    assert [names.ERROR_ATTRIBUTE in record.attributes for record in traced.log_records()] == [True] + [False] * 4
    assert all(record.span_id == 0 for record in traced.log_records()), "nothing was current"


def test_a_clock_that_tells_no_calendar_time_does_no_harm() -> None:
    """Log records and outages then have the real time."""
    traced = Traced()
    traced.clock.set_time(-5)
    cb = traced.circuit()
    try_to(cb.call, fail)
    cb.reset()
    assert [record.timestamp for record in traced.log_records()] == [None, None]
    (outage,) = traced.outages()
    assert outage.start_time is not None
    assert outage.end_time is not None
    assert 1_600_000_000 * 10**9 < outage.start_time <= outage.end_time


# -- outages ----------------------------------------------------------------------------------------------------------


@each_mode
def test_an_outage_is_a_span_from_trip_to_recovery(mode: Mode) -> None:
    """It has a trace of its own, the events' times, the reason, the figures, the reopenings and each change."""
    traced = Traced(mode)
    cb = traced.circuit()
    traced.clock.advance(5)
    with traced.tracer.start_as_current_span("tripping") as tripping:
        try_to(cb.call, fail)
    for probe in (fail, int):
        traced.clock.advance(60)
        with traced.tracer.start_as_current_span("probing"):
            try_to(cb.call, probe)
    traced.clock.advance(60)
    (outage,) = traced.outages()
    assert outage.name == "circuit_breaker outage payments"
    assert outage.parent is None
    assert outage.context is not None
    assert outage.context.trace_id != tripping.get_span_context().trace_id
    assert outage.start_time == 1_700_000_005 * 10**9
    assert outage.end_time == 1_700_000_125 * 10**9
    assert (outage.status.status_code, outage.status.description) == (StatusCode.ERROR, "1 failure in a row (limit 1)")
    assert told(outage) == {
        "circuit.name": "payments",
        "trigger": "tripper",
        "reason": "1 failure in a row (limit 1)",
        "window.failure_rate": 1.0,
        "window.slow_rate": 0.0,
        "window.total_count": 1,
        "window.failure_count": 1,
        "window.avg_duration": 0.0,
        "reopens": 1,
        "failing_since": "2023-11-14T22:13:25.000Z",
        "error.type": "ConnectionError",
        "error.message": "no route",
        "outage.end": "recovered",
    }
    assert set(marks(outage)) == {"circuit.state_change"}
    assert [(event.timestamp - outage.start_time) // 10**9 for event in outage.events] == [0, 60, 60, 120, 120]
    moves = ["open", "half_open", "open", "half_open", "closed"]
    assert [told(event)["circuit.new_state"] for event in outage.events] == moves
    if mode == "spans":
        calls = [span for span in traced.calls() if told(span)["decision"] == "permitted"]
    else:
        calls = [*traced.named("tripping"), *traced.named("probing")]
    assert [(id_of(link), told(link)) for link in outage.links] == [
        (id_of(calls[0]), {"link": "trip"}),
        (id_of(calls[1]), {"link": "probe", "outcome": "failure"}),
        (id_of(calls[2]), {"link": "probe", "outcome": "success"}),
    ]


@pytest.mark.parametrize(
    ("control", "ended"),
    [("reset", "reset"), ("disable", "disabled"), ("metrics_only", "metrics_only"), ("force_open", "forced_open")],
)
def test_a_person_who_takes_over_ends_the_outage(control: str, ended: str) -> None:
    """Each of the four controls ends it, and is named by it."""
    traced = Traced()
    cb = traced.circuit()
    try_to(cb.call, fail)
    traced.clock.advance(5)
    getattr(cb, control)()
    (outage,) = traced.outages()
    assert told(outage)["outage.end"] == ended
    assert outage.end_time == 1_700_000_005 * 10**9
    assert traced.going_on == {}


def test_forcing_open_begins_no_outage() -> None:
    """It is a person's decision, not the dependency's failure."""
    traced = Traced()
    cb = traced.circuit()
    cb.force_open()
    cb.reset()
    assert traced.spans == []
    assert traced.going_on == {}


def test_a_retired_circuits_outage_ends_with_it() -> None:
    """Nothing of a circuit that was collected while it was open is kept."""
    traced = Traced()
    cb = traced.circuit()
    try_to(cb.call, fail)
    assert traced.going_on
    del cb
    gc.collect()
    traced.bus.bury()
    (outage,) = traced.outages()
    assert told(outage)["outage.end"] == "retired"
    assert traced.going_on == {}


def test_a_detached_listener_leaves_no_outage_open() -> None:
    """It ends as unfinished; a listener that is attached again begins anew."""
    traced = Traced()
    cb = traced.circuit()
    try_to(cb.call, fail)
    traced.subscription.close()
    (outage,) = traced.outages()
    assert told(outage)["outage.end"] == "unfinished"
    assert traced.going_on == {}
    with traced.bus.attach(traced.listener):
        traced.clock.advance(60)
        try_to(cb.call, fail)
    assert [told(span)["outage.end"] for span in traced.outages()] == ["unfinished", "unfinished"]


def test_an_outage_that_goes_on_for_ever_stays_bounded() -> None:
    """Links and marks are capped; the trip's link and the last mark are there."""
    traced = Traced()
    cb = traced.circuit(retry=Cooldown(1))
    for _ in range(300):
        with traced.tracer.start_as_current_span("probing"):
            try_to(cb.call, fail)
        traced.clock.advance(1)
    cb.reset()
    (outage,) = traced.outages()
    assert len(outage.links) == 100
    assert told(outage.links[0]) == {"link": "trip"}
    assert len(outage.events) == 101
    assert told(outage.events[-1])["circuit.new_state"] == "closed"
    assert told(outage)["reopens"] == 299


def test_a_stale_probe_is_not_linked() -> None:
    """It decided nothing."""
    traced = Traced()
    cb = traced.circuit(half_open_timeout=5)
    try_to(cb.call, fail)
    traced.clock.advance(60)
    with traced.tracer.start_as_current_span("late"):
        late = cb.acquire()
        traced.clock.advance(6)
        late.success()
    with traced.tracer.start_as_current_span("in time"):
        cb.call(int)
    (outage,) = traced.outages()
    assert [id_of(link) for link in outage.links] == [id_of(traced.only("in time"))]


def test_a_probe_outside_of_any_span_is_not_linked() -> None:
    """There is nothing to link to."""
    traced = Traced()
    cb = traced.circuit()
    try_to(cb.call, fail)
    traced.clock.advance(60)
    cb.call(int)
    assert list(traced.outages()[0].links) == []


def test_probes_outside_of_any_span_take_no_links_place() -> None:
    """After hundreds of them one within a span is still linked."""
    traced = Traced()
    cb = traced.circuit(retry=Cooldown(1))
    for _ in range(150):
        try_to(cb.call, fail)
        traced.clock.advance(1)
    with traced.tracer.start_as_current_span("probing") as probe:
        cb.call(int)
    assert [id_of(link) for link in traced.outages()[0].links] == [id_of(probe)]


def test_a_probe_is_linked_to_the_outage_of_its_own_circuit() -> None:
    """Where namesakes are both in an outage, it belongs to the one that is half-open."""
    traced = Traced()
    first, second = traced.circuit(), traced.circuit(retry=Cooldown(300))
    try_to(first.call, fail)
    try_to(second.call, fail)
    traced.clock.advance(60)
    with traced.tracer.start_as_current_span("probing"):
        first.call(int)
    second.reset()
    assert [(told(span)["outage.end"], len(span.links)) for span in traced.outages()] == [
        ("recovered", 1),
        ("reset", 0),
    ]


def test_two_circuits_of_one_name_have_an_outage_each() -> None:
    """They are told apart as far as events go; each ends, and nothing is left."""
    traced = Traced()
    first, second = traced.circuit(), traced.circuit()
    second.metrics_only()
    second.reset()  # generations apart
    try_to(first.call, fail)
    traced.clock.advance(1)
    try_to(second.call, fail)
    second.reset()
    assert [told(span)["outage.end"] for span in traced.outages()] == ["reset"]
    assert traced.outages()[0].start_time == 1_700_000_001 * 10**9
    traced.clock.advance(60)
    first.call(int)
    assert [told(span)["outage.end"] for span in traced.outages()] == ["reset", "recovered"]
    assert traced.outages()[1].start_time == 1_700_000_000 * 10**9
    assert traced.going_on == {}


def test_a_namesakes_retirement_does_not_end_an_outage() -> None:
    """A closed circuit goes; the open one of the same name goes on, and ends when it is retired itself."""
    traced = Traced()
    first, second = traced.circuit(), traced.circuit()
    try_to(first.call, fail)
    del second
    gc.collect()
    traced.bus.bury()
    assert traced.outages() == []
    del first
    gc.collect()
    traced.bus.bury()
    assert [told(span)["outage.end"] for span in traced.outages()] == ["retired"]


def test_what_a_lost_event_left_behind_goes_with_the_circuit() -> None:
    """An outage whose end was never told does not stay for ever."""
    traced = Traced()
    cb = traced.circuit()
    try_to(cb.call, fail)
    (outages,) = traced.going_on.values()
    outages[0].generation = 10**6  # no change comes after it
    cb.reset()
    assert traced.outages() == []
    del cb
    gc.collect()
    traced.bus.bury()
    assert len(traced.outages()) == 1
    assert traced.going_on == {}


def test_a_wall_clock_that_is_set_back_makes_no_negative_outage() -> None:
    """An outage ends no earlier than it began."""
    traced = Traced()
    cb = traced.circuit()
    try_to(cb.call, fail)
    traced.clock.set_time(1_600_000_000)
    cb.reset()
    (outage,) = traced.outages()
    assert outage.end_time == outage.start_time


@pytest.mark.parametrize("delivery", ["inline", "background"])
def test_events_in_the_background_are_told_in_their_own_traces(delivery: Any) -> None:
    """Refusals, log records and links belong to the calls' spans wherever they are delivered."""
    traced = Traced("spans", delivery=delivery)
    cb = traced.circuit()
    with traced.tracer.start_as_current_span("GET /") as request:
        try_to(cb.call, fail)
        try_to(cb.call, fail)
    assert traced.bus.flush()
    traced.subscription.close()
    call, refused = sorted(traced.calls(), key=lambda span: span.start_time or 0)
    assert refused.parent is not None
    assert refused.parent.span_id == id_of(request)
    assert [id_of(link) for link in traced.outages()[0].links] == [id_of(call)]
    assert [record.span_id for record in traced.log_records()] == [id_of(call)]


# -- what may go wrong ------------------------------------------------------------------------------------------------


class Broken(TracerProvider):
    """Its tracer, or the spans of its tracer, raise."""

    def __init__(self, where: str) -> None:
        super().__init__(shutdown_on_exit=False)
        self.where = where

    def get_tracer(self, *args: Any, **kwargs: Any) -> Any:
        tracer = super().get_tracer(*args, **kwargs)
        where = self.where

        class Tracer:
            def start_span(self, *args: Any, **kwargs: Any) -> Any:
                if where == "start_span":
                    raise RuntimeError(where)
                span = tracer.start_span(*args, **kwargs)
                if hasattr(span, where):
                    setattr(span, where, lambda *args, **kwargs: fail(RuntimeError(where)))
                return span

        return Tracer()


@pytest.mark.parametrize("where", ["start_span", "set_attributes", "set_status", "add_event", "add_link", "end"])
def test_a_broken_tracer_never_reaches_the_caller(where: str, caplog: pytest.LogCaptureFixture) -> None:
    """Calls return and raise what they did without it, the context is as it was, and the failure is told."""
    bus, clock = Bus(), VirtualClock()
    recorder = EventRecorder(ListenerFailed, StateChanged)
    bus.attach(TracingListener(Broken(where), "spans"))
    bus.attach(recorder)
    cb = CircuitBreaker("payments", tripper=Closed() & FailureStreak(1), permit=permits.All(), bus=bus, clock=clock)
    before = contexts.get_current()
    assert cb.call(int, "3") == 3
    with pytest.raises(ConnectionError, match="no route"):
        cb.call(fail)
    with pytest.raises(CallNotPermittedError):
        cb.call(fail)
    clock.advance(60)
    assert cb.call(int, "3") == 3
    cb.reset()
    assert contexts.get_current() is before
    assert [event.new_state for event in recorder.of(StateChanged)][:3] == ["open", "half_open", "closed"]
    assert {event.error for event in recorder.of(ListenerFailed)} == {where}
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_one_outage_that_cannot_be_ended_does_not_keep_the_others(caplog: pytest.LogCaptureFixture) -> None:
    """It is reported, and the rest are ended."""
    traced = Traced()
    first, second = traced.circuit("first"), traced.circuit("second")
    try_to(first.call, fail)
    try_to(second.call, fail)
    traced.going_on["first"][0].span.set_attribute = lambda *_: fail(RuntimeError("read-only"))
    traced.subscription.close()
    assert [told(span).get("outage.end") for span in traced.outages()] == [None, "unfinished"]
    assert [record.getMessage() for record in caplog.records] == [
        "the span of an outage of circuit 'first' cannot be ended"
    ]


def test_many_circuits_may_go_at_once() -> None:
    """Thousands that retire while they are open take no look at all the others each."""
    traced = Traced()
    looks: list[str] = []
    traced.listener._outages._is_alive = lambda name: bool(looks.append(name))  # type: ignore[func-returns-value]
    circuits = [traced.circuit(f"circuit {number}") for number in range(200)]
    while circuits:
        try_to(circuits.pop().call, fail)
    gc.collect()
    traced.bus.bury()
    assert len(traced.outages()) == 200
    assert looks == []


def test_a_broken_logger_does_not_cost_the_outage() -> None:
    """A log record that cannot be written is a failure of the listener's, and the outage is told all the same."""

    class BrokenLogs(LoggerProvider):
        def get_logger(self, *args: Any, **kwargs: Any) -> Any:
            class Logger:
                def emit(self, record: Any) -> None:
                    raise RuntimeError("full")

            return Logger()

    traced = Traced()
    traced.subscription.close()
    traced.bus.attach(TracingListener(traced.provider, "annotate", BrokenLogs(shutdown_on_exit=False)))
    cb = traced.circuit()
    try_to(cb.call, fail)
    cb.reset()
    assert [event.error for event in traced.failures.of(ListenerFailed)] == ["full", "full"]
    traced.failures.clear()
    assert len(traced.outages()) == 1


def test_a_listener_that_is_detached_during_a_call_ends_its_span() -> None:
    """Nobody asks for the outcome any more: the span ends without one, and is not current any more."""
    traced = Traced("spans")
    cb = traced.circuit()
    cb.call(traced.subscription.close)
    (span,) = traced.calls()
    assert names.OUTCOME_ATTRIBUTE not in (span.attributes or {})


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"mode": "span"}, ValueError, "mode must be 'annotate' or 'spans', got 'span' (str)"),
        ({"mode": None}, ValueError, "mode must be 'annotate' or 'spans', got None (NoneType)"),
        (
            {"tracer_provider": "otlp"},
            TypeError,
            "tracer_provider must be an OpenTelemetry provider with get_tracer(), got 'otlp' (str)",
        ),
        (
            {"tracer_provider": TracerProvider},
            TypeError,
            "tracer_provider must be a provider, got the class TracerProvider: pass an instance, TracerProvider(...)",
        ),
        (
            {"logger_provider": "otlp"},
            TypeError,
            "logger_provider must be an OpenTelemetry provider with get_logger(), got 'otlp' (str)",
        ),
    ],
)
def test_wrong_arguments_are_quoted(options: dict[str, Any], error: type[Exception], text: str) -> None:
    """The error says what it got and what it wants."""
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        TracingListener(**options)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who wants it, the package and the extra."""
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", None)
    text = (
        "TracingListener needs opentelemetry-api, which is not installed: "
        "install Fluxgate with its extra 'opentelemetry'"
    )
    with pytest.raises(MissingExtraError, match=re.escape(text)):
        TracingListener()


def test_the_module_imports_where_the_library_is_missing() -> None:
    """And `observe()` does without it."""
    script(
        "import sys\n"
        "sys.modules['opentelemetry'] = None\n"
        "import fluxgate, fluxgate.listeners.opentelemetry\n"
        "observed = [each.outlet.name for each in fluxgate.observe()]\n"
        "assert 'TracingListener' not in observed, observed\n"
        "assert 'LogListener' in observed or 'StructlogListener' in observed\n"
    )


# -- what it costs ----------------------------------------------------------------------------------------------------


@each_mode
def test_without_an_sdk_no_call_is_observed(mode: Mode) -> None:
    """With a provider that makes no spans it asks for no event of calls, and the engine keeps its fast lane."""
    clock, bus = VirtualClock(), Bus()
    with bus.attach(TracingListener(trace.NoOpTracerProvider(), mode)) as subscription:
        cb = CircuitBreaker("payments", tripper=FailureStreak(1), bus=bus, clock=clock)
        cb.call(int)
        assert cb._core.lane is not None
        assert subscription.kinds == {StateChanged, fluxgate.events.CircuitRetired}
        try_to(cb.call, fail)
        try_to(cb.call, fail)
        assert cb._core.gate is not None, "nor does a refusal take the lock"


def test_an_sdk_that_is_switched_off_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """`OTEL_SDK_DISABLED=true` gives the lane back."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    bus = Bus()
    bus.attach(TracingListener(TracerProvider(shutdown_on_exit=False)))
    cb = CircuitBreaker("payments", bus=bus)
    cb.call(int)
    assert cb._core.lane is not None


def test_with_an_sdk_calls_are_observed_without_call_started() -> None:
    """What it asks for ends the lane, and is no more than it writes."""
    traced = Traced()
    cb = traced.circuit()
    cb.call(int)
    assert cb._core.lane is None
    assert CallFailed in traced.subscription.kinds
    assert CallStarted not in traced.subscription.kinds


def test_a_known_sdk_needs_no_thread() -> None:
    """Only a listener that waits for an SDK ticks."""
    traced = Traced()
    assert traced.listener.tick_interval is None
    assert traced.listener.tick is None
    assert traced.subscription.outlet._worker is None


def test_an_sdk_that_comes_while_it_is_attached_is_noticed() -> None:
    """Between the question which events it wants and the end of `attach`."""
    bus = Bus()
    listener = TracingListener(trace.NoOpTracerProvider())
    subscription = bus.attach(listener)
    assert CallFailed not in subscription.kinds
    listener.destination._tracer_provider = lambda: TracerProvider(shutdown_on_exit=False)
    listener.attached(subscription)
    assert CallFailed in subscription.kinds


def test_no_sdk_and_then_one() -> None:
    """`observe()` without an SDK leaves the lane; one that is configured later is noticed, and the lookout ends."""
    script(
        """
import time
import fluxgate
from fluxgate import CircuitBreaker, FailureStreak, permits
from fluxgate.events import CallFailed
from fluxgate.testing import VirtualClock
from opentelemetry import trace

subscriptions = fluxgate.observe()
(tracing,) = [each for each in subscriptions if each.outlet.name == "TracingListener"]
for each in subscriptions:
    if each is not tracing:
        each.close()
cb = CircuitBreaker("payments")
cb.call(int)
assert cb._core.lane is not None
clock = VirtualClock()
mail = CircuitBreaker("mail", tripper=FailureStreak(1), permit=permits.All(), clock=clock)
mail.call_with_fallback(int, lambda error: 0, "x")
assert mail.info().state == "open"
assert tracing.outlet.listener.tick_interval == 1.0

from opentelemetry.sdk.trace import TracerProvider

trace.set_tracer_provider(TracerProvider())
deadline = time.monotonic() + 15
while CallFailed not in tracing.kinds:
    assert time.monotonic() < deadline, "the SDK was not noticed"
    time.sleep(0.01)
with trace.get_tracer("shop").start_as_current_span("GET /") as span:
    cb.call(int)
assert span.attributes["fluxgate.outcome"] == "success"
assert tracing.outlet.listener.tick_interval is None
clock.advance(60)
mail.call_with_fallback(int, lambda error: 0, "x")  # reopens
(outage,) = tracing.outlet.listener._outages._going_on["mail"]
assert outage.span.is_recording()
""",
        timeout=60,
    )


# -- with others ------------------------------------------------------------------------------------------------------


def test_two_for_one_provider_write_once() -> None:
    """The first attached is told, whatever their modes; another provider is another destination."""
    traced = Traced()
    again = traced.bus.attach(TracingListener(traced.provider, "spans", traced.logger_provider))
    cb = traced.circuit()
    with traced.tracer.start_as_current_span("GET /"):
        try_to(cb.call, fail)
    cb.reset()
    assert len(traced.only("GET /").events) == 1
    assert traced.calls() == []
    assert len(traced.log_records()) == 2
    assert len(traced.outages()) == 1
    again.close()
    other = Traced()
    assert traced.listener.destination != other.listener.destination
    assert traced.listener.destination != "payments"
    assert (
        traced.listener.destination != TracingListener(traced.provider, "annotate", other.logger_provider).destination
    )
    assert hash(traced.listener.destination) == hash(other.listener.destination)


@pytest.mark.parametrize("make", ["circuit", "async_circuit"])
def test_two_for_two_providers_nest(make: str) -> None:
    """Each has a span of the call, the later's within the earlier's, and neither stays."""
    traced, other = Traced("spans"), Traced("spans")
    cb = getattr(traced, make)()
    cb.attach(other.listener)
    before = contexts.get_current()
    call = cb.call(int) if make == "circuit" else cb.call(asyncio.sleep, 0)
    if asyncio.iscoroutine(call):
        run_async(call)
    assert contexts.get_current() is before
    (outer,), (inner,) = traced.calls(), other.calls()
    assert inner.parent is not None
    assert inner.parent.span_id == id_of(outer)


def test_spans_that_an_earlier_listener_silences_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Who asks for spans and gets annotations learns why; what is silenced as meant is no news."""
    traced = Traced()
    cb = traced.circuit()
    for mode in MODES:
        traced.bus.attach(TracingListener(traced.provider, mode, traced.logger_provider))
        cb.attach(TracingListener(traced.provider, mode, traced.logger_provider))
    assert [record.getMessage() for record in caplog.records] == [
        "TracingListener(mode='spans') is silent where one with mode='annotate' was attached before it, "
        "for the same providers"
    ] * 2
    caplog.clear()
    other = Traced("spans")
    other.bus.attach(TracingListener(other.provider, "annotate", other.logger_provider))
    Bus().attach(TracingListener(traced.provider, "spans", traced.logger_provider))
    apart = TracerProvider(shutdown_on_exit=False)
    one, another = traced.circuit(), traced.circuit()
    one.attach(TracingListener(apart, "annotate"))
    another.attach(TracingListener(apart, "spans"))
    assert caplog.records == []


def test_one_by_hand_and_observe_do_not_write_twice() -> None:
    """A listener with the provider that is, or becomes, the process's own is the same destination."""
    script(
        """
import fluxgate
from fluxgate import CircuitBreaker
from fluxgate.listeners.opentelemetry import TracingListener
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

provider = TracerProvider()
fluxgate.attach(TracingListener(provider))  # before it is the process's own
trace.set_tracer_provider(provider)
fluxgate.observe()
cb = CircuitBreaker("payments")
with trace.get_tracer("shop").start_as_current_span("GET /") as span:
    cb.call_with_fallback(int, lambda error: 0, "x")
assert [event.name for event in span.events] == ["fluxgate.call.failed", "fluxgate.fallback.used"], span.events
""",
        timeout=60,
    )


def test_it_is_published_and_automatic() -> None:
    """`load` finds it, and `observe` attaches it in the mode that adds no spans."""
    assert load("opentelemetry") is TracingListener
    assert TracingListener.automatic == "opentelemetry"
    assert TracingListener().mode == "annotate"


# -- the process ------------------------------------------------------------------------------------------------------

AT_EXIT = """
import sys
from fluxgate import CircuitBreaker, FailureStreak, attach
from fluxgate.listeners.opentelemetry import TracingListener
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter(formatter=lambda span: span.to_json(indent=None))))
attach(TracingListener(provider))
cb = CircuitBreaker("payments", tripper=FailureStreak(1))
cb.call_with_fallback(int, lambda error: 0, "x")
"""


def test_an_outage_that_the_program_ends_in_is_exported() -> None:
    """At exit it is ended as unfinished before the provider is shut down, whichever was imported first."""
    done = script(AT_EXIT, timeout=60)
    assert '"fluxgate.outage.end": "unfinished"' in done.stdout
    assert done.stderr == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_leaves_the_outage_to_its_parent() -> None:
    """One process exports it; the child's listener is usable, and tells outages of its own."""
    done = script(
        AT_EXIT
        + """
import os, warnings
warnings.simplefilter("ignore", DeprecationWarning)
child = os.fork()
if not child:
    cb.reset()
    cb.call_with_fallback(int, lambda error: 0, "in the child")
    cb.disable()
    provider.shutdown()
    sys.stdout.flush()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
""",
        timeout=60,
    )
    ends = re.findall(r'"fluxgate.outage.end": "(\w+)"', done.stdout)
    assert sorted(ends) == ["disabled", "unfinished"]


# -- documentation ----------------------------------------------------------------------------------------------------

PAGE = Path(__file__).parents[1] / "docs" / "listeners" / "opentelemetry.md"


def test_the_examples_are_true() -> None:
    """The docstring's example gives what it says."""
    assert doctest.testmod(opentelemetry).attempted >= 5
    assert doctest.testmod(opentelemetry).failed == 0


def test_the_pages_table_of_attributes_is_whole() -> None:
    """It lists each attribute of the catalogue, and no other."""
    catalogue = {value for name, value in vars(names).items() if name.endswith("_ATTRIBUTE")}
    catalogue |= set(names.CHANGE_ATTRIBUTES.values())
    table = PAGE.read_text("utf-8").split("| attribute |", 1)[1].split("\n\n", 1)[0]
    listed = [name for row in table.splitlines()[2:] for name in re.findall(r"`([\w.]+)`", row.split("|")[1])]
    assert sorted(listed) == sorted(catalogue)


def test_the_page_names_events_and_ends() -> None:
    """Span events, the log record's name, the kinds of links and the ends of an outage are those of the catalogue."""
    text = PAGE.read_text("utf-8")
    words = {*names.CALL_SPAN_EVENTS.values(), names.STATE_CHANGE_EVENT, names.MODE_VARIABLE, names.call_span_name("")}
    words |= {names.TRIP_LINK, names.PROBE_LINK, names.RESET, names.RETIRED, names.UNFINISHED}
    words |= set(names.OUTAGE_ENDS.values()) | set(names.OUTCOMES.values()) | {names.PERMITTED, names.REFUSED}
    assert [word for word in words if f"`{word.strip()}" not in text] == []
