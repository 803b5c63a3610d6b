"""PromQL, LogQL and TraceQL from the catalogue of names: what the catalogue does not have cannot be asked for."""

from collections.abc import Iterable
from typing import Final, NamedTuple

from fluxgate.listeners import names
from fluxgate.listeners.names import Instrument
from fluxgate.state import State

CIRCUIT: Final = ("circuit_name",)
RATE_INTERVAL: Final = "$__rate_interval"
RANGE: Final = "$__range"

_SCRAPED: Final = ("job", "instance")
"""What Prometheus adds to every series; dashboards filter by it and by the circuit."""
_FILTERS: Final = {"job": "$job", "instance": "$instance", "circuit_name": "$circuit"}
_PARTS: Final[dict[str, tuple[str, ...]]] = {"_bucket": ("le",), "_count": (), "_sum": ()}
"""What a histogram is made of, and the label that each part has more."""


class Shown(NamedTuple):
    """How a state is shown."""

    state: State
    text: str
    color: str


STATES: Final = (
    Shown(State.CLOSED, "closed", "green"),
    Shown(State.METRICS_ONLY, "metrics only", "purple"),
    Shown(State.DISABLED, "disabled", "#8e8e8e"),
    Shown(State.HALF_OPEN, "half-open", "yellow"),
    Shown(State.OPEN, "open", "red"),
    Shown(State.FORCED_OPEN, "forced open", "dark-red"),
)
"""From the harmless to the worst, numbered from 1: where instances disagree, the worst speaks for all."""
CLOSED: Final = 1


def equals(label: str, value: str) -> str:
    """A matcher, in PromQL and LogQL alike."""
    return f'{label}="{value}"'


def differs(label: str, value: str) -> str:
    """Its opposite."""
    return f'{label}!="{value}"'


def one_of(label: str, values: Iterable[str]) -> str:
    """A matcher for several values, in PromQL and LogQL alike."""
    return f'{label}=~"{_either(values)}"'


def select(instrument: Instrument, *matchers: str, part: str = "") -> str:
    """The series that the dashboard's variables choose, and further matchers such as ``state="open"``.

    Raises:
        ValueError: the instrument has no such label, or no such part.
    """
    labels = (*_SCRAPED, *instrument.labels)
    if (part != "") != (instrument.kind == "histogram") or (part and part not in _PARTS):
        raise ValueError(f"{instrument.series} has no part {part!r}")
    for matcher in matchers:
        _known(instrument, [matcher.partition("=")[0].rstrip("!")])
    filters = [f'{label}=~"{_FILTERS[label]}"' for label in labels if label in _FILTERS]
    return f"{instrument.series}{part}{{{', '.join([*filters, *matchers])}}}"


def rate(
    instrument: Instrument, *matchers: str, by: Iterable[str] = CIRCUIT, part: str = "", within: str = RATE_INTERVAL
) -> str:
    """How many a second, instances added up."""
    return f"sum by ({_by(instrument, by, part)}) (rate({select(instrument, *matchers, part=part)}[{within}]))"


def increase(instrument: Instrument, *matchers: str, by: Iterable[str] = CIRCUIT, within: str = RANGE) -> str:
    """How many in the dashboard's time range, instances added up."""
    return f"sum by ({_by(instrument, by)}) (increase({select(instrument, *matchers)}[{within}]))"


def combine(how: str, instrument: Instrument, *matchers: str, by: Iterable[str] = CIRCUIT) -> str:
    """A gauge of several instances: their ``max``, ``min`` or ``sum``."""
    return f"{how} by ({_by(instrument, by)}) ({select(instrument, *matchers)})"


def limit(rule: str) -> str:
    """The lowest limit of a rule among the instances; in several processes one that is gone is 0."""
    return f"min by ({_by(names.LIMIT, CIRCUIT)}) ({select(names.LIMIT, equals('rule', rule))} > 0)"


def quantile(share: float, instrument: Instrument, *matchers: str) -> str:
    """A quantile of a histogram, instances added up."""
    return f"histogram_quantile({share:g}, {rate(instrument, *matchers, by=(*CIRCUIT, 'le'), part='_bucket')})"


def state_number(*, by: Iterable[str] = CIRCUIT, above: int = 0) -> str:
    """The number of the worst state, in the order of `STATES`, where it is greater than `above`.

    Circuits that are gone but cannot be removed, as in several processes, are in no state and have 0.
    """
    numbered = [
        f"{number} * {select(names.STATE, equals('state', shown.state))}" for number, shown in enumerate(STATES, CLOSED)
    ]
    return f"max by ({_by(names.STATE, by)}) ({' or '.join(reversed(numbered))}) > {above}"


def not_closed() -> str:
    """1 for each circuit that is not closed in every instance."""
    return f"{combine('max', names.STATE, differs('state', State.CLOSED))} == 1"


def since() -> str:
    """For how many seconds the circuits that are not closed have been in their state; the longest of all instances."""
    changed, state = select(names.STATE_CHANGED), select(names.STATE, differs("state", State.CLOSED))
    same = ", ".join((*_SCRAPED, *CIRCUIT))
    return f"time() - min by ({', '.join(CIRCUIT)}) ({changed} and on ({same}) {state} == 1)"


def flaps(within: str) -> str:
    """How often a circuit closed again or opened by itself, in the instance where it did most.

    A probe that fails is neither.
    """
    each = (*CIRCUIT, *_SCRAPED)
    opened = increase(names.TRANSITIONS, *_move(State.CLOSED, State.OPEN), by=each, within=within)
    closed = increase(names.TRANSITIONS, *_move(State.HALF_OPEN, State.CLOSED), by=each, within=within)
    return f"max by ({_by(names.TRANSITIONS, CIRCUIT)}) ({opened} + {closed})"


def openings(*, within: str = RANGE) -> str:
    """How often circuits were closed and opened."""
    return increase(names.TRANSITIONS, *_move(State.CLOSED, State.OPEN), within=within)


def reopens(*, within: str = RANGE) -> str:
    """How often circuits tried to recover and opened again."""
    return increase(names.TRANSITIONS, *_move(State.HALF_OPEN, State.OPEN), within=within)


def log_lines(lines: Iterable[str], *, text: str | None = None) -> str:
    """The log lines of these names, written as JSON, of the circuits that the dashboard's variable chooses.

    A stream that has none of the names costs one look at its text, before a line is parsed.
    """
    wanted = tuple(lines)
    kept = f"{one_of('event', wanted)} | {one_of(*CIRCUIT, ['$circuit'])}"
    query = f'{{$stream}} |~ "{_either(wanted)}" | json | {kept}'
    return query if text is None else f"{query} | line_format `{text}`"


def spans(*conditions: str) -> str:
    """The spans of the circuits that the dashboard's variable chooses."""
    circuit = f'span.{names.CIRCUIT_ATTRIBUTE} =~ "${{circuit:pipe}}"'
    return f"{{ {' && '.join([circuit, *conditions])} }}"


def _either(values: Iterable[str]) -> str:
    return "|".join(values)


def _move(old: State, new: State) -> tuple[str, str]:
    return equals("old_state", old), equals("new_state", new)


def _by(instrument: Instrument, labels: Iterable[str], part: str = "") -> str:
    return ", ".join(_known(instrument, list(labels), _PARTS.get(part, ())))


def _known(instrument: Instrument, labels: list[str], more: tuple[str, ...] = ()) -> list[str]:
    unknown = set(labels) - {*_SCRAPED, *instrument.labels, *more}
    if unknown:
        raise ValueError(f"{instrument.series} has no label {', '.join(sorted(unknown))}")
    return labels
