"""The run: a service, circuits, clients and listeners, for as long as the script takes."""

import json
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import Any

from rich.console import Console

from .. import Bus
from .circuits import Circuits, make_circuits
from .clients import customers, visitors
from .service import Service
from .show import Show
from .tally import CircuitTally, Tally

_TICK = 0.1


class SteadyClock:
    """Wall time that nobody sets meanwhile: durations between two events are true even where NTP steps in."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def monotonic(self) -> float:
        """Seconds that only ever grow."""
        return time.monotonic()

    def time(self) -> float:
        """Unix time in seconds, as of the start, grown steadily."""
        return self._offset + time.monotonic()


def run(duration: float, *, as_json: bool, log: str | None) -> int:
    """See `fluxgate.demo.run`."""
    clock, bus, tally = SteadyClock(), Bus(), Tally()
    began = clock.time()
    console = Console(stderr=as_json)
    show = Show(console, tally.circuits, began, duration)
    with (
        Service(lambda: (clock.time() - began) / duration) as service,
        bus.attach(tally),
        bus.attach(show),
        _signals_noted(signal.SIGINT, signal.SIGTERM) as signals,
    ):
        circuits = make_circuits(duration, bus=bus, clock=clock)
        show.begin(service.url)
        issued: Counter[str] = Counter()
        stop = Event()
        with ThreadPoolExecutor() as pool:
            traffic = [
                pool.submit(customers, service.url, circuits.payments, stop),
                pool.submit(visitors, service.url, circuits.inventory, circuits.search, stop),
            ]
            try:
                while not (signals or _over(clock.time() - began, duration, tally) or any(each.done() for each in traffic)):
                    time.sleep(_TICK)
                    show.refresh(clock.time())
            finally:
                stop.set()
            for each in traffic:
                issued += each.result()
        ended = clock.time()
        show.end(ended)
    return 0
