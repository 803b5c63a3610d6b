"""How an event becomes the key-value pairs of a log line, the same for every library that writes them.

Nothing in a line may pass for another line or steer a terminal, whatever a circuit is called and an exception
says: every text is one line of printable characters, the others escaped as Python escapes them (``\\n``, ``\\x1b``),
and cut when it is long.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from fluxgate.events import Event, StateChanged
from fluxgate.metric import Metric

from .names import LOG_KEYS

_LONGEST = 1000
_DIGITS = {"failure_rate": 4, "slow_rate": 4, "retry_after": 3}
_MICROSECONDS = 6


def fields(event: Event) -> dict[str, Any]:
    """What the catalogue lists for this event, in plain types; what has no value is left out."""
    values = ((key, _value(event, key)) for key in LOG_KEYS[type(event)])
    return {key: _plain(key, value) for key, value in values if value is not None}


def _value(event: Event, key: str) -> Any:
    if key == "retry_after" and isinstance(event, StateChanged):
        return event.wait
    metrics: Metric | None = getattr(event, "metrics", None)
    return getattr(event if metrics is None or hasattr(event, key) else metrics, key)


def _plain(key: str, value: Any) -> Any:
    if key == "failing_since":
        return _iso(value)
    if isinstance(value, float):
        return round(value, _DIGITS.get(key, _MICROSECONDS))
    if isinstance(value, int):
        return value
    return printable(",".join(value) if key == "changed" else str(value))


def _iso(timestamp: float) -> str:
    try:
        return datetime.fromtimestamp(timestamp, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):  # a circuit's own clock need not tell calendar time
        return str(timestamp)


def printable(text: str) -> str:
    """The text on one line, without anything that a terminal obeys, and not too long."""
    if len(text) > _LONGEST:
        text = text[: _LONGEST - 1] + "…"
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


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
    if text and not any(char in text for char in ' "=\\'):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
