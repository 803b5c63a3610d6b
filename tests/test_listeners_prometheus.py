"""PrometheusListener: what happens to circuits, as exact metrics that are there from the start and gone at the end."""

from __future__ import annotations

import doctest
import gc
import itertools
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("prometheus_client")
pytest.importorskip("opentelemetry.sdk")

import prometheus_client
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

from fluxgate import (
    AsyncCircuitBreaker,
    AvgLatency,
    Bus,
    CallNotPermittedError,
    CircuitBreaker,
    Closed,
    Cooldown,
    CountWindow,
    FailureRate,
    FailureStreak,
    HalfOpened,
    MinRequests,
    MissingExtraError,
    Never,
    SlowRate,
    State,
    Subscription,
    TimeWindow,
    TypeOf,
    permits,
)
from fluxgate.events import CallStarted, StateChanged
from fluxgate.listeners import _metrics as shared
from fluxgate.listeners import load, names, prometheus
from fluxgate.listeners._looks import Look
from fluxgate.listeners.names import Instrument
from fluxgate.listeners.prometheus import PrometheusListener
from fluxgate.testing import VirtualClock
from tests.faces import Circuit
from tests.running import PATIENCE, Running, restless, script, together

ROOT = Path(__file__).parents[1]
BOTH = pytest.mark.parametrize("breaker", [CircuitBreaker, AsyncCircuitBreaker])

# As the design has them, and what dashboards need besides: those, and alert rules, that others have copied depend on
# each word.
TABLE = {
    "circuit_breaker_state": ("gauge", "circuit_name", "state"),
    "circuit_breaker_state_transition_total": ("counter", "circuit_name", "old_state", "new_state"),
    "circuit_breaker_call_duration_seconds": ("histogram", "circuit_name", "outcome"),
    "circuit_breaker_slow_calls_total": ("counter", "circuit_name"),
    "circuit_breaker_rejected_calls_total": ("counter", "circuit_name", "state"),
    "circuit_breaker_probes_total": ("counter", "circuit_name", "outcome"),
    "circuit_breaker_fallback_calls_total": ("counter", "circuit_name"),
    "circuit_breaker_would_open_total": ("counter", "circuit_name"),
    "circuit_breaker_state_changed_timestamp_seconds": ("gauge", "circuit_name"),
    "circuit_breaker_failure_rate": ("gauge", "circuit_name"),
    "circuit_breaker_slow_rate": ("gauge", "circuit_name"),
    "circuit_breaker_limit": ("gauge", "circuit_name", "rule"),
    "circuit_breaker_info": ("gauge", "circuit_name", "tripper", "window", "retry", "permit"),
    "circuit_breaker_listener_failures_total": ("counter", "listener"),
    "circuit_breaker_events_dropped_total": ("counter", "listener"),
}


class Still(PrometheusListener):
    """It ticks when the test says so."""

    tick_interval = None


class Metrics:
    """A registry of its own, read by instrument."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

    def listener(self, **options: Any) -> PrometheusListener:
        return Still(self.registry, **options)

    def series(self, instrument: Instrument, suffix: str = "") -> dict[tuple[str, ...], float]:
        """The series of a metric: the values of its labels, in their order, and its value."""
        return {
            tuple(sample.labels[label] for label in instrument.labels): sample.value
            for metric in self.registry.collect()
            for sample in metric.samples
            if sample.name == instrument.series + suffix
        }

    def value(self, instrument: Instrument, *labels: str, suffix: str = "") -> float | None:
        """The value of one series; ``None`` if it is absent."""
        return self.series(instrument, suffix).get(labels)

    def calls(self, name: str = "payments") -> dict[str, float]:
        """How many calls of a circuit ended in which way."""
        ended = self.series(names.CALL_DURATION, "_count")
        return {outcome: value for (circuit, outcome), value in ended.items() if circuit == name}

    def state(self, name: str = "payments") -> list[str]:
        """The states that are 1."""
        return [state for (circuit, state), value in self.series(names.STATE).items() if circuit == name and value == 1]

    @property
    def samples(self) -> int:
        """How many samples there are of circuits."""
        found = [sample for metric in self.registry.collect() for sample in metric.samples]
        return sum("circuit_name" in sample.labels for sample in found)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


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


def fail(error: type[Exception] = ConnectionError) -> None:
    raise error("no route")


def try_to(call: Callable[..., object], *args: Any) -> None:
    """Whatever comes of it."""
    try:
        call(*args)
    except (ConnectionError, CallNotPermittedError, KeyError):
        pass


# -- the table ----------------------------------------------------------------------------------------------------


def test_the_metrics_are_those_of_the_design(metrics: Metrics) -> None:
    """Each metric has the name, the type and the labels that the design promises, and a help text."""
    assert {each.series: (each.kind, *each.labels) for each in names.INSTRUMENTS} == TABLE
    metrics.listener()
    exposed = {metric.name: (metric.type, metric.documentation) for metric in metrics.registry.collect()}
    assert exposed == {each.series.removesuffix("_total"): (each.kind, each.help) for each in names.INSTRUMENTS}


@BOTH
def test_every_row_is_measured(breaker: Any, metrics: Metrics) -> None:
    """Both colours: each metric follows what happens to the circuit, step by step."""
    shop = Circuit(
        breaker,
        tripper=Closed() & FailureStreak(2),
        tracker=~TypeOf(KeyError),
        retry=Cooldown(60),
        permit=permits.All(),
        slow_threshold=2.0,
    )
    with shop.bus.attach(metrics.listener()) as subscription:
        shop.succeed(0.02)
        shop.succeed(3.0)
        shop.fail(KeyError("ignored"), 0.5)
        shop.fail(seconds=4.0)
        acquired = shop.acquire()
        acquired.cancel()
        assert metrics.state() == ["closed"]
        shop.fail(seconds=0.2)
        assert metrics.state() == ["open"]
        shop.refused()
        shop.refused()
        shop.clock.advance(60)
        shop.succeed()
        assert metrics.state() == ["closed"]
        shop.steer("force_open")
        shop.refused()
        shop.protect(lambda: 1, fallback=lambda error: 2)()
        shop.steer("metrics_only")
        for _ in range(2):
            shop.fail()
        assert metrics.state() == ["metrics_only"]

        assert metrics.calls() == {"success": 3, "failure": 4, "ignored": 1, "cancelled": 1}
        duration = metrics.series(names.CALL_DURATION, "_sum")
        assert duration["payments", "success"] == pytest.approx(3.02)
        assert duration["payments", "failure"] == pytest.approx(4.2)
        assert duration["payments", "ignored"] == pytest.approx(0.5)
        assert metrics.value(names.SLOW_CALLS, "payments") == 2
        probes = {("payments", outcome): float(outcome == "success") for outcome in names.OUTCOMES.values()}
        assert metrics.series(names.PROBES) == probes
        assert metrics.series(names.REJECTED_CALLS) == {
            ("payments", "open"): 2,
            ("payments", "half_open"): 0,
            ("payments", "forced_open"): 2,
        }
        assert metrics.value(names.FALLBACK_CALLS, "payments") == 1
        assert metrics.value(names.WOULD_OPEN, "payments") == 1
        moved = {move[1:]: value for move, value in metrics.series(names.TRANSITIONS).items() if value}
        assert moved == {
            ("closed", "open"): 1,
            ("open", "half_open"): 1,
            ("half_open", "closed"): 1,
            ("closed", "forced_open"): 1,
            ("forced_open", "metrics_only"): 1,
        }
        assert metrics.value(names.STATE_CHANGED, "payments") == shop.info.changed_at
        rules = shop.breaker.rules()
        labels = [rules[label] for label in names.CIRCUIT_INFO.labels[1:]]
        assert metrics.series(names.CIRCUIT_INFO) == {("payments", *labels): 1}
        assert metrics.series(names.LIMIT) == {("payments", "failure_streak"): 2}
        assert subscription.active


def test_bounds_of_the_histogram_are_seconds(metrics: Metrics, bus: Bus) -> None:
    """Each call falls into the bucket of its duration; a bound is inclusive; other bounds can be given."""
    cb = circuit(bus, clock=(clock := VirtualClock()))
    bus.attach(metrics.listener(buckets=[0.5, 2]))
    for seconds in (0.25, 0.5, 1.0, 8.0):
        cb.call(clock.advance, seconds)
    found = {
        sample.labels["le"]: sample.value
        for metric in metrics.registry.collect()
        for sample in metric.samples
        if sample.name == f"{names.CALL_DURATION.series}_bucket" and sample.labels["outcome"] == "success"
    }
    assert found == {"0.5": 2, "2.0": 3, "+Inf": 4}


# -- present from the beginning -----------------------------------------------------------------------------------


def test_a_new_circuit_has_every_series_with_zero(metrics: Metrics, bus: Bus) -> None:
    """From its first event a circuit has each state, each outcome, each state that refuses, each move that is legal."""
    bus.attach(metrics.listener())
    cb = circuit(bus)
    assert metrics.series(names.STATE) == {("payments", state.value): float(state is cb.state) for state in State}
    assert metrics.calls() == dict.fromkeys(["success", "failure", "ignored", "cancelled"], 0)
    assert metrics.series(names.PROBES) == {("payments", outcome): 0 for outcome in metrics.calls()}
    refusing = ("open", "half_open", "forced_open")
    assert metrics.series(names.REJECTED_CALLS) == {("payments", state): 0 for state in refusing}
    for instrument in (names.SLOW_CALLS, names.FALLBACK_CALLS, names.WOULD_OPEN, names.FAILURE_RATE, names.SLOW_RATE):
        assert metrics.series(instrument) == {("payments",): 0}
    moves = {(old, new) for _, old, new in metrics.series(names.TRANSITIONS)}
    by_hand = ("closed", "metrics_only", "disabled", "forced_open")
    of_its_own = {("closed", "open"), ("open", "half_open"), ("half_open", "open"), ("half_open", "closed")}
    assert moves == of_its_own | {(old.value, new) for old in State for new in by_hand if old != new}
    assert set(metrics.series(names.TRANSITIONS).values()) == {0}
    everything = [sample for metric in metrics.registry.collect() for sample in metric.samples]
    samples = [sample.name for sample in everything if "circuit_name" in sample.labels]
    created = [name for name in samples if name.endswith("_created")]
    page = (ROOT / "docs" / "listeners" / "prometheus.md").read_text("utf-8")
    assert f"{len(samples) - len(created)} series a process" in page
    assert f"`_created` series, {len(created)} of them" in page


def test_a_move_that_another_process_decides_is_counted_as_well(metrics: Metrics, bus: Bus) -> None:
    """A change of state that cannot happen within a process has its series from the first on."""
    bus.attach(listener := metrics.listener())
    cb = circuit(bus)
    recorded: list[StateChanged] = []
    bus.attach(recorded.append)
    cb.disable()
    listener(recorded[0].__replace__(old_state=State.DISABLED, new_state=State.HALF_OPEN))
    assert metrics.value(names.TRANSITIONS, "payments", "disabled", "half_open") == 1
    cb.retire()
    assert metrics.series(names.TRANSITIONS) == {}


@BOTH
def test_circuits_that_are_there_already_are_shown_when_it_is_attached(
    breaker: Any, metrics: Metrics, bus: Bus
) -> None:
    """A listener attached late shows each circuit as it is: its state, since when, its rates and its rules."""
    shop = Circuit(breaker, tripper=Closed() & FailureStreak(2), retry=Never())
    shop.succeed()
    for _ in range(2):
        shop.fail()
    shop.clock.advance(100)
    with shop.bus.attach(metrics.listener()):
        assert metrics.state() == ["open"]
        assert metrics.value(names.STATE_CHANGED, "payments") == shop.info.changed_at
        assert metrics.value(names.FAILURE_RATE, "payments") == pytest.approx(2 / 3)
        assert metrics.calls() == dict.fromkeys(["success", "failure", "ignored", "cancelled"], 0)
        assert [series[3] for series in metrics.series(names.CIRCUIT_INFO)] == ["Never()"]
        assert metrics.series(names.LIMIT) == {("payments", "failure_streak"): 2}


def test_a_listener_of_one_circuit_shows_that_one(metrics: Metrics, bus: Bus) -> None:
    """Attached to a circuit, new or old, it measures no other."""
    circuit(bus, "other")
    listener = metrics.listener()
    kept = circuit(bus, "new", listeners=[listener]), circuit(bus, "old")
    kept[1].attach(listener)
    assert {name for name, _ in metrics.series(names.STATE)} == {"new", "old"}
    assert len(metrics.series(names.CIRCUIT_INFO)) == 2
    kept[1].call(int)
    assert metrics.calls("old")["success"] == 1


def test_nothing_is_registered_at_import() -> None:
    """Importing the module neither imports the client library nor touches its registry."""
    source = "import sys, fluxgate.listeners.prometheus; assert 'prometheus_client' not in sys.modules"
    assert script(source).stdout == ""


# -- gauges are true ----------------------------------------------------------------------------------------------


def test_rates_are_true_while_nobody_calls(metrics: Metrics, bus: Bus) -> None:
    """A window that forgets by time is seen to do so by the next tick, with no call in between."""
    clock = VirtualClock()
    cb = circuit(bus, window=TimeWindow(60), tripper=Closed() & FailureStreak(9), slow_threshold=2.0, clock=clock)
    bus.attach(listener := metrics.listener())
    try_to(cb.call, fail)
    cb.call(clock.advance, 5.0)
    listener.tick()
    assert metrics.value(names.FAILURE_RATE, "payments") == 0.5
    assert metrics.value(names.SLOW_RATE, "payments") == 0.5
    clock.advance(61)
    listener.tick()
    assert metrics.value(names.FAILURE_RATE, "payments") == 0.0
    assert metrics.value(names.SLOW_RATE, "payments") == 0.0


def test_it_ticks_by_itself(metrics: Metrics, bus: Bus) -> None:
    """The rates come up to date in a thread of the listener's own, more often than every 5 s."""
    assert 0 < (PrometheusListener.tick_interval or 0) < 5

    class Hasty(PrometheusListener):
        tick_interval = 0.005

    cb = circuit(bus, tripper=Closed() & FailureStreak(9))
    bus.attach(Hasty(metrics.registry))
    try_to(cb.call, fail)
    deadline = time.monotonic() + PATIENCE
    while metrics.value(names.FAILURE_RATE, "payments") != 1.0:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_the_rate_that_opened_a_circuit_is_seen_at_once(metrics: Metrics, bus: Bus) -> None:
    """Opening shows the window that decided; the state that follows begins with an empty one."""
    clock = VirtualClock()
    cb = circuit(bus, window=CountWindow(4), clock=clock)
    bus.attach(metrics.listener())
    cb.call(int)
    try_to(cb.call, fail)
    assert metrics.value(names.FAILURE_RATE, "payments") == 0.5
    clock.advance(60)
    cb.call(int)
    assert metrics.value(names.FAILURE_RATE, "payments") == 0.0


def test_rules_are_replaced_when_they_change(metrics: Metrics, bus: Bus) -> None:
    """After `configure` there is one series of the rules, the new ones."""
    bus.attach(listener := metrics.listener())
    cb = circuit(bus)
    cb.configure(retry=Never())
    for _ in range(2):
        assert [series[3] for series in metrics.series(names.CIRCUIT_INFO)] == ["Never()"]
        listener.tick()


def test_limits_are_replaced_when_they_change(metrics: Metrics, bus: Bus) -> None:
    """After `configure` there are the limits in force and no other, also where there are none any more."""
    bus.attach(listener := metrics.listener())
    cb = circuit(bus, tripper=MinRequests(3) & FailureRate(0.5))
    assert metrics.series(names.LIMIT) == {("payments", "min_requests"): 3, ("payments", "failure_rate"): 0.5}
    cb.configure(tripper=MinRequests(3) & (FailureRate(0.25) | AvgLatency(2)))
    limits = {("payments", "min_requests"): 3, ("payments", "failure_rate"): 0.25, ("payments", "avg_latency"): 2}
    for _ in range(2):
        assert metrics.series(names.LIMIT) == limits
        listener.tick()
    cb.configure(tripper=lambda metric, state, failures: False)
    assert metrics.series(names.LIMIT) == {}
    cb.configure(tripper=SlowRate(0.1))
    cb.retire()
    assert metrics.series(names.LIMIT) == {}


@BOTH
def test_probes_count_by_how_they_ended(breaker: Any, metrics: Metrics) -> None:
    """Each settled probe counts once by its outcome: no call of another state, and none that lost its say."""
    shop = Circuit(
        breaker,
        tripper=(Closed() & FailureStreak(1)) | (HalfOpened() & MinRequests(9) & FailureRate(1)),
        tracker=~TypeOf(KeyError),
        permit=permits.All(),
        retry=Cooldown(60),
        max_half_open_calls=2,
        half_open_timeout=30.0,
    )
    with shop.bus.attach(metrics.listener()):
        late = shop.acquire()
        shop.fail()
        shop.refused()
        shop.clock.advance(60)
        held = shop.acquire()
        assert shop.state == "half_open"
        late.success()
        shop.fail(KeyError("ignored"))
        shop.acquire().cancel()
        shop.succeed()
        shop.succeed()
        shop.fail()
        assert shop.state == "half_open"
        shop.clock.advance(30)
        held.success()
        found = {outcome: value for (_, outcome), value in metrics.series(names.PROBES).items()}
        assert found == {"success": 2, "failure": 1, "ignored": 1, "cancelled": 1}
        shop.succeed()
        assert shop.state == "closed"
        shop.succeed()
        assert metrics.value(names.PROBES, "payments", "success") == 3


def test_a_late_look_does_not_undo_a_change(metrics: Metrics, bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tick that looked before a change of state, and comes to show it after, shows nothing."""
    bus.attach(listener := metrics.listener())
    cb = circuit(bus)
    look = Look.at

    def slowly(breaker: Any, rules: Any = None) -> Any:
        seen = look(breaker, rules)
        monkeypatch.setattr(Look, "at", look)
        cb.force_open()
        return seen

    monkeypatch.setattr(Look, "at", slowly)
    listener.tick()
    assert metrics.state() == ["forced_open"]


# -- several listeners, registries, circuits of one name ----------------------------------------------------------


def test_two_listeners_on_one_registry_count_once(metrics: Metrics, bus: Bus) -> None:
    """They share the metrics; when the first is detached the second goes on with the same figures."""
    first, second = bus.attach(metrics.listener()), bus.attach(metrics.listener())
    cb = circuit(bus)
    own = cb.attach(metrics.listener())
    cb.call(int)
    cb.force_open()
    try_to(cb.call, int)
    assert metrics.calls()["success"] == 1
    assert metrics.value(names.TRANSITIONS, "payments", "closed", "forced_open") == 1
    first.close()
    try_to(cb.call, int)
    assert metrics.value(names.REJECTED_CALLS, "payments", "forced_open") == 2
    own.close()
    second.close()
    assert metrics.series(names.STATE) == {}, "nobody keeps it up to date"


def test_many_listeners_on_one_registry_look_in_turns(metrics: Metrics, bus: Bus) -> None:
    """Of several listeners of one registry one looks at the circuits; when it is gone another does."""
    cb = circuit(bus, tripper=Closed() & FailureStreak(9))
    first, second = metrics.listener(), metrics.listener()
    subscriptions = [bus.attach(each) for each in (first, second)]
    board: Any = first.destination
    first.tick()
    try_to(cb.call, fail)
    second.tick()
    assert metrics.value(names.FAILURE_RATE, "payments") == 0.0
    first.tick()
    assert metrics.value(names.FAILURE_RATE, "payments") == 1.0
    subscriptions[0].close()
    cb.reset()
    try_to(cb.call, fail)
    board._looked_at -= 1.25  # s: as much as may be missing from the last look to the 5 s that are promised
    second.tick()
    assert metrics.value(names.FAILURE_RATE, "payments") == 1.0


def test_a_name_that_is_free_again_is_not_looked_for(
    metrics: Metrics, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only while two circuits have one name does a change of state look at others."""
    bus.attach(metrics.listener())
    cb, twin = circuit(bus), circuit(bus)
    looked: list[str] = []
    sharing = shared.Board.sharing

    def noted(board: Any, among: Any) -> Any:
        looked.append("looked")
        return sharing(board, among)

    monkeypatch.setattr(shared.Board, "sharing", noted)
    cb.force_open()
    assert looked
    twin.retire()
    looked.clear()
    cb.reset()
    assert not looked
    assert metrics.state() == ["closed"]


def test_listeners_on_two_registries_count_each_for_itself(bus: Bus) -> None:
    """Each registry has all of it."""
    both = Metrics(), Metrics()
    for each in both:
        bus.attach(each.listener())
    circuit(bus).call(int)
    bus.circuits()
    cb = circuit(bus)
    cb.call(int)
    assert [each.calls()["success"] for each in both] == [1, 1]


def test_circuits_of_one_name_share_their_series(metrics: Metrics) -> None:
    """Counters add up, a state is 1 if one is in it, limits are the lowest; all go with the last, on whatever bus."""
    buses = Bus(), Bus()
    listener = metrics.listener()
    subscriptions = [bus.attach(listener) for bus in buses]
    two = circuit(buses[0], tripper=Closed() & (FailureStreak(3) | SlowRate(0.5)), retry=Cooldown(5))
    one = circuit(buses[0], retry=Never())
    three = circuit(buses[1], retry=Never())
    for cb in (one, two, three):
        cb.call(int)
    assert metrics.calls()["success"] == 3
    assert len(metrics.series(names.CIRCUIT_INFO)) == 2
    assert metrics.series(names.LIMIT) == {("payments", "failure_streak"): 1, ("payments", "slow_rate"): 0.5}
    try_to(one.call, fail)
    assert sorted(metrics.state()) == ["closed", "open"]
    assert metrics.value(names.FAILURE_RATE, "payments") == 0.5
    one.retire()
    assert metrics.state() == ["closed"]
    assert metrics.value(names.FAILURE_RATE, "payments") == 0.0
    two.retire()
    assert metrics.series(names.LIMIT) == {("payments", "failure_streak"): 1}
    assert len(metrics.series(names.CIRCUIT_INFO)) == 1
    assert metrics.calls()["success"] == 3
    three.retire()
    assert metrics.samples == 0
    for subscription in subscriptions:
        subscription.close()


def test_a_crowd_of_one_name_is_looked_at_from_time_to_time(
    metrics: Metrics, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where many circuits have one name, a change of one does not look at all of them; the next tick does."""
    bus.attach(listener := metrics.listener())
    crowd = [circuit(bus) for _ in range(20)]
    looked: list[Any] = []
    at = Look.at

    def noted(breaker: Any, rules: Any = None) -> Look:
        looked.append(breaker)
        return at(breaker, rules)

    monkeypatch.setattr(Look, "at", noted)
    crowd[0].force_open()
    crowd[1].retire()
    assert not looked
    assert metrics.value(names.TRANSITIONS, "payments", "closed", "forced_open") == 1
    listener.tick()
    assert sorted(metrics.state()) == ["closed", "forced_open"]
    for cb in crowd:
        cb.retire()
    listener.tick()
    assert metrics.samples == 0


def test_namesakes_look_at_no_stranger(metrics: Metrics, bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever happens to circuits of one name, the caller does not wait for a look at all the others."""
    bus.attach(metrics.listener())
    looks: list[Subscription] = []
    monkeypatch.setattr(Subscription, "circuits", looks.append)
    one, two = circuit(bus), circuit(bus)
    one.force_open()
    assert sorted(metrics.state()) == ["closed", "forced_open"]
    two.retire()
    assert metrics.state() == ["forced_open"]
    one.retire()
    assert metrics.samples == 0
    assert not looks


def test_a_name_that_is_used_again_goes_on(metrics: Metrics, bus: Bus) -> None:
    """A circuit that takes another's place before that is gone keeps the series; once it is gone they begin anew."""
    bus.attach(metrics.listener())
    cb = circuit(bus)
    cb.call(int)
    cb = circuit(bus)  # the old one is collected just now
    cb.call(int)
    bus.circuits()
    assert metrics.calls()["success"] == 2
    cb.retire()
    assert metrics.samples == 0
    cb = circuit(bus)
    cb.call(int)
    assert metrics.calls()["success"] == 1


def test_names_that_look_alike_share_their_series(metrics: Metrics, bus: Bus) -> None:
    """Two names that are written alike are one label; it goes with the last of them."""
    bus.attach(listener := metrics.listener())
    one, two = circuit(bus, "a\nb"), circuit(bus, "a\\nb")
    one.call(int)
    two.call(int)
    assert metrics.calls("a\\nb")["success"] == 2
    one.retire()
    two.call(int)
    listener.tick()
    assert metrics.calls("a\\nb")["success"] == 3
    two.retire()
    assert metrics.samples == 0


def test_one_that_looks_like_another_hides_nothing_of_it(metrics: Metrics, bus: Bus) -> None:
    """The first event of a name that is written as another's shows both at once."""
    bus.attach(metrics.listener())
    one = circuit(bus, "a\nb")
    one.force_open()
    two = circuit(bus, "a\\nb")
    assert sorted(metrics.state("a\\nb")) == ["closed", "forced_open"]
    two.retire()
    assert metrics.state("a\\nb") == ["forced_open"]


# -- the end ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["retire", "collected"])
def test_a_circuit_takes_its_series_along(end: str, metrics: Metrics, bus: Bus) -> None:
    """Retired, or collected as garbage, a circuit leaves nothing in the registry; another's stay."""
    bus.attach(metrics.listener())
    kept, cb = circuit(bus, "kept"), circuit(bus)
    before = metrics.samples // 2
    try_to(cb.call, fail)
    if end == "retire":
        cb.retire()
    del cb
    bus.circuits()
    assert metrics.samples == before
    assert {name for name, _ in metrics.series(names.STATE)} == {kept.name}


def test_thousands_of_circuits_come_and_go_without_growth(metrics: Metrics, bus: Bus) -> None:
    """Whatever was kept for a circuit is gone with it."""
    bus.attach(listener := metrics.listener(buckets=[1.0]))

    def live(first: int, count: int) -> int:
        for number in range(first, first + count):
            cb = circuit(bus, f"circuit-{number}")
            cb.call(int)
            try_to(cb.call, fail)
        cb = None
        bus.circuits()
        listener.tick()
        gc.collect()
        return len(gc.get_objects())

    before = live(0, 100)
    after = live(100, 2_000)
    assert metrics.samples == 0
    assert abs(after - before) < 40, "less than one object in fifty circuits"


def test_retirements_that_nobody_heard_of_are_noticed(metrics: Metrics, bus: Bus) -> None:
    """Where the news of a retirement was lost, the next tick takes the series away."""
    listener = metrics.listener()
    listener.tick_interval = None  # type: ignore[misc]
    bus.attach(listener, StateChanged)
    cb = circuit(bus)
    listener.tick()
    assert metrics.state() == ["closed"]
    cb.retire()
    assert metrics.state() == ["closed"]
    listener.tick()
    assert metrics.samples == 0


def test_a_cleared_metric_does_no_harm(metrics: Metrics, bus: Bus) -> None:
    """A program that clears a metric by itself gets what it asks for, and the circuit retires without an error."""
    bus.attach(metrics.listener())
    cb = circuit(bus)
    for collector in list(metrics.registry._collector_to_names):
        collector.clear()  # type: ignore[attr-defined]
    cb.retire()
    assert by_name(metrics, names.LISTENER_FAILURES) == {}


# -- failing listeners, lost events -------------------------------------------------------------------------------


def by_name(metrics: Metrics, instrument: Instrument) -> dict[str, float]:
    """The listeners that are not at 0, without the name of the test that they are in."""
    return {listener.rsplit(".", 1)[-1]: value for (listener,), value in metrics.series(instrument).items() if value}


def test_listeners_begin_with_0(metrics: Metrics, bus: Bus) -> None:
    """Whoever is attached can be seen not to have failed, so that the first failure is an increase."""
    bus.attach(listener := metrics.listener())
    bus.attach(print)
    listener.tick()
    for instrument in (names.LISTENER_FAILURES, names.EVENTS_DROPPED):
        assert metrics.series(instrument) == {("Still",): 0, ("print",): 0}


def test_failures_of_listeners_and_rules_are_counted(metrics: Metrics, bus: Bus) -> None:
    """By what failed, in words, in whatever circuit, and they stay when it retires."""
    bus.attach(metrics.listener())

    def page_somebody(event: object) -> None:
        raise RuntimeError("no pager")

    bus.attach(page_somebody)
    cb = circuit(bus)
    cb.force_open()
    cb.reset()
    cb.retire()
    assert by_name(metrics, names.LISTENER_FAILURES) == {"page_somebody": 2}


def test_listeners_and_rules_without_end_share_a_label(metrics: Metrics, bus: Bus) -> None:
    """Rules without a name of their own are told by their address; beyond a thousand labels they share one."""
    bus.attach(metrics.listener())

    class Nameless:
        def __call__(self, error: Exception) -> bool:
            raise ValueError

    rules = [Nameless() for _ in range(1100)]
    for rule in rules:
        try_to(circuit(bus, tracker=rule).call, fail)
    counted = metrics.series(names.LISTENER_FAILURES)
    assert sum(counted.values()) == 1100
    assert 100 <= counted[names.OTHER_LISTENERS,] <= 110
    assert len(counted) <= 1001


def test_a_name_that_is_taken_at_the_moment_of_retirement_stays(
    metrics: Metrics, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A circuit that comes while another of its name is being forgotten is not forgotten with it."""
    bus.attach(metrics.listener())
    cb = circuit(bus)
    kept: list[Any] = []
    forget = shared.Board._forget

    def late(board: Any, gone: Any, version: int) -> None:
        kept.append(circuit(bus))
        forget(board, gone, version)

    monkeypatch.setattr(shared.Board, "_forget", late)
    cb.retire()
    assert metrics.state() == ["closed"]
    assert len(kept) == 1


def test_lost_events_are_counted(metrics: Metrics, bus: Bus) -> None:
    """By the listener whose queue was full."""
    bus.attach(metrics.listener())
    held, go = threading.Event(), threading.Event()

    def slow_sink(event: object) -> None:
        held.set()
        go.wait(PATIENCE)

    with bus.attach(slow_sink, delivery="background", queue_size=1):
        cb = circuit(bus)
        cb.force_open()
        assert held.wait(PATIENCE)
        for _ in range(5):
            cb.reset()
            cb.force_open()
        go.set()
        assert bus.flush(PATIENCE)
    assert by_name(metrics, names.EVENTS_DROPPED) == {"slow_sink": 9}
    assert bus.listeners() == {"Still"}


# -- exemplars ----------------------------------------------------------------------------------------------------


def exemplars(metrics: Metrics) -> list[dict[str, str]]:
    return [
        dict(sample.exemplar.labels)
        for metric in metrics.registry.collect()
        for sample in metric.samples
        if sample.exemplar is not None
    ]


@BOTH
@pytest.mark.parametrize("delivery", ["inline", "background"])
def test_sampled_calls_leave_an_exemplar(breaker: Any, delivery: Any, metrics: Metrics) -> None:
    """The histogram leads to the trace of a call within a sampled span, however it was delivered; to no other."""
    shop = Circuit(breaker)
    tracer = TracerProvider().get_tracer("shop")
    with shop.bus.attach(metrics.listener(), delivery=delivery):
        shop.succeed()
        with TracerProvider(sampler=ALWAYS_OFF).get_tracer("shop").start_as_current_span("unsampled"):
            shop.succeed()
        assert shop.bus.flush(PATIENCE)
        assert exemplars(metrics) == []
        with tracer.start_as_current_span("sampled") as span:
            shop.fail(seconds=3)
        assert shop.bus.flush(PATIENCE)
        context = span.get_span_context()
        ids = {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
        assert exemplars(metrics) == [ids]
        assert ids["trace_id"] in openmetrics.generate_latest(metrics.registry).decode()  # type: ignore[no-untyped-call]
        assert metrics.calls() == {"success": 2, "failure": 1, "ignored": 0, "cancelled": 0}


def test_exemplars_can_be_switched_off(metrics: Metrics, bus: Bus) -> None:
    """`exemplars=False` leaves none."""
    bus.attach(metrics.listener(exemplars=False))
    with TracerProvider().get_tracer("shop").start_as_current_span("sampled"):
        circuit(bus).call(int)
    assert exemplars(metrics) == []


def test_opentelemetry_in_the_middle_of_its_import_does_no_harm(
    metrics: Metrics, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where OpenTelemetry cannot tell the span, the call is measured without."""
    bus.attach(metrics.listener())
    cb = circuit(bus)
    with TracerProvider().get_tracer("shop").start_as_current_span("sampled"):
        for module in ("opentelemetry.trace", "opentelemetry.context"):
            monkeypatch.setitem(sys.modules, module, sys)
            cb.call(int)
    assert metrics.calls()["success"] == 2
    assert exemplars(metrics) == []


def test_opentelemetry_is_not_asked_for_a_span_where_there_is_none(
    metrics: Metrics, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside of requests its context is empty, and so no call pays for a look at a span; in one, it is seen."""
    asked: list[str] = []
    current_span = trace.get_current_span

    def noted(*args: Any) -> Any:
        asked.append("span")
        return current_span(*args)

    monkeypatch.setattr(trace, "get_current_span", noted)
    bus.attach(metrics.listener())
    cb = circuit(bus)
    cb.call(int)
    assert asked == []
    with TracerProvider().get_tracer("shop").start_as_current_span("sampled"):
        asked.clear()
        cb.call(int)
    assert asked == ["span"]


# -- costs --------------------------------------------------------------------------------------------------------


def test_calls_begin_without_the_lock(metrics: Metrics, bus: Bus) -> None:
    """It does not ask for the beginning of calls, so that they begin as fast as without it."""
    assert CallStarted not in metrics.listener().events
    bus.attach(metrics.listener())
    cb = circuit(bus)
    cb.call(int)
    assert cb._core.lane is not None


def test_a_call_costs_one_client_operation_and_no_look_up_of_labels(
    metrics: Metrics, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outcome is one `observe`, with one `inc` if it was slow, on children that were bound before."""
    done: list[str] = []
    for kind, operation in (("Histogram", "observe"), ("Counter", "inc"), ("Gauge", "set"), ("Counter", "labels")):
        owner = getattr(prometheus_client, kind)
        real = getattr(owner, operation)

        def noted(self: Any, *args: Any, _real: Any = real, _name: str = operation) -> Any:
            done.append(_name)
            return _real(self, *args)

        monkeypatch.setattr(owner, operation, noted)
    clock = VirtualClock()
    bus.attach(metrics.listener())
    cb = circuit(bus, clock=clock, slow_threshold=2.0, tripper=Closed() & FailureStreak(9))
    done.clear()
    cb.call(int)
    assert done == ["observe"]
    try_to(cb.call, fail)
    cb.call(clock.advance, 3.0)
    assert done == ["observe", "observe", "observe", "inc"]


# -- threads and forks --------------------------------------------------------------------------------------------


def test_totals_are_exact_under_threads(metrics: Metrics, bus: Bus) -> None:
    """Calls, transitions and retirements in many threads, with ticks and scrapes in between, are all counted."""
    bus.attach(listener := metrics.listener())
    kept = [circuit(bus, f"circuit-{number}", tripper=Closed() & FailureStreak(10**9)) for number in range(2)]
    rounds = 300

    def call() -> None:
        for number in range(rounds):
            kept[number % 2].call(int)
            try_to(kept[number % 2].call, fail)

    def move() -> None:
        for _ in range(rounds):
            kept[0].metrics_only()
            kept[0].reset()

    def churn() -> None:
        for _ in range(30):
            circuit(bus, "short-lived").call(int)

    def look() -> None:
        for _ in range(30):
            listener.tick()
            generate_latest(metrics.registry)

    with restless():
        together(call, call, call, move, churn, churn, look)
    bus.circuits()
    listener.tick()
    for cb in kept:
        assert metrics.calls(cb.name) == {
            "success": 1.5 * rounds,
            "failure": 1.5 * rounds,
            "ignored": 0,
            "cancelled": 0,
        }
    assert metrics.value(names.TRANSITIONS, "circuit-0", "closed", "metrics_only") == rounds
    assert metrics.state("circuit-0") == ["closed"]
    assert {name for name, _ in metrics.series(names.STATE)} == {cb.name for cb in kept}
    assert by_name(metrics, names.LISTENER_FAILURES) == {}


FORKING = """
import os, sys, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of a fork while threads run: that is what is tested
from prometheus_client import CollectorRegistry
from fluxgate import Bus, CircuitBreaker
from fluxgate.listeners.prometheus import PrometheusListener

sys.setswitchinterval(1e-6)
registry, bus = CollectorRegistry(), Bus()
bus.attach(listener := PrometheusListener(registry))
cb = CircuitBreaker("payments", bus=bus)
stop = threading.Event()

def work():
    while not stop.is_set():
        cb.call(int)
        cb.metrics_only()
        cb.reset()

threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads:
    thread.start()
labels = {"circuit_name": "payments", "outcome": "success"}
count = lambda: registry.get_sample_value("circuit_breaker_call_duration_seconds_count", labels)
failed = 0
for _ in range(40):
    pid = os.fork()
    if pid == 0:
        before = count()
        for _ in range(3):
            cb.call(int)
        cb.force_open()
        listener.tick()
        state = {"circuit_name": "payments", "state": "forced_open"}
        os._exit(0 if (count() - before, registry.get_sample_value("circuit_breaker_state", state)) == (3, 1) else 1)
    failed += os.waitpid(pid, 0)[1] != 0
stop.set()
for thread in threads:
    thread.join()
print(failed)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_measures_on() -> None:
    """A child that is forked while other threads are in the middle of measuring neither hangs nor miscounts."""
    assert script(FORKING).stdout == "0\n"


class Measuring:
    """A call whose measurement takes as long as the test wants, in a thread of its own."""

    def __init__(self, metrics: Metrics, bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.goes_on = threading.Event(), threading.Event()
        self.inside: Callable[[], object] = self.hold
        self.real = prometheus_client.Histogram.observe
        monkeypatch.setattr(prometheus_client.Histogram, "observe", lambda *args: self.observe(*args))
        self.listener = metrics.listener()
        bus.attach(self.listener)
        self.circuit = circuit(bus)

    @property
    def board(self) -> Any:
        return self.listener.destination

    def observe(self, *args: Any) -> None:
        self.inside()
        self.real(*args)

    def hold(self) -> None:
        self.entered.set()
        assert self.goes_on.wait(PATIENCE)

    def start(self) -> Running:
        self.entered.clear()
        running = Running(lambda: self.circuit.call(int))
        assert self.entered.wait(PATIENCE)
        return running


@pytest.fixture
def measuring(metrics: Metrics, bus: Bus, monkeypatch: pytest.MonkeyPatch) -> Iterator[Measuring]:
    measuring = Measuring(metrics, bus, monkeypatch)
    yield measuring
    measuring.goes_on.set()


def test_a_fork_waits_for_measurements_that_are_under_way(
    measuring: Measuring, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another thread is measuring without a lock is whole before the process forks."""
    calling = measuring.start()
    waited: list[bool] = []

    def wait(seconds: float) -> None:
        measuring.goes_on.set()
        waited.append(calling.done())

    monkeypatch.setattr(time, "sleep", wait)
    measuring.board.before_fork()
    try:
        assert waited == [True]
        assert metrics.calls()["success"] == 1
    finally:
        measuring.board.after_fork(child=False)


def test_two_forks_at_once_come_one_after_the_other(measuring: Measuring, metrics: Metrics) -> None:
    """The end of one does not open the way for those who measure in the midst of the other."""
    measuring.goes_on.set()
    board = measuring.board
    begun, ended = threading.Event(), threading.Event()

    def other() -> None:
        begun.set()
        board.before_fork()
        try:
            assert "tell" in board.__dict__
        finally:
            board.after_fork(child=False)
        ended.set()

    board.before_fork()
    forking = Running(other)
    assert begun.wait(PATIENCE)
    assert not ended.is_set()
    board.after_fork(child=False)
    assert forking.done()
    measuring.circuit.call(int)
    assert metrics.calls()["success"] == 1


def test_a_fork_does_not_wait_for_ever(measuring: Measuring, monkeypatch: pytest.MonkeyPatch) -> None:
    """A measurement that hangs does not hang who forks."""
    monkeypatch.setattr(shared, "_FORK_WAIT", 0.0)
    calling = measuring.start()
    measuring.board.before_fork()
    assert not calling.done(0)
    measuring.board.after_fork(child=False)
    measuring.goes_on.set()
    assert calling.done()


def test_a_fork_in_the_middle_of_its_own_measurement_waits_for_nobody(
    measuring: Measuring, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal handler may fork wherever it comes."""

    forked: list[str] = []

    def fork() -> None:
        measuring.board.before_fork()
        measuring.board.after_fork(child=True)
        forked.append("forked")

    monkeypatch.setattr(time, "sleep", fail)
    measuring.inside = fork
    measuring.circuit.call(int)
    assert forked == ["forked"]
    assert metrics.calls()["success"] == 1


@pytest.mark.parametrize("kind", ["call", "refusal"])
def test_nobody_measures_while_the_process_forks(
    kind: str, measuring: Measuring, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who comes in the midst of a fork waits until it is over, and is counted then; the fork does not wait for it."""
    measuring.goes_on.set()
    if kind == "refusal":
        measuring.circuit.force_open()

    def counted() -> float | None:
        if kind == "refusal":
            return metrics.value(names.REJECTED_CALLS, "payments", "forced_open")
        return metrics.calls()["success"]

    board = measuring.board
    board.before_fork()
    calling = Running(lambda: try_to(measuring.circuit.call, int))
    deadline = time.monotonic() + PATIENCE
    while not board._locking and not calling.done(0.001):
        assert time.monotonic() < deadline
    assert not calling.done(0)
    assert counted() == 0
    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", fail)
        assert not board._is_measuring()
    board.after_fork(child=False)
    assert calling.done()
    assert counted() == 1
    assert board._locking == []


def test_a_child_keeps_nothing_of_threads_that_it_has_not(measuring: Measuring, metrics: Metrics) -> None:
    """Those that were waiting for the end of the fork are the parent's; its own thread may be in the middle of it."""
    board = measuring.board
    forked: list[list[int]] = []

    def fork() -> None:
        board._locking.append(0)
        board.before_fork()
        board.after_fork(child=True)
        forked.append(list(board._locking))

    measuring.inside = fork
    board.before_fork()
    measuring.circuit.call(int)
    board.after_fork(child=False)
    assert forked == [[threading.get_ident()]]
    assert board._locking == []
    assert metrics.calls()["success"] == 1


# -- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("a\nb", "a\\nb"),
        ('quote" back\\slash', 'quote" back\\slash'),
        ("lone \ud800 surrogate", "lone \\ud800 surrogate"),
        ("\x00\x1b[31m", "\\x00\\x1b[31m"),
        ("가게 ☕", "가게 ☕"),
        ("x" * 5000, "x" * 999 + "…"),
        ('"} 1\n# EOF', '"} 1\\n# EOF'),
    ],
)
def test_any_name_is_a_label_that_can_be_scraped(name: str, label: str, metrics: Metrics, bus: Bus) -> None:
    """No name, and no rule's name, breaks the exposition; a parser reads back the name as log lines have it."""
    bus.attach(metrics.listener())

    class Rule:
        def __call__(self, error: Exception) -> bool:
            raise ValueError

        def __repr__(self) -> str:
            return name

    cb = circuit(bus, name, tracker=Rule(), permit=permits.All())
    try_to(cb.call, fail)
    from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
    from prometheus_client.parser import text_string_to_metric_families as parse

    for text, read in ((generate_latest, parse), (openmetrics.generate_latest, parse_openmetrics)):
        found = list(read(text(metrics.registry).decode("utf-8")))
        labels = {sample.labels.get("circuit_name", label) for metric in found for sample in metric.samples}
        assert labels == {label}


# -- arguments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"registry": 7}, TypeError, "registry must be a prometheus_client.CollectorRegistry, got 7 (int)"),
        (
            {"registry": CollectorRegistry},
            TypeError,
            "registry must be a prometheus_client.CollectorRegistry, got <cla",
        ),
        ({"exemplars": 1}, TypeError, "exemplars must be True or False, got 1 (int)"),
        ({"buckets": 0.1}, TypeError, "buckets must be an iterable, such as a list of one, got 0.1 (float)"),
        ({"buckets": ()}, ValueError, "buckets must be rising upper bounds in seconds, such as (0.1, 0.5), got ()"),
        ({"buckets": (1, 0.5)}, ValueError, "buckets must be rising upper bounds in seconds"),
        ({"buckets": (1, 1)}, ValueError, "buckets must be rising upper bounds in seconds"),
        ({"buckets": (float("inf"),)}, ValueError, "buckets must be rising upper bounds in seconds"),
        ({"buckets": (1, float("inf"), float("inf"))}, ValueError, "buckets must be rising upper bounds in seconds"),
        ({"buckets": (0, 1)}, ValueError, "each of buckets (seconds) must be a number and above 0, got 0 (int)"),
        ({"buckets": (float("nan"),)}, ValueError, "each of buckets (seconds) must be a number and above 0, got nan"),
        ({"buckets": ("0.5",)}, TypeError, "each of buckets (seconds) must be a number and above 0, got '0.5' (str)"),
    ],
)
def test_wrong_arguments_are_quoted(options: dict[str, Any], error: type[Exception], said: str) -> None:
    """An argument that is not what it must be is named and quoted, and nothing is registered."""
    registry = CollectorRegistry()
    with pytest.raises(error) as caught:
        PrometheusListener(**{"registry": registry, **options})
    assert str(caught.value).startswith(said)
    assert list(registry.collect()) == []


def test_buckets_of_one_registry_are_the_same(metrics: Metrics) -> None:
    """A second listener with other buckets is refused, in words; with equal ones, infinity included, it is not."""
    metrics.listener(buckets=[0.5, 1])
    metrics.listener(buckets=(0.5, 1.0, float("inf")))
    with pytest.raises(ValueError, match=r"the same for all listeners of one registry: it has \(0.5, 1.0\), got \(0.5"):
        metrics.listener(buckets=(0.5, 2))


def test_a_registry_with_such_a_metric_stays_as_it_was() -> None:
    """Where somebody else has one of the names, the client's own error says so and nothing is left behind."""
    registry = CollectorRegistry()
    mine = prometheus_client.Gauge("circuit_breaker_failure_rate", "mine", registry=registry)
    with pytest.raises(ValueError, match="circuit_breaker_failure_rate"):
        PrometheusListener(registry)
    assert [metric.documentation for metric in registry.collect()] == ["mine"]
    registry.unregister(mine)
    PrometheusListener(registry)


def test_a_registry_that_nobody_needs_goes() -> None:
    """The metrics of a registry do not keep it alive."""
    import weakref

    registry = CollectorRegistry()
    PrometheusListener(registry)
    gone = weakref.ref(registry)
    del registry
    gc.collect()
    assert gone() is None


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without prometheus-client one sentence says who needs it and which extra brings it."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(MissingExtraError) as caught:
        PrometheusListener()
    assert str(caught.value) == (
        "PrometheusListener needs prometheus-client, which is not installed: "
        "install Fluxgate with its extra 'prometheus'"
    )


# -- published ----------------------------------------------------------------------------------------------------


def test_it_is_published_and_automatic() -> None:
    """`load` finds it by name, and `observe` attaches it, on the client's own registry."""
    assert load("prometheus") is PrometheusListener
    assert PrometheusListener.automatic == "prometheus"
    source = """
from prometheus_client import REGISTRY
from fluxgate import Bus, CircuitBreaker
bus = Bus()
bus.observe()
cb = CircuitBreaker("payments", bus=bus)
print(REGISTRY.get_sample_value("circuit_breaker_state", {"circuit_name": "payments", "state": "closed"}))
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert done.stdout == "1.0\n"


def test_the_examples_in_its_documentation_run() -> None:
    """The docstrings' examples give what they show."""
    found = [doctest.testmod(module) for module in (prometheus, shared)]
    assert [result.failed for result in found] == [0, 0]
    assert found[0].attempted


@pytest.mark.parametrize("page", ["prometheus", "opentelemetry-metrics"])
def test_the_table_of_metrics_is_true(page: str) -> None:
    """The page lists each metric with its type, its labels and what it says."""
    text = (ROOT / "docs" / "listeners" / f"{page}.md").read_text("utf-8")
    table = text.split("| metric |", 1)[1].split("\n\n", 1)[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    shown = [(row[0].strip("`"), row[1], tuple(re.findall(r"`(\w+)`", row[2])), *row[3:]) for row in rows]
    if page == "prometheus":
        expected: list[Any] = [(each.series, each.kind, each.labels, each.help) for each in names.INSTRUMENTS]
    else:
        expected = [
            (each.name, each.kind, each.labels, each.unit and f"`{each.unit}`", each.help) for each in names.INSTRUMENTS
        ]
    assert shown == expected


def test_moves_are_legal() -> None:
    """What is shown from the beginning is what the machine allows, each once."""
    for moves in (shared.MOVES_OF_ITS_OWN, shared.MOVES_IN_PROCESS):
        assert len(set(moves)) == len(moves)
        assert set(moves) <= set(itertools.permutations(State, 2))
