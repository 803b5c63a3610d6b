"""What other processes run; importable by its name, so that it can be sent to them."""

from __future__ import annotations

from fluxgate import CircuitBreaker, Cooldown, FailureStreak
from fluxgate.testing import VirtualClock


def report(number: int) -> int:
    """A job whose dependency is down: the second attempt is refused, and the refusal goes home."""
    cb = CircuitBreaker("reports", tripper=FailureStreak(1), retry=Cooldown(30), clock=VirtualClock())
    cb.call_with_fallback(int, lambda error: 0, "not a number")
    return cb.call(abs, number)
