"""The run: a service, circuits, their traffic and their listeners, for as long as the script takes."""

import io
import json
import signal
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import Any, TextIO

from rich.console import Console

from .. import Bus
from .circuits import make_circuits
from .clients import customers, visitors
from .logs import log_listener
from .service import SCRIPT, Service
from .show import Show
from .tally import CircuitTally, Tally

_TICK = 0.1
_GRACE = 0.5  # as a share of the run: how much longer it may last for a circuit that is not closed yet


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


def run(duration: float, *, as_json: bool, log: TextIO | None) -> int:
    """See `fluxgate.demo.run`."""
    clock, bus, tally = SteadyClock(), Bus(), Tally()
    lines = io.StringIO() if log is None else log
    began = clock.time()
    with (
        _noted(signal.SIGINT, signal.SIGTERM) as signals,
        Service(lambda: (clock.time() - began) / duration) as service,
        bus.attach(tally),
        bus.attach(log_listener(lines)),
    ):
        circuits = make_circuits(duration, bus=bus, clock=clock)
        show = Show(Console(stderr=as_json), tally.circuits, began, duration)
        with bus.attach(show), show, ThreadPoolExecutor() as pool:
            show.begin(service.url)
            stop = Event()
            traffic = [
                pool.submit(customers, service.url, circuits.payments, stop),
                pool.submit(visitors, service.url, circuits.inventory, circuits.search, stop),
            ]
            try:
                while not (signals or is_over(clock.time() - began, duration, tally.circuits.values())):
                    time.sleep(_TICK)
                    show.refresh(clock.time())
                    if any(each.done() for each in traffic):
                        break  # by an error of its own, which `result` raises
            finally:
                stop.set()
            issued = sum((each.result() for each in traffic), Counter[str]())
            ended = clock.time()
            show.refresh(ended)
    faults = shortcomings(tally.circuits.values())
    show.end(ended, issued, service.served, faults, interrupted=bool(signals))
    if isinstance(lines, io.StringIO):
        show.quote(lines.getvalue())
    if as_json:
        document = {
            "ok": not faults and not signals,
            "interrupted": bool(signals),
            "shortcomings": faults,
            "duration": duration,
            "elapsed": round(ended - began, 3),
            "circuits": {
                name: {
                    "issued": issued[name],
                    "served": service.served[name],
                    **each.to_dict(ended),
                    "faults": [
                        {"from": phase.begin * duration, "to": phase.end * duration, "fault": phase.fault.value}
                        for phase in SCRIPT[name]
                    ],
                }
                for name, each in tally.circuits.items()
            },
        }
        print(json.dumps(document, indent=2))
    if signals:
        return 128 + signals[0]
    return 1 if faults else 0


def is_over(elapsed: float, duration: float, circuits: Iterable[CircuitTally]) -> bool:
    """Whether the script is over and each circuit that opened is closed again, or has had its grace."""
    settled = all(circuit.recovered or not circuit.opened for circuit in circuits)
    return elapsed >= duration * (1 if settled else 1 + _GRACE)


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
def _noted(*numbers: signal.Signals) -> Iterator[list[int]]:
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
