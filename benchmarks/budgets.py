"""The budgets: the only home of their figures. `report` compares the benchmarks with them, `guard` each change."""

from dataclasses import dataclass

HEADROOM = 0.3
"""What `guard` allows beyond a budget, since a busy machine measures badly."""


@dataclass(frozen=True)
class Budget:
    """What something may cost."""

    figure: str
    """The name under which it is measured."""
    what: str
    limit: float
    unit: str
    at_least: bool = False
    exact: bool = False
    """Whether there is no headroom: it is counted, not timed."""

    @property
    def guarded(self) -> float:
        """The limit of `guard`."""
        if self.exact:
            return self.limit
        return self.limit * (1 - HEADROOM if self.at_least else 1 + HEADROOM)

    def holds(self, measured: float, limit: float) -> bool:
        """Whether it is within that limit."""
        return measured >= limit if self.at_least else measured <= limit

    def in_words(self, limit: float) -> str:
        """The limit as it is written."""
        return f"{'≥' if self.at_least else '≤'} {limit:.4g} {self.unit}".strip()


BUDGETS = (
    Budget("success", "a success in a closed circuit", 12, "× the bare call"),
    Budget("async success", "an awaited success in a closed circuit", 5, "× the bare await"),
    Budget("rejection", "a refusal while open", 1.8, "× a bare raise and except"),
    Budget("8 threads", "8 threads' throughput", 0.8, "of one thread's", at_least=True),
    Budget("drift", "calls that 8 threads make and the circuit miscounts", 0, "calls", exact=True),
    Budget("breaker", "memory of a decorated breaker", 1200, "bytes"),
    Budget("call", "memory of a call in the window", 9, "bytes"),
    Budget("window growth", "a window of 100,000 calls", 1.1, "× one of 10"),
    Budget("circuits growth", "one of 10,000 circuits", 1.1, "× the only one"),
    Budget("call listener", "a no-op listener to each call, on top", 12, "× the bare call"),
    Budget("prometheus", "PrometheusListener, on top", 1.5, "× a counter's and a histogram's own step"),
    Budget("import", "`import fluxgate`", 30, "ms"),
)
