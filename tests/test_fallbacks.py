"""Fallbacks: what answers in place of a call that failed or was refused."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest

from fluxgate import CallNotPermittedError, FailureStreak, TypeOf
from fluxgate.events import CallFailed, CallIgnored, CallRejected, Event, FallbackUsed
from tests.faces import ASYNC, SYNC, Circuit, Make, both, finish

Ways = dict[str, Callable[..., Any]]


def fail(*args: Any, **kwargs: Any) -> Any:
    raise ConnectionError("no route")


def ways(circuit: Circuit, function: Callable[..., Any], fallback: Any) -> Ways:
    """The three ways to give a fallback, each called as the plain function would be."""
    breaker, dyed = circuit.breaker, circuit.dyed(function)
    return {
        "decorator": lambda *a, **k: finish(breaker(fallback=fallback)(dyed)(*a, **k)),
        "position": lambda *a, **k: finish(breaker.call_with_fallback(dyed, fallback, *a, **k)),
        "keyword": lambda *a, **k: finish(breaker.call_with_fallback(dyed, *a, fallback_func=fallback, **k)),
    }


way = pytest.mark.parametrize("way", ["decorator", "position", "keyword"])


@both
@way
def test_a_fallback_answers_with_what_the_call_raised(make: Make, way: str) -> None:
    """It receives the very exception, and its answer is the caller's."""
    circuit = make()
    error = ConnectionError("no route")

    def work() -> Any:
        raise error

    received: list[Exception] = []

    def fallback(error: Exception) -> str:
        received.append(error)
        return "instead"

    assert ways(circuit, work, fallback)[way]() == "instead"
    assert received == [error]
    assert received[0] is error
    (told,) = circuit.seen(FallbackUsed)
    assert told.error_type == "ConnectionError"
    assert [type(event) for event in circuit.recorder.events_seen][-2:] == [CallFailed, FallbackUsed]


@both
@way
def test_a_success_needs_no_fallback(make: Make, way: str) -> None:
    """The arguments reach the function, whatever they are called, and the fallback is not asked."""
    circuit = make()
    call = ways(circuit, lambda *args, **kwargs: (args, kwargs), fail)[way]
    assert call(1, 2, a=3, self=4, func=5) == ((1, 2), {"a": 3, "self": 4, "func": 5})
    assert circuit.seen(FallbackUsed) == []


@both
@way
def test_a_refusal_is_answered_too(make: Make, way: str) -> None:
    """The fallback receives the refusal, with all that it says."""
    circuit = make(tripper=FailureStreak(1))
    circuit.fail()
    answer = ways(circuit, fail, lambda error: error)[way]()
    assert isinstance(answer, CallNotPermittedError)
    assert answer.retry_after == 60.0
    assert [type(event) for event in circuit.recorder.events_seen][-2:] == [CallRejected, FallbackUsed]
    assert circuit.seen(FallbackUsed)[0].error_type.endswith("CallNotPermittedError")


@both
@way
def test_an_ignored_error_is_answered_too(make: Make, way: str) -> None:
    """A fallback runs for any `Exception`, tracked or not."""
    circuit = make(tracker=TypeOf(OSError))

    def work() -> Any:
        raise KeyError("k")

    assert ways(circuit, work, lambda error: "instead")[way]() == "instead"
    assert circuit.seen(CallIgnored)
    assert circuit.seen(FallbackUsed)[0].error_type == "KeyError"


@both
@way
@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError])
def test_an_interrupt_is_not_answered(make: Make, way: str, interrupt: type[BaseException]) -> None:
    """What ends a program or a task passes through."""
    circuit = make()

    def work() -> Any:
        raise interrupt

    with pytest.raises(interrupt):
        ways(circuit, work, lambda error: "instead")[way]()
    assert circuit.seen(FallbackUsed) == []


@both
@way
def test_a_fallback_that_raises_is_seen_with_its_cause(make: Make, way: str) -> None:
    """Its own error reaches the caller, the call's being the context; the circuit counts the call alone."""
    circuit = make()

    def fallback(error: Exception) -> Any:
        raise LookupError("no cache")

    with pytest.raises(LookupError, match="no cache") as caught:
        ways(circuit, fail, fallback)[way]()
    assert isinstance(caught.value.__context__, ConnectionError)
    assert caught.value.__cause__ is None
    assert (circuit.metrics.total_count, circuit.metrics.failure_count) == (1, 1)


@both
@way
def test_a_fallback_may_call_the_breaker(make: Make, way: str) -> None:
    """No lock is held, and the inner call is one of its own."""
    circuit = make()
    answer = ways(circuit, fail, lambda error: circuit.call(lambda: "second try"))[way]()
    assert answer == "second try"
    assert circuit.metrics.total_count == 2


@both
@way
def test_none_is_an_answer(make: Make, way: str) -> None:
    """Whatever a fallback returns is returned."""
    assert ways(make(), fail, lambda error: None)[way]() is None


@both
def test_fallbacks_can_be_stacked(make: Make) -> None:
    """Each stands in for what the one further in raised."""
    circuit = make()
    inner = circuit.breaker(fallback=fail)(circuit.dyed(fail))
    outer = circuit.breaker(fallback=lambda error: str(error))(inner)
    assert finish(outer()) == "no route"
    assert len(circuit.seen(FallbackUsed)) == 2


@both
def test_the_fallback_is_told_before_it_runs(make: Make) -> None:
    """A listener hears of it while the answer is still to come."""
    circuit = make()
    seen: list[int] = []

    def fallback(error: Exception) -> None:
        seen.append(len(circuit.seen(FallbackUsed)))

    ways(circuit, fail, fallback)["decorator"]()
    assert seen == [1]


@both
def test_a_quiet_circuit_falls_back_all_the_same(make: Make) -> None:
    """Where nobody hears of fallbacks, no event is made."""
    circuit = make(hears=(CallFailed,))
    assert ways(circuit, fail, lambda error: "instead")["decorator"]() == "instead"


@both
def test_a_fallback_for_a_method_receives_the_exception_alone(make: Make) -> None:
    """It stands for the answer, not for the method."""
    circuit = make()

    def get(self: object, item: int) -> None:
        raise ConnectionError

    class Client:
        method = circuit.breaker(fallback=lambda *received: received)(circuit.dyed(get))

    (error,) = finish(Client().method(5))
    assert isinstance(error, ConnectionError)


def test_the_sync_breaker_refuses_a_fallback_that_turns_out_to_be_async() -> None:
    """A lambda around a coroutine function cannot be seen at decoration: it is refused when it answers."""

    async def later(error: Exception) -> str:
        return "instead"

    circuit = SYNC()
    with pytest.raises(TypeError, match=r"the fallback returned a coroutine, which is not awaited here: .*later"):
        circuit.breaker(fallback=lambda error: later(error))(fail)()


@way
def test_the_async_breaker_awaits_an_async_fallback(way: str) -> None:
    """A coroutine function, an object with an async call, or a lambda that gives an awaitable."""

    async def later(error: Exception) -> str:
        await asyncio.sleep(0)
        return f"instead of {error}"

    class Later:
        async def __call__(self, error: Exception) -> str:
            return await later(error)

    def wrapped(error: Exception) -> Awaitable[str]:
        return later(error)

    for fallback in (later, Later(), wrapped, lambda error: "instead of no route"):
        circuit = ASYNC()
        breaker = circuit.breaker

        async def work(*args: Any) -> Any:
            fail()

        runs: dict[str, Callable[[], Any]] = {
            "decorator": breaker(fallback=fallback)(work),
            "position": partial(breaker.call_with_fallback, work, fallback, 1),
            "keyword": partial(breaker.call_with_fallback, work, 1, fallback_func=fallback),
        }

        async def main(run: Callable[[], Any] = runs[way]) -> Any:
            return await run()

        assert asyncio.run(main()) == "instead of no route"


def test_an_async_listener_hears_of_the_fallback_first() -> None:
    """Inline means before the fallback runs, for an awaited listener as well."""
    circuit = ASYNC()
    log: list[str] = []

    async def listener(event: Event) -> None:
        await asyncio.sleep(0)
        log.append("told")

    circuit.breaker.attach(listener, FallbackUsed)

    async def work() -> None:
        fail()

    async def main() -> None:
        await circuit.breaker.call_with_fallback(work, lambda error: log.append("ran"))

    asyncio.run(main())
    assert log == ["told", "ran"]
