"""What the bus offers a listener beyond events: to surround calls, keep time, share a destination, look around."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import weakref
from collections.abc import Callable, Generator, Hashable
from contextvars import ContextVar
from typing import Any

import pytest

from fluxgate import (
    AsyncCircuitBreaker,
    Bus,
    CallNotPermittedError,
    CircuitBreaker,
    Closed,
    Cooldown,
    FailureStreak,
    State,
    permits,
)
from fluxgate._text import type_name
from fluxgate.events import (
    CallCancelled,
    CallEnded,
    CallFailed,
    CallIgnored,
    CallRejected,
    CallStarted,
    CallSucceeded,
    CircuitCreated,
    CircuitRetired,
    Event,
    FallbackUsed,
    ListenerFailed,
    StateChanged,
)
from fluxgate.testing import EventRecorder, VirtualClock
from fluxgate.trackers import TypeOf
from tests.faces import ASYNC, SYNC, Make, both, finish
from tests.running import PATIENCE, Running, arrives, run_async, together

current: ContextVar[str] = ContextVar("current", default="outside")


def boom() -> None:
    raise ConnectionError("no route")


class Surrounding:
    """Surrounds calls and notes what it was told; makes a context variable current where the call is nested."""

    def __init__(self, *events: type[Event]) -> None:
        self.events = events or (CallEnded,)
        self.entered: list[tuple[str, int | None, bool]] = []
        self.left: list[Event | None] = []
        self.heard: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.heard.append(event)

    def around(self, circuit_name: str, call_id: int | None, *, nested: bool) -> Callable[[Event | None], None]:
        self.entered.append((circuit_name, call_id, nested))
        token = current.set(circuit_name) if nested else None

        def leave(ended: Event | None) -> None:
            self.left.append(ended)
            if token is not None:
                current.reset(token)

        return leave


# -- around a call ----------------------------------------------------------------------------------------------------


@both
def test_a_call_is_surrounded_in_its_own_context(make: Make) -> None:
    """What a listener makes current around a call is current while it runs, and no longer when it has ended."""
    circuit = make()
    listener = Surrounding()
    circuit.breaker.attach(listener)
    seen: list[str] = []
    circuit.call(lambda: seen.append(current.get()))
    assert seen == ["payments"]
    assert current.get() == "outside"


@both
def test_it_leaves_with_the_event_that_ended_the_call(make: Make) -> None:
    """Each outcome is handed to the listener as it leaves, the very event that it hears, with the call's number."""
    circuit = make(tracker=TypeOf(ConnectionError))
    listener = Surrounding()
    circuit.breaker.attach(listener)
    circuit.succeed()
    circuit.fail()
    circuit.fail(LookupError("none"))
    circuit.fail(KeyboardInterrupt())
    kinds = [CallSucceeded, CallFailed, CallIgnored, CallCancelled]
    assert [type(event) for event in listener.left] == kinds
    assert all(left is heard for left, heard in zip(listener.left, listener.heard, strict=True))
    ended = [event for event in listener.left if isinstance(event, CallEnded)]
    assert [event.call_id for event in ended] == [call_id for _, call_id, _ in listener.entered]


@both
def test_a_call_that_nobody_asks_the_end_of_is_left_with_nothing(make: Make) -> None:
    """Where no listener asks for the outcome there is no event to leave with, and it leaves all the same."""
    circuit = make(hears=(StateChanged,))
    listener = Surrounding(CallStarted)
    circuit.breaker.attach(listener)
    circuit.succeed()
    circuit.fail()
    assert listener.left == [None, None]


@both
def test_a_refused_call_is_not_surrounded(make: Make) -> None:
    """Only what is admitted is entered."""
    circuit = make()
    listener = Surrounding()
    circuit.breaker.attach(listener)
    circuit.steer("force_open")
    circuit.refused()
    assert listener.entered == []


@both
def test_a_block_is_surrounded_as_a_call(make: Make) -> None:
    """``with`` enters nested: what the block runs is its own."""
    circuit = make()
    listener = Surrounding()
    circuit.breaker.attach(listener)
    seen: list[str] = []
    if circuit.is_async:

        async def work() -> None:
            async with circuit.breaker:
                seen.append(current.get())

        run_async(work())
    else:
        with circuit.breaker:
            seen.append(current.get())
    assert seen == ["payments"]
    assert [nested for _, _, nested in listener.entered] == [True]
    assert len(listener.left) == 1


@both
def test_what_is_settled_elsewhere_is_not_nested(make: Make) -> None:
    """A call that `acquire` hands out, and a generator, leave nothing current at their beginning."""
    circuit = make()
    listener = Surrounding()
    circuit.breaker.attach(listener)
    held = circuit.acquire()
    assert current.get() == "outside"
    held.success()
    assert [nested for _, _, nested in listener.entered] == [False]
    assert [type(event) for event in listener.left] == [CallSucceeded]


def test_a_generator_is_not_nested() -> None:
    """Its consumer's code runs between its steps, in a context of its own."""
    circuit = SYNC()
    listener = Surrounding()
    circuit.breaker.attach(listener)

    @circuit.breaker  # type: ignore[untyped-decorator]
    def numbers() -> Generator[int, None, None]:
        yield 1
        yield 2

    assert [(number, current.get()) for number in numbers()] == [(1, "outside"), (2, "outside")]
    assert [nested for _, _, nested in listener.entered] == [False]
    assert [type(event) for event in listener.left] == [CallSucceeded]


@both
def test_the_last_to_enter_leaves_first(make: Make) -> None:
    """Two that surround a call are nested in one another."""
    circuit = make()
    order: list[str] = []

    class Noting:
        events = (CallEnded,)

        def __init__(self, name: str) -> None:
            self.name = name

        def __call__(self, event: Event) -> None:
            pass

        def around(self, circuit_name: str, call_id: int | None, *, nested: bool) -> Callable[[Event | None], None]:
            order.append(f"+{self.name}")
            return lambda ended: order.append(f"-{self.name}")

    first, second = Noting("first"), Noting("second")
    circuit.breaker.attach(first)
    circuit.breaker.attach(second)
    circuit.succeed()
    assert order == ["+first", "+second", "-second", "-first"]


@both
def test_one_that_declines_is_left_alone(make: Make) -> None:
    """`around` that returns nothing does not surround this call, and still hears of it."""
    circuit = make()
    listener = Surrounding()
    listener.around = lambda *args, **kwargs: None  # type: ignore[method-assign,assignment]
    circuit.breaker.attach(listener)
    circuit.succeed()
    assert [type(event) for event in listener.heard] == [CallSucceeded]


class Broken(Surrounding):
    """Raises while it enters, or while it leaves."""

    def __init__(self, part: str, error: type[BaseException]) -> None:
        super().__init__()
        self.part = part
        self.error = error

    def around(self, circuit_name: str, call_id: int | None, *, nested: bool) -> Callable[[Event | None], None]:
        def leave(ended: Event | None) -> None:
            raise self.error("no exit")

        if self.part == "entering":
            raise self.error("no entry")
        return leave


@both
@pytest.mark.parametrize("error", [LookupError, asyncio.CancelledError, GeneratorExit])
@pytest.mark.parametrize("part", ["entering", "leaving"])
def test_one_that_raises_hurts_no_call(make: Make, part: str, error: type[BaseException]) -> None:
    """An error while entering or leaving is told as `ListenerFailed`, and the caller does not notice."""
    circuit = make()
    circuit.breaker.attach(Broken(part, error))
    circuit.succeed()
    circuit.fail()
    failed = circuit.seen(ListenerFailed)
    assert [(event.role, event.error_type, event.count) for event in failed] == [
        ("listener", type_name(error()), 1),
        ("listener", type_name(error()), 2),
    ]
    assert circuit.metrics.total_count == 2


@both
@pytest.mark.parametrize("part", ["entering", "leaving"])
def test_an_interrupt_while_a_call_is_surrounded_leaves_no_trace(make: Make, part: str) -> None:
    """It is the program's: the caller gets it, the other listeners leave, and a probe's place is given back."""
    circuit = make(tripper=FailureStreak(1), retry=Cooldown(1), permit=permits.All())
    circuit.fail()
    circuit.clock.advance(1)
    first, last = Surrounding(), Surrounding()
    circuit.breaker.attach(first)
    circuit.breaker.attach(Broken(part, KeyboardInterrupt))
    circuit.breaker.attach(last)
    with pytest.raises(KeyboardInterrupt):
        circuit.succeed()
    assert current.get() == "outside"
    assert (len(first.left), len(last.left)) == (1, int(part == "leaving"))
    assert circuit.info.probes == 0


@both
def test_one_that_was_closed_meanwhile_is_not_entered(make: Make) -> None:
    """Once `close` has returned no further call is surrounded, not even one that was just admitted."""
    circuit = make()
    closed = Surrounding()

    class Closing(Surrounding):
        def around(self, circuit_name: str, call_id: int | None, *, nested: bool) -> Callable[[Event | None], None]:
            subscription.close()
            return super().around(circuit_name, call_id, nested=nested)

    circuit.breaker.attach(Closing())
    subscription = circuit.breaker.attach(closed)
    circuit.succeed()
    assert (closed.entered, closed.heard) == ([], [])


def test_only_one_that_asks_for_calls_surrounds_them() -> None:
    """A listener that hears no calls at this time costs none of them the lock."""
    circuit = SYNC(hears=(StateChanged,))
    listener = Surrounding(StateChanged)
    subscription = circuit.breaker.attach(listener)
    circuit.succeed()
    assert listener.entered == []
    assert circuit.breaker._core.lane is not None
    listener.events = (CallEnded,)
    subscription.refresh()
    circuit.succeed()
    assert len(listener.entered) == len(listener.left) == 1
    assert circuit.breaker._core.lane is None
    subscription.close()
    circuit.succeed()
    assert len(listener.entered) == 1
    assert circuit.breaker._core.lane is not None


def test_a_call_that_nobody_surrounds_in_the_end_keeps_the_lane() -> None:
    """Who answers ``None`` costs it no lock; one that is surrounded has a stamp of its own, and all are counted."""
    circuit = SYNC(hears=(StateChanged,), tripper=FailureStreak(5))
    answers: list[bool] = []

    class Choosy(Surrounding):
        def around(self, circuit_name: str, call_id: int | None, *, nested: bool) -> Any:
            leave = super().around(circuit_name, call_id, nested=nested)
            return leave if answers.pop(0) else None

    listener = Choosy(CallEnded)
    circuit.breaker.attach(listener)
    core = circuit.breaker._core
    answers += [False, False, True, False]
    circuit.succeed()
    lane = core.open
    assert lane is not None
    stamps: list[Any] = [core.admit() for _ in range(3)]
    assert [stamp is lane for stamp in stamps] == [True, False, True]
    assert stamps[1].call_id == listener.entered[2][1]
    for stamp in stamps:
        core.returned(stamp, 0.0, 0.0, None)
        core.deliver()
    assert [event.call_id for event in listener.left if isinstance(event, CallEnded)] == [stamps[1].call_id]
    assert circuit.metrics.total_count == len(listener.heard) == 4


# -- instead of a call ------------------------------------------------------------------------------------------------


class Instead:
    """Notes what it is told instead of calls, and where."""

    events = (CallRejected, FallbackUsed)

    def __init__(self) -> None:
        self.told: list[tuple[Event, str, int]] = []
        self.heard: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.heard.append(event)

    def instead(self, event: Event) -> None:
        self.told.append((event, current.get(), threading.get_ident()))


def refused_with_fallback(circuit: Any) -> None:
    assert finish(circuit.breaker.call_with_fallback(circuit.dyed(boom), lambda error: "instead")) == "instead"


@both
@pytest.mark.parametrize("delivery", ["inline", "background"])
def test_what_comes_instead_of_a_call_is_told_where_it_comes(make: Make, delivery: Any) -> None:
    """In the caller's own thread and context, before the caller goes on; the same events are heard in their order."""
    circuit = make()
    listener = Instead()
    circuit.breaker.attach(listener, delivery=delivery)
    circuit.steer("force_open")
    token = current.set("here")
    refused_with_fallback(circuit)
    current.reset(token)
    assert [type(event) for event, *_ in listener.told] == [CallRejected, FallbackUsed]
    assert {where for _, *where_ in listener.told for where in where_} == {"here", threading.get_ident()}
    assert circuit.bus.flush()
    assert all(told[0] is heard for told, heard in zip(listener.told, listener.heard, strict=True))


@both
def test_an_error_over_what_comes_instead_is_the_listeners(make: Make) -> None:
    """The caller gets the refusal and the fallback's answer; the failure is told, and the others are told as well."""
    circuit = make()

    class Failing(Instead):
        def instead(self, event: Event) -> None:
            raise LookupError("none")

    listener = Instead()
    circuit.breaker.attach(Failing())
    circuit.breaker.attach(listener)
    circuit.steer("force_open")
    refused_with_fallback(circuit)
    assert len(listener.told) == len(listener.heard) == 2
    assert [event.error_type for event in circuit.recorder.of(ListenerFailed)] == ["LookupError"] * 2


@both
def test_a_listener_for_the_same_destination_is_told_nothing_instead(make: Make) -> None:
    """As of events, the first attached alone is told; and nobody of what he does not ask for, or after `close`."""
    circuit = make()
    first, second, deaf = Instead(), Instead(), Instead()
    first.destination = second.destination = "log"  # type: ignore[attr-defined]
    subscription = circuit.breaker.attach(first)
    circuit.breaker.attach(second)
    circuit.breaker.attach(deaf, StateChanged)
    circuit.steer("force_open")
    circuit.refused()
    assert [len(each.told) for each in (first, second, deaf)] == [1, 0, 0]
    subscription.close()
    circuit.refused()
    assert [len(each.told) for each in (first, second, deaf)] == [1, 1, 0]


def test_threads_are_surrounded_each_for_itself() -> None:
    """In many threads at once each call is entered and left once, in its own context."""
    circuit = SYNC(hears=(StateChanged,))
    listener = Surrounding()
    circuit.breaker.attach(listener)

    def calls() -> None:
        for _ in range(200):
            assert circuit.breaker.call(current.get) == "payments"
            assert current.get() == "outside"

    together(*[calls] * 4)
    assert len(listener.entered) == len(listener.left) == 800
    assert len({call_id for _, call_id, _ in listener.entered}) == 800


def test_a_cancelled_task_leaves() -> None:
    """A call that is cancelled while it waits is left with `CallCancelled`, within its own task."""
    circuit = ASYNC()
    listener = Surrounding()
    circuit.breaker.attach(listener)

    async def work() -> None:
        started = asyncio.Event()

        async def waits() -> None:
            started.set()
            await asyncio.Event().wait()

        task = asyncio.ensure_future(circuit.breaker.call(waits))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_async(work())
    assert [type(event) for event in listener.left] == [CallCancelled]


@both
def test_a_probe_is_surrounded_and_a_late_one_is_left(make: Make) -> None:
    """Half-open as well: a probe that lost its place is left with its stale outcome."""
    circuit = make(tripper=FailureStreak(1), retry=Cooldown(1), permit=permits.All(), half_open_timeout=5.0)
    listener = Surrounding()
    circuit.breaker.attach(listener)
    circuit.fail()
    circuit.clock.advance(1)
    held = circuit.acquire()
    circuit.clock.advance(6)
    held.success()
    ended = listener.left[-1]
    assert isinstance(ended, CallSucceeded)
    assert ended.stale


# -- time -------------------------------------------------------------------------------------------------------------


def until(over: Callable[[], bool]) -> bool:
    """Collect what nobody holds any more until it is over, for a bounded time; whether it is."""
    waiting = threading.Event()
    for _ in range(int(PATIENCE * 100)):
        gc.collect()
        if over():
            return True
        waiting.wait(0.01)
    return False


class Ticking(EventRecorder):
    """Counts its ticks and ends them after some."""

    tick_interval: float | None = 0.001

    def __init__(self, ticks: int = 3) -> None:
        super().__init__(StateChanged)
        self.ticks = 0
        self.threads: set[int] = set()
        self.enough = threading.Event()
        self._wanted = ticks

    def tick(self) -> Any:
        self.ticks += 1
        self.threads.add(threading.get_ident())
        if self.ticks == self._wanted:
            self.tick_interval = None
            self.enough.set()


def test_it_ticks_while_nobody_calls() -> None:
    """A listener with `tick` is called again and again in one thread of its own, until its interval is ``None``."""
    bus, listener = Bus(), Ticking()
    with bus.attach(listener):
        assert arrives(listener.enough)
    assert listener.ticks == 3
    assert len(listener.threads) == 1
    assert threading.get_ident() not in listener.threads


def test_an_asynchronous_tick_is_awaited() -> None:
    """`tick` may be a coroutine function."""

    class Slow(Ticking):
        def tick(self) -> Any:
            async def later() -> None:
                await asyncio.sleep(0)
                super(Slow, self).tick()

            return later()

    bus, listener = Bus(), Slow()
    with bus.attach(listener):
        assert arrives(listener.enough)


def test_without_an_interval_it_does_not_tick() -> None:
    """An interval of ``None`` from the start: `tick` is never called."""
    bus, listener = Bus(), Ticking()
    listener.tick_interval = None
    subscription = bus.attach(listener)
    outlet = subscription.outlet
    assert asyncio.run(outlet.tick()) is None
    assert listener.ticks == 0
    subscription.close()
    assert asyncio.run(outlet.tick()) is None


def test_attached_twice_it_ticks_once() -> None:
    """However many subscriptions a listener has, one thread ticks for it, and until the last is closed."""
    bus, listener = Bus(), Ticking(ticks=10**9)
    first, second = bus.attach(listener), bus.attach(listener, circuits="pay*")
    first.close()
    seen = listener.ticks
    waiting = threading.Event()
    while listener.ticks <= seen:  # bounded by the fault handler's time-out
        waiting.wait(0.001)
    second.close()
    after = listener.ticks
    waiting.wait(0.02)
    assert listener.ticks == after
    assert len(listener.threads) == 1


@pytest.mark.parametrize("circuit_there", [True, False])
def test_a_tick_that_raises_is_told_and_goes_on(circuit_there: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Its failure is logged once and told over a circuit that it observes, where there is one; it ticks on."""
    bus, failures = Bus(), EventRecorder(ListenerFailed)
    bus.attach(failures)
    circuit = CircuitBreaker("payments", bus=bus) if circuit_there else None

    class Broken(Ticking):
        def tick(self) -> None:
            super().tick()
            raise LookupError("what time is it")

    outlet = bus.attach(listener := Broken(ticks=10**9)).outlet
    for _ in range(2):
        asyncio.run(outlet.tick())
    bus.flush()
    outlet.close()
    assert listener.ticks >= 2
    logged = [record for record in caplog.records if "Broken" in record.getMessage()]
    assert len(logged) == 1
    assert logged[0].exc_info is not None
    told = failures.of(ListenerFailed)
    assert all(event.error == "what time is it" for event in told)
    assert len(told) == (outlet.failures if circuit else 0)


def test_ticks_come_between_events_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many events wait for a background listener, it ticks in between."""
    bus = Bus()
    order: list[str] = []
    free = threading.Event()

    class Busy(EventRecorder):
        tick_interval = 1e-9

        def tick(self) -> None:
            if order and order[-1] != "tick":
                order.append("tick")

        def __call__(self, event: Event) -> None:
            assert arrives(free)
            order.append("event")

    circuit = CircuitBreaker("payments", bus=bus)
    circuit.attach(Busy(StateChanged), delivery="background")
    circuit.force_open()
    circuit.reset()
    free.set()
    assert bus.flush(PATIENCE)
    assert order[:3] == ["event", "tick", "event"]


def test_closing_waits_for_a_tick_that_runs() -> None:
    """Once `close` has returned, no tick runs any more."""
    bus, inside, free = Bus(), threading.Event(), threading.Event()
    ended: list[int] = []

    class Slow(EventRecorder):
        tick_interval = 0.001

        def tick(self) -> None:
            inside.set()
            assert arrives(free)
            ended.append(1)

    subscription = bus.attach(Slow())
    assert arrives(inside)
    closing = Running(subscription.close)
    free.set()
    assert closing.done()
    assert ended


def test_a_listener_that_is_closed_as_it_is_attached_does_not_tick() -> None:
    """A subscription that its own `attached` closes gets no thread."""

    class Brief(EventRecorder):
        tick_interval = 0.001

        def attached(self, subscription: Any) -> None:
            subscription.close()

        def tick(self) -> None:
            raise AssertionError("closed")

    subscription = Bus().attach(Brief())
    assert not subscription.active
    assert subscription.outlet.ticking is None
    assert subscription.outlet._worker is None


def test_a_listener_may_be_closed_from_its_own_tick() -> None:
    """A tick that detaches the listener does not wait for itself."""
    bus, closed = Bus(), threading.Event()
    subscriptions: list[Any] = []

    class Once(EventRecorder):
        tick_interval = 0.001

        def tick(self) -> None:
            if subscriptions:
                subscriptions.pop().close()
                closed.set()

    subscriptions.append(bus.attach(Once()))
    assert arrives(closed)


def test_a_listener_that_nobody_holds_any_more_stops_ticking() -> None:
    """A bus that is collected takes its listeners' threads with it."""
    bus, listener = Bus(), Ticking(ticks=10**9)
    thread = bus.attach(listener).outlet.worker
    gone = weakref.ref(bus)
    del bus
    assert until(lambda: gone() is None)
    assert thread._thread is not None
    thread._thread.join(PATIENCE)
    assert not thread._thread.is_alive()


def test_a_tick_that_fails_when_its_bus_is_gone_tells_nobody() -> None:
    """There is nobody left to tell, and it is no error."""

    class Broken(Ticking):
        def tick(self) -> None:
            super().tick()
            raise LookupError("what time is it")

    bus, listener = Bus(), Broken(ticks=1)
    outlet = bus.attach(listener).outlet
    assert arrives(listener.enough)
    gone = weakref.ref(bus)
    del bus
    assert until(lambda: gone() is None)
    listener.tick_interval = 1.0
    assert asyncio.run(outlet.tick()) == 1.0
    assert listener.ticks >= 2


def test_a_forked_child_ticks_as_well() -> None:
    """A fork ends the thread; in the child a new one goes on ticking."""
    bus, listener = Bus(), Ticking(ticks=10**9)
    with bus.attach(listener):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                before = listener.ticks
                for _ in range(int(PATIENCE * 100)):
                    if listener.ticks > before:
                        os.write(write, b"t")
                        break
                    threading.Event().wait(0.01)
            finally:
                os._exit(0)
        os.close(write)
        assert os.read(read, 1) == b"t"
        os.close(read)
        os.waitpid(child, 0)


@pytest.mark.parametrize("interval", [0, -1, float("nan"), "1", True])
def test_an_interval_must_be_a_number_above_0(interval: Any) -> None:
    """A wrong interval is said when the listener is attached, and nothing is attached."""
    bus, listener = Bus(), Ticking()
    listener.tick_interval = interval
    with pytest.raises((TypeError, ValueError), match="tick_interval must be a finite number and above 0"):
        bus.attach(listener)
    assert bus.flush(0)


# -- destinations -----------------------------------------------------------------------------------------------------


class Counter(EventRecorder):
    """Counts into something that several may share."""

    def __init__(self, destination: Hashable) -> None:
        super().__init__(StateChanged)
        self.destination = destination


def test_of_several_with_one_destination_the_first_attached_is_told() -> None:
    """Two listeners that count into the same thing count each event once, and the second takes over from the first."""
    bus = Bus()
    first, second, other = Counter("registry"), Counter("registry"), Counter("another")
    subscription = bus.attach(first)
    circuit = CircuitBreaker("payments", bus=bus, listeners=[second, other])
    circuit.force_open()
    assert [len(each.events_seen) for each in (first, second, other)] == [1, 0, 1]
    subscription.close()
    circuit.reset()
    assert [len(each.events_seen) for each in (first, second, other)] == [1, 1, 2]


def test_one_destination_is_a_matter_of_one_circuit() -> None:
    """Where they observe different circuits, both are told."""
    bus = Bus()
    first, second = Counter("registry"), Counter("registry")
    bus.attach(first, circuits="a*")
    bus.attach(second, circuits="b*")
    for name in ("apples", "berries"):
        CircuitBreaker(name, bus=bus).force_open()
    assert len(first.events_seen) == len(second.events_seen) == 1


def test_a_destination_that_cannot_be_compared_is_refused() -> None:
    """It is a key, so it must be hashable."""
    bus = Bus()
    with pytest.raises(TypeError, match="unhashable"):
        bus.attach(Counter([]))  # type: ignore[arg-type]


# -- looking around ---------------------------------------------------------------------------------------------------


class Looking(EventRecorder):
    """Looks at the circuits that are there when it is attached."""

    def __init__(self) -> None:
        super().__init__(StateChanged)
        self.found: list[str] = []
        self.subscription: Any = None

    def attached(self, subscription: Any) -> None:
        self.subscription = subscription
        self.found = [circuit.name for circuit in subscription.circuits()]


def test_a_listener_sees_the_circuits_that_are_there_already() -> None:
    """`attached` is given the subscription, whose `circuits` are those that it observes."""
    bus = Bus()
    kept = [CircuitBreaker("payments", bus=bus), AsyncCircuitBreaker("parcels", bus=bus), CircuitBreaker("x", bus=bus)]
    listener = Looking()
    bus.attach(listener, circuits="pa*")
    assert listener.found == ["parcels", "payments"]
    one = Looking()
    kept[0].attach(one)
    assert one.found == ["payments"]
    assert one.subscription.core is kept[0]._core
    assert listener.subscription.core is None
    kept[0].retire()
    assert [circuit.name for circuit in listener.subscription.circuits()] == ["parcels"]
    assert not one.subscription.active


def test_one_that_fails_as_it_is_attached_is_not() -> None:
    """What `attached` raises reaches whoever attaches, and nothing stays attached."""
    bus, closed = Bus(), threading.Event()

    class Broken(EventRecorder):
        def attached(self, subscription: Any) -> None:
            raise LookupError("no table")

        def close(self) -> None:
            closed.set()

    broken = Broken(StateChanged)
    with pytest.raises(LookupError, match="no table"):
        bus.attach(broken)
    CircuitBreaker("payments", bus=bus).force_open()
    assert broken.events_seen == []
    assert closed.is_set()


@both
def test_a_breaker_says_its_rules_in_words(make: Make) -> None:
    """`rules()` is what `CircuitCreated` told, and what `configure` changed since."""
    circuit = make(tripper=Closed() & FailureStreak(3))
    (created,) = circuit.seen(CircuitCreated)
    words = circuit.breaker.rules()
    assert words == {name: getattr(created, name) for name in ("window", "tracker", "tripper", "retry", "permit")}
    circuit.steer("configure", retry=Cooldown(5))
    assert circuit.breaker.rules() == words | {"retry": "Cooldown(5)"}


@both
def test_a_breaker_says_its_limits_as_figures(make: Make) -> None:
    """`limits()` is what `CircuitCreated` told, and what `configure` changed since."""
    circuit = make(tripper=Closed() & FailureStreak(3))
    (created,) = circuit.seen(CircuitCreated)
    assert circuit.breaker.limits() == created.limits == {"failure_streak": 3.0}
    assert len(created.limits) == 1
    circuit.steer("configure", retry=Cooldown(5))
    assert circuit.breaker.limits() == {"failure_streak": 3.0}
    circuit.steer("configure", tripper=FailureStreak(2))
    assert circuit.breaker.limits() == {"failure_streak": 2.0}


# -- what it wants ----------------------------------------------------------------------------------------------------


def test_refresh_asks_again_what_a_listener_wants() -> None:
    """After `refresh` it hears what its `events` say now; types that were named when it was attached stand."""
    bus = Bus()
    listener, fixed = EventRecorder(StateChanged), EventRecorder(StateChanged)
    subscription, other = bus.attach(listener), bus.attach(fixed, StateChanged)
    circuit = CircuitBreaker("payments", bus=bus)
    listener.events = fixed.events = (CallStarted,)
    subscription.refresh()
    other.refresh()
    circuit.call(int)
    circuit.force_open()
    assert [type(event) for event in listener.events_seen] == [CallStarted]
    assert [type(event) for event in fixed.events_seen] == [StateChanged]


def test_a_closed_subscription_may_be_refreshed() -> None:
    """It does nothing then."""
    bus, listener = Bus(), EventRecorder(StateChanged)
    subscription = bus.attach(listener)
    circuit = CircuitBreaker("payments", bus=bus)
    subscription.close()
    subscription.refresh()
    circuit.force_open()
    assert listener.events_seen == []


def test_refresh_refuses_what_attach_refuses() -> None:
    """No event types are a mistake at any time, and what it heard before it hears on."""
    bus, listener = Bus(), EventRecorder(StateChanged)
    subscription = bus.attach(listener)
    listener.events = ()
    with pytest.raises(ValueError, match="asks for no events"):
        subscription.refresh()
    CircuitBreaker("payments", bus=bus).force_open()
    assert len(listener.events_seen) == 1


def test_a_listener_says_how_it_wants_to_be_called() -> None:
    """Its `delivery` stands unless `attach` says otherwise."""
    bus, threads = Bus(), list[str]()

    class Far(EventRecorder):
        delivery = "background"

        def __call__(self, event: Event) -> None:
            threads.append("mine" if threading.get_ident() == me else "its own")

    me = threading.get_ident()
    circuit = CircuitBreaker("payments", bus=bus, listeners=[Far(StateChanged)])
    circuit.attach(Far(StateChanged), delivery="inline")
    circuit.force_open()
    assert bus.flush(PATIENCE)
    assert sorted(threads) == ["its own", "mine"]
    wrong = Far(StateChanged)
    wrong.delivery = "later"
    with pytest.raises(ValueError, match="delivery must be 'inline' or 'background', got 'later'"):
        circuit.attach(wrong)


# -- what a refusal tells ---------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("heard", [False, True], ids=["through the gate", "under the lock"])
def test_a_refusal_tells_what_opened_the_circuit(make: Make, heard: bool) -> None:
    """Its `opening` has the time, the window, the first and the last failure of the change that opened it."""
    circuit = make(
        tripper=FailureStreak(2),
        retry=Cooldown(60),
        max_half_open_calls=1,
        permit=permits.All(),
        hears=(Event,) if heard else (StateChanged,),
    )
    began = circuit.clock.time()
    circuit.fail()
    circuit.clock.advance(3)
    circuit.fail(TimeoutError("too late"))
    opening = circuit.refused().opening
    (change,) = circuit.seen(StateChanged)
    assert opening is not None
    assert (opening.at, opening.failing_since) == (began + 3, began)
    assert opening.metrics == change.metrics
    assert str(opening.last_error) == "TimeoutError: too late"
    assert (opening.trace_id, opening.span_id) == (None, None)
    circuit.clock.advance(60)
    held = circuit.acquire()
    assert circuit.refused().opening == opening, "half-open, it still tells what had opened it"
    held.success()
    assert circuit.state == State.CLOSED
    circuit.steer("force_open")
    forced = circuit.refused().opening
    assert forced is not None
    assert (forced.at, forced.failing_since, forced.last_error) == (began + 63, None, None)


def test_a_refusal_made_by_hand_tells_nothing() -> None:
    """Without an opening there is none, and one that is something else is not shown as one."""
    assert CallNotPermittedError("payments").opening is None
    assert CallNotPermittedError("payments", State.OPEN, None, None, "soon").opening is None  # type: ignore[arg-type]


def test_the_last_event_of_a_listener_that_keeps_time_is_its_retirement() -> None:
    """A circuit's own listener with a tick is let go with the circuit."""
    bus, listener = Bus(), Ticking(ticks=10**9)
    listener.events = (CircuitRetired,)
    circuit = CircuitBreaker("payments", bus=bus, listeners=[listener], clock=VirtualClock())
    outlet = next(iter(circuit._core.own)).outlet
    circuit.retire()
    assert [type(event) for event in listener.events_seen] == [CircuitRetired]
    assert bus.flush(PATIENCE)
    assert finish(outlet.tick()) is None
