"""Outages and alerts as threads in a Slack channel."""

import json
import re
from collections.abc import Callable
from typing import Any

from fluxgate import _check
from fluxgate._clock import Clock, as_clock
from fluxgate._subscription import Delivery
from fluxgate._text import seconds_in_words
from fluxgate.events import CircuitRetired, Event, StateChanged, WouldOpen
from fluxgate.metric import Metric
from fluxgate.state import State, Trigger

from ._address import Address, is_plain, text
from ._alert import Alert
from ._document import as_source, to_json
from ._eventlog import Floods
from ._http import Answer, Courier, DeliveryError, Message, Problem, user_agent
from ._library import HTTPX, NeedsLibrary
from ._render import Logfmt, fields, iso
from ._slacktext import OVER, Card
from ._slackthreads import Thread, Threads
from .names import CIRCUIT_OPEN, RUNBOOKS, log_name

__all__ = ["DeliveryError", "SlackListener"]

_API = "https://slack.com/api/"
_MENTION = re.compile(r"<(@[UW][A-Z0-9]+|!subteam\^S[A-Z0-9]+|!here|!channel|!everyone)>")
_BUSY = frozenset(
    ("ratelimited", "rate_limited", "internal_error", "fatal_error", "service_unavailable", "request_timeout")
)
_GONE = frozenset(
    (
        *("message_not_found", "thread_not_found", "cannot_reply_to_message"),
        *("cant_update_message", "edit_window_closed", "update_failed"),
    )
)
_REFUSING = (State.OPEN, State.FORCED_OPEN)
_OUT = (*_REFUSING, State.HALF_OPEN)
_STATES = {
    State.CLOSED: ("large_green_circle", "is closed"),
    State.DISABLED: ("white_circle", "is disabled: every call passes"),
    State.METRICS_ONLY: ("white_circle", "only measures: every call passes"),
}
_AGAIN_AFTER = 600.0  # seconds between two messages that one circuit would have opened
_MARKS = {"critical": "rotating_light", "warning": "warning", "info": "information_source"}


class SlackListener(NeedsLibrary):
    """Posts outages, and alerts, to a Slack channel: one thread each.

    Attached to circuits it tells of their outages. The opening is a message in the channel, which mentions whom you
    name; failed recoveries (the 1st, 2nd, 4th, 8th and so on) and forcing open are replies in its thread. When it is
    over a reply says so, which is shown in the channel too, and the first message is changed to say how long it
    lasted. Probing is not told of. A change that belongs to no outage, and a circuit in shadow mode that would have
    opened, are messages of their own; more of the latter are replies, one in ten minutes.

    As the sink of `fluxgate.listeners.alerts.AlertListener` it tells of alerts: a message when one fires, which
    mentions whom you name if it is critical, and the same kind of end when it resolves. That listeners fail or lose
    events is told this way (`ListenerFailing`, `EventsLost`).

    A reply whose first message could not be posted, or is no longer there, becomes a message of its own. Which thread
    is whose is kept in memory alone: after a restart, and in a forked child, what comes next begins a new thread.

    Delivery is that of `fluxgate.listeners.webhook.WebhookListener`: in the background, in order, with bounded
    repetition; rate limits are respected. What Slack refuses (``invalid_auth``, ``channel_not_found``) is not
    repeated. Slack knows no way to tell a repetition, so a message whose answer was lost may appear twice. No token is
    in any log, error or ``repr``. Texts are escaped and cut; none of them can mention anybody.

    The bot needs the scope ``chat:write``, and must be in the channel. Incoming webhooks are not supported: they
    cannot reply in threads.

    Args:
        token: The bot's, ``xoxb-...``.
        channel: Its id (``C0123456789``) or name.
        mention: Whom openings and critical alerts mention, in Slack's form: ``<!subteam^S0123456789>`` (a group),
            ``<@U0123456789>`` (a person), ``<!here>``, ``<!channel>``; several with spaces between them.
        runbooks: What comes before a runbook's page, usually a URL, in messages about outages. Alerts bring their own.
        api_url: Where Slack's methods are.
        timeout: Seconds to connect, to send and to wait for each part of the answer.
        retries: How often a try that failed is repeated; 0 for never.
        source: Who posts this; the host's name, which in a container is that of its pod.
        clock: Has ``monotonic()`` and ``time()``; the `time` module.

    Raises:
        MissingExtraError: httpx is not installed.
        TypeError, ValueError: An argument is not what it must be; the text does not quote what may be a secret.

    >>> from fluxgate import Bus
    >>> slack = SlackListener("xoxb-not-a-real-token", "C0123456789", mention="<!subteam^S0123456789>")
    >>> slack
    SlackListener('C0123456789')
    >>> Bus().attach(slack)
    <Subscription of SlackListener (open)>
    """

    events = (StateChanged, WouldOpen, CircuitRetired)
    delivery: Delivery = "background"
    library = HTTPX

    def __init__(
        self,
        token: str,
        channel: str,
        *,
        mention: str | None = None,
        runbooks: str = RUNBOOKS,
        api_url: str = _API,
        timeout: float = 5.0,
        retries: int = 3,
        source: str | None = None,
        clock: Clock | None = None,
    ) -> None:
        author = type(self).__name__
        wanted = "token must be that of a Slack bot, xoxb-... (it is not shown)"
        if not is_plain(text(token, wanted)) or " " in token:
            raise ValueError(f"{wanted}, got a str with spaces, or characters that no token has")
        self._token = token
        self._channel = _as_channel(channel)
        self._mention = "" if mention is None else _as_mention(mention)
        self._runbook = _check.name(runbooks, "runbooks").rstrip("/") + "/" + CIRCUIT_OPEN.runbook
        address = Address(api_url, "api_url", author)
        self._methods = {name: address.joined(name) for name in ("chat.postMessage", "chat.update")}
        self._source = as_source(source)
        self._courier = Courier(author, address, timeout=timeout, retries=retries, clock=as_clock(clock))
        self._floods = Floods(_AGAIN_AFTER)
        self._threads = Threads()

    @property
    def destination(self) -> "SlackListener":
        """Attached twice to one circuit, it hears each event once."""
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._channel!r})"

    def __call__(self, record: Event | Alert) -> None:
        """Post what is to be told of it, in the calling thread.

        Raises:
            DeliveryError: it could not be posted.
        """
        if isinstance(record, StateChanged):
            self._changed(record)
        elif isinstance(record, WouldOpen):
            held = self._floods.hold(record, WouldOpen)
            if held is not None:
                self._would_open(record, held)
        elif isinstance(record, Alert):
            self._alert(record)
        elif isinstance(record, CircuitRetired):
            self._retired(record)
        else:
            told = str(Logfmt({key: value for key, value in fields(record).items() if key != "circuit_name"}))
            headline = f"Circuit {{}}: {log_name(record)}"
            self._post(Card("information_source", headline, record.circuit_name, told, self._from()))

    def close(self) -> None:
        """End what waits for another try, and the connections; the bus calls it when the listener is detached."""
        self._courier.close()

    # -- what is told ---------------------------------------------------------------------------------------------

    def _changed(self, event: StateChanged) -> None:
        try:
            if event.old_state is State.METRICS_ONLY:
                self._end_shadow(event)
        finally:
            self._moved(event)

    def _moved(self, event: StateChanged) -> None:
        name, state = event.circuit_name, event.new_state
        if state is State.HALF_OPEN:
            return
        key = ("outage", name)
        if state not in _REFUSING:
            mark, words = _STATES[state]
            card = Card(mark, f"Circuit {{}} {words}", name, event.reason, self._from())
            self._end(key, card, event.timestamp)
            return
        if event.old_state not in _OUT:
            self._threads.pop(key)  # of an outage whose end was not heard of
        if state is State.FORCED_OPEN:
            card = Card("no_entry", "Circuit {} is forced open", name, event.reason, self._from(), self._runbook)
            self._tell(key, card, event.timestamp)
            return
        count = event.reopens
        if count & (count - 1) and self._threads.get(key) is not None:
            return  # it says how often when it is told the next time
        again = f" again, recovery failed {'once' if count == 1 else f'{count} times'}" if count else ""
        waits = "it does not try again by itself" if event.wait is None else f"tries in {seconds_in_words(event.wait)}"
        details = (*_figures(event.metrics, event), *self._from())
        card = Card("red_circle", f"Circuit {{}} is open{again}", name, event.reason, details, self._runbook, waits)
        self._tell(key, card, event.timestamp, self._mention if event.trigger is not Trigger.MANUAL else "")

    def _would_open(self, event: WouldOpen, held: int) -> None:
        more = (f"{held} more since the last message",) if held else ()
        details = (*more, *_figures(event.metrics, event), *self._from())
        card = Card("large_yellow_circle", "Circuit {} would have opened", event.circuit_name, event.reason, details)
        self._tell(("shadow", event.circuit_name), card, event.timestamp)

    def _end_shadow(self, event: Event) -> None:
        key = ("shadow", event.circuit_name)
        try:
            for last, held in self._floods.release(event.circuit_name, event.timestamp, forget=True):
                if isinstance(last, WouldOpen):
                    self._would_open(last, held)
        finally:
            self._threads.pop(key)

    def _retired(self, event: CircuitRetired) -> None:
        key = ("outage", event.circuit_name)
        try:
            self._end_shadow(event)
        finally:
            if self._threads.get(key) is not None:
                card = Card("white_circle", "Circuit {} has retired", event.circuit_name, "", self._from())
                self._end(key, card, None)

    def _alert(self, alert: Alert) -> None:
        key = ("alert", alert.fingerprint)
        if alert.status == "resolved":
            card = Card(OVER, "{} is resolved", alert.alert, alert.summary, self._from())
            self._end(key, card, alert.timestamp)
            return
        thread = self._threads.get(key)
        if thread is not None and thread.since != alert.since:
            self._threads.pop(key)  # of a time whose end was not heard of
        details = (f"since {iso(alert.since)}", *_figures(alert.metrics, alert), *self._from())
        card = Card(_MARKS[alert.severity], f"{{}} ({alert.severity})", alert.alert, alert.summary, details)
        card = card._replace(runbook=alert.runbook)
        self._tell(key, card, alert.since, self._mention if alert.severity == "critical" else "")

    def _from(self) -> tuple[str, ...]:
        return (f"from {self._source}",)

    # -- threads --------------------------------------------------------------------------------------------------

    def _tell(self, key: tuple[str, str], card: Card, since: float, mention: str = "") -> None:
        """A reply in the thread; where there is none, a message that begins it."""
        thread = self._threads.get(key)
        if thread is None or not self._reply(thread, card):
            channel, number = self._post(card, mention)
            if number:
                self._threads.put(key, Thread(channel, number, card, since))

    def _end(self, key: tuple[str, str], card: Card, now: float | None) -> None:
        """Say in the channel that it is over, and change the first message to say so; forget the thread."""
        thread = self._threads.pop(key)
        if thread is None:
            self._post(card)
            return
        lasted = None if now is None else f"it lasted {seconds_in_words(max(now - thread.since, 0.0))}"
        if lasted and key[0] == "outage":  # an alert's sentence says so itself
            card = card._replace(details=(lasted, *card.details))
        if not self._reply(thread, card, in_channel=True):
            self._post(card)
            return
        over = thread.card.over(lasted or "over")
        arguments = {"channel": thread.channel, "ts": thread.number, **over.update()}
        self._unless_gone(lambda: self._call("chat.update", arguments))

    def _reply(self, thread: Thread, card: Card, *, in_channel: bool = False) -> bool:
        """Whether the thread is still there."""
        arguments = {"channel": thread.channel, "thread_ts": thread.number, **card.payload()}
        if in_channel:
            arguments["reply_broadcast"] = True
        return self._unless_gone(lambda: self._call("chat.postMessage", arguments))

    def _post(self, card: Card, mention: str = "") -> tuple[str, str]:
        """A message in the channel; the channel's id and the message's own."""
        answer = self._call("chat.postMessage", {"channel": self._channel, **card.payload(mention)})
        return str(answer.get("channel", self._channel)), str(answer.get("ts", ""))

    def _unless_gone(self, call: Callable[[], object]) -> bool:
        try:
            call()
        except DeliveryError as error:
            if error.code not in _GONE:
                raise
            return False
        return True

    def _call(self, method: str, arguments: dict[str, Any]) -> dict[str, Any]:
        message = Message(self._methods[method], to_json(arguments), self._headers, _judge)
        answer: dict[str, Any] = json.loads(self._courier.deliver(message).body)
        return answer

    def _headers(self) -> dict[str, str]:
        return {
            "Authorization": f"Bearer {self._token}",
            "Content-Type": "application/json; charset=utf-8",
            "User-Agent": user_agent(),
        }


def _figures(metrics: Metric | None, record: StateChanged | WouldOpen | Alert) -> tuple[str, ...]:
    """What is known beyond the sentence."""
    told: list[str] = []
    if metrics is not None and metrics.total_count:
        told.append(f"{metrics.failure_count} of {metrics.total_count} calls failed, {metrics.slow_count} were slow")
    if record.failing_since is not None:
        told.append(f"failing since {iso(record.failing_since)}")
    if record.last_error is not None:
        told.append(f"last error {record.last_error}")
    if record.trace_id:
        told.append(f"trace {record.trace_id}")
    return tuple(told)


def _judge(answer: Answer) -> Problem | None:
    """Slack answers 200 to what it refuses as well.

    https://docs.slack.dev/apis/web-api/#responses
    """
    problem = answer.problem()
    if problem is not None:
        return problem
    try:
        reply: Any = json.loads(answer.body)
    except ValueError:
        reply = None
    if not isinstance(reply, dict):
        return Problem("what it answered is not Slack's", again=True)
    told: dict[str, Any] = reply  # pyright: ignore[reportUnknownVariableType]
    if told.get("ok") is True:
        return None
    code = _word(told.get("error"), r"[a-z_]{1,60}")
    needed = _word(told.get("needed"), r"[a-z:., ]{1,60}")
    why = f"Slack refused it: {code or 'it does not say why'}{f' (needed: {needed})' if needed else ''}"
    return Problem(why, code in _BUSY, answer.wait, code)


def _word(value: Any, form: str) -> str | None:
    return value if isinstance(value, str) and re.fullmatch(form, value) else None


def _as_channel(value: Any) -> str:
    wanted = "channel must be the id or the name of a channel"
    channel = text(value, wanted)
    if channel.startswith(("xox", "xapp-", "xwfp-", "http://", "https://")):
        raise ValueError(f"{wanted}, got something that begins like a token or an address")
    return channel


def _as_mention(value: Any) -> str:
    wanted = "mention must be Slack's markup, such as '<!subteam^S0123456789>', '<@U0123456789>' or '<!here>'"
    mention = text(value, wanted)
    if not all(map(_MENTION.fullmatch, mention.split())):
        raise ValueError(f"{wanted}, got {_check.got(value)}")
    return " ".join(mention.split())
