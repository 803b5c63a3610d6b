"""HALF_OPEN: places, probes, evidence, recovery and reopening."""

from __future__ import annotations

from typing import Any

import pytest

from fluxgate import (
    Always,
    AvgLatency,
    Backoff,
    Closed,
    Cooldown,
    CountWindow,
    FailureRate,
    FailureStreak,
    HalfOpened,
    Metric,
    MinRequests,
    Never,
    Returned,
    SlowRate,
    State,
    TimeWindow,
    TypeOf,
)
from fluxgate.events import (
    CallCancelled,
    CallEnded,
    CallIgnored,
    CallRejected,
    CallStarted,
    CallSucceeded,
    StateChanged,
)
from fluxgate.permits import All as EveryCall
from fluxgate.trackers import All
from tests.faces import STATES_ONLY, Circuit, Make, both

ONE = FailureStreak(1)
# Opens at one failure; half-open, it waits for evidence of 5 probes.
FIVE = (Closed() & FailureStreak(1)) | (HalfOpened() & MinRequests(5) & FailureRate(0.5))


def half_open(make: Make, **rules: Any) -> Circuit:
    """A circuit whose wait is over: the next call is a probe."""
    options: dict[str, Any] = {"tripper": FIVE, "permit": EveryCall(), "retry": Cooldown(60)}
    circuit = make(**(options | rules))
    circuit.fail()
    assert circuit.state == "open"
    circuit.clock.advance(60)
    circuit.recorder.clear()
    return circuit


# -- the way in -----------------------------------------------------------------------------------------------------


@both
def test_the_first_call_after_the_wait_begins_it(make: Make) -> None:
    """Nothing happens by itself when the wait is over; the call that finds it over is the first probe."""
    circuit = half_open(make)
    circuit.clock.advance(1000)
    assert (circuit.state, circuit.info.retry_after) == ("open", 0.0)
    circuit.succeed()
    assert circuit.state == "half_open"
    (told,) = circuit.seen(StateChanged)
    assert (told.trigger, told.reason, told.wait) == ("retry", "the wait of 60 s is over", None)
    assert (told.metrics.total_count, told.metrics.failure_count) == (1, 1)
    assert told.failing_since == 1_700_000_000.0
    assert told.last_error is not None
    assert told.last_error.text == "no route"


@both
def test_a_refused_call_may_begin_it(make: Make) -> None:
    """The permit is asked in HALF_OPEN, so that even a call that it passes over has moved the circuit."""
    circuit = half_open(make, permit=lambda elapsed: False)
    error = circuit.refused()
    assert (error.state, error.retry_after) == (State.HALF_OPEN, 0.0)
    assert circuit.state == "half_open"
    assert error.verdict is not None
    assert "is half-open" in str(error)
    assert "1 failure in a row (limit 1)" in str(error)


@both
def test_the_moment_the_wait_ends_is_included(make: Make) -> None:
    """After exactly the wait a call passes; before it none does."""
    circuit = make(tripper=ONE, retry=Cooldown(0.5), permit=EveryCall())
    circuit.fail()
    circuit.clock.advance(0.25)
    circuit.refused()
    circuit.clock.advance(0.25)
    circuit.succeed()


@both
@pytest.mark.parametrize(("wait", "words"), [(0.25, "0.25 s"), (7.5, "7.5 s"), (3600, "3600 s"), (86_400, "86400 s")])
def test_the_wait_is_told_in_plain_seconds(make: Make, wait: float, words: str) -> None:
    """A long wait reads as well as a short one."""
    circuit = make(tripper=ONE, retry=Cooldown(wait), permit=EveryCall())
    circuit.fail()
    circuit.clock.advance(wait)
    circuit.succeed()
    assert circuit.seen(StateChanged)[1].reason == f"the wait of {words} is over"


@both
def test_it_starts_with_an_empty_window(make: Make) -> None:
    """The window holds the probes alone."""
    circuit = half_open(make)
    circuit.succeed(seconds=2)
    assert circuit.metrics == Metric(total_count=1, failure_count=0, total_duration=2.0, slow_count=0)


# -- places ---------------------------------------------------------------------------------------------------------


@both
def test_no_more_probes_than_places(make: Make) -> None:
    """The call beyond `max_half_open_calls` is refused at once, never queued."""
    circuit = half_open(make, max_half_open_calls=3)
    held = [circuit.acquire() for _ in range(3)]
    assert circuit.info.probes == 3
    error = circuit.refused()
    assert (error.state, error.retry_after) == (State.HALF_OPEN, 0.0)
    assert [(event.reason, event.retry_after) for event in circuit.seen(CallRejected)] == [("probes_in_flight", 0.0)]
    held[1].success()
    assert circuit.info.probes == 2
    circuit.acquire()
    circuit.refused()


@both
@pytest.mark.parametrize("end", ["success", "cancel", "ignored"])
def test_every_end_gives_the_place_back(make: Make, end: str) -> None:
    """A success, a cancellation and an ignored error alike; only the first is evidence."""
    circuit = half_open(make, max_half_open_calls=1, tracker=~TypeOf(KeyError))
    held = circuit.acquire()
    if end == "ignored":
        held.failure(KeyError())
    else:
        getattr(held, end)()
    assert (circuit.state, circuit.info.probes) == ("half_open", 0)
    assert circuit.metrics.total_count == (end == "success")
    circuit.acquire()


@both
def test_cancelled_and_ignored_probes_decide_nothing(make: Make) -> None:
    """However many there are, the circuit neither closes nor opens."""
    circuit = half_open(make, tripper=Closed() & ONE, tracker=~TypeOf(KeyError))
    for _ in range(20):
        circuit.acquire().cancel()
        circuit.fail(KeyError())
        circuit.fail(KeyboardInterrupt())
        circuit.clock.advance(10)
    assert circuit.state == "half_open"
    assert {type(end) for end in circuit.seen(CallEnded)} == {CallCancelled, CallIgnored}
    circuit.succeed()
    assert circuit.state == "closed"


@both
def test_a_hung_probe_gives_its_place_back(make: Make) -> None:
    """After `half_open_timeout` seconds another may take it, and the late outcome is stale."""
    circuit = half_open(make, max_half_open_calls=1, half_open_timeout=30)
    hung = circuit.acquire()
    circuit.clock.advance(29.9)
    circuit.refused()
    assert circuit.info.probes == 1
    circuit.clock.advance(0.1)
    assert circuit.info.probes == 0
    second = circuit.acquire()
    hung.failure()
    assert circuit.state == "half_open"
    hung_start, _ = (start.call_id for start in circuit.seen(CallStarted)[-2:])
    assert [(end.call_id, end.stale, end.duration) for end in circuit.seen(CallEnded)] == [(hung_start, True, 30.0)]
    assert circuit.metrics.total_count == 0
    assert circuit.info.probes == 1
    second.success()
    assert circuit.state == "closed"


@both
@pytest.mark.parametrize("end", ["success", "failure", "cancel"])
def test_an_outcome_at_the_deadline_is_late(make: Make, end: str) -> None:
    """Even where nobody wanted the place meanwhile: the probe had lost it."""
    circuit = half_open(make, tripper=Closed() & ONE, half_open_timeout=30)
    held = circuit.acquire()
    circuit.clock.advance(30)
    getattr(held, end)()
    assert circuit.state == "half_open"
    assert circuit.seen(CallEnded)[0].stale
    assert circuit.info.probes == 0


@both
def test_an_outcome_before_the_deadline_counts(make: Make) -> None:
    """One moment earlier it decides."""
    circuit = half_open(make, tripper=Closed() & ONE, half_open_timeout=30)
    held = circuit.acquire()
    circuit.clock.advance(29.999)
    held.success()
    assert circuit.state == "closed"


@both
def test_each_probe_has_its_own_deadline(make: Make) -> None:
    """It runs from the probe's admission, not from the beginning of HALF_OPEN."""
    circuit = half_open(make, max_half_open_calls=2, half_open_timeout=30)
    circuit.acquire()
    circuit.clock.advance(20)
    circuit.acquire()
    circuit.refused()
    circuit.clock.advance(10)
    assert circuit.info.probes == 1
    circuit.acquire()
    circuit.clock.advance(20)
    assert circuit.info.probes == 1
    circuit.clock.advance(10)
    assert circuit.info.probes == 0


@both
def test_a_stale_probe_frees_nobody_else_s_place(make: Make) -> None:
    """The outcome of a probe of an earlier recovery does not touch the places of this one."""
    circuit = half_open(make, tripper=ONE, max_half_open_calls=1)
    old = circuit.acquire()
    circuit.clock.advance(30)
    circuit.fail()
    circuit.clock.advance(60)
    current = circuit.acquire()
    old.success()
    assert (circuit.state, circuit.info.probes) == ("half_open", 1)
    circuit.refused()
    current.success()
    assert circuit.state == "closed"


@both
def test_probes_in_flight_as_it_closes_are_stale(make: Make) -> None:
    """A failure that comes after the recovery says nothing of the closed circuit."""
    circuit = half_open(make, tripper=Closed() & ONE)
    late = circuit.acquire()
    circuit.succeed()
    assert circuit.state == "closed"
    late.failure()
    assert circuit.state == "closed"
    assert circuit.metrics.total_count == 0
    assert circuit.seen(CallEnded)[-1].stale


@both
def test_probes_in_flight_as_it_reopens_are_stale(make: Make) -> None:
    """A success that comes after the reopening does not close the circuit."""
    circuit = half_open(make, tripper=ONE)
    late = circuit.acquire()
    circuit.fail()
    assert circuit.state == "open"
    assert circuit.info.probes == 0
    late.success()
    assert circuit.state == "open"


# -- evidence and recovery ------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("hears", [STATES_ONLY, None], ids=["quiet", "heard"])
def test_recovery_needs_the_evidence_of_its_branch(make: Make, hears: Any) -> None:
    """Five good probes close the circuit, not one less."""
    circuit = half_open(make, **({"hears": hears} if hears else {}))
    probe = circuit.protect(lambda: None)
    for _ in range(4):
        probe()
        assert circuit.state == "half_open"
    probe()
    assert circuit.state == "closed"
    told = circuit.seen(StateChanged)[-1]
    assert (told.trigger, told.reopens, told.wait) == ("recovery", 0, None)
    assert told.reason == "5 calls seen (5 needed) and failure rate 0.0 % (limit 50.0 %, 0 of 5 calls)"
    assert not told.verdict
    assert told.metrics.total_count == 5
    assert circuit.metrics.total_count == 0
    assert circuit.info.retry_after is None


@both
def test_reopening_needs_it_as_well(make: Make) -> None:
    """Four bad probes do not reopen; the fifth outcome decides by the rate."""
    circuit = half_open(make)
    for _ in range(3):
        circuit.fail()
    circuit.succeed()
    assert circuit.state == "half_open"
    circuit.succeed()
    assert circuit.state == "open"
    told = circuit.seen(StateChanged)[-1]
    assert (told.trigger, told.reopens, told.wait) == ("tripper", 1, 60.0)
    assert told.reason == "5 calls seen (5 needed) and failure rate 60.0 % (limit 50.0 %, 3 of 5 calls)"


@both
def test_only_a_success_closes(make: Make) -> None:
    """A failure that does not trip leaves it to the next success."""
    circuit = half_open(make)
    for _ in range(4):
        circuit.succeed()
    circuit.fail()
    assert circuit.state == "half_open"
    circuit.succeed()
    assert circuit.state == "closed"


@both
def test_without_min_requests_one_probe_is_evidence(make: Make) -> None:
    """Every other rule needs one call."""
    circuit = half_open(make, tripper=(Closed() & ONE) | (HalfOpened() & FailureRate(0.5)))
    circuit.succeed()
    assert circuit.state == "closed"
    circuit = half_open(make, tripper=(Closed() & ONE) | (HalfOpened() & FailureRate(0.5)))
    circuit.fail()
    assert circuit.state == "open"


@both
def test_every_branch_that_applies_must_have_its_evidence(make: Make) -> None:
    """The strictest `MinRequests` counts; branches about a closed circuit do not."""
    tripper = (
        (Closed() & MinRequests(50) & FailureRate(1))
        | ONE
        | (MinRequests(3) & SlowRate(0.5))
        | (HalfOpened() & MinRequests(2))
    )
    circuit = half_open(make, tripper=tripper & (Closed() | FailureRate(0.9)))
    circuit.succeed()
    circuit.succeed()
    assert circuit.state == "half_open"
    circuit.succeed()
    assert circuit.state == "closed"


@both
def test_a_rule_for_both_states_serves_both(make: Make) -> None:
    """A branch that names no state asks the probes for the same evidence as the calls before."""
    circuit = make(tripper=MinRequests(3) & FailureRate(0.5), permit=EveryCall())
    for _ in range(3):
        circuit.fail()
    circuit.clock.advance(60)
    circuit.succeed()
    circuit.succeed()
    assert circuit.state == "half_open"
    circuit.succeed()
    assert circuit.state == "closed"


@both
def test_a_slow_probe_reopens(make: Make) -> None:
    """A success can trip in HALF_OPEN too, and tripping is looked at before recovery."""
    circuit = half_open(make, tripper=ONE | SlowRate(0.5), slow_threshold=2)
    circuit.succeed(seconds=3)
    assert circuit.state == "open"
    assert circuit.seen(StateChanged)[-1].reason == "slow rate 100.0 % (limit 50.0 %, 1 of 1 call)"
    assert circuit.seen(StateChanged)[-1].last_error is None
    circuit = half_open(make, tripper=ONE | AvgLatency(2))
    circuit.succeed(seconds=1)
    assert circuit.state == "closed"


@both
def test_a_returned_failure_is_a_failed_probe(make: Make) -> None:
    """Values count here as they do in a closed circuit."""
    circuit = half_open(make, tripper=ONE, tracker=All() | Returned(lambda value: value == 503))
    circuit.succeed(value=503)
    assert circuit.state == "open"


# -- patience -------------------------------------------------------------------------------------------------------


@both
def test_recovery_does_not_wait_for_ever(make: Make) -> None:
    """Once HALF_OPEN has lasted `half_open_timeout`, the next good probe closes without the evidence."""
    circuit = half_open(make, half_open_timeout=30)
    circuit.succeed()
    circuit.clock.advance(29.9)
    circuit.succeed()
    assert circuit.state == "half_open"
    circuit.clock.advance(0.1)
    circuit.succeed()
    assert circuit.state == "closed"
    assert circuit.seen(StateChanged)[-1].reason == (
        "3 calls seen (5 needed, waived after waiting) and failure rate 0.0 % (limit 50.0 %, 0 of 3 calls)"
    )


@both
def test_nor_does_reopening(make: Make) -> None:
    """The next probe decides either way: with bad ones in the window it reopens."""
    circuit = half_open(make, half_open_timeout=30)
    circuit.fail()
    circuit.clock.advance(30)
    circuit.fail()
    assert circuit.state == "open"
    assert "2 calls seen (5 needed, waived after waiting)" in circuit.seen(StateChanged)[-1].reason
    circuit = half_open(make, half_open_timeout=30)
    circuit.fail()
    circuit.clock.advance(30)
    circuit.succeed()
    assert circuit.state == "open"


@both
def test_a_call_a_minute_recovers(make: Make) -> None:
    """With the default of ten probes, two calls a minute apart are enough."""
    circuit = make(permit=EveryCall())
    for _ in range(100):
        circuit.fail()
    circuit.clock.advance(60)
    circuit.succeed()
    assert circuit.state == "half_open"
    circuit.clock.advance(60)
    circuit.succeed()
    assert circuit.state == "closed"


@both
def test_silence_decides_nothing(make: Make) -> None:
    """Without a probe HALF_OPEN lasts, however long."""
    circuit = half_open(make, half_open_timeout=30)
    circuit.acquire().cancel()
    circuit.clock.advance(1e6)
    assert circuit.state == "half_open"
    assert circuit.info.retry_after == 0.0
    circuit.succeed()
    assert circuit.state == "closed"


@both
def test_patience_begins_anew_with_each_recovery(make: Make) -> None:
    """It is counted from when this HALF_OPEN began."""
    circuit = half_open(make, half_open_timeout=30)
    circuit.fail()
    circuit.clock.advance(30)
    circuit.fail()
    circuit.clock.advance(60)
    circuit.succeed()
    assert circuit.state == "half_open"


@both
def test_a_probe_admitted_in_patience_may_end_after_it(make: Make) -> None:
    """What counts is when it settles, within its own deadline."""
    circuit = half_open(make, half_open_timeout=30)
    circuit.acquire().cancel()
    circuit.clock.advance(20)
    held = circuit.acquire()
    circuit.clock.advance(20)
    held.success()
    assert circuit.state == "closed"


@both
def test_a_closed_circuit_is_never_impatient(make: Make) -> None:
    """`MinRequests` is waived nowhere but in HALF_OPEN."""
    circuit = make(tripper=MinRequests(5) & FailureRate(0.5), half_open_timeout=1)
    circuit.clock.advance(1000)
    for _ in range(4):
        circuit.fail()
        circuit.clock.advance(1000)
    assert circuit.state == "closed"


# -- the classic rule -----------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    "tripper", [Closed() & ONE, (Closed() & ONE) | (Closed() & MinRequests(50) & FailureRate(0.5))], ids=repr
)
def test_without_a_branch_for_half_open_the_first_outcome_decides(make: Make, tripper: Any) -> None:
    """The first success closes, the first failure reopens."""
    circuit = half_open(make, tripper=tripper)
    circuit.succeed()
    assert circuit.state == "closed"
    assert circuit.seen(StateChanged)[-1].reason == "the first probe succeeded"
    assert circuit.seen(StateChanged)[-1].verdict.rule == repr(tripper)
    circuit = half_open(make, tripper=tripper)
    circuit.fail()
    assert circuit.state == "open"
    assert circuit.seen(StateChanged)[-1].reason == "the first probe failed"
    assert circuit.seen(StateChanged)[-1].verdict


@both
def test_a_slow_success_closes_by_the_classic_rule(make: Make) -> None:
    """No branch is there that could object."""
    circuit = half_open(make, tripper=Closed() & (ONE | SlowRate(0.1)), slow_threshold=1)
    circuit.succeed(seconds=5)
    assert circuit.state == "closed"


@both
def test_a_plain_function_decides_in_both_states(make: Make) -> None:
    """A custom tripper is asked with HALF_OPEN, and no rule of it keeps a good probe from closing."""
    states: list[State] = []

    def tripper(metric: Metric, state: State, consecutive_failures: int) -> bool:
        states.append(state)
        return consecutive_failures > 0

    circuit = half_open(make, tripper=tripper)
    circuit.succeed()
    assert circuit.state == "closed"
    assert State.HALF_OPEN in states


# -- reopening ------------------------------------------------------------------------------------------------------


@both
def test_reopens_are_counted_until_it_closes(make: Make) -> None:
    """0 at the first opening, one more at each failed recovery, 0 again once closed; the retry is told."""
    circuit = make(tripper=ONE, retry=Backoff(1), permit=EveryCall())
    waits: list[float | None] = []
    for expected in range(4):
        circuit.fail()
        assert circuit.info.reopens == expected
        waits.append(circuit.refused().retry_after)
        circuit.clock.advance(2**expected)
    assert waits == [1.0, 2.0, 4.0, 8.0]
    circuit.succeed()
    assert circuit.info.reopens == 0
    circuit.fail()
    assert circuit.refused().retry_after == 1.0
    openings = [event for event in circuit.seen(StateChanged) if event.new_state == "open"]
    assert [event.reopens for event in openings] == [0, 1, 2, 3, 0]
    assert [event.wait for event in openings] == [1.0, 2.0, 4.0, 8.0, 1.0]
    halves = [event.reopens for event in circuit.seen(StateChanged) if event.new_state == "half_open"]
    assert halves == [0, 1, 2, 3]


@both
def test_each_move_begins_a_generation(make: Make) -> None:
    """Numbered one after the other."""
    circuit = make(tripper=ONE, retry=Cooldown(60), permit=EveryCall())
    circuit.fail()
    circuit.clock.advance(60)
    circuit.succeed()
    circuit.steer("disable")
    assert [event.generation for event in circuit.seen(StateChanged)] == [2, 3, 4, 5]


@both
def test_the_whole_story_of_an_outage(make: Make) -> None:
    """Opening, a failed recovery and a successful one, each with its trigger."""
    circuit = make(tripper=ONE, permit=EveryCall())
    circuit.fail()
    for outcome in (circuit.fail, circuit.succeed):
        circuit.clock.advance(60)
        outcome()
    assert circuit.moves() == [
        "closed open tripper",
        "open half_open retry",
        "half_open open tripper",
        "open half_open retry",
        "half_open closed recovery",
    ]
    assert [event.sequence for event in circuit.recorder.events_seen] == list(
        range(1, len(circuit.recorder.events_seen) + 1)
    )


@both
def test_the_streak_begins_anew(make: Make) -> None:
    """Failures before the opening are no part of a streak of probes, nor those of probes after the recovery."""
    circuit = make(tripper=FailureStreak(3), permit=EveryCall())
    for _ in range(3):
        circuit.fail()
    circuit.clock.advance(60)
    circuit.fail()
    circuit.fail()
    assert circuit.state == "half_open"
    circuit.succeed()
    assert circuit.state == "closed"
    circuit.fail()
    circuit.fail()
    assert circuit.state == "closed"


@both
def test_always_and_never_go_their_ways(make: Make) -> None:
    """With `Always` each failed probe is followed by the next; with `Never` there is no probe at all."""
    circuit = make(tripper=ONE, retry=Always(), permit=EveryCall())
    for _ in range(5):
        circuit.fail()
    assert circuit.info.reopens == 4
    circuit.succeed()
    assert circuit.state == "closed"
    circuit = make(tripper=ONE, retry=Never(), permit=EveryCall())
    circuit.fail()
    circuit.clock.advance(1e12)
    circuit.refused()
    assert circuit.state == "open"


@both
@pytest.mark.parametrize("window", [CountWindow(3), TimeWindow(10)], ids=repr)
def test_probes_slide_through_the_window_as_calls_do(make: Make, window: Any) -> None:
    """Old probes leave it by count or by time."""
    circuit = half_open(make, window=window, tripper=(Closed() & ONE) | (HalfOpened() & MinRequests(99)))
    circuit.fail()
    circuit.fail()
    circuit.clock.advance(9)
    circuit.succeed()
    circuit.succeed()
    by_count = isinstance(window, CountWindow)
    assert (circuit.metrics.total_count, circuit.metrics.failure_count) == ((3, 1) if by_count else (4, 2))
    circuit.clock.advance(2)
    assert circuit.metrics.total_count == (3 if by_count else 2)


@both
def test_refused_probes_are_no_evidence(make: Make) -> None:
    """What was not admitted is in no window."""
    circuit = half_open(make, max_half_open_calls=1)
    held = circuit.acquire()
    for _ in range(10):
        circuit.refused()
    held.success()
    assert circuit.metrics.total_count == 1
    assert len(circuit.seen(CallSucceeded)) == 1
