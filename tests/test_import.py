"""What `import fluxgate` leaves to those who need it, and what is there all the same when somebody asks."""

from __future__ import annotations

import importlib
import inspect
import pydoc
import typing
from typing import Any, Protocol

import pytest

import fluxgate
from fluxgate import (
    Call,
    CallNotPermittedError,
    CircuitBreaker,
    CircuitBreakerInfo,
    Metric,
    Verdict,
    _protocols,
    events,
)
from fluxgate._record import Record
from fluxgate._rules import CHANGEABLE
from tests.test_boundaries import ENGINE_NAMES, SRC, fresh

LEFT_OUT = {"typing", "contextlib", "fluxgate._protocols", "fluxgate._worker"}

LAZY = [
    ("trackers", "TrackerLike"),
    ("trippers", "TripperLike"),
    ("retries", "RetryLike"),
    ("permits", "PermitLike"),
    ("_clock", "Clock"),
    ("_subscription", "Delivery"),
]
each_name = pytest.mark.parametrize(("home", "name"), LAZY, ids=lambda value: value)
each_protocol = pytest.mark.parametrize(("home", "name"), LAZY[:5], ids=lambda value: value)


def loaded(code: str) -> set[str]:
    """Those of `LEFT_OUT` that the code has imported, where nothing but the standard library exists."""
    return LEFT_OUT & set(fresh(f"sys.path.insert(0, {str(SRC)!r})\n{code}\nanswer = sorted(sys.modules)", "-S"))


def test_import_leaves_out_what_is_slow_or_seldom_needed() -> None:
    """`import fluxgate` needs neither `typing`, nor what only breakers and background listeners need."""
    assert loaded("import fluxgate\nfor name in fluxgate.__all__: getattr(fluxgate, name)") == set()


def test_a_breaker_with_a_listener_needs_no_typing_either() -> None:
    """Nor does it need a thread to make one, to call it and to hear of it."""
    code = """
from fluxgate import CircuitBreaker
cb = CircuitBreaker("payments", listeners=[print])
cb(lambda: 5)()
with cb:
    pass
"""
    assert loaded(code) & {"typing", "fluxgate._protocols", "fluxgate._worker"} == set()


def test_a_background_listener_brings_its_thread_when_it_is_attached() -> None:
    """What its delivery needs is imported then, and not by the first event, in the middle of a call."""
    attach = "import fluxgate\nfluxgate.attach({}, delivery={!r})"
    assert "fluxgate._worker" not in loaded(attach.format("lambda event: None", "inline"))
    assert "fluxgate._worker" in loaded(attach.format("lambda event: None", "background"))


# -- protocols ------------------------------------------------------------------------------------------------------


@each_name
def test_what_type_checkers_read_is_made_when_it_is_asked_for(home: str, name: str) -> None:
    """It is listed from the start, and after the first time an attribute like any other."""
    code = f"""
sys.path.insert(0, {str(SRC)!r})
import fluxgate.{home} as home
answer = [name for name in dir(home) if name == {name!r}]
answer += [name for name in (*vars(home), *sys.modules) if name in ({name!r}, "typing")]
from fluxgate.{home} import {name}
assert vars(home)[{name!r}] is {name}
"""
    assert fresh(code, "-S") == [name]


@each_name
def test_it_is_the_same_wherever_it_is_found(home: str, name: str) -> None:
    """Each module gives the one that `_protocols` has."""
    module = importlib.import_module(f"fluxgate.{home}")
    assert module.__getattr__(name) is getattr(module, name) is getattr(_protocols, name)
    assert name in module.__dir__()


@each_protocol
def test_users_can_extend_the_protocols(home: str, name: str) -> None:
    """They are real ones: a subclass is a protocol too, and a plain class may name one as its base."""
    base: Any = getattr(importlib.import_module(f"fluxgate.{home}"), name)
    assert base._is_protocol
    meta: Any = type(Protocol)
    extended = meta("Extended", (base, Protocol), {"extra": lambda self: 5})
    assert extended._is_protocol
    with pytest.raises(TypeError, match="Protocols cannot be instantiated"):
        extended()
    assert not type(base)("Plain", (base,), {})._is_protocol


@pytest.mark.parametrize("home", sorted({home for home, _ in LAZY}))
def test_a_wrong_name_is_an_error_as_in_any_module(home: str) -> None:
    """It names the module and the attribute, and carries both for Python's "Did you mean"."""
    module = importlib.import_module(f"fluxgate.{home}")
    with pytest.raises(AttributeError, match=rf"^module 'fluxgate\.{home}' has no attribute 'RetyLike'") as caught:
        _ = module.RetyLike
    assert (caught.value.name, caught.value.obj) == ("RetyLike", module)


@pytest.mark.parametrize("home", ["trackers", "trippers", "retries", "permits"])
def test_the_public_modules_give_all_that_they_promise(home: str) -> None:
    """Each name of `__all__` is there, by `*` as well, and `help` shows it."""
    scope: dict[str, Any] = {}
    exec(f"from fluxgate.{home} import *", scope)
    module = importlib.import_module(f"fluxgate.{home}")
    shown = pydoc.plain(pydoc.render_doc(module))
    for name in module.__all__:
        assert scope[name] is getattr(module, name)
        assert name in shown


# -- annotations ----------------------------------------------------------------------------------------------------


def value_types(base: type[Record] = Record) -> list[type[Record]]:
    """The engine's records; without drafts, which are not made for users."""
    engine = {f"fluxgate.{name}" for name in ENGINE_NAMES}
    records = [each for each in base.__subclasses__() if each.__module__ in engine]
    found = [each for each in records if each.__setattr__ is not object.__setattr__]
    return [kind for each in found for kind in (each, *value_types(each))]


@pytest.mark.parametrize("kind", sorted(value_types(), key=str), ids=lambda kind: kind.__name__)
def test_the_types_of_a_records_fields_can_be_asked_for(kind: type[Record]) -> None:
    """`typing.get_type_hints` gives each field's, though nothing was evaluated when the class was made."""
    assert typing.get_type_hints(kind).keys() == set(kind.fields)


def test_value_types_are_found() -> None:
    """The test above is about those that users see."""
    assert {*events.EVENT_TYPES, Metric, Verdict, events.Opening, events.LastError, CircuitBreakerInfo} <= {
        *value_types()
    }


def test_type_checkers_and_the_engine_agree_on_what_can_be_changed() -> None:
    """`configure` takes what its annotation says."""
    assert tuple(typing.get_type_hints(_protocols.Changes)) == CHANGEABLE


@pytest.mark.parametrize("name", ["Cooldown", "CountWindow", "FailureRate", "Random", "TypeOf"])
def test_final_classes_say_so(name: str) -> None:
    """As `typing.final` marks them."""
    assert getattr(fluxgate, name).__final__ is True


def test_signatures_read_well() -> None:
    """In the words of the source, and where a value may be left out there is no object's address."""
    assert str(inspect.signature(Call.success)) == "(self, value: 'Any' = NO_VALUE) -> 'None'"
    shown = str(inspect.signature(CircuitBreaker))
    assert shown.startswith("(name: 'str', *, window: 'Window | None' = None, tracker: 'TrackerLike | None' = None, ")
    assert str(inspect.signature(CallNotPermittedError.message.fget)) == "(self) -> 'str'"  # type: ignore[attr-defined]
