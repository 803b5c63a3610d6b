"""Random lives of a circuit: the real breakers against `reference.Circuit`, step by step."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import reduce
from operator import and_, or_
from queue import SimpleQueue
from types import coroutine
from typing import Any, ClassVar

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fluxgate import (
    Always,
    AsyncCircuitBreaker,
    AvgLatency,
    Backoff,
    Bus,
    CallNotPermittedError,
    CircuitBreaker,
    CircuitBreakerInfo,
    Closed,
    Cooldown,
    CountWindow,
    FailureRate,
    FailureStreak,
    HalfOpened,
    Metric,
    MinRequests,
    Never,
    Returned,
    SlowRate,
    State,
    Subscription,
    TimeWindow,
    TypeOf,
    _gil,
    events,
    permits,
    trackers,
    trippers,
)
from fluxgate.events import CallEnded
from fluxgate.testing import EventRecorder, VirtualClock
from tests.reference import Admitted, Alternatives, Circuit, Outcome, Published, Refusal, Rules, Spec, Sums

TICK = 0.125
"""The common step. All times are binary fractions, so that floats add up exactly and no call ends beside a boundary."""
PATIENCE = 30.0
"""Seconds after which a thread that has said nothing hangs."""
MOST_IN_FLIGHT = 12
PARKED: Any = object()


class Boom(Exception):
    pass


class Quiet(Exception):
    pass


ERRORS: dict[str, Callable[[str], BaseException]] = {
    "boom": Boom,
    "quiet": Quiet,
    "refused": lambda text: CallNotPermittedError("elsewhere"),
    "cancelled": lambda text: {"task": asyncio.CancelledError, "ctrl-c": KeyboardInterrupt, "exit": SystemExit}[text](),
}
ERROR_NAMES = {"boom": "Boom", "quiet": "Quiet", "refused": "CallNotPermittedError", "returned": "str"}


# The rules, from plain data


class Successes(trippers.Tripper):
    """A tripper of the user's own: turned by a success."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(self, metric: Metric, state: State, consecutive_failures: int, /) -> bool:
        return metric.total_count - metric.failure_count >= self.count


class Stairs:
    """A retry of the user's own: a plain class."""

    def __init__(self, first: float, step: float) -> None:
        self.first, self.step = first, step

    def wait(self, reopens: int, /) -> float:
        return self.first + self.step * reopens


def is_bad(value: Any) -> bool:
    return bool(value == "bad")


def real_window(spec: Spec) -> Any:
    return {"count": CountWindow, "time": TimeWindow}[spec[0]](spec[1])


def real_tracker(spec: Spec) -> Any:
    classes = [{"boom": Boom, "quiet": Quiet, "refused": CallNotPermittedError}[kind] for kind in spec[1:]]
    match spec[0]:
        case "all":
            return trackers.All()
        case "only":
            return TypeOf(*classes)
        case "not":
            return ~TypeOf(*classes)
    return trackers.All() | Returned(is_bad)


def real_condition(condition: Spec) -> Any:
    make: Any = {
        "closed": Closed,
        "half_opened": HalfOpened,
        "min_requests": MinRequests,
        "failure_rate": FailureRate,
        "slow_rate": SlowRate,
        "avg_latency": AvgLatency,
        "streak": FailureStreak,
        "successes": Successes,
    }[condition[0]]
    return make(*condition[1:])


def real_tripper(alternatives: Alternatives) -> Any:
    common = alternatives[0][0]
    if len(alternatives) > 1 and all(len(each) > 1 and each[0] == common for each in alternatives):
        # what all begin with stands in front of a bracket, as people write it
        return real_condition(common) & real_tripper(tuple(each[1:] for each in alternatives))
    return reduce(or_, (reduce(and_, map(real_condition, each)) for each in alternatives))


def real_retry(spec: Spec) -> Any:
    make: Any = {"cooldown": Cooldown, "backoff": Backoff, "always": Always, "never": Never, "stairs": Stairs}[spec[0]]
    return make(*spec[1:])


def real_permit(spec: Spec) -> Any:
    match spec:
        case ("from", seconds):
            return lambda elapsed: elapsed >= seconds
        case ("until", seconds):
            return lambda elapsed: elapsed < seconds
        case ("odd", seconds):
            return lambda elapsed: elapsed // seconds % 2 == 1
    return permits.All()


REAL: dict[str, Callable[[Any], Any]] = {
    "window": real_window,
    "tracker": real_tracker,
    "tripper": real_tripper,
    "retry": real_retry,
    "permit": real_permit,
}


def real(**rules: Any) -> dict[str, Any]:
    return {name: REAL.get(name, lambda value: value)(value) for name, value in rules.items()}


# The ways of calling: each is a call that parks in the middle and is told how to end


@dataclass(frozen=True)
class Ending:
    """How a call is to end."""

    outcome: Outcome
    close: bool = False
    """Cancelled from outside, where there is something to close, instead of by an error from within."""


SUCCESS = Ending(Outcome())


class Order:
    """What the protected code is told to do."""

    def __init__(self, ending: Ending, error: BaseException | None) -> None:
        self.outcome = ending.outcome
        self.close = ending.close
        self.error = error

    def act(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.outcome.value


class Stepped:
    """A call that is a generator or a coroutine: its parking place is a yield."""

    def __init__(self, steps: Generator[Any, Any, Any] | Coroutine[Any, Any, Any]) -> None:
        self._steps = steps

    def start(self) -> Any:
        return self.finish(None)

    def finish(self, order: Order | None) -> Any:
        try:
            self._steps.send(order)
        except StopIteration as end:
            return end.value
        return PARKED


class Threaded:
    """A call that parks a thread; thread and test take turns, so that nothing is left to chance."""

    threads: ClassVar[ThreadPoolExecutor]

    def __init__(self, work: Callable[[Callable[[], Order]], Any]) -> None:
        self._work = work
        self._orders: SimpleQueue[Order] = SimpleQueue()
        self._replies: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

    def start(self) -> Any:
        self.threads.submit(self._run)
        return self._reply()

    def finish(self, order: Order) -> Any:
        self._orders.put(order)
        return self._reply()

    def _run(self) -> None:
        reply: tuple[Any, BaseException | None]
        try:
            reply = self._work(self._park), None
        except BaseException as error:
            reply = None, error
        self._replies.put(reply)

    def _park(self) -> Order:
        self._replies.put((PARKED, None))
        return self._orders.get(timeout=PATIENCE)

    def _reply(self) -> Any:
        value, error = self._replies.get(timeout=PATIENCE)
        try:
            if error is not None:
                raise error
            return value
        finally:
            del error


Task = Stepped | Threaded
Ways = dict[str, Callable[[], Task]]
VALUELESS = frozenset(("block", "acquired block"))
FALLING_BACK = frozenset(("fallback", "call_with_fallback"))


def ways_to_call(cb: CircuitBreaker) -> Ways:
    """Each way through the sync breaker, by name."""

    def work(park: Callable[[], Order]) -> Any:
        return park().act()

    protected = cb(work)
    falling_back = cb(fallback=lambda error: "fallback")(work)

    @cb
    def stream() -> Generator[int, Order, Any]:
        return (yield 1).act()

    def block() -> Generator[None, Order, Any]:
        with cb:
            order = yield
            return order.act()

    def acquired() -> Generator[None, Order, Any]:
        call = cb.acquire()
        order = yield
        if order.error is None:
            call.success(order.outcome.value)
        elif order.close:
            call.cancel()
        else:
            call.failure(order.error)
        call.failure(Boom("settled before"))
        return order.act()

    def acquired_block() -> Generator[None, Order, Any]:
        with cb.acquire():
            order = yield
            return order.act()

    def generator() -> Generator[None, Order, Any]:
        source = stream()
        assert next(source) == 1
        order = yield
        if order.close:
            source.close()
            return order.act()
        try:
            source.send(order)
        except StopIteration as end:
            return end.value
        raise AssertionError("the generator went on")

    return {
        "function": lambda: Threaded(protected),
        "call": lambda: Threaded(lambda park: cb.call(work, park)),
        "fallback": lambda: Threaded(falling_back),
        "call_with_fallback": lambda: Threaded(
            lambda park: cb.call_with_fallback(work, park, fallback_func=lambda error: "fallback")
        ),
        "block": lambda: Stepped(block()),
        "acquire": lambda: Stepped(acquired()),
        "acquired block": lambda: Stepped(acquired_block()),
        "generator": lambda: Stepped(generator()),
    }


@coroutine
def park() -> Generator[None, Order, Order]:
    return (yield)


def ways_to_await(cb: AsyncCircuitBreaker) -> Ways:
    """Each way through the async breaker, by name; the same names."""

    async def work() -> Any:
        return (await park()).act()

    async def late_answer(error: Exception) -> str:
        return "fallback"

    protected = cb(work)
    falling_back = cb(fallback=late_answer)(work)

    @cb
    async def stream() -> AsyncGenerator[int, Any]:
        order = yield 1
        order.act()

    async def block() -> Any:
        async with cb:
            return (await park()).act()

    async def acquired() -> Any:
        call = await cb.acquire()
        order = await park()
        if order.error is None:
            await call.success(order.outcome.value)
        elif order.close:
            await call.cancel()
        else:
            await call.failure(order.error)
        await call.failure(Boom("settled before"))
        return order.act()

    async def acquired_block() -> Any:
        async with await cb.acquire():
            return (await park()).act()

    async def generator() -> Any:
        source = stream()
        assert await anext(source) == 1
        order = await park()
        if order.close:
            await source.aclose()
            return order.act()
        try:
            await source.asend(order)
        except StopAsyncIteration:
            return None
        raise AssertionError("the generator went on")

    return {
        "function": lambda: Stepped(protected()),
        "call": lambda: Stepped(cb.call(work)),
        "fallback": lambda: Stepped(falling_back()),
        "call_with_fallback": lambda: Stepped(cb.call_with_fallback(work, fallback_func=lambda error: "fallback")),
        "block": lambda: Stepped(block()),
        "acquire": lambda: Stepped(acquired()),
        "acquired block": lambda: Stepped(acquired_block()),
        "generator": lambda: Stepped(generator()),
    }


def by_hand(work: Coroutine[Any, Any, Any] | None) -> None:
    """Run what a control of either face returned; nothing in it waits."""
    if work is not None:
        with pytest.raises(StopIteration):
            work.send(None)


class AsyncRecorder:
    """A recorder that an async breaker awaits."""

    def __init__(self, *kinds: type[events.Event]) -> None:
        self.events = kinds
        self.events_seen: list[events.Event] = []

    async def __call__(self, event: events.Event) -> None:
        self.events_seen.append(event)


class Ear:
    """A listener, and the events that it is yet to hear."""

    def __init__(self, recorder: EventRecorder | AsyncRecorder) -> None:
        self.recorder = recorder
        self.kinds = frozenset(kind.__name__ for kind in recorder.events)
        self.due: list[Published] = []


# Random choices: few draws a step, since drawing is what takes the time

instants = st.sampled_from((0.0, 1 / 256, 2 / 256, 4 / 256))  # about as long as the lane takes outcomes without a look
durations = st.sampled_from((0.0, 0.0, 0.0, 1 / 256, 2 / 256, 4 / 256, TICK, 0.25, 0.5, 0.5, 1.0, 1.5, 2.0, 3.0))
pauses = st.sampled_from((1 / 256, 4 / 256, TICK, 0.25, 0.5, 0.5, 1.0, 2.0, 2.5, 5.0, 12.5, 30.0))
windows = st.sampled_from(
    (
        *((("count", size)) for size in (8, 5, 3, 2, 1)),
        *((("time", size)) for size in (100 / 128, 6.25, 12.5, 25.0, 100.0)),
    )
)
tracker_specs = st.sampled_from(
    (("all",), ("all",), ("returned",), ("only", "boom"), ("only", "boom", "refused"), ("not", "quiet"))
)
bars = st.sampled_from([("min_requests", count) for count in range(1, 6)])
steady_figures: list[Spec] = [
    *(("failure_rate", ratio) for ratio in (0.5, 0.6, 1.0, 1 / 3, 0.25)),
    *(("streak", count) for count in (2, 3, 4, 1)),
    *(("slow_rate", ratio, limit) for ratio in (0.5, 1.0) for limit in (None, 0.5, 2 / 256)),
]
figures = st.sampled_from(
    steady_figures
    + [("avg_latency", seconds) for seconds in (0.25, 0.5, 1.5)]
    + [("successes", count) for count in (2, 3, 5)]
)
conjunctions = st.builds(
    lambda scope, bar, one, other: (*scope, *bar, one, *other),
    st.sampled_from(((), (), (("closed",),), (("half_opened",),))),
    st.one_of(st.just(()), bars.map(lambda bar: (bar,))),
    st.one_of(st.sampled_from(steady_figures), figures),
    st.one_of(st.just(()), figures.map(lambda figure: (figure,))),
)
alternatives = st.one_of(
    st.sampled_from(steady_figures).map(lambda figure: ((figure,),)),
    st.lists(conjunctions, min_size=1, max_size=3).map(tuple),
    # both states spoken for, as the default has it
    st.builds(lambda one, two: ((("closed",), *one), (("half_opened",), *two)), conjunctions, conjunctions),
    st.builds(lambda bar, one, two: ((bar, *one), (bar, *two)), bars, conjunctions, conjunctions),
    bars.map(lambda bar: ((bar,),)),
)
retry_specs = st.sampled_from(
    (
        *(("cooldown", seconds) for seconds in (0.5, 1.0, 2.5, 0.0)),
        *(("backoff", initial, multiplier, 4.0) for initial in (0.5, 1.0) for multiplier in (2.0, 1.5, 3.0)),
        ("stairs", 0.5, 1.0),
        ("always",),
        ("never",),
    )
)
permit_specs = st.sampled_from(
    (*(("all",),) * 5, *((name, seconds) for name in ("from", "until", "odd") for seconds in (0.25, 1.0)))
)
CHOICES: dict[str, st.SearchStrategy[Any]] = {
    "tracker": tracker_specs,
    "tripper": alternatives,
    "retry": retry_specs,
    "permit": permit_specs,
    "slow_threshold": st.sampled_from((0.5, 60.0, 1.0, 0.25, 2 / 256)),
    "max_half_open_calls": st.sampled_from((10, 3, 2, 1)),
    "half_open_timeout": st.sampled_from((1.0, 0.5, 2.5, 30.0)),
}
rules_specs = st.builds(Rules, window=windows, **CHOICES)
changes = st.one_of(
    st.builds(lambda **chosen: chosen, **CHOICES),
    *(st.fixed_dictionaries({name: values}) for name, values in CHOICES.items()),
)
endings = st.sampled_from(
    (
        *(Ending(Outcome(error=error)) for error in ("", "boom", "", "boom", "quiet", "refused")),
        Ending(Outcome(value="bad")),
        *(Ending(Outcome(error="cancelled", text=cause)) for cause in ("task", "ctrl-c", "exit")),
        Ending(Outcome(error="cancelled", text="task"), close=True),
    )
)
# successes and failures in a row: the digits of a number
mixtures = st.one_of(
    st.integers(1, 2**9).map(lambda number: ["boom" if digit == "1" else "" for digit in f"{number:b}"]),
    st.integers(1, 8**5).map(lambda number: ["boom" if digit == "7" else "" for digit in f"{number:o}"]),
    st.integers(1, 12).map(lambda count: ["boom"] * count),
    st.integers(1, 12).map(lambda count: [""] * count),
)
way_names = st.sampled_from(
    ("function", "call", "fallback", "call_with_fallback", "block", "acquire", "acquired block", "generator")
)
ear_kinds = st.sampled_from(
    ((events.CallSucceeded,), (events.CallEnded,), (events.CallStarted, events.StateChanged), (events.Event,))
)


class Doorkeeper:
    """Surrounds every other call, and lets those in between pass."""

    events = (CallEnded,)

    def __init__(self) -> None:
        self.asked = 0
        self.inside: set[int] = set()
        self.left: list[tuple[int, CallEnded]] = []

    def __call__(self, event: CallEnded) -> None:
        pass

    def around(self, circuit_name: str, call_id: int, *, nested: bool) -> Callable[[CallEnded], None] | None:
        self.asked += 1
        if self.asked % 2:
            return None
        assert call_id not in self.inside
        self.inside.add(call_id)

        def leave(event: CallEnded) -> None:
            self.inside.remove(call_id)
            self.left.append((call_id, event))

        return leave


class Life(RuleBasedStateMachine):
    """The common part; each subclass is a colour and a set of event types that are listened to."""

    asynchronous: ClassVar[bool]
    listened: ClassVar[tuple[type[events.Event], ...]]
    surrounded: ClassVar[bool]

    def __init__(self) -> None:
        super().__init__()
        self.in_flight: list[tuple[str, Task, Admitted]] = []
        self.call_ids: dict[int, int] = {}

    @initialize(
        rules=rules_specs,
        start=st.sampled_from((0.0, 1000.375)),
        awaited=st.booleans(),
        curious=st.booleans(),
        prelude=st.integers(0, 2),
    )
    def begin(self, rules: Rules, start: float, awaited: bool, curious: bool, prelude: int) -> None:
        """A circuit is made; `prelude` says how far into an outage it is when the random steps begin."""
        self.curious = curious  # who looks makes the lane's calls count at once
        wanted = {name: getattr(rules, name) for name in CHOICES}
        if prelude:
            rules = replace(rules, tripper=((("streak", 1),),), retry=("cooldown", 0.5), permit=("all",))
        self.clock = VirtualClock(start, 1_700_000_000.0)
        kinds = tuple(events.concrete(self.listened))
        recorder = AsyncRecorder(*kinds) if self.asynchronous and awaited else EventRecorder(*kinds)
        self.told = 0
        self.ears = [Ear(recorder)]
        self.doorkeepers = [Doorkeeper()] if self.surrounded else []
        self.subscription: Subscription | None = None
        self.model = Circuit(rules, self.clock.time(), self.ears[0].kinds)
        parameters = real(**{each.name: getattr(rules, each.name) for each in fields(rules)})
        make: Any = AsyncCircuitBreaker if self.asynchronous else CircuitBreaker
        self.cb: Any = make(
            "dependency", listeners=[recorder, *self.doorkeepers], bus=Bus(), clock=self.clock, **parameters
        )
        self.ways: Any = ways_to_await(self.cb) if self.asynchronous else ways_to_call(self.cb)
        if isinstance(recorder, AsyncRecorder):  # a constructor cannot await: the news of it waits for the first call
            self.configure({"slow_threshold": rules.slow_threshold})
        if prelude:
            self.calls("function", Ending(Outcome(error="boom")), 0.0, 1)
            if prelude > 1:
                self.knock("acquire", None, 0.0)
            self.configure(wanted)

    # steps

    @rule(way=way_names)
    def start(self, way: str) -> None:
        """A call is admitted and stays in flight, or is refused."""
        if len(self.in_flight) < MOST_IN_FLIGHT:
            self._start(way)

    @precondition(lambda self: self.in_flight)
    @rule(index=st.integers(0, MOST_IN_FLIGHT - 1), ending=endings, punctual=st.booleans())
    def finish(self, index: int, ending: Ending, punctual: bool) -> None:
        """A call in flight ends; a punctual probe at the very moment in which it loses its place."""
        index %= len(self.in_flight)
        limit = self.in_flight[index][2].loses_place_at
        if punctual and limit is not None:
            self.clock.advance(max(limit - self.clock.monotonic(), 0.0))
        self._finish(index, ending)

    @precondition(lambda self: len(self.in_flight) > 1)
    @rule(errors=mixtures)
    def finish_several(self, errors: list[str]) -> None:
        """Calls in flight end one after the other, the oldest first."""
        for error in errors[: len(self.in_flight)]:
            self._finish(0, Ending(Outcome(error=error)))

    @rule(way=way_names, ending=endings, seconds=durations, count=st.integers(1, 3))
    def calls(self, way: str, ending: Ending, seconds: float, count: int) -> None:
        """Whole calls, one after the other."""
        for _ in range(count):
            if self._start(way):
                self.clock.advance(seconds)
                self._finish(-1, ending)

    @rule(way=way_names, errors=mixtures, seconds=instants)
    def series(self, way: str, errors: list[str], seconds: float) -> None:
        """Many calls, every other of which takes a moment."""
        for index, error in enumerate(errors):
            if self._start(way):
                self.clock.advance(seconds * (index % 2))
                self._finish(-1, Ending(Outcome(error=error)))

    @precondition(lambda self: self.model.retry_after(self.clock.monotonic()) is not None)
    @rule(way=way_names, errors=st.one_of(mixtures, st.none()), early=st.sampled_from((0.0, 0.0, 0.0, TICK)))
    def knock(self, way: str, errors: list[str] | None, early: float) -> None:
        """The wait of an open circuit passes, and probes come: they end one by one, or two stay in flight."""
        left = self.model.retry_after(self.clock.monotonic()) or 0.0
        self.clock.advance(max(left - early, 0.0))
        if errors is None:
            self._start(way)
            self._start(way)
        else:
            self.series(way, errors, 0.0)

    @rule(seconds=pauses)
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.clock.advance(seconds)

    @rule(
        index=st.integers(0, 11), early=st.sampled_from((0.0, 0.0, 1 / 256)), then=st.sampled_from(("", "boom", None))
    )
    def wait_until_something_is_over(self, index: int, early: float, then: str | None) -> None:
        """Time passes until a wait, a probe's time or a remembered call is over, or nearly so, and a call may come."""
        now = self.clock.monotonic()
        moments = sorted({moment - early for moment in self.model.moments() if moment - early > now})
        if moments:
            self.clock.advance(moments[index % len(moments)] - now)
            if then is not None and self._start("function"):
                self._finish(-1, Ending(Outcome(error=then)))

    @rule(seconds=st.sampled_from((-86_400.0, -3.0, 7.0, 86_400.0)))
    def wall_clock_jumps(self, seconds: float) -> None:
        """Somebody sets the wall clock, which is noticed when the lane is opened anew, as it is every 10 ms."""
        self.clock.set_time(self.clock.time() + seconds)
        self.clock.advance(1 / 64)

    @rule(state=st.sampled_from(("closed", "closed", "disabled", "metrics_only", "forced_open")))
    def control(self, state: str) -> None:
        """Somebody uses one of the controls."""
        control = {
            "closed": "reset",
            "disabled": "disable",
            "metrics_only": "metrics_only",
            "forced_open": "force_open",
        }
        by_hand(getattr(self.cb, control[state])())
        self.model.command(state, self.clock.monotonic(), self.clock.time())

    @rule(changed=changes)
    def configure(self, changed: dict[str, Any]) -> None:
        """Somebody swaps some rules."""
        by_hand(self.cb.configure(**real(**changed)))
        self.model.configure(self.clock.time(), **changed)

    @precondition(lambda self: not self.ears[0].due)
    @rule(kinds=ear_kinds)
    def second_listener(self, kinds: tuple[type[events.Event], ...]) -> None:
        """Somebody else begins or ceases to listen."""
        if self.subscription is None:
            recorder = EventRecorder(*kinds)
            self.ears.append(Ear(recorder))
            self.subscription = self.cb.attach(recorder)
        else:
            self.subscription.close()
            self.subscription = None
            self.ears.pop()
        self.model.listened = frozenset().union(*(ear.kinds for ear in self.ears))

    @rule()
    def look(self) -> None:
        """Somebody asks how the circuit is."""
        self.compare_info()

    def compare_info(self) -> None:
        now = self.clock.monotonic()
        info: CircuitBreakerInfo = self.cb.info()
        assert info.name == "dependency"
        assert info.state == self.model.state
        assert info.changed_at == self.model.changed_at
        assert info.reopens == self.model.reopens
        assert info.retry_after == pytest.approx(self.model.retry_after(now))
        assert info.probes == self.model.probes(now)
        self._compare_sums(info.metrics, self.model.sums(now))

    @invariant()
    def tells_the_same(self) -> None:
        """The state and every event are the model's."""
        assert self.cb.state == self.model.state
        awaited = any(isinstance(ear.recorder, AsyncRecorder) for ear in self.ears)
        for ear in self.ears:
            seen, due = ear.recorder.events_seen, ear.due
            due += [each for each in self.model.published[self.told :] if each.kind in ear.kinds]
            later: list[Published] = []
            while awaited and len(due) > len(seen) and due[-1].kind == "CallCancelled":
                later.insert(0, due.pop())  # where a generator is closed nothing can be awaited: the next call tells
            assert [type(event).__name__ for event in seen] == [each.kind for each in due]
            for event, each in zip(seen, due, strict=True):
                self._compare_event(event, each)
            seen.clear()
            ear.due = later
        self.told = len(self.model.published)
        if self.curious:
            self.compare_info()

    def teardown(self) -> None:
        for _, task, _ in self.in_flight:
            with suppress(BaseException):
                task.finish(Order(SUCCESS, None))
        for doorkeeper in self.doorkeepers:
            assert not doorkeeper.inside
            assert all(event.call_id == call_id for call_id, event in doorkeeper.left)

    # how they are taken, on both sides

    def _start(self, way: str) -> bool:
        task = self.ways[way]()
        admission = self.model.admit(self.clock.monotonic(), self.clock.time())
        if isinstance(admission, Admitted):
            assert task.start() is PARKED
            self.in_flight.append((way, task, admission))
            return True
        if way in FALLING_BACK:
            self.model.fall_back("refused", self.clock.time())
            assert task.start() == "fallback"
            return False
        with pytest.raises(CallNotPermittedError) as refused:
            task.start()
        self._compare_refusal(refused.value, admission)
        return False

    def _finish(self, index: int, ending: Ending) -> None:
        way, task, admitted = self.in_flight.pop(index)
        outcome = ending.outcome
        error = ERRORS[outcome.error](outcome.text or "no route") if outcome.error else None
        text = str(error) if error else f"judged a failure by {real_tracker(('returned',))!r}"
        valueless = way in VALUELESS or (self.asynchronous and way == "generator")
        known = replace(outcome, text=text, value=None if valueless else outcome.value)
        self.model.settle(admitted, known, self.clock.monotonic(), self.clock.time())
        order = Order(ending, error)
        if isinstance(error, Exception) and way in FALLING_BACK:
            self.model.fall_back(outcome.error, self.clock.time())
            assert task.finish(order) == "fallback"
        elif error is not None:
            with pytest.raises(type(error)) as raised:
                task.finish(order)
            assert raised.value is error
        else:
            returned = None if self.asynchronous and way == "generator" else outcome.value
            assert task.finish(order) == returned

    def _compare_refusal(self, error: CallNotPermittedError, refusal: Refusal) -> None:
        assert error.circuit_name == "dependency"
        assert error.state == refusal.state
        assert error.retry_after == pytest.approx(refusal.retry_after)
        if refusal.state != "forced_open":
            assert error.verdict is not None

    def _compare_sums(self, metric: Metric, sums: Sums) -> None:
        assert metric.total_count == sums.total
        assert metric.failure_count == sums.failures
        assert metric.slow_count == sums.slow
        assert metric.slow_counts == sums.slow_by
        assert metric.total_duration == pytest.approx(sums.duration)

    def _compare_event(self, event: Any, expected: Published) -> None:
        assert event.circuit_name == "dependency"
        assert event.sequence == expected.sequence
        for name, value in expected.fields.items():
            match name:
                case "call":
                    assert self.call_ids.setdefault(value, event.call_id) == event.call_id
                    assert len(set(self.call_ids.values())) == len(self.call_ids)
                case "error":
                    assert event.error_type.endswith(ERROR_NAMES[value])
                case "text":
                    assert event.error == value
                case "last_error":
                    assert (event.last_error and event.last_error.text) == value
                case "sums":
                    self._compare_sums(event.metrics, value)
                case "changed":
                    assert set(event.changed) == value
                case "wait" | "retry_after" | "duration":
                    assert getattr(event, name) == pytest.approx(value), name
                case _:
                    assert getattr(event, name) == value, name


SETTINGS = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
    report_multiple_bugs=False,
)


@pytest.mark.filterwarnings("ignore:.* never holds the ")
@pytest.mark.parametrize("colour", ["sync", "async"])
@pytest.mark.parametrize(
    ("listened", "gil", "surrounded"),
    [
        pytest.param(events.Event, True, False, id="every event"),
        pytest.param(events.StateChanged, True, False, id="transitions only"),
        pytest.param(events.StateChanged, False, False, id="without the lane"),
        pytest.param(events.CallEnded, True, False, id="outcomes"),
        pytest.param(events.CallEnded, False, False, id="outcomes, without the lane"),
        pytest.param(events.CallEnded, True, True, id="outcomes, every other call surrounded"),
    ],
)
def test_a_circuit_lives_as_its_rules_say(
    colour: str, listened: type[events.Event], gil: bool, surrounded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever happens to a circuit, it tells, decides and counts what a plain reading of the rules gives."""
    monkeypatch.setattr("fluxgate._gil.GIL", gil and _gil.GIL)
    with ThreadPoolExecutor(MOST_IN_FLIGHT + 1) as threads:
        monkeypatch.setattr(Threaded, "threads", threads, raising=False)
        life = type(
            "Life", (Life,), {"asynchronous": colour == "async", "listened": (listened,), "surrounded": surrounded}
        )
        run_state_machine_as_test(life, settings=SETTINGS)
