"""Events and alerts as JSON, sent to an address of your own."""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast
from uuid import uuid4

from fluxgate import _check
from fluxgate._clock import Clock, as_clock
from fluxgate._subscription import Delivery
from fluxgate.events import (
    CircuitRetired,
    Event,
    EventsDropped,
    ListenerFailed,
    StateChanged,
    WouldOpen,
    concrete,
)

from ._address import Address, checked_headers
from ._alert import Alert
from ._document import as_source, document, to_json
from ._eventlog import Floods
from ._http import Courier, DeliveryError, Message, user_agent
from ._library import HTTPX, NeedsLibrary

__all__ = ["DeliveryError", "WebhookListener", "signature"]

_OURS = frozenset(
    (
        *("content-type", "content-length", "transfer-encoding", "host", "connection"),
        *("webhook-id", "webhook-timestamp", "webhook-signature"),
    )
)
_PREFIX = "whsec_"
_SHORTEST_KEY, _LONGEST_KEY = 24, 64  # bytes
_AGAIN_AFTER = 60.0  # seconds between two documents about one listener's failures


class WebhookListener(NeedsLibrary):
    """Posts each event, or alert, as one JSON document.

    Attached to circuits it receives events; as the sink of `fluxgate.listeners.alerts.AlertListener` it receives
    alerts. Both are delivered in the background, in order, one at a time.

    A document has ``type`` (the name that the event has in log lines, such as ``circuit_opened``; ``alert_firing`` and
    ``alert_resolved`` for alerts), ``timestamp`` (when it happened), ``source`` and ``data``: the event's or alert's
    ``to_dict()`` with its ``reason``, one sentence. The headers follow Standard Webhooks: ``webhook-id`` is the same
    in every try, so that a receiver can tell a repetition; ``webhook-timestamp`` is the time of the try;
    ``webhook-signature`` is there where a secret is.
    https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md

    What is delivered is what the receiver answers with 2xx. Connection errors, timeouts, 408, 425, 429 and 5xx are
    tried again, with waits that double from half a second or are what ``Retry-After`` asks for (30 s at most), for 60
    s at most. Then `DeliveryError` is raised, which the bus logs once and publishes as `ListenerFailed`. After that
    each message is tried once until one gets through, with rests from 1 to 60 s in which messages fail at once.
    Redirects are not followed.

    Failures of one listener, or of one rule of a circuit, may come with every call: they are sent once a minute, with
    their `count`. Neither the address's path and query, nor headers, nor the secret are in any log, error or ``repr``.

    Args:
        url: Absolute, ``https`` or ``http``. Proxies and certificates are those of the environment, as for httpx.
        events: The event types that it asks for; a base class stands for all beneath.
        secret: Signs each request with HMAC-SHA256. Text in base64, as Standard Webhooks has it, with or without
            ``whsec_`` before it, or the bytes themselves, 24 to 64 of them. Several while you change it: each signs.
        headers: More headers, such as ``{"Authorization": "Bearer ..."}``.
        timeout: Seconds to connect, to send and to wait for each part of the answer.
        retries: How often a try that failed is repeated; 0 for never.
        source: Who sends this; the host's name, which in a container is that of its pod.
        clock: Has ``monotonic()`` and ``time()``; the `time` module.

    Raises:
        MissingExtraError: httpx is not installed.
        TypeError, ValueError: An argument is not what it must be; the text does not quote what may be a secret.

    >>> from fluxgate import Bus, CircuitBreaker
    >>> hook = WebhookListener("https://alerts.example/hooks/T0KEN", secret="whsec_" + 8 * "c2VjcmV0")
    >>> hook
    WebhookListener('https://alerts.example')
    >>> bus = Bus()
    >>> bus.attach(hook)
    <Subscription of WebhookListener (open)>
    """

    def __init__(
        self,
        url: str,
        *,
        events: Iterable[type[Event]] = (StateChanged, WouldOpen, ListenerFailed, EventsDropped),
        secret: str | bytes | Sequence[str | bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 5.0,
        retries: int = 3,
        source: str | None = None,
        clock: Clock | None = None,
    ) -> None:
        author = type(self).__name__
        self._address = Address(url, "url", author)
        self._asked = concrete(_check.several(events, "events"))
        if not self._asked:
            raise ValueError("events must be one event type or several, got none")
        self._keys = _keys(secret)
        self._headers = checked_headers(headers, _OURS)
        if not any(name.lower() == "user-agent" for name in self._headers):
            self._headers["User-Agent"] = user_agent()
        self._source = as_source(source)
        self._clock = as_clock(clock)
        self._courier = Courier(author, self._address, timeout=timeout, retries=retries, clock=self._clock)
        self._floods = Floods(_AGAIN_AFTER)

    delivery: Delivery = "background"
    library = HTTPX

    @property
    def events(self) -> tuple[type[Event], ...]:
        """What was asked for, and the circuits' retirement, at which what is remembered of them goes."""
        return tuple(self._asked | {CircuitRetired})

    @property
    def destination(self) -> "WebhookListener":
        """Attached twice to one circuit, it hears each event once."""
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._address)!r})"

    def __call__(self, record: Event | Alert) -> None:
        """Deliver it, in the calling thread.

        Raises:
            DeliveryError: it could not be delivered.
        """
        if isinstance(record, CircuitRetired):
            self._floods.release(record.circuit_name, record.timestamp, forget=True)
            if CircuitRetired not in self._asked:
                return
        elif isinstance(record, ListenerFailed) and self._floods.hold(record, (record.role, record.listener)) is None:
            return
        body, number = to_json(document(record, self._source)), f"msg_{uuid4().hex}"
        self._courier.deliver(Message(self._address, body, lambda: self._sign(number, body)))

    def close(self) -> None:
        """End what waits for another try, and the connections; the bus calls it when the listener is detached."""
        self._floods.release_all()
        self._courier.close()

    def _sign(self, number: str, body: bytes) -> dict[str, str]:
        timestamp = str(int(self._clock.time()))
        signed = " ".join(signature(key, number, timestamp, body) for key in self._keys)
        return {
            **self._headers,
            "Content-Type": "application/json",
            "webhook-id": number,
            "webhook-timestamp": timestamp,
            **({"webhook-signature": signed} if signed else {}),
        }


def signature(key: bytes, number: str, timestamp: str, body: bytes) -> str:
    """What ``webhook-signature`` is for one key, of a message's id, the time of the try and the body as it was sent.

    >>> signature(b"a key of at least 24 bytes", "msg_1", "1700000000", b"{}")
    'v1,9Cd8Mo+f1q1ZP5US7EGxC+3EnsBy8XR5jyy1P9uLrWM='
    """
    signed = hmac.new(key, f"{number}.{timestamp}.".encode() + body, hashlib.sha256)
    return f"v1,{base64.b64encode(signed.digest()).decode()}"


def _keys(secret: Any) -> list[bytes]:
    given: list[Any] = [] if secret is None else [secret]
    if isinstance(secret, (list, tuple)):
        given = list(cast("Sequence[Any]", secret))
        if not given:
            raise ValueError("secret must be one or several, got an empty list")
    return list(map(_key, given))


def _key(secret: Any) -> bytes:
    wanted = f"secret must be {_SHORTEST_KEY} to {_LONGEST_KEY} bytes, or a str that is their base64"
    key = secret
    if isinstance(secret, str):
        try:
            key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
        except (binascii.Error, ValueError):
            key = None
        if key is None:
            raise ValueError(f"{wanted}, got a str that is none")
    if not isinstance(key, bytes):
        raise TypeError(f"{wanted}, got something of type {type(secret).__name__}")
    if not _SHORTEST_KEY <= len(key) <= _LONGEST_KEY:
        raise ValueError(f"{wanted}, got {len(key)} bytes")
    return key
