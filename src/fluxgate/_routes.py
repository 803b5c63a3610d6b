"""Which events of a circuit go to whom."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping

from . import _check
from ._typing import TYPE_CHECKING
from .events import EVENT_TYPES, CallEnded, CallStarted, Event, StateChanged, concrete

if TYPE_CHECKING:
    from typing import Any

    from ._subscription import Subscription

Routes = Mapping[type[object], tuple["Subscription", ...]]
NOWHERE: Routes = {}
"""Those of all circuits that nobody observes."""

_OF_CALLS = concrete((CallStarted, CallEnded))


def kinds_of(listener: Any, event_types: tuple[type[Event], ...]) -> frozenset[type[Event]]:
    """What a listener is to be told: the types that were named when it was attached, or else its own.

    Raises:
        TypeError, ValueError: They are not event types, or none.
    """
    kinds = concrete(event_types or _check.several(getattr(listener, "events", (StateChanged,)), "listener.events"))
    if not kinds:
        raise ValueError(f"listener {listener!r} asks for no events")
    return kinds


class Around:
    """In a circuit's routes, the key of those that surround calls."""


def table_of(subscriptions: tuple[Subscription, ...], among: tuple[type[Event], ...] = EVENT_TYPES) -> Routes:
    """The routes of a circuit that these subscriptions observe."""
    kinds = {kind for subscription in subscriptions for kind in subscription.kinds if kind in among}
    table: dict[type[Any], tuple[Subscription, ...]] = {
        kind: _one_each(sub for sub in subscriptions if kind in sub.kinds) for kind in kinds
    }
    surrounding = _one_each(sub for sub in subscriptions if sub.outlet.around is not None and sub.kinds & _OF_CALLS)
    return {**table, Around: surrounding} if surrounding and among is EVENT_TYPES else table


def at_once(routes: Routes, kind: type[Event]) -> tuple[Subscription, ...]:
    """Who hears of such events, where every one of them can be called at once; else nobody."""
    told = routes.get(kind, ())
    return told if all(each.is_direct for each in told) else ()


def _one_each(subscriptions: Iterable[Subscription]) -> tuple[Subscription, ...]:
    """The first for each destination."""
    chosen: dict[Hashable, Subscription] = {}
    for subscription in subscriptions:
        chosen.setdefault(subscription.destination, subscription)
    return tuple(chosen.values())
