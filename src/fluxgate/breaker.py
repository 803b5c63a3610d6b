"""The two faces of a circuit. They share one core and one call path; ``await`` is the only difference."""

import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from types import TracebackType
from typing import Any, Literal, ParamSpec, Self, TypeVar, overload

from . import _check
from ._clock import Clock, as_clock
from ._core import NO_VALUE, CircuitBreakerInfo, Core, Lane
from ._functions import kind_of, refuse_coroutine
from ._machine import Stamp
from ._rules import DEFAULT_RULES, amend, given
from ._template import calling, fall_back, protect
from .bus import Bus, Delivery, Listener, Subscription, as_bus
from .errors import CallNotPermittedError
from .events import Event
from .permits import PermitLike
from .retries import RetryLike
from .state import State
from .trackers import TrackerLike
from .trippers import TripperLike
from .windows import Window

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
Y = TypeVar("Y")
S = TypeVar("S")


class _Breaker:
    """What both faces have: everything that does not wait."""

    __slots__ = ("__weakref__", "_core")

    _asynchronous: bool
    _protects: frozenset[str]
    _other: str

    def __init__(
        self,
        name: str,
        *,
        window: Window | None = None,
        tracker: TrackerLike | None = None,
        tripper: TripperLike | None = None,
        retry: RetryLike | None = None,
        permit: PermitLike | None = None,
        slow_threshold: float = 60.0,
        max_half_open_calls: int = 10,
        half_open_timeout: float = 30.0,
        listeners: Iterable[Listener] = (),
        bus: Bus | None = None,
        clock: Clock | None = None,
    ) -> None:
        _check.name(name, "name")
        rules = amend(
            DEFAULT_RULES,
            **given(window=window, tracker=tracker, tripper=tripper, retry=retry, permit=permit),
            slow_threshold=slow_threshold,
            max_half_open_calls=max_half_open_calls,
            half_open_timeout=half_open_timeout,
        )
        listeners = _check.several(listeners, "listeners")
        self._core = Core(name, rules, as_clock(clock), as_bus(bus), asynchronous=self._asynchronous)
        for listener in listeners:
            self.attach(listener)
        self._core.bus.register(self, self._core)
        self._core.created()

    @property
    def name(self) -> str:
        """The circuit's name."""
        return self._core.name

    @property
    def state(self) -> State:
        """The state as the last call left it: an open circuit stays so until a call finds its wait over."""
        return self._core.machine.state

    def info(self) -> CircuitBreakerInfo:
        """The circuit at this moment, as an immutable value.

        >>> from fluxgate import CircuitBreaker
        >>> info = CircuitBreaker("payments").info()
        >>> info.state == "closed", info.metrics.total_count, info.metrics.failure_rate
        (True, 0, None)
        """
        return self._core.info()

    def attach(
        self, listener: Listener, *event_types: type[Event], delivery: Delivery = "inline", queue_size: int = 10_000
    ) -> Subscription:
        """Let `listener` observe this circuit; see `fluxgate.attach` for the arguments.

        Raises:
            TypeError, ValueError: An argument is not what it must be.
        """
        return self._core.bus.attach_to(self._core, listener, event_types, delivery, queue_size)

    def retire(self) -> None:
        """Let the circuit go: listeners are told by `CircuitRetired`, and nothing of it is published any more.

        A circuit that nobody references retires by itself. Calls through a retired breaker still work.
        """
        self._core.bus.retire(self._core)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} {self.state}>"

    def _decorate(self, func: Any, fallback: Callable[[Exception], Any] | None) -> Any:
        if isinstance(func, (staticmethod, classmethod)):
            return type(func)(self._decorate(func.__func__, fallback))
        if isinstance(func, type) or not callable(func):
            raise TypeError(f"{type(self).__name__} protects functions, got {_check.got(func)}")
        kind = kind_of(func)
        if kind not in self._protects:
            raise TypeError(f"{type(self).__name__} cannot protect the {kind} {_check.title(func)}: use {self._other}")
        if fallback is not None and "generator" in kind:
            raise TypeError(f"a {kind} cannot have a fallback, since it may fail half-way: {_check.title(func)}")
        protected = protect(func, kind, self._core)
        if fallback is not None:
            protected = fall_back(protected, kind, self._fallback(fallback))
        protected.circuit_breaker = self
        return protected

    def _fallback(self, fallback: Callable[[Exception], Any]) -> Callable[[Exception], Any]:
        raise NotImplementedError

    def _enter_block(self, stamp: Stamp | Lane) -> None:
        # A block is left from the frame that entered it, in whatever thread or context that frame goes on: the frame
        # tells concurrent blocks of one breaker apart. (Frames are numbered by id, since holding one holds its locals.)
        core = self._core
        with core.lock:
            core.with_blocks.append((id(sys._getframe(2)), stamp, core.clock.monotonic()))

    def _leave_block(self) -> tuple[Stamp | Lane, float]:
        core = self._core
        frame = id(sys._getframe(2))
        with core.lock:
            blocks = core.with_blocks
            # an ExitStack enters from one frame and leaves from another: then it is the last one
            index = next((index for index in reversed(range(len(blocks))) if blocks[index][0] == frame), -1)
            _, stamp, started = blocks.pop(index)
        return stamp, started


class CircuitBreaker(_Breaker):
    """Protects plain functions and blocks; safe from any number of threads.

    Args:
        name: The circuit's name: the dependency that it protects. It is the `circuit_name` of every event and metric.
        window: What is remembered of the calls; ``CountWindow(100)``.
        tracker: Which outcomes are failures; ``trackers.All()``: every exception.
        tripper: When the circuit trips; half of at least 100 calls, or of at least 10 probes.
        retry: How long it stays open; ``Cooldown(60)``.
        permit: Which calls a half-open circuit admits; ``Random(0.5)``.
        slow_threshold: Seconds from which a call counts as slow.
        max_half_open_calls: Probes that may be in flight at once; the next call is refused.
        half_open_timeout: Seconds after which an unsettled probe gives its place back, and after which a half-open
            circuit decides on what evidence it has.
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
            TypeError: what is decorated is not a plain function or generator function, or the fallback is a coroutine function.
        """
        if func is NO_VALUE:
            return lambda func: self._decorate(func, fallback)
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
        fallback_func, args = _fallback_of(fallback_func, args)
        run_fallback = self._fallback(fallback_func)
        try:
            return self.call(func, *args, **kwargs)
        except Exception as error:
            return run_fallback(error)

    def _fallback(self, fallback: Callable[[Exception], Any]) -> Callable[[Exception], Any]:
        _check.function(_check.instance(fallback, "fallback", "a function"), "fallback")
        if kind_of(fallback) != "function":
            raise TypeError(f"CircuitBreaker needs a plain function as fallback, got the {kind_of(fallback)} {_check.title(fallback)}")
        core = self._core

        def run_fallback(error: Exception) -> Any:
            core.fell_back(error)
            core.deliver()
            return refuse_coroutine(fallback(error), "the fallback")

        return run_fallback

    def acquire(self) -> "Call":
        """Admit one call that is settled elsewhere: for streams, callbacks and protocols of one's own.

        Raises:
            CallNotPermittedError: The circuit refused.

        >>> cb = CircuitBreaker("feed")
        >>> call = cb.acquire()
        >>> call.success()
        >>> cb.info().metrics.total_count
        1
        """
        return Call(self._core, self._admit())

    def __enter__(self) -> Self:
        """Protect a block: ``with cb: ...``. Its exception, if any, is its outcome.

        Raises:
            CallNotPermittedError: The circuit refused; the block does not run.
        """
        self._enter_block(self._admit())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> Literal[False]:
        _settle(self._core, *self._leave_block(), error)
        self._core.deliver()
        return False

    def _admit(self) -> Stamp:
        stamp = self._core.admit()
        self._core.deliver()
        if isinstance(stamp, CallNotPermittedError):
            try:
                raise stamp
            finally:
                del stamp
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

    def configure(
        self,
        *,
        tracker: TrackerLike | None = None,
        tripper: TripperLike | None = None,
        retry: RetryLike | None = None,
        permit: PermitLike | None = None,
        slow_threshold: float | None = None,
        max_half_open_calls: int | None = None,
        half_open_timeout: float | None = None,
    ) -> None:
        """Swap rules in place; the window stays, and so does a wait that is running.

        Raises:
            TypeError, ValueError: An argument is not what it must be; nothing is changed then.
        """
        self._core.configure(
            **given(
                tracker=tracker,
                tripper=tripper,
                retry=retry,
                permit=permit,
                slow_threshold=slow_threshold,
                max_half_open_calls=max_half_open_calls,
                half_open_timeout=half_open_timeout,
            )
        )
        self._core.deliver()


class AsyncCircuitBreaker(_Breaker):
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
    def __call__(self, func: Callable[P, AsyncGenerator[Y, S]], /) -> Callable[P, AsyncGenerator[Y, S]]: ...
    @overload
    def __call__(self, func: Callable[P, AsyncIterator[Y]], /) -> Callable[P, AsyncIterator[Y]]: ...
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
            return lambda func: self._decorate(func, fallback)
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
        self, func: Callable[..., Awaitable[R]], fallback_func: Callable[[Exception], Awaitable[T]], /, *args: Any, **kwargs: Any
    ) -> R | T: ...
    @overload
    async def call_with_fallback(
        self, func: Callable[..., Awaitable[R]], fallback_func: Callable[[Exception], T], /, *args: Any, **kwargs: Any
    ) -> R | T: ...
    @overload
    async def call_with_fallback(
        self, func: Callable[..., Awaitable[R]], /, *args: Any, fallback_func: Callable[[Exception], Awaitable[T]], **kwargs: Any
    ) -> R | T: ...
    @overload
    async def call_with_fallback(
        self, func: Callable[..., Awaitable[R]], /, *args: Any, fallback_func: Callable[[Exception], T], **kwargs: Any
    ) -> R | T: ...
    async def call_with_fallback(self, func: Any, /, *args: Any, fallback_func: Any = NO_VALUE, **kwargs: Any) -> Any:
        """`call`, answering any `Exception`, a refusal included, with ``fallback_func(error)``, awaited if need be."""
        fallback_func, args = _fallback_of(fallback_func, args)
        run_fallback = self._fallback(fallback_func)
        try:
            return await self.call(func, *args, **kwargs)
        except Exception as error:
            return await run_fallback(error)

    def _fallback(self, fallback: Callable[[Exception], Any]) -> Callable[[Exception], Any]:
        _check.function(_check.instance(fallback, "fallback", "a function"), "fallback")
        if "generator" in kind_of(fallback):
            raise TypeError(f"a fallback returns its answer, got the {kind_of(fallback)} {_check.title(fallback)}")
        core = self._core

        async def run_fallback(error: Exception) -> Any:
            core.fell_back(error)
            await core.deliver_async()
            answer = fallback(error)
            return await answer if hasattr(answer, "__await__") else answer

        return run_fallback

    async def acquire(self) -> "AsyncCall":
        """Admit one call that is settled elsewhere: for streams, callbacks and protocols of one's own.

        Raises:
            CallNotPermittedError: The circuit refused.
        """
        return AsyncCall(self._core, await self._admit())

    async def __aenter__(self) -> Self:
        """Protect a block: ``async with cb: ...``. Its exception, if any, is its outcome.

        Raises:
            CallNotPermittedError: The circuit refused; the block does not run.
        """
        self._enter_block(await self._admit())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        _settle(self._core, *self._leave_block(), error)
        await self._core.deliver_async()
        return False

    async def _admit(self) -> Stamp:
        stamp = self._core.admit()
        await self._core.deliver_async()
        if isinstance(stamp, CallNotPermittedError):
            try:
                raise stamp
            finally:
                del stamp
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

    async def configure(
        self,
        *,
        tracker: TrackerLike | None = None,
        tripper: TripperLike | None = None,
        retry: RetryLike | None = None,
        permit: PermitLike | None = None,
        slow_threshold: float | None = None,
        max_half_open_calls: int | None = None,
        half_open_timeout: float | None = None,
    ) -> None:
        """Swap rules in place; the window stays, and so does a wait that is running.

        Raises:
            TypeError, ValueError: An argument is not what it must be; nothing is changed then.
        """
        self._core.configure(
            **given(
                tracker=tracker,
                tripper=tripper,
                retry=retry,
                permit=permit,
                slow_threshold=slow_threshold,
                max_half_open_calls=max_half_open_calls,
                half_open_timeout=half_open_timeout,
            )
        )
        await self._core.deliver_async()


class _Acquired:
    """An admitted call, to be settled once; whoever comes later changes nothing."""

    __slots__ = ("_core", "_open", "_stamp", "_started")

    def __init__(self, core: Core, stamp: Stamp) -> None:
        self._core = core
        self._stamp = stamp
        self._started = core.clock.monotonic()
        self._open = True

    def _first(self) -> bool:
        with self._core.lock:
            first, self._open = self._open, False
            return first

    def _succeed(self, value: Any) -> None:
        if self._first():
            self._core.returned(self._stamp, self._started, self._core.clock.monotonic(), value)

    def _fail(self, error: BaseException) -> None:
        if not isinstance(error, BaseException):
            raise TypeError(f"failure(error) takes the exception, got {_check.got(error)}")
        if self._first():
            self._core.raised(self._stamp, self._started, error)

    def _cancel(self) -> None:
        if self._first():
            self._core.abandoned(self._stamp, self._started)


class Call(_Acquired):
    """One admitted call of a `CircuitBreaker`; settle it once, by hand or as ``with cb.acquire(): ...``.

    The first settlement counts and later ones do nothing, so that `on_error` and `on_close` may both settle it.
    """

    __slots__ = ()

    def success(self, value: Any = NO_VALUE) -> None:
        """It succeeded; `value`, where given, is judged by a `Returned` tracker."""
        self._succeed(value)
        self._core.deliver()

    def failure(self, error: BaseException) -> None:
        """It ended with this exception, which the tracker judges.

        Raises:
            TypeError: `error` is not an exception.
        """
        self._fail(error)
        self._core.deliver()

    def cancel(self) -> None:
        """It ended without an outcome: its place is given back and nothing is decided."""
        self._cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> Literal[False]:
        if error is None:
            self.success()
        else:
            self.failure(error)
        return False


class AsyncCall(_Acquired):
    """`Call` of an `AsyncCircuitBreaker`: `success` and `failure` are awaited."""

    __slots__ = ()

    async def success(self, value: Any = NO_VALUE) -> None:
        """It succeeded; `value`, where given, is judged by a `Returned` tracker."""
        self._succeed(value)
        await self._core.deliver_async()

    async def failure(self, error: BaseException) -> None:
        """It ended with this exception, which the tracker judges.

        Raises:
            TypeError: `error` is not an exception.
        """
        self._fail(error)
        await self._core.deliver_async()

    async def cancel(self) -> None:
        """It ended without an outcome: its place is given back and nothing is decided."""
        self._cancel()
        await self._core.deliver_async()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        if error is None:
            await self.success()
        else:
            await self.failure(error)
        return False


def _settle(core: Core, stamp: Stamp | Lane, started: float, error: BaseException | None) -> None:
    if error is None:
        core.returned(stamp, started, core.clock.monotonic(), NO_VALUE)
    else:
        core.raised(stamp, started, error)


def _fallback_of(by_keyword: Any, args: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    if by_keyword is not NO_VALUE:
        return by_keyword, args
    if not args:
        raise TypeError("call_with_fallback needs a fallback: call_with_fallback(func, fallback_func, *args) or fallback_func=...")
    return args[0], args[1:]
