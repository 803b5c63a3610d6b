"""What happens to circuits as Prometheus metrics."""

import itertools
import math
import os
from collections.abc import Callable, Hashable, Iterable
from threading import RLock
from typing import TYPE_CHECKING, Any, ClassVar, cast
from weakref import WeakKeyDictionary

from fluxgate import _check
from fluxgate._subscription import Subscription
from fluxgate._trace import trace_ids
from fluxgate.events import Event

from ._library import PROMETHEUS, NeedsLibrary
from ._looks import Look, gauges
from ._metrics import EVENTS, MOVES_IN_PROCESS, Board, Circuit
from .names import BUCKETS, INSTRUMENTS, OUTCOMES, TRACE_KEYS, Instrument

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

_MULTIPROCESS = ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")  # either one switches the mode on
_TRACE_ID, _SPAN_ID = TRACE_KEYS
_TICK = 4.0  # seconds: rates are promised to be true within 5


class PrometheusListener(NeedsLibrary):
    """Measures circuits with the official client library, in the metrics that `fluxgate.listeners.names` lists.

    Any number of listeners may share a registry: they share the metrics as well, and no event counts twice.
    Nothing is registered before a listener is made. A circuit's series are there from its first event, or from when
    the listener is attached, with 0 where nothing has happened yet, and go when it retires or is no longer observed.
    Circuits of one name share their series: counters add up, gauges show the greatest value, limits the lowest.
    Rates are looked up every 4 s, so that they are true while nobody calls. Names and rules are one line of printable
    characters, at most 1,000.

    Under the client's multiprocess mode (``PROMETHEUS_MULTIPROC_DIR``) all workers add up; a gauge is the greatest
    of the living workers'. Nothing can be removed there, so the gauges of a retired circuit become 0, as does what
    `configure` takes away. Exemplars are not supported by that mode.

    Args:
        registry: Where to register; ``prometheus_client.REGISTRY``.
        buckets: Upper bounds of the duration histogram in seconds, rising; the same for all listeners of a registry.
        exemplars: Whether a call within a sampled OpenTelemetry span leaves its `trace_id` and `span_id` on the
            histogram. They are exposed in the OpenMetrics format alone.

    Raises:
        MissingExtraError: prometheus-client is not installed.
        TypeError: An argument is not what it must be; the text quotes it.
        ValueError: So are the buckets; or the registry has other ones already, or metrics of these names by somebody
            else; or the directory for multiprocess mode does not exist.

    >>> from prometheus_client import CollectorRegistry
    >>> from fluxgate import Bus, CircuitBreaker
    >>> registry = CollectorRegistry()
    >>> cb = CircuitBreaker("payments", listeners=[PrometheusListener(registry)], bus=Bus())
    >>> cb.call(int, "10")
    10
    >>> labels = {"circuit_name": "payments", "outcome": "success"}
    >>> registry.get_sample_value("circuit_breaker_call_duration_seconds_count", labels)
    1.0
    """

    automatic: ClassVar[str] = "prometheus"
    """`fluxgate.observe` attaches one."""
    library = PROMETHEUS
    events: ClassVar[tuple[type[Event], ...]] = EVENTS
    """All but `CallStarted`."""
    tick_interval: ClassVar[float | None] = _TICK
    """Seconds between two looks at the rates."""

    def __init__(
        self,
        registry: "CollectorRegistry | None" = None,
        buckets: Iterable[float] = BUCKETS,
        exemplars: bool = True,
    ) -> None:
        client = self.require()
        if registry is None:
            registry = client.REGISTRY
        if not isinstance(registry, client.CollectorRegistry):
            raise TypeError(f"registry must be a prometheus_client.CollectorRegistry, got {_check.got(registry)}")
        if not isinstance(exemplars, bool):
            raise TypeError(f"exemplars must be True or False, got {_check.got(exemplars)}")
        self._board = _board_of(client, cast("CollectorRegistry", registry), _bounds(buckets))
        self._exemplars = exemplars and not self._board.multiprocess

    @property
    def destination(self) -> Hashable:
        """The metrics of one registry, however many listeners it has."""
        return self._board

    def __call__(self, event: Event) -> None:
        exemplar = None
        if self._exemplars and event.__class__ in OUTCOMES:
            trace_id, span_id = trace_ids(sampled=True)
            if trace_id and span_id:
                exemplar = {_TRACE_ID: trace_id, _SPAN_ID: span_id}
        self._board.tell(event, exemplar)

    def attached(self, subscription: Subscription) -> None:
        """Show the circuits that exist already."""
        self._board.attach(subscription)

    def tick(self) -> None:
        """Bring the rates up to date."""
        self._board.look_for(self, _TICK)

    def close(self) -> None:
        """Take away the series of circuits, if no listener of the registry is left."""
        self._board.detach()


class PrometheusBoard(Board):
    """The metrics of one registry."""

    moves = MOVES_IN_PROCESS

    def __init__(self, client: Any, registry: "CollectorRegistry", buckets: tuple[float, ...]) -> None:
        super().__init__()
        self.buckets = buckets
        folder = next((os.environ[name] for name in _MULTIPROCESS if name in os.environ), None)
        self.multiprocess = folder is not None
        if folder is not None and not os.path.isdir(folder):
            raise ValueError(f"{_MULTIPROCESS[0]} must be a directory that exists, got {_check.got(folder)}")
        self._metrics: dict[Instrument, Any] = {each: self._metric(client, each) for each in INSTRUMENTS}
        registered: list[Any] = []
        try:
            for metric in self._metrics.values():
                registry.register(metric)
                registered.append(metric)
        except ValueError:  # somebody else's metric has the name: leave the registry as it was
            for metric in registered:
                registry.unregister(metric)
            raise

    def _metric(self, client: Any, instrument: Instrument) -> Any:
        about = {"documentation": instrument.help, "labelnames": instrument.labels, "registry": None}
        match instrument.kind:
            case "counter":
                return client.Counter(instrument.series, **about)
            case "histogram":
                return client.Histogram(instrument.series, **about, buckets=self.buckets)
            case "gauge":
                # Of workers: a state is 1 if any is in it, a rate that of the worst, a time the last. Those that are
                # dead do not count (the client's `mark_process_dead`), nor do circuits, or limits, that are gone (0):
                # which is why even of limits it is the greatest.
                return client.Gauge(instrument.series, **about, multiprocess_mode="livemax")

    def counter(self, instrument: Instrument, labels: tuple[str, ...]) -> Callable[[float], None]:
        add: Callable[[float], None] = self._metrics[instrument].labels(*labels).inc
        return add

    def histogram(self, instrument: Instrument, labels: tuple[str, ...]) -> Callable[..., None]:
        observe: Callable[..., None] = self._metrics[instrument].labels(*labels).observe
        return observe

    def show(self, circuit: Circuit, looks: list[Look]) -> None:
        shown, circuit.shown = circuit.shown, gauges(looks)
        for (instrument, labels), value in circuit.shown.items() - shown.items():
            self._metrics[instrument].labels(circuit.label, *labels).set(value)
        for instrument, labels in shown.keys() - circuit.shown.keys():
            self._remove(instrument, (circuit.label, *labels))

    def drop(self, circuit: Circuit) -> None:
        for instrument, labels in circuit.shown:
            self._remove(instrument, (circuit.label, *labels))
        if not self.multiprocess:  # where the files keep what was counted, and this circuit's share of the totals
            for instrument, labels in circuit.counted():
                self._remove(instrument, (circuit.label, *labels))

    def _remove(self, instrument: Instrument, labels: tuple[str, ...]) -> None:
        metric = self._metrics[instrument]
        if self.multiprocess:
            metric.labels(*labels).set(0)
            return
        try:
            metric.remove(*labels)
        except KeyError:  # the program has cleared the metric; older clients say so
            pass


_boards: "WeakKeyDictionary[CollectorRegistry, PrometheusBoard]" = WeakKeyDictionary()
_making = RLock()


def _board_of(client: Any, registry: "CollectorRegistry", buckets: tuple[float, ...]) -> PrometheusBoard:
    with _making:
        board = _boards.get(registry)
        if board is None:
            board = _boards[registry] = PrometheusBoard(client, registry, buckets)
    if board.buckets != buckets:
        raise ValueError(
            f"buckets must be the same for all listeners of one registry: it has {board.buckets}, got {buckets}"
        )
    return board


def _bounds(buckets: Any) -> tuple[float, ...]:
    """Finite upper bounds; the client adds infinity itself."""
    given = _check.several(buckets, "buckets")
    bounds = tuple(_check.number(each, "each of buckets (seconds)", above=0, finite=False) for each in given)
    bounds = bounds[:-1] if bounds and bounds[-1] == math.inf else bounds
    if not bounds or any(upper <= lower for lower, upper in itertools.pairwise(bounds)) or math.inf in bounds:
        raise ValueError(f"buckets must be rising upper bounds in seconds, such as (0.1, 0.5), got {_check.got(given)}")
    return bounds
