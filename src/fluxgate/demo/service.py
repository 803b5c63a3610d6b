"""What the circuits depend on: an HTTP service on loopback whose health follows a script."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from types import TracebackType
from typing import Any, NamedTuple, Self

SLOW = 1.0
"""Seconds that a slow answer takes."""


class Fault(Enum):
    """What may be wrong with an endpoint, in words for people."""

    ERRORS = "answers 503"
    SOME_ERRORS = "answers 503 to every 4th call"
    DROPS = "drops connections"
    SLOWNESS = f"takes {SLOW:g} s to answer"


class Phase(NamedTuple):
    """When a fault begins and ends, as shares of the run."""

    begin: float
    end: float
    fault: Fault


SCRIPT: Mapping[str, tuple[Phase, ...]] = {
    "payments": (Phase(0.15, 0.42, Fault.ERRORS), Phase(0.75, 0.82, Fault.SOME_ERRORS)),
    "inventory": (Phase(0.25, 0.45, Fault.DROPS), Phase(0.70, 0.78, Fault.SOME_ERRORS)),
    "search": (Phase(0.35, 0.65, Fault.SLOWNESS),),
}
# Answers that are the caller's fault, on sick days and healthy ones: the circuits are told to ignore them.
REFUSALS = {"payments": (12, 402), "search": (15, 404)}


def fault_at(endpoint: str, share: float) -> Fault | None:
    """What is wrong with the endpoint when this share of the run is over."""
    return next((phase.fault for phase in SCRIPT[endpoint] if phase.begin <= share < phase.end), None)


class Service(ThreadingHTTPServer):
    """Serves in threads of its own, on a free port of 127.0.0.1, for the length of a ``with`` block."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, progress: Callable[[], float]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.served: Counter[str] = Counter()
        """Requests received, by endpoint."""
        self._progress = progress
        self._lock = Lock()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, endpoint: str) -> tuple[int | None, float]:
        """The status of the next answer, ``None`` for none at all, and the seconds that it takes."""
        fault = fault_at(endpoint, self._progress())
        with self._lock:
            self.served[endpoint] += 1
            number = self.served[endpoint]
        if fault is Fault.DROPS:
            return None, 0
        if fault is Fault.ERRORS or (fault is Fault.SOME_ERRORS and number % 4 == 0):
            return 503, 0.005
        every, refusal = REFUSALS.get(endpoint, (sys.maxsize, 0))
        return refusal if number % every == 0 else 200, SLOW if fault is Fault.SLOWNESS else 0.005

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is no news; anything else is."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def __enter__(self) -> Self:
        Thread(target=self.serve_forever, args=(0.1,), name="demo-service", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections open, as services do
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        assert isinstance(self.server, Service)
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        endpoint = self.path.partition("?")[0].strip("/")
        status, seconds = self.server.answer(endpoint) if endpoint in SCRIPT else (404, 0)
        time.sleep(seconds)
        if status is None:
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """The circuits tell the story."""
