"""What is timed, and how: one sample is the bare call, the measured call and the empty loop, in turn."""

import asyncio
import atexit
import gc
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import cycle, islice, repeat
from threading import Barrier, Thread
from time import perf_counter, thread_time
from typing import Any

from .adapters import Adapter, Function, Lacks, Refusing

Loop = Callable[[int], float]
"""Runs so many iterations; how many seconds of processor time they took the calling thread.

A neighbour's load takes no part in that: in wall time, long stretches would meet more of it than short ones.
"""

STRETCH = 0.025
"""Seconds a stretch of calls lasts at least, so that what is put off falls due within it."""

LONG_STRETCH = 0.3
"""The same where circuits take turns, of which there may be many."""

SHORT_STRETCH = 0.005
"""Seconds the bare call lasts at least: as many of it as of a slow breaker's calls would be over before it is warm."""


def work(value: int) -> int:
    """What is protected: with no work of its own it shows the whole of a breaker's cost."""
    return value


async def async_work(value: int) -> int:
    """As `work`."""
    return value


def flaky(value: int) -> int:
    """Fails for 0."""
    if value:
        return value
    raise Refusing("no")


def refuse(value: int) -> int:
    """The bare equal of a refusal."""
    raise Refusing("no")


ONES: tuple[int, ...] = (1,)
ONE_IN_TEN_IS_ZERO = (1, 1, 1, 1, 0, 1, 1, 1, 1, 1)


def calling(func: Function) -> Loop:
    """Calls that succeed."""

    def run(n: int) -> float:
        values = repeat(1, n)
        started = thread_time()
        for value in values:
            func(value)
        return thread_time() - started

    return run


def trying(func: Function, given: tuple[int, ...]) -> Loop:
    """Calls that may raise."""

    def run(n: int) -> float:
        values = islice(cycle(given), n)
        started = thread_time()
        for value in values:
            try:
                func(value)
            except Exception:
                pass
        return thread_time() - started

    return run


def awaiting(runner: asyncio.Runner, func: Function) -> Loop:
    """Awaited calls, within a running loop."""

    async def run(n: int) -> float:
        values = repeat(1, n)
        started = thread_time()
        for value in values:
            await func(value)
        return thread_time() - started

    return lambda n: runner.run(run(n))


def entering(block: Any, func: Function) -> Loop:
    """Calls within a block of their own."""

    def run(n: int) -> float:
        values = repeat(1, n)
        started = thread_time()
        for value in values:
            with block:
                func(value)
        return thread_time() - started

    def run_anew(n: int) -> float:
        values = repeat(1, n)
        started = thread_time()
        for value in values:
            with block():
                func(value)
        return thread_time() - started

    return run if hasattr(block, "__exit__") else run_anew


def in_turn(functions: list[Function]) -> Loop:
    """Calls of one function after the other."""

    def run(n: int) -> float:
        chosen = islice(cycle(functions), n)
        started = thread_time()
        for func in chosen:
            func(1)
        return thread_time() - started

    return run


def idling(values: Callable[[int], Iterable[Any]] = lambda n: repeat(1, n)) -> Loop:
    """The loop alone."""

    def run(n: int) -> float:
        given = values(n)
        started = thread_time()
        for _ in given:
            pass
        return thread_time() - started

    return run


def _lasting(loop: Loop, seconds: float) -> int:
    """How many iterations last so long."""
    n = 100
    while (took := loop(n)) < seconds:
        n = max(2 * n, int(n * min(seconds / max(took, 1e-9), 100) * 1.1))
    return n


@dataclass
class Timed:
    """Something that a sample can be taken of."""

    measured: Loop
    bare: Loop
    loop: Loop = field(default_factory=idling)
    settle: Callable[[], object] = lambda: None
    """Called before each sample."""
    stretch: float = STRETCH
    iterations: int = 0
    bare_iterations: int = 0
    """Of the bare call and of the loop, if they are more."""

    def warm_up(self) -> None:
        """Get everything into its steady state, and find out how many iterations make a stretch."""
        self.iterations = _lasting(self.measured, self.stretch)
        self.bare_iterations = _lasting(self.bare, SHORT_STRETCH)
        self.loop(self.bare_iterations)
        gc.collect()
        gc.freeze()

    def sample(self, stretches: int = 3) -> dict[str, float]:
        """Seconds a call: bare, and measured, without the loop."""
        if not self.iterations:
            self.warm_up()
        self.settle()
        gc.collect()
        best = {"loop": 1.0, "bare": 1.0, "measured": 1.0}
        for _ in range(stretches):
            for name in best:
                loop: Loop = getattr(self, name)
                n = self.iterations if name == "measured" else max(self.iterations, self.bare_iterations)
                best[name] = min(best[name], loop(n) / n)
        return {name: best[name] - best["loop"] for name in ("bare", "measured")}


@dataclass
class Threads:
    """Throughput of several threads beside that of one, and whether the circuit counts each call."""

    adapter: Adapter
    counts: tuple[int, ...] = (1, 2, 4, 8)
    stretch: float = 2 * STRETCH
    counted: int = 2_000
    """Calls a thread whose count is compared."""

    def warm_up(self) -> None:
        """Make the circuit, or say that the library has none for this."""
        self.func = self.adapter.decorate(self.adapter.breaker(), work)
        rate = 2_000 / calling(self.func)(2_000)
        self.calls = max(self.counts) * max(int(rate * self.stretch / max(self.counts)), 100)
        self.drift = self._drift()

    def sample(self, stretches: int = 3) -> dict[str, float]:
        """Calls a second by number of threads, and how many calls the circuit has lost or counted twice."""
        gc.collect()
        found: dict[str, float] = {}
        for _ in range(stretches):
            for count in self.counts:
                rate = self.calls / run_in_threads([calling(self.func)] * count, self.calls // count)
                found[str(count)] = max(found.get(str(count), 0.0), rate)
        return found if self.drift is None else {**found, "drift": self.drift}

    def _drift(self) -> int | None:
        """Calls less those counted, made in eight threads that are switched as often as can be."""
        adapter, n = self.adapter, 8 * self.counted
        lost: list[int] = []
        for func, loop, asked in ((work, calling, adapter.calls), (refuse, _refusing, adapter.failures)):
            try:
                breaker = _counting(adapter, n)
                asked(breaker)
            except Lacks:
                continue
            loops = [loop(adapter.decorate(breaker, func))] * 8
            before = sys.getswitchinterval()
            sys.setswitchinterval(1e-5)
            try:
                run_in_threads(loops, self.counted)
            finally:
                sys.setswitchinterval(before)
            lost.append(abs(n - asked(breaker)))
        return max(lost) if lost else None


def _refusing(func: Function) -> Loop:
    return trying(func, ONES)


def _counting(adapter: Adapter, size: int) -> Any:
    try:
        return adapter.counting(size)
    except Lacks:
        return adapter.breaker()


def run_in_threads(loops: list[Loop], n: int) -> float:
    """Run each loop in a thread of its own, all at once; seconds until the last has ended."""
    barrier = Barrier(len(loops) + 1)

    def run(loop: Loop) -> None:
        barrier.wait()
        loop(n)

    threads = [Thread(target=run, args=(loop,)) for loop in loops]
    for thread in threads:
        thread.start()
    barrier.wait()
    started = perf_counter()
    for thread in threads:
        thread.join()
    return perf_counter() - started


_runner: list[asyncio.Runner] = []


def runner() -> asyncio.Runner:
    """The process's event loop."""
    if not _runner:
        _runner.append(asyncio.Runner())
        atexit.register(_runner[0].close)
    return _runner[0]


def success(adapter: Adapter) -> Timed:
    """A call through a closed circuit."""
    return Timed(calling(adapter.decorate(adapter.breaker(), work)), calling(work))


def some_fail(adapter: Adapter) -> Timed:
    """One call in ten fails, and the circuit stays closed."""
    given = ONE_IN_TEN_IS_ZERO
    decorated = adapter.decorate(adapter.breaker(), flaky)
    trying(decorated, given)(1_000)
    decorated(1)  # it is not refused
    return Timed(trying(decorated, given), trying(flaky, given), idling(lambda n: islice(cycle(given), n)))


def rejection(adapter: Adapter) -> Timed:
    """A call that an open circuit refuses, beside a function that raises."""
    loop = idling(lambda n: islice(cycle(ONES), n))
    return Timed(trying(adapter.opened(work), ONES), trying(refuse, ONES), loop)


def async_success(adapter: Adapter) -> Timed:
    """An awaited call through a closed circuit."""
    decorated = adapter.decorate(adapter.async_breaker(), async_work)
    return Timed(awaiting(runner(), decorated), awaiting(runner(), async_work))


def block(adapter: Adapter) -> Timed:
    """The same call within a block."""
    return Timed(entering(adapter.block(adapter.breaker()), work), calling(work))


def time_window(adapter: Adapter) -> Timed:
    """A call through a circuit that looks at the last 60 seconds."""
    return Timed(calling(adapter.decorate(adapter.timing(60), work)), calling(work))


def window(adapter: Adapter, size: int) -> Timed:
    """A call through a circuit with a full window of so many calls."""
    func = adapter.decorate(adapter.counting(size), work)
    calling(func)(size + 1)
    return Timed(calling(func), calling(work))


def _circuits(adapter: Adapter, number: int) -> list[Function]:
    return [adapter.decorate(adapter.breaker(), work) for _ in range(number)]


def among(adapter: Adapter, number: int) -> Timed:
    """A call through one of so many circuits."""
    functions = _circuits(adapter, number)
    timed = Timed(calling(functions[number // 2]), calling(work))
    timed.settle = lambda: functions  # they live as long as it does
    return timed


def each_of(adapter: Adapter, number: int) -> Timed:
    """A call through each of so many circuits in turn."""
    functions = _circuits(adapter, number)
    bare = [work] * number
    in_turn(functions)(110 * number)  # until the windows are full, and no more memory is taken
    loop = idling(lambda n: islice(cycle(bare), n))
    return Timed(in_turn(functions), in_turn(bare), loop, stretch=max(LONG_STRETCH, 1.2 * adapter.puts_off))


CALLS: dict[str, Callable[[Adapter], Any]] = {
    "success": success,
    "10 % failures": some_fail,
    "rejection": rejection,
    "async success": async_success,
    "block": block,
    "time window": time_window,
    "threads": Threads,
}
WINDOW_SIZES = (10, 100, 1_000, 10_000, 100_000)
CIRCUITS = (1, 100, 10_000, 100_000)
IN_TURN = (100, 10_000)


def workload(adapter: Adapter, name: str) -> Any:
    """A workload by its name; those of a kind have their number behind a colon."""
    kind, _, number = name.partition(":")
    if kind == "window":
        return window(adapter, int(number))
    if kind == "among":
        return among(adapter, int(number))
    if kind == "each of":
        return each_of(adapter, int(number))
    return CALLS[kind](adapter)
