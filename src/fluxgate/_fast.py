"""Outcomes and refusals that need no lock.

The fast lane. Where every call is admitted and nobody surrounds calls or asks for `CallStarted`, a call needs no lock
to begin: the generation's `Lane` is its stamp. In a steady stretch (see `_machine`) it needs none to end either: a
plain success is one ``append`` of its duration to the lane, and where somebody listens to successes its event is told
then and there (see `_claims`). So is a failure, while the tripper has some to spare and nobody listens to them. Under
the GIL the look at the lane and the append are one step, so no call is lost or counted twice: whoever takes the lock
closes the lane first, and folds what has gathered in it into the window.

What gathers is bounded: where the last calls suffice no more are kept, and the lane takes outcomes for a second; else
for 2 ms, or for 100 ms where few come. Without the GIL every outcome takes the lock.

Refusals need none while the circuit stays open and nobody hears of them. What is heard, refusals and failures to spare,
is decided, numbered and told without it where nobody delivers and nothing waits, and everybody who hears it can be
called at once; only the look whether something has come meanwhile takes it.
"""

from __future__ import annotations

import math
import time

from . import _gil
from ._claims import SILENT, Claim, Direct
from ._gathered import Failure
from ._news import Cause, Letter
from ._routes import Around, at_once
from ._rules import Rules
from ._stamps import NEVER, Lane
from ._teller import Teller
from ._text import name_of
from ._typing import TYPE_CHECKING
from .errors import CallNotPermittedError
from .events import CallFailed, CallRejected, CallStarted, CallSucceeded, Opening
from .metric import Verdict
from .state import FORCED_OPEN, OPEN, State

if TYPE_CHECKING:
    from ._protocols import Clock
    from ._subscription import Subscription
    from .bus import Bus

_TOLD_LANE_TIME = 0.01  # seconds
_LANE_TIME = 0.002
_CALM_LANE_TIME = 0.1  # where few calls come
_BOUNDED_LANE_TIME = 1.0  # where only the last calls gather
_FEW = 64
_MONOTONIC = time.monotonic  # patched by some tests of programs


class Fast(Teller):
    """The fast half of a circuit's core."""

    __slots__ = ("_stretch", "gate", "heard_gate", "lane", "open")

    def __init__(self, name: str, rules: Rules, clock: Clock, bus: Bus, *, asynchronous: bool) -> None:
        super().__init__(name, rules, clock, bus, asynchronous=asynchronous)
        self.lane: Lane | None = None
        """The stamp of calls that begin without a word to anybody, while they may."""
        self.open: Lane | None = None
        """The lane, while outcomes may gather in it. Those who surround calls close `lane`, and leave this open."""
        self.gate: tuple[float, State, Verdict | None, Opening | None] | None = None
        """While refusals need no lock: until when (monotonic), the state, why the circuit opened, and on what."""
        self.heard_gate: tuple[float, State, Verdict | None, Opening | None, tuple[Subscription, ...]] | None = None
        """The same while those who hear of them can be told at once, and who they are."""
        self._stretch: Lane | None = None  # the lane of this generation, open or not

    def fold(self) -> None:
        """Close the lane and the gate, so that nothing slips in before the decision, and take what has gathered.

        What an interrupt has left of an earlier decision, news that nobody has told and calls that nobody has recorded,
        is seen to first.
        """
        self.lane = self.open = self.gate = self.heard_gate = None
        if self.machine.news:
            self.tell_news()
        stretch = self._stretch
        if stretch is None:
            return
        stretch.close()
        if not stretch.durations and not stretch.taken:
            return
        taken = stretch.take()
        stretch.calm = len(taken) < _FEW
        if stretch.generation == self.machine.generation:
            if stretch.cause is not None:
                self.machine.last_error, stretch.cause = stretch.cause, None
            self.machine.take(taken)
        else:
            taken.clear()

    def arrange(self, now: float, wall: float) -> None:
        """See which of the next calls need the lock, and for what.

        A signal handler, or a finalizer, that calls this breaker meanwhile arranges it by itself: what was seen before
        it came is then no longer true, and is left alone.
        """
        machine, lane, routes, generation = self.machine, self._stretch, self.routes, self.machine.generation
        if lane is not None:
            if now < lane.open_until and machine.is_steady(now, lane.generation):
                self._reopen(lane)  # as it was: nothing has happened but what the stretch allows
                return
            lane.close()  # one that came since `fold` may have opened it
        self.gate = self.heard_gate = self.lane = self.open = None
        if machine.state is OPEN or machine.state is FORCED_OPEN:
            until = machine.open_until if machine.state is OPEN else math.inf
            gate = (until, machine.state, machine.verdict, self.opening)
            told = at_once(routes, CallRejected)
            heard_gate = (*gate, told) if told and _gil.GIL else None
            if machine.generation != generation or self.routes is not routes:
                return
            if CallRejected in routes:
                self.heard_gate = heard_gate
            else:
                self.gate = gate
        elif machine.admits_all and CallStarted not in routes and (_gil.GIL or Around not in routes):
            if lane is None or lane.generation != generation:
                told = at_once(routes, CallSucceeded)
                # of a clock that can be set back each duration has to be looked at: a program's own is by the wrapper
                steady_clock = self.clock is not time or time.monotonic is _MONOTONIC
                claim = Direct(told, self) if told and steady_clock else SILENT
                fresh = Lane(generation, machine.rules.window.gathering, claim)
                fresh.heard = CallSucceeded in routes
                fresh.failures_to = at_once(routes, CallFailed)
                if self._stretch is not lane or machine.generation != generation or self.routes is not routes:
                    return
                lane = self._stretch = fresh
            lane.open_until = NEVER
            if _gil.GIL and machine.is_steady(now, generation):
                lane.below = machine.rules.plain_below
                lane.open_until = min(machine.steady_until, now + self._lane_time(lane))
                if lane.claim is not SILENT:
                    lane.claim.wall = wall - now
                self._reopen(lane)
            elif Around not in routes and self._stretch is lane and machine.generation == generation:
                self.lane = lane  # calls may begin without the lock, though none can end so

    def _lane_time(self, lane: Lane) -> float:
        if lane.heard:
            return _TOLD_LANE_TIME  # its events' times are told by the wall clock of when it was opened
        if self.machine.rules.window.gathering is not None:
            return _BOUNDED_LANE_TIME
        return _CALM_LANE_TIME if lane.calm else _LANE_TIME

    def _reopen(self, lane: Lane) -> None:
        machine = self.machine
        # From here on no call, so that nobody comes in between (see `arrange`).
        if self._stretch is not lane or machine.generation != lane.generation or machine.steady_until < lane.open_until:
            return
        self.open = lane
        if not lane.heard:
            lane.until = lane.open_until
        elif lane.claim is not SILENT:
            lane.claim.until = lane.open_until
        if Around not in self.routes:
            self.lane = lane

    def forget_lane(self) -> None:
        """The listeners or the rules change: the next call finds out what is plain, and who is to be told at once."""
        self.fold()
        self._stretch = None

    def refuse(self) -> CallNotPermittedError | None:
        """A refusal of which those who hear it are told at once; ``None`` where it takes the lock."""
        gate = self.heard_gate
        if gate is None:
            return None
        until, state, verdict, opening, receivers = gate
        left = until - self.clock.monotonic()
        if left <= 0.0 or self.claim is not None:
            return None  # before anything is made; looked at again below
        retry_after = left if left < math.inf else None
        draft = self.draft(CallRejected, self.clock.time())
        if self.careful is not None and self.careful.fault is not None:
            return None  # by a clock that fails the wait may never end: that is told under the lock
        draft.state = state
        draft.retry_after = retry_after
        draft.reason = "open" if state is OPEN else "forced_open"
        refusal = CallNotPermittedError(self.name, state, retry_after, verdict, opening)
        claim, letter = Claim(), Letter(draft, receivers)
        outbox = self.open_outbox()
        # From here on no call, so that nobody comes in between.
        if self.heard_gate is not gate or self.claim is not None:
            return None
        self.claim = claim
        self.sequence = draft.sequence = self.sequence + 1
        draft.__class__ = CallRejected
        try:
            outbox.append(letter)
            self.tell_here(draft)
            self._tell_on(claim, letter)
        except BaseException:
            self.let_go(claim, letter)
            raise
        return refusal

    def gather(self, failure: Failure, cause: Cause, lane: Lane) -> bool:
        """Let a failure gather, and be told at once where somebody hears of it; whether the tripper can spare it."""
        machine = self.machine
        if CallFailed not in self.routes:
            if self.open is not lane or machine.spare <= 0:
                return False
            # From the look at the lane on no call, so that nobody comes in between.
            machine.spare -= 1
            lane.cause = cause
            lane.durations.append(failure)
            return True
        if not lane.failures_to or machine.spare <= 0 or self.claim is not None:
            return False  # before anything is made; looked at again below
        draft = self.draft(CallFailed, failure.at)
        draft.duration = failure.duration
        draft.error_type = name_of(cause[0])
        draft.error = cause[1]
        draft.stale = draft.slow = False
        claim, letter = Claim(), Letter(draft, lane.failures_to)
        outbox = self.open_outbox()
        if self.open is not lane or machine.spare <= 0 or self.claim is not None:
            return False
        machine.spare -= 1
        lane.cause = cause
        self.claim = claim
        self.sequence = draft.sequence = draft.call_id = self.sequence + 1
        draft.__class__ = CallFailed
        try:
            lane.durations.append(failure)
            outbox.appendleft(letter)
            self._tell_on(claim, letter)
        except BaseException:
            self.let_go(claim, letter)
            raise
        return True

    def _tell_on(self, claim: Claim, letter: Letter) -> None:
        """Deliver from that letter on; what came meanwhile and must be awaited is left to the call, which can."""
        if self.advance(claim, letter) is not None:
            self.let_go(claim)
            if claim.interrupt is not None:
                raise claim.interrupt
