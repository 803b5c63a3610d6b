"""How errors become text: redacted by the user's function, then cut; never kept as live objects."""

from __future__ import annotations

from collections.abc import Callable

from ._typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    from typing import Any, TypeVar

    _F = TypeVar("_F", bound=Callable[[str], str])

_SHOWN = 200
_READ = 4096  # of a huge text, what the user's function is given


class Redactor:
    """The user's function through which every error text passes.

    Messages of exceptions carry URLs, tokens and names. Register one function, and events, logs, traces and metrics
    show only what it returns, and so do the tracebacks of what is plugged in and fails; where it fails itself, or
    returns no text, the text is withheld. Another takes the place of the one before, with a warning.

    >>> import fluxgate, re
    >>> @fluxgate.redact
    ... def no_tokens(text: str) -> str:
    ...     return re.sub(r"token=\\w+", "token=***", text)
    >>> fluxgate.redact("GET /pay?token=s3cret")
    'GET /pay?token=***'
    >>> fluxgate.redact(None)  # as it was
    """

    def __init__(self) -> None:
        self._function: Any = None
        self._failed = False
        self.is_given = False
        """Whether there is a function."""

    @overload
    def __call__(self, what: str, /) -> str: ...
    @overload
    def __call__(self, what: None, /) -> None: ...
    @overload
    def __call__(self, what: _F, /) -> _F: ...

    def __call__(self, what: Any, /) -> Any:
        if isinstance(what, str):
            return self._apply(what)
        if what is not None and (isinstance(what, type) or not callable(what)):
            raise TypeError(f"redact takes a function from str to str, a text or None, got {what!r}")
        if what is not None and self._function is not None and what is not self._function:
            log("WARNING", "fluxgate.redact: %s takes the place of %s", in_words(what), in_words(self._function))
        self._function, self._failed, self.is_given = what, False, what is not None
        return what

    def _apply(self, text: str) -> str:
        if self._function is None:
            return text
        try:
            redacted = self._function(text)
            if not isinstance(redacted, str):  # one that forgets to return would pass for a secret that is gone
                raise TypeError(f"it must return a str, got {type(redacted).__name__}")
            return redacted
        except Exception as error:
            # what could not be checked for secrets must not be shown
            if not self._failed:
                self._failed = True
                text = "the function given to fluxgate.redact failed; error texts are withheld until it is replaced"
                log("ERROR", f"{text}\n%s%s", _frames(error), type_name(error))  # its own text may quote what it got
            return "(withheld: the redacting function failed)"


redact = Redactor()


def log(level: str, text: str, *args: object, error: BaseException | None = None) -> None:
    """Write to the engine's logger, ``fluxgate``, which cannot hurt a call either.

    `logging` is imported late, since most programs that import Fluxgate never hear from it. Where texts are redacted
    the traceback is as well: it quotes the error, and those that it came from, such as the call's own.
    """
    import logging

    try:
        if error is not None and redact.is_given:
            from traceback import format_exception

            text, args, error = f"{text}\n%s", (*args, redact("".join(format_exception(error)).rstrip())), None
        logging.getLogger("fluxgate").log(getattr(logging, level), text, *args, exc_info=error)
    except Exception:  # a handler of the program's failed: there is nobody left to tell
        pass


def _frames(error: BaseException) -> str:
    from traceback import format_tb

    return "".join(format_tb(error.__traceback__))


def type_name(value: object) -> str:
    """The full name of its type, without ``builtins.``: ``TimeoutError``, ``httpx.ConnectError``."""
    return name_of(type(value))


def name_of(kind: type) -> str:
    """The type's full name, as `type_name`."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def error_text(error: BaseException) -> str:
    """The exception's message, redacted and cut to 200 characters."""
    try:
        text = str(error)
    except Exception:  # a broken __str__ must not cost the event
        text = "(the exception has no readable text)"
    return clean(text)


def clean(text: str) -> str:
    """Any text of the user's, redacted and cut to 200 characters."""
    text = text[:_READ]  # which is a plain text, whatever it was
    if redact.is_given:
        text = redact(text)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def in_words(plugged: object) -> str:
    """How a rule or a listener is named in reports."""
    if isinstance(plugged, str):
        return plugged
    try:
        return clean(getattr(plugged, "__qualname__", None) or repr(plugged))
    except Exception:  # a broken __repr__
        return type_name(plugged)


def seconds_in_words(seconds: float) -> str:
    """A duration to three figures: ``0.05 s``, ``1.5 s``, ``86400 s``."""
    return f"{seconds:.0f} s" if seconds >= 100 else f"{seconds:.3g} s"


def calls_in_words(count: int) -> str:
    """``1 call``, ``2 calls``."""
    return f"{count} {'call' if count == 1 else 'calls'}"
