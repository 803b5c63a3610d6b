"""Calls, blocks and acquired calls have the types of what they protect. Checked, not run."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from typing import assert_type

from fluxgate import (
    AsyncCall,
    AsyncCircuitBreaker,
    Call,
    CallNotPermittedError,
    CircuitBreaker,
    CircuitBreakerInfo,
    FailureStreak,
    Metric,
    State,
    Verdict,
)

cb = CircuitBreaker("payments")
acb = AsyncCircuitBreaker("payments")


def pay(amount: int, *, currency: str = "EUR") -> str:
    return f"{amount} {currency}"


async def stock(item: str) -> int:
    return len(item)


async def later(error: Exception) -> bytes:
    return b""


def nothing(error: Exception) -> None: ...


assert_type(cb.call(pay, 10), str)
assert_type(cb.call(pay, 10, currency="USD"), str)
cb.call(pay, "10")  # type: ignore[arg-type]
cb.call(pay)  # type: ignore[call-arg]
cb.call(5)  # type: ignore[arg-type]

assert_type(cb.call_with_fallback(pay, nothing, 10), str | None)
assert_type(cb.call_with_fallback(pay, 10, fallback_func=nothing, currency="USD"), str | None)
cb.call_with_fallback(pay)  # type: ignore[call-overload]


def block() -> int:
    """A block passes every exception on, so that nothing can follow this return."""
    with cb as entered:
        assert_type(entered, CircuitBreaker)
        return 5


def held() -> int:
    call = cb.acquire()
    assert_type(call, Call)
    call.success()
    call.success(5)
    call.failure(ValueError())
    call.failure("no exception")  # type: ignore[arg-type]
    with cb.acquire():
        return 5


async def async_block() -> int:
    async with acb as entered:
        assert_type(entered, AsyncCircuitBreaker)
        return 5


async def async_calls() -> None:
    assert_type(await acb.call(stock, "spoon"), int)
    await acb.call(stock, 5)  # type: ignore[arg-type]
    await acb.call(pay, 10)  # type: ignore[arg-type]
    assert_type(await acb.call_with_fallback(stock, nothing, "spoon"), int | None)
    assert_type(await acb.call_with_fallback(stock, later, "spoon"), int | bytes)
    assert_type(await acb.call_with_fallback(stock, "spoon", fallback_func=later), int | bytes)
    call = await acb.acquire()
    assert_type(call, AsyncCall)
    await call.failure(ValueError())
    await acb.reset()
    await acb.configure(tripper=FailureStreak(5))
    acb.force_open()  # type: ignore[unused-coroutine]
    with acb:  # type: ignore[attr-defined]
        pass


info = cb.info()
assert_type(info, CircuitBreakerInfo)
assert_type(info.state, State)
assert_type(info.metrics, Metric)
assert_type(info.metrics.failure_rate, float | None)
assert_type(info.retry_after, float | None)
assert_type(info.probes, int)
info.state = State.OPEN  # type: ignore[misc]
info.metrics.total_count = 5  # type: ignore[misc]
assert_type(acb.info(), CircuitBreakerInfo)
assert_type(cb.state, State)
cb.name = "other"  # type: ignore[misc]

try:
    pay(10)
except CallNotPermittedError as error:
    assert_type(error.circuit_name, str)
    assert_type(error.state, State)
    assert_type(error.retry_after, float | None)
    assert_type(error.verdict, Verdict | None)
    assert_type(error.message, str)

cb.configure(tripper=FailureStreak(5), slow_threshold=1, max_half_open_calls=2)
cb.configure(triper=FailureStreak(5))  # type: ignore[call-arg]
cb.configure(slow_threshold="1")  # type: ignore[arg-type]
