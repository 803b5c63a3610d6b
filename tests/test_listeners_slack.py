"""SlackListener: an outage is a thread, an alert is a thread, and no text can do harm."""

from __future__ import annotations

import doctest
import json
import logging
import os
import re
import threading
from collections.abc import Callable
from textwrap import dedent
from typing import Any

import pytest

pytest.importorskip("httpx")

from fluxgate import Backoff, Closed, Cooldown, FailureRate, FailureStreak, MinRequests, permits
from fluxgate.events import (
    CircuitRetired,
    Event,
    EventsDropped,
    ListenerFailed,
    StateChanged,
    WouldOpen,
)
from fluxgate.listeners import _slackthreads as slackthreads
from fluxgate.listeners import load, slack
from fluxgate.listeners.alerts import AlertListener, CircuitOpen, CircuitStuckOpen
from fluxgate.listeners.slack import DeliveryError, SlackListener
from fluxgate.state import State
from tests.conformance.service import Answer, Service, refused_url
from tests.faces import Make, both
from tests.posting import SECRETS, Everything, Post, an_alert, break_, logged, post, service, waits
from tests.running import PATIENCE, Running, arrives, script

FIXTURES = (logged, post, service, waits)

TOKEN = "xoxb-T0K3N"
OPEN = ":red_circle: *Circuit `payments` is open*"
WAS_OPEN = ":white_check_mark: *Circuit `payments` was open*"
CLOSED = ":large_green_circle: *Circuit `payments` is closed*"


def ok(number: object) -> Answer:
    """Slack's answer to a message that it took."""
    return Answer(body=json.dumps({"ok": True, "channel": "C0123456789", "ts": f"{number}"}).encode())


def no(error: str, **more: Any) -> Answer:
    """Slack's answer to one that it did not."""
    return Answer(body=json.dumps({"ok": False, "error": error, **more}).encode())


class Slack:
    """The listener, and the messages as the service received them; they are numbered from 1."""

    def __init__(self, post: Post, **options: Any) -> None:
        self.post = post
        self.service = post.service
        self.service.script.extend(ok(number) for number in range(1, 500))
        options = {"clock": post.clock, "source": "here", **options}
        self.listener = SlackListener(TOKEN, "#ops", api_url=f"{post.service.url}/api/", **options)

    def attach(self) -> Slack:
        self.post.bus.attach(self.listener)
        return self

    @property
    def calls(self) -> list[dict[str, Any]]:
        """The arguments of each call so far, and its method."""
        self.post.flush()
        return [
            {"method": request.path.removeprefix("/api/"), **json.loads(request.body)}
            for request in self.service.received
        ]

    @property
    def told(self) -> list[str]:
        """Each call in brief: ``>1`` a reply to message 1, ``>>1`` one that the channel sees too, ``=1`` its change."""
        return [brief(call) for call in self.calls]


def brief(call: dict[str, Any]) -> str:
    """One call: where it goes and its headline."""
    where = ""
    if call["method"] == "chat.update":
        where = f"={call['ts']} "
    elif "thread_ts" in call:
        where = f"{'>>' if call.get('reply_broadcast') else '>'}{call['thread_ts']} "
    return where + headline(call)


def headline(call: dict[str, Any]) -> str:
    text: str = call["blocks"][0]["text"]["text"]
    return text


def small(call: dict[str, Any]) -> str:
    """The small print."""
    return " | ".join(
        element["text"] for block in call["blocks"] if block["type"] == "context" for element in block["elements"]
    )


# -- outages --------------------------------------------------------------------------------------------------------


@both
def test_an_outage_is_a_thread(make: Make, post: Post) -> None:
    """Opening is a message; its end is a reply that the channel sees too, and the message then says that it is over."""
    told = Slack(post)
    circuit = make(retry=Cooldown(30), permit=permits.All(), tripper=Closed() & FailureStreak(1))
    circuit.bus.attach(told.listener)
    circuit.fail()
    circuit.clock.advance(45)
    circuit.succeed()
    assert circuit.bus.flush(PATIENCE)
    assert told.told == [OPEN, f">>1 {CLOSED}", f"=1 {WAS_OPEN}"]
    opening, reply, change = told.calls
    assert [call["channel"] for call in told.calls] == ["#ops", "C0123456789", "C0123456789"]
    assert "it lasted 45 s" in small(reply)
    assert small(change).startswith("it lasted 45 s · 1 of 1 calls failed")
    assert "tries in" not in small(change)
    assert opening["blocks"][1] == change["blocks"][1]


def test_the_opening_explains_itself(post: Post) -> None:
    """It says why, when it tries again, on which figures, since when it fails, with what, and what to do."""
    told = Slack(post, runbooks="https://runbooks.example/fluxgate").attach()
    cb = post.circuit(tripper=MinRequests(2) & FailureRate(0.5), retry=Cooldown(30))
    break_(cb)
    post.advance(5)
    break_(cb, "no route")
    (call,) = told.calls
    assert call["blocks"][1]["text"] == {
        "type": "plain_text",
        "text": "2 calls seen (2 needed) and failure rate 100.0 % (limit 50.0 %, 2 of 2 calls)",
        "emoji": False,
    }
    assert small(call) == (
        "tries in 30 s · 2 of 2 calls failed, 0 were slow · failing since 2023-11-14T22:13:20.000Z · "
        "last error ConnectionError: no route · from here | "
        "<https://runbooks.example/fluxgate/CircuitOpen.md|runbook>"
    )
    assert call["text"] == (
        "Circuit 'payments' is open: 2 calls seen (2 needed) and failure rate 100.0 % (limit 50.0 %, 2 of 2 calls)"
    )
    assert (call["unfurl_links"], call["link_names"], call["parse"]) == (False, False, "none")
    request = post.service.received[0]
    assert request.headers["authorization"] == f"Bearer {TOKEN}"
    assert request.headers["content-type"] == "application/json; charset=utf-8"
    assert request.headers["user-agent"].startswith("fluxgate/")


def test_the_trace_is_told(post: Post) -> None:
    """Where OpenTelemetry had a current span, the trace of the call that opened the circuit is in the small print."""
    trace = pytest.importorskip("opentelemetry.trace")
    context = trace.SpanContext(0x4BF92F3577B34DA6A3CE929D0E0E4736, 0xF067AA0BA902B7, False)
    told = Slack(post).attach()
    cb = post.circuit()
    with trace.use_span(trace.NonRecordingSpan(context)):
        break_(cb)
    assert "trace 4bf92f3577b34da6a3ce929d0e0e4736" in small(told.calls[0])


def test_failed_recoveries_are_replies_ever_more_rarely(post: Post) -> None:
    """The 1st, 2nd, 4th and 8th failed recovery is told in the thread, with its number; probing itself never."""
    told = Slack(post).attach()
    cb = post.circuit(tripper=FailureStreak(1), retry=Backoff(10, multiplier=1))
    break_(cb)
    for _ in range(10):
        post.advance(11)
        break_(cb)
    again = ":red_circle: *Circuit `payments` is open again, recovery failed {}*"
    assert told.told == [
        OPEN,
        *(f">1 {again.format(times)}" for times in ("once", "2 times", "4 times", "8 times")),
    ]
    cb.reset()
    assert told.told[5:] == [f">>1 {CLOSED}", f"=1 {WAS_OPEN}"]


def test_each_outage_has_a_thread_of_its_own(post: Post) -> None:
    """Circuits do not share threads, and the next outage of one begins another."""
    told = Slack(post).attach()
    pay, ship = post.circuit(), post.circuit("shipping")
    break_(pay)
    break_(ship)
    pay.reset()
    break_(pay)
    ship.reset()
    assert told.told == [
        OPEN,
        OPEN.replace("payments", "shipping"),
        f">>1 {CLOSED}",
        f"=1 {WAS_OPEN}",
        OPEN,
        f">>2 {CLOSED.replace('payments', 'shipping')}",
        f"=2 {WAS_OPEN.replace('payments', 'shipping')}",
    ]
    assert len(told.listener._threads._known) == 1


def test_an_end_that_was_not_heard_of_does_not_swallow_the_next_outage(post: Post) -> None:
    """Detached while the circuit recovers, it begins a new thread, with its mention, when the circuit opens again."""
    told = Slack(post, mention="<!here>")
    cb = post.circuit()
    with post.bus.attach(told.listener):
        break_(cb)
        post.flush()
    cb.reset()
    told.attach()
    break_(cb)
    assert told.told == [f"<!here> {OPEN}"] * 2


def test_forcing_open_is_told_in_the_thread_or_begins_one(post: Post) -> None:
    """What a person does during an outage is a reply; by itself it is a message, which nobody is called for."""
    told = Slack(post, mention="<!here>").attach()
    cb = post.circuit()
    forced = ":no_entry: *Circuit `payments` is forced open*"
    cb.force_open()
    cb.reset()
    break_(cb)
    cb.force_open()
    cb.disable()
    cb.reset()
    assert told.told == [
        forced,
        f">>1 {CLOSED}",
        "=1 :white_check_mark: *Circuit `payments` was forced open*",
        f"<!here> {OPEN}",
        f">4 {forced}",
        ">>4 :white_circle: *Circuit `payments` is disabled: every call passes*",
        f"=4 {WAS_OPEN}",
        CLOSED,
    ]


def test_only_openings_mention_somebody(post: Post) -> None:
    """Whoever is to be called is called once an outage, in the message and in what notifications show."""
    told = Slack(post, mention="<!subteam^S0123456789>  <@U0123456789>").attach()
    cb = post.circuit(tripper=FailureStreak(1))
    break_(cb)
    post.advance(61)
    break_(cb)
    cb.reset()
    calls = told.calls
    assert headline(calls[0]).startswith("<!subteam^S0123456789> <@U0123456789> :red_circle:")
    assert calls[0]["text"].startswith("<!subteam^S0123456789> <@U0123456789> Circuit 'payments' is open")
    assert len(calls) == 4
    assert not any("<" in json.dumps(call) for call in calls[1:])


def test_a_circuit_that_retires_open_ends_its_thread(post: Post) -> None:
    """Nobody will tell how it ended: the thread says that it has retired, and nothing of it is kept."""
    told = Slack(post).attach()
    cb, quiet = post.circuit(), post.circuit("quiet")
    break_(cb)
    post.bus.retire(cb._core)
    post.bus.retire(quiet._core)
    assert told.told == [
        OPEN,
        ">>1 :white_circle: *Circuit `payments` has retired*",
        f"=1 {WAS_OPEN}",
    ]
    assert not told.listener._threads._known


def test_shadow_mode_has_a_thread_too(post: Post) -> None:
    """That a circuit would have opened is a message, more of it a reply every ten minutes, with how many there were."""
    told = Slack(post).attach()
    cb = post.circuit()
    cb.metrics_only()
    for _ in range(5):
        break_(cb)
    post.advance(601)
    break_(cb)
    for _ in range(3):
        break_(cb)
    cb.reset()
    would = ":large_yellow_circle: *Circuit `payments` would have opened*"
    assert told.told == [
        ":white_circle: *Circuit `payments` only measures: every call passes*",
        would,
        f">2 {would}",
        f">2 {would}",
        CLOSED,
    ]
    assert small(told.calls[2]).startswith("4 more since the last message · ")
    assert small(told.calls[3]).startswith("3 more since the last message · ")
    assert not told.listener._threads._known
    assert not told.listener._floods._circuits


def test_what_follows_shadow_mode_is_told_whatever_becomes_of_its_rest(post: Post) -> None:
    """Where the last would-haves cannot be posted, the change of state and the retirement are told all the same."""
    told = Slack(post, retries=0).attach()
    cb = post.circuit()
    for end in (cb.force_open, lambda: post.bus.retire(cb._core)):
        cb.metrics_only()
        break_(cb)
        break_(cb)
        post.flush()
        post.service.script.appendleft(no("invalid_auth"))
        end()
        post.flush()
        assert not told.listener._floods._circuits
    assert [each.split("*")[1] for each in told.told] == [
        "Circuit `payments` only measures: every call passes",
        "Circuit `payments` would have opened",
        "Circuit `payments` would have opened",  # was refused
        "Circuit `payments` is forced open",
        "Circuit `payments` only measures: every call passes",
        "Circuit `payments` was forced open",
        "Circuit `payments` would have opened",
        "Circuit `payments` would have opened",  # was refused
    ]
    assert not told.listener._threads._known


def test_other_events_are_messages_of_their_own(post: Post) -> None:
    """What is asked for when attaching is told as a log line tells it."""
    told = Slack(post)
    lost = EventsDropped(circuit_name="payments", timestamp=0.0, sequence=1, state=State.OPEN, listener="x", count=7)
    told.listener(lost)
    assert told.told == [":information_source: *Circuit `payments`: events_dropped*"]
    assert told.calls[0]["blocks"][1]["text"]["text"] == "listener=x count=7 sequence=1"


def test_threads_are_bounded(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound the oldest is forgotten: its end is a message of its own."""
    monkeypatch.setattr(slackthreads, "_MOST", 2)
    told = Slack(post).attach()
    circuits = [post.circuit(name) for name in "abc"]
    for cb in circuits:
        break_(cb)
    circuits[0].reset()
    circuits[1].reset()
    assert [each.split(" ")[0] for each in told.told[3:]] == [":large_green_circle:", ">>2", "=2"]


# -- alerts ---------------------------------------------------------------------------------------------------------


def test_an_alert_is_a_thread(post: Post) -> None:
    """One that fires is a message; that it has resolved is a reply the channel sees, and a change of the message."""
    told = Slack(post, mention="<!here>")
    alerts = AlertListener(
        [CircuitOpen(), CircuitStuckOpen(60)],
        sink=told.listener,
        runbooks="https://runbooks.example/",
        clock=post.clock,
    )
    assert alerts.delivery == "background"
    post.alert(alerts)
    cb = post.circuit()
    break_(cb)
    post.advance(61)
    alerts.tick()
    cb.reset()
    assert told.told == [
        ":warning: *`CircuitOpen` (warning)*",
        "<!here> :rotating_light: *`CircuitStuckOpen` (critical)*",
        ">>1 :white_check_mark: *`CircuitOpen` is resolved*",
        "=1 :white_check_mark: *`CircuitOpen` (warning)*",
        ">>2 :white_check_mark: *`CircuitStuckOpen` is resolved*",
        "=2 :white_check_mark: *`CircuitStuckOpen` (critical)*",
    ]
    first, *_ = told.calls
    assert first["blocks"][1]["text"]["text"] == "circuit 'payments' is open: 1 failure in a row (limit 1)"
    assert small(first).endswith("from here | <https://runbooks.example/CircuitOpen.md|runbook>")
    assert "circuit 'payments' is closed: reset by hand; it lasted 61 s" in json.dumps(told.calls[2])


def test_alerts_about_different_things_do_not_share_a_thread(post: Post) -> None:
    """The fingerprint says which alert resolves which; one that was never seen to fire is a message of its own."""
    told = Slack(post)
    told.listener(an_alert(fingerprint="a"))
    told.listener(an_alert(fingerprint="b"))
    told.listener(an_alert(fingerprint="a", status="resolved"))
    told.listener(an_alert(fingerprint="c", status="resolved", metrics=None, failing_since=None, last_error=None))
    told.listener(an_alert(fingerprint="b"))
    told.listener(an_alert(fingerprint="b", since=1_700_000_900.0))
    assert [each.split(" ")[0] for each in told.told] == [
        ":rotating_light:",
        ":rotating_light:",
        ">>1",
        "=1",
        ":white_check_mark:",
        ">2",
        ":rotating_light:",
    ]


# -- texts ----------------------------------------------------------------------------------------------------------


NASTY = [
    "<!channel> <@U0123456789> <https://evil.example|click>",
    "@here @channel @everyone #general",
    "*bold* _italic_ ~gone~ `code` ```block```",
    "a\nb\r\x1b[31m\u202e\x00",
    ":tada: & &amp; &lt;",
    "\ud800 half",
    "x" * 5000,
    "&" * 5000,
    "\U000e0001" * 5000,
    "`" * 5000,
]


@pytest.mark.parametrize("nasty", NASTY, ids=range(len(NASTY)))
def test_no_text_can_do_harm(nasty: str, post: Post) -> None:
    """Names, errors, sentences and hosts neither mention, link nor format, and no block is longer than Slack takes."""
    told = Slack(post, source=nasty).attach()
    cb = post.circuit(nasty)
    break_(cb, nasty)
    cb.reset()
    told.listener(an_alert(summary=nasty, runbook=f"https://x.example/{nasty}", circuit_name=nasty))
    calls = told.calls
    assert len(calls) == 4
    for call in calls:
        assert not re.search(r"[<>\n\r\x00\x1b\u202e]", call["text"])
        assert not re.search(r"&(?!amp;|lt;|gt;)", call["text"])
        assert len(call["text"]) <= 4000
        for block in call["blocks"]:
            for element in block.get("elements", [block.get("text")]):
                text = element["text"]
                assert 0 < len(text) <= 3000
                assert not re.search(r"[<>\n\r\x00\x1b\u202e]", text)
                assert not re.search(r"&(?!amp;|lt;|gt;)", text)
                if element["type"] == "plain_text":
                    assert element["emoji"] is False
                else:
                    assert element["verbatim"] is True
                    assert re.fullmatch(r":\w+: \*[^`*]*`[^`]+`[^`*]*\*", text), "all that is not ours is code"


def test_a_runbook_that_is_no_link_is_text(post: Post) -> None:
    """The default is a page of the distribution, and a strange address is shown, not linked."""
    told = Slack(post)
    for runbook in ("dashboards/runbooks/CircuitOpen.md", "javascript:alert(1)", "https://x.example/a|b>"):
        told.listener(an_alert(runbook=runbook))
    kinds = [call["blocks"][-1]["elements"][-1]["type"] for call in told.calls]
    assert kinds == ["plain_text"] * 3


# -- trouble --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", ["ratelimited", "internal_error", "service_unavailable"])
def test_what_slack_cannot_do_now_is_tried_again(error: str, post: Post) -> None:
    """Slack says so in an answer with status 200."""
    post.service.script.append(no(error))
    told = Slack(post)
    told.listener(an_alert())
    assert len(post.service.received) == 2
    assert post.waits == [0.5]


def test_rate_limits_are_respected(post: Post) -> None:
    """A 429 with Retry-After is waited out, and messages stay in order."""
    post.service.script.append(Answer(429, b'{"ok":false,"error":"ratelimited"}', {"Retry-After": "12"}))
    told = Slack(post).attach()
    cb = post.circuit()
    break_(cb)
    cb.reset()
    assert told.told == [OPEN, OPEN, f">>1 {CLOSED}", f"=1 {WAS_OPEN}"]
    assert post.waits == [12.0]
    assert post.errors == []


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (no("invalid_auth"), "Slack refused it: invalid_auth"),
        (no("channel_not_found"), "Slack refused it: channel_not_found"),
        (no("missing_scope", needed="chat:write"), r"Slack refused it: missing_scope \(needed: chat:write\)"),
        (no(f"bad token {TOKEN}"), "Slack refused it: it does not say why"),
        (Answer(404), "it answered 404 Not Found"),
        (Answer(302, headers={"Location": "/elsewhere"}), "redirects are not followed"),
    ],
)
def test_what_slack_refuses_is_not_repeated(answer: Answer, why: str, post: Post, logged: Everything) -> None:
    """One try, one clear error, which is logged once and published."""
    post.service.script.append(answer)
    told = Slack(post).attach()
    post.circuit().force_open()
    assert len(told.calls) == 1
    (error,) = post.errors
    assert re.fullmatch(rf"not delivered to {post.service.url}: .*{why} \(1 try in 0 s\)", error)
    assert len(logged.of("fluxgate")) == 1
    assert not [line for line in logged.lines if SECRETS.search(line)]


def test_the_error_carries_slacks_word(post: Post) -> None:
    """A program can tell one refusal from another."""
    post.service.script.append(no("not_in_channel"))
    with pytest.raises(DeliveryError) as caught:
        Slack(post).listener(an_alert())
    assert caught.value.code == "not_in_channel"


@pytest.mark.parametrize(
    "body", [b"<html>", b"[]", b"", b'"ok"', b"[" * 60_000, b'{"ok": "yes"}', b"\xff"], ids=range(7)
)
def test_garbage_is_not_taken_for_success(body: bytes, post: Post) -> None:
    """An answer with status 200 that is not Slack's is a failure."""
    post.service.script.extend([Answer(body=body)] * 4)
    with pytest.raises(DeliveryError):
        Slack(post).listener(an_alert())


def test_an_answer_without_a_number_begins_no_thread(post: Post) -> None:
    """The message is there, but nobody can reply to it."""
    post.service.script.append(Answer(body=b'{"ok": true}'))
    told = Slack(post).attach()
    cb = post.circuit()
    break_(cb)
    cb.reset()
    assert told.told == [OPEN, CLOSED]


def test_without_its_message_a_reply_is_a_message(post: Post) -> None:
    """Where the opening could not be posted, what comes next begins the thread, and the loss has been told."""
    post.service.script.append(no("invalid_auth"))
    told = Slack(post).attach()
    cb = post.circuit(tripper=FailureStreak(1))
    break_(cb)
    for _ in range(3):
        post.advance(61)
        break_(cb)
    again = ":red_circle: *Circuit `payments` is open again, recovery failed {}*"
    assert told.told == [OPEN, again.format("once"), f">1 {again.format('2 times')}"]
    assert len(post.errors) == 1


@pytest.mark.parametrize("error", ["thread_not_found", "message_not_found"])
def test_a_message_that_somebody_has_deleted(error: str, post: Post) -> None:
    """A reply to it becomes a message; that it cannot be changed any more is no failure."""
    told = Slack(post).attach()
    cb = post.circuit()
    break_(cb)
    post.flush()
    post.service.script.appendleft(no(error))
    cb.reset()
    assert told.told == [OPEN, f">>1 {CLOSED}", CLOSED]
    break_(cb)
    post.flush()
    post.service.script.insert(1, no(error))
    cb.reset()
    assert told.told[3:] == [OPEN, f">>3 {CLOSED}", f"=3 {WAS_OPEN}"]
    assert post.errors == []


def test_a_reply_that_is_refused_is_lost_and_told(post: Post) -> None:
    """It does not become a message, which would be refused as well; nor is a refused change passed over."""
    told = Slack(post).attach()
    cb = post.circuit()
    break_(cb)
    post.flush()
    post.service.script.appendleft(no("invalid_auth"))
    cb.reset()
    assert told.told == [OPEN, f">>1 {CLOSED}"]
    break_(cb)
    post.flush()
    post.service.script.insert(1, no("missing_scope"))
    cb.reset()
    assert told.told[2:] == [OPEN, f">>2 {CLOSED}", f"=2 {WAS_OPEN}"]
    assert [error.split(": ")[2].split(" ")[0] for error in post.errors] == ["invalid_auth", "missing_scope"]


@both
def test_callers_never_wait(make: Make, post: Post) -> None:
    """While Slack holds a request, calls, refusals and changes of state go on."""
    asked, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        asked.set()
        assert arrives(go_on)

    post.service.script.append(Answer(body=ok(1).body, during=hold))
    told = Slack(post, timeout=PATIENCE)
    circuit = make(retry=Cooldown(60), tripper=Closed() & FailureStreak(1))
    circuit.bus.attach(told.listener)

    def work() -> None:
        circuit.fail()
        assert arrives(asked)
        circuit.refused()
        circuit.steer("reset")
        circuit.succeed()

    try:
        assert Running(work).done(), "a caller waits for Slack"
        assert len(post.service.received) == 1
    finally:
        go_on.set()
    assert circuit.bus.flush(PATIENCE)
    assert told.told == [OPEN, f">>1 {CLOSED}", f"=1 {WAS_OPEN}"]


def test_what_is_lost_is_counted(post: Post) -> None:
    """While Slack is down each message that goes is published as a failure, and the next outage is told as ever."""
    post.service.script.extend([Answer(503)] * 4)
    told = Slack(post).attach()
    cb = post.circuit()
    for _ in range(3):
        break_(cb)
        cb.reset()
    post.flush()
    assert [event.count for event in post.news.of(ListenerFailed)] == [1, 2, 3, 4, 5, 6]
    assert len(post.service.received) == 4
    post.advance(2)
    break_(cb)
    assert told.told[4:] == [OPEN]


def test_the_program_ends_in_time_whatever_slack_does(service: Service) -> None:
    """A Slack that says nothing does not hold up the interpreter's end."""
    service.default = Answer(hang=True)
    script(
        dedent("""
        import sys, fluxgate
        from fluxgate.listeners.slack import SlackListener
        fluxgate.attach(SlackListener("xoxb-1", "C1", api_url=sys.argv[1], timeout=60))
        fluxgate.CircuitBreaker("payments").force_open()
        """),
        service.url,
    )
    assert len(service.received) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_begins_threads_of_its_own(service: Service) -> None:
    """The parent's threads stay the parent's."""
    service.script.extend(ok(number) for number in range(1, 100))
    script(
        dedent("""
        import os, signal, sys, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        import fluxgate
        from fluxgate.listeners.slack import SlackListener
        slack = SlackListener("xoxb-1", "C1", api_url=sys.argv[1])
        fluxgate.attach(slack)
        cb = fluxgate.CircuitBreaker("payments")
        cb.force_open()
        assert fluxgate.flush()
        pid = os.fork()
        if pid == 0:
            signal.alarm(10)
            cb.reset()
            os._exit(0 if fluxgate.flush(8) else 1)
        _, status = os.waitpid(pid, 0)
        assert status == 0, status
        cb.reset()
        """),
        service.url,
    )
    calls = [{"method": each.path.removeprefix("/"), **json.loads(each.body)} for each in service.received]
    assert [brief(call).replace("is forced open", "is open") for call in calls] == [
        OPEN.replace("red_circle", "no_entry"),
        CLOSED,
        f">>1 {CLOSED}",
        "=1 :white_check_mark: *Circuit `payments` was forced open*",
    ]


# -- secrets and arguments ------------------------------------------------------------------------------------------


TROUBLE: dict[str, Callable[[Service], str]] = {
    "none": lambda service: service.url,
    "down": lambda service: refused_url(),
    "no TLS": lambda service: service.url.replace("http:", "https:"),
}


@pytest.mark.parametrize("where", TROUBLE.values(), ids=TROUBLE)
@pytest.mark.parametrize("answer", [ok(1), no("invalid_auth"), Answer(500), Answer(raw=b"?")], ids=range(4))
def test_no_token_is_ever_shown(
    where: Callable[[Service], str], answer: Answer, post: Post, logged: Everything
) -> None:
    """Whatever happens, no log at any level, event, repr or error shows it."""
    post.service.default = answer
    listener = SlackListener(TOKEN, "C1", api_url=where(post.service) + "/S3CR3T/", retries=1, clock=post.clock)
    post.bus.attach(listener)
    post.circuit().force_open()
    post.flush()
    shown = [*logged.lines, *map(repr, post.news.events_seen), repr(listener), repr(vars(listener)["_methods"])]
    assert any("httpcore" in line for line in logged.lines), "the library's own logs are looked at"
    assert not [line for line in shown if SECRETS.search(line)]
    assert logging.getLogger("httpx").filters == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"token": 7}, "token must be that of a Slack bot.* got something of type int"),
        ({"token": ""}, "token must be .* got an empty str"),
        ({"token": "xoxb-T0K3N\n"}, "got a str with spaces"),
        ({"token": "xoxb T0K3N"}, "got a str with spaces"),
        ({"token": "xoxb-T0K3N\u00e9"}, "got a str with spaces, or characters that no token has"),
        ({"channel": None}, "channel must be the id or the name of a channel, got None"),
        ({"channel": "xoxb-T0K3N"}, "got something that begins like a token or an address"),
        ({"channel": "https://hooks.slack.com/services/T0K3N"}, "begins like a token or an address"),
        ({"mention": "@here"}, "mention must be Slack's markup.* got '@here'"),
        ({"mention": "<!here> now"}, "mention must be Slack's markup"),
        ({"mention": 7}, "mention must be .* got something of type int"),
        ({"runbooks": ""}, "runbooks must not be empty"),
        ({"api_url": "slack.com/S3CR3T"}, "api_url must be an absolute URL.* got one with no scheme"),
        ({"timeout": float("nan")}, "timeout must be a finite number"),
        ({"retries": 1.5}, "retries must be a whole number"),
        ({"source": ""}, "source must not be empty"),
        ({"clock": 7}, "clock must be an object with"),
    ],
)
def test_wrong_arguments_are_refused_without_quoting_secrets(options: dict[str, Any], text: str) -> None:
    """Each argument is checked, and the error says what is wanted and what kind of thing it got."""
    with pytest.raises((TypeError, ValueError), match=f"(?s){text}") as caught:
        SlackListener(**{"token": TOKEN, "channel": "C1", **options})
    assert not SECRETS.search(f"{caught.value!r} {caught.value.__context__!r}")


@pytest.mark.parametrize("end", ["", "/", "?team=1", "/?team=1#top"])
def test_methods_are_below_the_address(end: str, post: Post) -> None:
    """However the address ends."""
    post.service.script.append(ok(1))
    SlackListener(TOKEN, "C1", api_url=f"{post.service.url}/api{end}", retries=0)(an_alert())
    assert [request.path for request in post.service.received] == ["/api/chat.postMessage"]


def test_it_is_published() -> None:
    """It is found by its name, asks for changes of state, and observe leaves it alone, since it needs a token."""
    assert load("slack") is SlackListener
    assert not hasattr(SlackListener, "automatic")
    kinds: tuple[type[Event], ...] = SlackListener.events
    assert set(kinds) == {StateChanged, WouldOpen, CircuitRetired}


def test_the_examples_are_true() -> None:
    """Each example in the docstrings gives what it says."""
    result = doctest.testmod(slack)
    assert (result.failed, result.attempted > 3) == (0, True)
