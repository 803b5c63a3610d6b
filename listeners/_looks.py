"""What is true of a circuit at one moment, as gauges."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Self

from fluxgate.events import CircuitCreated, Reconfigured
from fluxgate.metric import Metric
from fluxgate.state import State

from ._render import printable
from .names import CIRCUIT_INFO, FAILURE_RATE, LIMIT, SLOW_RATE, STATE, STATE_CHANGED, Instrument

_RULES = CIRCUIT_INFO.labels[1:]

Key = tuple[Instrument, tuple[str, ...]]
"""One circuit's child of an instrument: its labels but for `circuit_name`."""


class Rules(NamedTuple):
    """The rules of a circuit."""

    words: tuple[str, ...]
    """As `CIRCUIT_INFO` has its labels."""
    limits: Mapping[str, float]
    """As `LIMIT` shows them, by rule."""

    @classmethod
    def of(cls, words: Mapping[str, str], limits: Mapping[str, float]) -> Self:
        """From what a circuit, or an event, says of them."""
        return cls(tuple(printable(words[name]) for name in _RULES), limits)


class Look(NamedTuple):
    """What is true of a circuit at one moment."""

    state: State
    changed_at: float
    failure_rate: float
    slow_rate: float
    rules: Rules | None
    """``None`` where nobody has told."""

    @classmethod
    def at(cls, breaker: Any, rules: Rules | None = None) -> Self:
        """Look at a circuit; for its rules only if they are not given, since they take several times as long."""
        info = breaker.info()
        if rules is None:
            rules = Rules.of(breaker.rules(), breaker.limits())
        return cls(info.state, info.changed_at, *rates_of(info.metrics), rules)

    def gauges(self) -> Iterator[tuple[Key, float]]:
        """Each gauge with its value."""
        for state in State:
            yield (STATE, (state.value,)), float(state is self.state)
        yield (STATE_CHANGED, ()), self.changed_at
        yield (FAILURE_RATE, ()), self.failure_rate
        yield (SLOW_RATE, ()), self.slow_rate
        if self.rules is not None:
            for rule, limit in self.rules.limits.items():
                yield (LIMIT, (rule,)), limit
            yield (CIRCUIT_INFO, self.rules.words), 1.0


def gauges(looks: Iterable[Look]) -> dict[Key, float]:
    """The gauges of a circuit; where several share a name, each is the greatest of theirs, but a limit the lowest."""
    found: dict[Key, float] = {}
    for look in looks:
        for key, value in look.gauges():
            found[key] = (min if key[0] is LIMIT else max)(found.get(key, value), value)
    return found


def rates_of(metrics: Metric) -> tuple[float, float]:
    """The share of failures and that of slow calls; 0 in an empty window."""
    return metrics.failure_rate or 0.0, metrics.slow_rate or 0.0


def told(event: CircuitCreated | Reconfigured) -> Rules:
    """The rules, as an event tells them."""
    return Rules.of({name: getattr(event, name) for name in _RULES}, event.limits)
