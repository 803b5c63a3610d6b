"""Windows: what a circuit remembers, against lists that remember everything."""

from __future__ import annotations

import gc
import math
import random
from itertools import count
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxgate import (
    AvgLatency,
    Bus,
    CircuitBreaker,
    CountWindow,
    FailureRate,
    FailureStreak,
    Metric,
    MinRequests,
    SlowRate,
    TimeWindow,
)
from fluxgate._gathered import failure_of
from fluxgate.testing import VirtualClock
from fluxgate.windows import CountRecord, Record, Window
from tests.faces import STATES_ONLY, Make, both
from tests.running import Interrupt, interrupted

SLOW = 1.0
THRESHOLDS = (0.5, 2.0)
PLAIN = st.floats(0, 0.49)
DURATIONS = st.sampled_from([0.0, 0.1, 0.5, 0.75, 1.0, 1.5, 2.0, 60.0]) | PLAIN


class Done(NamedTuple):
    """One call as the naive lists keep it."""

    now: float
    wall: float
    duration: float
    failed: bool


def compare(record: Record, held: list[Done], now: float, slow: float, thresholds: tuple[float, ...]) -> None:
    """The record gives the sums of the list."""
    seen = record.metric(now)
    assert seen.total_count == record.total(now) == len(held)
    assert seen.failure_count == sum(done.failed for done in held)
    assert seen.total_duration == pytest.approx(math.fsum(done.duration for done in held), rel=1e-12, abs=1e-12)
    assert seen.slow_count == sum(done.duration >= slow for done in held)
    assert seen.slow_counts == {threshold: sum(done.duration >= threshold for done in held) for threshold in thresholds}
    assert record.failing_since(now) == next((done.wall for done in held if done.failed), None)


def gathered(record: Record, now: float, wall: float, what: list[tuple[float, bool]], calls: list[Done]) -> None:
    """Record calls together, in a list as well; failures are 1 ms apart."""
    together: list[float] = []
    for number, (duration, failed) in enumerate(what):
        if failed:
            together.append(failure_of(duration, wall + number / 1000))
        else:
            together.append(duration)
        calls.append(Done(now, wall + number / 1000, duration, failed))
    record.add_gathered(now, together)


# -- CountWindow ----------------------------------------------------------------------------------------------------

one_call = st.tuples(st.just("call"), DURATIONS, st.booleans())
batch = st.tuples(st.just("batch"), st.lists(st.tuples(PLAIN, st.booleans()), max_size=12), st.none())
rejudge = st.tuples(st.just("rejudge"), st.sampled_from([0.5, 1.0, 60.0]), st.sampled_from([(), (0.5,), (0.5, 2.0)]))


@given(st.integers(1, 8), st.lists(one_call | batch | rejudge, max_size=40))
def test_a_count_window_holds_the_last_calls(size: int, steps: list[tuple[str, Any, Any]]) -> None:
    """Single calls, batches of plain ones and new thresholds, in any order: the sums are those of a list."""
    slow, thresholds = SLOW, THRESHOLDS
    record = CountWindow(size).open(slow, thresholds)
    calls: list[Done] = []
    for number, (kind, what, more) in enumerate(steps):
        wall = 1000.0 + number
        if kind == "call":
            record.add(0.0, wall, what, more)
            calls.append(Done(0.0, wall, what, more))
        elif kind == "batch":
            gathered(record, 0.0, wall, what, calls)
        elif kind == "rejudge":
            slow, thresholds = what, more
            record.rejudge(slow, thresholds)
        compare(record, calls[-size:], 0.0, slow, thresholds)
    assert record.steady_until() == math.inf


def test_a_count_window_does_not_forget_by_time() -> None:
    """The last calls stay however long ago they were."""
    record = CountWindow(2).open(SLOW, ())
    record.add(0.0, 5.0, 0.1, True)
    assert record.metric(1e9).total_count == 1
    assert record.failing_since(1e9) == 5.0


def test_a_count_window_does_not_drift() -> None:
    """After 10^5 calls of very different lengths the sum is still that of the calls held."""
    chance = random.Random(7)
    record = CountWindow(100).open(SLOW, THRESHOLDS)
    calls: list[Done] = []
    for number in range(100_000):
        duration = chance.choice([1e-6, 0.1, 1 / 3, 7.7, 1e4]) * chance.random()
        failed = chance.random() < 0.3
        record.add(0.0, number, duration, failed)
        calls.append(Done(0.0, number, duration, failed))
    compare(record, calls[-100:], 0.0, SLOW, THRESHOLDS)
    for _ in range(100):
        record.add(0.0, 0.0, 0.0, False)
    assert record.metric(0.0).total_duration == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("failed", [False, True])
def test_a_failure_that_took_no_time_is_a_failure(failed: bool) -> None:
    """Also where the clock does not tell its end from its beginning; and it is forgotten as one."""
    record = CountWindow(2).open(SLOW, ())
    record.add(0.0, 7.0, 0.0, failed)
    assert record.metric(0.0).failure_count == failed
    record.rejudge(1e-9, (1e-9,))
    compare(record, [Done(0.0, 7.0, 0.0, failed)], 0.0, 1e-9, (1e-9,))
    record.add_gathered(0.0, [0.0, 0.0])
    assert record.metric(0.0).failure_count == 0


@pytest.mark.parametrize("window", [CountWindow(3), TimeWindow(100)], ids=["count", "time"])
def test_a_signal_handler_that_raises_leaves_a_window_whole(window: Window) -> None:
    """The call at hand may be half counted; later ones are recorded, and forgotten, without an error."""
    step = 0
    for step in count():
        record = window.open(1.0, (2.0,))
        record.add(0.0, 0.0, 0.5, failed=False)
        if not interrupted(lambda record=record: record.add(1.0, 1.0, 3.0, failed=True), step):  # type: ignore[misc]
            break
        for second in (2, 3, 4):
            record.add(second, second, 0.5, failed=True)
        assert 3 <= record.metric(5).total_count <= 5
        assert record.failing_since(5) in (1.0, 2.0)
        interrupted(lambda record=record: record.metric(200), step)  # type: ignore[misc]
        for second in (200, 201, 202):
            record.add(second, second, 0.5, failed=False)
        assert record.metric(202).total_count == 3
    assert step > 2


def test_failures_that_left_a_count_window_leave_nothing() -> None:
    """The times of failures are dropped with them, so that they cannot pile up."""
    record: Any = CountWindow(10).open(SLOW, ())
    for number in range(1000):
        record.add(0.0, number, 0.1, True)
    assert record.failing_since(0.0) == 990.0
    assert len(record._failed_at) < 25
    record.add_gathered(0.0, [0.1] * 10)
    assert record.failing_since(0.0) is None
    assert record.metric(0.0).failure_count == 0


# -- TimeWindow -----------------------------------------------------------------------------------------------------

SIZE = 10.0
SLICE = SIZE / 100


def held(calls: list[Done], now: float) -> list[Done]:
    """What a time window holds by its definition."""
    return [done for done in calls if math.floor(done.now / SLICE) > math.floor(now / SLICE) - 100]


moment = st.tuples(st.just("wait"), st.sampled_from([0.0, 0.01, 0.1, 1.0, 5.0, 9.9, 10.0, 25.0]), st.none())


@given(st.floats(0, 1e6), st.lists(one_call | batch | moment, max_size=40))
def test_a_time_window_holds_the_last_seconds(start: float, steps: list[tuple[str, Any, Any]]) -> None:
    """Calls, batches and waits in any order: at each moment the sums are those of the calls in the last slices."""
    record = TimeWindow(SIZE).open(SLOW, THRESHOLDS)
    calls: list[Done] = []
    now = start
    for number, (kind, what, more) in enumerate(steps):
        wall = 1000.0 + number
        if kind == "call":
            record.add(now, wall, what, more)
            calls.append(Done(now, wall, what, more))
        elif kind == "batch":
            gathered(record, now, wall, what, calls)
        else:
            now += what
        compare(record, held(calls, now), now, SLOW, THRESHOLDS)


@given(st.floats(0, 1e6), st.floats(0.001, 1e5), st.booleans())
def test_a_time_window_forgets_one_slice_early_at_most_and_never_late(ended: float, size: float, failed: bool) -> None:
    """A call is held for 99 hundredths of the size, and gone when the size has passed."""
    record = TimeWindow(size).open(SLOW, ())
    record.add(ended, 5.0, 0.1, failed)
    early, late = ended + size * 0.9899, ended + size * 1.0001
    assert record.metric(early).total_count == 1
    assert record.failing_since(early) == (5.0 if failed else None)
    assert record.metric(late) == Metric(total_count=0, failure_count=0, total_duration=0, slow_count=0)
    assert record.failing_since(late) is None


@pytest.mark.parametrize("question", ["metric", "total", "failing_since"])
def test_each_question_finds_the_window_up_to_date(question: str) -> None:
    """Whatever is asked first after a silence, the answer is of that moment."""
    record = TimeWindow(SIZE).open(SLOW, ())
    record.add(0.0, 5.0, 0.1, True)
    answer: Any = getattr(record, question)(50.0)
    assert (answer.total_count if question == "metric" else answer) in (0, None)


def test_a_time_window_takes_times_slightly_out_of_order() -> None:
    """Threads hand in their times as they come; what is late by a hair counts where the window is."""
    record = TimeWindow(SIZE).open(SLOW, ())
    record.add(50.0, 1.0, 0.1, False)
    record.add(49.85, 2.0, 0.1, True)
    assert record.metric(49.0).total_count == 2
    assert record.metric(59.95).total_count == 2
    assert record.metric(60.0).total_count == 0


def test_a_time_window_is_steady_until_its_slice_ends() -> None:
    """Within a slice nothing is forgotten."""
    record = TimeWindow(SIZE).open(SLOW, ())
    record.add(3.55, 1.0, 0.1, False)
    assert record.steady_until() == pytest.approx(3.6)


def test_a_time_window_keeps_a_hundred_slices_at_most() -> None:
    """However many calls there are, and after any silence."""
    record: Any = TimeWindow(SIZE).open(SLOW, ())
    for number in range(5000):
        record.add(number * 0.013, 0.0, 0.1, number % 3 == 0)
    assert len(record._slices) == 100


def test_a_time_window_does_not_drift() -> None:
    """Sums are taken over the slices that are held, so that nothing is left of those that went."""
    chance = random.Random(7)
    record = TimeWindow(SIZE).open(SLOW, ())
    for number in range(100_000):
        record.add(number * 0.01, 0.0, chance.choice([1e-6, 1 / 3, 1e4]), False)
    record.add(5000.0, 0.0, 0.125, False)
    assert record.metric(5000.0).total_duration == 0.125


def test_a_new_threshold_counts_from_then_on_in_a_time_window() -> None:
    """A time window keeps sums alone: thresholds that stay keep their counts, and new ones begin at none."""
    record = TimeWindow(SIZE).open(SLOW, (0.5, 2.0))
    record.add(0.0, 0.0, 3.0, False)
    record.rejudge(5.0, (2.0, 4.0))
    record.add(0.0, 0.0, 4.5, False)
    seen = record.metric(0.0)
    assert seen.slow_counts == {2.0: 2, 4.0: 1}
    assert seen.slow_count == 1


# -- both -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [CountWindow(3), TimeWindow(60)], ids=repr)
def test_a_duration_that_reaches_the_threshold_is_slow(window: Window) -> None:
    """Slow means ``>=``."""
    record = window.open(SLOW, (2.0,))
    for duration in (0.999, 1.0, 2.0):
        record.add(0.0, 0.0, duration, False)
    assert (record.metric(0.0).slow_count, record.metric(0.0).slow_counts) == (2, {2.0: 1})
    assert not record.is_slow(0.999)
    assert record.is_slow(1.0)


@pytest.mark.parametrize(
    ("window", "words", "capacity"),
    [
        (CountWindow(3), "CountWindow(3)", 3),
        (TimeWindow(60), "TimeWindow(60)", math.inf),
        (TimeWindow(0.5), "TimeWindow(0.5)", math.inf),
    ],
    ids=repr,
)
def test_a_window_prints_as_it_was_written(window: Window, words: str, capacity: float) -> None:
    """The repr is the expression; the capacity is the most calls that it may hold."""
    assert repr(window) == words
    assert window.capacity == capacity


@both
@pytest.mark.parametrize("hears", [STATES_ONLY, None], ids=["quiet", "heard"])
@pytest.mark.parametrize("tripper", [FailureStreak(99), MinRequests(7) & FailureRate(1), AvgLatency(99)], ids=repr)
def test_the_window_is_the_same_on_every_path(make: Make, hears: Any, tripper: Any) -> None:
    """Whether each call is told or none is, and whatever the rules: the last calls are in the window."""
    circuit = make(window=CountWindow(10), tripper=tripper, slow_threshold=0.5, **({"hears": hears} if hears else {}))
    work = circuit.protect(circuit.clock.advance)
    chance = random.Random(3)
    durations: list[float] = []
    failures: list[bool] = []
    for _ in range(60):
        seconds = chance.choice([0.0, 0.001, 0.002, 0.25, 0.75])
        failed = chance.random() < 0.2
        if failed:
            circuit.fail(seconds=seconds)
        else:
            work(seconds)
        durations.append(seconds)
        failures.append(failed)
        if chance.random() < 0.3:
            seen = circuit.metrics
            assert seen.total_count == len(durations[-10:])
            assert seen.failure_count == sum(failures[-10:])
            assert seen.slow_count == sum(seconds >= 0.5 for seconds in durations[-10:])
            assert seen.total_duration == pytest.approx(sum(durations[-10:]), abs=1e-12)


@both
def test_a_time_window_empties_while_nobody_calls(make: Make) -> None:
    """`info` tells of the present, not of the last call."""
    circuit = make(window=TimeWindow(60))
    circuit.fail()
    circuit.clock.advance(59)
    assert circuit.metrics.failure_count == 1
    circuit.clock.advance(1)
    assert circuit.metrics.total_count == 0
    assert circuit.metrics.failure_rate is None


@both
def test_an_open_circuit_shows_the_window_that_opened_it(make: Make) -> None:
    """While open nothing is recorded; a count window stays, and a time window still forgets."""
    for window, later in ((CountWindow(10), 2), (TimeWindow(60), 0)):
        circuit = make(window=window, tripper=FailureStreak(2))
        circuit.fail()
        circuit.fail()
        circuit.refused()
        assert circuit.metrics.failure_count == 2
        circuit.clock.advance(3600)
        assert circuit.metrics.failure_count == later
        assert circuit.state == "open"


@both
def test_slow_rates_of_their_own_count_in_the_window(make: Make) -> None:
    """Each `SlowRate(threshold=...)` of the tripper has its count in the metrics."""
    circuit = make(tripper=SlowRate(1, threshold=2) | SlowRate(1, threshold=0.5) | SlowRate(1), slow_threshold=10)
    circuit.succeed(seconds=0.1)
    circuit.succeed(seconds=0.75)
    circuit.succeed(seconds=3)
    assert circuit.metrics.slow_counts == {0.5: 2, 2.0: 1}
    assert circuit.metrics.slow_count == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("raises", [True, False])
@pytest.mark.parametrize("work", ["failure", "success", "many"])
def test_a_signal_handler_leaves_the_sums_in_step_with_the_ring(work: str, raises: bool) -> None:
    """Wherever it comes, and raises or records a failure itself: what is not in step would count for ever."""
    step = 0
    for step in count():
        record = CountRecord(4, 60.0, ())
        for number in range(6):
            record.add(0, number, 0.5, failed=number % 2 == 0)

        def handler(record: CountRecord = record) -> None:
            if raises:
                raise Interrupt
            record.add(0, 9, 0.25, failed=True)

        def run(record: CountRecord = record) -> None:
            if work == "many":
                record.add_gathered(0, [0.125, 0.125, 0.125])
            else:
                record.add(0, 9, 0.125, failed=work == "failure")

        if not interrupted(run, step, handler):
            break
        held = list(record._durations)
        metric = record.metric(0)
        assert metric.total_count == len(held) == 4
        assert metric.failure_count == sum(each < 0 for each in held)
        assert metric.total_duration == pytest.approx(sum(map(abs, held)))
        assert (record.failing_since(0) is None) == (metric.failure_count == 0)
        assert held.count(-0.25) == (not raises)
        record.add_gathered(0, [0.0] * 3)
        record.add(0, 9, 0.0, failed=False)
        assert record.metric(0).failure_count == 0
    assert step > 1


def test_a_look_that_forgets_while_a_failure_is_judged_does_not_hide_it_from_the_rules() -> None:
    """It ended before the look, by the clock, and is recorded after it: in a window that has shrunk."""
    clock = VirtualClock()
    failures = 0

    def tracker(error: BaseException) -> bool:
        nonlocal failures
        failures += 1
        if failures == 41:
            clock.advance(1.5)
            cb.info()
        return True

    cb = CircuitBreaker("a", bus=Bus(), clock=clock, window=TimeWindow(100), tripper=FailureRate(0.5), tracker=tracker)
    for _ in range(90):
        cb.call(int)
    clock.advance(99.2)
    cb.call(int)
    for _ in range(41):
        assert cb.state == "closed"
        with pytest.raises(ValueError, match="invalid"):
            cb.call(int, "x")
    assert cb.state == "open"


@pytest.mark.parametrize("size", [1, 2])
def test_a_call_within_the_recording_of_others_goes_around_the_ring(size: int) -> None:
    """The place at which the next call goes is the same again, and what was there is another."""
    step = 0
    for step in count():
        record: Any = CountWindow(size).open(SLOW, ())

        def handler(record: Any = record) -> None:
            for wall in range(size):
                record.add(0, wall, 0.25, failed=True)

        if not interrupted(lambda record=record: record.add_gathered(0, [0.5] * size), step, handler):  # type: ignore[misc]
            break
        held = list(record._durations)
        assert len(held) == size
        assert record.metric(0).failure_count == sum(each < 0 for each in held)
        assert record.metric(0).total_duration == pytest.approx(sum(map(abs, held)))
    assert step > 1


def test_a_signal_handler_that_raises_as_a_window_is_replaced_leaves_no_slow_call_behind() -> None:
    """Those that are gone are not counted for ever."""
    step = 0
    for step in count():
        record: Any = CountWindow(3).open(SLOW, (0.5,))
        for _ in range(3):
            record.add(0, 0, 2.0, failed=False)
        if not interrupted(lambda record=record: record.add_gathered(0, [0.25] * 3), step):  # type: ignore[misc]
            break
        slow = sum(each >= SLOW for each in record._durations)
        assert (record.metric(0).slow_count, record.metric(0).slow_counts) == (slow, {0.5: slow})
    assert step > 1


def test_a_finalizer_that_records_a_call_takes_no_place_from_another() -> None:
    """The collector may run one wherever the record makes something to look at what it holds."""
    done = 0

    class Garbage:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            nonlocal done
            if record is not None:
                done += 1
                record.add(0, 0, 0.25, failed=False)

    record: Any = None
    thresholds = gc.get_threshold()
    try:
        for threshold in range(1, 8):
            done, record = 0, CountWindow(10_000).open(SLOW, ())
            gc.set_threshold(threshold, 1, 1)
            for _ in range(100):
                Garbage()
                record.add(0, 0, 0.25, failed=True)
                done += 1
                Garbage()
                record.add_gathered(0, [0.25] * 3)
                done += 3
            record, seen = None, record
            gc.set_threshold(*thresholds)
            assert len(seen._durations) == seen._head == done
            assert seen.metric(0).failure_count == sum(each < 0 for each in seen._durations)
    finally:
        record = None
        gc.set_threshold(*thresholds)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("raises", [True, False])
@pytest.mark.parametrize(
    "window", [CountWindow(2), CountWindow(4), CountWindow(6), CountWindow(50), TimeWindow(100)], ids=repr
)
def test_each_of_many_calls_is_recorded_once(window: Window, raises: bool) -> None:
    """Wherever a signal handler raises, or has them recorded itself: what is not in the window is still in the list."""
    step = 0
    for step in count():
        record, held = window.open(SLOW, ()), list[Done]()
        for number in range(5):
            record.add(0, number, 0.5, failed=number % 2 == 0)
            held.append(Done(0, number, 0.5, number % 2 == 0))
        calls: list[float] = [failure_of(0.125, 10.0), 0.25, failure_of(0.5, 12.0)]
        done = [Done(0, 10.0, 0.125, True), Done(0, 11.0, 0.25, False), Done(0, 12.0, 0.5, True)]

        def handler(record: Record = record, calls: list[float] = calls) -> None:
            if raises:
                raise Interrupt
            record.add_gathered(0, calls)
            record.add(0, 13.0, 2.0, failed=True)

        came = interrupted(lambda record=record, calls=calls: record.add_gathered(0, calls), step, handler)  # type: ignore[misc]
        record.add_gathered(0, calls)
        assert calls == []
        held += done
        if came and not raises:
            held.append(Done(0, 13.0, 2.0, True))
        compare(record, held[-int(min(window.capacity, 1000)) :], 0, SLOW, ())
        assert record.streak == 1 + (came and not raises)
        if not came:
            break
    assert step > 1


@pytest.mark.parametrize("look", ["metric", "failing_since", "total"])
def test_a_call_that_comes_in_while_somebody_looks_is_recorded(look: str) -> None:
    """And what was asked for is given."""
    step = 0
    for step in count():
        record = TimeWindow(100).open(SLOW, (0.5,))
        for second in range(5):
            record.add(second, second, 0.25, failed=True)

        def handler(record: Record = record) -> None:
            record.add(150, 9, 0.25, failed=True)

        if not interrupted(lambda record=record: getattr(record, look)(50), step, handler):  # type: ignore[misc]
            break
        assert record.metric(150).total_count == record.metric(150).failure_count == 1
        assert record.failing_since(150) == 9
    assert step > 1


def test_calls_that_push_failures_out_of_a_ring_leave_a_time_to_whoever_looks() -> None:
    """One that was the first failure's a moment ago, or none: a signal handler may come in the middle of the look."""
    step = 0
    for step in count():
        record, seen = CountRecord(3, SLOW, ()), list[float | None]()
        for second in range(6):
            record.add(0, second, 0.25, failed=True)

        def handler(record: CountRecord = record) -> None:
            for second in range(3):
                record.add(0, second, 0.25, failed=False)

        if not interrupted(lambda record=record, seen=seen: seen.append(record.failing_since(0)), step, handler):  # type: ignore[misc]
            break
        assert seen in ([3], [None])
    assert step > 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("work", ["failure", "success", "many"])
@pytest.mark.parametrize(("size", "before"), [(4, 6), (20, 6), (20, 0)], ids=["full", "growing", "empty"])
def test_a_signal_handler_that_raises_leaves_the_time_of_the_first_failure_right(
    work: str, size: int, before: int
) -> None:
    """Of each ring, whatever it was that was interrupted; and ever after."""
    step = 0
    for step in count():
        record = CountRecord(size, 60.0, ())
        for number in range(before):
            record.add(0, number, float(number + 1), failed=number % 2 == 0)

        def run(record: CountRecord = record) -> None:
            if work == "many":
                record.add_gathered(0, [failure_of(7.0, 6.0), 8.0, failure_of(9.0, 8.0)])
            else:
                record.add(0, 6, 7.0, failed=work == "failure")

        if not interrupted(run, step):
            break
        for number in range(10, 40):
            failing = [-each - 1 for each in record._durations if each < 0]
            assert record.failing_since(0) == (min(failing) if failing else None)
            record.add(0, number, float(number + 1), failed=number in (11, 12))
    assert step > 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("raises", [True, False])
@pytest.mark.parametrize("window", [CountWindow(4), CountWindow(50), TimeWindow(100)], ids=repr)
def test_other_thresholds_are_in_force_or_not_yet(window: Window, raises: bool) -> None:
    """A signal handler that comes meanwhile, to raise or with a call of its own, finds and leaves a whole window."""
    step = 0
    for step in count():
        record = window.open(SLOW, (0.5,))
        for duration in (0.25, 0.75, 1.5, 3.0):
            record.add(0, 0, duration, failed=False)

        def handler(record: Record = record) -> None:
            if raises:
                raise Interrupt
            record.add(0, 0, 5.0, failed=True)

        if not interrupted(lambda record=record: record.rejudge(2.0, (0.5, 4.0)), step, handler):  # type: ignore[misc]
            break
        for _ in range(2):
            metric = record.metric(0)
            assert metric.slow_counts.keys() == set(record.thresholds)
            if isinstance(record, CountRecord):  # the other counts by a new threshold from then on
                held = list(map(abs, record._durations))
                assert metric.slow_count == sum(each >= record.slow_threshold for each in held)
                assert metric.slow_counts == {each: sum(map(each.__le__, held)) for each in record.thresholds}
            record.add(0, 0, 6.0, failed=False)
        record.rejudge(SLOW, (0.25,))
        assert record.metric(0).slow_counts.keys() == {0.25}
    assert step > 1
