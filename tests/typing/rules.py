"""Rules are checked where they are written, the user's own among them. Checked, not run."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import time
from typing import Any, Protocol, assert_type

import fluxgate
from fluxgate import (
    Backoff,
    Bus,
    CircuitBreaker,
    Closed,
    Cooldown,
    CountWindow,
    Custom,
    FailureRate,
    FailureStreak,
    HalfOpened,
    Metric,
    MinRequests,
    RampUp,
    Random,
    RetryAfter,
    Returned,
    SlowRate,
    State,
    Subscription,
    TimeWindow,
    TypeOf,
    events,
)
from fluxgate.permits import PermitLike
from fluxgate.retries import RetryLike
from fluxgate.testing import EventRecorder, VirtualClock
from fluxgate.trackers import All, Tracker, TrackerLike
from fluxgate.trippers import Tripper, TripperLike


def too_many(metric: Metric, state: State, consecutive_failures: int) -> bool:
    return metric.failure_count > 10


def server_fault(error: Exception) -> bool:
    return isinstance(error, OSError)


def early(elapsed: float) -> bool:
    return elapsed < 5


class Fixed:
    def wait(self, reopens: int) -> float:
        return 5.0


class Described(RetryLike, Protocol):
    description: str


class InWords(Fixed):
    description = "always five seconds"


retry: RetryLike = Fixed()
described: Described = InWords()
undescribed: Described = Fixed()  # type: ignore[assignment]
judge: TripperLike = too_many
misjudge: TripperLike = server_fault  # type: ignore[assignment]
rule: TrackerLike = server_fault
choice: PermitLike = early

tripper = (Closed() & MinRequests(20) & FailureRate(0.6)) | (HalfOpened() & MinRequests(5) & FailureRate(0.5))
assert_type(tripper, Tripper)
assert_type(FailureStreak(5) | too_many, Tripper)
assert_type(too_many & MinRequests(5), Tripper)
assert_type(TypeOf(OSError) & ~TypeOf(TimeoutError), Tracker)
assert_type(server_fault | TypeOf(KeyError), Tracker)
~FailureRate(0.5)  # type: ignore[operator]
FailureRate(0.5) & 5  # type: ignore[operator]
TypeOf(OSError) | server_fault | too_many  # type: ignore[operator]

CircuitBreaker(
    "payments",
    window=TimeWindow(60),
    tracker=server_fault,
    tripper=too_many,
    retry=Fixed(),
    permit=early,
    slow_threshold=2,
    max_half_open_calls=5,
    half_open_timeout=10,
    listeners=[print, EventRecorder()],
    bus=Bus(),
    clock=VirtualClock(),
)
CircuitBreaker("payments", window=None, tracker=None, tripper=None, retry=None, permit=None, bus=None, clock=None)
CircuitBreaker("payments", clock=time)
CircuitBreaker(
    "payments",
    tracker=All() | Returned(lambda response: response.status_code >= 500) | Custom(lambda error: bool(error.args)),
    retry=RetryAfter(Backoff(1, jitter_ratio=0.5)),
    permit=RampUp(0.1, 1, 60),
)

CircuitBreaker()  # type: ignore[call-arg]
CircuitBreaker(5)  # type: ignore[arg-type]
CircuitBreaker("x", CountWindow(5))  # type: ignore[call-arg]
CircuitBreaker("x", window=100)  # type: ignore[arg-type]
CircuitBreaker("x", window=CountWindow)  # type: ignore[arg-type]
CircuitBreaker("x", tripper=FailureRate)  # type: ignore[arg-type]
CircuitBreaker("x", tripper=server_fault)  # type: ignore[arg-type]
CircuitBreaker("x", tracker=too_many)  # type: ignore[arg-type]
CircuitBreaker("x", tracker=KeyError)  # type: ignore[arg-type]
CircuitBreaker("x", retry=30)  # type: ignore[arg-type]
CircuitBreaker("x", retry=Cooldown)  # type: ignore[arg-type]
CircuitBreaker("x", permit=0.5)  # type: ignore[arg-type]
CircuitBreaker("x", permit=Random)  # type: ignore[arg-type]
CircuitBreaker("x", listeners=print)  # type: ignore[arg-type]
CircuitBreaker("x", clock=time.monotonic)  # type: ignore[arg-type]
CircuitBreaker("x", triper=FailureRate(0.5))  # type: ignore[call-arg]

FailureRate("0.5")  # type: ignore[arg-type]
SlowRate(0.5, threshold="2")  # type: ignore[arg-type]
MinRequests(0.5)  # type: ignore[arg-type]
CountWindow(1.5)  # type: ignore[arg-type]
TypeOf(KeyError())  # type: ignore[arg-type]
Custom(5)  # type: ignore[arg-type]
RetryAfter(60)  # type: ignore[arg-type]


# -- listeners and events -------------------------------------------------------------------------------------------


def on_change(event: events.StateChanged) -> None:
    assert_type(event.old_state, State)
    assert_type(event.metrics, Metric)
    assert_type(event.wait, float | None)
    assert_type(event.failing_since, float | None)
    assert_type(event.last_error, events.LastError | None)
    assert_type(event.reason, str)
    assert_type(event.to_dict(), dict[str, Any])
    event.reopens = 5  # type: ignore[misc]


async def on_change_later(event: fluxgate.Signal) -> None:
    assert_type(event.verdict.to_dict(), dict[str, Any])


assert_type(fluxgate.attach(on_change, circuits="payments-*", delivery="background"), Subscription)
assert_type(fluxgate.attach(on_change_later, events.StateChanged, events.CallRejected), Subscription)
assert_type(fluxgate.flush(1), bool)
fluxgate.attach(5)  # type: ignore[arg-type]
fluxgate.attach(on_change, delivery="later")  # type: ignore[arg-type]
fluxgate.attach(on_change, int)  # type: ignore[arg-type]

with fluxgate.attach(on_change) as subscription:
    assert_type(subscription, Subscription)

recorder = EventRecorder(events.StateChanged)
assert_type(recorder.of(events.StateChanged), list[events.StateChanged])
assert_type(recorder.events_seen, list[events.Event])


@fluxgate.redact
def no_tokens(text: str) -> str:
    return text


assert_type(no_tokens("x"), str)
assert_type(fluxgate.redact("x"), str)


@fluxgate.redact  # type: ignore[type-var]
def not_a_text(text: str) -> int:
    return 5


Metric(total_count=1, failure_count=0, total_duration=0.5, slow_count=0)
Metric(total_count=1)  # type: ignore[call-arg]
assert_type(State("open"), State)
word: str = State.OPEN.value
text: str = State.OPEN
