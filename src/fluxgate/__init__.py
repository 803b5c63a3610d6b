"""Fluxgate: a circuit breaker that explains itself.

>>> from fluxgate import CircuitBreaker
>>> cb = CircuitBreaker("payments")
>>> @cb
... def pay(amount: int) -> str:
...     return f"paid {amount}"
>>> pay(10)
'paid 10'
"""

from . import events, permits, retries, trackers, trippers, windows
from ._acquired import AsyncCall, Call
from ._info import CircuitBreakerInfo
from ._subscription import Subscription
from ._text import redact
from .breaker import AsyncCircuitBreaker, CircuitBreaker
from .bus import Bus, attach, circuits, flush, observe
from .errors import CallNotPermittedError, MissingExtraError
from .events import Signal
from .metric import Metric, Verdict
from .permits import RampUp, Random
from .retries import Always, Backoff, Cooldown, Never, RetryAfter
from .state import State, StateEnum, Trigger
from .trackers import Custom, Returned, TypeOf
from .trippers import AvgLatency, Closed, FailureRate, FailureStreak, HalfOpened, MinRequests, SlowRate
from .windows import CountWindow, TimeWindow

__all__ = [
    "Always",
    "AsyncCall",
    "AsyncCircuitBreaker",
    "AvgLatency",
    "Backoff",
    "Bus",
    "Call",
    "CallNotPermittedError",
    "CircuitBreaker",
    "CircuitBreakerInfo",
    "Closed",
    "Cooldown",
    "CountWindow",
    "Custom",
    "FailureRate",
    "FailureStreak",
    "HalfOpened",
    "Metric",
    "MinRequests",
    "MissingExtraError",
    "Never",
    "RampUp",
    "Random",
    "RetryAfter",
    "Returned",
    "Signal",
    "SlowRate",
    "State",
    "StateEnum",
    "Subscription",
    "TimeWindow",
    "Trigger",
    "TypeOf",
    "Verdict",
    "attach",
    "circuits",
    "events",
    "flush",
    "observe",
    "permits",
    "redact",
    "retries",
    "trackers",
    "trippers",
    "windows",
]
