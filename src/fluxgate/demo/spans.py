"""Spans: to an OTLP/HTTP receiver, or kept for the end of the run."""

from collections import deque
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any

from .._plugins import load
from ..errors import import_extra

names: Any = import_module("fluxgate.listeners.names")  # by name: it lies outside of src, where type checkers look
_KEPT = 1000
_OUTAGE = "circuit_breaker outage"


class Spans:
    """A span around each call, and one for each outage."""

    name = "opentelemetry"

    def __init__(self, endpoint: str | None) -> None:
        sdk = _imported("opentelemetry.sdk.trace", "opentelemetry-sdk")
        export = _imported("opentelemetry.sdk.trace.export", "opentelemetry-sdk")
        resources = _imported("opentelemetry.sdk.resources", "opentelemetry-sdk")
        self._ended: deque[Any] = deque(maxlen=_KEPT)
        self._provider = sdk.TracerProvider(resource=resources.Resource.create({"service.name": "fluxgate-demo"}))
        if endpoint is None:
            self._provider.add_span_processor(export.SimpleSpanProcessor(_keeper(export, self._ended)))
            self.where = "spans: the outages' are shown at the end (--spans URL sends all to an OTLP/HTTP receiver)"
        else:
            otlp = _imported(
                "opentelemetry.exporter.otlp.proto.http.trace_exporter", "opentelemetry-exporter-otlp-proto-http"
            )
            url = f"{endpoint.rstrip('/')}/v1/traces"
            self._provider.add_span_processor(export.BatchSpanProcessor(otlp.OTLPSpanExporter(endpoint=url)))
            self.where = f"spans: {url}"
        self._listener = load("opentelemetry")(self._provider, mode="spans")

    def listeners(self) -> Iterable[Any]:
        """The one for traces."""
        return [self._listener]

    def report(self) -> list[str]:
        """Each outage in a line, and beneath it the calls that it is linked to."""
        calls = {span.context.span_id: span for span in self._ended}
        lines: list[str] = []
        for outage in self._ended:
            if outage.name.startswith(_OUTAGE):
                lines.append(_line(outage))
                linked = [calls[link.context.span_id] for link in outage.links if link.context.span_id in calls]
                lines += [f"  linked to {_line(call)}" for call in linked[:3]]
        return ["The outages as spans, and the first calls that each is linked to:", *lines] if lines else []

    def close(self) -> None:
        """Send what is outstanding."""
        self._provider.shutdown()


def _imported(module: str, package: str) -> Any:
    return import_extra(module, wanted_by="the demo's spans", package=package, extra="demo")


def _keeper(export: Any, ended: "deque[Any]") -> Any:
    class Keeper(export.SpanExporter):  # type: ignore[misc]
        def export(self, spans: Sequence[Any]) -> Any:
            ended.extend(span for span in spans if _is_told(span))
            return export.SpanExportResult.SUCCESS

        def shutdown(self) -> None:
            pass

    return Keeper()


def _is_told(span: Any) -> bool:
    """Outages, failures, slow calls and probes; not refusals, nor all that went well: those come by the hundred."""
    told = span.attributes
    if told.get(names.DECISION_ATTRIBUTE) == names.REFUSED:
        return False
    if span.name.startswith(_OUTAGE) or names.ERROR_ATTRIBUTE in told or names.SLOW_ATTRIBUTE in told:
        return True
    return bool(told.get(names.STATE_ATTRIBUTE, "closed") != "closed")


def _line(span: Any) -> str:
    seconds = (span.end_time - span.start_time) / 1e9
    told = {key.removeprefix("fluxgate."): value for key, value in span.attributes.items()}
    pairs = " ".join(f"{key}={value}" for key, value in told.items() if key != "circuit.name")
    return f"{span.name}  {seconds:.3f} s  trace {span.context.trace_id:032x}  {pairs}"
