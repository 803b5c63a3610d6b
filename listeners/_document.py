"""One JSON document an event, or an alert."""

import json
import math
import re
import socket
from collections.abc import Mapping
from typing import Any, cast

from fluxgate import _check
from fluxgate.events import Event

from ._alert import Alert
from ._render import iso
from .names import log_name

_SURROGATE = re.compile("[\ud800-\udfff]")


def document(record: Event | Alert, source: str) -> dict[str, Any]:
    """What happened, when, who says so, and all that is known of it."""
    data = record.to_dict()
    reason: str | None = getattr(record, "reason", None)  # a sentence, which events make of their verdict
    if reason is not None:
        data["reason"] = reason
    name = record.event if isinstance(record, Alert) else log_name(record)
    return {"type": name, "timestamp": iso(record.timestamp), "source": source, "data": data}


def to_json(value: Any) -> bytes:
    """JSON as RFC 8259 has it: what is no number is ``null``, and half a character is a replacement character."""
    return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, Mapping):
        pairs: Mapping[Any, Any] = value  # pyright: ignore[reportUnknownVariableType]
        return {_plain(str(key)): _plain(each) for key, each in pairs.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in cast("list[Any]", value)]
    return _plain(str(value))


def as_source(value: Any) -> str:
    """Who speaks: the host's name for ``None``, which in a container is usually that of its pod.

    Raises:
        TypeError, ValueError: not a str, or empty.
    """
    return socket.gethostname() if value is None else _check.name(value, "source")
