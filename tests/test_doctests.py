"""The examples in the engine's docstrings are true."""

from __future__ import annotations

import doctest
import importlib
import inspect
from pathlib import Path
from types import ModuleType

import pytest

import fluxgate

SRC = Path(fluxgate.__file__).parent
MODULES = sorted(path.stem for path in SRC.glob("*.py") if path.stem not in ("__init__", "__main__"))


def examples(module: ModuleType) -> list[doctest.DocTest]:
    """Those of the module, of its functions and of its classes, in the order of the file."""
    return [test for test in doctest.DocTestFinder(exclude_empty=True).find(module) if test.examples]


def run(test: doctest.DocTest) -> str:
    """The report of what was different, empty if nothing was."""
    report: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=report.append)
    return "".join(report)


@pytest.mark.parametrize("name", ["fluxgate", *(f"fluxgate.{stem}" for stem in MODULES)])
def test_the_examples_of_a_module_are_true(name: str) -> None:
    """Each example gives what it says."""
    for test in examples(importlib.import_module(name)):
        assert run(test) == "", test.name


def test_examples_are_found_and_can_fail() -> None:
    """There are examples, also in methods, and one that is wrong is seen."""
    breaker = importlib.import_module("fluxgate.breaker")
    assert {"fluxgate.breaker.CircuitBreaker", "fluxgate.breaker.CircuitBreaker.call"} <= {
        test.name for test in examples(breaker)
    }
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, None)
    assert "Expected" in run(wrong)


@pytest.mark.parametrize("name", fluxgate.__all__)
def test_what_is_exported_is_documented(name: str) -> None:
    """Each public name says what it is."""
    public = getattr(fluxgate, name)
    if inspect.ismodule(public) or inspect.isclass(public) or inspect.isfunction(public) or inspect.ismethod(public):
        assert inspect.getdoc(public)
