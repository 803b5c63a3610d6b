"""The decision core of one circuit: clock, lock, generations and the order of events.

Both breakers share it. It decides under the lock and leaves what is to be told in the `outbox`; the breaker delivers
that after the lock is released (see `_teller`). No code of the user's runs under the lock but the rules, which are pure
by contract.

The fast lane. Where every call is admitted and nobody surrounds calls or asks for `CallStarted`, a call needs no lock
to begin: the generation's `Lane` is its stamp. In a steady stretch (see `_machine`) it needs none to end either: a
plain success is one ``append`` of its duration to the lane, and where somebody listens to successes its event is told
then and there (see `_claims`). So is a failure, while the tripper has some to spare and nobody listens to them. Under
the GIL the look at the lane and the append are one step, so no call is lost or counted twice: whoever takes the lock
closes the lane first, and folds what has gathered in it into the window.

What gathers is bounded: where the last calls suffice no more are kept, and the lane takes outcomes for a second; else
for 2 ms, or for 100 ms where few come. Without the GIL every outcome takes the lock.
"""

import math
import sys
from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, Any

from ._claims import Claim, Direct
from ._clock import Clock
from ._functions import WrongColour
from ._gathered import failure_of
from ._info import CircuitBreakerInfo
from ._news import Cause, Fault, FaultOfTheCalls
from ._routes import Around, at_once
from ._rules import Changes, Rules, amend
from ._stamps import NEVER, Lane, Leave, Stamp
from ._teller import Letter, Teller
from ._text import clean, error_text, in_words, name_of, type_name
from .errors import CallNotPermittedError
from .events import (
    CallCancelled,
    CallFailed,
    CallIgnored,
    CallRejected,
    CallStarted,
    CallSucceeded,
    Event,
    Opening,
    Reconfigured,
)
from .metric import Verdict
from .state import FORCED_OPEN, OPEN, State

if TYPE_CHECKING:
    from ._registry import Reference
    from ._routes import Routes
    from ._subscription import Subscription
    from .bus import Bus

_TOLD_LANE_TIME = 0.01  # seconds
_LANE_TIME = 0.002
_CALM_LANE_TIME = 0.1  # where few calls come
_BOUNDED_LANE_TIME = 1.0  # where only the last calls gather
_FEW = 64
_GIL: bool = getattr(sys, "_is_gil_enabled", lambda: True)()


class _NoValue(Enum):
    NO_VALUE = "no value"


NO_VALUE = _NoValue.NO_VALUE
"""A success without a value that `Returned` could judge: a ``with`` block's."""


class Core(Teller):
    """One circuit, whichever breaker it belongs to."""

    __slots__ = ("__weakref__", "_stretch", "_unheard", "breaker", "gate", "heard_gate", "lane", "open", "with_blocks")

    def __init__(self, name: str, rules: Rules, clock: Clock, bus: "Bus", *, asynchronous: bool) -> None:
        super().__init__(name, rules, clock, bus, asynchronous=asynchronous)
        self.lane: Lane | None = None
        """The stamp of calls that begin without a word to anybody, while they may."""
        self.open: Lane | None = None
        """The lane, while outcomes may gather in it. Those who surround calls close `lane`, and leave this open."""
        self.gate: tuple[float, State, Verdict | None, Opening | None] | None = None
        """While refusals need no lock: until when (monotonic), the state, why the circuit opened, and on what."""
        self.heard_gate: tuple[float, State, Verdict | None, Opening | None, tuple[Subscription, ...]] | None = None
        """The same while those who hear of them can be told at once, and who they are."""
        self.with_blocks: Any = None  # the blocks that are open: see `_face`
        self._stretch: Lane | None = None  # the lane of this generation, open or not
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
        refusal = self._refuse()
        if refusal is not None:
            return refusal
        machine = self.machine
        now, wall = self.clock.monotonic(), self.clock.time()
        refused: Event | None = None
        surrounding = False
        with self.lock:
            self._fold()
            answer: Stamp | CallNotPermittedError | str = machine.admit(now, wall)
            self.tell_news(wall)
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
                self._arrange(now, wall)
                answer = CallNotPermittedError(self.name, machine.state, retry_after, machine.verdict, self.opening)
        if isinstance(answer, CallNotPermittedError):
            self.tell_here(refused)
        elif surrounding:
            return self._enter(answer, answer.call_id, nested)
        return answer

    def _refuse(self) -> CallNotPermittedError | None:
        """A refusal of which those who hear it are told at once; ``None`` where it takes the lock."""
        gate = self.heard_gate
        if gate is None:
            return None
        until, state, verdict, opening, receivers = gate
        left = until - self.clock.monotonic()
        retry_after = left if left < math.inf else None
        draft = self.draft(CallRejected, self.clock.time())
        draft.state = state
        draft.retry_after = retry_after
        draft.reason = "open" if state is OPEN else "forced_open"
        refusal = CallNotPermittedError(self.name, state, retry_after, verdict, opening)
        claim, letter = Claim(), Letter(draft, receivers)
        self.open_outbox()
        # From here on no call, so that nobody comes in between.
        if left <= 0.0 or self.heard_gate is not gate or self.claim is not None:
            return None
        self.claim = claim
        self.sequence = draft.sequence = self.sequence + 1
        draft.__class__ = CallRejected
        outbox: Any = self.outbox
        try:
            outbox.append(letter)
            # up to here.
            self.tell_here(draft)
            self.advance(claim, letter)
        except BaseException:
            self.let_go(claim)
            raise
        return refusal

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
        unheard = CallFailed not in self.routes
        if lane is not None and stamp is lane and unheard and duration < lane.below and now < lane.open_until:
            failure = failure_of(duration, wall, error)
            machine = self.machine
            if self.open is lane and machine.spare > 0:  # from here on no call, so that nobody comes in between
                machine.spare -= 1
                lane.durations.append(failure)
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
        self._fold()
        return self.machine.release(stamp, now)

    def _finish(self, now: float, wall: float) -> None:
        self.tell_news(wall)
        self._arrange(now, wall)

    # -- the fast lane --------------------------------------------------------------------------------------------

    def _fold(self) -> None:
        """Close the lane and the gate, so that nothing slips in before the decision, and take what has gathered."""
        self.lane = self.open = self.heard_gate = None
        stretch = self._stretch
        if stretch is None:
            return
        stretch.close()
        gathered = stretch.durations
        if not gathered:
            return
        fresh = deque[float](maxlen=gathered.maxlen)
        # No call in between: what is appended from now on goes to the other, and nobody takes the same twice. (To make
        # it may have run a finalizer that took what had gathered.)
        gathered = stretch.durations
        stretch.durations = fresh
        if not gathered:
            return
        stretch.calm = len(gathered) < _FEW
        if stretch.generation == self.machine.generation:
            self.machine.take(gathered)

    def _arrange(self, now: float, wall: float) -> None:
        """See which of the next calls need the lock, and for what."""
        machine, lane = self.machine, self._stretch
        if lane is not None and now < lane.open_until and machine.is_steady(now, lane.generation):
            self._reopen(lane)  # as it was: nothing has happened but what the stretch allows
            return
        self.gate = self.lane = self.open = None
        if machine.state is OPEN or machine.state is FORCED_OPEN:
            until = machine.open_until if machine.state is OPEN else math.inf
            gate = (until, machine.state, machine.verdict, self.opening)
            told = at_once(self.routes, CallRejected)
            if CallRejected not in self.routes:
                self.gate = gate
            elif told and _GIL:
                self.heard_gate = (*gate, told)
        elif machine.admits_all and CallStarted not in self.routes and (_GIL or Around not in self.routes):
            if lane is None or lane.generation != machine.generation:
                lane = self._stretch = Lane(machine.generation, machine.rules.window.gathering)
                lane.heard = CallSucceeded in self.routes
                told = at_once(self.routes, CallSucceeded)
                lane.claim = Direct(told, self) if told else None
            lane.open_until = NEVER
            if _GIL and machine.is_steady(now, machine.generation):
                lane.below = machine.rules.plain_below
                lane.open_until = min(machine.steady_until, now + self._lane_time(lane))
                if lane.claim is not None:
                    lane.claim.wall = wall - now
                self._reopen(lane)
            elif Around not in self.routes:
                self.lane = lane  # calls may begin without the lock, though none can end so

    def _lane_time(self, lane: Lane) -> float:
        if lane.heard:
            return _TOLD_LANE_TIME  # its events' times are told by the wall clock of when it was opened
        if lane.durations.maxlen is not None:
            return _BOUNDED_LANE_TIME
        return _CALM_LANE_TIME if lane.calm else _LANE_TIME

    def _reopen(self, lane: Lane) -> None:
        self.open = lane
        lane.open()
        if Around not in self.routes:
            self.lane = lane

    # -- looking and steering -------------------------------------------------------------------------------------

    def info(self) -> CircuitBreakerInfo:
        """The circuit as of now."""
        now = self.clock.monotonic()
        draft: Any = CircuitBreakerInfo.drafts()
        draft.name = self.name
        with self.lock:
            self._fold()
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
            self._fold()
            self.machine.command(state, now, wall)
            self._finish(now, wall)

    def configure(self, **parameters: Any) -> None:
        """Swap rules in place."""
        unknown = [name for name in parameters if name not in Changes.__annotations__]
        if unknown:
            raise TypeError(f"configure takes {', '.join(Changes.__annotations__)}; got {', '.join(unknown)}")
        now, wall = self.clock.monotonic(), self.clock.time()
        with self.lock:
            rules = amend(self.machine.rules, stacklevel=4, **parameters)
            self._fold()
            self.machine.configure(rules)
            self.publish(Reconfigured, wall, changed=tuple(parameters), **rules.described())
            self._finish(now, wall)

    # -- steering from the bus ------------------------------------------------------------------------------------

    def rewire(self, routes: "Routes") -> None:
        """Other listeners than before; the next call finds out whether it needs the lock."""
        with self.lock:
            self._fold()
            self.routes = routes
            self.gate = self._stretch = None


def _left_by(stamp: Stamp, number: int | None, leaves: list[Leave]) -> Stamp:
    """The stamp of a call that is left so."""
    if leaves:
        if isinstance(stamp, Lane):
            stamp = Stamp(stamp.generation)
            stamp.call_id = number
        stamp.leave = leaves
    return stamp
