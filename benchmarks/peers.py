"""The peers: the only home of the list, and of what each of them does not do."""

import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENVIRONMENTS = ROOT / ".venv-bench"


@dataclass(frozen=True)
class Peer:
    """A library under measurement."""

    name: str
    adapter: str
    """The class of `adapters` that drives it."""
    distribution: str
    version: str
    """The exact one; empty for this checkout."""
    module: str
    less: str
    """What it leaves undone on each call, compared with a breaker that keeps a window and is safe in threads."""

    @property
    def is_ours(self) -> bool:
        """Whether it is this checkout, in the environment that runs the benchmarks."""
        return not self.version

    @property
    def home(self) -> Path:
        """Its virtual environment."""
        return Path(sys.prefix) if self.is_ours else ENVIRONMENTS / f"{self.distribution}-{self.version}"

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return Path(sys.executable) if self.is_ours else self.home / "bin" / "python"


OURS = Peer("Fluxgate", "Ours", "fluxgate", "", "fluxgate", "")

PEERS = (
    OURS,
    Peer(
        "pybreaker",
        "PyBreaker",
        "pybreaker",
        "1.4.1",
        "pybreaker",
        "keeps no window and no durations: counts failures in a row; holds its lock while the call runs",
    ),
    Peer(
        "circuitbreaker",
        "CircuitBreakerPy",
        "circuitbreaker",
        "2.1.3",
        "circuitbreaker",
        "keeps no window and no durations: counts failures in a row; no lock; a block is not refused while it is open",
    ),
    Peer(
        "aiobreaker",
        "AioBreaker",
        "aiobreaker",
        "1.2.0",
        "aiobreaker",
        "keeps no window and no durations: counts failures in a row; no lock",
    ),
    Peer(
        "purgatory",
        "Purgatory",
        "purgatory",
        "3.0.1",
        "purgatory",
        "keeps no window and no durations: counts failures in a row; no lock",
    ),
    Peer(
        "hyx",
        "Hyx",
        "hyx",
        "0.0.2",
        "hyx.circuitbreaker",
        "keeps no window and no durations: counts failures in a row; no lock; asyncio alone",
    ),
    Peer(
        "pycircuitbreaker",
        "PyCircuitBreaker",
        "pycircuitbreaker",
        "0.5.0",
        "pycircuitbreaker",
        "keeps no window and no durations: counts failures since the last success; no lock; no asyncio",
    ),
    Peer(
        "interlock-cb",
        "Interlock",
        "interlock-cb",
        "2.8.2",
        "interlock",
        "keeps a window of outcomes without durations",
    ),
    Peer(
        "fluxgate 0.6.1",
        "FluxgateOld",
        "fluxgate",
        "0.6.1",
        "fluxgate",
        "no lock; asks its rules on failures alone",
    ),
    Peer("fluxgate 0.9.4", "FluxgateNew", "fluxgate", "0.9.4", "fluxgate", "no lock"),
)
"""`fluxgate` 0.6.1 and 0.9.4 are unrelated to this project: published elsewhere under the same name."""
