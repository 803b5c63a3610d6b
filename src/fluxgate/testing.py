"""What tests of code behind a breaker need: a clock that stands still until told, and a listener that remembers."""

from typing import TypeVar

from . import _check
from .events import Event, concrete

E = TypeVar("E", bound=Event)


class VirtualClock:
    """A clock that moves only when told.

    >>> from fluxgate import Bus, CircuitBreaker, Cooldown, FailureStreak
    >>> clock = VirtualClock()
    >>> cb = CircuitBreaker("payments", tripper=FailureStreak(1), retry=Cooldown(60), clock=clock, bus=Bus())
    >>> call = cb.acquire()
    >>> call.failure(ConnectionError())
    >>> clock.advance(45)
    >>> cb.info().state, cb.info().retry_after
    (<State.OPEN: 'open'>, 15.0)
    """

    def __init__(self, monotonic: float = 0.0, time: float = 1_700_000_000.0) -> None:
        self._monotonic = _check.number(monotonic, "monotonic")
        self._time = _check.number(time, "time")

    def monotonic(self) -> float:
        """Seconds that only ever grow."""
        return self._monotonic

    def time(self) -> float:
        """Unix time in seconds."""
        return self._time

    def advance(self, seconds: float) -> None:
        """Let this much time pass, on both clocks.

        Raises:
            TypeError, ValueError: `seconds` is not a number of at least 0.
        """
        seconds = _check.number(seconds, "seconds", at_least=0)
        self._monotonic += seconds
        self._time += seconds

    def set_time(self, time: float) -> None:
        """Set the wall clock alone, as an administrator or NTP would."""
        self._time = _check.number(time, "time")

    def __repr__(self) -> str:
        return f"VirtualClock({self._monotonic:g}, {self._time:g})"


class EventRecorder:
    """A listener that keeps every event that it receives, all types unless some are given.

    >>> from fluxgate import Bus, CircuitBreaker
    >>> recorder = EventRecorder()
    >>> cb = CircuitBreaker("payments", listeners=[recorder], bus=Bus())
    >>> cb.force_open()
    >>> [type(event).__name__ for event in recorder.events_seen]
    ['CircuitCreated', 'StateChanged']
    """

    def __init__(self, *event_types: type[Event]) -> None:
        self.events = tuple(concrete(event_types or (Event,)))
        """The types that it asks for, as the bus reads them."""
        self.events_seen: list[Event] = []
        """What it received, in order."""

    def __call__(self, event: Event) -> None:
        self.events_seen.append(event)

    def of(self, kind: type[E]) -> list[E]:
        """The events of one type (or of a base's subtypes) that it received, in order."""
        return [event for event in self.events_seen if isinstance(event, kind)]

    def clear(self) -> None:
        """Forget them."""
        self.events_seen.clear()
