"""Grafana's rules for dashboards, over what is checked in; each exception is named here, with its reason."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.dashboard_linter import RULES, Dashboard

FOLDER = Path(__file__).parents[1] / "dashboards" / "grafana"
DASHBOARDS: dict[str, Dashboard] = {path.name: json.loads(path.read_text("utf-8")) for path in FOLDER.glob("*.json")}
FILES = sorted(DASHBOARDS)

NO_INSTANCE = "what comes through OpenTelemetry may have no such label, and `.*` finds series without it as well"
SOURCES = (
    "three data sources have short names here; `datasource` is that of the other dashboards, so that links carry it"
)
RULES_ADD_UP = "alerts have no instance, and the one about the whole fleet has no job: `$job|` finds both kinds"

# The rule, the file, and the variable or panel that may break it.
EXCEPTIONS: dict[tuple[str, str, str], str] = {
    **{(f"template-{label}-rule", file, label): NO_INSTANCE for file in FILES for label in ("job", "instance")},
    **{("template-datasource-rule", "logs.json", name): SOURCES for name in ("datasource", "loki", "tempo")},
    **{
        (f"target-{label}-rule", "fleet.json", panel): RULES_ADD_UP
        for label in ("job", "instance")
        for panel in ("Alerts firing", "Alerts that are firing")
    },
}


def test_there_are_dashboards() -> None:
    """The three dashboards are checked in, so that the rules below have something to look at."""
    assert FILES == ["circuit.json", "fleet.json", "logs.json"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("rule", RULES)
def test_a_dashboard_keeps_the_rule(rule: str, file: str) -> None:
    """A dashboard breaks none of Grafana's rules, but for the exceptions above, each of which is still needed."""
    found = list(RULES[rule](DASHBOARDS[file]))
    excepted = {where for name, in_file, where in EXCEPTIONS if (name, in_file) == (rule, file)}
    assert [finding for finding in found if finding[0] not in excepted] == []
    assert excepted == {where for where, _ in found}


Breaks = Callable[[Dashboard], Any]


def panel(dashboard: Dashboard, kind: str = "timeseries") -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in dashboard["panels"] if each["type"] == kind)
    return found


def asks(query: str, kind: str = "timeseries") -> Breaks:
    return lambda dashboard: panel(dashboard, kind)["targets"][0].update(expr=query)


def variable(called: str, **values: Any) -> Breaks:
    def change(dashboard: Dashboard) -> None:
        found = next(each for each in dashboard["templating"]["list"] if each["name"] == called)
        found.update(values)

    return change


GOOD = 'job=~"$job", instance=~"$instance"'
BREAKS: list[tuple[str, str, Breaks]] = [
    ("template-datasource-rule", "fleet.json", variable("datasource", name="prometheus")),
    ("template-datasource-rule", "fleet.json", variable("datasource", type="constant")),
    ("template-job-rule", "fleet.json", variable("job", multi=False)),
    ("template-job-rule", "fleet.json", variable("job", name="service")),
    ("template-instance-rule", "fleet.json", variable("instance", datasource={"type": "prometheus", "uid": "abc"})),
    ("template-label-promql-rule", "fleet.json", variable("circuit", query="labels(x, circuit_name)")),
    ("template-label-promql-rule", "fleet.json", variable("circuit", query='label_values(x{a=~"b}, circuit_name)')),
    ("template-on-time-change-reload-rule", "fleet.json", variable("circuit", refresh=1)),
    ("panel-datasource-rule", "fleet.json", lambda d: panel(d).update(datasource={"type": "prometheus", "uid": "abc"})),
    ("panel-datasource-rule", "logs.json", lambda d: panel(d)["targets"][0].update(datasource={"type": "loki"})),
    ("panel-title-description-rule", "fleet.json", lambda d: panel(d).update(description="")),
    ("panel-units-rule", "fleet.json", lambda d: panel(d)["fieldConfig"]["defaults"].update(unit="calls")),
    ("panel-units-rule", "fleet.json", lambda d: panel(d)["fieldConfig"]["defaults"].pop("unit")),
    ("panel-no-targets-rule", "fleet.json", lambda d: panel(d).update(targets=[])),
    ("target-promql-rule", "fleet.json", asks("sum by (circuit_name (up)")),
    ("target-promql-rule", "fleet.json", asks("rate(x[$__interval_rate])")),
    ("target-rate-interval-rule", "fleet.json", asks(f"rate(x_total{{{GOOD}}}[5m])")),
    ("target-job-rule", "fleet.json", asks('x{instance=~"$instance"}')),
    ("target-instance-rule", "fleet.json", asks(f'x{{{GOOD}}} / y{{job=~"$job", instance="$instance"}}')),
    ("target-counter-agg-rule", "fleet.json", asks(f"x_total{{{GOOD}}}")),
    ("target-counter-agg-rule", "fleet.json", asks(f"rate(x_total{{{GOOD}}}[5m]) / x_total{{{GOOD}}}")),
    ("target-counter-agg-rule", "fleet.json", asks(f"max_over_time(x_count{{{GOOD}}}[5m])")),
    ("uneditable-dashboard", "fleet.json", lambda d: d.update(editable=True)),
    ("target-logql-rule", "logs.json", asks('{$stream} |~ "circuit_open" | json | event=~"circuit_open"', "logs")),
    ("target-logql-rule", "logs.json", asks('{$stream} | json | event=~"circuit_opened"', "logs")),
    ("target-logql-rule", "logs.json", asks('sum(rate({$stream} |~ "a" | json | event=~"circuit_opened" [$__auto])')),
    ("target-logql-auto-rule", "logs.json", asks('count_over_time({$stream} |= "x" [5m])')),
]


@pytest.mark.parametrize(("rule", "file", "breaks"), BREAKS, ids=[f"{rule}-{n}" for n, (rule, *_) in enumerate(BREAKS)])
def test_a_rule_finds_what_breaks_it(rule: str, file: str, breaks: Breaks) -> None:
    """Each rule finds something more in a dashboard that breaks it."""
    broken = copy.deepcopy(DASHBOARDS[file])
    before = list(RULES[rule](broken))
    breaks(broken)
    after = list(RULES[rule](broken))
    assert [finding for finding in after if finding not in before]


def test_every_rule_is_tried() -> None:
    """All 17 rules of the linter are here, and for each a dashboard that breaks it."""
    assert len(RULES) == 17
    assert {rule for rule, *_ in BREAKS} == RULES.keys()
