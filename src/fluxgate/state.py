"""The states of a circuit and the causes that move it from one to another."""

from __future__ import annotations

from enum import StrEnum

from ._typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final


class State(StrEnum):
    """What a circuit does with the next call.

    A member is also its word, so the three usual comparisons all hold:

    >>> State.OPEN == "open", State("open") is State.OPEN, f"{State.HALF_OPEN}"
    (True, True, 'half_open')
    """

    CLOSED = "closed"
    """Calls pass, their outcomes are recorded, the tripper may open the circuit."""
    OPEN = "open"
    """Calls are refused until the retry's wait is over."""
    HALF_OPEN = "half_open"
    """A few probes pass; their outcomes close the circuit or open it again."""
    METRICS_ONLY = "metrics_only"
    """Shadow mode: all calls pass and are recorded; `WouldOpen` says when the circuit would have opened."""
    DISABLED = "disabled"
    """All calls pass and nothing is recorded."""
    FORCED_OPEN = "forced_open"
    """All calls are refused until somebody says otherwise."""


StateEnum = State

# For the engine: in Python 3.11 looking a member up in its class costs more than all else that a refusal does.
CLOSED: Final = State.CLOSED
OPEN: Final = State.OPEN
HALF_OPEN: Final = State.HALF_OPEN
METRICS_ONLY: Final = State.METRICS_ONLY
DISABLED: Final = State.DISABLED
FORCED_OPEN: Final = State.FORCED_OPEN


class Trigger(StrEnum):
    """Why a circuit moved: the `trigger` of a `StateChanged` event."""

    TRIPPER = "tripper"
    """The tripper's rules were met."""
    RETRY = "retry"
    """The wait of an open circuit was over and a call came."""
    RECOVERY = "recovery"
    """The probes of a half-open circuit gave evidence of health."""
    MANUAL = "manual"
    """A person or a program called one of the controls."""
    REMOTE = "remote"
    """Another member of a cluster moved first."""
