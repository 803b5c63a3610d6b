"""Calls that are admitted in one place and settled in another."""

from __future__ import annotations

from types import TracebackType

from . import _check
from ._core import NO_VALUE, Core
from ._stamps import Stamp
from ._typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any, Literal, Self


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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
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
