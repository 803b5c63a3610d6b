"""What the dashboards have in common: variables, annotations, links, and how panels are laid out."""

from collections.abc import Sequence
from typing import Any, Final

from grafana_foundation_sdk.builders import dashboard, prometheus
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import dashboard as model

from fluxgate.listeners import names
from fluxgate.state import State

from ._panels import METRICS
from ._queries import differs, equals, increase, one_of

TAG: Final = "fluxgate"
FLEET: Final = "fluxgate-fleet"
CIRCUIT: Final = "fluxgate-circuit"
LOGS: Final = "fluxgate-logs"

_SCHEMA: Final = 39  # of Grafana 11.0, so that every newer one migrates from what is really there
_PLUGINS: Final = "11.0.0"

_CHOSEN: Final = "${__url_time_range}&${datasource:queryparam}&${job:queryparam}&${instance:queryparam}"

Panels = list[Builder[model.Panel]]
Row = tuple[str, Panels]


def to_dashboard(uid: str, circuit: str | None = None) -> str:
    """The address of a dashboard with the time range and the variables of this one.

    Args:
        circuit: Of which circuit, as an expression of Grafana's; without one, of the circuits that are chosen here.
    """
    chosen = "${circuit:queryparam}" if circuit is None else f"var-circuit=${{{circuit}:percentencode}}"
    return f"/d/{uid}?{_CHOSEN}&{chosen}"


def to_runbook(page: str) -> str:
    """The address of a runbook."""
    return f"${{runbooks}}{page}"


OF_SERIES: Final = "__field.labels.circuit_name"
"""The circuit of the series that was clicked."""
OF_ROW: Final = "__data.fields.Circuit"
"""The circuit of the row that was clicked, by the title of its column."""


def assemble(uid: str, title: str, description: str, rows: Sequence[Row], *, logs: bool = False) -> model.Dashboard:
    """A dashboard of rows of panels, each row filled from the left.

    Args:
        logs: Whether it asks Loki and Tempo as well.
    """
    builder = (
        dashboard.Dashboard(f"Fluxgate / {title}")
        .uid(uid)
        .description(description)
        .tags([TAG])
        .readonly()
        .timezone("browser")
        .time("now-3h", "now")
        .refresh("30s")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("Fluxgate")
            .type(model.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .tooltip("The other dashboards, for the same circuits and the same time")
            .as_dropdown(False)
            .include_vars(True)
            .keep_time(True)
            .target_blank(False)
        )
    )
    for variable in _variables(logs):
        builder.with_variable(variable)
    for annotation in _annotations():
        builder.annotation(annotation)
    for name, panels in rows:
        builder.with_row(dashboard.Row(name))
        for panel in panels:
            builder.with_panel(panel)
    built = builder.build()
    built.schema_version = _SCHEMA
    for number, placed in enumerate(built.panels or [], 1):
        placed.id_val = number
        if isinstance(placed, model.Panel):
            placed.plugin_version = _PLUGINS
    return built


def _variables(logs: bool) -> list[Builder[model.VariableModel]]:
    sources = [("datasource", "prometheus", "Data source")]
    if logs:
        sources += [("loki", "loki", "Loki data source"), ("tempo", "tempo", "Tempo data source")]
    found: list[Builder[model.VariableModel]] = [
        dashboard.DatasourceVariable(name).label(label).type(kind) for name, kind, label in sources
    ]
    # Each offers what the choices before it leave. Only the instrument that every circuit has is asked.
    chosen: list[str] = []
    for name, wanted in (("job", "job"), ("instance", "instance"), ("circuit", names.STATE.labels[0])):
        query = f"label_values({names.STATE.series}{{{', '.join(chosen)}}}, {wanted})".replace("{}", "")
        found.append(
            dashboard.QueryVariable(name)
            .label(name.capitalize())
            .datasource(METRICS)
            .query(query)
            .definition(query)
            .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(model.VariableSort.ALPHABETICAL_ASC)
            .multi(True)
            .include_all(True)
            # What comes through OpenTelemetry may have no instance; a circuit always has a name.
            .all_value(".+" if name == "circuit" else ".*")
            .current(_option(["All"], ["$__all"]))
        )
        chosen.append(f'{wanted}=~"${name}"')
    if logs:
        found.append(
            _text(
                "stream",
                "Log stream",
                'service_name=~".+"',
                "Which of Loki's streams to read: label matchers, no braces. Loki 3 gives each a service_name.",
            )
        )
    found.append(
        _text(
            "runbooks",
            "Runbooks",
            f"/public/{names.RUNBOOKS}",
            "Where the runbooks are: what comes before the name of a page, with its last slash.",
        )
    )
    return found


def _text(name: str, label: str, value: str, description: str) -> dashboard.TextBoxVariable:
    variable = dashboard.TextBoxVariable(name).label(label).description(description).default_value(value)
    return variable.current(_option(value, value)).options([_option(value, value)])


def _option(text: Any, value: Any) -> model.VariableOption:
    return model.VariableOption(selected=True, text=text, value=value)


def _annotations() -> list[dashboard.AnnotationQuery]:
    by = names.TRANSITIONS.labels
    refusing = (State.OPEN, State.FORCED_OPEN)
    return [
        _annotation("Opened", "red", [one_of("new_state", refusing)], by),
        _annotation("Closed", "green", [equals("new_state", State.CLOSED)], by),
        _annotation(
            "Other changes",
            "yellow",
            [differs("new_state", State.CLOSED), *(differs("new_state", state) for state in refusing)],
            by,
            enable=False,
        ),
    ]


def _annotation(
    name: str, color: str, moves: Sequence[str], by: Sequence[str], *, enable: bool = True
) -> dashboard.AnnotationQuery:
    query = f"{increase(names.TRANSITIONS, *moves, by=by, within='$__rate_interval')} > 0"
    return (
        dashboard.AnnotationQuery()
        .name(name)
        .datasource(METRICS)
        .enable(enable)
        .hide(False)
        .icon_color(color)
        # Older Grafanas read the query here, newer ones in the target.
        .expr(query)
        .target(prometheus.Dataquery().expr(query).ref_id("Anno").range().datasource(METRICS))
        .title_format("{{circuit_name}}: {{old_state}} → {{new_state}}")
        .text_format("The change was seen within this interval.")
        .tag_keys(",".join(by))
    )
