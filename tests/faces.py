"""Both faces of a circuit behind one set of words, so that what holds for both is written once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import iscoroutine
from typing import Any, TypeVar

import pytest

from fluxgate import AsyncCircuitBreaker, Bus, CallNotPermittedError, CircuitBreaker, CircuitBreakerInfo, Metric
from fluxgate.events import CircuitCreated, Event, StateChanged, WouldOpen
from fluxgate.testing import EventRecorder, VirtualClock

E = TypeVar("E", bound=Event)

STATES_ONLY = (StateChanged, WouldOpen, CircuitCreated)


def finish(work: Any) -> Any:
    """The value itself, or what a coroutine returns that has nothing to wait for."""
    if not iscoroutine(work):
        return work
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    work.close()
    raise AssertionError("the coroutine waits")


class Circuit:
    """A breaker of either colour with a clock, a bus and a recorder of its own.

    `hears` says which events the recorder asks for: with every call heard the engine never takes its fast lane.
    """

    def __init__(
        self, breaker: type[Any], *, hears: tuple[type[Event], ...] = (Event,), clock: Any = None, **rules: Any
    ) -> None:
        self.clock = VirtualClock()
        self.bus = Bus()
        self.recorder = EventRecorder(*hears)
        self.is_async = breaker is AsyncCircuitBreaker
        self.breaker: Any = breaker(
            "payments", bus=self.bus, clock=self.clock if clock is None else clock, listeners=[self.recorder], **rules
        )

    def dyed(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """The plain function, or a coroutine function that does the same."""
        if not self.is_async:
            return func

        async def dyed(*args: Any, **kwargs: Any) -> Any:
            return func(*args, **kwargs)

        return dyed

    def call(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return finish(self.breaker.call(self.dyed(func), *args, **kwargs))

    def protect(self, func: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """The decorated function, called as a plain one."""
        decorated = self.breaker(**options)(self.dyed(func)) if options else self.breaker(self.dyed(func))
        return lambda *args, **kwargs: finish(decorated(*args, **kwargs))

    def succeed(self, seconds: float = 0.0, value: Any = None) -> None:
        """One call that takes so long and returns the value."""

        def work() -> Any:
            self.clock.advance(seconds)
            return value

        assert self.call(work) is value

    def fail(self, error: BaseException | None = None, seconds: float = 0.0) -> None:
        """One call that takes so long and raises; the caller must see that very error."""
        error = error or ConnectionError("no route")

        def work() -> Any:
            self.clock.advance(seconds)
            raise error

        with pytest.raises(type(error)) as caught:
            self.call(work)
        assert caught.value is error

    def refused(self) -> CallNotPermittedError:
        """One call that must be refused without running."""
        ran: list[int] = []
        with pytest.raises(CallNotPermittedError) as caught:
            self.call(ran.append, 1)
        assert not ran
        return caught.value

    def acquire(self) -> Held:
        return Held(finish(self.breaker.acquire()))

    def steer(self, control: str, **rules: Any) -> None:
        """`reset`, `disable`, `metrics_only`, `force_open` or `configure`."""
        finish(getattr(self.breaker, control)(**rules))

    @property
    def info(self) -> CircuitBreakerInfo:
        info: CircuitBreakerInfo = self.breaker.info()
        return info

    @property
    def state(self) -> str:
        return str(self.info.state)

    @property
    def metrics(self) -> Metric:
        return self.info.metrics

    def seen(self, kind: type[E]) -> list[E]:
        return self.recorder.of(kind)

    def moves(self) -> list[str]:
        """Each change of state so far as "old new trigger"."""
        return [f"{event.old_state} {event.new_state} {event.trigger}" for event in self.seen(StateChanged)]


class Held:
    """An acquired call, settled as a plain one."""

    def __init__(self, call: Any) -> None:
        self.call = call

    def success(self, *value: Any) -> None:
        finish(self.call.success(*value))

    def failure(self, error: Any = None) -> None:
        finish(self.call.failure(ConnectionError("no route") if error is None else error))

    def cancel(self) -> None:
        finish(self.call.cancel())


Make = Callable[..., Circuit]
SYNC: Make = partial(Circuit, CircuitBreaker)
ASYNC: Make = partial(Circuit, AsyncCircuitBreaker)

both = pytest.mark.parametrize("make", [SYNC, ASYNC], ids=["sync", "async"])
"""Runs a test with either face: ``make(**rules)`` gives the circuit."""
