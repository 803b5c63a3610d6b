"""Trackers: which outcomes are failures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxgate import CallNotPermittedError, Custom, FailureStreak, Returned, State, TypeOf
from fluxgate.events import CallFailed, CallIgnored, CallSucceeded, Event
from fluxgate.trackers import All, Tracker
from tests.faces import STATES_ONLY, Make, both

ERRORS: list[Exception] = [
    ValueError(),
    KeyError(),
    LookupError(),
    ConnectionResetError(),
    TimeoutError(),
    OSError(),
    ExceptionGroup("several", [ValueError()]),
]
VALUES: list[Any] = [0, 1, 5, "", "text", None]


def is_lookup(error: Exception) -> bool:
    return isinstance(error, LookupError)


def is_five(value: object) -> bool:
    return value == 5


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_all_counts_every_exception(error: Exception) -> None:
    """`All` judges every exception a failure."""
    assert All()(error) is True


def test_type_of_counts_its_types_and_their_subclasses() -> None:
    """`TypeOf` judges by `isinstance` against any of its types."""
    tracker = TypeOf(ConnectionError, LookupError)
    assert [tracker(error) for error in ERRORS] == [False, True, True, True, False, False, False]


def test_type_of_knows_exception_groups() -> None:
    """A group's class is a type like any other, its base class included."""
    group = ExceptionGroup("several", [ValueError()])
    assert TypeOf(ExceptionGroup)(group)
    assert TypeOf(BaseExceptionGroup)(group)
    assert TypeOf(BaseException)(group)
    assert not TypeOf(ValueError)(group)


def test_custom_answers_a_bool_whatever_its_predicate_answers() -> None:
    """`Custom` takes any truth value of its predicate for an answer."""
    tracker = Custom(lambda error: error.args)  # type: ignore[arg-type,return-value]
    assert tracker(ValueError("x")) is True
    assert tracker(ValueError()) is False


def test_returned_judges_values_and_leaves_exceptions_to_others() -> None:
    """`Returned` answers for values alone."""
    tracker = Returned(is_five)
    assert [tracker.judge_value(value) for value in VALUES] == [False, False, True, False, False, False]
    assert not any(tracker(error) for error in ERRORS)


def test_a_subclass_must_define_its_call() -> None:
    """The base class cannot judge, and says which class forgot to."""

    class Forgetful(Tracker):
        pass

    with pytest.raises(NotImplementedError, match=r"Forgetful must define __call__\(error\)"):
        Forgetful()(ValueError())
    assert Forgetful().judge_value(5) is False


# -- combinations: against a model that keeps each leaf's domain ---------------------------------------------------

Leaf = tuple[str, Callable[[Any], bool]]
Model = Any  # a leaf ("error" or "value", judge), or ("&" | "|" | "~", parts)


def judged(model: Model, domain: str, outcome: object) -> bool | None:
    """What the model says of an outcome; ``None`` where nothing in it concerns that domain."""
    match model:
        case ("~", [part]):
            answer = judged(part, domain, outcome)
            return None if answer is None else not answer
        case ("&" | "|", parts):
            answers = [answer for answer in (judged(part, domain, outcome) for part in parts) if answer is not None]
            return (all if model[0] == "&" else any)(answers) if answers else None
        case (str(leaf), judge):
            return bool(judge(outcome)) if leaf == domain else None
    raise AssertionError(model)


def instance_of(*types: type[Exception]) -> Callable[[Any], bool]:
    return lambda error: isinstance(error, types)


LEAVES: list[tuple[Tracker, Model]] = [
    (All(), ("error", lambda error: True)),
    (TypeOf(LookupError), ("error", instance_of(LookupError))),
    (TypeOf(OSError, ValueError), ("error", instance_of(OSError, ValueError))),
    (Custom(is_lookup), ("error", is_lookup)),
    (Returned(is_five), ("value", is_five)),
    (Returned(bool), ("value", bool)),
]


def joined(children: st.SearchStrategy[tuple[Tracker, Model]]) -> st.SearchStrategy[tuple[Tracker, Model]]:
    return st.one_of(
        st.tuples(children, children).map(lambda two: (two[0][0] & two[1][0], ("&", [two[0][1], two[1][1]]))),
        st.tuples(children, children).map(lambda two: (two[0][0] | two[1][0], ("|", [two[0][1], two[1][1]]))),
        children.map(lambda one: (~one[0], ("~", [one[1]]))),
        # a plain callable on either side
        children.map(lambda one: (one[0] & is_lookup, ("&", [one[1], ("error", is_lookup)]))),
        children.map(lambda one: (is_lookup | one[0], ("|", [("error", is_lookup), one[1]]))),
    )


@given(st.recursive(st.sampled_from(LEAVES), joined, max_leaves=6))
def test_combinations_obey_logic_within_each_domain(pair: tuple[Tracker, Model]) -> None:
    """Any tree of ``&``, ``|`` and ``~`` answers as its leaves of that domain do; what nothing judges is no failure."""
    tracker, model = pair
    for error in ERRORS:
        assert tracker(error) is bool(judged(model, "error", error)), (tracker, error)
    for value in VALUES:
        assert tracker.judge_value(value) is bool(judged(model, "value", value)), (tracker, value)
    assert tracker.judges_errors is (judged(model, "error", ValueError()) is not None)
    assert tracker.judges_values is (judged(model, "value", 0) is not None)


def test_not_stays_in_its_domain() -> None:
    """``~Returned(...)`` says nothing of exceptions, nor ``~TypeOf(...)`` of values."""
    assert not (~Returned(is_five))(ValueError())
    assert not (~TypeOf(KeyError)).judge_value(1)
    assert (~TypeOf(KeyError))(ValueError())
    assert (~Returned(is_five)).judge_value(1)


@pytest.mark.parametrize(
    "join",
    [
        lambda plain: plain & TypeOf(LookupError),
        lambda plain: TypeOf(LookupError) & plain,
        lambda plain: plain | TypeOf(KeyError),
        lambda plain: TypeOf(KeyError) | plain,
    ],
    ids=["left of &", "right of &", "left of |", "right of |"],
)
def test_a_plain_callable_joins_on_either_side(join: Callable[[Any], Tracker]) -> None:
    """A function is a tracker in every place of a combination."""
    tracker = join(is_lookup)
    assert tracker(KeyError()) is True
    assert tracker(ValueError()) is False


@pytest.mark.parametrize(
    ("tracker", "words"),
    [
        (All(), "All()"),
        (TypeOf(KeyError, OSError), "TypeOf(KeyError, OSError)"),
        (Custom(is_lookup), "Custom(is_lookup)"),
        (Returned(is_five), "Returned(is_five)"),
        (~TypeOf(KeyError), "~TypeOf(KeyError)"),
        (All() & ~TypeOf(KeyError), "(All() & ~TypeOf(KeyError))"),
        (~(All() | Returned(is_five)), "~(All() | Returned(is_five))"),
        (is_lookup | TypeOf(KeyError), "(is_lookup | TypeOf(KeyError))"),
    ],
    ids=str,
)
def test_a_tracker_prints_as_it_was_written(tracker: Tracker, words: str) -> None:
    """The repr is the expression, plain functions by their name."""
    assert repr(tracker) == words


def test_a_nameless_callable_prints_as_its_repr() -> None:
    """A callable object without a name still says what it is."""

    class Judge:
        def __call__(self, error: Exception) -> bool:
            return True

        def __repr__(self) -> str:
            return "<a judge>"

    assert repr(All() & Judge()) == "(All() & <a judge>)"
    assert repr(Custom(Judge())) == "Custom(<a judge>)"


# -- in a circuit ---------------------------------------------------------------------------------------------------


@both
def test_what_the_tracker_does_not_name_is_ignored(make: Make) -> None:
    """An exception outside of the tracker is reported as ignored and leaves no mark on the window."""
    circuit = make(tracker=TypeOf(OSError))
    circuit.fail(ValueError("the caller's mistake"), seconds=2)
    circuit.fail(OSError("broken pipe"), seconds=1)
    (ignored,) = circuit.seen(CallIgnored)
    assert (ignored.error_type, ignored.duration, ignored.stale) == ("ValueError", 2.0, False)
    assert (circuit.metrics.total_count, circuit.metrics.failure_count) == (1, 1)


@both
def test_a_plain_function_is_a_tracker(make: Make) -> None:
    """``tracker=f`` asks `f` about each exception."""
    circuit = make(tracker=is_lookup)
    circuit.fail(KeyError())
    circuit.fail(ValueError())
    assert circuit.metrics.failure_count == circuit.metrics.total_count == 1


@both
def test_a_returned_value_can_be_a_failure(make: Make) -> None:
    """A value that `Returned` names counts as a failure, reaches the caller, and the event says what judged it."""
    circuit = make(tracker=All() | Returned(is_five))
    circuit.succeed(value=4)
    circuit.succeed(value=5)
    (failed,) = circuit.seen(CallFailed)
    assert failed.error_type == "int"
    assert failed.error == "judged a failure by (All() | Returned(is_five))"
    assert (circuit.metrics.total_count, circuit.metrics.failure_count) == (2, 1)


@both
@pytest.mark.parametrize("hears", [STATES_ONLY, (Event,)], ids=["quiet", "heard"])
def test_every_returned_value_is_judged(make: Make, hears: tuple[type[Event], ...]) -> None:
    """After any number of good ones, from a steady circuit too, and by a tracker that `configure` brings in."""
    circuit = make(hears=hears, tripper=FailureStreak(2), tracker=Returned(is_five))
    answer = circuit.protect(lambda value: value)
    for value in (1, 1, 1, 5, 1, 5, 5):
        assert circuit.state == "closed"
        answer(value)
    assert circuit.state == "open"
    circuit.steer("reset")
    circuit.steer("configure", tracker=All())
    for value in (5, 5, 5):
        answer(value)
    circuit.steer("configure", tracker=Returned(is_five))
    answer(5)
    circuit.acquire().success(5)
    assert circuit.state == "open"


@both
def test_returned_alone_ignores_every_exception(make: Make) -> None:
    """Where no part of the tracker judges exceptions, they are ignored."""
    circuit = make(tracker=Returned(is_five))
    circuit.fail(ValueError())
    assert circuit.seen(CallIgnored)
    assert circuit.metrics.total_count == 0


@both
@pytest.mark.parametrize(
    ("tracker", "counts"),
    [
        (All(), False),
        (TypeOf(Exception), False),
        (TypeOf(KeyError), False),
        (~TypeOf(KeyError), False),
        (TypeOf(CallNotPermittedError), True),
        (All() & TypeOf(CallNotPermittedError), True),
        (TypeOf(OSError) | TypeOf(CallNotPermittedError), True),
        (All() & ~TypeOf(CallNotPermittedError), False),
    ],
    ids=str,
)
def test_a_nested_refusal_is_ignored_unless_named(make: Make, tracker: Tracker, counts: bool) -> None:
    """The refusal of a breaker further in says nothing of this dependency, unless `TypeOf` names it."""
    inner, outer = make(), make(tracker=tracker)
    inner.steer("force_open")
    with pytest.raises(CallNotPermittedError) as caught:
        outer.call(lambda: inner.call(lambda: None))
    assert caught.value.state is State.FORCED_OPEN
    assert outer.metrics.failure_count == counts
    assert len(outer.seen(CallFailed)) == counts
    assert len(outer.seen(CallIgnored)) == (not counts)


@both
def test_a_with_block_has_no_value_to_judge(make: Make) -> None:
    """A settlement without a value is a success, and the predicate is not asked."""
    asked: list[object] = []

    def judge(value: object) -> bool:
        asked.append(value)
        return True

    circuit = make(tracker=Returned(judge))
    circuit.acquire().success()
    assert circuit.seen(CallSucceeded)
    circuit.acquire().success("judge me")
    assert asked == ["judge me"]
    assert circuit.seen(CallFailed)


def test_trackers_have_no_truth_value() -> None:
    """``not tracker`` would silently be ``False``: the error says what to write instead."""
    with pytest.raises(TypeError, match=r"^TypeOf\(OSError\) has no truth value: combine trackers with &, \| and ~"):
        bool(TypeOf(OSError))
