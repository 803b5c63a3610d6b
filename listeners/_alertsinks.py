"""Where alerts go: loggers, callables, and how each gets every alert whatever another does with it."""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextvars import Context, copy_context
from threading import RLock
from typing import Any, cast

from fluxgate import _check
from fluxgate._functions import is_async, refuse_coroutine
from fluxgate._subscription import Delivery
from fluxgate._text import error_text
from fluxgate.errors import MissingExtraError

from ._alert import Alert
from ._eventlog import Writer
from ._render import line
from .log import LogWriter
from .names import ALERT_KEYS, ALERT_LEVELS, ALERT_LOGGER
from .structlog import StructlogWriter, is_logger

Sink = Callable[[Alert], object]


_MOST_WAITING = 10_000
"""As many as wait in a background queue."""


class Sinks:
    """Gives alerts to one sink or several, one at a time and in order, whichever threads decide them.

    Raises:
        TypeError, ValueError: there is none, or one is neither a logger nor a plain callable.
    """

    def __init__(self, given: Any, author: str) -> None:
        self._given = _several(given)
        self._sinks = [_as_sink(each, author) for each in self._given]
        self.reset()

    def reset(self) -> None:
        """Forget what waits: in a forked child, whose parent tells it."""
        self._lock = RLock()  # re-entrant, since a signal handler may call a breaker at any point
        self._waiting: deque[tuple[Alert, Context]] = deque()
        self._lost = 0
        self._telling = False

    @property
    def delivery(self) -> Delivery:
        """``"background"`` if one of them asks for it."""
        wanted = [getattr(sink, "delivery", "inline") for sink in self._given]
        return "background" if "background" in wanted else "inline"

    def add(self, alert: Alert) -> None:
        """Something to be told, in the context in which it was decided."""
        with self._lock:
            if len(self._waiting) >= _MOST_WAITING:  # a sink does not come back: the newest tells how things are
                self._waiting.popleft()
                self._lost += 1
            self._waiting.append((alert, copy_context()))

    def tell(self) -> None:
        """Tell what waits; where somebody is at it already, that one goes on with this.

        No lock is held meanwhile, so a sink may do what it likes. What sinks raise is raised when all is told.
        """
        if not self._waiting:
            return
        with self._lock:
            if self._telling:
                return
            self._telling = True
        failed: list[Exception] = []
        try:
            while (told := self._next()) is not None:
                alert, context = told
                for sink in self._sinks:
                    try:
                        refuse_coroutine(context.run(sink, alert), "sink")
                    except Exception as error:
                        failed.append(error)
        except BaseException:
            self._telling = False
            raise
        lost, self._lost = self._lost, 0
        if lost:
            failed.append(OverflowError(f"{lost} alerts were lost while a sink did not come back"))
        _raise(failed)

    def _next(self) -> tuple[Alert, Context] | None:
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()
            self._telling = False
            return None

    def close(self) -> None:
        """Tell what waits, then close those that can be closed."""
        closing = [sink.close for sink in self._given if callable(getattr(sink, "close", None))]
        _do_all([self.tell, *closing])


class _LogSink:
    """Writes alerts as log lines."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def __call__(self, alert: Alert) -> None:
        level = ALERT_LEVELS[alert.severity] if alert.status == "firing" else logging.INFO
        if self._writer.enabled(level):
            self._writer.write(level, alert.event, line(alert, ALERT_KEYS))


def _as_sink(value: Any, author: str) -> Sink:
    """A logger, or a callable, as something that takes an alert; the default for ``None``.

    Raises:
        TypeError: it is neither, or a coroutine function.
    """
    _check.instance(value, "sink", "a logger or a callable")
    if value is None:
        try:
            return _LogSink(StructlogWriter(None, ALERT_LOGGER, author))
        except MissingExtraError:
            value = logging.getLogger(ALERT_LOGGER)
    if isinstance(value, logging.Logger):
        return _LogSink(LogWriter(value, author))
    if not callable(value) and is_logger(value):
        return _LogSink(StructlogWriter(value, ALERT_LOGGER, author))
    if not callable(value):
        raise TypeError(f"sink must be a logger or a callable, got {_check.got(value)}")
    if is_async(value):
        raise TypeError(f"sink must be a plain callable, got the coroutine function {_check.title(value)}")
    return value  # type: ignore[no-any-return]


def _several(sink: Any) -> tuple[Any, ...]:
    """The sinks of a list, or the one.

    Raises:
        ValueError: the list is empty.
    """
    given = tuple(cast("Sequence[Any]", sink)) if isinstance(sink, (list, tuple)) else (sink,)
    if not given:
        raise ValueError("sink must be a logger, a callable or several, got none")
    return given


def _do_all(works: Iterable[Callable[[], object]]) -> None:
    failed: list[Exception] = []
    for work in works:
        try:
            work()
        except Exception as error:
            failed.append(error)
    _raise(failed)


def _raise(failed: Sequence[Exception]) -> None:
    if len(failed) == 1:
        raise failed[0]
    if failed:
        raise ExceptionGroup("; ".join(dict.fromkeys(map(error_text, failed))), failed)
