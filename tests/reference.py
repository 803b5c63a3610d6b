"""A circuit as a slow, plain reading of its rules, for `test_model` to hold the engine against.

Nothing is kept that can be worked out: there is one list of all calls that counted, and every sum, streak and verdict
is counted anew from it at each question. Rules are tuples such as ``("failure_rate", 0.5)``; a tripper is a list of
alternatives, each a list of such conditions that must all hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

Condition = tuple[Any, ...]
Alternatives = tuple[tuple[Condition, ...], ...]
Spec = tuple[Any, ...]

SLICES = 100


@dataclass(frozen=True)
class Rules:
    """The parameters of one circuit, as plain data."""

    window: Spec
    """("count", size) or ("time", seconds)"""
    tracker: Spec
    """("all",), ("only", *error kinds), ("not", *error kinds) or ("returned",): all errors, and the value "bad" """
    tripper: Alternatives
    retry: Spec
    """("cooldown", s), ("backoff", initial, multiplier, longest), ("always",), ("never",) or ("stairs", first, step)"""
    permit: Spec
    """("all",), ("from", seconds), ("until", seconds) or ("odd", seconds): in each second stretch of this length"""
    slow_threshold: float
    max_half_open_calls: int
    half_open_timeout: float


@dataclass(frozen=True)
class Outcome:
    """How a call ends: it returned `value` where `error` is empty, else it raised an error of that kind."""

    error: str = ""
    """"" | "boom" | "quiet" | "refused" (by a nested breaker) | "cancelled" """
    value: str | None = "good"
    text: str = ""


@dataclass(frozen=True)
class Published:
    """One event that listeners are to receive."""

    kind: str
    sequence: int
    fields: dict[str, Any]


@dataclass(frozen=True)
class Sums:
    total: int
    failures: int
    duration: float
    slow: int
    slow_by: dict[float, int]


@dataclass(frozen=True)
class Counted:
    """A call that is in the record."""

    time: float
    wall: float
    duration: float
    failed: bool
    slow: bool
    known: frozenset[float]
    """The thresholds that the tripper has named ever since it ended."""


@dataclass(frozen=True)
class Admitted:
    """A call in flight."""

    number: int
    started: float
    generation: int
    loses_place_at: float | None
    """A probe's."""


@dataclass(frozen=True)
class Refusal:
    state: str
    retry_after: float | None
    reason: str


def wait_of(retry: Spec, reopens: int) -> float | None:
    """Seconds to stay open; ``None`` for ever."""
    match retry:
        case ("cooldown", seconds):
            return float(seconds)
        case ("backoff", initial, multiplier, longest):
            wait = float(initial)
            for _ in range(reopens):
                wait = min(wait * multiplier, longest)
            return float(min(wait, longest))
        case ("always",):
            return 0.0
        case ("never",):
            return None
        case ("stairs", first, step):
            return float(first + step * reopens)
    raise AssertionError(retry)


def admits(permit: Spec, elapsed: float) -> bool:
    """Whether a half-open circuit lets a call try."""
    match permit:
        case ("all",):
            return True
        case ("from", seconds):
            return bool(elapsed >= seconds)
        case ("until", seconds):
            return bool(elapsed < seconds)
        case ("odd", seconds):
            return int(elapsed // seconds) % 2 == 1
    raise AssertionError(permit)


def is_failure(tracker: Spec, outcome: Outcome) -> bool:
    """Whether a call that was not cancelled failed; an error that is no failure is ignored."""
    if not outcome.error:
        return tracker == ("returned",) and outcome.value == "bad"
    match tracker:
        case ("all",) | ("returned",):
            return outcome.error != "refused"
        case ("only", *kinds):
            return outcome.error in kinds
        case ("not", *kinds):
            return outcome.error not in (*kinds, "refused")
    raise AssertionError(tracker)


def named_thresholds(tripper: Alternatives) -> frozenset[float]:
    return frozenset(
        condition[2]
        for conditions in tripper
        for condition in conditions
        if condition[0] == "slow_rate" and condition[2] is not None
    )


def applying(tripper: Alternatives, state: str) -> list[tuple[Condition, ...]]:
    """The alternatives that concern a state."""
    others = {"closed": "half_opened", "half_open": "closed"}
    return [conditions for conditions in tripper if (others[state],) not in conditions]


def bar_met(conditions: tuple[Condition, ...], total: int, waived: bool) -> bool:
    """Whether there is the evidence that an alternative asks for."""
    bars = [1] + [condition[1] for condition in conditions if condition[0] == "min_requests" and not waived]
    return bool(total >= max(bars))


def holds(condition: Condition, sums: Sums, streak: int) -> bool:
    """Whether a condition holds, evidence and state apart."""
    match condition:
        case ("closed",) | ("half_opened",) | ("min_requests", _):
            return True
        case ("failure_rate", ratio):
            return bool(sums.failures / sums.total >= ratio)
        case ("slow_rate", ratio, None):
            return bool(sums.slow / sums.total >= ratio)
        case ("slow_rate", ratio, threshold):
            return bool(sums.slow_by[threshold] / sums.total >= ratio)
        case ("avg_latency", seconds):
            return bool(sums.duration / sums.total >= seconds)
        case ("streak", count):
            return bool(streak >= count)
        case ("successes", count):  # what a tripper of the user's own may be: turned by a success
            return bool(sums.total - sums.failures >= count)
    raise AssertionError(condition)


@dataclass
class Circuit:
    """The circuit. `now` is the monotonic time, `wall` the Unix time of each step."""

    rules: Rules
    created_at: float
    listened: frozenset[str]
    """The kinds of events that somebody listens to."""

    state: str = "closed"
    published: list[Published] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.changed_at = self.created_at
        self.generation = 1
        self.reopens = 0
        self.in_flight: list[Admitted] = []
        self._admitted = 0
        self._record: list[Counted] = []
        self._record_starts = 0
        self._streak_starts = 0
        self._half_open_since = 0.0
        self._open_until: float | None = None
        self._last_error: str | None = None
        self._publish("CircuitCreated", self.created_at)

    # what it is asked

    def sums(self, now: float) -> Sums:
        """The window."""
        calls = list(self._window(now))
        named = named_thresholds(self.rules.tripper)
        return Sums(
            total=len(calls),
            failures=sum(call.failed for call in calls),
            duration=sum(call.duration for call in calls),
            slow=sum(self._is_slow(call) for call in calls),
            slow_by={limit: sum(self._is_slower(call, limit) for call in calls) for limit in named},
        )

    def retry_after(self, now: float) -> float | None:
        if self.state == "half_open":
            return 0.0
        if self.state != "open" or self._open_until is None:
            return None
        return max(self._open_until - now, 0.0)

    def probes(self, now: float) -> int:
        return sum(self._holds_place(call, now) for call in self.in_flight)

    def moments(self) -> Iterator[float]:
        """When something changes by time alone: for a test that wants to be there, or just before."""
        if self.state == "open" and self._open_until is not None:
            yield self._open_until
        if self.state == "half_open":
            yield self._half_open_since + self.rules.half_open_timeout
            yield from (call.loses_place_at for call in self.in_flight if call.loses_place_at is not None)
        if self.rules.window[0] == "time":
            width = self.rules.window[1] / SLICES
            yield from (
                (math.floor(call.time / width) + SLICES) * width for call in self._record[self._record_starts :]
            )

    # what happens to it

    def admit(self, now: float, wall: float) -> Admitted | Refusal:
        """A call asks to pass."""
        if self.state == "open" and self._open_until is not None and now >= self._open_until:
            self._move("half_open", "retry", now, wall)
        reason = self._objection(now)
        if reason:
            after = self.retry_after(now)
            self._publish("CallRejected", wall, retry_after=after, reason=reason)
            return Refusal(self.state, after, reason)
        self._admitted += 1
        limit = now + self.rules.half_open_timeout if self.state == "half_open" else None
        call = Admitted(self._admitted, now, self.generation, limit)
        self.in_flight.append(call)
        self._publish("CallStarted", wall, call=call.number)
        return call

    def settle(self, call: Admitted, outcome: Outcome, now: float, wall: float) -> None:
        """A call that passed ends."""
        counts = call.generation == self.generation and (call.loses_place_at is None or now < call.loses_place_at)
        self.in_flight.remove(call)
        duration = now - call.started
        told: dict[str, Any] = {"call": call.number, "duration": duration, "stale": not counts}
        if outcome.error == "cancelled":
            self._publish("CallCancelled", wall, **told)
            return
        failed = is_failure(self.rules.tracker, outcome)
        if outcome.error and not failed:
            self._publish("CallIgnored", wall, error=outcome.error, **told)
            return
        slow = duration >= self.rules.slow_threshold
        if failed:
            self._publish("CallFailed", wall, slow=slow, error=outcome.error or "returned", text=outcome.text, **told)
        else:
            self._publish("CallSucceeded", wall, slow=slow, **told)
        if not counts:
            return
        if self.state == "disabled":
            return
        if failed:
            self._last_error = outcome.text
        self._record.append(Counted(now, wall, duration, failed, slow, named_thresholds(self.rules.tripper)))
        self._decide(failed, now, wall)

    def fall_back(self, error: str, wall: float) -> None:
        """A fallback answers for a call that failed or was refused."""
        self._publish("FallbackUsed", wall, error=error)

    def command(self, state: str, now: float, wall: float) -> None:
        """Somebody uses a control."""
        if self.state != state:
            self._move(state, "manual", now, wall)
        elif state == "closed":
            self.generation += 1
            self._forget()

    def configure(self, wall: float, **changed: Any) -> None:
        """Somebody swaps rules."""
        self.rules = replace(self.rules, **changed)
        named = named_thresholds(self.rules.tripper)
        self._record = [replace(call, known=call.known & named) for call in self._record]
        self._publish("Reconfigured", wall, changed=set(changed))

    # how it decides

    def _decide(self, failed: bool, now: float, wall: float) -> None:
        if self.state == "half_open" and not applying(self.rules.tripper, "half_open"):
            if failed:
                self._open(now, wall)
            else:
                self._move("closed", "recovery", now, wall)
        elif self._trips(now):
            if self.state == "metrics_only":
                self._publish("WouldOpen", wall, **self._figures(now))
                self._forget()
            else:
                self._open(now, wall)
        elif self.state == "half_open" and not failed and self._recovered(now):
            self._move("closed", "recovery", now, wall)

    def _trips(self, now: float) -> bool:
        sums = self.sums(now)
        streak = 0
        for call in self._record[self._streak_starts :]:
            streak = streak + 1 if call.failed else 0
        return any(
            bar_met(conditions, sums.total, self._waived(now))
            and all(holds(condition, sums, streak) for condition in conditions)
            for conditions in applying(self.rules.tripper, self._judged_as())
        )

    def _recovered(self, now: float) -> bool:
        total = self.sums(now).total
        return all(
            bar_met(conditions, total, self._waived(now)) for conditions in applying(self.rules.tripper, "half_open")
        )

    def _judged_as(self) -> str:
        return "half_open" if self.state == "half_open" else "closed"

    def _waived(self, now: float) -> bool:
        return self.state == "half_open" and now - self._half_open_since >= self.rules.half_open_timeout

    def _objection(self, now: float) -> str:
        if self.state in ("open", "forced_open"):
            return self.state
        if self.state == "half_open":
            if self.probes(now) >= self.rules.max_half_open_calls:
                return "probes_in_flight"
            if not admits(self.rules.permit, now - self._half_open_since):
                return "not_chosen"
        return ""

    def _holds_place(self, call: Admitted, now: float) -> bool:
        return call.generation == self.generation and call.loses_place_at is not None and now < call.loses_place_at

    def _open(self, now: float, wall: float) -> None:
        self._move("open", "tripper", now, wall)

    def _move(self, state: str, trigger: str, now: float, wall: float) -> None:
        old = self.state
        figures = self._figures(now)
        wait = None
        if state == "open":
            if old == "half_open":
                self.reopens += 1
            wait = wait_of(self.rules.retry, self.reopens)
            self._open_until = None if wait is None else now + wait
        elif state == "half_open":
            self._half_open_since = now
        else:  # the outage, if there was one, is over or taken care of
            self.reopens = 0
        self.generation += 1
        self.state, self.changed_at = state, wall
        self._streak_starts = len(self._record)
        if state in ("closed", "half_open", "metrics_only"):
            self._forget()
        self._publish(
            "StateChanged",
            wall,
            old_state=old,
            new_state=state,
            trigger=trigger,
            wait=wait,
            reopens=self.reopens,
            generation=self.generation,
            **figures,
        )

    def _forget(self) -> None:
        self._record_starts = self._streak_starts = len(self._record)

    # what it remembers

    def _window(self, now: float) -> Iterator[Counted]:
        calls = self._record[self._record_starts :]
        kind, size = self.rules.window
        if kind == "count":
            yield from calls[-size:]
        else:
            width = size / SLICES
            yield from (call for call in calls if math.floor(call.time / width) > math.floor(now / width) - SLICES)

    def _is_slow(self, call: Counted) -> bool:
        # a count window keeps each duration and can judge it anew, a time window keeps the judgement of the day
        return call.duration >= self.rules.slow_threshold if self.rules.window[0] == "count" else call.slow

    def _is_slower(self, call: Counted, limit: float) -> bool:
        return call.duration >= limit and (self.rules.window[0] == "count" or limit in call.known)

    def _figures(self, now: float) -> dict[str, Any]:
        failures = [call.wall for call in self._window(now) if call.failed]
        return {
            "sums": self.sums(now),
            "failing_since": failures[0] if failures else None,
            "last_error": self._last_error if failures else None,
        }

    def _publish(self, kind: str, wall: float, **fields: Any) -> None:
        if kind in self.listened:
            told = {"timestamp": wall, "state": self.state, **fields}
            self.published.append(Published(kind, len(self.published) + 1, told))
