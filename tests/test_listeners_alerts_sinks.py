"""Where AlertListener's alerts go: loggers, callables, several of them, where one fails, and what its page says."""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from pathlib import Path
from typing import Any

import pytest

from fluxgate import State
from fluxgate.events import ListenerFailed
from fluxgate.listeners import names
from fluxgate.listeners.alerts import (
    DEFAULT_ALERTS,
    Alert,
    AlertListener,
    CircuitOpen,
    CircuitStuckOpen,
    ListenerFailing,
    RejectingCalls,
)
from fluxgate.testing import EventRecorder
from tests.running import PATIENCE, Running, arrives, script, together
from tests.test_listeners_alerts import Shop, broken, fail, lost, open_and_close, refuse, try_to

_numbers = itertools.count()

# -- sinks --------------------------------------------------------------------------------------------------------


class Lines(logging.Handler):
    """Keeps the records that reach it."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[Any] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def logged() -> tuple[logging.Logger, Lines]:
    """A logger of the standard library, and what is written to it."""
    logger, lines = logging.getLogger(f"alerts-{next(_numbers)}"), Lines()
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(lines)
    return logger, lines


def every_alert(shop: Shop) -> None:
    """Let each rule of the catalogue fire and resolve."""
    cb = shop.circuit(slow_threshold=1)
    for number in range(40):
        cb.call(shop.clock.advance, 5 + number / 1000)
        shop.listener.tick()
    for _ in range(3):
        open_and_close(shop, cb)
    with cb.attach(broken):
        for _ in range(2):
            cb.disable()
            cb.reset()
    try_to(cb.call, fail)
    refuse(shop, cb, 60)
    shop.listener(lost())
    shop.wait(300)
    cb.reset()
    for _ in range(3):
        shop.wait(600)


def test_log_lines_have_the_catalogues_names_keys_and_levels(logged: tuple[logging.Logger, Lines]) -> None:
    """Every alert as a record: its message is logfmt, its attributes and their order are those of the catalogue."""
    logger, lines = logged
    shop = Shop(sink=logger)
    every_alert(shop)
    plain = {*vars(logging.makeLogRecord({})), "message"}
    told: dict[str, list[str]] = {}
    for record in lines.records:
        told.setdefault(record.alert, []).append(record.status)
        extra = {key: value for key, value in vars(record).items() if key not in plain}
        assert extra.pop("event") == f"alert_{record.status}"
        assert list(extra) == [key for key in names.ALERT_KEYS if key in extra]
        assert {"alert", "status", "severity", "circuit_name", "summary", "runbook", "since"} <= set(extra)
        level = names.ALERT_LEVELS[record.severity] if record.status == "firing" else logging.INFO
        assert record.levelno == level
        assert record.runbook == f"dashboards/runbooks/{record.alert}.md"
        assert record.getMessage().startswith(f"{record.event} alert={record.alert} status={record.status} severity=")
        assert json.loads(json.dumps(extra)) == extra
    assert set(told) == {alert.name for alert in names.ALERTS}
    for statuses in told.values():
        assert statuses == ["firing", "resolved"] * (len(statuses) // 2)
    opened = next(record for record in lines.records if record.alert == "CircuitOpen")
    assert opened.since == opened.failing_since == "2023-11-14T22:16:40.780Z"
    assert (opened.failure_count, opened.last_error) == (1, "ConnectionError: no route")


def test_structlog_gets_the_same_pairs(logged: tuple[logging.Logger, Lines]) -> None:
    """A structlog logger has the same names, levels and values as the standard library's."""
    structlog = pytest.importorskip("structlog")
    capture = structlog.testing.LogCapture()
    pretty = structlog.wrap_logger(
        structlog.PrintLogger(),
        processors=[capture],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )
    logger, lines = logged
    shop = Shop(sink=[logger, pretty])
    every_alert(shop)
    plain = {*vars(logging.makeLogRecord({})), "message"}
    records = [
        {key: value for key, value in vars(record).items() if key not in plain}
        | {"log_level": record.levelname.lower()}
        for record in lines.records
    ]
    assert capture.entries == records
    assert len(records) >= 14


def test_a_level_that_is_off_is_not_written(logged: tuple[logging.Logger, Lines]) -> None:
    """A logger at ERROR has the critical alerts alone, and no resolution."""
    logger, lines = logged
    logger.setLevel(logging.ERROR)
    every_alert(Shop(sink=logger))
    assert {record.severity for record in lines.records} == {"critical"}
    assert {record.status for record in lines.records} == {"firing"}


DEFAULT_SINK = """
import logging, sys
if sys.argv[1] == "logging":
    sys.modules["structlog"] = None
from fluxgate import Bus, CircuitBreaker
from fluxgate.listeners.alerts import AlertListener, CircuitOpen
logging.basicConfig(stream=sys.stdout, format="%(name)s %(message)s")
cb = CircuitBreaker("payments", listeners=[AlertListener([CircuitOpen()])], bus=Bus())
cb.force_open()
cb.reset()
"""


def test_without_a_sink_alerts_go_to_the_log() -> None:
    """To structlog where it is installed, else to the logger ``fluxgate.alerts``."""
    plain = script(DEFAULT_SINK, "logging").stdout
    assert plain == ""  # information, which nobody has asked this logger for
    shown = script(DEFAULT_SINK.replace("format=", "level='INFO', format="), "logging").stdout.splitlines()
    assert [line.split(" alert=")[0] for line in shown] == [
        "fluxgate.alerts alert_firing",
        "fluxgate.alerts alert_resolved",
    ]
    pytest.importorskip("structlog")
    assert "alert_firing" in script(DEFAULT_SINK, "structlog").stdout


HOSTILE = [
    "x\nalert_resolved alert=CircuitOpen",
    "\x1b[2J\x07",
    "\u202egnp",
    "\ud800",
    "%s %(name)s",
    '" status="x',
    "\x9b",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_can_forge_an_alert(text: str, logged: tuple[logging.Logger, Lines]) -> None:
    """Whatever a circuit is called and an exception says, each alert is one printable line, in every sink."""
    logger, lines = logged
    shop = Shop(CircuitOpen(), CircuitStuckOpen(for_=1), RejectingCalls(rate=1, within=1), sink=logger)
    shop.listener._sinks._sinks.append(shop.told.append)
    cb = shop.circuit(text)
    try_to(cb.call, fail, text)
    refuse(shop, cb, 2)
    shop.wait(1)
    cb.reset()
    shop.wait(10)
    assert [record.status for record in lines.records] == ["firing"] * 3 + ["resolved"] * 3
    for record, alert in zip(lines.records, shop.told, strict=True):
        assert record.getMessage().isprintable()
        assert record.getMessage().count(" status=") - record.getMessage().count('\\" status=') == 1
        record.getMessage().encode()
        assert alert.summary.isprintable()
        assert alert.circuit_name == text, "who takes the alert itself has the circuit's own name"


def test_huge_names_are_cut() -> None:
    """A summary is at most 1,000 characters long."""
    shop = Shop(CircuitOpen())
    shop.circuit("x" * 100_000).force_open()
    assert len(shop.told[0].summary) == 1000


def test_an_alert_is_ready_for_json() -> None:
    """`to_dict` has plain types, the event's name, a fingerprint that stays, and no key without a value."""
    shop = Shop(CircuitOpen())
    cb = shop.circuit()
    try_to(cb.call, fail)
    cb.reset()
    firing, resolved = (alert.to_dict() for alert in shop.told)
    assert json.loads(json.dumps(firing)) == firing
    assert firing["event"] == names.ALERT_FIRING
    assert resolved["event"] == names.ALERT_RESOLVED
    assert firing["fingerprint"] == resolved["fingerprint"] != ""
    assert set(firing) == {"event", "timestamp", "fingerprint", *names.ALERT_KEYS} - {"listener", *names.TRACE_KEYS}
    assert (firing["last_error"], firing["failure_rate"]) == ("ConnectionError: no route", 1.0)


def test_a_sink_that_raises_hides_no_other_and_loses_no_state() -> None:
    """The others get each alert, the bus tells of the failure, and what follows is told as if nothing had happened."""
    shop = Shop(CircuitOpen(), sink=[broken, lambda alert: told.append(alert.status)])
    told: list[str] = []
    recorder = EventRecorder(ListenerFailed)
    shop.bus.attach(recorder)
    cb = shop.circuit()
    try_to(cb.call, fail)
    cb.reset()
    assert told == ["firing", "resolved"]
    assert [(event.listener, event.error_type, event.count) for event in recorder.of(ListenerFailed)] == [
        ("AlertListener", "OSError", 1),
        ("AlertListener", "OSError", 2),
    ]


def test_several_sinks_that_raise_are_told_together() -> None:
    """One failure with the texts of all."""

    def refuses(alert: Alert) -> None:
        raise ValueError("no token")

    shop = Shop(CircuitOpen(), sink=[broken, refuses])
    recorder = EventRecorder(ListenerFailed)
    shop.bus.attach(recorder)
    cb = shop.circuit()
    cb.force_open()
    (failed,) = recorder.of(ListenerFailed)
    assert failed.error_type == "ExceptionGroup"
    assert failed.error.startswith("disk full; no token")
    assert cb.state is State.FORCED_OPEN


def test_a_failing_sink_is_itself_a_failing_listener() -> None:
    """Where another sink still works it tells that this one fails; where none does the circle ends at once."""
    told: list[str] = []
    shop = Shop(
        CircuitOpen(),
        ListenerFailing(failures=2),
        sink=[broken, lambda alert: told.append(f"{alert.status} {alert.alert}")],
    )
    cb = shop.circuit()
    cb.force_open()
    cb.reset()
    assert told == ["firing CircuitOpen", "resolved CircuitOpen", "firing ListenerFailing"]
    alone = Shop(CircuitOpen(), ListenerFailing(failures=1), sink=broken)
    alone.circuit().force_open()
    alone.clock.advance(300)
    with pytest.raises(OSError, match="disk full"):
        alone.listener.tick()


def test_an_alert_is_told_in_the_context_of_what_decided_it() -> None:
    """Though another thread tells it: context variables, as structlog binds them, are those of its own call."""
    request: ContextVar[str] = ContextVar("request", default="none")
    told: list[tuple[str, str]] = []

    def sink(alert: Alert) -> None:
        told.append((alert.circuit_name, request.get()))
        if alert.circuit_name == "first":
            together(in_request("2", second.force_open))

    def in_request(number: str, work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            request.set(number)
            work()

        return run

    shop = Shop(CircuitOpen(), sink=sink)
    first, second = shop.circuit("first"), shop.circuit("second")
    copy_context().run(in_request("1", first.force_open))
    assert told == [("first", "1"), ("second", "2")]


def test_an_interrupt_in_a_sink_is_the_programs() -> None:
    """It reaches the caller as anywhere else, and the next alert is told."""
    told: list[str] = []

    def interrupted(alert: Alert) -> None:
        told.append(alert.status)
        if alert.status == "firing":
            raise KeyboardInterrupt

    shop = Shop(CircuitOpen(), sink=interrupted)
    cb = shop.circuit()
    with pytest.raises(KeyboardInterrupt):
        cb.force_open()
    cb.reset()
    assert told == ["firing", "resolved"]


def test_a_coroutine_from_a_sink_is_refused() -> None:
    """A plain callable that returns a coroutine is told as a failure, instead of being forgotten."""

    async def later() -> None: ...

    shop = Shop(CircuitOpen(), sink=lambda alert: later())
    recorder = EventRecorder(ListenerFailed)
    shop.bus.attach(recorder)
    shop.circuit().force_open()
    assert "returned a coroutine" in recorder.of(ListenerFailed)[0].error


class Channel:
    """A sink that is slow, as one over HTTP."""

    delivery = "background"

    def __init__(self) -> None:
        self.told: list[str] = []
        self.closed = 0
        self.thread = ""

    def __call__(self, alert: Alert) -> None:
        self.thread = threading.current_thread().name
        self.told.append(alert.status)

    def close(self) -> None:
        self.closed += 1


def test_a_sink_that_asks_for_the_background_gets_it() -> None:
    """The listener delivers as the slowest of its sinks wants it, and closes them once, with the last subscription."""
    channel, told = Channel(), list[str]()
    shop = Shop(CircuitOpen(), sink=[channel, lambda alert: told.append(alert.status)], attach=False)
    assert shop.listener.delivery == "background"
    assert AlertListener([CircuitOpen()], print).delivery == "inline"
    subscriptions = [shop.bus.attach(shop.listener, circuits=pattern) for pattern in ("pay*", "*ments")]
    cb = shop.circuit()
    cb.force_open()
    cb.reset()
    assert shop.bus.flush()
    assert channel.told == told == ["firing", "resolved"]
    assert channel.thread == "fluxgate-AlertListener"
    subscriptions[0].close()
    assert channel.closed == 0
    subscriptions[1].close()
    assert channel.closed == 1


def test_a_sink_whose_close_fails_keeps_no_other_open(caplog: pytest.LogCaptureFixture) -> None:
    """Each sink is closed, and the failure is logged."""

    class Broken(Channel):
        def close(self) -> None:
            raise OSError("still sending")

    channel = Channel()
    shop = Shop(CircuitOpen(), sink=[Broken(), channel])
    shop.subscription.close()
    assert channel.closed == 1
    assert "still sending" in caplog.text


def test_a_sink_may_call_the_breaker_and_the_listener() -> None:
    """No lock is held while a sink runs: it may steer circuits, which is told after what is being told, and tick."""
    told: list[str] = []
    shop = Shop(CircuitOpen(), sink=lambda alert: act(alert))
    first, second = shop.circuit("first"), shop.circuit("second")

    def act(alert: Alert) -> None:
        told.append(f"{alert.status} {alert.circuit_name}")
        if told == ["firing first"]:
            together(second.force_open, shop.listener.tick)
            second.reset()
            shop.listener.tick()
            first.reset()
        told.append("done")

    first.force_open()
    assert [each for each in told if each != "done"] == [
        "firing first",
        "firing second",
        "resolved second",
        "resolved first",
    ]
    assert told[1] == "done"


# -- the page -----------------------------------------------------------------------------------------------------

PAGE = Path(__file__).parents[1] / "docs" / "listeners" / "alerts.md"


def rows(heading: str) -> list[list[str]]:
    """The body of the page's table that begins with this heading."""
    table = PAGE.read_text("utf-8").split(heading, 1)[1].split("\n\n", 1)[0]
    lines = [line.strip("| ").split(" | ") for line in table.splitlines()[1:]]
    return [[cell.strip() for cell in line] for line in lines if "---" not in line[0]]


def test_the_pages_table_of_alerts_is_true() -> None:
    """Each alert of the catalogue with its severity and runbook, and each figure of its rule with its default."""
    shown = rows("| alert |")
    assert [(name.strip("`"), severity) for name, severity, *_ in shown] == [
        (alert.name, alert.severity) for alert in names.ALERTS
    ]
    for (*_, fires, resolves, runbook), rule in zip(shown, DEFAULT_ALERTS, strict=True):
        assert runbook == f"[{rule.alert.runbook}](../../{names.RUNBOOKS}{rule.alert.runbook})"
        figures = {key: value for key, value in zip(rule.fields, rule.values(), strict=True) if key != "severity"}
        for key, value in figures.items():
            assert f"`{key}`" in fires + resolves, (rule.alert.name, key)
            if value is not None:
                pattern = rf"`{key}`[^`(]*\({value:g}\)"
                assert re.search(pattern, fires + " " + resolves), (rule.alert.name, key)


def test_the_pages_table_of_keys_is_whole() -> None:
    """It lists the keys of the catalogue, in their order."""
    assert [key for row in rows("| key |") for key in re.findall(r"`(\w+)`", row[0])] == list(names.ALERT_KEYS)


@pytest.mark.skipif(shutil.which("promtool") is None and not os.environ.get("CI"), reason="promtool is not installed")
def test_the_queries_of_the_runbooks_are_promql(tmp_path: Path) -> None:
    """Prometheus can read each, and each names one of Fluxgate's series with labels that it has."""
    pages = "".join(path.read_text("utf-8") for path in (PAGE.parents[2] / names.RUNBOOKS).glob("*.md"))
    queries = re.findall(r"`([^`]*(?:rate|sum|quantile)[^`]*\([^`]*)`", pages)
    assert len(queries) >= 7
    rules = [f"  - record: 'query:{number}'\n    expr: {json.dumps(query)}\n" for number, query in enumerate(queries)]
    file = tmp_path / "rules.yml"
    file.write_text("groups:\n- name: runbooks\n  rules:\n" + "".join(rules), "utf-8")
    done = subprocess.run(["promtool", "check", "rules", str(file)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    for query in queries:
        (series,) = re.findall(r"circuit_breaker_\w+", query)
        (instrument,) = (each for each in names.INSTRUMENTS if series.removesuffix("_bucket") == each.series)
        labels = re.findall(r"\{(\w+)=", query) + re.findall(r"\w+", "".join(re.findall(r"by \(([^)]*)\)", query)))
        assert set(labels) <= {*instrument.labels, "le", "job", "instance"}, query


# -- a slow sink ------------------------------------------------------------------------------------------------------


class Slow:
    """A sink in the background that hangs in its first alert until it is let go."""

    delivery = "background"

    def __init__(self) -> None:
        self.told: list[Alert] = []
        self.inside = threading.Event()
        self.free = threading.Event()

    def __call__(self, alert: Alert) -> None:
        self.told.append(alert)
        self.inside.set()
        assert arrives(self.free)


def test_what_waited_behind_a_slow_sink_did_not_happen_all_at_once() -> None:
    """Times are those at which things happened: neither a rate nor a length is that of the delivery."""
    slow = Slow()
    shop = Shop(CircuitOpen(), RejectingCalls(rate=3, within=5), sink=slow)
    other, cb = shop.circuit("other"), shop.circuit()
    other.force_open()
    assert arrives(slow.inside)
    try_to(cb.call, fail)
    refuse(shop, cb, 29, every=0.5)
    shop.clock.advance(0.5)
    cb.reset()
    shop.clock.advance(40)
    slow.free.set()
    assert shop.bus.flush(PATIENCE)
    assert [(alert.alert, alert.status, alert.circuit_name) for alert in slow.told] == [
        ("CircuitOpen", "firing", "other"),
        ("CircuitOpen", "firing", "payments"),
        ("CircuitOpen", "resolved", "payments"),
    ], "two refusals a second are fewer than three"
    assert slow.told[-1].summary.endswith("it lasted 15 s")


def test_a_look_does_not_run_ahead_of_what_waits() -> None:
    """While events wait behind a slow sink nobody looks: what they tell is older than what would be seen."""
    slow = Slow()
    shop = Shop(CircuitOpen(), sink=slow)
    cb = shop.circuit()
    try_to(cb.call, fail)
    assert arrives(slow.inside)
    shop.clock.advance(60)
    assert cb.call(int) == 0, "it recovers: half-open and closed wait to be told"
    shop.listener.tick()
    slow.free.set()
    assert shop.bus.flush(PATIENCE)
    shop.listener.tick()
    assert [alert.status for alert in slow.told] == ["firing", "resolved"]
    assert slow.told[-1].reason == "1 failure in a row (limit 1)"


def test_what_waits_behind_a_sink_that_does_not_come_back_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound the oldest alerts go, and how many is told when the sink comes back."""
    monkeypatch.setattr("fluxgate.listeners._alertsinks._MOST_WAITING", 10)
    slow = Slow()
    shop = Shop(CircuitOpen(), sink=slow.__call__)
    failures = EventRecorder(ListenerFailed)
    shop.bus.attach(failures)
    stuck = Running(shop.circuit("first").force_open)
    assert arrives(slow.inside)
    circuits = [shop.circuit(f"circuit {number}") for number in range(25)]
    for cb in circuits:
        cb.force_open()
    slow.free.set()
    assert stuck.done()
    assert [alert.circuit_name for alert in slow.told] == ["first", *(f"circuit {number}" for number in range(15, 25))]
    assert [event.error for event in failures.of(ListenerFailed)] == [
        "15 alerts were lost while a sink did not come back"
    ]
