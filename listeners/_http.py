"""One delivery over HTTP, for every listener that needs one: bounded in tries and in time, and silent about secrets.

An address may carry a token in its path or query, and a header may be one. So requests go to httpx's transport without
its client, which would write the whole address to its log, follow redirects and keep cookies; what an error says of
them is scheme, host and port; and instrumentation, which puts addresses into spans, is asked to look away.
"""

import re
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from importlib.metadata import version
from socket import SHUT_RDWR, socket
from threading import Event, RLock, Timer, main_thread
from typing import Any, NamedTuple
from urllib.request import getproxies, proxy_bypass
from weakref import WeakSet, finalize

from fluxgate import _check
from fluxgate._chance import chance
from fluxgate._clock import Clock
from fluxgate._forks import BegunAnew
from fluxgate._text import seconds_in_words, type_name

from ._address import Address
from ._library import HTTPX

GIVE_UP_AFTER = 60.0  # seconds that one message may take, all tries and waits
_AT_THE_END = 2.0  # the same while the interpreter ends, when it may happen in its own thread
_FIRST_WAIT = 0.5  # seconds, doubled from try to try
_LONGEST_WAIT = 30.0
_FIRST_REST = 1.0  # seconds, doubled from failure to failure
_LONGEST_REST = 60.0
_LONGEST_ASKED = 300.0  # of what a destination asks for
_READ = 1 << 16  # bytes of an answer; nothing that is wanted of one is longer
_UNENDING = "its answer did not end in time"
_AGAIN = frozenset((HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS))


class DeliveryError(Exception):
    """A message could not be delivered. The text names the destination by scheme and host alone, and no secret."""

    code: str | None = None
    """What the destination calls the error, where it gives it a name."""


class Problem(NamedTuple):
    """Why one try failed."""

    text: str
    again: bool
    """Whether another try may end better: the destination is down, or busy."""
    wait: float | None = None
    """Seconds for which the destination wants to be left alone."""
    code: str | None = None


class Answer(NamedTuple):
    """What came back."""

    status: int
    body: bytes
    wait: float | None
    """What ``Retry-After`` says, in seconds."""

    def problem(self) -> Problem | None:
        """What the status says is wrong: nothing, if it is 2xx."""
        if 200 <= self.status < 300:
            return None
        if 300 <= self.status < 400:
            return Problem(f"it answered {_in_words(self.status)}, and redirects are not followed", again=False)
        again = self.status >= 500 or self.status in _AGAIN
        return Problem(f"it answered {_in_words(self.status)}", again, self.wait)


class Message(NamedTuple):
    """What is to be delivered."""

    address: Address
    body: bytes
    headers: Callable[[], Mapping[str, str]]
    """Made for each try."""
    judge: Callable[[Answer], Problem | None] = Answer.problem

    def __repr__(self) -> str:
        return f"<Message to {self.address}>"


class Courier:
    """Delivers messages to one destination, in the thread that asks for it.

    A try that ends in a connection error, a timeout, 408, 425, 429 or 5xx is repeated, `retries` times at most, after
    a wait that doubles from half a second and is drawn from its upper half; ``Retry-After`` makes it longer. No try
    begins after `GIVE_UP_AFTER` seconds, and one that is under way then is cut off.

    A destination that is down must not take that long from every message, or those that wait behind it would all be
    lost slowly. So once a message has failed for good, each is tried once until one gets through. Between two of these
    tries lies a rest, which doubles from a second to a minute, or is what ``Retry-After`` asked for: a message that
    falls into it fails at once.
    """

    def __init__(self, author: str, address: Address, *, timeout: float, retries: int, clock: Clock) -> None:
        self._httpx: Any = HTTPX.load(author)
        self._address = address
        self._timeout = _check.number(timeout, "timeout", above=0)
        self._tries = _check.whole(retries, "retries", at_least=0) + 1
        self._clock = clock
        self._begin()
        _all_couriers.add(self)

    def __repr__(self) -> str:
        return f"<Courier to {self._address}>"

    def _begin(self) -> None:
        self._lock = RLock()  # re-entrant, since a signal handler may come in at any point
        self._closing = Event()
        self._line: _Line | None = None
        self._failures = 0  # in a row, while the destination is down
        self._rests_until = 0.0

    def close(self) -> None:
        """End the waits of what is under way, which then fails, and the connections. What comes later opens new ones.

        Nobody is waited for: a try that another thread has begun ends by itself, and closes its connection then.
        """
        with self._lock:
            closing, self._closing = self._closing, Event()
            line, self._line = self._line, None
        closing.set()
        if line is not None:
            line.retire()

    def deliver(self, message: Message) -> Answer:
        """Deliver it, in as many tries as it takes and may take.

        Raises:
            DeliveryError: it could not be delivered.
        """
        began = self._clock.monotonic()
        last = began + (GIVE_UP_AFTER if main_thread().is_alive() else _AT_THE_END)
        with self._lock:
            closing, failures = self._closing, self._failures
            rest = self._rests_until - began
        if failures and rest > 0:
            times = "the last one" if failures == 1 else f"the last {failures}"
            raise DeliveryError(
                f"not sent to {self._address}: {times} failed; it is tried again in {seconds_in_words(rest)}"
            )
        tries = 1 if failures else self._tries
        number = 0
        while True:
            number += 1
            outcome = self._try(message, last)
            if isinstance(outcome, Answer):
                self._is_there()
                return outcome
            why = outcome.text
            if not outcome.again:
                self._is_there()  # it just does not want this one
                break
            wait = max(_FIRST_WAIT * 2.0 ** min(number - 1, 10) * (1 + chance()) / 2, outcome.wait or 0.0)
            if number >= tries or wait > _LONGEST_WAIT or self._clock.monotonic() + wait >= last:
                self._is_down(outcome.wait)
                break
            if pause(closing, wait):
                why += "; then the listener was closed"
                break
        took = seconds_in_words(self._clock.monotonic() - began)
        tried = f"{number} {'try' if number == 1 else 'tries'} in {took}"
        error = DeliveryError(f"not delivered to {self._address}: {why} ({tried})")
        error.code = outcome.code
        raise error

    def _is_there(self) -> None:
        with self._lock:
            self._failures = 0

    def _is_down(self, asked: float | None) -> None:
        with self._lock:
            rest = min(_FIRST_REST * 2.0 ** min(self._failures, 10), _LONGEST_REST)
            self._failures += 1
            self._rests_until = self._clock.monotonic() + max(rest, min(asked or 0.0, _LONGEST_ASKED))

    def _try(self, message: Message, last: float) -> Answer | Problem:
        """One try: its answer, or what is wrong."""
        # No exception leaves here, not even as the context of another: those of httpx hold the request.
        line: _Line | None = None
        try:
            line = self._take_line()
            with _unseen():
                answer = line.send(message, self._timeout, self._clock, last)
            return message.judge(answer) or answer
        except self._httpx.TimeoutException as error:
            limit = seconds_in_words(self._timeout)
            return Problem(f"no answer within {limit} ({type(error).__name__})", again=True)
        except self._httpx.ConnectError as error:
            return Problem(f"no connection: {error}", again=True)  # the socket's error, or that of TLS: no address
        except (self._httpx.NetworkError, self._httpx.RemoteProtocolError) as error:
            return Problem(self._broken(error, last), again=True)
        except self._httpx.ProxyError:
            return Problem("the proxy refused it", again=True)
        except _TooSlow:
            return Problem(_UNENDING, again=True)
        except Exception as error:  # whose text might quote anything
            return Problem(f"{type_name(error)} (its text is withheld)", again=isinstance(error, OSError))
        finally:
            if line is not None:
                line.release()

    def _broken(self, error: Exception, last: float) -> str:
        if self._clock.monotonic() >= last:
            return _UNENDING  # it was cut off
        if isinstance(error, self._httpx.NetworkError):
            return f"the connection broke ({type(error).__name__})"
        return "what it answered is not HTTP, or not all of it came"

    def _take_line(self) -> "_Line":
        with self._lock:
            if self._line is None:
                self._line = _Line(self, self._httpx, self._address)
            self._line.take()
            return self._line

    def after_fork(self) -> None:
        """In the child: connections and locks are the parent's."""
        if self._line is not None:
            self._line.abandon()
        self._begin()


class _TooSlow(Exception):
    """An answer that does not end."""


class _Line:
    """The connections to one destination, closed by whoever is the last to use them."""

    def __init__(self, courier: Courier, httpx: Any, address: Address) -> None:
        self._httpx = httpx
        # Certificates are verified and SSL_CERT_FILE counts, as everywhere in httpx.
        self._transport = httpx.HTTPTransport(trust_env=True, proxy=_proxy(address))
        self._finalizer = finalize(courier, self._transport.close)
        self._finalizer.atexit = False
        self._sockets: WeakSet[socket] = WeakSet()
        self._lock = RLock()
        self._users = 0
        self._retired = False

    def take(self) -> None:
        """One user more."""
        with self._lock:
            self._users += 1

    def release(self) -> None:
        """One user less."""
        with self._lock:
            self._users -= 1
            over = self._retired and not self._users
        if over:
            self._finalizer()

    def retire(self) -> None:
        """Close them when nobody uses them any more."""
        with self._lock:
            self._retired = True
            over = not self._users
        if over:
            self._finalizer()

    def abandon(self) -> None:
        """Keep them as they are: closing them could wait for a lock that nobody will release."""
        self._finalizer.detach()
        _abandoned.append(self._transport)

    def send(self, message: Message, timeout: float, clock: Clock, last: float) -> Answer:
        over = max(last - clock.monotonic(), 0.001)
        left = min(timeout, over)
        request = self._httpx.Request(
            "POST",
            message.address.reveal(),
            headers=dict(message.headers()),
            content=message.body,
            extensions={
                "timeout": dict.fromkeys(("connect", "read", "write", "pool"), left),
                "trace": self._note_socket,
            },
        )
        with self._ending_after(over):
            response = self._transport.handle_request(request)
            body = b""
            try:
                for chunk in response.stream:
                    body += chunk
                    if len(body) > _READ:
                        break
                    if clock.monotonic() >= last:
                        raise _TooSlow
            finally:
                response.close()
        return Answer(response.status_code, body[:_READ], retry_after(response.headers.get("retry-after"), clock))

    def _note_socket(self, name: str, info: dict[str, Any]) -> None:
        """Httpcore's trace extension, https://www.encode.io/httpcore/extensions/#trace."""
        if name.endswith((".connect_tcp.complete", ".start_tls.complete")):
            with self._lock:
                self._sockets.add(info["return_value"].get_extra_info("socket"))

    @contextmanager
    def _ending_after(self, seconds: float) -> Generator[None, None, None]:
        """An answer whose head comes byte by byte, or after ever more 1xx, meets no timeout: it is cut off."""
        watch = Timer(seconds, self._cut_off)
        watch.daemon = True
        with suppress(RuntimeError):  # no thread to spare, or the interpreter ends
            watch.start()
        try:
            yield
        finally:
            watch.cancel()

    def _cut_off(self) -> None:
        with self._lock:
            sockets = list(self._sockets)
        for each in sockets:
            with suppress(OSError):  # not connected any more
                socket.shutdown(each, SHUT_RDWR)  # of TLS as well: its own waits for an answer


def retry_after(value: str | None, clock: Clock) -> float | None:
    """The seconds that a ``Retry-After`` header asks for; ``None`` if there is none, or it makes no sense.

    https://www.rfc-editor.org/rfc/rfc9110#field.retry-after
    """
    if value is None or len(value) > 100:
        return None
    if re.fullmatch(r"\d{1,9}(\.\d+)?", value.strip(), re.ASCII):
        return float(value)
    try:
        return max(parsedate_to_datetime(value).timestamp() - clock.time(), 0.0)
    except (ValueError, OverflowError, OSError):
        return None


def user_agent() -> str:
    """How Fluxgate calls itself."""
    return f"fluxgate/{version('fluxgate')}"


def _in_words(status: int) -> str:
    """A status with its usual phrase; the one that was sent may be anything."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def pause(closing: Event, seconds: float) -> bool:
    """Wait; whether `closing` was set meanwhile."""
    return closing.wait(seconds)


def _unseen() -> AbstractContextManager[None]:
    """OpenTelemetry's instrumentation of HTTP clients, where there is one, makes no span of what happens here."""
    suppress: Any = getattr(sys.modules.get("opentelemetry.instrumentation.utils"), "suppress_instrumentation", None)
    return nullcontext() if suppress is None else suppress()


def _proxy(address: Address) -> str | None:
    """The proxy that the environment names for this destination."""
    proxies = getproxies()
    found = proxies.get(address.scheme) or proxies.get("all")
    if not found or proxy_bypass(address.authority):
        return None
    return found if "://" in found else f"http://{found}"


_all_couriers = BegunAnew[Courier]()
_abandoned: list[Any] = []  # what a forked child has from its parent
