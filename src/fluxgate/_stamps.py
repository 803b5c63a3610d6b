"""What marks an admitted call."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from .events import Event

if TYPE_CHECKING:
    from ._claims import Direct

Leave = Callable[[Event | None], None]
"""Tells one who surrounds a call of its end, by the event where somebody asks for it."""

NEVER = -math.inf  # one object for all: negating makes another each time


class Stamp:
    """Marks one admitted call: its generation, and when it loses its place if it is a probe."""

    __slots__ = ("call_id", "deadline", "ended", "generation", "leave")

    def __init__(self, generation: int, deadline: float | None = None) -> None:
        self.generation = generation
        self.deadline = deadline
        self.call_id: int | None = None
        self.leave: list[Leave] | None = None
        """How those who surround the call are told of its end; the last to enter leaves first."""
        self.ended: Event | None = None


class Lane(Stamp):
    """One stamp for all calls of a generation that admits all; plain successes may gather in it (see `_core`)."""

    __slots__ = ("below", "calm", "claim", "durations", "open_until", "told_until", "until")

    def __init__(self, generation: int) -> None:
        super().__init__(generation)
        self.durations: list[float] = []
        self.claim: Direct | None = None
        self.below = 0.0
        self.calm = True
        self.open_until = NEVER
        self.until = NEVER
        self.told_until = NEVER
        """The same, where somebody is to be told of each (see `_claims`)."""
