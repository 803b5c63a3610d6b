"""Answers that arrive piece by piece: protected for as long as they last."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator

import pytest

pytest.importorskip("httpx")

import httpx

from fluxgate import AsyncCircuitBreaker, Bus, CallNotPermittedError, CircuitBreaker, FailureStreak
from fluxgate.events import CallCancelled, CallEnded
from fluxgate.testing import EventRecorder, VirtualClock
from tests.conformance.service import Answer, Service

LINES = Answer(chunks=[b"one\n", b"two\n"])
CUT = Answer(chunks=[b"one\n"], drop=True)


def kinds(recorder: EventRecorder) -> list[str]:
    """The outcomes that it received."""
    return [type(event).__name__ for event in recorder.of(CallEnded)]


def test_a_generator_is_protected_to_its_end(service: Service, clock: VirtualClock, bus: Bus) -> None:
    """A stream that breaks off after its first line is a failure, and the next one is not begun."""
    recorder = EventRecorder(CallEnded)
    cb = CircuitBreaker("feed", tripper=FailureStreak(1), clock=clock, bus=bus, listeners=[recorder])
    service.script.extend([LINES, CUT])
    with httpx.Client(base_url=service.url) as client:

        @cb
        def feed() -> Generator[str, None, None]:
            with client.stream("GET", "/feed") as response:
                yield from response.iter_lines()

        assert list(feed()) == ["one", "two"]
        received: list[str] = []
        with pytest.raises(httpx.RemoteProtocolError):
            received.extend(feed())
        with pytest.raises(CallNotPermittedError):
            next(feed())
    assert received == ["one"]
    assert kinds(recorder) == ["CallSucceeded", "CallFailed"]
    assert len(service.paths) == 2


def test_a_reader_who_leaves_early_decides_nothing(service: Service, clock: VirtualClock, bus: Bus) -> None:
    """Closing a generator half-way is neither success nor failure, and its connection is given back."""
    recorder = EventRecorder(CallEnded)
    cb = CircuitBreaker("feed", clock=clock, bus=bus, listeners=[recorder])
    service.default = LINES
    with httpx.Client(base_url=service.url) as client:

        @cb
        def feed() -> Generator[str, None, None]:
            with client.stream("GET", "/feed") as response:
                yield from response.iter_lines()

        stream = feed()
        assert next(stream) == "one"
        stream.close()
    assert kinds(recorder) == ["CallCancelled"]
    assert cb.info().metrics.total_count == 0


def test_an_async_generator_is_protected_to_its_end(service: Service, clock: VirtualClock, bus: Bus) -> None:
    """The async breaker protects an async generator's iteration, whole, broken off, or left early."""
    recorder = EventRecorder(CallEnded)
    cb = AsyncCircuitBreaker("feed", tripper=FailureStreak(1), clock=clock, bus=bus, listeners=[recorder])
    service.script.extend([LINES, LINES, CUT])

    async def main() -> None:
        async with httpx.AsyncClient(base_url=service.url) as client:

            @cb
            async def feed() -> AsyncGenerator[str, None]:
                async with client.stream("GET", "/feed") as response:
                    async for line in response.aiter_lines():
                        yield line

            assert [line async for line in feed()] == ["one", "two"]

            early = feed()
            assert await anext(early) == "one"
            await early.aclose()

            with pytest.raises(httpx.RemoteProtocolError):
                async for _ in feed():
                    pass
            with pytest.raises(CallNotPermittedError):
                await anext(feed())

    asyncio.run(main())
    assert kinds(recorder) == ["CallSucceeded", "CallCancelled", "CallFailed"]


def test_acquire_settles_where_the_stream_ends(service: Service, clock: VirtualClock, bus: Bus) -> None:
    """With `acquire` one function begins the call, another ends it, and the time between is its duration."""
    cb = CircuitBreaker("feed", tripper=FailureStreak(1), clock=clock, bus=bus)
    service.script.extend([LINES, CUT])
    with httpx.Client(base_url=service.url) as client:
        for outcome in ("whole", "cut"):
            call = cb.acquire()
            response = client.send(client.build_request("GET", "/feed"), stream=True)
            clock.advance(2)
            try:
                for _ in response.iter_lines():
                    pass
            except httpx.TransportError as error:
                assert outcome == "cut"
                call.failure(error)
            else:
                assert outcome == "whole"
                call.success()
            finally:
                response.close()
        with pytest.raises(CallNotPermittedError):
            cb.acquire()
    metrics = cb.info().metrics
    assert (metrics.total_count, metrics.failure_count, metrics.avg_duration) == (2, 1, 2.0)


def test_an_acquired_call_as_a_block(service: Service, clock: VirtualClock, bus: Bus) -> None:
    """`async with await cb.acquire()` settles by the block's end, and `cancel` before it wins."""
    recorder = EventRecorder(CallEnded)
    cb = AsyncCircuitBreaker("feed", clock=clock, bus=bus, listeners=[recorder])
    service.default = LINES

    async def main() -> None:
        async with httpx.AsyncClient(base_url=service.url) as client:
            async with await cb.acquire():
                async with client.stream("GET", "/feed") as response:
                    assert await response.aread() == b"one\ntwo\n"
            async with await cb.acquire() as call:
                await call.cancel()

    asyncio.run(main())
    assert kinds(recorder) == ["CallSucceeded", "CallCancelled"]


def test_a_cancelled_task_decides_nothing(service: Service, clock: VirtualClock, bus: Bus) -> None:
    """A request that the caller gives up on is cancelled: not a failure of the service's."""
    recorder = EventRecorder(CallCancelled)
    cb = AsyncCircuitBreaker("feed", tripper=FailureStreak(1), clock=clock, bus=bus, listeners=[recorder])
    service.script.append(Answer(hang=True))

    async def main() -> None:
        async with httpx.AsyncClient(base_url=service.url) as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await cb.call(client.get, "/feed")

    asyncio.run(main())
    assert kinds(recorder) == ["CallCancelled"]
    assert cb.info().state == "closed"
