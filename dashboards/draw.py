"""Draws panels as Grafana shows them, near enough for a reader to see what there is: from their JSON and their data.

``make pictures`` draws those of ``docs/dashboards``; needs matplotlib.
"""

import datetime
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from ._drawn import EDGE, GREY, INK, KINDS_OF_NOW, KINDS_OVER_TIME, Line, Panel, Rectangle, nothing, time_of

__all__ = ["Line", "Panel", "draw"]

matplotlib: Any = import_module("matplotlib")
DateFormatter: Any = import_module("matplotlib.dates").DateFormatter
Figure: Any = import_module("matplotlib.figure").Figure

_UNIT: Final = 0.36  # inches that a row of Grafana's grid is high
_WIDTH: Final = 15.0
_STYLE: Final = {
    "font.size": 8,
    "axes.edgecolor": EDGE,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "grid.color": "#eceef1",
    "svg.fonttype": "path",
}
_INSETS: Final = {"timeseries": 0.7, "heatmap": 0.7, "state-timeline": 1.9, "bargauge": 1.3}


def draw(panels: Sequence[tuple[Panel, Sequence[Line]]], between: tuple[float, float], path: Path) -> None:
    """Draw panels where a dashboard has them, or one of them alone, over a stretch of Unix time."""
    places = [panel["gridPos"] for panel, _ in panels]
    left, top = (min(place[side] for place in places) for side in "xy")
    width = max(place["x"] + place["w"] for place in places) - left
    height = max(place["y"] + place["h"] for place in places) - top
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH * width / 24, _UNIT * height), facecolor="#f4f5f5")
        for (panel, lines), place in zip(panels, places, strict=True):
            w, h = place["w"] / width, place["h"] / height
            x, y = (place["x"] - left) / width, 1 - (place["y"] - top) / height - h
            if panel["type"] == "row":
                figure.text(x + 0.006, y + h / 2, panel["title"], size=11, weight="bold", color=INK, va="center")
            else:
                _draw_panel(figure, panel, lines, between, (x, y, w, h))
        figure.savefig(path, dpi=100)


def _draw_panel(
    figure: Any,
    panel: Panel,
    lines: Sequence[Line],
    between: tuple[float, float],
    place: tuple[float, float, float, float],
) -> None:
    x, y, w, h = place
    kind = panel["type"]
    across, down = 1 / figure.get_figwidth(), 1 / figure.get_figheight()  # an inch
    edge = (x + 0.04 * across, y + 0.04 * down), w - 0.08 * across, h - 0.08 * down
    figure.add_artist(Rectangle(*edge, facecolor="white", edgecolor=EDGE, linewidth=0.6, zorder=-1))
    title = {"size": 9, "weight": "bold", "color": INK, "va": "top"}
    figure.text(x + 0.14 * across, y + h - 0.12 * down, panel["title"], **title)
    inset, above = _INSETS.get(kind, 0.15), 1.05 if kind == "timeseries" else 0.75
    axes = figure.add_axes((x + inset * across, y + 0.32 * down, w - (inset + 0.2) * across, h - above * down))
    if not lines:
        nothing(axes, panel)
    elif kind in KINDS_OVER_TIME:
        KINDS_OVER_TIME[kind](axes, panel, lines)
        axes.set_xlim(*map(time_of, between))
        axes.xaxis.set_major_formatter(DateFormatter("%H:%M", tz=datetime.UTC))
    else:
        KINDS_OF_NOW[kind](axes, panel, lines)
