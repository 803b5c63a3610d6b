"""What one circuit tells, in order: the outbox, its sequence numbers, and the delivery to listeners.

Events are numbered under the circuit's lock, or in one step under the GIL (see `_fast`), so that their order is the
order in which things happened. They are delivered after its release, one at a time, by whichever thread or task comes
first; one that finds another delivering leaves its events to it. So nobody waits for anybody else's listeners, a
listener may call the breaker, and the order holds.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Coroutine, Generator
from threading import RLock

from ._claims import WAITING, Claim, Direct
from ._clock import CarefulClock
from ._machine import Machine
from ._news import FAREWELL, Fault, FaultOfTheCalls, Letter
from ._routes import NOWHERE, Routes
from ._rules import Rules
from ._tasks import running_loop, shielded, spawn
from ._text import error_text, in_words, log, type_name
from ._typing import TYPE_CHECKING
from .events import (
    CircuitCreated,
    CircuitRetired,
    Event,
    EventsDropped,
    FallbackUsed,
    ListenerFailed,
    Opening,
)

if TYPE_CHECKING:
    from typing import Any

    from ._protocols import Clock
    from ._subscription import Subscription
    from .bus import Bus

_NONE_YET: tuple[()] = ()
_OUTBOX_SIZE = 10_000
"""How much may wait while a listener holds up the delivery, as much as in a background queue."""


class Teller:
    """The telling half of a circuit's core."""

    __slots__ = (
        "claim",
        "_dropped",
        "_faults",
        "_last_loop",
        "sequence",
        "_untold",
        "asynchronous",
        "bus",
        "careful",
        "clock",
        "lock",
        "machine",
        "name",
        "opening",
        "outbox",
        "own",
        "retired",
        "routes",
    )

    def __init__(self, name: str, rules: Rules, clock: Clock, bus: Bus, *, asynchronous: bool) -> None:
        self.name = name
        self.clock = clock
        self.careful = clock if isinstance(clock, CarefulClock) else None
        self.bus = bus
        self.asynchronous = asynchronous
        # Re-entrant, because a signal handler, or a finalizer that the collector happens to run, may call the same
        # breaker in the middle of a decision: that must not be a deadlock.
        self.lock = RLock()
        self.machine = Machine(rules, clock.time())
        self.opening: Opening | None = None
        self.routes: Routes = NOWHERE
        self.own: tuple[Subscription, ...] = ()
        self.outbox: deque[Letter] | tuple[()] = _NONE_YET
        """What is still to be told; true where `deliver` has something to do."""
        self.claim: Claim | None = None
        """Who delivers; ``None`` only while nothing waits either, so that one look tells both."""
        self._last_loop: weakref.ref[Any] | None = None
        self.retired = False
        self.sequence = 0
        self._faults: dict[str, int] | None = None
        self._dropped: dict[str, int] | None = None
        self._untold: dict[str, int] | None = None

    # -- telling --------------------------------------------------------------------------------------------------

    def draft(self, kind: type[Event], wall: float) -> Any:
        draft = kind.drafts()
        draft.circuit_name = self.name
        draft.timestamp = wall
        draft.state = self.machine.state
        return draft

    def push(self, item: Any, kind: type[Event] | None = None, *, first: bool = False, of: object = None) -> None:
        """Queue what is to be told; an event becomes its `kind`, and numbers the call of which it tells `first`.

        `of`: of which news it tells; where others have told them meanwhile, nothing is to be done.
        """
        outbox = self.open_outbox()
        if len(outbox) >= _OUTBOX_SIZE and kind is not EventsDropped:
            if isinstance(item, Fault):  # those that wait already say what fails: this one is only counted
                untold = self._untold = self._untold or {}
                untold[item.role] = untold.get(item.role, 0) + 1
                if of is not None and self.machine.news and self.machine.news[0] is of:
                    del self.machine.news[0]
                return
            self._drop_oldest(outbox)
        letter = Letter(item, self.routes.get(kind, ()) if kind else ())
        # With no call before the append, no signal handler comes in between, to raise or to call this breaker.
        if of is not None:
            news = self.machine.news
            if not news or news[0] is not of:
                return
            del news[0]
        if kind is not None:
            self.sequence += 1
            item.sequence = self.sequence
            if first:
                item.call_id = item.sequence
            item.__class__ = kind
        if self.claim is None:
            self.claim = WAITING
        outbox.append(letter)

    def open_outbox(self) -> deque[Letter]:
        outbox: Any = self.outbox
        if outbox is _NONE_YET:
            fresh = deque[Letter]()
            # looked at again: another thread, or a finalizer, may have made one meanwhile
            self.outbox = outbox = fresh if self.outbox is _NONE_YET else self.outbox
        return outbox  # type: ignore[no-any-return]

    def _drop_oldest(self, outbox: deque[Letter]) -> None:
        """Whoever delivers is stuck: the oldest event goes, but not the one at hand, nor what is no event."""
        for index, letter in enumerate(outbox):
            if index and isinstance(letter.item, Event):
                dropped = self._dropped = self._dropped or {}
                if isinstance(letter.item, EventsDropped):  # the news of a loss: what it told of is still to be told
                    dropped[letter.item.listener] = dropped.get(letter.item.listener, 0) + letter.item.count
                for subscription in letter.receivers:
                    name = subscription.outlet.name
                    dropped[name] = dropped.get(name, 0) + 1
                del outbox[index]
                return

    def _tell_losses(self) -> None:
        with self.lock:
            dropped, self._dropped = self._dropped or {}, None
        for name, count in dropped.items():
            self.tell(EventsDropped, listener=name, count=count)

    def publish(self, kind: type[Event], wall: float, **fields: Any) -> Event | None:
        draft: Any = None
        if kind in self.routes:
            draft = self.draft(kind, wall)
            for name, value in fields.items():
                setattr(draft, name, value)
            self.push(draft, kind)
        return draft  # type: ignore[no-any-return]

    def tell_news(self) -> None:
        """Tell what the machine has left, in order.

        Each item stays there until the very step in which it is told. So where a signal handler raises it is there for
        the next decision, and a handler that calls this breaker in between goes on with it and the rest.
        """
        machine, careful = self.machine, self.careful
        if careful is not None and careful.fault is not None:
            fault, add = Fault(role="clock", rule=careful, error=careful.fault), machine.open_news().append
            if careful.fault is fault.error:
                careful.fault = None
                add(fault)
        while True:  # not while there are news: a signal handler may come between that look and the next line
            news = machine.news
            if not news:
                return
            each = news[0]
            if isinstance(each, Fault):
                self.push(each, of=each)
                continue
            opening, draft = each.opening(self.opening), None
            if each.kind in self.routes:
                draft = self.draft(each.kind, each.timestamp)
                for name in each.fields:
                    setattr(draft, name, getattr(each, name))
            # Up to `push` no call, so that nobody comes in between.
            if not news or news[0] is not each:
                continue
            self.opening = opening
            if draft is None:
                del news[0]
            else:
                self.push(draft, each.kind, of=each)

    def tell(self, kind: type[Event], **fields: Any) -> Event | None:
        """Publish one event."""
        if kind not in self.routes:
            return None
        wall = self.clock.time()
        with self.lock:
            return self.publish(kind, wall, **fields)

    def tell_here(self, event: Event | None) -> None:
        """Tell those that hear in the caller's own thread what comes instead of a call: see `Listener`."""
        for subscription in self.routes.get(type(event), ()):
            subscription.take_instead(event, self)  # type: ignore[arg-type]

    def fell_back(self, error: Exception) -> None:
        """A fallback is about to run."""
        if FallbackUsed in self.routes:
            self.tell_here(self.tell(FallbackUsed, error_type=type_name(error)))

    def fault(self, role: str, rule: object, error: BaseException, kind: type[Fault] = Fault) -> None:
        """A rule of the user's raised."""
        with self.lock:
            self.push(kind(role=role, rule=rule, error=error))

    def created(self) -> None:
        """Tell that the circuit exists."""
        if CircuitCreated in self.routes:
            self.tell(CircuitCreated, **self.machine.rules.described())
            self.deliver_soon()

    def retire(self) -> None:
        """Tell that the circuit is gone; its own listeners go when they have been told."""
        self.tell(CircuitRetired)
        if self.own:
            with self.lock:
                self.push(FAREWELL)
        self.deliver_soon()

    # -- delivery -------------------------------------------------------------------------------------------------

    def deliver(self) -> Coroutine[Any, Any, None] | None:
        """Tell what is in the outbox; what is returned must be awaited (an asynchronous circuit's alone does).

        Where another thread or task is delivering already, it tells this too, so nobody waits for anybody's listeners.
        """
        if self.bus.graveyard:
            self.bus.bury()
        if self.outbox:
            claim = Claim()
            try:
                letter = self._take(claim)
                step = self.advance(claim, letter) if letter is not None else None
                if step is not None:
                    claim.loop = running_loop()
                    next(guard := self._guard(claim))
                    return self._drive(claim, step, guard)
            except BaseException:  # also what a signal handler raises, between whichever steps
                self.let_go(claim)
                raise
        return None

    async def deliver_async(self) -> None:
        """As `deliver`; the cancellation of the caller does not cut a listener short."""
        core: Teller | None = self
        while core is not None:
            later = core.deliver()
            if later is not None:
                await shielded(later)
            core = self.bus.next_stranded()

    def deliver_soon(self, *, in_loop: bool = True) -> None:
        """As `deliver`, where nothing can be awaited: an event loop, or else the circuit's next call, goes on."""
        if self.outbox:
            loop = running_loop() if in_loop else self._home()
            if loop is not None and self.awaits:
                try:
                    loop.call_soon_threadsafe(lambda: spawn(loop, self.deliver_async()))
                except RuntimeError:  # it was closed just now: the next call goes on
                    pass
                return
            claim = Claim()
            try:
                letter = self._take(claim)
                if letter is not None:
                    self.advance(claim, letter)
            finally:
                self.let_go(claim)

    def _home(self) -> Any:
        """The loop in which this circuit's listeners were last awaited, if it still runs."""
        loop = self._last_loop() if self._last_loop is not None else None
        return loop if loop is not None and loop.is_running() else None

    @property
    def awaits(self) -> bool:
        """Whether what is in the outbox cannot all be told without an event loop."""
        if not self.asynchronous:
            return False
        with self.lock:
            return any(each.needs_await(self) for letter in self.outbox for each in letter.receivers)

    @property
    def is_telling(self) -> bool:
        """Whether something is still to be told, and not just by the calling thread itself."""
        claim = self.claim
        return claim is not None and not claim.is_mine

    def _take(self, claim: Claim) -> Letter | None:
        """Take over the delivery, and the first letter; ``None``: another delivers, or nothing is left."""
        # Peeked at without the lock: whoever holds the claim looks into the outbox once more before giving it up.
        held = self.claim
        if held is not None and not held.is_void:
            return None
        with self.lock:
            if self.claim is None or self.claim.is_void:
                self.claim = claim
            return self._next(claim, None)

    def advance(self, claim: Claim, letter: Letter | None) -> tuple[Letter, Subscription] | None:
        """Deliver from that letter on, up to the next listener that must be awaited; that is given out with its letter.

        ``None``: all told. A letter leaves the outbox when all have had it, so that one who takes over from an
        interrupted delivery goes on with the next listener.
        """
        while letter is not None:
            if self._dropped:
                self._tell_losses()
            if isinstance(letter.item, Fault):
                self._report(letter.item)
            elif letter.item is FAREWELL:
                for subscription in self.own:
                    subscription.retire()
            while letter.given < len(letter.receivers):
                subscription = letter.receivers[letter.given]
                if subscription.needs_await(self):
                    return letter, subscription
                letter.given += 1
                try:
                    subscription.take(letter.item, letter.context, self)  # pyright: ignore[reportArgumentType]
                except (KeyboardInterrupt, SystemExit) as error:
                    claim.interrupt = error  # the program's, not the listener's: it goes on when all has been told
            letter = self._next(claim, letter)
        interrupt, claim.interrupt = claim.interrupt, None
        if interrupt is not None:
            raise interrupt
        return None

    def cut_short(self, claim: Direct, event: Event, error: BaseException, begun: bool) -> bool:
        """Something was raised while an event was told directly; who has not had it is told in the ordinary way.

        Whether the error is the program's: one of a single listener's is not, and of several each is caught by itself.
        """
        alone = len(claim.receivers) == 1
        given, claim.given = claim.given, 0
        if alone:
            given = int(begun)
        interrupted = not alone or not begun or isinstance(error, (KeyboardInterrupt, SystemExit))
        try:
            if not interrupted:
                claim.receivers[0].failed(event, error, self)
        finally:  # a signal handler may raise over the report: without this nobody would ever tell again
            with self.lock:
                # a listener may have forked, and this be the child: the parent tells the others
                if self.claim is claim and given < len(claim.receivers):
                    letter = Letter(event, claim.receivers)
                    letter.given = given
                    self.open_outbox().appendleft(letter)
                self.claim = WAITING if self.outbox else None
        return interrupted

    def let_go(self, claim: Claim, letter: Letter | None = None) -> None:
        """Interrupted, or closed as its event loop ended: the next call takes over, with the letter at hand first."""
        with self.lock:
            if self.claim is claim:
                if letter is not None and not letter.given and letter not in self.outbox:
                    self.open_outbox().appendleft(letter)
                self.claim = WAITING if self.outbox else None

    def _guard(self, claim: Claim) -> Generator[None, None, None]:
        """Lets go of the claim when it is dropped, even with a coroutine that never began."""
        try:
            yield
        finally:
            self.let_go(claim)

    def _next(self, claim: Claim, done: Letter | None) -> Letter | None:
        with self.lock:
            if self.claim is not claim:  # taken over
                return None
            if done is not None and self.outbox:  # a fork empties it
                self.outbox.popleft()
            if self.outbox:
                return self.outbox[0]
            self.claim = None
            return None

    async def _drive(self, claim: Claim, step: tuple[Letter, Subscription] | None, guard: Generator[None]) -> None:
        loop = running_loop()
        self._last_loop = None if loop is None else weakref.ref(loop)
        try:
            while step is not None:
                letter, subscription = step
                letter.given += 1  # only now: a task that never began leaves it to whoever takes over
                await subscription.take_async(letter.item, letter.context, self)
                step = self.advance(claim, letter)
        finally:
            guard.close()

    def _report(self, fault: Fault) -> None:
        """A rule of the user's failed."""
        what = in_words(fault.rule)
        counts = self._faults = self._faults or {}
        counts[what] = counts.get(what, 0) + 1
        self.report(fault.role, what, fault.error, counts[what])
        if self._untold:
            counts[what] += self._untold.pop(fault.role, 0)
        if not isinstance(fault, FaultOfTheCalls):
            fault.error.__traceback__ = None  # as a listener's (see `Subscription._failed`)

    def report(self, role: str, what: str, error: BaseException, seen: int, *, tell: bool = True) -> None:
        """Something plugged in has failed, for the time `seen`: the first is logged, each is told."""
        if seen == 1:
            text = "%s %s of circuit %r failed; from now on its failures are counted, not logged"
            log("ERROR", text, role, what, self.name, error=error)
        if tell:
            text = error_text(error)
            self.tell(ListenerFailed, listener=what, role=role, error_type=type_name(error), error=text, count=seen)

    def after_fork(self) -> None:
        """In the child: the other threads are gone, and what was to be told is told by the parent."""
        claim = self.claim
        if claim is not None and (not claim.is_mine or claim.loop is not None):
            self.claim = None
        elif isinstance(claim, Direct):
            self.claim = Claim()  # so that what it tells ends with the listener that it is at
        self._dropped = None
        while self.outbox:
            letter = self.outbox.popleft()
            letter.given = len(letter.receivers)  # also where the thread that forked has come half-way
