"""The values that the engine hands out, and the small tools around them."""

from __future__ import annotations

import copy
import functools
import importlib
import json
import logging
import math
import pickle
import time
from collections.abc import Callable, Iterator
from itertools import permutations
from typing import Any

import pytest

import fluxgate
from fluxgate import (
    Bus,
    CallNotPermittedError,
    CircuitBreaker,
    CircuitBreakerInfo,
    FailureStreak,
    Metric,
    MissingExtraError,
    State,
    StateEnum,
    Trigger,
    Verdict,
)
from fluxgate._check import title
from fluxgate._clock import as_clock
from fluxgate._machine import Machine
from fluxgate._record import Record
from fluxgate._rules import DEFAULT_RULES
from fluxgate._text import Redactor, clean, error_text, in_words, type_name
from fluxgate.errors import import_extra
from fluxgate.events import CallStarted, Event, LastError, ListenerFailed, StateChanged
from fluxgate.testing import EventRecorder, VirtualClock
from tests.faces import Make, both

METRIC = Metric(total_count=8, failure_count=2, total_duration=4.0, slow_count=4, slow_counts={0.5: 6, 2.0: 1})
EMPTY = Metric(total_count=0, failure_count=0, total_duration=0.0, slow_count=0)
VERDICT = Verdict("A() & B()", True, parts=(Verdict("A()", True, "a", 1, 2), Verdict("B()", True)), joined_by="and")
INFO = CircuitBreakerInfo(
    name="payments",
    state=State.OPEN,
    changed_at=1.0,
    reopens=2,
    metrics=METRIC,
    retry_after=3.0,
    probes=0,
)
ERROR = LastError(type="OSError", text="broken pipe")
RECORDS: list[Any] = [METRIC, EMPTY, VERDICT, INFO, ERROR]

# -- states ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["closed", "open", "half_open", "metrics_only", "disabled", "forced_open"])
def test_a_state_is_its_word(word: str) -> None:
    """A state equals its word, is found by it, and prints, formats and serialises as it."""
    state = State(word)
    assert state == word == state.value == str(state) == f"{state}"
    assert f"{state:>12}" == f"{word:>12}"
    assert json.dumps({"state": state}) == f'{{"state": "{word}"}}'
    words: dict[str, int] = {word: 1}
    assert words[state] == 1
    assert pickle.loads(pickle.dumps(state)) is state
    assert State[word.upper()] is state


def test_the_states_are_six_and_the_alias_is_the_same() -> None:
    """`StateEnum` is another name for `State`."""
    assert StateEnum is State
    assert len(State) == 6
    assert [str(trigger) for trigger in Trigger] == ["tripper", "retry", "recovery", "manual", "remote"]


def test_no_rule_moves_a_circuit_against_the_table() -> None:
    """The machine refuses a move that its table does not list, whoever asks."""
    machine = Machine(DEFAULT_RULES, 0.0)
    with pytest.raises(RuntimeError, match="cannot move from closed to half_open by retry"):
        machine._move(State.HALF_OPEN, Trigger.RETRY, VERDICT, 0.0, 0.0, machine.generation)
    assert machine.state is State.CLOSED
    assert not machine.news


def test_each_record_has_drafts_of_its_own() -> None:
    """Whichever is asked for first: a draft becomes the record that its class was asked of."""
    for first, second in permutations(range(2)):

        class Base(Record):
            __slots__ = ("name",)
            name: str

        class Special(Base):
            __slots__ = ("size",)
            size: int

        kinds = (Base, Special)
        made: dict[int, Any] = {index: kinds[index].drafts for index in (first, second)}
        assert {index: drafts.__bases__ for index, drafts in made.items()} == {0: (Base,), 1: (Special,)}
        assert [kind.drafts for kind in kinds] == [made[0], made[1]]
        draft = Special.drafts()
        draft.name, draft.size = "spoon", 3
        draft.__class__ = Special
        assert draft == Special(name="spoon", size=3)


# -- metric and verdict ---------------------------------------------------------------------------------------------


def test_a_metric_gives_its_rates() -> None:
    """Rates are per call, and there are none in an empty window."""
    assert (METRIC.failure_rate, METRIC.slow_rate, METRIC.avg_duration) == (0.25, 0.5, 0.5)
    assert (EMPTY.failure_rate, EMPTY.slow_rate, EMPTY.avg_duration) == (None, None, None)


def test_a_metric_is_ready_for_json() -> None:
    """`to_dict` gives sums and rates in plain types."""
    assert json.loads(json.dumps(METRIC.to_dict())) == {
        "total_count": 8,
        "failure_count": 2,
        "failure_rate": 0.25,
        "total_duration": 4.0,
        "avg_duration": 0.5,
        "slow_count": 4,
        "slow_rate": 0.5,
        "slow_counts": {"0.5": 6, "2.0": 1},
    }
    assert EMPTY.to_dict()["failure_rate"] is None


def test_the_counts_of_a_metric_cannot_be_changed() -> None:
    """Neither through the metric nor through the mapping that it was made from."""
    counts = {0.5: 6}
    metric = Metric(total_count=8, failure_count=2, total_duration=4.0, slow_count=4, slow_counts=counts)
    counts[0.5] = 99
    assert metric.slow_counts == {0.5: 6}
    with pytest.raises(TypeError):
        metric.slow_counts[0.5] = 1  # type: ignore[index]


def test_a_verdict_is_true_when_its_rule_was_met() -> None:
    """Truth, sentence and tree agree; what adds no words is named by its rule."""
    assert VERDICT
    assert not Verdict("A()", False)
    assert str(VERDICT) == "a"
    assert str(Verdict("A()", True)) == "A() was met"
    assert str(Verdict("A()", False)) == "A() was not met"


def test_a_verdict_is_ready_for_json() -> None:
    """`to_dict` gives the tree, with figures only where a rule compared some."""
    assert json.loads(json.dumps(VERDICT.to_dict())) == {
        "rule": "A() & B()",
        "met": True,
        "joined_by": "and",
        "parts": [
            {"rule": "A()", "met": True, "text": "a", "observed": 1, "limit": 2},
            {"rule": "B()", "met": True},
        ],
    }


def test_an_error_prints_as_its_last_line_in_a_traceback() -> None:
    """Type and text, or the type alone where there is no text."""
    assert str(ERROR) == "OSError: broken pipe"
    assert str(LastError(type="OSError", text="")) == "OSError"


# -- records --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
@pytest.mark.parametrize(
    "copied",
    [lambda it: pickle.loads(pickle.dumps(it)), copy.copy, copy.deepcopy, lambda it: it.__replace__()],
    ids=["pickle", "copy", "deepcopy", "replace"],
)
def test_a_record_survives_copies(record: Any, copied: Callable[[Any], Any]) -> None:
    """Pickled, copied or replaced by nothing, a record is equal, with the same hash and repr."""
    twin = copied(record)
    assert twin == record
    assert not (twin != record)  # noqa: SIM202
    assert hash(twin) == hash(record)
    assert repr(twin) == repr(record)
    assert type(twin) is type(record)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_is_frozen(record: Any) -> None:
    """No field can be set, deleted or added."""
    name = record.fields[0]
    with pytest.raises(AttributeError, match=f"{type(record).__name__} is immutable: cannot set '{name}'"):
        setattr(record, name, 1)
    with pytest.raises(AttributeError, match=f"cannot delete '{name}'"):
        delattr(record, name)
    with pytest.raises(AttributeError, match="cannot set 'other'"):
        record.other = 1
    assert not hasattr(record, "__dict__")


def test_a_record_takes_its_fields_and_no_others() -> None:
    """The error names what is missing and what is unknown."""
    with pytest.raises(TypeError, match=r"LastError takes type, text; missing \['text'\], unknown \['kind'\]"):
        LastError(type="OSError", kind="x")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def test_a_record_is_replaced_field_by_field() -> None:
    """``copy.replace`` and its hook give a changed copy."""
    assert ERROR.__replace__(text="reset") == LastError(type="OSError", text="reset")
    assert ERROR.text == "broken pipe"


def test_records_of_different_types_differ() -> None:
    """Equality asks for the very type, with the same fields or not."""

    class Other(Record):
        __slots__ = ("type", "text")

        type: str
        text: str

    assert Other(type="OSError", text="broken pipe") != ERROR
    assert ERROR != ("OSError", "broken pipe")
    assert hash(Other(type="a", text="b")) != hash(LastError(type="a", text="b"))


@both
def test_info_is_a_picture_of_one_moment(make: Make) -> None:
    """What happens later does not show in an `info` taken before."""
    circuit = make(tripper=FailureStreak(2))
    circuit.fail(seconds=1.5)
    before = circuit.info
    circuit.clock.advance(10)
    circuit.fail()
    assert (before.state, before.metrics.failure_count, before.retry_after) == ("closed", 1, None)
    assert before.changed_at == 1_700_000_000.0
    after = circuit.info
    assert (after.name, after.state, after.reopens, after.retry_after, after.probes) == ("payments", "open", 0, 60.0, 0)
    assert after.changed_at == circuit.clock.time()
    assert after.metrics.total_duration == 1.5


# -- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (CallNotPermittedError("payments"), "circuit 'payments' is open"),
        (CallNotPermittedError("payments", State.OPEN, 12.34), "circuit 'payments' is open; retry after 12.3 s"),
        (
            CallNotPermittedError("payments", State.OPEN, 5.0, VERDICT),
            "circuit 'payments' is open: a; retry after 5.0 s",
        ),
        (
            CallNotPermittedError("payments", State.HALF_OPEN, 0.0),
            "circuit 'payments' is half-open and did not take this call as a probe",
        ),
        (
            CallNotPermittedError("payments", State.HALF_OPEN, 0.0, VERDICT),
            "circuit 'payments' is half-open and did not take this call as a probe; it had opened on: a",
        ),
        (CallNotPermittedError("payments", State.FORCED_OPEN), "circuit 'payments' is forced open"),
        (CallNotPermittedError("payments", State.FORCED_OPEN, None, VERDICT), "circuit 'payments' is forced open: a"),
    ],
    ids=str,
)
def test_a_refusal_explains_itself(error: CallNotPermittedError, text: str) -> None:
    """Circuit, state, cause and time in one sentence, in `message` and in its text."""
    assert str(error) == error.message == text


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_refusal_pickles_with_all_that_it_carries(protocol: int) -> None:
    """Another process sees the same circuit, state, time and verdict."""
    error = CallNotPermittedError("payments", State.HALF_OPEN, 12.5, VERDICT)
    twin = pickle.loads(pickle.dumps(error, protocol))
    assert type(twin) is CallNotPermittedError
    assert (twin.circuit_name, twin.state, twin.retry_after, twin.verdict) == (
        "payments",
        State.HALF_OPEN,
        12.5,
        VERDICT,
    )
    assert str(twin) == str(error)


def test_a_refusal_makes_its_text_when_it_is_read() -> None:
    """A rejection that nobody prints makes no sentence."""
    asked: list[str] = []

    class Telltale(Verdict):
        __slots__ = ()

        def __str__(self) -> str:
            asked.append(self.rule)
            return super().__str__()

    make: Any = Telltale  # of a subclass, type checkers expect a constructor by fields
    with pytest.raises(CallNotPermittedError) as caught:
        raise CallNotPermittedError("payments", State.OPEN, 1.0, make("A()", True, "a"))
    assert not asked
    assert str(caught.value) == "circuit 'payments' is open: a; retry after 1.0 s"
    assert asked


def test_a_missing_library_is_named_with_the_extra_that_brings_it() -> None:
    """One sentence: who wants which package, and the extra to install."""
    with pytest.raises(MissingExtraError) as caught:
        import_extra("no_such_library.part", wanted_by="NoListener", package="no-such-library", extra="nothing")
    assert str(caught.value) == (
        "NoListener needs no-such-library, which is not installed: install Fluxgate with its extra 'nothing'"
    )
    assert isinstance(caught.value, ImportError)
    assert caught.value.name == "no_such_library.part"
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_a_library_that_lacks_something_itself_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the library is there and one of its own imports fails, that error is the one to see."""
    missing = ModuleNotFoundError("No module named 'its_dependency'")

    def fail(module: str) -> None:
        raise missing

    monkeypatch.setattr(importlib, "import_module", fail)
    for missing.name in ("its_dependency", None):
        with pytest.raises(ModuleNotFoundError) as caught:
            import_extra("library", wanted_by="Listener", package="library", extra="all")
        assert caught.value is missing


def test_an_extra_that_is_there_is_imported() -> None:
    """The module itself comes back."""
    assert import_extra("json", wanted_by="Test", package="json", extra="json") is json


# -- text -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def redact() -> Iterator[Redactor]:
    """`fluxgate.redact`, as it was afterwards."""
    yield fluxgate.redact
    fluxgate.redact(None)


def test_redact_takes_a_function_and_applies_it(redact: Redactor) -> None:
    """It serves as a decorator, as a call on a text, and as a switch back."""

    @redact
    def no_tokens(text: str) -> str:
        return text.replace("s3cret", "***")

    assert no_tokens("s3cret") == "***"
    assert redact("token=s3cret") == "token=***"
    assert error_text(ValueError("token=s3cret")) == "token=***"
    assert redact(None) is None
    assert redact("token=s3cret") == "token=s3cret"


@pytest.mark.parametrize("wrong", [5, str, b"bytes", ["list"]], ids=repr)
def test_redact_refuses_what_is_no_function(redact: Redactor, wrong: Any) -> None:
    """A class, a number or bytes: the error quotes it, and the function in force stays."""
    redact(str.upper)
    with pytest.raises(TypeError) as caught:
        redact(wrong)
    assert repr(wrong) in str(caught.value)
    assert redact("a") == "A"


def test_a_redacting_function_that_fails_withholds_the_text(redact: Redactor, caplog: pytest.LogCaptureFixture) -> None:
    """What could not be checked is not shown; the log says so once, until another function is given."""

    def fail(text: str) -> str:
        raise RuntimeError("no pattern")

    for _ in range(2):
        redact(fail)
        assert redact("s3cret") == redact("s3cret") == "(withheld: the redacting function failed)"
    assert len(caplog.records) == 2
    assert "s3cret" not in caplog.text


def test_another_redacting_function_takes_the_place_with_a_warning(
    redact: Redactor, caplog: pytest.LogCaptureFixture
) -> None:
    """Two modules that each give one would leak the first one's secrets unseen; the same once more is no matter."""

    def first(text: str) -> str:
        return text.replace("one", "***")

    def second(text: str) -> str:
        return text.replace("two", "***")

    redact(first)
    redact(first)
    assert caplog.records == []
    redact(second)
    (warning,) = caplog.records
    assert "second takes the place of" in warning.getMessage()
    redact(None)
    redact(first)
    assert len(caplog.records) == 1


def test_texts_are_cut_at_200_characters() -> None:
    """Of a long message the beginning is shown, an ellipsis being the 200th character."""
    assert clean("x" * 200) == "x" * 200
    assert clean("x" * 201) == "x" * 199 + "…"
    assert len(error_text(ValueError("x" * 10**6))) == 200


class Mute(Exception):
    """An error that cannot be printed."""

    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


def test_an_error_without_readable_text_is_still_told() -> None:
    """A broken ``__str__`` costs the text, not the event; a broken ``__repr__`` leaves the type's name."""
    assert error_text(Mute()) == "(the exception has no readable text)"
    assert in_words(Mute()).endswith("Mute")
    assert in_words("in words already") == "in words already"
    assert in_words(json.dumps) == "dumps"


def test_types_are_named_in_full() -> None:
    """Builtins by their bare name, all others with their module."""
    assert type_name(TimeoutError()) == "TimeoutError"
    assert type_name(json.JSONDecodeError("", "", 0)) == "json.decoder.JSONDecodeError"
    assert title(json.dumps) == "dumps"
    assert "partial" in title(functools.partial(json.dumps))


# -- clocks ---------------------------------------------------------------------------------------------------------


def test_a_virtual_clock_moves_when_told() -> None:
    """Both of its times advance together; wall time can also be set by itself."""
    clock = VirtualClock(5.0, 1000.0)
    clock.advance(2.5)
    assert (clock.monotonic(), clock.time()) == (7.5, 1002.5)
    clock.set_time(10.0)
    assert (clock.monotonic(), clock.time()) == (7.5, 10.0)
    assert repr(clock) == "VirtualClock(7.5, 10)"


class BrokenClock:
    """A clock that answers what it is told, or raises it."""

    def __init__(self) -> None:
        self.now: Any = 100.0
        self.wall: Any = 1000.0

    def monotonic(self) -> float:
        return self._answer(self.now)

    def time(self) -> float:
        return self._answer(self.wall)

    @staticmethod
    def _answer(answer: Any) -> float:
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return "BrokenClock()"


@pytest.mark.parametrize("nonsense", [RuntimeError("no clock"), math.nan, math.inf, -math.inf, "soon", None], ids=repr)
def test_where_a_clock_fails_its_last_time_stands(nonsense: Any) -> None:
    """A clock that raises or answers nonsense is remembered as a fault, and the last good times go on."""
    broken = BrokenClock()
    clock: Any = as_clock(broken)
    assert (clock.monotonic(), clock.time()) == (100.0, 1000.0)
    broken.now = broken.wall = nonsense
    assert (clock.monotonic(), clock.time()) == (100.0, 1000.0)
    assert isinstance(clock.fault, Exception)
    broken.now, broken.wall = 101.0, 900.0
    assert (clock.monotonic(), clock.time()) == (101.0, 900.0)
    assert repr(clock) == "BrokenClock()"


def test_monotonic_time_may_begin_below_zero() -> None:
    """Only differences of monotonic times mean anything."""
    below = VirtualClock(monotonic=-100)
    clock = as_clock(below)
    assert clock.monotonic() == -100
    below.advance(30)
    assert clock.monotonic() == -70


def test_monotonic_time_never_goes_back() -> None:
    """A clock that was set back stands still until it has caught up."""
    broken = BrokenClock()
    clock: Any = as_clock(broken)
    seen = []
    for broken.now in (100.0, 50.0, 99.0, 101.0):
        seen.append(clock.monotonic())
    assert seen == [100.0, 100.0, 100.0, 101.0]


@both
def test_a_broken_clock_hurts_no_call(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """Calls keep their outcomes; the fault is told as `ListenerFailed` by the role "clock" and logged once."""
    broken = BrokenClock()
    circuit = make(clock=broken, tripper=FailureStreak(2))
    broken.now = broken.wall = RuntimeError("no clock")
    circuit.succeed(value=5)
    circuit.fail()
    circuit.fail()
    assert circuit.info.state == "open"
    circuit.refused()
    faults = circuit.seen(ListenerFailed)
    assert {(fault.role, fault.listener, fault.error) for fault in faults} == {("clock", "BrokenClock()", "no clock")}
    assert [fault.count for fault in faults] == list(range(1, len(faults) + 1))
    assert len(caplog.records) == 1


def test_a_clock_that_fails_at_once_gives_time_zero() -> None:
    """A circuit can be made with a clock that never worked."""
    broken = BrokenClock()
    broken.now = broken.wall = OSError("no clock")
    breaker = CircuitBreaker("payments", clock=broken, bus=Bus())
    assert breaker.call(int, "5") == 5
    assert breaker.info().changed_at == 0.0


def test_the_default_clock_is_looked_up_when_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users who patch `time` move a circuit that was made before."""
    breaker = CircuitBreaker("payments", tripper=FailureStreak(1), bus=Bus())
    call = breaker.acquire()
    call.failure(OSError())
    assert breaker.state is State.OPEN
    moved = time.monotonic() + 1000
    monkeypatch.setattr(time, "monotonic", lambda: moved)
    assert breaker.info().retry_after == 0.0
    monkeypatch.setattr(time, "time", lambda: 5.0)
    breaker.reset()
    assert breaker.info().changed_at == 5.0


# -- the testing kit ------------------------------------------------------------------------------------------------


def test_the_recorder_keeps_what_it_asked_for() -> None:
    """All events, or the given types and those beneath them; `of` picks, `clear` forgets."""
    everything, moves = EventRecorder(), EventRecorder(StateChanged)
    breaker = CircuitBreaker("payments", listeners=[everything, moves], bus=Bus())
    breaker.call(int)
    breaker.force_open()
    assert [type(event).__name__ for event in everything.events_seen] == [
        "CircuitCreated",
        "CallStarted",
        "CallSucceeded",
        "StateChanged",
    ]
    assert everything.of(Event) == everything.events_seen
    assert everything.of(CallStarted) == everything.events_seen[1:2]
    assert moves.events == (StateChanged,)
    assert moves.events_seen == everything.of(StateChanged)
    everything.clear()
    assert everything.events_seen == []


def test_the_engine_logs_under_its_own_name(caplog: pytest.LogCaptureFixture) -> None:
    """Users find all that the engine logs under ``fluxgate``."""

    def tripper(*told: object) -> bool:
        raise RuntimeError("no answer")

    breaker = CircuitBreaker("payments", tripper=tripper, bus=Bus())
    with caplog.at_level(logging.ERROR, "fluxgate"):
        breaker.call(int)
    (line,) = caplog.records
    assert line.name == "fluxgate"
    assert "tripper" in line.getMessage()
    assert "'payments'" in line.getMessage()
    assert line.exc_info is not None
