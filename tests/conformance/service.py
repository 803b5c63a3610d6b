"""An HTTP service on loopback whose answers a test scripts."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from socket import SHUT_RDWR, socket
from socketserver import ThreadingTCPServer
from typing import Any


@dataclass(frozen=True)
class Answer:
    """How one request is answered."""

    status: int = 200
    body: bytes = b"{}"
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    chunks: Sequence[bytes] | None = None
    """The body in pieces, instead of `body`."""
    drop: bool = False
    """Cut the connection: before the answer, or after its chunks."""
    hang: bool = False
    """Say nothing until the service ends."""
    raw: bytes | None = None
    """These very bytes, instead of HTTP; then the connection is cut."""
    during: Callable[[], object] = lambda: None
    """Called before answering: a virtual delay is ``lambda: clock.advance(2)``."""


@dataclass(frozen=True)
class Received:
    """One request that came with a body."""

    path: str
    headers: Mapping[str, str]
    """By name in lower case."""
    body: bytes


class _Server(ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client may leave before it has heard everything."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Service:
    """Answers what `script` was given, in order, and then `default` for ever."""

    def __init__(self) -> None:
        self.default = Answer()
        self.paths: list[str] = []
        """The paths that were asked for."""
        self.received: list[Received] = []
        """What was posted, in order."""
        self.script: deque[Answer] = deque()
        self.ending = threading.Event()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            wbufsize = -1

            def do_GET(self) -> None:
                service.paths.append(self.path)
                try:
                    answer = service.script.popleft()
                except IndexError:
                    answer = service.default
                answer.during()
                if answer.hang:
                    service.ending.wait(60)
                if answer.raw is not None:
                    self.wfile.write(answer.raw)
                    self._cut()
                elif answer.hang or (answer.drop and answer.chunks is None):
                    self._cut()
                else:
                    self._send(answer)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                service.received.append(Received(self.path, headers, body))
                self.do_GET()

            def _send(self, answer: Answer) -> None:
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                if answer.chunks is None:
                    self.send_header("Content-Length", str(len(answer.body)))
                    self.end_headers()
                    self.wfile.write(answer.body)
                    return
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for chunk in answer.chunks:
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                if answer.drop:
                    self.wfile.flush()
                    self._cut()
                else:
                    self.wfile.write(b"0\r\n\r\n")

            def _cut(self) -> None:
                self.close_connection = True
                try:
                    self.connection.shutdown(SHUT_RDWR)
                except OSError:  # the client was first
                    pass

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing on the terminal."""

        return Handler

    @contextmanager
    def running(self) -> Generator[Service, None, None]:
        """Serve until the block ends."""
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.ending.set()
            self._server.shutdown()
            thread.join(10)
            self._server.server_close()


def refused_url() -> str:
    """An address on loopback where nobody listens."""
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"
