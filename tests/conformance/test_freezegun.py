"""Users freeze time with freezegun around breakers that use the default clock."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("freezegun")

import freezegun

from fluxgate import (
    AsyncCircuitBreaker,
    Bus,
    CallNotPermittedError,
    CircuitBreaker,
    Cooldown,
    CountWindow,
    FailureRate,
    FailureStreak,
    MinRequests,
    State,
    TimeWindow,
    permits,
)
from fluxgate.events import StateChanged
from fluxgate.testing import EventRecorder


def down() -> None:
    """A dependency that is not there."""
    raise ConnectionError("no route")


def test_tick_ends_the_wait_of_a_breaker_made_before(bus: Bus) -> None:
    """The clock is looked up at each call: a breaker and a decorated function made earlier follow the frozen time."""
    cb = CircuitBreaker("legacy", tripper=FailureStreak(1), permit=permits.All(), bus=bus)
    guarded = cb(down)
    with freezegun.freeze_time("2024-05-01 03:00:00") as frozen:
        with pytest.raises(ConnectionError):
            guarded()
        frozen.tick(59)
        with pytest.raises(CallNotPermittedError) as refusal:
            guarded()
        assert refusal.value.retry_after == pytest.approx(1)
        frozen.tick(1)
        with pytest.raises(ConnectionError):
            guarded()
        assert cb.info().reopens == 1


def test_move_to_sets_the_times_of_events(bus: Bus) -> None:
    """Events and `info()` carry the frozen wall time, and durations the frozen time that passed inside a call."""
    recorder = EventRecorder(StateChanged)
    rules = {"tripper": FailureStreak(1), "retry": Cooldown(600), "permit": permits.All()}
    with freezegun.freeze_time("2024-05-01 03:00:00") as frozen:
        cb = CircuitBreaker("legacy", bus=bus, listeners=[recorder], **rules)  # type: ignore[arg-type]
        begun = cb.info().changed_at

        def late() -> None:
            frozen.tick(5)
            down()

        with pytest.raises(ConnectionError):
            cb.call(late)
        frozen.move_to("2024-05-01 03:10:05")
        assert cb.call(int) == 0
        assert cb.state is State.CLOSED
    assert [event.timestamp - begun for event in recorder.of(StateChanged)] == [5, 605, 605]
    assert recorder.of(StateChanged)[0].metrics.total_duration == pytest.approx(5)


def test_a_time_window_forgets_as_frozen_time_moves(bus: Bus) -> None:
    """A `TimeWindow` forgets by frozen time, also while nobody calls."""
    with freezegun.freeze_time("2024-05-01") as frozen:
        cb = CircuitBreaker(
            "legacy", window=TimeWindow(60), tripper=MinRequests(3) & FailureRate(0.5), clock=None, bus=bus
        )
        for _ in range(2):
            with pytest.raises(ConnectionError):
                cb.call(down)
        assert cb.info().metrics.failure_count == 2
        frozen.tick(61)
        assert cb.info().metrics.total_count == 0


def test_the_async_breaker_follows_frozen_time(bus: Bus) -> None:
    """The async breaker looks its clock up as the sync one does, on the fast path of successes as well."""

    async def main() -> None:
        cb = AsyncCircuitBreaker(
            "legacy",
            window=CountWindow(10),
            tripper=MinRequests(5) & FailureRate(0.2),
            permit=permits.All(),
            bus=bus,
        )

        @cb
        async def fetch(seconds: float, *, fail: bool = False) -> float:
            frozen.tick(seconds)
            if fail:
                down()
            return seconds

        for _ in range(4):
            await fetch(2)
        with pytest.raises(ConnectionError):
            await fetch(2, fail=True)
        assert cb.info().metrics.avg_duration == pytest.approx(2)
        with pytest.raises(CallNotPermittedError):
            await fetch(2)
        frozen.tick(60)
        await fetch(2)
        assert cb.info().state == "half_open"

    with freezegun.freeze_time("2024-05-01") as frozen:
        asyncio.run(main())
