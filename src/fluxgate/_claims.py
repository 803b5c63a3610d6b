"""Who delivers what a circuit has to tell: the claims of `_teller`.

Most events go through the outbox, under a `Claim`. A plain success need not. Where everybody who listens can be called
at once, in a steady stretch, while nobody delivers and nothing waits, it is told straight from the frame of the call,
under the `Direct` claim of the lane: without the lock, and without the outbox (the path is in `_template`).
"""

from __future__ import annotations

import sys
import weakref
from threading import get_ident

from ._functions import refuse_coroutine
from ._stamps import NEVER
from ._typing import TYPE_CHECKING
from .events import CallSucceeded, Event

if TYPE_CHECKING:
    from typing import Any

    from ._subscription import Subscription
    from ._teller import Teller

WRAPPERS = "<fluxgate breaker around a "
"""So the file name of a wrapper's code begins."""


class Claim:
    """Held by whoever delivers."""

    __slots__ = ("interrupt", "loop", "thread")

    def __init__(self) -> None:
        self.thread = get_ident()
        self.loop: Any = None
        self.interrupt: BaseException | None = None

    @property
    def is_mine(self) -> bool:
        """Whether the calling thread holds it."""
        return self.thread == get_ident()

    @property
    def at(self) -> Subscription | None:
        """Whose listener is being called, where that is noted here and not with the subscription."""
        return None

    @property
    def is_void(self) -> bool:
        """Whether its event loop was closed before it came to an end."""
        return self.loop is not None and self.loop.is_closed()


class _Waiting(Claim):
    """Stands where nobody delivers and something waits: whoever comes may take over."""

    __slots__ = ()

    @property
    def is_mine(self) -> bool:
        return False

    @property
    def is_void(self) -> bool:
        return True


WAITING = _Waiting()


class Direct(Claim):
    """Held by whoever tells `receivers` from the frame of a call; one serves all calls of a lane in turn."""

    __slots__ = ("_core", "given", "receivers", "state", "tell", "until", "wall")

    def __init__(self, receivers: tuple[Subscription, ...], core: Teller) -> None:
        super().__init__()
        self.receivers = receivers
        self.state = core.machine.state
        self.wall = 0.0
        """Unix time less monotonic time, in seconds: good for as long as the lane is open."""
        self.until = NEVER
        """Until when an event may be told so; ``NEVER`` while the lane is closed."""
        self.given = 0
        """How many of several have had the event at hand."""
        self.tell = receivers[0].call if len(receivers) == 1 else self._tell_each
        self._core = weakref.ref(core)  # which holds this

    @property
    def is_mine(self) -> bool:
        # Asked so seldom that the stack has to answer: noting the thread would cost each call.
        frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
        while frame is not None:
            if frame.f_code.co_filename.startswith(WRAPPERS):
                names = frame.f_locals
                # it has taken the claim when the event is one
                if names.get("_claim") is self and names.get("_event").__class__ is CallSucceeded:
                    return True
            frame = frame.f_back  # type: ignore[assignment]
        return False

    @property
    def at(self) -> Subscription:
        return self.receivers[self.given - 1]

    def _tell_each(self, event: Event) -> None:
        core = self._core()
        interrupt: BaseException | None = None
        for subscription in self.receivers:
            if core is None or core.claim is not self:
                break  # a listener has forked, and this is the child: the parent tells the others
            self.given += 1  # with no call in between: whom a signal handler keeps from it is told later
            if subscription.active:
                try:
                    answer = subscription.call(event)
                    if answer is not None:
                        refuse_coroutine(answer, "listener")
                except (KeyboardInterrupt, SystemExit) as error:
                    interrupt = error
                except BaseException as error:
                    subscription.failed(event, error, core)
        if interrupt is not None:
            raise interrupt
        self.given = 0


class _Silent(Direct):
    """That of a lane whose successes nobody hears, or not all who hear can be called at once."""

    __slots__ = ()

    def __init__(self) -> None:
        self.until = NEVER


SILENT = _Silent()
