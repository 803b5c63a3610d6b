"""The Prometheus rules: read, linted and run by promtool, and true to the catalogue of names."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fluxgate.dashboards
from fluxgate import State
from fluxgate.listeners import names
from tests.prometheus_server import program

yaml: Any = pytest.importorskip("yaml")

RULES = Path(fluxgate.dashboards.__file__).parent / "prometheus"
TESTS = sorted((RULES / "tests").glob("*.yml"))
PAGE = Path(__file__).parents[1] / "docs" / "dashboards" / "alerts.md"
SCOPE_LABELS = {"otel_scope_name", "otel_scope_version", "otel_scope_schema_url"}
REPLICA_LABELS = {"instance", "exported_instance", "pod", "node", "host"}
SERIES = {each.series: each for each in names.INSTRUMENTS}
OF_HISTOGRAM = re.compile(r"_(?:bucket|count|sum)$")


def rules(file: str) -> list[dict[str, Any]]:
    """The rules of a file."""
    groups = yaml.safe_load((RULES / file).read_text("utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


RECORDED = {rule["record"]: rule["expr"] for rule in rules("recording.yml")}
ALERTS = rules("alerts.yml")
EXPRESSIONS = [*RECORDED.values(), *(rule["expr"] for rule in ALERTS)]


def promtool(*arguments: str | Path) -> tuple[int, str]:
    """How it ended, and what it said."""
    command = [program("promtool"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


def instrument(series: str) -> names.Instrument:
    """What the catalogue says of a series, or of one of a histogram's."""
    return SERIES.get(series) or SERIES[OF_HISTOGRAM.sub("", series)]


def cases(alert: str) -> Iterator[tuple[str, list[bool]]]:
    """Each unit test that asks for the alert, with whether it fires, in the order of time."""
    for file in TESTS:
        for case in yaml.safe_load(file.read_text("utf-8"))["tests"]:
            asked = [each for each in case.get("alert_rule_test", ()) if each["alertname"] == alert]
            if asked:
                asked.sort(key=lambda each: seconds(each["eval_time"]))
                yield case["name"], [bool(each.get("exp_alerts")) for each in asked]


def seconds(duration: str) -> float:
    """Of a duration as Prometheus writes it."""
    units = {"h": 3600, "m": 60, "s": 1}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([hms])", duration))


# -- promtool -----------------------------------------------------------------------------------------------------


def test_promtool_finds_nothing_wrong() -> None:
    """The rules and the configuration that loads them pass every check of promtool's."""
    files = [RULES / "recording.yml", RULES / "alerts.yml"]
    code, said = promtool("check", "rules", "--lint=all", "--lint-fatal", *files)
    assert code == 0, said
    code, said = promtool("check", "config", "--lint=all", "--lint-fatal", RULES / "prometheus.yml")
    assert code == 0, said
    assert "2 rule files found" in said


@pytest.mark.parametrize("file", TESTS, ids=lambda path: path.stem)
def test_the_unit_tests_pass(file: Path) -> None:
    """What the rules give is what the file says."""
    code, said = promtool("test", "rules", file)
    assert code == 0, said


BREAKS: dict[str, Callable[[dict[str, Any]], object]] = {
    "never fires": lambda rule: rule.update(expr=f"({rule['expr']}) and on () vector(1) == 0"),
    "waits for nothing": lambda rule: rule.update({"for": "0s"}),
    "stops at once": lambda rule: rule.pop("keep_firing_for"),
    "never stops": lambda rule: rule.update(keep_firing_for="1h"),
    "other words": lambda rule: rule["annotations"].update(description="Something is wrong."),
}


@pytest.mark.parametrize("broken", BREAKS)
def test_the_unit_tests_notice_a_broken_alert(broken: str, tmp_path: Path) -> None:
    """An alert that does not fire, fires too early, resolves too early or not at all, or has other words, fails."""
    said = run_broken(tmp_path, "alerts.yml", [each for each in TESTS if each.stem != "recording"], BREAKS[broken])
    for name in {rule["alert"] for rule in ALERTS} | {"CircuitOpen has severity info"}:
        assert re.search(rf"{name}\b", said), said


def test_the_unit_tests_notice_a_broken_recording_rule(tmp_path: Path) -> None:
    """Each series that is more than it should be fails."""
    (file,) = (each for each in TESTS if each.stem == "recording")
    said = run_broken(tmp_path, "recording.yml", [file], lambda rule: rule.update(expr=f"({rule['expr']}) + 1"))
    for record in RECORDED:
        assert record in said, record


def run_broken(folder: Path, file: str, tests: list[Path], breaks: Callable[[dict[str, Any]], object]) -> str:
    """What the unit tests say of rules that are all broken."""
    copy = Path(shutil.copytree(RULES, folder / "prometheus"))
    groups = yaml.safe_load((copy / file).read_text("utf-8"))
    for group in groups["groups"]:
        for rule in group["rules"]:
            breaks(rule)
    (copy / file).write_text(yaml.safe_dump(groups), "utf-8")
    code, said = promtool("test", "rules", *(copy / "tests" / test.name for test in tests))
    assert code != 0
    return said


# -- the catalogue ------------------------------------------------------------------------------------------------


def test_every_metric_that_a_rule_reads_is_exported_with_these_labels_and_values() -> None:
    """Series, labels and states are those of the catalogue, or recorded by another rule."""
    read: set[str] = set()
    for expression in EXPRESSIONS:
        for recorded in re.findall(r"\w+:circuit_breaker_\w+:\w+", expression):
            assert recorded in RECORDED, recorded
        for prefix, series, selector in re.findall(
            r"(\w+:)?(circuit_breaker_\w+)(?::\w+)?(?:\{([^}]*)\})?", expression
        ):
            found = by_recorded_name(series) if prefix else instrument(series)
            read.add(found.name)
            for label, values in re.findall(r'(\w+)=~?"([^"]*)"', selector):
                assert label in found.labels, (expression, label)
                known = set(names.OUTCOMES.values()) if label == "outcome" else set(map(str, State))
                assert set(values.split("|")) <= known, (expression, values)
    assert len(read) >= 7


def by_recorded_name(series: str) -> names.Instrument:
    """What a recorded series was made of: a counter loses its suffix."""
    return instrument(f"{series}_total" if f"{series}_total" in SERIES else series)


@pytest.mark.parametrize("record", RECORDED)
def test_recorded_series_are_named_after_what_they_hold(record: str) -> None:
    """level:metric:operation, where the level names the labels of its own and the metric is one of the catalogue's."""
    level, series, _ = record.split(":")
    found = by_recorded_name(series)
    taken = {"circuit_name": "circuit"}
    assert set(level.split("_")) <= {"instance", *(taken.get(label, label) for label in found.labels)}
    assert f"{found.series}" in RECORDED[record] or f"{series}:" in RECORDED[record]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_what_tells_instances_apart_is_taken_away_whole(expression: str) -> None:
    """Whoever takes an instance's label or OpenTelemetry's away takes all of them, and no rule names what it keeps."""
    assert " by (" not in expression
    for listed in re.findall(r"without \(([^)]*)\)", expression):
        labels = set(re.findall(r"\w+", listed))
        for kind in (REPLICA_LABELS, SCOPE_LABELS):
            assert not labels & kind or kind <= labels, labels
    counted = re.sub(r"circuit_breaker_\w*count\b", "", expression)
    if re.search(r"(?<![:\w])circuit_breaker_", expression):
        assert set(re.findall(r"\w+", counted)) >= SCOPE_LABELS, "of two versions of one program"


def test_each_alert_of_the_catalogue_has_its_rule() -> None:
    """Name, severity and runbook are the catalogue's; only a circuit that is forced open has another severity."""
    shown = [(rule["alert"], rule["labels"]["severity"], rule["annotations"]["runbook_url"]) for rule in ALERTS]
    wanted = [(each.name, each.severity, names.RUNBOOKS + each.runbook) for each in names.PROMETHEUS_ALERTS]
    forced = (names.CIRCUIT_OPEN.name, "info", names.RUNBOOKS + names.CIRCUIT_OPEN.runbook)
    assert sorted(shown) == sorted([*wanted, forced])
    for rule in ALERTS:
        assert (RULES.parent / "runbooks" / Path(rule["annotations"]["runbook_url"]).name).exists()


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_each_alert_says_all_that_an_alert_should(rule: dict[str, Any]) -> None:
    """It waits, keeps on, and has a summary that names what it is about and a description, with its value."""
    assert rule.keys() == {"alert", "expr", "for", "keep_firing_for", "labels", "annotations"}
    assert seconds(rule["for"]) >= 60
    assert seconds(rule["keep_firing_for"]) >= 120
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    told = rule["annotations"]["summary"] + rule["annotations"]["description"]
    assert "$labels.job" in told or rule["alert"] == names.FLEET_WIDE_OUTAGE.name
    assert "$value" in told or rule["alert"] == names.CIRCUIT_STUCK_OPEN.name


@pytest.mark.parametrize("alert", names.PROMETHEUS_ALERTS, ids=lambda alert: alert.name)
def test_each_alert_is_tested_as_it_fires_does_not_fire_and_resolves(alert: names.AlertName) -> None:
    """There is a case in which it never fires, and one in which it does not fire, then does, then no more."""
    found = dict(cases(alert.name))
    assert all(alert.name in name for name in found if "forced" not in name), "a case is named after its alert"
    assert any(not any(fires) and len(fires) > 1 and "does not fire" in name for name, fires in found.items())
    courses = ["".join("x" if fire else "." for fire in fires) for name, fires in found.items() if "resolves" in name]
    assert any(re.fullmatch(r"\.+x+\.+", course) for course in courses), courses


# -- the page -----------------------------------------------------------------------------------------------------


def test_the_pages_table_of_alerts_is_true() -> None:
    """It lists each alert with its severity, how long it waits and keeps on, and its runbook."""
    text = PAGE.read_text("utf-8").split("| alert |", 1)[1].split("\n\n", 1)[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[2:]]
    shown = [(row[0].strip("`"), row[2], row[3], row[4], row[5]) for row in rows]
    wanted = [
        (
            rule["alert"],
            rule["labels"]["severity"],
            rule["for"],
            rule["keep_firing_for"],
            f"[{rule['alert']}.md](../../{names.RUNBOOKS}{rule['alert']}.md)",
        )
        for rule in ALERTS
    ]
    assert shown == wanted


def test_the_page_lists_what_is_recorded() -> None:
    """Each recorded series is on the page."""
    assert set(re.findall(r"`(\w+:circuit_breaker_\w+:\w+)`", PAGE.read_text("utf-8"))) == set(RECORDED)
