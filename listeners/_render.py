"""How an event becomes the key-value pairs of a log line, the same for every library that writes them.

Nothing in a line may pass for another line or steer a terminal, whatever a circuit is called and an exception
says: every text is one line of printable characters, the others escaped as Python escapes them (``\\n``, ``\\x1b``),
and cut when it is long.
"""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from fluxgate._record import Record
from fluxgate.events import Event, StateChanged
from fluxgate.metric import Metric

from .names import LOG_KEYS

_LONGEST = 1000
_DIGITS = {"failure_rate": 4, "slow_rate": 4, "retry_after": 3}
_MICROSECONDS = 6
_ambiguous = re.compile(r'[ "=\\]').search
_TIMES = ("failing_since", "since")


def fields(event: Event) -> dict[str, Any]:
    """What the catalogue lists for this event, in plain types; what has no value is left out."""
    return line(event, LOG_KEYS[type(event)])


def line(record: Record, keys: Iterable[str]) -> dict[str, Any]:
    """What these keys name of a record, or of its window's sums, in plain types; what has no value is left out."""
    values = ((key, value_of(record, key)) for key in keys)
    return {key: _plain(key, value) for key, value in values if value is not None}


def value_of(record: Record, key: str) -> Any:
    """What a key names of a record, or of its window's sums where it has some."""
    if key == "retry_after" and isinstance(record, StateChanged):
        return record.wait
    try:  # nearly always it is there, and asking first would take as long again
        return getattr(record, key)
    except AttributeError:
        if not hasattr(record, "metrics"):
            raise
    sums: Metric | None = getattr(record, "metrics", None)
    return None if sums is None else getattr(sums, key)


def _plain(key: str, value: Any) -> Any:
    if key in _TIMES:
        return iso(value)
    if isinstance(value, float):
        return round(value, _DIGITS.get(key, _MICROSECONDS))
    if isinstance(value, int):
        return value
    return printable(",".join(value) if key == "changed" else str(value))


def iso(timestamp: float) -> str:
    """A Unix time in UTC, to the millisecond, as ISO 8601 has it."""
    try:
        return datetime.fromtimestamp(timestamp, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):  # a circuit's own clock need not tell calendar time
        return str(timestamp)


def printable(text: str) -> str:
    """The text on one line, without anything that a terminal obeys, and not too long."""
    if len(text) <= _LONGEST and text.isprintable():
        return text
    text = _cut(text)
    return _cut("".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text))


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


class Logfmt:
    """``key=value`` pairs as text, made when somebody reads it; values in double quotes where need be."""

    __slots__ = ("_fields",)

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields

    def __str__(self) -> str:
        return " ".join(f"{key}={_quoted(value)}" for key, value in self._fields.items())


def _quoted(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value)
    if text and not _ambiguous(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
