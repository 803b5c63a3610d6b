"""Which thread in a Slack channel tells of what."""

from threading import RLock
from typing import NamedTuple

from fluxgate._forks import BegunAnew

from ._slacktext import Card

_MOST = 10_000


class Thread(NamedTuple):
    """A message in the channel, and what it says."""

    channel: str
    number: str
    card: Card
    since: float


class Threads:
    """The threads that are not over, the latest 10,000 of them."""

    def __init__(self) -> None:
        self.after_fork()
        _all_threads.add(self)

    def after_fork(self) -> None:
        """Forget everything: a forked child leaves it to its parent, whose threads may have held the lock."""
        self._lock = RLock()
        self._known: dict[tuple[str, str], Thread] = {}

    def get(self, key: tuple[str, str]) -> Thread | None:
        """The thread, if there is one."""
        with self._lock:
            return self._known.get(key)

    def put(self, key: tuple[str, str], thread: Thread) -> None:
        """Remember it."""
        with self._lock:
            self._known[key] = thread
            while len(self._known) > _MOST:
                del self._known[next(iter(self._known))]

    def pop(self, key: tuple[str, str]) -> Thread | None:
        """Forget it."""
        with self._lock:
            return self._known.pop(key, None)


_all_threads = BegunAnew[Threads]()
