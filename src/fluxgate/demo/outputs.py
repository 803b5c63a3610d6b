"""What the circuits tell besides the screen: log lines, alerts, metrics and spans."""

import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from .._plugins import load
from ..errors import MissingExtraError
from . import LISTENERS
from .logs import Log
from .metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Generator

    from ..bus import Bus


class Options(NamedTuple):
    """Where the outputs go."""

    log: Path | None = None
    """The file for log lines; one in the system's folder for temporary files."""
    metrics_port: int = 0
    """The port of /metrics on 127.0.0.1; 0 for any that is free."""
    spans: str | None = None
    """The base URL of an OTLP/HTTP receiver; ``None``: the console, at the end."""
    prometheus: bool = False
    """Whether a Prometheus is started for the metrics."""


class Output(Protocol):
    """One destination."""

    name: str
    where: str
    """One line for people: where to look."""

    def listeners(self) -> Iterable[Any]:
        """What to attach."""
        ...

    def report(self) -> list[str]:
        """After the run, before the end: some lines of what it holds, the first as their heading."""
        ...

    def close(self) -> None:
        """Let go of files and ports."""
        ...


def _metrics(options: Options, log: Log) -> Output:
    return Metrics(options.metrics_port)


def _spans(options: Options, log: Log) -> Output:
    from .spans import Spans

    return Spans(options.spans)


class Alerts:
    """Alerts as lines of the same log."""

    name = "alerts"

    def __init__(self, options: Options, log: Log) -> None:
        self._log = log
        self._listener = load("alerts")(sink=log.logger)
        self.where = f"alerts: {log.path}, the lines alert_firing and alert_resolved"

    def listeners(self) -> Iterable[Any]:
        return [self._listener]

    def report(self) -> list[str]:
        return self._log.quote("The first alert there", "alert_firing")

    def close(self) -> None:
        pass


_MAKERS: Sequence[Callable[[Options, Log], Output]] = (lambda options, log: log, Alerts, _metrics, _spans)
MAKERS = dict(zip(LISTENERS, _MAKERS, strict=True))
"""What makes each."""


@contextmanager
def outputs(wanted: Sequence[str] | None, options: Options, bus: "Bus") -> "Generator[list[Output], None, None]":
    """Attach these, or for ``None`` all whose library is installed, as long as the block runs.

    Raises:
        MissingExtraError: One that was asked for needs a library that is not installed; so do the metrics of a
            Prometheus that was.
        OSError: The log file or the port cannot be had.
    """
    path = options.log or Path(tempfile.mkstemp(prefix="fluxgate-demo-", suffix=".log")[1])
    with ExitStack() as stack:
        log = Log(path)
        stack.callback(log.close)
        made: list[Output] = []
        for name in MAKERS if wanted is None else wanted:
            try:
                output = MAKERS[name](options, log)
            except MissingExtraError:
                if wanted is not None or (options.prometheus and name == Metrics.name):
                    raise
                continue
            made.append(output)
            if output is not log:
                stack.callback(output.close)
            for listener in output.listeners():
                stack.enter_context(bus.attach(listener))
            if options.prometheus and isinstance(output, Metrics):
                from .server import Server

                server = Server(output.url)
                stack.callback(server.close)
                made.append(server)
        yield made
