"""What the parts of the OpenTelemetry listener write: events as attributes, in plain types and printable text.

An exporter that meets a text which UTF-8 cannot express loses the whole batch, so every text of the program's own is
made printable first, as in log lines.
"""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from fluxgate._text import type_name
from fluxgate.errors import CallNotPermittedError
from fluxgate.events import CallEnded, CallFailed, CallIgnored, CallRejected, StateChanged
from fluxgate.state import OPEN

from . import names
from ._render import line, printable

Attributes = dict[str, str | bool | int | float]

_REFUSAL = type_name(CallNotPermittedError("any"))
_LATEST = 1.8e10  # seconds; OTLP's 64 bits of nanoseconds end there


def of_call(event: CallEnded | CallRejected) -> Attributes:
    """The decision, and what came of it."""
    told: Attributes = {
        names.CIRCUIT_ATTRIBUTE: printable(event.circuit_name),
        names.STATE_ATTRIBUTE: event.state.value,
    }
    if isinstance(event, CallRejected):
        told[names.DECISION_ATTRIBUTE] = told[names.OUTCOME_ATTRIBUTE] = names.REFUSED
        told[names.REASON_ATTRIBUTE] = event.reason
        told[names.ERROR_ATTRIBUTE] = _REFUSAL
        if event.retry_after is not None:
            told[names.RETRY_AFTER_ATTRIBUTE] = round(event.retry_after, 3)
        return told
    told[names.DECISION_ATTRIBUTE] = names.PERMITTED
    told[names.OUTCOME_ATTRIBUTE] = names.OUTCOMES[type(event)]
    if isinstance(event, (CallFailed, CallIgnored)):
        told[names.ERROR_ATTRIBUTE] = printable(event.error_type)
    return told


def of_change(event: StateChanged, keys: Iterable[str] = names.CHANGE_ATTRIBUTES) -> Attributes:
    """What these keys name of a change of state; of the last error only where it opened the circuit."""
    told: Attributes = {names.CHANGE_ATTRIBUTES[key]: value for key, value in line(event, keys).items()}
    if event.new_state is OPEN and event.last_error is not None:
        told[names.ERROR_ATTRIBUTE] = printable(event.last_error.type)
        if event.last_error.text:
            told[names.ERROR_TEXT_ATTRIBUTE] = printable(event.last_error.text)
    return told


def refusal(event: CallRejected) -> str:
    """The refusal in one sentence."""
    return printable(str(CallNotPermittedError(event.circuit_name, event.state, event.retry_after)))


def sentence(event: StateChanged) -> str:
    """The change in one sentence."""
    return printable(f"circuit {event.circuit_name!r} went from {event.old_state} to {event.new_state}: {event.reason}")


def nanoseconds(timestamp: float) -> int | None:
    """A Unix time as OpenTelemetry counts it; ``None``, which means now, where a circuit's own clock tells no such."""
    return round(timestamp * 1e6) * 1000 if 0 < timestamp < _LATEST else None


def scope_version() -> str | None:
    """The version of the instrumentation scope."""
    try:
        return version("fluxgate")
    except PackageNotFoundError:  # the code without its distribution
        return None
