"""Listeners that keep time: the bus lets them tick, at their interval, in a thread that is there only where needed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from fluxgate import Bus, CircuitBreaker
from fluxgate.events import ListenerFailed, StateChanged
from fluxgate.testing import EventRecorder
from tests.running import arrives, script


class Ticker:
    """Counts its ticks; `work` runs in each."""

    def __init__(self, interval: Any, work: Callable[[], object] = lambda: None) -> None:
        self.tick_interval = interval
        self.work = work
        self.ticks = 0
        self.ticked = threading.Event()

    def __call__(self, event: StateChanged) -> None: ...

    def tick(self) -> None:
        self.ticks += 1
        self.work()
        self.ticked.set()


def again(ticker: Ticker) -> bool:
    """Whether another tick comes."""
    ticker.ticked.clear()
    return arrives(ticker.ticked)


def test_a_listener_ticks_at_its_interval_while_nothing_happens() -> None:
    """At once when it is attached and again and again, until it is detached."""
    ticker = Ticker(0.001)
    bus = Bus()
    with bus.attach(ticker) as subscription:
        assert all(again(ticker) for _ in range(3))
        assert subscription.outlet.worker.ticks
    ticks = ticker.ticks
    assert subscription.outlet.ticking is None
    assert subscription.outlet.worker._tick is None
    assert ticker.ticks == ticks


def test_without_an_interval_there_is_no_thread() -> None:
    """Its `tick` is not called and no thread waits for it, until it is woken."""
    ticker = Ticker(None)
    bus = Bus()
    with bus.attach(ticker) as subscription:
        assert subscription.outlet._worker is None
        ticker.tick_interval = 0.001
        subscription.wake()
        assert all(again(ticker) for _ in range(3))
    subscription.wake()
    assert subscription.outlet.ticking is None


def test_an_interval_of_none_lets_the_thread_sleep() -> None:
    """It ends the ticks from within one; waking it begins them anew."""

    def rest() -> None:
        ticker.tick_interval = None

    ticker = Ticker(0.001, rest)
    bus = Bus()
    with bus.attach(ticker) as subscription:
        assert arrives(ticker.ticked)
        for _ in range(3):
            ticker.tick_interval = 0.001
            ticker.ticked.clear()
            subscription.wake()
            assert arrives(ticker.ticked)


def test_a_listener_that_is_woken_in_the_middle_of_a_tick_ticks_again() -> None:
    """The news that came during the tick is not lost, though that tick ends with nothing to wait for."""
    entered, go_on = threading.Event(), threading.Event()

    def work() -> None:
        entered.set()
        arrives(go_on)

    ticker = Ticker(1000, work)
    bus = Bus()
    with bus.attach(ticker) as subscription:
        assert arrives(entered)
        entered.clear()
        subscription.wake()
        go_on.set()
        assert arrives(entered), "the next interval would be over in 1,000 s"
        assert arrives(ticker.ticked)


def test_a_tick_that_fails_is_told_and_not_the_last() -> None:
    """It becomes `ListenerFailed`, told through a circuit that the listener observes."""

    def fail() -> None:
        raise OSError("disk full")

    ticker = Ticker(0.001, fail)
    told = threading.Event()
    recorder = EventRecorder(ListenerFailed)
    bus = Bus()
    cb = CircuitBreaker("payments", bus=bus)
    bus.attach(recorder)
    bus.attach(lambda event: told.set(), ListenerFailed)
    with bus.attach(ticker):
        assert arrives(told)
    failed = recorder.of(ListenerFailed)[0]
    assert (failed.circuit_name, failed.listener, failed.error, failed.count) == (cb.name, "Ticker", "disk full", 1)


@pytest.mark.parametrize("interval", [0, -1, "1", float("nan"), True])
def test_a_wrong_interval_is_refused_when_attached(interval: Any) -> None:
    """The error quotes it."""
    with pytest.raises((TypeError, ValueError), match=r"tick_interval must be .* above 0, got"):
        Bus().attach(Ticker(interval))


def test_the_circuits_of_a_subscription_to_one_circuit() -> None:
    """That circuit alone, while it is alive."""
    bus = Bus()
    first, _second = CircuitBreaker("first", bus=bus), CircuitBreaker("second", bus=bus)
    subscription = first.attach(Ticker(None))
    assert subscription.circuits() == [first]
    first.retire()
    assert subscription.circuits() == []


FORKED = """
import os, threading, time, warnings
warnings.simplefilter("ignore")
from fluxgate import Bus

class Ticker:
    tick_interval = None
    ready = False
    ticked = threading.Event()

    def __call__(self, event): ...

    def tick(self):
        ticked_in.append((os.getpid(), self.ready))
        self.ticked.set()

ticked_in = []
waking, sleeping, bus = Ticker(), Ticker(), Bus()
waking.tick_interval = sleeping.tick_interval = 0.01
subscriptions = [bus.attach(waking), bus.attach(sleeping)]
assert waking.ticked.wait(20)
sleeping.tick_interval = None
deadline = time.monotonic() + 20
while subscriptions[1].outlet.worker.ticks and time.monotonic() < deadline:
    time.sleep(0.001)

def after_fork():  # registered late, as those of listeners are
    time.sleep(0.02)  # a thread that does not wait would tick meanwhile
    waking.ready = True

os.register_at_fork(after_in_child=after_fork)
child = os.fork()
if child == 0:
    waking.ticked.clear()
    good = waking.ticked.wait(20)
    good = good and all(ready for process, ready in ticked_in if process == os.getpid())
    good = good and subscriptions[1].outlet.worker._thread is None
    os._exit(0 if good else 1)
os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
def test_a_forked_child_ticks_on() -> None:
    """Once the handlers of the listeners' own have run there; one that slept sleeps on."""
    script(FORKED)
