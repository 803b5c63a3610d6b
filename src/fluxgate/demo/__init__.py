"""The main job on real HTTP: circuits that open, probe and recover, and say why."""

from collections.abc import Sequence
from pathlib import Path

from ..errors import import_extra

LISTENERS: tuple[str, ...] = ("log", "alerts", "prometheus", "opentelemetry")
"""What the demo can show, by the names under which it is published."""


def run(
    duration: float = 20.0,
    *,
    as_json: bool = False,
    listeners: Sequence[str] | None = None,
    log: Path | None = None,
    metrics_port: int = 0,
    spans: str | None = None,
    prometheus: bool = False,
) -> int:
    """Run the demo; 0 when each circuit opened and recovered, 1 when not, 128 + n when ended by signal n.

    Args:
        duration: Seconds that the service's script takes; the rules' windows and waits scale with it.
        as_json: Print one JSON document at the end, and all else to stderr.
        listeners: Which to attach, of `LISTENERS`; all that are installed.
        log: The file for log lines and alerts; one in the system's folder for temporary files.
        metrics_port: The port of ``/metrics`` on 127.0.0.1; 0 for any that is free.
        spans: The base URL of an OTLP/HTTP receiver for spans; those of outages are printed at the end otherwise.
        prometheus: Whether to start a Prometheus that scrapes the demo, where one is installed.

    Raises:
        MissingExtraError: httpx or rich is not installed, or what a listener that is named needs.
        OSError: The file or the port cannot be had.
    """
    for library in ("httpx", "rich"):
        import_extra(library, wanted_by="the demo", package=library, extra="demo")
    from .outputs import Options
    from .runner import play

    return play(duration, as_json=as_json, listeners=listeners, options=Options(log, metrics_port, spans, prometheus))
