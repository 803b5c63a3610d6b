"""Events as lines of the standard library's `logging`."""

import logging
from typing import Any, ClassVar

from fluxgate._check import got

from ._eventlog import EventLog, LevelMap
from ._render import Logfmt
from .names import LOGGER


class LogListener(EventLog):
    """Writes what happens to circuits to a logger, for people and programs alike.

    The message is the event's name and ``key=value`` pairs (logfmt). The same pairs are attributes of the
    `logging.LogRecord`, with the name as `event`, so that formatters which write JSON have them as fields; an
    attribute that a record factory of the program's own has set stays as it is. The names, levels and keys are
    listed in `fluxgate.listeners.names`.

    Changes of state are always written: at WARNING when a circuit opens, else at INFO. Calls are written at
    DEBUG, and cost nothing when that is off: the level is looked at when the listener is attached, so configure
    logging first. Of refused calls the first is written at once and then one line a circuit an interval, as
    `calls_rejected` with the number of calls that it stands for; what is outstanding is written at the end of the
    interval, before the circuit's next change of state, and when the listener is detached or the program ends. Where
    OpenTelemetry has a current span, `trace_id` and `span_id` are added. Texts are cut at 1,000 characters, and
    characters that are not printable are escaped.

    Args:
        logger: Where to write; the logger ``fluxgate.events``. Where a program has configured no logging,
            Python itself shows what is written at WARNING and above.
        level_map: Other levels than the defaults, by event name or event type:
            ``{"call_failed": "WARNING", StateChanged: "ERROR"}``.
        interval: Seconds between two lines about refused calls of one circuit.

    Raises:
        TypeError, ValueError: An argument is not what it must be; the text quotes it.

    >>> import logging, sys
    >>> from fluxgate import Bus, CircuitBreaker, FailureStreak
    >>> from fluxgate.testing import VirtualClock
    >>> logger = logging.getLogger("shop.circuits")
    >>> logger.propagate = False
    >>> logger.addHandler(logging.StreamHandler(sys.stdout))
    >>> cb = CircuitBreaker(
    ...     "payments", tripper=FailureStreak(1), listeners=[LogListener(logger)], bus=Bus(), clock=VirtualClock()
    ... )
    >>> cb.call_with_fallback(int, lambda error: 0, "ten euros")  # doctest: +NORMALIZE_WHITESPACE
    circuit_opened circuit_name=payments old_state=closed new_state=open trigger=tripper
      reason="1 failure in a row (limit 1)" failure_rate=1.0 slow_rate=0.0 total_count=1 failure_count=1
      avg_duration=0.0 retry_after=60.0 reopens=0 failing_since=2023-11-14T22:13:20.000Z
      last_error="ValueError: invalid literal for int() with base 10: 'ten euros'" generation=2 sequence=2
    0
    """

    rank: ClassVar[int] = 1

    def __init__(
        self,
        logger: logging.Logger | None = None,
        level_map: LevelMap | None = None,
        interval: float = 10.0,
    ) -> None:
        if logger is not None and not isinstance(logger, logging.Logger):
            raise TypeError(f"logger must be a logging.Logger, got {got(logger)}")
        known = {name: level for name, level in logging.getLevelNamesMapping().items() if level > logging.NOTSET}
        writer = LogWriter(logging.getLogger(LOGGER) if logger is None else logger, type(self).__name__)
        super().__init__(writer, level_map, interval, known)


class LogWriter:
    """Writes lines to a logger."""

    def __init__(self, logger: logging.Logger, author: str) -> None:
        self._logger = logger
        self._author = author

    def enabled(self, level: int) -> bool:
        """Whether the logger takes this level."""
        return self._logger.isEnabledFor(level)

    def write(self, level: int, name: str, line: dict[str, Any]) -> None:
        """Write `name` and the pairs, as text and as attributes of the record."""
        # Not `log(..., extra=line)`: it raises where a record factory has set an attribute of the same name.
        record = self._logger.makeRecord(
            self._logger.name, level, __file__, 0, f"{name} %s", (Logfmt(line),), None, self._author
        )
        for key, value in {"event": name, **line}.items():
            record.__dict__.setdefault(key, value)
        self._logger.handle(record)
