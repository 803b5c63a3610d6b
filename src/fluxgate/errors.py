"""What Fluxgate raises, and the one sentence for a missing extra."""

from __future__ import annotations

from ._typing import TYPE_CHECKING
from .events import Opening
from .metric import Verdict
from .state import State

if TYPE_CHECKING:
    from typing import Any

_REFUSALS = {
    State.HALF_OPEN: ("is half-open and did not take this call as a probe", "; it had opened on: "),
    State.FORCED_OPEN: ("is forced open", ": "),
}


class CallNotPermittedError(Exception):
    """The circuit refused the call; the protected function was not called.

    Raised by every way of calling through a breaker. It carries what a caller needs in order to answer
    in the function's place, and pickles with all of it.

    >>> error = CallNotPermittedError("payments", State.OPEN, 12.5)
    >>> error.circuit_name, error.state == "open", error.retry_after
    ('payments', True, 12.5)
    >>> str(error)
    "circuit 'payments' is open; retry after 12.5 s"
    """

    # No __init__ in Python: a refusal must cost little more than a bare raise, so the values stay
    # in `args` (which pickling uses as well) and the text is made only when somebody reads it.
    if TYPE_CHECKING:

        def __init__(
            self,
            circuit_name: str,
            state: State = State.OPEN,
            retry_after: float | None = None,
            verdict: Verdict | None = None,
            opening: Opening | None = None,
            /,
        ) -> None: ...

    def _value(self, index: int) -> Any:
        return self.args[index] if len(self.args) > index else None

    @property
    def circuit_name(self) -> str:
        """The name of the circuit that refused."""
        return str(self._value(0))

    @property
    def state(self) -> State:
        """The state in which it refused: `OPEN`, `HALF_OPEN` or `FORCED_OPEN`."""
        return State(self._value(1) or State.OPEN)

    @property
    def retry_after(self) -> float | None:
        """Seconds until the circuit will try again, or ``None`` when only a person can close it."""
        value = self._value(2)
        return None if value is None else float(value)

    @property
    def verdict(self) -> Verdict | None:
        """Why the circuit opened."""
        verdict = self._value(3)
        return verdict if isinstance(verdict, Verdict) else None

    @property
    def opening(self) -> Opening | None:
        """When the circuit opened, on which figures, failing since when, and in which trace."""
        opening = self._value(4)
        return opening if isinstance(opening, Opening) else None

    @property
    def message(self) -> str:
        """The whole explanation in one sentence."""
        refused, because = _REFUSALS.get(self.state, ("is open", ": "))
        text = f"circuit {self.circuit_name!r} {refused}"
        if self.verdict is not None:
            text += f"{because}{self.verdict}"
        return f"{text}; retry after {self.retry_after:.1f} s" if self.retry_after else text

    def __str__(self) -> str:
        return self.message


class MissingExtraError(ImportError):
    """A part of Fluxgate needs a library that is not installed; the text names the extra that brings it."""


def import_extra(module: str, *, wanted_by: str, package: str, extra: str) -> Any:
    """Import an optional third-party `module`, or say in one sentence what to install.

    Raises:
        MissingExtraError: `package` is not installed; names who wanted it, the package and the extra.
    """
    try:
        import importlib

        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or module.split(".")[0] != error.name.split(".")[0]:
            raise  # the library is there and lacks something of its own: its error says more than ours
        text = f"{wanted_by} needs {package}, which is not installed: install Fluxgate with its extra {extra!r}"
        raise MissingExtraError(text, name=module) from error
