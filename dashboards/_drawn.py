"""How one panel is drawn from its JSON and its data; `draw` puts panels beside each other."""

import datetime
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from itertools import pairwise
from typing import Any, Final, NamedTuple

# All that comes from matplotlib is Any: it names few of its types.
LogNorm: Any = import_module("matplotlib.colors").LogNorm
Rectangle: Any = import_module("matplotlib.patches").Rectangle
FuncFormatter: Any = import_module("matplotlib.ticker").FuncFormatter
Axes = Any

Panel = Mapping[str, Any]


class Line(NamedTuple):
    """One series of a panel's."""

    target: Mapping[str, Any]
    """The query in the panel's JSON."""
    labels: Mapping[str, str]
    points: Sequence[tuple[float, float]]
    """Values by Unix time; of a query for one moment there is one."""

    @property
    def name(self) -> str:
        """As the legend has it."""
        legend: str = self.target.get("legendFormat") or ""
        if legend in ("", "__auto"):
            return ", ".join(self.labels.values())
        return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda match: self.labels.get(match[1], ""), legend)

    @property
    def last(self) -> float:
        """The latest value."""
        return self.points[-1][1]


_COLORS: Final = {
    "green": "#56a64b",
    "red": "#e02f44",
    "yellow": "#f2cc0c",
    "orange": "#ff780a",
    "purple": "#a352cc",
    "blue": "#3274d9",
    "dark-red": "#8f1220",
    "text": "#464c54",
    "transparent": "#464c54",
}
_NO_COLOR: Final[Mapping[str, str]] = {}
_PALETTE: Final = ("#56a64b", "#f2cc0c", "#3274d9", "#ff780a", "#e02f44", "#5195ce", "#a352cc", "#8f3bb8", "#705da0")
GREY, EDGE, INK = "#8e8e8e", "#d9dce1", "#24292e"


def time_of(when: float) -> Any:
    return datetime.datetime.fromtimestamp(when, datetime.UTC)


def nothing(axes: Axes, panel: Panel) -> None:
    axes.set_axis_off()
    text = panel["fieldConfig"]["defaults"].get("noValue", "No data")
    axes.text(0.5, 0.5, text, ha="center", va="center", color=GREY, transform=axes.transAxes)


def _in_unit(unit: str | None) -> Any:
    """How an axis writes its values."""

    def write(value: float, _: int) -> str:
        return written(value, unit)

    return FuncFormatter(write)


# -- what stands in the JSON ------------------------------------------------------------------------------------------


def _overridden(panel: Panel, name: str) -> dict[str, Any]:
    """What the panel says of the field of this name in particular."""
    found: dict[str, Any] = {}
    for override in panel["fieldConfig"].get("overrides", []):
        matcher = override["matcher"]
        wanted = str(matcher["options"])
        if (matcher["id"] == "byName" and wanted == name) or (
            matcher["id"] == "byRegexp" and re.search(wanted.strip("/"), name) is not None
        ):
            found |= {each["id"]: each.get("value") for each in override["properties"]}
    return found


def _mapped(mappings: Any, value: float) -> Mapping[str, Any] | None:
    for mapping in mappings or ():
        if mapping["type"] == "value" and f"{value:g}" in mapping["options"]:
            found: Mapping[str, Any] = mapping["options"][f"{value:g}"]
            return found
    return None


def _step_color(thresholds: Any, value: float) -> str:
    color = "text"
    steps: list[dict[str, Any]] = thresholds["steps"] if thresholds else []
    for step in steps:
        if step["value"] is None or value >= step["value"]:
            color = step["color"]
    return _color(color)


def _color(name: str) -> str:
    return _COLORS.get(name, name)


def written(value: float, unit: str | None, decimals: int | None = None) -> str:
    """A value as Grafana writes it in this unit.

    >>> [written(0.25, "percentunit"), written(7500, "s"), written(0.05, "s"), written(1234, "cps")]
    ['25%', '2.08 hours', '50 ms', '1.23 K c/s']
    """
    if math.isnan(value):
        return ""
    if unit == "percentunit":
        return f"{value * 100:.3g}%"
    if unit == "s":
        for size, word in ((86400.0, "days"), (3600.0, "hours"), (60.0, "mins"), (1.0, "s")):
            if value >= size:
                return f"{value / size:.3g} {word}"
        return f"{value * 1000:.3g} ms" if value else "0 s"
    suffix = " c/s" if unit == "cps" else ""
    if decimals is not None and value < 1000:
        return f"{value:.{decimals}f}{suffix}"
    return f"{value / 1000:.3g} K{suffix}" if value >= 1000 else f"{value:.3g}{suffix}"


def _unit(panel: Panel) -> str | None:
    unit: str | None = panel["fieldConfig"]["defaults"].get("unit")
    return unit


# -- panels over time -------------------------------------------------------------------------------------------------


def _time_series(axes: Axes, panel: Panel, lines: Sequence[Line]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    custom = defaults.get("custom", {})
    stacked = custom.get("stacking", {}).get("mode") == "normal"
    floor: dict[float, float] = {}
    columns = max(2, panel["gridPos"]["w"] // 3)  # of the legend
    shown = sorted(lines, key=lambda line: -max(value for _, value in line.points if not math.isnan(value)))
    for number, line in enumerate(shown):
        special = _overridden(panel, line.name)
        fixed = special.get("color", _NO_COLOR).get("fixedColor")
        color = _color(fixed) if fixed else _PALETTE[number % len(_PALETTE)]
        points = _gaps_shown(line.points)
        whens = [when for when, _ in points]
        values = [floor.get(when, 0.0) * stacked + value for when, value in points]
        style = "--" if "custom.lineStyle" in special else "-"
        label = line.name if number < 2 * columns else None
        axes.plot([time_of(when) for when in whens], values, style, color=color, linewidth=1.1, label=label)
        opacity = special.get("custom.fillOpacity", custom.get("fillOpacity", 0)) / 100
        if opacity:
            base = [floor.get(when, 0.0) for when in whens] if stacked else 0
            axes.fill_between([time_of(when) for when in whens], base, values, color=color, alpha=opacity, linewidth=0)
        if stacked:
            floor |= dict(zip(whens, values, strict=True))
    axes.set_ylim(bottom=defaults.get("min"), top=defaults.get("max"))
    axes.yaxis.set_major_formatter(_in_unit(defaults.get("unit")))
    axes.grid(visible=True)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            loc="lower left", bbox_to_anchor=(-0.02, 1.0), fontsize=6.5, frameon=False, ncols=columns, columnspacing=1.2
        )


def _gaps_shown(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points, with one that is not a number where some are missing: no line leads over it."""
    step = _step(points)
    found = list(points[:1])
    for before, point in pairwise(points):
        if point[0] - before[0] > 1.5 * step:
            found.append((before[0] + step, math.nan))
        found.append(point)
    return found


def _step(points: Sequence[tuple[float, float]]) -> float:
    return min((after - before for (before, _), (after, _) in pairwise(points)), default=60.0)


def _timeline(axes: Axes, panel: Panel, lines: Sequence[Line]) -> None:
    mappings = panel["fieldConfig"]["defaults"].get("mappings")
    shown: dict[str, str] = {}
    for row, line in enumerate(lines):
        for begin, end, value in _spells(line.points):
            state = _mapped(mappings, value) or {"text": f"{value:g}", "color": GREY}
            shown[state["text"]] = _color(state["color"])
            axes.barh(row, time_of(end) - time_of(begin), left=time_of(begin), height=0.8, color=_color(state["color"]))
    axes.set_yticks(range(len(lines)), [line.name for line in lines])
    axes.set_ylim(len(lines) - 0.4, -0.6)
    handles = [Rectangle((0, 0), 1, 1, color=color) for color in shown.values()]
    axes.legend(handles, shown, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(shown), fontsize=7, frameon=False)


def _spells(points: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float, float]]:
    """From when to when the value stays the same; where points are missing nothing is known."""
    step = _step(points)
    begin, last, value = points[0][0], points[0][0], points[0][1]
    for when, now in points[1:]:
        if now != value or when - last > 1.5 * step:
            yield begin, min(when, last + step), value
            begin, value = when, now
        last = when
    yield begin, last + step, value


def _heatmap(axes: Axes, panel: Panel, lines: Sequence[Line]) -> None:
    bounds = sorted(lines, key=lambda line: float(line.labels["le"]))
    whens = sorted({when for line in bounds for when, _ in line.points})
    below = [dict(line.points) for line in bounds]
    cells = [
        [max(cell.get(when, 0.0) - (below[row - 1].get(when, 0.0) if row else 0.0), 0.0) for when in whens]
        for row, cell in enumerate(below)
    ]
    most = max(max(row) for row in cells)
    shaded = [[value if value > most / 1000 else math.nan for value in row] for row in cells]
    step = whens[1] - whens[0] if len(whens) > 1 else 60.0
    edges = [time_of(when) for when in (*whens, whens[-1] + step)]
    norm = LogNorm(most / 1000, most) if most else None
    mesh = axes.pcolormesh(edges, range(len(bounds) + 1), shaded, cmap="Oranges", norm=norm, rasterized=True)
    unit = panel["options"].get("yAxis", {}).get("unit", _unit(panel))
    labels = ["∞" if line.labels["le"] == "+Inf" else written(float(line.labels["le"]), unit) for line in bounds]
    axes.set_yticks(range(1, len(bounds) + 1), labels)
    figure = axes.figure
    bar = figure.colorbar(mesh, ax=axes, pad=0.01, aspect=30)
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_formatter(_in_unit("cps"))


# -- panels of the moment ---------------------------------------------------------------------------------------------


def _stat(axes: Axes, panel: Panel, lines: Sequence[Line]) -> None:
    axes.set_axis_off()
    defaults = panel["fieldConfig"]["defaults"]
    shown = lines[:12]
    filled = panel["options"].get("colorMode") == "background"
    columns = min(len(shown), 6 if panel["gridPos"]["w"] > 8 else 3)
    rows = math.ceil(len(shown) / columns)
    for number, line in enumerate(shown):
        special = _overridden(panel, line.name)
        mapped = _mapped(special.get("mappings", defaults.get("mappings")), line.last)
        fixed = special.get("color", _NO_COLOR).get("fixedColor")
        color = (
            _color(mapped["color"])
            if mapped and "color" in mapped
            else _step_color(defaults.get("thresholds"), line.last)
        )
        color = _color(fixed) if fixed else color
        row, column = divmod(number, columns)
        x, y = column / columns, 1 - (row + 1) / rows
        if filled:
            axes.add_patch(
                Rectangle(
                    (x + 0.004, y + 0.03), 1 / columns - 0.008, 1 / rows - 0.06, color=color, transform=axes.transAxes
                )
            )
        text = mapped["text"] if mapped else written(line.last, defaults.get("unit"), defaults.get("decimals"))
        room = axes.bbox.width / axes.figure.dpi * 72 / columns  # points
        size = min(16.0, 1.2 * room / max(len(text), 4))
        middle = x + 0.5 / columns
        named = len(shown) > 1 and line.name
        lower = y + (0.62 if named else 0.5) / rows
        put = {"ha": "center", "va": "center", "transform": axes.transAxes, "color": "white" if filled else color}
        axes.text(middle, lower, text, size=size, weight="bold", **put)
        if named:
            axes.text(middle, y + 0.2 / rows, line.name, size=7, **(put if filled else put | {"color": GREY}))


def _bars(axes: Axes, panel: Panel, lines: Sequence[Line]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    shown = sorted(lines, key=lambda line: line.last)
    colors = [_step_color(defaults.get("thresholds"), line.last) for line in shown]
    bars = axes.barh([line.name for line in shown], [line.last for line in shown], color=colors, height=0.7)
    axes.bar_label(
        bars, [written(line.last, defaults.get("unit"), defaults.get("decimals")) for line in shown], padding=3, size=7
    )
    axes.set_xlim(right=max(line.last for line in shown) * 1.2)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)


def _table(axes: Axes, panel: Panel, lines: Sequence[Line]) -> None:
    axes.set_axis_off()
    names: dict[str, str] = {}
    kept: list[str] | None = None
    for each in panel.get("transformations", []):
        names |= each.get("options", {}).get("renameByName") or {}
        if each["id"] == "filterFieldsByName":
            kept = each["options"]["include"]["names"]
    several = len({line.target["refId"] for line in lines}) > 1
    rows: dict[tuple[tuple[str, str], ...], dict[str, tuple[str, str]]] = {}
    sortable: dict[tuple[tuple[str, str], ...], dict[str, float]] = {}
    fields: list[str] = []
    for line in lines:
        key = tuple(sorted(line.labels.items()))
        value = f"Value #{line.target['refId']}" if several else "Value"
        cells = rows.setdefault(key, {})
        for field, text, number in [
            *((name, text, None) for name, text in line.labels.items()),
            (value, "", line.last),
        ]:
            title = names.get(field, field)
            if kept is not None and field not in kept:
                continue
            if field not in fields:
                fields.append(field)
            special = _overridden(panel, title)
            color = INK
            if number is not None:
                mapped = _mapped(special.get("mappings"), number)
                unit = special.get("unit", _unit(panel))
                text = mapped["text"] if mapped else written(number, unit, special.get("decimals"))
                color = _color(mapped["color"]) if mapped else _step_color(special.get("thresholds"), number)
                sortable.setdefault(key, {})[title] = number
            cells[field] = text, color
    for order in reversed(panel["options"].get("sortBy", [])):
        known = {key: sortable.get(key, {}).get(order["displayName"], -math.inf) for key in rows}
        rows = dict(sorted(rows.items(), key=lambda row: known[row[0]], reverse=order.get("desc", False)))
    fields.sort(key=lambda field: kept.index(field) if kept else 0)
    width = 1 / max(len(fields), 1)
    room = panel["gridPos"]["h"] - 2
    for column, field in enumerate(fields):
        put = {"x": column * width, "va": "top", "transform": axes.transAxes, "clip_on": True}
        axes.text(y=1, s=names.get(field, field), size=8, weight="bold", color=INK, **put)
        for number, cells in enumerate(list(rows.values())[:room], 1):
            text, color = cells.get(field, ("", INK))
            most = int(180 * width)
            text = text if len(text) <= most else f"{text[: most - 1]}…"
            axes.text(y=1 - number / (room + 0.5), s=text, size=8, color=color, **put)


KINDS_OVER_TIME: Final = {"timeseries": _time_series, "state-timeline": _timeline, "heatmap": _heatmap}
KINDS_OF_NOW: Final = {"stat": _stat, "bargauge": _bars, "table": _table}
