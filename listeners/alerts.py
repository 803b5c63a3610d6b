"""Structured log alerts: what is wrong with circuits, said once when it begins and once when it is over."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import Context, copy_context
from threading import RLock
from typing import Any
from weakref import WeakSet

from fluxgate import CircuitBreakerInfo, Subscription, _check
from fluxgate._clock import Clock, as_clock
from fluxgate._functions import refuse_coroutine
from fluxgate._subscription import Delivery
from fluxgate._text import error_text
from fluxgate.events import (
    EVENT_TYPES,
    CircuitCreated,
    CircuitRetired,
    Event,
    EventsDropped,
    ListenerFailed,
    StateChanged,
)

from ._alert import Alert, as_sink, several
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
from ._alertwatch import Watch
from .names import (
    RUNBOOKS,
)

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

_LONGEST_TICK = 1.0  # seconds
_SHORTEST_TICK = 0.05
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

    `fluxgate.observe` does not attach it: where alerts go, and at which figures, is for somebody to decide who will
    answer them.

    Args:
        rules: At most one of each kind.
        sink: Where alerts go: a structlog or standard logger, a callable that takes an `Alert`, or several in a list.
            The default is the logger ``fluxgate.alerts`` of structlog where that is installed, else of `logging`.
            Each gets every alert, whatever another does with it; what they raise becomes `ListenerFailed`. If one asks
            for ``delivery = "background"``, as the webhook and Slack do, so does the listener. A sink's ``close()`` is
            called when the listener is detached.
        runbooks: What comes before a runbook's page, usually a URL; relative to the distribution unless told otherwise.
        clock: Has ``monotonic()`` and ``time()``; the `time` module.

    Raises:
        TypeError, ValueError: An argument is not what it must be; the text quotes it.

    >>> from fluxgate import Bus, CircuitBreaker, FailureStreak
    >>> from fluxgate.testing import VirtualClock
    >>> alerts = AlertListener([CircuitOpen()], sink=lambda alert: print(alert.status, alert.severity, alert.summary))
    >>> cb = CircuitBreaker(
    ...     "payments", tripper=FailureStreak(1), listeners=[alerts], bus=Bus(), clock=VirtualClock()
    ... )
    >>> cb.call_with_fallback(int, lambda error: 0, "ten euros")
    firing warning circuit 'payments' is open: 1 failure in a row (limit 1)
    0
    >>> cb.force_open()  # somebody takes a look: nothing new
    >>> cb.reset()  # doctest: +ELLIPSIS
    resolved warning circuit 'payments' is closed: reset by hand; it lasted ... s
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
        self._name = type(self).__qualname__  # as the bus names it
        self._runbooks = _check.name(runbooks, "runbooks").rstrip("/") + "/"
        self._clock = as_clock(clock)
        self._given = several(sink)
        self._sinks = [as_sink(each, type(self).__name__) for each in self._given]
        self._subscriptions: WeakSet[Subscription] = WeakSet()
        self._forget()
        self._begin()
        _all_listeners.add(self)

    def _begin(self) -> None:
        self._lock = RLock()  # re-entrant, since a signal handler may call a breaker at any point
        self._outbox: deque[tuple[Alert, Context]] = deque()
        self._telling = False
        self._looks: dict[int, set[str]] = {}  # the names that were heard of while somebody is looking

    def _forget(self) -> None:
        self._watches: dict[str, dict[tuple[str, str], Watch]] = {}  # by circuit, or "" where it is about a listener
        self._observing: int | None = None  # how many subscriptions at the last look at everything
        self._looked_at = 0.0

    # -- what the bus asks ----------------------------------------------------------------------------------------

    @property
    def events(self) -> tuple[type[Event], ...]:
        """The types that the rules need."""
        return tuple(kind for kind, rules in self._by_event.items() if rules)

    @property
    def delivery(self) -> Delivery:
        """As the sinks want it: one that is slow must not hold up a call."""
        wanted = [getattr(sink, "delivery", "inline") for sink in self._given]
        return "background" if "background" in wanted else "inline"

    @property
    def destination(self) -> "AlertListener":
        """Attached twice to one circuit, it hears each event once."""
        return self

    @property
    def tick_interval(self) -> float:
        """Seconds: a tenth of the shortest time that a rule names, from 0.05 to 1."""
        times = [getattr(rule, key, _TICKS) for rule in self._rules.values() for key in ("for_", "within")]
        return max(min(min(times) / _TICKS, _LONGEST_TICK), _SHORTEST_TICK)

    def attached(self, subscription: Subscription) -> None:
        """The next tick, which follows at once, looks at its circuits."""
        with self._lock:
            self._subscriptions.add(subscription)
            self._observing = None

    def close(self) -> None:
        """Forget, and close the sinks; the bus calls it when the listener is detached for the last time."""
        with self._lock:
            self._forget()
        _do_all([sink.close for sink in self._given if callable(getattr(sink, "close", None))])

    def __call__(self, event: Event) -> None:
        now = self._clock.monotonic()
        with self._lock:
            doubtful = self._hear(event, now)
        if doubtful:
            self._look({event.circuit_name})
        self._tell()

    def tick(self) -> None:
        """Look at the time, and at the circuits where events do not tell it all; the bus calls it."""
        now = self._clock.monotonic()
        sampling = [rule for rule in self._rules.values() if rule.looks_every is not None]
        with self._lock:
            observing = len(self._active())
            anew, self._observing = observing != self._observing, observing
            doubtful = {name for name, watches in self._watches.items() if _is_doubtful(watches)}
            due = any(now - self._looked_at >= (rule.looks_every or 0) for rule in sampling)
            if anew or due:
                self._looked_at = now
        if anew:
            self._look()
        elif doubtful:
            self._look(doubtful)
        if due and not anew:
            self._look(rules=sampling)
        with self._lock:
            for circuit, watches in list(self._watches.items()):
                for name, part in list(watches):
                    self._judge(self._rules[name], circuit, part, now)
        self._tell()

    # -- deciding -------------------------------------------------------------------------------------------------

    def _hear(self, event: Event, now: float) -> bool:
        """Take in an event; whether the circuits of its name must be looked at."""
        name, part = event.circuit_name, ""
        if isinstance(event, ListenerFailed):
            if (event.role, event.listener) == ("listener", self._name):
                return False
            name, part = ("", event.listener) if event.role == "listener" else (name, event.role)
        elif isinstance(event, EventsDropped):
            name, part = "", event.listener
            if part == self._name:
                self._observing = None  # what went may have been news: the next tick looks
        watches = self._watches.get(name, {})
        moves = isinstance(event, (StateChanged, CircuitCreated, CircuitRetired))
        if moves:
            for heard in self._looks.values():
                heard.add(name)
        if isinstance(event, CircuitCreated):
            for watch in watches.values():
                watch.doubtful = True  # it is the second of that name
        elif isinstance(event, CircuitRetired):
            if not _is_doubtful(watches):
                self._drop(name, "has retired")
        else:
            for rule in self._by_event[type(event)]:
                self._judge(rule, name, part, now, event)
        return moves and _is_doubtful(watches)

    def _look(self, names: set[str] | None = None, rules: Sequence[AlertRule] | None = None) -> None:
        """See how the circuits of these names stand, or all circuits; forget those that are gone."""
        heard: set[str] = set()
        with self._lock:
            self._looks[id(heard)] = heard
            subscriptions = self._active()
        try:
            seen = _infos(subscriptions, names)
        finally:
            with self._lock:
                self._looks.pop(id(heard), None)
        now = self._clock.monotonic()
        looking = [rule.alert.name for rule in (self._rules.values() if rules is None else rules) if rule.looks]
        with self._lock:
            if heard and names is None and rules is None:
                self._observing = None
            for name in dict.fromkeys((*seen, *(self._watches if names is None else names))):
                watches = self._watches.get(name, {})
                if name in heard or not name:
                    continue  # what was heard of meanwhile is newer than what was seen
                if name in seen:
                    known = watches if rules is None else ()
                    for alert, part in dict.fromkeys((*((alert, "") for alert in looking), *known)):
                        self._judge(self._rules[alert], name, part, now, infos=seen[name])
                elif rules is None:
                    self._drop(name, "is gone")

    def _judge(
        self,
        rule: AlertRule,
        circuit: str,
        part: str,
        now: float,
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
            watch.look(infos, now, self._clock.time())
        watch.tick(now)
        self._settle(rule, watch, circuit, part)
        if watch.firing is None and watch.idle(now):
            watches.pop(key, None)
            if not watches:
                self._watches.pop(circuit, None)

    def _settle(self, rule: AlertRule, watch: Watch, circuit: str, part: str) -> None:
        """Tell what has changed."""
        if (watch.findings is None) == (watch.firing is None):
            return
        if watch.findings is not None:
            found: Any = watch.findings._replace(severity=watch.findings.severity or rule.severity)._asdict()
            alert = watch.firing = Alert(
                **found,
                alert=rule.alert.name,
                status="firing",
                runbook=self._runbooks + rule.alert.runbook,
                timestamp=self._clock.time(),
                fingerprint=_fingerprint(rule.alert.name, circuit, part),
            )
        else:
            assert watch.firing is not None
            alert = watch.firing.__replace__(status="resolved", summary=watch.over, timestamp=self._clock.time())
            watch.firing = None
        self._outbox.append((alert, copy_context()))

    def _drop(self, circuit: str, why: str) -> None:
        """A circuit is no more."""
        for (name, part), watch in self._watches.pop(circuit, {}).items():
            watch.end(f"circuit {circuit!r} {why}")
            self._settle(self._rules[name], watch, circuit, part)

    def _active(self) -> list[Subscription]:
        return [each for each in self._subscriptions if each.active]

    # -- telling --------------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        """Give the sinks what is to be told, in order; where somebody is at it already, that one goes on with this."""
        if not self._outbox:
            return
        with self._lock:
            if self._telling:
                return
            self._telling = True
        failed: list[Exception] = []
        try:
            while (told := self._next()) is not None:
                alert, context = told
                for sink in self._sinks:
                    try:
                        refuse_coroutine(context.run(sink, alert), "sink")
                    except Exception as error:
                        failed.append(error)
        except BaseException:
            self._telling = False
            raise
        _raise(failed)

    def _next(self) -> tuple[Alert, Context] | None:
        with self._lock:
            if self._outbox:
                return self._outbox.popleft()
            self._telling = False
            return None

    # -- forks ----------------------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Hold the lock while the process forks, so that the child finds the listener whole."""
        self._lock.acquire()

    def after_fork(self, *, child: bool) -> None:
        """Release it; the child begins anew, and what was to be told is told by the parent."""
        if child:
            self._forget()
            self._outbox.clear()
            self._looks.clear()
            self._telling = False
        self._lock.release()


def _by_name(rules: Any) -> dict[str, AlertRule]:
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
    """The circuits that are alive by their names."""
    circuits: list[Any] = []
    for subscription in subscriptions:
        core = subscription.core
        circuits += subscription.circuits() if core is None else [] if core.retired else [core]
    found: dict[str, list[CircuitBreakerInfo]] = {}
    for circuit in circuits:
        if names is None or circuit.name in names:
            info: CircuitBreakerInfo = circuit.info()
            same = found.setdefault(circuit.name, [])
            if not any((info.state, info.changed_at) == (each.state, each.changed_at) for each in same):
                same.append(info)  # it may be observed twice
    return found


def _is_doubtful(watches: Mapping[Any, Watch]) -> bool:
    return any(watch.doubtful for watch in watches.values())


def _fingerprint(*identity: str) -> str:
    return hashlib.blake2b("\0".join(identity).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _do_all(works: Iterable[Callable[[], object]]) -> None:
    failed: list[Exception] = []
    for work in works:
        try:
            work()
        except Exception as error:
            failed.append(error)
    _raise(failed)


def _raise(failed: Sequence[Exception]) -> None:
    if len(failed) == 1:
        raise failed[0]
    if failed:
        raise ExceptionGroup("; ".join(dict.fromkeys(map(error_text, failed))), failed)


_all_listeners: "WeakSet[AlertListener]" = WeakSet()
_forking: list[AlertListener] = []


def _before_fork() -> None:
    _forking[:] = sorted(_all_listeners, key=id)
    for listener in _forking:
        listener.before_fork()


def _after_fork(*, child: bool) -> None:
    for listener in _forking:
        listener.after_fork(child=child)
    _forking.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=lambda: _after_fork(child=False),
        after_in_child=lambda: _after_fork(child=True),
    )
