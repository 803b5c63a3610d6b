"""Alerts from logs: Loki's rules, read by the grammar of Grafana's editor, and mtail's program, run by a real mtail."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

import fluxgate.dashboards
from fluxgate import Bus, CircuitBreaker, Cooldown, FailureStreak, permits
from fluxgate.events import EVENT_TYPES, StateChanged
from fluxgate.listeners import names
from fluxgate.listeners.alerts import AlertListener, CircuitOpen, ListenerFailing
from fluxgate.listeners.log import LogListener
from fluxgate.testing import VirtualClock
from tests.prometheus_server import program

yaml: Any = pytest.importorskip("yaml")

DASHBOARDS = Path(fluxgate.dashboards.__file__).parent
LOKI, MTAIL = DASHBOARDS / "loki" / "rules.yml", DASHBOARDS / "mtail" / "fluxgate.mtail"
GRAMMAR = ("@grafana/lezer-logql@0.4.2", "@lezer/lr@1.4.10")
STREAM_LABELS = {"service_name"}

Tree = list[tuple[str, str]]
Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def unavailable(reason: str) -> NoReturn:
    """A test that cannot run is a failure in CI and a skip elsewhere."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def run(*command: str | Path, given: str = "", cwd: Path | None = None) -> str:
    """Run a command and give back what it printed."""
    done = subprocess.run(
        command, input=given, cwd=cwd, capture_output=True, text=True, encoding="utf-8", timeout=300, check=False
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


# -- Loki ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def grammar(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the grammar is installed: fetched once, and kept with pytest's cache."""
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            unavailable(f"needs {tool}: apt-get install nodejs npm")
    cache = getattr(request.config, "cache", None)
    folder = Path(cache.mkdir("logql")) if cache else tmp_path_factory.mktemp("logql")
    if not (folder / "done").exists() or (folder / "done").read_text("utf-8") != " ".join(GRAMMAR):
        command = ["npm", "install", "--prefix", str(folder), "--no-save", "--no-audit", "--no-fund", *GRAMMAR]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            unavailable(f"no grammar of LogQL to be had: {done.stderr.strip()[-500:]}")
        (folder / "done").write_text(" ".join(GRAMMAR), "utf-8")
    return folder


def parsed(grammar: Path, queries: list[str]) -> list[Tree]:
    """The nodes of each query's syntax tree."""
    script = Path(__file__).with_name("logql.mjs")
    trees = json.loads(run("node", script, grammar, given=json.dumps(queries)))
    return [[(name, text) for name, text in tree] for tree in trees]


def loki_groups(text: str) -> dict[str, list[dict[str, Any]]]:
    """The rules of Loki's file, by group."""
    return {group["name"]: group["rules"] for group in yaml.safe_load(text)["groups"]}


GROUPS = loki_groups(LOKI.read_text("utf-8"))
RULES = [rule for group in GROUPS.values() for rule in group]


def in_logfmt() -> str:
    """The file after the command that its own head names."""
    (command,) = re.findall(r"^# +sed -i '(s/.*/)' rules.yml$", LOKI.read_text("utf-8"), re.MULTILINE)
    return run("sed", command, LOKI)


def test_each_query_is_logql(grammar: Path) -> None:
    """As it is for JSON, and as the command in the file's head makes it for logfmt."""
    plain = [rule["expr"] for group in loki_groups(in_logfmt()).values() for rule in group]
    trees = parsed(grammar, [rule["expr"] for rule in RULES] + plain)
    for tree in trees:
        assert tree[2][0] == "MetricExpr"
        assert not [text for name, text in tree if name == "⚠"], tree[0][1]
    kinds = [{name for name, _ in tree} & {"Json", "Logfmt"} for tree in trees]
    assert kinds == [{"Json"}] * len(RULES) + [{"Logfmt"}] * len(RULES)


def test_the_grammar_finds_mistakes(grammar: Path) -> None:
    """A function, a stage, an operator or a brace that is wrong is an error in the tree."""
    good = RULES[0]["expr"]
    wrong = {"count_over_time": "cont_over_time", "| json": "| jsn", ") > 0": ") > ", "{service": "service"}
    for tree in parsed(grammar, [good.replace(old, new) for old, new in wrong.items()]):
        assert "⚠" in {name for name, _ in tree}, tree[0][1]


def test_the_queries_name_lines_keys_and_states_that_exist(grammar: Path) -> None:
    """Each line is one of the catalogue, is looked for as text first, and has the keys that are asked of it."""
    lines = {line: set(names.LOG_KEYS[kind]) for kind in EVENT_TYPES for line in names.log_names(kind)}
    lines["calls_rejected"] |= {names.REJECTED, names.SUPPRESSED}
    lines["listener_failed"] |= {names.SUPPRESSED}
    lines[names.ALERT_FIRING] = set(names.ALERT_KEYS)
    for rule, tree in zip(RULES, parsed(grammar, [rule["expr"] for rule in RULES]), strict=True):
        events = re.findall(r'event="(\w+)"', rule["expr"])
        texts = [json.loads(text.removeprefix("|=").strip()) for name, text in tree if name == "LineFilter"]
        assert events
        assert texts == events
        used = {text for name, text in tree if name == "Identifier"} - STREAM_LABELS - {"event", "__error__"}
        assert used
        for event in set(events):
            assert used <= lines[event] | {"state"}, (event, used)
        assert set(re.findall(r'state!?="(\w+)"', rule["expr"])) <= {"forced_open"}


def test_lokis_alerts_are_those_of_the_catalogue() -> None:
    """Names, severities and runbooks; an alert of the log is passed on with the severity that it has there."""
    catalogue = {each.name: each for each in names.ALERTS}
    assert [rule["alert"] for rule in GROUPS["fluxgate-alert-lines"]] == list(catalogue)
    for group, rules in GROUPS.items():
        for rule in rules:
            alert = catalogue[rule["alert"]]
            assert rule["annotations"]["runbook_url"] == names.RUNBOOKS + alert.runbook
            assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
            passed_on = group == "fluxgate-alert-lines"
            assert rule["labels"] == {"severity": "{{ $labels.severity }}" if passed_on else alert.severity}
            assert not passed_on or f'alert="{alert.name}"' in rule["expr"]


# -- mtail --------------------------------------------------------------------------------------------------------


def counted(log: Path) -> Series:
    """What a real mtail makes of a log: each series' value."""
    mtail = shutil.which("mtail")
    if mtail is None:
        unavailable("needs mtail: apt-get install mtail")
    # It listens even for one look: on loopback, on a port that is free.
    options = ("--address", "127.0.0.1", "--port", "0", "--emit_prog_label=false", "--log_dir", log.parent)
    printed = run(mtail, "--one_shot", "--one_shot_format", "prometheus", *options, "--progs", MTAIL, "--logs", log)
    series: Series = {}
    for line in printed.splitlines():
        match = re.fullmatch(r"(circuit_breaker_\w+)\{(.*)\} (\S+)", line)
        if match:
            labels = re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[2])
            series[match[1], frozenset((key, value) for key, value in labels if value)] = float(match[3])
    return series


def expected(lines: list[dict[str, Any]]) -> Series:
    """The same, from the lines as the log's own keys tell it."""
    found: Counter[tuple[str, frozenset[tuple[str, str]]]] = Counter()
    last: Series = {}

    def key(instrument: str, line: dict[str, Any], *labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
        return instrument, frozenset((label, line[label]) for label in labels if line.get(label))

    for line in lines:
        event = line["event"]
        if event in names.TRANSITION_NAMES.values():
            found[key(names.TRANSITIONS.series, line, *names.TRANSITIONS.labels)] += 1
            for state, value in (("old_state", 0), ("new_state", 1)):
                last[key(names.STATE.series, {**line, "state": line[state]}, *names.STATE.labels)] = value
        elif event == "calls_rejected":
            found[key(names.REJECTED_CALLS.series, line, *names.REJECTED_CALLS.labels)] += line[names.REJECTED]
        elif event == "circuit_would_open":
            found[key(names.WOULD_OPEN.series, line, *names.WOULD_OPEN.labels)] += 1
        elif event == "listener_failed":
            found[key(names.LISTENER_FAILURES.series, line, "listener")] += 1 + line[names.SUPPRESSED]
        elif event == "events_dropped":
            found[key(names.EVENTS_DROPPED.series, line, "listener")] += line["count"]
        elif event in (names.ALERT_FIRING, names.ALERT_RESOLVED):
            labels = ("alert", "severity", "circuit_name", "listener")
            last[key("circuit_breaker_alert_firing", line, *labels)] = event == names.ALERT_FIRING
    return {**found, **last}


def test_mtail_counts_what_the_demos_log_says(tmp_path: Path) -> None:
    """Over the demo's real log, each move, refusal and alert is counted, and no more."""
    for library in ("httpx", "rich", "structlog"):
        pytest.importorskip(library)
    log = tmp_path / "demo.log"
    command = [sys.executable, "-m", "fluxgate", "demo", "--duration", "3", "--listeners", "log,alerts"]
    run(*command, "--log", log, "--json")
    lines = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    wanted = expected(lines)
    assert sum(value for (name, _), value in wanted.items() if name == names.REJECTED_CALLS.series) > 0
    assert len([key for key in wanted if key[0] == names.TRANSITIONS.series]) >= 9
    assert "circuit_breaker_alert_firing" in {name for name, _ in wanted}
    assert counted(log) == wanted


class Lines(logging.Handler):
    """Keeps what each record has."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(dict(record.__dict__))


@pytest.fixture
def logger(tmp_path: Path) -> Iterator[tuple[logging.Logger, Path, Lines]]:
    """A logger that writes plain lines with a prefix to a file, and keeps the records."""
    path, kept = tmp_path / "plain.log", Lines()
    logger = logging.Logger("shop", logging.INFO)  # noqa: LOG001 - one that nobody else can find
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s shop: %(message)s"))
    logger.addHandler(handler)
    logger.addHandler(kept)
    yield logger, path, kept
    handler.close()


class Broken:
    """A listener that fails, with words that look like a log line."""

    events = (StateChanged,)

    def __call__(self, event: StateChanged) -> None:
        raise OSError('calls_rejected circuit_name=evil state=open reason=open rejected=9 "listener": "evil"')


def test_mtail_counts_plain_lines_and_is_not_misled(logger: tuple[logging.Logger, Path, Lines]) -> None:
    """Names with spaces, quotes and keys in them are names, and what an error says is not counted."""
    target, path, kept = logger
    clock, bus = VirtualClock(), Bus()
    circuit_names = [
        "pay",
        "two words",
        'a "quoted" \\ name',
        "x state=closed rejected=7",
        'j", "event": "calls_rejected',
    ]
    bus.attach(LogListener(target, interval=0))
    alerts = AlertListener([CircuitOpen(), ListenerFailing(failures=1)], target, clock=clock)
    bus.attach(alerts)
    bus.attach(Broken())
    for name in circuit_names:
        breaker = CircuitBreaker(
            name, tripper=FailureStreak(2), retry=Cooldown(30), permit=permits.All(), clock=clock, bus=bus
        )
        for _ in range(5):
            breaker.call_with_fallback(int, lambda error: 0, 'calls_rejected circuit_name=evil state=open rejected=5"')
        clock.advance(30)
        if name != "pay":
            assert breaker.call(int, "7") == 7
        breaker.metrics_only()
        for _ in range(2):
            breaker.call_with_fallback(int, lambda error: 0, "circuit_would_open circuit_name=evil")
        breaker.force_open()
    alerts.tick()

    # In the file a name stands as logfmt quotes it.
    def as_written(value: Any) -> Any:
        return value.replace("\\", "\\\\").replace('"', '\\"') if isinstance(value, str) else value

    wanted = expected([{key: as_written(value) for key, value in line.items()} for line in kept.lines])
    kinds = {name for name, _ in wanted}
    assert {names.TRANSITIONS.series, names.REJECTED_CALLS.series, names.LISTENER_FAILURES.series} <= kinds
    assert {names.WOULD_OPEN.series, "circuit_breaker_alert_firing"} <= kinds
    found = counted(path)
    unescaped = {
        (name, frozenset((key, value.replace('\\"', '"').replace("\\\\", "\\")) for key, value in labels)): number
        for (name, labels), number in found.items()
    }
    assert unescaped == wanted


def test_mtail_reads_each_line_in_json_as_in_logfmt(tmp_path: Path) -> None:
    """The rare lines too, whatever the order of the keys and the spaces between them."""
    lines: list[dict[str, Any]] = [
        {"circuit_name": "pay", "listener": "A", "count": 3, "event": "events_dropped"},
        {"circuit_name": "pay", "role": "listener", "listener": "A", "suppressed": 2, "event": "listener_failed"},
        {"circuit_name": "pay", "state": "metrics_only", "reason": "x", "event": "circuit_would_open"},
        *(
            {"alert": alert, "status": status, "severity": "warning", "circuit_name": "pay", "listener": "A",
             "summary": "it fails", "event": f"alert_{status}"}
            for alert, status in (("ListenerFailing", "firing"), ("EventsLost", "firing"), ("EventsLost", "resolved"))
        ),
    ]  # fmt: skip
    wanted = expected(lines)
    as_json = tmp_path / "json.log"
    as_json.write_text("".join(f"{json.dumps(line)}\n" for line in lines), "utf-8")
    assert counted(as_json) == wanted
    dense = tmp_path / "dense.log"
    dense.write_text("".join(f"{json.dumps(line, sort_keys=True, separators=(',', ':'))}\n" for line in lines), "utf-8")
    assert counted(dense) == wanted
    plain = tmp_path / "plain.log"
    plain.write_text(
        "".join(
            f"{line['event']} "
            + " ".join(f"{key}={value}" for key, value in line.items() if key not in ("event", "summary"))
            + (' summary="it fails"\n' if "summary" in line else "\n")
            for line in lines
        ),
        "utf-8",
    )
    assert counted(plain) == wanted


def test_what_mtail_exports_are_the_catalogues_metrics() -> None:
    """Names, kinds and labels, so that the rules for Prometheus read them; the alerts have one of their own."""
    declared = re.findall(r"^(counter|gauge) (\w+) by (.*)$", MTAIL.read_text("utf-8"), re.MULTILINE)
    known = {(each.kind, each.series, ", ".join(each.labels)) for each in names.INSTRUMENTS}
    own = ("gauge", "circuit_breaker_alert_firing", "alert, severity, circuit_name, listener")
    assert len(declared) == 7
    assert set(declared) - known == {own}


def test_promtool_finds_nothing_wrong_with_mtails_alert() -> None:
    """It is one of the catalogue, with its severity and runbook."""
    file = MTAIL.with_name("alerts.yml")
    run(program("promtool"), "check", "rules", "--lint=all", "--lint-fatal", file)
    ((rule,),) = (group["rules"] for group in yaml.safe_load(file.read_text("utf-8"))["groups"])
    assert rule["alert"] == names.SLOW_CIRCUIT.name
    assert rule["labels"]["severity"] == names.SLOW_CIRCUIT.severity
    assert rule["annotations"]["runbook_url"] == names.RUNBOOKS + names.SLOW_CIRCUIT.runbook
    assert "circuit_breaker_alert_firing{" in rule["expr"]


def test_the_page_lists_what_mtail_exports() -> None:
    """Each metric, with its labels."""
    page = (Path(__file__).parents[1] / "docs" / "dashboards" / "alerts.md").read_text("utf-8")
    table = page.split("| metric |", 1)[1].split("\n\n", 1)[0]
    shown = {cells[0]: ", ".join(cells[1:]) for cells in (re.findall(r"`(\w+)`", "|".join(line.split("|")[1:3]))
             for line in table.splitlines()[2:])}  # fmt: skip
    declared = re.findall(r"^(?:counter|gauge) (\w+) by (.*)$", MTAIL.read_text("utf-8"), re.MULTILINE)
    assert shown == dict(declared)
