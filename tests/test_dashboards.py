"""The dashboards that are checked in: what the build gives, what they show, and what starts them."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fluxgate.listeners import names
from fluxgate.state import State
from tests.dashboard_linter import Dashboard, panels, promql, selectors

FOLDER = Path(__file__).parents[1] / "dashboards"
DASHBOARDS: dict[str, Dashboard] = {
    path.name: json.loads(path.read_text("utf-8")) for path in (FOLDER / "grafana").glob("*.json")
}
FILES = sorted(DASHBOARDS)

WITHOUT = """
import sys
sys.modules["grafana_foundation_sdk"] = None
from fluxgate.dashboards.build import main
sys.exit(main([sys.argv[1]]))
"""


def test_the_files_are_what_the_build_gives(tmp_path: Path) -> None:
    """The checked-in dashboards are built from today's names; otherwise: make dashboards."""
    pytest.importorskip("grafana_foundation_sdk")
    command = [sys.executable, "-W", "error", "-m", "fluxgate.dashboards.build", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    built = {path.name: path.read_text("utf-8") for path in tmp_path.iterdir()}
    checked_in = {path.name: path.read_text("utf-8") for path in (FOLDER / "grafana").iterdir()}
    assert built == checked_in
    assert done.stdout.split() == [str(tmp_path / name) for name in ("fleet.json", "circuit.json", "logs.json")]


def test_without_its_library_the_build_says_so_in_a_sentence(tmp_path: Path) -> None:
    """Where grafana-foundation-sdk is missing, one line names it and the extra, and nothing is written."""
    command = [sys.executable, "-c", WITHOUT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "grafana-foundation-sdk" in done.stderr
    assert "'dev'" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_build_wants_a_folder(tmp_path: Path) -> None:
    """Without a folder that exists, the build says how it is called."""
    command = [sys.executable, "-m", "fluxgate.dashboards.build", str(tmp_path / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")


@pytest.mark.parametrize(
    ("matcher", "by", "part"),
    [('colour="red"', "circuit_name", ""), ('state="open"', "colour", ""), ('state="open"', "circuit_name", "_bucket")],
)
def test_what_the_catalogue_does_not_have_breaks_the_build(matcher: str, by: str, part: str) -> None:
    """A query for a label or a part that the metric has not is refused when it is written, not when it is empty."""
    from fluxgate.dashboards import _queries

    with pytest.raises(ValueError, match=names.REJECTED_CALLS.series):
        _queries.rate(names.REJECTED_CALLS, matcher, by=[by], part=part)


def test_titles_and_addresses() -> None:
    """Titles, addresses and tags are fixed: links and bookmarks depend on them."""
    found = {file: (each["uid"], each["title"], each["tags"]) for file, each in DASHBOARDS.items()}
    assert found == {
        "fleet.json": ("fluxgate-fleet", "Fluxgate / Fleet", ["fluxgate"]),
        "circuit.json": ("fluxgate-circuit", "Fluxgate / Circuit", ["fluxgate"]),
        "logs.json": ("fluxgate-logs", "Fluxgate / Logs and traces", ["fluxgate"]),
    }


def test_every_metric_is_shown() -> None:
    """Each instrument of the catalogue is in a panel, and each series asked for is the catalogue's, with its labels."""
    asked = [found for each in DASHBOARDS.values() for _, query in promql(each) for found in selectors(query)]
    known = {
        instrument.series + part: {"job", "instance", *instrument.labels, *(["le"] if part == "_bucket" else [])}
        for instrument in names.INSTRUMENTS
        for part in (("_bucket", "_count") if instrument.kind == "histogram" else ("",))
    }
    assert {metric for metric, _ in asked} - {"ALERTS"} == known.keys()
    for metric, matchers in asked:
        if metric != "ALERTS":
            assert {re.split("[=!]", matcher)[0] for matcher in matchers} <= known[metric]


@pytest.mark.parametrize("file", FILES)
def test_panels_have_their_place(file: str) -> None:
    """Panels have ids of their own, lie within the 24 columns and do not cover each other."""
    shown = DASHBOARDS[file]["panels"]
    assert len({panel["id"] for panel in shown}) == len(shown)
    assert len({panel["title"] for panel in panels(DASHBOARDS[file])}) == len(panels(DASHBOARDS[file]))
    for panel in shown:
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
    for one, other in itertools.combinations([panel["gridPos"] for panel in shown], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert beside or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]


def test_states_are_words_and_colours() -> None:
    """The timeline has a word and a colour for every state, and no number that its query gives is without them."""
    timeline = next(panel for panel in panels(DASHBOARDS["circuit.json"]) if panel["type"] == "state-timeline")
    words = timeline["fieldConfig"]["defaults"]["mappings"][0]["options"]
    numbered = dict(re.findall(r'(\d) \* \w+\{[^}]*state="(\w+)"\}', timeline["targets"][0]["expr"]))
    assert sorted(numbered.values()) == sorted(State)
    assert {number: re.sub("[- ]", "_", shown["text"]) for number, shown in words.items()} == numbered
    assert len({shown["color"] for shown in words.values()}) == len(State)


def test_the_heatmap_has_exemplars() -> None:
    """The heatmap reads buckets as such and asks for exemplars."""
    heatmap = next(panel for panel in panels(DASHBOARDS["circuit.json"]) if panel["type"] == "heatmap")
    [target] = heatmap["targets"]
    assert (target["format"], target["exemplar"], target["range"]) == ("heatmap", True, True)


def test_rates_are_beside_their_limits() -> None:
    """The failure rate and the slow rate are drawn with the limit from which the circuit opens."""
    found = {}
    for panel in panels(DASHBOARDS["circuit.json"]):
        limits = [re.search(r'circuit_breaker_limit\{.*rule="(\w+)"', each["expr"]) for each in panel["targets"]]
        if any(limits):
            found[panel["title"]] = [limit[1] for limit in limits if limit]
    assert found == {"Failure rate and its limit": ["failure_rate"], "Slow rate and its limit": ["slow_rate"]}


@pytest.mark.parametrize("file", FILES)
def test_the_other_dashboards_are_one_click_away(file: str) -> None:
    """Links between the dashboards keep the variables and the time."""
    [link] = DASHBOARDS[file]["links"]
    assert (link["type"], link["tags"], link["includeVars"], link["keepTime"]) == (
        "dashboards",
        ["fluxgate"],
        True,
        True,
    )


@pytest.mark.parametrize("file", FILES)
def test_changes_of_state_are_annotations(file: str) -> None:
    """Openings and closings are marked in every dashboard, in older and newer Grafanas by the same query."""
    marks = DASHBOARDS[file]["annotations"]["list"]
    assert [(mark["name"], mark["enable"]) for mark in marks] == [
        ("Opened", True),
        ("Closed", True),
        ("Other changes", False),
    ]
    assert all(mark["expr"] == mark["target"]["expr"] for mark in marks)


def links(document: Any) -> list[str]:
    """All addresses in a dashboard."""
    if isinstance(document, dict):
        own = [document["url"]] if isinstance(document.get("url"), str) else []
        return own + [url for value in document.values() for url in links(value)]
    return [url for value in document for url in links(value)] if isinstance(document, list) else []


@pytest.mark.parametrize("file", FILES)
def test_links_lead_somewhere(file: str) -> None:
    """Links to dashboards name one of them and carry time and variables; links to runbooks name a page that exists."""
    uids = {each["uid"] for each in DASHBOARDS.values()}
    variables = {each["name"] for each in DASHBOARDS[file]["templating"]["list"]}
    found = links(DASHBOARDS[file])
    assert found
    for url in found:
        used = set(re.findall(r"\$\{(\w+)(?::\w+)?\}", url))
        assert used <= variables | {"__url_time_range", "__from", "__to"}, url
        if url.startswith("/d/"):
            assert url.removeprefix("/d/").partition("?")[0] in uids
            assert {"__url_time_range", "datasource", "job", "instance"} <= used
        elif url.startswith("${runbooks}"):
            page = url.removeprefix("${runbooks}")
            assert page == "${__data.fields.Alert}.md" or (FOLDER / "runbooks" / page).is_file()
        else:
            assert url.startswith("/explore?")


def test_alerts_lead_to_their_runbooks_by_name() -> None:
    """The link of the table of alerts fits all of them."""
    asked = next(panel for panel in panels(DASHBOARDS["fleet.json"]) if panel["title"] == "Alerts that are firing")
    [(_, matchers)] = selectors(asked["targets"][0]["expr"])
    [alerts] = [matcher for matcher in matchers if matcher.startswith("alertname")]
    assert alerts == 'alertname=~"' + "|".join(alert.name for alert in names.PROMETHEUS_ALERTS) + '"'
    for alert in names.PROMETHEUS_ALERTS:
        assert alert.runbook == f"{alert.name}.md"
        assert (FOLDER / "runbooks" / alert.runbook).is_file()


def test_the_trace_of_a_log_line_opens_in_explore() -> None:
    """The link to a trace is an address whose panes are JSON once Grafana has put the values in."""
    from urllib.parse import parse_qs, urlsplit

    [url] = {url for url in links(DASHBOARDS["logs.json"]) if url.startswith("/explore")}
    for name, value in (
        ("tempo", "T"),
        ("__value.raw", "0af7651916cd43dd"),
        ("__from", "1"),
        ("__to", "2"),
    ):
        assert f"${{{name}}}" in url
        url = url.replace(f"${{{name}}}", value)
    [pane] = json.loads(parse_qs(urlsplit(url).query)["panes"][0]).values()
    assert (pane["datasource"], pane["range"]) == ("T", {"from": "1", "to": "2"})
    assert pane["queries"][0]["query"] == "0af7651916cd43dd"


# -- what starts them ---------------------------------------------------------------------------------------------


def read_yaml(path: Path) -> Any:
    return pytest.importorskip("yaml").safe_load(path.read_text("utf-8"))


def test_compose_starts_pinned_versions_on_loopback_alone() -> None:
    """Each image has its exact version, and each service listens on 127.0.0.1 and nowhere else."""
    services = read_yaml(FOLDER / "compose.yaml")["services"]
    assert services.keys() == {"prometheus", "alertmanager", "grafana"}
    for service in services.values():
        assert re.fullmatch(r"(prom|grafana)/\w+:v?\d+\.\d+\.\d+", service["image"])
        assert "ports" not in service
    for name in ("prometheus", "alertmanager"):
        [listens] = [each for each in services[name]["command"] if "web.listen-address" in each]
        assert re.fullmatch(r"--web\.listen-address=127\.0\.0\.1:\d+", listens)
    assert "--cluster.listen-address=" in services["alertmanager"]["command"]
    assert "--enable-feature=exemplar-storage" in services["prometheus"]["command"]
    assert services["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"


def test_everything_that_compose_mounts_is_shipped() -> None:
    """Each path that a container is given lies beside compose.yaml, and each configuration file that it is told of."""
    document = read_yaml(FOLDER / "compose.yaml")
    for service in document["services"].values():
        inside = {}
        for volume in service["volumes"]:
            source, target, *_ = volume.split(":")
            if source.startswith("."):
                assert (FOLDER / source).is_dir(), volume
                assert any((FOLDER / source).iterdir()), volume
                inside[target] = FOLDER / source
            else:
                assert source in document["volumes"]
        for flag in service.get("command", []):
            if flag.startswith("--config.file="):
                folder, _, file = flag.removeprefix("--config.file=").rpartition("/")
                assert (inside[folder] / file).is_file(), flag


def test_alertmanager_knows_the_alerts() -> None:
    """Its routes lead to receivers that there are, by severities and alerts of the catalogue."""
    config = read_yaml(FOLDER / "alertmanager" / "alertmanager.yml")
    routes = [config["route"], *config["route"]["routes"]]
    assert {route["receiver"] for route in routes} == {receiver["name"] for receiver in config["receivers"]}
    matchers = [matcher for route in routes for matcher in route.get("matchers", [])]
    for rule in config["inhibit_rules"]:
        matchers += [*rule["source_matchers"], *rule["target_matchers"]]
    alerts = {alert.name for alert in names.PROMETHEUS_ALERTS}
    known: dict[str, set[str]] = {"alertname": alerts, "severity": {*names.ALERT_LEVELS}}
    for matcher in matchers:
        label, values = re.fullmatch(r'(\w+)=~?"([\w|]+)"', matcher).groups()  # type: ignore[union-attr]
        assert set(values.split("|")) <= known[label]


def test_grafana_is_provisioned_with_what_is_shipped() -> None:
    """Grafana finds the dashboards where compose puts them, and data sources of each kind that they ask."""
    mounts = read_yaml(FOLDER / "compose.yaml")["services"]["grafana"]["volumes"]
    places = {source: target for source, target, _ in (mount.split(":") for mount in mounts)}
    [provider] = read_yaml(FOLDER / "provisioning" / "dashboards" / "fluxgate.yml")["providers"]
    assert provider["options"]["path"] == places["./grafana"]

    sources = read_yaml(FOLDER / "provisioning" / "datasources" / "fluxgate.yml")["datasources"]
    asked = {
        variable["query"]
        for each in DASHBOARDS.values()
        for variable in each["templating"]["list"]
        if variable["type"] == "datasource"
    }
    assert asked < {source["type"] for source in sources}
    uids = {source["uid"] for source in sources}
    by_type = {source["type"]: source["jsonData"] for source in sources}
    [exemplar] = by_type["prometheus"]["exemplarTraceIdDestinations"]
    [derived] = by_type["loki"]["derivedFields"]
    assert exemplar["name"] == derived["matcherRegex"] == names.TRACE_KEYS[0]
    assert {
        exemplar["datasourceUid"],
        derived["datasourceUid"],
        by_type["tempo"]["tracesToLogsV2"]["datasourceUid"],
    } < uids

    runbooks = next(v for v in DASHBOARDS["fleet.json"]["templating"]["list"] if v["name"] == "runbooks")
    assert places["./runbooks"] == f"/usr/share/grafana{runbooks['query'].rstrip('/')}"
