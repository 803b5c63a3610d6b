"""What both breakers have: their construction, and everything that does not wait."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from types import FrameType, FunctionType, TracebackType

from . import _check, _gil
from ._clock import as_clock
from ._core import NO_VALUE, Core
from ._functions import kind_of
from ._info import CircuitBreakerInfo
from ._limits import limits_of
from ._rules import DEFAULT_RULES, amend, given
from ._stamps import Stamp
from ._subscription import Subscription
from ._template import fall_back, fill_in, protect, unfilled
from ._typing import TYPE_CHECKING, cast
from .bus import Bus, as_bus
from .events import Event
from .state import State
from .windows import Window

if TYPE_CHECKING:
    from typing import Any, Literal, Self

    from ._protocols import Clock, Delivery, Listener, PermitLike, RetryLike, TrackerLike, TripperLike

_getframe = sys._getframe  # pyright: ignore[reportPrivateUsage]
_stacks: dict[str, Any] | None = None
"""The globals of the frames in which an exit stack enters and leaves on behalf of another; see `_get_ready`."""
_DEEPER = 1 << 64  # more than any id


class Face:
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
        slow_threshold: float = DEFAULT_RULES.slow_threshold,
        max_half_open_calls: int = DEFAULT_RULES.max_half_open_calls,
        half_open_timeout: float = DEFAULT_RULES.half_open_timeout,
        listeners: Iterable[Listener] = (),
        bus: Bus | None = None,
        clock: Clock | None = None,
    ) -> None:
        if unfilled:
            _get_ready()
        _check.name(name, "name")
        rules = DEFAULT_RULES
        if not (
            window is None
            and tracker is None
            and tripper is None
            and retry is None
            and permit is None
            and slow_threshold is rules.slow_threshold
            and max_half_open_calls is rules.max_half_open_calls
            and half_open_timeout is rules.half_open_timeout
        ):  # what was left out needs no check
            rules = amend(
                rules,
                **given(window=window, tracker=tracker, tripper=tripper, retry=retry, permit=permit),
                slow_threshold=slow_threshold,
                max_half_open_calls=max_half_open_calls,
                half_open_timeout=half_open_timeout,
            )
        listeners = _check.several(listeners, "listeners")
        self._core = Core(name, rules, as_clock(clock), as_bus(bus), asynchronous=self._asynchronous)
        try:
            for listener in listeners:
                self.attach(listener)
        except BaseException:
            for subscription in self._core.own:
                subscription.close()
            raise
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

    def rules(self) -> dict[str, str]:
        """The rules in words: `window`, `tracker`, `tripper`, `retry` and `permit`, as `CircuitCreated` tells them.

        >>> from fluxgate import CircuitBreaker
        >>> CircuitBreaker("payments").rules()["retry"]
        'Cooldown(60)'
        """
        return self._core.machine.rules.words()

    def limits(self) -> Mapping[str, float]:
        """The limits by which the tripper trips while the circuit is closed, as `CircuitCreated` tells them.

        Of each kind of rule the lowest: `failure_rate` and `slow_rate` as ratios 0–1, `avg_latency` in seconds,
        `failure_streak` and `min_requests` in calls. What the tripper does not limit is absent; so are a rule of the
        user's, and a `SlowRate` with a threshold of its own.

        >>> from fluxgate import CircuitBreaker
        >>> dict(CircuitBreaker("payments").limits())
        {'min_requests': 100.0, 'failure_rate': 0.5}
        """
        return limits_of(self._core.machine.rules.tripper)

    def attach(
        self,
        listener: Listener,
        *event_types: type[Event],
        delivery: Delivery | None = None,
        queue_size: int = 10_000,
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
        if not isinstance(func, FunctionType):
            if isinstance(func, (staticmethod, classmethod)):
                method = cast("Any", func)
                return cast("Any", type(method))(self._decorate(method.__func__, fallback))
            if isinstance(func, type) or not callable(func):
                raise TypeError(f"{type(self).__name__} protects functions, got {_check.got(func)}")
        kind = kind_of(func)
        if kind not in self._protects:
            raise TypeError(f"{type(self).__name__} cannot protect the {kind} {_check.title(func)}: use {self._other}")
        if fallback is not None and "generator" in kind:
            raise TypeError(f"a {kind} cannot have a fallback, since it may fail half-way: {_check.title(func)}")
        protected = protect(func, kind, self._core)
        protected.circuit_breaker = self
        if fallback is not None:
            protected = fall_back(protected, kind, self._fallback(fallback))  # which has its attributes as well
        return protected

    def _fallback(self, fallback: Callable[[Exception], Any]) -> Callable[[Exception], Any]:
        raise NotImplementedError

    # A block is left from the frame that entered it, in whatever thread or context that frame goes on: the frame tells
    # concurrent blocks of one breaker apart. (Frames are numbered by id, since holding one holds its locals.) A block
    # that is alone stands in `with_blocks` itself, as ``(frame, stamp, started)``, and whose it is need not be asked.
    # Those that overlap are kept by frame, ``(blocks, None, 0.0)``, until the last of them has been left. Under the GIL
    # a look at what stands there and a change of it, without a call in between, are one step. Without it that takes the
    # lock. (`_depth`: how many frames up the ``with`` statement is.)

    def _enter_block(self, _stamp: Stamp | None = None, _depth: int = 1) -> Self:
        """Protect a block: ``with cb: ...``. Its exception, if any, is its outcome.

        Raises:
            CallNotPermittedError: The circuit refused; the block does not run.
        """
        core: Any = self._core
        stamp = _stamp or core.lane or self._admit(nested=True)
        frame = _getframe(_depth)
        block = (_stack(frame) if frame.f_globals is _stacks else id(frame), stamp, core.clock.monotonic())
        if not _gil.GIL:
            with core.lock:
                _join(core, block)
        elif core.with_blocks is None:
            core.with_blocks = block
        else:
            _join(core, block)
        return self

    def _leave_block(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        _depth: int = 1,
    ) -> Literal[False]:
        core: Any = self._core
        _, stamp, started = core.with_blocks
        if stamp is not None:
            core.with_blocks = None
        elif _gil.GIL:
            _, stamp, started = _part(core, _getframe(_depth))
        else:
            with core.lock:
                _, stamp, started = _part(core, _getframe(_depth))
        if error is None:
            core.returned(stamp, started, core.clock.monotonic(), NO_VALUE)
        else:
            core.raised(stamp, started, error)
        if core.outbox and not self._asynchronous:
            core.deliver()
        return False

    def _admit(self, *, nested: bool) -> Any:
        raise NotImplementedError


def _get_ready() -> None:
    """What waits for the first breaker, so that `import fluxgate` does not."""
    global _stacks
    import contextlib

    _stacks = contextlib.__dict__
    fill_in()


def _stack(frame: FrameType) -> int:
    """The exit stack that enters or leaves on behalf of another frame."""
    return id(frame.f_locals.get("self", frame))


def _join(core: Any, block: tuple[int, Stamp, float]) -> None:
    """Put a block among the others."""
    place = block[0]
    held = core.with_blocks
    if held is not None and held[1] is None and place not in held[0]:
        held[0][place] = block
        return
    shared: Any = ({}, None, 0.0)
    if held is not None:
        taken = held[0] if held[1] is None else (held[0],)
        while place in taken:  # the frame is in a block already
            place += _DEEPER
    held = core.with_blocks  # once more: a block that is alone may have been left, or another entered, meanwhile
    if held is None or held[1] is not None:
        if held is not None:
            shared[0][held[0]] = held
        held = shared
    held[0][place] = block
    core.with_blocks = held


def _part(core: Any, frame: FrameType) -> tuple[int, Stamp, float]:
    """Take the block that the frame has entered last from among the others."""
    place = _stack(frame) if frame.f_globals is _stacks else id(frame)
    held = core.with_blocks
    blocks = held[0]
    while place + _DEEPER in blocks:
        place += _DEEPER
    # left from elsewhere (an exit stack's pop_all, a hand-written call): then it is the last one
    block: tuple[int, Stamp, float] = blocks.pop(place, None) or blocks.popitem()[1]
    if not blocks and core.with_blocks is held:
        core.with_blocks = None
    return block


def fallback_of(by_keyword: Any, args: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    if by_keyword is not NO_VALUE:
        return by_keyword, args
    if not args:
        raise TypeError(
            "call_with_fallback needs a fallback: call_with_fallback(func, fallback_func, *args) or fallback_func=..."
        )
    return args[0], args[1:]
