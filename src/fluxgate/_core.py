"""The decision core of one circuit: clock, lock, generations and the order of events.

Both breakers share it. It decides under the lock and leaves what is to be told in `outbox`; the breaker delivers that
after the lock is released. No code of the user's runs under the lock but the rules, which are pure by contract. The
lock is re-entrant because a signal handler, or a finalizer that the collector happens to run, may call the same
breaker in the middle of a decision: that must not be a deadlock.

The fast lane. In a steady stretch (see `_machine`), with nobody listening to single calls, a plain success is one
``append`` of its duration to the generation's `Lane`. That append is atomic under the GIL, so no call is lost or
counted twice, and whoever takes the lock next folds what has gathered into the window first. A call that checked the
lane and is overtaken by a change of generation appends to a lane that nobody reads any more: its outcome is
stale, and without listeners there is nobody to tell. Without the GIL there is no lane.
"""

import math
import sys
from collections import deque
from collections.abc import Awaitable, Generator
from contextlib import closing
from contextvars import Context, copy_context
from enum import Enum
from itertools import count
from threading import RLock, get_ident
from typing import TYPE_CHECKING, Any

from ._clock import CarefulClock, Clock
from ._machine import Change, Fault, Hit, Machine, Stamp
from ._record import Record
from ._rules import Rules, amend
from ._tasks import running_loop, shielded, spawn
from ._text import clean, error_text, logger, type_name
from .errors import CallNotPermittedError
from .events import (
    CallCancelled,
    CallFailed,
    CallIgnored,
    CallRejected,
    CallStarted,
    CallSucceeded,
    CircuitCreated,
    CircuitRetired,
    Event,
    FallbackUsed,
    LastError,
    ListenerFailed,
    Reconfigured,
    StateChanged,
    WouldOpen,
)
from .metric import Metric
from .state import State

if TYPE_CHECKING:
    from .bus import Bus, Routes, Subscription

_FOLD = 256  # plain successes that may gather before they are folded: bounds the memory, amortises the lock
_GIL: bool = getattr(sys, "_is_gil_enabled", lambda: True)()


class _NoValue(Enum):
    NO_VALUE = "no value"


NO_VALUE = _NoValue.NO_VALUE
"""A success without a value that `Returned` could judge: a ``with`` block's."""


class WrongColour(TypeError):
    """A plain function met the async breaker, or a coroutine function the sync one: no outcome of the dependency's."""


class Lane:
    """Where the plain successes of one generation gather; it also stamps them."""

    __slots__ = ("below", "call_id", "durations", "generation", "limit", "until")

    deadline = None

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.call_id: int | None = None
        self.durations: list[float] = []
        self.below = 0.0
        self.until = 0.0
        self.limit = 0.0


class CircuitBreakerInfo(Record):
    """A circuit at one moment."""

    __slots__ = ("name", "state", "changed_at", "reopens", "metrics", "retry_after", "probes")

    name: str
    state: State
    changed_at: float
    """Unix time of the last change of state."""
    reopens: int
    """Failed recoveries since the circuit was last closed."""
    metrics: Metric
    """The window's sums; while the circuit is open, those that opened it."""
    retry_after: float | None
    """Seconds until a call may pass; ``None`` where no wait is running or only a person can end it."""
    probes: int
    """Probes in flight."""


class Core:
    """One circuit, whichever breaker it belongs to."""

    __slots__ = (
        "__weakref__",
        "_call_ids",
        "_faults",
        "_sequence",
        "_stretch",
        "asynchronous",
        "bus",
        "careful",
        "clock",
        "delivering",
        "lane",
        "lock",
        "machine",
        "name",
        "outbox",
        "own",
        "routes",
        "with_blocks",
    )

    def __init__(self, name: str, rules: Rules, clock: Clock, bus: "Bus", *, asynchronous: bool) -> None:
        self.name = name
        self.clock = clock
        self.careful = clock if isinstance(clock, CarefulClock) else None
        self.bus = bus
        self.asynchronous = asynchronous
        self.lock = RLock()
        self.machine = Machine(rules, clock.time())
        self.lane: Lane | None = None
        """Where plain successes go without the lock, while they may."""
        self._stretch: Lane | None = None  # the lane of this generation, open or not
        self.routes: Routes = {}
        self.own: tuple[Subscription, ...] = ()
        self.outbox: deque[tuple[Event | Fault, Context | None]] | tuple[()] = ()
        """What is still to be told, in order; true where `deliver` has something to do."""
        self.delivering = 0  # the thread that delivers, one at a time
        self.with_blocks: list[tuple[int, Stamp | Lane, float]] = []
        self._sequence = 0
        self._call_ids = count(1)
        self._faults: dict[str, int] | None = None

    # -- admission ------------------------------------------------------------------------------------------------

    def admit(self) -> Stamp | CallNotPermittedError:
        """A stamp for one call, or the refusal for the breaker to raise from its own frame."""
        machine = self.machine
        if machine.state is State.OPEN and CallRejected not in self.routes:
            # Nothing to decide, count or tell: no lock. A reset that happens meanwhile is simply later.
            left = machine.open_until - self.clock.monotonic()
            if left > 0:
                return CallNotPermittedError(self.name, State.OPEN, left if left < math.inf else None, machine.verdict)
        now, wall = self.clock.monotonic(), self.clock.time()
        with self.lock:
            self._fold(now, wall)
            answer = machine.admit(now, wall)
            self._tell_news(wall)
            if isinstance(answer, Stamp):
                if CallStarted in self.routes:
                    answer.call_id = next(self._call_ids)
                    draft = self._draft(CallStarted, wall)
                    draft.call_id = answer.call_id
                    self._push(draft, CallStarted)
                return answer
            if CallRejected in self.routes:
                draft = self._draft(CallRejected, wall)
                draft.retry_after = answer.retry_after
                draft.reason = answer.reason
                self._push(draft, CallRejected)
            return CallNotPermittedError(self.name, machine.state, answer.retry_after, machine.verdict)

    # -- outcomes -------------------------------------------------------------------------------------------------

    def returned(self, stamp: Stamp | Lane, started: float, now: float, value: Any) -> None:
        """The call returned `value`."""
        tracker = self.machine.rules.tracker
        if tracker.judges_values and value is not NO_VALUE:
            try:
                failed = tracker.judge_value(value)
            except Exception as error:
                self._fault("tracker", tracker, error)
                failed = True
            if failed:
                self._failed(stamp, started, now, LastError(type=type_name(value), text=f"judged a failure by {tracker!r}"), value)
                return
        wall = self.clock.time()
        duration = max(now - started, 0.0)
        with self.lock:
            counts = self._begin(stamp, now, wall)
            if CallSucceeded in self.routes:
                draft = self._ended(CallSucceeded, stamp, duration, counts, wall)
                draft.slow = duration >= self.machine.rules.slow_threshold
                self._push(draft, CallSucceeded)
            if counts:
                self.machine.succeed(duration, now, wall)
            self._finish(now, wall)

    def raised(self, stamp: Stamp | Lane, started: float, error: BaseException) -> None:
        """The call raised `error`, which the breaker raises on."""
        now = self.clock.monotonic()
        if not isinstance(error, Exception) or isinstance(error, WrongColour):
            self._passed_over(CallCancelled, stamp, started, now, None)
            return
        tracker = self.machine.rules.tracker
        try:
            asked = tracker.judges_errors and (tracker.names_rejections or not isinstance(error, CallNotPermittedError))
            failed = asked and tracker(error)
        except Exception as fault:
            self._fault("tracker", tracker, fault)
            failed = True
        if failed:
            self._failed(stamp, started, now, LastError(type=type_name(error), text=error_text(error)), error)
        else:
            self._passed_over(CallIgnored, stamp, started, now, error)

    def abandoned(self, stamp: Stamp | Lane, started: float) -> None:
        """The call was closed from outside, where nothing can be awaited any more."""
        self._passed_over(CallCancelled, stamp, started, self.clock.monotonic(), None)
        self.deliver_soon()

    def _failed(self, stamp: Stamp | Lane, started: float, now: float, error: LastError, outcome: object) -> None:
        wall = self.clock.time()
        duration = max(now - started, 0.0)
        retry = self.machine.rules.retry
        try:
            hint = retry.hint(outcome, wall)
        except Exception as fault:
            self._fault("retry", retry, fault)
            hint = None
        with self.lock:
            counts = self._begin(stamp, now, wall)
            if CallFailed in self.routes:
                draft = self._ended(CallFailed, stamp, duration, counts, wall)
                draft.error_type = error.type
                draft.error = error.text
                draft.slow = duration >= self.machine.rules.slow_threshold
                self._push(draft, CallFailed)
            if counts:
                self.machine.fail(duration, now, wall, error, hint)
            self._finish(now, wall)

    def _passed_over(
        self,
        kind: type[CallIgnored] | type[CallCancelled],
        stamp: Stamp | Lane,
        started: float,
        now: float,
        error: BaseException | None,
    ) -> None:
        wall = self.clock.time()
        with self.lock:
            counts = self._begin(stamp, now, wall)
            if kind in self.routes:
                draft = self._ended(kind, stamp, max(now - started, 0.0), counts, wall)
                if error is not None:
                    draft.error_type = type_name(error)
                self._push(draft, kind)
            self._finish(now, wall)

    def fold(self) -> None:
        """The lane holds as many calls as it may: count them."""
        now, wall = self.clock.monotonic(), self.clock.time()
        with self.lock:
            self._fold(now, wall)
            self._finish(now, wall)

    def _begin(self, stamp: Stamp | Lane, now: float, wall: float) -> bool:
        self._fold(now, wall)
        self._tell_news(wall)
        return self.machine.release(stamp, now)

    def _finish(self, now: float, wall: float) -> None:
        self._tell_news(wall)
        self._open_lane(now)

    # -- the fast lane --------------------------------------------------------------------------------------------

    def _fold(self, now: float, wall: float) -> None:
        stretch = self._stretch
        if stretch is None or not stretch.durations:
            return
        # The copy is one step under the GIL and so is the deletion; what is appended in between stays.
        durations = stretch.durations[:]
        del stretch.durations[: len(durations)]
        if stretch.generation == self.machine.generation:
            if min(durations) < 0:  # a clock that was set back under us
                durations = [max(duration, 0.0) for duration in durations]
            self.machine.succeed_plainly(durations, now, wall)

    def _open_lane(self, now: float) -> None:
        machine = self.machine
        left = machine.plain_calls_left(now) if _GIL else 0
        if left <= 0 or machine.rules.tracker.judges_values or CallStarted in self.routes or CallSucceeded in self.routes:
            self.lane = None
            return
        lane = self._stretch
        if lane is None or lane.generation != machine.generation:
            lane = self._stretch = Lane(machine.generation)
        lane.below = machine.rules.plain_below
        lane.until = machine.steady_until
        lane.limit = min(left, _FOLD)
        self.lane = lane

    # -- looking and steering -------------------------------------------------------------------------------------

    def info(self) -> CircuitBreakerInfo:
        """The circuit as of now."""
        now, wall = self.clock.monotonic(), self.clock.time()
        with self.lock:
            self._fold(now, wall)
            machine = self.machine
            return CircuitBreakerInfo(
                name=self.name,
                state=machine.state,
                changed_at=machine.changed_at,
                reopens=machine.reopens,
                metrics=machine.record.metric(now),
                retry_after=machine.retry_after(now),
                probes=machine.probes_in_flight(now),
            )

    def command(self, state: State) -> None:
        """One of the four controls."""
        now, wall = self.clock.monotonic(), self.clock.time()
        with self.lock:
            self._fold(now, wall)
            self._tell_news(wall)
            self.machine.command(state, now, wall)
            self._finish(now, wall)

    def configure(self, **parameters: Any) -> None:
        """Swap rules in place."""
        now, wall = self.clock.monotonic(), self.clock.time()
        with self.lock:
            rules = amend(self.machine.rules, **parameters)
            self._fold(now, wall)
            self._tell_news(wall)
            self.machine.configure(rules)
            self._publish(Reconfigured, wall, changed=tuple(parameters), **rules.words())
            self._finish(now, wall)

    # -- telling --------------------------------------------------------------------------------------------------

    def _draft(self, kind: type[Event], wall: float) -> Any:
        self._sequence += 1
        draft = kind._draft()
        draft.circuit_name = self.name
        draft.timestamp = wall
        draft.sequence = self._sequence
        draft.state = self.machine.state
        return draft

    def _ended(self, kind: type[Event], stamp: Stamp | Lane, duration: float, counts: bool, wall: float) -> Any:
        draft = self._draft(kind, wall)
        draft.call_id = next(self._call_ids) if stamp.call_id is None else stamp.call_id
        draft.duration = duration
        draft.stale = not counts
        return draft

    def _push(self, item: Any, kind: type[Event] | None = None) -> None:
        if kind is not None:
            item.__class__ = kind
        if isinstance(self.outbox, tuple):
            self.outbox = deque()
        # Whoever is delivering will tell this too: for him the context of the call comes along.
        self.outbox.append((item, copy_context() if self.delivering else None))

    def _publish(self, kind: type[Event], wall: float, **fields: Any) -> None:
        if kind in self.routes:
            draft = self._draft(kind, wall)
            for name, value in fields.items():
                setattr(draft, name, value)
            self._push(draft, kind)

    def _tell_news(self, wall: float) -> None:
        if self.careful is not None and self.careful.fault is not None:
            self._push(Fault(role="clock", rule=self.careful, error=self.careful.fault))
            self.careful.fault = None
        news = self.machine.news
        if news:
            for each in news:
                if isinstance(each, Fault):
                    self._push(each)
                else:
                    kind = StateChanged if isinstance(each, Change) else WouldOpen
                    self._publish(kind, wall, **{name: getattr(each, name) for name in each._fields})
            news.clear()

    def tell(self, kind: type[Event], **fields: Any) -> None:
        """Publish one event."""
        if kind in self.routes:
            wall = self.clock.time()
            with self.lock:
                self._publish(kind, wall, **fields)

    def fell_back(self, error: Exception) -> None:
        """A fallback is about to run."""
        if FallbackUsed in self.routes:
            self.tell(FallbackUsed, error_type=type_name(error))

    def _fault(self, role: str, rule: object, error: BaseException) -> None:
        with self.lock:
            self._push(Fault(role=role, rule=rule, error=error))

    def created(self) -> None:
        """Tell that the circuit exists."""
        if CircuitCreated in self.routes:
            self.tell(CircuitCreated, **self.machine.rules.words())
        self.deliver_soon()

    def retire(self) -> None:
        """Tell that the circuit is gone."""
        self.tell(CircuitRetired)
        self.deliver_soon()

    # -- delivery -------------------------------------------------------------------------------------------------

    def deliver(self) -> Awaitable[None] | None:
        """Tell what is in the outbox; what is returned must be awaited (an asynchronous circuit's alone does).

        Where another thread or task is delivering already, it tells this too, so nobody waits for anybody's listeners.
        """
        if self.bus.graveyard:
            self.bus.bury()
        with self.lock:
            if self.delivering or not self.outbox:
                return None
            self.delivering = get_ident()
        steps = self._steps()
        for step in steps:
            return self._drive(step, steps)
        return None

    async def deliver_async(self) -> None:
        """As `deliver`; the cancellation of the caller does not cut a listener short."""
        later = self.deliver()
        if later is not None:
            await shielded(later)

    def deliver_soon(self) -> None:
        """As `deliver`, from where nothing can be awaited: the event loop, or else the circuit's next call, sees to it."""
        if not self.outbox:
            return
        loop = running_loop()
        if loop is None and any(each.needs_await(self) for route in self.routes.values() for each in route):
            return
        later = self.deliver()
        if later is not None:
            spawn(loop, later)

    def _steps(self) -> Generator["tuple[Subscription, Event, Context | None]", None, None]:
        interrupt: BaseException | None = None
        try:
            while (item := self._next()) is not None:
                event, context = item
                if isinstance(event, Fault):
                    self._report(event)
                    continue
                for subscription in self.routes.get(type(event), ()):
                    if subscription.needs_await(self):
                        yield subscription, event, context
                        continue
                    try:
                        subscription.take(event, context, self)
                    except (KeyboardInterrupt, SystemExit) as error:
                        interrupt = error  # the program's, not the listener's: it goes on when all has been told
        except BaseException:
            self.delivering = 0  # closed half-way, as its event loop ended: the next call takes over
            raise
        if interrupt is not None:
            raise interrupt

    def _next(self) -> "tuple[Event | Fault, Context | None] | None":
        with self.lock:
            if isinstance(self.outbox, tuple) or not self.outbox:
                self.delivering = 0
                return None
            return self.outbox.popleft()

    async def _drive(self, step: Any, steps: Generator[Any, None, None]) -> None:
        with closing(steps):
            while step is not None:
                subscription, event, context = step
                await subscription.take_async(event, context, self)
                step = next(steps, None)

    def _report(self, fault: Fault) -> None:
        """A rule of the user's failed."""
        what = in_words(fault.rule)
        counts = self._faults = self._faults or {}
        counts[what] = counts.get(what, 0) + 1
        self.report(fault.role, what, fault.error, counts[what])

    def report(self, role: str, what: str, error: BaseException, seen: int, *, tell: bool = True) -> None:
        """Something plugged in has failed, for the time `seen`: the first is logged, each is told."""
        if seen == 1:
            text = "%s %s of circuit %r failed; from now on its failures are counted, not logged"
            logger().error(text, role, what, self.name, exc_info=error)
        if tell:
            text = error_text(error)
            self.tell(ListenerFailed, listener=what, role=role, error_type=type_name(error), error=text, count=seen)

    # -- steering from the bus ------------------------------------------------------------------------------------

    def rewire(self, routes: "Routes") -> None:
        """Other listeners than before; the next call finds out whether the lane may be open."""
        with self.lock:
            self.routes = routes
            self.lane = None

    def after_fork(self) -> None:
        """In the child: the other threads are gone, and what they had to tell is told by the parent."""
        if self.delivering != get_ident():
            self.delivering = 0
        self.outbox = ()


def in_words(rule: object) -> str:
    """How something plugged in is named in reports."""
    try:
        return clean(getattr(rule, "__qualname__", None) or repr(rule))
    except Exception:  # a broken __repr__
        return type_name(rule)
