"""A receiver of OTLP over HTTP on loopback, which keeps what exporters send to it, decoded."""

from __future__ import annotations

import gzip
import threading
import time
import zlib
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

PATIENCE = 30.0  # seconds after which what was to be sent will not come

_UNPACKED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.decompress,
    "deflate": zlib.decompress,
    "": lambda body: body,
}


class _Kind(NamedTuple):
    name: str
    request: Any
    items: str
    each: str


_KINDS = {
    "/v1/traces": _Kind("traces", ExportTraceServiceRequest, "spans", "spans"),
    "/v1/logs": _Kind("logs", ExportLogsServiceRequest, "logs", "log_records"),
    "/v1/metrics": _Kind("metrics", ExportMetricsServiceRequest, "metrics", "metrics"),
}


class Received(NamedTuple):
    """A span, a log record or a metric, with where it comes from."""

    item: Any
    """As OTLP has it."""
    scope: str
    """The instrumentation scope's name."""
    resource: dict[str, Any]
    """The resource's attributes."""

    @property
    def attributes(self) -> dict[str, Any]:
        return plain(self.item.attributes)


def plain(pairs: Iterable[Any]) -> dict[str, Any]:
    """OTLP's attributes as a dict."""
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "string_value") for pair in pairs}


class OtlpReceiver:
    """Serves `/v1/traces`, `/v1/logs` and `/v1/metrics` at `url`; `with receiver.running():` starts and stops it."""

    def __init__(self) -> None:
        self.traces: list[Received] = []
        """Spans."""
        self.logs: list[Received] = []
        self.metrics: list[Received] = []
        self.answering = threading.Event()
        """Cleared, the receiver takes requests and says nothing, as an overloaded collector does."""
        self.answering.set()
        self.asked = threading.Event()
        """Set by the first request."""
        self._changed = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def running(self) -> Generator[OtlpReceiver, None, None]:
        """Receive until the block ends."""
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.answering.set()
            self._server.shutdown()
            thread.join(10)
            self._server.server_close()

    def wait_for(self, is_there: Callable[[], bool], what: str, timeout: float = PATIENCE) -> None:
        """Wait until what is asked for has been received.

        Raises:
            AssertionError: it does not come in time; the text says what did.
        """
        with self._changed:
            come = self._changed.wait_for(is_there, timeout)
        assert come, f"no {what} within {timeout:g} s; received: {self.summary()}"

    def span(self, name: str, **attributes: Any) -> Received:
        """The only span of this name with these attributes (dots as two underscores), as soon as it is there."""
        wanted = {key.replace("__", "."): value for key, value in attributes.items()}

        def found() -> list[Received]:
            named = [span for span in self.traces if span.item.name == name]
            return [span for span in named if wanted.items() <= span.attributes.items()]

        self.wait_for(lambda: bool(found()), f"span {name!r} with {wanted}")
        (span,) = found()
        return span

    def summary(self) -> str:
        """The names of all that came."""
        spans = [span.item.name for span in self.traces]
        records = [record.item.event_name or record.item.body.string_value for record in self.logs]
        return f"spans {spans}, log records {records}, metrics {[metric.item.name for metric in self.metrics]}"

    def clear(self) -> None:
        """Forget all."""
        with self._changed:
            for received in (self.traces, self.logs, self.metrics):
                received.clear()

    def _take(self, path: str, body: bytes) -> int:
        kind = _KINDS.get(path)
        if kind is None:
            return 404
        kept: list[Received] = getattr(self, kind.name)
        with self._changed:
            for resource in getattr(kind.request.FromString(body), f"resource_{kind.items}"):
                for scope in getattr(resource, f"scope_{kind.items}"):
                    found = getattr(scope, kind.each)
                    kept += [Received(item, scope.scope.name, plain(resource.resource.attributes)) for item in found]
            self._changed.notify_all()
        return 200

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                receiver.asked.set()
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                receiver.answering.wait(60)
                status = receiver._take(self.path, _UNPACKED[self.headers.get("Content-Encoding", "")](body))
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", "application/x-protobuf")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                except OSError:  # whoever sent it has given up
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing on the terminal."""

        return Handler


def poll(is_there: Callable[[], bool], what: str, timeout: float = PATIENCE) -> None:
    """Look again and again until something holds.

    Raises:
        AssertionError: it does not in time.
    """
    deadline = time.monotonic() + timeout
    while not is_there():
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
        time.sleep(0.01)
