"""What circuits and calls cost in memory. Unlike a time it is the same in each run, so it can be asserted."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from fluxgate import AsyncCircuitBreaker, Bus, CircuitBreaker, CountWindow, TimeWindow

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
    record = CountWindow(size).open(60.0, ())
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(1, 2 * size):
            if failing and number % 10_000 == 0:
                record.add(0.0, 0.0, 0.0, failed=True)
            else:
                record.add(0.0, 0.0, 0.1, failed=False)
            if number in (1000, 7777, size, 2 * size - 1):
                used = tracemalloc.get_traced_memory()[0] - before
                assert used <= 9 * min(number, size) + 500
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
