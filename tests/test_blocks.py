"""``with cb:`` and ``async with cb:``: a block is one call, however blocks of one breaker overlap."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from itertools import count, permutations
from typing import Any

import pytest

from fluxgate import AsyncCircuitBreaker, CallNotPermittedError, CountWindow, FailureStreak, TypeOf, _gil
from fluxgate._core import Core
from fluxgate.events import CallCancelled, CallEnded, CallFailed, CallIgnored, CallStarted, CallSucceeded
from tests.faces import ASYNC, STATES_ONLY, SYNC, Circuit, Make, both, finish
from tests.running import PATIENCE, interrupted, restless, together


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


@pytest.fixture(params=[True, False], ids=["gil", "no gil"])
def gil(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether blocks go without the lock, as far as this interpreter lets them."""
    gil = bool(request.param and _gil.GIL)
    monkeypatch.setattr("fluxgate._gil.GIL", gil)
    return gil


def holding(circuit: Circuit) -> Iterator[None]:
    """A generator that is in a block for as long as it waits."""
    with circuit.breaker:
        yield


def held(circuit: Circuit, seconds: float = 0.0) -> Iterator[None]:
    """One that has entered its block, so many seconds ago."""
    generator = holding(circuit)
    next(generator)
    circuit.clock.advance(seconds)
    return generator


def durations(circuit: Circuit) -> list[float]:
    return [duration for _, duration in outcomes(circuit)]


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_blocks_are_left_in_any_order(gil: bool, order: tuple[int, ...]) -> None:
    """Each has its own time, and so has one that comes when some of them have been left."""
    circuit = SYNC()
    first = [held(circuit, seconds) for seconds in (1, 2, 4)]
    second = []
    for index in order:
        next(first[index], None)
        second.append(held(circuit, 8))
    assert durations(circuit) == [(7, 6, 4)[index] + 8 * place for place, index in enumerate(order)]
    for generator in second:
        next(generator, None)
    assert durations(circuit)[3:] == [24, 16, 8]
    assert not circuit.breaker._core.with_blocks


@pytest.mark.parametrize("others", [0, 1, 2])
def test_a_block_that_is_nested_deeply_keeps_its_times(gil: bool, others: int) -> None:
    """Among others that were entered before, the last to be entered is the first to be left."""
    circuit = SYNC()
    waiting = [held(circuit) for _ in range(others)]
    with circuit.breaker:
        circuit.clock.advance(1)
        with circuit.breaker:
            circuit.clock.advance(2)
            late = held(circuit, 8)
            with circuit.breaker:
                circuit.clock.advance(4)
        with circuit.breaker:
            next(late, None)
    assert durations(circuit) == [4, 14, 12, 0, 15]
    for generator in waiting:
        next(generator, None)
    assert durations(circuit)[5:] == [15] * others
    assert not circuit.breaker._core.with_blocks


@pytest.mark.parametrize("others", [0, 1, 2])
def test_a_block_that_is_left_from_elsewhere_is_the_last_one(gil: bool, others: int) -> None:
    """An exit stack that hands over what it has entered, and calls by hand, in whatever frames."""
    circuit = SYNC()
    waiting = [held(circuit, 1) for _ in range(others)]
    with ExitStack() as stack:
        stack.enter_context(circuit.breaker)
        later = stack.pop_all()
    circuit.clock.advance(2)
    assert durations(circuit) == []
    later.close()
    circuit.breaker.__enter__()
    circuit.clock.advance(4)
    together(lambda: circuit.breaker.__exit__(None, None, None))
    assert durations(circuit) == [2, 4]
    for generator in waiting:
        next(generator, None)
    assert durations(circuit)[2:] == [others - index + 6 for index in range(others)]
    assert not circuit.breaker._core.with_blocks


class Owners:
    """Notes who began each call, and whether another than he has settled it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._local = threading.local()
        self._began: dict[Any, object] = {}
        self.mixed_up = 0
        admit, returned = Core.admit, Core.returned

        def admitted(core: Core, nested: bool = True) -> Any:
            stamp = admit(core, nested)
            self._began[stamp] = self._local.who
            return stamp

        def settled(core: Core, stamp: Any, *details: Any) -> None:
            self.mixed_up += self._began.pop(stamp) != self._local.who
            returned(core, stamp, *details)

        monkeypatch.setattr(Core, "admit", admitted)
        monkeypatch.setattr(Core, "returned", settled)

    @contextmanager
    def acting(self, who: object) -> Iterator[None]:
        before = getattr(self._local, "who", None)
        self._local.who = who
        yield
        self._local.who = before

    @property
    def unsettled(self) -> int:
        return len(self._began)


def test_threads_that_overlap_keep_to_themselves(gil: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone, nested or among others, as it comes: each thread settles the calls that it began."""
    circuit, owners = SYNC(), Owners(monkeypatch)

    def work() -> None:
        with owners.acting(threading.get_ident()):
            for number in range(300):
                with circuit.breaker:
                    if number % 3 == 0:
                        with circuit.breaker:
                            pass
                    elif number % 3 == 1:
                        list(holding(circuit))

    with restless():
        together(*[work] * 4)
    assert (owners.mixed_up, owners.unsettled) == (0, 0)
    assert not circuit.breaker._core.with_blocks


def test_threads_lose_no_block_in_the_fast_lane(gil: bool) -> None:
    """Where nobody hears of calls, as many are counted."""
    circuit = SYNC(hears=STATES_ONLY, clock=time, window=CountWindow(10_000))

    def work() -> None:
        for _ in range(1_000):
            with circuit.breaker:
                pass

    with restless():
        together(*[work] * 4)
    assert circuit.metrics.total_count == 4_000
    assert not circuit.breaker._core.with_blocks


def whatever(owners: Owners, circuit: Circuit, waiting: list[Iterator[None]]) -> dict[str, Callable[[], object]]:
    """What a signal handler or a finalizer may do with blocks of the breaker."""

    def enters_and_leaves() -> None:
        with owners.acting("handler"), circuit.breaker, circuit.breaker:
            pass

    def leaves() -> None:
        with owners.acting("waiting"):
            next(waiting.pop(), None)

    def enters() -> None:
        with owners.acting("waiting"):
            waiting.append(held(circuit))

    def swaps() -> None:
        leaves()
        enters()

    return {each.__name__: each for each in (enters_and_leaves, leaves, enters, swaps)}


@pytest.mark.parametrize("do", ["enters_and_leaves", "leaves", "enters", "swaps"])
@pytest.mark.parametrize("others", [1, 2])
@pytest.mark.parametrize("nested", [False, True])
def test_blocks_may_come_and_go_at_any_step_of_another(
    gil: bool, nested: bool, others: int, do: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signal handlers and finalizers use the breaker while it enters and leaves: nobody takes the call of another."""
    for step in count():
        circuit, owners = SYNC(), Owners(monkeypatch)
        waiting: list[Iterator[None]] = []

        def work(circuit: Circuit = circuit, owners: Owners = owners) -> None:
            with owners.acting("work"), circuit.breaker:
                if nested:
                    with circuit.breaker:
                        pass

        handlers = whatever(owners, circuit, waiting)
        for _ in range(others):
            handlers["enters"]()
        came = interrupted(work, step, handlers[do])
        while waiting:
            handlers["leaves"]()
        assert (owners.mixed_up, owners.unsettled) == (0, 0)
        assert not circuit.breaker._core.with_blocks
        monkeypatch.undo()
        if not came:
            assert step > 10
            break


@pytest.mark.parametrize("others", [0, 1])
def test_a_block_may_be_collected_as_another_is_entered(gil: bool, others: int) -> None:
    """The collector may come with anything that is made, and leave a block that was alone."""
    thresholds = gc.get_threshold()
    for number in range(1, 100):
        circuit = SYNC(hears=STATES_ONLY)
        waiting = [held(circuit) for _ in range(others)]
        gc.collect()  # which also drops the dicts and tuples that would be had without the collector
        forgotten: list[Any] = [held(circuit)]
        forgotten.append(forgotten)
        del forgotten
        gc.set_threshold(number)
        try:
            with circuit.breaker:
                pass
        finally:
            gc.set_threshold(*thresholds)
        gc.collect()
        for generator in waiting:
            next(generator, None)
        assert circuit.metrics.total_count == 1 + others
        assert not circuit.breaker._core.with_blocks


def stop() -> None:
    raise KeyboardInterrupt


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # where it meets a finalizer
@pytest.mark.parametrize("others", [0, 1])
def test_an_interrupt_at_any_step_leaves_the_next_block_as_it_should_be(gil: bool, others: int) -> None:
    """Whichever block it hits, those that are open then and come later have their own times."""
    for step in count():
        circuit = SYNC()
        waiting = [held(circuit, 1) for _ in range(others)]

        def work(circuit: Circuit = circuit) -> None:
            with suppress(KeyboardInterrupt), circuit.breaker:
                pass

        came = interrupted(work, step, stop)
        with circuit.breaker:
            circuit.clock.advance(2)
            with circuit.breaker:
                circuit.clock.advance(4)
        for generator in waiting:
            next(generator, None)
        told = durations(circuit)
        assert told.count(0) <= 1
        assert [duration for duration in told if duration] == [4, 6, *[7] * others]
        if not came:
            assert told.count(0) == 1
            break
