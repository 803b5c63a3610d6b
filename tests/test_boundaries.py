"""The one rule of the house: arrows point inwards, and the engine needs nothing but the standard library."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"
MODULES = sorted((SRC / "fluxgate").glob("*.py"))
# Applications on top of the engine; they lie beside it, and it knows nothing of them.
APPLICATIONS = {"cli", "__main__"}
ENGINE = [path for path in MODULES if path.stem not in APPLICATIONS]
ENGINE_NAMES = {path.stem for path in ENGINE}
OUTSIDE = APPLICATIONS | {"listeners", "dashboards", "integrations", "console", "cluster", "demo"}


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Each module that the code imports, anywhere in it: by statement, or by name through importlib."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                # The engine is flat: one dot is the package, and more would leave it.
                base = ".".join(filter(None, ["fluxgate" if level == 1 else "." * level, module]))
                if base == "fluxgate":
                    # Names that are no submodule come from fluxgate/__init__.py, which is the engine's own.
                    known = OUTSIDE | ENGINE_NAMES
                    yield from ((node.lineno, f"fluxgate.{a.name}") for a in names if a.name in known)
                    yield node.lineno, "fluxgate"
                else:
                    yield node.lineno, base
            case ast.Call(func=function, args=[ast.Constant(value=str(name)), *_]):
                called = getattr(function, "attr", None) or getattr(function, "id", None)
                if called in {"import_module", "__import__"}:
                    yield node.lineno, name


def violations(source: str) -> list[str]:
    """The imports that the engine must not have, as "line: module"."""
    found: list[str] = []
    for line, module in imported(ast.parse(source)):
        top, _, rest = module.partition(".")
        inside = not rest or rest.partition(".")[0] in ENGINE_NAMES
        if not (inside if top == "fluxgate" else top in sys.stdlib_module_names):
            found.append(f"{line}: {module}")
    return found


@pytest.mark.parametrize("path", ENGINE, ids=lambda path: path.name)
def test_engine_imports_only_itself_and_the_standard_library(path: Path) -> None:
    """No engine module imports a third-party library, or any code built on the engine."""
    assert violations(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("line", "module"),
    [
        ("import structlog", "structlog"),
        ("import os, httpx._client as c", "httpx._client"),
        ("from prometheus_client import Counter", "prometheus_client"),
        ("import fluxgate.listeners.log", "fluxgate.listeners.log"),
        ("from fluxgate.integrations import httpx", "fluxgate.integrations"),
        ("from fluxgate import State, listeners", "fluxgate.listeners"),
        ("from . import console", "fluxgate.console"),
        ("from .demo.service import serve", "fluxgate.demo.service"),
        ("from ..listeners import log", "...listeners"),
        ("from fluxgate.cli import main", "fluxgate.cli"),
        ("def f():\n    if True:\n        import rich", "rich"),
        ("import importlib\nimportlib.import_module('fluxgate.cluster')", "fluxgate.cluster"),
        ("__import__('redis')", "redis"),
    ],
)
def test_the_check_sees_a_bad_import(line: str, module: str) -> None:
    """The check above can fail: in any form, anywhere in the file."""
    assert [found.partition(": ")[2] for found in violations(line)] == [module]


def test_the_check_lets_the_engine_import_itself() -> None:
    """The forms that the engine uses pass."""
    engine = next(name for name in sorted(ENGINE_NAMES) if name != "__init__")
    source = f"""
from __future__ import annotations
import asyncio, collections.abc, fluxgate
from importlib.metadata import entry_points
import fluxgate.{engine}
from fluxgate import State, {engine}
from fluxgate.{engine} import anything
from . import {engine} as other
from .{engine} import anything
"""
    assert violations(source) == []


def fresh(code: str, *flags: str) -> list[str]:
    """Run code that ends in a list called `answer` in an interpreter of its own, and return the list."""
    # Coverage starts itself in subprocesses by these, which is a third-party import of its own.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE")}
    command = [
        sys.executable,
        "-I",
        *flags,
        "-c",
        f"import sys\n{code}\nimport json; print(json.dumps(answer))",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer: list[str] = json.loads(done.stdout)
    return answer


def test_import_loads_no_third_party_module() -> None:
    """`import fluxgate` loads standard library modules alone, not asyncio among them, and no listener."""
    code = "before = set(sys.modules)\nimport fluxgate\nanswer = sorted(set(sys.modules) - before)"
    loaded = fresh(code)
    ours = {name for name in loaded if name.partition(".")[0] == "fluxgate"}
    assert "fluxgate" in ours
    assert {name.partition(".")[0] for name in set(loaded) - ours} <= sys.stdlib_module_names
    assert "asyncio" not in loaded
    assert {name.split(".")[1] for name in ours - {"fluxgate"}} <= ENGINE_NAMES


def test_engine_works_without_site_packages() -> None:
    """Each engine module can be imported where nothing but the standard library exists."""
    names = [f"fluxgate.{name}" for name in sorted(ENGINE_NAMES) if name != "__init__"]
    imports = f"import fluxgate, {', '.join(names)}"
    loaded = fresh(f"sys.path.insert(0, {str(SRC)!r})\n{imports}\nanswer = sorted(sys.modules)", "-S")
    assert set(names) <= set(loaded)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_files_stay_short(path: Path) -> None:
    """A file that one can read at a sitting: 450 lines at most."""
    assert len(path.read_text("utf-8").splitlines()) <= 450
