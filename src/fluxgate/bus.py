"""The event bus: who listens to which circuits, and how events reach them."""

from __future__ import annotations

import atexit
import time
import weakref
from collections import deque
from collections.abc import Iterable
from functools import partial
from threading import RLock

from . import _check
from ._claims import Claim
from ._forks import KeptWhole
from ._registry import Reference, Registry
from ._routes import Routes, kinds_of, table_of
from ._subscription import Outlet, Subscription, destination_of, tick_interval
from ._text import log
from ._typing import TYPE_CHECKING
from .events import Event, EventsDropped, ListenerFailed

if TYPE_CHECKING:
    from typing import Any

    from ._core import Core
    from ._protocols import Delivery, Listener
    from ._worker import Mailbox

_EXIT_WAIT = 2.0
_CLOSE_WAIT = 1.0
_CLOSE_MOMENT = 0.05
_FLUSH_LOOK = 0.002  # seconds


class Bus:
    """Connects circuits and listeners. A process has one; make another to keep a set of circuits to itself.

    >>> from fluxgate import CircuitBreaker
    >>> bus = Bus()
    >>> cb = CircuitBreaker("payments", bus=bus)
    >>> with bus.attach(lambda event: print(event.old_state, "->", event.new_state)):
    ...     cb.force_open()
    closed -> forced_open
    """

    def __init__(self) -> None:
        self.lock = RLock()
        self.graveyard: deque[Reference] = deque()
        """Circuits that nobody references any more. A finalizer may only append here; `bury` does the work."""
        self.stranded: deque[Core] = deque()
        """Retired circuits whose last events wait for an event loop."""
        self._retired: set[weakref.ref[Core]] = set()  # a `WeakSet`, in half the time
        self._forking: list[Core] = []
        self._burying = False
        self._circuits = Registry(self.graveyard.append)
        self._subscriptions: tuple[Subscription, ...] = ()
        self._own: weakref.WeakSet[Subscription] = weakref.WeakSet()
        self._outlets: dict[int, Outlet] = {}
        self._routes: dict[tuple[Subscription, ...], Routes] = {}
        self._observed: tuple[Subscription, ...] = ()
        self._observing = RLock()
        _buses.add(self)

    # -- circuits -------------------------------------------------------------------------------------------------

    def register(self, breaker: Any, core: Core) -> None:
        """Enter a new circuit."""
        if self.graveyard:
            self.bury()
        with self.lock:
            self._circuits.enter(breaker, core)
            if self._subscriptions or core.own:
                self._rewire(core)

    def circuits(self) -> list[Any]:
        """The breakers that are alive, sorted by name."""
        self.bury()
        alive = [(core.name, self.breaker(core)) for core in self._circuits]
        return [breaker for _, breaker in sorted(alive, key=lambda each: each[0]) if breaker is not None]

    def namesakes(self, names: Iterable[str]) -> list[Any]:
        """The breakers of these names that are alive; without a look at the others, which may be thousands."""
        found = map(self.breaker, self._circuits.named(names))
        return [breaker for breaker in found if breaker is not None]

    def breaker(self, core: Core) -> Any:
        """The breaker of this circuit, or ``None`` where it is gone or retired."""
        reference = core.breaker
        return None if reference is None else reference()

    def retire(self, core: Core) -> None:
        """Let a circuit go: tell its listeners, then detach its own."""
        with self.lock:
            mine = self._circuits.strike(core)
            core.retired = True
            self._retired.add(weakref.ref(core, self._retired.discard))
        if mine and (core.routes or core.outbox):  # else nobody is to be told, and nobody will be
            core.retire()
            if core.awaits:
                self.stranded.append(core)  # it has no next call: another circuit's will tell what is left
            # what is lost or fails over its last events is still told, though not to its own listeners
            late = (EventsDropped, ListenerFailed)
            core.rewire(table_of(tuple(sub for sub in self._subscriptions if sub.observes(core)), late))

    def next_stranded(self) -> Core | None:
        """One of the retired circuits whose last events wait for an event loop."""
        try:
            return self.stranded.popleft()
        except IndexError:
            return None

    def bury(self) -> None:
        """Retire the circuits that were garbage-collected since the last time."""
        if not self._burying:  # telling of one retirement must not begin with the next, or ten thousand would nest
            self._burying = True
            try:
                while self.graveyard:
                    self.retire(self.graveyard.popleft().core)
            finally:
                self._burying = False

    # -- listeners ------------------------------------------------------------------------------------------------

    def attach(
        self,
        listener: Listener,
        *event_types: type[Event],
        circuits: str | Iterable[str] = "*",
        delivery: Delivery | None = None,
        queue_size: int = 10_000,
    ) -> Subscription:
        """Let `listener` observe every circuit of this bus, present and future, whose name matches.

        Args:
            listener: Called with each event; a coroutine function is awaited by asynchronous circuits, and called in
                the background for the others. Its attribute `events` says which types it receives, else
                `StateChanged` alone.
            event_types: What to receive instead; a base class such as `fluxgate.events.Event` stands for all beneath.
            circuits: One pattern, or several, in shell style (``"payments-*"``); case matters.
            delivery: ``"inline"``: in the caller's thread, after the engine's lock is released. ``"background"``:
                through a bounded queue, in a thread of the listener's own. The default is what the listener's
                attribute `delivery` says, else inline.
            queue_size: How many events may wait in the background; beyond it the oldest go, and `EventsDropped` says
                so.

        Raises:
            TypeError, ValueError: An argument is not what it must be.
        """
        patterns = (circuits,) if isinstance(circuits, str) else _check.several(circuits, "circuits")
        if not patterns:
            raise ValueError(f"circuits must be a pattern or several, got {_check.got(circuits)}")
        for pattern in patterns:
            _check.name(pattern, "circuits")
        return self._attach(listener, event_types, patterns, None, delivery, queue_size)

    def attach_to(
        self,
        core: Core,
        listener: Listener,
        event_types: tuple[type[Event], ...],
        delivery: Delivery | None,
        queue_size: int,
    ) -> Subscription:
        """Let `listener` observe one circuit."""
        return self._attach(listener, event_types, (), core, delivery, queue_size)

    def _attach(
        self,
        listener: Listener,
        event_types: tuple[type[Event], ...],
        patterns: tuple[str, ...],
        core: Core | None,
        delivery: Delivery | None,
        queue_size: int,
    ) -> Subscription:
        _check.function(_check.instance(listener, "listener", "a callable"), "listener")
        if delivery is None:
            delivery = getattr(listener, "delivery", "inline")
        if delivery not in ("inline", "background"):
            raise ValueError(f"delivery must be 'inline' or 'background', got {_check.got(delivery)}")
        _check.whole(queue_size, "queue_size")
        kinds = kinds_of(listener, event_types)
        destination = destination_of(listener)
        tick_interval(listener)
        with self.lock:
            outlet = self._outlets.get(id(listener))
            if outlet is None:
                outlet = self._outlets[id(listener)] = Outlet(listener)
            outlet.uses += 1
            subscription = Subscription(
                self, outlet, kinds, event_types, patterns, core, destination, delivery, queue_size
            )
            if core is None:
                self._subscriptions += (subscription,)
            else:
                core.own += (subscription,)
                self._own.add(subscription)
            self._rewire(core)
        attached = getattr(listener, "attached", None)
        if callable(attached):
            try:
                attached(subscription)
            except BaseException:
                subscription.close()
                raise
        with self.lock:
            if outlet.uses and outlet.ticking is None:  # it may have been closed again by now
                outlet.start_ticking(partial(_tick_failed, weakref.ref(self), weakref.ref(outlet)))
        return subscription

    def refresh(self, subscription: Subscription) -> None:
        """See `Subscription.refresh`."""
        listener = subscription.outlet.listener  # its code runs here: no lock is held
        kinds, destination = kinds_of(listener, subscription.event_types), destination_of(listener)
        with self.lock:
            subscription.kinds = kinds
            subscription.destination = destination
            if subscription.active:
                self._rewire(subscription.core)

    def count_failure(self, outlet: Outlet) -> int:
        """One failure more of this listener, which may fail in several circuits' threads at once; how many so far."""
        with self.lock:
            outlet.failures += 1
            return outlet.failures

    def tick_failed(self, outlet: Outlet, error: BaseException) -> None:
        """A listener's tick raised. It concerns no circuit more than another: the first that it observes tells it."""
        seen = self.count_failure(outlet)
        with self.lock:
            subscriptions = [each for each in (*self._subscriptions, *self._own) if each.outlet is outlet]
            core = next((core for core in self._circuits for each in subscriptions if each.observes(core)), None)
        if core is not None:
            core.report("listener", outlet.name, error, seen)
            core.deliver_soon(in_loop=False)
        elif seen == 1:
            text = "ticking listener %s failed; from now on its failures are counted, not logged"
            log("ERROR", text, outlet.name, error=error)

    def detach(self, subscription: Subscription) -> bool:
        """Take a subscription out of every route; whether it was in one."""
        with self.lock:
            core = subscription.core
            held = self._subscriptions if core is None else core.own
            if subscription not in held:
                return False
            rest = tuple(each for each in held if each is not subscription)
            if core is None:
                self._subscriptions = rest
            else:
                core.own = rest
            self._rewire(core)
            return True

    def release(self, outlet: Outlet) -> None:
        """One subscription of this listener less; with the last one the listener is closed."""
        with self.lock:
            outlet.uses -= 1
            if outlet.uses:
                return
            del self._outlets[id(outlet.listener)]
        outlet.close()

    def _rewire(self, core: Core | None) -> None:
        if core is None:
            self._routes.clear()
        elif core.retired:
            return
        for each in [core] if core is not None else list(self._circuits):
            concerned = [sub for sub in self._subscriptions if sub.observes(each)]
            subscriptions = tuple(sorted((*concerned, *each.own), key=lambda each: each.number))
            each.rewire(table_of(subscriptions) if each.own else self._route(subscriptions))

    def _route(self, subscriptions: tuple[Subscription, ...]) -> Routes:
        """The table of these subscriptions; circuits with the same ones share it."""
        table = self._routes.get(subscriptions)
        if table is None:
            table = self._routes[subscriptions] = table_of(subscriptions)
        return table

    def observe(self) -> tuple[Subscription, ...]:
        """Attach every listener whose library is installed, and say in one line of the log which.

        Listeners are found under the entry-point group ``fluxgate.listeners``: those that come with Fluxgate and those
        of others that declare themselves `automatic`. Of several for one purpose (structlog, log) the first whose
        library is there is taken, and none for a purpose that a listener of the program's serves already, which hears
        every circuit. Calling it again changes nothing while they are attached.
        """
        from ._plugins import observable

        found = [] if self._observes else observable(self._served())
        with self._observing:  # other people's code runs here: `lock` is not held
            if not self._observes:
                attached: dict[str, Subscription] = {}
                for name, listener in found:
                    try:
                        attached[name] = self.attach(listener)
                    except Exception as error:
                        log("ERROR", "listener %r cannot be attached", name, error=error)
                self._observed = tuple(attached.values())
                log("INFO", "observing circuits with: %s", ", ".join(attached) or "no listener")
            return self._observed

    def _served(self) -> set[str]:
        """The purposes that some listener serves for every circuit."""
        with self.lock:
            listeners = [each.outlet.listener for each in self._subscriptions if each.observes_all]
        return {str(getattr(listener, "automatic", None)) for listener in listeners}

    @property
    def _observes(self) -> bool:
        return any(subscription.active for subscription in self._observed)

    # -- waiting and ending ---------------------------------------------------------------------------------------

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait until all that was published has been delivered, `timeout` seconds at most; whether it has.

        What an asynchronous circuit has for a coroutine listener waits for that circuit's event loop, and a listener
        that flushes does not wait for itself.

        Raises:
            TypeError, ValueError: `timeout` is not a number of at least 0.
        """
        deadline = time.monotonic() + _check.number(timeout, "timeout", at_least=0)
        while True:
            self.bury()
            for outlet in self._live_outlets():
                outlet.drain_here()
            quiet = self._at_rest()  # before as well: what a queue lost is told by a circuit
            cores = [core for core in self._cores() if core.is_telling]
            for core in cores:
                core.deliver_soon()
            if self._at_rest() and quiet and not any(core.is_telling for core in cores):
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(left, _FLUSH_LOOK))

    def shut_down(self, timeout: float) -> None:
        """At the end of the process: flush, then close every listener."""
        deadline = time.monotonic() + timeout
        for core in self._cores():
            if core.awaits:
                import asyncio
                from contextlib import suppress

                with suppress(TimeoutError):
                    asyncio.run(asyncio.wait_for(core.deliver_async(), max(deadline - time.monotonic(), 0)))
        if not self.flush(max(deadline - time.monotonic(), 0)):
            from ._worker import give_up

            give_up(self._boxes())
        deadline = time.monotonic() + _CLOSE_WAIT  # for all of them together, and a moment for each
        for outlet in self._live_outlets():
            outlet.close(max(deadline - time.monotonic(), _CLOSE_MOMENT))

    def listeners(self) -> set[str]:
        """What the listeners that are attached are called in `ListenerFailed` and `EventsDropped`."""
        return {outlet.name for outlet in self._live_outlets()}

    def _live_outlets(self) -> list[Outlet]:
        with self.lock:
            return list(self._outlets.values())

    def _at_rest(self) -> bool:
        """Whether nothing waits in a background queue, nor to be told of its losses."""
        return not [box for box in self._boxes() if not box.report_if_at_rest()]  # each is asked

    def _boxes(self) -> list[Mailbox]:
        with self.lock:
            subscriptions = [*self._subscriptions, *self._own]
        return [each.box for each in subscriptions if each.box is not None and not each.outlet.worker.is_current]

    def claims(self) -> list[Claim]:
        """Those under which the circuits' events are being delivered."""
        with self.lock:
            claims = [core.claim for core in self._all_cores()]
        return [claim for claim in claims if claim is not None]

    def _cores(self) -> list[Core]:
        with self.lock:
            return [*self._circuits, *self.stranded]

    def _all_cores(self) -> list[Core]:
        """The retired ones as well, which may have calls in flight."""
        retired = [reference() for reference in self._retired.copy()]  # whole, whoever goes meanwhile
        return [*self._circuits, *(core for core in retired if core is not None)]

    # -- forks ----------------------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Hold every lock while the process forks, so that the child finds each circuit whole."""
        self.lock.acquire()
        self._forking = self._all_cores()
        for core in self._forking:
            core.lock.acquire()

    def after_fork(self, *, child: bool) -> None:
        """Release them; in the child the threads are gone and start anew when needed."""
        for core in self._forking:
            if child:
                core.after_fork()
            core.lock.release()
        self._forking = []
        if child:
            self._burying = False
            self._observing = RLock()
            for subscription in (*self._subscriptions, *self._own):
                subscription.reset()
            for outlet in self._outlets.values():
                outlet.reset()
        self.lock.release()


def _tick_failed(bus: weakref.ref[Bus], outlet: weakref.ref[Outlet], error: BaseException) -> None:
    # Held weakly: a listener's thread must not keep alive what nobody else needs.
    its_bus, its_outlet = bus(), outlet()
    if its_bus is not None and its_outlet is not None:
        its_bus.tick_failed(its_outlet, error)


_buses = KeptWhole[Bus]()
default = Bus()
attach = default.attach
flush = default.flush
circuits = default.circuits
observe = default.observe


def as_bus(value: Any) -> Bus:
    """`value`, or the process's bus for ``None``.

    Raises:
        TypeError: not a bus.
    """
    if value is None:
        return default
    if not isinstance(value, Bus):
        raise TypeError(f"bus must be a Bus, got {_check.got(value)}")
    return value


@atexit.register
def _at_exit() -> None:
    deadline = time.monotonic() + _EXIT_WAIT
    for bus in _buses:
        bus.shut_down(max(deadline - time.monotonic(), 0))
