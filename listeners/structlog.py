"""Events as structlog's events."""

import logging
from typing import Any, ClassVar

from fluxgate._check import got

from ._eventlog import EventLog, LevelMap
from ._library import STRUCTLOG, NeedsLibrary
from .names import LOGGER

_METHODS = {
    logging.DEBUG: "debug",
    logging.INFO: "info",
    logging.WARNING: "warning",
    logging.ERROR: "error",
    logging.CRITICAL: "critical",
}


class StructlogListener(NeedsLibrary, EventLog):
    """Writes what happens to circuits to structlog: the event's name, and its values as key-value pairs.

    The names, levels, keys and rules are those of `fluxgate.listeners.log.LogListener`. Calls are written at
    DEBUG, and cost nothing where the logger filters that level when the listener is attached, so configure
    structlog first. structlog that nobody has configured filters nothing: the listener's default logger then
    begins at INFO.

    Args:
        logger: Where to write; ``structlog.get_logger("fluxgate.events")``.
        level_map: Other levels than the defaults, by event name or event type: ``{"call_failed": "warning"}``.
        interval: Seconds between two lines about refused calls of one circuit.

    Raises:
        MissingExtraError: structlog is not installed.
        TypeError, ValueError: An argument is not what it must be; the text quotes it.

    >>> import structlog
    >>> from fluxgate import Bus, CircuitBreaker
    >>> logger = structlog.wrap_logger(
    ...     structlog.PrintLogger(),
    ...     processors=[structlog.processors.JSONRenderer()],
    ...     wrapper_class=structlog.make_filtering_bound_logger(20),
    ... )
    >>> cb = CircuitBreaker("payments", listeners=[StructlogListener(logger)], bus=Bus())
    >>> cb.force_open()  # doctest: +ELLIPSIS
    {"circuit_name": "payments", "old_state": "closed", "new_state": "forced_open", "trigger": "manual", ...
    """

    rank: ClassVar[int] = 0
    library = STRUCTLOG

    def __init__(self, logger: Any = None, level_map: LevelMap | None = None, interval: float = 10.0) -> None:
        if logger is not None and not is_logger(logger):
            raise TypeError(f"logger must be a structlog logger, got {got(logger)}")
        writer = StructlogWriter(logger, LOGGER, type(self).__name__)
        super().__init__(writer, level_map, interval, {name.upper(): level for level, name in _METHODS.items()})


def is_logger(value: object) -> bool:
    """Whether it is one of structlog's loggers, whose classes have no base in common."""
    return not isinstance(value, type) and callable(getattr(value, "bind", None))


class StructlogWriter:
    """Writes lines to one of structlog's loggers, or to that of a name where none is given."""

    def __init__(self, logger: Any, name: str, author: str) -> None:
        self._structlog = STRUCTLOG.load(author)
        self._is_ours = logger is None
        self._logger = self._structlog.get_logger(name) if logger is None else logger

    def enabled(self, level: int) -> bool:
        """Whether the logger, as it is configured at this moment, lets this level through."""
        if self._is_ours and level < logging.INFO and not self._structlog.is_configured():
            return False
        bound = self._logger.bind()
        if _filters(bound) and not bound.is_enabled_for(level):
            return False
        wrapped: Any = getattr(bound, "_logger", None)
        return not isinstance(wrapped, logging.Logger) or wrapped.isEnabledFor(level)

    def write(self, level: int, name: str, line: dict[str, Any]) -> None:
        """Write the event `name` with the pairs."""
        getattr(self._logger.bind(), _METHODS[level])(name, **line)


def _filters(bound: object) -> bool:
    # Its class is asked, since a generic BoundLogger takes every name on an instance for a method to log with. One for
    # the standard library (`isEnabledFor`) filters nothing itself: it passes the question on to whatever it wraps.
    return hasattr(type(bound), "is_enabled_for") and not hasattr(type(bound), "isEnabledFor")
