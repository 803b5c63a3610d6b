"""How each library is asked for the same thing, as near as it comes to it.

Circuits that must stay closed trip at half of the last hundred calls, or after a million failures in a row where a
library knows nothing else. Circuits that must stay open do so for an hour.

An adapter runs in its library's own environment, where it imports it; a library that cannot do something says `Lacks`.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from datetime import timedelta
from functools import wraps
from importlib import import_module
from itertools import count
from typing import Any

from .peers import Peer

Function = Callable[..., Any]

NEVER = 1_000_000
HOUR = 3600


class Lacks(Exception):
    """The library has no such thing; the text says what is missing."""


class Refusing(Exception):
    """What the functions behind circuits raise."""


def fail(value: int) -> int:
    """A call that fails."""
    raise Refusing("no")


class Adapter:
    """One library, by what the workloads ask of it."""

    puts_off: float = 0.0
    """Seconds for which a circuit may put off what it does of a call."""

    def __init__(self, peer: Peer) -> None:
        self.module: Any = import_module(peer.module)
        self.names: Iterator[str] = (f"circuit {number}" for number in count())

    def breaker(self) -> Any:
        """A closed circuit of its own name, that will not open."""
        raise NotImplementedError

    def decorate(self, breaker: Any, func: Function) -> Function:
        """The protected function."""
        decorated: Function = breaker(func)
        return decorated

    def async_breaker(self) -> Any:
        """As `breaker`, for coroutine functions."""
        raise Lacks("no asyncio")

    def fragile(self) -> Any:
        """A circuit that opens at the first failures and stays open."""
        raise NotImplementedError

    def counting(self, size: int) -> Any:
        """A closed circuit that looks at the last `size` calls and will not open."""
        raise Lacks("no window")

    def timing(self, seconds: int) -> Any:
        """A closed circuit that looks at the calls of that many seconds."""
        raise Lacks("no time window")

    def block(self, breaker: Any) -> AbstractContextManager[Any] | Callable[[], AbstractContextManager[Any]]:
        """What stands behind ``with``: the same for each block, or a function that makes one for each."""
        raise Lacks("no block")

    def calls(self, breaker: Any) -> int:
        """How many calls the circuit has counted."""
        raise Lacks("counts no successes")

    def failures(self, breaker: Any) -> int:
        """How many failures the circuit has counted."""
        raise Lacks("counts no failures")

    def opened(self, func: Function) -> Function:
        """A protected function whose circuit is open."""
        refused = self.decorate(breaker := self.fragile(), func)
        failing = self.decorate(breaker, fail)
        for _ in range(200):
            with suppress(Exception):
                failing(1)
        try:
            refused(1)
        except Exception:
            return refused
        raise AssertionError("the circuit is not open")

    def name(self) -> str:
        """A name that no circuit has had."""
        return next(self.names)


class Ours(Adapter):
    """This checkout."""

    puts_off = 1.0

    def _make(self, **rules: Any) -> Any:
        return self.module.CircuitBreaker(self.name(), **rules)

    def breaker(self) -> Any:
        return self._make()

    def async_breaker(self) -> Any:
        return self.module.AsyncCircuitBreaker(self.name())

    def fragile(self) -> Any:
        return self._make(tripper=self.module.FailureStreak(1), retry=self.module.Cooldown(HOUR))

    def counting(self, size: int) -> Any:
        m = self.module
        return self._make(window=m.CountWindow(size), tripper=m.FailureStreak(NEVER) & m.FailureRate(0.5))

    def timing(self, seconds: int) -> Any:
        return self._make(window=self.module.TimeWindow(seconds))

    def block(self, breaker: Any) -> Any:
        return breaker

    def calls(self, breaker: Any) -> int:
        return int(breaker.info().metrics.total_count)

    def failures(self, breaker: Any) -> int:
        return int(breaker.info().metrics.failure_count)


class PyBreaker(Adapter):
    """pybreaker; its coroutines are Tornado's."""

    def breaker(self) -> Any:
        return self.module.CircuitBreaker(fail_max=NEVER, reset_timeout=HOUR, name=self.name())

    def fragile(self) -> Any:
        return self.module.CircuitBreaker(fail_max=1, reset_timeout=HOUR, name=self.name())

    def async_breaker(self) -> Any:
        raise Lacks("no asyncio (Tornado's coroutines alone)")

    def block(self, breaker: Any) -> Any:
        return breaker.calling

    def failures(self, breaker: Any) -> int:
        return int(breaker.fail_counter)


class CircuitBreakerPy(Adapter):
    """circuitbreaker."""

    def breaker(self) -> Any:
        return self.module.CircuitBreaker(failure_threshold=NEVER, recovery_timeout=HOUR, name=self.name())

    def async_breaker(self) -> Any:
        return self.breaker()

    def fragile(self) -> Any:
        return self.module.CircuitBreaker(failure_threshold=1, recovery_timeout=HOUR, name=self.name())

    def block(self, breaker: Any) -> Any:
        return breaker

    def failures(self, breaker: Any) -> int:
        return int(breaker.failure_count)


class AioBreaker(Adapter):
    """aiobreaker."""

    def _make(self, fail_max: int) -> Any:
        hour = timedelta(seconds=HOUR)
        return self.module.CircuitBreaker(fail_max=fail_max, timeout_duration=hour, name=self.name())

    def breaker(self) -> Any:
        return self._make(NEVER)

    def async_breaker(self) -> Any:
        return self._make(NEVER)

    def fragile(self) -> Any:
        return self._make(1)

    def failures(self, breaker: Any) -> int:
        return int(breaker.fail_counter)


class Purgatory(Adapter):
    """purgatory: circuits are looked up by name in a factory."""

    def __init__(self, peer: Peer) -> None:
        super().__init__(peer)
        self.factory: Any = self.module.SyncCircuitBreakerFactory(default_threshold=NEVER, default_ttl=HOUR)
        self.touchy: Any = self.module.SyncCircuitBreakerFactory(default_threshold=1, default_ttl=HOUR)

    def breaker(self) -> Any:
        return self.factory, self.name()

    def async_breaker(self) -> Any:
        factory = self.module.AsyncCircuitBreakerFactory(default_threshold=NEVER, default_ttl=HOUR)
        return factory, self.name()

    def fragile(self) -> Any:
        return self.touchy, self.name()

    def decorate(self, breaker: Any, func: Function) -> Function:
        factory, name = breaker
        decorated: Function = factory(name)(func)
        return decorated

    def block(self, breaker: Any) -> Any:
        factory, name = breaker
        return lambda: factory.get_breaker(name)

    def failures(self, breaker: Any) -> int:
        factory, name = breaker
        return int(factory.get_breaker(name).context.failure_count)


class Hyx(Adapter):
    """hyx: asyncio alone."""

    def breaker(self) -> Any:
        raise Lacks("asyncio alone")

    def fragile(self) -> Any:
        raise Lacks("asyncio alone")

    def async_breaker(self) -> Any:
        return self.module.consecutive_breaker(failure_threshold=NEVER, recovery_time_secs=HOUR)


class PyCircuitBreaker(Adapter):
    """pycircuitbreaker: its decorator makes the circuit, so the protected function is made here."""

    def breaker(self) -> Any:
        return self.module.CircuitBreaker(breaker_id=self.name(), error_threshold=NEVER, recovery_timeout=HOUR)

    def decorate(self, breaker: Any, func: Function) -> Function:
        """As its own decorator does it, on a circuit that can be asked."""

        @wraps(func)
        def protected(*args: Any, **kwargs: Any) -> Any:
            return breaker.call(func, *args, **kwargs)

        return protected

    def fragile(self) -> Any:
        return self.module.CircuitBreaker(breaker_id=self.name(), error_threshold=1, recovery_timeout=HOUR)

    def failures(self, breaker: Any) -> int:
        return int(breaker.error_count)


class Interlock(Adapter):
    """interlock-cb."""

    def _make(self, **config: Any) -> Any:
        config = {"window_size": 100, "minimum_number_of_calls": 100, **config}
        return self.module.CircuitBreaker(
            name=self.name(), config=self.module.Config(wait_duration_in_open=HOUR, **config)
        )

    def breaker(self) -> Any:
        return self._make()

    def async_breaker(self) -> Any:
        return self._make()

    def fragile(self) -> Any:
        return self._make(minimum_number_of_calls=1)

    def counting(self, size: int) -> Any:
        return self._make(window_size=size, minimum_number_of_calls=size)

    def timing(self, seconds: int) -> Any:
        return self._make(window_type=self.module.WindowType.TIME_BASED, window_size=seconds)

    def block(self, breaker: Any) -> Any:
        return breaker

    def calls(self, breaker: Any) -> int:
        return int(breaker.snapshot().total_calls)

    def failures(self, breaker: Any) -> int:
        return int(breaker.snapshot().failed_calls)


class _Fluxgate(Adapter):
    """The package that is published as fluxgate."""

    def __init__(self, peer: Peer) -> None:
        super().__init__(peer)
        self.windows: Any = import_module("fluxgate.windows")
        self.trippers: Any = import_module("fluxgate.trippers")
        self.retries: Any = import_module("fluxgate.retries")

    def _named(self) -> dict[str, Any]:
        return {"name": self.name()}

    def _make(self, **rules: Any) -> Any:
        t = self.trippers
        rules = {"tripper": t.MinRequests(100) & t.FailureRate(0.5), **rules}
        return self.module.CircuitBreaker(**self._named(), **rules)

    def breaker(self) -> Any:
        return self._make()

    def async_breaker(self) -> Any:
        t = self.trippers
        return self.module.AsyncCircuitBreaker(**self._named(), tripper=t.MinRequests(100) & t.FailureRate(0.5))

    def fragile(self) -> Any:
        return self._make(tripper=self.trippers.MinRequests(1), retry=self.retries.Cooldown(HOUR))

    def counting(self, size: int) -> Any:
        t = self.trippers
        return self._make(window=self.windows.CountWindow(size), tripper=t.MinRequests(NEVER) & t.FailureRate(0.5))

    def timing(self, seconds: int) -> Any:
        return self._make(window=self.windows.TimeWindow(seconds))

    def calls(self, breaker: Any) -> int:
        return int(breaker.info().metrics.total_count)

    def failures(self, breaker: Any) -> int:
        return int(breaker.info().metrics.failure_count)


class FluxgateOld(_Fluxgate):
    """0.6.1."""


class FluxgateNew(_Fluxgate):
    """0.9.4, whose circuits have no name."""

    def _named(self) -> dict[str, Any]:
        return {}


def adapter(peer: Peer) -> Adapter:
    """The peer's adapter; to be called in its own environment."""
    kind: type[Adapter] = globals()[peer.adapter]
    return kind(peer)
