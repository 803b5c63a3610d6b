"""What lives through a fork: the thread that held a lock is not in the child, so nobody would release it there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from threading import get_ident
from weakref import WeakSet

from ._typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any, TypeVar

    M = TypeVar("M")


class _Members(Iterable["M"]):  # in quotes, which only type checkers look into
    """Objects of one kind, held weakly."""

    def __init__(self, **handlers: Any) -> None:
        self._members: WeakSet[Any] = WeakSet()
        if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows has no fork
            os.register_at_fork(**handlers)

    def add(self, member: M) -> None:
        """Take one in."""
        self._members.add(member)

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[M]:
        while True:
            try:
                return iter(list(self._members))
            except RuntimeError:  # another thread has added one meanwhile
                continue


class BegunAnew(_Members["M"]):
    """Each member's ``after_fork()`` is called in the child: it begins anew, with locks that nobody holds."""

    def __init__(self) -> None:
        super().__init__(after_in_child=self._after)

    def _after(self) -> None:
        member: Any
        for member in self:
            member.after_fork()


class KeptWhole(_Members["M"]):
    """Each member holds its locks while the process forks: from ``before_fork()`` to ``after_fork(child=...)``.

    So the child finds it whole. All are locked in one order, whichever thread forks.
    """

    def __init__(self) -> None:
        self._forking: dict[int, list[Any]] = {}  # by thread: several may fork at the same moment
        super().__init__(
            before=self._before,
            after_in_parent=lambda: self._after(child=False),
            after_in_child=lambda: self._after(child=True),
        )

    def _before(self) -> None:
        forking = self._forking[get_ident()] = sorted(self, key=id)
        for member in forking:
            member.before_fork()

    def _after(self, *, child: bool) -> None:
        for member in self._forking.pop(get_ident(), ()):
            member.after_fork(child=child)
