"""Calls in traces: the two modes of the OpenTelemetry listener. It needs OpenTelemetry's API, so import it late."""

from collections.abc import Callable, Mapping
from functools import partial
from threading import RLock
from typing import Protocol
from weakref import WeakKeyDictionary

from opentelemetry import context as contexts
from opentelemetry import trace

from fluxgate.events import (
    CallCancelled,
    CallEnded,
    CallFailed,
    CallIgnored,
    CallRejected,
    CallSucceeded,
    Event,
    FallbackUsed,
)

from . import names
from ._oteltext import Attributes, of_call, refusal
from ._render import printable

Leave = Callable[[Event | None], None]

_SUPPRESSED: str = getattr(contexts, "_SUPPRESS_INSTRUMENTATION_KEY", "suppress_instrumentation")
_INNERMOST = contexts.create_key("fluxgate-call")
_GRAVITY: Mapping[type[Event], int] = {
    CallSucceeded: 0,
    CallCancelled: 1,
    CallIgnored: 2,
    CallFailed: 3,
    CallRejected: 4,
}


class Calls(Protocol):
    """One mode."""

    def around(self, circuit_name: str, call_id: int, *, nested: bool) -> Leave | None:
        """An admitted call begins here; how it is to end."""
        ...

    def refused(self, event: CallRejected) -> None:
        """A call was refused here."""
        ...

    def reset(self) -> None:
        """In a forked child."""
        ...


class Annotations:
    """Decisions on the span that is current where the call is made.

    A span may see several calls, and OpenTelemetry has no way to take an attribute back. So the attributes are those
    of the gravest decision, of equals the last: each set of them covers the lesser ones whole, and a mix of two
    decisions cannot come about.
    """

    def __init__(self) -> None:
        self._gravest: WeakKeyDictionary[trace.Span, int] = WeakKeyDictionary()
        self.reset()

    def reset(self) -> None:
        """In a forked child: a thread of the parent's may have held the lock."""
        self._lock = RLock()  # re-entrant, since a signal handler may call a breaker at any point

    def around(self, circuit_name: str, call_id: int, *, nested: bool) -> Leave | None:
        span = recording_span()
        return None if span is None else partial(self._ended, span)

    def refused(self, event: CallRejected) -> None:
        span = recording_span()
        if span is not None:
            self._write(span, event)

    def _ended(self, span: trace.Span, event: Event | None) -> None:
        if isinstance(event, CallEnded):
            self._write(span, event)

    def _write(self, span: trace.Span, event: CallEnded | CallRejected) -> None:
        if not span.is_recording():
            return
        told = of_call(event)
        with self._lock:  # threads may share a span
            if self._is_gravest(span, _GRAVITY[type(event)] + (names.RETRY_AFTER_ATTRIBUTE in told)):
                span.set_attributes(told)
        if not isinstance(event, CallSucceeded) or event.stale:
            span.add_event(names.CALL_SPAN_EVENTS[type(event)], told | _more(event) | _text(event))

    def _is_gravest(self, span: trace.Span, gravity: int) -> bool:
        try:
            known = self._gravest.get(span, 0)
            if gravity < known:
                return False
            if gravity > known:  # of a span on which all calls succeed nothing need be remembered
                self._gravest[span] = gravity
        except TypeError:  # a span of somebody else's making, of which nothing can be remembered
            pass
        return True


class Spans:
    """A span around each call, current while it runs."""

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    def reset(self) -> None:
        pass

    def around(self, circuit_name: str, call_id: int, *, nested: bool) -> Leave | None:
        if is_suppressed():
            return None
        name = printable(circuit_name)
        attributes: Attributes = {names.CIRCUIT_ATTRIBUTE: name, names.DECISION_ATTRIBUTE: names.PERMITTED}
        span = self._tracer.start_span(names.call_span_name(name), attributes=attributes)
        return partial(self._ended, span, _Current(span) if nested else None)

    def refused(self, event: CallRejected) -> None:
        if not is_suppressed():
            told = of_call(event)
            span = self._tracer.start_span(names.call_span_name(printable(event.circuit_name)), attributes=told)
            span.set_status(trace.Status(trace.StatusCode.ERROR, refusal(event)))
            span.end()

    def _ended(self, span: trace.Span, current: "_Current | None", event: Event | None) -> None:
        if current is not None:
            current.leave()
        if not span.is_recording():
            return
        try:
            if isinstance(event, CallEnded):
                span.set_attributes(of_call(event) | _more(event))
            if isinstance(event, CallFailed):
                # Not `record_exception`: it writes the text, and the traceback, as they are.
                span.set_status(trace.Status(trace.StatusCode.ERROR, printable(event.error) or None))
        finally:
            span.end()


def fell_back(event: FallbackUsed) -> None:
    """A fallback answers: the call's own span is over, so it is told on the one around it, in both modes."""
    span = recording_span()
    if span is not None:
        told: Attributes = {
            names.CIRCUIT_ATTRIBUTE: printable(event.circuit_name),
            names.STATE_ATTRIBUTE: event.state.value,
            names.ERROR_ATTRIBUTE: printable(event.error_type),
        }
        span.add_event(names.CALL_SPAN_EVENTS[FallbackUsed], told)


def recording_span() -> trace.Span | None:
    """The current span, if it records and what runs is not an exporter's own traffic."""
    if not contexts.get_current():  # empty, as outside of requests: seen sooner than that there is no span
        return None
    span = trace.get_current_span()
    return span if span.is_recording() and not is_suppressed() else None


def is_suppressed() -> bool:
    """Whether this is an exporter's own traffic: its spans would bring forth more spans, and it is no request's."""
    return bool(contexts.get_value(_SUPPRESSED))


def _more(event: CallEnded | CallRejected) -> Attributes:
    more: Attributes = {}
    if isinstance(event, CallEnded) and event.stale:
        more[names.STALE_ATTRIBUTE] = True
    if isinstance(event, (CallSucceeded, CallFailed)) and event.slow:
        more[names.SLOW_ATTRIBUTE] = True
    return more


def _text(event: CallEnded | CallRejected) -> Attributes:
    text = printable(event.error) if isinstance(event, CallFailed) else ""
    return {names.ERROR_TEXT_ATTRIBUTE: text} if text else {}


class _Current:
    """Makes a span the current one, until `leave`."""

    __slots__ = ("_before", "_gone", "_mine", "_token")

    def __init__(self, span: trace.Span) -> None:
        self._gone = False
        self._before = contexts.get_current()
        self._mine = contexts.set_value(_INNERMOST, self, trace.set_span_in_context(span, self._before))
        self._token = contexts.attach(self._mine)

    def leave(self) -> None:
        """Make current what was."""
        if self._gone:  # back to what was before it would be back to a span that has ended
            return
        var = getattr(self._token, "var", None)
        if var is None:  # a context that the program has plugged in
            contexts.detach(self._token)
            return
        try:
            # As `detach` does, which would log a traceback over what follows.
            within = contexts.get_value(_INNERMOST)
            var.reset(self._token)
            # Blocks in generators may end before those that began within them: these have gone with it.
            while isinstance(within, _Current) and within not in (self, self._before.get(_INNERMOST)):
                within._gone = True
                within = within._before.get(_INNERMOST)
        except ValueError:
            # A block that was entered in another task or thread. What this context inherited of it must go all the
            # same; what another has set here since stays.
            if contexts.get_current() is self._mine:
                contexts.attach(self._before)
