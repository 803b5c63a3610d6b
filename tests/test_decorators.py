"""Decorated functions: for callers, tools and type checkers they stay what they were."""

from __future__ import annotations

import asyncio
import builtins
import functools
import inspect
import keyword
import linecache
import operator
import pickle
import traceback
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from inspect import Parameter, Signature
from typing import Any, ParamSpec, TypeVar

import pytest

from fluxgate import AsyncCircuitBreaker, Bus, CallNotPermittedError, CircuitBreaker, FailureStreak
from fluxgate.events import CallFailed, CallSucceeded
from tests.faces import ASYNC, SYNC, Make, both, finish

P = ParamSpec("P")
R = TypeVar("R")

cb, acb = CircuitBreaker("shop", bus=Bus()), AsyncCircuitBreaker("shop", bus=Bus())

MUTABLE: list[int] = []
SENTINEL = object()

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def breakers() -> list[Any]:
    """One of each colour."""
    return [CircuitBreaker("x", bus=Bus()), AsyncCircuitBreaker("x", bus=Bus())]


def given(*args: Any, **kwargs: Any) -> Arguments:
    return args, kwargs


# A sync and an async function of each signature, made from one source, so that both colours are tested alike.
SIGNATURES: dict[str, list[Arguments]] = {
    "": [given()],
    "a": [given(1), given(a=1)],
    "a, b=2": [given(1), given(1, 3), given(1, b=3), given(b=3, a=1)],
    "a, /": [given(1)],
    "a, b=SENTINEL, /": [given(1), given(1, 2)],
    "a, /, b": [given(1, 2), given(1, b=2)],
    "a, /, b=2, *, c=3": [given(1), given(1, 5, c=6), given(1, b=5)],
    "*, a": [given(a=1)],
    "*, a=1, b": [given(b=2), given(a=5, b=6)],
    "a, *, b=SENTINEL": [given(1), given(1, b=2)],
    "*args": [given(), given(1, 2, 3)],
    "**kwargs": [given(), given(a=1, b=2)],
    "*args, **kwargs": [given(), given(1, a=2)],
    "a, *args, b=MUTABLE, **kwargs": [given(1), given(1, 2, b=3, c=4)],
    "a, /, **kwargs": [given(1), given(1, a=2)],
    "*args, a=1, b, **kwargs": [given(b=2), given(1, 2, a=3, b=4, c=5)],
    "a=MUTABLE": [given(), given(5)],
    "self, func, args, kwargs": [given(1, 2, 3, 4), given(self=1, func=2, args=3, kwargs=4)],
    "make, protected, func": [given(1, 2, 3)],
    "_func, _core": [given(1, 2), given(_func=1, _core=2)],
    "_stamp=1, *, _value=2": [given(), given(5, _value=6)],
    "a, _b=3, *, c": [given(1, c=2), given(1, 2, c=3)],
    "_lane, _started, _error, _clock": [given(1, 2, 3, 4)],
    "*_args, **_kwargs": [given(1, a=2)],
    "*, _hidden=1": [given(), given(_hidden=2)],
    "ñ, 变量=2": [given(1), given(ñ=1, 变量=3)],
    "name: str, count: int = 5": [given("x"), given("x", 7)],
}


def functions(signature: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """A sync and an async function with that signature, which return all that they were given."""
    scope: dict[str, Any] = {"SENTINEL": SENTINEL, "MUTABLE": MUTABLE}
    exec(f"def names({signature}): ...", scope)
    seen = ", ".join(f"{name!r}: {name}" for name in inspect.signature(scope["names"]).parameters)
    return compiled(signature, f"return {{{seen}}}", scope)


def failing_functions(signature: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    return compiled(signature, "raise LookupError", {})


def compiled(signature: str, body: str, scope: dict[str, Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    exec(f"def plain({signature}): {body}\nasync def coloured({signature}): {body}", scope)
    return scope["plain"], scope["coloured"]


@pytest.mark.parametrize("signature", SIGNATURES)
def test_any_signature_is_kept(signature: str) -> None:
    """Signature, defaults (the very objects) and the way that arguments are bound are those of the function."""
    for breaker, function in zip(breakers(), functions(signature), strict=True):
        wrapped: Any = breaker(function)
        assert inspect.signature(wrapped) == inspect.signature(function)
        for own, other in zip(
            inspect.signature(wrapped).parameters.values(),
            inspect.signature(function).parameters.values(),
            strict=True,
        ):
            assert own.default is other.default
            assert own.kind is other.kind
        for args, kwargs in SIGNATURES[signature]:
            expected = finish(function(*args, **kwargs))
            seen = finish(wrapped(*args, **kwargs))
            assert seen == expected
            for name, parameter in inspect.signature(function).parameters.items():
                if parameter.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
                    assert seen[name] is expected[name]


ALIKE = [
    *("a, b", "a, b=1", "a=1, b=2", "a, /, b", "a, b, /", "a, /, b=1"),
    *("a, *, b", "a, *, b=1", "*, a, b", "*, a=1, b", "*, a, b=1", "*, a=1, b=1"),
    *("*a, b", "*a, b=1", "*a, **b", "a, *b", "a, **b", "a=1, *b", "a=1, **b", "a, /, *b", "*, a, **b", "*, a=1, **b"),
]


@both
def test_parameters_that_differ_in_one_thing_only_are_not_mixed_up(make: Make) -> None:
    """Though functions with the same parameters share what was compiled for the first of them."""
    breaker = make().breaker
    for signature in ALIKE:
        function = functions(signature)[make().is_async]
        assert inspect.signature(breaker(function), follow_wrapped=False).parameters == parameters(function), signature


def parameters(function: Callable[..., Any]) -> dict[str, Parameter]:
    return dict(inspect.signature(function).parameters)


@both
def test_functions_with_the_same_parameters_share_their_wrappers_code(make: Make) -> None:
    """Whatever else they are; and so do all those whose parameters the wrapper cannot have for its own."""
    circuit = make()
    for signatures in (["a, *, b", "a=1, *, b='x'"], ["_a", "_b=5", "*, __c", "Exception"]):
        wrapped = [circuit.breaker(functions(signature)[circuit.is_async]) for signature in signatures]
        assert len({id(each.__code__) for each in wrapped}) == 1


@pytest.mark.parametrize("signature", SIGNATURES)
def test_wrong_arguments_are_a_type_error(signature: str) -> None:
    """What the function would refuse, the wrapper refuses, as the caller's mistake or as the function's own error."""
    for breaker, function in zip(breakers(), functions(signature), strict=True):
        wrapped: Any = breaker(function)
        for args, kwargs in (given(*range(20)), given(unknown=1), given()):
            try:
                inspect.signature(function).bind(*args, **kwargs)
            except TypeError:
                with pytest.raises(TypeError):
                    finish(wrapped(*args, **kwargs))


@pytest.mark.parametrize("name", sorted({*dir(builtins), "CallNotPermittedError", "refuse_coroutine"}))
def test_a_parameter_may_have_any_name(name: str) -> None:
    """The wrapper needs no name that a parameter could take from it, on any of its paths."""
    if keyword.iskeyword(name) or not name.isidentifier() or name == "__debug__":
        return
    for breaker, function in zip(breakers(), functions(name), strict=True):
        wrapped: Any = breaker(function)
        for _ in range(3):
            assert finish(wrapped("given")) == {name: "given"}


@pytest.mark.parametrize("name", ["BaseException", "Exception", "GeneratorExit", "CallNotPermittedError", "len"])
def test_a_parameter_of_any_name_may_fail(name: str) -> None:
    """Nor does it on the paths of failures and refusals."""
    for make, function in zip((SYNC, ASYNC), failing_functions(name), strict=True):
        circuit = make(tripper=FailureStreak(1))
        wrapped = circuit.breaker(function)
        with pytest.raises(LookupError):
            finish(wrapped(5))
        with pytest.raises(CallNotPermittedError):
            finish(wrapped(5))


def test_a_mutable_default_is_shared_as_ever() -> None:
    """The default is the function's own object, not a copy."""
    breaker = CircuitBreaker("x", bus=Bus())

    def append(item: int, items: list[int] = []) -> list[int]:  # noqa: B006
        items.append(item)
        return items

    wrapped = breaker(append)
    assert wrapped(1) is wrapped(2)
    assert append(3) == [1, 2, 3]


def annotated(a: int, *, b: str = "x") -> dict[str, int]:
    """A function with everything.

    >>> annotated(1)
    {'x': 1}
    """
    return {b: a}


annotated.mark = "kept"  # type: ignore[attr-defined]


async def annotated_async(a: int, *, b: str = "x") -> dict[str, int]:
    """An async function with everything."""
    return {b: a}


@pytest.mark.parametrize("index", [0, 1], ids=["sync", "async"])
def test_the_dress_of_the_function_is_kept(index: int) -> None:
    """Name, module, doc, annotations, attributes and type parameters stay, and ``__wrapped__`` leads to it."""
    breaker: Any = breakers()[index]
    function: Any = (annotated, annotated_async)[index]
    wrapped = breaker(function)
    for name in ("__name__", "__qualname__", "__module__", "__doc__", "__annotations__"):
        assert getattr(wrapped, name) == getattr(function, name)
    assert wrapped.__wrapped__ is function
    assert getattr(wrapped, "mark", None) == getattr(function, "mark", None)
    assert inspect.iscoroutinefunction(wrapped) == bool(index)
    assert wrapped.circuit_breaker is breaker
    assert finish(wrapped(1, b="y")) == {"y": 1}
    assert inspect.isfunction(wrapped)


@both
def test_a_function_is_dressed_as_functools_would(make: Make) -> None:
    """Also one that is a wrapper already: its attributes stay, but for what it wraps and the breaker around it."""
    circuit, other = make(), make()
    function: Any = annotated_async if circuit.is_async else annotated
    inner = other.breaker(function)
    inner.extra = "kept"
    for wrapped in (function, inner, functools.partial(function), circuit.dyed(lambda a=5: a)):
        outer: Any = circuit.breaker(wrapped)
        expected: Any = functools.update_wrapper(lambda: None, wrapped)
        for name in functools.WRAPPER_ASSIGNMENTS:
            if hasattr(wrapped, name):
                assert getattr(outer, name) == getattr(expected, name)
        assert vars(outer) == {**vars(expected), "circuit_breaker": circuit.breaker}
        assert vars(inner)["circuit_breaker"] is other.breaker


@cb
def travelling(a: int) -> int:
    return a


def test_a_decorated_function_pickles_as_ever() -> None:
    """By its name, so that process pools can call it."""
    assert pickle.loads(pickle.dumps(travelling)) is travelling
    assert pickle.loads(pickle.dumps(Shop.method)) is Shop.method


@both
def test_a_fallback_keeps_the_dress_too(make: Make) -> None:
    """With ``@cb(fallback=f)`` the function has its signature, its name and its breaker all the same."""
    circuit = make()
    function = annotated_async if circuit.is_async else annotated
    wrapped = circuit.breaker(fallback=lambda error: {"": -1})(function)
    assert inspect.signature(wrapped) == inspect.signature(function)
    assert wrapped.__name__ == function.__name__
    assert wrapped.circuit_breaker is circuit.breaker
    assert finish(wrapped(3)) == {"x": 3}
    assert inspect.iscoroutinefunction(wrapped) == circuit.is_async


@both
def test_brackets_without_options_decorate_as_well(make: Make) -> None:
    """``@cb()`` is ``@cb``."""
    circuit = make()
    assert finish(circuit.breaker()(circuit.dyed(lambda: 5))()) == 5
    assert finish(circuit.breaker(fallback=None)(circuit.dyed(lambda: 5))()) == 5


# -- methods --------------------------------------------------------------------------------------------------------


class Shop:
    """Each kind of method, in both orders, in both colours."""

    def __init__(self, name: str) -> None:
        self.name = name

    @cb
    def method(self, item: int, *, more: int = 0) -> tuple[str, int, int]:
        return self.name, item, more

    @cb
    @classmethod
    def class_inside(cls, item: int) -> tuple[str, int]:
        return cls.__name__, item

    @classmethod
    @cb
    def class_outside(cls, item: int) -> tuple[str, int]:
        return cls.__name__, item

    @cb
    @staticmethod
    def static_inside(item: int) -> int:
        return item

    @staticmethod
    @cb
    def static_outside(item: int) -> int:
        return item

    @property
    @cb
    def prop(self) -> str:
        return self.name

    @cb
    def __len__(self) -> int:
        return len(self.name)

    @acb
    async def amethod(self, item: int, *, more: int = 0) -> tuple[str, int, int]:
        return self.name, item, more

    @acb
    @classmethod
    async def aclass_inside(cls, item: int) -> tuple[str, int]:
        return cls.__name__, item

    @classmethod
    @acb
    async def aclass_outside(cls, item: int) -> tuple[str, int]:
        return cls.__name__, item

    @acb
    @staticmethod
    async def astatic_inside(item: int) -> int:
        return item

    @staticmethod
    @acb
    async def astatic_outside(item: int) -> int:
        return item


class Branch(Shop):
    """A subclass, so that a bound class can be told from the defining one."""

    @cb
    def method(self, item: int, *, more: int = 0) -> tuple[str, int, int]:
        return super().method(item, more=more + 1)


@pytest.mark.parametrize("colour", ["", "a"])
def test_every_kind_of_method_is_bound_as_ever(colour: str) -> None:
    """Methods, class methods and static methods, decorated inside or outside, through class and instance."""
    shop = Shop("corner")

    def call(owner: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        return finish(getattr(owner, colour + name)(*args, **kwargs))

    assert call(shop, "method", 1, more=2) == ("corner", 1, 2)
    assert call(Shop, "method", shop, item=1) == ("corner", 1, 0)
    for where in ("inside", "outside"):
        for owner, kind in ((shop, "Shop"), (Shop, "Shop"), (Branch, "Branch"), (Branch("b"), "Branch")):
            assert call(owner, f"class_{where}", 3) == (kind, 3)
            assert call(owner, f"static_{where}", 4) == 4
    signature = inspect.signature(getattr(shop, colour + "method"))
    assert list(signature.parameters) == ["item", "more"]


def test_properties_special_methods_and_super_work() -> None:
    """Whatever looks a function up on the class finds one."""
    assert Shop("corner").prop == "corner"
    assert len(Shop("corner")) == 6
    assert Branch("b").method(1) == ("b", 1, 1)
    assert Shop.method.__qualname__ == "Shop.method"


def test_methods_of_all_instances_share_the_circuit() -> None:
    """The breaker belongs to the function, not to the object."""
    circuit = SYNC(tripper=FailureStreak(2))

    class Client:
        @circuit.breaker  # type: ignore[untyped-decorator]
        def get(self) -> None:
            raise ConnectionError

    for client in (Client(), Client()):
        with pytest.raises(ConnectionError):
            client.get()
    with pytest.raises(CallNotPermittedError):
        Client().get()


@both
def test_a_bound_method_can_be_decorated(make: Make) -> None:
    """It keeps its object, and its signature without ``self``."""

    class Client:
        def get(self, item: int, *, more: int = 5) -> tuple[Client, int, int]:
            return self, item, more

        async def aget(self, item: int, *, more: int = 5) -> tuple[Client, int, int]:
            return self, item, more

    client, circuit = Client(), make()
    method = client.aget if circuit.is_async else client.get
    wrapped = circuit.breaker(method)
    assert finish(wrapped(1)) == (client, 1, 5)
    assert finish(wrapped(item=1, more=2)) == (client, 1, 2)
    assert list(inspect.signature(wrapped).parameters) == ["item", "more"]
    assert wrapped.__name__ == method.__name__


# -- callables of other kinds ---------------------------------------------------------------------------------------


def passing(function: Callable[P, R]) -> Callable[P, R]:
    """A decorator as users write one."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        return function(*args, **kwargs)

    return wrapper


def passing_async(function: Any) -> Any:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await function(*args, **kwargs)

    return wrapper


def test_a_wrapped_function_is_called_through_its_wrapper() -> None:
    """The wrapper runs, whatever it takes, and tools see the signature of what it wraps."""
    calls: list[Arguments] = []

    def function(a: int, b: int = 2) -> tuple[int, int]:
        return a, b

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        calls.append((args, dict(kwargs)))
        kwargs.pop("extra", None)
        return function(*args, **kwargs)

    wrapped: Any = breakers()[0](wrapper)
    assert wrapped(1, extra=5) == (1, 2)
    assert wrapped(1, b=3) == (1, 3)
    assert calls == [((1,), {"extra": 5}), ((1,), {"b": 3})]
    assert str(inspect.signature(wrapped)) == "(a: 'int', b: 'int' = 2) -> 'tuple[int, int]'"
    assert inspect.unwrap(wrapped) is function


def test_a_wrapped_coroutine_function_is_awaited() -> None:
    """A decorator in between does not change the colour."""

    async def function(a: int) -> int:
        return a

    wrapped: Any = breakers()[1](passing_async(function))
    assert finish(wrapped(a=5)) == 5


def test_a_function_that_advertises_another_signature_is_still_called_as_it_is() -> None:
    """``__signature__`` is for people: the wrapper takes what the function takes, and leaves defaults to it."""

    def function(*args: Any, **kwargs: Any) -> Arguments:
        return args, kwargs

    function.__signature__ = Signature(  # type: ignore[attr-defined]
        [Parameter("a", Parameter.POSITIONAL_OR_KEYWORD, default=5), Parameter("b", Parameter.KEYWORD_ONLY)]
    )
    wrapped: Any = breakers()[0](function)
    assert wrapped() == ((), {})
    assert wrapped(1, 2, c=3) == ((1, 2), {"c": 3})
    assert wrapped(a=1) == ((), {"a": 1})
    assert str(inspect.signature(wrapped)) == "(a=5, *, b)"


@both
def test_a_partial_can_be_decorated(make: Make) -> None:
    """Its arguments are kept, and its signature is the rest."""

    def function(a: int, b: int, *, c: int = 3) -> tuple[int, int, int]:
        return a, b, c

    circuit = make()
    part = functools.partial(circuit.dyed(function), 1, c=5)
    wrapped = circuit.breaker(part)
    assert finish(wrapped(2)) == (1, 2, 5)
    assert finish(wrapped(2, c=6)) == (1, 2, 6)
    if not circuit.is_async:
        assert str(inspect.signature(wrapped)) == "(b: 'int', *, c: 'int' = 5) -> 'tuple[int, int, int]'"


@both
def test_a_callable_object_can_be_decorated(make: Make) -> None:
    """An object with ``__call__`` is a function."""

    class Adder:
        def __init__(self) -> None:
            self.base = 10

        def __call__(self, item: int) -> int:
            return self.base + item

    class AsyncAdder(Adder):
        async def __call__(self, item: int) -> int:  # type: ignore[override]
            return self.base + item

    circuit = make()
    adder = AsyncAdder() if circuit.is_async else Adder()
    wrapped = circuit.breaker(adder)
    assert finish(wrapped(5)) == finish(wrapped(item=5)) == 15
    assert list(inspect.signature(wrapped).parameters) == ["item"]


@pytest.mark.parametrize(
    ("function", "args", "result"),
    [
        (max, (3, 5), 5),
        (operator.add, (3, 5), 8),
        ("-".join, (["a", "b"],), "a-b"),
        (dict.fromkeys, (["a"], 1), {"a": 1}),
        (lambda a, b=2: a + b, (3,), 5),
        (str.upper, ("a",), "A"),
    ],
    ids=["builtin", "operator", "method of a value", "class method", "lambda", "slot"],
)
def test_builtins_and_lambdas_can_be_decorated(function: Any, args: tuple[Any, ...], result: Any) -> None:
    """Functions without a signature of their own included."""
    wrapped: Any = breakers()[0](function)
    assert wrapped(*args) == result
    assert wrapped(*args) == result


@both
def test_one_breaker_protects_many_functions(make: Make) -> None:
    """They share its window and its state."""
    circuit = make(tripper=FailureStreak(2))
    one, two = circuit.protect(fail), circuit.protect(lambda: 5)
    for _ in range(2):
        with pytest.raises(ConnectionError):
            one()
    with pytest.raises(CallNotPermittedError):
        two()


def fail() -> None:
    raise ConnectionError("no route")


@both
def test_breakers_nest(make: Make) -> None:
    """A function behind two breakers counts in both."""
    outer, inner = make(), make()
    function = outer.breaker(inner.breaker(inner.dyed(fail)))
    with pytest.raises(ConnectionError):
        finish(function())
    assert len(outer.seen(CallFailed)) == len(inner.seen(CallFailed)) == 1
    assert function.circuit_breaker is outer.breaker
    assert function.__wrapped__.circuit_breaker is inner.breaker


@both
def test_a_decorated_function_can_recurse(make: Make) -> None:
    """Each level is a call of its own."""
    circuit = make()
    depth: Any

    def plain(n: int) -> int:
        return 0 if n == 0 else 1 + depth(n - 1)

    async def coloured(n: int) -> int:
        return 0 if n == 0 else 1 + await depth(n - 1)

    depth = circuit.breaker(coloured if circuit.is_async else plain)
    assert finish(depth(20)) == 20
    assert len(circuit.seen(CallSucceeded)) == 21


def test_a_traceback_shows_the_wrapper_by_its_source() -> None:
    """The frame that Fluxgate adds is readable, and says around what it is."""
    wrapped = breakers()[0](fail)
    with pytest.raises(ConnectionError) as caught:
        wrapped()
    frame = traceback.extract_tb(caught.value.__traceback__)[1]
    assert frame.filename == "<fluxgate breaker around a function()>"
    assert frame.line == "_value = _func()"
    assert linecache.getline(frame.filename, frame.lineno or 0).strip() == frame.line


def test_functions_of_one_signature_share_their_code() -> None:
    """Which is what makes a decorated function small."""
    breaker, _ = breakers()
    one: Any = breaker(lambda a, b=1: a)
    two: Any = breaker(lambda a, b=2: b)
    assert one.__code__ is two.__code__
    assert (one(5), two(5)) == (5, 2)


# -- the colours of time --------------------------------------------------------------------------------------------


def test_an_async_call_is_measured_to_its_end() -> None:
    """The duration is that of awaiting, not of making the coroutine."""
    circuit = ASYNC()

    @circuit.breaker  # type: ignore[untyped-decorator]
    async def slow() -> None:
        circuit.clock.advance(1)
        await asyncio.sleep(0)
        circuit.clock.advance(2)

    asyncio.run(slow())
    assert [event.duration for event in circuit.seen(CallSucceeded)] == [3.0]


def test_a_coroutine_that_is_never_awaited_is_no_call() -> None:
    """Admission happens when it first runs."""
    circuit = ASYNC()
    coroutine = circuit.breaker(circuit.dyed(fail))()
    circuit.recorder.clear()
    coroutine.close()
    assert circuit.recorder.events_seen == []


def test_a_coroutine_closed_half_way_is_cancelled() -> None:
    """Without a loop that could tell: `close` raises GeneratorExit within."""
    circuit = ASYNC()

    class Forever:
        def __await__(self) -> Generator[None]:
            while True:
                yield

    async def wait() -> None:
        await Forever()

    coroutine = circuit.breaker(wait)()
    coroutine.send(None)
    coroutine.close()
    assert [type(event).__name__ for event in circuit.recorder.events_seen][-1] == "CallCancelled"


def sync_generator() -> Iterator[int]:
    yield 1


async def async_generator() -> AsyncIterator[int]:
    yield 1


def test_generators_keep_their_kind() -> None:
    """Tools that ask what a function is get the same answer."""
    one, two = breakers()
    assert inspect.isgeneratorfunction(one(sync_generator))
    assert inspect.isasyncgenfunction(two(async_generator))
