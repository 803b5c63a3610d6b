"""What the log listeners have in common: which events they ask for, at which level each is written, and the floods."""

from collections.abc import Hashable, Mapping
from heapq import heapify, heappop, heappush, heapreplace
from itertools import count
from threading import RLock
from typing import Any, ClassVar, Protocol
from weakref import WeakSet

from fluxgate import Subscription, _check
from fluxgate._clock import as_clock
from fluxgate._forks import BegunAnew
from fluxgate._trace import trace_ids
from fluxgate.events import (
    EVENT_TYPES,
    CallEnded,
    CallRejected,
    CallStarted,
    CircuitRetired,
    Event,
    FallbackUsed,
    ListenerFailed,
    StateChanged,
    concrete,
)
from fluxgate.state import State

from ._render import fields
from .names import LOG_LEVELS, REJECTED, SUPPRESSED, TRACE_KEYS, log_name, log_names

LevelMap = Mapping[str | type[Event], int | str]
"""Levels by the name of a log event (``"circuit_opened"``) or by event type; a level is a number or a name."""

_FREQUENT = concrete((CallStarted, CallEnded, CallRejected, FallbackUsed))  # as often as there are calls
_SHORTEST_WAIT = 0.01  # seconds
_REFUSING = frozenset((State.OPEN, State.HALF_OPEN, State.FORCED_OPEN))


class Writer(Protocol):
    """One library's way of writing a line."""

    def enabled(self, level: int) -> bool:
        """Whether what is written at this level is wanted."""
        ...

    def write(self, level: int, name: str, line: dict[str, Any]) -> None:
        """Write one line: its name and its key-value pairs."""
        ...


class EventLog:
    """Base of the log listeners. A subclass brings the writer."""

    automatic: ClassVar[str] = "log"
    """Of those with this purpose, `fluxgate.observe` attaches the one of the lowest `rank` that can be built."""
    rank: ClassVar[int] = 0

    def __init__(
        self, writer: Writer, level_map: LevelMap | None, interval: float, known_levels: Mapping[str, int]
    ) -> None:
        self._writer = writer
        self._levels = dict(LOG_LEVELS)
        if level_map is not None:
            self._levels |= _overrides(level_map, known_levels)
        self._floods = Floods(_check.number(interval, "interval", at_least=0))

    def attached(self, subscription: Subscription) -> None:
        """Through it the listener asks for a tick once there is something to wait for."""
        self._floods.attached(subscription)

    @property
    def events(self) -> tuple[type[Event], ...]:
        """The types that it asks for when it is attached: of calls those alone whose level is on at that moment."""
        return tuple(
            kind
            for kind in EVENT_TYPES
            if kind not in _FREQUENT or any(self._writer.enabled(self._levels[name]) for name in log_names(kind))
        )

    def __call__(self, event: Event) -> None:
        if isinstance(event, CallRejected):
            self._tell_flood(event, CallRejected)
        elif isinstance(event, ListenerFailed):
            self._tell_flood(event, (event.role, event.listener))
        else:
            if isinstance(event, (StateChanged, CircuitRetired)):
                # Up to date before the line that ends what was going on.
                over = isinstance(event, CircuitRetired) or event.new_state not in _REFUSING
                try:
                    self._tell_held(self._floods.release(event.circuit_name, event.timestamp, forget=over))
                finally:
                    self._tell(event)
            else:
                self._tell(event)

    @property
    def tick_interval(self) -> float | None:
        """Seconds until something that was held back is to be written; ``None`` while there is nothing."""
        return self._floods.next_due()

    def tick(self) -> None:
        """Write what was held back for an interval, though nothing has come since; the bus calls it."""
        self._tell_held(self._floods.release_due())

    def close(self) -> None:
        """Write what is outstanding; the bus calls it when the listener is detached, and at the program's end."""
        self._tell_held(self._floods.release_all())

    def _tell_flood(self, event: Event, flood: Hashable) -> None:
        if self._writer.enabled(self._levels[log_name(event)]):
            held = self._floods.hold(event, flood)
            if held is not None:
                self._tell(event, stands_for=held + 1, held=held)
            elif not self._floods.waiting:
                subscription = self._floods.begin_to_wait()
                if subscription is not None:
                    subscription.wake()

    def _tell_held(self, outstanding: "list[tuple[Event, int]]") -> None:
        failed: Exception | None = None
        for event, held in outstanding:
            try:
                # Not traced: the current span is another call's.
                self._tell(event, stands_for=held, held=held, traced=False)
            except Exception as error:
                failed = error
        if failed is not None:
            raise failed

    def _tell(self, event: Event, *, stands_for: int = 1, held: int | None = None, traced: bool = True) -> None:
        name = log_name(event)
        level = self._levels[name]
        if not self._writer.enabled(level):
            return
        line = fields(event)
        if isinstance(event, CallRejected):
            line[REJECTED] = stands_for
        if held is not None:
            line[SUPPRESSED] = held
        if traced:
            line.update({key: value for key, value in zip(TRACE_KEYS, trace_ids(), strict=True) if value})
        self._writer.write(level, name, line)


def _overrides(level_map: LevelMap, known: Mapping[str, int]) -> dict[str, int]:
    if not isinstance(level_map, Mapping):
        raise TypeError(f"level_map must be a mapping from event to level, got {_check.got(level_map)}")
    named = [(_names(key), _level(level, known, key)) for key, level in level_map.items()]
    # The more an entry stands for the earlier it is applied: a name wins over its type, a type over its base.
    return {name: level for names, level in sorted(named, key=lambda each: -len(each[0])) for name in names}


def _names(key: Any) -> tuple[str, ...]:
    if isinstance(key, type):
        concrete((key,))
        return log_names(key)
    if not isinstance(key, str):
        raise TypeError(f"level_map: an event is a name or an event type, got {_check.got(key)}")
    if key not in LOG_LEVELS:
        raise ValueError(f"level_map: unknown event {_check.got(key)}; there are: {', '.join(LOG_LEVELS)}")
    return (key,)


def _level(level: Any, known: Mapping[str, int], key: Any) -> int:
    if isinstance(level, bool) or not isinstance(level, (int, str)):
        raise TypeError(f"level_map: a level is a number or a name, got {_check.got(level)} for {key!r}")
    number = known.get(level.upper()) if isinstance(level, str) else level
    if number is None or number not in known.values():
        there_are = ", ".join(f"{name} ({number})" for name, number in known.items())
        raise ValueError(f"level_map: unknown level {_check.got(level)} for {key!r}; there are: {there_are}")
    return number


class _Flood:
    __slots__ = ("held", "last", "number", "queued", "ticked_at", "told_at")

    def __init__(self, number: int) -> None:
        self.number = number
        self.held = 0
        self.queued = False

    def begin(self, event: Event, now: float) -> None:
        self.told_at = event.timestamp
        self.ticked_at = now  # the same moment by our own clock
        self.held = 0
        self.last = event


class Floods:
    """What may come with every call: the first is told at once, then one an `interval`, and how many were held back.

    Time is that of the events, so that it passes as it does for their circuit. Where no further event comes it is that
    of the program: `next_due` says when `release_due` has something to give. Neither looks at more floods than are due.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._clock = as_clock(None)
        self._subscriptions: WeakSet[Subscription] = WeakSet()
        self.after_fork()
        _all_floods.add(self)

    def after_fork(self) -> None:
        """Forget everything: a forked child leaves it to its parent, whose threads may have held the lock."""
        self._lock = RLock()  # re-entrant, since a signal handler may call a breaker at any point
        self._numbers = count()
        self.waiting = False
        """Something is held back, and somebody looks at `next_due`."""
        self._forget()

    def _forget(self) -> None:
        self._circuits: dict[str, dict[Hashable, _Flood]] = {}
        # A heap of the floods of which something was held back, by their `ticked_at` when they were put in; each once.
        self._queue: list[tuple[float, int, _Flood]] = []
        self._gone = 0  # how many of these belong to circuits that were forgotten

    def hold(self, event: Event, kind: Hashable) -> int | None:
        """How many of this kind were held back before this one is told; ``None`` to hold this one back too."""
        with self._lock:
            floods = self._circuits.setdefault(event.circuit_name, {})
            flood = floods.get(kind)
            # A wall clock may be set back: that ends the interval rather than prolonging it by hours.
            if flood is not None and 0 <= event.timestamp - flood.told_at < self._interval:
                flood.held += 1
                flood.last = event
                if not flood.queued:
                    heappush(self._queue, (flood.ticked_at, flood.number, flood))
                    flood.queued = True
                return None
            if flood is None:
                flood = floods[kind] = _Flood(next(self._numbers))
            held = flood.held
            flood.begin(event, self._clock.monotonic())
            return held

    def attached(self, subscription: Subscription) -> None:
        """One more through which a tick can be asked for."""
        with self._lock:
            self._subscriptions.add(subscription)

    def begin_to_wait(self) -> Subscription | None:
        """Something is held back: through whom to ask for ticks, unless somebody has."""
        with self._lock:
            waited, self.waiting = self.waiting, True
            return None if waited else next((each for each in self._subscriptions if each.active), None)

    def _first(self) -> _Flood | None:
        """Of the floods of which something is held back that whose interval ends first."""
        while self._queue:
            ticked_at, number, flood = self._queue[0]
            if flood.held and flood.ticked_at == ticked_at:
                return flood
            if flood.held:  # told meanwhile, and something was held back again
                heapreplace(self._queue, (flood.ticked_at, number, flood))
            else:
                flood.queued = False
                heappop(self._queue)
        return None

    def next_due(self) -> float | None:
        """Seconds, above 0, until something is due; ``None`` if nothing is held back, and nobody need look again."""
        now = self._clock.monotonic()
        with self._lock:
            first = self._first()
            self.waiting = first is not None
            return None if first is None else max(first.ticked_at + self._interval - now, _SHORTEST_WAIT)

    def release_due(self) -> list[tuple[Event, int]]:
        """Of each flood that has been held back for an interval the last, and how many were."""
        now = self._clock.monotonic()
        outstanding: list[tuple[Event, int]] = []
        with self._lock:
            while (flood := self._first()) is not None and now >= flood.ticked_at + self._interval:
                outstanding.append((flood.last, flood.held))
                flood.told_at += now - flood.ticked_at
                flood.held, flood.ticked_at = 0, now
        return outstanding

    def release(self, circuit_name: str, now: float, *, forget: bool) -> list[tuple[Event, int]]:
        """Of this circuit the last of each kind that was held back, and how many were."""
        with self._lock:
            floods = self._circuits.get(circuit_name, {})
            outstanding = [(flood.last, flood.held) for flood in floods.values() if flood.held]
            for flood in floods.values():
                if flood.held:
                    flood.held, flood.told_at, flood.ticked_at = 0, now, self._clock.monotonic()
            if forget:
                self._circuits.pop(circuit_name, None)
                self._gone += sum(flood.queued for flood in floods.values())
                if self._gone and 2 * self._gone >= len(self._queue):
                    self._tidy()
            return outstanding

    def _tidy(self) -> None:
        """Keep no more than as much again of what is gone; to look for each at once would take as long as all."""
        for flood in [flood for _, _, flood in self._queue if not flood.held]:
            flood.queued = False
        self._queue = [each for each in self._queue if each[-1].held]
        heapify(self._queue)
        self._gone = 0

    def release_all(self) -> list[tuple[Event, int]]:
        """The same of every circuit, and forget them."""
        with self._lock:
            circuits = self._circuits
            self._forget()
            self.waiting = False
        return [(flood.last, flood.held) for floods in circuits.values() for flood in floods.values() if flood.held]


_all_floods = BegunAnew[Floods]()
