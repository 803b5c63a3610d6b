"""Threads, loops and child interpreters that a test starts: bounded in time, and their failures are the test's."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")

PATIENCE = 60.0  # seconds after which something hangs, on the slowest machine with other work besides


class Running:
    """Work in a thread of its own, which a deadlock cannot make the test wait for."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._work = work
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._error = error

    def done(self, timeout: float = PATIENCE) -> bool:
        """Whether it has ended by now, or within the timeout; what it raised is raised here."""
        self._thread.join(timeout)
        if self._error is not None:
            raise self._error
        return not self._thread.is_alive()


def together(*works: Callable[[], object]) -> None:
    """Run each in a thread of its own, all at once, to their ends."""
    running = [Running(work) for work in works]
    for each in running:
        assert each.done(), "a thread hangs"


def arrives(event: Event) -> bool:
    """Whether another thread sets the event."""
    return event.wait(PATIENCE)


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` that a deadlock cannot make the test wait for."""

    async def bounded() -> T:
        async with asyncio.timeout(PATIENCE):
            return await work

    return asyncio.run(bounded())


@contextmanager
def restless() -> Iterator[None]:
    """The interpreter switches between threads as often as it can, so that races show."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


class Interrupt(Exception):
    """What a signal handler raises: a soft time limit, say."""


def interrupt() -> None:
    raise Interrupt


def interrupted(work: Callable[[], object], step: int, handler: Callable[[], object] = interrupt) -> bool:
    """Run it with a signal handler that is called in the engine where it may, for the time `step`; whether it was.

    CPython runs signal handlers as a function is entered and as a built-in one returns. The collector waits: finalizers
    of what earlier steps have left are no part of the work.
    """
    left, before = step, sys.getprofile()
    collecting = gc.isenabled()
    gc.disable()

    def watch(frame: FrameType, event: str, arg: object) -> None:
        nonlocal left
        if event in ("call", "c_return") and frame.f_globals.get("__name__", "").startswith("fluxgate."):
            left -= 1
            if left == -1:
                sys.setprofile(None)
                handler()

    sys.setprofile(watch)
    try:
        work()
    except Interrupt:
        pass
    finally:
        sys.setprofile(before)
        if collecting:
            gc.enable()
    return left < 0


class Watched:
    """A lock that counts how often it is taken."""

    def __init__(self, lock: Any) -> None:
        self.lock, self.taken = lock, 0

    def __enter__(self) -> None:
        self.taken += 1
        self.lock.acquire()

    def __exit__(self, *error: object) -> None:
        self.lock.release()


def script(source: str, *arguments: str, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
    """Run a program in an interpreter of its own; it must end with 0 in time."""
    command = [sys.executable, "-c", source, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done
