"""Trackers decide whether an outcome is a failure.

A tracker judges one of two domains: the exceptions that calls raise, or the values that they return
(`Returned` alone). In a combination each part is asked in its own domain only and passed over in the
other, so ``TypeOf(OSError) | Returned(is_5xx)`` and ``(All() | Returned(is_5xx)) & ~TypeOf(KeyError)``
mean what they say. What no tracker judges is not a failure: an exception is then ignored, a value is a
success.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from . import _check
from ._typing import TYPE_CHECKING, final, when_asked_for
from .errors import CallNotPermittedError

if TYPE_CHECKING:
    from typing import Any

    from ._protocols import TrackerLike
else:
    __getattr__, __dir__ = when_asked_for(__name__, "TrackerLike")

__all__ = ["All", "Custom", "Returned", "Tracker", "TrackerLike", "TypeOf"]


class Tracker:
    """Base of the trackers; adds ``&``, ``|`` and ``~``.

    A subclass defines ``__call__(error)`` and nothing else.
    """

    judges_errors: bool = True
    judges_values: bool = False
    names_rejections: bool = False
    """Whether it names `CallNotPermittedError` on purpose. The refusal of a nested breaker says nothing
    about this circuit's dependency, so it is ignored unless a tracker names it."""

    def __call__(self, error: Exception, /) -> bool:
        """Whether the exception is a failure."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(error)")

    def judge_value(self, value: Any, /) -> bool:
        """Whether a returned value is a failure."""
        return False

    def __bool__(self) -> bool:
        raise TypeError(
            f"{self!r} has no truth value: combine trackers with &, | and ~, not with `and`, `or` and `not`"
        )

    def __and__(self, other: TrackerLike) -> Tracker:
        return _AllOf((self, as_tracker(other, "the right side of &")))

    def __rand__(self, other: TrackerLike) -> Tracker:
        return _AllOf((as_tracker(other, "the left side of &"), self))

    def __or__(self, other: TrackerLike) -> Tracker:
        return _AnyOf((self, as_tracker(other, "the right side of |")))

    def __ror__(self, other: TrackerLike) -> Tracker:
        return _AnyOf((as_tracker(other, "the left side of |"), self))

    def __invert__(self) -> Tracker:
        return _Not(self)


@final
class All(Tracker):
    """Every exception is a failure (but the refusals of nested breakers; see `TypeOf`).

    >>> All()(ValueError())
    True
    """

    def __call__(self, error: Exception, /) -> bool:
        return True

    def __repr__(self) -> str:
        return "All()"


@final
class TypeOf(Tracker):
    """Exceptions of these types, and of their subclasses, are failures.

    Naming `CallNotPermittedError` among them also counts the refusals of nested breakers.

    Raises:
        TypeError: no type, or something that is not an exception class.

    >>> tracker = TypeOf(ConnectionError, TimeoutError)
    >>> tracker(ConnectionResetError()), tracker(ValueError())
    (True, False)
    """

    def __init__(self, *types: type[BaseException]) -> None:
        if not types:
            raise TypeError("TypeOf needs at least one exception class, got none")
        for each in types:
            if not _is_exception_class(each):
                raise TypeError(f"TypeOf takes exception classes, got {_check.got(each)}")
            if not issubclass(each, Exception) and each not in (BaseException, BaseExceptionGroup):
                raise TypeError(
                    f"TypeOf({each.__name__}) would never match: {each.__name__} ends a call without an outcome"
                )
        self.types = types
        self.names_rejections = any(issubclass(each, CallNotPermittedError) for each in types)

    def __call__(self, error: Exception, /) -> bool:
        return isinstance(error, self.types)

    def __repr__(self) -> str:
        return f"TypeOf({', '.join(each.__name__ for each in self.types)})"


@final
class Custom(Tracker):
    """Exceptions for which the predicate answers true are failures.

    Raises:
        TypeError: the predicate cannot be called.

    >>> server_fault = Custom(lambda error: getattr(error, "status", 0) >= 500)
    >>> server_fault(ValueError())
    False
    """

    def __init__(self, predicate: Callable[[Exception], bool]) -> None:
        self.predicate: Callable[[Exception], bool] = _check.function(predicate, "Custom's predicate")

    def __call__(self, error: Exception, /) -> bool:
        return bool(self.predicate(error))

    def __repr__(self) -> str:
        return f"Custom({_name_of(self.predicate)})"


@final
class Returned(Tracker):
    """Returned values for which the predicate answers true are failures; exceptions are left to the others.

    Raises:
        TypeError: the predicate cannot be called.

    >>> tracker = All() | Returned(lambda response: response["status"] >= 500)
    >>> tracker.judge_value({"status": 503}), tracker.judge_value({"status": 200})
    (True, False)
    """

    judges_errors = False
    judges_values = True

    def __init__(self, predicate: Callable[[Any], bool]) -> None:
        self.predicate: Callable[[Any], bool] = _check.function(predicate, "Returned's predicate")

    def __call__(self, error: Exception, /) -> bool:
        return False

    def judge_value(self, value: Any, /) -> bool:
        return bool(self.predicate(value))

    def __repr__(self) -> str:
        return f"Returned({_name_of(self.predicate)})"


@final
class _Plain(Tracker):
    """A plain callable in a tracker's clothes."""

    def __init__(self, judge: TrackerLike) -> None:
        self.judge = judge

    def __call__(self, error: Exception, /) -> bool:
        return bool(self.judge(error))

    def __repr__(self) -> str:
        return _name_of(self.judge)


class _Joined(Tracker):
    symbol: str
    parts: tuple[Tracker, ...]
    decide: Callable[[Iterable[object]], bool]

    def __init__(self, parts: tuple[Tracker, ...]) -> None:
        self.parts = parts
        self.judges_errors = any(part.judges_errors for part in parts)
        self.judges_values = any(part.judges_values for part in parts)
        self.names_rejections = any(part.names_rejections for part in parts)

    def __call__(self, error: Exception, /) -> bool:
        return self.judges_errors and self.decide(part(error) for part in self.parts if part.judges_errors)

    def judge_value(self, value: Any, /) -> bool:
        return self.judges_values and self.decide(part.judge_value(value) for part in self.parts if part.judges_values)

    def __repr__(self) -> str:
        return f"({f' {self.symbol} '.join(map(repr, self.parts))})"


@final
class _AllOf(_Joined):
    symbol = "&"
    decide = staticmethod(all)


@final
class _AnyOf(_Joined):
    symbol = "|"
    decide = staticmethod(any)


@final
class _Not(Tracker):
    def __init__(self, part: Tracker) -> None:
        self.part = part
        self.judges_errors = part.judges_errors
        self.judges_values = part.judges_values
        self.names_rejections = part.names_rejections

    def __call__(self, error: Exception, /) -> bool:
        return self.judges_errors and not self.part(error)

    def judge_value(self, value: Any, /) -> bool:
        return self.judges_values and not self.part.judge_value(value)

    def __repr__(self) -> str:
        return f"~{self.part!r}"


def as_tracker(value: Any, what: str) -> Tracker:
    """`value` as a `Tracker`, a plain callable being wrapped.

    Raises:
        TypeError: a class, or something that cannot be called.
    """
    if _is_exception_class(value):
        raise TypeError(
            f"{what} must be a tracker, got the exception class {value.__name__}: pass TypeOf({value.__name__})"
        )
    _check.instance(value, what, "a tracker")
    if isinstance(value, Tracker):
        return value
    return _Plain(_check.function(value, what))


def _is_exception_class(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseException)


def _name_of(function: Any) -> str:
    return getattr(function, "__qualname__", None) or repr(function)
