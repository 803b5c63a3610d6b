"""The files of ``dashboards/`` as tests use them: read, and with their addresses and durations changed for loopback."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.grafana import Dashboard

DASHBOARDS = Path(__file__).parents[1] / "dashboards"
SCRAPES = DASHBOARDS / "prometheus" / "prometheus.yml"
ALERTMANAGER = DASHBOARDS / "alertmanager" / "alertmanager.yml"

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def in_seconds(duration: str) -> float:
    """A duration of Prometheus', as ``1h30m``."""
    return sum(int(number) * _UNITS[unit] for number, unit in re.findall(r"(\d+)(ms|s|m|h|d|w)", duration))


def dashboards() -> list[Dashboard]:
    """All dashboards."""
    return [Dashboard(path) for path in sorted((DASHBOARDS / "grafana").glob("*.json"))]


class Rule(NamedTuple):
    """One recording or alerting rule."""

    file: str
    name: str
    alerts: bool
    expression: str
    lasting: float
    """Seconds for which an alert's expression must hold."""
    model: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.file}: {self.name}"


def rule_files() -> list[Path]:
    """The files with rules for Prometheus."""
    return [path for path in sorted((DASHBOARDS / "prometheus").glob("*.yml")) if "groups" in _read(path)]


def rules() -> Iterator[Rule]:
    """All of them, in order."""
    for path in rule_files():
        for group in _read(path)["groups"]:
            for rule in group["rules"]:
                name = rule.get("alert") or rule["record"]
                yield Rule(path.name, name, "alert" in rule, rule["expr"], in_seconds(str(rule.get("for", "0s"))), rule)


def hasty_rules(folder: Path) -> list[Path]:
    """The rules for a test that cannot wait: evaluated with each scrape, and alerts fire at once."""
    made: list[Path] = []
    for path in rule_files():
        content = _read(path)
        for group in content["groups"]:
            group.pop("interval", None)
            for rule in group["rules"]:
                if "alert" in rule:
                    rule.pop("for", None)
                    rule.pop("keep_firing_for", None)
        made.append(folder / path.name)
        made[-1].write_text(json.dumps(content), "utf-8")  # JSON is YAML
    return made


def configuration(
    targets: Mapping[str, Sequence[str]], rules: Sequence[Path], *, interval: str, alertmanager: str | None = None
) -> dict[str, Any]:
    """The shipped configuration of Prometheus, for other targets and rules, and another interval."""
    content = copy.deepcopy(_read(SCRAPES))
    content["global"] |= {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval}
    content["rule_files"] = [str(path) for path in rules]
    pattern = next(each for each in content["scrape_configs"] if each["job_name"] != "prometheus")
    for timing in ("scrape_interval", "scrape_timeout"):
        pattern.pop(timing, None)
    content["scrape_configs"] = [
        pattern | {"job_name": job, "static_configs": [{"targets": list(addresses)}]}
        for job, addresses in targets.items()
    ]
    managers = [{"static_configs": [{"targets": [alertmanager]}]}] if alertmanager else []
    content["alerting"] = content.get("alerting", {}) | {"alertmanagers": managers}
    return content


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
    return content


def hasty_alertmanager(url: str) -> dict[str, Any]:
    """The shipped configuration of Alertmanager, which tells a webhook at once of all that it is told."""
    content = _read(ALERTMANAGER)
    for receiver in content["receivers"]:
        name = receiver["name"]
        receiver.clear()
        receiver |= {"name": name, "webhook_configs": [{"url": url, "send_resolved": True}]}
    routes = [content["route"]]
    while routes:
        route = routes.pop()
        route |= {"group_wait": "100ms", "group_interval": "500ms"}
        routes += route.get("routes", [])
    return content
