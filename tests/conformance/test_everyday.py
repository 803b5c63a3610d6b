"""Breakers in the middle of ordinary programs: threads and tasks, log lines, exit stacks, shadow mode."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack
from typing import Any

import pytest

pytest.importorskip("httpx")

import httpx

from fluxgate import (
    AsyncCircuitBreaker,
    Bus,
    CallNotPermittedError,
    CircuitBreaker,
    Cooldown,
    FailureRate,
    FailureStreak,
    MinRequests,
    State,
    permits,
)
from fluxgate.events import CallEnded, CallRejected, CallStarted, StateChanged, WouldOpen
from fluxgate.listeners.log import LogListener
from fluxgate.testing import EventRecorder, VirtualClock
from tests.conformance.service import Answer, Service


def test_worker_threads_share_one_client_and_one_breaker(service: Service, clock: VirtualClock, bus: Bus) -> None:
    """Under eight threads every request is counted, the circuit opens once, and none asks the service afterwards."""
    recorder = EventRecorder(StateChanged)
    cb = CircuitBreaker(
        "search", tripper=MinRequests(40) & FailureRate(0.5), clock=clock, bus=bus, listeners=[recorder]
    )
    service.default = Answer(500)
    with httpx.Client(base_url=service.url) as session, ThreadPoolExecutor(8) as pool:

        @cb
        def search(word: str) -> Any:
            return session.get("/search", params={"q": word}).raise_for_status().json()

        def outcome(number: int) -> str:
            try:
                search(str(number))
            except httpx.HTTPStatusError:
                return "failed"
            except CallNotPermittedError:
                return "refused"
            return "ok"

        outcomes = list(pool.map(outcome, range(200)))
        asked = len(service.paths)
        assert list(pool.map(outcome, range(20))) == ["refused"] * 20
    assert outcomes.count("ok") == 0
    assert outcomes.count("failed") == asked == len(service.paths)
    assert 40 <= asked <= 47, "seven more may have been under way when the fortieth decided"
    assert [change.new_state for change in recorder.of(StateChanged)] == ["open"]
    assert cb.info().metrics.total_count == 40


def test_tasks_share_one_client_and_one_breaker(service: Service, clock: VirtualClock, bus: Bus) -> None:
    """With thirty tasks at once no more than `max_half_open_calls` probe, and the others are refused at once."""
    cb = AsyncCircuitBreaker(
        "search",
        tripper=FailureStreak(1),
        permit=permits.All(),
        max_half_open_calls=3,
        clock=clock,
        bus=bus,
    )
    service.script.append(Answer(500))
    gate = threading.Event()
    service.default = Answer(during=lambda: gate.wait(10))

    async def main() -> list[Any]:
        async with httpx.AsyncClient(base_url=service.url) as client:

            async def search() -> Any:
                return (await client.get("/search")).raise_for_status()

            with pytest.raises(httpx.HTTPStatusError):
                await cb.call(search)
            clock.advance(60)
            tasks = [asyncio.create_task(cb.call(search)) for _ in range(30)]
            async with asyncio.timeout(60):
                while sum(task.done() for task in tasks) < 27:
                    await asyncio.sleep(0)
            assert cb.info().probes == 3
            gate.set()
            return await asyncio.gather(*tasks, return_exceptions=True)

    results = asyncio.run(main())
    refused = [error for error in results if isinstance(error, CallNotPermittedError)]
    assert {error.state for error in refused} == {State.HALF_OPEN}
    assert (len(refused), len(service.paths)) == (27, 4)


def test_the_log_tells_the_story_of_an_outage(
    service: Service, clock: VirtualClock, bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    """With a `LogListener` on all circuits the log says why one opened, what was refused and how it recovered."""
    bus.attach(LogListener())
    cb = CircuitBreaker(
        "search",
        tripper=MinRequests(4) & FailureRate(0.5),
        retry=Cooldown(30),
        permit=permits.All(),
        half_open_timeout=10,
        clock=clock,
        bus=bus,
    )
    service.script.extend([Answer(), Answer(500), Answer(), Answer(503)])
    with caplog.at_level(logging.INFO, "fluxgate.events"), httpx.Client(base_url=service.url) as client:
        search = cb(lambda: client.get("/search").raise_for_status())
        for _ in range(7):
            try:
                search()
            except (httpx.HTTPStatusError, CallNotPermittedError):
                pass
        clock.advance(30)
        for _ in range(4):
            search()
    story = [(record.levelname, *record.getMessage().split()[:2]) for record in caplog.records]
    name = "circuit_name=search"
    assert [line for line in story if line[1].startswith("circuit_") and line[1] != "circuit_created"] == [
        ("WARNING", "circuit_opened", name),
        ("INFO", "circuit_half_opened", name),
        ("INFO", "circuit_closed", name),
    ]
    opened = next(record for record in caplog.records if record.getMessage().startswith("circuit_opened"))
    assert opened.__dict__["failure_rate"] == 0.5
    assert opened.__dict__["retry_after"] == 30.0
    assert (
        'reason="4 calls seen (4 needed) and failure rate 50.0 % (limit 50.0 %, 2 of 4 calls)"' in opened.getMessage()
    )


def test_one_listener_for_some_circuits_and_another_for_one(service: Service, clock: VirtualClock, bus: Bus) -> None:
    """A listener on the bus sees the circuits that its pattern names, one on a circuit that alone."""
    payments, everything = EventRecorder(StateChanged), EventRecorder(StateChanged)
    card = CircuitBreaker("payments-card", clock=clock, bus=bus)
    bus.attach(payments, circuits="payments-*")
    paypal = CircuitBreaker("payments-paypal", clock=clock, bus=bus)
    stock = CircuitBreaker("stock", clock=clock, bus=bus)
    with stock.attach(everything):
        for cb in (card, paypal, stock):
            cb.force_open()
    stock.reset()
    assert [event.circuit_name for event in payments.of(StateChanged)] == ["payments-card", "payments-paypal"]
    assert [event.circuit_name for event in everything.of(StateChanged)] == ["stock"]
    assert [cb.name for cb in bus.circuits()] == ["payments-card", "payments-paypal", "stock"]


def test_a_rule_is_tried_in_the_shadow_first(service: Service, clock: VirtualClock, bus: Bus) -> None:
    """In METRICS_ONLY no call is refused, and `WouldOpen` says when and why the rule would have opened the circuit."""
    recorder = EventRecorder(WouldOpen, CallRejected)
    cb = CircuitBreaker("search", tripper=MinRequests(4) & FailureRate(0.5), clock=clock, bus=bus, listeners=[recorder])
    cb.metrics_only()
    service.default = Answer(500)
    with httpx.Client(base_url=service.url) as client:
        for _ in range(9):
            with pytest.raises(httpx.HTTPStatusError):
                cb.call(lambda: client.get("/search").raise_for_status())
    assert len(service.paths) == 9
    assert [event.reason for event in recorder.of(WouldOpen)] == [
        "4 calls seen (4 needed) and failure rate 100.0 % (limit 50.0 %, 4 of 4 calls)"
    ] * 2
    assert recorder.of(CallRejected) == []


def test_breakers_around_breakers(service: Service, clock: VirtualClock, bus: Bus) -> None:
    """A host's open circuit refuses inside an endpoint's circuit without counting against the endpoint."""
    host = CircuitBreaker("host", tripper=FailureStreak(1), clock=clock, bus=bus)
    endpoint = CircuitBreaker("host/search", tripper=FailureStreak(2), clock=clock, bus=bus)
    service.script.append(Answer(500))
    with httpx.Client(base_url=service.url) as client:

        @endpoint
        @host
        def search() -> Any:
            return client.get("/search").raise_for_status()

        with pytest.raises(httpx.HTTPStatusError):
            search()
        for _ in range(5):
            with pytest.raises(CallNotPermittedError) as refusal:
                search()
            assert refusal.value.circuit_name == "host"
    assert endpoint.state is State.CLOSED
    assert endpoint.info().metrics.total_count == 1


# -- blocks that contextlib enters ------------------------------------------------------------------------------------


def settled(recorder: EventRecorder) -> dict[int, tuple[str, bool]]:
    """By call: its outcome, and whether it came too late to decide."""
    return {event.call_id: (type(event).__name__, event.stale) for event in recorder.of(CallEnded)}


def test_exit_stacks_side_by_side_settle_their_own_calls(clock: VirtualClock, bus: Bus) -> None:
    """Of two requests whose exit stacks hold the breaker, the one from before a reset decides nothing."""
    recorder = EventRecorder(CallStarted, CallEnded)
    cb = CircuitBreaker("database", clock=clock, bus=bus, listeners=[recorder])

    def request() -> Generator[None, None, None]:
        with ExitStack() as stack:
            stack.enter_context(cb)
            yield

    first, second = request(), request()
    next(first)
    cb.reset()
    next(second)
    with pytest.raises(ConnectionError):
        first.throw(ConnectionError("late"))
    assert next(second, "over") == "over"
    assert settled(recorder) == {1: ("CallFailed", True), 2: ("CallSucceeded", False)}
    assert cb.info().metrics.failure_count == 0


def test_async_exit_stacks_side_by_side_settle_their_own_calls(clock: VirtualClock, bus: Bus) -> None:
    """The same holds for tasks with an AsyncExitStack each."""
    recorder = EventRecorder(CallStarted, CallEnded)
    cb = AsyncCircuitBreaker("database", clock=clock, bus=bus, listeners=[recorder])

    async def request(entered: asyncio.Event, leave: asyncio.Event, *, fail: bool) -> None:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(cb)
            entered.set()
            await leave.wait()
            if fail:
                raise ConnectionError("late")

    async def main() -> None:
        events = [asyncio.Event() for _ in range(4)]
        first = asyncio.create_task(request(events[0], events[1], fail=True))
        await events[0].wait()
        await cb.reset()
        second = asyncio.create_task(request(events[2], events[3], fail=False))
        await events[2].wait()
        events[1].set()
        with pytest.raises(ConnectionError):
            await first
        events[3].set()
        await second

    asyncio.run(main())
    assert settled(recorder) == {1: ("CallFailed", True), 2: ("CallSucceeded", False)}
    assert cb.info().metrics.failure_count == 0
