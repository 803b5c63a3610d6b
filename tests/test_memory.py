"""What circuits and calls cost in memory. Unlike a time it is the same in each run, so it can be asserted."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Collection
from contextlib import suppress
from itertools import count, permutations
from typing import Any

import pytest

from fluxgate import AsyncCircuitBreaker, Bus, CircuitBreaker, CountWindow, FailureStreak, SlowRate, TimeWindow
from fluxgate.windows import Window
from tests.running import interrupted

MANY = 2000


def work(item: str, amount: int = 1, *, urgent: bool = False) -> str:
    return item


async def work_async(item: str) -> str:
    return item


def bytes_each(make: Callable[[int], Any], number: int = MANY) -> float:
    """What one of `number` results costs on average, beyond the list that holds them."""
    kept: list[Any] = [make(-1), *[None] * number]
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for index in range(number):
            kept[index + 1] = make(index)
        gc.collect()
        return (tracemalloc.get_traced_memory()[0] - before) / number
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("face", "function"), [(CircuitBreaker, work), (AsyncCircuitBreaker, work_async)])
def test_a_decorated_breaker_costs_1200_bytes_at_most(face: Any, function: Any) -> None:
    """All of it: name, breaker, rules, wrapper, and its place on the bus."""
    bus = Bus()
    assert bytes_each(lambda index: face(f"name-{index}", bus=bus)(function)) <= 1200


def test_a_listener_of_ones_own_costs_1200_bytes_more_at_most() -> None:
    """A subscription, and routes that no other circuit has."""
    bus = Bus()

    def listener(event: object) -> None: ...

    assert bytes_each(lambda index: CircuitBreaker(f"name-{index}", bus=bus, listeners=[listener])(work)) <= 2400


@pytest.mark.parametrize("failing", [False, True])
def test_a_call_in_a_count_window_costs_9_bytes_at_most(failing: bool) -> None:
    """Plain successes while the window fills, and ever after; and failures that took no time."""
    size = 20_000

    def used_by(calls: int) -> int:
        record = CountWindow(size).open(60.0, ())
        before = tracemalloc.get_traced_memory()[0]
        for number in range(calls):
            if failing and number % 10_000 == 0:
                record.add(0.0, 0.0, 0.0, failed=True)
            else:
                record.add(0.0, 0.0, 0.1, failed=False)
        return tracemalloc.get_traced_memory()[0] - before

    used_by(2 * size)  # so that nothing else is made for the first time
    tracemalloc.start()
    try:
        for calls in (1000, 7777, size, 2 * size):
            assert used_by(calls) <= 9 * min(calls, size) + 500
    finally:
        tracemalloc.stop()


def test_a_time_window_costs_the_same_whatever_the_traffic() -> None:
    """It holds sums by slices of time."""

    def filled(calls: int) -> float:
        def make(index: int) -> Any:
            record = TimeWindow(100).open(60.0, ())
            for second in range(100):
                for _ in range(calls):
                    record.add(float(second), 0.0, 0.1, failed=False)
            return record

        return bytes_each(make, 5)

    assert filled(20) <= filled(1) + 5000


def test_a_circuit_that_is_gone_leaves_nothing() -> None:
    """Neither on its bus nor in the wrapper's making: ten thousand that came and went are as none."""
    bus = Bus()

    def come_and_go(index: int) -> None:
        CircuitBreaker(f"name-{index}", bus=bus)(work)
        bus.bury()

    assert bytes_each(come_and_go) < 20
    assert bus.circuits() == []


# -- what is made when first needed ---------------------------------------------------------------------------------


class Meddling(Window):
    """Something of the user's, such as a signal handler, uses the circuit while its window is being made."""

    meddle: Callable[[], object] | None = None

    def open(self, slow_threshold: float, thresholds: Collection[float]) -> Any:
        meddle, self.meddle = self.meddle, None
        if meddle is not None:
            meddle()
        return CountWindow(5).open(slow_threshold, thresholds)


def test_a_call_that_comes_in_while_a_window_is_made_is_counted() -> None:
    """There is one window, whoever makes it."""
    window = Meddling()
    cb = CircuitBreaker("payments", window=window)
    window.meddle = lambda: cb.call(work, "inner")
    cb.call(work, "outer")
    assert cb.info().metrics.total_count == 2


def test_rules_that_change_while_a_window_is_made_are_those_it_is_made_by() -> None:
    """It counts by the thresholds that are asked for from then on."""
    window = Meddling()
    cb = CircuitBreaker("payments", window=window)
    window.meddle = lambda: cb.configure(tripper=SlowRate(0.5, threshold=2.0))
    cb.call(work, "spoon")
    assert cb.info().metrics.slow_counts == {2.0: 0}


def test_circuits_of_one_name_go_one_by_one() -> None:
    """In whichever order: the others stay."""
    for order in permutations(range(4)):
        bus = Bus()
        breakers = dict(enumerate(CircuitBreaker("payments", bus=bus) for _ in range(4)))
        for index in order:
            breakers.pop(index).retire()
            assert {*map(id, bus.circuits())} == {*map(id, breakers.values())}
            assert {*map(id, bus.namesakes(["payments"]))} == {*map(id, breakers.values())}
        late = CircuitBreaker("payments", bus=bus)
        assert bus.circuits() == bus.namesakes(["payments"]) == [late]


def test_an_interrupt_while_a_circuit_is_made_leaves_the_bus_whole() -> None:
    """Wherever it comes: what there is of the circuit goes with the next one, and namesakes stay."""
    step = 0
    for step in count():
        bus = Bus()
        kept = [CircuitBreaker("payments", bus=bus), CircuitBreaker("payments", bus=bus)]
        if not interrupted(lambda bus=bus: CircuitBreaker("payments", bus=bus), step):  # type: ignore[misc]
            break
        gc.collect()
        assert sorted(map(id, bus.circuits())) == sorted(map(id, kept))
    assert step > 10


def test_failures_that_gather_keep_one_error_text() -> None:
    """That of the last, which alone is ever told."""
    texts = [f"no route to host {number:0150}" for number in range(500)]
    cb = CircuitBreaker("payments", bus=Bus(), window=CountWindow(1000), tripper=FailureStreak(10**6))

    def fail(text: str) -> None:
        raise ConnectionError(f"{text}: try again")

    def calls(number: int) -> None:
        for text in texts[:number]:
            with suppress(ConnectionError):
                cb.call(fail, text)

    calls(500)
    cb.info()
    calls(1)
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        calls(400)
        gc.collect()
        assert (tracemalloc.get_traced_memory()[0] - before) / 400 < 200
    finally:
        tracemalloc.stop()
    lane = cb._core.lane
    assert lane is not None
    assert len(lane.durations) == 400
    assert cb.info().metrics.failure_count == 901
