"""The corners of delivery: takeovers, listeners that cannot even be called, and workers at their beginning and end."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from itertools import count, pairwise
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from fluxgate import (
    AsyncCircuitBreaker,
    Bus,
    CallNotPermittedError,
    CircuitBreaker,
    Closed,
    Cooldown,
    FailureRate,
    FailureStreak,
    HalfOpened,
    MinRequests,
    State,
    permits,
)
from fluxgate._claims import Claim
from fluxgate._news import Fault
from fluxgate._tasks import running_loop
from fluxgate._worker import Worker
from fluxgate.events import (
    CallEnded,
    CallRejected,
    CallStarted,
    Event,
    EventsDropped,
    ListenerFailed,
    StateChanged,
    WouldOpen,
)
from fluxgate.testing import EventRecorder, VirtualClock
from tests.running import Running, arrives, interrupted
from tests.test_process import program

PATIENCE = 20.0


def test_a_subscription_says_whose_it_is_and_whether_it_is_open() -> None:
    """Its repr names the listener and the state."""
    recorder = EventRecorder()
    subscription = Bus().attach(recorder)
    assert repr(subscription) == "<Subscription of EventRecorder (open)>"
    subscription.close()
    assert repr(subscription) == "<Subscription of EventRecorder (closed)>"


def test_an_async_listener_that_takes_no_event_has_failed() -> None:
    """A coroutine function with the wrong parameters fails when called, and the caller does not notice."""
    bus, failures = Bus(), EventRecorder(ListenerFailed)
    bus.attach(failures)

    async def listener() -> None:
        raise AssertionError("never called")

    bus.attach(listener, StateChanged)  # type: ignore[arg-type]
    asyncio.run(AsyncCircuitBreaker("payments", bus=bus).force_open())
    assert [event.error_type for event in failures.of(ListenerFailed)] == ["TypeError"]


def test_a_delivery_that_was_taken_over_leaves_the_rest_to_its_successor() -> None:
    """When a delivery's event loop was closed and another took over, the first neither goes on nor lets go for it."""

    async def listener(event: Event) -> None:
        raise AssertionError("given out, not awaited here")

    bus = Bus()
    bus.attach(listener, StateChanged)
    core = AsyncCircuitBreaker("payments", bus=bus)._core
    core.command(State.DISABLED)
    core.command(State.FORCED_OPEN)
    loop = asyncio.new_event_loop()
    loop.close()
    for closed_early in (False, True):
        first, second = Claim(), Claim()
        step = core.advance(first, core._take(first))
        assert step is not None
        step[0].given += 1  # as the task does when it begins
        next(guard := core._guard(first))
        first.loop = loop
        assert core._take(second)
        if closed_early:
            guard.close()
        else:
            assert core.advance(first, step[0]) is None
        assert core.claim is second
        core.claim = None
    assert len(core.outbox) == 1  # the second round gave the second letter, and let the first one go


@pytest.mark.parametrize("fails", [False, True])
def test_the_own_listener_of_a_retired_circuit_is_closed_in_its_loop(
    fails: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """An async `close` runs where the listener lived, at once when nothing waits; its failure is logged."""
    closed: list[asyncio.AbstractEventLoop] = []
    loops: list[asyncio.AbstractEventLoop] = []
    done = threading.Event()

    class Listener:
        events = (StateChanged,)

        async def __call__(self, event: StateChanged) -> None:
            loops.append(asyncio.get_running_loop())
            if event.new_state == "disabled":
                subscription.close()

        async def close(self) -> None:
            closed.append(asyncio.get_running_loop())
            done.set()
            if fails:
                raise ConnectionError("already gone")

    bus = Bus()
    cb = CircuitBreaker("payments", bus=bus)
    subscription = cb.attach(Listener(), delivery="background")
    cb.force_open()
    assert bus.flush(PATIENCE)
    cb.disable()
    assert done.wait(PATIENCE)
    thread: Any = subscription.outlet.worker._thread
    thread.join(PATIENCE)
    assert closed == loops[:1]
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == int(fails)


@pytest.mark.parametrize("delivery", ["inline", "background"])
def test_a_circuit_that_retires_closes_its_listener_in_the_thread_that_has_one(delivery: Any) -> None:
    """A call that finds another circuit gone does not wait for that one's listener, neither to tick nor to close."""
    closing, ticking, free = threading.Event(), threading.Event(), threading.Event()
    closed: list[str] = []

    class Listener(EventRecorder):
        tick_interval = 0.001

        def tick(self) -> None:
            ticking.set()
            assert arrives(free)

        def close(self) -> None:
            closing.set()
            closed.append(threading.current_thread().name)

    bus = Bus()
    listener = Listener(StateChanged)
    cb = CircuitBreaker("payments", bus=bus)
    cb.attach(listener, delivery=delivery)
    assert arrives(ticking)
    cb.retire()
    assert not closed
    free.set()
    assert arrives(closing)
    assert closed == ["fluxgate-" + Listener.__qualname__]


def test_a_circuit_that_retires_with_an_empty_queue_closes_its_listener() -> None:
    """There is nothing to wait for but the listener's thread."""
    closed: list[str] = []

    class Listener(EventRecorder):
        def close(self) -> None:
            closed.append("closed")

    bus = Bus()
    listener = Listener(StateChanged)
    cb = CircuitBreaker("payments", bus=bus)
    cb.attach(listener, delivery="background")
    cb.force_open()
    assert bus.flush(PATIENCE)
    cb.retire()
    assert bus.flush(PATIENCE)
    assert closed == ["closed"]
    assert len(listener.events_seen) == 1


def test_a_worker_starts_one_thread_and_none_after_its_end() -> None:
    """Two threads may find it asleep at once; after `stop` it stays ended, and has no loop to finish anything in."""
    worker = Worker("test")
    worker._start()
    first = worker._thread
    worker._start()
    assert first is not None
    assert worker._thread is first
    worker.stop()
    first.join(PATIENCE)
    assert not first.is_alive()

    async def last() -> None:
        raise AssertionError("there is no loop")

    work = last()
    assert not worker.finish(work, 0)
    work.close()
    ended = Worker("ended")
    ended.stop()
    ended._start()
    assert ended._thread is None


def test_stuck_ticks_share_one_wait_at_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many listeners hang in their ticks, the end of the process waits for all of them together."""
    monkeypatch.setattr("fluxgate.bus._CLOSE_WAIT", 0.1)
    waits: list[float] = []
    stop_ticking = Worker.stop_ticking

    def noted(worker: Worker, timeout: float) -> None:
        waits.append(timeout)
        stop_ticking(worker, timeout)

    monkeypatch.setattr(Worker, "stop_ticking", noted)
    free = threading.Event()

    class Stuck(EventRecorder):
        tick_interval = 0.001

        def __init__(self) -> None:
            super().__init__(StateChanged)
            self.inside = threading.Event()

        def tick(self) -> None:
            self.inside.set()
            assert arrives(free)

    bus, listeners = Bus(), [Stuck() for _ in range(4)]
    for listener in listeners:
        bus.attach(listener)
        assert arrives(listener.inside)
    bus.shut_down(0)
    free.set()
    assert waits[1:] == [0.05] * 3
    assert 0.05 < waits[0] <= 0.1


def test_what_waits_for_an_event_loop_is_told_at_exit() -> None:
    """An async listener hears of a circuit that was made where no loop ran, at the latest as the program ends."""
    lines = program("""
        async def listener(event):
            say(type(event).__name__)

        fluxgate.attach(listener, fluxgate.events.CircuitCreated)
        cb = AsyncCircuitBreaker("payments")
    """)
    assert lines == ["CircuitCreated"]


def test_what_waits_behind_a_stuck_listener_is_bounded_and_what_goes_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener that blocks costs a bounded amount of memory: the oldest events go, counted for each who lost them."""
    monkeypatch.setattr("fluxgate._teller._OUTBOX_SIZE", 100)
    bus, stuck, go_on = Bus(), threading.Event(), threading.Event()
    seen: list[Event] = []

    def blocking(event: Event) -> None:
        seen.append(event)
        stuck.set()
        assert arrives(go_on)

    other, losses = EventRecorder(CallStarted), EventRecorder(EventsDropped)
    bus.attach(blocking, CallStarted)
    bus.attach(other)
    bus.attach(losses)
    cb = CircuitBreaker("payments", bus=bus)
    first = Running(lambda: cb.call(int))
    assert arrives(stuck)
    for _ in range(299):
        cb.call(int)
    assert len(cb._core.outbox) == 100
    go_on.set()
    assert first.done()
    told = {event.listener: event.count for event in losses.of(EventsDropped)}
    name = blocking.__qualname__
    assert set(told) == {name, "EventRecorder"}
    assert len(seen) + told[name] == len(other.of(CallStarted)) + told["EventRecorder"] == 300
    assert len(seen) == len({event.sequence for event in seen}) == 100
    assert [event.sequence for event in seen] == sorted(event.sequence for event in seen)
    assert seen[-1].sequence == 300, "the newest stay"
    cb.call(int)
    assert len(losses.of(EventsDropped)) == 2, "once"


def test_what_the_tripper_raises_behind_a_stuck_listener_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """As what a tracker raises, and the call goes on."""
    monkeypatch.setattr("fluxgate._teller._OUTBOX_SIZE", 2)
    faults = EventRecorder(ListenerFailed)

    def broken(*args: object) -> bool:
        raise LookupError("broken")

    cb = CircuitBreaker("payments", bus=Bus(), tripper=broken, listeners=[faults])
    for _ in range(5):
        settle(cb._core, failed=True)
    assert len(cb._core.outbox) == 2
    assert not cb._core.machine.news
    told_by(cb, faults)
    settle(cb._core, failed=True)
    told_by(cb, faults)
    assert faults.of(ListenerFailed)[-1].count == 6


def test_failures_of_a_rule_behind_a_stuck_listener_are_bounded_and_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A broken tracker cannot fill the memory: what found no place is in the next count, and the first is logged."""
    monkeypatch.setattr("fluxgate._teller._OUTBOX_SIZE", 100)
    inside, go_on = threading.Event(), threading.Event()

    def blocking(event: Event) -> None:
        inside.set()
        assert arrives(go_on)

    def broken(error: Exception) -> bool:
        raise LookupError("a broken tracker")

    def fail() -> None:
        with pytest.raises(ValueError, match="many"):
            cb.call(int, "many")

    bus, failures = Bus(), EventRecorder(ListenerFailed)
    cb = CircuitBreaker("payments", bus=bus, tracker=broken, tripper=FailureStreak(10**6), listeners=[failures])
    cb.attach(blocking)
    first = Running(cb.disable)
    assert arrives(inside)
    for _ in range(299):
        fail()
    cb.reset()
    assert len(cb._core.outbox) == 101
    go_on.set()
    assert first.done()
    fail()
    assert len(failures.events_seen) == 100
    assert failures.of(ListenerFailed)[-1].count == 300
    assert caplog.text.count("from now on its failures are counted") == 1


def test_an_interrupt_while_a_failure_is_reported_lets_the_next_call_go_on() -> None:
    """Ctrl-C between two listeners reaches the caller, and what was to be told is told by whoever comes next."""

    class Interrupting:
        interrupted = False

        def __call__(self, error: Exception) -> bool:
            raise LookupError("a broken tracker")

        def __repr__(self) -> str:
            if not self.interrupted:
                self.interrupted = True
                raise KeyboardInterrupt
            return "Interrupting()"

    bus, recorder = Bus(), EventRecorder(ListenerFailed, StateChanged)
    tracker = Interrupting()
    tracker.interrupted = True  # the circuit tells its rules in words when it is made
    circuit = CircuitBreaker("payments", bus=bus, tracker=tracker, listeners=[recorder])
    tracker.interrupted = False
    with pytest.raises(KeyboardInterrupt):
        circuit.call(int, "many")
    circuit.force_open()
    assert [type(event) for event in recorder.events_seen] == [StateChanged, ListenerFailed]


def test_the_event_at_hand_is_never_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """However small the outbox, the event that somebody delivers at this moment stays, and so does the newest."""
    monkeypatch.setattr("fluxgate._teller._OUTBOX_SIZE", 1)
    bus, inside, free = Bus(), threading.Event(), threading.Event()
    told: list[Event] = []

    def blocked(event: Event) -> None:
        inside.set()
        assert arrives(free)
        told.append(event)

    circuit = CircuitBreaker("payments", bus=bus)
    circuit.attach(blocked, StateChanged, EventsDropped)
    first = Running(circuit.force_open)
    assert arrives(inside)
    circuit.disable()
    circuit.reset()
    free.set()
    assert first.done()
    states = [event.new_state for event in told if isinstance(event, StateChanged)]
    assert states == [State.FORCED_OPEN, State.CLOSED]
    assert [event.count for event in told if isinstance(event, EventsDropped)] == [1]


def test_a_span_that_cannot_say_its_ids_costs_no_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where whatever stands in for OpenTelemetry fails, events go out without a trace."""

    def fail() -> None:
        raise LookupError("no span")

    monkeypatch.setitem(sys.modules, "opentelemetry.context", SimpleNamespace(get_current=lambda: {"key": "span"}))
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", SimpleNamespace(get_current_span=fail))
    recorder = EventRecorder(StateChanged)
    CircuitBreaker("payments", bus=Bus(), listeners=[recorder]).force_open()
    (event,) = recorder.of(StateChanged)
    assert (event.trace_id, event.span_id) == (None, None)


def test_nothing_fails_while_another_thread_imports_asyncio(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module is there before what is in it: calls, controls and new circuits do without."""
    monkeypatch.setitem(sys.modules, "asyncio", ModuleType("asyncio"))
    recorder = EventRecorder(StateChanged)
    cb = CircuitBreaker("payments", bus=Bus(), listeners=[recorder])
    cb.force_open()
    cb._core.deliver_soon()
    assert [event.new_state for event in recorder.of(StateChanged)] == ["forced_open"]
    assert running_loop() is None


def test_what_comes_as_the_event_loop_closes_waits_for_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop takes nothing any more: nobody notices, and the circuit's next control tells it."""
    told: list[str] = []

    async def listener(event: StateChanged) -> None:
        told.append(event.new_state)

    def refuse(*args: object, **options: object) -> None:
        raise RuntimeError("Event loop is closed")

    async def main() -> None:
        cb = AsyncCircuitBreaker("payments", bus=Bus(), listeners=[listener])
        cb._core.command(State.FORCED_OPEN)
        with monkeypatch.context() as patch:
            patch.setattr(asyncio.get_running_loop(), "call_soon_threadsafe", refuse)
            cb._core.deliver_soon()
        assert told == []
        await cb.reset()

    asyncio.run(main())
    assert told == ["forced_open", "closed"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # where it meets a finalizer
@pytest.mark.parametrize("delivery", ["inline", "background"])
def test_a_signal_handler_that_raises_anywhere_silences_nobody(delivery: Any) -> None:
    """The call at hand ends, at most one event is lost, and the circuit's next events are told, numbered in order."""
    step = 0
    for step in count():
        bus, recorder = Bus(), EventRecorder()
        circuit = CircuitBreaker("payments", bus=bus)
        with bus.attach(recorder, delivery=delivery):
            if not interrupted(lambda circuit=circuit: circuit.call(abs, -1), step):  # type: ignore[misc]
                break
            circuit.force_open()
            assert bus.flush(PATIENCE)
        numbers = [event.sequence for event in recorder.events_seen]
        assert len(recorder.of(StateChanged)) == 1
        assert numbers == sorted(set(numbers))
        assert numbers[-1] - len(numbers) <= 1
    assert step > 50


@pytest.mark.parametrize("work", ["fail", "reset", "probe"])
def test_a_signal_handler_that_calls_the_breaker_doubles_nothing(work: str) -> None:
    """Wherever it comes, also in the middle of a decision, each move is made and told once, in order."""
    step = 0
    for step in count():
        clock, recorder = VirtualClock(), EventRecorder()
        cb = CircuitBreaker(
            "payments",
            bus=Bus(),
            clock=clock,
            tripper=FailureStreak(1),
            retry=Cooldown(1),
            permit=permits.All(),
            listeners=[recorder],
        )

        def fail(cb: CircuitBreaker = cb) -> None:
            with suppress(ValueError, CallNotPermittedError):
                cb.call(int, "many")

        if work != "fail":
            fail()
            clock.advance(1)
        act = {"fail": fail, "reset": cb.reset, "probe": fail}[work]
        if not interrupted(act, step, handler=cb.reset if work == "reset" else fail):
            break
        numbers = [event.sequence for event in recorder.events_seen]
        assert numbers == list(range(1, len(numbers) + 1))
        moves = [(event.old_state, event.new_state) for event in recorder.of(StateChanged)]
        assert len(moves) == {"fail": 1, "reset": 2, "probe": 3}[work]
    assert step > 50


Moving = tuple[Any, VirtualClock, EventRecorder, Callable[[], object]]


def moving(colour: type[Any], work: str, *heard: type[Event]) -> Moving:
    """A circuit, and what makes it move without delivering what is to be told."""
    clock, recorder = VirtualClock(), EventRecorder(StateChanged, WouldOpen, *heard)
    cb = colour(
        "payments",
        bus=Bus(),
        clock=clock,
        tripper=(Closed() & MinRequests(3) & FailureRate(0.6)) | (HalfOpened() & FailureRate(1)),
        retry=Cooldown(5),
        permit=permits.All(),
        listeners=[recorder],
    )
    core = cb._core
    if work == "would open":
        core.command(State.METRICS_ONLY)
    settle(core, failed=False)
    settle(core, failed=True)
    if work in ("probe", "probe fails", "recovers", "reset"):
        settle(core, failed=True)
        clock.advance(5 * (work != "reset"))
    probe = core.admit() if work in ("probe fails", "recovers") else None
    acts: dict[str, Callable[[], object]] = {
        "opens": lambda: settle(core, failed=True),
        "would open": lambda: settle(core, failed=True),
        "probe": core.admit,
        "probe fails": lambda: core.raised(probe, clock.monotonic(), ConnectionError("no route")),
        "recovers": lambda: core.returned(probe, clock.monotonic(), clock.monotonic(), 1),
        "reset": lambda: core.command(State.CLOSED),
        "forced open": lambda: core.command(State.FORCED_OPEN),
    }
    return cb, clock, recorder, acts[work]


def settle(core: Any, *, failed: bool) -> None:
    """One call, from its admission to its outcome."""
    stamp, now = core.admit(), core.clock.monotonic()
    if failed:
        core.raised(stamp, now, ConnectionError("no route"))
    else:
        core.returned(stamp, now, now, 1)


def told_by(cb: Any, recorder: EventRecorder) -> list[Event]:
    """What has been told when all is delivered."""
    assert cb._core.deliver() is None
    return recorder.events_seen


UNRAISABLE = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it may meet a finalizer
MOVES = pytest.mark.parametrize(
    "work", ["opens", "would open", "probe", "probe fails", "recovers", "reset", "forced open"]
)
COLOURS = pytest.mark.parametrize("colour", [CircuitBreaker, AsyncCircuitBreaker])
HEARD = pytest.mark.parametrize("heard", [(), (CallEnded, CallRejected)], ids=["moves alone", "calls too"])


@UNRAISABLE
@MOVES
@COLOURS
@HEARD
def test_a_move_is_told_once_wherever_a_signal_handler_raises(colour: type[Any], heard: Any, work: str) -> None:
    """By the circuit's next decision or control at the latest, with its own time, and before what came later."""
    step = 0
    for step in count():
        cb, clock, recorder, act = moving(colour, work, *heard)
        core = cb._core
        before = len(told_by(cb, recorder))
        generation, at = core.machine.generation, clock.time()

        def interruptible(act: Callable[[], object] = act) -> None:
            with suppress(KeyboardInterrupt):
                act()

        if not interrupted(interruptible, step, _cancel):
            break
        moved = core.machine.generation != generation or (work == "would open" and core.machine._record is None)
        state = core.machine.state
        clock.advance(1)
        if step % 2:
            core.command(State.DISABLED)
        else:
            core.admit()
        events = told_by(cb, recorder)
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        told = [event for event in events[before:] if isinstance(event, (StateChanged, WouldOpen))]
        assert len([event for event in told if event.timestamp == at]) == moved
        if moved:
            first = told[0]
            assert first.state == state
            if isinstance(first, StateChanged):
                assert (first.new_state, first.generation) == (state, generation + 1)
            later = events[events.index(first) + 1 :]
            assert all(event.timestamp > at for event in later)
            if state in ("open", "forced_open") and not step % 2:
                refusal = core.admit()
                assert isinstance(refusal, CallNotPermittedError)
                assert refusal.opening is not None
                assert refusal.opening.at == at
    assert step > 20


@UNRAISABLE
@MOVES
@COLOURS
@HEARD
def test_a_signal_handler_that_steers_the_breaker_finds_each_move_told(
    colour: type[Any], heard: Any, work: str
) -> None:
    """Wherever it comes: the move at hand is told first, if it was made, and each as it was when it was made."""
    for step in count():
        cb, _, recorder, act = moving(colour, work, *heard)
        core = cb._core
        if not interrupted(act, step, lambda core=core: core.command(State.DISABLED)):  # type: ignore[misc]
            break
        events = told_by(cb, recorder)
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        changes = recorder.of(StateChanged)
        assert [change.generation for change in changes] == list(range(2, core.machine.generation + 1))
        for earlier, change in pairwise(changes):
            assert change.old_state == earlier.new_state
        for change in changes:
            assert change.state == change.new_state


@UNRAISABLE
@COLOURS
@pytest.mark.parametrize("raises", [True, False], ids=["raises", "settles another"])
def test_a_window_that_would_have_opened_a_circuit_is_told_of_once(colour: type[Any], raises: bool) -> None:
    """It is emptied as that is told, whatever a signal handler does: the next failure is the first of another."""
    for step in count():
        cb, _, recorder, act = moving(colour, "would open")
        core = cb._core

        def handler(core: Any = core) -> None:
            if raises:
                raise KeyboardInterrupt
            settle(core, failed=True)

        def interruptible(act: Callable[[], object] = act) -> None:
            with suppress(KeyboardInterrupt):
                act()

        if not interrupted(interruptible, step, handler):
            break
        settle(core, failed=True)
        told_by(cb, recorder)
        assert len(recorder.of(WouldOpen)) == 1


@UNRAISABLE
@COLOURS
@pytest.mark.parametrize("role", ["tripper", "retry", "clock"])
def test_a_fault_is_told_once_wherever_a_signal_handler_raises(colour: type[Any], role: str) -> None:
    """Once it is noted: of a rule that has raised a moment ago, nobody may know yet."""
    step = 0
    for step in count():
        cb, _, _, act = moving(colour, "opens")
        core, recorder = cb._core, EventRecorder(ListenerFailed)
        cb.attach(recorder)
        raised = 0

        def fail(*args: object) -> Any:
            nonlocal raised
            raised += 1
            raise LookupError("broken")

        if role == "tripper":
            core.configure(tripper=fail)
        elif role == "retry":
            broken: Any = SimpleNamespace(wait=fail)
            core.configure(retry=broken)
        else:
            core.careful.fault = LookupError("broken")
            raised = 1

        def interruptible(act: Callable[[], object] = act) -> None:
            with suppress(KeyboardInterrupt):
                act()

        if not interrupted(interruptible, step, _cancel):
            break
        items = [*(core.machine.news or ()), *(letter.item for letter in core.outbox)]
        noted = sum(isinstance(each, Fault) for each in items) + (core.careful.fault is not None)
        assert raised - noted in ((0,) if role == "clock" else (0, 1))
        core.command(State.DISABLED)
        told_by(cb, recorder)
        assert [event.role for event in recorder.of(ListenerFailed)] == [role] * noted
    assert step > 20


@UNRAISABLE
@COLOURS
def test_a_clocks_fault_is_told_once_where_a_signal_handler_calls_the_breaker(colour: type[Any]) -> None:
    """Whichever of the two comes upon it first."""
    step = 0
    for step in count():
        cb, _, _, act = moving(colour, "opens")
        core, recorder = cb._core, EventRecorder(ListenerFailed)
        cb.attach(recorder)
        core.careful.fault = LookupError("broken")
        if not interrupted(act, step, lambda core=core: core.command(State.DISABLED)):  # type: ignore[misc]
            break
        told_by(cb, recorder)
        assert [event.role for event in recorder.of(ListenerFailed)] == ["clock"]
    assert step > 20


def _cancel() -> None:
    raise KeyboardInterrupt


def test_a_delivery_that_never_began_leaves_its_event_to_the_next() -> None:
    """A loop that ends before the task of a delivery took its first step costs no listener an event."""
    told: list[Event] = []

    async def listener(event: Event) -> None:
        told.append(event)

    bus = Bus()
    bus.attach(listener, StateChanged)
    cb = AsyncCircuitBreaker("payments", bus=bus)
    cb._core.command(State.DISABLED)
    later = cb._core.deliver()
    assert later is not None
    later.close()
    del later
    asyncio.run(cb.reset())
    assert [event.sequence for event in told] == [1, 2]


def test_a_thread_that_could_not_be_started_is_started_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has no thread to spare for a while delivers in the background afterwards."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    bus, told, done = Bus(), list[str](), threading.Event()

    def listener(event: StateChanged) -> None:
        told.append(event.new_state)
        if len(told) == 3:
            done.set()

    bus.attach(listener, delivery="background")
    circuit = CircuitBreaker("payments", bus=bus)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        circuit.disable()
        circuit.reset()
    circuit.force_open()
    assert arrives(done)
    assert told == ["disabled", "closed", "forced_open"]


@pytest.mark.parametrize("started", [False, True], ids=["before it starts", "after it has started"])
def test_an_interrupt_while_a_thread_starts_costs_no_later_event(
    monkeypatch: pytest.MonkeyPatch, started: bool
) -> None:
    """What a signal handler raises reaches the caller, and the next event starts another thread, the only one."""
    bus, told, done = Bus(), list[str](), threading.Event()
    start = threading.Thread.start

    def interrupted_start(thread: threading.Thread) -> None:
        if started:
            start(thread)
        raise KeyboardInterrupt

    def listener(event: StateChanged) -> None:
        told.append(event.new_state)
        if len(told) == 2:
            done.set()

    bus.attach(listener, delivery="background")
    circuit = CircuitBreaker("payments", bus=bus)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted_start)
        with pytest.raises(KeyboardInterrupt):
            circuit.disable()
    circuit.reset()
    assert arrives(done)
    assert told == ["disabled", "closed"]


def test_a_subscription_that_was_closed_retires_without_a_word() -> None:
    """A circuit that goes while its listener is being detached does not detach it once more."""
    closed: list[int] = []

    class Listener(EventRecorder):
        def close(self) -> None:
            closed.append(1)

    circuit, other = CircuitBreaker("payments", bus=Bus()), CircuitBreaker("orders", bus=Bus())
    subscription = circuit.attach(Listener())
    assert subscription.observes(circuit._core)
    assert not subscription.observes(other._core)
    subscription.close()
    subscription.retire()
    assert closed == [1]
