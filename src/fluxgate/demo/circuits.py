"""Three dependencies, three policies. Windows and waits are shares of the run, so that each length tells the same."""

from typing import Any, NamedTuple

import httpx

from .. import (
    AsyncCircuitBreaker,
    AvgLatency,
    Backoff,
    CircuitBreaker,
    Cooldown,
    CountWindow,
    Custom,
    FailureRate,
    FailureStreak,
    MinRequests,
    RampUp,
    SlowRate,
    TimeWindow,
    permits,
)

SLOW_FROM = 0.5
"""Seconds from which a call is slow."""


def service_at_fault(error: Exception) -> bool:
    """An answer below 500 is about the request; all else (5xx, no connection, no answer) is about the service."""
    return not (isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500)


class Circuits(NamedTuple):
    """The circuits of the demo."""

    payments: CircuitBreaker
    inventory: AsyncCircuitBreaker
    search: AsyncCircuitBreaker


def make_circuits(duration: float, **common: Any) -> Circuits:
    """New circuits for a run of this many seconds."""
    common |= {"tracker": Custom(service_at_fault), "slow_threshold": SLOW_FROM, "half_open_timeout": duration / 5}
    return Circuits(
        # Conservative: refusing a payment costs money. Only clear evidence opens it, and it comes back with care.
        payments=CircuitBreaker(
            "payments",
            window=TimeWindow(duration / 4),
            tripper=FailureStreak(5) | (MinRequests(20) & FailureRate(0.4)),
            retry=Backoff(duration * 0.06, max_duration=duration / 5, jitter_ratio=0.1),
            permit=permits.Random(0.5),
            **common,
        ),
        # Aggressive: the cached stock is nearly as good, so it opens at the first doubt and tries again soon.
        inventory=AsyncCircuitBreaker(
            "inventory",
            window=CountWindow(10),
            tripper=MinRequests(5) & FailureRate(0.3),
            retry=Cooldown(duration * 0.04),
            permit=RampUp(0.2, 1.0, duration / 20),
            **common,
        ),
        # Impatient: a search that takes long is worse than none, even if it succeeds.
        search=AsyncCircuitBreaker(
            "search",
            window=CountWindow(10),
            tripper=MinRequests(5) & (SlowRate(0.5) | AvgLatency(0.5)),
            retry=Cooldown(duration * 0.07, jitter_ratio=0.2),
            permit=permits.All(),
            max_half_open_calls=4,
            **common,
        ),
    )
