"""Metrics for Prometheus, served on loopback as long as the demo runs."""

from collections.abc import Iterable
from typing import Any

import httpx

from .._plugins import load
from ..errors import import_extra

_SHOWN = ("circuit_breaker_state_transition_total", "circuit_breaker_rejected_calls_total")


class Metrics:
    """A registry of the demo's own behind ``/metrics``."""

    name = "prometheus"

    def __init__(self, port: int) -> None:
        client = import_extra(
            "prometheus_client", wanted_by="the demo's /metrics", package="prometheus-client", extra="demo"
        )
        registry = client.CollectorRegistry()
        self._listener = load("prometheus")(registry)
        self._server, self._thread = client.start_http_server(port, addr="127.0.0.1", registry=registry)
        self.url = f"http://127.0.0.1:{self._server.server_port}/metrics"
        self.where = f"metrics: {self.url}, until the demo ends"

    def listeners(self) -> Iterable[Any]:
        """The one for Prometheus."""
        return [self._listener]

    def report(self) -> list[str]:
        """What a scrape brings: the series of changes and refusals that are not zero."""
        lines = httpx.get(self.url, trust_env=False).text.splitlines()
        told = [line for line in lines if line.startswith(_SHOWN) and not line.endswith(" 0.0")]
        return ["What /metrics tells of changes and refusals:", *told] if told else []

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
