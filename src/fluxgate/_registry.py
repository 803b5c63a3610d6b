"""The circuits of a bus that are alive, by name."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from ._typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from ._core import Core


class Reference(weakref.ref[object]):
    """A weak reference to a breaker that still has its core when the breaker is gone."""

    __slots__ = ("core",)

    core: Core


class Registry:
    """Whoever changes it holds the bus's lock; looking needs none.

    A circuit costs one entry: it has the reference to its breaker itself, and few circuits share a name.
    """

    def __init__(self, dies: Callable[[Reference], None]) -> None:
        self._dies = dies  # called with a breaker's reference when that is garbage-collected
        self._named: dict[str, Core] = {}
        self._namesakes: dict[str, list[Core]] = {}
        """The others of a name."""

    def enter(self, breaker: Any, core: Core) -> None:
        """Take in a new circuit."""
        core.breaker = Reference(breaker, self._dies)
        core.breaker.core = core
        if self._named.setdefault(core.name, core) is not core:
            self._namesakes.setdefault(core.name, []).append(core)

    def strike(self, core: Core) -> bool:
        """Let one go; whether it was here."""
        held, core.breaker = core.breaker, None
        if held is None:
            return False
        # Looked for in both: where an interrupt came as it was entered it is in neither.
        if self._named.get(core.name) is core:
            del self._named[core.name]
        namesakes = self._namesakes.get(core.name)
        if namesakes is not None:
            others = [each for each in namesakes if each is not core]
            if others:
                self._namesakes[core.name] = others
            else:
                self._namesakes.pop(core.name, None)
        return True

    def __iter__(self) -> Iterator[Core]:
        namesakes = list(self._namesakes.values())
        return iter([*self._named.values(), *chain.from_iterable(namesakes)])

    def named(self, names: Iterable[str]) -> list[Core]:
        """Those of these names; without a look at the others, which may be thousands."""
        found: list[Core] = []
        for name in names:
            first = self._named.get(name)
            found += () if first is None else (first,)
            found += self._namesakes.get(name, ())
        return found
