"""The bus: who hears what, in which order, and that no listener can harm a caller, another listener or the circuit."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from contextvars import ContextVar, copy_context
from functools import partial
from typing import Any, TypeAlias

import pytest

import fluxgate
from fluxgate import (
    AsyncCircuitBreaker,
    Bus,
    CallNotPermittedError,
    CircuitBreaker,
    Cooldown,
    FailureStreak,
    State,
    Subscription,
)
from fluxgate import permits as every
from fluxgate.events import (
    CallCancelled,
    CallEnded,
    CallFailed,
    CallRejected,
    CallStarted,
    CallSucceeded,
    CircuitCreated,
    CircuitRetired,
    Event,
    FallbackUsed,
    ListenerFailed,
    Reconfigured,
    StateChanged,
    WouldOpen,
)
from fluxgate.testing import EventRecorder, VirtualClock
from tests.running import PATIENCE, Running, arrives, restless, run_async, together

AnyBreaker: TypeAlias = CircuitBreaker | AsyncCircuitBreaker


def circuit(bus: Bus, name: str = "payments", **rules: Any) -> CircuitBreaker:
    """Trips on one failure, waits 10 s, admits every probe."""
    return CircuitBreaker(name, bus=bus, **rules_of(rules))


def async_circuit(bus: Bus, name: str = "payments", **rules: Any) -> AsyncCircuitBreaker:
    return AsyncCircuitBreaker(name, bus=bus, **rules_of(rules))


def rules_of(given: dict[str, Any]) -> dict[str, Any]:
    defaults = {"tripper": FailureStreak(1), "retry": Cooldown(10), "permit": every.All(), "clock": VirtualClock()}
    return {**defaults, **given}


def boom(text: str = "no route") -> None:
    raise ConnectionError(text)


async def aboom(text: str = "no route") -> None:
    raise ConnectionError(text)


async def answer() -> int:
    return 42


def fail(cb: CircuitBreaker) -> None:
    with pytest.raises(ConnectionError):
        cb.call(boom)


def moves(recorder: EventRecorder) -> list[State]:
    return [event.new_state for event in recorder.of(StateChanged)]


def told(recorder: EventRecorder) -> list[str]:
    return [type(event).__name__ for event in recorder.events_seen]


def numbers(recorder: EventRecorder) -> list[int]:
    return [event.sequence for event in recorder.events_seen]


class Gate:
    """Holds a listener (or anything) at its first passage until it is opened."""

    def __init__(self) -> None:
        self._inside = threading.Event()
        self._open = threading.Event()

    def __call__(self, event: Event | None = None) -> None:
        self._inside.set()
        assert self._open.wait(PATIENCE), "nobody opened the gate"

    def reached(self) -> bool:
        return arrives(self._inside)

    def open(self) -> None:
        self._open.set()


# -- who hears what -------------------------------------------------------------------------------------------------


def test_a_process_wide_listener_hears_circuits_made_before_and_after() -> None:
    """`attach` observes every circuit of the bus, present and future."""
    bus, recorder = Bus(), EventRecorder(StateChanged)
    before = circuit(bus, "before")
    bus.attach(recorder)
    after = circuit(bus, "after")
    before.force_open()
    after.force_open()
    assert [event.circuit_name for event in recorder.events_seen] == ["before", "after"]


def test_the_process_has_a_bus_of_its_own() -> None:
    """Circuits made without a bus belong to the process's, and `fluxgate.attach` observes them, of either colour."""
    recorder = EventRecorder(StateChanged)
    with fluxgate.attach(recorder, circuits="test-bus-*"):
        cb, acb = CircuitBreaker("test-bus-sync"), AsyncCircuitBreaker("test-bus-async")
        assert {cb, acb} <= set(fluxgate.circuits())
        cb.force_open()
        run_async(acb.force_open())
        assert fluxgate.flush(PATIENCE)
    cb.reset()
    assert [event.circuit_name for event in recorder.events_seen] == ["test-bus-sync", "test-bus-async"]
    cb.retire()
    acb.retire()
    assert not {cb, acb} & set(fluxgate.circuits())


def test_buses_know_nothing_of_each_other() -> None:
    """A listener of one bus hears no circuit of another, nor does that bus list it."""
    buses = [Bus(), Bus()]
    recorders = [EventRecorder(StateChanged), EventRecorder(StateChanged)]
    circuits = [circuit(bus) for bus in buses]
    for bus, recorder in zip(buses, recorders, strict=True):
        bus.attach(recorder)
    circuits[0].force_open()
    assert [len(recorder.events_seen) for recorder in recorders] == [1, 0]
    assert [bus.circuits() for bus in buses] == [[circuits[0]], [circuits[1]]]
    assert not {*circuits} & {*fluxgate.circuits()}


@pytest.mark.parametrize(
    ("patterns", "heard"),
    [
        ("*", ["Pay-us", "orders", "pay-eu", "pay-us"]),
        ("pay-*", ["pay-eu", "pay-us"]),
        ("pay-??", ["pay-eu", "pay-us"]),
        ("[Pp]ay-us", ["Pay-us", "pay-us"]),
        ("orders", ["orders"]),
        ("order", []),
        (["orders", "*-eu"], ["orders", "pay-eu"]),
        (("pay-*", "*-us", "pay-us"), ["Pay-us", "pay-eu", "pay-us"]),
        ({"orders"}, ["orders"]),
        ((pattern for pattern in ["orders", "*-eu"]), ["orders", "pay-eu"]),
    ],
)
def test_patterns_choose_circuits_by_name(patterns: Any, heard: list[str]) -> None:
    """One shell-style pattern or several, case-sensitive, for circuits present and future; each event comes once."""
    bus, recorder = Bus(), EventRecorder(StateChanged)
    circuits = [circuit(bus, name) for name in ("pay-eu", "orders")]
    bus.attach(recorder, circuits=patterns)
    circuits += [circuit(bus, name) for name in ("pay-us", "Pay-us")]
    for cb in circuits:
        cb.force_open()
    assert sorted(event.circuit_name for event in recorder.events_seen) == heard


def test_a_circuits_own_listener_hears_that_circuit_alone() -> None:
    """`cb.attach` and `listeners=[...]` observe one circuit, not another of the same name."""
    bus = Bus()
    given, attached = EventRecorder(StateChanged), EventRecorder(StateChanged)
    one, other = circuit(bus, listeners=[given]), circuit(bus)
    one.attach(attached)
    one.force_open()
    other.force_open()
    assert moves(given) == moves(attached) == [State.FORCED_OPEN]


def test_listeners_given_to_the_constructor_hear_of_the_creation() -> None:
    """`listeners=[...]` are in place for `CircuitCreated`, the first event; any iterable will do."""
    recorders = [EventRecorder(), EventRecorder()]
    circuit(Bus(), listeners=iter(recorders))
    assert [told(recorder) for recorder in recorders] == [["CircuitCreated"], ["CircuitCreated"]]


def test_a_listener_without_a_wish_hears_changes_of_state() -> None:
    """A plain function receives `StateChanged` alone."""
    seen: list[Event] = []
    cb = circuit(Bus(), listeners=[seen.append])
    fail(cb)
    cb.reset()
    assert [type(event) for event in seen] == [StateChanged, StateChanged]


@pytest.mark.parametrize(
    "wish", [(CallFailed,), [CallFailed], {CallFailed}, frozenset({CallFailed}), iter([CallFailed])], ids=repr
)
def test_a_listener_says_what_it_wants_by_its_events_attribute(wish: Any) -> None:
    """The types in the attribute `events` are received, whatever they are collected in, and no others."""

    class Listener:
        events = wish

        def __init__(self) -> None:
            self.seen: list[Event] = []

        def __call__(self, event: Event) -> None:
            self.seen.append(event)

    listener = Listener()
    fail(circuit(Bus(), listeners=[listener]))
    assert [type(event) for event in listener.seen] == [CallFailed]


def test_types_given_to_attach_take_the_place_of_the_attribute() -> None:
    """Arguments of `attach` decide, whatever the listener's attribute says."""
    bus, recorder = Bus(), EventRecorder(StateChanged)
    bus.attach(recorder, CallStarted, CallFailed)
    fail(circuit(bus))
    assert told(recorder) == ["CallStarted", "CallFailed"]


def test_a_base_stands_for_all_beneath_it() -> None:
    """`Event` means every type, `CallEnded` the four outcomes; a type that is named twice comes once."""
    bus = Bus()
    whole, outcomes, twice = EventRecorder(), EventRecorder(CallEnded), EventRecorder(CallFailed)
    bus.attach(whole, Event)
    bus.attach(outcomes)
    bus.attach(twice, CallFailed, CallEnded, CallFailed)
    cb = circuit(bus)
    cb.call(int)
    fail(cb)
    assert told(whole) == [
        *("CircuitCreated", "CallStarted", "CallSucceeded"),
        *("CallStarted", "CallFailed", "StateChanged"),
    ]
    assert told(outcomes) == told(twice) == ["CallSucceeded", "CallFailed"]


def test_one_listener_may_have_many_subscriptions() -> None:
    """Each subscription delivers on its own, and closing one leaves the other."""
    bus, recorder = Bus(), EventRecorder(StateChanged)
    cb = circuit(bus)
    first, second = bus.attach(recorder), cb.attach(recorder)
    cb.force_open()
    first.close()
    cb.reset()
    second.close()
    cb.force_open()
    assert moves(recorder) == [State.FORCED_OPEN, State.FORCED_OPEN, State.CLOSED]


def test_listeners_that_are_equal_are_not_the_same() -> None:
    """Listeners are told apart by identity: they need no hash, and their `__eq__` is not asked."""

    class Alike:
        __hash__ = None  # type: ignore[assignment]

        def __init__(self) -> None:
            self.seen: list[Event] = []
            self.closed = 0

        def __eq__(self, other: object) -> bool:
            raise AssertionError("compared")

        def __call__(self, event: Event) -> None:
            self.seen.append(event)

        def close(self) -> None:
            self.closed += 1

    bus, one, other = Bus(), Alike(), Alike()
    cb = circuit(bus, listeners=[one])
    with bus.attach(other):
        cb.force_open()
    assert (len(one.seen), len(other.seen)) == (1, 1)
    assert (one.closed, other.closed) == (0, 1)


def test_circuits_are_listed_by_name() -> None:
    """`circuits()` gives the living breakers, sorted, circuits of one name side by side."""
    bus = Bus()
    made = [circuit(bus, name) for name in ("b", "a", "c", "a")]
    assert [cb.name for cb in bus.circuits()] == ["a", "a", "b", "c"]
    assert set(bus.circuits()) == set(made)


# -- wrong arguments ------------------------------------------------------------------------------------------------


class Listener:
    """A well-formed listener, as a class."""

    def __call__(self, event: Event) -> None:
        raise AssertionError("not to be called")


class Wishing(Listener):
    def __init__(self, events: Any) -> None:
        self.events = events


def ways(bus: Bus) -> list[Callable[..., Subscription]]:
    return [bus.attach, circuit(bus).attach, async_circuit(bus).attach]


@pytest.mark.parametrize(
    ("arguments", "options", "error", "quoted"),
    [
        ((Listener,), {}, TypeError, r"Listener\(\.\.\.\)"),
        ((None,), {}, TypeError, "None"),
        (("print",), {}, TypeError, "'print'"),
        ((Listener(), "StateChanged"), {}, TypeError, "'StateChanged'"),
        ((Listener(), int), {}, TypeError, "int"),
        ((Listener(), object), {}, TypeError, "object"),
        ((Listener(), StateChanged, None), {}, TypeError, "None"),
        ((Listener(), (StateChanged, CallFailed)), {}, TypeError, "StateChanged"),
        ((Wishing(StateChanged),), {}, TypeError, "StateChanged"),
        ((Wishing("StateChanged"),), {}, TypeError, "StateChanged|'S'"),
        ((Wishing(5),), {}, TypeError, "5"),
        ((Wishing([StateChanged, "open"]),), {}, TypeError, "'open'"),
        ((Wishing([]),), {}, ValueError, "Wishing"),
        ((Listener(),), {"delivery": "later"}, ValueError, "'later'"),
        ((Listener(),), {"delivery": ["inline"]}, ValueError, r"\['inline'\]"),
        ((Listener(),), {"queue_size": 0}, ValueError, "0"),
        ((Listener(),), {"queue_size": -5}, ValueError, "-5"),
        ((Listener(),), {"queue_size": 1.5}, TypeError, "1.5"),
        ((Listener(),), {"queue_size": True}, TypeError, "True"),
        ((Listener(),), {"queue_size": "many"}, TypeError, "'many'"),
        ((Listener(),), {"queue_size": float("nan")}, TypeError, "nan"),
    ],
)
def test_attach_quotes_what_is_wrong(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], quoted: str
) -> None:
    """Every way of attaching refuses a wrong argument, quotes it, and attaches nothing."""
    for attach in ways(Bus()):
        with pytest.raises(error, match=quoted):
            attach(*arguments, **options)


@pytest.mark.parametrize(
    ("patterns", "error", "quoted"),
    [
        ("", ValueError, "''"),
        ("  ", ValueError, "'  '"),
        (["pay-*", ""], ValueError, "''"),
        (["pay-*", None], TypeError, "None"),
        (b"pay", TypeError, "112|b'pay'"),
        (5, TypeError, "5"),
        (None, TypeError, "None"),
        ([], ValueError, r"\[\]|empty"),
    ],
)
def test_attach_quotes_a_wrong_pattern(patterns: Any, error: type[Exception], quoted: str) -> None:
    """A pattern that can match nothing is refused by name."""
    with pytest.raises(error, match=f"circuits.*({quoted})"):
        Bus().attach(Listener(), circuits=patterns)


@pytest.mark.parametrize(
    ("listeners", "quoted"),
    [
        (Listener(), "Listener"),
        (Listener, "Listener"),
        (print, "print"),
        (5, "5"),
        ([Listener], r"Listener\(\.\.\.\)"),
        ([None], "None"),
        ("log", "'l'|'log'"),
    ],
)
def test_a_breaker_quotes_wrong_listeners(listeners: Any, quoted: str) -> None:
    """A single listener where a list is meant, a class, or nonsense in the list: refused by name."""
    for make in (circuit, async_circuit):
        with pytest.raises(TypeError, match=quoted):
            make(Bus(), listeners=listeners)


def test_a_breaker_that_could_not_be_made_leaves_nothing_attached() -> None:
    """When one of the `listeners` is refused, those before it are let go, and closed as they should be."""

    class Closing(Listener):
        closed = 0

        def close(self) -> None:
            self.closed += 1

    bus, listener = Bus(), Closing()
    for wrong in ([listener, None], [listener, Wishing([])]):
        with pytest.raises((TypeError, ValueError)):
            circuit(bus, listeners=wrong)
    assert listener.closed == 2
    gone = weakref.ref(listener)
    del listener, wrong
    gc.collect()
    assert gone() is None
    assert bus.circuits() == []


@pytest.mark.parametrize("bus", [Bus, object(), fluxgate, "default"])
def test_a_breaker_quotes_a_wrong_bus(bus: Any) -> None:
    """What is no bus is refused by name."""
    with pytest.raises(TypeError, match="bus"):
        CircuitBreaker("payments", bus=bus)


@pytest.mark.parametrize(
    ("timeout", "error"), [(-1, ValueError), (float("nan"), ValueError), ("5", TypeError), (None, TypeError)]
)
def test_flush_quotes_a_wrong_timeout(timeout: Any, error: type[Exception]) -> None:
    """`flush` waits for a number of seconds of at least 0."""
    with pytest.raises(error, match="timeout"):
        Bus().flush(timeout)


# -- closing --------------------------------------------------------------------------------------------------------


class Closing(EventRecorder):
    """A recorder that counts its closings."""

    def __init__(self, *kinds: type[Event]) -> None:
        super().__init__(*(kinds or (StateChanged,)))
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


def test_a_closed_subscription_delivers_no_more() -> None:
    """After `close()` the listener hears nothing, other listeners all."""
    bus, leaving, staying = Bus(), EventRecorder(), EventRecorder()
    cb = circuit(bus)
    for attach in (bus.attach, cb.attach):
        subscription = attach(leaving)
        with attach(staying):
            cb.force_open()
            subscription.close()
            leaving.clear()
            cb.reset()
            assert not leaving.events_seen
            assert moves(staying)[-2:] == [State.FORCED_OPEN, State.CLOSED]


def test_closing_twice_does_nothing() -> None:
    """A second `close()`, from wherever, is harmless and closes the listener no second time."""
    bus, listener = Bus(), Closing()
    with bus.attach(listener) as subscription:
        assert subscription.active
        subscription.close()
        subscription.close()
        assert not subscription.active
    assert listener.closed == 1


def test_a_subscription_is_a_context_manager() -> None:
    """`with` closes it, also when the block raises."""
    bus, listener = Bus(), Closing()
    cb = circuit(bus)
    subscription = bus.attach(listener)
    with pytest.raises(ValueError, match="block"):
        with subscription as entered:
            assert entered is subscription
            cb.force_open()
            raise ValueError("block")
    cb.reset()
    assert not subscription.active
    assert moves(listener) == [State.FORCED_OPEN]
    assert listener.closed == 1


def test_a_listener_is_closed_with_its_last_subscription() -> None:
    """A listener's own `close()` is called once, when no subscription of it is left, and not before."""
    bus, listener = Bus(), Closing()
    one, other = circuit(bus, "one"), circuit(bus, "other")
    subscriptions = [bus.attach(listener), one.attach(listener), other.attach(listener, delivery="background")]
    for subscription in subscriptions:
        assert listener.closed == 0
        subscription.close()
    assert listener.closed == 1


def test_a_listener_may_be_attached_again_after_its_close() -> None:
    """A closed listener that is attached anew hears events, and is closed once more at its new end."""
    bus, listener = Bus(), Closing()
    cb = circuit(bus)
    for times in (1, 2):
        with bus.attach(listener):
            cb.force_open()
            cb.reset()
        assert listener.closed == times
    assert len(listener.events_seen) == 4


def test_a_close_that_raises_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A listener whose `close()` raises does not disturb who detaches it; the log has the traceback."""

    class Broken(Listener):
        def close(self) -> None:
            raise OSError("cannot close")

    Bus().attach(Broken()).close()
    (record,) = caplog.records
    assert "Broken" in record.getMessage()
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], OSError)


def test_a_close_that_is_no_method_is_left_alone() -> None:
    """An attribute `close` that cannot be called is no part of the listener's contract."""

    class Odd(Listener):
        close = "never"

    Bus().attach(Odd()).close()


def test_a_listener_may_close_its_own_subscription() -> None:
    """A listener that detaches itself hears nothing more, the others all; its `close()` is called."""
    bus, before, after = Bus(), EventRecorder(StateChanged), EventRecorder(StateChanged)

    class Once(Closing):
        def __call__(self, event: Event) -> None:
            super().__call__(event)
            subscription.close()

    once = Once()
    bus.attach(before)
    subscription = bus.attach(once)
    bus.attach(after)
    cb = circuit(bus)
    cb.force_open()
    cb.reset()
    assert moves(once) == [State.FORCED_OPEN]
    assert moves(before) == moves(after) == [State.FORCED_OPEN, State.CLOSED]
    assert once.closed == 1


def test_a_listener_may_close_another_that_comes_after_it() -> None:
    """A subscription that closes while an event is on its way does not get that event."""
    bus, victim = Bus(), Closing()
    bus.attach(lambda event: subscription.close())
    subscription = bus.attach(victim)
    circuit(bus).force_open()
    assert not victim.events_seen
    assert victim.closed == 1


@pytest.mark.parametrize("delivery", ["inline", "background"])
@pytest.mark.parametrize("own", [False, True], ids=["process-wide", "own"])
def test_no_call_comes_after_close_has_returned(delivery: Any, own: bool) -> None:
    """Under fire from several threads, a listener is not called once its `close()` has returned."""
    bus = Bus()
    cb = circuit(bus, tripper=FailureStreak(10**9))
    end = threading.Event()

    def calls() -> None:
        while not end.is_set():
            cb.call(int)

    def round_trip() -> None:
        heard, closed = threading.Event(), threading.Event()
        late: list[Event] = []

        def listener(event: Event) -> None:
            if closed.is_set():
                late.append(event)
            heard.set()

        subscription = (cb if own else bus).attach(listener, CallStarted, CallSucceeded, delivery=delivery)
        assert arrives(heard)
        subscription.close()
        closed.set()
        for _ in range(20):
            cb.call(int)
        assert not late

    callers = [Running(calls) for _ in range(3)]
    try:
        with restless():
            for _ in range(30):
                round_trip()
    finally:
        end.set()
    assert all(caller.done() for caller in callers)


def test_close_waits_for_the_call_that_is_under_way() -> None:
    """`close()` from another thread lets a listener that is being called finish first."""
    bus, finished = Bus(), threading.Event()
    inside, outside = threading.Event(), threading.Event()

    def listener(event: Event) -> None:
        inside.set()
        outside.wait(0.2)  # nobody sets it: `close` must sit this out
        finished.set()

    subscription = bus.attach(listener)
    calling = Running(circuit(bus).force_open)
    assert arrives(inside)
    subscription.close()
    assert finished.is_set()
    assert calling.done()


def test_close_does_not_wait_for_ever() -> None:
    """A listener that never comes back does not hang who detaches it, nor is it called again."""
    bus, gate = Bus(), Gate()
    calls: list[Event] = []

    def listener(event: Event) -> None:
        calls.append(event)
        gate()

    subscription = bus.attach(listener)
    cb = circuit(bus)
    calling = Running(cb.force_open)
    assert gate.reached()
    assert Running(subscription.close).done()
    cb.reset()
    gate.open()
    assert calling.done()
    assert len(calls) == 1


def test_two_listeners_that_close_each_other_do_not_deadlock() -> None:
    """Two threads, each within a listener that detaches the other's: both come through."""
    bus = Bus()
    both = threading.Barrier(2)
    subscriptions: list[Subscription] = []

    def closing(index: int) -> Callable[[Event], None]:
        def listener(event: Event) -> None:
            both.wait(PATIENCE)
            subscriptions[index].close()

        return listener

    circuits = [circuit(bus, "a"), circuit(bus, "b")]
    subscriptions += [circuits[0].attach(closing(1)), circuits[1].attach(closing(0))]
    together(*[cb.force_open for cb in circuits])
    assert not any(subscription.active for subscription in subscriptions)


def test_attaching_and_closing_under_fire_loses_nothing() -> None:
    """While others come and go, a listener that stays hears every event, once and in order."""
    bus, recorder = Bus(), EventRecorder(CallSucceeded)
    cb = circuit(bus)
    bus.attach(recorder)

    def calls() -> None:
        for _ in range(150):
            cb.call(int)

    def visits() -> None:
        for _ in range(50):
            with bus.attach(EventRecorder()), cb.attach(EventRecorder(CallStarted)):
                pass

    with restless():
        together(calls, calls, visits, visits)
    assert len(recorder.events_seen) == 300
    assert numbers(recorder) == sorted(set(numbers(recorder)))
    assert len({event.call_id for event in recorder.of(CallSucceeded)}) == 300


# -- listeners that raise -------------------------------------------------------------------------------------------


class Fatal(BaseException):
    """What `except Exception` does not catch."""


FAULTS: list[BaseException] = [
    ValueError("bad"),
    Fatal("bad"),
    CallNotPermittedError("elsewhere"),
    asyncio.CancelledError(),
    GeneratorExit(),
    StopIteration(),
    StopAsyncIteration(),
    RecursionError(),
]
each_fault = pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)


def raising(fault: BaseException, *kinds: type[Event]) -> Callable[[Event], None]:
    def broken(event: Event) -> None:
        raise fault

    broken.events = kinds or (Event,)  # type: ignore[attr-defined]
    return broken


@each_fault
def test_a_listeners_error_reaches_nobody(fault: BaseException) -> None:
    """Callers get their own outcomes, and the listeners before and after hear everything, in order."""
    bus = Bus()
    before, after = EventRecorder(), EventRecorder()
    for listener in (before, raising(fault, CallEnded, CallStarted, StateChanged), after):
        bus.attach(listener)
    cb = circuit(bus)
    assert cb.call(int, "7") == 7
    fail(cb)
    with pytest.raises(CallNotPermittedError):
        cb.call(int)
    assert before.events_seen == after.events_seen
    assert numbers(after) == list(range(1, len(after.events_seen) + 1))
    assert cb.state is State.OPEN
    assert cb.info().metrics.total_count == 2


@each_fault
def test_a_listeners_error_becomes_an_event(fault: BaseException) -> None:
    """`ListenerFailed` names the listener, what it raised and how often it has."""
    bus, recorder = Bus(), EventRecorder(ListenerFailed)
    bus.attach(raising(fault, StateChanged))
    bus.attach(recorder)
    cb = circuit(bus)
    cb.force_open()
    cb.reset()
    first, second = recorder.of(ListenerFailed)
    assert "broken" in first.listener
    assert first.listener == second.listener
    assert (first.role, first.circuit_name) == ("listener", "payments")
    assert first.error_type.endswith(type(fault).__name__)
    if str(fault) == "bad":
        assert first.error == "bad"
    assert (first.count, second.count) == (1, 2)


def test_a_listeners_error_is_logged_once_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """The first failure of each listener is in the log, whole; later ones are counted, not logged."""
    bus = Bus()
    bus.attach(raising(ValueError("one"), StateChanged))
    bus.attach(raising(KeyError("two"), StateChanged))
    cb = circuit(bus)
    for _ in range(5):
        cb.force_open()
        cb.reset()
    assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.ERROR]
    for record, kind in zip(caplog.records, (ValueError, KeyError), strict=True):
        assert record.name.partition(".")[0] == "fluxgate"
        assert "broken" in record.getMessage()
        assert "payments" in record.getMessage()
        assert record.exc_info is not None
        assert record.exc_info[0] is kind
        assert record.exc_info[2] is not None


def test_failures_are_counted_exactly_under_threads() -> None:
    """A listener that fails in several circuits' threads at once is counted to the last failure and logged once."""
    bus, recorder = Bus(), EventRecorder(ListenerFailed)
    bus.attach(raising(ValueError(), CallSucceeded))
    lock = threading.Lock()

    def collect(event: ListenerFailed) -> None:
        with lock:
            recorder(event)

    bus.attach(collect, ListenerFailed)

    def calls() -> None:
        cb = circuit(bus, "many")
        for _ in range(100):
            cb.call(int)

    with restless():
        together(*[calls] * 4)
    assert sorted(event.count for event in recorder.of(ListenerFailed)) == list(range(1, 401))


def test_listeners_that_fail_on_failures_do_not_loop() -> None:
    """Two listeners that raise at `ListenerFailed` too are told of each other's faults a bounded number of times."""
    bus, heard = Bus(), EventRecorder(ListenerFailed)
    calls: list[Event] = []

    def broken(event: Event) -> None:
        calls.append(event)
        assert len(calls) < 100, "a loop"
        raise ValueError

    bus.attach(broken, StateChanged, ListenerFailed)
    bus.attach(lambda event: broken(event), StateChanged, ListenerFailed)
    bus.attach(heard)
    cb = circuit(bus)
    assert Running(cb.force_open).done()
    assert len(heard.events_seen) == 2
    assert len(calls) == 2 + 2 * 2


def test_a_listener_that_breaks_in_its_report_still_counts() -> None:
    """An error with a broken `__str__` from a listener with a broken repr is reported by what words there are."""

    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise ValueError

        __repr__ = __str__

    class Broken:
        def __call__(self, event: Event) -> None:
            raise Unspeakable

        def __repr__(self) -> str:
            raise ValueError

    bus, recorder = Bus(), EventRecorder(ListenerFailed)
    bus.attach(Broken())
    bus.attach(recorder)
    circuit(bus).force_open()
    (failed,) = recorder.of(ListenerFailed)
    assert failed.listener.endswith("Broken")
    assert failed.error_type.endswith("Unspeakable")
    assert "no readable text" in failed.error


@pytest.mark.parametrize("signal", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_a_listener_is_the_programs(signal: type[BaseException]) -> None:
    """Ctrl-C and exit pass on to the caller, but first every listener is told, and the circuit goes on as before."""
    bus, before, after = Bus(), EventRecorder(), EventRecorder()
    bus.attach(before)
    subscription = bus.attach(raising(signal(), StateChanged))
    bus.attach(after)
    cb = circuit(bus)
    with pytest.raises(signal):
        cb.force_open()
    assert cb.state is State.FORCED_OPEN
    assert moves(before) == moves(after) == [State.FORCED_OPEN]
    subscription.close()
    cb.reset()
    assert told(before) == told(after) == ["CircuitCreated", "StateChanged", "StateChanged"]


def test_an_interrupt_while_the_start_is_told_gives_the_place_back() -> None:
    """A probe whose caller is interrupted in a listener of `CallStarted` ends as cancelled and frees its place."""
    bus, recorder, clock = Bus(), EventRecorder(CallStarted, CallEnded), VirtualClock()
    cb = circuit(bus, clock=clock, max_half_open_calls=1)
    fail(cb)
    clock.advance(10)
    bus.attach(recorder)
    subscription = bus.attach(raising(KeyboardInterrupt(), CallStarted))
    with pytest.raises(KeyboardInterrupt):
        cb.call(int)
    subscription.close()
    assert cb.info().probes == 0
    assert told(recorder) == ["CallStarted", "CallCancelled"]
    assert cb.call(int, "7") == 7


@pytest.fixture
def broken_log() -> Iterator[None]:
    """The program's own logging raises at every record of Fluxgate's."""

    def broken(record: logging.LogRecord) -> bool:
        raise OSError("the log is full")

    logger = logging.getLogger("fluxgate")
    logger.addFilter(broken)
    yield
    logger.removeFilter(broken)


@pytest.mark.usefixtures("broken_log")
def test_a_broken_log_reaches_nobody_either() -> None:
    """Where not even the failure can be logged, callers get their outcomes and listeners their events."""
    bus, recorder = Bus(), EventRecorder(StateChanged, ListenerFailed)
    subscription = bus.attach(raising(ValueError("bad"), StateChanged))
    bus.attach(recorder)

    def tracker(error: BaseException) -> bool:
        raise LookupError("worse")

    cb = circuit(bus, tracker=tracker)
    fail(cb)
    assert {event.role for event in recorder.of(ListenerFailed)} == {"tracker", "listener"}
    assert moves(recorder) == [State.OPEN]
    subscription.close()


def test_a_listeners_error_is_not_the_calls_failure() -> None:
    """A listener that raises during a call's events does not make the call a failure."""
    bus = Bus()
    bus.attach(raising(ConnectionError()))
    cb = circuit(bus)
    for _ in range(3):
        cb.call(int)
    info = cb.info()
    assert (info.state, info.metrics.total_count, info.metrics.failure_count) == (State.CLOSED, 3, 0)


def test_a_plain_listener_that_returns_a_coroutine_has_failed(recwarn: pytest.WarningsRecorder) -> None:
    """A coroutine that nobody would await is reported as the listener's failure, and does not warn later."""
    bus, recorder = Bus(), EventRecorder(ListenerFailed)

    async def work(event: Event) -> None:
        raise AssertionError("not to be run")

    bus.attach(lambda event: work(event))
    bus.attach(recorder)
    circuit(bus).force_open()
    gc.collect()
    (failed,) = recorder.of(ListenerFailed)
    assert "coroutine" in failed.error
    assert not recwarn


def test_no_cycle_is_left_of_a_listeners_error() -> None:
    """What a listener raised is freed at once, without the garbage collector's help."""
    bus = Bus()
    watched: list[weakref.ref[Any]] = []

    def broken(event: Event) -> None:
        error = Fatal()
        watched.append(weakref.ref(error))
        try:
            raise error
        finally:
            del error

    subscription = bus.attach(broken)
    cb = circuit(bus)
    logging.getLogger("fluxgate").disabled = True  # the test runner's handlers keep what is logged
    gc.disable()
    try:
        cb.force_open()
        assert [reference() for reference in watched] == [None]
    finally:
        gc.enable()
        logging.getLogger("fluxgate").disabled = False
    subscription.close()


# -- listeners that use the breaker ---------------------------------------------------------------------------------


def attach_another(cb: CircuitBreaker, bus: Bus) -> None:
    cb.attach(EventRecorder()).close()
    bus.attach(EventRecorder()).close()


def call_through(cb: CircuitBreaker, bus: Bus) -> None:
    cb.call_with_fallback(boom, lambda error: None)
    with cb.acquire():
        pass


ACTS: dict[str, Callable[[CircuitBreaker, Bus], object]] = {
    "call": lambda cb, bus: cb.call(int),
    "fail": call_through,
    "info": lambda cb, bus: cb.info(),
    "reset": lambda cb, bus: cb.reset(),
    "disable": lambda cb, bus: cb.disable(),
    "force_open": lambda cb, bus: cb.force_open(),
    "metrics_only": lambda cb, bus: cb.metrics_only(),
    "configure": lambda cb, bus: cb.configure(retry=Cooldown(20)),
    "attach": attach_another,
    "flush": lambda cb, bus: bus.flush(PATIENCE),
    "circuits": lambda cb, bus: bus.circuits(),
    "create": lambda cb, bus: circuit(bus, "another"),
    "retire": lambda cb, bus: cb.retire(),
}


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
def test_a_listener_may_use_the_breaker(act: Callable[[CircuitBreaker, Bus], object]) -> None:
    """Whatever a listener does with the breaker or the bus, there is no deadlock, and the order holds for all."""
    bus, before, after = Bus(), EventRecorder(), EventRecorder()
    acted: list[Event] = []

    def acting(event: StateChanged) -> None:
        if event.circuit_name == "payments" and not acted:
            acted.append(event)
            act(cb, bus)

    bus.attach(before, circuits="payments")
    bus.attach(acting)
    bus.attach(after, circuits="payments")
    cb = circuit(bus)
    assert Running(cb.metrics_only).done(), "a deadlock"
    assert acted
    assert before.events_seen == after.events_seen
    assert numbers(after) == list(range(1, len(after.events_seen) + 1))


def test_events_of_a_listeners_own_calls_come_after_those_already_due() -> None:
    """A listener that acts at once does not jump the queue: every listener hears cause before effect."""
    bus, recorder = Bus(), EventRecorder(StateChanged)

    def heal(event: StateChanged) -> None:
        if event.new_state is State.FORCED_OPEN:
            cb.disable()
            cb.reset()
            assert moves(recorder) == []

    bus.attach(heal)
    bus.attach(recorder)
    cb = circuit(bus)
    cb.force_open()
    assert moves(recorder) == [State.FORCED_OPEN, State.DISABLED, State.CLOSED]


def test_listeners_may_use_each_others_circuits() -> None:
    """Two circuits whose listeners call the other one, from two threads at once: no deadlock."""
    bus = Bus()
    circuits = [circuit(bus, "a"), circuit(bus, "b")]
    both = threading.Barrier(2)

    def crossing(other: CircuitBreaker) -> Callable[[StateChanged], None]:
        def listener(event: StateChanged) -> None:
            if event.new_state is State.FORCED_OPEN:
                both.wait(PATIENCE)
                other.info()
                other.reset()

        return listener

    recorder = EventRecorder(StateChanged)
    for cb, other in zip(circuits, reversed(circuits), strict=True):
        cb.attach(crossing(other))
        cb.attach(recorder)
    together(*[cb.force_open for cb in circuits])
    assert {cb.state for cb in circuits} == {State.CLOSED}
    assert sorted(numbers(recorder)) == [1, 1, 2, 2]


# -- threads --------------------------------------------------------------------------------------------------------


def test_events_come_in_order_and_one_at_a_time_under_threads() -> None:
    """Many threads call one circuit: its listener is never entered twice at once, and sees 1, 2, 3, ..."""
    bus = Bus()
    entered = threading.Lock()
    seen: list[int] = []

    def listener(event: Event) -> None:
        assert entered.acquire(blocking=False), "entered twice"
        seen.append(event.sequence)
        entered.release()

    failures = EventRecorder(ListenerFailed)
    bus.attach(listener, CallStarted, CallEnded, CallRejected, StateChanged)
    bus.attach(failures)
    clock = VirtualClock()
    cb = circuit(bus, tripper=FailureStreak(3), clock=clock)

    def calls() -> None:
        for number in range(150):
            cb.call_with_fallback(boom if number % 4 else int, lambda error: None)
            if number % 10 == 0:
                clock.advance(11)

    with restless():
        together(*[calls] * 4)
    assert not failures.events_seen
    assert seen == list(range(1, len(seen) + 1))


def test_a_slow_listener_holds_up_its_own_caller_alone() -> None:
    """While a listener sits on one thread's event, other threads' calls come through; their events wait in order."""
    bus, gate, recorder = Bus(), Gate(), EventRecorder(CallEnded)
    cb = circuit(bus)
    subscription = cb.attach(gate, CallStarted)
    cb.attach(recorder)
    first = Running(lambda: cb.call(int))
    assert gate.reached()
    others = [Running(lambda: cb.call(int)) for _ in range(3)]
    assert all(other.done() for other in others)
    assert cb.info().metrics.total_count == 3
    assert not first.done(0)
    assert not recorder.events_seen
    gate.open()
    assert first.done()
    assert len(recorder.events_seen) == 4
    assert numbers(recorder) == sorted(numbers(recorder))
    assert numbers(recorder)[-1] == 8
    subscription.close()


def test_a_slow_listener_holds_up_no_other_circuit() -> None:
    """One circuit's blocked listener does not keep another circuit's events from the same bus."""
    bus, gate, recorder = Bus(), Gate(), EventRecorder(StateChanged)
    blocked, free = circuit(bus, "blocked"), circuit(bus, "free")
    bus.attach(gate, circuits="blocked")
    bus.attach(recorder)
    waiting = Running(blocked.force_open)
    assert gate.reached()
    assert Running(free.force_open).done()
    assert [event.circuit_name for event in recorder.events_seen] == ["free"]
    gate.open()
    assert waiting.done()


def test_events_that_wait_behind_a_slow_listener_survive_retirement() -> None:
    """A circuit that retires while its events are on their way still tells them all, its retirement last."""
    bus, gate, recorder = Bus(), Gate(), EventRecorder()
    cb = circuit(bus)
    bus.attach(gate)
    bus.attach(recorder)
    waiting = Running(cb.force_open)
    assert gate.reached()
    cb.reset()
    cb.retire()
    gate.open()
    assert waiting.done()
    assert told(recorder) == ["StateChanged", "StateChanged", "CircuitRetired"]
    core = weakref.ref(cb._core)
    del cb, waiting
    gc.collect()
    assert core() is None


def test_a_dead_circuits_slow_listener_holds_up_no_living_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Burying a circuit whose background listener is stuck is not a caller's business."""
    monkeypatch.setattr("fluxgate._subscription._CLOSE_WAIT", PATIENCE * 2, raising=False)
    bus, gate = Bus(), Gate()
    living, dying = circuit(bus, "living"), circuit(bus, "dying")
    living.attach(EventRecorder())
    dying.attach(gate, delivery="background")
    dying.force_open()
    assert gate.reached()
    del dying
    call = Running(lambda: living.call(int))
    try:
        assert call.done(PATIENCE / 4)
    finally:
        gate.open()
        assert call.done()


# -- context --------------------------------------------------------------------------------------------------------

request: ContextVar[str] = ContextVar("request", default="none")


def test_a_listener_sees_the_context_of_the_call() -> None:
    """Context variables, and so trace ids, are those of the call that the event tells of."""
    seen: list[str] = []
    cb = circuit(Bus(), listeners=[lambda event: seen.append(request.get())])
    for name in ("a", "b"):
        token = request.set(name)
        cb.force_open()
        cb.reset()
        request.reset(token)
    assert seen == ["a", "a", "b", "b"]


def test_a_listener_sees_the_context_of_the_call_in_another_callers_thread() -> None:
    """Where one thread delivers another's events, each still comes with its own call's variables."""
    bus, gate = Bus(), Gate()
    seen: list[tuple[str, str]] = []
    bus.attach(gate, StateChanged)
    bus.attach(lambda event: seen.append((event.error, request.get())), CallFailed)
    cb = circuit(bus, tripper=FailureStreak(99))

    def call_as(name: str) -> Callable[[], None]:
        def call() -> None:
            request.set(name)
            with pytest.raises(ConnectionError):
                cb.call(boom, name)

        return call

    def first() -> None:
        cb.metrics_only()
        call_as("first")()

    waiting = Running(first)
    assert gate.reached()
    for name in ("second", "third"):
        assert Running(call_as(name)).done()
    gate.open()
    assert waiting.done()
    assert seen == [(name, name) for name in ("second", "third", "first")]


def test_every_listener_sees_its_calls_context_under_threads() -> None:
    """Of thousands of events from several threads, none comes with another call's variables."""
    bus = Bus()
    wrong: list[tuple[str, str]] = []

    def listener(event: CallFailed) -> None:
        if event.error != request.get():
            wrong.append((event.error, request.get()))

    bus.attach(listener, CallFailed)
    cb = circuit(bus, tripper=FailureStreak(10**9))

    def calls(name: str) -> None:
        request.set(name)
        for _ in range(1_000):
            cb.call_with_fallback(boom, lambda error: None, name)

    with restless():
        together(*[partial(calls, name) for name in "abcd"])
    assert not wrong


def test_a_calls_context_is_not_the_next_ones() -> None:
    """What is told late, because it was closed where nothing can be awaited, keeps its own call's variables."""
    bus = Bus()
    seen: list[tuple[str, str]] = []

    async def listener(event: Event) -> None:
        seen.append((type(event).__name__, request.get()))

    bus.attach(listener, CallCancelled, CallSucceeded)
    cb = async_circuit(bus)

    async def endless() -> None:
        await Suspend()

    def abandoned() -> None:
        request.set("abandoned")
        call = cb.call(endless)
        call.send(None)
        call.close()

    def following() -> None:
        request.set("next")
        run_async(cb.call(answer))

    copy_context().run(abandoned)
    copy_context().run(following)
    assert seen == [("CallCancelled", "abandoned"), ("CallSucceeded", "next")]


class Suspend:
    """Suspends a coroutine once."""

    def __await__(self) -> Generator[None, None, None]:
        yield


def test_a_listeners_own_variables_stay_its_own_in_anothers_event() -> None:
    """What a listener sets while it is told of another thread's call does not leak into the delivering caller."""
    bus, gate = Bus(), Gate()
    found: list[str] = []
    bus.attach(gate, CallStarted)
    bus.attach(lambda event: request.set("leak"), CallFailed)
    cb = circuit(bus, tripper=FailureStreak(99))

    def first() -> None:
        request.set("first")
        cb.call(int)
        found.append(request.get())

    waiting = Running(first)
    assert gate.reached()
    assert Running(lambda: cb.call_with_fallback(boom, lambda error: None)).done()
    gate.open()
    assert waiting.done()
    assert found == ["first"]


# -- asynchronous circuits ------------------------------------------------------------------------------------------


def test_an_async_listener_is_awaited_before_the_call_returns() -> None:
    """An async breaker's own task awaits its async listeners, each event through before the call's result is there."""
    bus, recorder = Bus(), EventRecorder(CallStarted, CallEnded, StateChanged, CallRejected, FallbackUsed)

    async def listener(event: Event) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        recorder(event)

    async def main() -> None:
        cb = async_circuit(bus)
        bus.attach(listener, *recorder.events)
        assert await cb.call(answer) == 42
        assert told(recorder) == ["CallStarted", "CallSucceeded"]
        with pytest.raises(ConnectionError):
            await cb.call(aboom)
        assert told(recorder)[2:] == ["CallStarted", "CallFailed", "StateChanged"]
        with pytest.raises(CallNotPermittedError):
            async with cb:
                pass
        assert told(recorder)[5:] == ["CallRejected"]
        await cb.reset()
        assert told(recorder)[6:] == ["StateChanged"]
        assert await cb.call_with_fallback(aboom, lambda error: 0) == 0
        assert told(recorder)[7:] == ["CallStarted", "CallFailed", "StateChanged", "FallbackUsed"]

    run_async(main())
    assert numbers(recorder) == list(range(1, 12))


class AsyncObject:
    """A listener whose `__call__` is a coroutine function, with a coroutine function as `close` too."""

    events = (StateChanged,)

    def __init__(self) -> None:
        self.seen: list[Event] = []
        self.closed = 0

    async def __call__(self, event: Event) -> None:
        await asyncio.sleep(0)
        self.seen.append(event)

    async def close(self) -> None:
        await asyncio.sleep(0)
        self.closed += 1


def test_an_async_listener_may_be_an_object() -> None:
    """An object with an async `__call__` is awaited like a coroutine function."""
    listener = AsyncObject()

    async def main() -> None:
        await async_circuit(Bus(), listeners=[listener]).force_open()
        assert len(listener.seen) == 1

    run_async(main())


def test_the_first_call_of_a_breaker_made_in_the_loop_awaits_its_listener() -> None:
    """A breaker that is made and called in one coroutine has told its async listener by the time the call returns."""
    recorder = EventRecorder()

    async def listener(event: Event) -> None:
        await asyncio.sleep(0)
        recorder(event)

    listener.events = (Event,)  # type: ignore[attr-defined]

    async def main() -> None:
        cb = async_circuit(Bus(), listeners=[listener])
        await cb.call(answer)
        assert told(recorder) == ["CircuitCreated", "CallStarted", "CallSucceeded"]

    run_async(main())


def test_plain_and_async_listeners_hear_one_order() -> None:
    """On an async breaker, listeners of both kinds get each event before any gets the next."""
    bus = Bus()
    heard: list[tuple[int, int]] = []

    def plain(index: int) -> Callable[[Event], None]:
        return lambda event: heard.append((event.sequence, index))

    async def slow(event: Event) -> None:
        await asyncio.sleep(0)
        heard.append((event.sequence, 1))

    bus.attach(plain(0), StateChanged)
    bus.attach(slow, StateChanged)
    bus.attach(plain(2), StateChanged)

    async def main() -> None:
        cb = async_circuit(bus)
        await asyncio.gather(cb.force_open(), cb.disable(), cb.reset())
        await asyncio.sleep(0.01)

    run_async(main())
    assert heard == [(sequence, index) for sequence in (1, 2, 3) for index in (0, 1, 2)]


def test_tasks_events_come_one_at_a_time() -> None:
    """Many tasks call one breaker: its async listener is never entered twice at once, and sees 1, 2, 3, ..."""
    seen: list[int] = []
    inside = 0

    async def listener(event: Event) -> None:
        nonlocal inside
        assert inside == 0
        inside += 1
        await asyncio.sleep(0)
        seen.append(event.sequence)
        inside -= 1

    async def main() -> None:
        bus, failures = Bus(), EventRecorder(ListenerFailed)
        bus.attach(listener, CallStarted, CallEnded)
        bus.attach(failures)
        cb = async_circuit(bus, tripper=FailureStreak(99))

        async def work() -> None:
            await asyncio.sleep(0)

        await asyncio.gather(*[cb.call(work) for _ in range(30)])
        await asyncio.sleep(0.01)
        assert not failures.events_seen

    run_async(main())
    assert seen == list(range(1, 61))


@pytest.mark.parametrize(
    "fault",
    [fault for fault in FAULTS if not isinstance(fault, GeneratorExit)],  # which means that the coroutine is closed
    ids=lambda fault: type(fault).__name__,
)
def test_an_async_listeners_error_reaches_nobody(fault: BaseException) -> None:
    """Whatever an async listener raises, a `CancelledError` of its own making too, is reported and harms nobody."""
    bus, before, after = Bus(), EventRecorder(StateChanged), EventRecorder(StateChanged, ListenerFailed)

    async def broken(event: Event) -> None:
        await asyncio.sleep(0)
        raise fault

    for listener in (before, broken, after):
        bus.attach(listener)

    async def main() -> None:
        cb = async_circuit(bus)
        with pytest.raises(ConnectionError):
            await cb.call(aboom)
        assert told(before) == ["StateChanged"]
        assert told(after) == ["StateChanged", "ListenerFailed"]
        await cb.reset()
        assert await cb.call(answer) == 42

    run_async(main())
    assert moves(before) == moves(after) == [State.OPEN, State.CLOSED]
    assert [event.count for event in after.of(ListenerFailed)] == [1, 2]


def test_an_async_listener_that_cancels_itself_has_failed() -> None:
    """A listener that cancels the task that it runs in does not cancel the caller, nor cost others the event."""
    bus, recorder = Bus(), EventRecorder(StateChanged, ListenerFailed)

    async def broken(event: Event) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    bus.attach(broken)
    bus.attach(recorder)

    async def main() -> None:
        cb = async_circuit(bus)
        await cb.force_open()
        await cb.reset()

    run_async(main())
    assert told(recorder) == ["StateChanged", "ListenerFailed", "StateChanged", "ListenerFailed"]


def test_an_exit_in_an_async_listener_hides_no_other_listener() -> None:
    """`SystemExit` leaves the program, but first every listener is told."""
    bus, after = Bus(), EventRecorder(StateChanged)

    async def leaving(event: Event) -> None:
        raise SystemExit(3)

    subscription = bus.attach(leaving)
    bus.attach(after)
    cb = async_circuit(bus)
    with pytest.raises(SystemExit):
        asyncio.run(cb.force_open())
    subscription.close()
    run_async(cb.reset())
    assert moves(after) == [State.FORCED_OPEN, State.CLOSED]


def test_a_cancelled_caller_does_not_cut_an_async_listener_short() -> None:
    """The caller gets its `CancelledError`, the listener comes to its end, and later events follow in order."""
    recorder = EventRecorder()

    async def main() -> None:
        inside, go_on = asyncio.Event(), asyncio.Event()

        async def listener(event: Event) -> None:
            inside.set()
            await go_on.wait()
            recorder(event)

        cb = async_circuit(Bus())
        cb.attach(listener, StateChanged)
        caller = asyncio.create_task(cb.force_open())
        await inside.wait()
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert not recorder.events_seen
        await cb.disable()
        go_on.set()
        await cb.reset()
        await asyncio.sleep(0.01)
        assert moves(recorder) == [State.FORCED_OPEN, State.DISABLED, State.CLOSED]
        assert numbers(recorder) == [1, 2, 3]

    run_async(main())


def test_a_caller_cancelled_while_its_start_is_told_gives_its_place_back() -> None:
    """A probe that is cancelled in an async listener of `CallStarted` is told as cancelled and frees its place."""

    async def main() -> None:
        bus, clock, recorder = Bus(), VirtualClock(), EventRecorder(CallStarted, CallEnded)
        inside, go_on = asyncio.Event(), asyncio.Event()

        async def listener(event: Event) -> None:
            inside.set()
            await go_on.wait()

        cb = async_circuit(bus, clock=clock, max_half_open_calls=1)
        with pytest.raises(ConnectionError):
            await cb.call(aboom)
        clock.advance(10)
        bus.attach(recorder)
        cb.attach(listener, CallStarted)
        starts: list[Callable[[], Any]] = [lambda: cb.call(answer), cb.acquire, cb.__aenter__]
        for start in starts:
            recorder.clear()
            inside.clear()
            go_on.clear()
            caller = asyncio.create_task(start())
            await inside.wait()
            caller.cancel()
            with pytest.raises(asyncio.CancelledError):
                await caller
            go_on.set()
            await asyncio.sleep(0.01)
            assert cb.info().probes == 0
            assert told(recorder) == ["CallStarted", "CallCancelled"]

    run_async(main())


def test_an_async_listener_may_use_the_breaker() -> None:
    """An async listener that calls, steers, configures and looks: no deadlock, and the order holds."""
    bus, recorder = Bus(), EventRecorder()

    async def acting(event: StateChanged) -> None:
        if event.new_state is State.FORCED_OPEN:
            await cb.reset()
            assert await cb.call(answer) == 42
            await cb.configure(retry=Cooldown(20))
            assert cb.info().state is State.CLOSED
            assert bus.flush(PATIENCE)
            bus.attach(EventRecorder()).close()

    bus.attach(acting)
    bus.attach(recorder, StateChanged, CallSucceeded, Reconfigured)
    cb = async_circuit(bus)
    run_async(cb.force_open())
    assert told(recorder) == ["StateChanged", "StateChanged", "CallSucceeded", "Reconfigured"]
    assert numbers(recorder) == [1, 2, 3, 4]


def test_a_loop_that_ended_in_the_middle_of_a_delivery_is_survived() -> None:
    """`asyncio.run` ends while a listener waits: the next loop's calls are told, in order."""
    bus, recorder = Bus(), EventRecorder(StateChanged)
    stuck: list[Event] = []

    async def listener(event: Event) -> None:
        if not stuck:
            stuck.append(event)
            await asyncio.Event().wait()
        recorder(event)

    bus.attach(listener)
    cb = async_circuit(bus)

    async def impatient() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await cb.force_open()
        await cb.disable()

    asyncio.run(impatient())
    run_async(cb.reset())
    assert moves(recorder) == [State.DISABLED, State.CLOSED]


def test_a_loop_that_was_closed_in_the_middle_of_a_delivery_is_survived() -> None:
    """So it is where nobody cancelled the loop's tasks before it was closed."""
    bus, recorder = Bus(), EventRecorder(StateChanged)
    stuck: list[Event] = []

    async def listener(event: Event) -> None:
        if not stuck:
            stuck.append(event)
            await asyncio.Event().wait()
        recorder(event)

    bus.attach(listener)
    cb = async_circuit(bus)

    async def impatient() -> None:
        caller = asyncio.create_task(cb.force_open())
        await asyncio.sleep(0.01)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller

    loop = asyncio.new_event_loop()
    loop.run_until_complete(impatient())
    loop.close()
    run_async(cb.reset())
    assert moves(recorder) == [State.CLOSED]


def test_a_listener_that_was_cut_short_by_its_loop_hides_no_other() -> None:
    """The end of the loop may end the listener that it runs; the listeners after it still get the event."""
    bus, recorder = Bus(), EventRecorder(StateChanged)
    stuck: list[Event] = []

    async def listener(event: Event) -> None:
        if not stuck:
            stuck.append(event)
            await asyncio.Event().wait()

    bus.attach(listener)
    bus.attach(recorder)
    cb = async_circuit(bus)

    async def impatient() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await cb.force_open()

    asyncio.run(impatient())
    run_async(cb.reset())
    assert moves(recorder) == [State.FORCED_OPEN, State.CLOSED]


def test_one_async_breaker_serves_two_loops_in_two_threads() -> None:
    """Two loops call one breaker at once: every event is told once, in order, one at a time, in the call's context."""
    bus = Bus()
    seen: list[int] = []
    wrong: list[str] = []
    entered = threading.Lock()

    async def listener(event: CallFailed) -> None:
        if not entered.acquire(blocking=False):
            wrong.append("entered twice")
            return
        await asyncio.sleep(0)
        seen.append(event.sequence)
        if event.error != request.get():
            wrong.append(f"{event.error} as {request.get()}")
        entered.release()

    bus.attach(listener, CallFailed)
    cb = async_circuit(bus, tripper=FailureStreak(10**9))

    def loop(name: str) -> None:
        async def main() -> None:
            request.set(name)
            for _ in range(100):
                await cb.call_with_fallback(aboom, lambda error: None, name)

        run_async(main())

    with restless():
        together(lambda: loop("a"), lambda: loop("b"))
    run_async(cb.call_with_fallback(aboom, lambda error: None, "none"))
    assert not wrong
    assert seen == list(range(1, 202))


def test_an_async_listeners_close_is_awaited_in_the_running_loop() -> None:
    """Detached within a coroutine, a listener with an async `close` is closed all the same, without a warning."""
    listener = AsyncObject()

    async def main() -> None:
        with Bus().attach(listener):
            pass
        await asyncio.sleep(0.01)

    run_async(main())
    gc.collect()
    assert listener.closed == 1


def test_an_async_listeners_close_is_awaited_without_a_loop() -> None:
    """Detached where no loop runs, a listener with an async `close` is closed by the time `close()` returns."""
    listener = AsyncObject()
    Bus().attach(listener).close()
    assert listener.closed == 1


def test_an_async_circuit_without_a_loop_tells_its_creation_with_the_first_call() -> None:
    """What happens before any loop runs reaches an async listener first of all in the first call."""
    recorder = EventRecorder()

    async def listener(event: Event) -> None:
        recorder(event)

    bus = Bus()
    bus.attach(listener, CircuitCreated, CallSucceeded)
    cb = async_circuit(bus)
    assert not recorder.events_seen
    run_async(cb.call(answer))
    assert told(recorder) == ["CircuitCreated", "CallSucceeded"]


# -- the life of circuits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [circuit, async_circuit], ids=["sync", "async"])
def test_a_circuit_is_told_at_its_beginning_and_its_end(
    make: Callable[[Bus], AnyBreaker],
) -> None:
    """`CircuitCreated` comes first and `CircuitRetired` last, by `retire()` as by garbage collection."""
    bus, recorder = Bus(), EventRecorder()
    bus.attach(recorder)
    cb = make(bus)
    cb.retire()
    assert told(recorder) == ["CircuitCreated", "CircuitRetired"]
    cb.retire()
    del cb
    assert bus.circuits() == []
    assert told(recorder) == ["CircuitCreated", "CircuitRetired"]
    assert numbers(recorder) == [1, 2]

    recorder.clear()
    dropped = make(bus)
    del dropped
    assert bus.circuits() == []
    assert told(recorder) == ["CircuitCreated", "CircuitRetired"]


def test_a_retired_circuit_still_protects() -> None:
    """Calls through a retired breaker work, trip it and are refused, and nobody is told."""
    bus, recorder = Bus(), Closing(Event)
    cb = circuit(bus, listeners=[recorder])
    cb.retire()
    recorder.clear()
    fail(cb)
    with pytest.raises(CallNotPermittedError):
        cb.call(int)
    assert not recorder.events_seen
    assert recorder.closed == 1
    assert bus.circuits() == []


@pytest.mark.parametrize("letting_go", ["retired", "collected"])
def test_what_nobody_heard_of_is_still_logged_when_a_circuit_goes(
    letting_go: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A rule that failed as an interrupt came: the log says so, though the circuit is gone and nobody observes it."""
    bus = Bus()
    cb = circuit(bus)
    cb._core.fault("tracker", "a rule", ValueError("no"))
    assert not caplog.records
    if letting_go == "retired":
        cb.retire()
    del cb
    gc.collect()
    bus.bury()
    (record,) = caplog.records
    assert "tracker" in record.getMessage()


def test_the_bus_forgets_a_retired_circuit_when_it_is_gone() -> None:
    """Until then it is held while the process forks, since a call may be in flight."""
    bus = Bus()
    cb = circuit(bus)
    core = weakref.ref(cb._core)
    cb.retire()
    cb.retire()
    assert [core()] == bus._all_cores()
    del cb
    gc.collect()
    assert core() is None
    assert bus._all_cores() == [] == [*bus._retired]


def test_nothing_is_published_of_a_retired_circuit() -> None:
    """Whoever attaches to a retired circuit does not make those hear of it who were told that it is gone."""
    bus, recorder = Bus(), EventRecorder()
    bus.attach(recorder)
    cb = circuit(bus)
    cb.retire()
    with cb.attach(EventRecorder()):
        cb.call(int)
    fail(cb)
    assert told(recorder) == ["CircuitCreated", "CircuitRetired"]


def test_an_own_listener_of_an_async_circuit_hears_of_its_retirement() -> None:
    """An async listener of the circuit itself is told that it retires, before it is let go."""
    recorder = EventRecorder()

    async def listener(event: Event) -> None:
        recorder(event)

    async def main() -> None:
        cb = async_circuit(Bus())
        cb.attach(listener, CircuitRetired)
        cb.retire()
        await asyncio.sleep(0.01)

    run_async(main())
    assert told(recorder) == ["CircuitRetired"]


def test_an_async_circuit_that_dies_without_a_loop_is_told_of() -> None:
    """Its retirement reaches plain listeners, and async ones at the latest when a loop runs again."""
    bus, plain, awaited = Bus(), EventRecorder(CircuitRetired), EventRecorder(CircuitRetired)

    async def listener(event: Event) -> None:
        awaited(event)

    bus.attach(plain)
    bus.attach(listener, CircuitRetired)
    living, dying = async_circuit(bus, "living"), async_circuit(bus, "dying")
    del dying
    assert bus.circuits() == [living]
    run_async(living.force_open())
    assert bus.flush(PATIENCE)
    assert [event.circuit_name for event in plain.events_seen] == ["dying"]
    assert [event.circuit_name for event in awaited.events_seen] == ["dying"]


def test_thousands_of_async_circuits_that_died_without_a_loop_are_told_of() -> None:
    """However many there are, the next loop's first call tells of them all."""
    bus, recorder = Bus(), EventRecorder(CircuitRetired)

    async def listener(event: Event) -> None:
        recorder(event)

    bus.attach(listener, CircuitRetired)
    living = async_circuit(bus, "living")
    dying = [AsyncCircuitBreaker(f"c{number}", bus=bus) for number in range(2_000)]
    del dying
    assert bus.circuits() == [living]
    run_async(living.force_open())
    assert len(recorder.events_seen) == 2_000


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Only reference counts free anything."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("make", [circuit, async_circuit], ids=["sync", "async"])
def test_a_dropped_breaker_is_freed_at_once(make: Callable[..., AnyBreaker]) -> None:
    """No cycle holds a breaker, with listeners and after calls neither, and its own listeners go with it."""
    bus, everywhere = Bus(), EventRecorder()
    bus.attach(everywhere)
    own = Closing(Event)
    cb = make(bus, listeners=[own])
    if isinstance(cb, CircuitBreaker):
        fail(cb)
    else:
        with pytest.raises(ConnectionError):
            cb.call(aboom).send(None)
    gone, listener_gone = weakref.ref(cb), weakref.ref(own)
    del cb
    assert gone() is None
    bus.circuits()
    assert told(everywhere)[-1] == "CircuitRetired"
    assert own.closed == 1
    del own
    assert listener_gone() is None


@pytest.mark.usefixtures("no_collector")
def test_a_decorated_function_keeps_its_breaker() -> None:
    """The breaker lives as long as a function that it protects, and no longer."""
    bus, recorder = Bus(), EventRecorder(CircuitRetired)
    bus.attach(recorder)
    protected = circuit(bus)(boom)
    assert [cb.name for cb in bus.circuits()] == ["payments"]
    with pytest.raises(ConnectionError):
        protected()
    with pytest.raises(CallNotPermittedError):
        protected()
    del protected
    assert bus.circuits() == []
    assert len(recorder.events_seen) == 1


@pytest.mark.usefixtures("no_collector")
def test_a_retirement_is_told_with_the_next_thing_that_happens() -> None:
    """Without anybody asking for it, another circuit's call is occasion enough."""
    bus, recorder = Bus(), EventRecorder(CircuitRetired)
    bus.attach(recorder)
    living, dying = circuit(bus, "living"), circuit(bus, "dying")
    del dying
    assert not recorder.events_seen
    living.force_open()
    assert [event.circuit_name for event in recorder.events_seen] == ["dying"]


def alive(*kinds: type[Any]) -> int:
    gc.collect()
    return sum(isinstance(each, kinds) for each in gc.get_objects())


def test_ten_thousand_circuits_leave_nothing_behind() -> None:
    """Circuits that come, are listened to and go leave neither breaker nor subscription nor listener."""
    bus, recorder = Bus(), EventRecorder(CircuitRetired)
    kinds = (CircuitBreaker, Subscription, Closing)
    before = alive(*kinds)
    with bus.attach(recorder):
        for _ in range(10):
            circuits = [CircuitBreaker(f"c{number}", bus=bus) for number in range(1_000)]
            subscriptions = [cb.attach(Closing()) for cb in circuits]
            while subscriptions:
                subscriptions.pop().close()
                subscriptions.pop()
            del circuits
            assert bus.circuits() == []
    assert len(recorder.events_seen) == 10_000
    assert alive(*kinds) == before


def test_circuits_may_come_and_go_under_threads() -> None:
    """Threads that make, use and drop circuits of one bus do not trip over each other's burials."""
    bus = Bus()
    counts = {"created": 0, "retired": 0}
    lock = threading.Lock()

    def count(event: CircuitCreated | CircuitRetired) -> None:
        with lock:
            counts["created" if isinstance(event, CircuitCreated) else "retired"] += 1

    bus.attach(count, CircuitCreated, CircuitRetired)

    def churn() -> None:
        for number in range(100):
            cb = circuit(bus, f"c{number}", listeners=[EventRecorder()])
            cb.call(int)
            cb.force_open()
            del cb
            bus.circuits()

    with restless():
        together(*[churn] * 4)
    assert bus.circuits() == []
    assert counts == {"created": 400, "retired": 400}


def test_a_bus_that_is_dropped_is_freed() -> None:
    """A bus of one's own goes with all that it holds, circuits, listeners and subscriptions."""
    bus, listener = Bus(), EventRecorder()
    cb = circuit(bus, listeners=[EventRecorder()])
    bus.attach(listener)
    gone = weakref.ref(bus), weakref.ref(cb), weakref.ref(listener)
    del bus, cb, listener
    gc.collect()
    assert [reference() for reference in gone] == [None] * 3


def test_shadow_mode_tells_what_would_have_happened() -> None:
    """`WouldOpen` reaches a listener each time the rule would have tripped, and no state changes."""
    recorder = EventRecorder(WouldOpen, StateChanged)
    cb = circuit(Bus(), listeners=[recorder])
    cb.metrics_only()
    for _ in range(2):
        fail(cb)
    assert told(recorder) == ["StateChanged", "WouldOpen", "WouldOpen"]
    assert {event.metrics.total_count for event in recorder.of(WouldOpen)} == {1}
