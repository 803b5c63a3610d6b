"""The rules of alerts, each an immutable value that says when its alert fires and when it resolves."""

from collections.abc import Sequence
from typing import Any, ClassVar, get_args

from fluxgate import CircuitBreakerInfo, _check
from fluxgate._record import Record
from fluxgate.events import CallRejected, CircuitRetired, Event, EventsDropped, ListenerFailed, StateChanged
from fluxgate.metric import Metric
from fluxgate.state import State
from fluxgate.trippers import AvgLatency, MinRequests, SlowRate

from ._alertwatch import OUT, REFUSING, Failures, Flaps, Losses, Outage, Rejections, Slowness, Watch
from .names import (
    CIRCUIT_FLAPPING,
    CIRCUIT_OPEN,
    CIRCUIT_STUCK_OPEN,
    EVENTS_LOST,
    LISTENER_FAILING,
    REJECTING_CALLS,
    SLOW_CIRCUIT,
    AlertName,
    Severity,
)

_JUDGED = frozenset((State.CLOSED, State.METRICS_ONLY))
_LOOKS = 10  # in the time that a circuit may be slow


class AlertRule(Record):
    """Base of the rules: immutable, equal by their values, and their ``repr`` makes them again."""

    __slots__ = ()
    alert: ClassVar[AlertName]
    """Its name, usual severity and runbook."""
    events: ClassVar[tuple[type[Event], ...]] = ()
    """What it needs to be told."""
    severity: Severity

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)

    @property
    def looks_every(self) -> float | None:
        """How often it must look at the circuits, in seconds; ``None`` where events tell it all."""
        return None

    def watch(self) -> Watch:
        """A watch that has seen nothing yet."""
        raise NotImplementedError

    def concerns(self, infos: Sequence[CircuitBreakerInfo]) -> bool:
        """Whether a look at the circuits of a name shows something to watch."""
        return False

    def _severity(self, severity: Severity | None) -> Severity:
        if severity is None:
            return self.alert.severity
        if severity not in get_args(Severity):
            names = ", ".join(map(repr, get_args(Severity)))
            raise ValueError(f"severity must be one of {names}, got {_check.got(severity)}")
        return severity


class CircuitOpen(AlertRule):
    """A circuit is open: its calls are refused.

    ======== ==========================================================================================================
    fires    when it opens; at severity ``"info"`` when somebody forces it open
    resolves when it closes, or a person resets or disables it or sets it to metrics only, or it retires
    stays    while it probes (half-open), opens again, or is forced open meanwhile
    ======== ==========================================================================================================

    Args:
        severity: ``"critical"``, ``"warning"`` (the default) or ``"info"``.

    Raises:
        ValueError: `severity` is none of these.

    >>> CircuitOpen(severity="critical")
    CircuitOpen(severity='critical')
    """

    __slots__ = ("severity",)
    alert = CIRCUIT_OPEN
    events = (StateChanged, CircuitRetired)

    def __init__(self, severity: Severity | None = None) -> None:
        super().__init__(severity=self._severity(severity))

    def watch(self) -> Watch:
        return Outage(REFUSING)

    def concerns(self, infos: Sequence[CircuitBreakerInfo]) -> bool:
        return any(info.state in REFUSING for info in infos)


class CircuitStuckOpen(AlertRule):
    """A circuit opened and has not closed since: it is open, or its probes keep failing.

    ======== ==========================================================================================================
    fires    once it has been open or half-open for `for_` seconds without a break, whether calls come or not
    resolves when it closes, or a person resets, disables or forces it open or sets it to metrics only, or it retires
    stays    while it probes and opens again
    ======== ==========================================================================================================

    `since` is when it opened. For a circuit that was open when the listener was attached, the seconds count from then.

    Args:
        for_: Seconds, above 0.
        severity: ``"critical"`` (the default), ``"warning"`` or ``"info"``.

    Raises:
        TypeError, ValueError: An argument is not what it must be.

    >>> CircuitStuckOpen(for_=60)
    CircuitStuckOpen(for_=60.0, severity='critical')
    """

    __slots__ = ("for_", "severity")
    alert = CIRCUIT_STUCK_OPEN
    events = (StateChanged, CircuitRetired)
    for_: float

    def __init__(self, for_: float = 300.0, severity: Severity | None = None) -> None:
        super().__init__(for_=_check.number(for_, "for_", above=0), severity=self._severity(severity))

    def watch(self) -> Watch:
        return Outage(OUT, self.for_)

    def concerns(self, infos: Sequence[CircuitBreakerInfo]) -> bool:
        return any(info.state in OUT for info in infos)


class CircuitFlapping(AlertRule):
    """A circuit opens and closes again and again: each recovery is a false one.

    ======== ==========================================================================================================
    counts   CLOSED to OPEN, and to CLOSED; neither probing and opening again, nor what a person does
    fires    at the change that makes `changes` of them within `within` seconds, first and last included
    resolves once there was none for `within` seconds, or it retires
    ======== ==========================================================================================================

    `since` is the first of the changes that count.

    Args:
        changes: At least 2; 6 are three outages.
        within: Seconds, above 0.
        severity: ``"critical"``, ``"warning"`` (the default) or ``"info"``.

    Raises:
        TypeError, ValueError: An argument is not what it must be.

    >>> CircuitFlapping(changes=4)
    CircuitFlapping(changes=4, within=600.0, severity='warning')
    """

    __slots__ = ("changes", "within", "severity")
    alert = CIRCUIT_FLAPPING
    events = (StateChanged,)
    changes: int
    within: float

    def __init__(self, changes: int = 6, within: float = 600.0, severity: Severity | None = None) -> None:
        super().__init__(
            changes=_check.whole(changes, "changes", at_least=2),
            within=_check.number(within, "within", above=0),
            severity=self._severity(severity),
        )

    def watch(self) -> Watch:
        return Flaps(self.changes, self.within)


class RejectingCalls(AlertRule):
    """A circuit refuses many calls: users notice, unless a fallback answers them.

    ======== ==========================================================================================================
    counts   the calls refused while it is open or half-open, in tenths of `within`: the present tenth and the nine
             before it, so never more than were refused in `within` seconds
    fires    at the refusal that makes ``rate * within`` of them
    resolves once they are fewer than half as many, or it retires
    never    over calls refused because a person has forced it open
    ======== ==========================================================================================================

    `since` is when the first of an unbroken run of refusals was: no pause of `within` seconds.

    Args:
        rate: Calls a second, above 0.
        within: Seconds, above 0.
        severity: ``"critical"``, ``"warning"`` (the default) or ``"info"``.

    Raises:
        TypeError, ValueError: An argument is not what it must be.

    >>> RejectingCalls(rate=5)
    RejectingCalls(rate=5.0, within=60.0, severity='warning')
    """

    __slots__ = ("rate", "within", "severity")
    alert = REJECTING_CALLS
    events = (StateChanged, CallRejected)
    rate: float
    within: float

    def __init__(self, rate: float = 1.0, within: float = 60.0, severity: Severity | None = None) -> None:
        super().__init__(
            rate=_check.number(rate, "rate", above=0),
            within=_check.number(within, "within", above=0),
            severity=self._severity(severity),
        )

    def watch(self) -> Watch:
        return Rejections(self.rate, self.within)


class ListenerFailing(AlertRule):
    """A listener, or a rule of the program's own (a tracker, say), raises: what it was to do is not done.

    ======== ==========================================================================================================
    counts   each listener by its name, whatever circuit it fails over; the rules of a circuit by their kind
    fires    at the failure that makes `failures` of them within `within` seconds, first and last included
    resolves once there was none for `within` seconds, or, for a circuit's rule, the circuit retires
    ======== ==========================================================================================================

    `since` is the first of the failures that count, `circuit_name` the circuit over which the last of them happened.

    Args:
        failures: At least 1.
        within: Seconds, above 0.
        severity: ``"critical"``, ``"warning"`` (the default) or ``"info"``.

    Raises:
        TypeError, ValueError: An argument is not what it must be.

    >>> ListenerFailing(failures=1)
    ListenerFailing(failures=1, within=300.0, severity='warning')
    """

    __slots__ = ("failures", "within", "severity")
    alert = LISTENER_FAILING
    events = (ListenerFailed,)
    failures: int
    within: float

    def __init__(self, failures: int = 3, within: float = 300.0, severity: Severity | None = None) -> None:
        super().__init__(
            failures=_check.whole(failures, "failures"),
            within=_check.number(within, "within", above=0),
            severity=self._severity(severity),
        )

    def watch(self) -> Watch:
        return Failures(self.failures, self.within)


class EventsLost(AlertRule):
    """A background listener's queue was full, and events went: what it shows has gaps.

    ======== ==========================================================================================================
    counts   each listener by its name
    fires    at the first loss
    resolves once there was none for `within` seconds
    ======== ==========================================================================================================

    `since` is the first loss, `circuit_name` the circuit whose event was the last to go.

    Args:
        within: Seconds, above 0.
        severity: ``"critical"``, ``"warning"`` (the default) or ``"info"``.

    Raises:
        TypeError, ValueError: An argument is not what it must be.

    >>> EventsLost()
    EventsLost(within=300.0, severity='warning')
    """

    __slots__ = ("within", "severity")
    alert = EVENTS_LOST
    events = (EventsDropped,)
    within: float

    def __init__(self, within: float = 300.0, severity: Severity | None = None) -> None:
        super().__init__(within=_check.number(within, "within", above=0), severity=self._severity(severity))

    def watch(self) -> Watch:
        return Losses(1, self.within)


class SlowCircuit(AlertRule):
    """A circuit's calls are slow, by what its window holds.

    ======== ==========================================================================================================
    reads    the window of a circuit that is closed or in metrics only, ten times in `for_` seconds
    slow     once `min_calls` calls are in it, of which a share of `slow_rate` is slow or which take `avg_duration`
             on average, unless nothing in it has changed for `for_` seconds, since then nobody calls
    fires    once it has been slow for `for_` seconds without a break
    resolves once it has not been slow for `for_` seconds without a break, or it retires
    stays    while the circuit is open or half-open
    ======== ==========================================================================================================

    `since` is when it was first found slow. The window is read, so that no call costs more for being watched.

    Args:
        slow_rate: Share of calls that reach the circuit's `slow_threshold`, above 0 and at most 1; ``None``: any.
            The `slow_threshold` of a circuit is 60 seconds unless it was told otherwise.
        avg_duration: Seconds, above 0; ``None``: any.
        min_calls: Below it the window is no evidence.
        for_: Seconds, above 0.
        severity: ``"critical"``, ``"warning"`` (the default) or ``"info"``.

    Raises:
        TypeError, ValueError: An argument is not what it must be, or `slow_rate` and `avg_duration` are both ``None``.

    >>> SlowCircuit(slow_rate=None, avg_duration=0.8)
    SlowCircuit(slow_rate=None, avg_duration=0.8, min_calls=20, for_=60.0, severity='warning')
    """

    __slots__ = ("slow_rate", "avg_duration", "min_calls", "for_", "severity")
    alert = SLOW_CIRCUIT
    slow_rate: float | None
    avg_duration: float | None
    min_calls: int
    for_: float

    def __init__(
        self,
        slow_rate: float | None = 0.5,
        avg_duration: float | None = None,
        min_calls: int = 20,
        for_: float = 60.0,
        severity: Severity | None = None,
    ) -> None:
        if slow_rate is None and avg_duration is None:
            raise ValueError("SlowCircuit needs slow_rate or avg_duration, got neither")
        super().__init__(
            slow_rate=None if slow_rate is None else _check.number(slow_rate, "slow_rate", above=0, at_most=1),
            avg_duration=None if avg_duration is None else _check.number(avg_duration, "avg_duration", above=0),
            min_calls=_check.whole(min_calls, "min_calls"),
            for_=_check.number(for_, "for_", above=0),
            severity=self._severity(severity),
        )

    @property
    def looks_every(self) -> float | None:
        return self.for_ / _LOOKS

    def watch(self) -> Watch:
        return Slowness(self._is_slow, self._explain, self.for_)

    def concerns(self, infos: Sequence[CircuitBreakerInfo]) -> bool:
        return any(map(self._is_slow, infos))

    def _is_slow(self, info: CircuitBreakerInfo) -> bool:
        sums = info.metrics
        if sums.total_count < max(self.min_calls, 1) or info.state not in _JUDGED:  # in most, nothing is to be judged
            return False
        shares = ((sums.slow_rate, self.slow_rate), (sums.avg_duration, self.avg_duration))
        return any(value is not None and limit is not None and value >= limit for value, limit in shares)

    def _explain(self, sums: Metric) -> str:
        """In the words of the trippers that say the same."""
        rate = None if self.slow_rate is None else SlowRate(self.slow_rate)
        mean = None if self.avg_duration is None else AvgLatency(self.avg_duration)
        either: Any = rate | mean if rate is not None and mean is not None else mean if rate is None else rate
        return str((MinRequests(self.min_calls) & either).explain(sums, State.CLOSED, 0))


DEFAULT_ALERTS: tuple[AlertRule, ...] = (
    CircuitOpen(),
    CircuitStuckOpen(),
    CircuitFlapping(),
    RejectingCalls(),
    SlowCircuit(),
    ListenerFailing(),
    EventsLost(),
)
"""One of each rule, as it is unless told otherwise."""
