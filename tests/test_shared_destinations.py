"""What listeners that measure need of the bus: one destination for several, a look at the circuits, a time to look."""

from __future__ import annotations

import sys
import threading
from collections.abc import Hashable
from types import ModuleType
from typing import Any

import pytest

from fluxgate import Bus, CircuitBreaker
from fluxgate.events import Event, StateChanged
from tests.running import arrives


class Counting:
    """Counts in whatever place it is told to."""

    tick_interval: float | None = None

    def __init__(self, destination: Hashable = None) -> None:
        self.destination = destination
        self.seen: list[Event] = []
        self.ticked = threading.Event()

    def __call__(self, event: Event) -> None:
        self.seen.append(event)

    def tick(self) -> None:
        self.ticked.set()


def test_of_one_destination_the_first_listener_is_told() -> None:
    """Two listeners that count in one place are told once, the second when the first is gone; others each time."""
    bus = Bus()
    cb = CircuitBreaker("payments", bus=bus)
    first, second, other = Counting("place"), Counting("place"), Counting("elsewhere")
    subscription, *_ = [bus.attach(each) for each in (first, second, other)]
    cb.disable()
    subscription.close()
    cb.reset()
    assert [len(each.seen) for each in (first, second, other)] == [1, 1, 2]


def test_a_refresh_asks_for_the_destination_again() -> None:
    """A listener that learns later where it counts is not told twice from then on."""
    bus = Bus()
    cb = CircuitBreaker("payments", bus=bus)
    first, second = Counting("place"), Counting()
    bus.attach(first)
    for subscription in (bus.attach(second), cb.attach(second)):
        second.destination = None
        subscription.refresh()
    cb.disable()
    assert (len(first.seen), len(second.seen)) == (1, 2)
    second.destination = "place"
    for subscription in (bus.attach(Counting("place")), *bus._subscriptions, *cb._core.own):
        subscription.refresh()
    cb.reset()
    assert (len(first.seen), len(second.seen)) == (2, 2)


@pytest.mark.parametrize("when", ["attached", "refreshed"])
def test_a_destination_must_be_hashable(when: str) -> None:
    """What is not says so, when the listener is attached as when it is refreshed, which then changes nothing."""
    bus = Bus()
    listener = Counting([] if when == "attached" else None)  # type: ignore[arg-type]
    if when == "attached":
        with pytest.raises(TypeError, match="unhashable type: 'list'"):
            bus.attach(listener)
    else:
        subscription = bus.attach(listener)
        listener.destination = []  # type: ignore[assignment]
        with pytest.raises(TypeError, match="unhashable type: 'list'"):
            subscription.refresh()
        CircuitBreaker("payments", bus=bus).disable()
        assert len(listener.seen) == 1


def test_a_subscription_knows_its_circuits_and_its_neighbours() -> None:
    """Of many circuits those that match, of one that one while it lives; and what listeners on the bus are called."""
    bus = Bus()
    cb, other = CircuitBreaker("payments", bus=bus), CircuitBreaker("stock", bus=bus)
    every, some, one = bus.attach(Counting()), bus.attach(Counting(), circuits="st*"), cb.attach(print)
    assert [every.circuits(), some.circuits(), one.circuits()] == [[cb, other], [other], [cb]]
    assert every.bus is one.bus is bus
    assert bus.listeners() == {"Counting", "print"}
    cb.retire()
    assert [every.circuits(), one.circuits()] == [[other], []]
    assert bus.listeners() == {"Counting"}


def test_a_listener_without_an_interval_has_no_thread() -> None:
    """One that need not tick when it is attached costs no thread; one that must is called."""
    bus = Bus()
    before = threading.active_count()
    idle, hasty = Counting(), Counting()
    bus.attach(idle)
    assert threading.active_count() == before
    hasty.tick_interval = 0.001
    with bus.attach(hasty):
        assert arrives(hasty.ticked)
    assert not idle.ticked.is_set()


def test_asyncio_in_the_middle_of_its_import_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    """While another thread imports asyncio, as a listener's own does, no loop runs here and events are delivered."""
    bus = Bus()
    seen: list[Any] = []
    bus.attach(seen.append, StateChanged)
    monkeypatch.setitem(sys.modules, "asyncio", ModuleType("asyncio"))
    CircuitBreaker("payments", bus=bus).disable()
    assert len(seen) == 1
