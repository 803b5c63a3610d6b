"""What `info` gives."""

from __future__ import annotations

from ._record import Record
from .metric import Metric
from .state import State


class CircuitBreakerInfo(Record):
    """A circuit at one moment."""

    __slots__ = ("name", "state", "changed_at", "reopens", "metrics", "retry_after", "probes")

    name: str
    state: State
    changed_at: float
    """Unix time of the last change of state."""
    reopens: int
    """Failed recoveries since the circuit was last closed."""
    metrics: Metric
    """The window's sums; while the circuit is open, those that opened it."""
    retry_after: float | None
    """Seconds until a call may pass; ``None`` where no wait is running or only a person can end it."""
    probes: int
    """Probes in flight."""
