"""What kind of function this is; `inspect` is imported when first needed, since it would double our import time."""

from __future__ import annotations

from types import CoroutineType, FunctionType

from ._check import got
from ._typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any


class WrongColour(TypeError):
    """A plain function met the async breaker, or a coroutine function the sync one: no outcome of the dependency's."""


# The flags of a function's code, as in `inspect`, which is needed only where the code does not tell all: for other
# callables, and functions that may have been marked as coroutine functions.
_KINDS = {0x200: "async generator function", 0x80: "coroutine function", 0x20: "generator function"}
_ANY_KIND = sum(_KINDS)
_UNMARKED = {"__wrapped__"}


def kind_of(function: Any) -> str:
    """``function``, ``coroutine function``, ``generator function`` or ``async generator function``."""
    if isinstance(function, FunctionType) and function.__dict__.keys() <= _UNMARKED:
        return _KINDS.get(function.__code__.co_flags & _ANY_KIND, "function")
    import inspect

    for judged in (function, type(function).__call__):
        if inspect.isasyncgenfunction(judged):
            return "async generator function"
        if inspect.iscoroutinefunction(judged):
            return "coroutine function"
        if inspect.isgeneratorfunction(judged):
            return "generator function"
    return "function"


def is_async(function: Any) -> bool:
    """Whether calling it gives a coroutine: a coroutine function, or an object whose ``__call__`` is one."""
    return kind_of(function) == "coroutine function"


def refuse_coroutine(result: Any, what: str = "the function") -> Any:
    """`result`, unless it is a coroutine that nobody here would await.

    Raises:
        TypeError: it is one; it has been closed.
    """
    if isinstance(result, CoroutineType):
        result.close()
        raise WrongColour(f"{what} returned a coroutine, which is not awaited here: {result.__qualname__}")
    return result


def require_awaitable(result: Any) -> Any:
    """`result`, if it can be awaited.

    Raises:
        TypeError: it cannot.
    """
    if not hasattr(result, "__await__"):
        raise WrongColour(
            f"the function returned {got(result)}, which cannot be awaited: use CircuitBreaker for plain functions"
        )
    return result
