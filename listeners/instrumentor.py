"""What ``opentelemetry-instrument`` finds: circuits in traces, log records and metrics without a change of code."""

import os
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, get_args

from fluxgate import attach
from fluxgate._check import got
from fluxgate._subscription import Subscription
from fluxgate._text import log
from fluxgate.errors import import_extra

from . import names, opentelemetry

if TYPE_CHECKING:
    # Its module is not type-checked by its own project.
    from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]
else:
    try:
        from opentelemetry.instrumentation.instrumentor import BaseInstrumentor
    except ImportError:

        class BaseInstrumentor:
            """Says what is missing."""

            def __new__(cls, *args: Any, **kwargs: Any) -> Any:
                import_extra(
                    "opentelemetry.instrumentation.instrumentor",
                    wanted_by=cls.__name__,
                    package="opentelemetry-instrumentation",
                    extra="opentelemetry",
                )


class FluxgateInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Attaches Fluxgate's OpenTelemetry listeners to every circuit of the process.

    ``opentelemetry-instrument python app.py`` calls it; without that command, call ``instrument()`` yourself, with
    `tracer_provider`, `meter_provider`, `logger_provider` and `mode` where the defaults are not meant: the process's
    own providers, and the mode that the environment variable ``OTEL_PYTHON_FLUXGATE_MODE`` names, else ``annotate``.
    It may be combined with `fluxgate.observe` and with listeners attached by hand: those for the same providers do
    not write twice.

    Raises:
        MissingExtraError: opentelemetry-instrumentation is not installed.

    >>> from fluxgate import Bus, CircuitBreaker
    >>> from opentelemetry.sdk.trace import TracerProvider
    >>> tracer_provider = TracerProvider()
    >>> FluxgateInstrumentor().instrument(tracer_provider=tracer_provider)
    >>> cb = CircuitBreaker("payments")
    >>> with tracer_provider.get_tracer("shop").start_as_current_span("GET /checkout") as span:
    ...     cb.call(int, "10")
    10
    >>> span.attributes["fluxgate.circuit.name"], span.attributes["fluxgate.outcome"]
    ('payments', 'success')
    >>> FluxgateInstrumentor().uninstrument()
    """

    _subscriptions: tuple[Subscription, ...] = ()

    def instrumentation_dependencies(self) -> Collection[str]:
        """What must be installed beside Fluxgate: nothing."""
        return ()

    def _instrument(self, **kwargs: Any) -> None:
        mode = kwargs.get("mode")
        tracing = opentelemetry.TracingListener(
            kwargs.get("tracer_provider"), _mode() if mode is None else mode, kwargs.get("logger_provider")
        )
        metrics = opentelemetry.OpenTelemetryMetricsListener(kwargs.get("meter_provider"))
        self._subscriptions = (attach(tracing),)
        try:
            self._subscriptions += (attach(metrics),)
        except BaseException:
            self._uninstrument()
            raise

    def _uninstrument(self, **kwargs: Any) -> None:
        subscriptions, self._subscriptions = self._subscriptions, ()
        for subscription in subscriptions:
            subscription.close()


def _mode() -> opentelemetry.Mode:
    """The mode that the environment names."""
    value = os.environ.get(names.MODE_VARIABLE, "").strip().lower()
    for mode in get_args(opentelemetry.Mode):
        if value == mode:
            return mode  # type: ignore[no-any-return]
    if value:
        log("WARNING", "%s must be 'annotate' or 'spans', got %s: using 'annotate'", names.MODE_VARIABLE, got(value))
    return "annotate"
