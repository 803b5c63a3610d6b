"""The kinds of panels that the dashboards are made of, each with all that a panel must have."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, TypeVar

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    heatmap,
    logs,
    loki,
    prometheus,
    stat,
    statetimeline,
    table,
    tempo,
    timeseries,
)
from grafana_foundation_sdk.models import common as common_model
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import heatmap as heatmap_model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from grafana_foundation_sdk.models.tempo import SearchTableType

from fluxgate.listeners.names import ALERT_LEVELS

from ._queries import CLOSED, STATES

METRICS: Final = common_model.DataSourceRef(type_val="prometheus", uid="${datasource}")
LOGS: Final = common_model.DataSourceRef(type_val="loki", uid="${loki}")
TRACES: Final = common_model.DataSourceRef(type_val="tempo", uid="${tempo}")

Panel = TypeVar(
    "Panel",
    bargauge.Panel,
    heatmap.Panel,
    logs.Panel,
    stat.Panel,
    statetimeline.Panel,
    table.Panel,
    timeseries.Panel,
)
Query = prometheus.Dataquery | loki.Dataquery | tempo.Dataquery
Steps = Sequence[tuple[float | None, str]]
"""Thresholds: from which value on which colour; the first value is ``None``."""
Links = Sequence[tuple[str, str]]
"""Data links: what they are called, and where they lead."""

GOOD: Final[Steps] = ((None, "green"),)
NEUTRAL: Final[Steps] = ((None, "text"),)
"""Figures that are neither good nor bad by themselves."""
ANY_IS_BAD: Final[Steps] = ((None, "green"), (1e-9, "red"))
ANY_IS_NOTABLE: Final[Steps] = ((None, "text"), (1e-9, "orange"))

# -- queries ------------------------------------------------------------------------------------------------------


def series(promql: str, legend: str, *, exemplars: bool = False) -> prometheus.Dataquery:
    """A query over the time range."""
    return prometheus.Dataquery().expr(promql).legend_format(legend).exemplar(exemplars).range().datasource(METRICS)


def at_end(promql: str, legend: str = "__auto") -> prometheus.Dataquery:
    """A query for the end of the time range."""
    return prometheus.Dataquery().expr(promql).legend_format(legend).instant().datasource(METRICS)


def rows(promql: str) -> prometheus.Dataquery:
    """The same, each series as a row of a table."""
    return at_end(promql).format(PromQueryFormat.TABLE)


def buckets(promql: str) -> prometheus.Dataquery:
    """A histogram over the time range, with its exemplars."""
    return series(promql, "{{le}}", exemplars=True).format(PromQueryFormat.HEATMAP)


def log_query(logql: str) -> loki.Dataquery:
    """Log lines."""
    return loki.Dataquery().expr(logql).query_type("range").max_lines(500).datasource(LOGS)


def log_series(logql: str, legend: str) -> loki.Dataquery:
    """Figures out of log lines."""
    return loki.Dataquery().expr(logql).legend_format(legend).query_type("range").datasource(LOGS)


def trace_query(traceql: str) -> tempo.Dataquery:
    """The newest spans."""
    return tempo.Dataquery().query(traceql).query_type("traceql").table_type(SearchTableType.SPANS).limit(50).spss(10)


# -- panels -------------------------------------------------------------------------------------------------------


def time_series(
    title: str,
    description: str,
    *queries: Query,
    unit: str,
    width: int = 12,
    stacked: bool = False,
    limit: float | None = None,
    limit_series: str = "",
    top: float | None = None,
    links: Links = (),
    source: common_model.DataSourceRef = METRICS,
) -> timeseries.Panel:
    """Lines over time.

    Args:
        limit: Drawn as a dashed line, red above it.
        limit_series: Matches the legends of series that are limits, to be drawn so as well.
        top: The greatest value that makes sense.
    """
    panel = (
        timeseries.Panel()
        .thresholds(_thresholds(GOOD if limit is None else ((None, "green"), (limit, "red"))))
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.PALETTE_CLASSIC))
        .min(0)
        .line_width(1)
        .fill_opacity(30 if stacked else 10)
        .show_points(common_model.VisibilityMode.AUTO)
        .legend(_legend(["lastNotNull", "max"]))
        .tooltip(_tooltip())
    )
    if top is not None:
        panel.max(top)
    if stacked:
        panel.stacking(common.StackingConfig().mode(common_model.StackingMode.NORMAL))
    if limit is not None:
        panel.thresholds_style(
            common.GraphThresholdsStyleConfig().mode(common_model.GraphThresholdsStyleMode.DASHED_AND_AREA)
        )
    if limit_series:
        dashed = [
            _property("custom.lineStyle", {"fill": "dash", "dash": [10, 10]}),
            _property("custom.fillOpacity", 0),
            _property("color", {"mode": "fixed", "fixedColor": "red"}),
        ]
        panel.override_by_regexp(limit_series, dashed)
    return _complete(panel, title, description, queries, unit, width, 8, links, source)


def number(
    title: str,
    description: str,
    *queries: Query,
    unit: str,
    steps: Steps = NEUTRAL,
    width: int = 4,
    decimals: int | None = None,
    colors: Mapping[str, str] = MappingProxyType({}),
    states: bool = False,
    links: Links = (),
) -> stat.Panel:
    """Big figures, each with its name.

    Args:
        colors: The colours of series by their legends, where the value says nothing.
        states: Whether the figures are the numbers of states.
    """
    panel = (
        stat.Panel()
        .thresholds(_thresholds(steps))
        .color_mode(common_model.BigValueColorMode.BACKGROUND if colors or states else _VALUE)
        .graph_mode(common_model.BigValueGraphMode.NONE)
        .text_mode(common_model.BigValueTextMode.VALUE_AND_NAME)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    )
    if decimals is not None:
        panel.decimals(decimals)
    if states:
        panel.mappings(state_mappings())
    for name, color in colors.items():
        panel.override_by_name(name, [_property("color", {"mode": "fixed", "fixedColor": color})])
    return _complete(panel, title, description, queries, unit, width, 4, links)


_VALUE = common_model.BigValueColorMode.VALUE


def ranking(
    title: str,
    description: str,
    *queries: Query,
    unit: str,
    steps: Steps,
    empty: str,
    links: Links = (),
) -> bargauge.Panel:
    """The greatest of many, as bars."""
    panel = (
        bargauge.Panel()
        .thresholds(_thresholds(steps))
        .orientation(common_model.VizOrientation.HORIZONTAL)
        .display_mode(common_model.BarGaugeDisplayMode.BASIC)
        .no_value(empty)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
        .min(0)
        .decimals(0)
    )
    return _complete(panel, title, description, queries, unit, 8, 8, links)


def timeline(title: str, description: str, *queries: Query, height: int = 8, links: Links = ()) -> statetimeline.Panel:
    """The states of circuits over time, one row each, in words and in colours."""
    panel = (
        statetimeline.Panel()
        .mappings(state_mappings())
        .thresholds(_thresholds(NEUTRAL))
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
        .show_value(common_model.VisibilityMode.AUTO)
        .merge_values(True)
        .row_height(0.8)
        .fill_opacity(80)
        .per_page(20)
        .legend(_legend([]))
        .tooltip(_tooltip())
    )
    return _complete(panel, title, description, queries, "none", 24, height, links)


def latencies(title: str, description: str, *queries: Query, width: int = 12) -> heatmap.Panel:
    """How many calls took how long, over time; each exemplar is a dot that leads to its trace."""
    panel = (
        heatmap.Panel()
        .calculate(False)
        .color(
            heatmap.HeatmapColorOptions()
            .mode(heatmap_model.HeatmapColorMode.SCHEME)
            .scheme("Oranges")
            .scale(heatmap_model.HeatmapColorScale.EXPONENTIAL)
            .exponent(0.5)
            .steps(64)
        )
        .filter_values(heatmap.FilterValueRange().le(1e-9))
        .cell_values(heatmap.CellValues().unit("cps"))
        .y_axis(heatmap.YAxisConfig().unit("s").axis_placement(common_model.AxisPlacement.LEFT))
        .tooltip(heatmap.HeatmapTooltip().mode(common_model.TooltipDisplayMode.SINGLE).y_histogram(True))
        .exemplars_color("rgba(0,120,255,0.8)")
        .show_legend()
    )
    return _complete(panel, title, description, queries, "s", width, 8, ())


def listing(
    title: str,
    description: str,
    *queries: Query,
    columns: Mapping[str, tuple[str, Sequence[tuple[str, Any]]]],
    sort: str,
    empty: str,
    descending: bool = True,
    steps: Steps = NEUTRAL,
    height: int = 8,
    width: int = 24,
    first: Sequence[tuple[str, Mapping[str, Any]]] = (("merge", {}),),
    source: common_model.DataSourceRef = METRICS,
) -> table.Panel:
    """A table.

    Args:
        columns: Which fields of the answer it shows, in this order: their titles, and properties such as a unit.
        sort: The title of the column by which it is sorted: the greatest first, or the least where not `descending`.
        empty: What is said where there is no row.
        first: What is to be done to the answers before there are such fields.
    """
    choice = {"include": {"names": list(columns)}}
    order = {
        "indexByName": {field: index for index, field in enumerate(columns)},
        "renameByName": {field: name for field, (name, _) in columns.items()},
        "excludeByName": {},
    }
    panel = (
        table.Panel()
        .thresholds(_thresholds(steps))
        .filterable(True)
        .show_header(True)
        .no_value(empty)
        .sort_by([common.TableSortByFieldState().display_name(sort).desc(descending)])
    )
    for kind, options in (*first, ("filterFieldsByName", choice), ("organize", order)):
        panel.with_transformation(model.DataTransformerConfig(id_val=kind, options=dict(options)))
    for name, properties in columns.values():
        if properties:
            panel.override_by_name(name, [_property(key, value) for key, value in properties])
    return _complete(panel, title, description, queries, "none", width, height, (), source)


def spans_table(title: str, description: str, query: tempo.Dataquery, *, width: int = 12) -> table.Panel:
    """Spans as Tempo lists them, each with the link to its trace that Grafana makes itself."""
    panel = table.Panel().thresholds(_thresholds(NEUTRAL)).filterable(True).no_value("No such span in this time range")
    return _complete(panel, title, description, [query], "none", width, 9, (), TRACES)


def log_panel(title: str, description: str, query: loki.Dataquery, *, width: int = 24) -> logs.Panel:
    """Log lines, the newest first."""
    panel = (
        logs.Panel()
        .show_time(True)
        .show_labels(False)
        .show_common_labels(False)
        .wrap_log_message(True)
        .enable_log_details(True)
        .sort_order(common_model.LogsSortOrder.DESCENDING)
        .dedup_strategy(common_model.LogsDedupStrategy.NONE)
        .no_value("No such line in this time range")
    )
    return _complete(panel, title, description, [query], "none", width, 9, (), LOGS)


def state_mappings() -> list[model.ValueMapping]:
    """The numbers of states as words and colours."""
    words = {
        str(number): model.ValueMappingResult(text=shown.text, color=shown.color, index=number - CLOSED)
        for number, shown in enumerate(STATES, CLOSED)
    }
    return [model.ValueMap(options=words)]


TEXT_CELL: Final = ("custom.cellOptions", {"type": "color-text"})
FILLED_CELL: Final = ("custom.cellOptions", {"type": "color-background", "mode": "basic"})


def steps_of(steps: Steps) -> tuple[str, Any]:
    """A column's property: its thresholds."""
    return "thresholds", _thresholds(steps).build()


def severity_mappings() -> list[model.ValueMapping]:
    """The severities of alerts as colours."""
    colors = {"critical": "red", "warning": "orange", "info": "blue"}
    assert colors.keys() == ALERT_LEVELS.keys()
    return [
        model.ValueMap(
            options={
                word: model.ValueMappingResult(text=word, color=color, index=index)
                for index, (word, color) in enumerate(colors.items())
            }
        )
    ]


def link(title: str, url: str) -> tuple[str, list[dict[str, Any]]]:
    """A column's property: where its cells lead."""
    return "links", [{"title": title, "url": url, "targetBlank": False}]


def _complete(
    panel: Panel,
    title: str,
    description: str,
    queries: Sequence[Query],
    unit: str,
    width: int,
    height: int,
    links: Links,
    source: common_model.DataSourceRef = METRICS,
) -> Panel:
    panel.title(title).description(description).unit(unit).datasource(source).span(width).height(height)
    for letter, query in zip("ABCDEFGH", queries, strict=False):
        panel.with_target(query.ref_id(letter))
    if links:
        panel.data_links([dashboard.DashboardLink(name).url(url) for name, url in links])
    return panel


def _property(key: str, value: Any) -> model.DynamicConfigValue:
    return model.DynamicConfigValue(id_val=key, value=value)


def _thresholds(steps: Steps) -> dashboard.ThresholdsConfig:
    each = [model.Threshold(value=value, color=color) for value, color in steps]
    return dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(each)


def _legend(figures: list[str]) -> common.VizLegendOptions:
    mode = common_model.LegendDisplayMode.TABLE if figures else common_model.LegendDisplayMode.LIST
    legend = common.VizLegendOptions().show_legend(True).display_mode(mode)
    return legend.placement(common_model.LegendPlacement.BOTTOM).calcs(figures)


def _tooltip() -> common.VizTooltipOptions:
    return (
        common.VizTooltipOptions().mode(common_model.TooltipDisplayMode.MULTI).sort(common_model.SortOrder.DESCENDING)
    )
