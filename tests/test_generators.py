"""Generators and async generators: protected for the length of their iteration, by the whole of their protocol."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextlib import aclosing, asynccontextmanager, closing, contextmanager
from threading import Thread
from typing import Any

import pytest

from fluxgate import CallNotPermittedError, FailureStreak, Returned
from fluxgate.events import CallCancelled, CallEnded, CallFailed, CallRejected, CallStarted, CallSucceeded
from fluxgate.trackers import All
from tests.faces import ASYNC, SYNC, Circuit, Make, both, finish


class Stream:
    """A protected generator function of either colour, driven by the same words."""

    def __init__(self, circuit: Circuit) -> None:
        self.circuit = circuit
        self.log: list[Any] = []
        self.iterator: Any = None

    def start(self, *items: Any) -> Stream:
        self.iterator = self.circuit.breaker(self.aproduce if self.circuit.is_async else self.produce)(*items)
        return self

    def produce(self, *items: Any) -> Generator[Any, Any, str]:
        try:
            for item in items:
                try:
                    self.log.append((yield item))
                except KeyError as error:
                    self.log.append(error)
                    yield "handled"
            return "the end"
        finally:
            self.log.append("closed")

    async def aproduce(self, *items: Any) -> AsyncGenerator[Any, Any]:
        try:
            for item in items:
                try:
                    self.log.append((yield item))
                except KeyError as error:
                    self.log.append(error)
                    yield "handled"
        finally:
            self.log.append("closed")

    def _do(self, name: str, *arguments: Any) -> Any:
        prefix = "a" if self.circuit.is_async else ""
        step = getattr(self.iterator, prefix + name)(*arguments)
        return finish(awaiting(step)) if self.circuit.is_async else step

    def next(self) -> Any:
        return self.send(None)

    def send(self, value: Any) -> Any:
        return self._do("send", value)

    def throw(self, error: BaseException) -> Any:
        return self._do("throw", error)

    def close(self) -> None:
        self._do("close")

    @property
    def over(self) -> type[Exception]:
        return StopAsyncIteration if self.circuit.is_async else StopIteration


async def awaiting(step: Any) -> Any:
    """What an async generator's methods give is no coroutine; this is."""
    return await step


def ends(circuit: Circuit) -> list[type[CallEnded]]:
    return [type(end) for end in circuit.seen(CallEnded)]


@both
def test_an_iteration_is_one_call(make: Make) -> None:
    """From its first step to its end; between them the call is in flight."""
    circuit = make()
    stream = Stream(circuit).start(1, 2)
    assert circuit.seen(CallStarted) == []
    assert stream.next() == 1
    circuit.clock.advance(2)
    assert stream.next() == 2
    assert len(circuit.seen(CallStarted)) == 1
    assert ends(circuit) == []
    circuit.clock.advance(3)
    with pytest.raises(stream.over):
        stream.next()
    assert [(type(end), end.duration) for end in circuit.seen(CallEnded)] == [(CallSucceeded, 5.0)]
    assert circuit.metrics.total_count == 1


@both
def test_values_are_sent_through(make: Make) -> None:
    """`send` reaches the function, and its answer comes back."""
    stream = Stream(make()).start("a", "b")
    assert stream.next() == "a"
    assert stream.send(5) == "b"
    with pytest.raises(stream.over):
        stream.send(6)
    assert stream.log == [5, 6, "closed"]


@both
def test_errors_are_thrown_through(make: Make) -> None:
    """`throw` reaches the function; what it handles goes on, what it lets pass is its failure."""
    circuit = make()
    stream = Stream(circuit).start("a", "b", "c")
    handled, failure = KeyError("k"), ConnectionError("gone")
    stream.next()
    assert stream.throw(handled) == "handled"
    assert stream.next() == "b"
    with pytest.raises(ConnectionError) as caught:
        stream.throw(failure)
    assert caught.value is failure
    assert stream.log == [handled, "closed"]
    assert ends(circuit) == [CallFailed]
    with pytest.raises(stream.over):
        stream.next()


@both
def test_a_throw_before_the_first_step_is_no_call(make: Make) -> None:
    """Nothing was admitted, so nothing ends."""
    circuit = make()
    stream = Stream(circuit).start(1)
    with pytest.raises(ConnectionError):
        stream.throw(ConnectionError())
    assert ends(circuit) == []
    assert circuit.seen(CallStarted) == []
    assert stream.log == []


@both
def test_a_close_before_the_first_step_is_no_call(make: Make) -> None:
    """A generator that is never iterated was never a call."""
    circuit = make()
    stream = Stream(circuit).start(1)
    stream.close()
    with pytest.raises(stream.over):
        stream.next()
    assert circuit.seen(CallStarted) == []


@both
def test_closing_half_way_is_a_cancellation(make: Make) -> None:
    """The consumer had enough: neither success nor failure, and the function's own cleaning up has run."""
    circuit = make()
    stream = Stream(circuit).start(1, 2)
    stream.next()
    stream.close()
    assert stream.log == ["closed"]
    assert ends(circuit) == [CallCancelled]
    assert circuit.metrics.total_count == 0
    stream.close()
    assert len(ends(circuit)) == 1


@both
def test_an_error_in_the_middle_is_a_failure(make: Make) -> None:
    """Even after values were given."""
    circuit = make(tripper=FailureStreak(1))
    failure = ConnectionError("gone")

    def produce() -> Iterator[int]:
        yield 1
        raise failure

    async def aproduce() -> AsyncIterator[int]:
        yield 1
        raise failure

    stream = Stream(circuit)
    stream.iterator = circuit.breaker(aproduce if circuit.is_async else produce)()
    assert stream.next() == 1
    assert circuit.state == "closed"
    with pytest.raises(ConnectionError) as caught:
        stream.next()
    assert caught.value is failure
    assert circuit.state == "open"


@both
def test_a_refusal_comes_with_the_first_step(make: Make) -> None:
    """The function's body never begins."""
    circuit = make()
    stream = Stream(circuit).start(1)
    circuit.steer("force_open")
    with pytest.raises(CallNotPermittedError):
        stream.next()
    assert stream.log == []
    assert len(circuit.seen(CallRejected)) == 1
    with pytest.raises(stream.over):
        stream.next()


@both
def test_a_generator_that_runs_on_when_closed_is_told_so(make: Make) -> None:
    """Python's own error about a generator that ignores GeneratorExit passes through."""
    circuit = make()

    def stubborn() -> Iterator[int]:
        try:
            yield 1
        except GeneratorExit:
            yield 2

    async def astubborn() -> AsyncIterator[int]:
        try:
            yield 1
        except GeneratorExit:
            yield 2

    stream = Stream(circuit)
    stream.iterator = circuit.breaker(astubborn if circuit.is_async else stubborn)()
    stream.next()
    with pytest.raises(RuntimeError, match="ignored GeneratorExit"):
        stream.close()
    assert len(ends(circuit)) == 1


@both
def test_a_generator_that_fails_while_it_is_closed_says_so(make: Make) -> None:
    """The error of its cleaning up reaches whoever closes it, and is a failure."""
    circuit = make()

    def dirty() -> Iterator[int]:
        try:
            yield 1
        finally:
            raise ConnectionError("cannot clean up")

    async def adirty() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            raise ConnectionError("cannot clean up")

    stream = Stream(circuit)
    stream.iterator = circuit.breaker(adirty if circuit.is_async else dirty)()
    stream.next()
    with pytest.raises(ConnectionError, match="cannot clean up"):
        stream.close()
    assert len(ends(circuit)) == 1


@both
def test_an_iteration_across_a_change_of_state_is_stale(make: Make) -> None:
    """It was admitted in an earlier generation, and decides nothing in a later one."""
    circuit = make(tripper=FailureStreak(1))
    stream = Stream(circuit).start(1)
    stream.next()
    circuit.steer("reset")
    with pytest.raises(ConnectionError):
        stream.throw(ConnectionError())
    assert circuit.state == "closed"
    assert circuit.seen(CallFailed)[0].stale


@both
def test_iterations_run_side_by_side(make: Make) -> None:
    """Each is a call of its own."""
    circuit = make()
    one, two = Stream(circuit).start(1), Stream(circuit).start(2)
    assert (one.next(), two.next()) == (1, 2)
    with pytest.raises(ConnectionError):
        one.throw(ConnectionError())
    with pytest.raises(two.over):
        two.next()
    first, second = (start.call_id for start in circuit.seen(CallStarted))
    ends = [(type(end), end.call_id) for end in circuit.seen(CallEnded)]
    assert ends == [(CallFailed, first), (CallSucceeded, second)]


def test_a_return_value_comes_through() -> None:
    """``yield from`` gives what the function returns, and a `Returned` tracker judges it."""
    circuit = SYNC(tracker=All() | Returned(lambda value: value == "the end"))

    def consume() -> Generator[Any, Any, Any]:
        return (yield from Stream(circuit).start(1).iterator)

    consumer = consume()
    assert next(consumer) == 1
    with pytest.raises(StopIteration) as stop:
        next(consumer)
    assert stop.value.value == "the end"
    assert ends(circuit) == [CallFailed]


def test_an_async_generator_has_no_value_to_judge() -> None:
    """It returns nothing, so that no predicate is asked about ``None``."""
    asked: list[object] = []

    def judge(value: object) -> bool:
        asked.append(value)
        return True

    circuit = ASYNC(tracker=All() | Returned(judge))
    stream = Stream(circuit).start(1)
    stream.next()
    with pytest.raises(StopAsyncIteration):
        stream.next()
    assert asked == []
    assert ends(circuit) == [CallSucceeded]


@both
def test_what_a_stop_iteration_inside_becomes_is_python_s_choice(make: Make) -> None:
    """A stray StopIteration in the body is the RuntimeError that it is without a breaker."""
    circuit = make()

    def stray() -> Iterator[int]:
        yield 1
        raise StopIteration

    async def astray() -> AsyncIterator[int]:
        yield 1
        raise StopAsyncIteration

    stream = Stream(circuit)
    stream.iterator = circuit.breaker(astray if circuit.is_async else stray)()
    stream.next()
    with pytest.raises(RuntimeError, match=r"raised Stop(Async)?Iteration"):
        stream.next()
    assert ends(circuit) == [CallFailed]


def test_a_for_loop_that_breaks_cancels_when_the_generator_goes() -> None:
    """Nobody closes it by hand: the collector does."""
    circuit = SYNC()
    stream = Stream(circuit)
    for _ in stream.start(1, 2).iterator:
        break
    assert ends(circuit) == []
    stream.iterator = None
    gc.collect()
    assert stream.log == ["closed"]
    assert ends(circuit) == [CallCancelled]


def test_an_async_for_loop_that_breaks_cancels_with_the_loop() -> None:
    """The event loop closes what was left open, the function's own cleaning up included."""
    circuit = ASYNC()
    stream = Stream(circuit)

    async def main() -> None:
        async for _ in stream.start(1, 2).iterator:
            break
        assert ends(circuit) == []

    asyncio.run(main())
    assert stream.log == ["closed"]
    assert ends(circuit) == [CallCancelled]


def test_an_async_iteration_that_is_cancelled_is_a_cancellation() -> None:
    """A task that waits for the next item is stopped: the function sees it, and the call is no failure."""
    circuit = ASYNC(tripper=FailureStreak(1))
    log: list[str] = []

    async def endless() -> AsyncIterator[int]:
        yield 1
        try:
            await asyncio.Event().wait()
        finally:
            log.append("closed")

    async def consume() -> None:
        async for _ in circuit.breaker(endless)():
            pass

    async def main() -> None:
        task = asyncio.create_task(consume())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert log == ["closed"]
    assert ends(circuit) == [CallCancelled]
    assert circuit.state == "closed"


def test_an_async_generator_awaits_between_its_items() -> None:
    """Several iterations interleave in one loop."""
    circuit = ASYNC()

    async def ticks(count: int) -> AsyncIterator[int]:
        for number in range(count):
            await asyncio.sleep(0)
            yield number

    async def consume(count: int) -> list[int]:
        return [number async for number in circuit.breaker(ticks)(count)]

    async def main() -> list[list[int]]:
        return await asyncio.gather(*(consume(count) for count in range(5)))

    assert asyncio.run(main()) == [list(range(count)) for count in range(5)]
    assert ends(circuit) == [CallSucceeded] * 5


def test_a_generator_may_be_resumed_in_another_thread() -> None:
    """The call belongs to the iteration, not to a thread."""
    circuit = SYNC()
    stream = Stream(circuit).start(1, 2)
    seen: list[int] = [stream.next()]
    thread = Thread(target=lambda: seen.append(stream.next()))
    thread.start()
    thread.join(10)
    with pytest.raises(StopIteration):
        stream.next()
    assert seen == [1, 2]
    assert ends(circuit) == [CallSucceeded]


@both
def test_a_context_manager_can_be_made_of_it(make: Make) -> None:
    """``@contextmanager`` around a protected generator: the block's error is thrown in and is its failure."""
    circuit = make()

    def session() -> Iterator[int]:
        yield 5

    async def asession() -> AsyncIterator[int]:
        yield 5

    async def use(error: Exception | None) -> None:
        if circuit.is_async:
            async with asynccontextmanager(circuit.breaker(asession))() as value:
                assert value == 5
                if error is not None:
                    raise error
        else:
            with contextmanager(circuit.breaker(session))() as value:
                assert value == 5
                if error is not None:
                    raise error

    asyncio.run(use(None))
    failure = ConnectionError()
    with pytest.raises(ConnectionError) as caught:
        asyncio.run(use(failure))
    assert caught.value is failure
    assert ends(circuit) == [CallSucceeded, CallFailed]


@both
def test_closing_helpers_close_it(make: Make) -> None:
    """`closing` and `aclosing` find what they need."""
    circuit = make()
    stream = Stream(circuit).start(1, 2)

    async def use() -> None:
        if circuit.is_async:
            async with aclosing(stream.iterator) as items:
                async for _ in items:
                    break
        else:
            with closing(stream.iterator) as items:
                for _ in items:
                    break

    asyncio.run(use())
    assert stream.log == ["closed"]
    assert ends(circuit) == [CallCancelled]


@both
def test_a_probe_may_be_an_iteration(make: Make) -> None:
    """It holds its place until it ends, and decides then."""
    circuit = make(tripper=FailureStreak(1), permit=lambda elapsed: True, max_half_open_calls=1)
    circuit.fail()
    circuit.clock.advance(60)
    stream = Stream(circuit).start(1)
    stream.next()
    assert (circuit.state, circuit.info.probes) == ("half_open", 1)
    circuit.refused()
    with pytest.raises(stream.over):
        stream.next()
    assert circuit.state == "closed"


@both
def test_methods_may_be_generators(make: Make) -> None:
    """``self`` is bound as ever."""
    circuit = make()

    class Client:
        if circuit.is_async:

            @circuit.breaker  # type: ignore[untyped-decorator]
            async def pages(self, count: int) -> AsyncIterator[tuple[Client, int]]:
                for number in range(count):
                    yield self, number
        else:

            @circuit.breaker  # type: ignore[untyped-decorator]
            def pages(self, count: int) -> Iterator[tuple[Client, int]]:
                for number in range(count):
                    yield self, number

    async def listed(pages: Any) -> list[Any]:
        return [page async for page in pages] if circuit.is_async else list(pages)

    client = Client()
    assert finish(listed(client.pages(2))) == [(client, 0), (client, 1)]


@both
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_the_protocol_is_that_of_a_bare_generator(make: Make, steps: int) -> None:
    """Whatever is done after however many steps, the protected generator answers as a bare one does."""

    def answer(stream: Stream, action: Callable[[Stream], Any]) -> tuple[Any, ...]:
        try:
            for _ in range(steps):
                stream.next()
            return "gave", action(stream)
        except (Exception, GeneratorExit) as error:
            return type(error), str(error)

    def close_twice(stream: Stream) -> None:
        stream.close()
        stream.close()

    actions: list[Callable[[Stream], Any]] = [
        Stream.next,
        lambda stream: stream.send(5),
        lambda stream: stream.throw(KeyError("k")),
        lambda stream: stream.throw(GeneratorExit()),
        lambda stream: stream.throw(ConnectionError("gone")),
        Stream.close,
        close_twice,
    ]
    for action in actions:
        protected = Stream(make()).start(1)
        bare = Stream(make())
        bare.iterator = (bare.aproduce if bare.circuit.is_async else bare.produce)(1)
        assert answer(protected, action) == answer(bare, action)
        assert len(protected.log) == len(bare.log)
