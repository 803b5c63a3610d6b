"""The main job on real HTTP: circuits that open, probe and recover, and say why."""

from typing import TextIO

from ..errors import import_extra


def run(duration: float = 20.0, *, as_json: bool = False, log: TextIO | None = None) -> int:
    """Run the demo; 0 when each circuit opened and recovered, 1 when not, 128 + n when ended by signal n.

    Args:
        duration: Seconds that the service's script takes; the rules' windows and waits scale with it.
        as_json: Print one JSON document at the end, and all else to stderr.
        log: Where the log listener writes; one line of it is shown at the end otherwise.

    Raises:
        MissingExtraError: httpx or rich is not installed.
    """
    for library in ("httpx", "rich"):
        import_extra(library, wanted_by="the demo", package=library, extra="demo")
    from .runner import play

    return play(duration, as_json=as_json, log=log)
