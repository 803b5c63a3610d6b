"""Breakers: what a call does to a circuit, the controls, shadow mode, `configure`, and rules that misbehave."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from typing import Any

import pytest

from fluxgate import (
    AsyncCircuitBreaker,
    AvgLatency,
    Bus,
    CallNotPermittedError,
    CircuitBreaker,
    Closed,
    Cooldown,
    CountWindow,
    FailureRate,
    FailureStreak,
    HalfOpened,
    Metric,
    MinRequests,
    Never,
    RetryAfter,
    Returned,
    SlowRate,
    State,
    TimeWindow,
    TypeOf,
)
from fluxgate._teller import Teller
from fluxgate.events import (
    CallCancelled,
    CallEnded,
    CallFailed,
    CallIgnored,
    CallRejected,
    CallStarted,
    CallSucceeded,
    Event,
    ListenerFailed,
    Reconfigured,
    StateChanged,
    WouldOpen,
)
from fluxgate.permits import All as EveryCall
from fluxgate.testing import EventRecorder
from fluxgate.trackers import All, Tracker
from fluxgate.trippers import Tripper
from tests.faces import STATES_ONLY, Circuit, Make, both, finish

quiet_or_heard = pytest.mark.parametrize("hears", [STATES_ONLY, (Event,)], ids=["quiet", "heard"])
"""With calls unheard the engine may take its fast lane; nothing else may differ."""

INTERRUPTS: list[type[BaseException]] = [KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError]


def in_state(make: Make, state: str, **rules: Any) -> Circuit:
    """A circuit in that state, with nothing in flight."""
    options: dict[str, Any] = {"tripper": FailureStreak(1), "permit": EveryCall(), "retry": Cooldown(60)}
    circuit = make(**(options | rules))
    if state in ("open", "half_open"):
        circuit.fail()
    if state == "half_open":
        circuit.clock.advance(60)
        circuit.acquire().cancel()
    if state in ("disabled", "metrics_only"):
        circuit.steer(state.removesuffix("d"))
    if state == "forced_open":
        circuit.steer("force_open")
    assert circuit.state == state
    return circuit


# -- calls ----------------------------------------------------------------------------------------------------------


@both
def test_a_call_hands_over_arguments_and_result(make: Make) -> None:
    """Any arguments, those named like the method's own included, and the very object that was returned."""
    circuit = make()
    seen = circuit.call(lambda *args, **kwargs: (args, kwargs), 1, 2, self=3, func=4, fallback_func=5)
    assert seen == ((1, 2), {"self": 3, "func": 4, "fallback_func": 5})
    answer = object()
    assert circuit.call(lambda: answer) is answer


@both
def test_each_outcome_is_told_with_its_call(make: Make) -> None:
    """A call has a start and one end, tied by their id, with the time that it took."""
    circuit = make(tracker=~TypeOf(KeyError), slow_threshold=2)
    circuit.recorder.clear()
    circuit.succeed(seconds=1)
    circuit.succeed(seconds=2)
    circuit.fail(OSError("broken pipe"), seconds=3)
    circuit.fail(KeyError("k"), seconds=4)
    circuit.fail(KeyboardInterrupt(), seconds=5)
    starts, ends = circuit.seen(CallStarted), circuit.seen(CallEnded)
    assert [start.call_id for start in starts] == [end.call_id for end in ends]
    assert len({start.call_id for start in starts}) == 5
    assert [type(end) for end in ends] == [CallSucceeded, CallSucceeded, CallFailed, CallIgnored, CallCancelled]
    assert [end.duration for end in ends] == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert [end.slow for end in circuit.seen(CallSucceeded)] == [False, True]
    failed, ignored = circuit.seen(CallFailed)[0], circuit.seen(CallIgnored)[0]
    assert (failed.error_type, failed.error, failed.slow) == ("OSError", "broken pipe", True)
    assert ignored.error_type == "KeyError"
    assert not any(end.stale for end in ends)


@both
def test_a_refused_call_does_not_run(make: Make) -> None:
    """It raises what a caller needs to answer instead, and is told with its reason."""
    circuit = in_state(make, "open", tripper=FailureStreak(1))
    circuit.clock.advance(10)
    error = circuit.refused()
    assert (error.circuit_name, error.state, error.retry_after) == ("payments", State.OPEN, 50.0)
    assert str(error) == "circuit 'payments' is open: 1 failure in a row (limit 1); retry after 50.0 s"
    assert error.verdict is circuit.seen(StateChanged)[0].verdict
    (told,) = circuit.seen(CallRejected)
    assert (told.reason, told.retry_after, told.state) == ("open", 50.0, "open")


@both
def test_a_quiet_circuit_refuses_with_the_same_words(make: Make) -> None:
    """Where nobody hears refusals, each says the same as where somebody does."""
    texts = []
    for hears in (STATES_ONLY, (Event,)):
        circuit = in_state(make, "open", hears=hears)
        circuit.clock.advance(10)
        texts += [str(circuit.refused()), str(circuit.refused())]
        circuit.clock.advance(49)
        texts += [str(circuit.refused()).replace("1.0 s", "50.0 s")]
        assert circuit.refused().verdict == circuit.seen(StateChanged)[0].verdict
    assert len(set(texts)) == 1


def test_the_sync_breaker_refuses_a_coroutine_as_an_answer() -> None:
    """A lambda around a coroutine function: nobody would await it, and it is no outcome of the dependency's."""

    async def fetch() -> int:
        return 1

    circuit = Circuit(CircuitBreaker)
    for call in (lambda: circuit.breaker.call(lambda: fetch()), circuit.breaker(lambda: fetch())):
        with pytest.raises(TypeError, match=r"returned a coroutine, which is not awaited here: .*fetch"):
            call()
    assert len(circuit.seen(CallCancelled)) == 2
    assert circuit.metrics.total_count == 0


def test_the_async_breaker_refuses_what_cannot_be_awaited() -> None:
    """A plain function given to `call` ran, but says nothing of the dependency."""
    circuit = Circuit(AsyncCircuitBreaker)
    with pytest.raises(TypeError, match=r"returned 5 \(int\), which cannot be awaited: use CircuitBreaker"):
        finish(circuit.breaker.call(int, "5"))
    assert len(circuit.seen(CallCancelled)) == 1
    assert circuit.metrics.total_count == 0


def test_the_async_breaker_awaits_any_awaitable() -> None:
    """Not coroutines alone: whatever has ``__await__``."""

    class Later:
        def __await__(self) -> Any:
            yield from ()
            return 7

    circuit = Circuit(AsyncCircuitBreaker)
    assert finish(circuit.breaker.call(Later)) == 7
    assert circuit.seen(CallSucceeded)


@both
@pytest.mark.parametrize("interrupt", INTERRUPTS)
@pytest.mark.parametrize("state", ["closed", "half_open"])
def test_an_interrupt_is_neither_success_nor_failure(make: Make, interrupt: type[BaseException], state: str) -> None:
    """It passes through as `CallCancelled`, decides nothing, and a probe gives its place back."""
    circuit = in_state(make, state, max_half_open_calls=1)
    circuit.recorder.clear()
    with pytest.raises(interrupt):
        circuit.call(lambda: raising(interrupt()))
    (told,) = circuit.seen(CallEnded)
    assert isinstance(told, CallCancelled)
    assert (circuit.state, circuit.info.probes, circuit.metrics.total_count) == (state, 0, 0)
    circuit.succeed()
    assert circuit.state == "closed"


def raising(error: BaseException) -> Any:
    raise error


# -- when the tripper is asked --------------------------------------------------------------------------------------


@both
@quiet_or_heard
def test_the_100th_call_decides_though_it_succeeds(make: Make, hears: Any) -> None:
    """With the defaults nothing happens for 99 calls, and the 100th opens the circuit at half failures."""
    circuit = make(hears=hears)
    succeed = circuit.protect(lambda: None)
    for _ in range(50):
        circuit.fail()
    for _ in range(49):
        succeed()
    assert circuit.state == "closed"
    succeed()
    assert circuit.state == "open"
    (opened,) = circuit.seen(StateChanged)
    assert opened.reason == "100 calls seen (100 needed) and failure rate 50.0 % (limit 50.0 %, 50 of 100 calls)"
    assert (opened.metrics.total_count, opened.metrics.failure_count, opened.wait) == (100, 50, 60.0)
    assert circuit.refused().retry_after == 60.0


@both
@quiet_or_heard
def test_a_rate_below_the_limit_trips_when_the_window_turns_bad(make: Make, hears: Any) -> None:
    """As successes are pushed out of the window by failures, the rate grows until it trips."""
    circuit = make(hears=hears, window=CountWindow(10), tripper=MinRequests(10) & FailureRate(0.5))
    succeed = circuit.protect(lambda: None)
    for _ in range(40):
        succeed()
    for _ in range(4):
        circuit.fail()
    assert circuit.state == "closed"
    circuit.fail()
    assert circuit.state == "open"
    assert circuit.seen(StateChanged)[0].metrics == Metric(
        total_count=10, failure_count=5, total_duration=0.0, slow_count=0
    )


@both
@quiet_or_heard
@pytest.mark.parametrize(
    "rules",
    [
        {"tripper": MinRequests(3) & SlowRate(0.5), "slow_threshold": 2.0},
        {"tripper": MinRequests(3) & SlowRate(0.5, threshold=2)},
        {"tripper": MinRequests(3) & AvgLatency(1)},
        {"tripper": MinRequests(3) & (lambda metric, state, streak: metric.total_duration >= 4)},
    ],
    ids=["SlowRate", "SlowRate of its own", "AvgLatency", "plain function"],
)
def test_a_slow_success_can_trip(make: Make, hears: Any, rules: dict[str, Any]) -> None:
    """Evaluation does not wait for a failure."""
    circuit = make(hears=hears, **rules)
    work = circuit.protect(circuit.clock.advance)
    for seconds in (0.0, 0.0, 2.0):
        work(seconds)
        assert circuit.state == "closed"
    work(2.0)
    assert circuit.state == "open"
    assert circuit.seen(StateChanged)[0].last_error is None
    assert circuit.seen(StateChanged)[0].failing_since is None


@both
@quiet_or_heard
def test_a_success_trips_as_old_successes_expire(make: Make, hears: Any) -> None:
    """In a time window the rate can grow while successes come in: the next success opens the circuit."""
    circuit = make(hears=hears, window=TimeWindow(100), tripper=FailureRate(0.5))
    succeed = circuit.protect(lambda: None)
    for _ in range(10):
        succeed()
    circuit.clock.advance(60)
    for _ in range(4):
        circuit.fail()
    succeed()
    assert circuit.state == "closed"
    circuit.clock.advance(40)
    assert circuit.state == "closed"
    succeed()
    assert circuit.state == "open"
    assert circuit.seen(StateChanged)[0].reason == "failure rate 66.7 % (limit 50.0 %, 4 of 6 calls)"


@both
@quiet_or_heard
def test_a_streak_ends_with_a_success_and_passes_over_the_rest(make: Make, hears: Any) -> None:
    """Ignored and cancelled calls neither add to a streak nor break it."""
    circuit = make(hears=hears, tripper=FailureStreak(3), tracker=~TypeOf(KeyError))
    succeed = circuit.protect(lambda: None)
    succeed()
    circuit.fail()
    circuit.fail()
    succeed()
    circuit.fail()
    circuit.fail(KeyError())
    circuit.fail(KeyboardInterrupt())
    circuit.fail()
    assert circuit.state == "closed"
    circuit.fail()
    assert circuit.state == "open"


@both
@quiet_or_heard
def test_many_plain_successes_are_all_counted(make: Make, hears: Any) -> None:
    """However calls are recorded, none is lost, and a slow one among them is seen."""
    circuit = make(hears=hears, window=CountWindow(5000), tripper=FailureStreak(5), slow_threshold=1)
    work = circuit.protect(circuit.clock.advance)
    for number in range(2000):
        work(1.0 if number == 1500 else 0.001)
    assert (circuit.metrics.total_count, circuit.metrics.slow_count) == (2000, 1)
    assert circuit.metrics.total_duration == pytest.approx(1999 * 0.001 + 1)


# -- acquired calls -------------------------------------------------------------------------------------------------


@both
def test_an_acquired_call_is_settled_by_hand(make: Make) -> None:
    """`success`, `failure` and `cancel` end it, whenever that is."""
    circuit = make(tracker=~TypeOf(KeyError))
    one, two, three, four = (circuit.acquire() for _ in range(4))
    circuit.clock.advance(3)
    two.failure(OSError("broken pipe"))
    one.success()
    three.cancel()
    four.failure(KeyError())
    ends = circuit.seen(CallEnded)
    first, second, third, fourth = (start.call_id for start in circuit.seen(CallStarted))
    assert [(type(end), end.call_id) for end in ends] == [
        (CallFailed, second),
        (CallSucceeded, first),
        (CallCancelled, third),
        (CallIgnored, fourth),
    ]
    assert all(end.duration == 3.0 for end in ends)
    assert (circuit.metrics.total_count, circuit.metrics.failure_count) == (2, 1)


@both
@pytest.mark.parametrize("first", ["success", "failure", "cancel"])
def test_the_first_settlement_counts(make: Make, first: str) -> None:
    """Later ones do nothing, so that an error handler and a close handler may both settle."""
    circuit = make()
    held = circuit.acquire()
    getattr(held, first)()
    before = circuit.metrics
    for later in (held.success, held.failure, held.cancel):
        later()
    assert circuit.metrics == before
    assert len(circuit.seen(CallEnded)) == 1


@both
@pytest.mark.parametrize("hears", [(Event,), (CallEnded, StateChanged)], ids=["starts heard", "ends heard"])
@pytest.mark.parametrize("control", ["reset", "metrics_only", "disable", "force_open"])
def test_what_ends_after_a_move_is_stale(make: Make, hears: Any, control: str) -> None:
    """Whether or not anybody heard of its start."""
    circuit = make(hears=hears, tripper=FailureStreak(9))
    circuit.succeed()
    circuit.succeed()
    held = [circuit.acquire() for _ in range(3)]
    circuit.steer(control)
    before = circuit.metrics
    held[0].success()
    held[1].failure()
    held[2].cancel()
    assert [(type(end), end.stale) for end in circuit.seen(CallEnded)[2:]] == [
        (CallSucceeded, True),
        (CallFailed, True),
        (CallCancelled, True),
    ]
    assert circuit.metrics == before
    assert len({end.call_id for end in circuit.seen(CallEnded)}) == 5


@both
def test_an_acquired_call_is_a_block(make: Make) -> None:
    """``with cb.acquire():`` settles it by how the block ends, unless it was settled within."""
    circuit = make()

    async def block(error: BaseException | None, settle: bool) -> None:
        held = circuit.breaker.acquire()
        if circuit.is_async:
            async with await held as call:
                if settle:
                    await call.cancel()
                if error is not None:
                    raise error
        else:
            with held as call:
                if settle:
                    call.cancel()
                if error is not None:
                    raise error

    finish(block(None, False))
    for error in (OSError(), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught:
            finish(block(error, False))
        assert caught.value is error
    with pytest.raises(ConnectionError):
        finish(block(ConnectionError(), True))
    assert [type(end) for end in circuit.seen(CallEnded)] == [CallSucceeded, CallFailed, CallCancelled, CallCancelled]


@both
def test_an_open_circuit_gives_no_call(make: Make) -> None:
    """`acquire` raises like a call."""
    circuit = in_state(make, "open")
    with pytest.raises(CallNotPermittedError):
        circuit.acquire()


# -- controls -------------------------------------------------------------------------------------------------------

STATES = ["closed", "open", "half_open", "metrics_only", "disabled", "forced_open"]
CONTROLS = {
    "reset": ("closed", "reset by hand"),
    "disable": ("disabled", "disabled by hand"),
    "metrics_only": ("metrics_only", "set to metrics only by hand"),
    "force_open": ("forced_open", "forced open by hand"),
}


@both
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("control", CONTROLS)
def test_a_control_moves_from_any_state(make: Make, state: str, control: str) -> None:
    """By hand, with a sentence, at once, and to the state that it is in already without a word."""
    circuit = in_state(make, state)
    circuit.recorder.clear()
    circuit.clock.advance(5)
    target, words = CONTROLS[control]
    circuit.steer(control)
    assert circuit.state == target
    if state == target:
        assert circuit.recorder.events_seen == []
        return
    (told,) = circuit.seen(StateChanged)
    assert (told.old_state, told.new_state, told.state) == (state, target, target)
    assert (told.trigger, told.reason, told.reopens, told.wait) == ("manual", words, 0, None)
    assert circuit.info.changed_at == told.timestamp == circuit.clock.time()
    circuit.steer(control)
    assert circuit.seen(StateChanged) == [told]


@both
@pytest.mark.parametrize("control", ["disable", "metrics_only", "force_open"])
def test_a_control_is_idempotent(make: Make, control: str) -> None:
    """Called again it changes nothing: a call admitted in between still counts, and the window stays."""
    circuit = make(tripper=FailureStreak(5))
    circuit.fail()
    circuit.steer(control)
    before = circuit.info
    circuit.clock.advance(1)
    circuit.steer(control)
    assert circuit.info == before


@both
@quiet_or_heard
def test_reset_forgets_even_a_closed_circuit(make: Make, hears: Any) -> None:
    """Window and streak begin anew, what was admitted before is stale, and nothing is told."""
    circuit = make(hears=hears, tripper=FailureStreak(3))
    circuit.fail()
    circuit.fail()
    held = circuit.acquire()
    circuit.steer("reset")
    assert circuit.metrics.total_count == 0
    held.failure()
    circuit.fail()
    circuit.fail()
    assert circuit.metrics.failure_count == 2
    assert circuit.state == "closed"
    assert circuit.moves() == []
    heard = [False, False, True, False, False] if hears == (Event,) else []
    assert [end.stale for end in circuit.seen(CallEnded)] == heard


@both
@quiet_or_heard
@pytest.mark.parametrize("warm_up", [0, 1, 5])
def test_forced_open_refuses_every_call(make: Make, hears: Any, warm_up: int) -> None:
    """From whatever the circuit did before, for ever, without a time to come back."""
    circuit = make(hears=hears, tripper=FailureStreak(5))
    work = circuit.protect(lambda: None)
    for _ in range(warm_up):
        work()
    circuit.steer("force_open")
    for _ in range(3):
        circuit.clock.advance(1e6)
        with pytest.raises(CallNotPermittedError) as caught:
            work()
        assert (caught.value.state, caught.value.retry_after) == (State.FORCED_OPEN, None)
        assert str(caught.value) == "circuit 'payments' is forced open: forced open by hand"
    assert circuit.refused().verdict is not None
    assert circuit.info.retry_after is None
    assert circuit.metrics.total_count == warm_up


@both
@quiet_or_heard
@pytest.mark.parametrize("warm_up", [0, 1, 5])
def test_disabled_admits_all_and_records_nothing(make: Make, hears: Any, warm_up: int) -> None:
    """Nothing enters the window or trips, and what was in the window stays readable."""
    circuit = make(hears=hears, tripper=FailureStreak(5), slow_threshold=1)
    work = circuit.protect(lambda seconds: circuit.clock.advance(seconds))
    for _ in range(warm_up):
        work(0)
    circuit.steer("disable")
    for _ in range(10):
        work(0)
        circuit.fail(seconds=2)
    assert circuit.state == "disabled"
    assert (circuit.metrics.total_count, circuit.metrics.failure_count) == (warm_up, 0)
    assert len(circuit.moves()) == 1


@both
def test_a_disabled_circuit_still_tells_of_its_calls(make: Make) -> None:
    """Starts and outcomes are events like any other, and not stale."""
    circuit = in_state(make, "disabled")
    circuit.recorder.clear()
    circuit.succeed()
    circuit.fail()
    assert [type(event) for event in circuit.recorder.events_seen] == [
        CallStarted,
        CallSucceeded,
        CallStarted,
        CallFailed,
    ]
    assert not any(end.stale for end in circuit.seen(CallEnded))


@both
def test_leaving_disabled_starts_afresh(make: Make) -> None:
    """What was frozen in the window is forgotten when recording begins again."""
    circuit = make(tripper=FailureStreak(5))
    circuit.fail()
    circuit.steer("disable")
    assert circuit.metrics.failure_count == 1
    held = circuit.acquire()
    circuit.steer("reset")
    assert circuit.metrics.failure_count == 0
    held.failure()
    assert circuit.metrics.total_count == 0
    assert circuit.seen(CallFailed)[-1].stale


@both
def test_a_reset_ends_an_outage_for_good(make: Make) -> None:
    """The next opening is a first one: reopens and wait begin anew."""
    circuit = in_state(make, "half_open")
    circuit.fail()
    assert circuit.info.reopens == 1
    circuit.steer("reset")
    assert circuit.info.reopens == 0
    circuit.fail()
    assert circuit.seen(StateChanged)[-1].reopens == 0


@both
def test_state_and_name_are_at_hand(make: Make) -> None:
    """The breaker itself says what it is."""
    circuit = in_state(make, "open")
    breaker = circuit.breaker
    assert (breaker.name, breaker.state) == ("payments", State.OPEN)
    assert repr(breaker) == f"<{type(breaker).__name__} 'payments' open>"
    assert str(State.OPEN) in repr(breaker)


# -- shadow mode ----------------------------------------------------------------------------------------------------


@both
@quiet_or_heard
def test_shadow_mode_tells_each_time_and_rearms(make: Make, hears: Any) -> None:
    """Every call passes; each time the rule is met `WouldOpen` says so, and the window starts anew."""
    circuit = make(hears=hears, tripper=MinRequests(3) & FailureRate(1))
    circuit.steer("metrics_only")
    for number in range(1, 10):
        circuit.clock.advance(1)
        circuit.fail(OSError(f"failure {number}"))
        assert circuit.metrics.failure_count == number % 3
    assert circuit.state == "metrics_only"
    told = circuit.seen(WouldOpen)
    assert [event.last_error.text for event in told if event.last_error] == ["failure 3", "failure 6", "failure 9"]
    assert [event.failing_since for event in told] == [1_700_000_001.0, 1_700_000_004.0, 1_700_000_007.0]
    assert all(event.metrics.failure_count == 3 for event in told)
    assert told[0].reason == "3 calls seen (3 needed) and failure rate 100.0 % (limit 100.0 %, 3 of 3 calls)"
    assert len(circuit.moves()) == 1


@both
def test_shadow_mode_asks_as_if_closed(make: Make) -> None:
    """Branches for a closed circuit apply, those for a half-open one do not."""
    states: list[State] = []

    def rule(metric: Metric, state: State, consecutive_failures: int) -> bool:
        states.append(state)
        return False

    circuit = make(tripper=(Closed() & FailureStreak(2)) | (HalfOpened() & FailureStreak(1)) | rule)
    circuit.steer("metrics_only")
    circuit.fail()
    assert not circuit.seen(WouldOpen)
    circuit.fail()
    assert len(circuit.seen(WouldOpen)) == 1
    assert set(states) == {State.CLOSED}


@both
def test_shadow_mode_rearms_the_streak(make: Make) -> None:
    """A streak of failures begins anew after each hit."""
    circuit = make(tripper=FailureStreak(2))
    circuit.steer("metrics_only")
    for _ in range(5):
        circuit.fail()
    assert len(circuit.seen(WouldOpen)) == 2


@both
def test_shadow_mode_sees_slow_successes(make: Make) -> None:
    """A hit without any failure has no last error."""
    circuit = make(tripper=SlowRate(1), slow_threshold=1)
    circuit.steer("metrics_only")
    circuit.succeed(seconds=1)
    (told,) = circuit.seen(WouldOpen)
    assert (told.last_error, told.failing_since, told.metrics.slow_count) == (None, None, 1)


@both
def test_calls_in_flight_survive_a_hit(make: Make) -> None:
    """Re-arming is no move: a call that began before it still counts."""
    circuit = make(tripper=FailureStreak(2))
    circuit.steer("metrics_only")
    held = circuit.acquire()
    circuit.fail()
    circuit.fail()
    held.failure()
    assert circuit.metrics.failure_count == 1
    assert not any(end.stale for end in circuit.seen(CallEnded))


@both
@pytest.mark.parametrize("window", [CountWindow(100), TimeWindow(60)], ids=["count", "time"])
def test_a_success_beside_a_hit_is_in_the_new_window(make: Make, window: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain success that ends in another thread while a hit is decided is recorded, and hurts no later call."""
    circuit = make(hears=STATES_ONLY, window=window, tripper=FailureStreak(1))
    circuit.steer("metrics_only")
    circuit.succeed()  # from here on plain successes gather

    def in_the_middle(core: Teller) -> None:
        monkeypatch.setattr(Teller, "tell_news", tell_news)
        circuit.succeed()
        tell_news(core)

    tell_news = Teller.tell_news
    monkeypatch.setattr(Teller, "tell_news", in_the_middle)
    circuit.fail()
    assert Teller.tell_news is tell_news
    assert len(circuit.seen(WouldOpen)) == 1
    assert circuit.metrics.total_count == 1


@both
def test_shadow_mode_starts_with_an_empty_window(make: Make) -> None:
    """What the closed circuit saw does not count towards the first hit."""
    circuit = make(tripper=FailureStreak(3))
    circuit.fail()
    circuit.fail()
    circuit.steer("metrics_only")
    circuit.fail()
    assert not circuit.seen(WouldOpen)


# -- configure ------------------------------------------------------------------------------------------------------


@both
@quiet_or_heard
def test_configure_keeps_window_and_streak(make: Make, hears: Any) -> None:
    """New rules judge what was seen under the old ones, from the next outcome on."""
    circuit = make(hears=hears, tripper=FailureStreak(9))
    succeed = circuit.protect(lambda: None)
    succeed()
    succeed()
    circuit.fail()
    circuit.fail()
    circuit.steer("configure", tripper=FailureStreak(3) & MinRequests(5))
    assert circuit.metrics.total_count == 4
    assert circuit.state == "closed"
    circuit.fail()
    assert circuit.state == "open"
    assert circuit.seen(StateChanged)[0].reason == "3 failures in a row (limit 3) and 5 calls seen (5 needed)"


@both
@quiet_or_heard
def test_a_stricter_rule_applies_to_the_next_success(make: Make, hears: Any) -> None:
    """A success after `configure` is judged by the new rule, fast lane or not."""
    circuit = make(hears=hears, tripper=FailureStreak(9))
    succeed = circuit.protect(lambda: None)
    circuit.fail()
    for _ in range(5):
        succeed()
    circuit.steer("configure", tripper=FailureRate(0.1))
    succeed()
    assert circuit.state == "open"


@both
@pytest.mark.parametrize("window", [CountWindow(10), TimeWindow(1000)], ids=repr)
def test_configure_brings_new_slow_thresholds(make: Make, window: Any) -> None:
    """A count window counts anew all that it holds; a time window counts from then on."""
    circuit = make(window=window, tripper=FailureStreak(5), slow_threshold=10)
    circuit.succeed(seconds=3)
    circuit.steer("configure", slow_threshold=2, tripper=SlowRate(1, threshold=3) & MinRequests(3))
    known = isinstance(window, CountWindow)
    assert circuit.metrics.slow_count == known
    assert circuit.metrics.slow_counts == {3.0: known}
    circuit.succeed(seconds=4)
    assert circuit.metrics.slow_count == 1 + known
    assert circuit.metrics.slow_counts == {3.0: 1 + known}
    assert [end.slow for end in circuit.seen(CallSucceeded)] == [False, True]
    circuit.steer("configure", slow_threshold=100)
    assert circuit.metrics.slow_count == (0 if known else 1)


@both
@quiet_or_heard
def test_a_lower_slow_threshold_applies_at_once(make: Make, hears: Any) -> None:
    """The next call is slow by the new threshold, fast lane or not."""
    circuit = make(hears=hears, tripper=FailureStreak(5), slow_threshold=60)
    work = circuit.protect(circuit.clock.advance)
    work(0.001)
    work(0.001)
    circuit.steer("configure", slow_threshold=0.002)
    work(0.004)
    assert circuit.metrics.slow_count == 1


@both
def test_configure_leaves_a_running_wait(make: Make) -> None:
    """The promised `retry_after` holds; the next opening waits as the new retry says."""
    circuit = in_state(make, "open", retry=Cooldown(60))
    circuit.steer("configure", retry=Cooldown(5))
    assert circuit.refused().retry_after == 60.0
    circuit.clock.advance(60)
    circuit.fail()
    assert circuit.refused().retry_after == 5.0


@both
def test_configure_swaps_what_a_half_open_circuit_asks(make: Make) -> None:
    """Permit, places and timeout apply from the next call on."""
    circuit = in_state(make, "half_open", max_half_open_calls=1)
    first = circuit.acquire()
    circuit.refused()
    circuit.steer("configure", max_half_open_calls=2)
    second = circuit.acquire()
    assert circuit.info.probes == 2
    circuit.steer("configure", permit=lambda elapsed: False, max_half_open_calls=9)
    circuit.refused()
    assert circuit.seen(CallRejected)[-1].reason == "not_chosen"
    first.cancel()
    second.cancel()


@both
def test_configure_swaps_the_tracker(make: Make) -> None:
    """The next outcome is judged by the new one."""
    circuit = make(tripper=FailureStreak(5))
    circuit.fail(KeyError())
    circuit.steer("configure", tracker=TypeOf(OSError))
    circuit.fail(KeyError())
    assert circuit.metrics.failure_count == 1
    circuit.steer("configure", tracker=All() | Returned(lambda value: value == 5))
    circuit.succeed(value=5)
    assert circuit.metrics.failure_count == 2


@both
def test_configure_tells_what_changed(make: Make) -> None:
    """`Reconfigured` names the parameters that were given, and all rules in words."""
    circuit = make()
    circuit.steer("configure", tripper=FailureStreak(5), retry=Never(), slow_threshold=1)
    (told,) = circuit.seen(Reconfigured)
    assert set(told.changed) == {"tripper", "retry", "slow_threshold"}
    assert (told.tripper, told.retry, told.permit) == ("FailureStreak(5)", "Never()", "Random(0.5)")
    assert told.window == "CountWindow(100)"
    assert told.state == "closed"


@both
@pytest.mark.parametrize(
    "wrong",
    [
        {"tripper": FailureRate},
        {"retry": 5},
        {"slow_threshold": 0},
        {"slow_threshold": math.nan},
        {"max_half_open_calls": True},
        {"half_open_timeout": "30"},
        {"windw": CountWindow(5)},
    ],
    ids=str,
)
def test_a_wrong_argument_changes_nothing(make: Make, wrong: dict[str, Any]) -> None:
    """Not even the parameters beside it that were right; and nothing is told."""
    circuit = make()
    circuit.fail()
    rules, before = circuit.breaker._core.machine.rules, circuit.info
    circuit.recorder.clear()
    with pytest.raises((TypeError, ValueError)):
        circuit.steer("configure", tracker=TypeOf(OSError), permit=EveryCall(), **wrong)
    assert circuit.breaker._core.machine.rules is rules
    assert circuit.info == before
    assert circuit.recorder.events_seen == []


@both
def test_configure_is_allowed_in_every_state(make: Make) -> None:
    """It moves no circuit."""
    for state in STATES:
        circuit = in_state(make, state)
        before = circuit.info
        circuit.steer("configure", retry=Never())
        assert circuit.info == before


# -- rules that misbehave -------------------------------------------------------------------------------------------


def boom(*told: object) -> Any:
    raise RuntimeError("the rule is broken")


class NoTruth:
    """An answer that has no truth value, as an array has none."""

    def __bool__(self) -> bool:
        raise RuntimeError("the rule is broken")


def reported(circuit: Circuit, caplog: pytest.LogCaptureFixture, role: str, name: str) -> None:
    """The fault was told each time, counted, and logged once with its traceback."""
    told = circuit.seen(ListenerFailed)
    assert told
    assert {(event.role, event.listener, event.error_type) for event in told} == {(role, name, "RuntimeError")}
    assert {event.error for event in told} == {"the rule is broken"}
    assert [event.count for event in told] == list(range(1, len(told) + 1))
    (line,) = caplog.records
    assert (line.name, line.levelno) == ("fluxgate", logging.ERROR)
    assert role in line.getMessage()
    assert name in line.getMessage()
    assert line.exc_info is not None


@both
@pytest.mark.parametrize("answer", ["raises", "has no truth"])
def test_a_tracker_that_raises_counts_a_failure(make: Make, caplog: pytest.LogCaptureFixture, answer: str) -> None:
    """The caller sees the original error, the fault is reported, and the call is a failure."""

    class Broken(Tracker):
        def __call__(self, error: Exception, /) -> bool:
            return boom() if answer == "raises" else NoTruth()  # type: ignore[return-value]

        def __repr__(self) -> str:
            return "Broken()"

    circuit = make(tracker=Broken())
    for _ in range(3):
        circuit.fail(OSError("broken pipe"))
    assert circuit.metrics.failure_count == 3
    assert circuit.seen(CallFailed)[0].error == "broken pipe"
    reported(circuit, caplog, "tracker", "Broken()")


@both
@pytest.mark.parametrize(
    "tracker",
    [boom, boom | TypeOf(KeyError), ~(TypeOf(KeyError) | boom), lambda error: NoTruth()],
    ids=["plain", "joined", "negated", "no truth"],
)
def test_a_plain_tracker_that_raises_counts_a_failure(
    make: Make, caplog: pytest.LogCaptureFixture, tracker: Any
) -> None:
    """Wherever in a combination it stands."""
    circuit = make(tracker=tracker)
    circuit.fail()
    circuit.fail()
    assert circuit.metrics.failure_count == 2
    assert [event.role for event in circuit.seen(ListenerFailed)] == ["tracker", "tracker"]
    assert len(caplog.records) == 1


@both
def test_a_value_tracker_that_raises_counts_a_failure(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """The caller gets the value all the same."""
    circuit = make(tracker=Returned(boom))
    circuit.succeed(value=5)
    circuit.succeed(value=6)
    assert circuit.metrics.failure_count == 2
    reported(circuit, caplog, "tracker", "Returned(boom)")


@both
@pytest.mark.parametrize("answer", ["raises", "has no truth"])
def test_a_tripper_that_raises_decides_nothing(make: Make, caplog: pytest.LogCaptureFixture, answer: str) -> None:
    """Calls keep their outcomes, the window is kept, and the circuit stays as it is."""

    def broken(*told: object) -> Any:
        return boom() if answer == "raises" else NoTruth()

    circuit = make(tripper=broken)
    circuit.fail()
    circuit.succeed(value=5)
    circuit.fail()
    assert circuit.state == "closed"
    assert (circuit.metrics.total_count, circuit.metrics.failure_count) == (3, 2)
    reported(circuit, caplog, "tripper", broken.__qualname__)


@both
def test_a_tripper_that_recovers_is_obeyed_again(make: Make) -> None:
    """A fault is of that moment alone."""

    def answer(metric: Metric, state: State, consecutive_failures: int) -> bool:
        return bool(boom()) if metric.total_count == 1 else metric.total_count == 3

    circuit = make(tripper=answer)
    circuit.fail()
    circuit.fail()
    assert circuit.state == "closed"
    circuit.fail()
    assert circuit.state == "open"


@both
@pytest.mark.parametrize("role", ["explain", "repr"])
def test_a_tripper_without_words_still_trips(make: Make, role: str) -> None:
    """That its sentence cannot be made does not keep a circuit closed that should open."""

    class Mute(Tripper):
        def __call__(self, metric: Metric, state: State, consecutive_failures: int, /) -> bool:
            return True

        def explain(self, *args: Any, **kwargs: Any) -> Any:
            return boom() if role == "explain" else super().explain(*args, **kwargs)

        def __repr__(self) -> str:
            return str(boom() if role == "repr" else "Mute()")

    circuit = make(tripper=Mute(), hears=(StateChanged, ListenerFailed))
    circuit.fail()
    assert circuit.state == "open"
    assert circuit.seen(ListenerFailed)
    circuit.refused()


@both
def test_a_permit_that_raises_admits(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """A circuit must be able to recover whatever its permit does."""
    circuit = make(tripper=FailureStreak(1), permit=boom)
    circuit.fail()
    circuit.clock.advance(60)
    circuit.succeed()
    assert circuit.state == "closed"
    reported(circuit, caplog, "permit", "boom")


@both
def test_a_permit_without_a_truth_admits(make: Make) -> None:
    """An answer that is neither true nor false is a fault like another."""
    circuit = make(tripper=FailureStreak(1), permit=lambda elapsed: NoTruth())
    circuit.fail()
    circuit.clock.advance(60)
    circuit.succeed()
    assert [event.role for event in circuit.seen(ListenerFailed)] == ["permit"]


class Waits:
    """A retry that answers anything."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def wait(self, reopens: int) -> float:
        return self.answer() if callable(self.answer) else self.answer  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return "Waits()"


@both
@pytest.mark.parametrize("nonsense", [boom, math.nan, -1.0, -math.inf, "soon", None, [5]], ids=repr)
def test_a_retry_that_answers_nonsense_waits_60_seconds(
    make: Make, caplog: pytest.LogCaptureFixture, nonsense: Any
) -> None:
    """The circuit opens all the same, for a minute, and the fault is reported."""
    circuit = make(tripper=FailureStreak(1), retry=Waits(nonsense))
    circuit.fail()
    assert circuit.state == "open"
    assert circuit.refused().retry_after == 60.0
    (told,) = circuit.seen(ListenerFailed)
    assert (told.role, told.listener, told.count) == ("retry", "Waits()", 1)
    assert len(caplog.records) == 1
    circuit.clock.advance(60)
    circuit.steer("configure", permit=EveryCall())
    circuit.succeed()
    assert circuit.state == "closed"


@both
def test_what_a_failure_asks_for_may_be_broken(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """A response whose headers raise: the fallback's wait is taken, and the caller sees the original error."""

    class Headers:
        get = staticmethod(boom)

    class Overloaded(Exception):
        headers = Headers()

    circuit = make(tripper=FailureStreak(1), retry=RetryAfter(Cooldown(7)))
    circuit.fail(Overloaded())
    assert circuit.refused().retry_after == 7.0
    reported(circuit, caplog, "retry", "RetryAfter(Cooldown(7))")


@both
def test_a_retry_without_words_reaches_no_caller(make: Make) -> None:
    """A broken repr is not worth more than the call."""

    class Mute(Waits):
        def __repr__(self) -> str:
            return str(boom())

    circuit = make(tripper=FailureStreak(1), retry=Mute(5.0), permit=EveryCall(), hears=(StateChanged, ListenerFailed))
    circuit.fail()
    circuit.clock.advance(5)
    circuit.succeed()
    assert circuit.state == "closed"


@both
def test_a_tracker_without_words_reaches_no_caller(make: Make) -> None:
    """A value that is judged a failure by a tracker whose repr is broken is still returned."""

    class Mute(Tracker):
        judges_values = True

        def __call__(self, error: Exception, /) -> bool:
            return True

        def judge_value(self, value: Any, /) -> bool:
            return True

        def __repr__(self) -> str:
            return str(boom())

    circuit = make(tracker=Mute(), hears=(CallFailed, StateChanged))
    circuit.succeed(value=5)
    assert circuit.metrics.failure_count == 1


@both
def test_each_broken_rule_is_counted_for_itself(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """One line of the log for each, and counts of their own."""

    def other(*told: object) -> Any:
        boom()

    circuit = make(tracker=boom, tripper=other)
    circuit.fail()
    circuit.fail()
    told = circuit.seen(ListenerFailed)
    assert sorted((event.role, event.count) for event in told) == [
        ("tracker", 1),
        ("tracker", 2),
        ("tripper", 1),
        ("tripper", 2),
    ]
    assert len(caplog.records) == 2


@both
def test_a_fault_nobody_hears_is_still_logged(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """Without a listener the log is all there is."""
    circuit = make(tracker=boom, hears=(StateChanged,))
    circuit.fail()
    assert len(caplog.records) == 1


# -- the async face and its own kinds of listeners ------------------------------------------------------------------


@pytest.mark.parametrize("enter", ["call", "decorated", "acquire", "block"])
@pytest.mark.parametrize("state", ["closed", "half_open"])
def test_a_call_cancelled_while_its_start_is_told_is_given_back(enter: str, state: str) -> None:
    """Cancelled in an inline listener's time, before the function ran: `CallCancelled`, and the place is free."""
    circuit = in_state(lambda **rules: Circuit(AsyncCircuitBreaker, **rules), state, max_half_open_calls=1)
    breaker = circuit.breaker

    async def never() -> None:
        raise AssertionError("it ran")

    async def block() -> None:
        async with breaker:
            await never()

    ways: dict[str, Callable[[], Any]] = {
        "call": lambda: breaker.call(never),
        "decorated": breaker(never),
        "acquire": breaker.acquire,
        "block": block,
    }

    async def main() -> None:
        listening, done = asyncio.Event(), asyncio.Event()

        async def slow(event: Event) -> None:
            listening.set()
            await done.wait()

        with breaker.attach(slow, CallStarted):
            task = asyncio.ensure_future(ways[enter]())
            await listening.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            done.set()
            await asyncio.sleep(0)

    asyncio.run(main())
    assert circuit.info.probes == 0
    assert [type(end) for end in circuit.seen(CallEnded)][-1:] == [CallCancelled]
    circuit.succeed()
    assert circuit.state == "closed"


@both
@pytest.mark.parametrize("enter", ["call", "decorated", "acquire", "block"])
def test_an_interrupt_in_a_listener_gives_the_call_back(make: Make, enter: str) -> None:
    """Ctrl-C while a start is told goes on to the program, and the probe that never ran gives its place back."""
    circuit = in_state(make, "half_open", max_half_open_calls=1)

    def interrupted(event: Event) -> None:
        raise KeyboardInterrupt

    ways: dict[str, Callable[[], Any]] = {
        "call": lambda: circuit.call(lambda: None),
        "decorated": circuit.protect(lambda: None),
        "acquire": circuit.acquire,
        "block": lambda: finish(circuit.breaker.__aenter__() if circuit.is_async else circuit.breaker.__enter__()),
    }
    with circuit.breaker.attach(interrupted, CallStarted):
        with pytest.raises(KeyboardInterrupt):
            ways[enter]()
    assert circuit.info.probes == 0
    assert len(circuit.seen(CallStarted)) == len(circuit.seen(CallEnded))
    circuit.succeed()
    assert circuit.state == "closed"


def test_a_clock_that_is_set_back_makes_no_negative_duration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patched under running calls, on the fast lane or not: a duration is 0 at least."""
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    recorder = EventRecorder(CallEnded)
    for listeners in ([], [recorder]):
        breaker = CircuitBreaker("payments", tripper=FailureStreak(5), listeners=listeners, bus=Bus())

        @breaker
        def work(step: float) -> None:
            now[0] += step

        for step in (0.0, 0.0, -5.0, -5.0, 0.001):
            work(step)
        assert breaker.info().metrics.total_count == 5
        assert breaker.info().metrics.total_duration == pytest.approx(0.001)
    assert all(event.duration >= 0 for event in recorder.of(CallEnded))


def test_a_plain_success_that_was_overtaken_is_not_counted() -> None:
    """A call that found the fast lane open and recorded itself after the circuit had moved on is stale."""
    circuit = Circuit(CircuitBreaker, hears=STATES_ONLY, tripper=FailureStreak(5))
    work = circuit.protect(lambda: None)
    work()
    work()
    lane = circuit.breaker._core.lane
    assert lane is not None
    circuit.steer("force_open")
    lane.durations.append(0.1)  # as a thread does that was stopped between looking and appending
    assert circuit.metrics.total_count == 2
    circuit.steer("reset")
    lane.durations.append(0.1)
    assert circuit.metrics.total_count == 0


@both
def test_a_broken_log_handler_hurts_no_call(make: Make) -> None:
    """Where even the log fails there is nobody left to tell, and the call has its outcome."""

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("disk full")

    handler, logger = Broken(), logging.getLogger("fluxgate")
    logger.addHandler(handler)
    try:
        circuit = make(tracker=boom)
        circuit.fail()
        assert circuit.metrics.failure_count == 1
    finally:
        logger.removeHandler(handler)


def test_one_async_breaker_serves_several_loops() -> None:
    """It is bound to no event loop."""
    circuit = Circuit(AsyncCircuitBreaker, tripper=FailureStreak(2))

    async def fail() -> None:
        await asyncio.sleep(0)
        raise ConnectionError

    for _ in range(2):
        with pytest.raises(ConnectionError):
            asyncio.run(circuit.breaker.call(fail))
    assert circuit.state == "open"


def test_circuits_of_one_name_are_separate() -> None:
    """A name is a label; the breaker is the circuit."""
    bus = Bus()
    one, two = CircuitBreaker("payments", bus=bus), CircuitBreaker("payments", bus=bus)
    one.force_open()
    assert two.call(int) == 0
    assert bus.circuits() == [one, two] or bus.circuits() == [two, one]
