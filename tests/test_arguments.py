"""Wrong arguments: each is refused where it is made, by an error that names the parameter and quotes what it got."""

from __future__ import annotations

import math
import re
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

import pytest

import fluxgate
from fluxgate import (
    Always,
    AsyncCircuitBreaker,
    AvgLatency,
    Backoff,
    Bus,
    CircuitBreaker,
    Closed,
    Cooldown,
    CountWindow,
    Custom,
    FailureRate,
    FailureStreak,
    HalfOpened,
    Metric,
    MinRequests,
    RampUp,
    Random,
    RetryAfter,
    Returned,
    SlowRate,
    TimeWindow,
    TypeOf,
)
from fluxgate.events import CircuitCreated, Event, ListenerFailed, StateChanged
from fluxgate.permits import All as EveryCall
from fluxgate.testing import EventRecorder, VirtualClock
from fluxgate.trackers import All
from fluxgate.windows import Window
from tests.faces import Make, both, finish


class Unprintable:
    """A value whose own repr fails."""

    def __repr__(self) -> str:
        raise RuntimeError("no words")


def quoted(value: object) -> str:
    try:
        return repr(value)[:100]
    except RuntimeError:
        return "Unprintable"


def refused(make: Callable[[Any], object], wrong: Any, kind: type[Exception], named: str) -> str:
    """The text of the error, which must name the parameter and quote the value."""
    with pytest.raises(kind) as caught:
        make(wrong)
    assert type(caught.value) is kind
    text = str(caught.value)
    assert named in text
    assert quoted(wrong) in text
    return text


# -- numbers --------------------------------------------------------------------------------------------------------


class Number(NamedTuple):
    """One parameter that takes a number: how to give it, what errors call it, and its range."""

    give: Callable[[Any], object]
    named: str
    accepted: tuple[float, ...]
    refused: tuple[float, ...]
    whole: bool = False
    infinite: bool = False


def both_breakers(**options: Any) -> list[object]:
    return [breaker("x", bus=Bus(), **options) for breaker in (CircuitBreaker, AsyncCircuitBreaker)]


POSITIVE = ((1e-9, 1, 2.5, 1e9), (0, -1, -0.5))
RATIO = ((1e-9, 0.5, 1, 1.0), (0, -0.1, 1.0001, 50))
SHARE = ((0, 0.5, 1), (-0.1, 1.1))
COUNT = ((1, 2, 10**6), (0, -1))

NUMBERS = {
    "CountWindow": Number(CountWindow, "CountWindow(size)", *COUNT, whole=True),
    "TimeWindow": Number(TimeWindow, "TimeWindow(size)", (0.001, 60, 1e9), (0, -1, 0.0009)),
    "MinRequests": Number(MinRequests, "MinRequests(n)", *COUNT, whole=True),
    "FailureStreak": Number(FailureStreak, "FailureStreak(n)", *COUNT, whole=True),
    "FailureRate": Number(FailureRate, "FailureRate(ratio)", *RATIO),
    "SlowRate": Number(SlowRate, "SlowRate(ratio)", *RATIO),
    "AvgLatency": Number(AvgLatency, "AvgLatency(seconds)", *POSITIVE),
    "Cooldown": Number(Cooldown, "Cooldown(duration)", (0, 0.5, 60, 1e9), (-1, -0.1)),
    "Cooldown jitter": Number(lambda ratio: Cooldown(1, jitter_ratio=ratio), "Cooldown(jitter_ratio=)", *SHARE),
    "Backoff initial": Number(lambda initial: Backoff(initial, max_duration=1e10), "Backoff(initial)", *POSITIVE),
    "Backoff multiplier": Number(
        lambda multiplier: Backoff(1, multiplier=multiplier), "Backoff(multiplier=)", (1, 1.5, 100), (0, 0.99, -2)
    ),
    "Backoff max": Number(
        lambda most: Backoff(5, max_duration=most), "Backoff(max_duration=)", (5, 5.5, 300), (4.9, 0, -1)
    ),
    "Backoff jitter": Number(lambda ratio: Backoff(1, jitter_ratio=ratio), "Backoff(jitter_ratio=)", *SHARE),
    "RetryAfter max": Number(
        lambda most: RetryAfter(Always(), max_duration=most), "RetryAfter(max_duration=)", *POSITIVE
    ),
    "Random": Number(Random, "Random(ratio)", *RATIO),
    "RampUp initial": Number(lambda ratio: RampUp(ratio, 1, 60), "RampUp(initial)", *SHARE),
    "RampUp final": Number(lambda ratio: RampUp(0.2, ratio, 60), "RampUp(final)", (0.2, 1), (0, 0.19, 1.1, -1)),
    "RampUp final alone": Number(lambda ratio: RampUp(0, ratio, 60), "RampUp(final)", (0.1, 1), (0,)),
    "RampUp duration": Number(lambda seconds: RampUp(0, 1, seconds), "RampUp(duration)", *POSITIVE),
    "slow_threshold": Number(
        lambda seconds: both_breakers(slow_threshold=seconds), "slow_threshold", *POSITIVE, infinite=True
    ),
    "max_half_open_calls": Number(
        lambda n: both_breakers(max_half_open_calls=n), "max_half_open_calls", *COUNT, whole=True
    ),
    "half_open_timeout": Number(
        lambda seconds: both_breakers(half_open_timeout=seconds), "half_open_timeout", *POSITIVE
    ),
    "configure slow_threshold": Number(
        lambda seconds: CircuitBreaker("x", bus=Bus()).configure(slow_threshold=seconds),
        "slow_threshold",
        *POSITIVE,
        infinite=True,
    ),
    "configure max_half_open_calls": Number(
        lambda n: CircuitBreaker("x", bus=Bus()).configure(max_half_open_calls=n),
        "max_half_open_calls",
        *COUNT,
        whole=True,
    ),
    "configure half_open_timeout": Number(
        lambda seconds: CircuitBreaker("x", bus=Bus()).configure(half_open_timeout=seconds),
        "half_open_timeout",
        *POSITIVE,
    ),
    "queue_size": Number(lambda size: Bus().attach(print, queue_size=size), "queue_size", *COUNT, whole=True),
    "flush": Number(lambda seconds: Bus().flush(seconds), "timeout", (0, 0.1), (-1, -0.1)),
    "VirtualClock monotonic": Number(lambda now: VirtualClock(now), "monotonic", (0, -5, 1e9), ()),
    "VirtualClock time": Number(lambda now: VirtualClock(time=now), "time", (0, -5, 1e9), ()),
    "advance": Number(lambda seconds: VirtualClock().advance(seconds), "seconds", (0, 0.1), (-1, -0.1)),
    "set_time": Number(lambda now: VirtualClock().set_time(now), "time", (0, -5, 1e9), ()),
}
numbers = pytest.mark.parametrize("number", NUMBERS.values(), ids=NUMBERS.keys())


@numbers
def test_a_number_in_range_is_accepted(number: Number) -> None:
    """The range is the documented one, its ends included where it says so."""
    for value in number.accepted:
        number.give(value)
    if number.infinite:
        number.give(math.inf)


@numbers
def test_a_number_out_of_range_is_a_value_error(number: Number) -> None:
    """The error says the range."""
    for value in number.refused:
        text = refused(number.give, value, ValueError, number.named)
        assert re.search(r"at least|above|at most", text)


@numbers
@pytest.mark.parametrize(
    "wrong",
    [
        "5",
        b"5",
        None,
        True,
        False,
        [5],
        {},
        (5,),
        1 + 0j,
        Decimal(5),
        Fraction(1, 2),
        float,
        int,
        object(),
        Unprintable(),
        "x" * 1000,
    ],
    ids=quoted,
)
def test_what_is_no_number_is_a_type_error(number: Number, wrong: Any) -> None:
    """Text, nothing, booleans, containers and other kinds of numbers are all refused, with their type."""
    text = refused(number.give, wrong, TypeError, number.named)
    assert type(wrong).__name__ in text
    assert "number" in text
    assert len(text) < 500


@numbers
def test_nan_and_infinity_are_value_errors(number: Number) -> None:
    """NaN is in no range; infinity is allowed only where it has a meaning."""
    kind = TypeError if number.whole else ValueError
    refused(number.give, math.nan, kind, number.named)
    refused(number.give, -math.inf, kind, number.named)
    if not number.infinite:
        refused(number.give, math.inf, kind, number.named)


@numbers
def test_huge_integers_are_infinite_or_whole(number: Number) -> None:
    """An integer beyond any float is judged like infinity, never an overflow."""
    if number.whole or number.infinite:
        number.give(10**400)
    else:
        refused(number.give, 10**400, ValueError, number.named)


@pytest.mark.parametrize("make", [CountWindow, MinRequests, FailureStreak])
def test_a_count_is_no_fraction(make: Callable[[Any], object]) -> None:
    """Where calls are counted a float is refused, even a whole one."""
    refused(make, 5.0, TypeError, "whole number")


@pytest.mark.parametrize("wrong", [0, -1, 0.0])
def test_slow_rate_takes_a_positive_threshold_of_its_own(wrong: float) -> None:
    """``SlowRate(threshold=...)`` may be left out, and is checked where it is given."""
    assert SlowRate(0.5, threshold=None).threshold is None
    assert SlowRate(0.5, threshold=2).threshold == 2.0
    refused(lambda value: SlowRate(0.5, threshold=value), wrong, ValueError, "SlowRate(threshold=)")
    for other in ("2", True, [2]):
        refused(lambda value: SlowRate(0.5, threshold=value), other, TypeError, "SlowRate(threshold=)")
    refused(lambda value: SlowRate(0.5, threshold=value), math.nan, ValueError, "SlowRate(threshold=)")


@pytest.mark.parametrize(
    ("field", "wrong", "kind"),
    [
        ("total_count", -1, ValueError),
        ("total_count", "8", TypeError),
        ("total_count", 1.5, TypeError),
        ("failure_count", True, TypeError),
        ("failure_count", -1, ValueError),
        ("total_duration", math.nan, ValueError),
        ("total_duration", "4", TypeError),
        ("total_duration", -1.0, ValueError),
        ("slow_count", None, TypeError),
        ("slow_counts", 5, TypeError),
    ],
)
def test_a_metric_holds_counts_and_seconds(field: str, wrong: Any, kind: type[Exception]) -> None:
    """Users make metrics to test their own trippers: wrong sums are refused like any other argument."""
    fields: dict[str, Any] = {"total_count": 8, "failure_count": 2, "total_duration": 4.0, "slow_count": 1}
    refused(lambda value: Metric(**(fields | {field: value})), wrong, kind, field)


# -- rules ----------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    ("parameter", "wrong"),
    [
        ("tripper", FailureRate),
        ("tripper", MinRequests),
        ("tracker", TypeOf),
        ("tracker", All),
        ("retry", Cooldown),
        ("retry", Always),
        ("permit", Random),
        ("permit", EveryCall),
        ("window", CountWindow),
        ("window", TimeWindow),
        ("clock", VirtualClock),
        ("bus", Bus),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_class_in_place_of_an_instance_is_named(make: Make, parameter: str, wrong: type) -> None:
    """``tripper=FailureRate`` is named as the slip that it is."""
    with pytest.raises(TypeError, match=rf"^{parameter} must be .*got .*\b{wrong.__name__}\b"):
        type(make().breaker)("x", **{"bus": Bus(), parameter: wrong})


@both
@pytest.mark.parametrize("parameter", ["tripper", "tracker", "retry", "permit", "window"])
def test_the_error_says_how_to_make_the_instance(make: Make, parameter: str) -> None:
    """It ends with the constructor to call."""
    with pytest.raises(TypeError, match=re.escape("pass an instance, FailureRate(...)")):
        make(**{parameter: FailureRate})


@both
@pytest.mark.parametrize("wrong", [5, "0.5", 0.5, [FailureRate(0.5)], b"", object(), Unprintable()], ids=quoted)
@pytest.mark.parametrize("parameter", ["tripper", "tracker", "retry", "permit", "window", "bus", "clock"])
def test_what_is_no_rule_is_a_type_error(make: Make, parameter: str, wrong: object) -> None:
    """A number, a text or a list is no rule, no bus and no clock."""
    breaker = type(make().breaker)
    options: dict[str, Any] = {"bus": Bus()}
    text = refused(lambda value: breaker("x", **(options | {parameter: value})), wrong, TypeError, parameter)
    assert type(wrong).__name__ in text


@both
@pytest.mark.parametrize("parameter", ["tripper", "tracker", "retry", "permit"])
@pytest.mark.parametrize("wrong", [5, "0.5", FailureRate, None], ids=quoted)
def test_configure_checks_as_construction_does(make: Make, parameter: str, wrong: object) -> None:
    """What a constructor refuses, `configure` refuses, and ``None`` as well."""
    circuit = make()
    before = circuit.breaker._core.machine.rules
    with pytest.raises(TypeError, match=f"^{parameter} must be"):
        circuit.steer("configure", **{parameter: wrong})
    assert circuit.breaker._core.machine.rules is before


@both
@pytest.mark.parametrize("parameter", ["window", "name", "listeners", "bus", "clock", "triper"])
def test_configure_takes_the_rules_alone(make: Make, parameter: str) -> None:
    """What cannot be swapped in place, or does not exist, is named, with what can be."""
    with pytest.raises(TypeError, match=rf"configure takes tracker, tripper.*got {parameter}"):
        make().steer("configure", **{parameter: CountWindow(5)})


@both
def test_a_number_is_told_what_it_was_meant_for(make: Make) -> None:
    """For the likely slips the error shows what to write."""
    with pytest.raises(TypeError, match=re.escape("for the last 50 calls pass CountWindow(50)")):
        make(window=50)
    with pytest.raises(TypeError, match=re.escape("for a fixed wait pass Cooldown(30)")):
        make(retry=30)


@both
def test_none_means_the_default(make: Make) -> None:
    """Every rule may be given as ``None``."""
    names = ("window", "tracker", "tripper", "retry", "permit")
    rules = make(**dict.fromkeys(names)).breaker._core.machine.rules
    assert rules is make().breaker._core.machine.rules
    assert rules.words() == {
        "window": "CountWindow(100)",
        "tracker": "All()",
        "tripper": "(Closed() & MinRequests(100) & FailureRate(0.5)) | "
        "(HalfOpened() & MinRequests(10) & FailureRate(0.5))",
        "retry": "Cooldown(60)",
        "permit": "Random(0.5)",
    }


@both
def test_circuits_with_the_default_figures_share_their_rules(make: Make) -> None:
    """Whether those are left out or given, also as numbers of another type; what only equals one is checked as ever."""
    breaker, bus = type(make().breaker), Bus()
    rules = breaker("x", bus=bus)._core.machine.rules
    given: dict[str, Any] = {"slow_threshold": 60, "max_half_open_calls": 10, "half_open_timeout": 30}
    assert breaker("x", bus=bus, **given)._core.machine.rules is rules
    assert breaker("x", bus=bus, **given | {"slow_threshold": 59})._core.machine.rules is not rules
    refused(lambda value: breaker("x", bus=bus, max_half_open_calls=value), 10.0, TypeError, "max_half_open_calls")
    refused(lambda value: breaker("x", bus=bus, slow_threshold=value), "60", TypeError, "slow_threshold")


def test_an_exception_class_is_no_tracker() -> None:
    """``tracker=ConnectionError`` is told of `TypeOf`, since an instance of it would not do either."""
    with pytest.raises(TypeError, match=re.escape("TypeOf(ConnectionError)")):
        CircuitBreaker("x", tracker=ConnectionError, bus=Bus())  # type: ignore[arg-type]


def test_a_window_is_one_of_ours() -> None:
    """The base of the windows is none itself."""
    with pytest.raises(NotImplementedError):
        Window().open(1.0, ())
    record: Any = CountWindow(1).open(1.0, ())
    base = type(record).__mro__[1]
    calls: dict[str, tuple[Any, ...]] = {
        "add": (0, 0, 0, False),
        "add_gathered": (0, [0.1]),
        "metric": (0,),
        "total": (0,),
        "failing_since": (0,),
        "rejudge": (1, ()),
    }
    for method, arguments in calls.items():
        with pytest.raises(NotImplementedError):
            getattr(base, method)(record, *arguments)


JOINABLE: list[Any] = [All(), TypeOf(OSError), ~All(), FailureRate(0.5), Closed() & MinRequests(1)]


@pytest.mark.parametrize("rule", JOINABLE, ids=repr)
@pytest.mark.parametrize("wrong", [5, "text", None, [], FailureRate, ValueError], ids=quoted)
def test_only_rules_and_callables_can_be_joined(rule: Any, wrong: Any) -> None:
    """Either side of ``&`` and ``|`` is checked, and the error says which side was wrong."""
    joins: dict[str, Callable[[], Any]] = {
        "the right side of &": lambda: rule & wrong,
        "the left side of &": lambda: wrong & rule,
        "the right side of |": lambda: rule | wrong,
        "the left side of |": lambda: wrong | rule,
    }
    for side, join in joins.items():
        with pytest.raises(TypeError, match=f"^{re.escape(side)} must be") as caught:
            join()
        assert (wrong.__name__ if isinstance(wrong, type) else repr(wrong)) in str(caught.value)


def test_trippers_have_no_not() -> None:
    """``~`` belongs to trackers."""
    with pytest.raises(TypeError):
        ~FailureRate(0.5)  # type: ignore[operator]  # pyright: ignore[reportOperatorIssue]


@pytest.mark.parametrize("wrong", [5, "ValueError", ValueError("x"), int, None, (ValueError,), [KeyError]], ids=quoted)
def test_type_of_takes_exception_classes(wrong: Any) -> None:
    """An instance, a name, a tuple or another class is quoted."""
    for position in ((), (OSError,)):
        refused(lambda value, position=position: TypeOf(*position, value), wrong, TypeError, "TypeOf")  # type: ignore[misc]


def test_type_of_needs_a_type() -> None:
    """``TypeOf()`` would never match."""
    with pytest.raises(TypeError, match="at least one exception class"):
        TypeOf()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_type_of_refuses_what_is_never_an_outcome(kind: type[BaseException]) -> None:
    """An exception that cancels a call is never tracked, so that naming it is a mistake."""
    with pytest.raises(TypeError, match=f"{kind.__name__}.*never match"):
        TypeOf(OSError, kind)


@pytest.mark.parametrize("make", [Custom, Returned])
@pytest.mark.parametrize("wrong", [5, "text", None, [], True], ids=quoted)
def test_a_predicate_must_be_callable(make: Callable[[Any], object], wrong: object) -> None:
    """The error names the tracker."""
    refused(make, wrong, TypeError, make.__name__)


def test_retry_after_takes_a_retry() -> None:
    """Its fallback is checked like the circuit's own retry."""
    refused(RetryAfter, 60, TypeError, "RetryAfter(fallback)")
    refused(RetryAfter, None, TypeError, "RetryAfter(fallback)")
    with pytest.raises(TypeError, match=r"got the class Cooldown: pass an instance, Cooldown\(...\)"):
        RetryAfter(Cooldown)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# -- names and listeners --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("breaker", [CircuitBreaker, AsyncCircuitBreaker])
@pytest.mark.parametrize("wrong", ["", " ", "\t\n", "\u2003"], ids=quoted)
def test_a_blank_name_is_a_value_error(breaker: Callable[..., object], wrong: str) -> None:
    """A circuit without a name could not be told of."""
    refused(partial(breaker, bus=Bus()), wrong, ValueError, "name")


@pytest.mark.parametrize("breaker", [CircuitBreaker, AsyncCircuitBreaker])
@pytest.mark.parametrize("wrong", [None, 5, b"payments", ["payments"], print, Unprintable()], ids=quoted)
def test_a_name_must_be_text(breaker: Callable[..., object], wrong: object) -> None:
    """A function here means that the brackets are missing: ``@CircuitBreaker`` for ``@CircuitBreaker("payments")``."""
    refused(partial(breaker, bus=Bus()), wrong, TypeError, "name")


@both
@pytest.mark.parametrize("wrong", [5, print, EventRecorder(), None], ids=lambda value: type(value).__name__)
def test_listeners_come_in_a_list(make: Make, wrong: object) -> None:
    """A single listener is the usual slip."""
    with pytest.raises(TypeError, match=r"^listeners must be an iterable, such as a list of one, got"):
        type(make().breaker)("x", listeners=wrong, bus=Bus())


@both
def test_each_listener_must_be_callable(make: Make) -> None:
    """A class and a number among the listeners are named."""
    breaker = type(make().breaker)
    with pytest.raises(TypeError, match="listener must be callable, got 5"):
        breaker("x", listeners=[print, 5], bus=Bus())
    with pytest.raises(TypeError, match="got the class EventRecorder: pass an instance"):
        breaker("x", listeners=[EventRecorder], bus=Bus())


@both
def test_a_constructor_that_fails_leaves_nothing_behind(make: Make) -> None:
    """No circuit is registered, and a listener that was attached before the mistake is let go."""
    bus, closed = Bus(), list[int]()

    class Listener:
        events = (CircuitCreated,)

        def __call__(self, event: Event) -> None:
            raise AssertionError("told of a circuit that never was")

        def close(self) -> None:
            closed.append(1)

    with pytest.raises(TypeError):
        type(make().breaker)("x", listeners=[Listener(), 5], bus=bus)
    assert bus.circuits() == []
    assert not bus._outlets
    assert closed == [1]


def attach_everywhere(**options: Any) -> Iterator[Callable[[], object]]:
    """The three ways to attach, not yet taken."""
    listener = options.pop("listener", print)
    events = options.pop("event_types", ())
    yield lambda: Bus().attach(listener, *events, **options)
    yield lambda: fluxgate.attach(listener, *events, **options)
    yield lambda: CircuitBreaker("x", bus=Bus()).attach(listener, *events, **options)


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"listener": 5}, TypeError, "listener must be callable, got 5"),
        ({"listener": None}, TypeError, "listener must be callable, got None"),
        ({"listener": EventRecorder}, TypeError, "got the class EventRecorder: pass an instance"),
        ({"delivery": "later"}, ValueError, "delivery must be 'inline' or 'background', got 'later'"),
        ({"event_types": (5,)}, TypeError, "classes from fluxgate.events, got 5"),
        ({"event_types": (int,)}, TypeError, "classes from fluxgate.events, got <class 'int'>"),
        ({"event_types": ("StateChanged",)}, TypeError, "classes from fluxgate.events, got 'StateChanged'"),
        ({"event_types": (StateChanged, object)}, TypeError, "classes from fluxgate.events, got <class 'object'>"),
    ],
    ids=str,
)
def test_attach_checks_its_arguments(options: dict[str, Any], kind: type[Exception], text: str) -> None:
    """On a bus, on the process's bus and on a breaker alike; nothing is attached then."""
    before = fluxgate.bus.default._subscriptions
    for attach in attach_everywhere(**options):
        with pytest.raises(kind, match=re.escape(text)):
            attach()
    assert fluxgate.bus.default._subscriptions == before


def test_a_listener_that_asks_for_nothing_is_refused() -> None:
    """An empty `events` is a mistake, since it would never be called."""

    class Deaf:
        events: tuple[type[Event], ...] = ()

        def __call__(self, event: Event) -> None: ...

    with pytest.raises(ValueError, match="asks for no events"):
        Bus().attach(Deaf())
    Bus().attach(Deaf(), ListenerFailed)


@pytest.mark.parametrize("wrong", [5, None, [5], [None], object()], ids=quoted)
def test_circuits_are_patterns(wrong: Any) -> None:
    """A pattern is a text; the error names the parameter."""
    with pytest.raises(TypeError, match="circuits"):
        Bus().attach(print, circuits=wrong)


@pytest.mark.parametrize("wrong", ["", " ", [""], ["payments", ""], []], ids=quoted)
def test_circuits_that_match_nothing_are_refused(wrong: Any) -> None:
    """An empty pattern, or none at all, is a mistake, since the listener would never be called."""
    with pytest.raises(ValueError, match="circuits"):
        Bus().attach(print, circuits=wrong)


@pytest.mark.parametrize("wrong", [5, "StateChanged", int, StateChanged], ids=quoted)
def test_a_recorder_takes_event_types(wrong: Any) -> None:
    """The testing kit checks as the bus does."""
    if wrong is StateChanged:
        assert EventRecorder(wrong).events == (StateChanged,)
    else:
        refused(EventRecorder, wrong, TypeError, "event types")


class HalfClock:
    def monotonic(self) -> float:
        return 0.0


@both
@pytest.mark.parametrize("wrong", [time.monotonic, HalfClock(), 5.0], ids=lambda value: type(value).__name__)
def test_a_clock_has_both_times(make: Make, wrong: object) -> None:
    """A function is no clock, nor is an object with one of the two."""
    with pytest.raises(TypeError, match=r"clock must be an object with monotonic\(\) and time\(\), got"):
        type(make().breaker)("x", clock=wrong, bus=Bus())


@both
def test_options_go_by_keyword(make: Make) -> None:
    """Only the name is positional, and an unknown option is an error."""
    breaker = type(make().breaker)
    with pytest.raises(TypeError):
        breaker("x", CountWindow(5))
    with pytest.raises(TypeError, match="triper"):
        breaker("x", triper=FailureRate(0.5))
    with pytest.raises(TypeError, match="name"):
        breaker()


# -- functions ------------------------------------------------------------------------------------------------------


def plain() -> int:
    return 1


async def coroutine() -> int:
    return 1


async def class_coroutine(owner: type[Any]) -> int:
    return 1


def generator() -> Iterator[int]:
    yield 1


async def async_generator() -> AsyncIterator[int]:
    yield 1


class Calls:
    """An object whose call is a coroutine function."""

    async def __call__(self) -> int:
        return 1


@pytest.mark.parametrize("wrong", [5, "f", None, int, EventRecorder, [], Unprintable()], ids=quoted)
@pytest.mark.parametrize("breaker", [CircuitBreaker, AsyncCircuitBreaker])
def test_only_functions_can_be_decorated(breaker: Any, wrong: object) -> None:
    """A value or a class is quoted, with or without options."""
    for decorate in (breaker("x", bus=Bus()), breaker("x", bus=Bus())(fallback=plain)):
        refused(decorate, wrong, TypeError, f"{breaker.__name__} protects functions")


@pytest.mark.parametrize(
    ("breaker", "function", "kind", "other"),
    [
        (CircuitBreaker, coroutine, "coroutine function coroutine", "AsyncCircuitBreaker"),
        (CircuitBreaker, async_generator, "async generator function async_generator", "AsyncCircuitBreaker"),
        (CircuitBreaker, partial(coroutine), "coroutine function", "AsyncCircuitBreaker"),
        (CircuitBreaker, Calls(), "coroutine function", "AsyncCircuitBreaker"),
        (CircuitBreaker, Calls().__call__, "coroutine function Calls.__call__", "AsyncCircuitBreaker"),
        (CircuitBreaker, staticmethod(coroutine), "coroutine function coroutine", "AsyncCircuitBreaker"),
        (CircuitBreaker, classmethod(class_coroutine), "coroutine function class_coroutine", "AsyncCircuitBreaker"),
        (AsyncCircuitBreaker, plain, "function plain", "CircuitBreaker"),
        (AsyncCircuitBreaker, generator, "generator function generator", "CircuitBreaker"),
        (AsyncCircuitBreaker, partial(plain), "function", "CircuitBreaker"),
        (AsyncCircuitBreaker, len, "function len", "CircuitBreaker"),
        (AsyncCircuitBreaker, lambda: 1, "function", "CircuitBreaker"),
        (AsyncCircuitBreaker, staticmethod(plain), "function plain", "CircuitBreaker"),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_the_wrong_colour_is_refused_at_decoration(breaker: Any, function: Any, kind: str, other: str) -> None:
    """A breaker names what it cannot protect, and the breaker that can."""
    with pytest.raises(TypeError, match=f"{breaker.__name__} cannot protect the {re.escape(kind)}.*: use {other}$"):
        breaker("x", bus=Bus())(function)


@pytest.mark.parametrize("wrong", [5, "text", [], object(), int, EventRecorder], ids=quoted)
@pytest.mark.parametrize(("breaker", "function"), [(CircuitBreaker, plain), (AsyncCircuitBreaker, coroutine)])
def test_a_fallback_must_be_a_function(breaker: Any, function: Any, wrong: Any) -> None:
    """By decorator argument and by `call_with_fallback`, positional or by keyword; the function is not called."""
    circuit = breaker("x", bus=Bus())
    ways: list[Callable[[], Any]] = [
        lambda: circuit(fallback=wrong)(function),
        lambda: finish(circuit.call_with_fallback(function, wrong)),
        lambda: finish(circuit.call_with_fallback(function, fallback_func=wrong)),
    ]
    for give in ways:
        with pytest.raises(TypeError, match="fallback must be .*" + getattr(wrong, "__name__", re.escape(repr(wrong)))):
            give()
    assert circuit.info().metrics.total_count == 0


@pytest.mark.parametrize("fallback", [coroutine, generator, async_generator, partial(coroutine), Calls()])
def test_the_sync_breaker_needs_a_plain_fallback(fallback: Any) -> None:
    """Nobody would await it, or iterate over it."""
    circuit: Any = CircuitBreaker("x", bus=Bus())
    with pytest.raises(
        TypeError, match=r"needs a plain function as fallback, got the .*(coroutine|generator) function"
    ):
        circuit(fallback=fallback)(plain)
    with pytest.raises(TypeError, match="needs a plain function as fallback"):
        circuit.call_with_fallback(plain, fallback)


@pytest.mark.parametrize("fallback", [generator, async_generator])
def test_the_async_breaker_needs_a_fallback_that_answers(fallback: Any) -> None:
    """A generator function gives no answer to return."""
    circuit: Any = AsyncCircuitBreaker("x", bus=Bus())
    with pytest.raises(TypeError, match=r"a fallback returns its answer, got the (async )?generator function"):
        circuit(fallback=fallback)(coroutine)


@pytest.mark.parametrize(("breaker", "function"), [(CircuitBreaker, generator), (AsyncCircuitBreaker, async_generator)])
def test_a_generator_cannot_have_a_fallback(breaker: Any, function: Any) -> None:
    """It may fail half-way, when no answer could take the place of what was already given."""
    with pytest.raises(TypeError, match=r"generator function cannot have a fallback.*generator"):
        breaker("x", bus=Bus())(fallback=plain)(function)


@pytest.mark.parametrize(("breaker", "function"), [(CircuitBreaker, plain), (AsyncCircuitBreaker, coroutine)])
def test_call_with_fallback_needs_a_fallback(breaker: Any, function: Any) -> None:
    """The error shows both ways to give it."""
    with pytest.raises(TypeError, match=re.escape("call_with_fallback(func, fallback_func, *args) or fallback_func=")):
        finish(breaker("x", bus=Bus()).call_with_fallback(function))


@both
@pytest.mark.parametrize("wrong", [5, "text", None, ValueError, KeyboardInterrupt], ids=quoted)
def test_a_failure_is_an_exception(make: Make, wrong: object) -> None:
    """``call.failure(...)`` takes the exception itself, and what it refuses does not settle the call."""
    circuit = make()
    held = circuit.acquire()
    with pytest.raises(TypeError) as caught:
        finish(held.call.failure(wrong))
    assert "failure(error) takes the exception" in str(caught.value)
    assert repr(wrong) in str(caught.value)
    held.success()
    assert (circuit.metrics.total_count, circuit.metrics.failure_count) == (1, 0)


# -- rules that never trip ------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    ("rules", "needed"),
    [
        ({"window": CountWindow(50)}, 100),
        ({"window": CountWindow(5), "tripper": MinRequests(6) & FailureRate(0.5)}, 6),
        ({"window": CountWindow(5), "tripper": (MinRequests(6) & FailureRate(0.5)) | (Closed() & MinRequests(7))}, 6),
        ({"window": CountWindow(5), "tripper": (Closed() & MinRequests(9)) | (HalfOpened() & MinRequests(1))}, 9),
    ],
    ids=str,
)
def test_more_evidence_than_the_window_holds_is_a_warning(make: Make, rules: dict[str, Any], needed: int) -> None:
    """A closed circuit that can never trip is allowed, and the warning says why it cannot, at the user's own line."""
    breaker = type(make().breaker)
    with pytest.warns(UserWarning, match=rf"never holds the {needed} calls") as caught:
        breaker("x", bus=Bus(), **rules)
    (warning,) = caught
    assert warning.filename == __file__


@both
@pytest.mark.parametrize(
    "rules",
    [
        {"window": CountWindow(100)},
        {"window": TimeWindow(1)},
        {"window": CountWindow(6), "tripper": MinRequests(6) & FailureRate(0.5)},
        {"window": CountWindow(5), "tripper": (MinRequests(6) & FailureRate(0.5)) | FailureStreak(3)},
        {"window": CountWindow(5), "tripper": (HalfOpened() & MinRequests(9)) | FailureStreak(3)},
        {"window": CountWindow(5), "tripper": HalfOpened() & MinRequests(9)},
    ],
    ids=str,
)
def test_rules_that_can_trip_are_no_warning(make: Make, rules: dict[str, Any]) -> None:
    """One branch that can trip is enough, and a time window holds any number of calls."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(**rules)


@both
def test_configure_warns_as_construction_does(make: Make) -> None:
    """Swapping in a rule that cannot trip is a warning at the user's own line."""
    circuit = make(window=CountWindow(5), tripper=FailureStreak(3))

    async def configure() -> None:
        done = circuit.breaker.configure(tripper=MinRequests(6) & FailureRate(0.5))
        if circuit.is_async:
            await done

    with pytest.warns(UserWarning, match="never holds the 6 calls") as caught:
        finish(configure())
    assert caught[0].filename == __file__
