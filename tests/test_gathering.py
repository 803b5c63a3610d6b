"""Plain outcomes that gather without the lock: what is told of them later is what it would have been at once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from itertools import count, product
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fluxgate import (
    Bus,
    CircuitBreaker,
    Cooldown,
    CountWindow,
    FailureRate,
    FailureStreak,
    MinRequests,
    SlowRate,
    TimeWindow,
    _gil,
)
from fluxgate.events import CallFailed, StateChanged
from fluxgate.testing import EventRecorder, VirtualClock
from fluxgate.trippers import Tripper
from fluxgate.windows import Window
from tests.running import Interrupt, Watched, interrupted, together

pytestmark = pytest.mark.skipif(not _gil.GIL, reason="without the GIL each outcome takes the lock")


def circuit(clock: VirtualClock | None = None, **rules: Any) -> CircuitBreaker:
    """A quiet circuit; its clock stands still."""
    return CircuitBreaker("payments", bus=Bus(), clock=clock or VirtualClock(), **rules)


def outcome(cb: CircuitBreaker, failed: bool, text: str = "no route") -> None:
    """Let one call end so."""

    def work() -> None:
        if failed:
            raise ConnectionError(text)

    try:
        cb.call(work)
    except ConnectionError:
        pass


def steady(**rules: Any) -> tuple[CircuitBreaker, Watched]:
    """A circuit whose outcomes gather, with failures to spare, and its lock."""
    cb = circuit(**rules)
    for _ in range(20):
        outcome(cb, False)
    outcome(cb, True)  # by which the tripper is asked what it can spare
    lock = Watched(cb._core.lock)
    cb._core.lock = lock  # type: ignore[assignment]
    return cb, lock


RULES: dict[str, dict[str, Any]] = {
    "rate": {"tripper": MinRequests(10) & FailureRate(0.9)},
    "streak": {"tripper": FailureStreak(15)},
    "of seconds": {"tripper": MinRequests(10) & FailureRate(0.9), "window": TimeWindow(60)},
}


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_a_failure_that_can_be_spared_takes_no_lock(rules: dict[str, Any]) -> None:
    """It is in the window all the same, as whoever looks finds."""
    cb, lock = steady(**rules)
    for failed in (False, True, True, False, True):
        outcome(cb, failed)
    assert lock.taken == 0
    metrics = cb.info().metrics
    assert (metrics.total_count, metrics.failure_count) == (26, 4)


def test_a_failure_that_somebody_hears_takes_it() -> None:
    """Its event is numbered under it."""
    cb, lock = steady(**RULES["rate"])
    recorder = EventRecorder(CallFailed)
    cb.attach(recorder)
    outcome(cb, False)
    lock.taken = 0
    outcome(cb, True)
    assert lock.taken > 0
    assert [event.error for event in recorder.of(CallFailed)] == ["no route"]


def test_a_failure_that_cannot_be_spared_takes_it() -> None:
    """The tripper is asked, in time."""
    cb, lock = steady(tripper=MinRequests(10) & FailureRate(0.5))
    taken = 0
    while cb.state == "closed":
        lock.taken = 0
        outcome(cb, True)
        taken = lock.taken
    assert taken > 0
    assert cb.info().metrics.failure_rate == pytest.approx(0.5)


def test_what_gathered_is_told_of_an_opening() -> None:
    """Since when it had been failing, and of what at last, is known of failures that took no lock."""
    clock, recorder = VirtualClock(), EventRecorder(StateChanged)
    cb = circuit(clock, tripper=FailureStreak(4), window=CountWindow(10), listeners=[recorder])
    outcome(cb, False)
    outcome(cb, False)
    lock = Watched(cb._core.lock)
    cb._core.lock = lock  # type: ignore[assignment]
    clock.advance(0.25)
    failing_since = clock.time()
    outcome(cb, True, "the first")
    clock.advance(0.25)
    outcome(cb, True, "the second")
    assert lock.taken == 0
    info = cb.info()
    assert (info.metrics.failure_count, info.metrics.total_duration) == (2, 0.0)
    outcome(cb, True, "the third")
    outcome(cb, True, "the fourth")
    (change,) = recorder.of(StateChanged)
    assert change.failing_since == failing_since
    assert change.last_error is not None
    assert change.last_error.text == "the fourth"
    assert change.metrics.failure_count == 4


@given(
    st.integers(1, 12),
    st.integers(1, 20),
    st.lists(st.tuples(st.booleans(), st.integers(1, 8), st.booleans()), max_size=30),
)
@example(3, 5, [(True, 1, False), (False, 1, False), (True, 5, False)])
def test_a_streak_is_counted_however_much_gathers(size: int, limit: int, runs: list[tuple[bool, int, bool]]) -> None:
    """It opens at the very failure, also where the window is shorter than the streak, and whoever looks meanwhile."""
    cb = circuit(tripper=FailureStreak(limit), window=CountWindow(size))
    calls: list[bool] = []
    streak = 0
    for failed, number, looks in runs:
        for _ in range(number):
            outcome(cb, failed)
            calls.append(failed)
            streak = streak + 1 if failed else 0
            assert cb.state == ("open" if streak == limit else "closed")
            if streak == limit:
                return
        if looks:
            metrics = cb.info().metrics
            assert (metrics.total_count, metrics.failure_count) == (min(len(calls), size), sum(calls[-size:]))


@pytest.mark.parametrize("size", [1, 7, 100, 1000])
def test_no_more_gathers_than_the_window_holds(size: int) -> None:
    """However long nobody looks, and however many calls there are."""
    clock = VirtualClock()
    cb = circuit(clock, tripper=FailureStreak(10**6), window=CountWindow(size))
    for _ in range(3 * size + 10):
        outcome(cb, False)
    lane = cb._core.lane
    assert lane is not None
    assert len(lane.durations) == size
    assert cb.info().metrics.total_count == size


@pytest.mark.parametrize("window", [CountWindow(100_000), TimeWindow(60)], ids=["count", "time"])
@pytest.mark.parametrize(("calls", "seconds"), [(1, 0.1), (100, 0.002)], ids=["calm", "busy"])
def test_where_each_call_counts_they_gather_for_a_moment(window: Window, calls: int, seconds: float) -> None:
    """100 ms where few calls come, 2 ms where many do; then the next call records them all."""
    clock = VirtualClock()
    cb = circuit(clock, tripper=FailureStreak(10**6), window=window)
    outcome(cb, False)
    for _ in range(2):
        for _ in range(calls):
            outcome(cb, False)
        clock.advance(0.1)  # the end of a lane of either kind
        outcome(cb, False)
    lock = Watched(cb._core.lock)
    cb._core.lock = lock  # type: ignore[assignment]
    clock.advance(0.9 * seconds)
    outcome(cb, False)
    assert lock.taken == 0
    clock.advance(0.2 * seconds)
    outcome(cb, False)
    assert lock.taken > 0
    assert cb._core.lane is not None
    assert not cb._core.lane.durations


def test_an_interrupted_failure_is_counted_once_or_not_at_all() -> None:
    """Wherever a signal handler raises on its way; and the circuit goes on."""
    step = 0
    for step in count():
        cb, _ = steady(**RULES["rate"])
        if not interrupted(lambda cb=cb: outcome(cb, True), step):  # type: ignore[misc]
            break
        for failed in (False, True):
            outcome(cb, failed)
        metrics = cb.info().metrics
        assert (metrics.total_count, metrics.failure_count) in ((23, 2), (24, 3))
    assert step > 3


def test_a_failure_within_a_failure_is_counted() -> None:
    """A signal handler that calls the breaker anywhere on a failure's way: both are in the window."""
    step = 0
    for step in count():
        cb, _ = steady(**RULES["rate"])

        def handler(cb: CircuitBreaker = cb) -> None:
            outcome(cb, True)

        if not interrupted(lambda cb=cb: outcome(cb, True), step, handler):  # type: ignore[misc]
            break
        metrics = cb.info().metrics
        assert (metrics.total_count, metrics.failure_count) == (23, 3)
    assert step > 3


def test_threads_that_fail_trip_at_the_rate() -> None:
    """No failure too many is spared, by however many threads: at the opening the rate is just reached."""
    for _ in range(5):
        recorder = EventRecorder(StateChanged)
        cb = circuit(tripper=MinRequests(50) & FailureRate(0.5), window=CountWindow(100), listeners=[recorder])
        for _ in range(200):
            outcome(cb, False)

        def fail(cb: CircuitBreaker = cb) -> None:
            for _ in range(50):
                if cb.state == "closed":
                    try:
                        cb.call(_raise)
                    except Exception:
                        pass

        together(*[fail] * 4)
        (change,) = recorder.of(StateChanged)
        assert (change.metrics.total_count, change.metrics.failure_count) == (100, 50)


def _raise() -> None:
    raise ConnectionError("no route")


@pytest.mark.parametrize("kinds", [(), (CallFailed,)], ids=["quiet", "heard"])
def test_what_counts_as_slow_changes_while_a_call_fails(kinds: tuple[type[Any], ...]) -> None:
    """Wherever that comes, a failure is judged by the rules by which it is recorded: no slow one is held uncounted."""
    step = 0
    for step in count():
        clock = VirtualClock()
        cb = circuit(clock, **RULES["rate"], window=CountWindow(30))
        if kinds:
            cb.attach(EventRecorder(*kinds))
        for failed in (*[False] * 20, True, False):
            outcome(cb, failed)

        def handler(cb: CircuitBreaker = cb) -> None:
            cb.configure(slow_threshold=0.5)
            outcome(cb, False)

        def work(clock: VirtualClock = clock) -> None:
            clock.advance(0.75)
            raise ConnectionError("no route")

        def call(cb: CircuitBreaker = cb, work: Any = work) -> None:
            with suppress(ConnectionError):
                cb.call(work)

        if not interrupted(call, step, handler):
            break
        assert cb.info().metrics.slow_count == 1
    assert step > 10


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_as_a_success_is_recorded_does_not_join_two_streaks() -> None:
    """Once it is being recorded, what failed before it is over, whether it comes into the window or not."""
    reached = 0
    for step in count():
        cb = circuit(tripper=FailureStreak(5), window=CountWindow(50))
        for failed in (False, *[True] * 4):
            outcome(cb, failed)
        cb.info()
        with suppress(KeyboardInterrupt):
            cb.call(_cancel)
        outcome(cb, False)
        where: list[str] = []

        def note(where: list[str] = where) -> None:
            where.append(sys._getframe(2).f_code.co_name)
            raise Interrupt

        if not interrupted(cb.info, step, note):
            break
        if where[0].startswith("add_gathered"):
            reached += 1
            outcome(cb, True)
            assert cb.state == "closed"
    assert reached


def _cancel() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("size", [100, 100_000])
def test_a_call_that_was_stopped_short_of_its_append_is_counted_the_next_time(size: int) -> None:
    """A tracer may let others run between the look for where calls gather and the append."""
    cb = circuit(tripper=FailureStreak(10**6), window=CountWindow(size))
    for _ in range(10):
        outcome(cb, False)
    lane = cb._core.lane
    assert lane is not None
    found = lane.durations
    assert cb.info().metrics.total_count == 10
    found.append(0.0)
    assert cb.info().metrics.total_count == 11


@pytest.mark.parametrize("size", [100, 100_000])
def test_what_gathered_is_taken_once(size: int) -> None:
    """By whoever came first, also where a signal handler looks in the middle of it."""
    step = 0
    for step in count():
        cb = circuit(tripper=FailureStreak(10**6), window=CountWindow(size))
        for _ in range(10):
            outcome(cb, False)
        if not interrupted(cb.info, step, cb.info):
            break
        assert cb.info().metrics.total_count == 10
    assert step > 5


def rest_of(cb: CircuitBreaker, by_hand: bool) -> tuple[object, ...]:
    """What its window holds, how many failures later it opens, and what it tells of that."""
    recorder = EventRecorder(StateChanged)
    cb.attach(recorder)
    metrics, failures = cb.info().metrics, 0
    if by_hand:
        cb.force_open()
    while cb.state == "closed":
        outcome(cb, True, "at last")
        failures += 1
    (change,) = recorder.of(StateChanged)
    return metrics, failures, change.metrics, change.failing_since, change.last_error


WORKS: dict[str, Callable[[CircuitBreaker], object]] = {
    "info": lambda cb: cb.info(),
    "success": lambda cb: outcome(cb, False),
    "failure": lambda cb: outcome(cb, True),
    "configure": lambda cb: cb.configure(retry=Cooldown(1)),
    "attach": lambda cb: cb.attach(EventRecorder(CallFailed)),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # where it meets a finalizer
@pytest.mark.parametrize("work", WORKS.values(), ids=WORKS)
@pytest.mark.parametrize(
    "window", [CountWindow(5), CountWindow(7), CountWindow(100_000), TimeWindow(60)], ids=["5", "7", "100000", "time"]
)
def test_an_interrupt_loses_nothing_of_what_gathered(window: Window, work: Callable[[CircuitBreaker], object]) -> None:
    """Wherever a signal handler raises as it is recorded, it is recorded the next time, and each call once."""

    def gathered(*gathering: bool) -> CircuitBreaker:
        clock = VirtualClock()
        cb = circuit(clock, tripper=FailureStreak(9), window=window)
        for failed in (False, False, True, False):
            outcome(cb, failed)
        cb.info()
        outcome(cb, False)
        for failed in gathering:
            clock.advance(0.0001)
            outcome(cb, failed)
        lane = cb._core.lane
        assert lane is not None
        assert len(lane.durations) == len(gathering)
        clock.advance(2.0)  # what comes next takes the lock
        return cb

    for gathering, by_hand in product(((False, True, False, True, True), (True, True, True)), (False, True)):
        whole = gathered(*gathering)
        work(whole)
        fates = [rest_of(gathered(*gathering), by_hand), rest_of(whole, by_hand)]
        step = 0
        for step in count():
            cb = gathered(*gathering)

            def interruptible(cb: CircuitBreaker = cb) -> None:
                with suppress(KeyboardInterrupt):  # which no clock and no rule is thought to have raised
                    work(cb)

            if not interrupted(interruptible, step, _cancel):
                break
            assert rest_of(cb, by_hand) in fates
        assert step > 10


@pytest.mark.parametrize(
    ("tripper", "failures"), [(MinRequests(10) & FailureRate(0.5), 20), (FailureStreak(8), 8)], ids=["rate", "streak"]
)
def test_failures_amid_a_decision_are_not_spared_twice(tripper: Tripper, failures: int) -> None:
    """Where a signal handler fails calls while the tripper is asked what it can spare, it opens no later for that."""
    step = 0
    for step in count():
        clock, recorder = VirtualClock(), EventRecorder(StateChanged)
        cb = circuit(clock, tripper=tripper, listeners=[recorder])
        for _ in range(20):
            outcome(cb, False)
        clock.advance(2.0)  # so that the next failure takes the lock,
        cb._core.machine.spare = 0  # and asks the tripper

        def handler(cb: CircuitBreaker = cb) -> None:
            for _ in range(4):
                outcome(cb, True)

        if not interrupted(lambda cb=cb: outcome(cb, True), step, handler):  # type: ignore[misc]
            break
        while cb.state == "closed":
            outcome(cb, True)
        (change,) = recorder.of(StateChanged)
        assert change.metrics.failure_count == failures
    assert step > 10


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it may meet a finalizer
@pytest.mark.parametrize("handles", ["raises", "fails a call", "begins another window"])
@pytest.mark.parametrize("window", [CountWindow(20), TimeWindow(60)], ids=["count", "time"])
def test_rules_and_window_go_together_wherever_a_signal_handler_comes(window: Window, handles: str) -> None:
    """It finds the old ones or the new ones, and so does each call from then on."""
    step = 0
    for step in count():
        cb = circuit(VirtualClock(), tripper=SlowRate(1, threshold=0.5) | FailureStreak(9), window=window)
        for _ in range(3):
            outcome(cb, True)
        cb.info()

        def handler(cb: CircuitBreaker = cb) -> None:
            if handles == "raises":
                raise KeyboardInterrupt
            if handles == "begins another window":
                cb.reset()
            outcome(cb, True)

        def configure(cb: CircuitBreaker = cb) -> None:
            with suppress(KeyboardInterrupt):
                cb.configure(tripper=SlowRate(1, threshold=0.25) & SlowRate(1, threshold=2) | FailureStreak(5))

        if not interrupted(configure, step, handler):
            break
        machine = cb._core.machine
        assert set(machine.record.thresholds) == machine.rules.tripper.thresholds
        assert cb.info().metrics.slow_counts.keys() == machine.rules.tripper.thresholds
        failures = cb.info().metrics.failure_count
        while cb.state == "closed":
            outcome(cb, True)
            failures += 1
        assert failures == (5 if len(machine.rules.tripper.thresholds) == 2 else 9)
    assert step > 20


def test_what_is_appended_after_a_move_is_of_no_window() -> None:
    """A tracer has stopped the call between its look at the lane and the append, and the circuit has moved."""
    clock = VirtualClock()
    cb = circuit(clock, tripper=FailureStreak(10**6))
    for _ in range(10):
        outcome(cb, False)
    lane = cb._core.lane
    assert lane is not None
    cb.force_open()
    lane.durations.append(0.0)
    assert cb.info().metrics.total_count == 10
    assert not lane.durations
    assert not lane.taken
