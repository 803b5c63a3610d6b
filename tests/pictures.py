"""Draws the pictures of ``docs/dashboards`` from the proof's Prometheus: ``python -m tests.pictures``."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fluxgate.dashboards.draw import Line, draw
from tests import grafana, shipped
from tests.grafana import Dashboard
from tests.proof import Proof, proof

PICTURES = Path(__file__).parents[1] / "docs" / "dashboards" / "pictures"
STEP = 30.0
CHOICES: Mapping[str, Mapping[str, Sequence[str]]] = {
    "fleet.json": {},
    "circuit.json": {"job": ["shop"], "circuit": ["payments", "search (EU)"]},
}
"""Which dashboards are drawn, and of what."""
SINGLE: Mapping[str, str] = {
    "State": "state.png",
    "Failure rate and its limit": "rates.png",
    "How long calls took": "latency.png",
    "Calls refused by state": "rejections.png",
}
"""The panels of the circuit's dashboard that have a picture of their own."""


def answers(real: Proof, dashboard: Dashboard, choice: Mapping[str, Sequence[str]]) -> dict[int, list[Line]]:
    """What each panel of the dashboard gets, by the panel's number."""
    values = grafana.choose(dashboard, choice, real.offered, real.macros(STEP))
    found: dict[int, list[Line]] = {}
    for query in dashboard.queries():
        if query.part == "panel":
            expression = grafana.filled_in(query.expression, values)
            lines = found.setdefault(query.panel["id"], [])
            if query.instant:
                at = real.prometheus.query_at(expression, real.end)
                lines += [Line(query.model, labels, [(real.end, value)]) for labels, value in at]
            else:
                over = real.prometheus.query_range(expression, real.start, real.end, STEP)
                lines += [Line(query.model, series.labels, series.values) for series in over]
    return found


def main(folder: Path = PICTURES) -> None:
    """Draw all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place, proof(Path(place)) as real:
        between = real.start, real.end
        for dashboard in shipped.dashboards():
            if dashboard.name in CHOICES:
                data = answers(real, dashboard, CHOICES[dashboard.name])
                whole: list[tuple[Mapping[str, Any], Sequence[Line]]] = [
                    (panel, data.get(panel["id"], [])) for panel in dashboard.everything
                ]
                draw(whole, between, (folder / dashboard.name).with_suffix(".png"))
                for panel, lines in whole:
                    if dashboard.name == "circuit.json" and panel["title"] in SINGLE:
                        draw([(panel, lines)], between, folder / SINGLE[panel["title"]])


if __name__ == "__main__":
    main()
