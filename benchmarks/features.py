"""What Fluxgate's listeners cost a call, each beside what the client library's own operations cost alone.

Each feature runs in a process of its own, with a bus of its own. Its floor is what a program would call of the client
library if it measured the same call by hand: with everything bound beforehand, and nothing else.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import cycle, islice
from time import perf_counter
from typing import Any

from fluxgate import Bus, CircuitBreaker, Cooldown, FailureRate, FailureStreak, MinRequests
from fluxgate.events import CallEnded, CallRejected, Event

from .adapters import HOUR, NEVER, Function, Lacks, fail
from .workloads import ONES, Loop, Timed, calling, idling, refuse, trying, work

OUTCOMES = ("success", "failure", "rejection")
BY_HAND = "by hand:"
NO_LISTENER = "no listener"


@dataclass
class Feature:
    """A listener, attached in one way."""

    attach: Callable[[Bus], object] = lambda bus: None
    floors: Mapping[str, Function] = field(default_factory=lambda: dict[str, Function]())
    """What a program would call by hand, by outcome."""
    within: Callable[[], AbstractContextManager[object]] = nullcontext
    """The surroundings of the calls."""
    settle: bool = False
    """Whether there is something to flush between samples."""


class Ignoring:
    """A listener to each call that does nothing."""

    events: tuple[type[Event], ...] = (CallEnded, CallRejected)

    def __call__(self, event: Event) -> None:
        pass


def _none() -> Feature:
    return Feature()


def _no_op() -> Feature:
    return Feature(lambda bus: bus.attach(Ignoring()))


def _background() -> Feature:
    return Feature(lambda bus: bus.attach(Ignoring(), delivery="background"), settle=True)


def _log() -> Feature:
    import logging

    from fluxgate.listeners.log import LogListener

    logger = logging.getLogger("benchmarks")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    logger.setLevel(logging.INFO)
    return Feature(lambda bus: bus.attach(LogListener(logger)))


def _structlog() -> Feature:
    import logging

    import structlog

    from fluxgate.listeners.structlog import StructlogListener

    logger = structlog.wrap_logger(
        structlog.ReturnLogger(),
        processors=[structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
    )
    return Feature(lambda bus: bus.attach(StructlogListener(logger)))


def _prometheus() -> Feature:
    import prometheus_client

    from fluxgate.listeners.prometheus import PrometheusListener

    registry = prometheus_client.CollectorRegistry()
    histogram = prometheus_client.Histogram("by_hand", "A call's duration.", ["name"], registry=None).labels("a")
    counter = prometheus_client.Counter("by_hand", "Calls.", ["name"], registry=None).labels("a")

    def call(value: int) -> None:
        counter.inc()
        histogram.observe(0.001)

    def refusal(value: int) -> None:
        counter.inc()

    floors: dict[str, Function] = {"success": call, "failure": call, "rejection": refusal}
    return Feature(lambda bus: bus.attach(PrometheusListener(registry)), floors)


def _open_telemetry_metrics() -> Feature:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    from fluxgate.listeners.opentelemetry import OpenTelemetryMetricsListener

    provider = MeterProvider([InMemoryMetricReader()])
    meter = provider.get_meter("by hand")
    histogram, counter = meter.create_histogram("duration"), meter.create_counter("calls")
    attributes = {"fluxgate.circuit.name": "stock", "fluxgate.outcome": "success"}

    def call(value: int) -> None:
        counter.add(1, attributes)
        histogram.record(0.001, attributes)

    def refusal(value: int) -> None:
        counter.add(1, attributes)

    floors: dict[str, Function] = {"success": call, "failure": call, "rejection": refusal}
    return Feature(lambda bus: bus.attach(OpenTelemetryMetricsListener(provider)), floors)


_ATTRIBUTES = {
    "fluxgate.circuit.name": "stock",
    "fluxgate.circuit.state": "closed",
    "fluxgate.decision": "permitted",
    "fluxgate.outcome": "success",
}


def _tracing(mode: Any, recording: bool) -> Feature:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON

    from fluxgate.listeners.opentelemetry import TracingListener

    provider = TracerProvider(ALWAYS_ON if recording else ALWAYS_OFF)
    tracer = provider.get_tracer("by hand")

    def span(value: int) -> None:
        with tracer.start_as_current_span("circuit_breaker stock") as current:
            current.set_attributes(_ATTRIBUTES)

    def attributes(value: int) -> None:
        trace.get_current_span().set_attributes(_ATTRIBUTES)

    def attributes_and_event(value: int) -> None:
        current = trace.get_current_span()
        current.set_attributes(_ATTRIBUTES)
        current.add_event("fluxgate.call.failed", _ATTRIBUTES)

    floors: dict[str, Function]
    if mode == "spans":
        floors = dict.fromkeys(OUTCOMES, span)
    else:
        floors = {"success": attributes, "failure": attributes_and_event, "rejection": attributes_and_event}
    return Feature(
        lambda bus: bus.attach(TracingListener(provider, mode=mode)),
        floors,
        lambda: tracer.start_as_current_span("GET /stock"),
    )


def _tracing_without_sdk() -> Feature:
    from fluxgate.listeners.opentelemetry import TracingListener

    return Feature(lambda bus: bus.attach(TracingListener()))


FEATURES: dict[str, Callable[[], Feature]] = {
    NO_LISTENER: _none,
    "no-op listener to each call": _no_op,
    "the same in the background": _background,
    "LogListener": _log,
    "StructlogListener": _structlog,
    "PrometheusListener": _prometheus,
    "OpenTelemetryMetricsListener": _open_telemetry_metrics,
    "TracingListener, no SDK": _tracing_without_sdk,
    "TracingListener, span not recording": lambda: _tracing("annotate", False),
    "TracingListener, span recording": lambda: _tracing("annotate", True),
    "TracingListener in `spans`, not sampled": lambda: _tracing("spans", False),
    "TracingListener in `spans`, sampled": lambda: _tracing("spans", True),
}


def protected(outcome: str, bus: Bus) -> Function:
    """A function behind a circuit that stays in the state in which calls end so."""
    never = MinRequests(100) & FailureRate(0.5) & FailureStreak(NEVER)
    if outcome == "success":
        return CircuitBreaker("stock", bus=bus)(work)
    if outcome == "failure":
        return CircuitBreaker("stock", tripper=never, bus=bus)(refuse)
    breaker = CircuitBreaker("stock", tripper=FailureStreak(1), retry=Cooldown(HOUR), bus=bus)
    try:
        breaker.call(fail, 1)
    except Exception:
        pass
    return breaker(work)


def _surrounded(loop: Loop, within: Callable[[], AbstractContextManager[object]]) -> Loop:
    def run(n: int) -> float:
        with within():
            return loop(n)

    return run


def _by_the_wall(loop: Loop) -> Loop:
    """As `loop`, waiting for another thread included."""

    def run(n: int) -> float:
        started = perf_counter()
        loop(n)
        return perf_counter() - started

    return run


def workload(name: str, wanted: str) -> Timed:
    """A call that ends so with this feature, or with ``by hand:`` before the outcome what a program would call."""
    outcome = wanted.removeprefix(BY_HAND)
    feature = FEATURES[name]()
    bus = Bus()
    if outcome == wanted:
        feature.attach(bus)
        func = protected(outcome, bus)
    elif outcome in feature.floors:
        func = feature.floors[outcome]
    else:
        raise Lacks("needs nothing")
    if outcome == "success":
        timed = Timed(calling(func), calling(work))
    else:
        timed = Timed(trying(func, ONES), trying(refuse, ONES), idling(lambda n: islice(cycle(ONES), n)))
    timed.measured = _surrounded(timed.measured, feature.within)
    if feature.settle:
        timed.settle = bus.flush
        timed.measured = _by_the_wall(timed.measured)
    return timed
