"""The little that the engine asks of asyncio, which it never imports by itself: no loop runs where nobody did."""

from __future__ import annotations

import sys
from collections.abc import Awaitable

from ._typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

_spawned: set[Any] = set()  # an event loop holds its tasks weakly


def running_loop() -> Any:
    """The asyncio loop that runs in this thread, or ``None``."""
    # Another thread, a listener's first perhaps, may be in the middle of importing it: then no loop runs in this one.
    ask = getattr(sys.modules.get("asyncio"), "_get_running_loop", None)
    return None if ask is None else ask()


def spawn(loop: Any, work: Awaitable[None]) -> Any:
    """Run `work` as a task that nobody needs to hold."""
    task = loop.create_task(work)
    _spawned.add(task)
    task.add_done_callback(_spawned.discard)
    return task


async def shielded(work: Awaitable[None]) -> None:
    """Await `work` out of reach of the waiter's cancellation; plainly, where the loop is not asyncio's."""
    loop = running_loop()
    if loop is None:
        await work
    else:
        await sys.modules["asyncio"].shield(spawn(loop, work))


def being_cancelled() -> bool:
    """Whether the running task was asked to stop."""
    task = None if running_loop() is None else sys.modules["asyncio"].current_task()
    return task is not None and bool(task.cancelling())


async def outcome_in(context: Any, work: Any) -> BaseException | None:
    """Await a coroutine with another call's context variables as its own; what it raised, if it did."""
    loop = running_loop()
    if loop is None:
        return await _outcome(work)
    answer: BaseException | None = await loop.create_task(_outcome(work), context=context)
    return answer


async def _outcome(work: Any) -> BaseException | None:
    try:
        await work
    except BaseException as error:  # also those that would end the event loop, if they left the task
        return error
    return None


async def waiting_for(work: Any) -> None:
    """Any awaitable as a coroutine."""
    await work
