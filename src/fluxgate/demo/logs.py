"""The listener that a program would have anyway: structured log lines, here into a file of the demo's."""

import logging
from typing import Any, TextIO

from .._plugins import load
from ..errors import MissingExtraError, import_extra


def log_listener(sink: TextIO) -> Any:
    """One JSON line an event by structlog, or logfmt by `logging` where structlog is not installed."""
    try:
        structlog = import_extra("structlog", wanted_by="the demo's log", package="structlog", extra="demo")
    except MissingExtraError:
        return load("log")(_plain_logger(sink))
    logger = structlog.wrap_logger(
        structlog.WriteLogger(sink),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )
    return load("structlog")(logger)


def _plain_logger(sink: TextIO) -> logging.Logger:
    handler = logging.StreamHandler(sink)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("fluxgate.demo")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    return logger
