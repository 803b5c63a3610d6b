"""The shipped configuration of Prometheus with two hours of a fleet's history, and the programs live at their end."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from opentelemetry.sdk.trace import TracerProvider

from tests import grafana, shipped
from tests.fleet import STEP, Fleet
from tests.prometheus_server import PrometheusServer, backfill, backfill_rules, server

RANGE_STEP = 60.0
"""Seconds between the points of a panel that shows all of it."""

_BEHIND = 5.0  # seconds: a call may end after its step, but not in the future


class Proof:
    """What the tests ask."""

    def __init__(self, fleet: Fleet, prometheus: PrometheusServer) -> None:
        self.fleet = fleet
        self.prometheus = prometheus
        self.start = fleet.begin
        self.end = self.history_end = fleet.now

    def macros(self, step: float = RANGE_STEP) -> dict[str, str]:
        """What Grafana fills in where the dashboard shows the whole story."""
        return grafana.macros(span=self.end - self.start, step=step, scrape=STEP)

    def offered(self, query: str) -> list[str]:
        """What a variable's query offers."""
        return grafana.options(self.prometheus, query, start=self.start, end=self.end)

    def live_on(self) -> None:
        """The programs go on almost up to now, within a sampled span, and each is scraped."""
        with TracerProvider().get_tracer("fleet").start_as_current_span("customer"):
            self.fleet.step(max(time.time() - _BEHIND, self.fleet.now))
        self.prometheus.next_scrapes()
        self.end = time.time()


def _levels() -> list[list[shipped.Rule]]:
    """The recording rules, those that others are made of before these."""
    left = [rule for rule in shipped.rules() if not rule.alerts]
    levels: list[list[shipped.Rule]] = []
    while left:
        names = {rule.name for rule in left}
        ready = [rule for rule in left if not any(name in rule.expression for name in names)]
        assert ready, f"made of each other: {names}"
        levels.append(ready)
        left = [rule for rule in left if rule not in ready]
    return levels


@contextmanager
def proof(folder: Path) -> Iterator[Proof]:
    """Live through the story, record the rules of the past, and start a Prometheus as it is shipped on all that."""
    fleet = Fleet(time.time())
    with fleet.serving():
        fleet.write_history(folder / "history.om")
        backfill(folder, folder / "history.om")
        for number, level in enumerate(_levels()):
            path = folder / f"level{number}.yml"
            rules = [{"record": rule.name, "expr": rule.expression} for rule in level]
            path.write_text(json.dumps({"groups": [{"name": "past", "rules": rules}]}), "utf-8")
            with server(folder, {}) as past:
                backfill_rules(past, folder, path, fleet.begin, fleet.now)
        targets = fleet.targets()
        configuration = shipped.configuration(targets, shipped.hasty_rules(folder), interval="500ms")
        with server(folder, targets, configuration=configuration) as prometheus:
            proof = Proof(fleet, prometheus)
            for _ in range(3):
                proof.live_on()
            yield proof
