"""PrometheusListener before a real Prometheus: what it exposes is scraped, kept and read back as the engine counted."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("prometheus_client")
pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

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
    TypeOf,
    permits,
)
from fluxgate.events import CallEnded, CallRejected, CallSucceeded, FallbackUsed, StateChanged
from fluxgate.listeners import names
from fluxgate.listeners.prometheus import PrometheusListener
from fluxgate.testing import EventRecorder, VirtualClock
from tests.conformance.pages import blocks
from tests.prometheus_server import check_metrics, server
from tests.running import PATIENCE, Running, run_async

HOSTILE = 'line\nbreak "quoted" back\\slash {le="1"} 1.0 # EOF \ud800 ' + "é" * 40


@contextmanager
def endpoint(registry: CollectorRegistry) -> Iterator[str]:
    """The client library's own endpoint on a free port: its address."""
    httpd, thread = start_http_server(0, "127.0.0.1", registry)
    try:
        yield f"127.0.0.1:{httpd.server_port}"
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


# What Prometheus 2 asks for.
OPENMETRICS = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,*/*;q=0.1"


def scrape(address: str, accept: str) -> tuple[str, bytes]:
    """What the endpoint answers: its content type, and its body."""
    request = urllib.request.Request(f"http://{address}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return answer.headers["Content-Type"], answer.read()


class Shop:
    """A registry with a listener and a recorder, and circuits that live through all that can happen."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.bus = Bus()
        self.clock = VirtualClock()
        self.recorder = EventRecorder()
        self.subscriptions = [self.bus.attach(PrometheusListener(self.registry)), self.bus.attach(self.recorder)]
        self.circuits: list[Any] = []

    def rules(self) -> dict[str, Any]:
        return {
            "tripper": Closed() & (FailureStreak(2) | (MinRequests(50) & FailureRate(0.5))),
            "tracker": ~TypeOf(KeyError),
            "retry": Cooldown(10),
            "permit": permits.All(),
            "slow_threshold": 2.0,
            "bus": self.bus,
            "clock": self.clock,
        }

    def live(self, name: str) -> CircuitBreaker:
        """A circuit that succeeds fast and slowly, fails, ignores, opens, refuses, falls back, recovers, is forced."""
        cb = CircuitBreaker(name, **self.rules())
        self.circuits.append(cb)
        for seconds in (0.02, 0.3, 3.0):
            cb.call(self.clock.advance, seconds)
        for error in (KeyError("ignored"), ConnectionError("one"), ConnectionError("two")):
            with pytest.raises(type(error)):
                cb.call(self.fail, error)
        for _ in range(3):
            with pytest.raises(CallNotPermittedError):
                cb.call(int)
        assert cb.call_with_fallback(int, lambda _: 7) == 7
        self.clock.advance(10)
        cb.call(int)
        cb.force_open()
        with pytest.raises(CallNotPermittedError):
            cb.call(int)
        return cb

    def fail(self, error: Exception) -> None:
        self.clock.advance(0.1)
        raise error

    async def live_async(self, name: str) -> AsyncCircuitBreaker:
        cb = AsyncCircuitBreaker(name, **self.rules())
        self.circuits.append(cb)

        async def work(error: Exception | None) -> None:
            self.clock.advance(0.1)
            if error is not None:
                raise error

        await cb.call(work, None)
        for _ in range(2):
            with pytest.raises(ConnectionError):
                await cb.call(work, ConnectionError("no route"))
        return cb

    def close(self) -> None:
        for subscription in self.subscriptions:
            subscription.close()


@pytest.fixture
def shop() -> Iterator[Shop]:
    shop = Shop()
    yield shop
    shop.close()


def test_what_is_exposed_passes_promtool(shop: Shop) -> None:
    """`promtool check metrics` has nothing to say of the exposition, hostile names included."""
    assert "no help text" in check_metrics(b"# TYPE x_total counter\nx_total 1\n"), "promtool finds faults"
    shop.live("payments")
    shop.live(HOSTILE)
    broken = shop.bus.attach(lambda event: 1 / 0)
    shop.circuits[0].reset()
    broken.close()
    assert check_metrics(generate_latest(shop.registry)) == ""


def test_prometheus_reads_back_what_the_engine_counted(shop: Shop, tmp_path: Path) -> None:
    """Every figure in Prometheus is that of the events, for both colours and names that would break a line."""
    shop.live("payments")
    shop.live(HOSTILE)
    run_async(shop.live_async("stock"))
    seen = shop.recorder.events_seen
    label = {cb.name: cb.name for cb in shop.circuits}
    label[HOSTILE] = HOSTILE.replace("\n", "\\n").replace("\ud800", "\\ud800")

    with endpoint(shop.registry) as address, server(tmp_path, {"shop": [address]}) as prometheus:
        prometheus.next_scrapes()

        def figures(series: str, *labels: str) -> dict[tuple[str, ...], float]:
            """The series of a metric that are not zero, by these labels."""
            found = prometheus.query(series)
            assert found, f"{series} is absent"
            return {tuple(each[name] for name in labels): value for each, value in found if value}

        def count(kind: Any, key: Any) -> dict[tuple[str, ...], float]:
            counted: dict[tuple[str, ...], float] = {}
            for event in seen:
                if isinstance(event, kind):
                    each = (label[event.circuit_name], *key(event))
                    counted[each] = counted.get(each, 0) + 1
            return counted

        outcomes = count(CallEnded, lambda event: (names.OUTCOMES[type(event)],))
        assert figures(f"{names.CALL_DURATION.series}_count", "circuit_name", "outcome") == outcomes
        assert {outcome for _, outcome in outcomes} == {"success", "failure", "ignored"}
        total: dict[tuple[str, ...], float] = {}
        for event in seen:
            if isinstance(event, CallEnded):
                key = label[event.circuit_name], names.OUTCOMES[type(event)]
                total[key] = total.get(key, 0) + event.duration
        sums = figures(f"{names.CALL_DURATION.series}_sum", "circuit_name", "outcome")
        assert sums == pytest.approx({key: value for key, value in total.items() if value})
        fast = count(CallSucceeded, lambda event: ())
        buckets = figures(f'{names.CALL_DURATION.series}_bucket{{outcome="success",le="+Inf"}}', "circuit_name")
        assert buckets == fast
        moved = count(StateChanged, lambda event: (event.old_state, event.new_state))
        assert figures(names.TRANSITIONS.series, "circuit_name", "old_state", "new_state") == moved
        rejected = count(CallRejected, lambda event: (event.state,))
        assert figures(names.REJECTED_CALLS.series, "circuit_name", "state") == rejected
        assert figures(names.FALLBACK_CALLS.series, "circuit_name") == count(FallbackUsed, lambda event: ())
        ended = count(CallEnded, lambda event: (names.OUTCOMES[type(event)], f"{event.state} {event.stale}"))
        probes = {(name, outcome): value for (name, outcome, when), value in ended.items() if when == "half_open False"}
        assert figures(names.PROBES.series, "circuit_name", "outcome") == probes
        assert probes
        limits = {(label[cb.name], rule): limit for cb in shop.circuits for rule, limit in cb.limits().items()}
        assert figures(names.LIMIT.series, "circuit_name", "rule") == limits
        slow = {(label[cb.name],): 1.0 for cb in shop.circuits if isinstance(cb, CircuitBreaker)}
        assert figures(names.SLOW_CALLS.series, "circuit_name") == slow
        states = {(label[cb.name], cb.state.value): 1.0 for cb in shop.circuits}
        assert figures(names.STATE.series, "circuit_name", "state") == states
        changed = {(label[cb.name],): cb.info().changed_at for cb in shop.circuits}
        assert figures(names.STATE_CHANGED.series, "circuit_name") == pytest.approx(changed)
        assert figures(names.FAILURE_RATE.series, "circuit_name") == {("stock",): pytest.approx(2 / 3)}
        rules = {(label[cb.name], cb.rules()["tripper"]): 1.0 for cb in shop.circuits}
        assert figures(names.CIRCUIT_INFO.series, "circuit_name", "tripper") == rules

        shop.circuits[0].retire()
        prometheus.next_scrapes()
        assert prometheus.query(f'{{circuit_name="{shop.circuits[0].name}"}}') == []


def test_exemplars_lead_from_the_histogram_to_the_trace(shop: Shop, tmp_path: Path) -> None:
    """A call within a sampled span leaves the span's ids in Prometheus; one in an unsampled or in none does not."""
    cb = CircuitBreaker("payments", **shop.rules())
    sampled, unsampled = TracerProvider(), TracerProvider(sampler=ALWAYS_OFF)
    cb.call(shop.clock.advance, 20.0)
    with unsampled.get_tracer("shop").start_as_current_span("unsampled"):
        cb.call(shop.clock.advance, 7.0)
    with sampled.get_tracer("shop").start_as_current_span("sampled") as span:
        cb.call(shop.clock.advance, 0.2)
    context = span.get_span_context()

    with endpoint(shop.registry) as address, server(tmp_path, {"shop": [address]}) as prometheus:
        prometheus.next_scrapes()
        [exemplar] = prometheus.exemplars(f"{names.CALL_DURATION.series}_bucket")
        assert exemplar["labels"] == {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
        assert float(exemplar["value"]) == pytest.approx(0.2)


def test_the_queries_of_the_page_find_something(shop: Shop, tmp_path: Path) -> None:
    """Each PromQL block of the documentation is a query that Prometheus understands and that a live circuit answers."""
    page = Path(__file__).parents[1] / "docs" / "listeners" / "prometheus.md"
    queries = [block.code for block in blocks(page) if block.language == "promql"]
    assert len(queries) >= 6
    cb = shop.live("payments")
    with endpoint(shop.registry) as address, server(tmp_path, {"shop": [address]}) as prometheus:
        prometheus.next_scrapes()
        cb.reset()
        for _ in range(2):
            with pytest.raises(ConnectionError):
                cb.call(shop.fail, ConnectionError("no route"))
        with pytest.raises(CallNotPermittedError):
            cb.call(int)
        prometheus.next_scrapes()
        found = {query: prometheus.query(query) for query in queries}
    assert [query for query, series in found.items() if not series] == []
    values = [value for series in found.values() for _, value in series]
    assert all(value > 0 for value in values), found


def test_scraping_and_living_at_once_does_no_harm(shop: Shop) -> None:
    """Circuits are made, called and retired in threads while both formats are scraped: each answer is whole."""
    keeper = CircuitBreaker("keeper", **shop.rules())
    stop = threading.Event()
    calls = 0

    def churn() -> None:
        while not stop.is_set():
            CircuitBreaker("short-lived", **shop.rules()).call(int)

    def call() -> None:
        nonlocal calls
        while not stop.is_set():
            keeper.call(int)
            calls += 1

    threads = [Running(work) for work in (churn, call)]
    with endpoint(shop.registry) as address:
        try:
            for accept, parse in ((OPENMETRICS, parse_openmetrics), ("text/plain", parse_text)) * 10:
                _, body = scrape(address, accept)
                found = {family.name for family in parse(body.decode("utf-8"))}
                assert {each.series.removesuffix("_total") for each in names.INSTRUMENTS} <= found
        finally:
            stop.set()
        assert all(thread.done() for thread in threads)
        shop.bus.circuits()
    labels = {"circuit_name": "keeper", "outcome": "success"}
    assert shop.registry.get_sample_value(f"{names.CALL_DURATION.series}_count", labels) == calls
    assert shop.registry.get_sample_value(names.LISTENER_FAILURES.series, {"listener": "PrometheusListener"}) == 0


def test_the_endpoint_speaks_openmetrics_to_whoever_asks_as_prometheus_does(shop: Shop) -> None:
    """Prometheus asks for OpenMetrics, the format that has exemplars, and gets it."""
    shop.live("payments")
    with endpoint(shop.registry) as address:
        content_type, body = scrape(address, OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert body.endswith(b"# EOF\n")
