"""The two faces of a circuit. They share one core and one call path; ``await`` is the only difference."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from functools import partial
from types import TracebackType

from . import _check
from ._acquired import AsyncCall, Call
from ._core import NO_VALUE
from ._face import Face, fallback_of
from ._functions import kind_of, refuse_coroutine
from ._stamps import Stamp
from ._template import calling
from ._typing import TYPE_CHECKING, overload
from .errors import CallNotPermittedError
from .state import State

if TYPE_CHECKING:
    from typing import Any, Literal, ParamSpec, Self, TypeVar, Unpack

    from ._protocols import Changes

    P = ParamSpec("P")
    R = TypeVar("R")
    T = TypeVar("T")
    G = TypeVar("G", bound=AsyncIterator[Any])


class CircuitBreaker(Face):
    """Protects plain functions and blocks; safe from any number of threads.

    Args:
        name: The circuit's name: the dependency that it protects. It is the `circuit_name` of every event and metric.
        window: What is remembered of the calls; ``CountWindow(100)``.
        tracker: Which outcomes are failures; ``trackers.All()``: every exception.
        tripper: When the circuit trips; half of at least 100 calls, or of at least 10 probes.
        retry: How long it stays open; ``Cooldown(60)``.
        permit: Which calls a half-open circuit admits; ``Random(0.5)``.
        slow_threshold: Seconds from which a call counts as slow; 60.
        max_half_open_calls: Probes that may be in flight at once, the next call being refused; 10.
        half_open_timeout: Seconds after which an unsettled probe gives its place back, and after which a half-open
            circuit decides on what evidence it has; 30.
        listeners: Callables that receive this circuit's events; see `fluxgate.attach`.
        bus: The event bus to belong to; the process's own.
        clock: An object with ``monotonic()`` and ``time()`` in seconds; the `time` module.

    Raises:
        TypeError, ValueError: An argument is not what it must be; the text names and quotes it.

    >>> from fluxgate import CallNotPermittedError, CircuitBreaker, CountWindow, FailureRate, MinRequests
    >>> cb = CircuitBreaker("payments", tripper=MinRequests(2) & FailureRate(0.5))
    >>> @cb
    ... def pay(amount: int) -> str:
    ...     raise ConnectionError("no route")
    >>> for _ in range(3):
    ...     try:
    ...         pay(10)
    ...     except ConnectionError as error:
    ...         print("failed:", error)
    ...     except CallNotPermittedError as error:
    ...         print("refused:", error.verdict)
    failed: no route
    failed: no route
    refused: 2 calls seen (2 needed) and failure rate 100.0 % (limit 50.0 %, 2 of 2 calls)
    """

    __slots__ = ()

    _asynchronous = False
    _protects = frozenset(("function", "generator function"))
    _other = "AsyncCircuitBreaker"

    @overload
    def __call__(self, func: Callable[P, R], /) -> Callable[P, R]: ...
    @overload
    def __call__(self, /, *, fallback: Callable[[Exception], T]) -> Callable[[Callable[P, R]], Callable[P, R | T]]: ...
    def __call__(self, func: Any = NO_VALUE, /, *, fallback: Any = None) -> Any:
        """Decorate a function: ``@cb``, or ``@cb(fallback=f)`` to answer any `Exception` with ``f(error)``.

        The signature stays, for people and type checkers. A generator function is protected for the length of its
        iteration. The wrapper's `circuit_breaker` is this breaker.

        Raises:
            TypeError: what is decorated is not a plain function or generator function, or the fallback is a coroutine
                function.
        """
        if func is NO_VALUE:
            return partial(self._decorate, fallback=fallback)
        return self._decorate(func, fallback)

    @calling("function")
    def call(self, func: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call ``func(*args, **kwargs)`` through the circuit.

        Raises:
            CallNotPermittedError: The circuit refused; `func` was not called.
            TypeError: `func` returned a coroutine, which only `AsyncCircuitBreaker` can await.

        >>> CircuitBreaker("maths").call(max, 3, 5)
        5
        """
        raise NotImplementedError

    @overload
    def call_with_fallback(
        self, func: Callable[..., R], fallback_func: Callable[[Exception], T], /, *args: Any, **kwargs: Any
    ) -> R | T: ...
    @overload
    def call_with_fallback(
        self, func: Callable[..., R], /, *args: Any, fallback_func: Callable[[Exception], T], **kwargs: Any
    ) -> R | T: ...
    def call_with_fallback(self, func: Any, /, *args: Any, fallback_func: Any = NO_VALUE, **kwargs: Any) -> Any:
        """`call`, answering any `Exception`, a refusal included, with ``fallback_func(error)``.

        >>> CircuitBreaker("maths").call_with_fallback(int, lambda error: -1, "many")
        -1
        """
        fallback_func, args = fallback_of(fallback_func, args)
        run_fallback = self._fallback(fallback_func)
        try:
            return self.call(func, *args, **kwargs)
        except Exception as error:
            return run_fallback(error)

    def _fallback(self, fallback: Callable[[Exception], Any]) -> Callable[[Exception], Any]:
        _check.fallback(fallback)
        if kind_of(fallback) != "function":
            got = f"{kind_of(fallback)} {_check.title(fallback)}"
            raise TypeError(f"CircuitBreaker needs a plain function as fallback, got the {got}")
        core = self._core

        def run_fallback(error: Exception) -> Any:
            core.fell_back(error)
            core.deliver()
            return refuse_coroutine(fallback(error), "the fallback")

        return run_fallback

    def acquire(self) -> Call:
        """Admit one call that is settled elsewhere: for streams, callbacks and protocols of one's own.

        Raises:
            CallNotPermittedError: The circuit refused.

        >>> cb = CircuitBreaker("feed")
        >>> call = cb.acquire()
        >>> call.success()
        >>> cb.info().metrics.total_count
        1
        """
        return Call(self._core, self._admit(nested=False))

    if TYPE_CHECKING:

        def __enter__(self) -> Self: ...
        def __exit__(
            self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
        ) -> Literal[False]: ...
    else:
        __enter__ = Face._enter_block
        __exit__ = Face._leave_block

    def _admit(self, *, nested: bool) -> Stamp:
        core = self._core
        stamp = core.admit(nested)
        if isinstance(stamp, CallNotPermittedError):
            try:
                core.deliver()
                raise stamp
            finally:
                del stamp
        try:
            core.deliver()
        except BaseException:
            core.abandoned(stamp, core.clock.monotonic())
            raise
        return stamp

    def reset(self) -> None:
        """Close the circuit and forget the window."""
        self._steer(State.CLOSED)

    def disable(self) -> None:
        """Let every call pass, recording nothing, until another control is called."""
        self._steer(State.DISABLED)

    def metrics_only(self) -> None:
        """Shadow mode: let every call pass, and publish `WouldOpen` where the circuit would have opened."""
        self._steer(State.METRICS_ONLY)

    def force_open(self) -> None:
        """Refuse every call until another control is called."""
        self._steer(State.FORCED_OPEN)

    def _steer(self, state: State) -> None:
        self._core.command(state)
        self._core.deliver()

    def configure(self, **changes: Unpack[Changes]) -> None:
        """Swap rules in place; the window stays, and so does a wait that is running.

        Raises:
            TypeError, ValueError: An argument is not what it must be; nothing is changed then.
        """
        self._core.configure(**changes)
        self._core.deliver()


class AsyncCircuitBreaker(Face):
    """`CircuitBreaker` for coroutine functions: the same parameters and rules, with calls and controls to be awaited.

    It is bound to no event loop: one breaker may serve any number of loops and threads.

    >>> import asyncio
    >>> async def main() -> int:
    ...     cb = AsyncCircuitBreaker("inventory")
    ...     @cb
    ...     async def stock(item: str) -> int:
    ...         return len(item)
    ...     async with cb:
    ...         return await stock("spoon")
    >>> asyncio.run(main())
    5
    """

    __slots__ = ()

    _asynchronous = True
    _protects = frozenset(("coroutine function", "async generator function"))
    _other = "CircuitBreaker"

    @overload
    def __call__(self, func: Callable[P, Coroutine[Any, Any, R]], /) -> Callable[P, Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(self, func: Callable[P, G], /) -> Callable[P, G]: ...
    @overload
    def __call__(
        self, /, *, fallback: Callable[[Exception], Awaitable[T]]
    ) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Callable[P, Coroutine[Any, Any, R | T]]]: ...
    @overload
    def __call__(
        self, /, *, fallback: Callable[[Exception], T]
    ) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Callable[P, Coroutine[Any, Any, R | T]]]: ...
    def __call__(self, func: Any = NO_VALUE, /, *, fallback: Any = None) -> Any:
        """Decorate a coroutine function: ``@cb``, or ``@cb(fallback=f)``; `f` may be plain or a coroutine function.

        Raises:
            TypeError: what is decorated is neither a coroutine function nor an async generator function.
        """
        if func is NO_VALUE:
            return partial(self._decorate, fallback=fallback)
        return self._decorate(func, fallback)

    @calling("coroutine function")
    async def call(self, func: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Await ``func(*args, **kwargs)`` through the circuit.

        Raises:
            CallNotPermittedError: The circuit refused; `func` was not called.
            TypeError: What `func` returned cannot be awaited.
        """
        raise NotImplementedError

    @overload
    async def call_with_fallback(
        self,
        func: Callable[..., Awaitable[R]],
        fallback_func: Callable[[Exception], Awaitable[T]],
        /,
        *args: Any,
        **kwargs: Any,
    ) -> R | T: ...
    @overload
    async def call_with_fallback(
        self,
        func: Callable[..., Awaitable[R]],
        fallback_func: Callable[[Exception], T],
        /,
        *args: Any,
        **kwargs: Any,
    ) -> R | T: ...
    @overload
    async def call_with_fallback(
        self,
        func: Callable[..., Awaitable[R]],
        /,
        *args: Any,
        fallback_func: Callable[[Exception], Awaitable[T]],
        **kwargs: Any,
    ) -> R | T: ...
    @overload
    async def call_with_fallback(
        self,
        func: Callable[..., Awaitable[R]],
        /,
        *args: Any,
        fallback_func: Callable[[Exception], T],
        **kwargs: Any,
    ) -> R | T: ...
    async def call_with_fallback(self, func: Any, /, *args: Any, fallback_func: Any = NO_VALUE, **kwargs: Any) -> Any:
        """`call`, answering any `Exception`, a refusal included, with ``fallback_func(error)``, awaited if need be."""
        fallback_func, args = fallback_of(fallback_func, args)
        run_fallback = self._fallback(fallback_func)
        try:
            return await self.call(func, *args, **kwargs)
        except Exception as error:
            return await run_fallback(error)

    def _fallback(self, fallback: Callable[[Exception], Any]) -> Callable[[Exception], Any]:
        _check.fallback(fallback)
        if "generator" in kind_of(fallback):
            raise TypeError(f"a fallback returns its answer, got the {kind_of(fallback)} {_check.title(fallback)}")
        core = self._core

        async def run_fallback(error: Exception) -> Any:
            core.fell_back(error)
            await core.deliver_async()
            answer = fallback(error)
            return await answer if hasattr(answer, "__await__") else answer

        return run_fallback

    async def acquire(self) -> AsyncCall:
        """Admit one call that is settled elsewhere: for streams, callbacks and protocols of one's own.

        Raises:
            CallNotPermittedError: The circuit refused.
        """
        return AsyncCall(self._core, await self._admit(nested=False))

    async def __aenter__(self) -> Self:
        """Protect a block: ``async with cb: ...``. Its exception, if any, is its outcome.

        Raises:
            CallNotPermittedError: The circuit refused; the block does not run.
        """
        return self._enter_block(self._core.lane or await self._admit(nested=True), 2)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        self._leave_block(kind, error, trace, 2)
        if self._core.outbox:
            await self._core.deliver_async()
        return False

    async def _admit(self, *, nested: bool) -> Stamp:
        core = self._core
        stamp = core.admit(nested)
        if isinstance(stamp, CallNotPermittedError):
            try:
                await core.deliver_async()
                raise stamp
            finally:
                del stamp
        try:
            await core.deliver_async()
        except BaseException:
            core.abandoned(stamp, core.clock.monotonic())
            raise
        return stamp

    async def reset(self) -> None:
        """Close the circuit and forget the window."""
        await self._steer(State.CLOSED)

    async def disable(self) -> None:
        """Let every call pass, recording nothing, until another control is called."""
        await self._steer(State.DISABLED)

    async def metrics_only(self) -> None:
        """Shadow mode: let every call pass, and publish `WouldOpen` where the circuit would have opened."""
        await self._steer(State.METRICS_ONLY)

    async def force_open(self) -> None:
        """Refuse every call until another control is called."""
        await self._steer(State.FORCED_OPEN)

    async def _steer(self, state: State) -> None:
        self._core.command(state)
        await self._core.deliver_async()

    async def configure(self, **changes: Unpack[Changes]) -> None:
        """Swap rules in place; the window stays, and so does a wait that is running.

        Raises:
            TypeError, ValueError: An argument is not what it must be; nothing is changed then.
        """
        self._core.configure(**changes)
        await self._core.deliver_async()
