"""``with cb:`` and ``async with cb:``: a block is one call, however blocks of one breaker overlap."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from typing import Any

import pytest

from fluxgate import AsyncCircuitBreaker, CallNotPermittedError, FailureStreak, TypeOf
from fluxgate.events import CallCancelled, CallEnded, CallFailed, CallIgnored, CallStarted, CallSucceeded
from tests.faces import ASYNC, SYNC, Circuit, Make, both, finish
from tests.running import PATIENCE, together


async def block(circuit: Circuit, seconds: float = 0.0, error: BaseException | None = None) -> Any:
    """A block of either colour, which takes so long and ends so."""
    if circuit.is_async:
        async with circuit.breaker as entered:
            circuit.clock.advance(seconds)
            if error is not None:
                raise error
    else:
        with circuit.breaker as entered:
            circuit.clock.advance(seconds)
            if error is not None:
                raise error
    return entered


def outcomes(circuit: Circuit) -> list[tuple[type[CallEnded], float]]:
    return [(type(end), end.duration) for end in circuit.seen(CallEnded)]


@both
def test_a_block_is_a_call(make: Make) -> None:
    """Its end is the outcome, its time the duration, and it gives the breaker itself."""
    circuit = make(tracker=~TypeOf(KeyError))
    assert finish(block(circuit, 2)) is circuit.breaker
    for error in (ConnectionError(), KeyError(), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught:
            finish(block(circuit, 1, error))
        assert caught.value is error
    assert outcomes(circuit) == [(CallSucceeded, 2.0), (CallFailed, 1.0), (CallIgnored, 1.0), (CallCancelled, 1.0)]
    assert [start.call_id for start in circuit.seen(CallStarted)] == [end.call_id for end in circuit.seen(CallEnded)]


@both
def test_a_refused_block_does_not_run(make: Make) -> None:
    """The refusal comes from entering, and nothing is left to leave."""
    circuit = make(tripper=FailureStreak(1))
    with pytest.raises(ConnectionError):
        finish(block(circuit, 0, ConnectionError()))
    with pytest.raises(CallNotPermittedError):
        finish(block(circuit, 1, AssertionError("it ran")))
    assert not circuit.breaker._core.with_blocks


@both
def test_blocks_nest(make: Make) -> None:
    """The inner block ends first, and each has its own time."""
    circuit = make()

    async def nested() -> None:
        if circuit.is_async:
            async with circuit.breaker:
                circuit.clock.advance(1)
                async with circuit.breaker:
                    circuit.clock.advance(2)
                await block(circuit, 4)
        else:
            with circuit.breaker:
                circuit.clock.advance(1)
                with circuit.breaker:
                    circuit.clock.advance(2)
                await block(circuit, 4)

    finish(nested())
    assert [duration for _, duration in outcomes(circuit)] == [2.0, 4.0, 7.0]
    assert not circuit.breaker._core.with_blocks


@both
def test_leaving_by_return_break_and_continue_is_a_success(make: Make) -> None:
    """Only an exception is a failure."""
    circuit = make()

    async def leaves() -> str:
        for number in range(3):
            if circuit.is_async:
                async with circuit.breaker:
                    if number == 0:
                        continue
                    return "returned"
            else:
                with circuit.breaker:
                    if number == 0:
                        continue
                    return "returned"
        return "never"

    assert finish(leaves()) == "returned"
    assert outcomes(circuit) == [(CallSucceeded, 0.0), (CallSucceeded, 0.0)]


def late_and_early(circuit: Circuit) -> list[tuple[float, bool]]:
    """The duration of each end, and whether it was stale, in order."""
    return [(end.duration, end.stale) for end in circuit.seen(CallEnded)]


def test_blocks_in_threads_keep_to_themselves() -> None:
    """The block that was entered last leaves last: each settles its own call, whatever the order."""
    circuit = SYNC()
    entered, leave = threading.Event(), threading.Event()

    def one() -> None:
        with circuit.breaker:
            circuit.clock.advance(1)
            entered.set()
            assert leave.wait(PATIENCE)

    def other() -> None:
        assert entered.wait(PATIENCE)
        circuit.steer("reset")
        with circuit.breaker:
            leave.set()
            thread.join(PATIENCE)

    thread = threading.Thread(target=one)
    thread.start()
    other()
    assert late_and_early(circuit) == [(1.0, True), (0.0, False)]


def test_blocks_in_tasks_keep_to_themselves() -> None:
    """The same for tasks of one loop, where all run in one thread."""
    circuit = ASYNC()

    async def main() -> None:
        entered, left = asyncio.Event(), asyncio.Event()

        async def one() -> None:
            async with circuit.breaker:
                circuit.clock.advance(1)
                entered.set()
                await asyncio.sleep(0)
            left.set()

        async def other() -> None:
            await entered.wait()
            await circuit.breaker.reset()
            async with circuit.breaker:
                await left.wait()

        await asyncio.gather(one(), other())

    asyncio.run(main())
    assert late_and_early(circuit) == [(1.0, True), (0.0, False)]


def test_a_block_in_a_generator_may_be_left_in_another_thread() -> None:
    """A block belongs to the frame that entered it, wherever that frame goes on."""
    circuit = SYNC()

    def produce() -> Iterator[int]:
        with circuit.breaker:
            yield 1

    one, two = produce(), produce()
    next(one)
    circuit.clock.advance(1)
    circuit.steer("reset")
    next(two)

    def end() -> None:
        assert list(one) == []

    together(end)
    assert list(two) == []
    assert late_and_early(circuit) == [(1.0, True), (0.0, False)]


def test_a_block_in_a_generator_that_is_dropped_is_cancelled() -> None:
    """The collector closes it."""
    circuit = SYNC()

    def produce() -> Iterator[int]:
        with circuit.breaker:
            yield 1

    generator = produce()
    next(generator)
    del generator
    gc.collect()
    assert outcomes(circuit) == [(CallCancelled, 0.0)]


def test_a_block_in_a_context_manager_keeps_to_itself() -> None:
    """``@contextmanager`` functions that use the breaker overlap in any order."""
    circuit = SYNC()

    @contextmanager
    def session() -> Iterator[None]:
        with circuit.breaker:
            yield

    one, two = session(), session()
    one.__enter__()
    circuit.clock.advance(1)
    circuit.steer("reset")
    two.__enter__()
    one.__exit__(None, None, None)
    two.__exit__(None, None, None)
    assert late_and_early(circuit) == [(1.0, True), (0.0, False)]


@both
def test_an_exit_stack_enters_and_leaves_it(make: Make) -> None:
    """Like any context manager, more than once, and last in first out."""
    circuit = make()

    async def stacked() -> None:
        if circuit.is_async:
            async with AsyncExitStack() as stack:
                assert await stack.enter_async_context(circuit.breaker) is circuit.breaker
                circuit.clock.advance(1)
                await stack.enter_async_context(circuit.breaker)
                circuit.clock.advance(2)
        else:
            with ExitStack() as plain:
                assert plain.enter_context(circuit.breaker) is circuit.breaker
                circuit.clock.advance(1)
                plain.enter_context(circuit.breaker)
                circuit.clock.advance(2)

    finish(stacked())
    assert outcomes(circuit) == [(CallSucceeded, 2.0), (CallSucceeded, 3.0)]
    assert not circuit.breaker._core.with_blocks


@both
def test_an_exit_stack_hands_over_the_error(make: Make) -> None:
    """A block that ends with an error through a stack is a failure, though somebody further out swallows it."""
    circuit = make()

    async def stacked() -> None:
        if circuit.is_async:
            async with AsyncExitStack() as stack:
                stack.enter_context(suppress(ConnectionError))
                await stack.enter_async_context(circuit.breaker)
                raise ConnectionError
        else:
            with ExitStack() as plain:
                plain.enter_context(suppress(ConnectionError))
                plain.enter_context(circuit.breaker)
                raise ConnectionError

    finish(stacked())
    assert outcomes(circuit) == [(CallFailed, 0.0)]


def test_exit_stacks_in_threads_keep_to_themselves() -> None:
    """A stack enters from a frame of its own, and still settles the call that its thread began."""
    circuit = SYNC()
    entered, leave = threading.Event(), threading.Event()

    def one() -> None:
        with ExitStack() as stack:
            stack.enter_context(circuit.breaker)
            circuit.clock.advance(1)
            entered.set()
            assert leave.wait(PATIENCE)

    def other() -> None:
        assert entered.wait(PATIENCE)
        circuit.steer("reset")
        with ExitStack() as stack:
            stack.enter_context(circuit.breaker)
            leave.set()
            thread.join(PATIENCE)

    thread = threading.Thread(target=one)
    thread.start()
    other()
    assert late_and_early(circuit) == [(1.0, True), (0.0, False)]


def test_exit_stacks_in_tasks_keep_to_themselves() -> None:
    """The same for tasks of one loop."""
    circuit = ASYNC()

    async def main() -> None:
        entered, left = asyncio.Event(), asyncio.Event()

        async def one() -> None:
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(circuit.breaker)
                circuit.clock.advance(1)
                entered.set()
                await asyncio.sleep(0)
            left.set()

        async def other() -> None:
            await entered.wait()
            await circuit.breaker.reset()
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(circuit.breaker)
                await left.wait()

        await asyncio.gather(one(), other())

    asyncio.run(main())
    assert late_and_early(circuit) == [(1.0, True), (0.0, False)]


def test_a_stack_does_not_take_the_call_of_a_block() -> None:
    """A block that is open meanwhile keeps its own call."""
    circuit = SYNC()
    with ExitStack() as stack:
        stack.enter_context(circuit.breaker)
        circuit.clock.advance(1)
        circuit.steer("reset")
        with circuit.breaker:
            stack.close()
            assert late_and_early(circuit) == [(1.0, True)]
            circuit.clock.advance(2)
    assert late_and_early(circuit) == [(1.0, True), (2.0, False)]


def test_many_threads_and_stacks_lose_no_call() -> None:
    """Blocks and stacks from many threads: as many ends as starts, and nothing is left behind."""
    circuit = SYNC()

    def work() -> None:
        for _ in range(50):
            with circuit.breaker, ExitStack() as stack:
                stack.enter_context(circuit.breaker)

    together(*[work] * 4)
    assert not circuit.breaker._core.with_blocks
    starts = sorted(start.call_id for start in circuit.seen(CallStarted))
    assert starts == sorted(end.call_id for end in circuit.seen(CallEnded))
    assert len(starts) == 400


def test_an_async_block_may_be_entered_in_a_task_of_its_own() -> None:
    """`wait_for` around entering runs it in another frame: the block is still settled once."""
    circuit = ASYNC()

    async def main() -> None:
        await asyncio.wait_for(circuit.breaker.__aenter__(), PATIENCE)
        await circuit.breaker.__aexit__(None, None, None)

    asyncio.run(main())
    assert outcomes(circuit) == [(CallSucceeded, 0.0)]


def test_an_async_block_that_is_cancelled_is_a_cancellation() -> None:
    """A task that is stopped within it."""
    circuit = ASYNC(tripper=FailureStreak(1))

    async def wait(started: asyncio.Event) -> None:
        async with circuit.breaker:
            started.set()
            await asyncio.Event().wait()

    async def main() -> None:
        started = asyncio.Event()
        task = asyncio.create_task(wait(started))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert outcomes(circuit) == [(CallCancelled, 0.0)]
    assert circuit.state == "closed"


def test_a_timeout_within_a_block_is_a_failure() -> None:
    """What `asyncio.timeout` makes of a cancellation is an error like any other."""
    circuit = ASYNC()

    async def main() -> None:
        async with circuit.breaker, asyncio.timeout(0):
            await asyncio.sleep(PATIENCE)

    with pytest.raises(TimeoutError):
        asyncio.run(main())
    assert [kind for kind, _ in outcomes(circuit)] == [CallFailed]


def test_the_colours_do_not_mix() -> None:
    """A sync block is no async one."""
    sync, coloured = SYNC().breaker, ASYNC().breaker
    assert not hasattr(sync, "__aenter__")
    assert not hasattr(coloured, "__enter__")
    assert isinstance(coloured, AsyncCircuitBreaker)


@both
def test_a_block_can_be_a_probe(make: Make) -> None:
    """It takes a place, and its end decides."""
    circuit = make(tripper=FailureStreak(1), permit=lambda elapsed: True, max_half_open_calls=1)
    circuit.fail()
    circuit.clock.advance(60)
    finish(block(circuit))
    assert circuit.state == "closed"
