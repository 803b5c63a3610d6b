"""What happens to circuits as OpenTelemetry metrics."""

import time
from collections.abc import Callable, Hashable, Iterable
from functools import partial
from threading import RLock
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary, WeakSet

from fluxgate import _check
from fluxgate._subscription import Subscription
from fluxgate.events import CircuitRetired, Event

from ._library import OPENTELEMETRY, NeedsLibrary
from ._looks import Look, gauges
from ._metrics import EVENTS, MOVES_OF_ITS_OWN, Board
from .names import BUCKETS, INSTRUMENTS, SCOPE, Instrument

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation

_TICK = 1.0  # seconds between two looks for a provider
_API = "opentelemetry.metrics"
_GAUGES = tuple(each for each in INSTRUMENTS if each.kind == "gauge")
_ONE_COLLECTION = 1.0  # seconds from its survey to the last gauge that is asked for


class OpenTelemetryMetricsListener(NeedsLibrary):
    """Measures circuits with OpenTelemetry, in the instruments that `fluxgate.listeners.names` lists.

    Any number of listeners may share a meter provider: no event counts twice. Counters and the histogram are recorded
    in the context of the call, so that the SDK's exemplars lead to its trace; gauges are looked up when the SDK
    collects. Circuits of one name share their series. Names and rules are one line of printable characters, at most
    1,000.

    While no SDK is configured, the listener asks for no calls and costs them nothing. A provider that the program sets
    later is noticed within a second.

    Args:
        meter_provider: Where to measure; OpenTelemetry's global one.

    Raises:
        MissingExtraError: opentelemetry-api is not installed.
        TypeError: `meter_provider` is none.

    >>> from opentelemetry.sdk.metrics import MeterProvider
    >>> from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    >>> from fluxgate import Bus, CircuitBreaker
    >>> reader = InMemoryMetricReader()
    >>> listener = OpenTelemetryMetricsListener(MeterProvider([reader]))
    >>> cb = CircuitBreaker("payments", listeners=[listener], bus=Bus())
    >>> cb.call(int, "10")
    10
    >>> [scope] = reader.get_metrics_data().resource_metrics[0].scope_metrics
    >>> [calls] = [metric for metric in scope.metrics if metric.name == "circuit_breaker.call.duration"]
    >>> calls.data.data_points[0].count
    1
    """

    automatic: ClassVar[str] = "opentelemetry-metrics"
    library = OPENTELEMETRY._replace(module=_API)
    """`fluxgate.observe` attaches one."""

    def __init__(self, meter_provider: "MeterProvider | None" = None) -> None:
        self._api = self.require()
        if meter_provider is not None and not isinstance(meter_provider, self._api.MeterProvider):
            raise TypeError(f"meter_provider must be an opentelemetry MeterProvider, got {_check.got(meter_provider)}")
        self._board: OpenTelemetryBoard | None = None
        self._subscriptions: WeakSet[Subscription] = WeakSet()
        self._lock = RLock()
        self._waiting = True
        self._take(self._api.get_meter_provider() if meter_provider is None else meter_provider)

    def _take(self, provider: Any) -> None:
        # The API has two providers of its own: one that stands in for an SDK to come, and one that does nothing.
        does_nothing = isinstance(provider, self._api.NoOpMeterProvider)
        self._waiting = type(provider).__module__.startswith(_API) and not does_nothing
        if not self._waiting and not does_nothing:
            self._board = _board_of(self._api, provider)

    @property
    def events(self) -> tuple[type[Event], ...]:
        """All that is measured, or next to nothing where nobody would record it."""
        return EVENTS if self._board is not None else (CircuitRetired,)

    @property
    def destination(self) -> Hashable:
        """The instruments of one provider, however many listeners it has."""
        return self._board

    @property
    def tick_interval(self) -> float | None:
        """Seconds between two looks for a provider, while there is none."""
        return _TICK if self._waiting else None

    def __call__(self, event: Event) -> None:
        if self._board is not None:
            self._board.tell(event)

    def attached(self, subscription: Subscription) -> None:
        """Measure the circuits that exist already, too."""
        with self._lock:
            self._subscriptions.add(subscription)
        self._measure(subscription)

    def tick(self) -> None:
        """See whether the program has set a provider by now."""
        if self._waiting:
            self._take(self._api.get_meter_provider())
            with self._lock:
                subscriptions = list(self._subscriptions)
            for subscription in subscriptions:
                self._measure(subscription)

    def _measure(self, subscription: Subscription) -> None:
        if self._board is not None:
            subscription.refresh()  # it may have been made when there was no provider
            self._board.attach(subscription)

    def close(self) -> None:
        """Let go of the circuits, if no listener of the provider is left."""
        if self._board is not None:
            self._board.detach()


class OpenTelemetryBoard(Board):
    """The instruments of one provider."""

    # The SDK takes 2,000 sets of attributes an instrument and never forgets one: no room for what seldom happens.
    moves = MOVES_OF_ITS_OWN

    def __init__(self, api: Any, meter: "Meter") -> None:
        super().__init__()
        self._observation: type[Observation] = api.Observation
        self._surveyed: tuple[float, dict[Instrument, list[Observation]]] = 0.0, {}
        """When all circuits were last looked at (monotonic), and the gauges that nobody has asked for since."""
        self._instruments: dict[Instrument, Any] = {each: self._make(meter, each) for each in INSTRUMENTS}

    def _make(self, meter: "Meter", instrument: Instrument) -> Any:
        name, about = instrument.name, {"unit": instrument.unit, "description": instrument.help}
        match instrument.kind:
            case "counter":
                return meter.create_counter(name, **about)
            case "histogram":
                return meter.create_histogram(name, **about, explicit_bucket_boundaries_advisory=BUCKETS)
            case "gauge":
                return meter.create_observable_gauge(name, [partial(self._observe, instrument)], **about)

    def counter(self, instrument: Instrument, labels: tuple[str, ...]) -> Callable[[float], None]:
        add = partial(self._instruments[instrument].add, attributes=_attributes(instrument, labels))
        add(0)  # there from now on
        return add

    def histogram(self, instrument: Instrument, labels: tuple[str, ...]) -> Callable[..., None]:
        return partial(self._instruments[instrument].record, attributes=_attributes(instrument, labels))

    def _observe(self, instrument: Instrument, options: "CallbackOptions") -> "Iterable[Observation]":
        # Nothing says which callbacks are of one collection, but each asks for a gauge once: who asks again has begun
        # another. What is given is not kept, since its circuits may be gone by the next.
        surveyed_at, seen = self._surveyed
        found = seen.pop(instrument, None)
        if found is None or time.monotonic() >= surveyed_at + _ONE_COLLECTION:
            surveyed_at, seen = time.monotonic(), self._see()
            found = seen.pop(instrument)
            self._surveyed = surveyed_at, seen
        return found

    def _see(self) -> "dict[Instrument, list[Observation]]":
        """All gauges of all circuits."""
        seen: dict[Instrument, list[Observation]] = {each: [] for each in _GAUGES}
        for label, breakers in self.survey().items():
            for (instrument, labels), value in gauges(map(Look.at, breakers)).items():
                seen[instrument].append(self._observation(value, _attributes(instrument, (label, *labels))))
        return seen


def _attributes(instrument: Instrument, labels: tuple[str, ...]) -> dict[str, str]:
    return dict(zip(instrument.labels, labels, strict=True))


_boards: "WeakKeyDictionary[MeterProvider, OpenTelemetryBoard | None]" = WeakKeyDictionary()
_making = RLock()


def _board_of(api: Any, provider: "MeterProvider") -> OpenTelemetryBoard | None:
    with _making:
        if provider not in _boards:
            meter = provider.get_meter(SCOPE)
            # An SDK that is switched off gives out a meter that does nothing.
            _boards[provider] = None if isinstance(meter, api.NoOpMeter) else OpenTelemetryBoard(api, meter)
        return _boards[provider]
