"""Two hours in the life of three programs, lived in a second: real breakers with real listeners on virtual clocks.

At each step of `STEP` seconds every program is "scraped": its metrics are noted with the time, as OpenMetrics, for
``promtool tsdb create-blocks-from openmetrics``. The story ends at the present, where the same registries go on as
live targets.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TextIO

from prometheus_client import CollectorRegistry, Metric, start_http_server
from prometheus_client.registry import Collector

from fluxgate import (
    AvgLatency,
    Backoff,
    Bus,
    CallNotPermittedError,
    CircuitBreaker,
    Cooldown,
    FailureRate,
    FailureStreak,
    MinRequests,
    SlowRate,
    State,
    TimeWindow,
    TypeOf,
    permits,
)
from fluxgate.events import CallEnded, CallRejected, Event, EventsDropped, ListenerFailed, StateChanged
from fluxgate.listeners.prometheus import PrometheusListener
from fluxgate.testing import EventRecorder, VirtualClock
from tests.running import PATIENCE

STEP = 15.0
"""Seconds between two scrapes: what the shipped scrape configuration has."""
MINUTES = 120
SLOW_FROM = 1.0


class Health(NamedTuple):
    """How a dependency does for one step."""

    failing: float = 0.01
    """The share of calls that fail."""
    seconds: float = 0.08
    """What a call takes, on average."""
    slow: float = 0.0
    """The share of calls that take over `SLOW_FROM`."""


WELL, DOWN, SLUGGISH = Health(), Health(failing=1.0, seconds=0.3), Health(slow=0.65)


class Part(NamedTuple):
    """One circuit of a program: how it is made, how often it is called, and what it goes through."""

    name: str
    rules: Callable[[], dict[str, Any]]
    calls: int
    """At each step."""
    health: Callable[[float], Health]
    """By the minute of the story."""
    commands: Mapping[float, str] = MappingProxyType({})
    """What a person does to it, by the minute."""
    lives: tuple[float, float] = (0, 10 * MINUTES)
    fallback: bool = False


def _ill(*spells: tuple[float, float, Health]) -> Callable[[float], Health]:
    def health(minute: float) -> Health:
        return next((ill for begin, end, ill in spells if begin <= minute < end), WELL)

    return health


def _false_recoveries(minute: float) -> Health:
    """From time to time it is down for a moment in each minute."""
    return DOWN if (35 <= minute < 43 or minute >= 106) and minute % 1 < 0.3 else WELL


NETWORK = (55, 61, DOWN)  # nobody reaches anything


def _careful() -> dict[str, Any]:
    return {
        "window": TimeWindow(60),
        "tripper": FailureStreak(8) | (MinRequests(20) & (FailureRate(0.5) | SlowRate(0.8) | AvgLatency(2.5))),
        "retry": Backoff(20, max_duration=120, jitter_ratio=0),
        "permit": permits.All(),
        "max_half_open_calls": 1,
    }


def _plain() -> dict[str, Any]:
    return {
        "window": TimeWindow(60),
        "tripper": MinRequests(5) & FailureRate(0.5),
        "retry": Cooldown(60),
        "max_half_open_calls": 2,
        "permit": permits.All(),
    }


def _impatient() -> dict[str, Any]:
    return _plain() | {"tripper": MinRequests(10) & (SlowRate(0.9) | FailureRate(0.6))}


def _hasty() -> dict[str, Any]:
    return _plain() | {"tripper": FailureStreak(2), "retry": Cooldown(10)}


SHOP = (
    Part("payments", _careful, 8, _ill((20, 31, DOWN), NETWORK, (116, 999, DOWN)), fallback=True),
    Part("inventory", _plain, 40, _ill(NETWORK, (98, 999, DOWN))),
    Part("search (EU)", _impatient, 8, _ill((70, 80, Health(slow=1.0)), NETWORK, (100, 999, SLUGGISH))),
    Part("recommendations", _hasty, 6, _false_recoveries, fallback=True),
    Part("pricing", _plain, 6, _ill((40, 50, DOWN), (112, 999, Health(failing=0.8))), {0.5: "metrics_only"}),
    Part("legacy", _plain, 4, _ill(NETWORK), {10: "force_open", 12: "reset", 85: "force_open"}),
    Part("reports", _plain, 3, _ill(NETWORK), {90: "disable"}),
    Part("campaign", _plain, 4, _ill(NETWORK), lives=(30, 75)),
)
BILLING = (
    Part("payments", _careful, 5, _ill((22, 27, DOWN), NETWORK, (115, 999, DOWN))),
    Part("tax", _plain, 4, _ill((5, 8, Health(failing=0.3)), NETWORK, (117, 999, DOWN))),
)


class Stubborn:
    """A listener in the background that holds back while it is told to, so that its queue overflows."""

    events = (CallEnded,)

    def __init__(self) -> None:
        self.free = threading.Event()
        self.free.set()

    def __call__(self, event: Event) -> None:
        assert self.free.wait(PATIENCE), "nobody let it go"


class Broken:
    """A listener that cannot reach what it writes to."""

    events = (StateChanged,)

    def __call__(self, event: Event) -> None:
        raise ConnectionError("no route to the log server")


class Run:
    """A program from one start to the next: a bus, circuits, a registry; and what it counted itself."""

    def __init__(self, parts: tuple[Part, ...], seed: str, *, troubled: bool) -> None:
        self.registry = CollectorRegistry()
        self.recorder = EventRecorder()
        self.stubborn = Stubborn()
        self._parts = parts
        self._chance = random.Random(seed)
        self._bus = Bus()
        self._circuits: dict[str, tuple[CircuitBreaker, VirtualClock]] = {}
        self._listener = PrometheusListener(self.registry)
        self._troubled = troubled
        self.subscriptions = [self._bus.attach(self._listener), self._bus.attach(self.recorder)]
        if troubled:
            self.subscriptions.append(self._bus.attach(Broken()))
            self.subscriptions.append(self._bus.attach(self.stubborn, delivery="background", queue_size=100))

    def step(self, begin: float, end: float, minute: float) -> None:
        """Live from one Unix time to another."""
        overwhelmed = 25 <= minute < 29 or 112 <= minute < MINUTES
        if overwhelmed:
            self.stubborn.free.clear()  # for two minutes
        for part in self._parts:
            if part.lives[0] <= minute < part.lives[1]:
                self._live(part, begin, end, minute)
                clock = self._circuits[part.name][1]
                clock.advance(max(end - clock.time(), 0))
            elif part.name in self._circuits:
                self._circuits.pop(part.name)[0].retire()
        if self._troubled and (not overwhelmed or (minute + STEP / 60) % 2 == 0):
            self.stubborn.free.set()
            assert self._bus.flush(PATIENCE)
        self._listener.tick()

    def _live(self, part: Part, begin: float, end: float, minute: float) -> None:
        if part.name not in self._circuits:
            clock = VirtualClock(time=begin)
            rules = part.rules() | {"tracker": ~TypeOf(KeyError), "slow_threshold": SLOW_FROM}
            self._circuits[part.name] = CircuitBreaker(part.name, bus=self._bus, clock=clock, **rules), clock
        cb, clock = self._circuits[part.name]
        for when, command in part.commands.items():
            if when <= minute < when + STEP / 60:
                getattr(cb, command)()
        health = part.health(minute)
        for number in range(part.calls // 2):
            if clock.time() > end:  # no time is left
                break
            self._pair(cb, clock, health, number, fallback=part.fallback)

    def _pair(self, cb: CircuitBreaker, clock: VirtualClock, health: Health, number: int, *, fallback: bool) -> None:
        """Two calls at once, of which a half-open circuit may admit only the first."""
        errors: list[Exception] = []
        under_way: list[Any] = []
        for _ in range(2):
            try:
                under_way.append(cb.acquire())
            except CallNotPermittedError as refused:
                errors.append(refused)
        for call in under_way:
            clock.advance(self._duration(health))
            if self._chance.random() < health.failing:
                errors.append(ConnectionError("no route to host"))
                call.failure(errors[-1])
            elif self._chance.random() < 0.02:
                call.failure(KeyError("no such item"))
            elif self._chance.random() < 0.01:
                call.cancel()
            else:
                call.success()
        if fallback and number % 2:
            cb.call_with_fallback(self._work, lambda _: None, clock, health)

    def _work(self, clock: VirtualClock, health: Health) -> None:
        clock.advance(self._duration(health))
        if self._chance.random() < health.failing:
            raise ConnectionError("no route to host")

    def _duration(self, health: Health) -> float:
        if self._chance.random() < health.slow:
            return self._chance.uniform(SLOW_FROM, 1.5 * SLOW_FROM)
        return self._chance.lognormvariate(0, 0.6) * health.seconds

    def circuits(self) -> dict[str, CircuitBreaker]:
        """Those that live."""
        return {name: cb for name, (cb, _) in self._circuits.items()}

    def close(self) -> None:
        """Detach all listeners."""
        self.stubborn.free.set()
        for subscription in self.subscriptions:
            subscription.close()


class Program(Collector):
    """A program that is scraped: an endpoint which its restarts do not move."""

    def __init__(self, job: str, parts: tuple[Part, ...], seed: str, *, troubled: bool = False) -> None:
        self.job = job
        self.instance = ""
        self.runs: list[Run] = []
        self._parts, self._seed, self._troubled = parts, seed, troubled
        self.restart()

    def restart(self) -> None:
        """It begins anew, and counts from 0."""
        self.runs.append(Run(self._parts, f"{self._seed}, {len(self.runs)}", troubled=self._troubled))

    @property
    def run(self) -> Run:
        """The present run."""
        return self.runs[-1]

    def collect(self) -> Iterator[Metric]:
        yield from self.run.registry.collect()

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Have an endpoint on a free port."""
        registry = CollectorRegistry()
        registry.register(self)
        httpd, thread = start_http_server(0, "127.0.0.1", registry)
        self.instance = f"127.0.0.1:{httpd.server_port}"
        try:
            yield
        finally:
            httpd.shutdown()
            httpd.server_close()
            thread.join()


class Fleet:
    """The programs, and what they have lived through."""

    def __init__(self, end: float) -> None:
        self.programs = (
            Program("shop", SHOP, "one", troubled=True),
            Program("shop", SHOP, "two"),
            Program("billing", BILLING, "three"),
        )
        self.begin = end - MINUTES * 60
        self.now = self.begin
        self._prefixes: dict[Any, str] = {}

    @property
    def minute(self) -> float:
        """How long the story has lasted."""
        return round(self.now - self.begin, 3) / 60

    def step(self, until: float | None = None) -> None:
        """Live on to this Unix time, or for `STEP` seconds."""
        until = self.now + STEP if until is None else until
        if self.minute == 65:
            self.programs[1].restart()
        for program in self.programs:
            program.run.step(self.now, until, self.minute)
        self.now = until

    def write_history(self, path: Path) -> None:
        """Live through the story, and write each step's metrics down."""
        with path.open("w", encoding="utf-8") as sink:
            for _ in range(round(MINUTES * 60 / STEP)):
                self.step()
                for program in self.programs:
                    self._scrape(program, sink)
            sink.write("# EOF\n")

    def _scrape(self, program: Program, sink: TextIO) -> None:
        for metric in program.collect():
            for sample in metric.samples:
                if not sample.name.endswith("_created"):
                    key = program.instance, sample.name, *sample.labels.values()
                    prefix = self._prefixes.get(key) or self._prefixes.setdefault(key, self._prefix(program, sample))
                    sink.write(f"{prefix} {sample.value} {self.now:.3f}\n")
        sink.write(f'up{{job="{program.job}",instance="{program.instance}"}} 1 {self.now:.3f}\n')

    def _prefix(self, program: Program, sample: Any) -> str:
        labels = {"job": program.job, "instance": program.instance, **sample.labels}
        name: str = sample.name
        return name + "{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}"

    def events(self, kind: type[Any], *, job: str | None = None) -> list[Any]:
        """What the recorders saw of a kind of event, in all runs."""
        programs = [program for program in self.programs if job in (None, program.job)]
        return [event for program in programs for run in program.runs for event in run.recorder.of(kind)]

    def targets(self) -> dict[str, list[str]]:
        """The addresses by job."""
        found: dict[str, list[str]] = {}
        for program in self.programs:
            found.setdefault(program.job, []).append(program.instance)
        return found

    def trouble(self) -> dict[str, int]:
        """How much of what can happen to a circuit has happened."""
        changes = self.events(StateChanged)
        moves = [(change.old_state, change.new_state) for change in changes]
        return {
            "opened": moves.count((State.CLOSED, State.OPEN)),
            "reopened": moves.count((State.HALF_OPEN, State.OPEN)),
            "recovered": moves.count((State.HALF_OPEN, State.CLOSED)),
            "forced": sum(new is State.FORCED_OPEN for _, new in moves),
            "rejected": len(self.events(CallRejected)),
            "rejected while probing": sum(event.state is State.HALF_OPEN for event in self.events(CallRejected)),
            "listener failures": len(self.events(ListenerFailed)),
            "events lost": sum(event.count for event in self.events(EventsDropped)),
        }

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Have each program's endpoint, on free ports of loopback; detach everything at the end."""
        with ExitStack() as stack:
            for program in self.programs:
                stack.enter_context(program.serving())
            try:
                yield
            finally:
                for program in self.programs:
                    for run in program.runs:
                        run.close()
