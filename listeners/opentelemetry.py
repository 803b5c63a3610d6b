"""Circuits in traces, log records and metrics, through OpenTelemetry's API."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args
from weakref import WeakSet

from fluxgate import _check
from fluxgate._forks import BegunAnew
from fluxgate._subscription import Subscription
from fluxgate._text import log
from fluxgate.events import CallEnded, CallRejected, CircuitRetired, Event, FallbackUsed, StateChanged

from . import names
from ._library import OPENTELEMETRY, NeedsLibrary
from ._otelmetrics import OpenTelemetryMetricsListener
from ._oteltext import scope_version

if TYPE_CHECKING:
    from opentelemetry._logs import LoggerProvider
    from opentelemetry.trace import TracerProvider

    from ._otelcalls import Leave

__all__ = ["Mode", "OpenTelemetryMetricsListener", "TracingListener"]

Mode = Literal["annotate", "spans"]

_LOOK = 1.0  # seconds
_SILENT = (
    "TracingListener(mode='spans') is silent where one with mode='annotate' was attached before it, "
    "for the same providers"
)
_CHANGES = (StateChanged, CircuitRetired)
_ALL = (*_CHANGES, CallEnded, CallRejected, FallbackUsed)


class TracingListener(NeedsLibrary):
    """Writes what circuits decide into traces, and their changes of state as log records.

    With ``mode="annotate"`` the span that is current where a call is made gets the decision as attributes, and an
    event for each call that did not succeed. With ``mode="spans"`` each admitted call has a span of its own,
    ``circuit_breaker <name>``, which is current while it runs; a failure makes it an error with the text that
    `fluxgate.redact` left, and a refused call is a short error span. In both modes an outage, from trip to recovery,
    is a span in a trace of its own, linked to the call that tripped the circuit and to the probes; and a change of
    state is a log record ``fluxgate.circuit.state_change`` in the trace of the call that caused it. All attributes
    are listed in `fluxgate.listeners.names`.

    Until the program has configured OpenTelemetry's SDK no call is observed, and costs what it costs without the
    listener; an SDK that comes later is noticed within a second or two. Of several listeners for the same providers,
    whatever their modes, a circuit tells the first attached only.

    Args:
        tracer_provider: Whose spans to write; the process's own. In ``annotate`` it writes on whatever span is
            current.
        mode: ``"annotate"`` or ``"spans"``.
        logger_provider: Where the log records go; the process's own.

    Raises:
        MissingExtraError: OpenTelemetry's API is not installed.
        TypeError, ValueError: An argument is not what it must be; the text quotes it.

    >>> from fluxgate import Bus, CircuitBreaker
    >>> from opentelemetry.sdk.trace import TracerProvider
    >>> tracer_provider = TracerProvider()
    >>> cb = CircuitBreaker("payments", listeners=[TracingListener(tracer_provider)], bus=Bus())
    >>> with tracer_provider.get_tracer("shop").start_as_current_span("GET /checkout") as span:
    ...     cb.call_with_fallback(int, lambda error: 0, "ten euros")
    0
    >>> span.attributes["fluxgate.decision"], span.attributes["fluxgate.outcome"], span.attributes["error.type"]
    ('permitted', 'failure', 'ValueError')
    """

    automatic: ClassVar[str] = "opentelemetry"
    library = OPENTELEMETRY

    def __init__(
        self,
        tracer_provider: "TracerProvider | None" = None,
        mode: Mode = "annotate",
        logger_provider: "LoggerProvider | None" = None,
    ) -> None:
        if mode not in get_args(Mode):
            raise ValueError(f"mode must be 'annotate' or 'spans', got {_check.got(mode)}")
        _provider(tracer_provider, "tracer_provider", "get_tracer")
        _provider(logger_provider, "logger_provider", "get_logger")
        self._trace = self.require()
        self._logs = OPENTELEMETRY._replace(module="opentelemetry._logs").load(type(self).__name__)
        from . import _otelcalls, _oteloutages

        version = scope_version()
        self.mode = mode
        self.destination = _Destination(
            lambda: self._trace.get_tracer_provider() if tracer_provider is None else tracer_provider,
            lambda: self._logs.get_logger_provider() if logger_provider is None else logger_provider,
        )
        """The providers: see `fluxgate.bus`."""
        # Of the process's own, if nobody has set one yet, a proxy that turns to it as soon as it is set.
        tracer = self.destination.tracer_provider.get_tracer(names.SCOPE, version)
        self._logger = self.destination.logger_provider.get_logger(names.SCOPE, version)
        self._calls: _otelcalls.Calls = _otelcalls.Annotations() if mode == "annotate" else _otelcalls.Spans(tracer)
        self.around: Callable[..., Leave | None] = self._calls.around
        """The bus calls it in an admitted call's own context before it runs."""
        self._fell_back = _otelcalls.fell_back
        self._write_record = _oteloutages.write_record
        self._outages = _oteloutages.Outages(tracer, self._is_alive)
        self._subscriptions: WeakSet[Subscription] = WeakSet()
        self.tick_interval: float | None = None if tracer_provider is not None or self._is_live else _LOOK
        self.tick = None if self.tick_interval is None else self._look
        _listeners.add(self)

    @property
    def _is_live(self) -> bool:
        """Whether there is an SDK to write spans."""
        idle = (self._trace.ProxyTracerProvider, self._trace.NoOpTracerProvider)
        provider = self.destination.tracer_provider
        return not isinstance(provider, idle) and not isinstance(
            provider.get_tracer(names.SCOPE), self._trace.NoOpTracer
        )

    @property
    def events(self) -> tuple[type[Event], ...]:
        """The types that it asks for: none of calls while there is no SDK to write spans."""
        return _ALL if self._is_live else _CHANGES

    def attached(self, subscription: Subscription) -> None:
        """The bus calls it."""
        self._subscriptions.add(subscription)
        if any(self._is_silenced_by(other, subscription) for other in list(_listeners)):
            log("WARNING", _SILENT)
        if CallRejected not in subscription.kinds and self._is_live:  # an SDK has just come
            subscription.refresh()

    def _is_silenced_by(self, other: "TracingListener", mine: Subscription) -> bool:
        """Whether this one was to tell more than another that the circuits were given first."""
        if (self.mode, other.mode) != ("spans", "annotate") or self.destination != other.destination:
            return False
        return any(
            each.active
            and each._bus is mine._bus  # pyright: ignore[reportPrivateUsage]
            and (each.core is None or each.core is mine.core)
            for each in list(other._subscriptions)
        )

    def _look(self) -> None:
        if not isinstance(self.destination.tracer_provider, self._trace.ProxyTracerProvider):
            for subscription in list(self._subscriptions):
                subscription.refresh()
            self.tick_interval = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, CallEnded):
            self._outages.settled(event)
        elif isinstance(event, StateChanged):
            try:
                self._write_record(self._logger, event)
            finally:
                if self.tick_interval is None:  # else one that goes on when an SDK comes would never be told
                    self._outages.changed(event)
        elif isinstance(event, CircuitRetired):
            self._outages.retired(event)

    def instead(self, event: CallRejected | FallbackUsed) -> None:
        """The bus calls it where a call is refused and where a fallback answers: the span there may end any moment."""
        if isinstance(event, CallRejected):
            self._calls.refused(event)
        else:
            self._fell_back(event)

    def close(self) -> None:
        """End the spans of outages, as unfinished; the bus calls it when the listener is detached."""
        self._outages.end_all()

    def _is_alive(self, circuit_name: str) -> bool:
        return any(each.namesakes((circuit_name,)) for each in list(self._subscriptions))

    def after_fork(self) -> None:
        """In the child: what goes on is the parent's."""
        self._outages.reset()
        self._calls.reset()


def _provider(value: Any, what: str, method: str) -> None:
    if value is not None and not callable(getattr(_check.instance(value, what, "a provider"), method, None)):
        raise TypeError(f"{what} must be an OpenTelemetry provider with {method}(), got {_check.got(value)}")


class _Destination:
    """The providers as they are at the moment of the question: the process's own may be set at any time."""

    def __init__(self, tracer_provider: Callable[[], Any], logger_provider: Callable[[], Any]) -> None:
        self._tracer_provider = tracer_provider
        self._logger_provider = logger_provider

    @property
    def tracer_provider(self) -> Any:
        return self._tracer_provider()

    @property
    def logger_provider(self) -> Any:
        return self._logger_provider()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Destination):
            return NotImplemented
        return self.tracer_provider is other.tracer_provider and self.logger_provider is other.logger_provider

    def __hash__(self) -> int:
        return hash(_Destination)  # providers may change, hashes may not


_listeners = BegunAnew[TracingListener]()
