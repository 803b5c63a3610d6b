"""Fluxgate / Logs and traces: what circuits said, in Loki, and the traces behind it, in Tempo."""

from grafana_foundation_sdk.models import dashboard as model

from fluxgate.events import CallFailed, CallRejected, EventsDropped, ListenerFailed, Reconfigured, WouldOpen
from fluxgate.listeners import names
from fluxgate.state import State

from ._layout import CIRCUIT, LOGS, OF_ROW, OF_SERIES, Panels, assemble, to_dashboard, to_runbook
from ._panels import LOGS as LOKI
from ._panels import link, listing, log_panel, log_query, log_series, spans_table, time_series, trace_query
from ._queries import log_lines, spans

_AUTO = "$__auto"
_OPENED = names.TRANSITION_NAMES[State.OPEN]
_REJECTED = names.EVENT_NAMES[CallRejected]
_OPEN_CIRCUIT = ("Open the circuit", to_dashboard(CIRCUIT, OF_SERIES))

# The trace of a line, in Explore: what is in the braces is JSON.
_EXPLORE = (
    "/explore?schemaVersion=1&panes=%7B%22t%22:%7B%22datasource%22:%22${tempo}%22,%22queries%22:%5B%7B%22refId%22:%22A%22,"
    "%22datasource%22:%7B%22type%22:%22tempo%22,%22uid%22:%22${tempo}%22%7D,%22queryType%22:%22traceql%22,"
    "%22query%22:%22${__value.raw}%22%7D%5D,%22range%22:%7B%22from%22:%22${__from}%22,%22to%22:%22${__to}%22%7D%7D%7D"
)


def build() -> model.Dashboard:
    """The dashboard."""
    return assemble(
        LOGS,
        "Logs and traces",
        "What circuits and alerts said in the log, and the traces behind it. Reads log lines that are written as JSON.",
        [
            ("What changed", _changes()),
            ("What was refused", _refusals()),
            ("Traces", _traces()),
            ("Who tells", _tellers()),
        ],
        logs=True,
    )


def _changes() -> Panels:
    changes = [*names.TRANSITION_NAMES.values(), *(names.EVENT_NAMES[kind] for kind in (WouldOpen, Reconfigured))]
    alerts = [names.ALERT_FIRING, names.ALERT_RESOLVED]
    return [
        time_series(
            "Openings",
            "How often each circuit opened, counted in the log.",
            log_series(
                f"sum by (circuit_name) (count_over_time({log_lines([_OPENED])} [{_AUTO}]))", "{{circuit_name}}"
            ),
            unit="none",
            links=[_OPEN_CIRCUIT],
            source=LOKI,
        ),
        listing(
            "Openings and their traces",
            "Each opening: the rule and the figures, the last error, and the trace of the call that tripped the "
            "circuit, where it had one. A click on the trace opens it.",
            log_query(log_lines([_OPENED])),
            columns={
                "Time": ("Time", [("unit", "dateTimeAsSystem"), ("custom.width", 170)]),
                "circuit_name": (
                    "Circuit",
                    [
                        link(_OPEN_CIRCUIT[0], to_dashboard(CIRCUIT, OF_ROW)),
                        ("custom.width", 140),
                    ],
                ),
                "reason": ("Reason", []),
                "last_error": ("Last error", []),
                "reopens": ("Reopens", [("custom.width", 80)]),
                names.TRACE_KEYS[0]: ("Trace", [link("Open the trace", _EXPLORE), ("custom.width", 140)]),
            },
            sort="Time",
            empty="No circuit opened in this time range",
            first=(("extractFields", {"source": "labels", "format": "auto", "replace": False}),),
            width=12,
            source=LOKI,
        ),
        log_panel(
            "Changes of state",
            "Each change of state, from which to which and why; what would have opened in shadow mode; changes of "
            "rules. The details of a line have all its figures.",
            log_query(log_lines(changes, text=_CHANGE)),
        ),
        log_panel(
            "Alerts",
            "Alerts of AlertListener, which fire once and resolve once, with the page that says what to do.",
            log_query(log_lines(alerts, text=_ALERT)),
        ),
    ]


_CHANGE = (
    "{{.circuit_name}}: {{.event}} {{if .old_state}}({{.old_state}} → {{.new_state}}) {{end}}{{.reason}}{{.changed}}"
)
_ALERT = "{{.event}} {{.severity}} {{.alert}}: {{.summary}} ({{.runbook}})"


def _refusals() -> Panels:
    refused = f"{log_lines([_REJECTED])} | unwrap {names.REJECTED}"
    return [
        time_series(
            "Calls refused",
            "How many calls each circuit refused, added up from lines that stand for many.",
            log_series(f"sum by (circuit_name) (sum_over_time({refused} [{_AUTO}]))", "{{circuit_name}}"),
            unit="none",
            width=8,
            links=[_OPEN_CIRCUIT, ("Open the runbook", to_runbook(names.REJECTING_CALLS.runbook))],
            source=LOKI,
        ),
        log_panel(
            "Refusals",
            "One line a circuit and interval: how many calls were refused, why, and for how long yet.",
            log_query(log_lines([_REJECTED], text=_REFUSAL)),
            width=16,
        ),
    ]


_REFUSAL = (
    "{{.circuit_name}}: {{.rejected}} refused ({{.reason}})"
    "{{if .retry_after}}, tries again in {{.retry_after}} s{{end}}"
)


def _traces() -> Panels:
    outage = f'name =~ "{names.outage_span_name(".*")}"'
    told = [names.REASON_ATTRIBUTE, names.REOPENS_ATTRIBUTE, names.OUTAGE_END_ATTRIBUTE]
    decided = [names.CIRCUIT_ATTRIBUTE, names.REASON_ATTRIBUTE, names.RETRY_AFTER_ATTRIBUTE]
    failed = [names.CIRCUIT_ATTRIBUTE, names.STATE_ATTRIBUTE, names.ERROR_ATTRIBUTE]
    return [
        spans_table(
            "Outages",
            "Outages as spans, from trip to recovery, with the reason and how they ended. Their links lead to the call "
            "that tripped the circuit and to the probes. One that goes on is not there yet.",
            trace_query(f"{spans(outage)} | {_select(told)}"),
            width=24,
        ),
        spans_table(
            "Requests with a refused call",
            "Spans in which a circuit refused a call, whatever came of it.",
            trace_query(f"{spans(_is(names.DECISION_ATTRIBUTE, names.REFUSED))} | {_select(decided)}"),
        ),
        spans_table(
            "Requests with a failed call",
            "Spans in which a call failed that a circuit had let through.",
            trace_query(f"{spans(_is(names.OUTCOME_ATTRIBUTE, names.OUTCOMES[CallFailed]))} | {_select(failed)}"),
        ),
    ]


def _is(attribute: str, value: str) -> str:
    return f'span.{attribute} = "{value}"'


def _select(attributes: list[str]) -> str:
    return f"select({', '.join(f'span.{attribute}' for attribute in attributes)})"


def _tellers() -> Panels:
    return [
        log_panel(
            "Trouble with listeners",
            "A listener raised an error, or lost events because it was too slow: what should be above may be missing.",
            log_query(log_lines([names.EVENT_NAMES[kind] for kind in (ListenerFailed, EventsDropped)], text=_TROUBLE)),
        ),
    ]


_TROUBLE = "{{.event}} {{.listener}} ×{{.count}} {{.error_type}} {{.error}}"
