"""PrometheusListener in many processes: workers that write into one directory add up, live or forked, and die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("prometheus_client")

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from fluxgate import State
from fluxgate.listeners import names
from fluxgate.listeners.names import Instrument
from tests.prometheus_server import check_metrics
from tests.running import PATIENCE

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")

# A worker obeys one line at a time and answers each with one, so that nothing here depends on time.
WORKER = """
import os, sys, warnings
warnings.simplefilter("error")
# The parent of the workers that fork runs a listener's thread, and says so.
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
import threading
from fluxgate import Bus, CallNotPermittedError, CircuitBreaker, Closed, Cooldown, FailureStreak, Never, SlowRate
from fluxgate.listeners.prometheus import PrometheusListener

bus = Bus()
circuits = {}

def circuit(name):
    if name not in circuits:
        circuits[name] = CircuitBreaker(name, bus=bus, tripper=Closed() & FailureStreak(2), retry=Never())
    return circuits[name]

def fail():
    raise ConnectionError

def attempt(call, *args):
    try:
        call(*args)
    except (ConnectionError, CallNotPermittedError):
        pass

def obey(word, *args):
    global listener
    if word == "attach":
        listener = PrometheusListener()
        bus.attach(listener)
    elif word == "succeed":
        for _ in range(int(args[1])):
            attempt(circuit(args[0]).call, int)
    elif word == "fail":
        for _ in range(int(args[1])):
            attempt(circuit(args[0]).call, fail)
    elif word == "tick":
        listener.tick()
    elif word == "configure":
        circuit(args[0]).configure(retry=Cooldown(5), tripper=SlowRate(0.5))
    elif word == "stricter":
        circuit(args[0]).configure(tripper=SlowRate(0.25))
    elif word == "retire":
        circuits.pop(args[0]).retire()
    elif word == "traced":
        from opentelemetry.sdk.trace import TracerProvider
        with TracerProvider().get_tracer("shop").start_as_current_span("sampled"):
            attempt(circuit(args[0]).call, int)
    elif word == "fork":  # the child takes the parent's place, which waits for it
        pid = os.fork()
        if pid:
            os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    elif word == "exit":
        sys.exit()

for line in sys.stdin:
    obey(*line.split())
    print(os.getpid(), flush=True)
"""


class Worker:
    """One process that serves calls."""

    def __init__(self, folder: Path) -> None:
        environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def do(self, *words: Any) -> int:
        """Let it obey, and wait until it has; its process id, a forked child's own."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(*words, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        assert answer, f"the worker ended at {words}"
        return int(answer)

    def end(self) -> None:
        """Let it end by itself."""
        assert self.process.stdin is not None
        print("exit", file=self.process.stdin, flush=True)
        assert self.process.wait(PATIENCE) == 0


class Workers:
    """Several of them, and what a scrape of their directory gives."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self._stack = stack

    def start(self, *, attach: bool = True) -> Worker:
        worker = Worker(self.folder)
        self._stack.enter_context(worker.process)
        self._stack.callback(worker.process.kill)
        if attach:
            worker.do("attach")
        return worker

    @property
    def registry(self) -> CollectorRegistry:
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=str(self.folder))  # type: ignore[no-untyped-call]
        return registry

    def series(self, instrument: Instrument, suffix: str = "") -> dict[tuple[str, ...], float]:
        """The series of a metric that are not zero, by the values of their labels."""
        return {
            tuple(sample.labels[label] for label in instrument.labels): sample.value
            for metric in self.registry.collect()
            for sample in metric.samples
            if sample.name == instrument.series + suffix and sample.value
        }

    @property
    def calls(self) -> dict[tuple[str, ...], float]:
        return self.series(names.CALL_DURATION, "_count")

    def states(self, name: str) -> set[str]:
        return {state for circuit, state in self.series(names.STATE) if circuit == name}


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    with ExitStack() as stack:
        yield Workers(tmp_path, stack)


def test_the_totals_of_workers_add_up(workers: Workers) -> None:
    """Counters and histograms of all workers add up exactly; a scrape passes promtool."""
    several = [workers.start() for _ in range(3)]
    for number, worker in enumerate(several, start=1):
        worker.do("succeed", "payments", 10 * number)
        worker.do("fail", "payments", 1)
        worker.do("succeed", "stock", number)
    assert workers.calls == {("payments", "success"): 60, ("payments", "failure"): 3, ("stock", "success"): 6}
    assert workers.states("payments") == {"closed"}
    several[0].do("fail", "payments", 4)
    assert workers.calls["payments", "failure"] == 4
    assert workers.series(names.REJECTED_CALLS) == {("payments", "open"): 3}
    assert workers.series(names.TRANSITIONS) == {("payments", "closed", "open"): 1}
    assert check_metrics(generate_latest(workers.registry)) == ""
    for worker in several:
        worker.end()
    assert workers.calls["payments", "success"] == 60, "what was counted outlives the process"


def test_a_state_is_1_if_any_worker_is_in_it(workers: Workers) -> None:
    """Workers decide each for itself: each state that one of them is in is 1, every other is there with 0."""
    one, two = workers.start(), workers.start()
    one.do("succeed", "payments", 1)
    two.do("fail", "payments", 2)
    assert workers.states("payments") == {"closed", "open"}
    shown = [
        sample.labels["state"]
        for metric in workers.registry.collect()
        for sample in metric.samples
        if sample.name == names.STATE.series
    ]
    assert sorted(shown) == sorted(State), "and no label but ours"
    one.do("tick")
    two.do("tick")
    assert workers.series(names.FAILURE_RATE) == {("payments",): 1.0}, "the worst of them"
    [(_, first)] = workers.series(names.STATE_CHANGED).items()
    one.do("fail", "payments", 2)
    assert workers.states("payments") == {"open"}
    [(_, last)] = workers.series(names.STATE_CHANGED).items()
    assert last > first, "the last of them"


def test_a_dead_worker_counts_on_but_is_in_no_state(workers: Workers) -> None:
    """After `mark_process_dead` its gauges are gone, and what it counted stays, however it died."""
    one, two = workers.start(), workers.start()
    one.do("succeed", "payments", 3)
    two.do("fail", "payments", 2)
    two.do("tick")
    assert workers.states("payments") == {"closed", "open"}
    two.process.send_signal(signal.SIGKILL)
    two.process.wait(PATIENCE)
    mark_process_dead(two.process.pid, str(workers.folder))  # type: ignore[no-untyped-call]
    assert workers.states("payments") == {"closed"}
    assert workers.series(names.FAILURE_RATE) == {}
    assert workers.calls == {("payments", "success"): 3, ("payments", "failure"): 2}
    three = workers.start()
    three.do("succeed", "payments", 4)
    assert workers.calls["payments", "success"] == 7


def test_a_retired_circuit_is_in_no_state(workers: Workers) -> None:
    """Nothing can be removed there: its gauges are 0 in this worker, its counters stay, and no warning is raised."""
    one, two = workers.start(), workers.start()
    for worker in (one, two):
        worker.do("fail", "payments", 2)
        worker.do("succeed", "stock", 1)
    one.do("retire", "payments")
    assert workers.states("payments") == {"open"}, "in the other worker"
    two.do("retire", "payments")
    assert workers.states("payments") == set()
    for instrument in (names.STATE_CHANGED, names.CIRCUIT_INFO, names.FAILURE_RATE, names.LIMIT):
        assert not [labels for labels in workers.series(instrument) if labels[0] == "payments"]
    assert workers.calls["payments", "failure"] == 4
    assert workers.states("stock") == {"closed"}
    assert workers.series(names.LISTENER_FAILURES) == {}
    two.do("succeed", "payments", 1)
    assert workers.states("payments") == {"closed"}
    assert workers.calls["payments", "success"] == 1


def test_rules_that_were_replaced_are_0(workers: Workers) -> None:
    """Of a circuit's rules the series with 1 is that of those in force, and a limit that is gone is 0."""
    worker = workers.start()
    worker.do("succeed", "payments", 1)
    assert workers.series(names.LIMIT) == {("payments", "failure_streak"): 2}
    worker.do("configure", "payments")
    assert [labels[3] for labels in workers.series(names.CIRCUIT_INFO)] == ["Cooldown(5)"]
    assert workers.series(names.LIMIT) == {("payments", "slow_rate"): 0.5}


def test_a_limit_is_that_of_the_workers_that_have_the_circuit(workers: Workers) -> None:
    """A worker whose circuit is gone does not lower the others' limit, and of different ones the greatest shows."""
    one, two, three = workers.start(), workers.start(), workers.start()
    for worker in (one, two, three):
        worker.do("succeed", "payments", 1)
    one.do("configure", "payments")
    two.do("retire", "payments")
    assert workers.series(names.LIMIT) == {("payments", "failure_streak"): 2, ("payments", "slow_rate"): 0.5}
    three.do("stricter", "payments")
    assert workers.series(names.LIMIT)["payments", "slow_rate"] == 0.5


@pytest.mark.parametrize("when", ["attached before", "attached after"])
def test_forked_workers_add_up(when: str, workers: Workers) -> None:
    """Workers forked from a parent that has made circuits begin with nothing counted, and show their own state."""
    several = [workers.start(attach=False) for _ in range(3)]
    for worker in several:
        if when == "attached before":
            worker.do("attach")
        worker.do("succeed", "payments", 5)
        parent = worker.process.pid
        assert worker.do("fork") != parent
        if when == "attached after":
            worker.do("attach")
        mark_process_dead(parent, str(workers.folder))  # type: ignore[no-untyped-call]
        worker.do("tick")
    before = 15 if when == "attached before" else 0
    assert workers.calls.get(("payments", "success"), 0) == before
    assert workers.states("payments") == {"closed"}, "told by the children, since the parents' gauges are gone"
    for worker in several:
        worker.do("succeed", "payments", 7)
    several[0].do("fail", "payments", 3)
    assert workers.calls == {("payments", "success"): before + 21, ("payments", "failure"): 2}
    assert workers.states("payments") == {"closed", "open"}
    assert workers.series(names.TRANSITIONS) == {("payments", "closed", "open"): 1}
    assert workers.series(names.LIMIT) == {("payments", "failure_streak"): 2}


def test_a_sampled_call_is_measured_without_its_exemplar(workers: Workers) -> None:
    """The mode has no exemplars: the call counts all the same."""
    pytest.importorskip("opentelemetry.sdk")
    worker = workers.start()
    worker.do("traced", "payments")
    assert workers.calls == {("payments", "success"): 1}
    assert workers.series(names.LISTENER_FAILURES) == {}


def test_a_directory_that_is_missing_is_named(tmp_path: Path) -> None:
    """The listener is refused when it is made, not with each call."""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "missing")}
    source = "from fluxgate.listeners.prometheus import PrometheusListener; PrometheusListener()"
    command = [sys.executable, "-c", source]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 1
    said = f"ValueError: PROMETHEUS_MULTIPROC_DIR must be a directory that exists, got '{tmp_path / 'missing'}' (str)"
    assert done.stderr.splitlines()[-1] == said
