"""Changes of state in OpenTelemetry: a log record each, and a span for each outage. It needs OpenTelemetry's API."""

import atexit
import time
import weakref
from collections.abc import Callable
from functools import partial
from logging import WARNING
from threading import RLock

from opentelemetry import trace
from opentelemetry._logs import Logger, LogRecord, SeverityNumber
from opentelemetry.context import Context, get_current

from fluxgate._text import log
from fluxgate.events import CallEnded, CircuitRetired, StateChanged
from fluxgate.state import HALF_OPEN, OPEN, State, Trigger

from . import names
from ._oteltext import Attributes, nanoseconds, of_change, sentence
from ._render import printable

_REFUSING = (OPEN, HALF_OPEN)
_BEGINNING = tuple(key for key in names.CHANGE_ATTRIBUTES if key not in ("old_state", "new_state", "retry_after"))
_MOST = 100
"""Links, and marks of changes, on one outage's span; a probe a minute fills them in an hour and a half."""


def write_record(logger: Logger, event: StateChanged) -> None:
    """The change as a log record, in the trace of the call that caused it: its context is the current one."""
    warns = names.LOG_LEVELS[names.log_name(event)] >= WARNING
    logger.emit(
        LogRecord(
            timestamp=nanoseconds(event.timestamp),
            observed_timestamp=time.time_ns(),
            context=get_current(),
            severity_number=SeverityNumber.WARN if warns else SeverityNumber.INFO,
            severity_text="WARN" if warns else "INFO",
            body=sentence(event),
            attributes=of_change(event),
            event_name=names.STATE_CHANGE_EVENT,
        )
    )


class _Outage:
    """One circuit's, from its trip to its recovery."""

    __slots__ = ("_links", "_marks", "_reason", "_started", "generation", "span", "state")

    def __init__(self, tracer: trace.Tracer, event: StateChanged) -> None:
        self.generation = event.generation
        self.state = event.new_state
        self._reason = printable(event.reason)
        self._started = nanoseconds(event.timestamp)
        self._marks = 0
        tripping = trace.get_current_span().get_span_context()
        links = [trace.Link(tripping, {names.LINK_ATTRIBUTE: names.TRIP_LINK})] if tripping.is_valid else []
        self.span = tracer.start_span(
            names.outage_span_name(printable(event.circuit_name)),
            Context(),  # none: a trace of its own, since it outlives the request that began it
            attributes=of_change(event, _BEGINNING),
            links=links,
            start_time=self._started,
        )
        self._links = len(links)
        self.mark(event)

    def mark(self, event: StateChanged) -> None:
        """Another change of its circuit."""
        self._marks += 1
        if self._marks <= _MOST or event.new_state not in _REFUSING:
            self.span.add_event(names.STATE_CHANGE_EVENT, of_change(event), nanoseconds(event.timestamp))
        if event.new_state in _REFUSING:
            self.span.set_attribute(names.REOPENS_ATTRIBUTE, event.reopens)

    def link_probe(self, event: CallEnded) -> None:
        """A probe was settled: the span that is current."""
        probe = trace.get_current_span().get_span_context()
        if probe.is_valid and self._links < _MOST:
            self._links += 1
            outcome = names.OUTCOMES[type(event)]
            told: Attributes = {names.LINK_ATTRIBUTE: names.PROBE_LINK, names.OUTCOME_ATTRIBUTE: outcome}
            self.span.add_link(probe, told)

    def end(self, how: str, timestamp: float | None = None) -> None:
        """It is over."""
        ended = (None if timestamp is None else nanoseconds(timestamp)) or time.time_ns()
        try:
            self.span.set_attribute(names.OUTAGE_END_ATTRIBUTE, how)
            self.span.set_status(trace.Status(trace.StatusCode.ERROR, self._reason))
        finally:
            self.span.end(max(ended, self._started or 0))  # a wall clock may have been set back


class Outages:
    """The outages that are going on.

    Events name a circuit and not which one of that name, so those of one name are told apart by generation: a change
    belongs to the outage with the latest one before it.
    """

    def __init__(self, tracer: trace.Tracer, is_alive: Callable[[str], bool]) -> None:
        self._tracer = tracer
        self._is_alive = is_alive
        self._at_exit: Callable[[], object] | None = None
        self.reset()

    def reset(self) -> None:
        """Forget all: a forked child leaves them to its parent, whose threads may have held the lock."""
        self._lock = RLock()  # re-entrant, since a signal handler may call a breaker at any point
        self._going_on: dict[str, list[_Outage]] = {}

    def changed(self, event: StateChanged) -> None:
        """A circuit has changed its state."""
        outage = self._find(event)
        if outage is None:
            if event.new_state is OPEN:
                self._begin(event)
            return
        with self._lock:
            outage.generation, outage.state = event.generation, event.new_state
        outage.mark(event)
        if event.new_state not in _REFUSING:
            by_hand = event.new_state is State.CLOSED and event.trigger is Trigger.MANUAL
            self._end(event.circuit_name, outage, names.RESET if by_hand else names.OUTAGE_ENDS[event.new_state], event)

    def settled(self, event: CallEnded) -> None:
        """A call has ended; of interest if it was a probe that counted."""
        if event.state is HALF_OPEN and not event.stale and self._going_on:
            with self._lock:
                probing = [each for each in self._going_on.get(event.circuit_name, ()) if each.state is HALF_OPEN]
            if probing:
                probing[-1].link_probe(event)

    def retired(self, event: CircuitRetired) -> None:
        """A circuit is gone."""
        with self._lock:
            outages = list(self._going_on.get(event.circuit_name, ()))
        mine = [each for each in outages if each.state is event.state][:1]
        if len(mine) < len(outages) and not self._is_alive(event.circuit_name):
            mine = outages  # what a lost event has left behind goes with the last of the name
        for outage in mine:
            self._end(event.circuit_name, outage, names.RETIRED, event)

    def end_all(self) -> None:
        """Nobody will see how they end."""
        at_exit, self._at_exit = self._at_exit, None
        if at_exit is not None:
            atexit.unregister(at_exit)
        with self._lock:
            going_on, self._going_on = self._going_on, {}
        for circuit_name, outages in going_on.items():
            for outage in outages:
                try:
                    outage.end(names.UNFINISHED)
                except Exception as error:
                    log("ERROR", "the span of an outage of circuit %r cannot be ended", circuit_name, error=error)

    def _find(self, event: StateChanged) -> _Outage | None:
        if event.old_state not in _REFUSING:
            return None
        with self._lock:
            earlier = [
                each for each in self._going_on.get(event.circuit_name, ()) if each.generation < event.generation
            ]
            return max(earlier, key=lambda each: each.generation, default=None)

    def _begin(self, event: StateChanged) -> None:
        if self._at_exit is None:
            # The last to register is the first to be called, and a provider registers its own end when it is made:
            # at the bus's turn it may be too late.
            self._at_exit = partial(_end_all_of, weakref.ref(self))
            atexit.register(self._at_exit)
        outage = _Outage(self._tracer, event)
        with self._lock:
            self._going_on.setdefault(event.circuit_name, []).append(outage)

    def _end(self, circuit_name: str, outage: _Outage, how: str, event: StateChanged | CircuitRetired) -> None:
        with self._lock:
            outages = self._going_on.get(circuit_name, [])
            if outage not in outages:
                return
            outages.remove(outage)
            if not outages:
                del self._going_on[circuit_name]
        outage.end(how, event.timestamp)


def _end_all_of(outages: "weakref.ref[Outages]") -> None:
    going_on = outages()
    if going_on is not None:
        going_on.end_all()
