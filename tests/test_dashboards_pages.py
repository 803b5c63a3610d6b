"""The page about dashboards, and its pictures, keep up with the dashboards."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("yaml")

from tests import shipped
from tests.grafana import Dashboard

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "dashboards" / "README.md"
DASHBOARDS = shipped.dashboards()


def section(title: str) -> str:
    """The page's text beneath a heading."""
    return PAGE.read_text("utf-8").split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda each: each.title)
def test_the_page_lists_each_panel_and_its_question(dashboard: Dashboard) -> None:
    """Each dashboard has a section, whose table has its panels in their order, each with one question."""
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", section(dashboard.title), re.MULTILINE)
    assert [title for title, _ in rows[1:]] == [panel["title"] for panel in dashboard.panels]
    assert all(question.endswith("?") for _, question in rows[1:])


def test_each_picture_is_shown_and_each_shown_is_there() -> None:
    """No picture lies about unused, and they are small enough to be cloned."""
    pictures = ROOT / "docs" / "dashboards" / "pictures"
    shown = re.findall(r"\]\(pictures/([^)]+)\)", PAGE.read_text("utf-8"))
    assert sorted(shown) == sorted(path.name for path in pictures.iterdir())
    assert sum(path.stat().st_size for path in pictures.iterdir()) < 1_500_000


@pytest.mark.parametrize("some", [True, False])
@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda each: each.title)
def test_every_kind_of_panel_can_be_drawn(dashboard: Dashboard, some: bool, tmp_path: Path) -> None:
    """A dashboard becomes a picture, with gaps and infinities in the data or with no data at all."""
    pytest.importorskip("matplotlib")
    from fluxgate.dashboards.draw import Line, draw

    drawable = {"row", "timeseries", "state-timeline", "heatmap", "stat", "bargauge", "table"}
    panels = [panel for panel in dashboard.everything if panel["type"] in drawable]
    kinds: set[str] = {panel["type"] for panel in panels}
    assert kinds >= {"row", "timeseries"}
    if dashboard.name != "logs.json":
        assert {panel["type"] for panel in dashboard.everything} <= drawable

    def lines(panel: dict[str, Any]) -> list[Line]:
        times = [60.0 * minute for minute in range(30) if minute not in (10, 11, 12)]
        return [
            Line(
                target, {"circuit_name": name, "le": le}, [(when, (when / 60) % 6) for when in times] + [(1800.0, last)]
            )
            for target in panel.get("targets", [])
            for name, le, last in (("payments", "0.5", 1.0), ("search (EU)", "+Inf", math.nan))
            if panel["type"] not in ("stat", "bargauge", "table") or not math.isnan(last)
        ]

    path = tmp_path / "dashboard.png"
    draw([(panel, lines(panel) if some else []) for panel in panels], (0.0, 1800.0), path)
    assert path.read_bytes().startswith(b"\x89PNG")
