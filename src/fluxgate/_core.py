"""The decision core of one circuit: clock, lock, generations and the order of events.

Both breakers share it. It decides under the lock and leaves what is to be told in the `outbox`; the breaker delivers
that after the lock is released (see `_teller`). No code of the user's runs under the lock but the rules, which are pure
by contract. What needs no lock is in `_fast`.
"""

from __future__ import annotations

from ._fast import Fast
from ._functions import WrongColour
from ._gathered import failure_of
from ._info import CircuitBreakerInfo
from ._news import Cause, Fault, FaultOfTheCalls
from ._routes import Around
from ._rules import CHANGEABLE, Rules, amend
from ._stamps import Lane, Leave, Stamp
from ._text import clean, error_text, in_words, name_of, type_name
from ._typing import TYPE_CHECKING
from .errors import CallNotPermittedError
from .events import (
    CallCancelled,
    CallFailed,
    CallIgnored,
    CallRejected,
    CallStarted,
    CallSucceeded,
    Event,
    Reconfigured,
)
from .state import State

if TYPE_CHECKING:
    from typing import Any

    from ._protocols import Clock
    from ._registry import Reference
    from ._routes import Routes
    from .bus import Bus


class _NoValue:
    def __repr__(self) -> str:
        return "NO_VALUE"


NO_VALUE = _NoValue()
"""A success without a value that `Returned` could judge: a ``with`` block's."""


class Core(Fast):
    """One circuit, whichever breaker it belongs to."""

    __slots__ = ("__weakref__", "_unheard", "breaker", "with_blocks")

    def __init__(self, name: str, rules: Rules, clock: Clock, bus: Bus, *, asynchronous: bool) -> None:
        super().__init__(name, rules, clock, bus, asynchronous=asynchronous)
        self.with_blocks: Any = None  # the blocks that are open: see `_face`
        self._unheard = 0  # calls that began surrounded, with nobody to hear of it
        self.breaker: Reference | None = None
        """The breaker, weakly, while the bus has the circuit."""

    # -- admission ------------------------------------------------------------------------------------------------

    def admit(self, nested: bool = True) -> Stamp | CallNotPermittedError:
        """A stamp for one call, or the refusal for the breaker to raise from its own frame.

        `nested`: the call ends in the context in which it begins, and what runs in between is its own. That of a
        generator, or one that is settled elsewhere, does not.
        """
        lane = self.lane
        if lane is not None:
            return lane
        lane = self.open
        if lane is not None:
            return self._enter(lane, self._number(), nested)
        refusal = self.refuse()
        if refusal is not None:
            return refusal
        machine = self.machine
        now, wall = self.clock.monotonic(), self.clock.time()
        refused: Event | None = None
        surrounding = False
        with self.lock:
            self.fold()
            answer: Stamp | CallNotPermittedError | str = machine.admit(now, wall)
            self.tell_news()
            if isinstance(answer, Stamp):
                surrounding = Around in self.routes
                if CallStarted in self.routes:
                    started = self.draft(CallStarted, wall)
                    self.push(started, CallStarted, first=True)
                    answer.call_id = started.call_id
                elif surrounding:
                    answer.call_id = self._number()
            else:
                retry_after = machine.retry_after(now)
                refused = self.publish(CallRejected, wall, retry_after=retry_after, reason=answer)
                self.arrange(now, wall)
                answer = CallNotPermittedError(self.name, machine.state, retry_after, machine.verdict, self.opening)
        if isinstance(answer, CallNotPermittedError):
            self.tell_here(refused)
        elif surrounding:
            return self._enter(answer, answer.call_id, nested)
        return answer

    def _enter(self, stamp: Stamp, number: int | None, nested: bool) -> Stamp:
        """Let those who surround calls enter this one. In the lane it gets a stamp of its own only if somebody does."""
        leaves: list[Leave] = []
        try:
            for subscription in self.routes.get(Around, ()):
                leave = subscription.enter(self, number, nested)
                if leave is not None:
                    leaves.append(leave)
        except BaseException:  # an interrupt: the call does not begin
            self.abandoned(_left_by(stamp, number, leaves), self.clock.monotonic())
            raise
        return _left_by(stamp, number, leaves)

    def _number(self) -> int:
        self._unheard = number = self._unheard + 1  # without a call in between: one step under the GIL
        return -number

    def _leave(self, stamp: Stamp) -> None:
        leaving, stamp.leave = stamp.leave, None
        interrupt: BaseException | None = None
        for leave in reversed(leaving or ()):
            try:
                leave(stamp.ended)
            except (KeyboardInterrupt, SystemExit) as error:
                interrupt = error  # the program's: it goes on when all have left
        if interrupt is not None:
            raise interrupt

    # -- outcomes -------------------------------------------------------------------------------------------------

    def returned(self, stamp: Stamp, started: float, now: float, value: Any) -> None:
        """The call returned `value`."""
        lane = self.open
        if lane is not None and stamp is lane and now - started < lane.below and now < lane.until:
            lane.durations.append(now - started)
            return
        tracker = self.machine.rules.tracker
        if tracker.judges_values and value is not NO_VALUE:
            try:
                failed = bool(tracker.judge_value(value))
            except Exception as error:
                self.fault("tracker", tracker, error)
                failed = True
            if failed:
                self._failed(
                    stamp,
                    started,
                    now,
                    (value.__class__, clean(f"judged a failure by {in_words(tracker)}")),
                    value,
                )
                return
        wall = self.clock.time()
        duration = max(now - started, 0.0)
        with self.lock:
            counts = self._begin(stamp, now)
            if CallSucceeded in self.routes:
                draft = self._ended(CallSucceeded, stamp, duration, counts, wall)
                draft.slow = duration >= self.machine.rules.slow_threshold
                self.push(draft, CallSucceeded, first=stamp.call_id is None)
            if counts:
                self.machine.succeed(duration, now, wall)
            self._finish(now, wall)
        if stamp.leave:
            self._leave(stamp)

    def raised(self, stamp: Stamp, started: float, error: BaseException) -> None:
        """The call raised `error`, which the breaker raises on."""
        now = self.clock.monotonic()
        if not isinstance(error, Exception) or isinstance(error, WrongColour):
            self._passed_over(CallCancelled, stamp, started, now, None)
            return
        tracker, trace = self.machine.rules.tracker, error.__traceback__
        try:
            asked = tracker.judges_errors and (tracker.names_rejections or not isinstance(error, CallNotPermittedError))
            failed = asked and bool(tracker(error))
        except Exception as fault:
            self.fault("tracker", tracker, fault, FaultOfTheCalls if fault is error else Fault)
            failed = True
        if error.__traceback__ is not trace:
            error.__traceback__ = trace  # some trackers raise it to sort it by `except`
        if failed:
            self._failed(stamp, started, now, (type(error), error_text(error)), error)
        else:
            self._passed_over(CallIgnored, stamp, started, now, error)

    def abandoned(self, stamp: Stamp, started: float) -> None:
        """The call was closed from outside, where nothing can be awaited any more."""
        self._passed_over(CallCancelled, stamp, started, self.clock.monotonic(), None)
        self.deliver_soon()

    def _failed(self, stamp: Stamp, started: float, now: float, error: Cause, outcome: object) -> None:
        wall = self.clock.time()
        duration = max(now - started, 0.0)
        lane = self.open
        if (
            lane is not None
            and stamp is lane
            and duration < lane.below
            and now < lane.open_until
            and self.gather(failure_of(duration, wall), error, lane)
        ):
            return
        retry = self.machine.rules.retry
        try:
            hint = retry.hint(outcome, wall)
        except Exception as fault:
            self.fault("retry", retry, fault)
            hint = None
        with self.lock:
            counts = self._begin(stamp, now)
            if CallFailed in self.routes:
                draft = self._ended(CallFailed, stamp, duration, counts, wall)
                draft.error_type = name_of(error[0])
                draft.error = error[1]
                draft.slow = duration >= self.machine.rules.slow_threshold
                self.push(draft, CallFailed, first=stamp.call_id is None)
            if counts:
                self.machine.fail(duration, now, wall, error, hint)
            self._finish(now, wall)
        if stamp.leave:
            self._leave(stamp)

    def _passed_over(
        self,
        kind: type[CallIgnored] | type[CallCancelled],
        stamp: Stamp,
        started: float,
        now: float,
        error: BaseException | None,
    ) -> None:
        wall = self.clock.time()
        with self.lock:
            counts = self._begin(stamp, now)
            if kind in self.routes:
                draft = self._ended(kind, stamp, max(now - started, 0.0), counts, wall)
                if error is not None:
                    draft.error_type = type_name(error)
                self.push(draft, kind, first=stamp.call_id is None)
            self._finish(now, wall)
        if stamp.leave:
            self._leave(stamp)

    def _ended(self, kind: type[Event], stamp: Stamp, duration: float, counts: bool, wall: float) -> Any:
        draft = self.draft(kind, wall)
        draft.call_id = stamp.call_id
        draft.duration = duration
        draft.stale = not counts
        stamp.ended = draft if stamp.leave else None
        return draft

    def _begin(self, stamp: Stamp, now: float) -> bool:
        self.fold()
        return self.machine.release(stamp, now)

    def _finish(self, now: float, wall: float) -> None:
        self.tell_news()
        self.arrange(now, wall)

    # -- looking and steering -------------------------------------------------------------------------------------

    def info(self) -> CircuitBreakerInfo:
        """The circuit as of now."""
        now = self.clock.monotonic()
        draft: Any = CircuitBreakerInfo.drafts()
        draft.name = self.name
        with self.lock:
            self.fold()
            machine = self.machine
            draft.state = machine.state
            draft.changed_at = machine.changed_at
            draft.reopens = machine.reopens
            draft.metrics = machine.metric(now)
            draft.retry_after = machine.retry_after(now)
            draft.probes = machine.probes_in_flight(now)
        draft.__class__ = CircuitBreakerInfo  # in half the time: listeners look at thousands of circuits
        return draft  # type: ignore[no-any-return]

    def command(self, state: State) -> None:
        """One of the four controls."""
        now, wall = self.clock.monotonic(), self.clock.time()
        with self.lock:
            self.fold()
            self.machine.command(state, now, wall)
            # At once, before anything can raise: a signal handler may have arranged them for the state that was left.
            self.lane = self.open = self.gate = self.heard_gate = None
            self._finish(now, wall)

    def configure(self, **parameters: Any) -> None:
        """Swap rules in place."""
        unknown = [name for name in parameters if name not in CHANGEABLE]
        if unknown:
            raise TypeError(f"configure takes {', '.join(CHANGEABLE)}; got {', '.join(unknown)}")
        now, wall = self.clock.monotonic(), self.clock.time()
        with self.lock:
            rules = amend(self.machine.rules, stacklevel=4, **parameters)
            self.forget_lane()  # a call that ends meanwhile has been judged by the old rules: it does not gather
            self.machine.configure(rules)
            self.publish(Reconfigured, wall, changed=tuple(parameters), **rules.described())
            self._finish(now, wall)

    # -- steering from the bus ------------------------------------------------------------------------------------

    def rewire(self, routes: Routes) -> None:
        """Other listeners than before; the next call finds out whether it needs the lock."""
        with self.lock:
            self.forget_lane()
            self.routes = routes


def _left_by(stamp: Stamp, number: int | None, leaves: list[Leave]) -> Stamp:
    """The stamp of a call that is left so."""
    if leaves:
        if isinstance(stamp, Lane):
            stamp = Stamp(stamp.generation)
            stamp.call_id = number
        stamp.leave = leaves
    return stamp
