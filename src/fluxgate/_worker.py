"""Background delivery: a bounded queue a subscription, and one daemon thread with an event loop a listener."""

from __future__ import annotations

import math
import time
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from contextvars import Context
from threading import Condition, RLock, Thread, current_thread

from ._tasks import waiting_for
from ._text import log
from ._typing import TYPE_CHECKING
from .events import Event, EventsDropped

if TYPE_CHECKING:
    from typing import Any

    from ._subscription import Subscription
    from ._teller import Teller

_LAST_WAIT = 1.0  # seconds that a listener's own asynchronous close() may take
_REPORT_EVERY = 1.0  # seconds between two reports of one queue's losses


@contextmanager
def outliving_interrupts(name: str) -> Generator[None, None, None]:
    """In a listener's thread: what another listener raises to end the program has no program to end here."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as error:
        log("ERROR", "the thread of listener %s goes on after an interrupt in another listener", name, error=error)


class Mailbox:
    """What waits for one subscription. When it is full the oldest event goes: the newest explains the present."""

    def __init__(self, subscription: Subscription, worker: Worker, size: int) -> None:
        self.subscription = subscription
        self._worker = worker
        self._size = size
        self._waiting: deque[tuple[Event, Context, Teller]] = deque()
        self._lock = RLock()  # entered itself: a signal handler that raises within `Condition` would leave it locked
        self._changed = Condition(self._lock)
        self._scheduled = False
        self._in_hand = False
        self._dropped = 0
        self._reporting = 0  # threads that are about to tell of losses
        self._last_drop: Teller | None = None
        self._reported_at = -_REPORT_EVERY
        self._then: Callable[[], None] | None = None

    def put(self, event: Event, context: Context, core: Teller) -> None:
        """Queue an event; never waits."""
        with self._lock:
            if len(self._waiting) >= self._size:
                self._waiting.popleft()
                self._dropped += 1
                self._last_drop = core
            self._waiting.append((event, context.copy(), core))
            if not (self._scheduled and self._worker.has_thread):
                # Noted afterwards: if a signal handler raises in between, the next event schedules it again.
                self._worker.schedule(self)
                self._scheduled = True
        if self._dropped and time.monotonic() - self._reported_at >= _REPORT_EVERY:
            self.report_losses()

    def report_losses(self) -> None:
        """Tell how many events went since the last report."""
        with self._lock:
            count, self._dropped = self._dropped, 0
            core, self._last_drop = self._last_drop, None
            self._reported_at = time.monotonic()
            self._reporting += 1
        try:
            if core is not None:
                core.tell(EventsDropped, listener=self.subscription.outlet.name, count=count)
        finally:
            with self._lock:
                self._reporting -= 1
        if core is not None:
            core.deliver_soon(in_loop=False)

    def take(self) -> tuple[Event, Context, Teller] | None:
        """The oldest event; ``None``, and the box is at rest, when there is none."""
        with self._lock:
            self._in_hand = bool(self._waiting)
            if self._waiting:
                return self._waiting.popleft()
            self._scheduled = False
            self._changed.notify_all()
            then, self._then = self._then, None
        if then is not None:
            then()
        return None

    def afterwards(self, then: Callable[[], None]) -> None:
        """Call `then` in the listener's thread, when what waits has been handed over."""
        with self._lock:
            self._then = then
            if not self._scheduled:
                self._worker.schedule(self)
                self._scheduled = True

    def wait_until_empty(self, deadline: float) -> bool:
        """Wait until all has been handed over, or the monotonic deadline; whether it has."""
        with self._lock:
            return self._changed.wait_for(lambda: not self._scheduled, max(deadline - time.monotonic(), 0))

    def report_if_at_rest(self) -> bool:
        """Whether nothing waits, here or to be told of losses."""
        if self._scheduled or self._reporting:
            return False
        told = self._dropped > 0
        self.report_losses()
        return not told

    @property
    def backlog(self) -> int:
        """How many events wait."""
        return len(self._waiting)

    @property
    def waiting(self) -> int:
        """How many events wait, with the one that is being handed over."""
        return self.backlog + self._in_hand

    def drop_all(self) -> None:
        """Nobody waits any longer for what waits: it goes, and counts as lost."""
        with self._lock:
            while self._waiting:
                self._last_drop = self._waiting.popleft()[2]
                self._dropped += 1

    def discard(self) -> None:
        """Forget what waits."""
        with self._lock:
            self._waiting.clear()

    def reset(self) -> None:
        """In a forked child: the parent delivers what waits."""
        self._lock = RLock()
        self._changed = Condition(self._lock)
        self._waiting.clear()
        self._scheduled = self._in_hand = False
        self._dropped = 0
        self._reporting = 0
        self._last_drop = None


def give_up(boxes: Sequence[Mailbox]) -> None:
    """The program ends, and nobody will deliver what waits: tell that it goes, while it can be told."""
    undelivered: dict[str, int] = {}
    for box in boxes:
        name = box.subscription.outlet.name
        undelivered[name] = undelivered.get(name, 0) + box.waiting
        box.drop_all()
    for name, count in undelivered.items():
        if count:
            text = "the program ends before all is delivered: %d events for listener %s are lost"
            log("WARNING", text, count, name)
    for box in boxes:
        box.report_losses()


class Worker:
    """One listener's thread, started by its first event; it runs coroutines and plain calls in its event loop."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._ready: deque[Mailbox] = deque()
        self._thread: Thread | None = None
        self._loop: Any = None
        self._wake: Any = None
        self._stopping = False
        self._last_work: list[Any] = []
        self._lock = RLock()
        self._ticked = Condition(self._lock)
        self._tick: weakref.WeakMethod[Callable[[], Awaitable[float | None]]] | None = None
        self._tick_at = math.inf
        self._ticking = False
        self._roused = False

    @property
    def is_current(self) -> bool:
        """Whether the calling thread is this worker's."""
        return current_thread() is self._thread

    @property
    def has_thread(self) -> bool:
        """Whether its thread was started: a process that has too many may have had none to spare."""
        return self._thread is not None

    def schedule(self, box: Mailbox) -> None:
        """See to it that the box is emptied."""
        if self._thread is not None or box not in self._ready:
            self._ready.append(box)
        if self._thread is None:
            self._start()
        self._rouse()

    @property
    def ticks(self) -> bool:
        """Whether a tick is to come, or is running."""
        return self._ticking or self._tick_at < math.inf

    def start_ticking(
        self, tick: weakref.WeakMethod[Callable[[], Awaitable[float | None]]], delay: float = 0.0
    ) -> None:
        """Call `tick` in `delay` seconds, and again whenever the seconds that it returned have passed, until that is
        ``None``. It is held weakly.
        """
        with self._lock:
            self._tick, self._tick_at = tick, time.monotonic() + delay
            self._roused = True
        self._start()
        self._rouse()

    def stop_ticking(self, timeout: float) -> None:
        """Tick no more; a tick that runs in another thread may end, within `timeout` seconds."""
        with self._lock:
            self._tick = None
            if not self.is_current:
                self._ticked.wait_for(lambda: not self._ticking, timeout)

    def stop(self) -> None:
        """Let the thread end once it is idle."""
        self._stopping = True
        self._rouse()

    def finish(self, work: Any, timeout: float) -> bool:
        """Run a last awaitable in the listener's own loop, where its connections live; whether there is one."""
        if self._loop is None or self._loop.is_closed() or self._stopping:
            return False
        if self.is_current:
            self._last_work.append(work)
        else:
            import asyncio

            asyncio.run_coroutine_threadsafe(waiting_for(work), self._loop).result(timeout)
        return True

    def reset(self) -> None:
        """In a forked child: the thread is gone; the next event starts another."""
        self.__init__(self._name)  # type: ignore[misc]

    def _start(self) -> None:
        with self._lock:
            if self._thread is not None or self._stopping:
                return
            self._thread = Thread(target=self._run, name=f"fluxgate-{self._name}", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:
                # No thread to spare, or the interpreter is shutting down: then `drain_here` will do it.
                self._thread = None
            except BaseException:  # interrupted by a signal handler: the next event starts another
                self._thread = None
                raise

    def _rouse(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._wake.set)
        except (RuntimeError, AttributeError):
            pass  # the loop is closed, or not yet there and about to look by itself

    def _run(self) -> None:
        import asyncio

        with self._lock:
            if self._thread is not current_thread():  # the start was interrupted after all but its end
                return
        with asyncio.Runner() as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        import asyncio

        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        while not self._stopping:
            self._wake.clear()  # before looking: what is scheduled later sets it again
            await self._empty_all()
            await self._tick_if_due()
            left = self._tick_at - time.monotonic()
            if left > 0 and not self._stopping:  # the tick may have found that nobody needs it any more
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), left if left < math.inf else None)
        await self._empty_all()
        await self._finish_last_work()

    async def _finish_last_work(self) -> None:
        import asyncio

        for work in self._last_work:
            try:
                await asyncio.wait_for(waiting_for(work), _LAST_WAIT)
            except Exception as error:
                log("ERROR", "closing listener %s failed", self._name, error=error)

    async def _empty_all(self) -> None:
        while self._ready:
            box = self._ready.popleft()
            while (item := box.take()) is not None:
                event, context, core = item
                await box.subscription.hand_over(event, context, core)
                await self._tick_if_due()  # however many events there are
                with outliving_interrupts(self._name):
                    core.deliver_soon(in_loop=False)  # what its failure added
            with outliving_interrupts(self._name):
                box.report_losses()

    async def _tick_if_due(self) -> None:
        if time.monotonic() < self._tick_at:
            return
        with self._lock:
            tick = self._tick() if self._tick is not None else None
            self._stopping = self._stopping or (self._tick is not None and tick is None)  # nobody has it any more
            self._ticking = tick is not None
            self._roused = False
        wait = None
        try:
            if tick is not None:
                wait = await tick()
        finally:
            with self._lock:
                if not self._roused:  # else somebody has asked for another meanwhile
                    self._tick_at = math.inf if wait is None else time.monotonic() + wait
                self._ticking = False
                self._ticked.notify_all()

    def drain_here(self) -> None:
        """Where no thread could be started any more, at the interpreter's end: deliver in this one."""
        if self._thread is None and self._ready:
            import asyncio

            asyncio.run(self._empty_all())
