"""LogListener: what happens to circuits, as log lines that people read and programs parse."""

from __future__ import annotations

import asyncio
import doctest
import itertools
import json
import logging
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import fluxgate
from fluxgate import (
    AsyncCircuitBreaker,
    Bus,
    CallNotPermittedError,
    CircuitBreaker,
    Closed,
    Cooldown,
    CountWindow,
    FailureRate,
    FailureStreak,
    MinRequests,
    Never,
    State,
    TypeOf,
    permits,
)
from fluxgate.events import (
    EVENT_TYPES,
    CallEnded,
    CallFailed,
    CallRejected,
    CallStarted,
    CallSucceeded,
    Event,
    EventsDropped,
    FallbackUsed,
    ListenerFailed,
    StateChanged,
)
from fluxgate.listeners import _eventlog as eventlog
from fluxgate.listeners import _render as render
from fluxgate.listeners import load, log, names
from fluxgate.listeners.log import LogListener
from fluxgate.testing import VirtualClock

CALLS = {CallStarted, *(kind for kind in EVENT_TYPES if issubclass(kind, CallEnded)), CallRejected, FallbackUsed}


class Lines(logging.Handler):
    """Keeps the records that reach it."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[Any] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def texts(self) -> list[str]:
        """The messages."""
        return [record.getMessage() for record in self.records]

    def called(self, *wanted: str) -> list[Any]:
        """The records with these event names."""
        return [record for record in self.records if record.event in wanted]


_numbers = itertools.count()


class Shop:
    """A logger of its own, a listener on it, and circuits that it hears on a bus and a clock of their own."""

    def __init__(self, level: int = logging.INFO, **options: Any) -> None:
        self.lines = Lines()
        self.logger = logging.getLogger(f"shop-{next(_numbers)}")
        self.logger.setLevel(level)
        self.logger.propagate = False
        self.logger.addHandler(self.lines)
        self.listener = LogListener(self.logger, **options)
        self.bus = Bus()
        self.clock = VirtualClock()
        self.subscription = self.bus.attach(self.listener)

    def circuit(self, name: str = "payments", **rules: Any) -> CircuitBreaker:
        """A circuit that one failure opens for a minute, and that one success closes."""
        rules = {
            "tripper": Closed() & FailureStreak(1),
            "retry": Cooldown(60),
            "permit": permits.All(),
            "bus": self.bus,
            "clock": self.clock,
            **rules,
        }
        return CircuitBreaker(name, **rules)


def fail(text: str = "no route") -> None:
    raise ConnectionError(text)


def try_to(call: Callable[..., object], *args: Any) -> None:
    """Whatever comes of it."""
    try:
        call(*args)
    except (ConnectionError, CallNotPermittedError, KeyError):
        pass


PAIR = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|[^\s"=\\]+)(?: |$)')


def parse(text: str) -> dict[str, str]:
    """A strict reader of ``name key=value key="quoted value"``."""
    name, _, rest = text.partition(" ")
    pairs: dict[str, str] = {"event": name}
    position = 0
    while position < len(rest):
        match = PAIR.match(rest, position)
        assert match, f"cannot read on at {rest[position:]!r}"
        key, value = match.groups()
        assert key not in pairs, f"{key} twice in {text!r}"
        pairs[key] = re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value
        position = match.end()
    return pairs


# -- what is written ----------------------------------------------------------------------------------------------


def test_opening_explains_itself_in_one_line() -> None:
    """The line says which rule fired with which figures, when it tries again, since when it fails and with what."""
    shop = Shop()
    cb = shop.circuit(window=CountWindow(100), tripper=MinRequests(100) & FailureRate(0.5), retry=Cooldown(30))
    for number in range(100):
        shop.clock.advance(0.25)
        with cb.acquire() as call:
            if number >= 38:
                call.failure(ConnectionError("no route to host"))
            shop.clock.advance(0.25)

    (record,) = shop.lines.records
    assert (record.levelname, record.name) == ("WARNING", shop.logger.name)
    assert record.getMessage() == (
        "circuit_opened circuit_name=payments old_state=closed new_state=open trigger=tripper "
        'reason="100 calls seen (100 needed) and failure rate 62.0 % (limit 50.0 %, 62 of 100 calls)" '
        "failure_rate=0.62 slow_rate=0.0 total_count=100 failure_count=62 avg_duration=0.095 "
        "retry_after=30.0 reopens=0 failing_since=2023-11-14T22:13:39.250Z "
        'last_error="ConnectionError: no route to host" generation=2 sequence=2'
    )


def test_a_circuits_life_is_told_step_by_step() -> None:
    """Opening is a warning, half-opening and closing are information, and each has its own name."""
    shop = Shop()
    cb = shop.circuit(tripper=FailureStreak(1))
    for outcome in (fail, fail, str):
        try_to(cb.call, outcome)
        shop.clock.advance(60)

    assert [(record.levelname, record.event, record.reopens) for record in shop.lines.records] == [
        ("WARNING", "circuit_opened", 0),
        ("INFO", "circuit_half_opened", 0),
        ("WARNING", "circuit_opened", 1),
        ("INFO", "circuit_half_opened", 1),
        ("INFO", "circuit_closed", 0),
    ]


@pytest.mark.parametrize(
    ("control", "line"),
    [
        (CircuitBreaker.force_open, ("WARNING", "circuit_forced_open")),
        (CircuitBreaker.disable, ("INFO", "circuit_disabled")),
        (CircuitBreaker.metrics_only, ("INFO", "circuit_metrics_only")),
    ],
)
def test_manual_controls_are_told(control: Callable[[CircuitBreaker], None], line: tuple[str, str]) -> None:
    """Each control has a line of its own, and so has the way back."""
    shop = Shop()
    cb = shop.circuit()
    control(cb)
    cb.reset()
    forward, back = shop.lines.records
    assert (forward.levelname, forward.event) == line
    assert (back.levelname, back.event) == ("INFO", "circuit_closed")
    assert forward.trigger == back.trigger == "manual"


def test_shadow_mode_warns_of_what_would_have_opened() -> None:
    """`WouldOpen` is a warning with the same figures and the same sentence as an opening."""
    shop = Shop()
    cb = shop.circuit()
    cb.metrics_only()
    try_to(cb.call, fail)
    record = shop.lines.records[-1]
    assert (record.levelname, record.event, record.state) == ("WARNING", "circuit_would_open", "metrics_only")
    assert record.reason == "1 failure in a row (limit 1)"
    assert (record.total_count, record.failure_rate, record.last_error) == (1, 1.0, "ConnectionError: no route")


def test_a_circuits_beginning_rules_and_end_are_told() -> None:
    """Creation and retirement are for debugging, new rules are information; the rules are there in words."""
    shop = Shop(logging.DEBUG)
    cb = shop.circuit()
    cb.configure(retry=Cooldown(5), tripper=FailureStreak(3))
    cb.retire()
    created, reconfigured, retired = shop.lines.records
    assert [each.levelname for each in shop.lines.records] == ["DEBUG", "INFO", "DEBUG"]
    assert (created.event, created.tripper, created.retry) == (
        "circuit_created",
        "Closed() & FailureStreak(1)",
        "Cooldown(60)",
    )
    assert (reconfigured.event, reconfigured.retry) == ("circuit_reconfigured", "Cooldown(5)")
    assert set(reconfigured.changed.split(",")) == {"tripper", "retry"}
    assert (retired.event, retired.circuit_name) == ("circuit_retired", "payments")


def test_what_has_no_value_is_left_out() -> None:
    """No rate of an empty window, no wait that a person alone can end, no error before the first."""
    shop = Shop()
    shop.circuit().force_open()
    pairs = parse(shop.lines.texts[0])
    assert pairs["total_count"] == "0"
    assert not {"failure_rate", "slow_rate", "avg_duration", "retry_after", "failing_since", "last_error"} & set(pairs)


def test_an_error_without_text_is_told_as_empty() -> None:
    """An empty text is a pair of quotes, so that the line can still be read by a program."""
    shop = Shop(logging.DEBUG)
    try_to(shop.circuit().call, fail, "")
    failed, opened = (parse(text) for text in shop.lines.texts[-2:])
    assert (failed["error_type"], failed["error"]) == ("ConnectionError", "")
    assert opened["last_error"] == "ConnectionError"


def test_figures_are_rounded_for_readers() -> None:
    """Rates have four digits, waits three and durations six."""
    shop = Shop()
    cb = shop.circuit(tripper=MinRequests(3) & FailureRate(0.3), retry=Cooldown(1 / 3))
    cb.call(shop.clock.advance, 1e-7)
    cb.call(shop.clock.advance, 2 / 3)
    try_to(cb.call, fail)
    record = shop.lines.records[0]
    assert (record.failure_rate, record.retry_after, record.avg_duration) == (0.3333, 0.333, 0.222222)


def test_a_clock_beyond_the_calendar_does_not_cost_the_line() -> None:
    """Where a circuit's clock tells no calendar time, the bare number is written."""
    shop = Shop()
    shop.clock.set_time(1e18)
    try_to(shop.circuit().call, fail)
    assert shop.lines.records[0].failing_since == "1e+18"


def test_every_event_has_a_name_a_level_and_keys() -> None:
    """The catalogue is whole: no event type and no state is without its words."""
    every_name = {name for kind in EVENT_TYPES for name in names.log_names(kind)}
    assert every_name == set(names.LOG_LEVELS) == set(names.log_names(Event))
    assert set(names.LOG_KEYS) == set(EVENT_TYPES)
    assert set(names.TRANSITION_NAMES) == set(State)
    assert all(re.fullmatch("[a-z_]+", name) for name in every_name)


def test_an_async_circuit_is_told_alike() -> None:
    """An asynchronous circuit gives the same lines."""
    shop = Shop()

    async def main() -> None:
        cb = AsyncCircuitBreaker("inventory", tripper=FailureStreak(1), bus=shop.bus, clock=shop.clock)
        with pytest.raises(ConnectionError):
            async with cb:
                fail()
        for _ in range(3):
            with pytest.raises(CallNotPermittedError):
                await cb.acquire()
        await cb.reset()

    asyncio.run(main())
    assert [record.event for record in shop.lines.records] == [
        "circuit_opened",
        "calls_rejected",
        "calls_rejected",
        "circuit_closed",
    ]


# -- for programs -------------------------------------------------------------------------------------------------


def all_kinds_of_lines() -> Shop:
    """A listener that has written every kind of line at least once, the calls and the traceless among them."""
    shop = Shop(logging.DEBUG)
    cb = shop.circuit(tracker=~TypeOf(KeyError))
    cb.call(str)
    try_to(cb.call, {}.__getitem__, "missing")
    cb.call_with_fallback(fail, repr)
    try_to(cb.call, fail)
    cb.reset()
    cb.acquire().cancel()
    for control in (cb.force_open, cb.disable, cb.metrics_only):
        control()
    try_to(cb.call, fail)
    cb.reset()
    try_to(cb.call, fail)
    shop.clock.advance(60)
    cb.call(str)
    cb.configure(retry=Never())
    cb.retire()
    common: dict[str, Any] = {"circuit_name": "payments", "timestamp": 1.0, "sequence": 99, "state": State.CLOSED}
    shop.listener(EventsDropped(listener="Slow", count=3, **common))
    failed: dict[str, Any] = {
        "listener": "Broken",
        "role": "listener",
        "error_type": "OSError",
        "error": "disk full",
        "count": 1,
    }
    shop.listener(ListenerFailed(**failed, **common))
    assert {record.event for record in shop.lines.records} == set(names.LOG_LEVELS)
    return shop


def test_the_same_values_are_attributes_of_the_record() -> None:
    """Formatters that write JSON find each pair of the message as a field, and the event's name as `event`."""
    for record in all_kinds_of_lines().lines.records:
        plain = set(vars(logging.makeLogRecord({})))
        fields = {key: value for key, value in vars(record).items() if key not in plain}
        assert json.loads(json.dumps(fields)) == fields
        pairs = parse(record.getMessage())
        spelled = {True: "true", False: "false"}
        assert pairs == {
            key: spelled[value] if isinstance(value, bool) else str(value) for key, value in fields.items()
        }
        assert record.levelno == names.LOG_LEVELS[record.event]


def test_no_key_is_a_name_that_logging_has_taken() -> None:
    """None of the keys collides with an attribute of a log record."""
    keys = {key for keys in names.LOG_KEYS.values() for key in keys}
    keys |= {"event", names.REJECTED, names.SUPPRESSED, *names.TRACE_KEYS}
    assert not keys & {*vars(logging.makeLogRecord({})), "message", "asctime"}


def test_a_record_factory_of_the_programs_own_keeps_its_attributes() -> None:
    """An attribute that the program's record factory has set stays, and the line is written all the same."""
    factory = logging.getLogRecordFactory()

    def with_trace(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = factory(*args, **kwargs)
        record.trace_id = "the program's"
        record.reason = "busy"
        return record

    shop = Shop()
    logging.setLogRecordFactory(with_trace)
    try:
        try_to(shop.circuit().call, fail)
    finally:
        logging.setLogRecordFactory(factory)
    (record,) = shop.lines.records
    assert (record.trace_id, record.reason, record.new_state) == ("the program's", "busy", "open")
    assert parse(record.getMessage())["reason"] == "1 failure in a row (limit 1)"


def test_the_text_is_made_when_somebody_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that does not format the message does not pay for it; grouping by template still works."""
    made: list[object] = []

    def text(line: object) -> str:
        made.append(line)
        return "text"

    monkeypatch.setattr(render.Logfmt, "__str__", text)
    shop = Shop()
    try_to(shop.circuit().call, fail)
    (record,) = shop.lines.records
    assert not made
    assert record.msg == "circuit_opened %s"
    assert record.getMessage() == "circuit_opened text"


# -- hostile texts ------------------------------------------------------------------------------------------------

FORGED = "circuit_closed circuit_name=payments"
HOSTILE = [
    f"x\n{FORGED}",
    f"x\r\n{FORGED}",
    f"x\u2028{FORGED}",
    f"x\x85{FORGED}",
    f"x\x0b\x0c{FORGED}",
    'x" new_state=closed reason="fine',
    'x\\" new_state=closed reason=\\"fine',
    "x\\",
    "x new_state=closed",
    "x=y",
    "\x1b[2J\x1b[31mred\x1b]0;title\x07",
    "\x9b31mred",
    "\u202egnp.exe\u2066",
    "\ud800 alone",
    "nul\x00byte",
    "%s %(name)s {0} %",
    " edges ",
    '"quoted"',
]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_can_forge_a_line_or_steer_a_terminal(text: str) -> None:
    """Whatever a circuit is called and an exception says: one printable line, and what it says is what was said."""
    shop = Shop()
    cb = shop.circuit(text)
    try_to(cb.call, fail, text)
    try_to(cb.call, fail)

    assert [record.event for record in shop.lines.records] == ["circuit_opened", "calls_rejected"]
    opened = shop.lines.records[0]
    message = opened.getMessage()
    assert message.isprintable()
    message.encode()
    pairs = parse(message)
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    assert (pairs["event"], pairs["new_state"]) == ("circuit_opened", "open")
    assert pairs["circuit_name"] == opened.circuit_name == escaped
    assert pairs["last_error"] == opened.last_error == f"ConnectionError: {escaped}"


def test_letters_of_all_scripts_stay_as_they_are() -> None:
    """Only what is not printable is escaped."""
    shop = Shop()
    shop.circuit("결제-façade-支払い").force_open()
    assert "circuit_name=결제-façade-支払い " in shop.lines.texts[0]


def test_huge_texts_are_cut() -> None:
    """No value is longer than some 1,000 characters, and it says that it was cut."""
    shop = Shop()
    shop.circuit("x" * 100_000).force_open()
    shop.circuit("x" * 1000).force_open()
    cut, whole = (record.circuit_name for record in shop.lines.records)
    assert cut == "x" * 999 + "…"
    assert whole == "x" * 1000
    assert len(shop.lines.texts[0]) < 2000


def test_what_escaping_makes_huge_is_cut_as_well() -> None:
    """A character that is escaped takes up to ten places, which count."""
    shop = Shop()
    shop.circuit("\U000e0001" * 1000).force_open()
    name = shop.lines.records[0].circuit_name
    assert len(name) == 1000
    assert name.startswith(r"\U000e0001\U000e0001")


def test_texts_pass_through_the_users_redaction() -> None:
    """What `fluxgate.redact` takes out of an error's text is in no line."""
    shop = Shop(logging.DEBUG)
    try:
        fluxgate.redact(lambda text: text.replace("s3cret", "***"))
        try_to(shop.circuit().call, fail, "GET /pay?token=s3cret")
    finally:
        fluxgate.redact(None)
    assert shop.lines.called("call_failed")[0].error == "GET /pay?token=***"
    assert shop.lines.called("circuit_opened")[0].last_error == "ConnectionError: GET /pay?token=***"
    assert "s3cret" not in "".join(shop.lines.texts)


# -- levels -------------------------------------------------------------------------------------------------------


def test_calls_are_not_even_asked_for_while_debug_is_off() -> None:
    """At INFO no event of a call is subscribed to but refusals, and the engine's fast lane stays open."""
    shop = Shop(logging.INFO)
    assert CALLS & set(shop.listener.events) == {CallRejected}
    cb = shop.circuit()
    for _ in range(3):
        cb.call(str)
    assert cb._core.lane is not None
    assert not shop.lines.records


def test_calls_are_told_at_debug() -> None:
    """With DEBUG on each call's beginning and outcome are told, with what is known of it."""
    shop = Shop(logging.DEBUG)
    assert set(shop.listener.events) == set(EVENT_TYPES)
    cb = shop.circuit(tracker=~TypeOf(KeyError), slow_threshold=2)
    cb.call(shop.clock.advance, 2.5)
    try_to(cb.call, {}.__getitem__, "missing")
    cb.acquire().cancel()
    cb.call_with_fallback(fail, repr)

    calls = [record for record in shop.lines.records if record.event.startswith(("call", "fallback"))]
    assert {record.levelname for record in calls} == {"DEBUG"}
    started, succeeded, _, ignored, _, cancelled, _, failed, fallback = calls
    assert started.event == "call_started"
    assert (succeeded.event, succeeded.duration, succeeded.slow) == ("call_succeeded", 2.5, True)
    assert (ignored.event, ignored.error_type) == ("call_ignored", "KeyError")
    assert cancelled.event == "call_cancelled"
    assert (failed.event, failed.error_type, failed.error, failed.slow, failed.stale) == (
        "call_failed",
        "ConnectionError",
        "no route",
        False,
        False,
    )
    assert (fallback.event, fallback.error_type) == ("fallback_used", "ConnectionError")
    assert started.call_id == succeeded.call_id != failed.call_id


def test_a_level_that_is_switched_off_later_silences_at_once() -> None:
    """The level is looked at for each line too, so calls fall silent when it is raised."""
    shop = Shop(logging.DEBUG)
    cb = shop.circuit()
    shop.logger.setLevel(logging.INFO)
    shop.lines.records.clear()
    cb.call(str)
    assert not shop.lines.records


def test_changes_of_state_are_always_asked_for() -> None:
    """A logger that is turned on later tells them without anybody attaching the listener again."""
    shop = Shop(logging.CRITICAL)
    assert set(shop.listener.events) == set(EVENT_TYPES) - CALLS
    cb = shop.circuit()
    cb.force_open()
    shop.logger.setLevel(logging.INFO)
    cb.reset()
    assert [record.event for record in shop.lines.records] == ["circuit_closed"]


def test_levels_by_name_and_by_event_type() -> None:
    """`level_map` takes names and types; a name wins over its type and a type over its base, in any order."""
    shop = Shop(
        level_map={
            "circuit_closed": "DEBUG",
            StateChanged: "error",
            Event: logging.WARNING,
            "circuit_half_opened": logging.CRITICAL,
        }
    )
    cb = shop.circuit()
    cb.force_open()
    cb.reset()
    try_to(cb.call, fail)
    shop.clock.advance(60)
    cb.call(str)
    assert [(record.levelname, record.event) for record in shop.lines.records if "call" not in record.event] == [
        ("WARNING", "circuit_created"),
        ("ERROR", "circuit_forced_open"),
        ("ERROR", "circuit_opened"),
        ("CRITICAL", "circuit_half_opened"),
    ]
    assert shop.lines.called("call_succeeded")


def test_failures_alone_can_be_told_and_the_fast_lane_stays_open() -> None:
    """With failures raised to WARNING they are subscribed to, successes are not, and pay nothing."""
    shop = Shop(level_map={"call_failed": "WARNING"})
    assert CALLS & set(shop.listener.events) == {CallFailed, CallRejected}
    cb = shop.circuit(tripper=FailureStreak(5))
    for _ in range(3):
        cb.call(str)
    assert cb._core.lane is not None
    try_to(cb.call, fail)
    assert [(record.levelname, record.event) for record in shop.lines.records] == [("WARNING", "call_failed")]


def test_a_level_of_the_programs_own_is_known() -> None:
    """A level that was registered with `logging.addLevelName` has its name and its number."""
    logging.addLevelName(25, "NOTICE")
    try:
        shop = Shop(level_map={"circuit_closed": "notice", "circuit_disabled": 25})
    finally:
        logging._levelToName.pop(25)
        logging._nameToLevel.pop("NOTICE")
    cb = shop.circuit()
    cb.disable()
    cb.reset()
    assert [record.levelno for record in shop.lines.records] == [25, 25]


@pytest.mark.parametrize(
    ("options", "error", "quoted"),
    [
        ({"level_map": {"circuit_open": "INFO"}}, ValueError, "'circuit_open'"),
        ({"level_map": {"circuit_opened": "LOUD"}}, ValueError, "'LOUD'"),
        ({"level_map": {"circuit_opened": 37}}, ValueError, "37"),
        ({"level_map": {"circuit_opened": 0}}, ValueError, "0"),
        ({"level_map": {"circuit_opened": "NOTSET"}}, ValueError, "'NOTSET'"),
        ({"level_map": {"circuit_opened": None}}, TypeError, "None"),
        ({"level_map": {"circuit_opened": True}}, TypeError, "True"),
        ({"level_map": {7: "INFO"}}, TypeError, "7"),
        ({"level_map": {int: "INFO"}}, TypeError, "int"),
        ({"level_map": ["circuit_opened"]}, TypeError, "circuit_opened"),
        ({"logger": "shop"}, TypeError, "'shop'"),
        ({"logger": logging.Logger}, TypeError, "Logger"),
        ({"interval": -1}, ValueError, "-1"),
        ({"interval": float("nan")}, ValueError, "nan"),
        ({"interval": "10"}, TypeError, "'10'"),
    ],
)
def test_wrong_arguments_are_quoted(options: Any, error: type[Exception], quoted: str) -> None:
    """Each wrong argument is refused with what was got."""
    with pytest.raises(error, match=re.escape(quoted)):
        LogListener(**options)


# -- floods -------------------------------------------------------------------------------------------------------


def rejections(shop: Shop) -> list[tuple[int, int]]:
    """Of each line about refused calls, how many it stands for and how many came without one."""
    return [(record.rejected, record.suppressed) for record in shop.lines.called("calls_rejected")]


def test_refused_calls_are_told_at_once_and_then_once_an_interval() -> None:
    """The first has its own line, later ones share one an interval; the lines add up to all of them."""
    shop = Shop()
    cb = shop.circuit()
    try_to(cb.call, fail)
    for _ in range(101):
        try_to(cb.call, fail)
        shop.clock.advance(0.25)
    assert rejections(shop) == [(1, 0), (40, 39), (40, 39)]
    shop.clock.advance(60)
    cb.call(str)
    assert rejections(shop)[3:] == [(20, 20)]
    assert sum(rejected for rejected, _ in rejections(shop)) == 101
    record = shop.lines.called("calls_rejected")[0]
    assert (record.levelname, record.state, record.reason, record.retry_after) == ("WARNING", "open", "open", 60.0)


def test_what_is_outstanding_comes_before_the_next_change_of_state() -> None:
    """When the circuit moves on, the line about its refusals stands before the line about the move."""
    shop = Shop()
    cb = shop.circuit()
    for _ in range(4):
        try_to(cb.call, fail)
    shop.clock.advance(60)
    cb.call(str)
    assert [record.event for record in shop.lines.records] == [
        "circuit_opened",
        "calls_rejected",
        "calls_rejected",
        "circuit_half_opened",
        "circuit_closed",
    ]
    assert rejections(shop) == [(1, 0), (2, 2)]


def test_one_outage_has_one_interval_though_the_circuit_half_opens() -> None:
    """A change from open to half-open and back does not start the refusals' interval anew."""
    shop = Shop(interval=100)
    cb = shop.circuit(tripper=FailureStreak(1), retry=Cooldown(10))
    for _ in range(3):
        for _ in range(3):
            try_to(cb.call, fail)
        shop.clock.advance(10)
    # one refused at once; one outstanding at the end of the first round; two each at the end of the others
    try_to(cb.call, fail)
    assert rejections(shop) == [(1, 0), (1, 1), (2, 2), (2, 2)]


def test_the_line_before_a_change_of_state_counts_for_the_interval() -> None:
    """The next line about refusals comes an interval after it, not after the one before."""
    shop = Shop(interval=10)
    cb = shop.circuit(tripper=FailureStreak(1), retry=Cooldown(9))
    for _ in range(3):
        try_to(cb.call, fail)
    shop.clock.advance(9)
    for seconds in (0, 2, 6):
        shop.clock.advance(seconds)
        try_to(cb.call, fail)
    assert rejections(shop) == [(1, 0), (1, 1)]
    cb.force_open()
    assert rejections(shop)[2:] == [(2, 2)]


def test_the_next_outage_begins_with_a_line_at_once() -> None:
    """Once the circuit has closed its interval is forgotten."""
    shop = Shop(interval=1000)
    cb = shop.circuit()
    for _ in range(2):
        cb.force_open()
        try_to(cb.call, str)
        cb.reset()
    assert rejections(shop) == [(1, 0), (1, 0)]


def test_outstanding_lines_are_written_when_the_listener_is_detached() -> None:
    """Closing its subscription writes what is outstanding, of all circuits; a second attachment starts anew."""
    shop = Shop()
    circuits = [shop.circuit(name) for name in ("a", "b", "c")]
    for cb in circuits:
        cb.force_open()
    for cb in (*circuits, *circuits[:2], circuits[0]):
        try_to(cb.call, str)
    shop.subscription.close()
    told = [(record.circuit_name, record.rejected) for record in shop.lines.called("calls_rejected")]
    assert told == [("a", 1), ("b", 1), ("c", 1), ("a", 2), ("b", 1)]

    shop.bus.attach(shop.listener)
    try_to(circuits[0].call, str)
    shop.listener.close()
    assert rejections(shop)[5:] == [(1, 0)]


def test_circuits_are_aggregated_each_for_itself() -> None:
    """One circuit's flood does not hide another circuit's first refusal."""
    shop = Shop()
    circuits = [shop.circuit(name) for name in ("payments", "inventory")]
    for cb in circuits:
        cb.force_open()
        for _ in range(5):
            try_to(cb.call, str)
    told = [(record.circuit_name, record.suppressed) for record in shop.lines.called("calls_rejected")]
    assert told == [("payments", 0), ("inventory", 0)]


def test_retired_circuits_are_forgotten() -> None:
    """What is outstanding of a retired circuit is written, and nothing of it is kept: memory stays bounded."""
    shop = Shop()
    for number in range(50):
        cb = shop.circuit(f"circuit-{number}")
        cb.force_open()
        try_to(cb.call, str)
        try_to(cb.call, str)
        cb.retire()
    assert rejections(shop) == [(1, 0), (1, 1)] * 50
    assert not shop.listener._floods._circuits
    assert not shop.listener._floods._queue


def test_a_wall_clock_that_is_set_back_silences_nothing() -> None:
    """When the time of the events goes back the interval ends, instead of lasting hours longer."""
    shop = Shop()
    cb = shop.circuit()
    cb.force_open()
    try_to(cb.call, str)
    shop.clock.set_time(shop.clock.time() - 3600)
    try_to(cb.call, str)
    try_to(cb.call, str)
    assert rejections(shop) == [(1, 0), (1, 0)]


def test_interval_zero_tells_every_refusal() -> None:
    """Without an interval each refused call has its line."""
    shop = Shop(interval=0)
    cb = shop.circuit()
    cb.force_open()
    for _ in range(3):
        try_to(cb.call, str)
    assert rejections(shop) == [(1, 0)] * 3


def test_refusals_below_the_level_are_neither_asked_for_nor_counted() -> None:
    """Where their level is off refusals are not subscribed to, and none is counted after it is switched off."""
    assert CallRejected not in Shop(logging.ERROR).listener.events
    shop = Shop()
    cb = shop.circuit()
    cb.force_open()
    shop.logger.setLevel(logging.ERROR)
    try_to(cb.call, str)
    try_to(cb.call, str)
    shop.logger.setLevel(logging.INFO)
    cb.reset()
    assert rejections(shop) == []


def test_another_listeners_failures_are_errors_and_do_not_flood() -> None:
    """The first failure of a listener is told at once, later ones once an interval with their number."""
    shop = Shop()

    def broken(event: Event) -> None:
        raise OSError("disk full")

    cb = shop.circuit()
    cb.attach(broken, CallSucceeded)
    for _ in range(25):
        cb.call(str)
        shop.clock.advance(1)
    failed = shop.lines.called("listener_failed")
    assert [(record.count, record.suppressed) for record in failed] == [(1, 0), (11, 9), (21, 9)]
    assert {record.levelname for record in failed} == {"ERROR"}
    assert (failed[0].role, failed[0].error_type, failed[0].error) == ("listener", "OSError", "disk full")
    assert failed[0].listener.endswith("broken")


def test_lost_events_are_a_warning() -> None:
    """`EventsDropped` says whose and how many."""
    shop = Shop()
    shop.listener(
        EventsDropped(
            circuit_name="payments", timestamp=1.0, sequence=7, state=State.OPEN, listener="Webhook", count=12
        )
    )
    (record,) = shop.lines.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == "events_dropped circuit_name=payments listener=Webhook count=12 sequence=7"


# -- in time, though nothing more comes ---------------------------------------------------------------------------


def still(shop: Shop) -> Shop:
    """The listener's clock is the shop's, and nobody ticks but the test."""
    shop.listener._floods._clock = shop.clock
    shop.listener._floods._subscriptions.clear()
    return shop


def test_what_is_outstanding_is_written_at_the_end_of_the_interval() -> None:
    """Though no call comes any more: an interval after the last line, once, and the sum stays exact."""
    shop = still(Shop(interval=10))
    cb, other = shop.circuit(), shop.circuit("other")
    cb.force_open()
    other.force_open()
    for _ in range(5):
        try_to(cb.call, str)
    shop.clock.advance(4)
    for _ in range(3):
        try_to(other.call, str)
    assert shop.listener.tick_interval == 6.0
    shop.clock.advance(5.9)
    shop.listener.tick()
    assert rejections(shop) == [(1, 0), (1, 0)]
    shop.clock.advance(0.1)
    shop.listener.tick()
    assert rejections(shop) == [(1, 0), (1, 0), (4, 4)]
    assert shop.listener.tick_interval == 4.0
    shop.clock.advance(4)
    shop.listener.tick()
    shop.listener.tick()
    assert rejections(shop) == [(1, 0), (1, 0), (4, 4), (2, 2)]
    assert shop.listener.tick_interval is None, "nothing to wait for"


def refusal(name: str, clock: VirtualClock) -> CallRejected:
    return CallRejected(
        circuit_name=name, timestamp=clock.time(), sequence=1, state=State.OPEN, retry_after=None, reason="open"
    )


class Floods(eventlog.Floods):
    """They have the test's clock, and count how often something of a flood is looked at."""

    def __init__(self, interval: float, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(interval)
        self.clock = self._clock = VirtualClock()
        self.looks = 0
        floods = self

        class Flood(eventlog._Flood):
            def __getattribute__(self, name: str) -> Any:
                floods.looks += name == "held"
                return super().__getattribute__(name)

        monkeypatch.setattr(eventlog, "_Flood", Flood)

    def refuse(self, name: str) -> int | None:
        return self.hold(refusal(name, self.clock), CallRejected)

    def due(self) -> list[tuple[str, int]]:
        """What is due, by circuit, and how many were held back."""
        return [(event.circuit_name, held) for event, held in self.release_due()]


def test_a_tick_looks_at_what_is_due_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of circuits that refuse calls, each in an interval of its own, cost a tick no more than a few do."""

    def looks(circuits: int) -> int:
        floods = Floods(10, monkeypatch)
        for number in range(circuits):
            floods.refuse(f"circuit-{number}")
            floods.refuse(f"circuit-{number}")
            floods.clock.advance(9 / circuits)
        floods.clock.advance(1)
        floods.looks = 0
        while not floods.due():
            due = floods.next_due()
            assert due is not None
            floods.clock.advance(due)
        return floods.looks

    assert looks(2000) == looks(2)


def test_a_flood_is_due_an_interval_after_its_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in its own time, also where a line came in between, and once."""
    floods = Floods(10, monkeypatch)
    assert [floods.refuse("a"), floods.refuse("a"), floods.refuse("b")] == [0, None, 0]
    floods.clock.advance(4)
    assert [floods.refuse("b"), floods.refuse("c"), floods.refuse("c")] == [None, 0, None]
    assert floods.next_due() == 6
    floods.clock.advance(5)
    assert floods.due() == []
    assert [held for _, held in floods.release("a", floods.clock.time(), forget=False)] == [1]  # its line, at 9 s
    assert floods.refuse("a") is None
    floods.clock.advance(1)
    assert floods.due() == [("b", 1)]
    assert floods.next_due() == 4
    floods.clock.advance(4)
    assert floods.due() == [("c", 1)]
    floods.clock.advance(5)
    assert floods.due() == [("a", 1)]
    assert floods.due() == []
    assert floods.next_due() is None
    assert floods._queue == []


def test_what_was_told_first_is_due_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interval begins with the line, not with what is held back later."""
    floods = Floods(10, monkeypatch)
    for name in "abc":
        floods.refuse(name)
        floods.clock.advance(1)
    for name in "cba":
        floods.refuse(name)
    assert floods.next_due() == 7
    for name in "abc":
        floods.clock.advance(floods.next_due() or 0)
        assert floods.due() == [(name, 1)]


def test_of_circuits_that_are_gone_little_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for the end of an interval that is never to come goes, and what is left comes in time."""
    floods = Floods(1e9, monkeypatch)
    for number in range(100):
        floods.refuse(f"circuit-{number}")
        floods.refuse(f"circuit-{number}")
        floods.clock.advance(1)
    for number in range(99):
        floods.release(f"circuit-{number}", floods.clock.time(), forget=True)
        assert len(floods._queue) <= 2 * (99 - number)
    floods.clock.advance(1e9)
    assert floods.due() == [("circuit-99", 1)]
    assert floods.refuse("circuit-99") is None
    floods.release("circuit-99", floods.clock.time(), forget=True)
    assert floods._queue == []


def test_the_line_at_the_end_of_the_interval_begins_another() -> None:
    """What comes after it is held back for an interval from then on."""
    shop = still(Shop(interval=10))
    cb = shop.circuit()
    cb.force_open()
    for _ in range(2):
        try_to(cb.call, str)
    shop.clock.advance(12)
    shop.listener.tick()
    shop.clock.advance(9)
    try_to(cb.call, str)
    assert rejections(shop) == [(1, 0), (1, 1)]
    shop.clock.advance(1)
    try_to(cb.call, str)
    assert rejections(shop) == [(1, 0), (1, 1), (2, 1)]


def test_another_listeners_failures_are_told_in_time_as_well() -> None:
    """The number of the last failure stands in the line, and how many came without one."""
    shop = still(Shop())

    def broken(event: Event) -> None:
        raise OSError("disk full")

    cb = shop.circuit()
    cb.attach(broken, CallSucceeded)
    for _ in range(7):
        cb.call(str)
    shop.clock.advance(10)
    shop.listener.tick()
    failed = shop.lines.called("listener_failed")
    assert [(record.count, record.suppressed) for record in failed] == [(1, 0), (7, 6)]


def test_a_line_that_cannot_be_written_hides_no_other() -> None:
    """One circuit's line fails: the others' are written all the same, and so is a change of state after it."""
    shop = still(Shop(interval=10))
    circuits = [shop.circuit(name) for name in ("a", "b", "c")]

    def broken(record: logging.LogRecord) -> bool:
        if (getattr(record, "circuit_name", ""), getattr(record, names.SUPPRESSED, 0)) == ("a", 1):
            raise OSError("disk full")
        return True

    shop.logger.addFilter(broken)
    for cb in circuits:
        cb.force_open()
        for _ in range(2):
            try_to(cb.call, str)
    shop.clock.advance(10)
    with pytest.raises(OSError, match="disk full"):
        shop.listener.tick()
    told = [record.circuit_name for record in shop.lines.called("calls_rejected") if record.suppressed]
    assert told == ["b", "c"]
    try_to(circuits[0].call, str)
    circuits[0].reset()
    assert shop.lines.called("circuit_closed")


def test_the_bus_lets_it_write_in_time() -> None:
    """In real time: a thread is there once something is held back, not before, and sleeps when nothing is."""
    shop = Shop(interval=0.05)
    written = threading.Event()

    def note(record: logging.LogRecord) -> bool:
        if getattr(record, names.SUPPRESSED, 0):
            written.set()
        return True

    shop.logger.addFilter(note)
    outlet = shop.subscription.outlet
    cb = shop.circuit()
    cb.force_open()
    try_to(cb.call, str)
    assert outlet._worker is None
    try_to(cb.call, str)
    assert written.wait(20)
    deadline = time.monotonic() + 20
    while outlet.worker.ticks and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not outlet.worker.ticks
    written.clear()
    for _ in range(2):
        try_to(cb.call, str)
    assert written.wait(20), "it wakes again"
    assert sum(rejected for rejected, _ in rejections(shop)) == 4


def test_calls_are_told_after_refresh_when_their_level_is_switched_on() -> None:
    """A level that is lowered later counts from `refresh()` on, and the fast lane is open again after the next."""
    shop = Shop(logging.INFO)
    cb = shop.circuit()
    shop.logger.setLevel(logging.DEBUG)
    cb.call(str)
    assert not shop.lines.called("call_succeeded")
    shop.subscription.refresh()
    cb.call(str)
    assert [record.levelname for record in shop.lines.called("call_succeeded")] == ["DEBUG"]
    shop.logger.setLevel(logging.INFO)
    shop.subscription.refresh()
    cb.call(str)
    assert cb._core.lane is not None


# -- trace ids ----------------------------------------------------------------------------------------------------


def test_the_current_spans_ids_are_added() -> None:
    """Where OpenTelemetry has a current span each line carries its ids; a summary of other calls carries none."""
    trace = pytest.importorskip("opentelemetry.sdk.trace")
    tracer = trace.TracerProvider().get_tracer("test")
    shop = Shop()
    cb = shop.circuit()
    with tracer.start_as_current_span("pay") as span:
        for _ in range(3):
            try_to(cb.call, fail)
    shop.clock.advance(60)
    with tracer.start_as_current_span("pay again") as probe:
        cb.call(str)
    cb.disable()

    def ids(of: Any) -> tuple[str, str]:
        context = of.get_span_context()
        return f"{context.trace_id:032x}", f"{context.span_id:016x}"

    told = [
        (record.event, (getattr(record, "trace_id", None), getattr(record, "span_id", None)))
        for record in shop.lines.records
    ]
    assert told == [
        ("circuit_opened", ids(span)),
        ("calls_rejected", ids(span)),
        ("calls_rejected", (None, None)),
        ("circuit_half_opened", ids(probe)),
        ("circuit_closed", ids(probe)),
        ("circuit_disabled", (None, None)),
    ]
    assert parse(shop.lines.texts[0])["trace_id"] == ids(span)[0]


def test_opentelemetry_in_the_middle_of_its_import_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that another thread is still importing has no spans yet; the line is written without ids."""
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", type(sys)("opentelemetry.trace"))
    shop = Shop()
    shop.circuit().force_open()
    assert "trace_id" not in parse(shop.lines.texts[0])


# -- robustness ---------------------------------------------------------------------------------------------------


def test_a_handler_that_raises_does_not_hurt_the_call() -> None:
    """The caller sees the call's own outcome, other listeners hear everything, and later lines are written."""
    shop = Shop(logging.DEBUG)
    heard: list[Event] = []
    shop.bus.attach(heard.append)
    cb = shop.circuit()

    class Full(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError("disk full")

    full = Full()
    shop.logger.addHandler(full)
    assert cb.call(max, 3, 5) == 5
    with pytest.raises(ConnectionError, match="no route"):
        cb.call(fail)
    with pytest.raises(CallNotPermittedError):
        cb.call(fail)
    assert [type(event) for event in heard] == [StateChanged]
    shop.logger.removeHandler(full)
    cb.reset()
    assert shop.lines.records[-1].event == "circuit_closed"


def test_a_root_handler_that_raises_does_not_hurt_the_call() -> None:
    """Not even where it is also the handler of the engine's own logger, which reports the failure."""

    class Full(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError("disk full")

    full = Full()
    engine = logging.getLogger("fluxgate")
    engine.addHandler(full)
    try:
        bus = Bus()
        with bus.attach(LogListener(level_map={Event: "ERROR"})):
            cb = CircuitBreaker("payments", tripper=FailureStreak(1), bus=bus)
            assert cb.call(max, 3, 5) == 5
            with pytest.raises(ConnectionError, match="no route"):
                cb.call(fail)
            with pytest.raises(CallNotPermittedError):
                cb.call(fail)
    finally:
        engine.removeHandler(full)


def test_no_lock_is_held_while_the_logger_is_called() -> None:
    """While one circuit's line is being written, another circuit that shares the listener is told from a thread."""
    shop = Shop()
    first, second = shop.circuit("first"), shop.circuit("second")
    first.force_open()
    second.force_open()
    ended: list[bool] = []

    def refuse_another(record: logging.LogRecord) -> bool:  # a filter, since a handler has a lock of its own
        if getattr(record, "circuit_name", "") == "first":
            thread = threading.Thread(target=try_to, args=(second.call, str), daemon=True)
            thread.start()
            thread.join(10)
            ended.append(not thread.is_alive())
        return True

    shop.logger.addFilter(refuse_another)
    try_to(first.call, str)
    assert ended == [True]
    assert [record.circuit_name for record in shop.lines.called("calls_rejected")] == ["second", "first"]


class Yielding(float):
    """An interval that lets other threads in whenever somebody looks whether it is over."""

    def __gt__(self, other: float) -> bool:
        time.sleep(0)
        return float(self) > other


def test_threads_lose_no_refusal() -> None:
    """Many threads on circuits of which some share a name: the lines add up to every refused call, none told twice."""
    shop = Shop()
    shop.listener._floods._interval = Yielding(10)
    circuits = [shop.circuit(name) for name in "aaaabbcd"]
    for cb in circuits:
        cb.force_open()
    rounds = threading.Barrier(len(circuits), action=lambda: shop.clock.advance(1))

    def hammer(cb: CircuitBreaker) -> None:
        for _ in range(60):
            rounds.wait(60)
            for _ in range(3):
                try_to(cb.call, str)

    threads = [threading.Thread(target=hammer, args=(cb,), daemon=True) for cb in circuits]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    shop.listener.close()
    assert sum(rejected for rejected, _ in rejections(shop)) == 8 * 60 * 3
    # of each name one at the beginning of each of six intervals, and the rest
    assert len(rejections(shop)) == 4 * 7


def run(script: str) -> subprocess.CompletedProcess[str]:
    """Run a program in an interpreter of its own."""
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, encoding="utf-8")


FIRST_RUN = """
import sys, fluxgate
from fluxgate import CircuitBreaker, FailureStreak
from fluxgate.listeners.log import LogListener

fluxgate.attach(LogListener())
cb = CircuitBreaker("payments", tripper=FailureStreak(1))

@cb(fallback=lambda error: None)
def pay():
    raise ConnectionError("no route")

for _ in range(4):
    pay()
assert "opentelemetry" not in sys.modules
"""


def test_a_program_without_logging_set_up_sees_its_warnings() -> None:
    """On standard error, by Python's last resort; what is outstanding when the program ends is written then."""
    done = run(FIRST_RUN)
    assert done.returncode == 0, done.stderr
    opened, first, rest = done.stderr.splitlines()
    assert opened.startswith("circuit_opened circuit_name=payments old_state=closed new_state=open trigger=tripper")
    assert (parse(first)["rejected"], parse(rest)["rejected"]) == ("1", "2")


FORKED = """
import os, threading, logging, warnings
warnings.simplefilter("ignore")
from fluxgate import Bus, CallNotPermittedError, CircuitBreaker
from fluxgate.listeners.log import LogListener

listener = LogListener(interval=1000)
cb = CircuitBreaker("payments", listeners=[listener], bus=Bus())
cb.force_open()

def refused():
    try:
        cb.call(str)
    except CallNotPermittedError:
        pass

refused()
refused()
held, done = threading.Event(), threading.Event()

def hold():
    with listener._floods._lock:
        held.set()
        done.wait()

threading.Thread(target=hold).start()
held.wait()
child = os.fork()
if child == 0:
    refused()
    listener.close()
    os._exit(0)
done.set()
os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(sys.modules["os"], "fork"), reason="this platform cannot fork")
def test_a_forked_child_logs_on_though_another_thread_held_the_lock() -> None:
    """The child starts with no counts, as the parent tells those, and with a lock that nobody holds."""
    done = run(FORKED)
    assert done.returncode == 0, done.stderr
    told = [parse(line) for line in done.stderr.splitlines() if line.startswith("calls_rejected")]
    assert [(each["rejected"], each["suppressed"]) for each in told] == [("1", "0"), ("1", "0")]


def test_floods_of_gone_listeners_are_not_kept() -> None:
    """What watches over forks does not keep a listener alive."""
    before = len(eventlog._all_floods)
    LogListener()
    assert len(eventlog._all_floods) == before


# -- finding it ---------------------------------------------------------------------------------------------------


def test_it_is_published_as_log() -> None:
    """`fluxgate.listeners.load("log")` finds the class by its entry point."""
    assert load("log") is LogListener


def test_observe_takes_it_where_structlog_is_missing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`observe()` attaches it, and says so in one line."""
    monkeypatch.setitem(sys.modules, "structlog", None)
    bus = Bus()
    with caplog.at_level(logging.INFO, "fluxgate"):
        subscriptions = bus.observe()
        CircuitBreaker("payments", bus=bus).force_open()
    for subscription in subscriptions:
        subscription.close()
    first, *events = caplog.records
    assert first.getMessage().startswith("observing circuits with: ")
    assert "log" in first.getMessage().removeprefix("observing circuits with: ").split(", ")
    assert [record.name for record in events] == ["fluxgate.events"]


def test_the_examples_in_its_documentation_run() -> None:
    """The docstrings' examples give what they show."""
    for module in (log, names, render, eventlog):
        assert doctest.testmod(module).failed == 0
