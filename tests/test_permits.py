"""Permits: which calls a half-open circuit admits."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxgate import Cooldown, FailureStreak, HalfOpened, MinRequests, RampUp, Random
from fluxgate.events import CallRejected
from fluxgate.permits import All, Permit
from tests.faces import Make, both

ONE = FailureStreak(1)
PATIENT = ONE | (HalfOpened() & MinRequests(1000) & FailureStreak(1000))


def test_all_admits_every_call() -> None:
    """`All` does not look at the time."""
    assert All()(0.0) is True
    assert All()(1e9) is True


@pytest.mark.parametrize(("drawn", "admitted"), [(0.0, True), (0.2999, True), (0.3, False), (0.9999, False)])
def test_random_admits_with_its_probability(monkeypatch: pytest.MonkeyPatch, drawn: float, admitted: bool) -> None:
    """A call is admitted where chance, from 0 up to 1, falls below the ratio."""
    monkeypatch.setattr(random, "random", lambda: drawn)
    assert Random(0.3)(0.0) is admitted
    assert Random(1)(0.0) is True


def test_random_obeys_the_seed_of_the_program() -> None:
    """Chance comes from `random`, so seeding it makes a test repeatable."""

    def draw() -> list[bool]:
        random.seed(7)
        return [Random(0.5)(0.0) for _ in range(50)]

    assert draw() == draw()
    assert 10 < sum(draw()) < 40


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.001, 1e6), st.floats(-1, 2e6))
def test_ramp_up_grows_in_a_straight_line(one: float, other: float, duration: float, elapsed: float) -> None:
    """The probability goes from `initial` to `final` with time, and stays within them."""
    initial, final = min(one, other), max(one, other, 0.001)
    ramp = RampUp(initial, final, duration)
    assert initial <= ramp.ratio(elapsed) <= final + 1e-12
    assert ramp.ratio(0) == initial
    assert ramp.ratio(duration) == pytest.approx(final)
    assert ramp.ratio(duration / 2) == pytest.approx((initial + final) / 2)


def test_ramp_up_admits_by_the_time_since_half_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same chance is refused early and admitted later."""
    monkeypatch.setattr(random, "random", lambda: 0.4)
    ramp = RampUp(0.1, 0.9, 80)
    assert [ramp(elapsed) for elapsed in (0, 29, 31, 1000)] == [False, False, True, True]


@pytest.mark.parametrize(
    ("permit", "words"),
    [(All(), "All()"), (Random(0.5), "Random(0.5)"), (RampUp(0, 1, 60), "RampUp(0, 1, 60)")],
    ids=repr,
)
def test_a_permit_prints_as_it_was_written(permit: Permit, words: str) -> None:
    """The repr is the expression."""
    assert repr(permit) == words


def test_a_subclass_must_define_its_call() -> None:
    """The base class cannot choose, and says which class forgot to."""

    class Forgetful(Permit):
        pass

    with pytest.raises(NotImplementedError, match=r"Forgetful must define __call__\(elapsed\)"):
        Forgetful()(0.0)


# -- in a circuit ---------------------------------------------------------------------------------------------------


@both
def test_a_plain_function_is_told_the_seconds_since_half_open(make: Make) -> None:
    """A permit of the user's gets the time since HALF_OPEN began, 0 for the call that began it."""
    told: list[float] = []

    def choose(elapsed: float) -> bool:
        told.append(elapsed)
        return True

    circuit = make(tripper=PATIENT, retry=Cooldown(60), permit=choose)
    circuit.fail()
    circuit.clock.advance(75)
    circuit.succeed(seconds=2)
    circuit.clock.advance(0.5)
    circuit.succeed()
    assert told == [0.0, 2.5]
    assert choose.__qualname__ in circuit.breaker._core.machine.rules.words()["permit"]


@both
def test_a_call_that_the_permit_passes_over_is_refused(make: Make) -> None:
    """The refusal says that the permit did not choose it, and that it may be tried again at once."""
    answers: Iterator[object] = iter([0, "yes", None])

    class Taking:
        def __call__(self, elapsed: float) -> object:
            return next(answers)

        def __repr__(self) -> str:
            return "Taking()"

    circuit = make(tripper=PATIENT, retry=Cooldown(60), permit=Taking())
    assert circuit.breaker._core.machine.rules.words()["permit"] == "Taking()"
    circuit.fail()
    circuit.clock.advance(60)
    assert circuit.refused().state == "half_open"
    circuit.succeed()
    assert circuit.refused().retry_after == 0.0
    assert [(event.reason, event.retry_after) for event in circuit.seen(CallRejected)] == [("not_chosen", 0.0)] * 2
    assert circuit.info.probes == 0


@both
def test_the_permit_is_asked_while_half_open_alone(make: Make) -> None:
    """Closed and open circuits do not ask it, nor does a half-open one without a free place."""
    asked: list[float] = []

    def choose(elapsed: float) -> bool:
        asked.append(elapsed)
        return True

    circuit = make(tripper=PATIENT, retry=Cooldown(60), permit=choose, max_half_open_calls=1)
    circuit.succeed()
    circuit.fail()
    circuit.refused()
    assert asked == []
    circuit.clock.advance(60)
    held = circuit.acquire()
    circuit.refused()
    assert asked == [0.0]
    held.cancel()


@both
def test_half_of_the_calls_pass_by_default(make: Make) -> None:
    """The default permit admits about half of the calls while recovering."""
    random.seed(1)
    circuit = make(tripper=PATIENT)
    circuit.fail()
    circuit.clock.advance(60)
    passed = 0
    for _ in range(200):
        before = len(circuit.seen(CallRejected))
        try:
            circuit.call(lambda: None)
        except Exception:
            assert len(circuit.seen(CallRejected)) == before + 1
        else:
            passed += 1
    assert 70 < passed < 130
