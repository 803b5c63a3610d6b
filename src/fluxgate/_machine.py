"""Every rule by which a circuit moves; no clock, no lock, no I/O.

1.  A circuit is in one of six states; `MOVES` lists the legal moves by their trigger. Each move begins a new
    generation. Whatever is settled later with an older generation's stamp is stale: reported, never counted.
2.  CLOSED and METRICS_ONLY admit all and record successes and failures. DISABLED admits all and records nothing.
    OPEN and FORCED_OPEN refuse all; an OPEN circuit whose wait is over becomes HALF_OPEN as the next call comes.
3.  HALF_OPEN admits a call as a probe when a place is free and the permit chooses it. A probe that has not settled
    in time gives its place back, and its outcome is stale. Nobody queues.
4.  After each recorded outcome, success or failure, the tripper is asked. CLOSED or HALF_OPEN opens when it trips.
5.  HALF_OPEN closes on a success when every branch of the tripper that applies has its evidence and none trips.
    Once HALF_OPEN has lasted `half_open_timeout`, MinRequests counts as met. Where no branch applies to HALF_OPEN,
    the first success closes and the first failure opens.
6.  The wait is asked for once an opening. `reopens` counts HALF_OPEN -> OPEN since the circuit was last CLOSED.
7.  The window starts afresh where recording starts: in CLOSED, HALF_OPEN and METRICS_ONLY. The states that record
    nothing keep the window that led to them, so that it can still be read.
8.  METRICS_ONLY asks the tripper as if it were CLOSED; on a hit it says so and re-arms with an empty window.
9.  A rule of the user's that raises decides nothing (a permit then admits, a retry waits 60 s) and is reported.

One shortcut, which changes no answer: in a steady stretch a plain success (not slow by any threshold) is recorded
without asking, because it can only lower what the tripper compares, and so are as many failures as the tripper can
spare. A stretch ends where a call is forgotten by time, where the calls reach a `MinRequests`, and where anything else
is recorded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

from ._news import Cause, Change, Fault, Hit
from ._rules import Rules
from ._stamps import NEVER, Stamp
from ._text import in_words, name_of, seconds_in_words
from ._trace import trace_ids
from ._typing import TYPE_CHECKING
from .events import LastError
from .metric import Metric, Verdict
from .state import CLOSED, DISABLED, FORCED_OPEN, HALF_OPEN, METRICS_ONLY, OPEN, State, Trigger
from .windows import Record as WindowRecord

if TYPE_CHECKING:
    from typing import Any

_EVERY = frozenset(State)
_BY_HAND = _EVERY - {OPEN, HALF_OPEN}

MOVES: Mapping[Trigger, Mapping[State, frozenset[State]]] = MappingProxyType(
    {
        Trigger.TRIPPER: {CLOSED: frozenset((OPEN,)), HALF_OPEN: frozenset((OPEN,))},
        Trigger.RETRY: {OPEN: frozenset((HALF_OPEN,))},
        Trigger.RECOVERY: {HALF_OPEN: frozenset((CLOSED,))},
        Trigger.MANUAL: {state: _BY_HAND - {state} for state in State},
        Trigger.REMOTE: {state: _EVERY - {state} for state in State},
    }
)
"""The legal moves: trigger -> old state -> new states."""

RECORDING = frozenset((CLOSED, HALF_OPEN, METRICS_ONLY))
ADMITTING = frozenset((CLOSED, METRICS_ONLY, DISABLED))
_STAND_IN_WAIT = 60.0

_WORDS_BY_HAND = {
    CLOSED: "reset by hand",
    METRICS_ONLY: "set to metrics only by hand",
    DISABLED: "disabled by hand",
    FORCED_OPEN: "forced open by hand",
}


class Machine:
    """One circuit's state. `now` is monotonic seconds, `wall` Unix seconds; what happened is left in `news`."""

    __slots__ = (
        "_bar",
        "_half_open_since",
        "_probes",
        "_record",
        "_steady_from",
        "_wait",
        "changed_at",
        "generation",
        "last_error",
        "news",
        "open_until",
        "reopens",
        "rules",
        "spare",
        "state",
        "steady_until",
        "verdict",
    )

    def __init__(self, rules: Rules, wall: float) -> None:
        self.rules = rules
        self.state = CLOSED
        self.changed_at = wall
        self.generation = 1
        self.reopens = 0
        self.open_until = NEVER
        self.verdict: Verdict | None = None
        self.news: list[Change | Hit | Fault] | None = None  # most circuits never have any
        self._wait = 0.0
        self._half_open_since = NEVER
        self._probes: dict[Stamp, None] | None = None  # made with the first
        self.last_error: Cause | None = None
        """Of the last failure."""
        self.spare = 0.0
        """Failures that the tripper need not be asked about in this steady stretch."""
        self._bar = math.inf
        """The calls at which the steady stretch ends, while it lasts."""
        self._steady_from = 0.0  # outlives its stretch, whose last successes may still be in the lane
        self._start_recording()

    def open_news(self) -> list[Change | Hit | Fault]:
        """`news`, to be added to."""
        fresh: list[Change | Hit | Fault] = []
        if self.news is None:  # asked when the list is there: making it may run a finalizer that has news as well
            self.news = fresh
        return self.news

    def _start_recording(self) -> None:
        self.steady_until = NEVER
        self._record: WindowRecord | None = None

    @property
    def record(self) -> WindowRecord:
        """The window, made when first asked for: a circuit that is not called needs none."""
        while (record := self._record) is None:
            rules = self.rules
            fresh = rules.window.open(rules.slow_threshold, rules.tripper.thresholds)
            if self._record is None and self.rules is rules:  # a signal handler may have called this breaker meanwhile
                self._record = fresh
        return record

    def metric(self, now: float) -> Metric:
        """The window's sums, for whoever looks: what that forgets ends a steady stretch, as the next outcome would."""
        if now >= self.steady_until:
            self.steady_until = NEVER
        return self.record.metric(now)

    # -- admission ------------------------------------------------------------------------------------------------

    def admit(self, now: float, wall: float) -> Stamp | str:
        """A stamp for the call, or why not in a word (rules 2 and 3)."""
        if self.state is OPEN:
            if now < self.open_until:
                return "open"
            seen = self.generation
            waited = Verdict(
                in_words(self.rules.retry),
                True,
                f"the wait of {seconds_in_words(self._wait)} is over",
                self._wait,
                self._wait,
            )
            self._move(HALF_OPEN, Trigger.RETRY, waited, now, wall, seen)
        if self.state is HALF_OPEN:
            return self._admit_probe(now)
        if self.state is FORCED_OPEN:
            return "forced_open"
        return Stamp(self.generation)

    def _admit_probe(self, now: float) -> Stamp | str:
        if self.probes_in_flight(now) >= self.rules.max_half_open_calls:
            return "probes_in_flight"
        try:
            chosen = bool(self.rules.permit(now - self._half_open_since))
        except Exception as error:
            self.open_news().append(Fault(role="permit", rule=self.rules.permit, error=error))
            chosen = True
        if not chosen:
            return "not_chosen"
        probe = Stamp(self.generation, now + self.rules.half_open_timeout)
        first: dict[Stamp, None] = {probe: None}
        # From here on there is no call, in which a signal handler might admit another or move the circuit.
        if self._probes is None:
            self._probes = first
        else:
            self._probes[probe] = None
        return probe

    def probes_in_flight(self, now: float) -> int:
        """The places that are taken."""
        probes = self._probes or {}
        late = [probe for probe in probes if probe.deadline is not None and now >= probe.deadline]
        for probe in late:
            del probes[probe]
        return len(probes)

    def retry_after(self, now: float) -> float | None:
        """Seconds until a call may pass; ``None`` where no wait is running or only a person can end it."""
        if self.state is OPEN and self.open_until < math.inf:
            return max(self.open_until - now, 0.0)
        return 0.0 if self.state is HALF_OPEN else None

    # -- outcomes -------------------------------------------------------------------------------------------------

    def release(self, stamp: Stamp, now: float) -> bool:
        """Take back a call's stamp, and its place if it is a probe; whether its outcome may still decide."""
        if stamp.deadline is None:
            return stamp.generation == self.generation
        probes = self._probes
        if probes is None or stamp not in probes:
            return False
        del probes[stamp]
        return now < stamp.deadline and stamp.generation == self.generation

    def succeed(self, duration: float, now: float, wall: float) -> None:
        """Record a success of this generation and decide (rules 4, 5 and 8)."""
        if self.state in RECORDING:
            (self._record or self.record).add(now, wall, duration, failed=False)
            # From here on no call (see `_settle_down`).
            if duration >= self.rules.plain_below:
                self.steady_until = NEVER
            self._decide(now, wall, failed=False)

    def fail(self, duration: float, now: float, wall: float, error: Cause, hint: float | None = None) -> None:
        """Record a failure of this generation and decide; `hint` is the wait in seconds that it asked for."""
        if self.state in RECORDING:
            self.last_error = error
            (self._record or self.record).add(now, wall, duration, failed=True)
            # From here on no call (see `_settle_down`).
            plain = duration < self.rules.plain_below
            if plain and self.spare > 0 and now < self.steady_until and self._bar == math.inf:
                self.spare -= 1
                return
            self.steady_until = NEVER
            self._decide(now, wall, failed=True, hint=hint)

    def take(self, calls: list[float]) -> None:
        """Record what has gathered while `is_steady` held, and decides nothing: plain successes, failures to spare."""
        self.record.add_gathered(self._steady_from, calls)

    # -- decisions ------------------------------------------------------------------------------------------------

    def _decide(self, now: float, wall: float, *, failed: bool, hint: float | None = None) -> None:
        seen, record = self.generation, self._record
        if record is None or (now < self.steady_until and record.total(now) < self._bar):
            return
        self.steady_until = NEVER
        if self.state not in RECORDING:
            return  # as in `_move`: moved meanwhile
        tripper = self.rules.tripper
        half_open = self.state is HALF_OPEN
        asked_as = HALF_OPEN if half_open else CLOSED
        patient = not half_open or now - self._half_open_since < self.rules.half_open_timeout
        metric = record.metric(now)
        classic = half_open and not tripper.applies(asked_as)
        try:
            trips = failed if classic else tripper.trips(metric, asked_as, record.streak, patient=patient)
            recovers = half_open and not failed and (classic or tripper.evidenced(metric, asked_as, patient=patient))
            if not trips and not recovers:
                self._settle_down(record, metric, now)
                return
        except Exception as error:
            self.open_news().append(Fault(role="tripper", rule=tripper, error=error))
            return
        if classic:
            verdict = Verdict(in_words(tripper), trips, f"the first probe {'failed' if failed else 'succeeded'}")
        else:
            verdict = self._explain(metric, asked_as, record.streak, patient, trips)
        if not trips:
            self._move(CLOSED, Trigger.RECOVERY, verdict, now, wall, seen)
        elif self.state is METRICS_ONLY:
            news = self.open_news()
            hit = Hit(state=METRICS_ONLY, verdict=verdict, **self._evidence(record, metric, now, wall))
            if self._record is not record:
                return  # as in `_move`, and from here on as there
            self._record = None
            self.steady_until = NEVER
            news.append(hit)
        else:
            self._move(OPEN, Trigger.TRIPPER, verdict, now, wall, seen, hint=hint)

    def _explain(self, metric: Metric, state: State, streak: int, patient: bool, trips: bool) -> Verdict:
        tripper = self.rules.tripper
        try:
            return tripper.explain(metric, state, streak, patient=patient)
        except Exception as error:
            self.open_news().append(Fault(role="tripper", rule=tripper, error=error))
            return Verdict(type(tripper).__name__, trips)

    def _settle_down(self, record: WindowRecord, metric: Metric, now: float) -> None:
        """Begin a steady stretch where the rules and the state allow one.

        A signal handler, or a finalizer, that calls this breaker after the last one has ended begins one of its own, in
        which calls may have gathered of which nothing is known here: that one stands.
        """
        rules = self.rules
        tripper = rules.tripper
        if self.state is not HALF_OPEN and tripper.steady:
            bar = next((bar for bar in tripper.bars if bar > metric.total_count), math.inf)
            # of the last calls that gather, one at least is then a success: so it is known how many failed since
            spare = min(tripper.spare(metric, record.streak), rules.window.capacity - 1)
            steady_until = record.steady_until()
            if self._record is not record or self.rules is not rules or self.steady_until != NEVER:
                return
            # From here on no call.
            self._bar = bar
            self.spare = spare
            self._steady_from = now
            self.steady_until = steady_until

    @property
    def admits_all(self) -> bool:
        """Whether the state lets every call pass, with nothing to decide."""
        return self.state in ADMITTING

    def is_steady(self, now: float, generation: int) -> bool:
        """Whether its plain outcomes may gather, with no `MinRequests` ahead, and be recorded together later."""
        return (
            generation == self.generation
            and now < self.steady_until
            and self._bar == math.inf
            and not self.rules.tracker.judges_values
        )

    def _evidence(self, record: WindowRecord, metric: Metric, now: float, wall: float) -> dict[str, Any]:
        """What both kinds of news tell of the window and the moment that decided."""
        last_error: LastError | None = None
        if self.last_error is not None and metric.failure_count:
            kind, text = self.last_error
            last_error = LastError(type=name_of(kind), text=text)
        trace_id, span_id = trace_ids()
        return {
            "timestamp": wall,
            "metrics": metric,
            "failing_since": record.failing_since(now),
            "last_error": last_error,
            "trace_id": trace_id,
            "span_id": span_id,
        }

    # -- moves ----------------------------------------------------------------------------------------------------

    def command(self, state: State, now: float, wall: float) -> None:
        """A control: move by hand. To the state that it is in already: nothing, but a reset still forgets."""
        seen = self.generation
        if self.state is not state:
            self._move(state, Trigger.MANUAL, Verdict("manual", True, _WORDS_BY_HAND[state]), now, wall, seen)
        elif state is CLOSED:
            self._start_recording()
            self.generation += 1

    def configure(self, rules: Rules) -> None:
        """Put other rules in force; the window and a wait that is running stay."""
        thresholds = rules.tripper.thresholds
        while (record := self._record) is not None:
            record.rejudge(rules.slow_threshold, thresholds)
            if self._record is record:  # else a signal handler has called this breaker meanwhile
                break
        # From the last look at it on no call: the window is judged by the rules that are in force.
        self.rules = rules
        self.steady_until = NEVER

    def _move(
        self,
        state: State,
        trigger: Trigger,
        verdict: Verdict,
        now: float,
        wall: float,
        seen: int,
        *,
        hint: float | None = None,
    ) -> None:
        record = self.record
        evidence = self._evidence(record, record.metric(now), now, wall)
        old = self.state
        if state not in MOVES[trigger].get(old, ()) and self.generation == seen:
            raise RuntimeError(f"a circuit cannot move from {old} to {state} by {trigger}")
        reopens = self.reopens if state in (OPEN, HALF_OPEN) else 0
        wait = 0.0
        if state is OPEN:
            reopens += old is HALF_OPEN
            wait = self._ask_wait(reopens, hint)
        afresh = state in RECORDING
        news = self.open_news()
        change = Change(
            state=state,
            old_state=old,
            new_state=state,
            trigger=trigger,
            verdict=verdict,
            wait=wait if state is OPEN and wait < math.inf else None,
            reopens=reopens,
            generation=seen + 1,
            **evidence,
        )
        if self.generation != seen:
            return  # a signal handler, or a finalizer, has called this breaker while it decided, and moved it
        # Up to the last line there is no call, so that none of those can come in between.
        self.generation = seen + 1
        self.state = state
        self.changed_at = wall
        self.reopens = reopens
        self._probes = None
        self.steady_until = NEVER
        if state is OPEN:
            self._wait = wait
            self.open_until = now + wait
            self.verdict = verdict
        elif state is HALF_OPEN:
            self._half_open_since = now
        else:
            self.verdict = verdict if state is FORCED_OPEN else None
        if afresh:
            self._record = None
        news.append(change)

    def _ask_wait(self, reopens: int, hint: float | None) -> float:
        try:
            wait = float(self.rules.retry.wait_after(reopens, hint))
            if not wait >= 0:  # written so that NaN is refused as well
                raise ValueError(f"wait() must give at least 0 seconds, got {wait!r}")
        except Exception as error:
            self.open_news().append(Fault(role="retry", rule=self.rules.retry, error=error))
            return _STAND_IN_WAIT
        return wait
