"""What a caller answers instead, in each way of saying so, sync and async."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("httpx")

import httpx

from fluxgate import AsyncCircuitBreaker, Bus, CallNotPermittedError, CircuitBreaker, FailureStreak
from fluxgate.events import FallbackUsed
from fluxgate.testing import EventRecorder, VirtualClock
from tests.conformance.service import Answer, Service

CACHED: dict[str, object] = {"price": 9}


def cached(error: Exception) -> dict[str, object]:
    """The last known answer, and why it is not a new one."""
    return {**CACHED, "stale": type(error).__name__}


EXPECTED = [{}, {"price": 9, "stale": "HTTPStatusError"}, {"price": 9, "stale": "CallNotPermittedError"}]


@pytest.fixture
def recorder() -> EventRecorder:
    """What was answered in the function's place."""
    return EventRecorder(FallbackUsed)


@pytest.fixture
def cb(service: Service, clock: VirtualClock, bus: Bus, recorder: EventRecorder) -> CircuitBreaker:
    """Opens on the first failure, which is the second answer."""
    service.script.extend([Answer(), Answer(500)])
    return CircuitBreaker("prices", tripper=FailureStreak(1), clock=clock, bus=bus, listeners=[recorder])


@pytest.fixture
def async_cb(service: Service, clock: VirtualClock, bus: Bus, recorder: EventRecorder) -> AsyncCircuitBreaker:
    """Its async twin."""
    service.script.extend([Answer(), Answer(500)])
    return AsyncCircuitBreaker("prices", tripper=FailureStreak(1), clock=clock, bus=bus, listeners=[recorder])


@pytest.mark.parametrize("way", ["decorator", "keyword", "positional", "except"])
def test_a_fallback_answers_failures_and_refusals(
    service: Service, cb: CircuitBreaker, recorder: EventRecorder, way: str
) -> None:
    """However the fallback is given, it answers a failed call and a refused one, and is not used by a good one."""
    with httpx.Client(base_url=service.url) as client:

        def fetch(item: str) -> Any:
            return client.get(f"/prices/{item}").raise_for_status().json()

        decorated = cb(fallback=cached)(fetch)

        def price(item: str) -> Any:
            match way:
                case "decorator":
                    return decorated(item)
                case "keyword":
                    return cb.call_with_fallback(fetch, fallback_func=cached, item=item)
                case "positional":
                    return cb.call_with_fallback(fetch, cached, item)
                case _:
                    try:
                        return cb.call(fetch, item)
                    except (httpx.HTTPError, CallNotPermittedError) as error:
                        return cached(error)

        assert [price("spoon") for _ in range(3)] == EXPECTED
    assert service.paths == ["/prices/spoon"] * 2
    told = [event.error_type for event in recorder.of(FallbackUsed)]
    ours = ["httpx.HTTPStatusError", "fluxgate.errors.CallNotPermittedError"]
    assert told == ([] if way == "except" else ours)


@pytest.mark.parametrize("way", ["decorator", "keyword", "positional", "except", "async fallback"])
def test_an_async_fallback_does_the_same(
    service: Service, async_cb: AsyncCircuitBreaker, recorder: EventRecorder, way: str
) -> None:
    """The async breaker takes plain and coroutine functions as fallbacks, and awaits the latter."""
    cb = async_cb

    async def cached_elsewhere(error: Exception) -> dict[str, object]:
        await asyncio.sleep(0)
        return cached(error)

    async def main() -> list[Any]:
        async with httpx.AsyncClient(base_url=service.url) as client:

            async def fetch(item: str) -> Any:
                response = await client.get(f"/prices/{item}")
                return response.raise_for_status().json()

            plain = cb(fallback=cached)(fetch)
            awaited = cb(fallback=cached_elsewhere)(fetch)

            async def price(item: str) -> Any:
                match way:
                    case "decorator":
                        return await plain(item)
                    case "async fallback":
                        return await awaited(item)
                    case "keyword":
                        return await cb.call_with_fallback(fetch, fallback_func=cached_elsewhere, item=item)
                    case "positional":
                        return await cb.call_with_fallback(fetch, cached, item)
                    case _:
                        try:
                            return await cb.call(fetch, item)
                        except (httpx.HTTPError, CallNotPermittedError) as error:
                            return cached(error)

            return [await price("spoon") for _ in range(3)]

    assert asyncio.run(main()) == EXPECTED
    assert service.paths == ["/prices/spoon"] * 2
    assert len(recorder.of(FallbackUsed)) == (0 if way == "except" else 2)


def test_a_fallback_may_let_some_errors_pass(service: Service, cb: CircuitBreaker) -> None:
    """A fallback that raises the error again hands the caller that very error."""

    def only_refusals(error: Exception) -> dict[str, object]:
        if isinstance(error, CallNotPermittedError):
            return CACHED
        raise error

    with httpx.Client(base_url=service.url) as client:

        @cb(fallback=only_refusals)
        def price() -> Any:
            return client.get("/prices").raise_for_status().json()

        assert price() == {}
        with pytest.raises(httpx.HTTPStatusError):
            price()
        assert price() == CACHED


def test_a_second_service_as_fallback(service: Service, cb: CircuitBreaker, clock: VirtualClock, bus: Bus) -> None:
    """A fallback may be another breaker's function, which fails and opens on its own account."""
    mirror_cb = CircuitBreaker("mirror", tripper=FailureStreak(1), clock=clock, bus=bus)
    service.script.extend([Answer(body=b'{"from": "mirror"}'), Answer(500)])
    with httpx.Client(base_url=service.url) as client:

        @mirror_cb
        def mirror(error: Exception) -> Any:
            return client.get("/mirror").raise_for_status().json()

        @cb(fallback=mirror)
        def price() -> Any:
            return client.get("/prices").raise_for_status().json()

        assert [price(), price()] == [{}, {"from": "mirror"}]
        with pytest.raises(httpx.HTTPStatusError):
            price()
        with pytest.raises(CallNotPermittedError) as refusal:
            price()
    assert refusal.value.circuit_name == "mirror"
    assert service.paths == ["/prices", "/prices", "/mirror", "/mirror"]
