"""Fluxgate / Circuit: what one circuit does and has done, and why."""

from grafana_foundation_sdk.builders import timeseries
from grafana_foundation_sdk.models import dashboard as model

from fluxgate.events import CallFailed, CallSucceeded
from fluxgate.listeners import names
from fluxgate.listeners.alerts import SlowCircuit
from fluxgate.listeners.names import Instrument

from ._layout import CIRCUIT, LOGS, OF_SERIES, Panels, assemble, to_dashboard, to_runbook
from ._panels import (
    ANY_IS_BAD,
    ANY_IS_NOTABLE,
    at_end,
    buckets,
    latencies,
    listing,
    number,
    rows,
    series,
    time_series,
    timeline,
)
from ._queries import (
    combine,
    increase,
    limit,
    one_of,
    openings,
    quantile,
    rate,
    reopens,
    select,
    state_number,
)

_LOGS = ("Open the logs and traces", to_dashboard(LOGS, OF_SERIES))
_JUDGED = one_of("outcome", [names.OUTCOMES[kind] for kind in (CallSucceeded, CallFailed)])


def build() -> model.Dashboard:
    """The dashboard."""
    return assemble(
        CIRCUIT,
        "Circuit",
        "Chosen circuits: their state over time, their calls, how long those took, and by which rules they open.",
        [
            ("State", _state()),
            ("Why it opens", _reasons()),
            ("Calls", _calls()),
            ("Latency", _latency()),
        ],
    )


def _state() -> Panels:
    return [
        timeline(
            "State",
            "The state of each circuit over time, in each instance. Half-open: probes decide whether it closes.",
            series(state_number(by=("circuit_name", "job", "instance")), "{{circuit_name}} · {{instance}}"),
            height=7,
            links=[_LOGS],
        ),
        number(
            "State now",
            "The state of each circuit; where its instances disagree, the worst.",
            at_end(state_number(), "{{circuit_name}}"),
            unit="none",
            states=True,
        ),
        number(
            "Since the last change",
            "How long ago each circuit last changed its state, in whichever instance.",
            at_end(f"time() - max by (circuit_name) ({select(names.STATE_CHANGED)} > 0)", "{{circuit_name}}"),
            unit="s",
        ),
        number(
            "Openings",
            "How often each circuit was closed and opened in the time range.",
            at_end(openings(), "{{circuit_name}}"),
            unit="none",
            decimals=0,
            steps=ANY_IS_NOTABLE,
        ),
        number(
            "Reopens",
            "How often each circuit let probes through and opened again in the time range: the dependency was not well "
            f"yet. Where that goes on, see {names.CIRCUIT_STUCK_OPEN.name}.",
            at_end(reopens(), "{{circuit_name}}"),
            unit="none",
            decimals=0,
            steps=ANY_IS_NOTABLE,
            links=[("Open the runbook", to_runbook(names.CIRCUIT_STUCK_OPEN.runbook))],
        ),
        number(
            "Calls refused",
            "How many calls each circuit refused in the time range.",
            at_end(increase(names.REJECTED_CALLS), "{{circuit_name}}"),
            unit="short",
            decimals=0,
            steps=ANY_IS_BAD,
            links=[("Open the runbook", to_runbook(names.REJECTING_CALLS.runbook))],
        ),
        number(
            "Would have opened",
            "How often each circuit in shadow mode (metrics only) would have opened in the time range. Calls passed.",
            at_end(increase(names.WOULD_OPEN), "{{circuit_name}}"),
            unit="none",
            decimals=0,
            steps=ANY_IS_NOTABLE,
        ),
    ]


def _reasons() -> Panels:
    return [
        _against_limit(
            "Failure rate and its limit",
            "The share of failures in the circuit's window (the worst of its instances), and the limit from which it "
            "opens, where it has such a rule. While it is open, the rate that opened it.",
            names.FAILURE_RATE,
            "failure_rate",
        ),
        _against_limit(
            "Slow rate and its limit",
            "The share of slow calls in the circuit's window (the worst of its instances), and the limit from which it "
            f"opens, where it has such a rule. {names.SLOW_CIRCUIT.name} fires from {SlowCircuit().slow_rate:.0%} on.",
            names.SLOW_RATE,
            "slow_rate",
        ),
        listing(
            "Rules in words",
            "By which rules each circuit opens, over which window it counts, when it tries again, and which calls it "
            "lets through then. Two rows for one circuit: instances run different versions.",
            rows(f"{combine('max', names.CIRCUIT_INFO, by=names.CIRCUIT_INFO.labels)} == 1"),
            columns={label: (title, []) for label, title in zip(names.CIRCUIT_INFO.labels, _TITLES, strict=True)},
            sort="Circuit",
            descending=False,
            empty="No such circuit",
            first=(),
            height=6,
        ),
    ]


_TITLES = ("Circuit", "Opens by", "Counts over", "Tries again", "Lets through")


def _against_limit(title: str, description: str, instrument: Instrument, rule: str) -> timeseries.Panel:
    return time_series(
        title,
        description,
        series(combine("max", instrument), "{{circuit_name}}"),
        series(limit(rule), "limit of {{circuit_name}}"),
        unit="percentunit",
        limit_series="/^limit of /",
        top=1,
        links=[_LOGS],
    )


def _calls() -> Panels:
    return [
        time_series(
            "Calls by outcome",
            "Calls a second that the circuit let through, by how they ended; failures count against it, ignored and "
            "cancelled calls do not.",
            series(
                rate(names.CALL_DURATION, by=("circuit_name", "outcome"), part="_count"),
                "{{circuit_name}}: {{outcome}}",
            ),
            unit="cps",
            stacked=True,
            links=[_LOGS],
        ),
        time_series(
            "Calls refused by state",
            "Calls a second that the circuit refused: while open, while half-open because other probes were on their "
            "way or it was not chosen, or because somebody forced it open.",
            series(rate(names.REJECTED_CALLS, by=("circuit_name", "state")), "{{circuit_name}}: {{state}}"),
            unit="cps",
            stacked=True,
            links=[_LOGS, ("Open the runbook", to_runbook(names.REJECTING_CALLS.runbook))],
        ),
        time_series(
            "Probes",
            "Calls a second that tested a half-open circuit, by how they ended.",
            series(rate(names.PROBES, by=("circuit_name", "outcome")), "{{circuit_name}}: {{outcome}}"),
            unit="cps",
            width=8,
            links=[_LOGS],
        ),
        time_series(
            "Fallbacks",
            "Calls a second that a fallback answered: what users got instead of an error.",
            series(rate(names.FALLBACK_CALLS), "{{circuit_name}}"),
            unit="cps",
            width=8,
            links=[_LOGS],
        ),
        time_series(
            "Slow calls",
            "Calls a second that reached the circuit's slow threshold, whether they succeeded or failed.",
            series(rate(names.SLOW_CALLS), "{{circuit_name}}"),
            unit="cps",
            width=8,
            links=[_LOGS, ("Open the runbook", to_runbook(names.SLOW_CIRCUIT.runbook))],
        ),
    ]


def _latency() -> Panels:
    return [
        latencies(
            "How long calls took",
            "How many calls a second took how long, all chosen circuits together. Dots are single calls whose trace "
            "was sampled: a click leads to it. They need Prometheus's exemplar storage.",
            buckets(rate(names.CALL_DURATION, by=("le",), part="_bucket")),
        ),
        time_series(
            "Quantiles",
            "The duration that half of the calls, nine in ten and 99 in a hundred did not exceed; successes and "
            "failures. Read from buckets, so no finer than those.",
            *(
                series(
                    quantile(share, names.CALL_DURATION, _JUDGED),
                    f"{{{{circuit_name}}}}: {share:.0%}",
                    exemplars=share == _SHARES[-1],
                )
                for share in _SHARES
            ),
            unit="s",
            links=[_LOGS, ("Open the runbook", to_runbook(names.SLOW_CIRCUIT.runbook))],
        ),
    ]


_SHARES = (0.5, 0.9, 0.99)
