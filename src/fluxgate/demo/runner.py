"""The run: a service, circuits, their traffic and their listeners, for as long as the script takes."""

import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import Any

from rich.console import Console

from .. import Bus
from .circuits import Circuits, make_circuits
from .clients import customers, visitors, warm_up
from .outputs import Options, outputs
from .service import SCRIPT, Service
from .show import Show
from .tally import CircuitTally, Tally

_TICK = 0.1
_GRACE = 5.0  # seconds: how much longer a run may take for a circuit that is not closed yet


class SteadyClock:
    """Unix time that nobody sets meanwhile: what lies between two events is true even where NTP steps in."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def monotonic(self) -> float:
        """Seconds that only ever grow."""
        return time.monotonic()

    def time(self) -> float:
        """Unix time as of the start, grown steadily since."""
        return self._offset + time.monotonic()


def play(duration: float, *, as_json: bool, listeners: Sequence[str] | None, options: Options) -> int:
    """See `fluxgate.demo.run`."""
    clock, bus, tally = SteadyClock(), Bus(), Tally()
    began = clock.time()

    def progress() -> float:
        return (clock.time() - began) / duration

    with (
        _noted(signal.SIGINT, signal.SIGTERM) as signals,
        Service(progress) as service,
        bus.attach(tally),
        outputs(listeners, options, bus) as told,
    ):
        warm_up(service.url)
        began = clock.time()
        circuits = make_circuits(duration, bus=bus, clock=clock)
        show = Show(Console(stderr=as_json), tally.circuits, began, duration)
        with bus.attach(show), show:
            show.begin(service.url, [output.where for output in told])
            issued = _call_until(
                lambda: bool(signals) or is_over(clock.time() - began, duration, tally.circuits.values()),
                lambda: show.refresh(clock.time()),
                service.url,
                circuits,
            )
            ended = clock.time()
            show.refresh(ended)
        bus.flush()
        reports = [output.report() for output in told]
    missed = shortcomings(tally.circuits.values())
    stopped = f"stopped by {signal.Signals(signals[0]).name} after {ended - began:.1f} s" if signals else None
    show.end(ended, issued.total(), service.served.total(), reports)
    show.verdict(missed, stopped=stopped)
    if as_json:
        document = {
            "ok": not missed and not stopped,
            "problems": [stopped] if stopped else missed,
            "duration": duration,
            "elapsed": round(ended - began, 3),
            "listeners": {output.name: output.where for output in told},
            "circuits": {
                name: {"issued": issued[name], "served": service.served[name], **circuit.to_dict(ended)}
                for name, circuit in tally.circuits.items()
            },
            "faults": {
                name: [
                    {"from": phase.begin * duration, "to": phase.end * duration, "what": phase.fault.value}
                    for phase in phases
                ]
                for name, phases in SCRIPT.items()
            },
        }
        print(json.dumps(document, indent=2))
    if signals:
        return 128 + signals[0]
    return 1 if missed else 0


def _call_until(over: Callable[[], bool], tick: Callable[[], None], url: str, circuits: Circuits) -> Counter[str]:
    """Let the clients call until it is over; how many calls they issued."""
    stop = Event()
    with ThreadPoolExecutor() as pool:
        traffic = [
            pool.submit(customers, url, circuits.payments, stop),
            pool.submit(visitors, url, circuits.inventory, circuits.search, stop),
        ]
        try:
            # One that is done by itself has failed, and `result` says how.
            while not over() and not any(each.done() for each in traffic):
                time.sleep(_TICK)
                tick()
        finally:
            stop.set()
        return sum((each.result() for each in traffic), Counter[str]())


def is_over(elapsed: float, duration: float, circuits: Iterable[CircuitTally]) -> bool:
    """Whether the script is over and each circuit that opened is closed again, or has had its grace."""
    settled = all(circuit.recovered or not circuit.opened for circuit in circuits)
    return elapsed >= duration + (0 if settled else max(duration / 2, _GRACE))


def shortcomings(circuits: Iterable[CircuitTally]) -> list[str]:
    """What was to happen and did not: each circuit opens and is closed in the end."""
    return [
        f"{circuit.name} is still {circuit.state.replace('_', '-')}"
        if circuit.opened
        else f"{circuit.name} never opened"
        for circuit in circuits
        if not circuit.recovered
    ]


@contextmanager
def _noted(*numbers: signal.Signals) -> Generator[list[int], None, None]:
    """Signals are noted in the list that this gives, and interrupt nothing."""
    seen: list[int] = []

    def note(number: int, frame: Any) -> None:
        seen.append(number)

    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
