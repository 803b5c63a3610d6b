"""The listener that a program would have anyway: structured log lines, here into a file of the demo's."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from .._plugins import load
from ..errors import MissingExtraError, import_extra


class Log:
    """A file of log lines: JSON by structlog, or logfmt by `logging` where structlog is not installed."""

    name = "log"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sink: TextIO = path.open("w", encoding="utf-8", buffering=1)
        self.where = f"log: {path}"
        try:
            self.logger: Any = _structured(self._sink)
            self._kind = "structlog"
        except MissingExtraError:
            self.logger = _plain(self._sink)
            self._kind = "log"

    def listeners(self) -> Iterable[Any]:
        """The log listener of the library at hand."""
        return [load(self._kind)(self.logger)]

    def report(self) -> list[str]:
        """The first opening, as it is written."""
        return self.quote("The first opening in the log", "circuit_opened")

    def quote(self, heading: str, event: str) -> list[str]:
        """The first line about this event, under a heading."""
        with self.path.open(encoding="utf-8") as lines:
            first = next((line.rstrip("\n") for line in lines if event in line), None)
        return [] if first is None else [f"{heading}:", first]

    def close(self) -> None:
        """Let go of the file."""
        self._sink.close()


def _structured(sink: TextIO) -> Any:
    structlog = import_extra("structlog", wanted_by="the demo's log", package="structlog", extra="demo")
    return structlog.wrap_logger(
        structlog.WriteLogger(sink),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )


def _plain(sink: TextIO) -> logging.Logger:
    handler = logging.StreamHandler(sink)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("fluxgate.demo")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    return logger
