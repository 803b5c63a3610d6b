"""Argument checks: each returns the accepted value, or says what it got and what it wants."""

from __future__ import annotations

import math

from ._typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any


def got(value: Any) -> str:
    """How an error quotes a wrong value: its repr, cut short, and its type where that is the point."""
    try:
        text = repr(value)
    except Exception:  # a broken __repr__ must not hide the mistake that is being reported
        text = "an object whose repr fails"
    return f"{text[:200]} ({type(value).__name__})"


def number(
    value: Any,
    what: str,
    *,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    finite: bool = True,
) -> float:
    """A real number in range; bool, NaN and (unless allowed) infinity are refused.

    Raises:
        TypeError: not a real number.
        ValueError: NaN, infinite or out of range.
    """
    wrong: type[Exception] = TypeError
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            real = float(value)
        except OverflowError:
            real = math.inf
        if not (
            math.isnan(real)
            or (finite and math.isinf(real))
            or (above is not None and real <= above)
            or (at_least is not None and real < at_least)
            or (at_most is not None and real > at_most)
        ):
            return real
        wrong = ValueError
    bounds = [
        f"{word} {bound:g}"
        for word, bound in (("above", above), ("at least", at_least), ("at most", at_most))
        if bound is not None
    ]
    wanted = " and ".join(["a finite number" if finite else "a number", *bounds])
    raise wrong(f"{what} must be {wanted}, got {got(value)}")


def whole(value: Any, what: str, *, at_least: int = 1) -> int:
    """A whole number from `at_least` up; bool is refused.

    Raises:
        TypeError: not an int.
        ValueError: too small.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} must be a whole number of at least {at_least}, got {got(value)}")
    if value < at_least:
        raise ValueError(f"{what} must be a whole number of at least {at_least}, got {got(value)}")
    return value


def name(value: Any, what: str) -> str:
    """A text that is not blank.

    Raises:
        TypeError: not a str.
        ValueError: empty or white space alone.
    """
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a str, got {got(value)}")
    if not value.strip():
        raise ValueError(f"{what} must not be empty, got {value!r}")
    return value


def function(value: Any, what: str) -> Any:
    """Something that can be called.

    Raises:
        TypeError: it cannot.
    """
    if not callable(value):
        raise TypeError(f"{what} must be callable, got {got(value)}")
    return value


def instance(value: Any, what: str, wanted: str) -> Any:
    """A thing, where its class is the usual slip: ``tripper=FailureRate`` for ``tripper=FailureRate(0.5)``.

    Raises:
        TypeError: a class was passed.
    """
    if isinstance(value, type):
        raise TypeError(
            f"{what} must be {wanted}, got the class {value.__name__}: pass an instance, {value.__name__}(...)"
        )
    return value


def several(value: Any, what: str) -> tuple[Any, ...]:
    """The items of an iterable.

    Raises:
        TypeError: it is not one; a single callable is the usual slip.
    """
    try:
        return tuple(value)
    except TypeError:
        raise TypeError(f"{what} must be an iterable, such as a list of one, got {got(value)}") from None


def title(function: Any) -> str:
    """How an error names a function."""
    return getattr(function, "__qualname__", None) or got(function)


def fallback(value: Any) -> None:
    """Something that answers in a function's place.

    Raises:
        TypeError: it cannot be called, or it is a class, which would take the exception for its first argument.
    """
    if isinstance(value, type):
        raise TypeError(f"fallback must be a function of the exception, got the class {value.__name__}")
    if not callable(value):
        raise TypeError(f"fallback must be a function of the exception, got {got(value)}")
