"""Decorated functions keep their types. Checked, not run; an error that no longer comes is noticed."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from typing import assert_type

from fluxgate import AsyncCircuitBreaker, CircuitBreaker

cb = CircuitBreaker("payments")
acb = AsyncCircuitBreaker("payments")


@cb
def pay(amount: int, *, currency: str = "EUR") -> str:
    return f"{amount} {currency}"


assert_type(pay(10), str)
assert_type(pay(10, currency="USD"), str)
pay("10")  # type: ignore[arg-type]
pay()  # type: ignore[call-arg]
pay(10, "USD")  # type: ignore[call-arg]
pay(10, curency="USD")  # type: ignore[call-arg]
wrong: int = pay(10)  # type: ignore[assignment]


@cb(fallback=lambda error: None)
def lookup(key: str) -> int:
    return len(key)


assert_type(lookup("k"), int | None)
lookup(5)  # type: ignore[arg-type]


def from_cache(error: Exception) -> int:
    return 0


@cb(fallback=from_cache)
def count(key: str) -> int:
    return len(key)


assert_type(count("k"), int)


def needs_more(error: Exception, key: str) -> int:
    return 0


@cb(fallback=needs_more)  # type: ignore[arg-type]
def badly_answered(key: str) -> int:
    return len(key)


cb(fallback=5)  # type: ignore[call-overload]
cb(5)  # type: ignore[call-overload]


class Client:
    @cb
    def get(self, item: int) -> str:
        return str(item)

    @classmethod
    @cb
    def make(cls, item: int) -> str:
        return str(item)

    @staticmethod
    @cb
    def check(item: int) -> bool:
        return item > 0

    @acb
    async def fetch(self, item: int) -> str:
        return str(item)


assert_type(Client().get(5), str)
assert_type(Client.make(5), str)
assert_type(Client.check(5), bool)
Client().get("5")  # type: ignore[arg-type]
Client.check("5")  # type: ignore[arg-type]


@cb
def numbers(count: int) -> Iterator[int]:
    yield from range(count)


@cb
def dialogue() -> Generator[int, str, bool]:
    yield 1
    return True


assert_type(list(numbers(3)), list[int])
assert_type(dialogue().send("x"), int)
numbers("3")  # type: ignore[arg-type]


@acb
async def stock(item: str, *, store: int = 0) -> int:
    return len(item) + store


@acb(fallback=lambda error: None)
async def price(item: str) -> float:
    return 1.0


async def ask_elsewhere(error: Exception) -> str:
    return "elsewhere"


@acb(fallback=ask_elsewhere)
async def place(item: str) -> int:
    return 5


@acb  # type: ignore[arg-type]
def not_async(item: str) -> int:
    return len(item)


@acb
async def ticks(count: int) -> AsyncIterator[int]:
    yield count


@acb
async def answers(count: int) -> AsyncGenerator[int, str]:
    yield count


async def main() -> None:
    coroutine = stock("spoon")
    assert_type(await coroutine, int)
    assert_type(await stock("spoon", store=1), int)
    assert_type(await price("spoon"), float | None)
    assert_type(await place("spoon"), int | str)
    assert_type(await Client().fetch(5), str)
    await stock(5)  # type: ignore[arg-type]
    await stock("spoon", 1)  # type: ignore[call-arg]
    async for tick in ticks(3):
        assert_type(tick, int)
    assert_type(await answers(3).asend("x"), int)
    ticks("3")  # type: ignore[arg-type]
