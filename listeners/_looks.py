"""What is true of a circuit at one moment, as gauges."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Self

from fluxgate.events import CircuitCreated, Reconfigured
from fluxgate.metric import Metric
from fluxgate.state import State

from ._render import printable
from .names import CIRCUIT_INFO, FAILURE_RATE, SLOW_RATE, STATE, STATE_CHANGED, Instrument

_RULES = CIRCUIT_INFO.labels[1:]

Key = tuple[Instrument, tuple[str, ...]]
"""One circuit's child of an instrument: its labels but for `circuit_name`."""


class Look(NamedTuple):
    """What is true of a circuit at one moment."""

    state: State
    changed_at: float
    failure_rate: float
    slow_rate: float
    rules: tuple[str, ...]
    """In words, as `CIRCUIT_INFO` has its labels; empty where nobody has told or asked."""

    @classmethod
    def at(cls, breaker: Any, rules: tuple[str, ...] | None = None) -> Self:
        """Look at a circuit; for its rules only if they are not given."""
        info = breaker.info()
        rules = in_words(breaker.rules()) if rules is None else rules
        return cls(info.state, info.changed_at, *rates_of(info.metrics), rules)

    def gauges(self) -> Iterator[tuple[Key, float]]:
        """Each gauge with its value."""
        for state in State:
            yield (STATE, (state.value,)), float(state is self.state)
        yield (STATE_CHANGED, ()), self.changed_at
        yield (FAILURE_RATE, ()), self.failure_rate
        yield (SLOW_RATE, ()), self.slow_rate
        if self.rules:
            yield (CIRCUIT_INFO, self.rules), 1.0


def gauges(looks: Iterable[Look]) -> dict[Key, float]:
    """The gauges of a circuit; where several share a name, each is the greatest of theirs."""
    found: dict[Key, float] = {}
    for look in looks:
        for key, value in look.gauges():
            found[key] = max(found.get(key, value), value)
    return found


def rates_of(metrics: Metric) -> tuple[float, float]:
    """The share of failures and that of slow calls; 0 in an empty window."""
    return metrics.failure_rate or 0.0, metrics.slow_rate or 0.0


def in_words(rules: Mapping[str, str]) -> tuple[str, ...]:
    """The rules that `CIRCUIT_INFO` shows, in its order."""
    return tuple(printable(rules[name]) for name in _RULES)


def told(event: CircuitCreated | Reconfigured) -> tuple[str, ...]:
    """The same, as an event tells them."""
    return in_words({name: getattr(event, name) for name in _RULES})
