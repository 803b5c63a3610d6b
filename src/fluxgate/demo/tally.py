"""A listener that counts: all that the demo reports comes from the stream of events."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from ..events import (
    CallCancelled,
    CallFailed,
    CallIgnored,
    CallRejected,
    CallStarted,
    CallSucceeded,
    CircuitCreated,
    Event,
    FallbackUsed,
    StateChanged,
)
from ..state import State


class CircuitTally:
    """One circuit's figures."""

    def __init__(self, created: CircuitCreated) -> None:
        self.name = created.circuit_name
        self.since = created.timestamp
        self.rules = {name: getattr(created, name) for name in ("window", "tracker", "tripper", "retry", "permit")}
        self.admitted = 0
        self.calls: Counter[str] = Counter(success=0, failed=0, ignored=0, cancelled=0)
        """Ended calls by outcome; each is in one of these."""
        self.slow = 0
        """Those of them that were slow, whatever their outcome."""
        self.rejections: Counter[str] = Counter()
        """Refused calls by reason."""
        self.fallbacks = 0
        self.changes: list[StateChanged] = []

    def count(self, event: Event) -> None:
        """Take in one event."""
        match event:
            case CallStarted():
                self.admitted += 1
            case CallSucceeded(slow=slow):
                self.calls["success"] += 1
                self.slow += slow
            case CallFailed(slow=slow):
                self.calls["failed"] += 1
                self.slow += slow
            case CallIgnored():
                self.calls["ignored"] += 1
            case CallCancelled():
                self.calls["cancelled"] += 1
            case CallRejected(reason=reason):
                self.rejections[reason] += 1
            case FallbackUsed():
                self.fallbacks += 1
            case StateChanged():
                self.changes.append(event)
            case _:
                pass

    @property
    def refused(self) -> int:
        """How many calls it refused."""
        return self.rejections.total()

    @property
    def state(self) -> State:
        """The state that the last change led to."""
        return self.changes[-1].new_state if self.changes else State.CLOSED

    @property
    def opened(self) -> int:
        """How often it went from closed to open."""
        return sum(change.old_state is State.CLOSED and change.new_state is State.OPEN for change in self.changes)

    @property
    def reopens(self) -> int:
        """How often its probes failed."""
        return sum(change.old_state is State.HALF_OPEN and change.new_state is State.OPEN for change in self.changes)

    @property
    def recovered(self) -> bool:
        """Whether it opened, and is closed again."""
        return self.opened > 0 and self.state is State.CLOSED

    def spans(self, until: float) -> Iterator[tuple[State, float, float]]:
        """Its states with the times when each began and ended, the last one at `until`."""
        changes = tuple(self.changes)  # calls go on meanwhile
        ends = [*(change.timestamp for change in changes), until]
        begins = [self.since, *ends]
        states = [State.CLOSED, *(change.new_state for change in changes)]
        yield from zip(states, begins, ends, strict=False)

    def seconds(self, until: float) -> dict[State, float]:
        """How long it was in each state."""
        spent: dict[State, float] = dict.fromkeys((State.CLOSED, State.OPEN, State.HALF_OPEN), 0.0)
        for state, begin, end in self.spans(until):
            spent[state] += end - begin
        return spent

    def to_dict(self, until: float) -> dict[str, Any]:
        """All of it in plain types, ready for JSON; times of transitions also in seconds since the start."""
        return {
            "ok": self.recovered,
            "state": str(self.state),
            "opened": self.opened,
            "reopens": self.reopens,
            "admitted": self.admitted,
            "calls": dict(self.calls),
            "slow": self.slow,
            "rejected": self.refused,
            "rejections": dict(self.rejections),
            "fallbacks": self.fallbacks,
            "seconds": {str(state): round(spent, 3) for state, spent in self.seconds(until).items()},
            "transitions": [
                {"at": round(change.timestamp - self.since, 3), "reason": change.reason, **change.to_dict()}
                for change in self.changes
            ],
            "rules": self.rules,
        }


class Tally:
    """Listens to everything. A circuit's events come one at a time, so that its counts need no lock."""

    events = (Event,)

    def __init__(self) -> None:
        self._circuits: dict[str, CircuitTally] = {}

    def __call__(self, event: Event) -> None:
        if isinstance(event, CircuitCreated):
            self._circuits[event.circuit_name] = CircuitTally(event)
        self._circuits[event.circuit_name].count(event)

    @property
    def circuits(self) -> Mapping[str, CircuitTally]:
        """The figures by circuit, in the order in which the circuits were made."""
        return self._circuits
