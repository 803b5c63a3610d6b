"""StructlogListener: what happens to circuits, as structlog's events."""

from __future__ import annotations

import doctest
import importlib
import io
import itertools
import json
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fluxgate import (
    Bus,
    CallNotPermittedError,
    CircuitBreaker,
    Closed,
    Cooldown,
    FailureStreak,
    MissingExtraError,
    TypeOf,
    permits,
)
from fluxgate.events import EVENT_TYPES, CallEnded, CallFailed, CallRejected, CallStarted, Event, FallbackUsed
from fluxgate.listeners import load, names
from fluxgate.listeners.log import LogListener
from fluxgate.listeners.structlog import StructlogListener
from fluxgate.testing import VirtualClock

structlog = pytest.importorskip("structlog")

CALLS = {CallStarted, *(kind for kind in EVENT_TYPES if issubclass(kind, CallEnded)), CallRejected, FallbackUsed}
_numbers = itertools.count()


@pytest.fixture(autouse=True)
def _unconfigured() -> Iterator[None]:
    """Each test begins and ends with structlog as nobody has configured it."""
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()


def capturing(level: int = logging.INFO) -> tuple[Any, list[dict[str, Any]]]:
    """A structlog logger that begins at a level, and what is written to it."""
    capture = structlog.testing.LogCapture()
    logger = structlog.wrap_logger(
        structlog.PrintLogger(),
        processors=[capture],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        context_class=dict,
    )
    return logger, capture.entries


def stdlib_logger(level: int) -> tuple[logging.Logger, io.StringIO]:
    """A logger of the standard library's, and what is written to it."""
    stream = io.StringIO()
    logger = logging.getLogger(f"structlog-shop-{next(_numbers)}")
    logger.setLevel(level)
    logger.propagate = False
    logger.addHandler(logging.StreamHandler(stream))
    return logger, stream


class Shop:
    """Circuits on a bus and a clock of their own, and the listeners that hear them."""

    def __init__(self, *listeners: Any) -> None:
        self.bus = Bus()
        self.clock = VirtualClock()
        self.subscriptions = [self.bus.attach(listener) for listener in listeners]

    def circuit(self, name: str = "payments", **rules: Any) -> CircuitBreaker:
        """A circuit that one failure opens for a minute, and that one success closes."""
        rules = {"tripper": Closed() & FailureStreak(1), "retry": Cooldown(60), "permit": permits.All(), **rules}
        return CircuitBreaker(name, bus=self.bus, clock=self.clock, **rules)

    def live(self, name: str = "payments") -> None:
        """A circuit's life, in which every kind of event happens that circuits have by themselves."""
        cb = self.circuit(name, tracker=~TypeOf(KeyError))
        cb.call(str)
        try_to(cb.call, {}.__getitem__, "missing")
        cb.acquire().cancel()
        cb.call_with_fallback(fail, repr)
        for _ in range(3):
            try_to(cb.call, str)
        self.clock.advance(60)
        cb.call(str)
        for control in (cb.force_open, cb.disable, cb.metrics_only):
            control()
        try_to(cb.call, fail)
        cb.configure(retry=Cooldown(5))
        cb.retire()


def fail(text: str = "no route") -> None:
    raise ConnectionError(text)


def try_to(call: Callable[..., object], *args: Any) -> None:
    """Whatever comes of it."""
    try:
        call(*args)
    except (ConnectionError, CallNotPermittedError, KeyError):
        pass


# -- what is written ----------------------------------------------------------------------------------------------


def test_an_opening_is_a_warning_with_its_reasons_as_pairs() -> None:
    """The event's name is structlog's event, and what explains it are the key-value pairs."""
    logger, entries = capturing()
    try_to(Shop(StructlogListener(logger)).circuit().call, fail)
    assert entries == [
        {
            "event": "circuit_opened",
            "log_level": "warning",
            "circuit_name": "payments",
            "old_state": "closed",
            "new_state": "open",
            "trigger": "tripper",
            "reason": "1 failure in a row (limit 1)",
            "failure_rate": 1.0,
            "slow_rate": 0.0,
            "total_count": 1,
            "failure_count": 1,
            "avg_duration": 0.0,
            "retry_after": 60.0,
            "reopens": 0,
            "failing_since": "2023-11-14T22:13:20.000Z",
            "last_error": "ConnectionError: no route",
            "generation": 2,
            "sequence": 2,
        }
    ]


def test_it_says_what_the_log_listener_says() -> None:
    """Names, levels and values are the same in both, for every kind of event."""
    logger, entries = capturing(logging.DEBUG)
    plain, _ = stdlib_logger(logging.DEBUG)
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    plain.handlers[:] = [Keep()]
    Shop(StructlogListener(logger), LogListener(plain)).live()

    standard = set(vars(logging.makeLogRecord({})))
    said = [
        {"log_level": each.levelname.lower()} | {key: v for key, v in vars(each).items() if key not in standard}
        for each in records
    ]
    assert entries == said
    assert {entry["event"] for entry in entries} == set(names.LOG_LEVELS) - {"listener_failed", "events_dropped"}


def test_refused_calls_are_aggregated() -> None:
    """The first is told at once, the others with the next change of state."""
    logger, entries = capturing()
    shop = Shop(StructlogListener(logger, interval=5))
    cb = shop.circuit()
    for _ in range(5):
        try_to(cb.call, fail)
    shop.clock.advance(5)
    try_to(cb.call, fail)
    try_to(cb.call, fail)
    shop.subscriptions[0].close()
    told = [(entry["event"], entry.get("rejected"), entry.get("suppressed")) for entry in entries]
    assert told == [
        ("circuit_opened", None, None),
        ("calls_rejected", 1, 0),
        ("calls_rejected", 4, 3),
        ("calls_rejected", 1, 1),
    ]


def test_pairs_bound_to_the_logger_are_kept() -> None:
    """What the program has bound to the logger that it passes is in every event."""
    logger, entries = capturing()
    Shop(StructlogListener(logger.bind(service="shop"))).circuit().force_open()
    assert entries[0]["service"] == "shop"


def test_the_current_spans_ids_are_added() -> None:
    """Where OpenTelemetry has a current span, each event carries its ids."""
    trace = pytest.importorskip("opentelemetry.sdk.trace")
    logger, entries = capturing()
    cb = Shop(StructlogListener(logger)).circuit()
    with trace.TracerProvider().get_tracer("test").start_as_current_span("pay") as span:
        cb.force_open()
    cb.reset()
    context = span.get_span_context()
    assert (entries[0]["trace_id"], entries[0]["span_id"]) == (
        f"{context.trace_id:032x}",
        f"{context.span_id:016x}",
    )
    assert not {"trace_id", "span_id"} & set(entries[1])


@pytest.mark.parametrize(
    "text", ["x\ncircuit_closed", "\x1b[2J", "\u2028circuit_closed", '" new_state=closed', "\ud800"]
)
@pytest.mark.parametrize(
    "renderer",
    [
        lambda: structlog.dev.ConsoleRenderer(colors=False),
        lambda: structlog.processors.JSONRenderer(),
        lambda: structlog.processors.KeyValueRenderer(),
        lambda: structlog.processors.LogfmtRenderer(),
    ],
    ids=["console", "json", "key-value", "logfmt"],
)
def test_no_text_can_forge_a_line_or_steer_a_terminal(renderer: Callable[[], Any], text: str) -> None:
    """Whatever a circuit is called and an exception says, each of structlog's renderers writes one printable line."""
    out = io.StringIO()
    logger = structlog.wrap_logger(structlog.PrintLogger(out), processors=[renderer()])
    listener = StructlogListener(logger, level_map={"circuit_created": "debug"})
    shop = Shop()
    cb = shop.circuit(text)
    cb.attach(listener, *names.LOG_KEYS)
    with pytest.raises(ConnectionError):
        cb.call(fail, text)
    written = [line for line in out.getvalue().split("\n") if "circuit_opened" in line]
    assert len(written) == 1
    assert out.getvalue().count("\n") == 3  # started, failed, opened
    assert out.getvalue().replace("\n", "").isprintable()


def test_json_lines_are_whole() -> None:
    """Through the JSON renderer each event is one object with the catalogue's keys."""
    out = io.StringIO()
    logger = structlog.wrap_logger(structlog.PrintLogger(out), processors=[structlog.processors.JSONRenderer()])
    Shop(StructlogListener(logger)).live()
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    keys = {key for keys in names.LOG_KEYS.values() for key in keys} | {"event", names.REJECTED, names.SUPPRESSED}
    assert all(set(line) <= keys for line in lines)
    assert all(line["circuit_name"] == "payments" for line in lines)


# -- levels -------------------------------------------------------------------------------------------------------


def native(level: int) -> tuple[Any, Callable[[], str]]:
    """structlog's own filtering logger."""
    out = io.StringIO()
    wrapper = structlog.make_filtering_bound_logger(level)
    render = [structlog.processors.KeyValueRenderer()]
    return structlog.wrap_logger(structlog.PrintLogger(out), processors=render, wrapper_class=wrapper), out.getvalue


def over_stdlib(level: int, wrapper: Any, *processors: Any) -> tuple[Any, Callable[[], str]]:
    """structlog in front of the standard library's logger, which has the level."""
    logger, out = stdlib_logger(level)
    render = [*processors, structlog.stdlib.render_to_log_kwargs]
    return structlog.wrap_logger(logger, processors=render, wrapper_class=wrapper), out.getvalue


def standard(level: int) -> tuple[Any, Callable[[], str]]:
    """The usual pair: `structlog.stdlib.BoundLogger` with `filter_by_level`."""
    return over_stdlib(level, structlog.stdlib.BoundLogger, structlog.stdlib.filter_by_level)


def generic(level: int) -> tuple[Any, Callable[[], str]]:
    """The generic bound logger, for which every name is a method."""
    return over_stdlib(level, structlog.BoundLogger)


def both(level: int) -> tuple[Any, Callable[[], str]]:
    """structlog's filter lets everything pass, the standard library's logger does not."""
    return over_stdlib(level, structlog.make_filtering_bound_logger(logging.NOTSET))


def native_before_stdlib(level: int) -> tuple[Any, Callable[[], str]]:
    """The standard library's logger lets everything pass, structlog's filter does not."""
    logger, out = stdlib_logger(logging.DEBUG)
    wrapper = structlog.make_filtering_bound_logger(level)
    render = [structlog.stdlib.render_to_log_kwargs]
    return structlog.wrap_logger(logger, processors=render, wrapper_class=wrapper), out.getvalue


LOGGERS = [native, standard, generic, both, native_before_stdlib]


@pytest.mark.parametrize("make", LOGGERS)
def test_calls_are_not_even_asked_for_while_debug_is_off(make: Callable[[int], Any]) -> None:
    """However structlog filters, at INFO no event of a call is subscribed to but refusals; the fast lane stays open."""
    logger, _ = make(logging.INFO)
    listener = StructlogListener(logger)
    assert CALLS & set(listener.events) == {CallRejected}
    cb = Shop(listener).circuit()
    for _ in range(3):
        cb.call(str)
    assert cb._core.lane is not None


@pytest.mark.parametrize("make", LOGGERS)
def test_calls_are_told_at_debug(make: Callable[[int], Any]) -> None:
    """However structlog filters, at DEBUG every event is subscribed to and written, and no key is in the way."""
    logger, written = make(logging.DEBUG)
    listener = StructlogListener(logger)
    assert set(listener.events) == set(EVENT_TYPES)
    heard: list[Event] = []
    shop = Shop(listener)
    shop.bus.attach(heard.append, Event)
    shop.live()
    assert "call_failed" in written()
    assert {type(event).__name__ for event in heard} >= {"CallFailed", "StateChanged"}
    assert "ListenerFailed" not in {type(event).__name__ for event in heard}


@pytest.mark.parametrize("make", LOGGERS)
def test_changes_of_state_pass_at_their_level(make: Callable[[int], Any]) -> None:
    """At WARNING the opening is written and the closing is not."""
    logger, written = make(logging.WARNING)
    cb = Shop(StructlogListener(logger)).circuit()
    cb.force_open()
    cb.reset()
    assert "circuit_forced_open" in written()
    assert "circuit_closed" not in written()


def test_a_logger_that_knows_no_levels_is_told_everything() -> None:
    """`structlog.stdlib.BoundLogger` in front of a printer has no level to ask for: nothing is filtered."""
    out = io.StringIO()
    logger = structlog.wrap_logger(
        structlog.PrintLogger(out),
        processors=[structlog.processors.KeyValueRenderer()],
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    listener = StructlogListener(logger)
    assert set(listener.events) == set(EVENT_TYPES)
    Shop(listener).circuit().call(str)
    assert "call_succeeded" in out.getvalue()


def test_unconfigured_structlog_begins_at_info(capsys: pytest.CaptureFixture[str]) -> None:
    """structlog that nobody has configured prints all levels: the listener's own logger leaves calls out there."""
    listener = StructlogListener()
    assert CALLS & set(listener.events) == {CallRejected}
    cb = Shop(listener).circuit()
    cb.call(str)
    cb.force_open()
    out = capsys.readouterr().out
    assert "circuit_forced_open" in out
    assert "call_" not in out


def test_a_configuration_of_the_programs_own_decides() -> None:
    """Once structlog is configured its own filter counts, also when that happens after the listener was made."""
    listener = StructlogListener()
    out = io.StringIO()
    structlog.configure(
        processors=[structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=structlog.PrintLoggerFactory(out),
    )
    assert set(listener.events) == set(EVENT_TYPES)
    Shop(listener).circuit().call(str)
    assert [json.loads(line)["event"] for line in out.getvalue().splitlines()] == [
        "circuit_created",
        "call_started",
        "call_succeeded",
    ]


def test_in_front_of_stdlib_the_logger_is_called_fluxgate_events(caplog: pytest.LogCaptureFixture) -> None:
    """The default logger has the same name as `LogListener`'s, so one setting of its level serves both."""
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, structlog.stdlib.render_to_log_kwargs],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    with caplog.at_level(logging.INFO, "fluxgate.events"):
        Shop(StructlogListener()).circuit().force_open()
    assert caplog.record_tuples == [("fluxgate.events", logging.WARNING, "circuit_forced_open")]


def test_other_levels_by_name_and_type() -> None:
    """`level_map` moves events to other levels, and with them what is asked for."""
    logger, entries = capturing()
    listener = StructlogListener(logger, level_map={CallFailed: "error", "circuit_opened": logging.CRITICAL})
    assert CALLS & set(listener.events) == {CallFailed, CallRejected}
    try_to(Shop(listener).circuit().call, fail)
    assert [(entry["log_level"], entry["event"]) for entry in entries] == [
        ("error", "call_failed"),
        ("critical", "circuit_opened"),
    ]


@pytest.mark.parametrize(
    ("options", "error", "quoted"),
    [
        ({"level_map": {"circuit_opened": 25}}, ValueError, "25"),
        ({"level_map": {"circuit_opened": "LOUD"}}, ValueError, "'LOUD'"),
        ({"level_map": {"opened": "INFO"}}, ValueError, "'opened'"),
        ({"logger": logging.getLogger("shop")}, TypeError, "<Logger shop"),
        ({"logger": "shop"}, TypeError, "'shop'"),
        ({"interval": -1}, ValueError, "-1"),
    ],
)
def test_wrong_arguments_are_quoted(options: Any, error: type[Exception], quoted: str) -> None:
    """Each wrong argument is refused with what was got; levels are the five that structlog has."""
    with pytest.raises(error, match=quoted):
        StructlogListener(**options)


def test_a_class_for_a_logger_is_refused() -> None:
    """A bound logger's class is not a logger."""
    with pytest.raises(TypeError, match="BoundLogger"):
        StructlogListener(structlog.stdlib.BoundLogger)


# -- robustness ---------------------------------------------------------------------------------------------------


def test_a_processor_that_raises_does_not_hurt_the_call() -> None:
    """The caller sees the call's own outcome, whatever structlog's processors do."""

    def broken(*_: Any) -> Any:
        raise RuntimeError("broken processor")

    logger = structlog.wrap_logger(structlog.PrintLogger(), processors=[broken])
    cb = Shop(StructlogListener(logger)).circuit()
    assert cb.call(max, 3, 5) == 5
    with pytest.raises(ConnectionError, match="no route"):
        cb.call(fail)
    with pytest.raises(CallNotPermittedError):
        cb.call(fail)


# -- finding it ---------------------------------------------------------------------------------------------------


def test_it_is_published_as_structlog() -> None:
    """`fluxgate.listeners.load("structlog")` finds the class by its entry point."""
    assert load("structlog") is StructlogListener


def test_without_structlog_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module can be imported without structlog; making the listener names it, the package and the extra."""
    monkeypatch.setitem(sys.modules, "structlog", None)
    module = importlib.reload(importlib.import_module("fluxgate.listeners.structlog"))
    text = "StructlogListener needs structlog, which is not installed: install Fluxgate with its extra 'structlog'"
    with pytest.raises(MissingExtraError, match=text):
        module.StructlogListener()


def test_observe_prefers_it_to_plain_logging(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """With structlog installed `observe()` attaches this listener and not the other, and says so in one line."""
    bus = Bus()
    with caplog.at_level(logging.INFO, "fluxgate"):
        subscriptions = bus.observe()
        CircuitBreaker("payments", bus=bus).force_open()
    for subscription in subscriptions:
        subscription.close()
    (record,) = caplog.records
    attached = record.getMessage().removeprefix("observing circuits with: ").split(", ")
    assert "structlog" in attached
    assert "log" not in attached
    assert "circuit_forced_open" in capsys.readouterr().out


def test_the_examples_in_its_documentation_run() -> None:
    """The docstring's example gives what it shows."""
    assert doctest.testmod(importlib.import_module("fluxgate.listeners.structlog")).failed == 0
