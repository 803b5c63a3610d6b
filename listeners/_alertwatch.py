"""How alerts watch one circuit, or one listener: what begins, how long it lasts, and when it is over.

A watch is told what happens and decides in `tick`; it knows no lock, no thread and no sink. `now` is the listener's
monotonic clock, so that no circuit's wall clock can shorten or prolong anything; Unix times are for people to read. A
time is over at ``begin + seconds``, and not when ``now - begin`` says so, which may be a rounding error short of it.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from fluxgate import CircuitBreakerInfo
from fluxgate._text import calls_in_words, seconds_in_words
from fluxgate.events import (
    CallRejected,
    CircuitRetired,
    Event,
    EventsDropped,
    LastError,
    ListenerFailed,
    StateChanged,
)
from fluxgate.metric import Metric
from fluxgate.state import State, Trigger

from ._render import printable
from .names import Severity

if TYPE_CHECKING:
    from ._alert import Alert

OUT = frozenset((State.OPEN, State.HALF_OPEN))
REFUSING = OUT | {State.FORCED_OPEN}
_SLICES = 10
_ROUNDING = 1e-9


class Findings(NamedTuple):
    """What a watch has found: an alert without its name."""

    circuit_name: str
    summary: str
    since: float
    listener: str | None = None
    severity: Severity | None = None
    """Where it is not the rule's."""
    reason: str | None = None
    metrics: Metric | None = None
    failing_since: float | None = None
    last_error: LastError | None = None
    trace_id: str | None = None
    span_id: str | None = None


def _explanation(event: StateChanged | None) -> dict[str, Any]:
    """Why the circuit opened, as the event told it."""
    if event is None:
        return {}
    keys = ("reason", "metrics", "failing_since", "last_error", "trace_id", "span_id")
    return {key: getattr(event, key) for key in keys}


def _because(reason: str | None) -> str:
    return "" if reason is None else f": {reason}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


class Watch:
    """One rule's view of one circuit or listener."""

    __slots__ = ("findings", "firing", "over", "seen")

    def __init__(self) -> None:
        self.findings: Findings | None = None
        """Not ``None`` while the alert is to fire."""
        self.over = ""
        """How that ended, in a sentence."""
        self.firing: Alert | None = None
        """What was told last, until it resolves."""
        self.seen = False
        """What it knows comes from a look at the circuits as well, and what they did before may still be told."""

    def on(self, event: Any, now: float) -> None:
        """Something happened."""

    def see(self, infos: Sequence[CircuitBreakerInfo], now: float, wall: float) -> None:
        """How the living circuits of the name stand: one, usually."""

    def tick(self, now: float) -> None:
        """Decide."""

    def idle(self, now: float) -> bool:
        """Whether it holds nothing that a new one would not."""
        raise NotImplementedError

    def end(self, text: str) -> None:
        """It is over."""
        self.findings, self.over = None, printable(text)


class Outage(Watch):
    """The circuits of a name from when the first of them opens until the last has closed, or is in somebody's hands."""

    __slots__ = ("_began", "_found", "_out", "_states", "_wait")

    def __init__(self, states: frozenset[State], wait: float = 0.0) -> None:
        super().__init__()
        self._states = states
        self._wait = wait
        self._out = 0  # circuits
        self._began = 0.0
        self._found: Findings | None = None

    def on(self, event: Any, now: float) -> None:
        name = event.circuit_name
        if isinstance(event, CircuitRetired):
            if event.state in self._states:
                self._leave(f"circuit {name!r} has retired", now)
        elif isinstance(event, StateChanged):
            if event.new_state not in self._states:
                if event.old_state in self._states:
                    self._leave(f"circuit {name!r} is {event.new_state}: {event.reason}", now)
            elif event.old_state not in self._states or not self._out:
                self._out += 1
                opening = None if event.new_state is State.HALF_OPEN else event
                self._begin(name, event.new_state, event.timestamp, now, _explanation(opening))

    def see(self, infos: Sequence[CircuitBreakerInfo], now: float, wall: float) -> None:
        self.seen = True
        out = [info for info in infos if info.state in self._states]
        self._out = len(out)
        if out:
            opened_it = out[0].metrics if out[0].state is State.OPEN else None
            self._begin(out[0].name, out[0].state, out[0].changed_at, now, {"metrics": opened_it})
        else:
            self._finish(f"circuit {infos[0].name!r} is {infos[0].state}", now)

    def _begin(self, name: str, state: State, since: float, now: float, explanation: dict[str, Any]) -> None:
        if self._found is None:
            severity: Severity | None = "info" if state is State.FORCED_OPEN else None
            words = "forced open" if severity else "open"
            self._found = Findings(name, f"circuit {name!r} is {words}", since, severity=severity, **explanation)
            self._began = now

    def _leave(self, text: str, now: float) -> None:
        self._out = max(self._out - 1, 0)
        if not self._out:
            self._finish(text, now)

    def _finish(self, text: str, now: float) -> None:
        if self._found is not None:
            self.end(f"{text}; it lasted {seconds_in_words(now - self._began)}")
            self._found = None

    def tick(self, now: float) -> None:
        if self._found is not None and self.findings is None and now >= self._began + self._wait:
            text = self._found.summary
            if self._wait:
                text = f"circuit {self._found.circuit_name!r} has not closed for {seconds_in_words(now - self._began)}"
            self.findings = self._found._replace(summary=printable(text + _because(self._found.reason)))

    def idle(self, now: float) -> bool:
        return self._found is None


class Burst(Watch):
    """Something happens `limit` times within `within` seconds; it is over after as long without."""

    __slots__ = ("_limit", "_times", "_within")

    def __init__(self, limit: int, within: float) -> None:
        super().__init__()
        self._within = within
        self._limit = limit
        self._times: deque[tuple[float, float]] = deque(maxlen=limit)

    def count(self, event: Event, now: float) -> bool:
        """One more; whether that makes it fire."""
        self._times.append((now, event.timestamp))
        return self.findings is None and len(self._times) == self._limit and now <= self._times[0][0] + self._within

    @property
    def since(self) -> float:
        """When the first of those that count was, in Unix time."""
        return self._times[0][1]

    def tick(self, now: float) -> None:
        if self.findings is not None and now >= self._times[-1][0] + self._within:
            self.end(f"{self.calm(self.findings)} for {seconds_in_words(now - self._times[-1][0])}")
            self._times.clear()

    def calm(self, findings: Findings) -> str:
        """What has not happened."""
        raise NotImplementedError

    def idle(self, now: float) -> bool:
        return self.findings is None and (not self._times or now > self._times[-1][0] + self._within)


class Flaps(Burst):
    """A circuit that opens and closes by itself."""

    __slots__ = ("_opening",)

    def __init__(self, limit: int, within: float) -> None:
        super().__init__(limit, within)
        self._opening: StateChanged | None = None

    def on(self, event: Any, now: float) -> None:
        if not isinstance(event, StateChanged) or event.trigger is Trigger.MANUAL:
            return
        opens = event.new_state is State.OPEN and event.old_state is not State.HALF_OPEN
        if opens:
            self._opening = event
        if (opens or event.new_state is State.CLOSED) and self.count(event, now):
            times = f"{self._limit} times in {seconds_in_words(now - self._times[0][0])}"
            told = _explanation(self._opening)
            text = f"circuit {event.circuit_name!r} opened or closed {times}{_because(told.get('reason'))}"
            self.findings = Findings(event.circuit_name, printable(text), self.since, **told)

    def calm(self, findings: Findings) -> str:
        return f"circuit {findings.circuit_name!r} has neither opened nor closed"


class Failures(Burst):
    """A listener, or a circuit's rule, that raises."""

    __slots__ = ()

    def on(self, event: Any, now: float) -> None:
        if isinstance(event, ListenerFailed) and self.count(event, now):
            error = LastError(type=event.error_type, text=event.error)
            times = f"failed {_times(self._limit)} in {seconds_in_words(now - self._times[0][0])}"
            name = event.circuit_name
            text = f"{event.role} {event.listener}{'' if event.role == 'listener' else f' of circuit {name!r}'} {times}"
            self.findings = Findings(
                name, printable(f"{text}: {error}"), self.since, listener=event.listener, last_error=error
            )

    def calm(self, findings: Findings) -> str:
        return f"{findings.listener} has not failed"


class Losses(Burst):
    """A background listener whose queue was full."""

    __slots__ = ()

    def on(self, event: Any, now: float) -> None:
        if isinstance(event, EventsDropped) and self.count(event, now):
            went = "1 event of its queue" if event.count == 1 else f"{event.count} events of its queue"
            text = f"listener {event.listener} is too slow: {went} went unseen"
            self.findings = Findings(event.circuit_name, printable(text), self.since, listener=event.listener)

    def calm(self, findings: Findings) -> str:
        return f"listener {findings.listener} has lost nothing"


class Rejections(Watch):
    """Calls that a circuit refuses, counted in slices of time, so that a million of them take no more room than ten."""

    __slots__ = ("_count", "_limit", "_opening", "_rate", "_since", "_slices", "_within")

    def __init__(self, rate: float, within: float) -> None:
        super().__init__()
        self._rate = rate
        self._within = within
        self._limit = max(math.ceil(rate * within - _ROUNDING), 1)
        self._count = 0
        self._since = 0.0
        self._slices: deque[list[int]] = deque()  # number of the slice, and how many were refused in it
        self._opening: StateChanged | None = None

    def on(self, event: Any, now: float) -> None:
        if isinstance(event, StateChanged):
            if event.new_state is State.OPEN:
                self._opening = event
            elif event.new_state is not State.HALF_OPEN:
                self._opening = None
        elif isinstance(event, CallRejected) and event.state is not State.FORCED_OPEN:
            self._forget(now)
            self._since = self._since if self._count else event.timestamp
            number = self._slice_of(now)
            if not self._slices or self._slices[-1][0] < number:  # another thread may have been later, and here first
                self._slices.append([number, 0])
            self._slices[-1][1] += 1
            self._count += 1
            if self.findings is None and self._count >= self._limit:
                self._find(event.circuit_name)

    def _find(self, name: str) -> None:
        told = _explanation(self._opening)
        text = f"circuit {name!r} refused {calls_in_words(self._count)} within {seconds_in_words(self._within)}"
        text += f" (limit {self._rate:g} a second){_because(told.get('reason'))}"
        self.findings = Findings(name, printable(text), self._since, **told)

    def _slice_of(self, now: float) -> int:
        return int(now * _SLICES // self._within)

    def _forget(self, now: float) -> None:
        oldest = self._slice_of(now) - _SLICES
        while self._slices and self._slices[0][0] <= oldest:
            self._count -= self._slices.popleft()[1]

    def tick(self, now: float) -> None:
        self._forget(now)
        if self.findings is not None and 2 * self._count < self._limit:
            text = f"circuit {self.findings.circuit_name!r} refused {calls_in_words(self._count)}"
            self.end(f"{text} within {seconds_in_words(self._within)}, less than half the limit")

    def idle(self, now: float) -> bool:
        return self.findings is None and not self._count and self._opening is None


class Slowness(Watch):
    """A circuit that `is_slow` for `for_` seconds; over after as long without."""

    __slots__ = ("_calm_since", "_changed_at", "_explain", "_for", "_is_slow", "_metrics", "_since", "_slow_since")

    def __init__(
        self, is_slow: Callable[[CircuitBreakerInfo], bool], explain: Callable[[Metric], str], for_: float
    ) -> None:
        super().__init__()
        self._is_slow = is_slow
        self._explain = explain
        self._for = for_
        self._slow_since: float | None = None
        self._since = 0.0
        self._calm_since: float | None = None
        self._metrics: list[Metric] = []  # the last that were slow, and since when they are these
        self._changed_at = 0.0

    def see(self, infos: Sequence[CircuitBreakerInfo], now: float, wall: float) -> None:
        found = [info for info in infos if self._is_slow(info)]
        # One that is called comes before a namesake that is not: whose old window must hide nothing.
        slow = next((info for info in found if info.metrics not in self._metrics), found[0] if found else None)
        metrics = [info.metrics for info in found]
        if metrics and metrics != self._metrics:
            self._metrics, self._changed_at = metrics, now
        if slow is not None and now < self._changed_at + self._for:
            self._calm_since = None
            if self._slow_since is None:
                self._slow_since, self._since = now, wall
            elif self.findings is None and now >= self._slow_since + self._for:
                reason = self._explain(slow.metrics)
                text = printable(f"circuit {slow.name!r} is slow: {reason}")
                self.findings = Findings(slow.name, text, self._since, reason=reason, metrics=slow.metrics)
        elif self.findings is None:
            self._slow_since = None
        elif slow is None and any(info.state in OUT for info in infos):
            self._calm_since = None  # nobody knows: it hardly calls
        elif self._calm_since is None:
            self._calm_since = now
        elif now >= self._calm_since + self._for:
            self._slow_since = None
            self.end(f"circuit {infos[0].name!r} has not been slow for {seconds_in_words(self._for)}")

    def idle(self, now: float) -> bool:
        return self._slow_since is None
