"""The traffic: threads with an `httpx.Client` and tasks with an `httpx.AsyncClient`, all calling through circuits."""

import asyncio
import random
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import httpx

from .. import AsyncCircuitBreaker, CallNotPermittedError, CircuitBreaker

_OPTIONS: dict[str, Any] = {
    "timeout": 5.0,
    "trust_env": False,  # for the proxy that the environment may name, loopback is somewhere else
    "verify": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),  # plain HTTP: certificates would take long to load, for nothing
}
_EXPECTED = (httpx.HTTPError, CallNotPermittedError)


def warm_up(url: str) -> None:
    """Call once with each kind of client: the first call loads code, and the script is not to wait for that."""

    async def once() -> None:
        async with httpx.AsyncClient(base_url=url, **_OPTIONS) as client:
            await client.get("/")

    asyncio.run(once())
    httpx.get(url, **_OPTIONS)


def customers(url: str, payments: CircuitBreaker, stop: Event, *, threads: int = 4) -> Counter[str]:
    """Pay from several threads until `stop`; the number of calls that were issued."""

    def pay_on() -> int:
        issued = 0
        while not stop.is_set():
            issued += 1
            try:
                pay(issued)
            except _EXPECTED:
                pass  # an error page, in a shop
            stop.wait(_pause(0.08))
        return issued

    with httpx.Client(base_url=url, **_OPTIONS) as client, ThreadPoolExecutor(threads) as pool:

        @payments
        def pay(amount: int) -> httpx.Response:
            return client.post("/payments", json={"amount": amount}).raise_for_status()

        return Counter(payments=sum([each.result() for each in [pool.submit(pay_on) for _ in range(threads)]]))


def visitors(url: str, inventory: AsyncCircuitBreaker, search: AsyncCircuitBreaker, stop: Event) -> Counter[str]:
    """Look up stock and search from several tasks until `stop`; the number of calls that were issued."""
    return asyncio.run(_visitors(url, inventory, search, stop))


async def _visitors(url: str, inventory: AsyncCircuitBreaker, search: AsyncCircuitBreaker, stop: Event) -> Counter[str]:
    cached: dict[str, Any] = {}
    issued: Counter[str] = Counter()

    async with httpx.AsyncClient(base_url=url, **_OPTIONS) as client:

        def from_cache(_: Exception) -> dict[str, Any]:
            return cached

        @inventory(fallback=from_cache)
        async def look_up_stock() -> dict[str, Any]:
            response = await client.get("/inventory")
            cached.update(response.raise_for_status().json())
            return cached

        async def find() -> httpx.Response:
            return (await client.get("/search", params={"q": "spoon"})).raise_for_status()

        async def keep(name: str, call: Callable[[], Awaitable[object]], pause: float) -> None:
            while not stop.is_set():
                issued[name] += 1
                try:
                    await call()
                except _EXPECTED:
                    pass
                await asyncio.sleep(_pause(pause))

        stock = [keep("inventory", look_up_stock, 0.08) for _ in range(4)]
        searches = [keep("search", lambda: search.call(find), 0.15) for _ in range(8)]
        await asyncio.gather(*stock, *searches)
    return issued


def _pause(mean: float) -> float:
    return mean * random.uniform(0.5, 1.5)  # or all would call in step
