"""AlertListener: each rule fires once and resolves once, on time that passes also while nobody calls."""

from __future__ import annotations

import doctest
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fluxgate.dashboards
from fluxgate import (
    AsyncCircuitBreaker,
    Bus,
    CallNotPermittedError,
    CircuitBreaker,
    Closed,
    Cooldown,
    CountWindow,
    FailureStreak,
    Never,
    State,
    permits,
)
from fluxgate.events import CallRejected, EventsDropped, ListenerFailed, StateChanged
from fluxgate.listeners import _alertrules as rules
from fluxgate.listeners import alerts as module
from fluxgate.listeners import load, names
from fluxgate.listeners._alertwatch import Rejections
from fluxgate.listeners.alerts import (
    DEFAULT_ALERTS,
    Alert,
    AlertListener,
    AlertRule,
    CircuitFlapping,
    CircuitOpen,
    CircuitStuckOpen,
    EventsLost,
    ListenerFailing,
    RejectingCalls,
    SlowCircuit,
)
from fluxgate.testing import VirtualClock
from tests.faces import finish

ROOT = Path(__file__).parents[1]


def fail(text: str = "no route") -> None:
    raise ConnectionError(text)


async def fine() -> None: ...


def try_to(call: Callable[..., object], *args: Any) -> None:
    """Whatever comes of it."""
    try:
        finish(call(*args))
    except (ConnectionError, CallNotPermittedError):
        pass


class Shop:
    """A listener that keeps its alerts, and circuits that it hears; all on one clock and one bus."""

    def __init__(self, *of: AlertRule, attach: bool = True, **options: Any) -> None:
        self.told: list[Alert] = []
        self.clock = VirtualClock()
        self.bus = Bus()
        options = {"sink": self.told.append, "clock": self.clock, **options}
        self.listener = AlertListener(of or DEFAULT_ALERTS, **options)
        if attach:
            self.subscription = self.bus.attach(self.listener)

    def circuit(self, name: str = "payments", breaker: type[Any] = CircuitBreaker, **more: Any) -> Any:
        """A circuit that one failure opens for a minute, and that one success closes."""
        settings = {
            "tripper": Closed() & FailureStreak(1),
            "retry": Cooldown(60),
            "permit": permits.All(),
            "bus": self.bus,
            "clock": self.clock,
            **more,
        }
        return breaker(name, **settings)

    def wait(self, seconds: float) -> None:
        """Let time pass, with a tick at its end."""
        self.clock.advance(seconds)
        self.listener.tick()

    @property
    def news(self) -> list[str]:
        """What was told since the last time, each as ``status Alert``."""
        news = [f"{alert.status} {alert.alert}" for alert in self.told]
        self.told.clear()
        return news


def open_and_close(shop: Shop, cb: Any, outage: float = 60) -> None:
    """One outage that ends by itself."""
    try_to(cb.call, fail)
    shop.clock.advance(outage)
    cb.call(str)


# -- CircuitOpen --------------------------------------------------------------------------------------------------


def test_an_opening_fires_and_explains_itself() -> None:
    """The alert says since when, why, on which figures, with which error, and where to look it up."""
    shop = Shop(CircuitOpen(), runbooks="https://wiki.example/runbooks/")
    cb = shop.circuit(tripper=FailureStreak(2))
    try_to(cb.call, fail, "timed out")
    shop.clock.advance(5)
    try_to(cb.call, fail)
    (alert,) = shop.told
    assert (alert.alert, alert.status, alert.severity, alert.circuit_name) == (
        "CircuitOpen",
        "firing",
        "warning",
        "payments",
    )
    assert alert.summary == "circuit 'payments' is open: 2 failures in a row (limit 2)"
    assert alert.reason == "2 failures in a row (limit 2)"
    assert alert.runbook == "https://wiki.example/runbooks/CircuitOpen.md"
    assert (alert.since, alert.timestamp, alert.failing_since) == (1_700_000_005.0, 1_700_000_005.0, 1_700_000_000.0)
    assert str(alert.last_error) == "ConnectionError: no route"
    assert alert.metrics is not None
    assert (alert.metrics.failure_count, alert.metrics.failure_rate) == (2, 1.0)
    assert alert.listener is alert.trace_id is alert.span_id is None


def test_probing_and_opening_again_is_the_same_outage() -> None:
    """It fires once however often recovery fails, and resolves at the end, with how long it took."""
    shop = Shop(CircuitOpen())
    cb = shop.circuit(tripper=FailureStreak(1))
    for _ in range(3):
        try_to(cb.call, fail)
        shop.wait(60)
    assert shop.news == ["firing CircuitOpen"]
    cb.call(str)
    (alert,) = shop.told
    assert (alert.status, alert.severity, alert.since) == ("resolved", "warning", 1_700_000_000.0)
    assert re.fullmatch(r"circuit 'payments' is closed: .+; it lasted 180 s", alert.summary)
    assert alert.timestamp == 1_700_000_180.0
    assert alert.reason == "1 failure in a row (limit 1)", "what has resolved repeats why it had fired"


@pytest.mark.parametrize(
    ("control", "resolves"),
    [("reset", True), ("disable", True), ("metrics_only", True), ("force_open", False)],
)
def test_a_person_ends_an_outage_or_keeps_it(control: str, resolves: bool) -> None:
    """Closed, disabled or only measured by hand, a circuit has recovered; forced open, it has not."""
    shop = Shop(CircuitOpen())
    cb = shop.circuit()
    try_to(cb.call, fail)
    getattr(cb, control)()
    assert shop.news == ["firing CircuitOpen", "resolved CircuitOpen"][: 1 + resolves]
    cb.reset()
    assert shop.news == ([] if resolves else ["resolved CircuitOpen"])


def test_what_a_person_has_opened_is_information() -> None:
    """A circuit that is forced open fires at the severity info, since somebody knows."""
    shop = Shop(CircuitOpen(severity="critical"))
    cb = shop.circuit()
    cb.force_open()
    cb.force_open()
    (alert,) = shop.told
    assert (alert.severity, alert.summary) == ("info", "circuit 'payments' is forced open: forced open by hand")
    cb.reset()
    try_to(cb.call, fail)
    assert [alert.severity for alert in shop.told] == ["info", "info", "critical"]


def test_shadow_mode_and_healthy_circuits_are_quiet() -> None:
    """What would have opened, a disabled circuit and successes are no alert, and nothing of them is kept."""
    shop = Shop()
    cb = shop.circuit()
    cb.call(str)
    cb.metrics_only()
    try_to(cb.call, fail)
    cb.disable()
    cb.reset()
    shop.wait(1000)
    assert shop.news == []
    assert shop.listener._watches == {}


def test_the_trace_of_the_trip_is_told() -> None:
    """Trace and span ids are those of the call that opened the circuit, also when it resolves in another."""
    trace = pytest.importorskip("opentelemetry.sdk.trace")
    tracer = trace.TracerProvider().get_tracer("test")
    shop = Shop(CircuitOpen(), CircuitStuckOpen(for_=30), RejectingCalls(rate=1, within=3), CircuitFlapping(2, 600))
    cb = shop.circuit()
    with tracer.start_as_current_span("pay") as span:
        try_to(cb.call, fail)
    with tracer.start_as_current_span("pay again"):
        for _ in range(3):
            try_to(cb.call, fail)
    shop.wait(60)
    with tracer.start_as_current_span("probe"):
        cb.call(str)
    context = span.get_span_context()
    ids = (f"{context.trace_id:032x}", f"{context.span_id:016x}")
    assert len(shop.told) == 7
    assert {(alert.trace_id, alert.span_id) for alert in shop.told} == {ids}


# -- CircuitStuckOpen ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "fires"), [(299.9, False), (300, True), (3000, True)])
def test_a_circuit_that_stays_open_fires_while_nobody_calls(seconds: float, fires: bool) -> None:
    """Once it has been open for `for_` seconds the alert fires, without any call or event."""
    shop = Shop(CircuitStuckOpen(for_=300))
    cb = shop.circuit()
    try_to(cb.call, fail)
    assert shop.news == []
    shop.wait(seconds)
    assert shop.news == ["firing CircuitStuckOpen"] * fires
    shop.wait(1)
    shop.wait(1)
    assert shop.news == ["firing CircuitStuckOpen"] * (fires is False and seconds + 2 >= 300)
    cb.reset()
    assert shop.news == ["resolved CircuitStuckOpen"]


def test_failed_probes_do_not_start_its_time_anew() -> None:
    """Open, half-open and open again is one stretch; since is when it began, and the reason that of the beginning."""
    shop = Shop(CircuitStuckOpen(for_=150))
    cb = shop.circuit(tripper=FailureStreak(1))
    for _ in range(3):
        try_to(cb.call, fail)
        shop.wait(60)
    (alert,) = shop.told
    assert (alert.severity, alert.since) == ("critical", 1_700_000_000.0)
    assert alert.summary == "circuit 'payments' has not closed for 180 s: 1 failure in a row (limit 1)"


def test_a_recovery_in_time_is_no_alert() -> None:
    """Two outages shorter than `for_` do not add up."""
    shop = Shop(CircuitStuckOpen(for_=100))
    cb = shop.circuit()
    for _ in range(2):
        open_and_close(shop, cb)
    shop.wait(1000)
    assert shop.news == []


def test_a_circuit_in_somebodys_hands_is_not_stuck() -> None:
    """Forced open, by itself or after opening, it is somebody's decision: what had fired resolves."""
    shop = Shop(CircuitStuckOpen(for_=10))
    cb = shop.circuit(retry=Never())
    cb.force_open()
    shop.wait(1000)
    cb.reset()
    assert shop.news == []
    try_to(cb.call, fail)
    shop.wait(10)
    assert shop.news == ["firing CircuitStuckOpen"]
    cb.force_open()
    assert shop.news == ["resolved CircuitStuckOpen"]


def test_a_wall_clock_that_jumps_neither_shortens_nor_prolongs() -> None:
    """Time is counted by the monotonic clock."""
    shop = Shop(CircuitStuckOpen(for_=100))
    cb = shop.circuit()
    try_to(cb.call, fail)
    shop.clock.set_time(shop.clock.time() + 86_400)
    shop.wait(99)
    assert shop.news == []
    shop.clock.set_time(1_600_000_000)
    shop.wait(1)
    assert shop.news == ["firing CircuitStuckOpen"]
    assert cb.state is State.OPEN


# -- CircuitFlapping ----------------------------------------------------------------------------------------------


def test_false_recoveries_fire_at_the_change_that_makes_the_number() -> None:
    """The sixth opening or closing within ten minutes fires; the first of them is since."""
    shop = Shop(CircuitFlapping())
    cb = shop.circuit()
    for _ in range(2):
        open_and_close(shop, cb)
    try_to(cb.call, fail)
    assert shop.news == []
    shop.clock.advance(60)
    cb.call(str)
    (alert,) = shop.told
    assert (alert.alert, alert.since) == ("CircuitFlapping", 1_700_000_000.0)
    assert alert.summary == "circuit 'payments' opened or closed 6 times in 180 s: 1 failure in a row (limit 1)"
    assert str(alert.last_error) == "ConnectionError: no route"


@pytest.mark.parametrize(("pause", "fires"), [(40, True), (41, False)])
def test_changes_count_within_their_time(pause: float, fires: bool) -> None:
    """First and last may lie exactly `within` seconds apart, and not more."""
    shop = Shop(CircuitFlapping(changes=3, within=100))
    cb = shop.circuit()
    open_and_close(shop, cb)
    shop.clock.advance(pause)
    try_to(cb.call, fail)
    assert shop.news == ["firing CircuitFlapping"] * fires


def test_it_is_over_after_a_quiet_time() -> None:
    """It resolves once nothing changed for `within` seconds: each further change prolongs it, and none repeats it."""
    shop = Shop(CircuitFlapping(changes=2, within=100))
    cb = shop.circuit()
    open_and_close(shop, cb)
    open_and_close(shop, cb)
    shop.wait(99.9)
    assert shop.news == ["firing CircuitFlapping"]
    shop.wait(0.1)
    (alert,) = shop.told
    assert alert.summary == "circuit 'payments' has neither opened nor closed for 100 s"
    assert shop.news == ["resolved CircuitFlapping"]
    try_to(cb.call, fail)
    assert shop.news == [], "it begins to count anew"


def test_neither_people_nor_failed_probes_flap() -> None:
    """What somebody does by hand does not count, nor half-opening and opening again."""
    shop = Shop(CircuitFlapping(changes=2, within=1e6))
    cb = shop.circuit(tripper=FailureStreak(1))
    for _ in range(5):
        cb.force_open()
        cb.reset()
    for _ in range(5):
        try_to(cb.call, fail)
        shop.wait(60)
    cb.reset()
    assert shop.news == []


# -- RejectingCalls -----------------------------------------------------------------------------------------------


def refuse(shop: Shop, cb: Any, calls: int, every: float = 0.0) -> None:
    for _ in range(calls):
        try_to(cb.call, fail)
        shop.clock.advance(every)


@pytest.mark.parametrize(
    ("rate", "within", "needed"), [(1, 60, 60), (0.5, 10, 5), (0.07, 100, 7), (1 / 3, 60, 20), (0.001, 1, 1)]
)
def test_refusals_fire_at_their_rate(rate: float, within: float, needed: int) -> None:
    """The refusal that makes ``rate * within`` of them within `within` seconds fires, none before."""
    shop = Shop(RejectingCalls(rate, within))
    cb = shop.circuit(retry=Cooldown(1000))
    try_to(cb.call, fail)
    refuse(shop, cb, needed - 1)
    assert shop.news == []
    refuse(shop, cb, 1)
    (alert,) = shop.told
    calls = "1 call" if needed == 1 else f"{needed} calls"
    assert alert.summary.startswith(f"circuit 'payments' refused {calls} within {within:g} s (limit {rate:g} a second)")
    assert (alert.severity, alert.reason) == ("warning", "1 failure in a row (limit 1)")
    refuse(shop, cb, 100)
    assert len(shop.told) == 1


def test_refusals_that_are_few_do_not_add_up() -> None:
    """Below the rate it never fires, however long that lasts."""
    shop = Shop(RejectingCalls(rate=1, within=10))
    cb = shop.circuit(retry=Cooldown(10_000))
    try_to(cb.call, fail)
    refuse(shop, cb, 200, every=1.25)
    assert shop.news == []


def test_refusals_resolve_when_they_are_fewer_than_half() -> None:
    """It resolves by time alone, once the last `within` seconds hold fewer than half of the limit."""
    shop = Shop(RejectingCalls(rate=1, within=10))
    cb = shop.circuit(retry=Cooldown(10_000))
    try_to(cb.call, fail)
    refuse(shop, cb, 10)
    shop.wait(5)
    refuse(shop, cb, 5)
    shop.wait(5)
    assert shop.news == ["firing RejectingCalls"], "the five of the last seconds are half of ten"
    shop.wait(5)
    (alert,) = shop.told
    assert alert.summary == "circuit 'payments' refused 0 calls within 10 s, less than half the limit"
    assert alert.status == "resolved"


def test_since_is_the_first_refusal_of_an_unbroken_run() -> None:
    """A pause of `within` seconds ends a run; what was refused before it is another story."""
    shop = Shop(RejectingCalls(rate=1, within=10))
    cb = shop.circuit(retry=Cooldown(10_000))
    try_to(cb.call, fail)
    refuse(shop, cb, 3)
    shop.clock.advance(20)
    refuse(shop, cb, 9, every=0.5)
    refuse(shop, cb, 1)
    (alert,) = shop.told
    assert alert.since == 1_700_000_020.0


def test_what_a_person_refuses_is_not_counted() -> None:
    """Calls that are refused because somebody forced the circuit open are no alert."""
    shop = Shop(RejectingCalls(rate=1, within=1))
    cb = shop.circuit()
    cb.force_open()
    refuse(shop, cb, 50)
    assert shop.news == []
    assert shop.listener._watches == {}


def test_a_million_refusals_take_no_room() -> None:
    """Refusals are counted in ten slices of time."""
    shop = Shop(RejectingCalls(rate=1e6, within=10))
    cb = shop.circuit(retry=Cooldown(10_000))
    try_to(cb.call, fail)
    refuse(shop, cb, 3000, every=0.01)
    (watch,) = shop.listener._watches["payments"].values()
    assert isinstance(watch, Rejections)
    assert len(watch._slices) <= 11


# -- SlowCircuit --------------------------------------------------------------------------------------------------


_varying = itertools.count()


def slow_call(shop: Shop, cb: Any, seconds: float) -> None:
    """One call, and a tick; no two take the same time, as in life, so that the window's sums change."""
    cb.call(shop.clock.advance, seconds + next(_varying) * 1e-9)
    shop.listener.tick()


def test_a_circuit_that_stays_slow_fires() -> None:
    """Once its window has been slow for `for_` seconds without a break, and says on which figures."""
    shop = Shop(SlowCircuit(slow_rate=0.5, min_calls=4, for_=60))
    cb = shop.circuit(slow_threshold=2, window=CountWindow(10))
    for _ in range(30):
        slow_call(shop, cb, 2.5)
    (alert,) = shop.told
    assert (alert.alert, alert.severity) == ("SlowCircuit", "warning")
    assert alert.reason == "10 calls seen (4 needed) and slow rate 100.0 % (limit 50.0 %, 10 of 10 calls)"
    assert alert.summary == f"circuit 'payments' is slow: {alert.reason}"
    assert alert.metrics is not None
    assert (alert.metrics.total_count, alert.metrics.slow_count) == (10, 10)
    assert 60 <= alert.timestamp - alert.since < 70


@pytest.mark.parametrize(
    ("rule", "slow"),
    [
        ({"slow_rate": 0.5}, True),
        ({"slow_rate": 0.51}, False),
        ({"slow_rate": None, "avg_duration": 1.5}, True),
        ({"slow_rate": None, "avg_duration": 1.6}, False),
        ({"slow_rate": 0.9, "avg_duration": 1.5}, True),
        ({"slow_rate": 0.5, "min_calls": 11}, False),
    ],
)
def test_what_is_slow(rule: dict[str, Any], slow: bool) -> None:
    """A share of slow calls or a mean duration that reaches the limit, on enough calls."""
    shop = Shop(SlowCircuit(**{"min_calls": 10, "for_": 60, **rule}))
    cb = shop.circuit(slow_threshold=2, window=CountWindow(10))
    for _ in range(40):
        slow_call(shop, cb, 1.0)
        slow_call(shop, cb, 2.0)
    assert shop.news == ["firing SlowCircuit"] * slow


def test_a_break_starts_its_time_anew() -> None:
    """What is slow for less than `for_` seconds at a time never fires."""
    shop = Shop(SlowCircuit(min_calls=1, for_=60))
    cb = shop.circuit(slow_threshold=2, window=CountWindow(1))
    for _ in range(10):
        for _ in range(5):
            slow_call(shop, cb, 10)
        slow_call(shop, cb, 1)
        shop.wait(6)
    assert shop.news == []


def test_it_resolves_after_as_long_without() -> None:
    """It resolves once the circuit has not been slow for `for_` seconds, and a relapse meanwhile prolongs it."""
    shop = Shop(SlowCircuit(min_calls=1, for_=60))
    cb = shop.circuit(slow_threshold=2, window=CountWindow(1))
    for _ in range(8):
        slow_call(shop, cb, 10)
    assert shop.news == ["firing SlowCircuit"]
    slow_call(shop, cb, 1)
    for _ in range(5):
        shop.wait(10)
    slow_call(shop, cb, 10)
    slow_call(shop, cb, 1)
    for _ in range(6):
        shop.wait(10)
    assert shop.news == []
    shop.wait(10)
    assert shop.told[0].summary == "circuit 'payments' has not been slow for 60 s"
    assert shop.news == ["resolved SlowCircuit"]
    assert shop.listener._watches == {}


def test_it_stays_while_the_circuit_is_out() -> None:
    """An open circuit hardly calls: whether it is slow nobody knows, so what fires stays until it has closed."""
    shop = Shop(SlowCircuit(min_calls=1, for_=60))
    cb = shop.circuit(slow_threshold=2, window=CountWindow(1))
    for _ in range(8):
        slow_call(shop, cb, 10)
    assert shop.news == ["firing SlowCircuit"]
    try_to(cb.call, fail)
    for _ in range(30):
        shop.wait(10)
    assert shop.news == []
    cb.reset()
    for _ in range(7):
        shop.wait(10)
    assert shop.news == ["resolved SlowCircuit"]


def test_an_old_window_is_no_evidence() -> None:
    """A circuit that was slow once and has not been called since is not slow for ever: it never fires, or resolves."""
    shop = Shop(SlowCircuit(min_calls=1, for_=60))
    cb = shop.circuit(slow_threshold=2)
    slow_call(shop, cb, 10)
    for _ in range(50):
        shop.wait(10)
    assert shop.news == []
    for _ in range(8):
        slow_call(shop, cb, 10)
    assert shop.news == ["firing SlowCircuit"]
    for _ in range(13):
        shop.wait(10)
    assert shop.news == ["resolved SlowCircuit"]


# -- ListenerFailing and EventsLost -------------------------------------------------------------------------------


def broken(event: object) -> None:
    raise OSError("disk full")


def test_a_listener_that_keeps_failing_fires() -> None:
    """At the third failure within five minutes, over whichever circuits; it resolves after as long without."""
    shop = Shop(ListenerFailing())
    shop.bus.attach(broken)
    first, second = shop.circuit("first"), shop.circuit("second")
    first.force_open()
    shop.clock.advance(150)
    second.force_open()
    shop.clock.advance(150)
    assert shop.news == []
    first.reset()
    (alert,) = shop.told
    assert (alert.alert, alert.listener, alert.circuit_name) == ("ListenerFailing", "broken", "first")
    assert alert.summary == "listener broken failed 3 times in 300 s: OSError: disk full"
    assert (alert.since, str(alert.last_error)) == (1_700_000_000.0, "OSError: disk full")
    shop.told.clear()
    second.reset()
    first.retire()
    shop.wait(299)
    assert shop.news == [], "circuits come and go, the listener still fails"
    shop.wait(1)
    assert shop.told[0].summary == "broken has not failed for 300 s"
    assert shop.news == ["resolved ListenerFailing"]
    assert shop.listener._watches == {}


def test_a_rule_of_the_programs_own_that_raises_fires() -> None:
    """A tracker's failures count for its circuit, and are over when that retires."""

    class Odd:
        def __call__(self, error: Exception) -> bool:
            raise LookupError("no such rule")

    shop = Shop(ListenerFailing(failures=2))
    cb = shop.circuit(tracker=Odd(), tripper=FailureStreak(100))
    other = shop.circuit("other", tracker=Odd(), tripper=FailureStreak(100))
    try_to(cb.call, fail)
    try_to(other.call, fail)
    assert shop.news == []
    try_to(cb.call, fail)
    (alert,) = shop.told
    assert re.match(r"tracker .*Odd.* of circuit 'payments' failed 2 times in 0 s: LookupError: ", alert.summary)
    cb.retire()
    shop.listener.tick()
    assert [alert.summary for alert in shop.told[1:]] == ["circuit 'payments' has retired"]


def test_one_failure_can_be_enough() -> None:
    """`failures=1` fires at the first."""
    shop = Shop(ListenerFailing(failures=1))
    shop.bus.attach(broken)
    shop.circuit().force_open()
    assert [alert.summary for alert in shop.told] == ["listener broken failed once in 0 s: OSError: disk full"]


def lost(listener: str = "Webhook", count: int = 12, at: float = 1_700_000_000.0) -> EventsDropped:
    return EventsDropped(
        circuit_name="payments", timestamp=at, sequence=7, state=State.OPEN, listener=listener, count=count
    )


def test_a_listener_that_loses_events_fires() -> None:
    """At the first loss; it resolves once there was none for `within` seconds, and each listener has its own."""
    shop = Shop(EventsLost(within=100))
    shop.listener(lost())
    shop.clock.advance(60)
    shop.listener(lost(count=1, at=shop.clock.time()))
    shop.listener(lost("Slack", count=1, at=shop.clock.time()))
    assert [alert.summary for alert in shop.told] == [
        "listener Webhook is too slow: 12 events of its queue went unseen",
        "listener Slack is too slow: 1 event of its queue went unseen",
    ]
    assert [(alert.listener, alert.since) for alert in shop.told] == [("Webhook", 1.7e9), ("Slack", 1.7e9 + 60)]
    assert len({alert.fingerprint for alert in shop.told}) == 2
    shop.told.clear()
    shop.wait(99)
    assert shop.news == []
    shop.wait(1)
    assert {alert.summary for alert in shop.told} == {
        "listener Webhook has lost nothing for 100 s",
        "listener Slack has lost nothing for 100 s",
    }


# -- all rules together -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("breaker", [CircuitBreaker, AsyncCircuitBreaker])
def test_an_outage_of_either_breaker_from_beginning_to_end(breaker: type[Any]) -> None:
    """The default rules over a long outage: it opens, refuses, stays open, recovers; each is told once."""
    shop = Shop()
    cb = shop.circuit(breaker=breaker)
    try_to(cb.call, fail)
    assert shop.news == ["firing CircuitOpen"]
    refuse(shop, cb, 60)
    assert shop.news == ["firing RejectingCalls"]
    shop.wait(59)
    shop.wait(1)
    assert shop.news == ["resolved RejectingCalls"]
    shop.wait(240)
    assert shop.news == ["firing CircuitStuckOpen"]
    finish(cb.call(fine if breaker is AsyncCircuitBreaker else str))
    assert shop.news == ["resolved CircuitOpen", "resolved CircuitStuckOpen"]
    shop.wait(3600)
    assert shop.news == []
    assert shop.listener._watches == {}


def test_only_what_the_rules_need_is_asked_for() -> None:
    """Refused calls are asked for by RejectingCalls alone, since they then take the circuit's lock."""
    assert CallRejected in AlertListener(sink=print).events
    assert CallRejected not in AlertListener([CircuitOpen(), SlowCircuit()], print).events
    assert StateChanged not in AlertListener([SlowCircuit()], print).events
    assert ListenerFailed in AlertListener([ListenerFailing()], print).events
    shop = Shop(CircuitOpen(), SlowCircuit(), CircuitFlapping())
    cb = shop.circuit()
    cb.call(str)
    assert cb._core.lane is not None
    try_to(cb.call, fail)
    assert cb._core.gate is not None, "refusals take no lock"


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (DEFAULT_ALERTS, 1.0),
        ([CircuitOpen()], 1.0),
        ([CircuitStuckOpen(for_=5), CircuitFlapping()], 0.5),
        ([RejectingCalls(within=0.1)], 0.05),
    ],
)
def test_how_often_it_looks(given: Any, seconds: float) -> None:
    """A tenth of the shortest time that a rule names, from 50 ms to a second; never with a clock for tests."""
    assert AlertListener(given, print).tick_interval == seconds
    assert AlertListener(given, print, clock=VirtualClock()).tick_interval is None


# -- arguments ----------------------------------------------------------------------------------------------------


async def coroutine(alert: Alert) -> None: ...


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: AlertListener(CircuitOpen()), TypeError, "rules must be an iterable, such as a list of one, got"),  # type: ignore[arg-type]
        (lambda: AlertListener([]), ValueError, "rules must be one alert rule or several, got none"),
        (lambda: AlertListener([CircuitOpen]), TypeError, r"got the class CircuitOpen: pass an instance"),  # type: ignore[list-item]
        (lambda: AlertListener(["CircuitOpen"]), TypeError, "rules must be alert rules, got 'CircuitOpen'"),  # type: ignore[list-item]
        (lambda: AlertListener([CircuitOpen(), CircuitOpen("info")]), ValueError, "rules must differ in kind"),
        (lambda: AlertListener(sink="log"), TypeError, "sink must be a logger or a callable, got 'log'"),
        (lambda: AlertListener(sink=[]), ValueError, "sink must be a logger, a callable or several, got none"),
        (lambda: AlertListener(sink=dict), TypeError, "sink must be a logger or a callable, got the class dict"),
        (lambda: AlertListener(sink=coroutine), TypeError, "must be a plain callable, got the coroutine function"),
        (lambda: AlertListener(runbooks=" "), ValueError, "runbooks must not be empty, got ' '"),
        (lambda: AlertListener(runbooks=5), TypeError, "runbooks must be a str, got 5"),  # type: ignore[arg-type]
        (lambda: AlertListener(clock=5), TypeError, "clock must be an object with monotonic"),  # type: ignore[arg-type]
        (lambda: CircuitOpen("urgent"), ValueError, "severity must be one of .*'info', got 'urgent'"),  # type: ignore[arg-type]
        (lambda: CircuitStuckOpen(0), ValueError, r"for_ must be a finite number and above 0, got 0"),
        (lambda: CircuitStuckOpen("5m"), TypeError, "for_ must be .* got '5m'"),  # type: ignore[arg-type]
        (lambda: CircuitFlapping(1), ValueError, "changes must be a whole number of at least 2, got 1"),
        (lambda: CircuitFlapping(within=float("nan")), ValueError, "within must be .* got nan"),
        (lambda: RejectingCalls(0), ValueError, "rate must be .* above 0, got 0"),
        (lambda: RejectingCalls(within=-1), ValueError, "within must be .* above 0, got -1"),
        (lambda: SlowCircuit(None), ValueError, "SlowCircuit needs slow_rate or avg_duration, got neither"),
        (lambda: SlowCircuit(1.5), ValueError, "slow_rate must be .* at most 1, got 1.5"),
        (lambda: SlowCircuit(avg_duration=0), ValueError, "avg_duration must be .* above 0, got 0"),
        (lambda: SlowCircuit(min_calls=0), ValueError, "min_calls must be .* at least 1, got 0"),
        (lambda: ListenerFailing(0), ValueError, "failures must be .* at least 1, got 0"),
        (lambda: EventsLost(True), TypeError, "within must be .* got True"),
    ],
)
def test_wrong_arguments_are_quoted(make: Callable[[], object], error: type[Exception], text: str) -> None:
    """Each wrong argument is refused with what it must be and what was got."""
    with pytest.raises(error, match=text):
        make()


@pytest.mark.parametrize("rule", DEFAULT_ALERTS, ids=lambda rule: rule.alert.name)
def test_a_rule_is_a_value(rule: AlertRule) -> None:
    """Its repr makes it again, equal rules are equal, and nothing of it can be changed."""
    again = eval(repr(rule), dict(vars(rules)))
    assert again == rule
    assert hash(again) == hash(rule)
    with pytest.raises(AttributeError, match="immutable"):
        rule.severity = "info"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    assert type(rule)(severity="info").severity == "info"


# -- one catalogue ------------------------------------------------------------------------------------------------


def test_there_is_one_rule_for_each_alert_of_the_catalogue() -> None:
    """The default rules are the catalogue's alerts, each with the catalogue's severity."""
    assert tuple(rule.alert for rule in DEFAULT_ALERTS) == names.ALERTS
    for rule in DEFAULT_ALERTS:
        assert type(rule).__name__ == rule.alert.name
        assert rule.severity == rule.alert.severity
        assert rule.alert.severity in names.ALERT_LEVELS


@pytest.mark.parametrize("alert", names.PROMETHEUS_ALERTS, ids=lambda alert: alert.name)
def test_each_alert_has_its_runbook(alert: names.AlertName) -> None:
    """The page exists, also in the installed package, is about that alert, and answers the questions of the night."""
    page = Path(fluxgate.dashboards.__file__).parent / "runbooks" / alert.runbook
    text = page.read_text("utf-8")
    assert text.startswith(f"# {alert.name}\n")
    assert re.findall("^## (.*)$", text, re.MULTILINE) == [
        "What it means",
        "What users see",
        "Find the cause in two minutes",
        "What to do",
        "When to ignore it",
    ]
    assert alert.severity in text
    listed = {path.name for path in page.parent.glob("*.md")}
    assert {each.runbook for each in names.PROMETHEUS_ALERTS} == listed
    assert (ROOT / names.RUNBOOKS / alert.runbook).exists()
    words = {*names.LOG_LEVELS, names.ALERT_FIRING, names.ALERT_RESOLVED, *(each.name for each in names.ALERTS)}
    for word in re.findall(r"`((?:circuit|call|calls|listener|events|alert)_[a-z_]+)`", text):
        series = {each.series for each in names.INSTRUMENTS}
        keys = {key for keys in names.LOG_KEYS.values() for key in keys}
        assert word in words | series | keys | {names.REJECTED, names.SUPPRESSED}, word


def test_it_is_published_as_alerts_and_observe_leaves_it_alone() -> None:
    """`load("alerts")` finds the class; `observe` does not attach it, since somebody must choose where alerts go."""
    assert load("alerts") is AlertListener
    assert not hasattr(AlertListener, "automatic")


def test_the_examples_in_its_documentation_run() -> None:
    """The docstrings' examples give what they show."""
    for each in (module, rules):
        assert doctest.testmod(each).failed == 0
