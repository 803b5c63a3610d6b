"""What marks an admitted call."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from ._typing import TYPE_CHECKING
from .events import Event

if TYPE_CHECKING:
    from ._claims import Direct
    from ._news import Cause
    from ._subscription import Subscription

Leave = Callable[[Event | None], None]
"""Tells one who surrounds a call of its end, by the event where somebody asks for it."""

NEVER = -math.inf  # one object for all: negating makes another each time
_NONE_YET: list[float] = []  # for all lanes: it is never written to


class Stamp:
    """Marks one admitted call: its generation, and when it loses its place if it is a probe."""

    __slots__ = ("below", "call_id", "deadline", "ended", "generation", "leave")

    def __init__(self, generation: int, deadline: float | None = None) -> None:
        self.generation = generation
        self.deadline = deadline
        self.below = NEVER
        """Seconds below which its success is plain; of one by itself none is."""
        self.call_id: int | None = None
        self.leave: list[Leave] | None = None
        """How those who surround the call are told of its end; the last to enter leaves first."""
        self.ended: Event | None = None


class Lane(Stamp):
    """One stamp for all calls of a generation that admits all; plain outcomes may gather in it (see `_fast`)."""

    __slots__ = (
        "calm",
        "cause",
        "claim",
        "durations",
        "failures_to",
        "heard",
        "open_until",
        "taken",
        "until",
    )

    def __init__(self, generation: int, gathering: int | None, claim: Direct) -> None:
        super().__init__(generation)
        self.durations: list[float] | deque[float] = [] if gathering is None else deque(maxlen=gathering)
        """All of them, or the last."""
        self.taken: list[float] = _NONE_YET
        """What was taken out of it, until it is recorded."""
        self.claim = claim
        """Under which plain successes are told, where all who hear them can be called at once."""
        self.cause: Cause | None = None
        """Of the last failure in it, until that is taken."""
        self.heard = False
        self.failures_to: tuple[Subscription, ...] = ()
        """Who is told of failures, where all who hear them can be called at once."""
        self.calm = True
        self.open_until = NEVER
        """Until when it takes outcomes while it is open (monotonic)."""
        self.until = NEVER
        """Until when it takes plain successes that nobody hears; ``NEVER`` while it is closed."""

    def take(self) -> list[float]:
        """What has gathered, each outcome once; or what somebody has taken and was kept from recording.

        In place, so that one which a tracer has stopped short of its append is taken the next time; and in one line
        without a call, in which nobody comes in between: no other thread, also with a tracer, and no signal handler.
        """
        if not self.taken:
            self.taken = [*self.durations]; self.durations *= 0  # noqa: E702  # fmt: skip
        return self.taken

    def close(self) -> None:
        """Let it take none."""
        self.until = self.claim.until = NEVER
