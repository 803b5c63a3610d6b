"""A listener's attachment to circuits, and how one event reaches it."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Collection, Hashable
from contextvars import Context, copy_context
from itertools import count
from threading import get_ident
from types import FunctionType, MethodType

from . import _check
from ._functions import is_async, refuse_coroutine
from ._tasks import being_cancelled, outcome_in, running_loop, spawn, waiting_for
from ._text import log
from ._typing import TYPE_CHECKING, when_asked_for
from .events import Event, ListenerFailed

if TYPE_CHECKING:
    from typing import Any, Self

    from ._core import Core
    from ._protocols import Delivery as Delivery
    from ._protocols import Listener
    from ._teller import Teller
    from ._worker import Mailbox, Worker
    from .bus import Bus
else:
    __getattr__, __dir__ = when_asked_for(__name__, "Delivery")

_CLOSE_WAIT = 1.0
_TICK_AGAIN = 1.0  # seconds after a tick that failed
_AFTER_FORK = 0.1  # seconds until a child's first tick: listeners have handlers of their own that must run first
_numbers = count()


class Outlet:
    """One listener, however many subscriptions it has."""

    _worker: Worker | None = None

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.call = _bound(listener)
        self.name: str = getattr(listener, "__qualname__", None) or type(listener).__qualname__
        self.is_async = is_async(listener)
        self.around: Callable[..., Any] | None = getattr(listener, "around", None)
        self.instead: Callable[[Any], Any] | None = getattr(listener, "instead", None)
        self.uses = 0
        self.failures = 0
        self.ticking: Callable[[BaseException], None] | None = None
        self._closed = False

    @property
    def worker(self) -> Worker:
        """Its thread, made when first needed."""
        if self._worker is None:
            from ._worker import Worker

            self._worker = Worker(self.name)
        return self._worker

    @property
    def has_thread(self) -> bool:
        """Whether that was made, and started."""
        return self._worker is not None and self._worker.has_thread

    def start_ticking(self, report: Callable[[BaseException], None]) -> None:
        """Call the listener's `tick` from now on; its failures go to `report`."""
        if callable(getattr(self.listener, "tick", None)):
            self.ticking = report
            if tick_interval(self.listener) is not None:
                self.wake()

    def wake(self, delay: float = 0.0) -> None:
        """See `Subscription.wake`."""
        if self.ticking is not None:
            self.worker.start_ticking(weakref.WeakMethod(self.tick), delay)

    async def tick(self) -> float | None:
        """Let the listener look at the time; seconds until the next, ``None`` for never."""
        report = self.ticking
        if report is None:
            return None
        try:
            interval = tick_interval(self.listener)
            if interval is not None:
                result: Any = self.listener.tick()  # type: ignore[attr-defined]
                if hasattr(result, "__await__"):
                    await result
                interval = tick_interval(self.listener)
        except BaseException as error:
            from ._worker import outliving_interrupts

            with outliving_interrupts(self.name):
                report(error)
            error.__traceback__ = None  # as in `_failed`
            return _TICK_AGAIN
        return interval

    def close(self, wait: float = _CLOSE_WAIT) -> None:
        """The last subscription is gone, or the process ends: stop the thread and tell the listener, once.

        A tick that runs, and an asynchronous `close`, may take `wait` seconds.
        """
        closing = None if self._closed else getattr(self.listener, "close", None)
        self._closed = True
        self.ticking = None
        if self._worker is not None:
            self._worker.stop_ticking(wait)
        if callable(closing):
            try:
                result = closing()
                if hasattr(result, "__await__"):
                    self._finish(result, wait)
            except Exception as error:
                log("ERROR", "closing listener %s failed", self.name, error=error)
        if self._worker is not None:
            self._worker.stop()

    def _finish(self, work: Any, wait: float) -> None:
        loop = running_loop()
        if self._worker is not None and self._worker.finish(work, wait):
            return
        if loop is not None:
            spawn(loop, waiting_for(work))
        else:
            import asyncio

            asyncio.run(asyncio.wait_for(waiting_for(work), wait))

    def __del__(self) -> None:
        # Nobody closed it before its bus was dropped: its thread must not wait for ever for events that cannot come.
        if self._worker is not None:
            self._worker.stop()

    def drain_here(self) -> None:
        """See `Worker.drain_here`."""
        if self._worker is not None:
            self._worker.drain_here()

    def reset(self) -> None:
        """In a forked child."""
        if self._worker is not None:
            ticks = self._worker.ticks
            self._worker.reset()
            if ticks:
                self.wake(_AFTER_FORK)


def _bound(listener: Listener) -> Listener:
    """The same; an object with a ``__call__`` in Python costs half as much when that is looked up once."""
    method = type(listener).__call__
    return MethodType(method, listener) if isinstance(method, FunctionType) else listener


def tick_interval(listener: Any) -> float | None:
    """How often the listener is to tick, in seconds.

    Raises:
        TypeError, ValueError: its `tick_interval` is not a number above 0.
    """
    interval = getattr(listener, "tick_interval", None)
    return None if interval is None else _check.number(interval, "tick_interval", above=0)


def destination_of(listener: Any) -> Hashable:
    """Where the listener tells events to; without a word from it, a place of its own.

    Raises:
        TypeError: its `destination` is not hashable.
    """
    destination: Hashable = getattr(listener, "destination", None)
    hash(destination)  # says itself what is not hashable
    return object() if destination is None else destination


class Subscription:
    """One listener's attachment to one circuit, or to many. Close it to detach; it is also a context manager."""

    def __init__(
        self,
        bus: Bus,
        outlet: Outlet,
        kinds: frozenset[type[Event]],
        event_types: tuple[type[Event], ...],
        patterns: tuple[str, ...],
        core: Core | None,
        destination: Hashable,
        delivery: Delivery,
        queue_size: int,
    ) -> None:
        self.outlet = outlet
        self.destination = destination
        self.kinds = kinds
        self.event_types = event_types
        """Those that were named when it was attached, instead of the listener's own."""
        self.number = next(_numbers)
        """Listeners are called in the order in which they were attached."""
        self._bus = bus
        self._patterns = patterns
        self._core = core
        self._background = delivery == "background"
        self._queue_size = queue_size
        self.active = True
        """Whether it is still open."""
        self.call = outlet.call
        self.is_direct = delivery == "inline" and not outlet.is_async
        """Whether the listener can be called at once, wherever a call ends."""
        if not self.is_direct:  # late, since most programs have no use for it, but not in the middle of a call
            import importlib

            importlib.import_module("fluxgate._worker")
        self._ended = False
        self._busy: list[int] = []
        self._box: Mailbox | None = None

    def __repr__(self) -> str:
        return f"<Subscription of {self.outlet.name} ({'open' if self.active else 'closed'})>"

    @property
    def core(self) -> Core | None:
        """The one circuit that it observes, or ``None`` for many."""
        return self._core

    @property
    def bus(self) -> Bus:
        """Where it is attached."""
        return self._bus

    @property
    def observes_all(self) -> bool:
        """Whether it observes every circuit of its bus, also those that are to come."""
        return self._core is None and "*" in self._patterns

    @property
    def backlog(self) -> int:
        """How many events wait for the listener in its background queue."""
        return 0 if self._box is None else self._box.backlog

    def circuits(self) -> list[Any]:
        """The breakers that it observes and that are alive, sorted by name."""
        if self._core is not None:
            breaker = self._bus.breaker(self._core)
            return [] if breaker is None else [breaker]
        return [breaker for breaker in self._bus.circuits() if self.observes(breaker._core)]

    def namesakes(self, names: Collection[str]) -> list[Any]:
        """Those of `circuits` that have one of these names, in no order."""
        if self._core is not None:
            return self.circuits() if self._core.name in names else []
        return [breaker for breaker in self._bus.namesakes(names) if self.observes(breaker._core)]

    def refresh(self) -> None:
        """Ask the listener's `events` and `destination` again: they may depend on something that has changed.

        Raises:
            TypeError, ValueError: They are not event types, or none; or the destination is not hashable.
        """
        self._bus.refresh(self)

    def wake(self) -> None:
        """Let the listener tick at once, and from then on as its `tick_interval` says.

        For one that has something to wait for only now and then: while its `tick_interval` is ``None`` it has no
        thread that wakes up, and before the first time no thread at all.
        """
        with self._bus.lock:
            self.outlet.wake()

    def close(self) -> None:
        """Detach the listener: once this returns it is not called again.

        What waits in a background queue is delivered first, and a call that runs in another thread may end, within one
        second each; closed from within its own listener, neither is waited for. What still waits then goes, and
        `EventsDropped` says how much. The listener's own ``close()`` is called when its last subscription closes.
        Closing twice does nothing.
        """
        deadline = time.monotonic() + _CLOSE_WAIT
        if not self._bus.detach(self):
            while not self._ended and not self.calls(here=True) and time.monotonic() < deadline:
                time.sleep(0.001)  # another thread is closing it
            return
        if self._box is not None and not self.outlet.worker.is_current:
            if not self._box.wait_until_empty(deadline):
                self._box.drop_all()
            self._box.report_losses()
        self.active = False
        if self._box is not None:
            self._box.discard()
        while self.calls(here=False) and time.monotonic() < deadline:
            time.sleep(0.001)
        self._end()

    def calls(self, *, here: bool) -> int:
        """How many calls of the listener are under way in the calling thread, or else in all others."""
        me = get_ident()
        noted = sum((thread == me) is here for thread in self._busy)
        return noted + sum(claim.is_mine is here for claim in self._bus.claims() if claim.at is self)

    def reset(self) -> None:
        """In a forked child: the other threads' calls are not here."""
        self._busy = [thread for thread in self._busy if thread == get_ident()]
        if self._box is not None:
            self._box.reset()

    def retire(self) -> None:
        """Its circuit is gone: it ends as soon as what waits for it has been delivered, which nobody waits for.

        Where it has a thread, that closes the listener: the caller is some other circuit's, and must not wait either.
        """
        if self._bus.detach(self):
            box = self._mailbox() if self._box is not None or self.outlet.has_thread else None
            if box is None:
                self._end()
            else:
                box.afterwards(self._end)

    def _end(self) -> None:
        with self._bus.lock:
            self.active = False
            self._ended = True
        self._bus.release(self.outlet)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def observes(self, core: Teller) -> bool:
        """Whether it concerns this circuit."""
        if self._core is not None:
            return self._core is core
        if self._patterns == ("*",):
            return True
        from fnmatch import fnmatchcase

        return any(fnmatchcase(core.name, pattern) for pattern in self._patterns)

    def needs_await(self, core: Teller) -> bool:
        """Whether the circuit's own task must await the listener."""
        return core.asynchronous and self.outlet.is_async and not self._background

    def take(self, event: Event, context: Context, core: Teller) -> None:
        """Call the listener, or queue for it."""
        if not self._background and not self.outlet.is_async:
            self._call(self.call, event, context, core)
        else:
            box = self._mailbox()
            if box is not None:  # else it was closed before its turn
                box.put(event, context, core)

    def enter(self, core: Teller, call_id: int | None, nested: bool) -> Callable[[Event | None], None] | None:
        """Let the listener surround a call; how it is to leave it."""
        around: Any = self.outlet.around  # only those that have it are asked (see `_routes`)
        me = get_ident()
        self._busy.append(me)  # see `_call`
        try:
            leave: Any = around(core.name, call_id, nested=nested) if self.active else None
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            self.failed(None, error, core)
            return None
        finally:
            self._busy.remove(me)
        if leave is None:
            return None

        def leaving(ended: Event | None) -> None:
            try:
                leave(ended)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:
                self.failed(None, error, core)

        return leaving

    def _mailbox(self) -> Mailbox | None:
        with self._bus.lock:
            if self._box is None and self.active:
                from ._worker import Mailbox

                self._box = Mailbox(self, self.outlet.worker, self._queue_size)
            return self._box

    def take_instead(self, event: Event, core: Teller) -> None:
        """Tell the listener what came instead of a call, where it came."""
        if self.outlet.instead is not None:
            self._call(self.outlet.instead, event, copy_context(), core)

    def _call(self, listener: Listener, event: Event, context: Context, core: Teller) -> None:
        # Announced before `active` is read, as `close` reads it after clearing `active`: one sees the other.
        me = get_ident()
        self._busy.append(me)
        try:
            if self.active:
                result = context.run(listener, event)
                if result is not None:
                    refuse_coroutine(result, "listener")
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            self.failed(event, error, core)
        finally:
            self._busy.remove(me)

    async def take_async(self, event: Event, context: Context, core: Teller) -> None:
        """Await the listener."""
        me = get_ident()
        self._busy.append(me)
        try:
            error = await outcome_in(context, self.outlet.listener(event)) if self.active else None
        except Exception as raised:
            error = raised
        finally:
            self._busy.remove(me)
        if error is not None:
            if isinstance(error, (KeyboardInterrupt, SystemExit)) or being_cancelled():
                raise error
            self.failed(event, error, core)

    async def hand_over(self, event: Event, context: Context, core: Teller) -> None:
        """Call or await the listener in its worker's thread, which nothing may end."""
        try:
            if self.outlet.is_async:
                await self.take_async(event, context, core)
            else:
                self._call(self.call, event, context, core)
        except (KeyboardInterrupt, SystemExit) as error:
            self.failed(event, error, core)

    @property
    def box(self) -> Mailbox | None:
        """Its background queue, if one was needed."""
        return self._box

    def failed(self, event: Event | None, error: BaseException, core: Teller) -> None:
        seen = self._bus.count_failure(self.outlet)
        # a failure over the news of a failure is not news again, or two broken listeners would never end
        tell = not isinstance(event, ListenerFailed)
        core.report("listener", self.outlet.name, error, seen, tell=tell)
        error.__traceback__ = None  # it ends here: raised again it must not grow, nor hold the listener's frames
