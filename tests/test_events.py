"""Events: immutable values that travel anywhere, numbered without gaps, made only where somebody listens."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import threading
import types
import typing
import weakref
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from typing import Any, TypeAlias

import pytest

import fluxgate
from fluxgate import (
    Bus,
    CallNotPermittedError,
    CircuitBreaker,
    Cooldown,
    CountWindow,
    Custom,
    FailureRate,
    FailureStreak,
    MinRequests,
    Returned,
    State,
    TypeOf,
)
from fluxgate import events as module
from fluxgate import permits as every
from fluxgate._limits import Limits
from fluxgate.events import (
    CallCancelled,
    CallEnded,
    CallFailed,
    CallIgnored,
    CallRejected,
    CallStarted,
    CallSucceeded,
    CircuitCreated,
    CircuitRetired,
    Event,
    EventsDropped,
    FallbackUsed,
    LastError,
    ListenerFailed,
    Reconfigured,
    StateChanged,
    WouldOpen,
)
from fluxgate.metric import Metric, Verdict
from fluxgate.state import Trigger
from fluxgate.testing import EventRecorder, VirtualClock
from tests.running import PATIENCE, arrives, restless, together

Redact: TypeAlias = Callable[[Callable[[str], Any] | None], Any]

OUTCOMES = (CallSucceeded, CallFailed, CallIgnored, CallCancelled)

CONTRACT: dict[type[Event], set[str]] = {
    CallStarted: {"call_id"},
    CallSucceeded: {"call_id", "stale", "duration", "slow"},
    CallFailed: {"call_id", "stale", "duration", "error_type", "error"},
    CallIgnored: {"call_id", "stale", "duration", "error_type"},
    CallCancelled: {"call_id", "stale", "duration"},
    CallRejected: {"retry_after", "reason"},
    FallbackUsed: {"error_type"},
    StateChanged: {
        *("old_state", "new_state", "metrics", "verdict", "trigger", "wait"),
        *("reopens", "generation", "failing_since", "last_error", "trace_id", "span_id"),
    },
    WouldOpen: {"metrics", "verdict", "trace_id", "span_id"},
    Reconfigured: {"limits"},
    CircuitCreated: {"limits"},
    CircuitRetired: set(),
    ListenerFailed: {"listener", "role", "error_type", "error", "count"},
    EventsDropped: {"listener", "count"},
}

VALUES: dict[str, Any] = {
    "circuit_name": "payments",
    "timestamp": 1_700_000_000.25,
    "sequence": 7,
    "state": State.OPEN,
    "call_id": 3,
    "duration": 0.5,
    "stale": False,
    "slow": True,
    "error_type": "ConnectionError",
    "error": "no route",
    "retry_after": None,
    "reason": "open",
    "old_state": State.CLOSED,
    "new_state": State.OPEN,
    "trigger": Trigger.TRIPPER,
    "metrics": Metric(total_count=10, failure_count=6, total_duration=1.5, slow_count=2, slow_counts={0.5: 1}),
    "verdict": Verdict("FailureRate(0.5)", True, "failure rate 60.0 % (limit 50.0 %)", 0.6, 0.5),
    "wait": 60.0,
    "reopens": 1,
    "generation": 4,
    "failing_since": 1_699_999_990.0,
    "last_error": LastError(type="ConnectionError", text="no route"),
    "window": "CountWindow(100)",
    "tracker": "All()",
    "tripper": "FailureStreak(1)",
    "retry": "Cooldown(60)",
    "permit": "All()",
    "limits": {"failure_streak": 1.0},
    "changed": ("tripper", "retry"),
    "listener": "Listener",
    "role": "listener",
    "count": 2,
    "trace_id": "0af7651916cd43dd8448eb211c80319c",
    "span_id": "b7ad6b7169203331",
}

each_kind = pytest.mark.parametrize("kind", CONTRACT, ids=lambda kind: kind.__name__)


def fields(kind: type[Any]) -> list[str]:
    return [name for base in reversed(kind.__mro__) for name in getattr(base, "__slots__", ())]


def sample(kind: type[Event], **changes: Any) -> Event:
    return kind(**{name: VALUES[name] for name in fields(kind)} | changes)


def hints(kind: type[Any]) -> dict[str, Any]:
    found = typing.get_type_hints(kind)
    return {name: hint for name, hint in found.items() if typing.get_origin(hint) is not typing.ClassVar}


def fits(value: object, hint: Any) -> bool:
    """Whether the value is of the annotated type, to the letter: an int is no float."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, each) for each in arguments)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(map(fits, each, arguments) for each in value.items())
    if origin is tuple:
        return type(value) is tuple and all(fits(each, arguments[0]) for each in value)
    return type(value) is hint


# -- values ---------------------------------------------------------------------------------------------------------


def test_the_event_types_are_those_of_the_contract() -> None:
    """The fourteen types exist, no others do, and `Signal` is another name of `StateChanged`."""
    assert set(module.EVENT_TYPES) == set(CONTRACT)
    assert fluxgate.Signal is module.Signal is StateChanged


@each_kind
def test_every_event_has_the_common_fields_and_its_own(kind: type[Event]) -> None:
    """Each type has circuit_name, timestamp, sequence and state, and what the contract names for it."""
    assert {"circuit_name", "timestamp", "sequence", "state"} | CONTRACT[kind] <= set(fields(kind))


@each_kind
def test_every_field_is_annotated(kind: type[Event]) -> None:
    """Type checkers know each field of an event, and no field that it lacks."""
    assert set(hints(kind)) == set(fields(kind))


@each_kind
def test_an_event_cannot_be_changed(kind: type[Event]) -> None:
    """No field of an event, nor its class, can be set or deleted, and no attribute can be added."""
    event, twin = sample(kind), sample(kind)
    for name in [*fields(kind), "anything", "__class__"]:
        with pytest.raises(AttributeError, match=name):
            setattr(event, name, State.CLOSED)
        with pytest.raises(AttributeError, match=name):
            delattr(event, name)
    assert event == twin


@each_kind
def test_an_event_has_slots_alone(kind: type[Event]) -> None:
    """No event has a `__dict__`, since no class that it derives from leaves its slots out."""
    assert not hasattr(sample(kind), "__dict__")
    assert all("__slots__" in vars(base) for base in kind.__mro__ if base is not object)


@each_kind
def test_events_are_equal_by_type_and_values(kind: type[Event]) -> None:
    """Two events with the same values are equal and hash alike; one other value, or another type, and they differ."""
    event = sample(kind)
    assert event == sample(kind)
    assert hash(event) == hash(sample(kind))
    assert {event, sample(kind)} == {event}
    for name in fields(kind):
        assert event != sample(kind, **{name: "something else"}), name
    assert event != fields(kind)
    bare = Event(circuit_name="payments", timestamp=1_700_000_000.25, sequence=7, state=State.OPEN)
    assert event != bare


@each_kind
def test_an_events_repr_shows_its_type_and_every_value(kind: type[Event]) -> None:
    """The repr names the type and each field with its value."""
    text = repr(sample(kind))
    assert text.startswith(f"{kind.__name__}(")
    for name in fields(kind):
        assert f"{name}={VALUES[name]!r}" in text


@each_kind
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_event_pickles(kind: type[Event], protocol: int) -> None:
    """Every pickle protocol gives back an equal event of the same type, as immutable as before."""
    event = sample(kind)
    again = pickle.loads(pickle.dumps(event, protocol))
    assert type(again) is kind
    assert again == event
    with pytest.raises(AttributeError, match="sequence"):
        setattr(again, "sequence", 8)  # noqa: B010


@each_kind
def test_an_event_copies(kind: type[Event]) -> None:
    """A copy, shallow or deep, equals its original and is immutable."""
    event = sample(kind)
    for again in (copy.copy(event), copy.deepcopy(event), copy.deepcopy([event])[0]):
        assert type(again) is kind
        assert again == event
        with pytest.raises(AttributeError, match="sequence"):
            setattr(again, "sequence", 8)  # noqa: B010


@each_kind
def test_an_events_dict_is_ready_for_json(kind: type[Event]) -> None:
    """`to_dict` gives the type's name and every field in plain types that survive JSON unchanged."""
    plain = sample(kind).to_dict()
    assert set(plain) == {"event", *fields(kind)}
    assert plain["event"] == kind.__name__
    assert plain["state"] == "open"
    assert type(plain["state"]) is str
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


def test_a_state_changes_dict_holds_the_whole_explanation() -> None:
    """The figures, the sentence and the tree of the verdict, and the last error, are all in the dict."""
    plain = sample(StateChanged).to_dict()
    assert plain["metrics"]["failure_rate"] == 0.6
    assert plain["metrics"]["slow_counts"] == {"0.5": 1}
    assert plain["verdict"] == VALUES["verdict"].to_dict()
    assert plain["last_error"] == {"type": "ConnectionError", "text": "no route"}
    assert plain["trigger"] == "tripper"
    assert sample(Reconfigured).to_dict()["changed"] == ["tripper", "retry"]


@pytest.mark.parametrize("kind", [StateChanged, WouldOpen])
def test_the_reason_is_the_verdicts_sentence(kind: type[StateChanged | WouldOpen]) -> None:
    """`reason` gives in words why the circuit moved, or would have."""
    event = sample(kind)
    assert isinstance(event, (StateChanged, WouldOpen))
    assert event.reason == "failure rate 60.0 % (limit 50.0 %)"


@each_kind
def test_an_event_says_what_its_constructor_lacks(kind: type[Event]) -> None:
    """A missing and an unknown field are named, and positional arguments are refused."""
    make: Any = kind
    known = {name: VALUES[name] for name in fields(kind)}
    missing = {name: value for name, value in known.items() if name != "sequence"}
    with pytest.raises(TypeError, match=rf"{kind.__name__}.*sequence"):
        make(**missing)
    with pytest.raises(TypeError, match=rf"{kind.__name__}.*colour"):
        make(**known, colour="red")
    with pytest.raises(TypeError):
        make(*known.values())


# -- a circuit through all its events -------------------------------------------------------------------------------


def boom(text: str = "no route") -> None:
    raise ConnectionError(text)


def interrupt() -> None:
    raise KeyboardInterrupt


def circuit(bus: Bus, clock: Any = None, **rules: Any) -> CircuitBreaker:
    """Trips on one failure, waits 10 s, admits every probe."""
    defaults: dict[str, Any] = {"tripper": FailureStreak(1), "retry": Cooldown(10), "permit": every.All()}
    return CircuitBreaker("payments", bus=bus, clock=clock or VirtualClock(), **defaults | rules)


def fail(cb: CircuitBreaker, error: BaseException | None = None) -> None:
    """One call that raises."""
    call = cb.acquire()
    call.failure(ConnectionError("no route") if error is None else error)


def drive(bus: Bus) -> None:
    """Have one circuit of the bus do all that a circuit can."""
    clock = VirtualClock(time=1_700_000_000.5)
    cb = circuit(bus, clock, tracker=TypeOf(ConnectionError))
    cb.call(clock.advance, 0.25)
    with pytest.raises(ValueError, match="ignored"):
        with cb:
            raise ValueError("ignored")
    with pytest.raises(KeyboardInterrupt):
        cb.call(interrupt)
    cb.call_with_fallback(boom, lambda error: None)
    with pytest.raises(CallNotPermittedError):
        cb.call(boom)
    clock.advance(11)
    cb.call(int)
    cb.metrics_only()
    fail(cb)
    cb.configure(retry=Cooldown(20))
    cb.retire()


def drive_faults(bus: Bus) -> None:
    """Have a listener of the bus raise, and another one miss an event."""
    inside, gate = threading.Event(), threading.Event()

    def broken(event: StateChanged) -> None:
        raise ValueError("broken listener")

    def blocked(event: StateChanged) -> None:
        inside.set()
        gate.wait(PATIENCE)

    cb = circuit(bus)
    with bus.attach(broken), bus.attach(blocked, delivery="background", queue_size=1):
        cb.force_open()
        assert arrives(inside)
        cb.reset()
        cb.disable()
        gate.set()


@pytest.fixture(scope="module")
def story() -> list[Event]:
    """What two circuits tell to somebody who listens to everything."""
    bus, recorder = Bus(), EventRecorder()
    with bus.attach(recorder):
        drive(bus)
        drive_faults(bus)
    return recorder.events_seen


def test_the_story_holds_every_type(story: list[Event]) -> None:
    """A circuit's life publishes each of the fourteen types."""
    assert {type(event) for event in story} == set(CONTRACT)


def test_live_values_are_what_their_annotations_say(story: list[Event]) -> None:
    """Each value of each published event is exactly of its annotated type."""
    for event in story:
        for name, hint in hints(type(event)).items():
            assert fits(getattr(event, name), hint), f"{type(event).__name__}.{name} of {event}"


def test_live_events_travel(story: list[Event]) -> None:
    """Each published event is locked, hashes, pickles and becomes JSON."""
    for event in story:
        with pytest.raises(AttributeError, match="sequence"):
            setattr(event, "sequence", 0)  # noqa: B010
        again = pickle.loads(pickle.dumps(event))
        assert (again, hash(again), type(again)) == (event, hash(event), type(event))
        assert json.loads(json.dumps(event.to_dict(), allow_nan=False)) == event.to_dict()


def leaves(value: Any) -> Generator[object, None, None]:
    """The plain values that an event is made of."""
    if isinstance(value, (Event, Metric, Verdict, LastError)):
        for name in fields(type(value)):
            yield from leaves(getattr(value, name))
    elif isinstance(value, (types.MappingProxyType, Limits)):
        for key, each in value.items():
            yield from leaves((key, each))
    elif type(value) is tuple:
        for each in value:
            yield from leaves(each)
    else:
        yield value


def test_live_events_hold_plain_values_alone(story: list[Event]) -> None:
    """However deep one looks, an event holds words and numbers, and no object of the user's."""
    for event in story:
        for leaf in leaves(event):
            assert type(leaf) in (str, int, float, bool, type(None), State, Trigger), f"{leaf!r} in {event}"


def test_the_state_is_that_of_the_moment(story: list[Event]) -> None:
    """Each event carries the state in which it happened; a change, the state that it led to."""
    for event in story:
        if isinstance(event, StateChanged):
            assert event.state is event.new_state
    rejected = next(event for event in story if isinstance(event, CallRejected))
    assert rejected.state is State.OPEN
    assert next(event for event in story if isinstance(event, WouldOpen)).state is State.METRICS_ONLY


def test_a_failure_is_told_before_the_change_that_it_causes() -> None:
    """The order of events is that of cause and effect."""
    recorder = EventRecorder()
    cb = circuit(Bus(), listeners=[recorder])
    cb.call_with_fallback(boom, lambda error: None)
    told = [type(event) for event in recorder.events_seen]
    assert told == [CircuitCreated, CallStarted, CallFailed, StateChanged, FallbackUsed]


# -- numbers --------------------------------------------------------------------------------------------------------


def numbers(*recorders: EventRecorder) -> list[int]:
    return [event.sequence for recorder in recorders for event in recorder.events_seen]


def test_each_circuit_numbers_its_own_events_without_a_gap() -> None:
    """A listener to everything sees 1, 2, 3, ... from each circuit, two circuits of one name included."""
    bus, recorder = Bus(), EventRecorder()
    bus.attach(recorder)
    circuits = [circuit(bus), circuit(bus)]
    told: list[list[int]] = []
    for cb in circuits:
        recorder.clear()
        cb.force_open()
        fail_refused(cb)
        cb.reset()
        told.append(numbers(recorder))
    assert told == [[2, 3, 4], [2, 3, 4]]


def fail_refused(cb: CircuitBreaker) -> None:
    with pytest.raises(CallNotPermittedError):
        cb.call(int)


@pytest.mark.parametrize("kind", [StateChanged, CallFailed, CallRejected, CallStarted, CallEnded])
def test_numbers_count_what_was_published_alone(kind: type[Event]) -> None:
    """A listener to one type sees no gap either, whatever else happened that nobody listened to."""
    bus, recorder = Bus(), EventRecorder(kind)
    bus.attach(recorder)
    drive(bus)
    assert recorder.events_seen
    assert numbers(recorder) == list(range(1, len(recorder.events_seen) + 1))


def test_listeners_to_different_types_share_the_numbers() -> None:
    """What two listeners see is gapless together, and in order for each."""
    bus = Bus()
    parts = [EventRecorder(CallStarted, StateChanged), EventRecorder(CallEnded), EventRecorder(StateChanged)]
    for part in parts:
        bus.attach(part)
    drive(bus)
    for part in parts:
        assert numbers(part) == sorted(set(numbers(part)))
    assert set(numbers(*parts)) == set(range(1, max(numbers(*parts)) + 1))
    assert set(parts[2].events_seen) < set(parts[0].events_seen)


def test_attaching_and_detaching_leave_no_gap() -> None:
    """Listeners that come and go change which events are published, not how they are numbered."""
    bus, whole = Bus(), EventRecorder(StateChanged)
    bus.attach(whole)
    cb = circuit(bus)
    seen: list[Event] = []
    for _ in range(3):
        passing = EventRecorder(CallSucceeded)
        with cb.attach(passing):
            cb.call(int)
        cb.call(int)
        cb.force_open()
        cb.reset()
        seen += passing.events_seen
    assert sorted(numbers(whole) + [event.sequence for event in seen]) == list(range(1, 10))


# -- only for those who listen --------------------------------------------------------------------------------------


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the event objects that are made, by type."""
    counter: Counter[str] = Counter()

    def counting(kind: type[Event], drafts: type[Any]) -> Callable[[], Any]:
        def make() -> Any:
            counter[kind.__name__] += 1
            return drafts()

        return make

    for kind in module.EVENT_TYPES:
        monkeypatch.setattr(kind, "drafts", staticmethod(counting(kind, kind.drafts)))
    return counter


def test_nothing_is_made_where_nobody_listens(made: Counter[str]) -> None:
    """Without listeners not one event object comes into being."""
    drive(Bus())
    assert not made


@each_kind
def test_only_what_somebody_listens_to_is_made(kind: type[Event], made: Counter[str]) -> None:
    """A listener to one type makes events of that type, each once, and of no other."""
    bus, recorder = Bus(), EventRecorder(kind)
    bus.attach(recorder)
    drive(bus)
    assert made == Counter({kind.__name__: len(recorder.events_seen)})
    assert recorder.events_seen or kind in (ListenerFailed, EventsDropped)


def test_a_failing_listener_that_nobody_asks_about_makes_no_event(made: Counter[str]) -> None:
    """`ListenerFailed` and `EventsDropped` are made for their listeners alone, too."""
    drive_faults(Bus())
    assert set(made) == {"StateChanged"}


def test_another_circuits_listener_makes_no_event_here(made: Counter[str]) -> None:
    """Who observes one circuit, or those of one pattern, costs the others nothing."""
    bus = Bus()
    watched, other = circuit(bus), circuit(bus)
    recorder = EventRecorder()
    watched.attach(recorder)
    bus.attach(recorder, circuits="orders-*")
    other.call(int)
    other.force_open()
    assert not made
    watched.call(int)
    assert made == {"CallStarted": 1, "CallSucceeded": 1}


def test_no_event_is_made_once_the_listener_has_gone(made: Counter[str]) -> None:
    """After its last listener has detached, a circuit makes events no more."""
    bus = Bus()
    with bus.attach(EventRecorder()):
        cb = circuit(bus)
    made.clear()
    cb.call(int)
    cb.force_open()
    assert not made


# -- calls ----------------------------------------------------------------------------------------------------------


def test_an_outcome_carries_the_id_of_its_start() -> None:
    """Of overlapping calls, each outcome names the call that it ends, and no two calls share an id."""
    recorder = EventRecorder()
    cb = circuit(Bus(), tripper=FailureStreak(99), tracker=TypeOf(ConnectionError), listeners=[recorder])
    calls = [cb.acquire() for _ in range(4)]
    ids = [event.call_id for event in recorder.of(CallStarted)]
    assert len(set(ids)) == 4
    calls[2].success()
    calls[0].failure(ConnectionError())
    calls[3].cancel()
    calls[1].failure(ValueError())
    ended = recorder.of(CallEnded)
    assert [event.call_id for event in ended] == [ids[2], ids[0], ids[3], ids[1]]
    assert [type(event) for event in ended] == [CallSucceeded, CallFailed, CallCancelled, CallIgnored]


def test_a_call_that_is_settled_twice_ends_once() -> None:
    """The second settlement of a call publishes nothing."""
    recorder = EventRecorder(CallEnded)
    call = circuit(Bus(), listeners=[recorder]).acquire()
    call.success()
    call.success()
    call.failure(ConnectionError())
    call.cancel()
    assert [type(event) for event in recorder.events_seen] == [CallSucceeded]


@pytest.mark.parametrize("kind", OUTCOMES)
def test_ids_are_unique_where_nobody_hears_the_starts(kind: type[CallEnded]) -> None:
    """Outcomes have ids of their own calls even where `CallStarted` has no listener."""
    recorder = EventRecorder(kind)
    cb = circuit(Bus(), tripper=FailureStreak(99), tracker=TypeOf(ConnectionError), listeners=[recorder])
    ends: dict[type[CallEnded], Callable[[fluxgate.Call], None]] = {
        CallSucceeded: lambda call: call.success(),
        CallFailed: lambda call: call.failure(ConnectionError()),
        CallIgnored: lambda call: call.failure(ValueError()),
        CallCancelled: lambda call: call.cancel(),
    }
    for _ in range(3):
        for end in ends.values():
            end(cb.acquire())
    ids = [event.call_id for event in recorder.of(CallEnded)]
    assert len(ids) == len(set(ids)) == 3


def test_every_start_has_one_end_under_threads() -> None:
    """Calls from many threads at once: each start has one outcome of its id, later in the sequence."""
    recorder = EventRecorder(CallStarted, CallEnded)
    cb = circuit(Bus(), tripper=FailureStreak(10**6), listeners=[recorder])

    def calls() -> None:
        for number in range(100):
            cb.call_with_fallback(boom if number % 3 == 0 else str, lambda error: None)

    with restless():
        together(*[calls] * 4)
    started = {event.call_id: event.sequence for event in recorder.of(CallStarted)}
    ended = {event.call_id: event.sequence for event in recorder.of(CallEnded)}
    assert len(started) == len(ended) == 400
    assert started.keys() == ended.keys()
    assert all(started[call_id] < ended[call_id] for call_id in started)
    assert numbers(recorder) == list(range(1, 801))


@pytest.mark.parametrize("error", [None, ConnectionError(), ValueError(), KeyboardInterrupt()])
def test_an_outcome_of_an_earlier_generation_is_stale(error: BaseException | None) -> None:
    """A call that outlives a change of state is told as stale, whatever its outcome; the next one is not."""
    recorder = EventRecorder(CallEnded)
    cb = circuit(Bus(), tracker=TypeOf(ConnectionError), listeners=[recorder])
    late = cb.acquire()
    cb.force_open()
    cb.reset()
    in_time = cb.acquire()
    for call in (late, in_time):
        call.success() if error is None else call.failure(error)
    assert [event.stale for event in recorder.of(CallEnded)] == [True, False]
    assert cb.info().metrics.total_count == (1 if error is None or isinstance(error, ConnectionError) else 0)


def test_the_outcome_of_a_probe_that_lost_its_place_is_stale() -> None:
    """A probe that settles after `half_open_timeout` decides nothing and says so."""
    clock, recorder = VirtualClock(), EventRecorder(CallEnded, StateChanged)
    cb = circuit(Bus(), clock, half_open_timeout=5, listeners=[recorder])
    fail(cb)
    clock.advance(10)
    probe = cb.acquire()
    clock.advance(5)
    recorder.clear()
    probe.success()
    assert [(type(event), getattr(event, "stale", None)) for event in recorder.events_seen] == [(CallSucceeded, True)]
    assert cb.state is State.HALF_OPEN


def test_timestamps_are_wall_time_and_durations_are_not() -> None:
    """A wall clock that jumps shows in the timestamps; durations follow the monotonic clock."""
    clock, recorder = VirtualClock(monotonic=500.0, time=1_000.0), EventRecorder(CallStarted, CallEnded)
    cb = circuit(Bus(), clock, listeners=[recorder])
    call = cb.acquire()
    clock.advance(3)
    clock.set_time(200.0)
    call.success()
    start, end = recorder.of(CallStarted)[0], recorder.of(CallSucceeded)[0]
    assert (start.timestamp, end.timestamp, end.duration) == (1_000.0, 200.0, 3.0)


def test_a_call_is_slow_from_the_threshold_on() -> None:
    """`slow` is set on a success and on a failure that reached `slow_threshold`, and on no shorter one."""
    clock, recorder = VirtualClock(), EventRecorder(CallSucceeded, CallFailed)
    cb = circuit(Bus(), clock, tripper=FailureStreak(99), slow_threshold=2.0, listeners=[recorder])
    for seconds in (1.5, 2.0):
        for error in (None, ConnectionError()):
            call = cb.acquire()
            clock.advance(seconds)
            call.success() if error is None else call.failure(error)
    flags = [(type(event).__name__, getattr(event, "slow", None)) for event in recorder.events_seen]
    assert flags == [
        ("CallSucceeded", False),
        ("CallFailed", False),
        ("CallSucceeded", True),
        ("CallFailed", True),
    ]


# -- error texts ----------------------------------------------------------------------------------------------------


@pytest.fixture
def redact() -> Generator[Redact, None, None]:
    """`fluxgate.redact`, forgotten afterwards."""
    register: Any = fluxgate.redact
    yield register
    register(None)


def texts(error: Exception) -> list[str]:
    """The error as each event that carries its text shows it."""
    bus, recorder = Bus(), EventRecorder(CallFailed, StateChanged, WouldOpen, ListenerFailed)
    bus.attach(recorder)

    def broken(event: Event) -> None:
        raise error

    cb = circuit(bus)
    fail(cb, error)
    cb.metrics_only()
    fail(cb, error)
    with bus.attach(broken, CallStarted):
        cb.acquire().cancel()
    shown = [event.error for event in recorder.events_seen if isinstance(event, (CallFailed, ListenerFailed))]
    changes = [event for event in recorder.events_seen if isinstance(event, (StateChanged, WouldOpen))]
    shown += [event.last_error.text for event in changes if event.last_error is not None]
    assert len(shown) >= 5
    return shown


def test_an_error_is_told_by_type_and_text() -> None:
    """The type's name, with its module where that is not Python's own, and the message."""

    class Refused(ConnectionError):
        pass

    recorder = EventRecorder(CallFailed, StateChanged)
    cb = circuit(Bus(), tripper=FailureStreak(2), listeners=[recorder])
    fail(cb, Refused("by peer"))
    fail(cb, TimeoutError("too late"))
    first, second = recorder.of(CallFailed)
    assert first.error_type == f"{__name__}.{Refused.__qualname__}"
    assert (first.error, second.error_type, second.error) == ("by peer", "TimeoutError", "too late")
    change = recorder.of(StateChanged)[0]
    assert change.last_error == LastError(type="TimeoutError", text="too late")
    assert str(change.last_error) == "TimeoutError: too late"


@pytest.mark.parametrize("length", [199, 200, 201, 5_000, 20_000_000])
def test_error_texts_are_cut_at_200_characters(length: int) -> None:
    """In whatever event, a message longer than 200 characters is cut to them, and shorter ones stay whole."""
    message = "x" * length
    for text in texts(ConnectionError(message)):
        assert len(text) == min(length, 200)
        assert text[:199] == message[:199]


def test_error_texts_pass_through_the_users_function(redact: Redact) -> None:
    """What `fluxgate.redact` was given decides what every event shows of a message."""

    def no_tokens(text: str) -> str:
        return text.replace("s3cret", "***")

    redact(no_tokens)

    assert set(texts(ConnectionError("GET /?token=s3cret"))) == {"GET /?token=***"}
    redact(None)
    assert set(texts(ConnectionError("GET /?token=s3cret"))) == {"GET /?token=s3cret"}


def test_a_secret_at_the_cut_is_redacted_whole(redact: Redact) -> None:
    """Redaction comes before the cut: half a token would not be recognised, and be shown."""

    def no_tokens(text: str) -> str:
        return text.replace("s3cret", "***")

    redact(no_tokens)

    for padding in range(193, 201):
        for text in texts(ConnectionError("x" * padding + "s3cret")):
            assert "s3" not in text


def test_what_was_redacted_to_more_is_cut_again(redact: Redact) -> None:
    """A replacement that is longer than what it replaces keeps to the 200 characters."""
    redact(lambda text: text * 100)
    assert {len(text) for text in texts(ConnectionError("no route"))} == {200}


@pytest.mark.parametrize("fault", [ValueError("cannot say s3cret"), RecursionError(), StopIteration()])
def test_what_cannot_be_redacted_is_withheld(
    redact: Redact, fault: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the user's function raises, no event shows the text, the caller is unharmed and the log says so once."""

    def broken(text: str) -> str:
        raise fault

    redact(broken)

    for text in texts(ConnectionError("GET /?token=s3cret")):
        assert "s3cret" not in text
        assert "withheld" in text
    assert [record.getMessage().count("fluxgate.redact") for record in caplog.records].count(1) == 1


def test_a_traceback_in_the_log_is_redacted_with_all_that_it_quotes(
    redact: Redact, caplog: pytest.LogCaptureFixture
) -> None:
    """What a tracker and a listener raise is logged with its frames; neither its text nor the call's escapes."""

    def tracker(error: BaseException) -> bool:
        raise LookupError("s3cret in the tracker")

    def listener(event: Event) -> None:
        raise LookupError("s3cret in the listener")

    def call() -> None:
        raise ConnectionError("GET /?token=s3cret")

    redact(lambda text: text.replace("s3cret", "***"))
    cb = CircuitBreaker("payments", tracker=Custom(tracker), listeners=[listener], bus=Bus())
    cb.call_with_fallback(call, lambda error: None)
    cb.force_open()
    logged = caplog.text
    assert "s3cret" not in logged
    assert not any(record.exc_info for record in caplog.records), "whose handlers would show the error itself"
    for quoted in ("in tracker\n", "*** in the tracker", "in listener\n", "*** in the listener", "token=***"):
        assert quoted in logged


def test_a_redacting_function_that_fails_is_shown_by_its_frames(
    redact: Redact, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says where it failed and with which type; its own text, which may quote what it got, is withheld."""

    def broken(text: str) -> str:
        raise LookupError(text)

    redact(broken)
    texts(ConnectionError("GET /?token=s3cret"))
    assert "s3cret" not in caplog.text
    assert "in broken\n" in caplog.text
    assert "LookupError" in caplog.text


def test_an_answer_that_is_no_text_is_no_leak(redact: Redact) -> None:
    """A redacting function that forgets to return shows nothing of the message."""
    redact(lambda text: None)
    assert all("s3cret" not in text for text in texts(ConnectionError("s3cret")))


class Raising:
    """Whatever it is plugged in as, it raises while the call's own error is about."""

    def __call__(self, *args: Any) -> Any:
        raise LookupError("posting token=s3cret")

    def wait(self, reopens: int) -> float:
        raise LookupError("posting token=s3cret")

    hint = wait


@pytest.mark.parametrize("role", ["tracker", "tripper", "retry", "listener"])
def test_tracebacks_in_the_log_are_redacted(redact: Redact, caplog: pytest.LogCaptureFixture, role: str) -> None:
    """What fails is logged with its traceback, which shows the call's own error as well: neither shows a secret."""
    redact(lambda text: text.replace("s3cret", "***"))
    broken: dict[str, Any] = {"listeners": [Raising()]} if role == "listener" else {role: Raising()}
    rules: dict[str, Any] = {"tripper": FailureStreak(1), **broken}
    fail(circuit(Bus(), **rules), ConnectionError("GET /?token=s3cret"))
    (record,) = caplog.records
    assert "Traceback (most recent call last)" in caplog.text
    assert "LookupError: posting token=***" in caplog.text
    assert "s3cret" not in caplog.text
    assert record.exc_info is None


class Mute(ConnectionError):
    """An exception whose text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


class Numeric(ConnectionError):
    """An exception whose text is none."""

    def __str__(self) -> str:
        return 404  # type: ignore[return-value]


@pytest.mark.parametrize("error", [Mute(), Numeric()])
def test_an_exception_without_readable_text_is_told_all_the_same(error: Exception) -> None:
    """A broken `__str__` costs the text, not the event, and not the caller."""
    assert all("no readable text" in text for text in texts(error))


class Clinging(str):
    """A text that holds on to an object."""

    __slots__ = ("held",)

    held: object


class Rich(ConnectionError):
    """An exception whose text is more than a text."""

    def __str__(self) -> str:
        text = Clinging("rich")
        text.held = self
        return text


def test_no_event_keeps_the_error_alive() -> None:
    """The error, its traceback's locals and its clinging text are freed while the events and the circuit live on."""
    recorder = EventRecorder()
    cb = circuit(Bus(), listeners=[recorder])

    class Local:
        pass

    def raising() -> None:
        local = Local()
        watched.append(weakref.ref(local))
        error = Rich()
        watched.append(weakref.ref(error))
        try:
            raise error
        finally:
            del error

    watched: list[weakref.ref[Any]] = []
    gc.disable()
    try:
        with pytest.raises(Rich):
            cb.call(raising)
        cb.metrics_only()
        with pytest.raises(Rich):
            cb.call(raising)
        assert [reference() for reference in watched] == [None] * 4
    finally:
        gc.enable()
    change = recorder.of(StateChanged)[0]
    assert change.last_error is not None
    assert (change.last_error.text, type(change.last_error.text)) == ("rich", str)


def test_a_value_that_was_judged_a_failure_is_not_kept_either() -> None:
    """Of a result that the tracker refused, the events keep the type and not the value."""

    class Response:
        def __repr__(self) -> str:
            return "s3cret"

    recorder = EventRecorder()
    cb = circuit(Bus(), tracker=Returned(lambda value: True), listeners=[recorder])
    response = Response()
    watched = weakref.ref(response)
    cb.acquire().success(response)
    del response
    assert watched() is None
    failed = recorder.of(CallFailed)[0]
    assert failed.error_type.endswith("Response")
    assert "s3cret" not in repr(recorder.events_seen)


def test_the_text_for_a_judged_value_keeps_to_the_rules_of_all_error_texts(redact: Redact) -> None:
    """What explains a failure by value is cut and redacted like any message."""

    def a_predicate(value: object) -> bool:
        return True

    a_predicate.__qualname__ = "judges_s3cret_" + "x" * 300
    redact(lambda text: text.replace("s3cret", "***"))
    recorder = EventRecorder(CallFailed, StateChanged)
    cb = circuit(Bus(), tracker=Returned(a_predicate), listeners=[recorder])
    cb.call(int)
    failed, change = recorder.of(CallFailed)[0], recorder.of(StateChanged)[0]
    assert change.last_error is not None
    for text in (failed.error, change.last_error.text):
        assert len(text) <= 200
        assert "s3cret" not in text


# -- what led to a change -------------------------------------------------------------------------------------------


def test_failing_since_is_the_first_failure_in_the_window() -> None:
    """`failing_since` is the wall time of the oldest failure that the window still holds."""
    clock, recorder = VirtualClock(time=1_000.0), EventRecorder(StateChanged)
    cb = circuit(Bus(), clock, window=CountWindow(3), tripper=FailureStreak(3), listeners=[recorder])
    fail(cb)
    cb.call(int)
    for _ in range(3):
        clock.advance(10)
        fail(cb)
    change = recorder.of(StateChanged)[0]
    assert change.failing_since == 1_010.0
    assert change.metrics.failure_count == 3


def test_an_opening_tells_how_long_and_how_often() -> None:
    """`wait`, `reopens` and `generation` follow the circuit through a failed recovery to its end."""
    clock, recorder = VirtualClock(), EventRecorder(StateChanged)
    cb = circuit(Bus(), clock, listeners=[recorder])
    fail(cb)
    clock.advance(10)
    fail(cb)
    clock.advance(10)
    cb.call(int)
    told = [(event.new_state, event.trigger, event.wait, event.reopens) for event in recorder.of(StateChanged)]
    assert told == [
        (State.OPEN, Trigger.TRIPPER, 10.0, 0),
        (State.HALF_OPEN, Trigger.RETRY, None, 0),
        (State.OPEN, Trigger.TRIPPER, 10.0, 1),
        (State.HALF_OPEN, Trigger.RETRY, None, 1),
        (State.CLOSED, Trigger.RECOVERY, None, 0),
    ]
    generations = [event.generation for event in recorder.of(StateChanged)]
    assert generations == list(range(generations[0], generations[0] + 5))


def test_an_opening_that_only_a_person_can_end_waits_for_nobody() -> None:
    """Where the retry never tries again, `wait` is None and the refusals' `retry_after` is too."""
    recorder = EventRecorder(StateChanged, CallRejected)
    cb = circuit(Bus(), retry=fluxgate.Never(), listeners=[recorder])
    fail(cb)
    fail_refused(cb)
    assert recorder.of(StateChanged)[0].wait is None
    assert recorder.of(CallRejected)[0].retry_after is None


def test_a_refusal_says_why() -> None:
    """`reason` tells an open circuit, a forced one, a full one and an unlucky draw apart."""
    clock, recorder = VirtualClock(), EventRecorder(CallRejected)
    cb = circuit(Bus(), clock, max_half_open_calls=1, listeners=[recorder])
    fail(cb)
    clock.advance(4)
    fail_refused(cb)
    clock.advance(6)
    probe = cb.acquire()
    fail_refused(cb)
    probe.cancel()
    cb.configure(permit=lambda elapsed: False)
    fail_refused(cb)
    cb.force_open()
    fail_refused(cb)
    told = [(event.reason, event.retry_after) for event in recorder.of(CallRejected)]
    assert told == [("open", 6.0), ("probes_in_flight", 0.0), ("not_chosen", 0.0), ("forced_open", None)]


def test_created_and_reconfigured_give_the_rules_in_words() -> None:
    """`CircuitCreated` describes the rules, `Reconfigured` those in force afterwards and which were given."""
    recorder = EventRecorder(CircuitCreated, Reconfigured)
    cb = circuit(Bus(), listeners=[recorder])
    cb.configure(retry=Cooldown(20), slow_threshold=3)
    created, changed = recorder.of(CircuitCreated)[0], recorder.of(Reconfigured)[0]
    assert (created.window, created.tripper) == (repr(CountWindow(100)), repr(FailureStreak(1)))
    assert (created.retry, changed.retry) == (repr(Cooldown(10)), repr(Cooldown(20)))
    assert (created.permit, changed.permit) == (repr(every.All()), repr(every.All()))
    assert set(changed.changed) == {"retry", "slow_threshold"}


def test_created_and_reconfigured_give_the_limits_as_figures() -> None:
    """`limits` are the tripper's by kind, those in force after `configure`; a rule of the user's has none."""
    recorder = EventRecorder(CircuitCreated, Reconfigured)
    cb = circuit(Bus(), listeners=[recorder])
    cb.configure(tripper=MinRequests(4) & FailureRate(0.5))
    cb.configure(tripper=lambda metric, state, failures: False)
    (created,), changed = recorder.of(CircuitCreated), recorder.of(Reconfigured)
    assert created.limits == {"failure_streak": 1.0}
    assert [each.limits for each in changed] == [{"min_requests": 4.0, "failure_rate": 0.5}, {}]
    assert changed[0].to_dict()["limits"] == {"min_requests": 4.0, "failure_rate": 0.5}


@pytest.mark.parametrize("kind", [CircuitCreated, Reconfigured])
def test_the_limits_of_an_event_cannot_be_changed(kind: type[CircuitCreated | Reconfigured]) -> None:
    """An event keeps figures of its own, which nobody can set, not even through the dict that it was made from."""
    given = {"failure_rate": 0.5}
    event: Any = sample(kind, limits=given)
    given["failure_rate"] = 0.1
    with pytest.raises(TypeError):
        event.limits["failure_rate"] = 0.2
    event.to_dict()["limits"].clear()
    assert event.limits == {"failure_rate": 0.5}


def test_what_configure_refuses_is_not_told() -> None:
    """A `configure` that raises publishes nothing."""
    recorder = EventRecorder(Reconfigured)
    cb = circuit(Bus(), listeners=[recorder])
    with pytest.raises(ValueError, match="slow_threshold"):
        cb.configure(retry=Cooldown(20), slow_threshold=-1)
    assert not recorder.events_seen
