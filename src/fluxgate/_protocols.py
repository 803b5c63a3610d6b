"""What users plug in, as type checkers see it; made only when somebody asks for it (see `_typing`)."""

from collections.abc import Callable
from typing import Any, Literal, Protocol, TypedDict

from .metric import Metric
from .state import State


class TrackerLike(Protocol):
    """The least that serves as a tracker: a call with the exception that answers whether it is a failure."""

    def __call__(self, error: Exception, /) -> bool: ...


class TripperLike(Protocol):
    """The least that serves as a tripper. It runs under the engine's lock: it must be pure and quick."""

    def __call__(self, metric: Metric, state: State, consecutive_failures: int, /) -> bool: ...


class RetryLike(Protocol):
    """The least that serves as a retry. It runs under the engine's lock: it must be pure and quick."""

    def wait(self, reopens: int, /) -> float: ...


class PermitLike(Protocol):
    """The least that serves as a permit. It runs under the engine's lock: it must be pure and quick."""

    def __call__(self, elapsed: float, /) -> bool: ...


class Clock(Protocol):
    """Both in seconds: `monotonic` never goes back and serves durations and waits, `time` is Unix time."""

    def monotonic(self) -> float: ...
    def time(self) -> float: ...


class Changes(TypedDict, total=False):
    """What `configure` can change."""

    tracker: TrackerLike
    tripper: TripperLike
    retry: RetryLike
    permit: PermitLike
    slow_threshold: float
    max_half_open_calls: int
    half_open_timeout: float


Listener = Callable[[Any], Any]
"""Anything that can be called with an event; a coroutine function is awaited. It may also have

- `events`: the event types that it wants, `StateChanged` alone if missing; asked when attached, and by
  `Subscription.refresh`;
- `delivery`: how it wants them if `attach` does not say, ``"inline"`` if missing;
- `destination`: something hashable; of several listeners that name the same one, a circuit tells each event to the
  first attached only, so that two of them do not count everything twice; asked when attached, and by `refresh`;
- ``attached(subscription)``: called once it is attached, to look at the circuits that are there already;
- ``tick()`` and `tick_interval` in seconds: called so often in a thread of its own, also while no call comes; with an
  interval of ``None`` not at all, until `Subscription.wake`;
- ``around(circuit_name, call_id, *, nested)``: called in an admitted call's own context before it runs, while the
  listener asks for `CallStarted` or outcomes; what it returns, unless ``None``, is called there with the event that
  ended the call, or ``None`` where nobody asks for that one. Not `nested`: the call is a generator's, or settled
  elsewhere, so what is current at its beginning must not stay so;
- ``instead(event)``: called with each `CallRejected` and `FallbackUsed` that it asks for in the caller's own thread and
  context, before the caller goes on; as an event the same may reach it later, wherever others are being told;
- ``close()``: called when it is detached for the last time, or the process ends.
"""
Delivery = Literal["inline", "background"]
