"""Plain successes and refusals that are told at once, without the lock: nothing of what holds elsewhere may be lost."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from itertools import count
from threading import Barrier, Event, get_ident
from typing import Any

import pytest

from fluxgate import (
    AsyncCircuitBreaker,
    Bus,
    CallNotPermittedError,
    CircuitBreaker,
    Cooldown,
    CountWindow,
    FailureStreak,
    Subscription,
    TimeWindow,
    _gil,
    flush,
)
from fluxgate._claims import Direct
from fluxgate.events import (
    CallEnded,
    CallFailed,
    CallRejected,
    CallStarted,
    CallSucceeded,
    EventsDropped,
    ListenerFailed,
    StateChanged,
)
from fluxgate.permits import All as EveryCall
from fluxgate.testing import EventRecorder, VirtualClock
from tests.faces import Make, both
from tests.running import PATIENCE, Interrupt, Running, Watched, arrives, interrupted, restless, together

pytestmark = pytest.mark.skipif(not _gil.GIL, reason="without the GIL each call takes the lock")


def told_directly(cb: Any) -> bool:
    """Whether the circuit is telling somebody from the frame of a call."""
    return isinstance(cb._core.claim, Direct)


class Notes:
    """A listener of successes that notes whether it was told directly, and then does something."""

    events = (CallSucceeded,)

    def __init__(self, cb: Any = None, do: Callable[[Any], object] = lambda event: None) -> None:
        self.cb, self.do = cb, do
        self.direct: list[bool] = []
        self.heard: list[int] = []

    def __call__(self, event: Any) -> None:
        self.direct.append(told_directly(self.cb))
        self.heard.append(event.sequence)
        self.do(event)


def noting(do: Callable[[Any], object] = lambda event: None, *, of: int = 1, **rules: Any) -> tuple[Any, list[Notes]]:
    """A circuit on a clock that stands still, heard by so many, of whom the first does something; in its lane."""
    cb = CircuitBreaker("payments", bus=Bus(), clock=VirtualClock(), tripper=FailureStreak(9), **rules)
    cb.call(abs, 1)
    notes = [Notes(cb, do if number == 0 else lambda event: None) for number in range(of)]
    quiet, notes[0].do = notes[0].do, lambda event: None
    for each in notes:
        cb.attach(each)
    cb.call(abs, 1)
    for each in notes:
        assert each.direct == [False]
        each.direct.clear()
        each.heard.clear()
    notes[0].do = quiet
    return cb, notes


@both
def test_in_a_steady_stretch_a_success_is_told_from_its_own_frame(make: Make) -> None:
    """After one call with the lock; the events are those of the ordinary path, and the window counts each."""
    circuit = make(hears=(CallEnded,), tripper=FailureStreak(9), window=TimeWindow(60))
    claims: list[bool] = []
    circuit.breaker.attach(lambda event: claims.append(told_directly(circuit.breaker)), CallSucceeded)
    for _ in range(4):
        circuit.succeed()
    circuit.fail()
    for _ in range(2):
        circuit.succeed()
    assert claims == [False, True, True, True, True, True]
    events = circuit.seen(CallEnded)
    assert [event.sequence for event in events] == [event.call_id for event in events] == list(range(1, 8))
    assert {(event.circuit_name, event.state, event.stale, event.timestamp) for event in events} == {
        ("payments", "closed", False, 1_700_000_000.0)
    }
    assert [event.slow for event in circuit.seen(CallSucceeded)] == [False] * 6
    assert (circuit.metrics.total_count, circuit.metrics.failure_count) == (7, 1)


@both
def test_what_it_tells_of_is_what_happened(make: Make) -> None:
    """Duration and time of each call are its own."""
    circuit = make(hears=(CallEnded,), tripper=FailureStreak(9))
    circuit.succeed()
    circuit.succeed(1 / 256)
    circuit.succeed(1 / 256)
    events = circuit.seen(CallSucceeded)
    assert [event.duration for event in events] == [0, 1 / 256, 1 / 256]
    assert [event.timestamp - 1_700_000_000 for event in events] == [0, 1 / 256, 2 / 256]


def test_the_lane_ends_with_the_wall_clock_that_it_was_opened_by() -> None:
    """A wall clock that is set is noticed within 10 ms."""
    clock, recorder = VirtualClock(), EventRecorder(CallEnded)
    cb = CircuitBreaker("payments", bus=Bus(), clock=clock, tripper=FailureStreak(9), listeners=[recorder])
    for _ in range(2):
        cb.call(abs, 1)
    clock.set_time(1_000_000)
    clock.advance(0.01)
    cb.call(abs, 1)
    assert recorder.of(CallSucceeded)[-1].timestamp == 1_000_000.01


def test_who_is_awaited_or_in_the_background_is_told_in_the_ordinary_way() -> None:
    """One such listener is enough, since all must hear of one thing in one order."""
    for extra, delivery in ((Notes(), "background"), (EventRecorder(CallStarted), "inline")):
        cb, (notes,) = noting()
        cb.attach(extra, delivery=delivery)
        cb.call(abs, 1)
        cb.call(abs, 1)
        assert notes.direct == [False, False]
        assert cb._core.bus.flush(PATIENCE)

    told: list[bool] = []

    async def awaited(event: CallSucceeded) -> None:
        await asyncio.sleep(0)
        told.append(told_directly(breaker))

    async def main() -> None:
        for _ in range(3):
            await breaker.call(asyncio.sleep, 0)

    breaker = AsyncCircuitBreaker("payments", bus=Bus(), tripper=FailureStreak(9))
    breaker.attach(awaited, CallSucceeded)
    asyncio.run(main())
    assert told == [False] * 3


def test_a_listener_that_calls_the_breaker_is_told_afterwards() -> None:
    """One at a time, in order: what comes meanwhile waits until all have been told."""
    depth: list[int] = []
    running = 0

    def again(event: Any) -> None:
        nonlocal running
        running += 1
        depth.append(running)
        if len(depth) < 4:
            cb.call(abs, 1)
        running -= 1

    cb, (first, second) = noting(again, of=2)
    cb.call(abs, 1)
    assert depth == [1] * 4
    assert first.heard == second.heard == sorted(first.heard)
    assert first.direct[0]
    assert cb._core.claim is None
    assert not cb._core.outbox
    assert cb.info().metrics.total_count == 6


@pytest.mark.parametrize("of", [1, 3])
def test_a_listener_that_fails_hides_nobody(of: int) -> None:
    """The caller gets the value, the others the event, and `ListenerFailed` says what happened, next in order."""

    def fail(event: Any) -> None:
        raise ValueError("too many")

    failures = EventRecorder(ListenerFailed)
    cb, notes = noting(fail, of=of)
    cb.attach(failures)
    assert cb.call(abs, -1) == 1
    assert cb.call(abs, -1) == 1
    assert notes[0].direct == [False, True]
    assert all(each.heard == notes[0].heard for each in notes)
    (one, two) = failures.of(ListenerFailed)
    assert (one.listener, one.error_type, one.count, two.count) == ("Notes", "ValueError", 1, 2)
    assert two.sequence == notes[0].heard[1] + 1


@pytest.mark.parametrize("of", [1, 3])
def test_a_listener_that_returns_a_coroutine_is_told_so(of: int, recwarn: pytest.WarningsRecorder) -> None:
    """Nobody would await it: that is a failure of the listener, on this path as well."""

    async def later() -> None:
        raise AssertionError("never run")

    failures = EventRecorder(ListenerFailed)
    cb, notes = noting(of=of)
    cb.attach(lambda event: later(), CallSucceeded)
    cb.attach(failures)
    for _ in range(2):
        cb.call(abs, 1)
    assert notes[0].direct == [False, True]
    assert [event.error_type for event in failures.of(ListenerFailed)] == ["fluxgate._functions.WrongColour"] * 2
    assert not recwarn.list


@both
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("alone", [True, False])
def test_an_interrupt_in_a_listener_reaches_the_caller_when_all_are_told(
    make: Make, kind: type[BaseException], alone: bool
) -> None:
    """The call is counted, the others hear of it, and so do they of what waits behind it."""
    circuit = make(hears=(StateChanged,), tripper=FailureStreak(9))
    armed = False

    def listener(event: Any) -> None:
        nonlocal armed
        heard.append(event.sequence)
        if armed:
            armed = False
            assert told_directly(circuit.breaker)
            circuit.call(abs, 1)
            raise kind

    heard: list[int] = []
    others = EventRecorder(CallSucceeded)
    circuit.breaker.attach(listener, CallSucceeded)
    if not alone:
        circuit.breaker.attach(others)
    circuit.call(abs, 1)
    armed = True
    with pytest.raises(kind):
        circuit.call(abs, 1)
    assert heard == [1, 2, 3]
    assert [event.sequence for event in others.events_seen] == ([] if alone else heard)
    circuit.call(abs, 1)
    assert circuit.metrics.total_count == 4
    assert heard == [1, 2, 3, 4]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # where it meets a finalizer
@pytest.mark.parametrize("of", [1, 2])
def test_a_signal_handler_that_raises_anywhere_silences_nobody(of: int) -> None:
    """The call at hand ends, at most one event is lost to each, and the circuit's next events are told in order."""
    step = 0
    for step in count():
        cb, notes = noting(of=of)
        if not interrupted(lambda cb=cb: cb.call(abs, -1), step):  # type: ignore[misc]
            assert notes[0].direct == [True]
            break
        for _ in range(3):
            cb.call(abs, -1)
        assert cb._core.claim is None
        assert not cb._core.outbox
        for each in notes:
            assert each.heard == sorted(set(each.heard))
            assert each.heard[-3:] == notes[0].heard[-3:]
            assert cb._core.sequence - len(each.heard) <= 2  # one came before
    assert step > 5


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("of", [1, 2])
def test_a_signal_handler_that_raises_over_the_report_of_a_failure_silences_nobody(of: int) -> None:
    """A listener fails, and while that is logged and told somebody presses Ctrl-C: the next events are told."""
    step = 0
    for step in count():

        def fail(event: Any) -> None:
            raise ValueError("broken")

        cb, notes = noting(fail, of=of)
        if not interrupted(lambda cb=cb: cb.call(abs, -1), step):  # type: ignore[misc]
            break
        notes[0].do = lambda event: None
        for _ in range(3):
            cb.call(abs, -1)
        assert cb._core.claim is None
        assert not cb._core.outbox
        for each in notes:
            assert each.heard[-3:] == [cb._core.sequence - 2, cb._core.sequence - 1, cb._core.sequence]
    assert step > 20


@pytest.mark.parametrize("of", [1, 2])
def test_an_interrupt_between_the_outcome_and_its_telling_leaves_no_gap(of: int) -> None:
    """What is made for an event is made before it has a number: only as a listener is called may one be lost to it."""
    for step in count():
        cb, notes = noting(of=of)
        before = cb._core.sequence
        where: list[str] = []

        def note(where: list[str] = where) -> None:
            where.append(sys._getframe(2).f_code.co_filename)
            raise Interrupt

        if not interrupted(lambda cb=cb: cb.call(abs, -1), step, note):  # type: ignore[misc]
            break
        if "fluxgate breaker" in where[0]:
            cb.call(abs, -1)
            for each in notes:
                assert each.heard == list(range(before + 1, cb._core.sequence + 1))


def test_a_signal_handler_that_calls_the_breaker_doubles_nothing() -> None:
    """Wherever it comes, each event is told once, in order, and each call is counted once."""
    step = 0
    for step in count():
        cb, (first, second) = noting(of=2)
        before = cb.info().metrics.total_count
        cb.call(abs, -1)  # `info` has closed the lane
        first.heard.clear()
        second.heard.clear()
        called: list[int] = []

        def handler(cb: Any = cb, called: list[int] = called) -> None:
            called.append(cb.call(abs, -1))

        if not interrupted(lambda cb=cb: cb.call(abs, -1), step, handler):  # type: ignore[misc]
            break
        assert len(first.heard) == 2
        assert first.heard == second.heard == sorted(first.heard)
        assert called == [1]
        assert cb.info().metrics.total_count == before + 3
    assert step > 5


CURRENT: ContextVar[str] = ContextVar("current", default="nothing")


@pytest.mark.parametrize("of", [1, 2])
def test_a_listener_sees_the_calls_context(of: int) -> None:
    """What is current for the call is current for who is told of it, as of any function that the call calls."""
    seen: list[str] = []

    def look(event: Any) -> None:
        seen.append(CURRENT.get())

    cb, notes = noting(look, of=of)
    notes[-1].do = look
    token = CURRENT.set("the call's")
    try:
        cb.call(abs, 1)
        assert seen == ["the call's"] * of
    finally:
        CURRENT.reset(token)
    assert notes[0].direct == [True]


def test_a_listener_may_close_itself_and_others() -> None:
    """From within: nobody is waited for, and who is closed hears no more, not even of this."""
    subscriptions: list[Subscription] = []

    def close_all(event: Any) -> None:
        for each in subscriptions:
            each.close()

    cb, notes = noting(close_all, of=1)
    second = Notes(cb)
    subscriptions += [*cb._core.own, cb.attach(second)]
    cb.call(abs, 1)
    second.heard.clear()
    notes[0].direct.clear()
    assert not cb._core.own
    cb.call(abs, 1)
    assert notes[0].direct == []
    assert second.heard == []


@pytest.mark.parametrize("of", [1, 2])
def test_closing_waits_for_a_call_in_another_thread(of: int) -> None:
    """Once `close` has returned the listener is not called, nor still running."""
    inside, free, left = Event(), Event(), Event()

    def linger(event: Any) -> None:
        inside.set()
        assert arrives(free)
        left.set()

    cb, notes = noting(linger, of=of)
    subscription = cb._core.own[0]
    calling = Running(lambda: cb.call(abs, 1))
    assert arrives(inside)
    assert notes[0].direct == [True]
    closing = Running(subscription.close)
    assert not closing.done(0.05)
    free.set()
    assert closing.done()
    assert left.is_set()
    assert calling.done()
    assert not subscription.active


def test_a_listener_that_is_closed_while_another_is_told_hears_no_more() -> None:
    """Also where nobody could wait any longer for the one before it."""
    inside, free = Event(), Event()

    def linger(event: Any) -> None:
        inside.set()
        assert arrives(free)

    cb, notes = noting(linger, of=2)
    calling = Running(lambda: cb.call(abs, 1))
    assert arrives(inside)
    cb._core.own[1].close()
    free.set()
    assert calling.done()
    assert notes[0].direct == [True]
    assert notes[1].heard == []


def test_flushing_waits_for_others_and_not_for_itself() -> None:
    """`flush` in another thread waits until the listener is through; in the listener itself it returns."""
    inside, free = Event(), Event()
    flushed: list[bool] = []

    def linger(event: Any) -> None:
        flushed.append(cb._core.bus.flush(PATIENCE))
        inside.set()
        assert arrives(free)

    cb, notes = noting(linger)
    calling = Running(lambda: cb.call(abs, 1))
    assert arrives(inside)
    assert flushed == [True]
    assert not cb._core.bus.flush(0)
    free.set()
    assert calling.done()
    assert cb._core.bus.flush(0)
    assert notes[0].direct == [True]


def test_who_has_told_directly_and_delivers_on_holds_the_claim_no_longer() -> None:
    """What waits is delivered from the same frame; a flush in there waits for another thread that tells directly."""
    seen: list[bool] = []
    claims: list[Any] = []

    def again(event: Any) -> None:
        if not claims:
            claims.append(cb._core.claim)
            cb.call(abs, 1)
        else:
            seen.append(claims[0].is_mine)

    cb, _ = noting(again)
    cb.call(abs, 1)
    assert seen == [False]


def test_a_thread_that_comes_while_another_tells_leaves_its_event_to_it() -> None:
    """It waits for nobody's listener, and the one that tells goes on with what was left."""
    inside, free = Event(), Event()

    def linger(event: Any) -> None:
        if not inside.is_set():
            inside.set()
            assert arrives(free)
        threads.append(get_ident())

    threads: list[int] = []
    cb, notes = noting(linger)
    calling = Running(lambda: cb.call(abs, 1))
    assert arrives(inside)
    cb.call(abs, 1)
    cb.call(abs, 1)
    assert threads == []
    free.set()
    assert calling.done()
    assert len(threads) == 3
    assert set(threads) != {get_ident()}
    assert notes[0].heard == sorted(notes[0].heard)
    assert notes[0].direct == [True, False, False]


def test_threads_lose_nothing_and_keep_the_order() -> None:
    """However they interleave: every success of eight threads is told once, gapless, in order, one at a time."""
    calls, threads = 400, 8
    cb = CircuitBreaker("payments", bus=Bus(), tripper=FailureStreak(9), window=TimeWindow(3600))
    inside = 0
    direct: set[bool] = set()
    numbers: list[int] = []

    def listener(event: CallSucceeded) -> None:
        nonlocal inside
        inside += 1
        assert inside == 1
        numbers.append(event.sequence)
        direct.add(told_directly(cb))
        inside -= 1

    failures = EventRecorder(ListenerFailed)
    cb.attach(listener, CallEnded)
    cb.attach(failures)
    protected = cb(abs)
    barrier = Barrier(threads)

    def work() -> None:
        barrier.wait(PATIENCE)
        for _ in range(calls):
            protected(-1)

    with restless():
        together(*[work] * threads)
    assert cb._core.bus.flush(PATIENCE)
    assert not failures.events_seen
    assert numbers == list(range(1, calls * threads + 1))
    assert cb.info().metrics.total_count == calls * threads
    assert direct == {True, False}


@pytest.fixture
def child() -> Callable[[Callable[[], bool]], bool]:
    """Runs something in a forked child; whether it was true there."""

    def fork(check: Callable[[], bool]) -> bool:
        pid = os.fork()
        if pid == 0:
            good = False
            try:
                good = check()
            finally:
                os._exit(0 if good else 1)
        return os.waitpid(pid, 0)[1] == 0

    return fork


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_in_a_listener_tells_the_rest_in_the_parent_alone() -> None:
    """The child ends with the listener that forked, and its next calls are told as ever."""
    forked: list[int] = []

    def fork(event: Any) -> None:
        if not forked:
            forked.append(os.fork())

    cb, (first, second) = noting(fork, of=2)
    cb.call(abs, 1)
    if forked[0] == 0:
        good = False
        try:
            untold = second.heard == []
            for _ in range(2):
                cb.call(abs, 1)
            good = untold and len(second.heard) == 2 and len(first.heard) == 3 and cb._core.claim is None
        finally:
            os._exit(0 if good else 1)
    assert os.waitpid(forked[0], 0)[1] == 0
    assert first.direct == [True]
    assert first.heard == second.heard


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_that_ends_in_the_listener_that_forked_tells_nobody() -> None:
    """It leaves by `SystemExit`, as children do; the parent tells the others."""
    forked: list[int] = []

    def fork(event: Any) -> None:
        if not forked:
            forked.append(os.fork())
            if forked[0] == 0:
                raise SystemExit

    cb, (first, second) = noting(fork, of=2)
    good = False
    try:
        cb.call(abs, 1)
    except SystemExit:
        good = second.heard == [] and cb._core.claim is None
    finally:
        if forked[0] == 0:
            os._exit(0 if good else 1)
    assert os.waitpid(forked[0], 0)[1] == 0
    assert first.heard == second.heard


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_while_another_thread_tells_leaves_the_child_usable(child: Callable[[Callable[[], bool]], bool]) -> None:
    """Its claim is not in the child, which tells its own calls."""
    inside, free = Event(), Event()

    def linger(event: Any) -> None:
        if not inside.is_set():
            inside.set()
            assert arrives(free)

    cb, (notes,) = noting(linger)
    calling = Running(lambda: cb.call(abs, 1))
    assert arrives(inside)
    before = len(notes.heard)

    def check() -> bool:
        cb.call(abs, 1)
        cb.call(abs, 1)
        return len(notes.heard) == before + 2

    assert child(check)
    free.set()
    assert calling.done()


def test_a_clock_that_goes_back_under_a_call_gives_no_negative_duration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patched while the call runs, as tests of others do: it goes the ordinary way."""
    import time

    recorder = EventRecorder(CallEnded)
    cb = CircuitBreaker("payments", bus=Bus(), tripper=FailureStreak(9), listeners=[recorder])
    cb.call(abs, 1)
    core = cb._core
    cb.call(lambda: monkeypatch.setattr(time, "monotonic", lambda: -1.0))
    monkeypatch.undo()
    assert [event.duration >= 0 for event in recorder.of(CallSucceeded)] == [True, True]
    assert core.claim is None


def test_a_circuit_that_is_heard_is_freed_with_its_breaker() -> None:
    """The claim of a lane does not hold the circuit."""
    bus, retired = Bus(), EventRecorder()
    bus.attach(retired)
    cb = CircuitBreaker("payments", bus=bus, tripper=FailureStreak(9))
    cb.attach(lambda event: None, CallEnded)
    cb.attach(lambda event: None, CallEnded)
    for _ in range(3):
        cb.call(abs, 1)
    del cb
    flush()
    assert bus.circuits() == []


def test_the_news_of_a_loss_that_is_lost_itself_is_told_again() -> None:
    """Whoever adds up what `EventsDropped` says knows how many events did not come."""
    cb = CircuitBreaker("payments", bus=Bus(), tripper=FailureStreak(9))
    heard: list[int] = []
    told: list[Any] = []

    def flood(event: Any) -> None:
        heard.append(event.sequence)
        if len(heard) <= 3:
            for _ in range(12_000):
                cb.call(abs, 1)

    cb.attach(flood, CallSucceeded)
    cb.attach(told.append, EventsDropped)
    cb.call(abs, 1)
    assert len(heard) + sum(each.count for each in told if "flood" in each.listener) == 36_001


# -- refusals -------------------------------------------------------------------------------------------------------


class Refusals:
    """A listener of refusals and changes that does something at each refusal."""

    events: tuple[Any, ...] = (CallRejected, StateChanged, ListenerFailed)

    def __init__(self, do: Callable[[Any], object] = lambda event: None) -> None:
        self.do = do
        self.heard: list[Any] = []

    def __call__(self, event: Any) -> None:
        self.heard.append(event)
        if isinstance(event, CallRejected):
            self.do(event)

    @property
    def numbers(self) -> list[int]:
        return [event.sequence for event in self.heard]


def refuse(cb: Any) -> None:
    with pytest.raises(CallNotPermittedError):
        cb.call(abs, -1)


def refusing(*listeners: Any, state: str = "open") -> tuple[Any, VirtualClock]:
    """An open circuit of which these listeners are told at once, and its clock."""
    clock = VirtualClock()
    cb = CircuitBreaker("payments", bus=Bus(), clock=clock, tripper=FailureStreak(1), retry=Cooldown(60))
    for listener in listeners:
        cb.attach(listener)
    if state == "open":
        with pytest.raises(TypeError):
            cb.call(abs, "x")  # type: ignore[arg-type]
    else:
        cb.force_open()
    refuse(cb)  # with the lock
    return cb, clock


@pytest.mark.parametrize(("state", "retry_after"), [("open", 59.5), ("forced_open", None)])
def test_a_refusal_is_told_at_once(state: str, retry_after: float | None) -> None:
    """The event is that of the ordinary path, and so is the error."""
    refusals = Refusals()
    cb, clock = refusing(refusals, state=state)
    clock.advance(0.5)
    lock = Watched(cb._core.lock)
    cb._core.lock = lock
    with pytest.raises(CallNotPermittedError) as caught:
        cb.call(abs, -1)
    assert lock.taken == 1  # to see that nothing has come meanwhile
    event = refusals.heard[-1]
    assert (event.circuit_name, event.timestamp, event.state) == ("payments", clock.time(), state)
    assert (event.retry_after, event.reason) == (retry_after, state)
    error = caught.value
    assert (error.circuit_name, error.state, error.retry_after) == ("payments", state, retry_after)
    assert error.verdict is not None
    assert error.opening is not None
    assert refusals.numbers == [1, 2, 3]
    with pytest.raises(AttributeError):
        event.reason = "changed"


def test_a_refusal_is_told_as_ever_where_nobody_can_be_called_at_once() -> None:
    """In the background it is queued, in its turn."""
    refusals, waiting = Refusals(), Refusals()
    cb, _ = refusing(refusals)
    with cb.attach(waiting, CallRejected, delivery="background"):
        refuse(cb)
        assert cb._core.heard_gate is None
        refuse(cb)
        assert flush()
    assert refusals.numbers == [1, 2, 3, 4]
    assert waiting.numbers == [3, 4]


def test_the_gate_ends_with_the_wait_and_with_a_control() -> None:
    """Then the next call is asked for anew."""
    refusals = Refusals()
    cb, clock = refusing(refusals)
    clock.advance(60)
    cb.configure(permit=EveryCall())
    assert cb.call(abs, -1) == 1
    cb.force_open()
    refuse(cb)
    cb.reset()
    assert cb.call(abs, -1) == 1
    kinds = [type(event).__name__ for event in refusals.heard]
    rejected = "CallRejected"
    assert kinds == ["StateChanged", rejected, *["StateChanged"] * 3, rejected, "StateChanged"]
    assert refusals.numbers == list(range(1, 8))


def test_a_listener_of_refusals_that_fails_hides_no_other() -> None:
    """Its failure is told after, and the caller gets the refusal."""

    def fail(event: Any) -> None:
        raise ValueError("broken")

    first, second = Refusals(fail), Refusals()
    cb, _ = refusing(first, second)
    refuse(cb)
    assert first.numbers == second.numbers == list(range(1, 6))
    assert isinstance(second.heard[-1], ListenerFailed)


def test_a_listener_of_refusals_may_call_the_breaker() -> None:
    """What that tells comes after, one at a time; so does what it moves."""
    within: list[int] = []

    def again(event: Any) -> None:
        within.append(event.sequence)
        if event.sequence == 3:
            refuse(cb)
            cb.reset()
            assert within[-1] == 3

    first, second = Refusals(again), Refusals()
    cb, _ = refusing(first, second)
    refuse(cb)
    assert first.numbers == second.numbers == [1, 2, 3, 4, 5]
    assert cb.state == "closed"


def test_threads_that_are_refused_are_told_of_in_order() -> None:
    """One at a time, each once."""
    refusals = Refusals()
    cb, _ = refusing(refusals)

    def calls() -> None:
        for _ in range(200):
            with suppress(CallNotPermittedError):
                cb.call(abs, -1)

    with restless():
        together(*[calls] * 4)
    assert refusals.numbers == list(range(1, 803))


def test_the_program_may_be_ended_by_a_listener_of_refusals() -> None:
    """`SystemExit` goes on when all have been told."""

    def end(event: Any) -> None:
        raise SystemExit

    first, second = Refusals(), Refusals()
    cb, _ = refusing(first, second)
    first.do = end
    with pytest.raises(SystemExit):
        cb.call(abs, -1)
    assert first.numbers == second.numbers == [1, 2, 3]
    first.do = lambda event: None
    refuse(cb)
    assert second.numbers == [1, 2, 3, 4]


# -- failures -------------------------------------------------------------------------------------------------------


class Failures(Refusals):
    """As `Refusals`, of failures."""

    events: tuple[Any, ...] = (CallFailed, StateChanged, ListenerFailed)

    def __call__(self, event: Any) -> None:
        self.heard.append(event)
        if isinstance(event, CallFailed):
            self.do(event)


def fail(cb: Any) -> None:
    with pytest.raises(ConnectionError):
        cb.call(_fail)


def _fail() -> None:
    raise ConnectionError("no route")


def failing(*listeners: Any) -> tuple[Any, VirtualClock]:
    """A circuit with failures to spare, of which these listeners are told at once, and its clock."""
    clock = VirtualClock()
    cb = CircuitBreaker("payments", bus=Bus(), clock=clock, tripper=FailureStreak(20), window=CountWindow(50))
    for listener in listeners:
        cb.attach(listener)
    cb.call(abs, -1)
    fail(cb)  # with the lock
    return cb, clock


def test_a_failure_is_told_at_once() -> None:
    """The event is that of the ordinary path, and the window has the failure."""
    failures = Failures()
    cb, clock = failing(failures)
    lock = Watched(cb._core.lock)
    cb._core.lock = lock

    def slowly() -> None:
        clock.advance(0.004)
        raise ConnectionError("no answer")

    with pytest.raises(ConnectionError):
        cb.call(slowly)
    assert lock.taken == 1  # to see that nothing has come meanwhile
    event = failures.heard[-1]
    assert (event.circuit_name, event.timestamp, event.state) == ("payments", clock.time(), "closed")
    assert (event.error_type, event.error, event.slow, event.stale) == ("ConnectionError", "no answer", False, False)
    assert (event.duration, event.call_id) == (pytest.approx(0.004), event.sequence)
    assert failures.numbers == [1, 2]
    assert cb.info().metrics.failure_count == 2
    with pytest.raises(AttributeError):
        event.error = "changed"


def test_a_failure_that_is_one_too_many_trips_in_order() -> None:
    """Its event comes before the change, and nothing is lost on the way there."""
    failures = Failures()
    cb, _ = failing(failures)
    for _ in range(19):
        fail(cb)
    assert cb.state == "open"
    assert [type(event).__name__ for event in failures.heard] == ["CallFailed"] * 20 + ["StateChanged"]
    assert failures.numbers == list(range(1, 22))
    assert failures.heard[-1].metrics.failure_count == 20


def test_a_failure_is_told_as_ever_where_nobody_can_be_called_at_once() -> None:
    """In the background it is queued, in its turn."""
    failures, waiting = Failures(), Failures()
    cb, _ = failing(failures)
    with cb.attach(waiting, CallFailed, delivery="background"):
        fail(cb)
        fail(cb)
        assert flush()
    assert failures.numbers == [1, 2, 3]
    assert waiting.numbers == [2, 3]


def test_a_listener_of_failures_may_call_the_breaker() -> None:
    """What that tells comes after, one at a time; so does what it moves."""

    def again(event: Any) -> None:
        if event.sequence == 2:
            fail(cb)
            cb.force_open()

    first, second = Failures(again), Failures()
    cb, _ = failing(first, second)
    fail(cb)
    assert first.numbers == second.numbers == [1, 2, 3, 4]
    assert cb.info().metrics.failure_count == 3
    assert cb.state == "forced_open"


@pytest.mark.parametrize("again", [False, True], ids=["that raises", "that does the same"])
@pytest.mark.parametrize("what", ["refusal", "failure"])
def test_a_signal_while_somebody_is_told(what: str, again: bool) -> None:
    """Wherever it comes, what was numbered is told once and in order; whom it keeps from listening misses one event."""
    listener, make, do = (Refusals, refusing, refuse) if what == "refusal" else (Failures, failing, fail)
    step = 0
    for step in count():
        first, second = listener(), listener()
        cb, _ = make(first, second)
        at_hand = len(first.heard) + 1

        def handler(cb: Any = cb) -> None:
            if again:
                do(cb)
            else:
                raise Interrupt

        def work(cb: Any = cb) -> None:
            with suppress(CallNotPermittedError, ConnectionError):
                cb.call(_fail)

        if not interrupted(work, step, handler):
            break
        do(cb)
        assert cb._core.claim is None
        last = max(first.numbers[-1], second.numbers[-1])
        missed = {number for each in (first, second) for number in range(1, last + 1) if number not in each.numbers}
        assert missed <= (set() if again else {at_hand})
        assert {*first.numbers, *second.numbers} == set(range(1, last + 1))
        for each in (first, second):
            assert each.numbers == sorted(set(each.numbers))
        assert last - at_hand == 2 if again else last - at_hand in (0, 1, 2)
        told = {event.sequence for each in (first, second) for event in each.heard if isinstance(event, CallFailed)}
        if what == "failure":
            assert len(told) <= cb.info().metrics.failure_count <= len(told) + (not again)
    assert step > 10


def test_threads_that_fail_are_told_of_in_order() -> None:
    """One at a time, each once, and each is in the window."""
    failures = Failures()
    cb = CircuitBreaker(
        "payments", bus=Bus(), clock=VirtualClock(), tripper=FailureStreak(10**6), window=CountWindow(2000)
    )
    cb.attach(failures)

    def calls() -> None:
        for _ in range(200):
            fail(cb)

    with restless():
        together(*[calls] * 4)
    assert failures.numbers == list(range(1, 801))
    assert cb.info().metrics.failure_count == 800


def test_a_failure_that_was_overtaken_by_a_control_is_stale() -> None:
    """Wherever the circuit is moved on the way of a failure, what is told after the move has decided nothing."""
    step = 0
    for step in count():
        failures = Failures()
        cb, _ = failing(failures)

        def work(cb: Any = cb) -> None:
            with suppress(ConnectionError, CallNotPermittedError):
                cb.call(_fail)

        if not interrupted(work, step, cb.force_open):
            break
        if len(failures.heard) == 2:
            continue  # it was refused
        moved, of_the_call = (failures.heard.index(each) for each in failures.heard[1:])
        if isinstance(failures.heard[1], CallFailed):
            moved, of_the_call = of_the_call, moved
        assert failures.heard[of_the_call].stale is (of_the_call > moved)
        assert cb.info().metrics.failure_count == (2 if of_the_call < moved else 1)
    assert step > 10


def test_a_refusal_that_was_overtaken_by_a_control_is_none() -> None:
    """Wherever the circuit is closed on the way of a refusal, nothing is refused after that."""
    step = 0
    for step in count():
        refusals = Refusals()
        cb, _ = refusing(refusals)

        def work(cb: Any = cb) -> None:
            with suppress(CallNotPermittedError):
                cb.call(abs, -1)

        if not interrupted(work, step, cb.reset):
            break
        kinds = [type(event) for event in refusals.heard[2:]]
        assert kinds in ([StateChanged], [CallRejected, StateChanged])
    assert step > 10


# -- what comes in between ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [CallFailed, CallRejected])
@pytest.mark.parametrize("ends", [False, True], ids=["goes on", "ends the program"])
def test_what_must_be_awaited_is_told_after_what_was_told_at_once(kind: type[Any], ends: bool) -> None:
    """The listener that is called at once moves the circuit, of which another is to be awaited: the call does that."""
    cb: Any = AsyncCircuitBreaker(
        "payments", bus=Bus(), clock=VirtualClock(), tripper=FailureStreak(9), window=CountWindow(50)
    )
    heard: list[int] = []
    armed = False

    def at_once(event: Any) -> None:
        nonlocal armed
        heard.append(event.sequence)
        if armed:
            armed = False
            together(lambda: asyncio.run(cb.metrics_only() if kind is CallFailed else cb.reset()))
            if ends:
                raise SystemExit

    async def awaited(event: StateChanged) -> None:
        await asyncio.sleep(0)
        heard.append(event.sequence)

    async def call() -> None:
        with suppress(ConnectionError, CallNotPermittedError):
            await cb.call(_fail_later)

    async def main() -> None:
        nonlocal armed
        if kind is CallRejected:
            await cb.force_open()
        cb.attach(at_once, kind)
        cb.attach(awaited, StateChanged)
        await call()
        armed = True
        if ends:
            with pytest.raises(SystemExit):
                await call()
            await call()
        else:
            await call()
        assert heard[:3] == [1, 2, 3]
        assert cb._core.claim is None

    asyncio.run(main())


async def _fail_later() -> None:
    raise ConnectionError("no route")


def try_(cb: Any, work: Callable[[], object]) -> bool:
    """Call it, whatever comes of it; whether it was admitted."""
    try:
        cb.call(work)
    except CallNotPermittedError:
        return False
    except ConnectionError:
        pass
    return True


WORKS: dict[str, Callable[[Any], object]] = {
    "success": lambda cb: try_(cb, lambda: 1),
    "failure": lambda cb: try_(cb, _fail),
    "reset": lambda cb: cb.reset(),
    "disable": lambda cb: cb.disable(),
    "force_open": lambda cb: cb.force_open(),
    "configure": lambda cb: cb.configure(slow_threshold=5),
}
HEARD = pytest.mark.parametrize("heard", [(), (CallEnded, CallRejected)], ids=["quiet", "heard"])


def settled(heard: tuple[type[Any], ...], state: str) -> Any:
    """A circuit in which what needs no lock takes none."""
    cb = CircuitBreaker("payments", bus=Bus(), clock=VirtualClock(), tripper=FailureStreak(20), window=CountWindow(50))
    if heard:
        cb.attach(EventRecorder(*heard))
    if state != "closed":
        getattr(cb, state)()
    for _ in range(3):
        try_(cb, lambda: 1)
    return cb


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@HEARD
@pytest.mark.parametrize("state", ["closed", "force_open", "metrics_only"])
@pytest.mark.parametrize("work", WORKS.values(), ids=WORKS)
@pytest.mark.parametrize("control", [None, "force_open", "reset"], ids=["raises", "force_open", "reset"])
def test_a_signal_leaves_no_circuit_that_admits_against_its_state(
    heard: tuple[type[Any], ...], state: str, work: Callable[[Any], object], control: str | None
) -> None:
    """Wherever the handler raises or moves the circuit: the very next call is admitted or refused as its state says."""
    for step in count():
        cb = settled(heard, state)

        def handler(cb: Any = cb) -> None:
            if control is None:
                raise Interrupt
            getattr(cb, control)()

        if not interrupted(lambda cb=cb: work(cb), step, handler):  # type: ignore[misc]
            break
        assert try_(cb, lambda: 1) is (cb.state != "forced_open")


@HEARD
@pytest.mark.parametrize("state", ["closed", "force_open"])
@pytest.mark.parametrize("work", WORKS.values(), ids=WORKS)
@pytest.mark.parametrize("calls", [0, 2])
def test_who_is_attached_by_a_signal_handler_hears_what_comes_next(
    heard: tuple[type[Any], ...], state: str, work: Callable[[Any], object], calls: int
) -> None:
    """Also where it comes while the circuit finds out who is to be told."""
    for step in count():
        cb, recorder = settled(heard, state), EventRecorder(CallEnded, CallRejected)

        def handler(cb: Any = cb, recorder: EventRecorder = recorder) -> None:
            cb.attach(recorder)
            for _ in range(calls):
                try_(cb, lambda: 1)

        if not interrupted(lambda cb=cb: work(cb), step, handler):  # type: ignore[misc]
            break
        before = len(recorder.events_seen)
        for each in (lambda: 1, _fail, lambda: 1):
            try_(cb, each)
        assert len(recorder.events_seen) == before + 3


@pytest.mark.parametrize("control", ["force_open", "metrics_only"])
def test_a_success_that_was_overtaken_by_a_control_is_stale(control: str) -> None:
    """Also where a signal handler calls the breaker in the middle of the control."""
    for step in count():
        cb = settled((), "closed")
        recorder = EventRecorder(CallEnded, StateChanged)
        cb.attach(recorder)
        for _ in range(2):
            try_(cb, lambda: 1)

        def overtaken(cb: Any = cb, step: int = step) -> bool:
            return interrupted(getattr(cb, control), step, lambda: try_(cb, lambda: 1))

        if not cb.call(overtaken):
            break
        (change,) = recorder.of(StateChanged)
        last = recorder.of(CallSucceeded)[-1]
        assert last.stale
        assert last.sequence > change.sequence


def test_a_clock_that_fails_while_the_circuit_is_open_is_told_of() -> None:
    """By such a clock the wait may never end."""

    class Broken(VirtualClock):
        broken = False

        def monotonic(self) -> float:
            if self.broken:
                raise OSError("no time")
            return super().monotonic()

    clock, faults = Broken(), EventRecorder(ListenerFailed, CallRejected)
    cb = CircuitBreaker("payments", bus=Bus(), clock=clock, listeners=[faults])
    cb.force_open()
    refuse(cb)
    clock.broken = True
    for _ in range(3):
        refuse(cb)
    assert {event.role for event in faults.of(ListenerFailed)} == {"clock"}
    assert len(faults.of(CallRejected)) == 4


def test_a_parameter_may_be_called_locals() -> None:
    """The wrapper asks for its own where a listener fails."""

    def fail(event: Any) -> None:
        raise ValueError("broken")

    cb, notes = noting(fail)
    failures = EventRecorder(ListenerFailed)
    cb.attach(failures)

    def echo(locals: int) -> int:
        return locals

    work = cb(echo)
    work(1)
    notes[0].direct.clear()
    assert work(locals=5) == 5
    assert notes[0].direct == [True]
    assert len(failures.of(ListenerFailed)) == 2


def test_no_gate_that_a_signal_handler_has_arranged_outlives_the_state() -> None:
    """It is refused in the middle of a reset, which another interrupts once the circuit is closed."""

    class Stop(BaseException):
        """What the second signal handler raises, as a program ends."""

    def stop_in_finish(frame: Any, event: str, arg: object) -> None:
        if event == "call" and frame.f_code.co_name == "_finish":
            sys.setprofile(None)
            raise Stop

    reached = 0
    for step in count():
        cb = settled((), "force_open")

        def handler(cb: Any = cb) -> None:
            try_(cb, lambda: 1)
            sys.setprofile(stop_in_finish)

        def reset(cb: Any = cb) -> None:
            with suppress(Stop):
                cb.reset()

        if not interrupted(reset, step, handler):
            break
        reached += cb.state == "closed"
        assert try_(cb, lambda: 1) is (cb.state == "closed")
    assert reached
