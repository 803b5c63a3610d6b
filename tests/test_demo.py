"""The demo: real HTTP, counted twice, once by the circuits' events and once by the clients and the service."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fluxgate import Bus, CallNotPermittedError, CircuitBreaker, Cooldown, FailureStreak, State
from fluxgate.testing import VirtualClock

pytest.importorskip("httpx")
pytest.importorskip("rich")

import httpx
from rich.console import Console

from fluxgate import demo
from fluxgate.demo import circuits, logs, service
from fluxgate.demo.figures import summary, view
from fluxgate.demo.runner import SteadyClock, is_over, shortcomings
from fluxgate.demo.service import Fault, Phase, Service
from fluxgate.demo.show import Show, sentence
from fluxgate.demo.tally import CircuitTally, Tally
from fluxgate.listeners import names

COMMAND = [sys.executable, "-m", "fluxgate", "demo"]
NAMES = {"payments", "inventory", "search"}
PATIENCE = 90.0  # seconds, for the slowest machine; a run takes about its duration
TRANSITION = re.compile(r"(\w+) +([\w-]+ → [\w-]+) +(.+)")


# -- the run, for real ------------------------------------------------------------------------------------------------


class Run:
    """What a run with --json left."""

    def __init__(self, duration: str = "4", *options: str) -> None:
        command = [*COMMAND, "--duration", duration, "--json", *options]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=PATIENCE)
        self.code = done.returncode
        self.stderr = done.stderr
        assert done.stdout, done.stderr
        self.document: dict[str, Any] = json.loads(done.stdout)
        self.circuits: dict[str, dict[str, Any]] = self.document["circuits"]


@pytest.fixture(scope="module")
def real() -> Run:
    return Run()


def test_each_circuit_opens_and_recovers(real: Run) -> None:
    """In a run of 4 s each circuit opens and is closed in the end, and the exit code says so."""
    assert (real.code, real.document["ok"], real.document["problems"]) == (0, True, []), real.stderr
    assert set(real.circuits) == NAMES
    for circuit in real.circuits.values():
        moves = [(each["old_state"], each["new_state"]) for each in circuit["transitions"]]
        assert moves[0] == ("closed", "open")
        assert moves[-1] == ("half_open", "closed")
        assert all(before[1] == after[0] for before, after in pairwise(moves))
        assert circuit["opened"] == moves.count(("closed", "open"))
        assert circuit["reopens"] == moves.count(("half_open", "open"))


def test_each_transition_has_its_reason(real: Run) -> None:
    """Each transition says why, with figures, and each opening for how long."""
    for circuit in real.circuits.values():
        for each in circuit["transitions"]:
            assert re.search(r"\d", each["reason"]), each
            assert (each["wait"] is not None) == (each["new_state"] == "open")
    first = {name: circuit["transitions"][0]["reason"] for name, circuit in real.circuits.items()}
    assert "failures in a row (limit 5)" in first["payments"] or "failure rate" in first["payments"]
    assert "failure rate" in first["inventory"]
    assert "slow rate" in first["search"] or "average latency" in first["search"]


def test_the_figures_agree(real: Run) -> None:
    """What the events count is what the clients issued and what the service received, call by call."""
    for name, circuit in real.circuits.items():
        outcomes = sum(circuit["calls"].values())
        assert circuit["admitted"] == outcomes == circuit["served"], name
        assert circuit["issued"] == outcomes + circuit["rejected"], name
        assert circuit["rejected"] == sum(circuit["rejections"].values()) > 0, name
        assert circuit["calls"]["success"] > 0, name
        assert circuit["slow"] <= circuit["calls"]["success"] + circuit["calls"]["failed"], name
    calls = {name: circuit["calls"] for name, circuit in real.circuits.items()}
    assert calls["payments"]["failed"] >= 5
    assert calls["payments"]["ignored"] > 0
    assert calls["inventory"]["failed"] >= 2
    assert (
        real.circuits["inventory"]["fallbacks"] == calls["inventory"]["failed"] + real.circuits["inventory"]["rejected"]
    )
    assert real.circuits["search"]["slow"] >= 3


def test_the_time_in_each_state_is_that_between_the_transitions(real: Run) -> None:
    """The seconds in OPEN and HALF_OPEN are the sums of the stretches between the transitions."""
    for circuit in real.circuits.values():
        spent: Counter[str] = Counter()
        for before, after in pairwise(circuit["transitions"]):
            spent[before["new_state"]] += after["at"] - before["at"]
        for state in ("open", "half_open"):
            assert circuit["seconds"][state] == pytest.approx(spent[state], abs=0.01)


def test_each_transition_is_printed_as_one_line(real: Run) -> None:
    """Where no terminal is, each transition is one line, in order, with its sentence."""
    printed = [match.groups() for match in map(TRANSITION.search, real.stderr.splitlines()) if match]
    for name, circuit in real.circuits.items():
        lines = [(move, why) for circuit_name, move, why in printed if circuit_name == name]
        assert len(lines) == len(circuit["transitions"])
        for (move, why), each in zip(lines, circuit["transitions"], strict=True):
            assert move == f"{each['old_state']} → {each['new_state']}".replace("_", "-")
            assert why.startswith(each["reason"])
    assert "each circuit opened and recovered" in real.stderr


# -- what its listeners tell -------------------------------------------------------------------------------------------


def test_each_listener_tells_of_the_run(real: Run) -> None:
    """The log, the alerts, /metrics and the spans are quoted, and agree with what the circuits counted."""
    assert tuple(real.document["listeners"]) == demo.LISTENERS
    opened = json.loads(quoted(real.stderr, "The first opening in the log:")[0])
    transitions = [each for circuit in real.circuits.values() for each in circuit["transitions"]]
    assert opened["reason"] in [each["reason"] for each in transitions if each["new_state"] == "open"]
    alert = json.loads(quoted(real.stderr, "The first alert there:")[0])
    assert (alert["alert"], alert["status"]) == ("CircuitOpen", "firing")
    assert alert["reason"] == opened["reason"]
    refused: Counter[str] = Counter()
    for line in quoted(real.stderr, "What /metrics tells of changes and refusals:"):
        if line.startswith(names.REJECTED_CALLS.series):
            refused[line.split('circuit_name="')[1].split('"')[0]] += int(float(line.split()[-1]))
    assert refused == {name: circuit["rejected"] for name, circuit in real.circuits.items()}
    spans = quoted(real.stderr, "The outages as spans, and the first calls that each is linked to:")
    outages = Counter(line.split()[2] for line in spans if line.startswith("circuit_breaker outage"))
    assert outages == {name: circuit["opened"] for name, circuit in real.circuits.items()}
    first = [below for line, below in pairwise(spans) if line.startswith("circuit_breaker outage")]
    assert len(first) == sum(outages.values())
    assert all(line.startswith("  linked to") and "circuit.state=closed" in line for line in first), (
        "the calls that tripped"
    )


def quoted(output: str, heading: str) -> list[str]:
    """The lines below a heading, up to the next empty one."""
    return output.split(f"{heading}\n", 1)[1].split("\n\n", 1)[0].splitlines()


def test_it_attaches_what_it_is_asked_to(tmp_path: Path) -> None:
    """With --listeners, --log and --spans those alone tell, to where they were sent."""
    pytest.importorskip("opentelemetry.proto")
    from tests.otlp_receiver import OtlpReceiver

    log = tmp_path / "demo.log"
    receiver = OtlpReceiver()
    with receiver.running():
        asked = ["--listeners", "log,opentelemetry", "--log", str(log), "--spans", receiver.url]
        run = Run("3", *asked)
    assert run.code == 0, run.stderr
    assert list(run.document["listeners"]) == ["log", "opentelemetry"]
    assert "/metrics" not in run.stderr
    lines = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    told = Counter(line["circuit_name"] for line in lines if line["event"] == "circuit_opened")
    assert told == {name: circuit["opened"] + circuit["reopens"] for name, circuit in run.circuits.items()}
    assert not [line for line in lines if line["event"].startswith("alert")]
    refused: Counter[str] = Counter()
    for line in lines:
        if line["event"] == "calls_rejected":
            refused[line["circuit_name"]] += line["rejected"]
    assert refused == {name: circuit["rejected"] for name, circuit in run.circuits.items()}
    spans = Counter(each.item.name for each in receiver.traces)
    for name, circuit in run.circuits.items():
        assert spans[f"circuit_breaker outage {name}"] == circuit["opened"]
        assert spans[f"circuit_breaker {name}"] == circuit["issued"]


def test_a_prometheus_of_its_own_scrapes_it() -> None:
    """With --prometheus a real one runs with the rules loaded, is named by its URL, and knows what the circuits did."""
    from tests.prometheus_server import program

    program("prometheus")
    run = Run("4", "--prometheus", "--listeners", "prometheus")
    assert run.code == 0, run.stderr
    where = run.document["listeners"]["prometheus server"]
    [url] = set(re.findall(r"http://127\.0\.0\.1:\d+", where))
    assert f"{url}/graph?" in run.stderr
    assert f"{url}/alerts" in run.stderr
    told = quoted(run.stderr, "What Prometheus knows of refusals and alerts:")
    refused = {name: int(count) for name, count in re.findall(r"(\w+): (\d+) calls refused", "\n".join(told))}
    assert refused == {name: circuit["rejected"] for name, circuit in run.circuits.items()}
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/-/ready", trust_env=False)


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        (None, "prometheus: none is started, since none is installed (https://prometheus.io/download)"),
        (
            "echo starting; echo no space left on device; exit 1",
            "prometheus: it did not start: no space left on device",
        ),
    ],
)
def test_without_a_prometheus_the_demo_runs_and_says_so(
    script: str | None, sentence: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where none is installed, or it ends at once, one sentence says so and the demo shows the rest."""
    if script is not None:
        (tmp_path / "prometheus").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "prometheus").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    run = Run("3", "--prometheus", "--listeners", "prometheus")
    assert run.code == 0, run.stderr
    assert run.document["listeners"]["prometheus server"] == sentence
    assert sentence in run.stderr


def test_a_prometheus_needs_the_listener() -> None:
    """Asked for a Prometheus and told to attach other listeners only, the command says that these two do not go."""
    command = [*COMMAND, "--prometheus", "--listeners", "log"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2
    assert "--prometheus needs 'prometheus' among --listeners" in done.stderr


def test_names_that_it_does_not_show_are_refused() -> None:
    """Exit code 2, and the error lists those that there are."""
    done = subprocess.run([*COMMAND, "--listeners", "log,pager"], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2
    assert "the demo shows log, alerts, prometheus, opentelemetry, got 'pager'" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly(number: signal.Signals) -> None:
    """Stopped on a terminal, it prints the table of what there is, gives the cursor back, and exits with 128 + n."""
    master, slave = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "40"}
    process = subprocess.Popen([*COMMAND, "--duration", "8"], stdin=slave, stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    try:
        output = ""
        for chunk in chunks(master):
            if "failures in a row" not in output and "failures in a row" in output + chunk:
                process.send_signal(number)
                process.send_signal(number)  # the impatient do it twice
            output += chunk
        assert process.wait(PATIENCE) == 128 + number, output
    finally:
        process.kill()
        process.wait()
        os.close(master)
    assert "Traceback" not in output
    assert "Error" not in output.replace("httpx.HTTPStatusError", "")
    assert "times" in output.rpartition("closed → open")[2], "no table"
    assert f"stopped by {number.name}" in output
    assert output.rfind("\x1b[?25h") > output.rfind("\x1b[?25l") >= 0, "the cursor stays hidden"


def chunks(master: int) -> Iterator[str]:
    """What a program writes to its terminal, until it has ended."""
    while True:
        try:
            chunk = os.read(master, 65536)
        except OSError:  # so Linux says that the other side is closed
            return
        if not chunk:
            return
        yield chunk.decode("utf-8", "replace")


def test_it_fails_where_nothing_happened(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """With a service that stays healthy no circuit opens: exit code 1, and each is named."""
    monkeypatch.setattr(service, "SCRIPT", dict.fromkeys(service.SCRIPT, ()))
    monkeypatch.setattr("fluxgate.demo.runner.SCRIPT", {})
    monkeypatch.setattr("fluxgate.demo.show.SCRIPT", {})
    log = tmp_path / "demo.log"
    assert demo.run(0.5, listeners=[]) == 1
    assert "payments never opened; inventory never opened; search never opened" in capsys.readouterr().out
    assert demo.run(0.5, as_json=True, listeners=["log"], log=log) == 1
    output = capsys.readouterr()
    document = json.loads(output.out)
    assert document["ok"] is False
    assert set(document["problems"]) == {f"{name} never opened" for name in NAMES}
    assert "circuit_opened" not in log.read_text("utf-8")
    assert document["listeners"] == {"log": f"log: {log}"}


# -- when it is over, and whether it went well ------------------------------------------------------------------------


class Outage:
    """A circuit that fails, probes and recovers by the virtual clock, and its tally."""

    def __init__(self, name: str = "payments") -> None:
        self.clock = VirtualClock()
        self.all = Tally()
        self.bus = Bus()
        self.bus.attach(self.all)
        tripper, retry = FailureStreak(2), Cooldown(10)
        self.breaker = CircuitBreaker(name, tripper=tripper, retry=retry, clock=self.clock, bus=self.bus)
        self.breaker.configure(permit=lambda elapsed: True)
        self.tally = self.all.circuits[name]

    def call(self, *, ok: bool, seconds: float = 1.0) -> None:
        """One call, if the circuit admits it."""
        try:
            call = self.breaker.acquire()
        except CallNotPermittedError:
            return
        self.clock.advance(seconds)
        if ok:
            call.success()
        else:
            call.failure(ConnectionError("no route"))

    def open(self) -> None:
        """Two failures."""
        self.call(ok=False)
        self.call(ok=False)

    def probe(self, *, ok: bool) -> None:
        """The wait passes and a call comes."""
        self.clock.advance(10)
        self.call(ok=ok)
        if not ok:
            self.call(ok=ok)


def test_the_tally_counts_and_times_what_it_is_told() -> None:
    """Outcomes, refusals, openings, reopens and the time in each state follow from the events alone."""
    outage = Outage()
    outage.call(ok=True)
    outage.call(ok=True, seconds=60)  # the slow threshold
    outage.open()
    outage.call(ok=True)
    outage.breaker.call_with_fallback(int, lambda error: 0)
    outage.probe(ok=False)
    assert (outage.tally.state, outage.tally.reopens, outage.tally.recovered) == (State.OPEN, 1, False)
    outage.probe(ok=True)
    outage.clock.advance(5)

    tally = outage.tally
    assert tally.calls == {"success": 3, "failed": 4, "ignored": 0, "cancelled": 0}
    assert (tally.admitted, tally.slow, tally.rejections, tally.fallbacks) == (7, 1, {"open": 2}, 1)
    assert (tally.opened, tally.reopens, tally.state, tally.recovered) == (1, 1, State.CLOSED, True)
    now = outage.clock.time()
    assert tally.seconds(now) == {State.CLOSED: 68.0, State.OPEN: 20.0, State.HALF_OPEN: 3.0}
    assert json.loads(json.dumps(tally.to_dict(now)))["transitions"][0]["reason"] == "2 failures in a row (limit 2)"


def test_a_run_lasts_until_what_opened_is_closed() -> None:
    """The script's end is the run's, but for a circuit that is open then: it gets some grace, and no more."""
    outage = Outage()
    assert not is_over(19.9, 20, [outage.tally])
    assert is_over(20, 20, [outage.tally])
    outage.open()
    assert not is_over(29.9, 20, [outage.tally])
    assert is_over(30, 20, [outage.tally])
    assert not is_over(7.9, 3, [outage.tally])
    assert is_over(8, 3, [outage.tally])
    outage.probe(ok=True)
    assert is_over(20, 20, [outage.tally])


def test_what_did_not_happen_is_named() -> None:
    """A circuit that never opened, or is not closed in the end, is a shortcoming; one that recovered is none."""
    still, never, fine = Outage("still"), Outage("never"), Outage("fine")
    tallies = [still.tally, never.tally, fine.tally]
    still.open()
    fine.open()
    fine.probe(ok=True)
    assert shortcomings(tallies) == ["still is still open", "never never opened"]
    still.clock.advance(10)
    still.breaker.acquire()
    assert shortcomings(tallies) == ["still is still half-open", "never never opened"]


# -- what a person sees -----------------------------------------------------------------------------------------------


def shown(renderable: Any, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def busy(names: tuple[str, ...] = ("payments", "inventory")) -> Mapping[str, CircuitTally]:
    tallies: dict[str, CircuitTally] = {}
    for name in names:
        outage = Outage(name)
        outage.call(ok=True, seconds=4)
        outage.open()
        outage.probe(ok=False)
        outage.probe(ok=True)
        tallies[name] = outage.tally
        tallies[name].calls["success"] += 9000
        tallies[name].rejections["open"] += 999
    return tallies


def test_the_table_fits_80_columns() -> None:
    """On a terminal of 80 columns the table has a row a circuit, with every figure whole."""
    tallies = busy()
    since = tallies["payments"].since
    lines = [line.rstrip() for line in shown(summary(tallies.values(), since + 600, gap=0), 80).splitlines()]
    assert max(map(len, lines)) <= 80
    assert [line.split() for line in lines[-2:]] == [
        [name, "9002", "4", "0", "0", "999", "0", "577.0s", "3.0s", "20.0s", "1", "1"] for name in tallies
    ]


def test_the_view_puts_the_circuit_beneath_its_fault() -> None:
    """Over the run the view shows what the service did and, beneath, what the circuit made of it."""
    outage = Outage()
    began = outage.clock.time()
    outage.clock.advance(14)
    outage.open()
    outage.clock.advance(4)
    panel = view([outage.tally], began, outage.clock.time(), 40, 40)
    _, faults, circuit, *_ = (line.strip("│ ") for line in shown(panel, 120).splitlines())
    assert faults.split()[1] == "·" * 6 + "5" * 11 + "·" * 13 + ":" * 3 + "·" * 7
    assert circuit.startswith("open, probe in 6.0 s")
    assert circuit.split()[5] == "━" * 16 + "█" * 4


def test_sentences_say_what_comes_next() -> None:
    """Opening names the error and the wait, reopening the wait, recovery how long it took."""
    outage = Outage()
    outage.open()
    outage.probe(ok=False)
    outage.probe(ok=True)
    outage.open()
    opening = "; no route; next probe in 10 s"
    more = [opening, "", "; next probe in 10 s", "", "; recovered after 23.0 s", opening]
    assert [sentence(change, outage.tally) for change in outage.tally.changes] == [
        change.reason + what for change, what in zip(outage.tally.changes, more, strict=True)
    ]


def test_a_listener_that_prints_does_not_print_in_the_callers_thread() -> None:
    """Transitions are noted when they happen and printed by whoever refreshes, oldest first."""
    first, second = Outage("payments"), Outage("search")
    file = io.StringIO()
    tallies = {"payments": first.tally, "search": second.tally}
    show = Show(Console(file=file), tallies, first.clock.time(), 1000)
    first.bus.attach(show)
    second.bus.attach(show)
    first.clock.advance(5)
    first.open()
    second.open()
    assert file.getvalue() == ""
    show.refresh(first.clock.time())
    assert [line.split()[1] for line in file.getvalue().splitlines()] == ["search", "payments"]


# -- the service and the rules ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "statuses"),
    [(None, [200, 200, 200, 200]), (Fault.ERRORS, [503] * 4), (Fault.SOME_ERRORS, [200, 200, 200, 503])],
)
def test_the_service_follows_its_script(
    fault: Fault | None, statuses: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over real HTTP the service answers as its script says for this moment, and counts each request."""
    monkeypatch.setattr(service, "SCRIPT", {"payments": (Phase(0.5, 0.6, fault),) if fault else ()})
    with Service(lambda: 0.5) as serving, httpx.Client(base_url=serving.url, trust_env=False) as client:
        assert [client.post("/payments", json={}).status_code for _ in range(4)] == statuses
        assert client.get("/elsewhere").status_code == 404
    assert serving.served == {"payments": 4}


def test_a_dropped_connection_is_an_error_of_the_transport(monkeypatch: pytest.MonkeyPatch) -> None:
    """A drop is no answer at all, and the request counts as received."""
    monkeypatch.setattr(service, "SCRIPT", {"inventory": (Phase(0, 1, Fault.DROPS),)})
    with Service(lambda: 0.5) as serving, httpx.Client(base_url=serving.url, trust_env=False) as client:
        with pytest.raises(httpx.TransportError):
            client.get("/inventory")
    assert serving.served == {"inventory": 1}


@pytest.mark.parametrize(("status", "counts"), [(402, False), (404, False), (500, True), (503, True)])
def test_answers_about_the_request_are_not_the_services_fault(status: int, counts: bool) -> None:
    """5xx counts as a failure, 4xx does not."""
    request = httpx.Request("GET", "http://127.0.0.1/")
    error = httpx.HTTPStatusError("no", request=request, response=httpx.Response(status))
    assert circuits.service_at_fault(error) is counts
    assert circuits.service_at_fault(httpx.ConnectError("no route"))


def test_the_log_is_kept_without_structlog(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where structlog is missing the demo's log is written by `logging`, one line an event."""
    monkeypatch.setitem(sys.modules, "structlog", None)
    outage = Outage()
    with closing(logs.Log(tmp_path / "demo.log")) as log:
        for listener in log.listeners():
            outage.bus.attach(listener)
        outage.open()
        assert log.report()[0] == "The first opening in the log:"
    (line,) = (tmp_path / "demo.log").read_text("utf-8").splitlines()
    assert "WARNING circuit_opened circuit_name=payments" in line


def test_the_clock_is_steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's Unix time grows with the monotonic clock, whatever happens to the wall clock."""
    clock = SteadyClock()
    monkeypatch.setattr("time.time", lambda: 0.0)
    monkeypatch.setattr("time.monotonic", lambda: 1000.0)
    then = clock.time()
    monkeypatch.setattr("time.monotonic", lambda: 1007.0)
    assert clock.time() - then == 7.0
    assert clock.monotonic() == 1007.0
