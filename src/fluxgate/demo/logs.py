"""The listener that a program would have anyway: structured log lines, here into a file of the demo's."""

import logging
from typing import Any, TextIO

from ..errors import MissingExtraError
from ..listeners.log import LogListener
from ..listeners.structlog import StructlogListener


def log_listener(sink: TextIO) -> LogListener | StructlogListener:
    """One JSON line an event by structlog, or key=value lines by `logging` where structlog is not installed."""
    try:
        return StructlogListener(_structlog_logger(sink))
    except MissingExtraError:
        return LogListener(_logger(sink))


def _structlog_logger(sink: TextIO) -> Any:
    try:
        import structlog
    except ModuleNotFoundError:
        return None  # the listener says it better
    return structlog.wrap_logger(
        structlog.WriteLogger(sink),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )


def _logger(sink: TextIO) -> logging.Logger:
    logger = logging.getLogger("fluxgate.demo")
    handler = logging.StreamHandler(sink)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.handlers = [handler]  # this run's
    logger.setLevel(logging.INFO)
    logger.propagate = False
    return logger
