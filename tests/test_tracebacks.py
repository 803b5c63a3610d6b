"""What a call leaves behind: the very exception, one frame more at most, and no reference cycle."""

from __future__ import annotations

import asyncio
import gc
import traceback
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event as Happening
from types import SimpleNamespace, TracebackType
from typing import Any

import pytest

from fluxgate import (
    Always,
    AsyncCircuitBreaker,
    Bus,
    CallNotPermittedError,
    CircuitBreaker,
    Cooldown,
    FailureStreak,
    Returned,
)
from fluxgate.events import CallFailed, Event
from fluxgate.permits import All as EveryCall
from fluxgate.testing import EventRecorder, VirtualClock
from fluxgate.trackers import All
from tests.faces import STATES_ONLY
from tests.running import arrives


class Failure(Exception):
    """An error that can be watched."""


def make(asynchronous: bool = False, **rules: Any) -> Any:
    breaker = AsyncCircuitBreaker if asynchronous else CircuitBreaker
    options: dict[str, Any] = {"tripper": FailureStreak(10**6), "clock": VirtualClock(), "bus": Bus()}
    return breaker("payments", **(options | rules))


Make = Callable[[], BaseException]


def plain(error: Make) -> None:
    raise error()  # a name for it would be a reference cycle of our own


async def coloured(error: Make) -> None:
    raise error()


def stream(error: Make) -> Iterator[int]:
    yield 1
    raise error()


async def coloured_stream(error: Make) -> AsyncIterator[int]:
    yield 1
    raise error()


def block(breaker: Any, error: Make) -> None:
    with breaker:
        plain(error)


def held(breaker: Any, error: Make) -> None:
    with breaker.acquire():
        plain(error)


async def coloured_block(breaker: Any, error: Make) -> None:
    async with breaker:
        await coloured(error)


async def coloured_held(breaker: Any, error: Make) -> None:
    async with await breaker.acquire():
        await coloured(error)


class NoBreaker:
    """What the blocks above go through when bare."""

    def acquire(self) -> Any:
        return AwaitedSelf()

    def __enter__(self) -> None: ...
    def __exit__(self, *exc_info: object) -> None: ...
    async def __aenter__(self) -> None: ...
    async def __aexit__(self, *exc_info: object) -> None: ...


class AwaitedSelf(NoBreaker):
    def __await__(self) -> Any:
        yield from ()
        return self


async def listed(iterator: AsyncIterator[int]) -> list[int]:
    return [item async for item in iterator]


Way = Callable[[Any, Make], Any]
NONE = NoBreaker()

# name: (asynchronous, bare call, call through the breaker, how many frames more)
WAYS: dict[str, tuple[bool, Way, Way, int]] = {
    "decorated": (False, lambda cb, error: plain(error), lambda cb, error: cb(plain)(error), 1),
    "call": (False, lambda cb, error: plain(error), lambda cb, error: cb.call(plain, error), 1),
    "generator": (False, lambda cb, error: list(stream(error)), lambda cb, error: list(cb(stream)(error)), 1),
    "block": (False, lambda cb, error: block(NONE, error), lambda cb, error: block(cb, error), 0),
    "acquired": (False, lambda cb, error: held(NONE, error), lambda cb, error: held(cb, error), 0),
    "async decorated": (True, lambda cb, error: coloured(error), lambda cb, error: cb(coloured)(error), 1),
    "async call": (True, lambda cb, error: coloured(error), lambda cb, error: cb.call(coloured, error), 1),
    "async generator": (
        True,
        lambda cb, error: listed(coloured_stream(error)),
        lambda cb, error: listed(cb(coloured_stream)(error)),
        1,
    ),
    "async block": (
        True,
        lambda cb, error: coloured_block(NONE, error),
        lambda cb, error: coloured_block(cb, error),
        0,
    ),
    "async acquired": (
        True,
        lambda cb, error: coloured_held(NONE, error),
        lambda cb, error: coloured_held(cb, error),
        0,
    ),
}
ways = pytest.mark.parametrize(("asynchronous", "bare", "protected", "more"), WAYS.values(), ids=WAYS.keys())


def run(asynchronous: bool, way: Way, breaker: Any, error: Make) -> BaseException:
    """Make the call and give back what it raised."""
    try:
        if asynchronous:
            asyncio.run(awaited(way, breaker, error))
        else:
            way(breaker, error)
    except BaseException as raised:
        return raised
    raise AssertionError("nothing was raised")


async def awaited(way: Way, breaker: Any, error: Make) -> None:
    await way(breaker, error)


def frames(trace: TracebackType | None) -> list[str]:
    return [frame.name for frame in traceback.extract_tb(trace)]


@ways
@pytest.mark.parametrize("kind", [Failure, KeyboardInterrupt, asyncio.CancelledError])
def test_the_traceback_gains_one_frame_at_most(
    asynchronous: bool, bare: Way, protected: Way, more: int, kind: type[BaseException]
) -> None:
    """The very exception arrives, with the wrapper's own frame in its traceback, and with none from a block."""
    if asynchronous and kind is not Failure:
        return  # the loop has its own way with those
    expected = frames(run(asynchronous, bare, None, kind).__traceback__)
    error = kind("x")
    raised = run(asynchronous, protected, make(asynchronous), lambda: error)
    assert raised is error
    assert len(frames(raised.__traceback__)) == len(expected) + more, frames(raised.__traceback__)
    assert (raised.__context__, raised.__cause__) == (None, None)


def sorting(error: Exception) -> bool:
    """A tracker that tells errors apart as handlers do."""
    try:
        raise error
    except Failure:
        return True


def raising(error: Exception) -> bool:
    """A tracker that does not come to an answer."""
    raise error


@ways
@pytest.mark.parametrize(
    "rules",
    [
        {"listeners": [EventRecorder()]},
        {"tracker": lambda error: False},
        {"tracker": sorting},
        {"tracker": raising},
    ],
    ids=str,
)
def test_it_gains_no_more_when_the_call_is_heard_or_ignored(
    asynchronous: bool, bare: Way, protected: Way, more: int, rules: dict[str, Any]
) -> None:
    """Listeners, and what the tracker says, leave no frame."""
    expected = frames(run(asynchronous, bare, None, Failure).__traceback__)
    raised = run(asynchronous, protected, make(asynchronous, **rules), Failure)
    assert len(frames(raised.__traceback__)) == len(expected) + more, frames(raised.__traceback__)


def test_an_error_thrown_into_a_generator_gains_one_frame_at_most() -> None:
    """`throw` hands it on from the wrapper's one frame."""

    def receive() -> Iterator[int]:
        yield 1

    def thrown(generator: Any) -> int:
        next(generator)
        try:
            generator.throw(Failure())
        except Failure as error:
            return len(frames(error.__traceback__))
        raise AssertionError

    assert thrown(make()(receive)()) == thrown(receive()) + 1


def test_an_error_thrown_into_an_async_generator_gains_one_frame_at_most() -> None:
    """`athrow` as well, though the wrapper has it in hands before it hands it on."""

    async def receive() -> AsyncIterator[int]:
        yield 1

    async def thrown(generator: Any) -> int:
        await anext(generator)
        try:
            await generator.athrow(Failure())
        except Failure as error:
            return len(frames(error.__traceback__))
        raise AssertionError

    assert asyncio.run(thrown(make(True)(receive)())) == asyncio.run(thrown(receive())) + 1


@ways
def test_the_chain_of_causes_is_left_alone(asynchronous: bool, bare: Way, protected: Way, more: int) -> None:
    """An error that was raised from another keeps its cause and its context."""
    cause, context = OSError("cause"), KeyError("context")
    error = Failure()
    error.__cause__, error.__context__ = cause, context
    raised = run(asynchronous, protected, make(asynchronous), lambda: error)
    assert (raised.__cause__, raised.__context__) == (cause, context)
    assert raised.__suppress_context__


@ways
def test_a_refusal_is_new_each_time(asynchronous: bool, bare: Way, protected: Way, more: int) -> None:
    """No exception object is raised again and again: each refusal has a short traceback of its own."""
    breaker = make(asynchronous, tripper=FailureStreak(1))
    run(asynchronous, protected, breaker, Failure)
    refusals = [run(asynchronous, protected, breaker, Failure) for _ in range(20)]
    assert all(isinstance(refusal, CallNotPermittedError) for refusal in refusals)
    assert len({id(refusal) for refusal in refusals}) == 20
    assert len({len(frames(refusal.__traceback__)) for refusal in refusals}) == 1
    assert {refusal.__context__ for refusal in refusals} == {None}


# -- reference cycles -----------------------------------------------------------------------------------------------


@contextmanager
def no_garbage() -> Iterator[None]:
    """What happens within leaves nothing for the collector to find."""
    gc.collect()
    gc.disable()
    try:
        yield
        assert gc.collect() == 0
    finally:
        gc.enable()


def stepped(asynchronous: bool, way: Way, breaker: Any, error: Make) -> None:
    """One call without an event loop, which leaves garbage of its own."""
    try:
        work = way(breaker, error)
        if asynchronous:
            try:
                work.send(None)
            finally:
                work.close()
    except Exception:
        pass
    else:
        raise AssertionError("nothing was raised")


RULES: dict[str, dict[str, Any]] = {
    "counted": {},
    "heard": {"listeners": [lambda event: None]},
    "ignored": {"tracker": lambda error: False},
    "opening": {"tripper": FailureStreak(1), "retry": Cooldown(0), "permit": EveryCall()},
    "refused": {"tripper": FailureStreak(1)},
    "told and refused": {"tripper": FailureStreak(1), "listeners": [EventRecorder()]},
}


@ways
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES.keys())
def test_no_call_leaves_a_reference_cycle(
    asynchronous: bool, bare: Way, protected: Way, more: int, rules: dict[str, Any]
) -> None:
    """Failures and refusals are freed at once, with all that their frames held."""
    breaker = make(asynchronous, **rules)
    for _ in range(2):
        stepped(asynchronous, protected, breaker, Failure)
    with no_garbage():
        for _ in range(5):
            stepped(asynchronous, protected, breaker, Failure)


@ways
@pytest.mark.parametrize("hears", [STATES_ONLY, (Event,)], ids=["quiet", "heard"])
def test_an_error_lives_no_longer_than_its_handler(
    asynchronous: bool, bare: Way, protected: Way, more: int, hears: tuple[type[Event], ...]
) -> None:
    """Neither the breaker, nor the window, nor an event that is kept holds it."""
    recorder = EventRecorder(*hears)
    breaker = make(asynchronous, listeners=[recorder], tripper=FailureStreak(2))
    alive: list[weakref.ref[Failure]] = []

    class Watched(Failure):
        def __init__(self) -> None:
            alive.append(weakref.ref(self))

    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            stepped(asynchronous, protected, breaker, Watched)
            assert alive[-1]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_no_fallback_leaves_a_reference_cycle(asynchronous: bool) -> None:
    """Neither one that answers nor one that raises."""

    def refail(error: Exception) -> None:
        raise Failure

    breaker = make(asynchronous)
    function = coloured if asynchronous else plain
    answered: Way = lambda cb, error: cb(fallback=lambda seen: 1 / 0)(function)(error)  # noqa: E731
    called: Way = lambda cb, error: cb.call_with_fallback(function, refail, error)  # noqa: E731
    for way in (answered, called):
        stepped(asynchronous, way, breaker, Failure)
        with no_garbage():
            stepped(asynchronous, way, breaker, Failure)


def test_a_returned_failure_is_not_kept() -> None:
    """A value that a tracker judged lives no longer than the caller wants."""

    class Response:
        pass

    recorder = EventRecorder(CallFailed)
    breaker = make(tracker=All() | Returned(lambda value: True), listeners=[recorder])
    seen = weakref.ref(breaker.call(Response))
    assert seen() is None
    assert len(recorder.events_seen) == 1


def test_a_breaker_that_nobody_holds_is_freed() -> None:
    """A decorated function holds its breaker; when both go, so does the circuit."""
    bus = Bus()
    breaker = CircuitBreaker("payments", bus=bus)
    function = breaker(plain)
    alive = weakref.ref(breaker)
    del breaker
    gc.collect()
    assert [circuit.name for circuit in bus.circuits()] == ["payments"]
    del function
    gc.collect()
    assert alive() is None
    assert bus.circuits() == []


@pytest.mark.parametrize("role", ["tracker", "tripper", "permit", "retry", "clock"])
def test_one_error_that_a_rule_raises_for_ever_does_not_grow(role: str) -> None:
    """A rule may raise the same object each time: its traceback ends where it was reported."""
    error = Failure("always the same")

    def failing(*told: object) -> Any:
        raise error

    broken: Any = failing
    if role == "retry":
        broken = SimpleNamespace(wait=failing)
    if role == "clock":
        broken = SimpleNamespace(monotonic=failing, time=failing)
    rules: dict[str, Any] = {"tripper": FailureStreak(1), "retry": Always(), "half_open_timeout": 1e-9}
    breaker = make(**rules | {role: broken})
    for _ in range(3):
        for _ in range(20):
            with suppress(LookupError, CallNotPermittedError):
                breaker.call({}.__getitem__, "missing")
        breaker.reset()
        assert len(frames(error.__traceback__)) <= 5


def test_one_error_that_a_tick_raises_for_ever_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same holds for a listener that keeps time."""
    monkeypatch.setattr("fluxgate._subscription._TICK_AGAIN", 1e-6)
    done = Happening()
    grown: list[int] = []

    class Listener(EventRecorder):
        tick_interval = 1e-6
        error = Failure("always the same")

        def tick(self) -> None:
            grown.append(len(frames(self.error.__traceback__)))
            if len(grown) == 20:
                done.set()
            raise self.error

    with Bus().attach(Listener()):
        assert arrives(done)
    assert max(grown) == 0
