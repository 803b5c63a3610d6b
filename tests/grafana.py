"""What Grafana makes of a dashboard's JSON: its panels, and its queries with variables and macros filled in."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

PROMETHEUS = "prometheus"

Values = Mapping[str, "str | Sequence[str]"]
"""What the variables are set to: a text that stands as it is, or the values that somebody chose."""


class Query(NamedTuple):
    """One query of a dashboard's."""

    dashboard: str
    place: str
    """The panel's title and the query's letter, or the variable's or annotation's name."""
    part: str
    """``panel``, ``variable`` or ``annotation``."""
    datasource: str
    """Whose language it speaks: ``prometheus``, ``loki``, ``tempo``, ..."""
    expression: str
    model: Mapping[str, Any]
    """All that the JSON has about it."""
    panel: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.dashboard}: {self.part} {self.place}"

    @property
    def instant(self) -> bool:
        """Whether it asks for one moment, not for a stretch of time."""
        return bool(self.model.get("instant")) and not self.model.get("range")


class Dashboard:
    """A dashboard as it is shipped."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.json: dict[str, Any] = json.loads(path.read_text("utf-8"))
        self.title: str = self.json["title"]

    @property
    def variables(self) -> list[dict[str, Any]]:
        """In the order of the dashboard."""
        found: list[dict[str, Any]] = self.json.get("templating", {}).get("list", [])
        return found

    @property
    def panels(self) -> list[dict[str, Any]]:
        """All that show something, in the order of the dashboard, with those of rows that are folded up."""
        return [panel for panel in self.everything if panel["type"] != "row"]

    @property
    def everything(self) -> list[dict[str, Any]]:
        """The panels, and the rows above them."""
        return list(_unfolded(self.json.get("panels", [])))

    def queries(self) -> Iterator[Query]:
        """Every query, whatever it asks."""
        for panel in self.panels:
            for target in panel.get("targets", []):
                kind = self._kind(target.get("datasource") or panel.get("datasource"))
                text = target.get("expr", target.get("query", ""))
                place = f"{panel.get('title')!r} {target.get('refId', '')}".strip()
                yield Query(self.name, place, "panel", kind, text, target, panel)
        for variable in self.variables:
            if variable["type"] == "query":
                query = variable["query"]
                text = query if isinstance(query, str) else query["query"]
                kind = self._kind(variable.get("datasource"))
                yield Query(self.name, variable["name"], "variable", kind, text, variable, {})
        for annotation in self.json.get("annotations", {}).get("list", []):
            if not annotation.get("builtIn"):
                kind = self._kind(annotation.get("datasource"))
                text = annotation.get("expr") or annotation.get("target", {}).get("expr", "")
                yield Query(self.name, annotation["name"], "annotation", kind, text, annotation, {})

    def _kind(self, datasource: Any) -> str:
        if isinstance(datasource, Mapping) and datasource.get("type"):
            return str(datasource["type"])
        reference = datasource if isinstance(datasource, str) else (datasource or {}).get("uid", "")
        name = str(reference).strip("${}")
        for variable in self.variables:
            if variable["type"] == "datasource" and variable["name"] == name:
                return str(variable["query"])
        raise AssertionError(f"{self.name}: nobody knows the data source {datasource!r}")


def _unfolded(panels: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for panel in panels:
        yield panel
        yield from _unfolded(panel.get("panels", []))


# -- variables and macros ---------------------------------------------------------------------------------------------

_VARIABLE = re.compile(r"\$(\w+)|\$\{(\w+)(?:\.[^:^}]+)?(?::([^}]+))?\}|\[\[(\w+)(?::(\w+))?\]\]")


def seconds(span: float) -> str:
    """A duration as PromQL reads it."""
    return f"{span:.0f}s"


def macros(*, span: float, step: float, scrape: float) -> dict[str, str]:
    """What Grafana itself fills in, for a dashboard that shows `span` seconds in points `step` seconds apart.

    https://grafana.com/docs/grafana/latest/datasources/prometheus/template-variables/
    """
    return {
        "__interval": seconds(step),
        "__interval_ms": f"{step * 1000:.0f}",
        "__rate_interval": seconds(max(step + scrape, 4 * scrape)),
        "__rate_interval_ms": f"{max(step + scrape, 4 * scrape) * 1000:.0f}",
        "__range": seconds(span),
        "__range_s": f"{span:.0f}",
        "__range_ms": f"{span * 1000:.0f}",
    }


def filled_in(text: str, values: Values) -> str:
    """The text with each variable's value; one that nobody has set is an error, as it is an empty panel in Grafana."""

    def value_of(match: re.Match[str]) -> str:
        name = match[1] or match[2] or match[4]
        if name not in values:
            raise AssertionError(f"{text!r} has {match[0]}, which is no variable; there are {', '.join(values)}")
        value = values[name]
        return value if isinstance(value, str) else _FORMATS[match[3] or match[5] or "prometheus"](value)

    return _VARIABLE.sub(value_of, text)


def _as_pattern(values: Sequence[str]) -> str:
    """What the Prometheus data source makes of chosen values, for ``=~``."""
    escaped = [re.sub(r"[$^*{}\[\]'+?.()|]", r"\\\\\g<0>", value.replace("\\", "\\" * 4)) for value in values]
    return escaped[0] if len(escaped) == 1 else f"({'|'.join(escaped)})"


_FORMATS: Mapping[str, Callable[[Sequence[str]], str]] = {
    "prometheus": _as_pattern,
    "regex": lambda values: "|".join(re.escape(value) for value in values),
    "pipe": "|".join,
    "csv": ",".join,
    "raw": ",".join,
}

_LABEL_VALUES = re.compile(r"label_values\((?:(?P<selector>.+),)?\s*(?P<label>\w+)\s*\)", re.DOTALL)
_QUERY_RESULT = re.compile(r"query_result\((?P<query>.+)\)", re.DOTALL)
_METRICS = re.compile(r"metrics\((?P<pattern>.+)\)", re.DOTALL)


def options(prometheus: Any, query: str, *, start: float, end: float) -> list[str]:
    """What a variable's query offers: ``label_values``, ``query_result`` or ``metrics``."""
    between = {"start": start, "end": end}
    if asked := _LABEL_VALUES.fullmatch(query.strip()):
        where = {"match[]": asked["selector"].strip()} if asked["selector"] else {}
        found: list[str] = prometheus.get(f"label/{asked['label']}/values", **between, **where)
        return found
    if asked := _QUERY_RESULT.fullmatch(query.strip()):
        return [str(labels) for labels, _ in prometheus.query(asked["query"])]
    if asked := _METRICS.fullmatch(query.strip()):
        every = prometheus.get("label/__name__/values", **between)
        return [name for name in every if re.search(asked["pattern"], name)]
    raise AssertionError(f"{query!r} is no query for a variable")


def choose(
    dashboard: Dashboard, chosen: Mapping[str, Sequence[str]], offered: Callable[[str], list[str]], known: Values
) -> dict[str, str | Sequence[str]]:
    """Every variable's value: what is chosen, else All, else the first that is offered.

    `offered` answers the queries of variables; `known` is what Grafana fills in.
    """
    values: dict[str, str | Sequence[str]] = dict(known)
    for variable in dashboard.variables:
        name, kind = variable["name"], variable["type"]
        if name in chosen:
            values[name] = chosen[name]
        elif variable.get("includeAll") and variable.get("allValue"):
            values[name] = variable["allValue"]
        elif kind == "query":
            query = variable["query"]
            offers = offered(filled_in(query if isinstance(query, str) else query["query"], values))
            values[name] = offers if variable.get("includeAll") else offers[:1]
        elif kind in ("custom", "interval"):
            values[name] = str((variable.get("current") or {}).get("value") or variable["query"].split(",")[0])
        elif kind in ("constant", "textbox"):
            values[name] = str(variable.get("query") or "")
        elif kind == "datasource":
            values[name] = variable["query"]
    return values
