"""OpenTelemetryMetricsListener: what happens to circuits, in the instruments of whatever SDK the program has set up."""

from __future__ import annotations

import doctest
import gc
import sys
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.metrics import NoOpMeterProvider, get_meter_provider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider

from fluxgate import (
    AsyncCircuitBreaker,
    Bus,
    CallNotPermittedError,
    CircuitBreaker,
    Closed,
    Cooldown,
    FailureRate,
    FailureStreak,
    MinRequests,
    MissingExtraError,
    Never,
    State,
    TimeWindow,
    TypeOf,
    permits,
)
from fluxgate.events import CallEnded, CallRejected, CallStarted
from fluxgate.listeners import _otelmetrics, load, names
from fluxgate.listeners._looks import Look
from fluxgate.listeners.names import Instrument
from fluxgate.listeners.opentelemetry import OpenTelemetryMetricsListener
from fluxgate.testing import VirtualClock
from tests.faces import Circuit
from tests.running import restless, script, together

BOTH = pytest.mark.parametrize("breaker", [CircuitBreaker, AsyncCircuitBreaker])


class Metrics:
    """A provider of its own, read by instrument."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader], shutdown_on_exit=False)

    def listener(self) -> OpenTelemetryMetricsListener:
        return OpenTelemetryMetricsListener(self.provider)

    def all(self) -> dict[str, Any]:
        """The metrics by name."""
        data = self.reader.get_metrics_data()
        resources = [] if data is None else data.resource_metrics
        scopes = [scope for resource in resources for scope in resource.scope_metrics if scope.metrics]
        assert {scope.scope.name for scope in scopes} <= {names.SCOPE}
        return {metric.name: metric for scope in scopes for metric in scope.metrics}

    def points(self, instrument: Instrument) -> dict[tuple[str, ...], Any]:
        """The data points of a metric by the values of its attributes."""
        metric = self.all().get(instrument.name)
        if metric is None:
            return {}
        found = {}
        for point in metric.data.data_points:
            assert set(point.attributes) == set(instrument.labels)
            found[tuple(point.attributes[label] for label in instrument.labels)] = point
        return found

    def values(self, instrument: Instrument) -> dict[tuple[str, ...], float]:
        return {labels: point.value for labels, point in self.points(instrument).items()}

    def calls(self, name: str = "payments") -> dict[str, int]:
        return {
            outcome: point.count
            for (circuit, outcome), point in self.points(names.CALL_DURATION).items()
            if circuit == name
        }

    def state(self, name: str = "payments") -> list[str]:
        return [state for (circuit, state), value in self.values(names.STATE).items() if circuit == name and value]


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    metrics = Metrics()
    yield metrics
    metrics.provider.shutdown()


@pytest.fixture
def bus() -> Iterator[Bus]:
    """A bus; what was attached to it is detached in the end, so that no listener's thread outlives its test."""
    bus = Bus()
    yield bus
    bus.shut_down(1.0)


def circuit(bus: Bus, name: str = "payments", breaker: Any = CircuitBreaker, **rules: Any) -> Any:
    """A circuit that one failure opens for a minute, and that one success closes."""
    rules = {
        "tripper": Closed() & FailureStreak(1),
        "retry": Cooldown(60),
        "permit": permits.All(),
        "clock": VirtualClock(),
        **rules,
    }
    return breaker(name, bus=bus, **rules)


def fail() -> None:
    raise ConnectionError("no route")


def try_to(call: Callable[..., object], *args: Any) -> None:
    """Whatever comes of it."""
    try:
        call(*args)
    except (ConnectionError, CallNotPermittedError):
        pass


# -- what is measured ---------------------------------------------------------------------------------------------


@BOTH
def test_every_instrument_measures(breaker: Any, metrics: Metrics) -> None:
    """Both colours: each instrument follows what happens to the circuit."""
    shop = Circuit(
        breaker,
        tripper=Closed() & FailureStreak(2),
        tracker=~TypeOf(KeyError),
        retry=Cooldown(60),
        permit=permits.All(),
        slow_threshold=2.0,
    )
    with shop.bus.attach(metrics.listener()):
        shop.succeed(0.02)
        shop.succeed(3.0)
        shop.fail(KeyError("ignored"), 0.5)
        shop.fail(seconds=4.0)
        shop.acquire().cancel()
        assert metrics.state() == ["closed"]
        shop.fail(seconds=0.2)
        assert metrics.state() == ["open"]
        assert metrics.values(names.FAILURE_RATE) == {("payments",): 0.5}
        assert metrics.values(names.SLOW_RATE) == {("payments",): 0.5}
        shop.refused()
        shop.clock.advance(60)
        shop.succeed()
        shop.steer("force_open")
        shop.protect(lambda: 1, fallback=lambda error: 2)()
        shop.steer("metrics_only")
        for _ in range(2):
            shop.fail()
        broken = shop.bus.attach(lambda event: 1 / 0)
        shop.steer("disable")
        broken.close()

        assert metrics.calls() == {"success": 3, "failure": 4, "ignored": 1, "cancelled": 1}
        assert metrics.points(names.CALL_DURATION)["payments", "success"].sum == pytest.approx(3.02)
        assert metrics.values(names.SLOW_CALLS) == {("payments",): 2}
        rejected = {("payments", "open"): 1, ("payments", "half_open"): 0, ("payments", "forced_open"): 1}
        assert metrics.values(names.REJECTED_CALLS) == rejected
        probes = {("payments", outcome): int(outcome == "success") for outcome in names.OUTCOMES.values()}
        assert metrics.values(names.PROBES) == probes
        assert metrics.values(names.FALLBACK_CALLS) == {("payments",): 1}
        assert metrics.values(names.WOULD_OPEN) == {("payments",): 1}
        assert {move[1:]: value for move, value in metrics.values(names.TRANSITIONS).items() if value} == {
            ("closed", "open"): 1,
            ("open", "half_open"): 1,
            ("half_open", "closed"): 1,
            ("closed", "forced_open"): 1,
            ("forced_open", "metrics_only"): 1,
            ("metrics_only", "disabled"): 1,
        }
        assert metrics.values(names.STATE) == {("payments", state): state is State.DISABLED for state in State}
        assert metrics.values(names.STATE_CHANGED) == {("payments",): shop.info.changed_at}
        rules = shop.breaker.rules()
        assert metrics.values(names.CIRCUIT_INFO) == {("payments", *(rules[each] for each in RULES)): 1}
        assert metrics.values(names.LIMIT) == {("payments", "failure_streak"): 2}
        failed = {
            listener.rsplit(".")[-1]: count for (listener,), count in metrics.values(names.LISTENER_FAILURES).items()
        }
        assert failed == {"OpenTelemetryMetricsListener": 0, "EventRecorder": 0, "<lambda>": 1}
    metrics.provider.shutdown()


RULES = names.CIRCUIT_INFO.labels[1:]


def test_names_units_and_descriptions_are_those_of_the_catalogue(metrics: Metrics, bus: Bus) -> None:
    """Each metric has the catalogue's name, unit, kind and description, and the names of Prometheus follow by rule."""
    listener = metrics.listener()
    bus.attach(listener)
    bus.attach(lambda event: 1 / 0)
    shop = circuit(bus)
    shop.call(int)
    shop.force_open()
    found = metrics.all()
    kinds = {"counter": "Sum", "gauge": "Gauge", "histogram": "Histogram"}
    expected = {each.name: (each.unit, kinds[each.kind], each.help) for each in names.INSTRUMENTS}
    shown = {name: (each.unit, type(each.data).__name__, each.description) for name, each in found.items()}
    assert shown == expected
    for name, metric in found.items():
        # https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/: other characters become
        # underscores, the unit is appended in words unless it is an annotation in braces, and a counter ends in _total
        series = name.replace(".", "_") + {"s": "_seconds"}.get(metric.unit, "")
        series += "_total" if getattr(metric.data, "is_monotonic", False) else ""
        assert series == next(each.series for each in names.INSTRUMENTS if each.name == name)


def test_buckets_are_seconds(metrics: Metrics, bus: Bus) -> None:
    """The histogram's boundaries are the catalogue's, without a view of the program's."""
    clock = VirtualClock()
    bus.attach(metrics.listener())
    circuit(bus, clock=clock).call(clock.advance, 0.3)
    [point] = metrics.points(names.CALL_DURATION).values()
    assert tuple(point.explicit_bounds) == names.BUCKETS
    assert point.bucket_counts[names.BUCKETS.index(0.5)] == 1


def test_a_new_circuit_has_zeros(metrics: Metrics, bus: Bus) -> None:
    """Counters are there from the circuit's first event: refusals by state, and the moves that it makes by itself."""
    bus.attach(metrics.listener())
    circuit(bus)
    for instrument in (names.SLOW_CALLS, names.FALLBACK_CALLS, names.WOULD_OPEN):
        assert metrics.values(instrument) == {("payments",): 0}
    assert metrics.values(names.REJECTED_CALLS) == {
        ("payments", state): 0 for state in ("open", "half_open", "forced_open")
    }
    assert metrics.values(names.PROBES) == {("payments", outcome): 0 for outcome in names.OUTCOMES.values()}
    moves = (("closed", "open"), ("open", "half_open"), ("half_open", "open"), ("half_open", "closed"))
    assert metrics.values(names.TRANSITIONS) == {("payments", *move): 0 for move in moves}


def test_gauges_are_looked_up_when_somebody_collects(metrics: Metrics, bus: Bus) -> None:
    """Rates are true while nobody calls; a circuit from before the listener is seen as it is."""
    clock = VirtualClock()
    cb = circuit(bus, window=TimeWindow(60), tripper=Closed() & FailureStreak(9), clock=clock)
    try_to(cb.call, fail)
    bus.attach(metrics.listener())
    assert metrics.values(names.FAILURE_RATE) == {("payments",): 1.0}
    clock.advance(61)
    assert metrics.values(names.FAILURE_RATE) == {("payments",): 0.0}
    assert metrics.state() == ["closed"]
    cb.configure(retry=Never(), tripper=MinRequests(3) & FailureRate(0.5))
    assert metrics.values(names.LIMIT) == {("payments", "min_requests"): 3, ("payments", "failure_rate"): 0.5}
    assert [labels[RULES.index("retry") + 1] for labels in metrics.values(names.CIRCUIT_INFO)] == ["Never()"]


def test_a_collection_looks_at_each_circuit_once(metrics: Metrics, bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many gauges there are; the next collection looks again, and between them nothing is kept."""
    listener = metrics.listener()
    bus.attach(listener)
    kept = [circuit(bus, name) for name in ("payments", "search")]
    looked: list[str] = []
    at = Look.at

    def noted(breaker: Any) -> Look:
        looked.append(breaker.name)
        return at(breaker)

    monkeypatch.setattr(Look, "at", noted)
    assert metrics.values(names.STATE)["payments", "closed"] == 1
    assert sorted(looked) == ["payments", "search"]
    board: Any = listener.destination
    assert board._surveyed[1] == {}
    kept[0].force_open()
    assert metrics.values(names.STATE)["payments", "closed"] == 0
    assert sorted(looked) == ["payments", "payments", "search", "search"]


def test_what_a_collection_left_unasked_is_not_shown_later(
    metrics: Metrics, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a collection ends halfway, the next may begin with another gauge: that one is looked up all the same."""
    listener = metrics.listener()
    bus.attach(listener)
    cb = circuit(bus)
    board: Any = listener.destination
    now = 1000.0
    monkeypatch.setattr(_otelmetrics, "time", SimpleNamespace(monotonic=lambda: now))
    assert len(board._observe(names.STATE_CHANGED, None)) == 1
    cb.force_open()
    now += 60

    def states() -> list[str]:
        return [each.attributes["state"] for each in board._observe(names.STATE, None) if each.value]

    assert states() == ["forced_open"]


def test_the_sdks_exemplars_lead_to_the_trace(metrics: Metrics, bus: Bus) -> None:
    """Measurements are recorded in the context of their call, so that the SDK finds its span."""
    bus.attach(metrics.listener())
    cb = circuit(bus)
    with TracerProvider(shutdown_on_exit=False).get_tracer("shop").start_as_current_span("sampled") as span:
        cb.call(int)
    [point] = metrics.points(names.CALL_DURATION).values()
    context = span.get_span_context()
    assert [(each.trace_id, each.span_id) for each in point.exemplars] == [(context.trace_id, context.span_id)]


# -- several, and gone --------------------------------------------------------------------------------------------


def test_two_listeners_of_one_provider_count_once(metrics: Metrics, bus: Bus) -> None:
    """They share the instruments, and the second goes on when the first is detached."""
    first, _ = bus.attach(metrics.listener()), bus.attach(metrics.listener())
    cb = circuit(bus)
    cb.call(int)
    first.close()
    cb.call(int)
    assert metrics.calls() == {"success": 2}
    assert metrics.state() == ["closed"]


def test_circuits_of_one_name_share_their_series(metrics: Metrics, bus: Bus) -> None:
    """Counters add up, a state is 1 if one of them is in it, and a limit is the lowest."""
    bus.attach(metrics.listener())
    one, two = circuit(bus, tripper=FailureStreak(3)), circuit(bus, tripper=FailureStreak(2))
    one.call(int)
    two.force_open()
    assert metrics.values(names.LIMIT) == {("payments", "failure_streak"): 2}
    assert metrics.calls() == {"success": 1}
    assert sorted(metrics.state()) == ["closed", "forced_open"]
    two.retire()
    assert metrics.state() == ["closed"]


def test_a_retired_circuit_has_no_gauges(metrics: Metrics, bus: Bus) -> None:
    """Its gauges go with it, and nothing of it is kept by the listener."""
    listener = metrics.listener()
    bus.attach(listener)
    cb = circuit(bus)
    cb.call(int)
    gone = weakref.ref(cb)
    cb.retire()
    del cb
    gc.collect()
    assert gone() is None
    for instrument in (each for each in names.INSTRUMENTS if each.kind == "gauge"):
        assert metrics.values(instrument) == {}
    board: Any = listener.destination
    assert (board._circuits, board._labels) == ({}, {})


def test_a_provider_that_nobody_needs_goes(bus: Bus) -> None:
    """The instruments of a provider do not keep it alive."""
    metrics = Metrics()
    with bus.attach(metrics.listener()):
        circuit(bus).call(int)
    gone = weakref.ref(metrics.provider)
    metrics.provider.shutdown()
    del metrics
    gc.collect()
    assert gone() is None


def test_totals_are_exact_under_threads(metrics: Metrics, bus: Bus) -> None:
    """Calls in many threads, with collections in between, are all counted."""
    bus.attach(metrics.listener())
    cb = circuit(bus, tripper=Closed() & FailureStreak(10**9))
    rounds = 300

    def call() -> None:
        for _ in range(rounds):
            cb.call(int)
            try_to(cb.call, fail)

    def look() -> None:
        for _ in range(10):
            metrics.all()

    with restless():
        together(call, call, call, look)
    assert metrics.calls() == {"success": 3 * rounds, "failure": 3 * rounds}
    assert set(metrics.values(names.LISTENER_FAILURES).values()) == {0}


@pytest.mark.parametrize(("name", "label"), [("a\nb", "a\\nb"), ("\ud800", "\\ud800"), ("가게", "가게")])
def test_any_name_is_an_attribute_that_can_be_encoded(name: str, label: str, metrics: Metrics, bus: Bus) -> None:
    """Names are those of log lines and of Prometheus, on one line, and valid UTF-8."""
    bus.attach(metrics.listener())
    cb = circuit(bus, name)
    cb.call(int)
    assert metrics.calls(label) == {"success": 1}
    label.encode()
    assert metrics.state(label) == ["closed"]


# -- without an SDK -----------------------------------------------------------------------------------------------


def test_nothing_is_asked_for_where_nobody_records(bus: Bus) -> None:
    """With a provider that does nothing no call is told, and nobody waits for another."""
    listener = OpenTelemetryMetricsListener(NoOpMeterProvider())
    bus.attach(listener)
    cb = circuit(bus)
    cb.call(int)
    assert not {CallStarted, CallRejected, *CallEnded.__subclasses__()} & set(cb._core.routes)
    assert listener.tick_interval is None


def test_an_sdk_that_is_switched_off_costs_nothing(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """``OTEL_SDK_DISABLED`` is such a provider."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    listener = OpenTelemetryMetricsListener(MeterProvider(shutdown_on_exit=False))
    assert not set(listener.events) & {CallRejected, *CallEnded.__subclasses__()}
    assert listener.tick_interval is None


def test_a_provider_that_is_set_later_is_noticed(bus: Bus, metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then no call is told; from then on all are, of circuits that are there too, and nobody waits any more."""
    listener = OpenTelemetryMetricsListener()
    assert type(get_meter_provider()).__module__.startswith("opentelemetry.metrics"), "no other test has set one"
    assert listener.tick_interval == 1.0
    subscription = bus.attach(listener)
    cb = circuit(bus)
    own = cb.attach(listener)
    cb.call(int)
    listener.tick()
    assert CallRejected not in cb._core.routes
    monkeypatch.setattr("opentelemetry.metrics.get_meter_provider", lambda: metrics.provider)
    listener.tick()
    assert listener.tick_interval is None
    bus.attach(OpenTelemetryMetricsListener(metrics.provider))
    cb.call(int)
    assert metrics.calls() == {"success": 1}, "once, whoever else measures there"
    assert metrics.state() == ["closed"]
    for each in (subscription, own):
        each.close()


def test_the_global_provider_is_noticed_by_itself() -> None:
    """In a program that sets its SDK after the circuits were observed, the listener's own thread sees it."""
    source = """
import time
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from fluxgate import Bus, CircuitBreaker
from fluxgate.events import CallRejected
from fluxgate.listeners.opentelemetry import OpenTelemetryMetricsListener

bus = Bus()
bus.attach(OpenTelemetryMetricsListener())
bus.attach(OpenTelemetryMetricsListener(metrics.get_meter_provider()))
cb = CircuitBreaker("payments", bus=bus)
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))
deadline = time.monotonic() + 30
while CallRejected not in cb._core.routes and time.monotonic() < deadline:
    time.sleep(0.01)
cb.call(int)
[scope] = reader.get_metrics_data().resource_metrics[0].scope_metrics
[calls] = [metric for metric in scope.metrics if metric.name == "circuit_breaker.call.duration"]
print(*[point.count for point in calls.data.data_points])
"""
    assert script(source).stdout == "1\n"


# -- arguments, publication ---------------------------------------------------------------------------------------


def test_a_wrong_provider_is_quoted() -> None:
    """What is no meter provider is named."""
    with pytest.raises(TypeError) as caught:
        OpenTelemetryMetricsListener("otlp")  # type: ignore[arg-type]
    assert str(caught.value) == "meter_provider must be an opentelemetry MeterProvider, got 'otlp' (str)"


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without OpenTelemetry's API one sentence says who needs it and which extra brings it."""
    monkeypatch.setitem(sys.modules, "opentelemetry.metrics", None)
    with pytest.raises(MissingExtraError) as caught:
        OpenTelemetryMetricsListener()
    assert str(caught.value) == (
        "OpenTelemetryMetricsListener needs opentelemetry-api, which is not installed: "
        "install Fluxgate with its extra 'opentelemetry'"
    )


def test_it_is_published_and_automatic() -> None:
    """`load` finds it by name; `observe` attaches it beside the others; its module needs no library."""
    assert load("opentelemetry-metrics") is OpenTelemetryMetricsListener
    assert OpenTelemetryMetricsListener.automatic == "opentelemetry-metrics"
    source = "import sys, fluxgate.listeners._otelmetrics; assert 'opentelemetry' not in sys.modules"
    assert script(source).stdout == ""


def test_the_examples_in_its_documentation_run() -> None:
    """The docstrings' examples give what they show."""
    result = doctest.testmod(_otelmetrics)
    assert (result.failed, result.attempted > 0) == (0, True)
