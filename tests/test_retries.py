"""Retries: how long an open circuit waits."""

from __future__ import annotations

import math
import random
from email.utils import formatdate
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxgate import Always, Backoff, CallNotPermittedError, Cooldown, FailureStreak, Never, RetryAfter, State
from fluxgate.events import StateChanged
from fluxgate.permits import All as EveryCall
from fluxgate.retries import Retry
from tests.faces import Make, both

NOW = 1_700_000_000.0
ONE = FailureStreak(1)


class Asks(Exception):
    """An error that carries what a response carries."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__("429")
        self.__dict__.update(attributes)


class Linear(Retry):
    """A retry as users write one."""

    def wait(self, reopens: int, /) -> float:
        return 1.0 + reopens


# -- waits ----------------------------------------------------------------------------------------------------------


def test_cooldown_waits_the_same_each_time() -> None:
    """`Cooldown` does not look at the number of reopens."""
    assert [Cooldown(30).wait(reopens) for reopens in (0, 1, 10**9)] == [30.0, 30.0, 30.0]
    assert Cooldown(0).wait(0) == 0.0


def test_backoff_grows_up_to_its_cap() -> None:
    """`Backoff` multiplies with each reopen and stops at `max_duration`."""
    assert [Backoff(2, multiplier=3, max_duration=50).wait(n) for n in range(5)] == [2.0, 6.0, 18.0, 50.0, 50.0]
    assert [Backoff(5, multiplier=1).wait(n) for n in (0, 7)] == [5.0, 5.0]


@pytest.mark.parametrize("reopens", [1_000, 10_000, 10**9])
@pytest.mark.parametrize("backoff", [Backoff(1), Backoff(0.001, multiplier=10), Backoff(1e-300, 1e300, 300)], ids=repr)
def test_backoff_survives_any_number_of_reopens(backoff: Backoff, reopens: int) -> None:
    """Where the power overflows, the wait is the cap."""
    assert backoff.wait(reopens) == 300.0


def test_always_and_never() -> None:
    """`Always` waits not at all, `Never` for ever."""
    assert Always().wait(3) == 0.0
    assert Never().wait(3) == math.inf


@given(st.floats(0, 1), st.floats(0, 1e6), st.integers(0, 5), st.integers())
def test_cooldown_jitter_stays_within_its_ratio(ratio: float, duration: float, reopens: int, seed: int) -> None:
    """A jittered wait differs by the ratio at most, to either side."""
    random.seed(seed)
    wait = Cooldown(duration, jitter_ratio=ratio).wait(reopens)
    assert duration * (1 - ratio) * (1 - 1e-9) <= wait <= duration * (1 + ratio) * (1 + 1e-9)


@given(st.floats(0, 1), st.integers(0, 40), st.integers())
def test_backoff_jitter_never_exceeds_the_cap(ratio: float, reopens: int, seed: int) -> None:
    """However it is jittered, no wait is longer than `max_duration`."""
    random.seed(seed)
    backoff = Backoff(1, multiplier=2, max_duration=300, jitter_ratio=ratio)
    wait = backoff.wait(reopens)
    assert 0 <= wait <= 300 * (1 + 1e-12)
    if 2**reopens * (1 + ratio) < 300:
        assert wait >= 2**reopens * (1 - ratio) * (1 - 1e-9)


@pytest.mark.parametrize(("drawn", "factor"), [(0.0, 0.8), (0.5, 1.0), (1.0, 1.2)])
def test_jitter_is_symmetric(monkeypatch: pytest.MonkeyPatch, drawn: float, factor: float) -> None:
    """Chance from 0 to 1 spreads the wait evenly from ``1 - ratio`` to ``1 + ratio``."""
    monkeypatch.setattr(random, "random", lambda: drawn)
    assert Cooldown(100, jitter_ratio=0.2).wait(0) == pytest.approx(100 * factor)
    assert Backoff(4, jitter_ratio=0.2).wait(1) == pytest.approx(8 * factor)


def test_without_jitter_no_chance_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ratio of 0 leaves the random numbers of the program alone."""
    monkeypatch.setattr(random, "random", lambda: pytest.fail("drawn"))
    assert Cooldown(5).wait(0) == 5
    assert Backoff(5).wait(0) == 5


@pytest.mark.parametrize(
    ("retry", "words"),
    [
        (Cooldown(30), "Cooldown(30)"),
        (Cooldown(0.5, jitter_ratio=0.1), "Cooldown(0.5, jitter_ratio=0.1)"),
        (Backoff(1), "Backoff(1, multiplier=2, max_duration=300)"),
        (Backoff(1, 3, 60, 0.5), "Backoff(1, multiplier=3, max_duration=60, jitter_ratio=0.5)"),
        (Always(), "Always()"),
        (Never(), "Never()"),
        (RetryAfter(Cooldown(60)), "RetryAfter(Cooldown(60))"),
        (RetryAfter(Never(), max_duration=10), "RetryAfter(Never(), max_duration=10)"),
    ],
    ids=repr,
)
def test_a_retry_prints_as_it_was_written(retry: Retry, words: str) -> None:
    """The repr is the expression; options at their defaults may be left out."""
    assert repr(retry) == words


def test_a_subclass_must_define_its_wait() -> None:
    """The base class has no wait, and says which class forgot to."""

    class Forgetful(Retry):
        pass

    with pytest.raises(NotImplementedError, match=r"Forgetful must define wait\(reopens\)"):
        Forgetful().wait(0)


# -- what the dependency asks for -----------------------------------------------------------------------------------


class Headers(dict[str, str]):
    """Headers as httpx has them: names in any case."""

    def get(self, name: str, default: Any = None) -> Any:
        return next((value for key, value in self.items() if key.lower() == name.lower()), default)


RETRY = RetryAfter(Cooldown(60), max_duration=600)


@pytest.mark.parametrize(
    "outcome",
    [
        Asks(retry_after=7),
        Asks(retry_after=7.0),
        Asks(retry_after="7"),
        Asks(headers={"Retry-After": "7"}),
        Asks(headers={"retry-after": "7"}),
        Asks(headers=Headers({"RETRY-AFTER": "7"})),
        Asks(response=SimpleNamespace(headers={"Retry-After": " 7 "})),
        Asks(headers={}, response=SimpleNamespace(headers={"Retry-After": "7"})),
        Asks(headers={"Retry-After": formatdate(NOW + 7, usegmt=True)}),
        Asks(headers={"Retry-After": formatdate(NOW + 7, localtime=False)}),
        Asks(retry_after=7, headers={"Retry-After": "99"}),
        SimpleNamespace(status_code=503, headers={"Retry-After": "7"}),
        CallNotPermittedError("inner", State.OPEN, 7.0),
    ],
    ids=repr,
)
def test_the_dependency_says_when_to_come_back(outcome: object) -> None:
    """Attribute, header or the response's header, in seconds or as a date: each is understood."""
    assert RETRY.hint(outcome, NOW) == pytest.approx(7)


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [(1e9, 600), ("1000000", 600), (math.inf, 600), ("inf", 600), (-5, 0), ("-5", 0), (0, 0), (600, 600)],
)
def test_what_is_asked_for_is_cut_to_a_sane_range(asked: Any, seconds: float) -> None:
    """From 0 to `max_duration`: a dependency cannot close the circuit for a year, or for less than no time."""
    assert RETRY.hint(Asks(retry_after=asked), NOW) == seconds


@pytest.mark.parametrize(
    ("date", "seconds"), [(formatdate(NOW - 50, usegmt=True), 0), (formatdate(NOW + 1e6, usegmt=True), 600)]
)
def test_a_date_is_cut_as_well(date: str, seconds: float) -> None:
    """A date that has passed means now; one that is far away means `max_duration`."""
    assert RETRY.hint(Asks(headers={"Retry-After": date}), NOW) == seconds


@pytest.mark.parametrize(
    "outcome",
    [
        Asks(),
        None,
        "a value",
        Asks(retry_after=None),
        Asks(retry_after="soon"),
        Asks(retry_after=""),
        Asks(retry_after=math.nan),
        Asks(retry_after="nan"),
        Asks(retry_after=True),
        Asks(retry_after=[7]),
        Asks(retry_after={}),
        Asks(headers=None, response=None),
        Asks(headers={}),
        Asks(headers={"Retry-After": "Fri, 99 Foo 2023 25:61:61 GMT"}),
        Asks(headers={"Retry-After": "Fri, 31 Dec 99999999999 00:00:00 GMT"}),
        Asks(response=SimpleNamespace(headers={"Retry-After": "later"})),
    ],
    ids=repr,
)
def test_garbage_is_no_wish(outcome: object) -> None:
    """What cannot be understood is as if nothing was asked for: the fallback decides."""
    assert RETRY.hint(outcome, NOW) is None
    assert RETRY.wait_after(0, None) == 60.0


@given(st.text() | st.floats() | st.integers() | st.binary() | st.booleans() | st.none())
def test_no_wish_breaks_the_retry(asked: object) -> None:
    """Whatever a dependency sends, the answer is a sane number of seconds or none."""
    for outcome in (Asks(retry_after=asked), Asks(headers={"Retry-After": asked})):
        seconds = RETRY.hint(outcome, NOW)
        assert seconds is None or 0 <= seconds <= 600


def test_an_absurdly_large_wish_is_cut() -> None:
    """An integer beyond any float is more than `max_duration`, not an error."""
    assert RETRY.hint(Asks(retry_after=10**400), NOW) == 600


def test_the_fallback_is_asked_with_the_reopens() -> None:
    """Without a wish `RetryAfter` is its fallback."""
    retry = RetryAfter(Backoff(1))
    assert [retry.wait(n) for n in range(3)] == [1.0, 2.0, 4.0]
    assert retry.wait_after(2, None) == 4.0
    assert retry.wait_after(2, 0.5) == 0.5
    assert Cooldown(3).hint(Asks(retry_after=7), NOW) is None
    assert Cooldown(3).wait_after(0, 7.0) == 3


# -- in a circuit ---------------------------------------------------------------------------------------------------


@both
def test_the_wait_counts_down_from_the_opening(make: Make) -> None:
    """Refusals and `info` say how many seconds are left, and the event says the whole wait."""
    circuit = make(tripper=ONE, retry=Cooldown(30))
    circuit.fail()
    assert circuit.seen(StateChanged)[-1].wait == 30.0
    circuit.clock.advance(12.5)
    assert circuit.refused().retry_after == 17.5
    assert circuit.info.retry_after == 17.5
    circuit.clock.advance(17.4)
    circuit.refused()
    circuit.clock.advance(0.2)
    assert circuit.info.retry_after == 0.0
    assert circuit.state == "open"


@both
def test_never_leaves_it_to_a_person(make: Make) -> None:
    """With `Never` there is no time to tell and no probe, however long one waits."""
    circuit = make(tripper=ONE, retry=Never())
    circuit.fail()
    circuit.clock.advance(1e9)
    assert circuit.refused().retry_after is None
    assert circuit.info.retry_after is None
    assert circuit.seen(StateChanged)[-1].wait is None
    circuit.steer("reset")
    circuit.succeed()


@both
def test_always_probes_at_once(make: Make) -> None:
    """With `Always` the very next call is a probe."""
    circuit = make(tripper=ONE, retry=Always(), permit=EveryCall())
    circuit.fail()
    circuit.succeed()
    assert circuit.moves() == ["closed open tripper", "open half_open retry", "half_open closed recovery"]
    assert str(circuit.seen(StateChanged)[1].verdict) == "the wait of 0 s is over"


@both
def test_a_plain_object_with_wait_is_a_retry(make: Make) -> None:
    """A class of the user's needs `wait(reopens)` and nothing else; it prints as itself."""

    class Quarter:
        def wait(self, reopens: int) -> float:
            return 0.25 * (reopens + 1)

        def __repr__(self) -> str:
            return "Quarter()"

    for retry in (Quarter(), Linear()):
        circuit = make(tripper=ONE, retry=retry, permit=EveryCall())
        circuit.fail()
        circuit.clock.advance(1)
        circuit.fail()
        assert [event.wait for event in circuit.seen(StateChanged)] == [retry.wait(0), None, retry.wait(1)]
    assert "Quarter()" in make(retry=Quarter()).breaker._core.machine.rules.words()["retry"]


@both
def test_the_last_failure_sets_the_wait(make: Make) -> None:
    """`RetryAfter` listens to the failure that tripped, and falls back where it asked for nothing."""
    circuit = make(tripper=FailureStreak(2), retry=RetryAfter(Cooldown(60)), permit=EveryCall())
    circuit.fail(Asks(retry_after=99))
    circuit.fail(Asks(headers={"Retry-After": "7"}))
    assert circuit.refused().retry_after == 7.0
    circuit.clock.advance(7)
    circuit.fail(Asks())
    circuit.fail(Asks())
    assert circuit.refused().retry_after == 60.0


@both
def test_a_date_is_measured_with_the_clock_of_the_circuit(make: Make) -> None:
    """An HTTP date becomes seconds by the wall clock of that moment."""
    circuit = make(tripper=ONE, retry=RetryAfter(Cooldown(60)))
    circuit.fail(Asks(headers={"Retry-After": formatdate(circuit.clock.time() + 42, usegmt=True)}))
    assert circuit.refused().retry_after == 42.0
