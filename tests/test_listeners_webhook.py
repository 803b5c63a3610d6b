"""WebhookListener: events and alerts as signed JSON, delivered or counted, and no secret in sight."""

from __future__ import annotations

import base64
import doctest
import gc
import hashlib
import hmac
import itertools
import json
import os
import pickle
import random
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import format_datetime
from textwrap import dedent
from typing import Any

import pytest

pytest.importorskip("httpx")

import httpx

from fluxgate import CallNotPermittedError, Closed, Cooldown, FailureStreak, MissingExtraError, State
from fluxgate.events import (
    CallFailed,
    CircuitRetired,
    Event,
    EventsDropped,
    ListenerFailed,
    StateChanged,
    WouldOpen,
)
from fluxgate.listeners import _document as documents
from fluxgate.listeners import _http as http
from fluxgate.listeners import load, names, webhook
from fluxgate.listeners.alerts import AlertListener, CircuitOpen
from fluxgate.listeners.webhook import DeliveryError, WebhookListener, signature
from fluxgate.testing import EventRecorder
from tests.conformance.service import Answer, Service, refused_url
from tests.faces import Make, both
from tests.posting import (
    SECRETS,
    Everything,
    Post,
    an_alert,
    break_,
    logged,
    post,
    service,
    waits,
)
from tests.running import PATIENCE, Running, arrives, script, together

FIXTURES = (logged, post, service, waits)

KEY = b"S3CR3T key, more than 24 bytes"
PATH = "/hooks/T0K3N?key=S3CR3T"
ANSWERS: dict[str, Answer] = {
    "500": Answer(500),
    "599": Answer(599),
    "503": Answer(503, b"<html>busy</html>"),
    "429": Answer(429),
    "408": Answer(408),
    "garbage": Answer(raw=b"\x00\xffnot HTTP at all\r\n\r\n"),
    "cut": Answer(drop=True),
    "cut within": Answer(chunks=[b"half"], drop=True),
}


def hook(post: Post, **options: Any) -> WebhookListener:
    options = {"clock": post.clock, "source": "here", **options}
    return WebhookListener(post.service.url + PATH, **options)


def bodies(service: Service) -> list[dict[str, Any]]:
    return [json.loads(request.body) for request in service.received]


def types(service: Service) -> list[str]:
    return [body["type"] for body in bodies(service)]


def verify(key: bytes, headers: Any, body: bytes) -> bool:
    """As a receiver does it, by the words of the specification."""
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    mine = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    given = [each.split(",", 1) for each in headers["webhook-signature"].split(" ")]
    return any(version == "v1" and hmac.compare_digest(mine, theirs) for version, theirs in given)


# -- what is posted -------------------------------------------------------------------------------------------------


@both
def test_events_of_both_faces_are_posted_in_order(make: Make, post: Post) -> None:
    """Either face's changes of state are posted as JSON, one request each, in the order in which they happened."""
    circuit = make(retry=Cooldown(60), tripper=Closed() & FailureStreak(1))
    circuit.bus.attach(hook(post))
    circuit.fail()
    circuit.steer("reset")
    circuit.steer("force_open")
    assert circuit.bus.flush(PATIENCE)
    assert types(post.service) == ["circuit_opened", "circuit_closed", "circuit_forced_open"]
    assert [body["data"]["sequence"] for body in bodies(post.service)] == sorted(
        event.sequence for event in circuit.seen(StateChanged)
    )
    request = post.service.received[0]
    assert request.path == PATH
    assert request.headers["content-type"] == "application/json"
    assert request.headers["user-agent"].startswith("fluxgate/")


def test_the_document_explains_the_opening(post: Post) -> None:
    """It has the sentence, the figures, since when it fails, the last error, and the trace of the call."""
    trace = pytest.importorskip("opentelemetry.trace")
    context = trace.SpanContext(0x4BF92F3577B34DA6A3CE929D0E0E4736, 0xF067AA0BA902B7, False)
    recorder = EventRecorder(StateChanged)
    post.bus.attach(recorder)
    post.bus.attach(hook(post))
    cb = post.circuit()
    with trace.use_span(trace.NonRecordingSpan(context)):
        break_(cb)
    post.flush()
    (body,) = bodies(post.service)
    data = body.pop("data")
    assert body == {"type": "circuit_opened", "timestamp": "2023-11-14T22:13:20.000Z", "source": "here"}
    assert data == {**recorder.of(StateChanged)[0].to_dict(), "reason": "1 failure in a row (limit 1)"}
    assert data["metrics"]["failure_rate"] == 1.0
    assert data["failing_since"] == 1_700_000_000.0
    assert data["last_error"] == {"type": "ConnectionError", "text": "no route"}
    assert (data["trace_id"], data["span_id"]) == ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")
    assert data["wait"] == 60.0


def test_what_would_have_opened_has_its_sentence(post: Post) -> None:
    """A circuit in shadow mode that would have opened is posted with the reason."""
    post.bus.attach(hook(post))
    cb = post.circuit()
    cb.metrics_only()
    break_(cb)
    post.flush()
    assert types(post.service) == ["circuit_metrics_only", "circuit_would_open"]
    assert bodies(post.service)[1]["data"]["reason"] == "1 failure in a row (limit 1)"


@pytest.mark.parametrize("kind", names.LOG_KEYS, ids=lambda kind: kind.__name__)
def test_every_event_type_can_be_posted(kind: type[Event], post: Post) -> None:
    """Whatever type is asked for has a name and becomes valid JSON."""
    seen = EventRecorder()
    post.bus.attach(seen)
    subscription = post.bus.attach(hook(post, events=[kind]))
    cb = post.circuit("any")
    cb.metrics_only()
    break_(cb)
    cb.reset()
    cb.call(int)
    break_(cb)
    with pytest.raises(CallNotPermittedError):
        cb.call(int)
    cb.configure(retry=Cooldown(60))
    wanted = seen.of(kind)
    if wanted:
        post.flush()
        assert [body["data"]["event"] for body in bodies(post.service)] == [kind.__name__] * len(wanted)
    else:  # what cannot be had so easily
        subscription.outlet.listener(made(kind))
        assert bodies(post.service)[0]["data"]["event"] == kind.__name__


def made(kind: type[Event]) -> Event:
    """One of a type, with nothing in it."""
    values: dict[str, Any] = dict.fromkeys(kind.fields, 0)
    return kind(**{**values, "circuit_name": "any", "state": State.CLOSED})


def test_json_is_valid_whatever_it_holds() -> None:
    """What is no number is null, half a character is replaced, and what is unknown is its text."""
    odd = {"nan": float("nan"), "inf": [float("-inf"), 1.5], "half": "a\ud800b", 1: (True, None), "type": int}
    strict = json.loads(documents.to_json(odd), parse_constant=pytest.fail)
    assert strict == {"nan": None, "inf": [None, 1.5], "half": "a\ufffdb", "1": [True, None], "type": "<class 'int'>"}


def test_odd_names_travel(post: Post) -> None:
    """Line breaks, quotes, surrogates and emoji in a name arrive as they are, but for half characters."""
    name = 'a"b\n\x1b[31m\ud83d<!here>é\U0001f389'
    post.bus.attach(hook(post))
    post.circuit(name).force_open()
    post.flush()
    assert bodies(post.service)[0]["data"]["circuit_name"] == name.replace("\ud83d", "\ufffd")


def test_it_is_the_sink_of_alerts(post: Post) -> None:
    """AlertListener delivers to it in the background; what is posted is the alert."""
    alerts = AlertListener([CircuitOpen()], sink=hook(post), clock=post.clock)
    assert alerts.delivery == "background"
    post.alert(alerts)
    cb = post.circuit()
    break_(cb)
    cb.reset()
    post.flush()
    assert types(post.service) == ["alert_firing", "alert_resolved"]
    first = bodies(post.service)[0]["data"]
    assert (first["alert"], first["reason"]) == ("CircuitOpen", "1 failure in a row (limit 1)")
    assert first["fingerprint"] == bodies(post.service)[1]["data"]["fingerprint"]


def test_an_alert_is_posted_whole(post: Post) -> None:
    """Called with an alert it posts what the alert's to_dict gives."""
    alert = an_alert()
    hook(post)(alert)
    (body,) = bodies(post.service)
    assert body == {
        "type": "alert_firing",
        "timestamp": "2023-11-14T22:18:20.000Z",
        "source": "here",
        "data": alert.to_dict(),
    }


def test_the_source_is_the_host_unless_told(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A document says from which host it comes."""
    monkeypatch.setattr(socket, "gethostname", lambda: "pod-7")
    WebhookListener(service.url)(an_alert())
    assert bodies(service)[0]["source"] == "pod-7"


def test_attached_twice_it_hears_once(post: Post) -> None:
    """A circuit's own listener that also observes all circuits posts each event once."""
    listener = hook(post)
    post.bus.attach(listener)
    post.circuit(listeners=[listener]).force_open()
    post.flush()
    assert types(post.service) == ["circuit_forced_open"]


def test_failures_that_come_with_every_call_are_posted_once_a_minute(post: Post) -> None:
    """Of a broken listener's failures the first is posted, and a minute later the next, with the count."""

    def broken(event: Event) -> None:
        raise RuntimeError

    listener = hook(post)
    post.bus.attach(listener)
    post.bus.attach(broken, CallFailed)
    cb = post.circuit(tripper=FailureStreak(1_000_000))
    for _ in range(100):
        break_(cb)
    post.advance(61)
    break_(cb)
    post.flush()
    assert [(body["type"], body["data"]["count"]) for body in bodies(post.service)] == [
        ("listener_failed", 1),
        ("listener_failed", 101),
    ]
    assert listener._floods._circuits
    post.bus.retire(cb._core)
    post.flush()
    assert not listener._floods._circuits, "nothing is kept of a circuit that has retired"
    assert len(post.service.received) == 2


# -- signatures -----------------------------------------------------------------------------------------------------


def test_the_signature_is_that_of_standard_webhooks() -> None:
    """The example that its reference libraries test with."""
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signed = signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", b'{"test": 2432232314}')
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("prefix", ["", "whsec_"])
def test_a_receiver_can_verify_it(prefix: str, post: Post) -> None:
    """With the shared secret, given as text or bytes, a receiver finds body, id and time untouched; only then."""
    as_text = prefix + base64.b64encode(KEY).decode()
    for secret in (as_text, KEY):
        hook(post, secret=secret)(an_alert())
    for request in post.service.received:
        assert verify(KEY, request.headers, request.body)
        assert not verify(KEY + b"!", request.headers, request.body)
        assert not verify(KEY, request.headers, request.body + b" ")
        assert not verify(KEY, {**request.headers, "webhook-timestamp": "1"}, request.body)


def test_its_name_can_be_changed(post: Post) -> None:
    """A User-Agent of the user's replaces ours, however it is written."""
    hook(post, headers={"user-agent": "shop/1"})(an_alert())
    assert post.service.received[0].headers["user-agent"] == "shop/1"


def test_while_a_secret_is_changed_both_sign(post: Post) -> None:
    """Several secrets give several signatures, each of which verifies."""
    other = b"another S3CR3T of 24 bytes"
    hook(post, secret=[KEY, other])(an_alert())
    (request,) = post.service.received
    assert request.headers["webhook-signature"].count("v1,") == 2
    assert verify(KEY, request.headers, request.body)
    assert verify(other, request.headers, request.body)


def test_a_repetition_has_the_same_id_and_a_new_time(post: Post) -> None:
    """Each try is signed anew, over the same id and body; another message has another id."""
    post.service.script.extend([Answer(500), Answer(500)])
    listener = hook(post, secret=KEY)
    listener(an_alert())
    listener(an_alert())
    first, second, third, fourth = post.service.received
    assert first.headers["webhook-id"] == second.headers["webhook-id"] == third.headers["webhook-id"]
    assert fourth.headers["webhook-id"] != first.headers["webhook-id"]
    assert first.body == second.body == third.body
    assert [int(each.headers["webhook-timestamp"]) for each in (first, second, third)] == [
        1_700_000_000,
        1_700_000_000,
        1_700_000_001,
    ]
    assert all(verify(KEY, each.headers, each.body) for each in post.service.received)


def test_without_a_secret_nothing_is_signed(post: Post) -> None:
    """Id and time are sent in any case, and so are the headers that were given."""
    hook(post, headers={"Authorization": "Bearer T0K3N"})(an_alert())
    headers = post.service.received[0].headers
    assert "webhook-signature" not in headers
    assert headers["webhook-id"].startswith("msg_")
    assert headers["webhook-timestamp"] == "1700000000"
    assert headers["authorization"] == "Bearer T0K3N"


# -- trouble ----------------------------------------------------------------------------------------------------------


@both
def test_callers_never_wait(make: Make, post: Post) -> None:
    """While the receiver holds a request, calls, refusals and changes of state go on."""
    asked, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        asked.set()
        assert arrives(go_on)

    post.service.script.append(Answer(during=hold))
    circuit = make(retry=Cooldown(60), tripper=Closed() & FailureStreak(1))
    circuit.bus.attach(hook(post, timeout=PATIENCE))

    def work() -> None:
        circuit.fail()
        assert arrives(asked)
        circuit.refused()
        circuit.steer("reset")
        circuit.succeed()

    try:
        assert Running(work).done(), "a caller waits for the receiver"
        assert circuit.state == "closed"
        assert len(post.service.received) == 1
    finally:
        go_on.set()
    assert circuit.bus.flush(PATIENCE)
    assert types(post.service) == ["circuit_opened", "circuit_closed"]


def test_order_survives_repetition(post: Post) -> None:
    """What comes later waits until what came first has been delivered."""
    post.service.script.extend([Answer(503), Answer(drop=True), Answer()])
    post.bus.attach(hook(post))
    cb = post.circuit()
    cb.force_open()
    cb.reset()
    post.flush()
    assert types(post.service) == [*["circuit_forced_open"] * 3, "circuit_closed"]
    assert post.errors == []


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_trouble_that_may_pass_is_tried_again(answer: Answer, post: Post) -> None:
    """Server errors, 429, garbage and broken connections are repeated until it works."""
    post.service.script.extend([answer, answer])
    hook(post)(an_alert())
    assert len(post.service.received) == 3
    assert post.waits == [0.5, 1.0]


def test_an_address_where_nobody_listens(post: Post) -> None:
    """A refused connection is tried as often as was said, and the error names the host."""
    url = refused_url()
    listener = WebhookListener(url + PATH, clock=post.clock, retries=2)
    with pytest.raises(DeliveryError) as caught:
        listener(an_alert())
    assert (
        str(caught.value) == f"not delivered to {url}: no connection: [Errno 111] Connection refused (3 tries in 1.5 s)"
    )
    assert post.waits == [0.5, 1.0]


RAISED: dict[str, tuple[type[Exception], bool]] = {
    "ReadError": (httpx.ReadError, True),
    "WriteError": (httpx.WriteError, True),
    "ConnectTimeout": (httpx.ConnectTimeout, True),
    "PoolTimeout": (httpx.PoolTimeout, True),
    "ProxyError": (httpx.ProxyError, True),
    "RemoteProtocolError": (httpx.RemoteProtocolError, True),
    "PermissionError": (PermissionError, True),
    "LocalProtocolError": (httpx.LocalProtocolError, False),
    "InvalidURL": (httpx.InvalidURL, False),
    "ValueError": (ValueError, False),
    "RecursionError": (RecursionError, False),
}


@pytest.mark.parametrize(("kind", "again"), RAISED.values(), ids=RAISED)
def test_whatever_the_library_raises_is_told_without_its_words(
    kind: type[Exception], again: bool, post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What may pass is tried again, the rest is not; texts, which may quote headers and addresses, are not shown."""
    tries: list[str] = []

    def fail(request: httpx.Request) -> httpx.Response:
        tries.append(str(request.url))
        raise kind("S3CR3T")

    monkeypatch.setattr(httpx, "HTTPTransport", lambda **options: httpx.MockTransport(fail))
    with pytest.raises(DeliveryError) as caught:
        hook(post)(an_alert())
    assert tries == [post.service.url + PATH] * (4 if again else 1)
    assert not SECRETS.search(str(caught.value))
    assert caught.value.__context__ is None


def test_an_interrupt_is_not_held_up(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is meant for the program goes through."""

    def interrupt(request: httpx.Request) -> httpx.Response:
        raise KeyboardInterrupt

    monkeypatch.setattr(httpx, "HTTPTransport", lambda **options: httpx.MockTransport(interrupt))
    with pytest.raises(KeyboardInterrupt):
        hook(post)(an_alert())


def test_a_proxy_that_cannot_be(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong environment shows at the first message, as an error that names its kind alone."""
    monkeypatch.setenv("http_proxy", "foo://user:S3CR3T@proxy.invalid")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(DeliveryError, match=r"ValueError \(its text is withheld\)") as caught:
        WebhookListener("http://hooks.invalid/T0K3N", clock=post.clock)(an_alert())
    assert not SECRETS.search(str(caught.value))


def test_a_receiver_that_says_nothing(post: Post) -> None:
    """Silence ends at the timeout, and is tried again."""
    post.service.default = Answer(hang=True)
    with pytest.raises(DeliveryError, match=r"no answer within 0\.05 s \(ReadTimeout\) \(2 tries in "):
        hook(post, timeout=0.05, retries=1)(an_alert())
    assert len(post.service.received) == 2


@pytest.mark.parametrize("status", [301, 307, 400, 401, 404, 410])
def test_what_will_not_pass_is_not_repeated(status: int, post: Post) -> None:
    """Refusals and redirects fail at once; where a redirect leads nobody is told anything."""
    elsewhere = {"Location": f"{post.service.url}/elsewhere"} if status < 400 else {}
    post.service.script.append(Answer(status, headers=elsewhere))
    listener = hook(post, headers={"Authorization": "Bearer T0K3N"})
    with pytest.raises(DeliveryError, match=f"it answered {status} .*1 try"):
        listener(an_alert())
    assert [request.path for request in post.service.received] == [PATH]
    assert post.waits == []
    listener(an_alert())
    assert len(post.service.received) == 2, "the next is tried as ever"


def test_repetition_is_bounded_and_its_end_is_told(post: Post, logged: Everything) -> None:
    """A receiver that stays broken costs retries + 1 tries; then the loss is logged once, counted and published."""
    post.service.default = Answer(500)
    post.bus.attach(hook(post, retries=3, events=[StateChanged]))
    cb = post.circuit()
    cb.force_open()
    post.flush()
    assert len(post.service.received) == 4
    assert post.waits == [0.5, 1.0, 2.0]
    where = f"not delivered to {post.service.url}"
    assert post.errors == [f"{where}: it answered 500 Internal Server Error (4 tries in 3.5 s)"]
    cb.reset()
    cb.force_open()
    post.flush()
    assert [event.count for event in post.news.of(ListenerFailed)] == [1, 2, 3]
    assert {event.error_type for event in post.news.of(ListenerFailed)} == {"fluxgate.listeners._http.DeliveryError"}
    assert len(logged.of("fluxgate")) == 1


def test_waits_are_drawn_from_the_upper_half(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes that fail together do not come back together."""
    monkeypatch.setattr(http, "chance", random.Random(7).random)
    post.service.default = Answer(500)
    for _ in range(20):
        with pytest.raises(DeliveryError):
            hook(post, retries=1)(an_alert())
    assert all(0.25 <= wait <= 0.5 for wait in post.waits)
    assert len(set(post.waits)) > 10


def in_seconds(seconds: float) -> str:
    return format_datetime(datetime.fromtimestamp(1_700_000_000 + seconds, UTC), usegmt=True)


@pytest.mark.parametrize(
    ("header", "wait"),
    [
        ("7", 7.0),
        ("0", 0.5),
        (in_seconds(9), 9.0),
        (in_seconds(-9), 0.5),
        ("soon", 0.5),
        ("-3", 0.5),
        ("nan", 0.5),
        ("٣", 0.5),
        ("9" * 500, 0.5),
        ("Mon, 99 Nov 2026 99:99:99 GMT", 0.5),
    ],
)
def test_retry_after_is_respected(header: str, wait: float, post: Post) -> None:
    """Seconds or a date make the wait longer; what makes no sense changes nothing."""
    if header.isascii():
        post.service.script.append(Answer(429, headers={"Retry-After": header}))
        hook(post)(an_alert())
        assert post.waits == [wait]
    else:
        assert http.retry_after(header, post.clock) is None


def test_who_asks_for_too_long_is_left_alone(post: Post) -> None:
    """A Retry-After beyond 30 s is not waited for: the message fails, and others before that time as well, untried."""
    post.service.script.append(Answer(429, headers={"Retry-After": "45"}))
    listener = hook(post)
    with pytest.raises(DeliveryError, match=r"429 Too Many Requests \(1 try"):
        listener(an_alert())
    post.clock.advance(44)
    with pytest.raises(DeliveryError, match=r"the last one failed; it is tried again in 1 s"):
        listener(an_alert())
    assert len(post.service.received) == 1
    post.clock.advance(1.5)
    listener(an_alert())
    assert len(post.service.received) == 2


def test_no_message_takes_longer_than_a_minute(post: Post) -> None:
    """However many retries were allowed, none begins after 60 s."""
    post.service.default = Answer(500, during=lambda: post.clock.advance(25))
    with pytest.raises(DeliveryError, match=r"\(3 tries in 76\.5 s\)"):
        hook(post, retries=1000)(an_alert())
    assert len(post.service.received) == 3


class Endless(list[bytes]):
    """Chunks without end."""

    def __iter__(self) -> Iterator[bytes]:
        return itertools.repeat(b"x" * 10_000)


def test_an_endless_answer_is_not_read_to_its_end(post: Post) -> None:
    """Of an answer 64 KiB are read; the message is delivered."""
    post.service.script.append(Answer(chunks=Endless()))
    listener = hook(post)
    together(lambda: listener(an_alert()))
    listener(an_alert())
    assert len(post.service.received) == 2


@pytest.mark.parametrize(
    ("first", "then"), [(b"HTTP/1.1 200 OK\r\nX-Filler: ", b"x"), (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n")]
)
def test_a_head_that_never_ends_is_cut_off(first: bytes, then: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver that always sends a little more, and so meets no timeout, costs a message no more than another."""
    monkeypatch.setattr(http, "GIVE_UP_AFTER", 0.5)
    over = threading.Event()

    def drip() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(65_536)
            try:
                connection.sendall(first)
                while not over.wait(0.05):
                    connection.sendall(then)
            except OSError:
                pass

    with socket.create_server(("127.0.0.1", 0)) as server:
        dripping = Running(drip)
        listener = WebhookListener(f"http://127.0.0.1:{server.getsockname()[1]}/", retries=0)

        def deliver() -> None:
            with pytest.raises(DeliveryError, match=r"its answer did not end in time \(1 try in "):
                listener(an_alert())

        try:
            assert Running(deliver).done(5)
        finally:
            over.set()
        assert dripping.done()


def test_a_destination_that_is_down_does_not_cost_each_message_a_minute(post: Post) -> None:
    """After a failure each message is tried once, with rests that double; one success, and all is as before."""
    post.service.default = Answer(500)
    listener = hook(post)

    def tries(seconds: float) -> int:
        before = len(post.service.received)
        post.clock.advance(seconds)
        try:
            listener(an_alert())
        except DeliveryError:
            pass
        return len(post.service.received) - before

    assert [tries(0), tries(0), tries(0.9)] == [4, 0, 0]
    assert [tries(0.2), tries(1.9), tries(0.2), tries(3.9), tries(0.2)] == [1, 0, 1, 0, 1]
    for _ in range(20):
        assert tries(61) == 1, "no rest is longer than a minute"
    post.service.default = Answer()
    assert [tries(61), tries(0)] == [1, 1]
    post.service.default = Answer(500)
    assert tries(0) == 4


def test_a_queue_that_overflows_says_how_much_went(post: Post) -> None:
    """What waits behind a slow receiver is bounded; what had to go is told, not least to the receiver."""
    asked, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        asked.set()
        assert arrives(go_on)

    post.service.script.append(Answer(during=hold))
    post.bus.attach(hook(post, timeout=PATIENCE), queue_size=2)
    cb = post.circuit()
    cb.force_open()
    assert arrives(asked)
    for _ in range(5):
        cb.reset()
        cb.force_open()
    go_on.set()
    post.flush()
    lost = sum(event.count for event in post.news.of(EventsDropped))
    told = [body for body in bodies(post.service) if body["data"]["event"] == "StateChanged"]
    assert lost >= 8
    assert len(told) + lost >= 11
    assert "events_dropped" in types(post.service)


# -- beginnings and ends ------------------------------------------------------------------------------------------


def test_closing_ends_a_wait(service: Service) -> None:
    """What waits for another try fails at once when the listener is closed; afterwards it can be used again."""
    asked = threading.Event()
    service.script.append(Answer(503, headers={"Retry-After": "29"}, during=asked.set))
    listener = WebhookListener(service.url)

    def work() -> None:
        with pytest.raises(DeliveryError, match="503 Service Unavailable; then the listener was closed"):
            listener(an_alert())

    running = Running(work)
    assert arrives(asked)
    while not running.done(0.01):
        listener.close()
    listener(an_alert())
    listener.close()
    listener.close()
    assert len(service.received) == 2


def test_the_program_ends_in_time_whatever_the_receiver_does(service: Service) -> None:
    """A receiver that says nothing, and a wait for another try, hold up the interpreter's end for two seconds each."""
    service.script.append(Answer(503, headers={"Retry-After": "25"}))
    service.default = Answer(hang=True)
    for timeout in ("60", "5"):
        script(
            dedent("""
            import sys, fluxgate
            from fluxgate.listeners.webhook import WebhookListener
            fluxgate.attach(WebhookListener(sys.argv[1], timeout=float(sys.argv[2])))
            cb = fluxgate.CircuitBreaker("payments")
            for _ in range(10):
                cb.force_open()
                cb.reset()
            """),
            service.url,
            timeout,
        )
    assert len(service.received) == 2


def test_events_of_the_very_end_do_not_hold_it_up(service: Service) -> None:
    """Where the exit delivers in its own thread, since none can be started any more, that takes seconds at most."""
    service.default = Answer(hang=True)
    script(
        dedent("""
        import atexit, sys, threading
        import fluxgate
        from fluxgate.listeners.webhook import WebhookListener

        def last():
            def start(self):
                raise RuntimeError("can't create new thread at interpreter shutdown")
            threading.Thread.start = start
            for _ in range(10):
                cb.force_open()
                cb.reset()

        atexit.register(last)
        fluxgate.attach(WebhookListener(sys.argv[1], timeout=60))
        cb = fluxgate.CircuitBreaker("payments")
        """),
        service.url,
    )
    assert len(service.received) == 1


def test_what_is_on_its_way_arrives_before_the_end(service: Service) -> None:
    """A program that ends right after an event has delivered it."""
    done = script(
        dedent("""
        import sys, fluxgate
        from fluxgate.listeners.webhook import WebhookListener
        fluxgate.attach(WebhookListener(sys.argv[1]))
        fluxgate.CircuitBreaker("payments").force_open()
        """),
        service.url,
    )
    assert types(service) == ["circuit_forced_open"]
    assert done.stderr == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_delivers_its_own(service: Service) -> None:
    """Forked in the midst of deliveries, parent and child each post over connections of their own."""
    script(
        dedent("""
        import os, signal, sys, threading, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        import fluxgate
        from fluxgate.listeners.webhook import WebhookListener
        hook = WebhookListener(sys.argv[1])
        fluxgate.attach(hook)
        cb = fluxgate.CircuitBreaker("parent")
        cb.force_open()
        fluxgate.flush()  # what is imported late has been imported: a fork in the midst of that is lost in Python
        end = threading.Event()
        def hammer():
            while not end.is_set():
                cb.force_open()
                cb.reset()
                fluxgate.flush(1)
        thread = threading.Thread(target=hammer, daemon=True)
        thread.start()
        for number in range(10):
            pid = os.fork()
            if pid == 0:
                signal.alarm(10)
                fluxgate.CircuitBreaker(f"child-{number}").force_open()
                os._exit(0 if fluxgate.flush(8) else 1)
            _, status = os.waitpid(pid, 0)
            assert status == 0, status
        end.set()
        thread.join()
        fluxgate.CircuitBreaker("last").force_open()
        """),
        service.url,
        timeout=60,
    )
    told = [body["data"]["circuit_name"] for body in bodies(service)]
    assert [name for name in told if name.startswith("child")] == [f"child-{number}" for number in range(10)]
    assert told.count("parent") > 10
    assert told[-1] == "last"


def test_any_number_of_threads_may_use_and_close_it(service: Service) -> None:
    """Messages of several threads arrive while others close the listener; no connection is closed under a message."""
    listener = WebhookListener(service.url)
    ended = threading.Event()

    def send() -> None:
        for _ in range(10):
            listener(an_alert())

    def close() -> None:
        while not ended.wait(0.001):
            listener.close()

    closing = Running(close)
    together(*[send] * 4)
    ended.set()
    assert closing.done()
    assert len(service.received) == 40


def test_a_connection_in_use_is_closed_when_its_message_is_through(post: Post) -> None:
    """Closing does not cut off a message that is on its way; its connection goes right after it."""
    asked, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        asked.set()
        assert arrives(go_on)

    post.service.script.append(Answer(during=hold))
    listener = hook(post, timeout=PATIENCE)
    sending = Running(lambda: listener(an_alert()))
    assert arrives(asked)
    line = listener._courier._line
    assert line is not None
    listener.close()
    assert line._finalizer.alive, "it is in use"
    go_on.set()
    assert sending.done()
    assert not line._finalizer.alive
    assert len(post.service.received) == 1


def test_a_listener_that_is_dropped_closes_its_connections(post: Post) -> None:
    """Collected without having been closed, it leaves no open socket behind, about which Python would warn."""
    listener = hook(post)
    listener(an_alert())
    line = listener._courier._line
    assert line is not None
    del listener
    gc.collect()
    assert not line._finalizer.alive


# -- secrets ----------------------------------------------------------------------------------------------------------


TROUBLE: dict[str, Callable[[Service], str]] = {
    "none": lambda service: service.url,
    "down": lambda service: refused_url(),
    "no such host": lambda service: "https://nobody.invalid",
    "no TLS": lambda service: service.url.replace("http:", "https:"),
}


@pytest.mark.parametrize("where", TROUBLE.values(), ids=TROUBLE)
@pytest.mark.parametrize("answer", [Answer(), Answer(500), Answer(404), Answer(302), Answer(raw=b"?")], ids=str)
def test_no_secret_is_ever_shown(
    where: Callable[[Service], str], answer: Answer, post: Post, logged: Everything
) -> None:
    """Whatever happens, no log at any level, event, repr, error or traceback shows path, query, header or key."""
    post.service.default = answer
    url = where(post.service) + PATH
    listener = WebhookListener(url, secret=KEY, headers={"X-Key": "S3CR3T"}, retries=1, clock=post.clock)
    post.bus.attach(listener)
    post.circuit().force_open()
    post.flush()
    shown = [
        *logged.lines,
        *map(repr, post.news.events_seen),
        repr(listener),
        repr(listener._courier),
        repr(listener._address),
        str(listener._address),
        repr(http.Message(listener._address, b"", dict)),
    ]
    assert any("httpcore" in line for line in logged.lines), "the libraries' own logs are looked at"
    assert not [line for line in shown if SECRETS.search(line)]
    assert all("https://" in text or "http://" in text for text in post.errors)


def test_an_error_brings_no_other_error_with_it(post: Post) -> None:
    """Neither cause nor context: those of the HTTP library hold the request. It pickles."""
    with pytest.raises(DeliveryError) as caught:
        WebhookListener(refused_url() + PATH, retries=0, secret=KEY)(an_alert())
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    frames = [frame for frame, _ in traceback.walk_tb(caught.value.__traceback__)]
    assert len(frames) > 2
    assert not SECRETS.search(repr([frame.f_locals for frame in frames[1:]])), "nor do the frames' variables show them"
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_instrumentation_sees_nothing(post: Post) -> None:
    """OpenTelemetry's instrumentation of httpx, which puts whole addresses into spans, makes none of deliveries."""
    instrumentation = pytest.importorskip("opentelemetry.instrumentation.httpx")
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    export = pytest.importorskip("opentelemetry.sdk.trace.export")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    spans = memory.InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(spans))
    instrumentor = instrumentation.HTTPXClientInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    try:
        hook(post)(an_alert())
        assert spans.get_finished_spans() == ()
        with httpx.Client() as client:
            client.post(post.service.url)
        assert len(spans.get_finished_spans()) == 1, "it is at work"
    finally:
        instrumentor.uninstrument()
        provider.shutdown()


def test_cookies_are_not_kept(post: Post) -> None:
    """What a receiver sets is not sent back."""
    post.service.default = Answer(headers={"Set-Cookie": "session=1"})
    listener = hook(post)
    listener(an_alert())
    listener(an_alert())
    assert "cookie" not in post.service.received[1].headers


# -- the environment ----------------------------------------------------------------------------------------------


def test_the_proxy_of_the_environment_is_used(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    """As httpx does it: HTTP_PROXY, unless NO_PROXY names the host."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("http_proxy", post.service.url)
    WebhookListener("http://hooks.invalid/T0K3N", clock=post.clock)(an_alert())
    assert post.service.received[0].path == "http://hooks.invalid/T0K3N"
    monkeypatch.setenv("no_proxy", "hooks.invalid")
    with pytest.raises(DeliveryError, match="no connection"):
        WebhookListener("http://hooks.invalid/T0K3N", clock=post.clock, retries=0)(an_alert())
    assert len(post.service.received) == 1


def test_a_proxy_that_refuses_is_tried_again(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be down as well; what it says is not shown."""
    for name in ("https_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", post.service.url.replace("//", "//user:S3CR3T@"))
    with pytest.raises(DeliveryError) as caught:
        WebhookListener("https://hooks.invalid/T0K3N", clock=post.clock, retries=1)(an_alert())
    assert str(caught.value) == "not delivered to https://hooks.invalid: the proxy refused it (2 tries in 0.5 s)"


def test_without_httpx_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module can be imported; making a listener names the package and the extra."""
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(MissingExtraError, match=r"WebhookListener needs httpx.*extra 'webhook'"):
        WebhookListener("https://alerts.example")
    code = "import sys; sys.modules['httpx'] = None; import fluxgate.listeners.webhook, fluxgate.listeners.slack"
    assert script(code).stderr == ""


def test_it_is_published() -> None:
    """It is found by its name, and observe leaves it alone, since it needs an address."""
    assert load("webhook") is WebhookListener
    assert not hasattr(WebhookListener, "automatic")


# -- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"url": 7}, "url must be .* got something of type int"),
        ({"url": None}, "url must be .* got None"),
        ({"url": " "}, "url must be .* got an empty str"),
        ({"url": "hooks.example/S3CR3T"}, "got one with no scheme"),
        ({"url": "ftp://hooks.example/S3CR3T"}, "got one with another scheme"),
        ({"url": "https:///S3CR3T"}, "got one without a host"),
        ({"url": "https://S3CR3T@hooks.example"}, "got one with a user's name or password"),
        ({"url": "https://a:S3CR3T@hooks.example"}, "got one with a user's name or password"),
        ({"url": "https://hooks.example:port/S3CR3T"}, "got one that cannot be parsed"),
        ({"url": "https://hooks.example/S3CR3T\n"}, "got one that cannot be parsed"),
        ({"url": "https://hooks.example/\ud800S3CR3T"}, "got one that cannot be parsed"),
        ({"events": StateChanged}, "events must be an iterable"),
        ({"events": ()}, "events must be one event type or several, got none"),
        ({"events": ["StateChanged"]}, "event types are classes"),
        ({"secret": 7}, "secret must be 24 to 64 bytes.* got something of type int"),
        ({"secret": "S3CR3T!"}, "got a str that is none"),
        ({"secret": "whsec_S3CR3T==="}, "got a str that is none"),
        ({"secret": "UzNDUjNU"}, "got 6 bytes"),
        ({"secret": b"S3CR3T"}, "got 6 bytes"),
        ({"secret": b"S3CR3T" * 11}, "got 66 bytes"),
        ({"secret": []}, "secret must be one or several"),
        ({"secret": [KEY, 7]}, "got something of type int"),
        ({"headers": [("X", "S3CR3T")]}, "headers must be a mapping from str to str, got something of type list"),
        ({"headers": {7: "S3CR3T"}}, "headers: a name must be a str"),
        ({"headers": {"S3CR3T\n": ""}}, "headers: a name must be letters, digits and hyphens"),
        ({"headers": {"X": b"S3CR3T"}}, "headers: 'X' must be a str, got something of type bytes"),
        ({"headers": {"X": "S3CR3T\r\nY: 1"}}, "headers: 'X' must be printable ASCII"),
        ({"headers": {"X": "S3CR3T\u00e9"}}, "headers: 'X' must be printable ASCII"),
        ({"headers": {"Webhook-Id": "1"}}, "headers: 'Webhook-Id' is set by the listener"),
        ({"timeout": 0}, "timeout must be a finite number and above 0, got 0"),
        ({"timeout": "5"}, "timeout must be a finite number and above 0, got '5'"),
        ({"retries": -1}, "retries must be a whole number of at least 0, got -1"),
        ({"retries": True}, "retries must be a whole number of at least 0, got True"),
        ({"source": 7}, "source must be a str, got 7"),
        ({"clock": 7}, "clock must be an object with"),
    ],
)
def test_wrong_arguments_are_refused_without_quoting_secrets(options: dict[str, Any], text: str) -> None:
    """Each argument is checked, and the error says what is wanted and what kind of thing it got."""
    with pytest.raises((TypeError, ValueError), match=f"(?s){text}") as caught:
        WebhookListener(**{"url": "https://hooks.example", **options})
    told = f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__context__!r}"
    assert not SECRETS.search(told)


def test_it_asks_for_what_it_was_told() -> None:
    """The default is what an operator needs; it asks for retirement in any case."""
    assert set(WebhookListener("https://hooks.example").events) == {
        StateChanged,
        WouldOpen,
        ListenerFailed,
        EventsDropped,
        CircuitRetired,
    }
    assert set(WebhookListener("https://hooks.example", events=[CallFailed]).events) == {CallFailed, CircuitRetired}


def test_the_examples_are_true() -> None:
    """Each example in the docstrings gives what it says."""
    result = doctest.testmod(webhook)
    assert (result.failed, result.attempted > 3) == (0, True)
