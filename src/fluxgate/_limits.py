"""The limits of a tree of rules as figures, and how those of its parts make those of the whole.

A branch is one way to trip: one part of each alternative, all parts of each conjunction. Within a branch the highest
limit of a kind has to be reached; of several branches the lowest trips first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from ._typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any, Self


class Limits(Mapping[str, float]):
    """Figures by kind of rule: immutable, hashable, picklable, and equal to a dict of the same."""

    __slots__ = ("_figures", "everywhere")

    everywhere: frozenset[str]
    """The kinds that no branch goes without."""

    def __init__(self, figures: Mapping[str, float], everywhere: Iterable[str] | None = None) -> None:
        self._figures = {kind: float(limit) for kind, limit in figures.items()}
        self.everywhere = frozenset(self._figures if everywhere is None else everywhere)

    @classmethod
    def all_of(cls, parts: Iterable[Limits]) -> Self:
        """Of parts that must all be met."""
        needed: dict[str, float] = {}
        spare: dict[str, float] = {}
        everywhere: set[str] = set()
        for part in parts:
            everywhere |= part.everywhere
            for kind, limit in part.items():
                if kind in part.everywhere:
                    needed[kind] = max(limit, needed.get(kind, limit))
                else:
                    spare[kind] = min(limit, spare.get(kind, limit))
        # What every branch of one part has, the branches of another that have it as well cannot lower.
        return cls(spare | needed, everywhere)

    @classmethod
    def any_of(cls, parts: Iterable[Limits]) -> Self:
        """Of parts of which one is enough."""
        lowest: dict[str, float] = {}
        everywhere: frozenset[str] | None = None
        for part in parts:
            everywhere = part.everywhere if everywhere is None else everywhere & part.everywhere
            for kind, limit in part.items():
                lowest[kind] = min(limit, lowest.get(kind, limit))
        return cls(lowest, everywhere)

    def __getitem__(self, kind: str) -> float:
        return self._figures[kind]

    def __iter__(self) -> Iterator[str]:
        return iter(self._figures)

    def __len__(self) -> int:
        return len(self._figures)

    def __hash__(self) -> int:
        return hash(frozenset(self._figures.items()))

    def __repr__(self) -> str:
        return repr(self._figures)

    def __reduce__(self) -> tuple[Any, ...]:
        return Limits, (self._figures, self.everywhere)


NO_LIMITS = Limits({})


def limits_of(rule: Any) -> Limits:
    """The limits of a rule; none where a rule of the user's means something else by the word."""
    limits = rule.limits
    return limits if isinstance(limits, Limits) else NO_LIMITS
