"""The proof: all that the dashboards and rules ask, asked of a real Prometheus that watched real breakers."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("prometheus_client")
pytest.importorskip("opentelemetry.sdk")
pytest.importorskip("yaml")

from fluxgate import State
from fluxgate.events import CallEnded, CallRejected, FallbackUsed, StateChanged, WouldOpen
from fluxgate.listeners import names
from tests import grafana, shipped
from tests.fleet import STEP
from tests.grafana import Query
from tests.prometheus_server import until
from tests.proof import RANGE_STEP, Proof, proof

DASHBOARDS = shipped.dashboards()
RULES = list(shipped.rules())


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proof]:
    with proof(tmp_path_factory.mktemp("proof")) as running:
        yield running


def ask(
    real: Proof, query: Query, expression: str, step: float = RANGE_STEP
) -> list[tuple[dict[str, str], list[float]]]:
    """What a panel or an annotation gets: each series' labels and its values."""
    if query.instant:
        return [(labels, [value]) for labels, value in real.prometheus.query_at(expression, real.end)]
    found = real.prometheus.query_range(expression, real.start, real.end, step)
    return [(series.labels, [value for _, value in series.values]) for series in found]


def nothing_in(answer: list[tuple[dict[str, str], list[float]]]) -> str | None:
    """Why a panel shows nothing for it, if so."""
    values = [value for _, series in answer for value in series if not math.isnan(value)]
    if not values:
        return "finds nothing"
    return None if any(values) else "finds nothing but 0"


def shipped_expressions(document: Any) -> Iterator[str]:
    """Every query of a dashboard's JSON, wherever it is in there."""
    if isinstance(document, dict):
        if document.get("type") == "query" and "query" in document:
            yield str(document["query"])
        elif isinstance(document.get("expr"), str):
            yield document["expr"]
        elif isinstance(document.get("query"), str) and "refId" in document:
            yield document["query"]
        else:
            for each in document.values():
                yield from shipped_expressions(each)
    elif isinstance(document, list):
        for each in document:
            yield from shipped_expressions(each)


def test_the_story_has_everything_in_it(real: Proof) -> None:
    """Circuits open, reopen, probe, recover, are forced and refuse, in all states; listeners fail and lose events."""
    trouble = real.fleet.trouble()
    assert all(trouble.values()), trouble
    assert {change.new_state for change in real.fleet.events(StateChanged)} == set(State)
    assert real.fleet.events(WouldOpen)
    assert real.fleet.events(FallbackUsed)
    assert {type(event) for event in real.fleet.events(CallEnded)} == set(names.OUTCOMES)
    assert len(real.fleet.programs[1].runs) == 2, "one has restarted"


def test_every_query_finds_something(real: Proof, capsys: pytest.CaptureFixture[str]) -> None:
    """No query of a panel, a variable, an annotation or a rule fails, and none is empty or always 0."""
    problems: list[str] = []
    checked, foreign = Counter[str](), Counter[str]()
    for dashboard in DASHBOARDS:
        values = grafana.choose(dashboard, {}, real.offered, real.macros())
        for query in dashboard.queries():
            if query.datasource != grafana.PROMETHEUS:
                foreign[query.datasource] += 1
                continue
            try:
                expression = grafana.filled_in(query.expression, values)
                if query.part == "variable":
                    wrong = None if real.offered(expression) else "offers nothing"
                else:
                    wrong = nothing_in(ask(real, query, expression))
            except AssertionError as error:
                wrong = str(error)
            checked[query.part] += 1
            if wrong:
                problems.append(f"{query}: {wrong}: {query.expression}")
    for rule in RULES:
        try:
            found = real.prometheus.query_range(rule.expression, real.start, real.end, STEP)
            wrong = nothing_in([(series.labels, [value for _, value in series.values]) for series in found])
        except AssertionError as error:
            wrong = str(error)
        checked["alert" if rule.alerts else "recording rule"] += 1
        if wrong:
            problems.append(f"{rule}: {wrong}")
    total = sum(len(list(shipped_expressions(dashboard.json))) for dashboard in DASHBOARDS) + len(RULES)
    shares = ", ".join(f"{count} of {part}s" for part, count in checked.items())
    others = ", ".join(f"{count} for {datasource}" for datasource, count in foreign.items())
    with capsys.disabled():
        print(f"\n{checked.total()} of {total - foreign.total()} queries for Prometheus checked: {shares}")
        print(f"not for Prometheus, and not checked here: {others or 'none'}")
    assert problems == []
    assert checked.total() + foreign.total() == total


def test_choices_are_obeyed(real: Proof) -> None:
    """Where somebody chooses a circuit whose name has brackets, or two, or an instance, what is shown is of these."""
    instance = real.fleet.programs[0].instance
    choices: list[dict[str, list[str]]] = [
        {"circuit": ["search (EU)"]},
        {"circuit": ["payments", "search (EU)"]},
        {"job": ["billing"]},
        {"job": ["shop"], "instance": [instance], "circuit": ["payments"]},
    ]
    asked = 0
    for choice in choices:
        for dashboard in DASHBOARDS:
            values = grafana.choose(dashboard, choice, real.offered, real.macros())
            for query in dashboard.queries():
                if query.datasource != grafana.PROMETHEUS or query.part != "panel":
                    continue
                expression = grafana.filled_in(query.expression, values)
                answer = ask(real, query, expression)
                asked += bool(answer)
                for label, variable in (("circuit_name", "circuit"), ("job", "job"), ("instance", "instance")):
                    if variable in choice and f"${variable}" in query.expression:
                        seen = {labels[label] for labels, _ in answer if label in labels}
                        assert seen <= set(choice[variable]), f"{query}: {query.expression}"
    assert asked > 0


def test_legends_name_labels_that_are_there(real: Proof) -> None:
    """Each label in a legend is one that every series of the panel has."""
    for dashboard in DASHBOARDS:
        values = grafana.choose(dashboard, {}, real.offered, real.macros())
        for query in dashboard.queries():
            legend = query.model.get("legendFormat", "")
            wanted = {part.split("}}")[0].strip() for part in legend.split("{{")[1:]}
            if query.datasource == grafana.PROMETHEUS and query.part == "panel" and wanted:
                for labels, _ in ask(real, query, grafana.filled_in(query.expression, values)):
                    assert wanted <= set(labels), f"{query}: {legend} of {labels}"


def test_every_alert_holds_for_as_long_as_it_asks(real: Proof) -> None:
    """As shipped, each alert of `names.PROMETHEUS_ALERTS` would have fired: its expression held for its whole `for`."""
    fired: set[tuple[str, str]] = set()
    for rule in RULES:
        if rule.alerts:
            # Up to where the live part begins: from then on the rules are evaluated faster.
            found = real.prometheus.query_range(rule.expression, real.start, real.history_end, STEP)
            assert longest([[when for when, _ in series.values] for series in found]) >= rule.lasting, str(rule)
            fired.add((rule.name, rule.model["labels"]["severity"]))
    assert fired >= {(alert.name, alert.severity) for alert in names.PROMETHEUS_ALERTS}
    assert {name for name, _ in fired} == {alert.name for alert in names.PROMETHEUS_ALERTS}


def longest(moments: list[list[float]]) -> float:
    """The longest stretch without a gap, in seconds."""
    best = 0.0
    for series in moments:
        begin = series[0]
        for before, when in itertools.pairwise(series):
            begin = begin if when - before <= STEP else when
            best = max(best, when - begin)
    return best


def test_every_rule_is_evaluated_and_every_alert_fires(real: Proof) -> None:
    """The running Prometheus evaluates each rule without an error, and as the story ends each alert fires."""
    until(lambda: {rule["health"] for rule in real.prometheus.rules()} == {"ok"}, "healthy rules")
    rules = real.prometheus.rules()
    assert len(rules) == len(RULES)
    fires = {rule["name"] for rule in rules if rule.get("state") == "firing"}
    assert fires == {alert.name for alert in names.PROMETHEUS_ALERTS}
    told = {(labels["alertname"], labels["severity"]) for labels, _ in real.prometheus.query("ALERTS")}
    assert told >= {(alert.name, alert.severity) for alert in names.PROMETHEUS_ALERTS}


# -- figures ----------------------------------------------------------------------------------------------------------


def counted(real: Proof, kind: type[Any], *, job: str, latest: bool = False) -> Counter[str]:
    """How many events of a kind the recorders saw, by circuit; of the latest runs alone, since their start."""
    return Counter(
        event.circuit_name
        for program in real.fleet.programs
        if program.job == job
        for run in (program.runs[-1:] if latest else program.runs)
        for event in run.recorder.of(kind)
        if latest is False or event.circuit_name in run.circuits()
    )


@pytest.mark.parametrize(
    ("kind", "series"),
    [
        (CallEnded, f"{names.CALL_DURATION.series}_count"),
        (CallRejected, names.REJECTED_CALLS.series),
        (StateChanged, names.TRANSITIONS.series),
        (FallbackUsed, names.FALLBACK_CALLS.series),
        (WouldOpen, names.WOULD_OPEN.series),
    ],
)
def test_what_prometheus_has_is_what_the_engine_counted(real: Proof, kind: type[Any], series: str) -> None:
    """Calls, refusals, moves, fallbacks and shadow trips since the last start, exactly, by circuit and job."""
    real.prometheus.next_scrapes()
    for job in ("shop", "billing"):
        found = real.prometheus.query(f'sum by (circuit_name) ({series}{{job="{job}"}}) > 0')
        had = {labels["circuit_name"]: value for labels, value in found}
        assert had == counted(real, kind, job=job, latest=True), job


@pytest.mark.parametrize(
    ("kind", "series"),
    [
        (CallEnded, f"{names.CALL_DURATION.series}_count"),
        (CallRejected, names.REJECTED_CALLS.series),
        (StateChanged, names.TRANSITIONS.series),
    ],
)
def test_increase_over_the_story_is_what_the_engine_counted(real: Proof, kind: type[Any], series: str) -> None:
    """`increase` over everything, a restart included, gives what the recorders saw, but for its estimates."""
    span = grafana.seconds(real.end - real.start)
    for job in ("shop", "billing"):
        found = real.prometheus.query(f'sum by (circuit_name) (increase({series}{{job="{job}"}}[{span}]))')
        had = {labels["circuit_name"]: value for labels, value in found if value}
        counts = {name: count for name, count in counted(real, kind, job=job).items() if name != "campaign"}
        had.pop("campaign", None)
        assert had == pytest.approx(counts, rel=0.05, abs=6), job


def test_the_time_in_each_state_is_what_the_events_say(real: Proof) -> None:
    """The average of the state over the story is the time between the changes of state, to within a scrape a change."""
    span = real.history_end - real.start
    for program in (real.fleet.programs[0], real.fleet.programs[2]):
        spent: defaultdict[tuple[str, str], float] = defaultdict(float)
        changes = Counter[tuple[str, str]]()
        for name, breaker in program.run.circuits().items():
            state, since = State.CLOSED, real.start
            for change in program.run.recorder.of(StateChanged):
                if change.circuit_name == name and change.timestamp <= real.history_end:
                    spent[name, state] += change.timestamp - since
                    changes[name, state] += 1
                    changes[name, change.new_state] += 1
                    state, since = change.new_state, change.timestamp
            spent[name, state] += real.history_end - since
            assert breaker.name == name
        query = f'avg_over_time({names.STATE.series}{{instance="{program.instance}"}}[{grafana.seconds(span)}])'
        for labels, share in real.prometheus.query_at(query, real.history_end):
            key = labels["circuit_name"], labels["state"]
            if key[0] != "campaign":
                assert share * span == pytest.approx(spent[key], abs=STEP * (changes[key] + 2)), key


# -- figures as panels show them --------------------------------------------------------------------------------------


def shown(
    real: Proof, file: str, title: str, ref: str = "A", **choice: list[str]
) -> list[tuple[dict[str, str], list[float]]]:
    """What a query of a panel finds for these choices, as the dashboard shows the whole story."""
    real.prometheus.next_scrapes()
    [dashboard] = [each for each in DASHBOARDS if each.name == file]
    values = grafana.choose(dashboard, choice, real.offered, real.macros())
    [query] = [
        query
        for query in dashboard.queries()
        if query.part == "panel" and query.panel["title"] == title and query.model["refId"] == ref
    ]
    return ask(real, query, grafana.filled_in(query.expression, values))


def by_circuit(answer: list[tuple[dict[str, str], list[float]]]) -> dict[str, float]:
    """The latest values of a panel."""
    return {labels["circuit_name"]: values[-1] for labels, values in answer}


def test_panels_of_the_past_show_what_the_engine_counted(real: Proof) -> None:
    """Refusals, openings and reopens of the whole story are, but for `increase`'s estimates, what the recorders saw."""
    refused, opened, reopened = Counter[str](), Counter[str](), Counter[str]()
    for event in real.fleet.events(CallRejected):
        refused[event.circuit_name] += 1
    for change in real.fleet.events(StateChanged):
        opened[change.circuit_name] += (change.old_state, change.new_state) == (State.CLOSED, State.OPEN)
        reopened[change.circuit_name] += (change.old_state, change.new_state) == (State.HALF_OPEN, State.OPEN)
    # What was counted between the last scrape of a run and its end is lost to every Prometheus.
    about: dict[str, Any] = {"rel": 0.05, "abs": 4}
    assert by_circuit(shown(real, "fleet.json", "Most calls refused")) == pytest.approx(refused, **about)
    assert by_circuit(shown(real, "fleet.json", "Most openings")) == pytest.approx(opened, **about)
    for circuit in ("payments", "search (EU)"):
        answer = by_circuit(shown(real, "circuit.json", "Reopens", circuit=[circuit]))
        assert answer == pytest.approx({circuit: reopened[circuit]}, **about)


def test_calls_by_outcome_add_up_to_what_the_engine_counted(real: Proof) -> None:
    """The rates of the panel, times the time between its points, are the calls by outcome."""
    # A rate sees nothing of what a circuit had counted before its first scrape, nor of the last moments.
    seen = [event for event in real.fleet.events(CallEnded) if event.timestamp <= real.history_end]
    counted = Counter(names.OUTCOMES[type(event)] for event in seen)
    answer = shown(real, "fleet.json", "Calls by outcome")
    had = {labels["outcome"]: sum(values) * RANGE_STEP for labels, values in answer}
    assert had == pytest.approx(counted, rel=0.08)
    refused = sum(shown(real, "fleet.json", "Calls by outcome", "B")[0][1]) * RANGE_STEP
    assert refused == pytest.approx(len(real.fleet.events(CallRejected)), rel=0.05)


def test_probes_add_up_to_what_the_engine_counted(real: Proof) -> None:
    """So are the settled probes, by circuit and outcome."""
    counted = Counter(
        names.OUTCOMES[type(event)]
        for event in real.fleet.events(CallEnded, job="billing")
        if event.circuit_name == "payments" and event.state is State.HALF_OPEN and not event.stale
    )
    answer = shown(real, "circuit.json", "Probes", job=["billing"], circuit=["payments"])
    had = {labels["outcome"]: sum(values) * RANGE_STEP for labels, values in answer if any(values)}
    assert had == pytest.approx(counted, rel=0.15, abs=2)
    assert sum(counted.values()) > 4


def test_panels_of_the_present_show_the_circuits_as_they_are(real: Proof) -> None:
    """How many circuits are in each state, in which each is and since when: what the breakers themselves say."""
    infos = [breaker.info() for program in real.fleet.programs for breaker in program.run.circuits().values()]
    # A look of `info` is no call: an open circuit whose wait is over is still open.
    alike = {(info.name, info.state) for info in infos}
    had = {labels["state"]: values[-1] for labels, values in shown(real, "fleet.json", "Circuits by state")}
    assert had == {state: sum(each is state for _, each in alike) for state in State}
    out = {info.name for info in infos if info.state is not State.CLOSED}
    assert set(by_circuit(shown(real, "fleet.json", "Circuits that are not closed"))) == out
    since = by_circuit(shown(real, "fleet.json", "Circuits that are not closed", "B"))
    for name in out:
        first = min(info.changed_at for info in infos if info.name == name and info.state is not State.CLOSED)
        assert since[name] == pytest.approx(real.end - first, abs=5), name
    numbers = Counter(info.name for info in infos if info.state is not State.CLOSED)
    assert by_circuit(shown(real, "fleet.json", "Circuits that are not closed", "C")) == numbers


def test_limits_are_those_of_the_rules(real: Proof) -> None:
    """The limits beside the rates are the ones that the breakers were made with."""
    both = {"circuit": ["payments", "search (EU)"]}
    failures = by_circuit(shown(real, "circuit.json", "Failure rate and its limit", "B", **both))
    assert failures == {"payments": 0.5, "search (EU)": 0.6}
    slowness = by_circuit(shown(real, "circuit.json", "Slow rate and its limit", "B", **both))
    assert slowness == {"payments": 0.8, "search (EU)": 0.9}


def test_every_alert_is_in_the_table_of_alerts(real: Proof) -> None:
    """The fleet's table shows each alert that fires, also one about no circuit in particular."""
    until(lambda: len(real.prometheus.query('group by (alertname) (ALERTS{alertstate="firing"})')) == 8, "eight alerts")
    answer = shown(real, "fleet.json", "Alerts that are firing")
    assert {labels["alertname"] for labels, _ in answer} == {alert.name for alert in names.PROMETHEUS_ALERTS}


def test_the_heatmap_has_exemplars_that_lead_to_traces(real: Proof) -> None:
    """Each query that asks for exemplars gets some, with the id of a trace."""
    asked = 0
    for dashboard in DASHBOARDS:
        values = grafana.choose(dashboard, {}, real.offered, real.macros())
        for query in dashboard.queries():
            if query.datasource == grafana.PROMETHEUS and query.model.get("exemplar"):
                asked += 1
                found = real.prometheus.exemplars(grafana.filled_in(query.expression, values))
                assert found, query
                assert all(set(names.TRACE_KEYS) <= set(each["labels"]) for each in found)
    assert asked > 0
