"""Background delivery: a bounded queue that never holds up a caller, loses nothing unsaid and can be waited for."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import pytest

from fluxgate import AsyncCircuitBreaker, Bus, CircuitBreaker, FailureStreak, State
from fluxgate.events import (
    CallEnded,
    CallFailed,
    CallStarted,
    CallSucceeded,
    CircuitCreated,
    CircuitRetired,
    Event,
    EventsDropped,
    ListenerFailed,
    StateChanged,
)
from fluxgate.testing import EventRecorder, VirtualClock
from tests.running import PATIENCE, Running, arrives, restless, run_async, together

request: ContextVar[str] = ContextVar("request", default="none")


def circuit(bus: Bus, name: str = "payments", **rules: Any) -> CircuitBreaker:
    defaults: dict[str, Any] = {"clock": VirtualClock(), "tripper": FailureStreak(10**9)}
    return CircuitBreaker(name, bus=bus, **defaults | rules)


def async_circuit(bus: Bus, name: str = "payments", **rules: Any) -> AsyncCircuitBreaker:
    defaults: dict[str, Any] = {"clock": VirtualClock(), "tripper": FailureStreak(10**9)}
    return AsyncCircuitBreaker(name, bus=bus, **defaults | rules)


async def answer() -> int:
    return 42


def boom(text: str = "no route") -> None:
    raise ConnectionError(text)


def numbers(events: list[Event]) -> list[int]:
    return [event.sequence for event in events]


def states(events: list[Event]) -> list[State]:
    return [event.new_state for event in events if isinstance(event, StateChanged)]


class Blocked(EventRecorder):
    """A recorder that waits within its first event until it is let go."""

    def __init__(self, *kinds: type[Event]) -> None:
        super().__init__(*(kinds or (CallSucceeded,)))
        self.inside = threading.Event()
        self.free = threading.Event()

    def __call__(self, event: Event) -> None:
        self.inside.set()
        assert self.free.wait(PATIENCE), "nobody let it go"
        super().__call__(event)


class AsyncRecorder:
    """A recorder that awaits something within each event, and notes where it ran."""

    def __init__(self, *kinds: type[Event]) -> None:
        self.events = kinds or (StateChanged,)
        self.seen: list[Event] = []
        self.loops: list[asyncio.AbstractEventLoop] = []
        self.threads: set[int] = set()
        self.closed: list[asyncio.AbstractEventLoop] = []

    async def __call__(self, event: Event) -> None:
        self.loops.append(asyncio.get_running_loop())
        self.threads.add(threading.get_ident())
        await asyncio.sleep(0)
        self.seen.append(event)

    async def close(self) -> None:
        await asyncio.sleep(0)
        self.closed.append(asyncio.get_running_loop())


# -- delivery -------------------------------------------------------------------------------------------------------


def test_events_arrive_in_order_in_another_thread() -> None:
    """A background listener hears everything in sequence order, in one thread that is not the caller's."""
    bus, threads = Bus(), set[int]()
    recorder = EventRecorder(CallStarted, CallEnded)

    def listener(event: Event) -> None:
        threads.add(threading.get_ident())
        recorder(event)

    with bus.attach(listener, *recorder.events, delivery="background"):
        cb = circuit(bus)
        for _ in range(500):
            cb.call(int)
        assert bus.flush(PATIENCE)
        assert numbers(recorder.events_seen) == list(range(1, 1_001))
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_events_from_many_threads_arrive_in_order_and_one_at_a_time() -> None:
    """Under threads, too, a background listener sees 1, 2, 3, ... and is never entered twice at once."""
    bus, seen, entered = Bus(), list[int](), threading.Lock()
    failures = EventRecorder(ListenerFailed)

    def listener(event: Event) -> None:
        assert entered.acquire(blocking=False), "entered twice"
        seen.append(event.sequence)
        entered.release()

    bus.attach(failures)
    with bus.attach(listener, CallStarted, CallSucceeded, delivery="background"):
        cb = circuit(bus)

        def calls() -> None:
            for _ in range(200):
                cb.call(int)

        with restless():
            together(*[calls] * 4)
        assert bus.flush(PATIENCE)
    assert seen == list(range(1, 1_601))
    assert not failures.events_seen


def test_a_subscription_to_many_circuits_keeps_each_ones_order() -> None:
    """A process-wide background listener hears each circuit's events in that circuit's order."""
    bus, recorder = Bus(), EventRecorder(CallSucceeded)
    bus.attach(recorder, delivery="background")
    circuits = [circuit(bus, name) for name in "abc"]

    def calls(cb: CircuitBreaker) -> Callable[[], None]:
        def call() -> None:
            for _ in range(100):
                cb.call(int)

        return call

    with restless():
        together(*[calls(cb) for cb in circuits])
    assert bus.flush(PATIENCE)
    for name in "abc":
        mine = [event for event in recorder.events_seen if event.circuit_name == name]
        assert numbers(mine) == list(range(1, 101))


def test_a_blocked_listener_holds_up_neither_callers_nor_other_listeners() -> None:
    """While one background listener is stuck, calls go through, and inline and background listeners hear them."""
    bus, blocked = Bus(), Blocked()
    inline, background = EventRecorder(CallSucceeded), EventRecorder(CallSucceeded)
    for listener, delivery in ((blocked, "background"), (inline, "inline"), (background, "background")):
        bus.attach(listener, delivery=delivery)  # type: ignore[arg-type]
    cb = circuit(bus)
    assert cb.call(int, "7") == 7
    assert arrives(blocked.inside)
    calls = Running(lambda: [cb.call(int) for _ in range(50)])
    assert calls.done()
    assert len(inline.events_seen) == 51
    assert not bus.flush(0.05)
    assert len(background.events_seen) == 51
    assert not blocked.events_seen
    blocked.free.set()
    assert bus.flush(PATIENCE)
    assert numbers(blocked.events_seen) == list(range(1, 52))


def test_a_background_listener_sees_the_context_of_the_call() -> None:
    """Context variables, and so trace ids, are those of the call, in the listener's thread as well."""
    bus = Bus()
    seen: list[tuple[str, str]] = []
    cb = circuit(bus, tripper=FailureStreak(10**9))
    bus.attach(lambda event: seen.append((event.error, request.get())), CallFailed, delivery="background")

    def calls(name: str) -> Callable[[], None]:
        def call() -> None:
            request.set(name)
            for _ in range(200):
                cb.call_with_fallback(boom, lambda error: None, name)

        return call

    with restless():
        together(calls("a"), calls("b"), calls("c"))
    assert bus.flush(PATIENCE)
    assert len(seen) == 600
    assert [pair for pair in seen if pair[0] != pair[1]] == []


@pytest.mark.parametrize("asynchronous", [False, True], ids=["plain", "async"])
def test_two_background_listeners_may_be_at_one_event_at_once(asynchronous: bool) -> None:
    """An event that was published while another was delivered reaches two listeners at the same time."""
    bus, failures = Bus(), EventRecorder(ListenerFailed)
    bus.attach(failures)
    both = threading.Barrier(2)
    seen: list[str] = []

    def disable(event: StateChanged) -> None:
        if event.new_state is State.FORCED_OPEN:
            request.set("inner")
            cb.disable()

    def meeting() -> Callable[[StateChanged], Any]:
        def meet(event: StateChanged) -> None:
            if event.new_state is State.DISABLED:
                both.wait(PATIENCE / 4)
                seen.append(request.get())

        async def ameet(event: StateChanged) -> None:
            await asyncio.sleep(0)
            meet(event)

        return ameet if asynchronous else meet

    bus.attach(disable)
    for _ in range(2):
        bus.attach(meeting(), delivery="background")
    cb = circuit(bus)
    assert Running(cb.force_open).done()
    assert bus.flush(PATIENCE)
    assert not failures.events_seen
    assert seen == ["inner", "inner"]


def test_one_listener_has_one_thread() -> None:
    """Several subscriptions of one listener share its thread; another listener has another."""
    bus, other_bus = Bus(), Bus()
    threads: dict[str, set[int]] = {"one": set(), "other": set()}

    def one(event: Event) -> None:
        threads["one"].add(threading.get_ident())

    def other(event: Event) -> None:
        threads["other"].add(threading.get_ident())

    cb = circuit(bus)
    subscriptions = [
        bus.attach(one, delivery="background"),
        cb.attach(one, CallSucceeded, delivery="background"),
        bus.attach(other, delivery="background"),
    ]
    cb.force_open()
    cb.reset()
    cb.call(int)
    assert bus.flush(PATIENCE)
    assert len(threads["one"]) == len(threads["other"]) == 1
    assert not threads["one"] & threads["other"]
    assert other_bus.flush(PATIENCE)
    for subscription in subscriptions:
        subscription.close()


def worker_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("fluxgate")}


def test_a_thread_starts_with_the_first_event_and_ends_with_the_last_subscription() -> None:
    """Attaching starts no thread; the first event does; closing the last subscription ends it."""
    bus, recorder = Bus(), EventRecorder(StateChanged)
    before = worker_threads()
    cb = circuit(bus)
    first, second = bus.attach(recorder, delivery="background"), cb.attach(recorder, delivery="background")
    assert worker_threads() == before
    cb.force_open()
    assert bus.flush(PATIENCE)
    (worker,) = worker_threads() - before
    assert worker.daemon
    first.close()
    cb.reset()
    assert bus.flush(PATIENCE)
    assert states(recorder.events_seen) == [State.FORCED_OPEN, State.FORCED_OPEN, State.CLOSED]
    second.close()
    worker.join(PATIENCE)
    assert not worker.is_alive()


# -- async listeners in the background ------------------------------------------------------------------------------


def test_a_sync_breaker_delivers_to_an_async_listener_in_the_background() -> None:
    """On a plain breaker an async listener hears everything in order, without holding up the caller."""
    bus, recorder = Bus(), AsyncRecorder(CallSucceeded, StateChanged)
    bus.attach(recorder)
    cb = circuit(bus)
    for _ in range(20):
        cb.call(int)
    cb.force_open()
    assert bus.flush(PATIENCE)
    assert numbers(recorder.seen) == list(range(1, 22))
    assert threading.get_ident() not in recorder.threads


def test_a_sync_breakers_caller_does_not_wait_for_an_async_listener() -> None:
    """An async listener that waits, also within a running loop, holds up no caller of a plain breaker."""
    bus = Bus()
    free = threading.Event()
    ended: list[Event] = []

    async def slow(event: Event) -> None:
        await asyncio.get_running_loop().run_in_executor(None, free.wait, PATIENCE)
        ended.append(event)

    bus.attach(slow)
    cb = circuit(bus)

    async def main() -> None:
        cb.force_open()
        cb.reset()

    assert Running(lambda: run_async(main())).done()
    assert not ended
    free.set()
    assert bus.flush(PATIENCE)
    assert states(ended) == [State.FORCED_OPEN, State.CLOSED]


def test_an_async_background_listener_lives_in_one_loop() -> None:
    """For all its life an async listener is awaited in one loop, and its `close()` too: connections stay usable."""
    bus, recorder = Bus(), AsyncRecorder()
    subscription = bus.attach(recorder, delivery="background")
    cb, acb = circuit(bus), async_circuit(bus)
    for _ in range(3):
        cb.force_open()
        run_async(acb.force_open())
        assert bus.flush(PATIENCE)
        cb.reset()
        run_async(acb.reset())
    assert bus.flush(PATIENCE)
    subscription.close()
    assert len(recorder.seen) == 12
    assert len(set(recorder.loops)) == 1
    assert len(recorder.threads) == 1
    assert recorder.closed == recorder.loops[:1]


def test_an_async_breakers_background_listener_does_not_hold_up_its_task() -> None:
    """`delivery="background"` takes an async listener out of the caller's way on an async breaker as well."""
    bus, blocked = Bus(), Blocked()

    async def listener(event: Event) -> None:
        blocked(event)

    bus.attach(listener, CallSucceeded, delivery="background")
    cb = async_circuit(bus)
    assert run_async(cb.call(answer)) == 42
    assert not blocked.events_seen
    blocked.free.set()
    assert bus.flush(PATIENCE)
    assert len(blocked.events_seen) == 1


def test_a_listener_that_closes_itself_in_its_own_loop_is_closed() -> None:
    """An async listener that detaches itself in the background ends, `close()` awaited, without a warning."""
    bus = Bus()

    class Once(AsyncRecorder):
        async def __call__(self, event: Event) -> None:
            await super().__call__(event)
            subscription.close()

    listener = Once()
    closed = threading.Event()
    ending = listener.close

    async def close() -> None:
        await ending()
        closed.set()

    listener.close = close  # type: ignore[method-assign]
    subscription = bus.attach(listener, delivery="background")
    cb = circuit(bus)
    cb.force_open()
    cb.reset()
    assert arrives(closed)
    gc.collect()
    assert states(listener.seen) == [State.FORCED_OPEN]
    assert listener.closed == listener.loops


# -- overflow -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 7])
def test_a_full_queue_loses_its_oldest_events(size: int) -> None:
    """Of what comes while the listener is stuck, the newest `queue_size` events are kept, in order."""
    bus, blocked, drops = Bus(), Blocked(), EventRecorder(EventsDropped)
    bus.attach(blocked, delivery="background", queue_size=size)
    bus.attach(drops)
    cb = circuit(bus)
    cb.call(int)
    assert arrives(blocked.inside)
    for _ in range(20):
        cb.call(int)
    blocked.free.set()
    assert bus.flush(PATIENCE)
    ids = [event.call_id for event in blocked.of(CallSucceeded)]
    assert len(ids) == size + 1
    assert ids[1:] == list(range(ids[-1] - size + 1, ids[-1] + 1))
    assert sum(event.count for event in drops.of(EventsDropped)) == 20 - size


def test_a_queue_that_is_just_full_loses_nothing() -> None:
    """Up to `queue_size` events wait, and nothing is said to be lost."""
    bus, blocked, drops = Bus(), Blocked(), EventRecorder(EventsDropped)
    bus.attach(blocked, delivery="background", queue_size=5)
    bus.attach(drops)
    cb = circuit(bus)
    cb.call(int)
    assert arrives(blocked.inside)
    for _ in range(5):
        cb.call(int)
    blocked.free.set()
    assert bus.flush(PATIENCE)
    assert len(blocked.events_seen) == 6
    assert not drops.events_seen


def test_a_loss_is_told_while_it_lasts() -> None:
    """`EventsDropped` names the listener and does not wait until the queue is empty again."""
    bus, blocked, drops = Bus(), Blocked(), EventRecorder(EventsDropped)
    bus.attach(blocked, delivery="background", queue_size=1)
    bus.attach(drops)
    cb = circuit(bus)
    cb.call(int)
    assert arrives(blocked.inside)
    cb.call(int)
    cb.call(int)
    (drop,) = drops.of(EventsDropped)
    assert "Blocked" in drop.listener
    assert (drop.circuit_name, drop.count) == ("payments", 1)
    blocked.free.set()
    assert bus.flush(PATIENCE)


def test_losses_under_threads_are_counted_exactly() -> None:
    """However many threads overfill the queues of several circuits, received and lost add up to published."""
    bus, drops, lock = Bus(), list[int](), threading.Lock()
    received = EventRecorder(CallSucceeded)

    def collect(event: EventsDropped) -> None:
        with lock:
            drops.append(event.count)

    bus.attach(collect, EventsDropped)
    bus.attach(received, delivery="background", queue_size=3)
    circuits = [circuit(bus, name) for name in "ab"]

    def calls() -> None:
        for number in range(300):
            circuits[number % 2].call(int)

    with restless():
        together(*[calls] * 4)
    assert bus.flush(PATIENCE)
    assert all(count > 0 for count in drops)
    assert len(received.events_seen) + sum(drops) == 1_200


def test_a_listener_to_its_own_losses_is_told_of_them() -> None:
    """A listener that overflows and asks for `EventsDropped` hears of it, and that comes to an end."""
    bus, blocked, drops = Bus(), Blocked(CallSucceeded, EventsDropped), EventRecorder(EventsDropped)
    bus.attach(blocked, delivery="background", queue_size=2)
    bus.attach(drops)
    cb = circuit(bus)
    cb.call(int)
    assert arrives(blocked.inside)
    for _ in range(10):
        cb.call(int)
    blocked.free.set()
    assert bus.flush(PATIENCE)
    assert bus.flush(PATIENCE)
    assert blocked.of(EventsDropped)
    published = max(numbers(drops.events_seen))
    assert published - len(blocked.events_seen) == sum(event.count for event in drops.of(EventsDropped))


def test_a_loss_is_told_though_its_circuit_is_gone() -> None:
    """What a circuit's events pushed out of the queue is counted also where that circuit has retired since."""
    bus, blocked, drops = Bus(), Blocked(), EventRecorder(EventsDropped)
    bus.attach(drops)
    bus.attach(blocked, delivery="background", queue_size=1)
    staying, leaving = circuit(bus, "staying"), circuit(bus, "leaving")
    staying.call(int)
    assert arrives(blocked.inside)
    for _ in range(5):
        leaving.call(int)
    leaving.retire()
    blocked.free.set()
    assert bus.flush(PATIENCE)
    assert len(blocked.events_seen) + sum(event.count for event in drops.of(EventsDropped)) == 6


# -- listeners that raise -------------------------------------------------------------------------------------------


class Fatal(BaseException):
    """What `except Exception` does not catch."""


FAULTS: list[BaseException] = [
    ValueError("bad"),
    Fatal("bad"),
    SystemExit(3),
    KeyboardInterrupt(),
    asyncio.CancelledError(),
    GeneratorExit(),
    StopIteration(),
    StopAsyncIteration(),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
@pytest.mark.parametrize("asynchronous", [False, True], ids=["plain", "async"])
def test_the_worker_survives_whatever_a_listener_raises(
    fault: BaseException, asynchronous: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """After any exception the next event is delivered; each is told, the first is logged with its traceback."""
    bus, failures = Bus(), EventRecorder(ListenerFailed)
    seen: list[Event] = []

    def broken(event: Event) -> None:
        seen.append(event)
        raise fault

    async def abroken(event: Event) -> None:
        broken(event)

    bus.attach(failures)
    bus.attach(abroken if asynchronous else broken, StateChanged, delivery="background")
    cb = circuit(bus)
    for control in (cb.force_open, cb.reset, cb.disable):
        control()
        assert bus.flush(PATIENCE / 4)
    assert states(seen) == [State.FORCED_OPEN, State.CLOSED, State.DISABLED]
    assert [event.count for event in failures.of(ListenerFailed)] == [1, 2, 3]
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert errors[0].exc_info is not None
    assert errors[0].exc_info[2] is not None


def test_the_worker_survives_a_listener_that_cancels_its_task() -> None:
    """A listener that cancels the task in which it is awaited has failed, and hears the next event."""
    bus, failures = Bus(), EventRecorder(ListenerFailed)
    seen: list[Event] = []

    async def broken(event: Event) -> None:
        seen.append(event)
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    bus.attach(failures)
    bus.attach(broken, StateChanged, delivery="background")
    cb = circuit(bus)
    cb.force_open()
    cb.reset()
    assert bus.flush(PATIENCE / 4)
    assert states(seen) == [State.FORCED_OPEN, State.CLOSED]
    assert [event.count for event in failures.of(ListenerFailed)] == [1, 2]


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_the_worker_survives_another_listener_that_exits(
    interrupt: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """What an inline listener raises over the news of a failure in the background does not end that thread."""
    bus, told, ticked = Bus(), list[str](), threading.Event()

    class Failing(EventRecorder):
        tick_interval = 0.001
        ticks = 0

        def __call__(self, event: Event) -> None:
            told.append(type(event).__name__)
            raise LookupError("the listener's own")

        def tick(self) -> None:
            self.ticks += 1
            if self.ticks > 1:
                ticked.set()
            raise LookupError("the tick's own")

    def exiting(event: Event) -> None:
        raise interrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fluxgate._subscription._TICK_AGAIN", 0.001)
        cb = circuit(bus, listeners=[exiting])
        bus.attach(exiting, ListenerFailed)
        with bus.attach(Failing(StateChanged), delivery="background"):
            for control in (cb.disable, cb.metrics_only):
                with suppress(interrupt):
                    control()
                assert bus.flush(PATIENCE)
            assert arrives(ticked)
    assert told == ["StateChanged", "StateChanged"]
    assert "goes on after an interrupt" in caplog.text


def test_a_background_failure_reaches_inline_listeners_in_order() -> None:
    """`ListenerFailed` from the background takes its place in the circuit's sequence."""
    bus, recorder = Bus(), EventRecorder()

    def broken(event: Event) -> None:
        raise ValueError("bad")

    bus.attach(recorder)
    bus.attach(broken, delivery="background")
    cb = circuit(bus)
    for _ in range(5):
        cb.force_open()
        cb.reset()
    assert bus.flush(PATIENCE)
    assert len(recorder.of(ListenerFailed)) == 10
    assert numbers(recorder.events_seen) == list(range(1, 22))


def test_an_inline_async_listener_stays_in_its_own_loop() -> None:
    """What fails in the background is not told to an async breaker's inline listener in the worker's loop."""
    bus = Bus()
    loops: list[asyncio.AbstractEventLoop] = []

    async def inline(event: Event) -> None:
        loops.append(asyncio.get_running_loop())

    def broken(event: Event) -> None:
        raise ValueError("bad")

    bus.attach(broken, StateChanged, delivery="background")
    bus.attach(inline, StateChanged, ListenerFailed)

    async def main() -> None:
        cb = async_circuit(bus)
        await cb.force_open()
        await asyncio.get_running_loop().run_in_executor(None, bus.flush, PATIENCE)
        await cb.reset()
        assert set(loops) == {asyncio.get_running_loop()}

    run_async(main())


# -- flush ----------------------------------------------------------------------------------------------------------


def test_flush_waits_until_all_is_delivered() -> None:
    """`flush` returns True once every event that was published has reached its background listeners."""
    bus = Bus()
    one, other, awaited = EventRecorder(CallSucceeded), EventRecorder(CallSucceeded), AsyncRecorder(CallSucceeded)
    for recorder in (one, other, awaited):
        bus.attach(recorder, delivery="background")
    cb = circuit(bus)
    for total in (100, 200):
        for _ in range(100):
            cb.call(int)
        assert bus.flush(PATIENCE)
        assert [len(one.events_seen), len(other.events_seen), len(awaited.seen)] == [total] * 3


def test_flush_says_when_the_time_was_too_short() -> None:
    """With a stuck listener `flush` returns False after its timeout, 0 included, and True once all has gone."""
    bus, blocked = Bus(), Blocked()
    bus.attach(blocked, delivery="background")
    cb = circuit(bus)
    cb.call(int)
    assert arrives(blocked.inside)
    assert bus.flush(0) is False
    assert bus.flush(0.02) is False
    blocked.free.set()
    assert bus.flush(PATIENCE) is True
    assert bus.flush(0) is True


def test_flush_with_nothing_to_wait_for_is_done() -> None:
    """Without background listeners there is nothing to wait for."""
    bus = Bus()
    assert bus.flush(0)
    bus.attach(EventRecorder())
    circuit(bus).force_open()
    assert bus.flush(0)


def test_flush_waits_for_events_that_are_stuck_behind_an_inline_listener() -> None:
    """An event that another thread is yet to pass on to the background has not been delivered."""
    bus, blocked, recorder = Bus(), Blocked(StateChanged), EventRecorder(StateChanged)
    bus.attach(blocked)
    bus.attach(recorder, delivery="background")
    cb = circuit(bus)
    first = Running(cb.force_open)
    assert arrives(blocked.inside)
    cb.reset()
    assert bus.flush(0.05) is False
    blocked.free.set()
    assert first.done()
    assert bus.flush(PATIENCE)
    assert states(recorder.events_seen) == [State.FORCED_OPEN, State.CLOSED]


def test_flush_waits_for_what_the_deliveries_themselves_bring_about() -> None:
    """A failure in one background queue is an event for another, which was empty before."""
    bus, reports = Bus(), Blocked(ListenerFailed)
    failing = threading.Event()

    def broken(event: Event) -> None:
        failing.wait(PATIENCE)
        raise ValueError("bad")

    bus.attach(reports, delivery="background")
    bus.attach(broken, StateChanged, delivery="background")
    circuit(bus).force_open()
    answers: list[bool] = []
    flush = Running(lambda: answers.append(bus.flush(0.5)))
    failing.set()
    assert flush.done()
    assert answers == [False]
    reports.free.set()
    assert bus.flush(PATIENCE)
    assert len(reports.events_seen) == 1


def test_flush_does_not_claim_what_only_a_loop_can_do() -> None:
    """An async listener's event that waits for an event loop is not delivered, and `flush` does not say so."""
    bus, recorder = Bus(), AsyncRecorder(CircuitCreated)
    bus.attach(recorder)
    cb = async_circuit(bus)
    assert bus.flush(0) is bool(recorder.seen)
    run_async(cb.call(answer))
    assert len(recorder.seen) == 1


def test_flush_waits_for_losses_that_are_about_to_be_told() -> None:
    """A thread that has counted the losses of a queue, and not told of them yet, has not delivered all."""
    inside, free = threading.Event(), threading.Event()

    class Slow(VirtualClock):
        def time(self) -> float:
            if threading.current_thread().name.startswith("fluxgate-"):
                inside.set()
                assert arrives(free)
            return super().time()

    bus, blocked, drops = Bus(), Blocked(StateChanged), EventRecorder(EventsDropped)
    cb = circuit(bus, clock=Slow())
    bus.attach(drops)
    bus.attach(blocked, delivery="background", queue_size=1)
    cb.disable()
    assert arrives(blocked.inside)
    for control in (cb.reset, cb.disable, cb.reset, cb.disable):
        control()
    before = sum(event.count for event in drops.of(EventsDropped))
    blocked.free.set()
    assert arrives(inside)
    assert not bus.flush(0)
    free.set()
    assert bus.flush(PATIENCE)
    assert before < sum(event.count for event in drops.of(EventsDropped)) == 3


@pytest.mark.parametrize("delivery", ["inline", "background"])
def test_flush_may_be_called_by_a_listener(delivery: Any) -> None:
    """A listener that flushes waits for the others and not for itself: there is no deadlock."""
    bus, other = Bus(), EventRecorder(StateChanged)
    answers: list[bool] = []

    def flushing(event: Event) -> None:
        answers.append(bus.flush(PATIENCE))

    bus.attach(other, delivery="background")
    bus.attach(flushing, delivery=delivery)
    cb = circuit(bus)
    assert Running(cb.force_open).done()
    assert Running(lambda: bus.flush(PATIENCE)).done()
    assert answers == [True]
    assert len(other.events_seen) == 1


def test_two_background_listeners_that_flush_do_not_deadlock() -> None:
    """Listeners that wait for each other give up at their timeouts and go on."""
    bus = Bus()
    both = threading.Barrier(2)
    answers: list[bool] = []

    def flushing(event: Event) -> None:
        both.wait(PATIENCE / 4)
        answers.append(bus.flush(0.05))

    bus.attach(flushing, delivery="background")
    bus.attach(lambda event: flushing(event), delivery="background")
    circuit(bus).force_open()
    assert Running(lambda: bus.flush(PATIENCE)).done()
    assert len(answers) == 2


# -- closing --------------------------------------------------------------------------------------------------------


def test_close_delivers_what_waits() -> None:
    """Closing a background subscription lets what is queued arrive first, and nothing after it."""
    bus, blocked = Bus(), Blocked()
    subscription = bus.attach(blocked, delivery="background")
    cb = circuit(bus)
    for _ in range(10):
        cb.call(int)
    assert arrives(blocked.inside)
    blocked.free.set()
    subscription.close()
    assert numbers(blocked.events_seen) == list(range(1, 11))
    cb.call(int)
    assert bus.flush(PATIENCE)
    assert len(blocked.events_seen) == 10


def test_close_gives_up_on_a_stuck_listener() -> None:
    """A listener that does not come back is let go after a while; what it never gets is told as lost."""
    bus, blocked, calls = Bus(), Blocked(), list[Event]()
    losses = EventRecorder(EventsDropped)
    bus.attach(losses)

    def listener(event: Event) -> None:
        calls.append(event)
        blocked(event)

    subscription = bus.attach(listener, CallSucceeded, delivery="background")
    cb = circuit(bus)
    for _ in range(10):
        cb.call(int)
    assert arrives(blocked.inside)
    assert Running(subscription.close).done()
    (worker,) = [thread for thread in worker_threads() if "stuck" in thread.name]
    blocked.free.set()
    worker.join(PATIENCE)
    assert not worker.is_alive()
    assert len(calls) == 1
    assert sum(event.count for event in losses.of(EventsDropped)) == 9


def test_nobodys_close_returns_before_the_last_call() -> None:
    """Of two threads that close one subscription, neither comes back while events are still to be delivered."""
    bus, blocked, calls = Bus(), Blocked(), list[Event]()

    def listener(event: Event) -> None:
        calls.append(event)
        blocked(event)

    subscription = bus.attach(listener, CallSucceeded, delivery="background")
    cb = circuit(bus)
    for _ in range(3):
        cb.call(int)
    assert arrives(blocked.inside)
    at_return: list[int] = []

    def close() -> None:
        subscription.close()
        at_return.append(len(calls))

    closings = [Running(close), Running(close)]
    any(closing.done(0.1) for closing in closings)  # time to come back too early
    blocked.free.set()
    assert all(closing.done() for closing in closings)
    assert at_return == [len(calls)] * 2


def test_a_background_listener_may_close_its_own_subscription() -> None:
    """It hears nothing more, there is no deadlock, and its `close()` is called."""
    bus = Bus()
    closed = threading.Event()

    class Once(EventRecorder):
        def __call__(self, event: Event) -> None:
            super().__call__(event)
            subscription.close()

        def close(self) -> None:
            closed.set()

    once = Once(StateChanged)
    subscription = bus.attach(once, delivery="background")
    cb = circuit(bus)
    cb.force_open()
    cb.reset()
    assert arrives(closed)
    assert bus.flush(PATIENCE)
    assert states(once.events_seen) == [State.FORCED_OPEN]


@pytest.mark.parametrize("by", ["itself", "retirement"])
def test_a_close_that_takes_its_time_in_the_listeners_loop_comes_to_its_end(by: str) -> None:
    """An async `close()` that begins in the listener's own loop is not cut short by the end of that loop."""
    bus = Bus()
    ended = threading.Event()

    class Listener:
        async def __call__(self, event: Event) -> None:
            if by == "itself":
                subscription.close()
            await asyncio.sleep(0.01)

        async def close(self) -> None:
            await asyncio.sleep(0.05)
            ended.set()

    cb = circuit(bus)
    subscription = cb.attach(Listener(), delivery="background")
    cb.force_open()
    if by == "retirement":
        cb.retire()
    assert ended.wait(PATIENCE / 4)


def test_a_retired_circuits_background_listener_gets_all() -> None:
    """A circuit that goes delivers what is queued, its `CircuitRetired` last."""
    bus, own, everywhere = Bus(), EventRecorder(), EventRecorder()
    bus.attach(everywhere, delivery="background")
    cb = circuit(bus)
    cb.attach(own, delivery="background")
    for _ in range(50):
        cb.call(int)
    cb.retire()
    assert bus.flush(PATIENCE)
    assert isinstance(own.events_seen[-1], CircuitRetired)
    assert isinstance(everywhere.events_seen[-1], CircuitRetired)
    assert numbers(everywhere.events_seen) == list(range(1, 103))


def test_background_subscriptions_that_come_and_go_leave_no_thread() -> None:
    """Many short-lived background listeners, under fire from other threads, leave no thread behind."""
    bus = Bus()
    before = worker_threads()
    cb = circuit(bus)
    end = threading.Event()

    def calls() -> None:
        while not end.is_set():
            cb.call(int)

    callers = [Running(calls) for _ in range(2)]
    with restless():
        for number in range(100):
            blocked = Blocked(CallStarted)
            blocked.free.set()
            with cb.attach(blocked, delivery="background"):
                if number % 2:
                    assert arrives(blocked.inside)
    end.set()
    assert all(caller.done() for caller in callers)
    for thread in worker_threads() - before:
        thread.join(PATIENCE / 4)
    assert worker_threads() <= before


@pytest.mark.parametrize(("closing", "heard"), [(State.DISABLED, []), (State.CLOSED, [State.DISABLED])])
def test_one_that_is_closed_by_a_listener_before_it_does_not_hear_of_the_event_at_hand(
    closing: State, heard: list[State]
) -> None:
    """Nor of any other; whether it has ever heard of one or not."""
    bus, recorder = Bus(), EventRecorder(StateChanged)

    def before(event: StateChanged) -> None:
        if event.new_state is closing:
            subscription.close()

    bus.attach(before)
    subscription = bus.attach(recorder, delivery="background")
    cb = circuit(bus)
    cb.disable()
    cb.reset()
    cb.disable()
    assert bus.flush(PATIENCE)
    assert states(recorder.events_seen) == heard


def test_a_bus_that_is_dropped_leaves_no_thread() -> None:
    """What waited is delivered, and the listener's thread ends though nobody closed it."""
    bus, recorder = Bus(), EventRecorder(StateChanged)
    thread: Any = None

    def listener(event: Event) -> None:
        nonlocal thread
        thread = threading.current_thread()
        recorder(event)

    bus.attach(listener, delivery="background")
    cb = circuit(bus)
    cb.disable()
    cb.reset()
    assert bus.flush(PATIENCE)
    del bus, cb
    gc.collect()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert len(recorder.events_seen) == 2
