"""How events become measurements, the same for every metrics library; a library brings its instruments.

What comes with calls is counted as it happens, by children that are bound once a circuit. What is true at a moment (the
state, the window's rates, the rules) is looked up.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from threading import RLock, get_ident
from typing import Any
from weakref import WeakSet

from fluxgate._forks import KeptWhole
from fluxgate._machine import ADMITTING, MOVES, RECORDING
from fluxgate._subscription import Subscription
from fluxgate.events import (
    EVENT_TYPES,
    CallFailed,
    CallRejected,
    CallStarted,
    CallSucceeded,
    CircuitCreated,
    CircuitRetired,
    Event,
    EventsDropped,
    FallbackUsed,
    ListenerFailed,
    Reconfigured,
    StateChanged,
    WouldOpen,
)
from fluxgate.state import HALF_OPEN, State, Trigger

from ._looks import Key, Look, rates_of, told
from ._render import printable
from .names import (
    CALL_DURATION,
    EVENTS_DROPPED,
    FALLBACK_CALLS,
    LISTENER_FAILURES,
    OTHER_LISTENERS,
    OUTCOMES,
    PROBES,
    REJECTED_CALLS,
    SLOW_CALLS,
    TRANSITIONS,
    WOULD_OPEN,
    Instrument,
)

EVENTS = tuple(kind for kind in EVENT_TYPES if kind is not CallStarted)
"""Without `CallStarted`, calls begin without the circuit's lock."""

REJECTING = tuple(state for state in State if state not in ADMITTING)
"""The states in which a call may be refused."""

Move = tuple[State, State]


def moves(*triggers: Trigger) -> tuple[Move, ...]:
    """The legal changes of state, from old to new."""
    legal = {(old, new) for trigger in triggers for old, reached in MOVES[trigger].items() for new in reached}
    return tuple(move for move in itertools.product(State, State) if move in legal)


MOVES_OF_ITS_OWN = moves(Trigger.TRIPPER, Trigger.RETRY, Trigger.RECOVERY)
"""What a circuit does by itself."""
MOVES_IN_PROCESS = moves(*set(Trigger) - {Trigger.REMOTE})
"""And what is done to it by hand."""

_JUDGED = (CallSucceeded, CallFailed)
_OFTEN = frozenset((*OUTCOMES, CallRejected, FallbackUsed))  # with calls
_GONE = -1
_CROWD = 10  # circuits of one name
_FORK_WAIT = 1.0  # seconds at most, for measurements that take microseconds
_FORK_LOOK = 0.0005
_MOST_LISTENERS = 1000  # a rule without a name of its own is told by its address, so that there is no end of them


class Circuit:
    """What is bound for one circuit, or for those that share a name."""

    __slots__ = (
        *("crowded", "durations", "fallback", "label", "lock", "look", "names", "probes", "rejected", "shared"),
        *("shown", "slow", "transitions", "version", "would_open"),
    )

    def __init__(self, label: str, board: "Board", look: Look) -> None:
        self.label = label
        self.look = look
        self.names: set[str] = set()
        """What is written as this label; seldom more than one name."""
        self.shared = False
        """Whether more circuits than one may have it."""
        self.crowded = False
        """Whether they are so many that a look at all of them has to wait for its time."""
        self.lock = RLock()
        """Held while what it shows is changed, and while it is measured in the midst of a fork."""
        self.version = 0
        """How often what it shows was told anew: who has looked before must not show it later."""
        self.shown: dict[Key, float] = {}
        self.durations = {kind: board.histogram(CALL_DURATION, (label, word)) for kind, word in OUTCOMES.items()}
        self.probes = {kind: board.counter(PROBES, (label, word)) for kind, word in OUTCOMES.items()}
        self.slow = board.counter(SLOW_CALLS, (label,))
        self.fallback = board.counter(FALLBACK_CALLS, (label,))
        self.would_open = board.counter(WOULD_OPEN, (label,))
        self.rejected = {state: board.counter(REJECTED_CALLS, (label, state.value)) for state in REJECTING}
        self.transitions = {
            (old, new): board.counter(TRANSITIONS, (label, old.value, new.value)) for old, new in board.moves
        }

    def counted(self) -> Iterator[Key]:
        """Each counter and histogram that is bound."""
        yield from ((instrument, (word,)) for instrument in (CALL_DURATION, PROBES) for word in OUTCOMES.values())
        yield from ((instrument, ()) for instrument in (SLOW_CALLS, FALLBACK_CALLS, WOULD_OPEN))
        yield from ((REJECTED_CALLS, (state.value,)) for state in self.rejected)
        yield from ((TRANSITIONS, (old.value, new.value)) for old, new in self.transitions)


class Board:
    """All that is measured for one registry or provider, whichever listeners bring it. A library brings a subclass."""

    moves: tuple[Move, ...]
    """The changes of state that are there from the beginning, with 0; others come with the first."""

    def __init__(self) -> None:
        self.lock = RLock()
        self._circuits: dict[str, Circuit] = {}
        self._labels: dict[str, Circuit] = {}
        self._listeners: dict[tuple[Instrument, str], Callable[[float], None]] = {}
        self._subscriptions: WeakSet[Subscription] = WeakSet()
        self._looked_for = 0
        self._looked_at = -math.inf
        self._forking: list[Circuit] = []
        self._gate = RLock()
        self._locking: list[int] = []  # threads that measure with the lock, while some thread forks
        _boards.add(self)

    # -- what a library brings ------------------------------------------------------------------------------------

    def counter(self, instrument: Instrument, labels: tuple[str, ...]) -> Callable[[float], None]:
        """What adds to the counter with these labels, which is there from now on."""
        raise NotImplementedError

    def histogram(self, instrument: Instrument, labels: tuple[str, ...]) -> Callable[..., None]:
        """What records in the histogram with these labels."""
        raise NotImplementedError

    def show(self, circuit: Circuit, looks: list[Look]) -> None:
        """Show the gauges; the circuit's lock is held."""

    def drop(self, circuit: Circuit) -> None:
        """The circuit is gone: drop what is bound for it; its lock is held."""

    # -- events ---------------------------------------------------------------------------------------------------

    def tell(self, event: Any, exemplar: Any = None) -> None:
        """Measure what the event tells; the exemplar goes with the duration of a call."""
        # What comes with calls takes no lock but the library's: see `before_fork`.
        kind = event.__class__
        circuit = self._circuits.get(event.circuit_name)
        if circuit is None:
            self._tell_rare(event, None)
        elif kind in circuit.durations:
            if exemplar is None:
                circuit.durations[kind](event.duration)
            else:
                circuit.durations[kind](event.duration, exemplar)
            if kind in _JUDGED and event.slow:
                circuit.slow(1)
            if event.state is HALF_OPEN and not event.stale:
                circuit.probes[kind](1)
        elif kind is CallRejected:
            circuit.rejected[event.state](1)
        elif kind is FallbackUsed:
            circuit.fallback(1)
        else:
            self._tell_rare(event, circuit)

    def _tell_rare(self, event: Event, circuit: Circuit | None) -> None:
        if isinstance(event, ListenerFailed):
            self._count(LISTENER_FAILURES, event.listener, 1)
        elif isinstance(event, EventsDropped):
            self._count(EVENTS_DROPPED, event.listener, event.count)
        elif isinstance(event, CircuitRetired):
            if circuit is not None:
                self._retire(circuit)
        elif circuit is None:
            rules = told(event) if isinstance(event, CircuitCreated) else None
            look = Look(event.state, event.timestamp, 0.0, 0.0, rules)
            circuit = self._bind(event.circuit_name, look)
            if circuit.shared:  # another name is written alike
                self._look_again(circuit)
            else:
                self._show(circuit, [look], circuit.version)
            if not isinstance(event, CircuitCreated):
                self.tell(event)
        elif isinstance(event, CircuitCreated):  # another of the same name; or the first look came before the news
            self._look_again(circuit)
        elif isinstance(event, StateChanged):
            self._change(circuit, event)
        elif isinstance(event, Reconfigured):
            self._tell_look(circuit, circuit.look._replace(rules=told(event)))
        elif isinstance(event, WouldOpen):
            with circuit.lock:
                circuit.would_open(1)

    def _change(self, circuit: Circuit, event: StateChanged) -> None:
        move = event.old_state, event.new_state
        with circuit.lock:
            if move not in circuit.transitions:
                circuit.transitions[move] = self.counter(TRANSITIONS, (circuit.label, *map(str, move)))
            circuit.transitions[move](1)
        # A state that records begins with an empty window; in the others the one that decided is still to be seen.
        rates = (0.0, 0.0) if event.new_state in RECORDING else rates_of(event.metrics)
        self._tell_look(circuit, Look(event.new_state, event.timestamp, *rates, circuit.look.rules))

    def _count(self, instrument: Instrument, listener: str, count: int) -> None:
        with self.lock:
            self._listener(instrument, listener)(count)

    def _listener(self, instrument: Instrument, listener: str) -> Callable[[float], None]:
        label = printable(listener)
        if (instrument, label) not in self._listeners and len(self._listeners) >= _MOST_LISTENERS:
            label = OTHER_LISTENERS
        add = self._listeners.get((instrument, label))
        if add is None:
            add = self._listeners[instrument, label] = self.counter(instrument, (label,))
        return add

    # -- circuits that come and go --------------------------------------------------------------------------------

    def _bind(self, name: str, look: Look) -> Circuit:
        label = printable(name)
        with self.lock:
            circuit = self._labels.get(label)
            if circuit is None:
                circuit = self._labels[label] = Circuit(label, self, look)
            elif name not in circuit.names:
                circuit.shared = True
            circuit.names.add(name)
            self._circuits[name] = circuit
            return circuit

    def _retire(self, circuit: Circuit) -> None:
        version = circuit.version
        if circuit.crowded or (circuit.shared and self.sharing(circuit)):
            self._look_again(circuit)
        else:
            self._forget(circuit, version)

    def _forget(self, circuit: Circuit, version: int) -> None:
        """Forget a circuit, unless another of its name came after the look at this version."""
        with self.lock, circuit.lock:
            if circuit.version == version != _GONE:
                circuit.version = _GONE
                del self._labels[circuit.label]
                for name in circuit.names:
                    self._circuits.pop(name, None)
                self.drop(circuit)

    # -- looking --------------------------------------------------------------------------------------------------

    def attach(self, subscription: Subscription) -> None:
        """Measure what this subscription observes, also what was there before it."""
        with self.lock:
            self._subscriptions.add(subscription)
        if subscription.core is None:
            self.look()
        else:
            for breaker in subscription.circuits():
                circuit = self._labels.get(printable(breaker.name))
                alike = self.sharing(circuit) if circuit is not None else None
                self._look_at(breaker.name, alike or [breaker])

    def look_for(self, listener: object, interval: float) -> None:
        """As `look`, for a listener whose turn it is, unless another has done so in a quarter of the interval."""
        now = time.monotonic()
        with self.lock:
            if self._looked_for != id(listener) and now - self._looked_at < interval / 4:
                return
            self._looked_for, self._looked_at = id(listener), now
        self.look()

    def look(self) -> None:
        """Look at every circuit."""
        for breakers in self.survey().values():
            for name in {breaker.name for breaker in breakers}:
                self._look_at(name, breakers)

    def survey(self) -> dict[str, list[Any]]:
        """As `living`; circuits that are gone without a word are forgotten, since news may be lost on the way."""
        for name in {name for bus in {each.bus for each in self._open()} for name in bus.listeners()}:
            self._count(LISTENER_FAILURES, name, 0)
            self._count(EVENTS_DROPPED, name, 0)
        with self.lock:
            bound = [(circuit, circuit.version) for circuit in self._labels.values()]  # before the living are counted
        living = self.living()
        for circuit, version in bound:
            if circuit.label not in living:
                self._forget(circuit, version)
        return living

    def living(self) -> dict[str, list[Any]]:
        """The breakers that are observed and alive, by label."""
        found: dict[str, dict[int, Any]] = {}
        for subscription in self._open():
            for breaker in subscription.circuits():
                found.setdefault(printable(breaker.name), {})[id(breaker)] = breaker
        return {label: list(breakers.values()) for label, breakers in found.items()}

    def sharing(self, circuit: Circuit) -> list[Any]:
        """The breakers among the living that share this circuit's label, as far as they have told of themselves."""
        with self.lock:
            names = frozenset(circuit.names)
        breakers = (breaker for each in self._open() for breaker in each.namesakes(names))
        return list({id(breaker): breaker for breaker in breakers}.values())

    def detach(self) -> None:
        """A listener is gone; with the last, all circuits are. Else those that were its alone go with the next look."""
        with self.lock:
            observing = any(each.active for each in self._subscriptions)
            circuits = [] if observing else list(self._labels.values())
        for circuit in circuits:
            self._forget(circuit, circuit.version)

    def _open(self) -> list[Subscription]:
        with self.lock:
            return [each for each in self._subscriptions if each.active]

    def _look_at(self, name: str, breakers: list[Any]) -> None:
        circuit = self._circuits.get(name) or self._bind(name, Look.at(breakers[0]))
        with circuit.lock:
            circuit.shared = circuit.shared or len(breakers) > 1
            circuit.crowded = len(breakers) > _CROWD
            version, known = circuit.version, None if circuit.shared else circuit.look.rules
        self._show(circuit, [Look.at(breaker, known) for breaker in breakers], version)

    def _tell_look(self, circuit: Circuit, look: Look) -> None:
        if circuit.shared:
            self._look_again(circuit)
            return
        with circuit.lock:
            self._show(circuit, [look], self._next_version(circuit))

    def _look_again(self, circuit: Circuit) -> None:
        with circuit.lock:
            circuit.shared = True
            version = self._next_version(circuit)
        if circuit.crowded:
            return
        breakers = self.sharing(circuit)
        if breakers:
            circuit.crowded = len(breakers) > _CROWD
            self._show(circuit, [Look.at(breaker) for breaker in breakers], version)
            with circuit.lock:
                if circuit.version == version and len(breakers) == 1:  # nobody has joined it since
                    circuit.shared = False

    def _next_version(self, circuit: Circuit) -> int:
        with circuit.lock:
            if circuit.version != _GONE:
                circuit.version += 1
            return circuit.version

    def _show(self, circuit: Circuit, looks: list[Look], version: int) -> None:
        with circuit.lock:
            if circuit.version == version != _GONE:
                known, circuit.look = circuit.look, looks[0]
                if circuit.shared or not circuit.shown or looks[0] != known:  # most looks find nothing new
                    self.show(circuit, looks)

    # -- forks ----------------------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Let nobody measure, so that the child finds each measurement whole, and no lock of the library's held.

        What comes with calls is measured without a lock of ours, which would cost as much as a quarter of the library's
        own work. So those who are at it are waited for, and those who come later take the lock.
        """
        self._gate.acquire()  # several threads may fork at the same moment
        self.tell = self._tell_with_lock  # type: ignore[method-assign]
        deadline = time.monotonic() + _FORK_WAIT
        while self._is_measuring() and time.monotonic() < deadline:
            time.sleep(_FORK_LOOK)
        self.lock.acquire()
        self._forking = list(self._labels.values())
        for circuit in self._forking:
            circuit.lock.acquire()

    def _is_measuring(self) -> bool:
        """Whether another thread may measure without the lock."""
        with self.lock:
            subscriptions = list(self._subscriptions)
        me = get_ident()
        calls = sum(each.calls(here=False) for each in subscriptions)
        return calls > sum(thread != me for thread in self._locking)

    def _tell_with_lock(self, event: Any, exemplar: Any = None) -> None:
        circuit = self._circuits.get(event.circuit_name)
        if circuit is None or event.__class__ not in _OFTEN:  # they take it themselves
            Board.tell(self, event, exemplar)
            return
        me = get_ident()
        self._locking.append(me)
        try:
            with circuit.lock:
                Board.tell(self, event, exemplar)
        finally:
            self._locking.remove(me)

    def after_fork(self, *, child: bool) -> None:
        """Go on; a child shows everything anew, since its library may begin with nothing."""
        self.__dict__.pop("tell", None)
        for circuit in self._forking:
            if child:
                circuit.shown = {}
            circuit.lock.release()
        self._forking = []
        if child:
            self._locking = [thread for thread in self._locking if thread == get_ident()]
        self.lock.release()
        self._gate.release()


_boards = KeptWhole[Board]()
