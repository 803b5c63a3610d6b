"""The benchmarks: they compare what they say, and the guard's verdicts follow from its table. Nothing is timed here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from benchmarks import (
    adapters,
    budgets,
    conductor,
    environments,
    features,
    footprint,
    guard,
    instructions,
    peers,
    report,
    workloads,
)
from benchmarks.adapters import Lacks
from benchmarks.budgets import BUDGETS, Budget
from benchmarks.conductor import Subject
from benchmarks.peers import OURS, PEERS, Peer
from benchmarks.workloads import Threads, Timed
from fluxgate import Bus, CallNotPermittedError
from fluxgate.events import CallFailed, CallRejected, CallSucceeded

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
LIBRARY = {"Prometheus": "prometheus_client", "OpenTelemetry": "opentelemetry", "Tracing": "opentelemetry.sdk"}


@pytest.fixture
def ours() -> adapters.Adapter:
    return adapters.adapter(OURS)


# -- the tables -------------------------------------------------------------------------------------------------------


def test_every_budget_is_measured_by_the_benchmarks_and_by_the_guard() -> None:
    """No budget is without a measurement, and nothing is measured without a budget."""
    wanted = [budget.figure for budget in BUDGETS]
    assert len(set(wanted)) == len(wanted)
    assert set(guard.MEASURES) == set(report.FIGURES) == set(wanted)
    assert set(guard.APPEALS) <= set(wanted)


def test_every_peer_is_pinned_and_has_an_adapter() -> None:
    """Each has an exact version, an environment of its own, and a word about what it leaves undone."""
    others = [peer for peer in PEERS if peer is not OURS]
    assert len({peer.home for peer in others}) == len(others)
    for peer in others:
        assert re.fullmatch(r"\d+(\.\d+)+", peer.version), peer.name
        assert issubclass(getattr(adapters, peer.adapter), adapters.Adapter)
        assert peer.less
        assert peer.home.name.startswith(peer.distribution)
    assert OURS.python == Path(sys.executable)


def test_the_page_shows_the_results_that_are_kept() -> None:
    """The tables are those of results.json, with a row for each peer and for each feature."""
    results = json.loads(report.RESULTS.read_text("utf-8"))
    page = PAGE.read_text("utf-8")
    assert report.fill(page, results) == page
    assert all(f"| {report.named(peer.name)} |" in page for peer in PEERS)
    assert all(f"\n| {name} |" in page for name in features.FEATURES)


def test_a_page_without_a_place_for_a_part_is_an_error() -> None:
    """A generated part is never left out without a word."""
    results = json.loads(report.RESULTS.read_text("utf-8"))
    page = PAGE.read_text("utf-8").replace("<!-- threads -->", "")
    with pytest.raises(ValueError, match="0 places for threads"):
        report.fill(page, results)


def test_a_row_in_which_a_peer_is_ahead_is_told() -> None:
    """By the share that the best of them is ahead, for what should be small as for what should be large."""
    cell = {"ratio": [10.0, 9.0, 11.0]}
    results = {
        "peers": {
            "success": {
                OURS.name: cell,
                "a": {"ratio": [4.0, 4.0, 4.0]},
                "b": {"ratio": [11.0, 1.0, 1.0]},
                "c": "none",
            },
            "block": {OURS.name: cell, "a": {"ratio": [12.0, 4.0, 4.0]}},
            "threads": {OURS.name: {"1": [5.0, 1.0, 1.0]}, "b": {"1": [10.0, 1.0, 1.0]}, "a": {"1": [4.0, 9.0, 9.0]}},
        }
    }
    assert report.behind(results) == [
        "- success: a (at best 2.50 times as fast or small)",
        "- threads: b (at best 2.00 times as fast or small)",
    ]
    del results["peers"]["success"], results["peers"]["threads"]
    assert report.behind(results) == ["In none of the rows."]


# -- the guard --------------------------------------------------------------------------------------------------------


def always(value: float) -> guard.Measure:
    return lambda: value


LESS = Budget("less", "less", 10, "×")
MORE = Budget("more", "more", 1, "×", at_least=True)
EXACT = Budget("exact", "exact", 0, "calls", exact=True)


@pytest.mark.parametrize(
    ("budget", "measured", "verdict"),
    [
        (LESS, 10.0, "ok"),
        (LESS, 10.1, "ok, by its headroom"),
        (LESS, 10 * (1 + budgets.HEADROOM), "ok, by its headroom"),
        (LESS, 13.1, "ABOVE ITS LIMIT"),
        (LESS, None, "not measured"),
        (MORE, 1.0, "ok"),
        (MORE, 0.71, "ok, by its headroom"),
        (MORE, 0.69, "ABOVE ITS LIMIT"),
        (EXACT, 0.0, "ok"),
        (EXACT, 1.0, "ABOVE ITS LIMIT"),
    ],
)
def test_a_verdict_follows_from_the_budget(budget: Budget, measured: float | None, verdict: str) -> None:
    """Within the budget, within its headroom, above it, or unknown; what is counted has no headroom."""
    finding = guard.Finding(budget, measured)
    assert finding.verdict == verdict
    assert finding.failed == verdict.startswith("ABOVE")
    assert verdict in guard.line(finding)


def test_what_is_above_its_limit_by_time_is_decided_by_instructions() -> None:
    """Only then, and only where somebody can count them."""
    asked: list[str] = []

    def counted(value: float | None) -> guard.Measure:
        def count() -> float | None:
            asked.append(f"{value}")
            return value

        return count

    table = {
        "fine": (9.0, counted(99.0)),
        "noisy": (99.0, counted(9.0)),
        "worse": (99.0, counted(98.0)),
        "cannot": (99.0, counted(None)),
    }
    given = [Budget(name, name, 10, "×") for name in [*table, "no appeal"]]
    measures = {name: always(time) for name, (time, _) in table.items()} | {"no appeal": always(99.0)}
    found = list(guard.findings(given, measures, {name: appeal for name, (_, appeal) in table.items()}))
    assert [(each.measured, each.counted, each.failed) for each in found] == [
        (9.0, False, False),
        (9.0, True, False),
        (98.0, True, True),
        (99.0, False, True),
        (99.0, False, True),
    ]
    assert asked == ["9.0", "98.0", "None"]
    assert "by instructions" in guard.line(found[1])


def test_the_guard_ends_with_1_if_something_is_above_its_limit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And prints a line for each budget either way."""
    met = {budget.figure: budget.limit for budget in BUDGETS}
    monkeypatch.setattr(guard, "MEASURES", {name: always(value) for name, value in met.items()})
    assert guard.main() == 0
    assert len(capsys.readouterr().out.splitlines()) == len(BUDGETS) + 2
    monkeypatch.setitem(guard.MEASURES, "drift", always(1.0))
    for command, told in ((["perf"], False), ([], True)):
        monkeypatch.setattr(instructions, "counter", lambda command=command: command)
        assert guard.main() == 1
        out = capsys.readouterr().out
        assert "1 above the limit" in out
        assert ("Neither perf nor valgrind" in out) == told


def test_a_figure_that_is_missing_is_an_error() -> None:
    """It has met no budget."""
    with pytest.raises(KeyError, match="no such figure"):
        guard._in_a_process("memory", "no such figure")


def test_eight_threads_at_their_best_stand_beside_one_at_its_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample in which a neighbour took from the one thread alone does not flatter the eight."""

    class Told:
        def __init__(self, *_: Any) -> None:
            self.samples = iter([{}, {"1": 1.0, "8": 4.0}, *[{"1": 10.0, "8": 5.0}] * guard.SAMPLES])

        def ask(self, stretches: int) -> dict[str, float]:
            return next(self.samples)

        def close(self) -> None: ...

    monkeypatch.setattr(guard, "Worker", Told)
    assert guard.MEASURES["8 threads"]() == 0.5


@pytest.mark.parametrize(
    ("written", "counts"),
    [
        ("1234567,,instructions:u,1000,100.00,,\n", 1_234_567),
        ("==7== Cachegrind\n==7== I refs:        1,234,567\n", 1_234_567),
        ("==7== I   refs:      12\n", 12),
        ("<not supported>,,instructions:u,0,100.00,,\n", None),
        ("", None),
    ],
)
def test_instructions_are_read_from_what_the_counters_write(written: str, counts: int | None) -> None:
    """perf's and valgrind's reports give a figure; a machine that cannot count gives none."""
    assert instructions.counted(written) == counts


def test_without_a_counter_nothing_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where neither perf nor valgrind works the guard's own figure stands."""
    monkeypatch.setattr(instructions, "counter", list)
    assert instructions.per_call(OURS.name, "success") is None


# -- measuring --------------------------------------------------------------------------------------------------------


def test_a_sample_is_the_best_stretch_without_the_loop() -> None:
    """The loop is subtracted from both, each being the best of its stretches."""

    def taking(*milliseconds: float) -> workloads.Loop:
        left = iter(milliseconds)
        return lambda n: next(left) * n / 1e3

    settled: list[int] = []
    timed = Timed(measured=taking(30, 21, 40), bare=taking(5, 9, 3), loop=taking(3, 1, 2), iterations=10)
    timed.settle = lambda: settled.append(1)
    sample = timed.sample(3)
    assert {name: round(1e3 * value, 6) for name, value in sample.items()} == {"bare": 2.0, "measured": 20.0}
    assert conductor.ratio(sample) == pytest.approx(10)
    assert settled == [1]


def test_a_stretch_is_long_enough_of_the_bare_call_as_well() -> None:
    """However slow what is measured: a bare call that is timed for microseconds is timed cold."""
    timed = Timed(measured=lambda n: n * 1e-3, bare=lambda n: n * 1e-6, loop=lambda n: n * 1e-7, stretch=0.05)
    timed.warm_up()
    assert timed.iterations * 1e-3 >= 0.05
    assert timed.bare_iterations * 1e-6 >= workloads.SHORT_STRETCH
    assert conductor.ratio(timed.sample(1)) == pytest.approx((1e-3 - 1e-7) / (1e-6 - 1e-7))


def test_what_is_reported_is_the_median_of_the_ratios() -> None:
    """Not the ratio of medians: each sample has its own noise."""
    samples = [{"bare": 1.0, "measured": 10.0}, {"bare": 2.0, "measured": 22.0}, {"bare": 1.0, "measured": 30.0}]
    assert conductor.summary(samples)["ratio"] == [11.0, 10.0, 30.0]
    assert conductor.summary(samples)["bare"] == [1.0, 1.0, 2.0]


def test_calls_that_a_circuit_loses_are_counted() -> None:
    """Drift is what eight threads have called, less what the circuit says; no figure where it counts nothing."""

    class Losing(adapters.Ours):
        def calls(self, breaker: Any) -> int:
            return super().calls(breaker) - 3

    class Blind(adapters.Ours):
        def calls(self, breaker: Any) -> int:
            raise Lacks("counts nothing")

        failures = calls

    for kind, drift in ((adapters.Ours, 0), (Losing, 3), (Blind, None)):
        threads = Threads(kind(OURS), counts=(1, 8), stretch=0.0, counted=50)
        threads.warm_up()
        assert threads.drift == drift
        assert threads.sample(1).keys() == {"1", "8"} | (set() if drift is None else {"drift"})


NAMES = [name for name in workloads.CALLS if name != "threads"]


@pytest.mark.parametrize("name", [*NAMES, "window:10", "among:3", "each of:3"])
def test_each_workload_runs_on_ours(name: str, ours: adapters.Adapter) -> None:
    """A tiny round gives a figure for the bare call and for the measured one."""
    timed = workloads.workload(ours, name)
    timed.iterations = 20
    assert timed.sample(1).keys() == {"bare", "measured"}


def test_circuits_end_calls_as_their_workload_says(ours: adapters.Adapter) -> None:
    """An open circuit refuses; one of which a call in ten fails stays closed; a window has the size asked for."""
    with pytest.raises(CallNotPermittedError):
        ours.opened(workloads.work)(1)

    class Unbreakable(adapters.Ours):
        def fragile(self) -> Any:
            return self.counting(10)

    with pytest.raises(AssertionError, match="not open"):
        Unbreakable(OURS).opened(workloads.work)
    breaker = ours.breaker()
    workloads.trying(ours.decorate(breaker, workloads.flaky), workloads.ONE_IN_TEN_IS_ZERO)(1_000)
    assert breaker.info().state == "closed"
    assert (ours.calls(breaker), ours.failures(breaker)) == (100, 10)
    breaker = ours.counting(7)
    workloads.calling(ours.decorate(breaker, workloads.work))(20)
    assert ours.calls(breaker) == 7


@pytest.mark.parametrize("name", footprint.FOOTPRINT)
def test_each_footprint_is_taken_of_ours(name: str, ours: adapters.Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory, making and importing give positive figures."""
    monkeypatch.setattr(footprint, "BREAKERS", 5)
    monkeypatch.setattr(footprint, "WINDOW", 500)
    prepared = footprint.FOOTPRINT[name](ours)
    prepared.warm_up()
    sample = prepared.sample(1)
    assert sample.keys() == {"memory": {"breaker", "call"}, "making": {"made"}, "import": {"import"}}[name]
    assert all(value > 0 for value in sample.values())


@pytest.mark.parametrize("outcome", features.OUTCOMES)
@pytest.mark.parametrize("name", features.FEATURES)
def test_each_feature_runs(name: str, outcome: str) -> None:
    """With its listener attached a call ends as the workload says; what is called by hand runs as well."""
    for word, library in LIBRARY.items():
        if word in name:
            pytest.importorskip(library)
    if "structlog" in name.lower():
        pytest.importorskip("structlog")
    timed = features.workload(name, outcome)
    timed.iterations = 20
    assert timed.sample(1).keys() == {"bare", "measured"}
    feature = features.FEATURES[name]()
    if outcome in feature.floors:
        feature.floors[outcome](1)
        by_hand = features.workload(name, features.BY_HAND + outcome)
        by_hand.iterations = 20
        assert by_hand.sample(1).keys() == {"bare", "measured"}


def test_a_listener_under_measurement_hears_each_call() -> None:
    """And calls end as their outcome says, however many there are."""
    heard: list[type] = []
    expected = {
        "success": (CallSucceeded, None),
        "failure": (CallFailed, adapters.Refusing),
        "rejection": (CallRejected, CallNotPermittedError),
    }
    for outcome, (event, error) in expected.items():
        bus = Bus()
        bus.attach(lambda event: heard.append(type(event)), *features.Ignoring.events)
        func = features.protected(outcome, bus)
        heard.clear()
        for _ in range(300):
            try:
                ended = func(1)
            except Exception as raised:
                ended = type(raised)
            assert ended == (error or 1)
        assert heard == [event] * 300


def test_workers_are_asked_in_turn_and_say_what_they_lack() -> None:
    """A worker answers from a process of its own with samples, or with what there is not."""
    subjects = {
        "ours": Subject(OURS.python, OURS.name, "memory"),
        "none": Subject(OURS.python, features.NO_LISTENER, f"{features.BY_HAND}success"),
    }
    found = conductor.play(subjects, rounds=2, stretches=1)
    assert found["none"] == "needs nothing"
    assert [sample.keys() for sample in found["ours"] if not isinstance(sample, str)] == [{"breaker", "call"}] * 2


def test_a_worker_that_ends_is_an_error() -> None:
    """A library that crashes must not look like one that is fast."""
    with pytest.raises(RuntimeError, match="has ended"):
        conductor.play({"ours": Subject(OURS.python, OURS.name, "no such workload")}, 1, 1)


# -- the peers' environments ------------------------------------------------------------------------------------------


def test_a_peer_is_installed_once_and_a_peer_that_cannot_be_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The reason stands in the table; what is installed at that version is left alone."""
    peer = Peer("some", "Ours", "some", "1.0", "some", "nothing")
    monkeypatch.setattr(peers, "ENVIRONMENTS", tmp_path)
    answers = iter([(1, "ERROR: no such version\nmore"), (0, "")])
    runs = count()

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        next(runs)
        assert command[-1] == "some==1.0"
        status, written = next(answers)
        return subprocess.CompletedProcess(command, status, "", written)

    monkeypatch.setattr(subprocess, "run", run)
    assert environments.ready(peer) == "cannot be installed: ERROR: no such version"
    assert environments.ready(peer) is None
    assert environments.ready(peer) is None
    assert next(runs) == 2
    assert environments.ready(OURS) is None
