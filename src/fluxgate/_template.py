"""The path of a call, written once: `call` and decorated functions and generators of both colours come from it.

Speed needs it generated: a wrapper with the function's own parameters costs a third of one with ``*args, **kwargs``.
The sources are registered with `linecache`, so that tracebacks show them.

The function is called from the wrapper's own frame, which is all that its traceback gains. The test whether the lane
is still open and the append to it stand together without a call in between, and so do the test whether anybody
delivers, the claim, and the event from its number to the moment it is told: CPython switches threads, and runs signal
handlers, at calls, returns and backward jumps only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import WRAPPER_ASSIGNMENTS, cache, update_wrapper
from types import CoroutineType, FunctionType

from ._claims import WAITING, WRAPPERS
from ._core import NO_VALUE
from ._functions import refuse_coroutine, require_awaitable
from ._typing import TYPE_CHECKING
from .errors import CallNotPermittedError
from .events import CallSucceeded

if TYPE_CHECKING:
    from typing import Any, TypeVar

    from ._core import Core

    _F = TypeVar("_F", bound=Callable[..., Any])

_PATH = """\
def make(_func, _core, {clock}):
    {async_}def protected({params}):{prologue}
        _stamp = _core.lane
        if _stamp is None:
            _gate = _core.gate
            if _gate is not None:
                _until, _state, _verdict, _opening = _gate
                _left = _until - _clock.monotonic()
                if _left > 0.0:
                    raise CallNotPermittedError(
                        _core.name, _state, _left if _left < FOREVER else None, _verdict, _opening
                    )
            _stamp = _core.admit({nested})
            if _stamp.__class__ is CallNotPermittedError:
                try:
                    if _core.outbox:
                        {deliver}
                    raise _stamp
                finally:
                    del _stamp  # the error's traceback holds this frame
            if _core.outbox:
                try:
                    {deliver}
                except BaseException:
                    _core.abandoned(_stamp, _clock.monotonic())  # interrupted before it began
                    raise
        _started = _clock.monotonic()
        try:
            {run}
        except GeneratorExit:
            _core.abandoned(_stamp, _started)
            raise
        except BaseException as _error:
            _core.raised(_stamp, _started, _error)
            if _core.outbox:
                {deliver}
            raise
        _ended = _clock.monotonic()
        _elapsed = _ended - _started
        if _elapsed >= _stamp.below:
            {settle}
        if _ended < _stamp.until:
            _stamp.durations.append(_elapsed)
            return{result}
        _event = Success()
        _claim = _stamp.claim
        if _ended >= _claim.until or _core.claim is not None{set_back}:
            {settle}
        _core.claim = _claim
        _number = _core.sequence + 1
        _core.sequence = _number
        _event.sequence = _number
        _event.call_id = _number
        _event.circuit_name = _core.name
        _event.timestamp = _ended + _claim.wall
        _event.state = _claim.state
        _event.duration = _elapsed
        _event.stale = _event.slow = False
        _event.__class__ = CallSucceeded
        try:
            _stamp.durations.append(_elapsed)
            _tell = _claim.tell
            _answer = _tell(_event)
            if _answer is not None:
                refuse_coroutine(_answer, "listener")
        except BaseException as _error:
            try:
                _interrupted = _core.cut_short(_claim, _event, _error, "_tell" in locals())
            except BaseException:
                if _core.claim is _claim:
                    _claim.given = 0
                    _core.claim = WAITING  # interrupted as it began: without this nobody would ever tell again
                raise
            if _interrupted:
                if _core.outbox:
                    {deliver}
                raise
        else:
            if _core.outbox:
                _core.claim = WAITING
            else:
                _core.claim = None
                return{result}
        if _core.outbox:
            _claim = None  # another thread may hold it by now (see `Direct.is_mine`)
            {deliver}
        return{result}
    return protected
"""

_SETTLE = """\
_core.returned(_stamp, _started, _ended, _value)
if _core.outbox:
    {deliver}
return{result}"""

_FALL_BACK = """\
def make(_func, _fall_back):
    {async_}def protected({params}):
        try:
            return {await_}_func({arguments})
        except Exception as _error:
            return {await_}_fall_back(_error)
    return protected
"""

_DELEGATE = """\
_value = NO_VALUE
_source = _func({arguments})
try:
    _item = await _source.__anext__()
    while True:
        try:
            _sent = yield _item
        except GeneratorExit:
            raise
        except BaseException as _thrown:
            _thrown.__traceback__ = _thrown.__traceback__.tb_next  # as it came, without this frame
            _item = await _source.athrow(_thrown)
        else:
            _item = await _source.asend(_sent)
except StopAsyncIteration:
    pass
finally:
    await _source.aclose()"""

_RUN = {
    "function": "_value = _func({arguments})\nif _value.__class__ is CoroutineType:\n    refuse_coroutine(_value)",
    "coroutine function": "_value = await _func({arguments})",
    "generator function": "_value = yield from _func({arguments})",
    "async generator function": _DELEGATE,
}
_RUN_METHOD = {
    "function": "_value = refuse_coroutine(func(*args, **kwargs))",
    "coroutine function": "_value = await require_awaitable(func(*args, **kwargs))",
}
_UNUSED = "_unused"
_FALLBACKS = "<fluxgate fallback around a "
_SCOPE = {
    "FOREVER": math.inf,
    "__name__": __name__,
    "CallSucceeded": CallSucceeded,
    "Success": CallSucceeded.drafts,
    "WAITING": WAITING,
    "CallNotPermittedError": CallNotPermittedError,
    "CoroutineType": CoroutineType,
    "_clock": time,
    "NO_VALUE": NO_VALUE,
    "refuse_coroutine": refuse_coroutine,
    "require_awaitable": require_awaitable,
}
_TAKEN = frozenset((*_SCOPE, "BaseException", "Exception", "GeneratorExit", "StopAsyncIteration", "locals"))
"""Names that a parameter must not hide from the template; its own locals begin with an underscore."""
_VARARGS = 0x04  # flags of a function's code, as in `inspect`
_VARKEYWORDS = 0x08
_STARS = _VARARGS | _VARKEYWORDS

_Shape = tuple[tuple[str, ...], int, int, int, int]
"""See `_shape`; ``None`` stands for parameters that take anything."""


@cache
def _maker(
    template: str,
    kind: str,
    shape: _Shape | None,
    run: str = "",
    prologue: str = "",
    clock: str = "_clock",
    gathers_all: bool = False,
) -> Callable[..., Any]:
    """The compiled `make` of a template; one serves all functions with the same parameters.

    But for whether all calls gather, in a list, or the last, in a deque: CPython adapts code to the one that it meets.
    """
    if shape is not None and any(name.startswith(("_", ".")) or name in _TAKEN for name in shape[0]):
        return _maker(template, kind, None, run, prologue, clock, gathers_all)
    import linecache

    params, arguments = _signature(shape)
    asynchronous = kind.startswith(("async", "coroutine"))
    deliver = "await _core.deliver_async()" if asynchronous else "_core.deliver()"
    result = "" if kind == "async generator function" else " _value"
    settle = _SETTLE.format(deliver=deliver, result=result)
    source = template.format(
        async_="async " if asynchronous else "",
        await_="await " if asynchronous else "",
        deliver=deliver,
        settle=settle.replace("\n", "\n            "),  # in line: CPython 3.11 compares slower before a long jump
        clock=clock,
        set_back="" if clock == _UNUSED else " or _elapsed < 0.0",  # the usual clock cannot be (see `Fast.arrange`)
        params=params,
        arguments=arguments,
        prologue=prologue,
        run=run.format(arguments=arguments).replace("\n", "\n            "),
        nested=kind in _RUN_METHOD,  # a generator's consumer runs in between, in the generator's own context
        result=result,
    )
    filename = f"{WRAPPERS if template is _PATH else _FALLBACKS}{kind}({params})>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    scope: dict[str, Any] = dict(_SCOPE)
    exec(compile(source, filename, "exec"), scope)
    make: Callable[..., Any] = scope["make"]
    return make


def _shape(func: Any) -> _Shape | None:
    """What a function's parameters are, fit to be looked up: those with the same share a compiled wrapper.

    Without the defaults, which the wrapper gets afterwards. Read from the function's code: `inspect.signature` takes
    longer than all else that decorating does, and `inspect` long to import.
    """
    if not isinstance(func, FunctionType) or "__signature__" in func.__dict__:  # that one is for people
        return None
    code = func.__code__
    positional, keyword_only, stars = code.co_argcount, code.co_kwonlyargcount, code.co_flags & _STARS
    end = positional + keyword_only + stars.bit_count()
    return code.co_varnames[:end], code.co_posonlyargcount, positional, keyword_only, stars


def _signature(shape: _Shape | None) -> tuple[str, str]:
    """The parameters as source, and the arguments that pass them on."""
    if shape is None:
        return "*args, **kwargs", "*args, **kwargs"
    names, positional_only, positional, keyword_only, stars = shape
    end = positional + keyword_only
    starred = [text for text, flag in (("*", _VARARGS), ("**", _VARKEYWORDS)) if stars & flag]
    params = [*names[:end]]
    arguments = [*names[:positional], *(f"{name}={name}" for name in names[positional:end])]
    tail = [text + name for text, name in zip(starred, names[end:], strict=True)]
    if "*" in starred:
        params.insert(positional, tail[0])
        arguments.insert(positional, tail.pop(0))
    elif keyword_only:
        params.insert(positional, "*")
    if positional_only:
        params.insert(positional_only, "/")
    return ", ".join(params + tail), ", ".join(arguments + tail)


class _Attributes:
    """Those of every wrapper. Taken from an instance, a `__dict__` shares its keys with all others: half the memory."""

    def __init__(self, wrapped: Any) -> None:
        self.__wrapped__ = wrapped
        self.circuit_breaker = None


def _dressed(wrapper: Any, func: Any) -> Any:
    """As `functools.update_wrapper` does it, and with the defaults; a plain function in half the time."""
    wrapper.__dict__ = attributes = vars(_Attributes(func))
    if not isinstance(func, FunctionType):
        return update_wrapper(wrapper, func)
    for name in WRAPPER_ASSIGNMENTS:
        setattr(wrapper, name, getattr(func, name))
    if wrapper.__code__.co_argcount == func.__code__.co_argcount:
        wrapper.__defaults__ = func.__defaults__
        wrapper.__kwdefaults__ = func.__kwdefaults__
    if func.__dict__:
        attributes.update(func.__dict__, __wrapped__=func)
    return wrapper


def protect(func: Any, kind: str, core: Core) -> Any:
    """A wrapper of the function's own kind and parameters that calls it through the circuit."""
    # The usual clock is the same for all, so the wrapper finds it among its globals and needs no cell of its own.
    clock = _UNUSED if core.clock is time else "_clock"
    gathers_all = core.machine.rules.window.gathering is None
    make = _maker(_PATH, kind, _shape(func), _RUN[kind], "", clock, gathers_all)
    return _dressed(make(func, core, core.clock), func)


def fall_back(func: Any, kind: str, run_fallback: Callable[[Exception], Any]) -> Any:
    """A wrapper that answers any `Exception` of `func` with what `run_fallback` makes of it."""
    return _dressed(_maker(_FALL_BACK, kind, _shape(func))(func, run_fallback), func)


def calling(kind: str) -> Callable[[_F], _F]:
    """Puts the path of a call into a breaker's method ``(self, func, /, *args, **kwargs)``: see `fill_in`."""

    def fill(method: _F) -> _F:
        empty: Any = FunctionType(method.__code__, dict(_SCOPE), method.__name__)
        unfilled.append((kind, empty))
        filled: Any = update_wrapper(empty, method)
        return filled  # type: ignore[no-any-return]

    return fill


unfilled: list[tuple[str, FunctionType]] = []
"""The methods that have no path yet."""


def fill_in() -> None:
    """Compile them. That takes a fifth of `import fluxgate`, so it waits for the first breaker."""
    prologue = "\n        _core = self._core\n        _clock = _core.clock"
    for kind, method in tuple(unfilled):  # several threads may come at once: all do the same
        path = _maker(_PATH, kind, _shape(method), _RUN_METHOD[kind], prologue)(None, None, None)
        method.__code__ = path.__code__
    unfilled.clear()
