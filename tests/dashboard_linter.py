"""The rules of Grafana's dashboard-linter, for the JSON that is checked in.

https://github.com/grafana/dashboard-linter/blob/main/docs/index.md says what each rule is for. Where the original looks
at some kinds of panels, these look at all of them.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

from fluxgate.listeners import names
from tests.prometheus_server import PATIENCE, program

Dashboard = dict[str, Any]
Finding = tuple[str, str]
"""The variable, panel or annotation that breaks a rule, and how."""
Rule = Callable[[Dashboard], Iterator[Finding]]

MACROS = {
    "$__rate_interval": "5m",
    "$__interval": "1m",
    "$__range": "3h",
    "$__auto": "5m",
    "$job": ".*",
    "$instance": ".*",
    "$circuit": ".+",
    "$stream": 'service_name=~".+"',
}
"""What Grafana would put in their place."""

# Of those that Grafana knows: those that make sense here. A typing error in a unit shows as text behind each figure.
UNITS = {"none", "short", "percentunit", "s", "cps", "dateTimeAsSystem"}

_SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)\{([^}]*)\}")
_OURS = re.compile(r"\b(?:circuit_breaker_\w+|ALERTS\w*)")
_RANGE = re.compile(r"\b(\w+)\(([a-zA-Z_:][\w:]*)\{[^}]*\}\[([^\]]*)\]")
_VARIABLE = re.compile(r"(\w+)\((?:(.+), )?(\w+)\)")


def expand(query: str) -> str:
    """The query as a data source would get it."""
    for macro, value in MACROS.items():
        query = query.replace(macro, value)
    return query


def selectors(promql: str) -> list[tuple[str, list[str]]]:
    """Each metric that the query selects, and its matchers."""
    bare = [found[0] for found in _OURS.finditer(promql) if promql[found.end() : found.end() + 1] != "{"]
    assert not bare, f"{bare} without braces in {promql}"
    return [(metric, matchers.split(", ")) for metric, matchers in _SELECTOR.findall(promql)]


def panels(dashboard: Dashboard) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def targets(dashboard: Dashboard, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The queries for a kind of data source, with the title of their panel."""
    for panel in panels(dashboard):
        if panel["datasource"]["type"] == kind:
            yield from ((panel["title"], target) for target in panel.get("targets") or [])


def promql(dashboard: Dashboard) -> Iterator[tuple[str, str]]:
    """Every query for Prometheus, those of annotations included."""
    yield from ((title, target["expr"]) for title, target in targets(dashboard, "prometheus"))
    yield from ((each["name"], each["expr"]) for each in dashboard["annotations"]["list"])


def variables(dashboard: Dashboard, kind: str) -> list[dict[str, Any]]:
    return [variable for variable in dashboard["templating"]["list"] if variable["type"] == kind]


def parse_promql(queries: list[str]) -> str:
    """What promtool, which is Prometheus's own parser, says against the queries: nothing, if they are well formed."""
    rules = [{"record": f"checked:{number}", "expr": expand(query)} for number, query in enumerate(queries)]
    document = json.dumps({"groups": [{"name": "queries", "rules": rules}]})  # JSON is YAML
    command = [program("promtool"), "check", "rules", "--lint=none", "/dev/stdin"]
    done = subprocess.run(command, input=document, capture_output=True, text=True, timeout=PATIENCE, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


# -- the dashboard ------------------------------------------------------------------------------------------------


def template_datasource(dashboard: Dashboard) -> Iterator[Finding]:
    """Data sources are variables with names and labels that are the same everywhere."""
    sources = variables(dashboard, "datasource")
    if not sources:
        yield "", "no data source is a variable"
    for source in sources:
        kind = source["query"]
        allowed = {(f"{kind}_datasource", f"{kind.title()} data source")}
        if len(sources) == 1:
            allowed.add(("datasource", "Data source"))
        if (source["name"], source["label"]) not in allowed:
            yield source["name"], f"must be one of {allowed}"


def _template(dashboard: Dashboard, name: str) -> Iterator[Finding]:
    found = [variable for variable in dashboard["templating"]["list"] if variable["name"] == name]
    if len(found) != 1:
        yield name, "no such variable"
        return
    wanted = {"type": "query", "label": name.title(), "multi": True, "includeAll": True, "allValue": ".+"}
    for key, value in wanted.items():
        if found[0].get(key) != value:
            yield name, f"{key} must be {value!r}, is {found[0].get(key)!r}"
    if found[0].get("datasource", {}).get("uid") not in {"$datasource", "${datasource}"}:
        yield name, "must ask the data source that is chosen"


def template_job(dashboard: Dashboard) -> Iterator[Finding]:
    """There is a variable for the job."""
    yield from _template(dashboard, "job")


def template_instance(dashboard: Dashboard) -> Iterator[Finding]:
    """There is a variable for the instance."""
    yield from _template(dashboard, "instance")


def template_label_promql(dashboard: Dashboard) -> Iterator[Finding]:
    """Variables ask by a function that Grafana has, and in PromQL."""
    for variable in variables(dashboard, "query"):
        parsed = _VARIABLE.fullmatch(variable["query"])
        if parsed is None or parsed[1] not in {"label_names", "label_values", "metrics", "query_result"}:
            yield variable["name"], f"not a query for a variable: {variable['query']}"
        elif parsed[2] and (error := parse_promql([parsed[2]])):
            yield variable["name"], error


def template_on_time_change_reload(dashboard: Dashboard) -> Iterator[Finding]:
    """Variables are asked for again when the time range changes: circuits come and go."""
    for variable in variables(dashboard, "query"):
        if variable.get("refresh") != 2:
            yield variable["name"], f"refresh must be 2, is {variable.get('refresh')}"


def uneditable_dashboard(dashboard: Dashboard) -> Iterator[Finding]:
    """What is provisioned is not edited in place, where the next version would overwrite it."""
    if dashboard["editable"]:
        yield "", "must not be editable"


# -- panels -------------------------------------------------------------------------------------------------------


def panel_datasource(dashboard: Dashboard) -> Iterator[Finding]:
    """Every panel, query and annotation uses a data source that is a variable."""
    known = {f"${{{source['name']}}}": source["query"] for source in variables(dashboard, "datasource")}
    users = [(panel["title"], panel["datasource"]) for panel in panels(dashboard)]
    users += [(each["name"], each["datasource"]) for each in dashboard["annotations"]["list"]]
    for panel in panels(dashboard):
        users += [(panel["title"], each["datasource"]) for each in panel.get("targets") or [] if "datasource" in each]
    for where, source in users:
        if known.get(source.get("uid")) != source.get("type"):
            yield where, f"uses {source}, no variable of this dashboard"


def panel_title_description(dashboard: Dashboard) -> Iterator[Finding]:
    """Every panel has a title and says what it shows."""
    for panel in panels(dashboard):
        if not panel.get("title") or not panel.get("description"):
            yield panel.get("title") or str(panel["id"]), "needs a title and a description"


def panel_units(dashboard: Dashboard) -> Iterator[Finding]:
    """Every figure has a unit."""
    for panel in panels(dashboard):
        config = panel["fieldConfig"]
        overrides = [each for override in config["overrides"] for each in override["properties"]]
        units = [config["defaults"].get("unit"), *(each["value"] for each in overrides if each["id"] == "unit")]
        if not set(units) <= UNITS:
            yield panel["title"], f"units {units}, known are {sorted(UNITS)}"


def panel_no_targets(dashboard: Dashboard) -> Iterator[Finding]:
    """Every panel asks for something."""
    for panel in panels(dashboard):
        if not panel.get("targets"):
            yield panel["title"], "has no query"


# -- queries ------------------------------------------------------------------------------------------------------


def target_promql(dashboard: Dashboard) -> Iterator[Finding]:
    """Prometheus can parse every query."""
    queries = list(promql(dashboard))
    if parse_promql([query for _, query in queries]):  # one of them: find out which
        yield from ((where, error) for where, query in queries if (error := parse_promql([query])))


def target_rate_interval(dashboard: Dashboard) -> Iterator[Finding]:
    """A rate is taken over Grafana's interval, which holds enough samples at every zoom."""
    for where, query in promql(dashboard):
        for function, metric, interval in _RANGE.findall(query):
            if function in {"rate", "irate"} and interval != "$__rate_interval":
                yield where, f"{function}({metric}[{interval}]) must be over $__rate_interval"


def _target_matcher(dashboard: Dashboard, label: str) -> Iterator[Finding]:
    wanted = f'{label}=~"${label}"'
    for where, query in promql(dashboard):
        for metric, matchers in selectors(query):
            if wanted not in matchers:
                yield where, f"{metric} without {wanted}"


def target_job(dashboard: Dashboard) -> Iterator[Finding]:
    """Every selector filters by the chosen jobs."""
    yield from _target_matcher(dashboard, "job")


def target_instance(dashboard: Dashboard) -> Iterator[Finding]:
    """Every selector filters by the chosen instances."""
    yield from _target_matcher(dashboard, "instance")


def target_counter_agg(dashboard: Dashboard) -> Iterator[Finding]:
    """A counter is read by a function that knows it starts again from 0."""
    for where, query in promql(dashboard):
        for found in _SELECTOR.finditer(query):
            before, after = query[: found.start()], query[found.end() :]
            reads = before.endswith(("rate(", "increase(")) and after.startswith("[")  # irate as well
            if found[1].endswith(("_total", "_count", "_sum", "_bucket")) and not reads:
                yield where, f"{found[1]} is read without rate or increase"


def target_logql(dashboard: Dashboard) -> Iterator[Finding]:
    """A log query selects streams, parses lines, and asks for lines that the catalogue has."""
    known = {*names.LOG_LEVELS, names.ALERT_FIRING, names.ALERT_RESOLVED}
    for where, target in targets(dashboard, "loki"):
        query = target["expr"]
        lines = re.search(r'\| json \| event=~"([\w|]+)"', query)
        if "{$stream} |~ " not in query or lines is None:
            yield where, f"neither selects nor parses: {query}"
        elif not set(lines[1].split("|")) <= known:
            yield where, f"{set(lines[1].split('|')) - known} is no line of ours"
        for opening, closing in ("()", "[]", "{}"):
            if query.count(opening) != query.count(closing):
                yield where, f"{opening} without {closing}: {query}"


def target_logql_auto(dashboard: Dashboard) -> Iterator[Finding]:
    """Log lines are counted over Grafana's interval."""
    for where, target in targets(dashboard, "loki"):
        for interval in re.findall(r"\[([^\]]*)\]", target["expr"]):
            if interval != "$__auto":
                yield where, f"[{interval}] must be [$__auto]"


RULES: dict[str, Rule] = {
    "template-datasource-rule": template_datasource,
    "template-job-rule": template_job,
    "template-instance-rule": template_instance,
    "template-label-promql-rule": template_label_promql,
    "template-on-time-change-reload-rule": template_on_time_change_reload,
    "panel-datasource-rule": panel_datasource,
    "panel-title-description-rule": panel_title_description,
    "panel-units-rule": panel_units,
    "panel-no-targets-rule": panel_no_targets,
    "target-promql-rule": target_promql,
    "target-rate-interval-rule": target_rate_interval,
    "target-job-rule": target_job,
    "target-instance-rule": target_instance,
    "target-counter-agg-rule": target_counter_agg,
    "uneditable-dashboard": uneditable_dashboard,
    "target-logql-rule": target_logql,
    "target-logql-auto-rule": target_logql_auto,
}
"""By the names that the linter gives them."""
