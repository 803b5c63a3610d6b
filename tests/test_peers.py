"""What other breakers got wrong, one test or a few for each: a list of faults that must not come back."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import random
import threading
import time
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    Metric,
    Returned,
    State,
    TimeWindow,
)
from fluxgate.events import (
    CallEnded,
    CallFailed,
    CallRejected,
    CallStarted,
    CallSucceeded,
    CircuitCreated,
    Event,
    ListenerFailed,
    StateChanged,
)
from fluxgate.permits import All as EveryCall
from fluxgate.retries import Retry
from fluxgate.testing import EventRecorder, VirtualClock
from fluxgate.trackers import All, Tracker
from fluxgate.trippers import Tripper
from fluxgate.windows import Record, Window
from tests.faces import ASYNC, STATES_ONLY, SYNC, Circuit, Make, both, finish
from tests.running import PATIENCE, restless, run_async, together

ONE = FailureStreak(1)


def recovering(make: Make, **rules: Any) -> Circuit:
    """A circuit that is open, with its wait over."""
    options: dict[str, Any] = {"tripper": ONE, "permit": EveryCall(), "max_half_open_calls": 1}
    circuit = make(**(options | rules))
    circuit.fail()
    circuit.clock.advance(60)
    return circuit


# -- 1. late results deciding a later state -------------------------------------------------------------------------


@both
def test_late_failures_do_not_reopen_a_circuit_that_recovered(make: Make) -> None:
    """Calls of before the outage that fail after it are told as stale, and decide nothing."""
    circuit = make(tripper=ONE, permit=EveryCall())
    slow = [circuit.acquire() for _ in range(5)]
    circuit.fail()
    circuit.clock.advance(60)
    circuit.succeed()
    for call in slow:
        call.failure()
    assert circuit.state == "closed"
    assert circuit.metrics.total_count == 0
    assert sum(end.stale for end in circuit.seen(CallFailed)) == 5


@both
def test_late_successes_do_not_close_a_circuit_that_probes(make: Make) -> None:
    """A success from before the outage is no evidence of a recovery."""
    circuit = make(tripper=ONE, permit=EveryCall())
    slow = circuit.acquire()
    circuit.fail()
    circuit.clock.advance(60)
    probe = circuit.acquire()
    slow.success()
    assert circuit.state == "half_open"
    probe.success()
    assert circuit.state == "closed"


# -- 2. a hung or cancelled probe that blocks recovery or closes the circuit ----------------------------------------


@both
def test_a_hung_probe_does_not_block_recovery(make: Make) -> None:
    """Its place is free again after `half_open_timeout`."""
    circuit = recovering(make, half_open_timeout=30)
    circuit.acquire()
    circuit.refused()
    circuit.clock.advance(30)
    circuit.succeed()
    assert circuit.state == "closed"


@both
def test_a_cancelled_probe_neither_blocks_nor_closes(make: Make) -> None:
    """Its place is free at once, and the circuit stays half-open."""
    circuit = recovering(make)
    for _ in range(3):
        with pytest.raises(asyncio.CancelledError):
            circuit.call(cancelled)
        assert circuit.state == "half_open"
    circuit.succeed()
    assert circuit.state == "closed"


def cancelled() -> None:
    raise asyncio.CancelledError


def test_a_probe_whose_task_is_cancelled_neither_blocks_nor_closes() -> None:
    """The same where asyncio cancels a call that waits."""
    circuit = recovering(ASYNC)

    async def main() -> None:
        async def hang() -> None:
            await asyncio.Event().wait()

        task = asyncio.create_task(circuit.breaker.call(hang))
        await asyncio.sleep(0)
        assert circuit.info.probes == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (circuit.state, circuit.info.probes) == ("half_open", 0)

    run_async(main())
    circuit.succeed()
    assert circuit.state == "closed"


# -- 3. a listener's error reaching the caller or counting as a failure ---------------------------------------------


@both
@pytest.mark.parametrize("kind", [ValueError, asyncio.CancelledError, StopIteration, GeneratorExit])
def test_a_listener_that_raises_is_nobody_else_s_trouble(
    make: Make, kind: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """The caller gets the result, the call is a success, the next listener is told, and the fault is reported."""

    def broken(event: Event) -> None:
        raise kind("broken")

    circuit = make(tripper=ONE)
    circuit.breaker.attach(broken, CallStarted, CallEnded)
    after = EventRecorder(CallSucceeded)
    circuit.breaker.attach(after)
    circuit.succeed(value=5)
    assert (circuit.state, circuit.metrics.failure_count) == ("closed", 0)
    assert len(after.events_seen) == 1
    reports = circuit.seen(ListenerFailed)
    assert [(event.role, event.error, event.count) for event in reports] == [
        ("listener", "broken", 1),
        ("listener", "broken", 2),
    ]
    assert len(caplog.records) == 1
    circuit.fail(ConnectionError("the caller's own"))


# -- 4. event order lost when callbacks moved out of the lock -------------------------------------------------------


@both
def test_events_arrive_in_the_order_in_which_things_happened(make: Make) -> None:
    """From many threads, each listener sees the sequence without gap or swap, one event at a time."""
    circuit = make(tripper=FailureStreak(3), retry=Cooldown(0), permit=EveryCall())
    sequence: list[int] = []
    inside: list[int] = []

    def listener(event: Event) -> None:
        inside.append(1)
        assert len(inside) == 1
        sequence.append(event.sequence)
        inside.pop()

    circuit.breaker.attach(listener, Event)
    before = len(circuit.recorder.events_seen)

    def work() -> None:
        for number in range(60):
            try:
                circuit.call(fail if number % 4 else int)
            except (ConnectionError, CallNotPermittedError):
                pass

    with restless():
        together(*[work] * 4)
    assert sequence == list(range(before + 1, before + 1 + len(sequence)))
    assert len(sequence) > 240
    assert not circuit.seen(ListenerFailed)


def fail() -> None:
    raise ConnectionError("no route")


# -- 5. rejections uncounted while forced open ----------------------------------------------------------------------


@both
def test_rejections_are_told_while_forced_open(make: Make) -> None:
    """Each is an event, as in an open circuit."""
    circuit = make()
    circuit.steer("force_open")
    for _ in range(5):
        circuit.refused()
    assert [(event.reason, event.retry_after, event.state) for event in circuit.seen(CallRejected)] == [
        ("forced_open", None, "forced_open")
    ] * 5


# -- 6. wall-clock jumps --------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("jump", [-1e9, -3600.0, 3600.0, 1e9])
def test_a_jump_of_the_wall_clock_moves_nothing(make: Make, jump: float) -> None:
    """Waits, windows, durations and deadlines run on the monotonic clock."""
    circuit = make(tripper=FailureStreak(2), permit=EveryCall(), window=TimeWindow(100), half_open_timeout=30)
    held = circuit.acquire()
    circuit.fail()
    circuit.clock.set_time(circuit.clock.time() + jump)
    circuit.clock.advance(2)
    assert circuit.metrics.total_count == 1
    held.success()
    assert circuit.seen(CallSucceeded)[0].duration == 2.0
    circuit.fail()
    circuit.fail()
    circuit.clock.set_time(circuit.clock.time() - jump)
    assert circuit.refused().retry_after == 60.0
    circuit.clock.advance(60)
    probe = circuit.acquire()
    circuit.clock.set_time(circuit.clock.time() + jump)
    assert circuit.info.probes == 1
    probe.success()
    assert circuit.state == "closed"


# -- 7. jitter redrawn at each check --------------------------------------------------------------------------------


@both
def test_jitter_is_drawn_once_an_opening(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The promised `retry_after` stays true, and the next opening draws anew."""
    draws: list[float] = []

    def draw() -> float:
        draws.append(len(draws) / 10)
        return draws[-1]

    monkeypatch.setattr(random, "random", draw)
    circuit = make(tripper=ONE, retry=Cooldown(100, jitter_ratio=0.5), permit=EveryCall())
    circuit.fail()
    assert len(draws) == 1
    for _ in range(10):
        assert circuit.refused().retry_after == 50.0
        assert circuit.info.retry_after == 50.0
    assert len(draws) == 1
    assert circuit.seen(StateChanged)[0].wait == 50.0
    circuit.clock.advance(50)
    circuit.fail()
    assert len(draws) == 2
    assert circuit.refused().retry_after == pytest.approx(60.0)


# -- 8. a time window that never forgets ----------------------------------------------------------------------------


@both
@pytest.mark.parametrize("hears", [STATES_ONLY, (Event,)], ids=["quiet", "heard"])
def test_a_time_window_forgets(make: Make, hears: Any) -> None:
    """Also while nobody calls, and also where only successes come in."""
    circuit = make(hears=hears, window=TimeWindow(60), tripper=FailureStreak(99))
    succeed = circuit.protect(lambda: None)
    circuit.fail()
    for _ in range(10):
        succeed()
    circuit.clock.advance(60)
    assert circuit.metrics == Metric(total_count=0, failure_count=0, total_duration=0.0, slow_count=0)
    for second in range(1, 200):
        succeed()
        circuit.clock.advance(1)
        assert circuit.metrics.total_count == min(second, 59)


# -- 9. CLOSED -> OPEN plus OPEN -> OPEN under concurrent failures --------------------------------------------------


@both
def test_concurrent_failures_open_once(make: Make) -> None:
    """However many fail at once, there is one opening, and the others are stale."""
    circuit = make(tripper=ONE)
    calls = [circuit.acquire() for _ in range(8)]
    with restless():
        together(*[call.failure for call in calls])
    assert circuit.moves() == ["closed open tripper"]
    assert sorted(end.stale for end in circuit.seen(CallFailed)) == [False] + [True] * 7
    assert circuit.info.reopens == 0


@both
def test_concurrent_probes_reopen_once(make: Make) -> None:
    """The same where several probes fail at once."""
    circuit = recovering(make, max_half_open_calls=8)
    calls = [circuit.acquire() for _ in range(8)]
    with restless():
        together(*[call.failure for call in calls])
    assert circuit.moves() == ["closed open tripper", "open half_open retry", "half_open open tripper"]
    assert circuit.info.reopens == 1


# -- 10. totals that drift under threads ----------------------------------------------------------------------------


@both
@pytest.mark.parametrize("hears", [STATES_ONLY, (CallEnded, StateChanged)], ids=["quiet", "heard"])
def test_totals_are_exact_under_threads(make: Make, hears: Any) -> None:
    """Each call is in the window once, by whichever path it came."""
    circuit = make(hears=hears, window=CountWindow(100_000), tripper=FailureStreak(10**6))
    succeed = circuit.protect(lambda: None)

    def work() -> None:
        for number in range(500):
            if number % 5:
                succeed()
            else:
                circuit.fail()

    with restless():
        together(*[work] * 6)
    assert (circuit.metrics.total_count, circuit.metrics.failure_count) == (3000, 600)
    if hears is not STATES_ONLY:
        assert len(circuit.seen(CallEnded)) == 3000


# -- 11. a lock held during the call --------------------------------------------------------------------------------


def gated(gate: threading.Barrier) -> None:
    """Wait until the other thread has used the breaker; where it cannot, this fails."""
    gate.wait(PATIENCE)
    gate.wait(PATIENCE)


@both
@pytest.mark.parametrize("where", ["function", "tracker", "value tracker", "fallback", "listener"])
def test_no_lock_is_held_while_user_code_runs(make: Make, where: str) -> None:
    """While any of it runs in one thread, another may call, look and steer."""
    gate = threading.Barrier(2, timeout=PATIENCE)
    armed = [True]

    def meet(*told: object) -> bool:
        if armed:
            armed.clear()
            gated(gate)
        return False

    trackers: dict[str, Any] = {"tracker": meet, "value tracker": All() | Returned(meet)}
    circuit = make(hears=STATES_ONLY, tracker=trackers.get(where))
    if where == "listener":
        circuit.breaker.attach(meet, CallSucceeded)

    def one() -> None:
        if where == "function":
            circuit.call(meet)
        elif where == "fallback":
            circuit.protect(fail, fallback=meet)()
        elif where == "tracker":
            with pytest.raises(ConnectionError):
                circuit.call(fail)
        else:
            circuit.call(int)

    def other() -> None:
        gate.wait(PATIENCE)
        circuit.call(int)
        circuit.acquire().cancel()
        assert circuit.info.state == "closed"
        circuit.steer("reset")
        circuit.steer("configure", retry=Cooldown(5))
        gate.wait(PATIENCE)

    together(one, other)
    assert not gate.broken


@both
def test_a_listener_may_call_the_breaker(make: Make) -> None:
    """From within, without a deadlock; what it causes is told after what it is being told."""
    circuit = make(tripper=ONE)
    order: list[str] = []

    def listener(event: StateChanged) -> None:
        order.append(str(event.new_state))
        if event.new_state is State.OPEN:
            circuit.refused()
            circuit.steer("reset")
            assert order == ["open"]

    circuit.breaker.attach(listener)
    circuit.fail()
    circuit.succeed()
    assert order == ["open", "closed"]


# -- 12. an exception object re-raised for ever with a growing traceback --------------------------------------------


@both
def test_no_refusal_is_raised_twice(make: Make) -> None:
    """Each refusal is a new exception with a short traceback."""
    circuit = make(tripper=ONE)
    circuit.fail()
    lengths = [len(traceback.extract_tb(circuit.refused().__traceback__)) for _ in range(10)]
    assert len(set(lengths)) == 1
    one, two = circuit.refused(), circuit.refused()
    assert one is not two


def test_the_error_that_opened_the_circuit_is_not_kept() -> None:
    """Neither the circuit nor its refusals hold a live exception, only its type and text."""

    class Failure(Exception):
        pass

    circuit = SYNC(tripper=ONE)
    alive: list[weakref.ref[Failure]] = []

    def work() -> None:
        error = Failure("no route")
        alive.append(weakref.ref(error))
        raise error

    try:
        circuit.breaker.call(work)
    except Failure:
        pass
    gc.collect()
    assert alive[0]() is None
    last = circuit.seen(StateChanged)[0].last_error
    assert last is not None
    assert last.text == "no route"
    assert circuit.refused().__context__ is None


# -- 13. reference cycles per failure -------------------------------------------------------------------------------


@contextmanager
def no_garbage() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
        assert gc.collect() == 0
    finally:
        gc.enable()


@pytest.mark.parametrize("breaker", [CircuitBreaker, AsyncCircuitBreaker])
@pytest.mark.parametrize("streak", [10**6, 1], ids=["failures", "refusals"])
def test_failures_and_refusals_leave_no_reference_cycle(breaker: Any, streak: int) -> None:
    """The collector finds nothing to do after them."""
    circuit = breaker("payments", tripper=FailureStreak(streak), bus=Bus())

    async def coloured() -> None:
        raise ConnectionError

    function: Callable[[], Any] = circuit(coloured if breaker is AsyncCircuitBreaker else fail)

    def once() -> None:
        try:
            finish(function())
        except (ConnectionError, CallNotPermittedError):
            pass

    once()
    with no_garbage():
        for _ in range(10):
            once()


# -- 14. `window or default` discarding a falsy window --------------------------------------------------------------


class Falsy:
    """Whatever it is, it counts as false."""

    def __bool__(self) -> bool:
        return False

    def __len__(self) -> int:
        return 0


class FalsyWindow(Falsy, Window):
    def open(self, slow_threshold: float, thresholds: Any) -> Record:
        return CountWindow(3).open(slow_threshold, thresholds)


class FalsyTracker(Falsy, Tracker):
    def __call__(self, error: Exception, /) -> bool:
        return isinstance(error, KeyError)


class FalsyTripper(Falsy, Tripper):
    def __call__(self, metric: Metric, state: State, consecutive_failures: int, /) -> bool:
        return metric.failure_count > 0


class FalsyRetry(Falsy, Retry):
    def wait(self, reopens: int, /) -> float:
        return 7.0


class FalsyPermit(Falsy):
    def __call__(self, elapsed: float) -> bool:
        return False


class FalsyClock(Falsy, VirtualClock):
    pass


class FalsyBus(Falsy, Bus):
    pass


class FalsyListener(Falsy, EventRecorder):
    pass


@pytest.mark.parametrize("breaker", [CircuitBreaker, AsyncCircuitBreaker])
def test_what_is_falsy_is_not_thrown_away(breaker: Any) -> None:
    """A window, a rule, a clock, a bus or a listener that counts as false is the one that is used."""
    clock, bus, listener = FalsyClock(), FalsyBus(), FalsyListener()
    circuit = breaker(
        "payments",
        window=FalsyWindow(),
        tracker=FalsyTracker(),
        tripper=FalsyTripper(),
        retry=FalsyRetry(),
        permit=FalsyPermit(),
        clock=clock,
        bus=bus,
        listeners=[listener],
    )
    assert bus.circuits() == [circuit]

    def settle(error: Exception | None) -> None:
        call = finish(circuit.acquire())
        finish(call.success() if error is None else call.failure(error))

    for _ in range(5):
        settle(None)
    settle(ConnectionError())
    assert circuit.info().metrics.total_count == 3
    settle(KeyError())
    assert circuit.info().retry_after == 7.0
    clock.advance(7)
    with pytest.raises(CallNotPermittedError):
        finish(circuit.acquire())
    assert circuit.state is State.HALF_OPEN
    assert [event.reason for event in listener.of(CallRejected)] == ["not_chosen"]


@both
def test_falsy_values_and_errors_are_what_they_are(make: Make) -> None:
    """An exception that counts as false is a failure, and a falsy result or fallback answer is returned."""

    class FalsyError(Falsy, Exception):
        pass

    circuit = make(tripper=FailureStreak(3))
    circuit.fail(FalsyError())
    circuit.acquire().failure(FalsyError())
    assert circuit.metrics.failure_count == 2
    empty: list[int] = []
    assert circuit.call(lambda: empty) is empty
    assert circuit.protect(fail, fallback=lambda error: 0)() == 0


# -- 15. sync wrapper on `async def` counting success at once -------------------------------------------------------


def test_a_coroutine_function_is_not_a_success_at_once() -> None:
    """The sync breaker refuses it at decoration, and at the call where it could not be seen before."""

    async def fetch() -> int:
        raise ConnectionError

    circuit = SYNC()
    with pytest.raises(TypeError, match="use AsyncCircuitBreaker"):
        circuit.breaker(fetch)
    with pytest.raises(TypeError, match="returned a coroutine"):
        circuit.breaker.call(fetch)
    assert circuit.metrics.total_count == 0
    assert not circuit.seen(CallSucceeded)


def test_a_disguised_coroutine_function_is_not_a_success_at_once() -> None:
    """Nor is one behind a plain function that is decorated."""

    async def fetch() -> int:
        raise ConnectionError

    circuit = SYNC()
    with pytest.raises(TypeError, match="returned a coroutine"):
        circuit.breaker(lambda: fetch())()
    assert not circuit.seen(CallSucceeded)


def test_an_async_call_counts_when_it_has_been_awaited() -> None:
    """Not when its coroutine is made."""
    circuit = ASYNC(tripper=ONE)

    async def fetch() -> int:
        await asyncio.sleep(0)
        raise ConnectionError

    async def main() -> None:
        coroutine = circuit.breaker(fetch)()
        assert circuit.seen(CallStarted) == []
        with pytest.raises(ConnectionError):
            await coroutine

    run_async(main())
    assert circuit.state == "open"


# -- 16. metrics absent before the first transition -----------------------------------------------------------------


@both
def test_a_circuit_is_known_before_anything_happens(make: Make) -> None:
    """Its creation is an event, and state and sums can be read at once: zero, not absent."""
    circuit = make()
    (told,) = circuit.seen(CircuitCreated)
    assert (told.circuit_name, told.state, told.sequence) == ("payments", "closed", 1)
    assert (circuit.metrics.total_count, circuit.metrics.failure_count, circuit.metrics.slow_count) == (0, 0, 0)
    assert [breaker.info().state for breaker in circuit.bus.circuits()] == ["closed"]


def test_a_listener_that_comes_late_can_ask_for_the_circuits_there_are() -> None:
    """The bus lists them, whoever made them."""
    bus = Bus()
    kept = [CircuitBreaker("b", bus=bus), AsyncCircuitBreaker("a", bus=bus)]
    assert [breaker.name for breaker in bus.circuits()] == ["a", "b"]
    assert len(kept) == 2


# -- 17. duplicate time series on a second listener -----------------------------------------------------------------


@both
def test_a_second_listener_doubles_nothing(make: Make) -> None:
    """Each of any number receives each event once, and none is registered anywhere but on its bus."""
    circuit = make()
    one, two = EventRecorder(Event), EventRecorder(Event)
    circuit.breaker.attach(one)
    circuit.bus.attach(two)
    circuit.succeed()
    circuit.fail()
    circuit.steer("force_open")
    assert [event.sequence for event in one.events_seen] == [event.sequence for event in two.events_seen]
    assert len({event.sequence for event in one.events_seen}) == len(one.events_seen) == 5


# -- 18. error objects that do not pickle ---------------------------------------------------------------------------


@both
@pytest.mark.parametrize("state", ["open", "half_open", "forced_open"])
def test_a_refusal_from_a_worker_process_arrives_whole(make: Make, state: str) -> None:
    """With circuit, state, time, verdict and text."""
    circuit = recovering(make)
    if state == "half_open":
        circuit.acquire()
    elif state == "forced_open":
        circuit.steer("force_open")
    else:
        circuit.fail()
    error = circuit.refused()
    twin = pickle.loads(pickle.dumps(error))
    for name in ("circuit_name", "state", "retry_after", "verdict", "message"):
        assert getattr(twin, name) == getattr(error, name)
    assert twin.state == state
    assert twin.verdict is not None


# -- 19. fork while a lock is held ----------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_in_the_middle_of_everything_leaves_the_child_usable() -> None:
    """Other threads call, look and steer while the process forks; the child can do all of it at once."""
    breaker = CircuitBreaker("payments", tripper=FailureStreak(3), retry=Cooldown(0), bus=Bus())
    breaker.attach(lambda event: None, Event)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            try:
                breaker.call(fail)
            except (ConnectionError, CallNotPermittedError):
                pass
            breaker.info()
            breaker.reset()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            assert forked(breaker) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)


def forked(breaker: CircuitBreaker) -> int:
    """What a child made of it: 0 where it could use the breaker, else how far it came."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads, which is the point
        child = os.fork()
    if child == 0:
        status = 1
        try:
            breaker.reset()
            if breaker.call(int, "5") == 5 and breaker.info().metrics.total_count == 1:
                status = 0
        finally:
            os._exit(status)
    for _ in range(int(PATIENCE * 100)):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)  # of real time: the child is another process
    os.kill(child, 9)
    os.waitpid(child, 0)
    raise AssertionError("the child hangs")


# -- 20. a shared store whose outage fails or passes every call -----------------------------------------------------


class StoreDown(Exception):
    """What a rule that asks a shared store meets in its outage."""


def ask_store(*told: object) -> Any:
    raise StoreDown


class StoredRetry:
    def wait(self, reopens: int) -> float:
        return ask_store()  # type: ignore[no-any-return]


@both
def test_an_outage_of_a_store_behind_a_rule_fails_no_call(make: Make) -> None:
    """Whichever rule asks it: each call has its own outcome, and the circuit opens and recovers all the same."""
    circuit = make(tripper=FailureStreak(2), retry=StoredRetry(), permit=ask_store)
    circuit.succeed(value=5)
    circuit.fail()
    circuit.fail()
    assert circuit.state == "open"
    circuit.refused()
    circuit.clock.advance(60)
    circuit.succeed(value=6)
    assert circuit.state == "closed"
    assert {event.role for event in circuit.seen(ListenerFailed)} == {"retry", "permit"}


@both
@pytest.mark.parametrize("order", ["store first", "store last"])
def test_an_outage_of_a_store_does_not_keep_a_sick_circuit_closed(make: Make, order: str) -> None:
    """The rules beside the one that asks the store still decide."""
    tripper = ask_store | FailureStreak(3) if order == "store first" else FailureStreak(3) | ask_store
    circuit = make(tripper=tripper)
    for _ in range(3):
        circuit.fail()
    assert circuit.state == "open"
    assert {event.role for event in circuit.seen(ListenerFailed)} == {"tripper"}
