"""Fluxgate / Fleet: which circuits are not closed, since when, and what it costs."""

from grafana_foundation_sdk.models import dashboard as model

from fluxgate.listeners import names
from fluxgate.listeners.alerts import CircuitFlapping, CircuitStuckOpen, RejectingCalls
from fluxgate.state import State

from ._layout import CIRCUIT, FLEET, LOGS, OF_ROW, OF_SERIES, Panels, assemble, to_dashboard, to_runbook
from ._panels import (
    ANY_IS_BAD,
    ANY_IS_NOTABLE,
    FILLED_CELL,
    TEXT_CELL,
    Steps,
    at_end,
    link,
    listing,
    number,
    ranking,
    rows,
    series,
    severity_mappings,
    state_mappings,
    steps_of,
    time_series,
    timeline,
)
from ._queries import (
    CLOSED,
    RANGE,
    STATES,
    combine,
    differs,
    equals,
    flaps,
    increase,
    not_closed,
    one_of,
    openings,
    rate,
    select,
    since,
    state_number,
)

_OPEN_CIRCUIT = ("Open the circuit", to_dashboard(CIRCUIT, OF_SERIES))
_REFUSING: Steps = ((None, "text"), (1e-9, "orange"), (RejectingCalls().rate, "red"))
_STUCK: Steps = ((None, "text"), (CircuitStuckOpen().for_, "red"))
_FLAPPING = CircuitFlapping()
_MINUTES = f"{_FLAPPING.within / 60:g}m"


def build() -> model.Dashboard:
    """The dashboard."""
    return assemble(
        FLEET,
        "Fleet",
        "All circuits of all instances: which are not closed, since when, and what it costs.",
        [
            ("What is wrong now", _current()),
            ("What happened", _history()),
            ("Traffic", _traffic()),
            ("Who tells", _listeners()),
        ],
    )


def _alerts() -> str:
    """One series for each alert that fires. Rules leave out the instance, and what an alert is not about."""
    chosen = [one_of("job", ["$job", ""]), one_of("circuit_name", ["$circuit", ""])]
    wanted = [one_of("alertname", [alert.name for alert in names.PROMETHEUS_ALERTS]), equals("alertstate", "firing")]
    return f"max by (alertname, severity, circuit_name, listener, job) (ALERTS{{{', '.join([*chosen, *wanted])}}})"


def _current() -> Panels:
    states = combine("max", names.STATE, by=("circuit_name", "state"))
    refused = rate(names.REJECTED_CALLS)
    circuit = link("Open the circuit", to_dashboard(CIRCUIT, OF_ROW))
    return [
        number(
            "Circuits by state",
            "How many circuits are in each state; one whose instances disagree counts in each of theirs.",
            at_end(f"sum by (state) ({states})", "{{state}}"),
            unit="none",
            width=16,
            colors={shown.state.value: shown.color for shown in STATES},
        ),
        number(
            "Calls refused",
            f"Calls a second that circuits refuse now, in all. Red from {RejectingCalls().rate:g} a second, which is "
            f"when {names.REJECTING_CALLS.name} fires for a single circuit.",
            at_end(f"sum({refused}) or vector(0)", "refused"),
            unit="cps",
            steps=_REFUSING,
        ),
        number(
            "Alerts firing",
            "How many alerts about circuits are firing. They come from the rules that are shipped beside this "
            "dashboard; without them this is 0.",
            at_end(f"count({_alerts()}) or vector(0)", "firing"),
            unit="none",
            steps=ANY_IS_BAD,
        ),
        listing(
            "Circuits that are not closed",
            "The state of each (the worst of its instances), for how long it has been in it (the longest; a probe "
            "begins it anew), in how many instances, and what it costs: the calls it refuses a second, those it "
            "refused in the time range, and those that a "
            f"fallback answers. Red from {CircuitStuckOpen().for_:g} s on. "
            "A click on the circuit shows why.",
            rows(state_number(above=CLOSED)),
            rows(since()),
            rows(f"{combine('sum', names.STATE, differs('state', State.CLOSED))} > 0"),
            rows(f"{refused} and on (circuit_name) {not_closed()}"),
            rows(f"{increase(names.REJECTED_CALLS)} and on (circuit_name) {not_closed()}"),
            rows(f"{rate(names.FALLBACK_CALLS)} and on (circuit_name) {not_closed()}"),
            columns={
                "circuit_name": ("Circuit", [circuit]),
                "Value #A": ("State", [("mappings", state_mappings()), FILLED_CELL, ("custom.width", 130)]),
                "Value #B": (
                    "Since",
                    [("unit", "s"), steps_of(_STUCK), TEXT_CELL],
                ),
                "Value #C": ("Instances", [("unit", "none")]),
                "Value #D": ("Refused a second", [("unit", "cps"), steps_of(_REFUSING), TEXT_CELL]),
                "Value #E": ("Refused in the range", [("unit", "short"), ("decimals", 0)]),
                "Value #F": ("Answered by fallbacks", [("unit", "cps")]),
            },
            sort="Since",
            empty="Every circuit is closed",
        ),
        listing(
            "Alerts that are firing",
            "Each alert about a circuit or a listener, from the rules that are shipped beside this dashboard. A click "
            "on the alert opens its runbook: what it means, how to find the cause, what to do.",
            rows(_alerts()),
            columns={
                "alertname": ("Alert", [link("Open the runbook", to_runbook("${__data.fields.Alert}.md"))]),
                "severity": ("Severity", [("mappings", severity_mappings()), FILLED_CELL]),
                "circuit_name": ("Circuit", [circuit]),
                "listener": ("Listener", []),
                "job": ("Job", []),
            },
            sort="Severity",  # by the alphabet, which happens to begin with the gravest
            descending=False,
            empty="No alert is firing, or the rules are not loaded",
            first=(),
        ),
    ]


def _history() -> Panels:
    was_not_closed = f"max_over_time({select(names.STATE, differs('state', State.CLOSED))}[{RANGE}] @ end())"
    return [
        timeline(
            "Circuits that were not closed",
            "The state over time of every circuit that was not closed at some moment of the time range: the worst of "
            "its instances. A click shows the circuit.",
            series(
                f"{state_number()} and on (circuit_name) max by (circuit_name) ({was_not_closed}) == 1",
                "{{circuit_name}}",
            ),
            height=10,
            links=[_OPEN_CIRCUIT],
        ),
        ranking(
            "Most calls refused",
            "The ten circuits that refused most calls in the time range.",
            at_end(f"topk(10, {increase(names.REJECTED_CALLS)} > 0)", "{{circuit_name}}"),
            unit="short",
            steps=ANY_IS_NOTABLE,
            empty="None in this time range",
            links=[_OPEN_CIRCUIT],
        ),
        ranking(
            "Most openings",
            "The ten circuits that opened most often in the time range. One that tried to recover and opened again is "
            "still in the same outage.",
            at_end(f"topk(10, {openings()} > 0)", "{{circuit_name}}"),
            unit="short",
            steps=ANY_IS_NOTABLE,
            empty="None in this time range",
            links=[_OPEN_CIRCUIT],
        ),
        time_series(
            "Flapping",
            f"How often a circuit opened or closed by itself in one instance in {_FLAPPING.within / 60:g} minutes: "
            f"the ten most. {names.CIRCUIT_FLAPPING.name} fires from {_FLAPPING.changes} on: no recovery lasts.",
            series(f"topk(10, {flaps(_MINUTES)} > 0)", "{{circuit_name}}"),
            unit="none",
            width=8,
            limit=_FLAPPING.changes,
            links=[_OPEN_CIRCUIT, ("Open the runbook", to_runbook(names.CIRCUIT_FLAPPING.runbook))],
        ),
    ]


def _traffic() -> Panels:
    refused = rate(names.REJECTED_CALLS)
    return [
        time_series(
            "Calls by outcome",
            "Calls a second through all circuits, by how they ended; those that were refused never began.",
            series(rate(names.CALL_DURATION, by=("outcome",), part="_count"), "{{outcome}}"),
            series(f"sum({refused})", "refused"),
            unit="cps",
            stacked=True,
        ),
        time_series(
            "Calls refused by circuit",
            "Calls a second that each circuit refuses: the ten that refuse most.",
            series(f"topk(10, {refused} > 0)", "{{circuit_name}}"),
            unit="cps",
            limit=RejectingCalls().rate,
            links=[_OPEN_CIRCUIT, ("Open the runbook", to_runbook(names.REJECTING_CALLS.runbook))],
        ),
    ]


def _listeners() -> Panels:
    return [
        time_series(
            "Listener failures",
            "Errors a second that each listener raised, or a rule of the program's own. What a listener should have "
            "told is missing where it goes; calls are not affected.",
            series(rate(names.LISTENER_FAILURES, by=("listener",)), "{{listener}}"),
            unit="cps",
            limit=1e-9,
            links=[
                ("Open the runbook", to_runbook(names.LISTENER_FAILING.runbook)),
                ("Open the logs", to_dashboard(LOGS)),
            ],
        ),
        time_series(
            "Events lost",
            "Events a second that were dropped because a background listener's queue was full: it is too slow for what "
            "happens.",
            series(rate(names.EVENTS_DROPPED, by=("listener",)), "{{listener}}"),
            unit="cps",
            limit=1e-9,
            links=[("Open the runbook", to_runbook(names.EVENTS_LOST.runbook))],
        ),
    ]
