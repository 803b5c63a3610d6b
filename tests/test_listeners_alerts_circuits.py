"""AlertListener among circuits, listeners, threads and processes that come and go: told once, and nothing is kept."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fluxgate import AsyncCircuitBreaker, Bus, CircuitBreaker, Cooldown, FailureStreak, State
from fluxgate.events import StateChanged
from fluxgate.listeners import alerts as module
from fluxgate.listeners._alertwatch import Outage
from fluxgate.listeners.alerts import (
    DEFAULT_ALERTS,
    AlertListener,
    CircuitFlapping,
    CircuitOpen,
    CircuitStuckOpen,
    ListenerFailing,
    RejectingCalls,
    SlowCircuit,
)
from fluxgate.testing import EventRecorder
from tests.running import arrives, restless, run_async, script, together
from tests.test_listeners_alerts import Shop, broken, fail, lost, open_and_close, refuse, slow_call, try_to

# -- several circuits of one name ---------------------------------------------------------------------------------


def test_an_alert_speaks_of_all_circuits_of_its_name() -> None:
    """It fires with the first that opens, and resolves with the last that closes, at once."""
    shop = Shop(CircuitOpen())
    first, second, third = shop.circuit(), shop.circuit(), shop.circuit()
    first.force_open()
    second.force_open()
    first.reset()
    third.disable()
    third.reset()
    assert shop.news == ["firing CircuitOpen"]
    second.reset()
    assert shop.news == ["resolved CircuitOpen"]


@pytest.mark.parametrize("idle_first", [True, False])
def test_a_slow_window_that_nobody_uses_hides_no_slow_namesake(idle_first: bool) -> None:
    """Of two circuits of a name one is not called any more, its window slow for ever: the other fires all the same."""
    shop = Shop(SlowCircuit(min_calls=1, for_=60))
    circuits = [shop.circuit(slow_threshold=2), shop.circuit(slow_threshold=2)]
    idle, busy = circuits if idle_first else reversed(circuits)
    slow_call(shop, idle, 10)
    shop.wait(100)
    for _ in range(8):
        slow_call(shop, busy, 4)
        slow_call(shop, busy, 6)
    assert [(alert.metrics.avg_duration or 10) < 7 for alert in shop.told if alert.metrics] == [True], (
        "the one that is called"
    )
    assert shop.news == ["firing SlowCircuit"]
    for _ in range(13):
        shop.wait(10)
    assert shop.news == ["resolved SlowCircuit"]


def test_the_retirement_of_a_healthy_namesake_ends_nothing() -> None:
    """A closed circuit of the name that goes leaves the open one's alerts, and what was counted, as they are."""
    shop = Shop(CircuitOpen(), CircuitFlapping(changes=2, within=100), CircuitStuckOpen(for_=80))
    first, second = shop.circuit(), shop.circuit()
    open_and_close(shop, first)
    try_to(first.call, fail)
    assert shop.news == ["firing CircuitOpen", "resolved CircuitOpen", "firing CircuitFlapping", "firing CircuitOpen"]
    second.retire()
    shop.wait(79)
    assert shop.news == []
    shop.wait(1)
    assert shop.news == ["firing CircuitStuckOpen"]
    first.retire()
    shop.listener.tick()
    assert sorted(shop.news) == ["resolved CircuitFlapping", "resolved CircuitOpen", "resolved CircuitStuckOpen"]
    assert shop.listener._watches == {}


def test_an_open_namesake_that_retires_leaves_the_other_open() -> None:
    """Of two open circuits of a name one retires: the alert stays until the other has closed."""
    shop = Shop(CircuitOpen())
    first, second = shop.circuit(), shop.circuit()
    first.force_open()
    second.force_open()
    first.retire()
    shop.listener.tick()
    assert shop.news == ["firing CircuitOpen"]
    second.reset()
    assert shop.news == ["resolved CircuitOpen"]


# -- attached late, detached, retired -----------------------------------------------------------------------------


def test_a_circuit_that_is_open_already_fires_at_the_first_look() -> None:
    """Attached late it tells what is wrong now: since when, and on which window, though no event said so."""
    shop = Shop(CircuitOpen(), CircuitStuckOpen(for_=100), attach=False)
    cb, healthy = shop.circuit(), shop.circuit("healthy")
    try_to(cb.call, fail)
    shop.clock.advance(500)
    shop.bus.attach(shop.listener)
    assert shop.news == []
    shop.listener.tick()
    (alert,) = shop.told
    assert (alert.summary, alert.since) == ("circuit 'payments' is open", 1_700_000_000.0)
    assert alert.metrics is not None
    assert alert.metrics.failure_count == 1
    assert alert.reason is None
    shop.told.clear()
    shop.wait(99)
    assert shop.news == []
    shop.wait(1)
    assert shop.news == ["firing CircuitStuckOpen"]
    cb.call(str)
    assert shop.news == ["resolved CircuitOpen", "resolved CircuitStuckOpen"]
    assert healthy.state is State.CLOSED


def test_two_open_namesakes_found_by_a_look() -> None:
    """Both were open when the listener came: the alert resolves with the second."""
    shop = Shop(CircuitOpen(), attach=False)
    first, second = shop.circuit(), shop.circuit()
    first.force_open()
    second.force_open()
    shop.bus.attach(shop.listener)
    shop.listener.tick()
    first.reset()
    shop.listener.tick()
    assert shop.news == ["firing CircuitOpen"]
    second.reset()
    assert shop.news == ["resolved CircuitOpen"]


def moved(old: State, new: State, cb: CircuitBreaker) -> StateChanged:
    """A move of the circuit's, as the bus would tell it."""
    recorder = EventRecorder(StateChanged)
    twin = CircuitBreaker(cb.name, bus=Bus(), listeners=[recorder])
    twin.force_open()
    return recorder.of(StateChanged)[0].__replace__(old_state=old, new_state=new)


def test_news_that_comes_after_the_look_that_saw_it() -> None:
    """A move that was seen before it was told is not counted twice: the next tick sets that right."""
    shop = Shop(CircuitOpen(), attach=False)
    cb = shop.circuit()
    cb.force_open()
    shop.bus.attach(shop.listener)
    shop.listener.tick()
    shop.listener(moved(State.CLOSED, State.FORCED_OPEN, cb))
    shop.listener.tick()
    cb.reset()
    assert shop.news == ["firing CircuitOpen", "resolved CircuitOpen"]


def test_news_that_comes_during_a_look_is_newer(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a look has seen of a circuit that moves meanwhile is stale, and another look tells how it stands."""
    shop = Shop(CircuitOpen())
    cb = shop.circuit()
    look = module._infos
    meanwhile: list[Callable[[], object]] = [cb.force_open]

    def slow_look(*args: Any) -> Any:
        seen = look(*args)
        while meanwhile:
            meanwhile.pop()()
        return seen

    monkeypatch.setattr(module, "_infos", slow_look)
    shop.listener.tick()
    assert shop.news == ["firing CircuitOpen"]
    shop.listener.tick()
    assert shop.news == []
    shop.listener._anew = True
    meanwhile.append(cb.reset)
    shop.listener.tick()
    assert shop.news == ["resolved CircuitOpen"]
    for _ in range(3):
        shop.listener.tick()
    assert shop.news == []


def test_a_name_that_moved_during_a_look_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A namesake that opens and closes meanwhile hides for a tick that another was open before the listener came."""
    shop = Shop(CircuitOpen(), attach=False)
    first, second = shop.circuit(), shop.circuit()
    first.force_open()
    shop.bus.attach(shop.listener)
    look = module._infos

    def slow_look(*args: Any) -> Any:
        seen = look(*args)
        second.force_open()
        second.reset()
        return seen

    with monkeypatch.context() as patch:
        patch.setattr(module, "_infos", slow_look)
        shop.listener.tick()
    assert shop.news == ["firing CircuitOpen", "resolved CircuitOpen"]
    shop.listener.tick()
    assert shop.news == ["firing CircuitOpen"]


def test_an_open_circuit_that_moves_before_the_first_look() -> None:
    """A failed probe of a circuit that was open before the listener came says so at once, and why."""
    shop = Shop(CircuitOpen(), attach=False)
    cb = shop.circuit(tripper=FailureStreak(1))
    try_to(cb.call, fail)
    shop.bus.attach(shop.listener)
    shop.clock.advance(60)
    try_to(cb.call, fail)
    assert shop.news == ["firing CircuitOpen"]
    shop.listener.tick()
    shop.clock.advance(60)
    cb.call(str)
    shop.listener.tick()
    assert shop.news == ["resolved CircuitOpen"]


def deaf(shop: Shop, work: Callable[[], None]) -> None:
    """Do something that the listener does not hear of, as if its queue had been full."""
    shop.subscription.active = False
    work()
    shop.subscription.active = True


def test_a_look_that_fails_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next tick looks at everything once more."""
    shop = Shop(CircuitOpen())
    cb = shop.circuit()
    shop.listener.tick()
    deaf(shop, cb.force_open)
    shop.listener(lost("AlertListener"))
    with monkeypatch.context() as patch:
        patch.setattr(module, "_infos", broken)
        with pytest.raises(TypeError):
            shop.listener.tick()
    assert shop.news == []
    shop.listener.tick()
    assert shop.news == ["firing CircuitOpen"]


def test_events_of_its_own_that_went_are_made_up_for() -> None:
    """When its own queue was full it looks at the circuits again, finds what it missed and ends what is over."""
    shop = Shop(CircuitOpen())
    missed, over = shop.circuit("missed"), shop.circuit("over")
    shop.listener.tick()
    over.force_open()
    assert shop.news == ["firing CircuitOpen"]
    deaf(shop, missed.force_open)
    deaf(shop, over.reset)
    shop.listener.tick()
    assert shop.news == []
    shop.listener(lost("AlertListener"))
    shop.listener.tick()
    assert sorted(f"{alert.circuit_name}: {alert.status}" for alert in shop.told) == [
        "missed: firing",
        "over: resolved",
    ]


def test_detached_it_forgets_and_begins_anew() -> None:
    """Detaching resolves nothing, since nobody knows what comes; attached again it fires again for what is open."""
    shop = Shop(CircuitOpen(), CircuitStuckOpen(for_=100))
    cb = shop.circuit()
    try_to(cb.call, fail)
    assert shop.news == ["firing CircuitOpen"]
    shop.subscription.close()
    assert shop.listener._watches == {}
    cb.reset()
    try_to(cb.call, fail)
    shop.wait(1000)
    assert shop.news == []
    shop.bus.attach(shop.listener)
    shop.listener.tick()
    assert shop.news == ["firing CircuitOpen"]


def test_one_subscription_of_several_that_is_closed() -> None:
    """What is no longer observed is no longer firing; the others go on."""
    shop = Shop(CircuitOpen(), attach=False)
    first, second = shop.circuit("first"), shop.circuit("second")
    subscription = first.attach(shop.listener)
    second.attach(shop.listener)
    first.force_open()
    second.force_open()
    shop.listener.tick()
    subscription.close()
    shop.listener.tick()
    assert [(alert.circuit_name, alert.status, alert.summary) for alert in shop.told[2:]] == [
        ("first", "resolved", "circuit 'first' is no longer observed")
    ]
    second.reset()
    assert shop.news[-1] == "resolved CircuitOpen"


def test_attached_twice_it_tells_once() -> None:
    """To one circuit and to all of the bus: each alert comes once."""
    shop = Shop(CircuitOpen(), RejectingCalls(rate=1, within=5))
    cb = shop.circuit(listeners=[shop.listener])
    shop.listener.tick()
    try_to(cb.call, fail)
    refuse(shop, cb, 5)
    assert shop.news == ["firing CircuitOpen", "firing RejectingCalls"]


@pytest.mark.parametrize("global_", [True, False], ids=["of all circuits", "of its circuit alone"])
def test_what_fires_resolves_when_the_circuit_retires(global_: bool) -> None:
    """At once what is open, the rest with the next tick or as the listener is detached; nothing of it is kept."""
    shop = Shop(CircuitOpen(), CircuitFlapping(changes=2), RejectingCalls(rate=1, within=5), attach=global_)
    cb = shop.circuit(listeners=[] if global_ else [shop.listener])
    open_and_close(shop, cb)
    try_to(cb.call, fail)
    refuse(shop, cb, 5)
    shop.told.clear()
    cb.retire()
    assert shop.told[0].summary == "circuit 'payments' has retired; it lasted 0 s"
    shop.listener.tick()
    assert [alert.summary for alert in shop.told[1:]] == ["circuit 'payments' has retired"] * 2
    assert sorted(shop.news) == ["resolved CircuitFlapping", "resolved CircuitOpen", "resolved RejectingCalls"]
    assert shop.listener._watches == {}
    assert not shop.listener._doubts | shop.listener._retired


def test_a_circuit_that_nobody_references_any_more_retires() -> None:
    """Garbage collection retires it, and its alerts resolve."""
    shop = Shop(CircuitOpen())
    shop.circuit().force_open()
    shop.bus.bury()
    shop.listener.tick()
    assert shop.news == ["firing CircuitOpen", "resolved CircuitOpen"]


def test_ten_thousand_circuits_leave_nothing_behind() -> None:
    """Healthy circuits are not kept; a tick asks only those in doubt, and the window's reader asks each once."""
    shop = Shop(*DEFAULT_ALERTS)
    circuits = [shop.circuit(f"circuit-{number}") for number in range(10_000)]
    shop.listener.tick()
    shop.wait(6)
    assert shop.listener._watches == {}
    for cb in circuits[:100]:
        cb.force_open()
    shop.wait(1)
    assert len(shop.listener._watches) == 100
    for cb in circuits:
        cb.retire()
    shop.listener.tick()
    assert shop.listener._watches == {}
    assert len(shop.told) == 200
    assert not shop.listener._doubts


# -- other listeners and breakers ---------------------------------------------------------------------------------


def test_two_listeners_each_tell_for_themselves() -> None:
    """Each has its own rules, sinks and memory; one that is detached leaves the other."""
    shop, other = Shop(CircuitOpen()), Shop(CircuitOpen(severity="critical"))
    subscription = shop.bus.attach(other.listener)
    cb = shop.circuit()
    try_to(cb.call, fail)
    assert [alert.severity for alert in (*shop.told, *other.told)] == ["warning", "critical"]
    subscription.close()
    cb.reset()
    assert (shop.news, other.news) == (["firing CircuitOpen", "resolved CircuitOpen"], ["firing CircuitOpen"])


def test_it_hears_circuits_of_event_loops() -> None:
    """Asynchronous circuits in a running loop are told alike."""
    shop = Shop(CircuitOpen(), RejectingCalls(rate=1, within=3))

    async def main() -> None:
        cb = shop.circuit(breaker=AsyncCircuitBreaker)

        async def work() -> None:
            await asyncio.sleep(0)
            fail()

        for _ in range(4):
            try:
                await cb.call(work)
            except Exception:
                pass
        await cb.reset()

    run_async(main())
    assert shop.news == ["firing CircuitOpen", "firing RejectingCalls", "resolved CircuitOpen"]


# -- threads, ticks and forks -------------------------------------------------------------------------------------


def test_threads_tell_each_alert_once() -> None:
    """Many threads open, refuse, close and tick at once: firing and resolved alternate for each circuit."""
    shop = Shop(CircuitOpen(), CircuitFlapping(changes=2, within=1e9), RejectingCalls(rate=1, within=20))
    circuits = [shop.circuit(name, tripper=FailureStreak(1)) for name in "aabcd"]

    def hammer(cb: CircuitBreaker) -> Callable[[], None]:
        def work() -> None:
            for _ in range(40):
                for _ in range(5):
                    try_to(cb.call, fail)
                cb.reset()

        return work

    def tick() -> None:
        for _ in range(200):
            shop.listener.tick()

    with restless():
        together(*map(hammer, circuits), *map(hammer, circuits), tick)
    shop.listener.tick()
    told: dict[str, list[str]] = {}
    for alert in shop.told:
        told.setdefault(alert.fingerprint, []).append(alert.status)
    for statuses in told.values():
        assert statuses == (["firing", "resolved"] * len(statuses))[: len(statuses)]
    opened = {alert.circuit_name: alert.status for alert in shop.told if alert.alert == "CircuitOpen"}
    assert opened == dict.fromkeys("abcd", "resolved")
    refused = [alert.circuit_name for alert in shop.told if alert.alert == "RejectingCalls"]
    assert sorted(refused) == list("abcd"), "once each"


def test_a_tick_over_many_circuits_holds_up_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it goes through thousands of open circuits, another thread's call is told before it is at the end."""
    shop = Shop(CircuitStuckOpen(for_=1e9))
    circuits = [shop.circuit(f"circuit-{number}", tripper=FailureStreak(1)) for number in range(3_000)]
    for cb in circuits:
        try_to(cb.call, fail)
    shop.listener.tick()
    other = shop.circuit("other", tripper=FailureStreak(1))
    inside = threading.Event()
    ticked: list[Outage] = []
    told_after: list[int] = []
    tick = Outage.tick

    def noted(watch: Outage, now: float) -> None:
        ticked.append(watch)
        inside.set()
        tick(watch, now)

    def call() -> None:
        assert arrives(inside)
        try_to(other.call, fail)
        told_after.append(len(ticked))

    monkeypatch.setattr(Outage, "tick", noted)
    together(shop.listener.tick, call)
    assert told_after[0] < 3_000


def test_the_bus_ticks_by_itself() -> None:
    """In real time, with no call and no clock of one's own: the bus's thread lets the alert fire."""
    fired = threading.Event()
    listener = AlertListener([CircuitStuckOpen(for_=0.1)], lambda alert: fired.set())
    bus = Bus()
    cb = CircuitBreaker("payments", tripper=FailureStreak(1), retry=Cooldown(60), bus=bus)
    with bus.attach(listener):
        try_to(cb.call, fail)
        assert arrives(fired)


FORKED = """
import os, sys, threading, warnings
warnings.simplefilter("ignore")
from fluxgate import Bus, CircuitBreaker
from fluxgate.listeners.alerts import AlertListener, CircuitOpen
from fluxgate.testing import VirtualClock

told = []
listener = AlertListener([CircuitOpen()], lambda alert: told.append(alert.status), clock=VirtualClock())
bus = Bus()
subscription = bus.attach(listener)
cb, other = CircuitBreaker("payments", bus=bus), CircuitBreaker("other", bus=bus)
cb.force_open()
held, done = threading.Event(), threading.Event()

def hold():
    with listener._lock:
        held.set()
        done.wait()

threading.Thread(target=hold).start()
held.wait()
child = os.fork()
if child == 0:
    told.clear()
    listener.tick()
    assert told == ["firing"], told
    cb.reset()
    other.force_open()
    assert told == ["firing", "resolved", "firing"], told
    os._exit(0)
done.set()
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
cb.reset()
assert told == ["firing", "resolved"], told
sys.stdout.flush()
os._exit(code)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
def test_a_forked_child_begins_anew() -> None:
    """Also when another thread held the lock: the child tells of its own circuits, the parent goes on."""
    script(FORKED)


def test_listeners_that_are_gone_are_not_kept() -> None:
    """What watches over forks does not keep a listener alive."""
    before = len(module._all_listeners)
    AlertListener(sink=print)
    assert len(module._all_listeners) == before


def test_a_tick_during_a_tick_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks do not overlap: a second tick meanwhile leaves the looking to the first."""
    shop = Shop(CircuitOpen())
    looks: list[object] = []

    def look(*args: Any) -> Any:
        looks.append(args)
        shop.listener.tick()
        return {}

    monkeypatch.setattr(module, "_infos", look)
    shop.listener.tick()
    assert len(looks) == 1


# -- whatever happens ---------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(["fail", "succeed", "reset", "force_open", "disable", "metrics_only", "retire", "attach"]),
            st.integers(0, 3),
        ),
        st.tuples(st.just("wait"), st.floats(0, 200)),
        st.tuples(st.just("tick"), st.none()),
    ),
    max_size=60,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS)
def test_firing_and_resolved_alternate_and_calm_is_quiet(steps: list[tuple[str, Any]]) -> None:
    """Firing comes first and the two alternate; when all is calm nothing fires, and nothing is kept."""
    shop = Shop(
        CircuitOpen(),
        CircuitStuckOpen(for_=50),
        CircuitFlapping(changes=3, within=100),
        RejectingCalls(rate=0.1, within=30),
        SlowCircuit(min_calls=1, for_=20),
        ListenerFailing(failures=2, within=50),
    )
    breakers: list[Any] = [shop.circuit(name, slow_threshold=1) for name in ("a", "a", "b", "c")]
    for step, value in steps:
        if step == "wait":
            shop.wait(value)
        elif step == "tick":
            shop.listener.tick()
        elif step == "fail":
            try_to(breakers[value].call, fail)
        elif step == "succeed":
            try_to(breakers[value].call, shop.clock.advance, 1.5)
        elif step == "retire":
            breakers[value].retire()
            breakers[value] = shop.circuit(breakers[value].name, slow_threshold=1)
        elif step == "attach":
            shop.bus.attach(broken, circuits=breakers[value].name)
        else:
            getattr(breakers[value], step)()
        out = {cb.name for cb in breakers if cb.state in ("open", "half_open", "forced_open")}
        firing = {alert.fingerprint: alert for alert in shop.told}
        shown = {
            each.circuit_name for each in firing.values() if (each.alert, each.status) == ("CircuitOpen", "firing")
        }
        assert shown == out
    for cb in breakers:
        cb.reset()
        cb.disable()
    for _ in range(5):
        shop.wait(200)
    told: dict[str, list[str]] = {}
    for alert in shop.told:
        told.setdefault(alert.fingerprint, []).append(alert.status)
    for statuses in told.values():
        assert statuses == ["firing", "resolved"] * (len(statuses) // 2)
    assert shop.listener._watches == {}
    assert not shop.listener._doubts
