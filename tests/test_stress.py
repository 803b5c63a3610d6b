"""Threads and event loops that hammer one breaker: nothing drifts, nothing happens twice, the order holds."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fluxgate import (
    Always,
    AsyncCircuitBreaker,
    Bus,
    CircuitBreaker,
    Cooldown,
    CountWindow,
    FailureStreak,
    MinRequests,
    State,
    TimeWindow,
    permits,
)
from fluxgate.events import CallEnded, CallSucceeded, Event, StateChanged
from fluxgate.testing import EventRecorder
from tests.running import Running

THREADS, CALLS = 8, 1_500

WAYS = ("lane", "heard", "no lane")
windows = pytest.mark.parametrize("window", [CountWindow(THREADS * CALLS), TimeWindow(3600)], ids=["count", "time"])
ways = pytest.mark.parametrize("way", WAYS)
untrippable = pytest.mark.filterwarnings("ignore:.*never holds")


@pytest.fixture(autouse=True)
def restless() -> Iterator[None]:
    """Threads take turns as often as the interpreter can make them."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def together(*works: Callable[[], object]) -> None:
    """Run them at once, each in a thread."""
    barrier = threading.Barrier(len(works))

    def run(work: Callable[[], object]) -> None:
        barrier.wait(20)
        work()

    threads = [Running(lambda work=work: run(work)) for work in works]  # type: ignore[misc]
    assert all(thread.done(60) for thread in threads)


def prepared(way: str, monkeypatch: pytest.MonkeyPatch, **rules: Any) -> dict[str, Any]:
    """The parameters of a breaker whose calls take the fast lane, an event each, or the lock each."""
    if way == "no lane":
        monkeypatch.setattr("fluxgate._gil.GIL", False)
    return {"bus": Bus(), "listeners": [EventRecorder(CallSucceeded)] if way == "heard" else [], **rules}


def odd(number: int) -> int:
    """Every tenth call fails."""
    if number % 10 == 0:
        raise ConnectionError(number)
    return number


@untrippable
@windows
@ways
def test_totals_are_exact_under_threads(way: str, window: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each success and each failure of eight threads is in the window once."""
    rules: dict[str, Any] = {"window": window, "tripper": FailureStreak(10**9)}
    cb = CircuitBreaker("dependency", **prepared(way, monkeypatch, **rules))
    protected = cb(odd)
    lanes: list[bool] = []

    def calls() -> None:
        for number in range(CALLS):
            try:
                protected(number)
            except ConnectionError:
                pass
            lane = cb._core.lane
            lanes.append(lane is not None and lane.until > 0)

    together(*[calls] * THREADS)
    metrics = cb.info().metrics
    assert (metrics.total_count, metrics.failure_count) == (THREADS * CALLS, THREADS * CALLS // 10)
    assert metrics.total_duration > 0
    assert any(lanes) is (way == "lane")


@untrippable
@windows
@ways
def test_totals_are_exact_under_event_loops(way: str, window: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same holds for tasks of several event loops in as many threads."""
    rules: dict[str, Any] = {"window": window, "tripper": FailureStreak(10**9)}
    cb = AsyncCircuitBreaker("dependency", **prepared(way, monkeypatch, **rules))

    @cb
    async def protected(number: int) -> int:
        await asyncio.sleep(0)
        return odd(number)

    async def main() -> None:
        done = await asyncio.gather(*(protected(number) for number in range(500)), return_exceptions=True)
        assert len(done) == 500

    together(*[lambda: asyncio.run(main())] * 4)
    metrics = cb.info().metrics
    assert (metrics.total_count, metrics.failure_count) == (2000, 200)


@pytest.mark.parametrize("way", WAYS)
def test_concurrent_failures_open_once(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many threads fail at once, an opening is one transition, and every move starts where the last ended."""
    cb = CircuitBreaker(
        "dependency",
        **prepared(way, monkeypatch, tripper=FailureStreak(5), retry=Cooldown(0.001), permit=permits.All()),
    )
    recorder = EventRecorder(StateChanged)
    cb.attach(recorder)
    calm = threading.Event()

    def calls() -> None:
        for number in range(400):
            cb.call_with_fallback(odd, lambda error: None, 1 if calm.is_set() or number % 40 > 20 else 0)

    together(*[calls] * THREADS)
    moves = [(event.old_state, event.new_state) for event in recorder.of(StateChanged)]
    assert (State.CLOSED, State.OPEN) in moves
    assert all(old != new for old, new in moves)
    assert [old for old, _ in moves] == [State.CLOSED, *[new for _, new in moves[:-1]]]


@pytest.mark.parametrize("places", [1, 3])
def test_no_more_probes_than_places(places: int) -> None:
    """In a half-open circuit never more calls are inside than there are places."""
    cb = CircuitBreaker(
        "dependency",
        tripper=MinRequests(10**6),
        retry=Always(),
        permit=permits.All(),
        max_half_open_calls=places,
        half_open_timeout=3600,
        window=TimeWindow(60),
        bus=Bus(),
    )
    core = cb._core
    core.machine._move(State.OPEN, *_trip(cb))
    inside, most, guard = 0, 0, threading.Lock()

    def probe() -> None:
        nonlocal inside, most
        with guard:
            inside += 1
            most = max(most, inside)
        for _ in range(20):
            pass
        with guard:
            inside -= 1

    def calls() -> None:
        for _ in range(300):
            cb.call_with_fallback(probe, lambda error: None)

    together(*[calls] * THREADS)
    info = cb.info()
    assert info.state is State.HALF_OPEN
    assert 1 <= most <= places
    assert info.probes == 0


def _trip(cb: CircuitBreaker) -> tuple[Any, Any, float, float, int]:
    from fluxgate import Trigger, Verdict

    core = cb._core
    return Trigger.TRIPPER, Verdict("test", True), core.clock.monotonic(), core.clock.time(), core.machine.generation


def test_events_are_gapless_in_order_and_one_at_a_time() -> None:
    """A listener hears every event of a circuit that eight threads call, by number, and never two at once."""
    numbers: list[int] = []
    inside: list[int] = []
    crowded: list[int] = []

    def listener(event: Event) -> None:
        inside.append(event.sequence)
        if len(inside) > 1:
            crowded.append(event.sequence)
        numbers.append(event.sequence)
        inside.pop()

    bus = Bus()
    bus.attach(listener, Event)
    cb = CircuitBreaker("dependency", tripper=FailureStreak(10**9), bus=bus)

    def calls() -> None:
        for number in range(300):
            cb.call_with_fallback(odd, lambda error: None, number)

    together(*[calls] * THREADS)
    assert bus.flush(20)
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= THREADS * 300 * 2
    assert not crowded


def test_controls_and_listeners_come_and_go_under_calls() -> None:
    """Resets, reconfigurations, attachments among the calls leave a circuit consistent; each call has one outcome."""
    bus, ends = Bus(), EventRecorder(CallEnded)
    cb = CircuitBreaker("dependency", window=CountWindow(50), tripper=FailureStreak(10**9), bus=bus)
    bus.attach(ends)
    stop = threading.Event()

    def calls() -> None:
        for number in range(600):
            cb.call_with_fallback(odd, lambda error: None, number)

    def steer() -> None:
        while not stop.is_set():
            for control in (cb.reset, cb.metrics_only, cb.disable, cb.reset):
                control()
            cb.configure(slow_threshold=0.5)
            with cb.attach(EventRecorder()):
                metrics = cb.info().metrics
            assert 0 <= metrics.failure_count <= metrics.total_count <= 50

    steering = Running(steer)
    together(*[calls] * 4)
    stop.set()
    assert steering.done()
    assert bus.flush(20)
    assert len(ends.events_seen) == 4 * 600
    cb.reset()
    cb.call(odd, 1)
    assert cb.info().metrics.total_count == 1
