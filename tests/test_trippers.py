"""Trippers: when a circuit trips, on what evidence, and in which words."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from operator import and_, or_
from typing import Any, TypeAlias

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fluxgate import (
    AvgLatency,
    CircuitBreaker,
    Closed,
    FailureRate,
    FailureStreak,
    HalfOpened,
    Metric,
    MinRequests,
    SlowRate,
    State,
    Verdict,
)
from fluxgate.trippers import DEFAULT_TRIPPER, Tripper

CLOSED, HALF_OPEN = State.CLOSED, State.HALF_OPEN


def metric(total: int = 0, failures: int = 0, duration: float = 0.0, slow: int = 0, **slow_counts: int) -> Metric:
    """``_2=3`` stands for three calls of 2 s and more."""
    counts = {float(name[1:]): count for name, count in slow_counts.items()}
    return Metric(
        total_count=total,
        failure_count=failures,
        total_duration=duration,
        slow_count=slow,
        slow_counts=counts,
    )


def many_failures(metric: Metric, state: State, consecutive_failures: int) -> bool:
    return metric.failure_count > 2


EMPTY = metric()
RULES: list[Tripper] = [
    FailureRate(0.5),
    SlowRate(0.5),
    SlowRate(0.5, threshold=2),
    AvgLatency(1),
    MinRequests(1),
    FailureStreak(1),
]


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_no_rule_trips_on_an_empty_window(rule: Tripper) -> None:
    """Every rule needs one call, whatever else it is told."""
    assert not rule.trips(EMPTY, CLOSED, 5)
    assert not rule.trips(EMPTY, HALF_OPEN, 5, patient=False)
    assert not rule.evidenced(EMPTY, CLOSED, patient=False)
    assert not rule.explain(EMPTY, CLOSED, 5)


@given(st.integers(1, 200), st.data())
def test_a_rate_trips_when_it_reaches_its_limit(total: int, data: st.DataObject) -> None:
    """``k`` of ``n`` reaches the limit ``k/n`` exactly, and ``k - 1`` does not, for failures and for slow calls."""
    count = data.draw(st.integers(1, total))
    limit = count / total
    assert FailureRate(limit).trips(metric(total, count), CLOSED, 0)
    assert not FailureRate(limit).trips(metric(total, count - 1), CLOSED, 0)
    assert SlowRate(limit).trips(metric(total, slow=count), CLOSED, 0)
    assert not SlowRate(limit).trips(metric(total, slow=count - 1), CLOSED, 0)


def test_a_slow_rate_with_a_threshold_reads_its_own_count() -> None:
    """``SlowRate(r, threshold=s)`` looks at the calls of at least `s` seconds, not at the circuit's slow calls."""
    rule = SlowRate(0.5, threshold=2)
    assert rule.trips(metric(4, slow=0, _2=2), CLOSED, 0)
    assert not rule.trips(metric(4, slow=4, _2=1), CLOSED, 0)
    assert not rule.trips(metric(4, slow=4), CLOSED, 0)
    assert rule.thresholds == {2.0}


def test_average_latency_trips_when_the_mean_reaches_it() -> None:
    """The mean is compared with ``>=``."""
    assert AvgLatency(0.5).trips(metric(4, duration=2.0), CLOSED, 0)
    assert not AvgLatency(0.5).trips(metric(4, duration=1.99), CLOSED, 0)


def test_a_streak_counts_consecutive_failures() -> None:
    """``FailureStreak(n)`` trips from the n-th failure in a row."""
    assert FailureStreak(3).trips(metric(3, 3), CLOSED, 3)
    assert FailureStreak(3).trips(metric(3, 3), CLOSED, 4)
    assert not FailureStreak(3).trips(metric(9, 9), CLOSED, 2)


def test_min_requests_is_met_by_its_number_of_calls() -> None:
    """Below the bar there is no evidence; once the engine is impatient, one call is enough."""
    rule = MinRequests(10)
    assert rule.trips(metric(10), CLOSED, 0)
    assert not rule.trips(metric(9), CLOSED, 0)
    assert rule.trips(metric(1), HALF_OPEN, 0, patient=False)
    assert rule(metric(10), CLOSED, 0)
    assert not rule(metric(9), CLOSED, 0)


def test_the_default_needs_100_calls_closed_and_10_half_open() -> None:
    """The default trips at half of 100 calls, and at half of 10 probes."""
    assert not DEFAULT_TRIPPER.trips(metric(99, 99), CLOSED, 99)
    assert not DEFAULT_TRIPPER.trips(metric(100, 49), CLOSED, 0)
    assert DEFAULT_TRIPPER.trips(metric(100, 50), CLOSED, 0)
    assert not DEFAULT_TRIPPER.trips(metric(9, 9), HALF_OPEN, 0)
    assert DEFAULT_TRIPPER.trips(metric(10, 5), HALF_OPEN, 0)


def test_a_subclass_must_define_its_call() -> None:
    """The base class cannot decide, and says which class forgot to."""

    class Forgetful(Tripper):
        pass

    wanted = r"Forgetful must define __call__\(metric, state, consecutive_failures\)"
    with pytest.raises(NotImplementedError, match=wanted):
        Forgetful().trips(metric(1), CLOSED, 0)


def test_a_subclass_has_words_without_writing_any() -> None:
    """A rule of the user's that defines the call alone explains itself by its repr."""

    class TooBusy(Tripper):
        def __call__(self, metric: Metric, state: State, consecutive_failures: int, /) -> bool:
            return metric.total_count > 1

        def __repr__(self) -> str:
            return "TooBusy()"

    assert str(TooBusy().explain(metric(2), CLOSED, 0)) == "TooBusy() is met after 2 calls"
    assert str(TooBusy().explain(metric(1), CLOSED, 0)) == "TooBusy() is not met after 1 call"
    both = TooBusy() & FailureRate(0.5)
    assert both.trips(metric(2, 2), CLOSED, 0)
    assert not both.steady


# -- structure ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tripper", "closed", "half_open"),
    [
        (FailureRate(0.5), True, True),
        (Closed(), True, False),
        (HalfOpened(), False, True),
        (Closed() & FailureRate(0.5), True, False),
        (Closed() | FailureRate(0.5), True, True),
        (Closed() & HalfOpened(), False, False),
        ((Closed() & MinRequests(5)) | (HalfOpened() & MinRequests(2)), True, True),
        ((Closed() | HalfOpened()) & MinRequests(5), True, True),
        ((Closed() & MinRequests(5)) | (Closed() & FailureStreak(2)), True, False),
    ],
    ids=repr,
)
def test_a_tree_knows_the_states_that_it_concerns(tripper: Tripper, closed: bool, half_open: bool) -> None:
    """A conjunction concerns a state when all of its parts do, an alternative when any does."""
    assert tripper.applies(CLOSED) is closed
    assert tripper.applies(HALF_OPEN) is half_open


def test_evidence_is_needed_by_each_branch_that_applies() -> None:
    """Branches about another state need none; of the others each must have its own."""
    tripper = (Closed() & MinRequests(100)) | (HalfOpened() & MinRequests(3)) | MinRequests(5)
    assert not tripper.evidenced(metric(4), HALF_OPEN)
    assert tripper.evidenced(metric(5), HALF_OPEN)
    assert not tripper.evidenced(metric(99), CLOSED)
    assert tripper.evidenced(metric(100), CLOSED)
    assert tripper.evidenced(metric(1), HALF_OPEN, patient=False)


def test_a_tree_gathers_what_its_leaves_declare() -> None:
    """Bars are sorted and single, thresholds are joined, and one unsteady part makes the tree unsteady."""
    tripper = (MinRequests(20) & SlowRate(0.5, threshold=2)) | (MinRequests(5) & SlowRate(1)) | MinRequests(20)
    assert tripper.bars == (5, 20)
    assert tripper.thresholds == {2.0}
    assert tripper.steady
    assert not (tripper | AvgLatency(1)).steady
    assert not (tripper & many_failures).steady


LIMITED: dict[str, Callable[[int], Tripper]] = {
    "failure_rate": lambda tenths: FailureRate(tenths / 10),
    "slow_rate": lambda tenths: SlowRate(tenths / 10),
    "avg_latency": AvgLatency,
    "failure_streak": FailureStreak,
    "min_requests": MinRequests,
}


@pytest.mark.parametrize(
    ("tripper", "limits"),
    [
        *((make(4), {kind: 0.4 if "rate" in kind else 4.0}) for kind, make in LIMITED.items()),
        (DEFAULT_TRIPPER, {"min_requests": 100, "failure_rate": 0.5}),
        (Closed() & FailureRate(0.5) & HalfOpened(), {}),
        (HalfOpened() & FailureRate(0.5), {}),
        (HalfOpened() | FailureRate(0.5), {"failure_rate": 0.5}),
        (FailureRate(0.5) | FailureRate(0.25), {"failure_rate": 0.25}),
        (FailureRate(0.5) & FailureRate(0.25), {"failure_rate": 0.5}),
        (
            FailureStreak(3) | (MinRequests(9) & SlowRate(0.5)),
            {"failure_streak": 3, "min_requests": 9, "slow_rate": 0.5},
        ),
        (
            MinRequests(10) & (FailureRate(0.5) | (MinRequests(20) & FailureRate(0.3))),
            {"min_requests": 10, "failure_rate": 0.3},
        ),
        (((HalfOpened() & MinRequests(3)) | FailureRate(0.9)) & FailureRate(0.5), {"failure_rate": 0.9}),
        (SlowRate(0.5, threshold=2), {}),
        (FailureStreak(3) & many_failures, {"failure_streak": 3}),
        (FailureStreak(3) | many_failures, {"failure_streak": 3}),
    ],
    ids=repr,
)
def test_a_tree_tells_the_limits_by_which_it_trips_while_closed(tripper: Tripper, limits: dict[str, float]) -> None:
    """Of each kind the lowest that can decide, as a float; a `SlowRate` of other calls and rules of users have none."""
    assert tripper.limits == limits
    assert {type(limit) for limit in tripper.limits.values()} <= {float}


def test_a_rule_of_the_users_may_mean_something_else_by_limits() -> None:
    """What is no set of limits is none, alone or in a tree."""

    class Budget(Tripper):
        limits = "two a day"  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]

        def __call__(self, metric: Metric, state: State, consecutive_failures: int, /) -> bool:
            return False

    assert (Budget() | FailureStreak(2)).limits == {"failure_streak": 2}
    assert CircuitBreaker("payments", tripper=Budget()).limits() == {}


Known: TypeAlias = tuple[Tripper, list[tuple[Tripper, ...]]]
"""A tree, and each way of meeting it as the leaves that it takes, written out."""


def both(left: Known, right: Known) -> Known:
    return left[0] & right[0], [one + other for one in left[1] for other in right[1]]


def either(left: Known, right: Known) -> Known:
    return left[0] | right[0], left[1] + right[1]


LEAVES: st.SearchStrategy[Tripper] = st.one_of(
    st.builds(lambda kind, limit: LIMITED[kind](limit), st.sampled_from(sorted(LIMITED)), st.integers(1, 9)),
    st.sampled_from([Closed(), HalfOpened()]),
)
TREES: st.SearchStrategy[Known] = st.recursive(
    LEAVES.map(lambda rule: (rule, [(rule,)])),
    lambda trees: st.one_of(st.builds(both, trees, trees), st.builds(either, trees, trees)),
    max_leaves=7,
)


@given(TREES)
def test_limits_are_those_of_all_ways_written_out(known: Known) -> None:
    """Within a way to trip the highest limit of a kind decides, among the ways that a closed circuit has the lowest."""
    tripper, ways = known
    lowest: dict[str, float] = {}
    for way in ways:
        if all(rule.applies(CLOSED) for rule in way):
            needed: dict[str, float] = {}
            for rule in way:
                for kind, limit in rule.limits.items():
                    needed[kind] = max(limit, needed.get(kind, 0.0))
            for kind, limit in needed.items():
                lowest[kind] = min(limit, lowest.get(kind, math.inf))
    assert tripper.limits == lowest


@pytest.mark.parametrize(
    "join",
    [
        lambda plain: plain & MinRequests(1),
        lambda plain: MinRequests(1) & plain,
        lambda plain: plain | MinRequests(9),
        lambda plain: MinRequests(9) | plain,
    ],
    ids=["left of &", "right of &", "left of |", "right of |"],
)
def test_a_plain_callable_joins_on_either_side(join: Callable[[Any], Tripper]) -> None:
    """A function of ``(metric, state, consecutive_failures)`` is a tripper in every place of a tree."""
    assert join(many_failures).trips(metric(3, 3), CLOSED, 3)
    assert not join(many_failures).trips(metric(3, 2), CLOSED, 2)


def test_a_plain_callable_is_told_metric_state_and_streak() -> None:
    """A function receives exactly what the contract says, and any truth value is an answer."""
    told: list[Any] = []

    def judge(*arguments: Any) -> list[Any]:
        told.append(arguments)
        return told

    tripper = judge & MinRequests(1)  # type: ignore[operator]
    assert tripper(metric(1), HALF_OPEN, 7) is True
    assert told == [(metric(1), HALF_OPEN, 7)]


@pytest.mark.parametrize(
    ("tripper", "words"),
    [
        (MinRequests(20), "MinRequests(20)"),
        (FailureRate(0.5), "FailureRate(0.5)"),
        (FailureRate(1), "FailureRate(1)"),
        (SlowRate(0.25), "SlowRate(0.25)"),
        (SlowRate(0.25, threshold=2), "SlowRate(0.25, threshold=2)"),
        (AvgLatency(1.5), "AvgLatency(1.5)"),
        (FailureStreak(5), "FailureStreak(5)"),
        (Closed() & MinRequests(2) & FailureRate(0.5), "Closed() & MinRequests(2) & FailureRate(0.5)"),
        (
            FailureStreak(5) | (MinRequests(2) & FailureRate(0.5)),
            "FailureStreak(5) | (MinRequests(2) & FailureRate(0.5))",
        ),
        ((Closed() | HalfOpened()) & MinRequests(2), "(Closed() | HalfOpened()) & MinRequests(2)"),
        (many_failures | FailureStreak(5), "many_failures | FailureStreak(5)"),
    ],
    ids=repr,
)
def test_a_tripper_prints_as_it_was_written(tripper: Tripper, words: str) -> None:
    """The repr is the expression, with the brackets that it needs, plain functions by their name."""
    assert repr(tripper) == words


def test_a_nameless_callable_prints_as_its_repr() -> None:
    """A callable object without a name still says what it is."""

    class Judge:
        def __call__(self, *told: object) -> bool:
            return True

        def __repr__(self) -> str:
            return "<a judge>"

    assert repr(MinRequests(1) & Judge()) == "MinRequests(1) & <a judge>"


metrics = st.builds(
    lambda total, failures, slow, duration: metric(
        total, min(failures, total), duration * (total > 0), min(slow, total), _2=min(slow, total)
    ),
    st.integers(0, 8),
    st.integers(0, 8),
    st.integers(0, 8),
    st.floats(0, 20),
)
leaves = st.one_of(
    st.sampled_from([*RULES, Closed(), HalfOpened(), MinRequests(4), FailureRate(1)]),
    st.just(FailureRate(0.1) & many_failures),
)
trees = st.recursive(
    leaves,
    lambda children: st.one_of(
        st.tuples(children, children).map(lambda two: two[0] & two[1]),
        st.tuples(children, children).map(lambda two: two[0] | two[1]),
    ),
    max_leaves=6,
)


@given(trees, metrics, st.sampled_from([CLOSED, HALF_OPEN]), st.integers(0, 3), st.booleans())
def test_the_verdict_agrees_with_the_decision(
    tripper: Tripper, seen: Metric, state: State, streak: int, patient: bool
) -> None:
    """Whatever the tree: where it applies, it is explained as it decided, in a sentence and as JSON."""
    assume(tripper.applies(state) and seen.total_count)
    verdict = tripper.explain(seen, state, streak, patient=patient)
    assert bool(verdict) is verdict.met is tripper.trips(seen, state, streak, patient=patient)
    assert str(verdict)
    assert verdict.rule == repr(tripper)
    assert json.loads(json.dumps(verdict.to_dict()))["met"] is verdict.met


@given(trees, trees, metrics, st.integers(0, 3))
def test_and_or_are_commutative(one: Tripper, other: Tripper, seen: Metric, streak: int) -> None:
    """The order of the parts changes no answer."""
    for state in (CLOSED, HALF_OPEN):
        assert (one & other).trips(seen, state, streak) is (other & one).trips(seen, state, streak)
        assert (one | other).trips(seen, state, streak) is (other | one).trips(seen, state, streak)
        assert (one & other).trips(seen, state, streak) is (
            one.trips(seen, state, streak) and other.trips(seen, state, streak)
        )


# -- words ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "seen", "streak", "sentence", "observed", "limit"),
    [
        (FailureRate(0.5), metric(100, 62), 0, "failure rate 62.0 % (limit 50.0 %, 62 of 100 calls)", 0.62, 0.5),
        (FailureRate(0.5), metric(1, 1), 1, "failure rate 100.0 % (limit 50.0 %, 1 of 1 call)", 1.0, 0.5),
        (SlowRate(0.5), metric(4, slow=3), 0, "slow rate 75.0 % (limit 50.0 %, 3 of 4 calls)", 0.75, 0.5),
        (
            SlowRate(0.5, threshold=2),
            metric(4, _2=3),
            0,
            "slow rate (from 2 s) 75.0 % (limit 50.0 %, 3 of 4 calls)",
            0.75,
            0.5,
        ),
        (AvgLatency(0.5), metric(4, duration=3), 0, "average latency 0.750 s (limit 0.5 s)", 0.75, 0.5),
        (FailureStreak(5), metric(9, 5), 5, "5 failures in a row (limit 5)", 5, 5),
        (FailureStreak(1), metric(9, 5), 1, "1 failure in a row (limit 1)", 1, 1),
        (MinRequests(20), metric(25), 0, "25 calls seen (20 needed)", 25, 20),
        (MinRequests(1), metric(1), 0, "1 call seen (1 needed)", 1, 1),
    ],
    ids=lambda value: repr(value) if isinstance(value, Tripper) else "",
)
def test_each_rule_tells_what_it_saw(
    rule: Tripper, seen: Metric, streak: int, sentence: str, observed: float, limit: float
) -> None:
    """A met rule gives its figures and its limit, in words and as numbers."""
    verdict = rule.explain(seen, CLOSED, streak)
    assert verdict == Verdict(repr(rule), True, sentence, observed, limit)
    assert str(verdict) == sentence


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        (FailureRate(0.5), "no call yet (limit 50.0 %, 0 of 0 calls)"),
        (SlowRate(0.5), "no call yet (limit 50.0 %, 0 of 0 calls)"),
        (AvgLatency(0.5), "no call yet (limit 0.5 s)"),
        (MinRequests(20), "0 calls seen (20 needed)"),
        (Closed(), "Closed() was met"),
        (HalfOpened(), "HalfOpened() was not met"),
    ],
    ids=repr,
)
def test_each_rule_has_words_for_an_empty_window(rule: Tripper, sentence: str) -> None:
    """Without a call there is no figure, but still a sentence."""
    assert str(rule.explain(EMPTY, CLOSED, 0)) == sentence


def test_a_waived_bar_says_so() -> None:
    """Where patience ended before the bar was reached, the sentence tells."""
    verdict = MinRequests(10).explain(metric(2), HALF_OPEN, 0, patient=False)
    assert str(verdict) == "2 calls seen (10 needed, waived after waiting)"
    assert verdict


def test_a_conjunction_tells_all_its_figures() -> None:
    """``&`` joins what each part saw with "and"; a rule about the state alone adds nothing."""
    verdict = (Closed() & MinRequests(20) & FailureRate(0.6)).explain(metric(30, 21), CLOSED, 2)
    assert str(verdict) == "30 calls seen (20 needed) and failure rate 70.0 % (limit 60.0 %, 21 of 30 calls)"
    assert verdict.to_dict() == {
        "rule": "Closed() & MinRequests(20) & FailureRate(0.6)",
        "met": True,
        "joined_by": "and",
        "parts": [
            {"rule": "Closed()", "met": True},
            {
                "rule": "MinRequests(20)",
                "met": True,
                "text": "30 calls seen (20 needed)",
                "observed": 30,
                "limit": 20,
            },
            {
                "rule": "FailureRate(0.6)",
                "met": True,
                "text": "failure rate 70.0 % (limit 60.0 %, 21 of 30 calls)",
                "observed": 0.7,
                "limit": 0.6,
            },
        ],
    }


def test_an_alternative_tells_the_branches_that_fired() -> None:
    """``|`` names those parts that were met, and nothing of the others."""
    tripper = FailureStreak(5) | (MinRequests(20) & FailureRate(0.4))
    assert str(tripper.explain(metric(5, 5), CLOSED, 5)) == "5 failures in a row (limit 5)"
    assert (
        str(tripper.explain(metric(20, 8), CLOSED, 0))
        == "20 calls seen (20 needed) and failure rate 40.0 % (limit 40.0 %, 8 of 20 calls)"
    )
    assert " or " in str(tripper.explain(metric(20, 20), CLOSED, 20))


def test_an_alternative_that_is_not_met_tells_every_branch() -> None:
    """Where nothing fired, each branch says how far it was."""
    verdict = (FailureStreak(5) | FailureRate(0.4)).explain(metric(10, 1), CLOSED, 1)
    assert str(verdict) == "1 failure in a row (limit 5) and failure rate 10.0 % (limit 40.0 %, 1 of 10 calls)"


def test_branches_about_another_state_are_left_out() -> None:
    """A verdict on a half-open circuit says nothing of the rules for a closed one."""
    verdict = DEFAULT_TRIPPER.explain(metric(10, 5), HALF_OPEN, 0)
    assert str(verdict) == "10 calls seen (10 needed) and failure rate 50.0 % (limit 50.0 %, 5 of 10 calls)"
    assert [part.rule for part in verdict.parts] == ["HalfOpened() & MinRequests(10) & FailureRate(0.5)"]


def test_the_same_words_are_said_once() -> None:
    """Branches that share a figure do not repeat it."""
    tripper = (Closed() & FailureRate(0.5)) | (MinRequests(1) & FailureRate(0.5)) | FailureRate(0.5)
    sentence = str(tripper.explain(metric(2, 2), CLOSED, 2))
    assert sentence.count("1 call") == 0
    assert sentence.split(" or ")[0] == "failure rate 100.0 % (limit 50.0 %, 2 of 2 calls)"
    assert len(sentence.split(" or ")) == 2


def test_a_tree_that_concerns_no_state_is_explained_in_full() -> None:
    """Even a rule that can never apply has its words."""
    verdict = (Closed() & HalfOpened()).explain(metric(1), State.METRICS_ONLY, 0)
    assert not verdict
    assert len(verdict.parts) == 2


def test_a_huge_window_cannot_break_a_rate() -> None:
    """Counts far beyond any window still divide."""
    assert FailureRate(0.5).trips(metric(10**18, 10**18), CLOSED, 0)
    assert not AvgLatency(math.nextafter(1, 2)).trips(metric(10**18, duration=1e18), CLOSED, 0)


def test_trippers_have_no_truth_value() -> None:
    """``a and b`` would silently be ``b``: the error says what to write instead."""
    for combine in (lambda: MinRequests(100) and FailureRate(0.5), lambda: not FailureRate(0.5)):
        with pytest.raises(TypeError, match=r"has no truth value: combine trippers with & and \|"):
            combine()


# -- what can be spared -----------------------------------------------------------------------------------------------


SPARING = st.recursive(
    st.one_of(
        st.just(Closed()),
        st.just(HalfOpened()),
        st.integers(1, 30).map(MinRequests),
        st.sampled_from((0.05, 0.1, 0.3, 1 / 3, 0.5, 0.7, 1.0)).map(FailureRate),
        st.sampled_from((0.1, 0.5)).map(SlowRate),
        st.integers(1, 8).map(FailureStreak),
    ),
    lambda part: st.tuples(st.sampled_from((and_, or_)), part, part).map(lambda join: join[0](join[1], join[2])),
    max_leaves=5,
)
OUTCOMES = st.lists(st.booleans(), min_size=1, max_size=60)


@given(rule=SPARING, size=st.integers(1, 40), before=OUTCOMES, after=OUTCOMES)
def test_failures_that_can_be_spared_do_not_trip(rule: Any, size: int, before: list[bool], after: list[bool]) -> None:
    """However successes come between, in a window that is full or not: so many more failures leave it untripped."""
    window: list[bool] = []
    streak = 0

    def metric() -> Metric:
        return Metric(total_count=len(window), failure_count=sum(window), total_duration=0.0, slow_count=0)

    def record(failed: bool) -> None:
        nonlocal streak
        window.append(failed)
        del window[:-size]
        streak = streak + 1 if failed else 0

    for failed in before:
        record(failed)
    assume(not rule.trips(metric(), State.CLOSED, streak))
    spare = rule.spare(metric(), streak)
    # a call count at which a success can turn the answer ends the stretch for which it was asked
    bar = next((bar for bar in rule.bars if bar > len(window)), math.inf)
    for failed in after:
        record(failed)
        spare -= failed
        if spare < 0 or len(window) >= bar:
            break
        assert not rule.trips(metric(), State.CLOSED, streak)


def test_what_is_known_can_be_spared() -> None:
    """The default rule is asked about a failure in forty, not about each; one of the user's is asked each time."""
    metric = Metric(total_count=100, failure_count=9, total_duration=1.0, slow_count=0)
    assert DEFAULT_TRIPPER.spare(metric, 1) == 40
    assert FailureStreak(5).spare(metric, 1) == 3
    assert (FailureStreak(5) | FailureRate(0.1)).spare(metric, 1) == 0
    assert (FailureStreak(5) & FailureRate(0.1)).spare(metric, 1) == 3
    assert AvgLatency(1).spare(metric, 1) == 0
