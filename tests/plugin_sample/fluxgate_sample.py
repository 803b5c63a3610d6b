"""A third party's listeners."""

from __future__ import annotations

from fluxgate.events import CallFailed, StateChanged


class SampleListener:
    """Prints what happens; `fluxgate.observe()` attaches it."""

    automatic = "sample"
    events = (StateChanged, CallFailed)

    def __call__(self, event: StateChanged | CallFailed) -> None:
        print("sample:", type(event).__name__, event.circuit_name, event.state, flush=True)


class QuietListener:
    """Is attached by hand alone."""

    def __call__(self, event: StateChanged) -> None:
        print("quiet:", event.state, flush=True)
