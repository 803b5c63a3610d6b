"""What a library takes before the first call: memory, the time to import it, the time to make and decorate."""

import gc
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from itertools import repeat
from pathlib import Path
from time import thread_time
from typing import Any

from .adapters import Adapter, Lacks
from .peers import ROOT
from .workloads import calling, work

BREAKERS = 1_000
WINDOW = 10_000


class Memory:
    """Bytes a decorated breaker, and a call in the window."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter

    def warm_up(self) -> None:
        """Make one of each, so that what is made but once is there."""
        self._decorated(self.adapter.breaker)(1)
        with suppress(Lacks):
            self._filled(WINDOW)

    def _decorated(self, make: Callable[[], Any]) -> Callable[..., Any]:
        return self.adapter.decorate(make(), work)

    def sample(self, stretches: int = 3) -> dict[str, float]:
        """By `tracemalloc`; names are not counted, since a program has them anyway."""
        self.adapter.names = iter([f"circuit {number}" for number in range(BREAKERS + 4)])
        kept: list[Any] = [None] * BREAKERS
        tracemalloc.start()
        try:
            before = _traced()
            for index in range(BREAKERS):
                kept[index] = self._decorated(self.adapter.breaker)
            found = {"breaker": (_traced() - before) / BREAKERS}
            with suppress(Lacks):
                small, large = (self._filled(size) for size in (1, WINDOW + 1))
                found["call"] = (large - small) / WINDOW
        finally:
            tracemalloc.stop()
        return found

    def _filled(self, size: int) -> float:
        before = _traced()
        breaker = self.adapter.counting(size)
        func = self.adapter.decorate(breaker, work)
        calling(func)(size + 1)
        self.adapter.calls(breaker)  # what is put off is in the window
        return _traced() - before


def _traced() -> float:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


class Making:
    """Seconds to make a breaker and to decorate a function with it."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter

    def warm_up(self) -> None:
        """As often as in a sample."""
        self.sample()

    def sample(self, stretches: int = 3) -> dict[str, float]:
        """The best of some stretches."""
        return {"made": min(self._stretch(100) for _ in range(stretches))}

    def _stretch(self, n: int) -> float:
        decorate, make = self.adapter.decorate, self.adapter.breaker
        kept: list[Any] = [None] * n
        gc.collect()
        started = thread_time()
        for index in range(n):
            kept[index] = decorate(make(), work)
        return (thread_time() - started) / n


_IMPORT = """
import sys
from time import process_time
sys.path[:0] = {paths}
started = process_time()
import {module}
print(process_time() - started)
"""


class Importing:
    """Processor time to import the library, with all that it imports, in a fresh process."""

    def __init__(self, adapter: Adapter) -> None:
        paths = [path for path in sys.path if path and Path(path).resolve() != ROOT]
        self.code = _IMPORT.format(paths=paths, module=adapter.module.__name__)

    def warm_up(self) -> None:
        """Byte code is written, files are in the page cache."""
        self.sample()

    def sample(self, stretches: int = 3) -> dict[str, float]:
        """The best of some processes, each without `site`, so that no ``.pth`` file has imported something before."""
        command = [sys.executable, "-S", "-E", "-s", "-c", self.code]
        times = [
            float(subprocess.run(command, capture_output=True, text=True, check=True, cwd="/").stdout)
            for _ in repeat(None, stretches)
        ]
        return {"import": min(times)}


FOOTPRINT: dict[str, Callable[[Adapter], Any]] = {"memory": Memory, "making": Making, "import": Importing}
