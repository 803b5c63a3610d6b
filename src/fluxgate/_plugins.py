"""Listeners that others publish, found by name under one entry-point group. Fluxgate's own register the same way."""

from collections.abc import Collection
from operator import itemgetter
from typing import Any

from . import _check

GROUP = "fluxgate.listeners"


def entry_points() -> dict[str, Any]:
    """The published listeners by name, in alphabetical order."""
    from importlib.metadata import entry_points  # here, since it is slow to import and seldom needed

    return {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)}


def load(name: str) -> Any:
    """The listener published as `name`: a class, or a function that makes one.

    Raises:
        LookupError: no installed distribution publishes it; the text lists those that are.
    """
    published = entry_points()
    if name not in published:
        raise LookupError(f"no listener named {name!r} is installed; there are: {', '.join(published) or 'none'}")
    return published[name].load()


def observable(served: Collection[str] = ()) -> list[tuple[str, Any]]:
    """What `observe` attaches: instances of the published listeners that are automatic and can be built.

    A listener class says so by its attribute `automatic`, the name of a purpose: of several for one purpose the first
    by `rank`, then by name, whose library is there is taken, and none for one that is `served`.
    """
    from ._text import log
    from .errors import MissingExtraError

    candidates: list[tuple[float, str, Any]] = []
    for name, point in entry_points().items():
        try:
            factory = point.load()
        except Exception as error:
            log("ERROR", "listener %r cannot be loaded", name, error=error)
            continue
        purpose, rank = getattr(factory, "automatic", None), getattr(factory, "rank", 0)
        if purpose:
            try:
                _check.name(purpose, "automatic")
                candidates.append((_check.number(rank, "rank"), name, factory))
            except (TypeError, ValueError) as error:
                log("ERROR", "listener %r cannot be used", name, error=error)
    chosen: dict[str, tuple[str, Any]] = {}
    for _, name, factory in sorted(candidates, key=itemgetter(0, 1)):
        if factory.automatic not in chosen and factory.automatic not in served:
            try:
                chosen[factory.automatic] = (name, factory())
            except MissingExtraError:
                continue
            except Exception as error:
                log("ERROR", "listener %r cannot be made", name, error=error)
    return list(chosen.values())
