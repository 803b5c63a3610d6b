"""Structured log alerts: what is wrong with circuits, said once when it begins and once when it is over."""

import hashlib
import math
import time
from collections.abc import Iterable, Sequence
from threading import RLock
from typing import Any
from weakref import WeakSet

from fluxgate import CircuitBreakerInfo, Subscription, _check
from fluxgate._clock import Clock, as_clock
from fluxgate._forks import BegunAnew
from fluxgate._subscription import Delivery
from fluxgate.events import EVENT_TYPES, CircuitRetired, Event, EventsDropped, ListenerFailed, StateChanged

from ._alert import Alert
from ._alertrules import (
    DEFAULT_ALERTS,
    AlertRule,
    CircuitFlapping,
    CircuitOpen,
    CircuitStuckOpen,
    EventsLost,
    ListenerFailing,
    RejectingCalls,
    SlowCircuit,
)
from ._alertsinks import Sinks
from ._alertwatch import Watch
from .names import RUNBOOKS

__all__ = [
    "DEFAULT_ALERTS",
    "Alert",
    "AlertListener",
    "AlertRule",
    "CircuitFlapping",
    "CircuitOpen",
    "CircuitStuckOpen",
    "EventsLost",
    "ListenerFailing",
    "RejectingCalls",
    "SlowCircuit",
]

_ALWAYS = (CircuitRetired, EventsDropped)  # whatever the rules: what is gone, and what was missed
_LONGEST_TICK = 1.0  # seconds
_SHORTEST_TICK = 0.05
_AT_ONCE = 250  # circuits that a tick goes through before the calls that wait for it have their turn
_PAUSE = 0.001  # seconds
_LONGEST_LAG = 600.0  # seconds; beyond it, a circuit has a clock of its own
_TICKS = 10  # in the shortest time that a rule names


class AlertListener:
    """Tells what is wrong with circuits: each alert once when it fires and once when it resolves.

    When that is, each rule says of itself. Seconds are counted by the listener's own monotonic clock, also while no
    call comes: a thread looks at least once a second. Where several circuits have one name, an alert speaks of the
    name: `CircuitOpen` fires when the first of them opens and resolves when none is open any more.

    A log line is called ``alert_firing`` or ``alert_resolved`` and has the keys of
    `fluxgate.listeners.names.ALERT_KEYS`. It is written at ERROR, WARNING or INFO as the severity is ``critical``,
    ``warning`` or ``info``; a resolved one at INFO. What has resolved repeats what had fired, but for `status`,
    `summary` and the time.

    When the circuit retires its alerts resolve. When the listener is detached nothing does, since nobody knows what
    comes next: it forgets, and begins anew where it is attached again. A forked child begins anew as well. A circuit
    that is open when the listener is attached fires at the listener's first look, which follows at once.

    An alert is given to each sink once. What a sink raises becomes `ListenerFailed`, keeps the alert from no other
    sink, and does not bring it back: one that wants another try makes it itself, as the webhook and Slack do.

    `fluxgate.observe` does not attach it: where alerts go, and at which figures, is for somebody to decide who will
    answer them.

    Args:
        rules: At most one of each kind.
        sink: Where alerts go: a structlog or standard logger, a callable that takes an `Alert`, or several in a list.
            The default is the logger ``fluxgate.alerts`` of structlog where that is installed, else of `logging`.
            If one asks for ``delivery = "background"``, as the webhook and Slack do, so does the listener. A sink's
            ``close()`` is called when the listener is detached.
        runbooks: What comes before a runbook's page, usually a URL; relative to the distribution unless told otherwise.
        clock: For tests: an object with ``monotonic()`` and ``time()`` in place of the `time` module. Nobody can tell
            when its seconds have passed, so no thread looks: call `tick`.

    Raises:
        TypeError, ValueError: An argument is not what it must be; the text quotes it.

    >>> from fluxgate import Bus, CircuitBreaker, FailureStreak
    >>> from fluxgate.testing import VirtualClock
    >>> clock = VirtualClock()
    >>> alerts = AlertListener(
    ...     [CircuitOpen(), CircuitStuckOpen(for_=300)],
    ...     sink=lambda alert: print(alert.status, alert.severity, alert.summary),
    ...     clock=clock,
    ... )
    >>> cb = CircuitBreaker("payments", tripper=FailureStreak(1), listeners=[alerts], bus=Bus(), clock=clock)
    >>> cb.call_with_fallback(int, lambda error: 0, "ten euros")
    firing warning circuit 'payments' is open: 1 failure in a row (limit 1)
    0
    >>> clock.advance(300)  # and nobody calls
    >>> alerts.tick()
    firing critical circuit 'payments' has not closed for 300 s: 1 failure in a row (limit 1)
    >>> cb.reset()
    resolved warning circuit 'payments' is closed: reset by hand; it lasted 300 s
    resolved critical circuit 'payments' is closed: reset by hand; it lasted 300 s
    """

    def __init__(
        self,
        rules: Iterable[AlertRule] = DEFAULT_ALERTS,
        sink: Any = None,
        *,
        runbooks: str = RUNBOOKS,
        clock: Clock | None = None,
    ) -> None:
        self._rules = _by_name(rules)
        self._by_event = {
            kind: tuple(rule for rule in self._rules.values() if kind in rule.events) for kind in EVENT_TYPES
        }
        self._sampling = [rule for rule in self._rules.values() if rule.looks_every is not None]
        self._every = min((rule.looks_every or 0.0 for rule in self._sampling), default=0.0)
        self._name = type(self).__qualname__  # as the bus names it
        self._runbooks = _check.name(runbooks, "runbooks").rstrip("/") + "/"
        self._clock = as_clock(clock)
        self._ticks = self._clock is as_clock(None)
        self._sinks = Sinks(sink, type(self).__name__)
        self._subscriptions: WeakSet[Subscription] = WeakSet()
        self.after_fork()
        _all_listeners.add(self)

    def after_fork(self) -> None:
        """Begin anew: a child leaves what was going on to its parent, whose threads may have held the lock."""
        self._lock = RLock()  # re-entrant, since a signal handler may call a breaker at any point
        self._sinks.reset()
        self._looking = False
        self._forget()

    def _forget(self) -> None:
        self._watches: dict[str, dict[tuple[str, str], Watch]] = {}  # by circuit, or "" where it is about a listener
        self._doubts: set[str] = set()
        """Names at whose circuits the next tick must look, since events alone do not tell how they stand."""
        self._retired: set[str] = set()
        """Of these, the names of which a circuit has retired."""
        self._anew = True
        """The next tick must look at all circuits."""
        self._observing = 0  # subscriptions at the last look
        self._looked_at = 0.0
        self._heard_at = -math.inf
        """When the last event that was heard of happened, by the monotonic clock."""
        self._moved: set[str] | None = None  # names that were heard of since a look began, while it goes on

    # -- what the bus asks ----------------------------------------------------------------------------------------

    @property
    def events(self) -> tuple[type[Event], ...]:
        """The types that the rules need."""
        return tuple(kind for kind, rules in self._by_event.items() if rules or kind in _ALWAYS)

    @property
    def delivery(self) -> Delivery:
        """As the sinks want it: one that is slow must not hold up a call."""
        return self._sinks.delivery

    @property
    def destination(self) -> "AlertListener":
        """Attached twice to one circuit, it hears each event once."""
        return self

    @property
    def tick_interval(self) -> float | None:
        """Seconds: a tenth of the shortest time that a rule names, from 0.05 to 1; ``None`` with a clock for tests."""
        times = [getattr(rule, key, _TICKS) for rule in self._rules.values() for key in ("for_", "within")]
        return max(min(min(times) / _TICKS, _LONGEST_TICK), _SHORTEST_TICK) if self._ticks else None

    def attached(self, subscription: Subscription) -> None:
        """The next tick, which follows at once, looks at its circuits."""
        with self._lock:
            self._subscriptions.add(subscription)
            self._anew = True

    def close(self) -> None:
        """Forget, and close the sinks; the bus calls it when the listener is detached for the last time."""
        wall = self._clock.time()
        with self._lock:
            for name in self._retired:
                self._drop(name, "has retired", wall)
            self._forget()
        self._sinks.close()

    def __call__(self, event: Event) -> None:
        now, wall = self._clock.monotonic(), self._clock.time()
        lag = wall - event.timestamp  # what waited behind a slow sink did not happen all at once
        with self._lock:
            self._heard_at = max(now - lag if 0 < lag < _LONGEST_LAG else now, self._heard_at)
            self._hear(event, self._heard_at, wall)
        self._sinks.tell()

    def tick(self) -> None:
        """Look at the time, and at the circuits where events do not tell it all; the bus calls it."""
        with self._lock:
            looks, self._looking = not self._looking, True
        if looks:
            try:
                self._look()
            finally:
                self._looking = False
        now, wall = self._clock.monotonic(), self._clock.time()
        with self._lock:
            now = self._heard_at if self._is_behind else now  # what waits may be what a time is waiting for
            circuits = list(self._watches)
        for begin in range(0, len(circuits), _AT_ONCE):
            if begin:
                time.sleep(_PAUSE)  # a call that waits for the lock wakes up too late for a shorter one
            with self._lock:
                for circuit in circuits[begin : begin + _AT_ONCE]:
                    for name, part in list(self._watches.get(circuit, ())):
                        self._judge(self._rules[name], circuit, part, now, wall)
        self._sinks.tell()

    @property
    def _is_behind(self) -> bool:
        """Whether events wait in its queue: how circuits stand now is then not how they stood at the last event."""
        return any(each.backlog for each in self._subscriptions)

    # -- deciding -------------------------------------------------------------------------------------------------

    def _hear(self, event: Event, now: float, wall: float) -> None:
        """Take in an event."""
        circuit, part = event.circuit_name, ""
        if isinstance(event, ListenerFailed):
            circuit, part = ("", event.listener) if event.role == "listener" else (circuit, event.role)
        elif isinstance(event, EventsDropped):
            circuit, part = "", event.listener
            self._anew = self._anew or part == self._name  # what went may have been news
        elif isinstance(event, (StateChanged, CircuitRetired)):
            self._note_move(event)
        for rule in self._by_event.get(type(event), ()):
            self._judge(rule, circuit, part, now, wall, event)

    def _note_move(self, event: StateChanged | CircuitRetired) -> None:
        name = event.circuit_name
        watches = self._watches.get(name, {})
        if self._moved is not None:
            self._moved.add(name)
        if isinstance(event, CircuitRetired) and watches:
            self._retired.add(name)
            self._doubts.add(name)  # another of that name may be left
        elif any(watch.seen for watch in watches.values()):
            self._doubts.add(name)  # it may have come before what was seen, or be of another of that name

    def _look(self) -> None:
        """See how the circuits stand: all of them, or those in doubt, or none where there is nothing to be seen."""
        now = self._clock.monotonic()
        with self._lock:
            subscriptions = [each for each in self._subscriptions if each.active]
            anew = self._anew or len(subscriptions) != self._observing
            due = bool(self._sampling) and now >= self._looked_at + self._every
            doubts = set(self._doubts)
            self._anew = anew and self._is_behind  # later, then
            if self._is_behind:
                anew = False
                doubts.clear()
            if not (anew or due or doubts):
                return
            self._moved = set()
        try:
            seen = _infos(subscriptions, None if anew or due else doubts)
            # Events tell how the others stand, thousands maybe: only a rule that samples need look at those.
            concern = [rule.concerns for rule in (self._rules.values() if anew else self._sampling)]
            notable = {name for name, infos in seen.items() for concerns in concern if concerns(infos)}
            notable |= doubts & seen.keys()
        except BaseException:
            self._anew, self._moved = True, None
            raise
        now, wall = self._clock.monotonic(), self._clock.time()
        with self._lock:
            moved, self._moved = self._moved or set(), None
            asked = (self._watches.keys() | seen.keys()) - {""} if anew else doubts
            # What was heard of meanwhile is newer than what was seen: another look at that will tell.
            self._doubts = self._doubts - doubts | (moved & asked)
            gone, self._retired = self._retired, self._retired & self._doubts
            self._observing = len(subscriptions)
            if anew or due:
                self._looked_at = now
            for name in (notable | self._watches.keys() & seen.keys()) - moved:
                self._see(name, seen[name], now, wall, whole=name in asked)
            for name in asked - seen.keys() - moved:
                self._drop(name, "has retired" if name in gone else "is no longer observed", wall)

    def _see(self, name: str, infos: Sequence[CircuitBreakerInfo], now: float, wall: float, *, whole: bool) -> None:
        known = self._watches.get(name, {})
        for rule in self._rules.values() if whole else self._sampling:
            if (rule.alert.name, "") in known or rule.concerns(infos):
                self._judge(rule, name, "", now, wall, infos=infos)

    def _judge(
        self,
        rule: AlertRule,
        circuit: str,
        part: str,
        now: float,
        wall: float,
        event: Event | None = None,
        infos: Sequence[CircuitBreakerInfo] = (),
    ) -> None:
        """Let a rule's watch of a circuit, or of a part of it, take this in and decide."""
        key = (rule.alert.name, part)
        watches = self._watches.setdefault(circuit, {})
        watch = watches.get(key)
        if watch is None:
            watch = watches[key] = rule.watch()
        if event is not None:
            watch.on(event, now)
        if infos:
            watch.see(infos, now, wall)
        watch.tick(now)
        self._settle(rule, watch, circuit, part, wall)
        if watch.firing is None and watch.idle(now):
            del watches[key]
            if not watches:
                del self._watches[circuit]

    def _settle(self, rule: AlertRule, watch: Watch, circuit: str, part: str, wall: float) -> None:
        """Tell what has changed."""
        if watch.findings is not None and watch.firing is None:
            found: Any = watch.findings._replace(severity=watch.findings.severity or rule.severity)._asdict()
            alert = watch.firing = Alert(
                **found,
                alert=rule.alert.name,
                status="firing",
                runbook=self._runbooks + rule.alert.runbook,
                timestamp=wall,
                fingerprint=_fingerprint(rule.alert.name, circuit, part),
            )
        elif watch.findings is None and watch.firing is not None:
            alert = watch.firing.__replace__(status="resolved", summary=watch.over, timestamp=wall)
            watch.firing = None
        else:
            return
        self._sinks.add(alert)

    def _drop(self, circuit: str, why: str, wall: float) -> None:
        """No circuit of that name is left."""
        for (name, part), watch in self._watches.pop(circuit, {}).items():
            watch.end(f"circuit {circuit!r} {why}")
            self._settle(self._rules[name], watch, circuit, part, wall)


def _by_name(rules: Any) -> dict[str, AlertRule]:
    if isinstance(rules, AlertRule):
        raise TypeError(f"rules must be an iterable, such as a list of one, got {_check.got(rules)}")
    known: dict[str, AlertRule] = {}
    for rule in _check.several(rules, "rules"):
        if not isinstance(_check.instance(rule, "rules", "alert rules"), AlertRule):
            raise TypeError(f"rules must be alert rules, got {_check.got(rule)}")
        if rule.alert.name in known:
            raise ValueError(f"rules must differ in kind, got {known[rule.alert.name]!r} and {rule!r}")
        known[rule.alert.name] = rule
    if not known:
        raise ValueError("rules must be one alert rule or several, got none")
    return known


def _infos(subscriptions: Iterable[Subscription], names: set[str] | None) -> dict[str, list[CircuitBreakerInfo]]:
    """The circuits that are alive by their names, each once however often it is observed."""
    breakers = {id(breaker): breaker for each in subscriptions for breaker in each.circuits()}
    found: dict[str, list[CircuitBreakerInfo]] = {}
    for breaker in breakers.values():
        if names is None or breaker.name in names:
            info = breaker.info()
            found.setdefault(info.name, []).append(info)
    return found


def _fingerprint(*identity: str) -> str:
    return hashlib.blake2b("\0".join(identity).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


_all_listeners = BegunAnew[AlertListener]()
