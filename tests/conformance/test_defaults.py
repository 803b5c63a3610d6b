"""An httpx client behind the defaults: the 100th call decides, then 60 s of refusals, then half of the calls probe."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest

pytest.importorskip("httpx")

import httpx

from fluxgate import AsyncCircuitBreaker, Bus, CallNotPermittedError, CircuitBreaker, State
from fluxgate.events import StateChanged
from fluxgate.testing import EventRecorder, VirtualClock
from tests.conformance.service import Answer, Service

HALF = [Answer(), Answer(500)] * 50
FAILURES_FIRST = [Answer(500)] * 50 + [Answer()] * 50
FAILURES_LAST = [Answer()] * 50 + [Answer(500)] * 50
ALL = [Answer(500)] * 100


@pytest.mark.parametrize("answers", [HALF, FAILURES_FIRST, FAILURES_LAST, ALL])
def test_the_hundredth_call_decides(service: Service, clock: VirtualClock, bus: Bus, answers: Sequence[Answer]) -> None:
    """Where at least 50 of the first 100 calls fail, the 101st is refused without a request, and says why."""
    service.script.extend(answers)
    failed = sum(answer.status == 500 for answer in answers)
    cb = CircuitBreaker("inventory", clock=clock, bus=bus)
    with httpx.Client(base_url=service.url) as client:

        @cb
        def stock(item: str) -> object:
            return client.get(f"/stock/{item}").raise_for_status().json()

        seen = 0
        for _ in range(100):
            assert cb.info().state == "closed"
            try:
                stock("spoon")
            except httpx.HTTPStatusError:
                seen += 1
        assert seen == failed

        with pytest.raises(CallNotPermittedError) as refusal:
            stock("spoon")

    assert len(service.paths) == 100
    error = refusal.value
    assert (error.circuit_name, error.state, error.retry_after) == ("inventory", "open", 60.0)
    assert str(error) == (
        "circuit 'inventory' is open: 100 calls seen (100 needed) and "
        f"failure rate {failed}.0 % (limit 50.0 %, {failed} of 100 calls); retry after 60.0 s"
    )


def test_forty_nine_failures_in_a_hundred_are_borne(service: Service, clock: VirtualClock, bus: Bus) -> None:
    """Behind the defaults 49 failures among 100 calls refuse nothing, and one more while they are remembered does."""
    service.script.extend([Answer()] * 51 + [Answer(500)] * 49)
    cb = CircuitBreaker("inventory", clock=clock, bus=bus)
    with httpx.Client(base_url=service.url) as client:
        stock = cb(lambda: client.get("/stock").raise_for_status())
        for _ in range(51):
            stock()
        for _ in range(49):
            with pytest.raises(httpx.HTTPStatusError):
                stock()
        assert cb.state is State.CLOSED
        service.script.append(Answer(500))
        with pytest.raises(httpx.HTTPStatusError):
            stock()
        with pytest.raises(CallNotPermittedError):
            stock()


def test_after_sixty_seconds_half_of_the_calls_pass(service: Service, clock: VirtualClock, bus: Bus) -> None:
    """A second before the 60 s are over no call passes; after them about half do, until ten have shown health."""
    random.seed(1)
    recorder = EventRecorder(StateChanged)
    cb = CircuitBreaker("inventory", clock=clock, bus=bus, listeners=[recorder])
    passed = refused = 0
    told: set[tuple[State, float | None]] = set()
    with httpx.Client(base_url=service.url) as client:
        stock = cb(lambda: client.get("/stock").raise_for_status())
        for _ in range(10):
            service.script.extend(HALF)
            for _ in range(100):
                try:
                    stock()
                except httpx.HTTPStatusError:
                    pass
            clock.advance(59)
            with pytest.raises(CallNotPermittedError) as refusal:
                stock()
            assert refusal.value.retry_after == 1.0
            clock.advance(1)
            for _ in range(100):
                try:
                    stock()
                except CallNotPermittedError as error:
                    told.add((error.state, error.retry_after))
                    refused += 1
                else:
                    passed += 1
                if cb.state is State.CLOSED:
                    break
    assert told == {(State.HALF_OPEN, 0.0)}
    assert passed == 100
    assert 0.4 < passed / (passed + refused) < 0.6
    assert [change.new_state for change in recorder.of(StateChanged)] == ["open", "half_open", "closed"] * 10


def test_probes_that_fail_open_it_again(service: Service, clock: VirtualClock, bus: Bus) -> None:
    """When half of ten probes fail, the circuit waits another 60 s and counts the failed recovery."""
    random.seed(2)
    service.script.extend([*ALL, *[Answer(), Answer(500)] * 5])
    cb = CircuitBreaker("inventory", clock=clock, bus=bus)
    with httpx.Client(base_url=service.url) as client:
        stock = cb(lambda: client.get("/stock").raise_for_status())
        for _ in range(100):
            with pytest.raises(httpx.HTTPStatusError):
                stock()
        clock.advance(60)
        for _ in range(100):
            try:
                stock()
            except (httpx.HTTPStatusError, CallNotPermittedError):
                pass
    info = cb.info()
    assert (info.state, info.retry_after, info.reopens) == ("open", 60.0, 1)
    assert len(service.paths) == 110


def test_an_async_client_sees_the_same(service: Service, clock: VirtualClock, bus: Bus) -> None:
    """The async breaker decides as the sync one: 100 calls, refusals for 60 s, then about half until ten succeeded."""
    random.seed(3)
    service.script.extend(HALF)

    async def main() -> tuple[int, int]:
        cb = AsyncCircuitBreaker("inventory", clock=clock, bus=bus)
        async with httpx.AsyncClient(base_url=service.url) as client:

            @cb
            async def stock(item: str) -> object:
                response = await client.get(f"/stock/{item}")
                return response.raise_for_status().json()

            for _ in range(100):
                assert cb.info().state == "closed"
                try:
                    await stock("spoon")
                except httpx.HTTPStatusError:
                    pass
            with pytest.raises(CallNotPermittedError):
                await stock("spoon")
            assert len(service.paths) == 100
            clock.advance(60)
            refused = 0
            for _ in range(100):
                try:
                    await stock("spoon")
                except CallNotPermittedError:
                    refused += 1
                if cb.state is State.CLOSED:
                    break
        return len(service.paths) - 100, refused

    passed, refused = asyncio.run(main())
    assert passed == 10
    assert 3 < refused < 20
