"""What type checkers make of Fluxgate: the files in ``tests/typing`` are checked here, not run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CASES = ROOT / "tests" / "typing"
GIVE_UP = 300  # seconds, for a slow machine's first run


def run(*command: str | Path) -> tuple[int, str]:
    """Exit status and output of a checker, at home."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE")}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=GIVE_UP
    )
    return done.returncode, done.stdout + done.stderr


def mypy(*files: Path) -> tuple[int, str]:
    pytest.importorskip("mypy")
    return run("mypy", "--strict", "--follow-imports=silent", *files)


def pyright(folder: Path, *files: Path) -> tuple[int, str]:
    """With a configuration of its own: where this environment lies is not the project's to know."""
    pytest.importorskip("pyright")
    settings = {
        "include": [os.path.relpath(file, folder) for file in files],
        "extraPaths": [os.path.relpath(ROOT / "src", folder)],
        "pythonVersion": "3.11",
        "typeCheckingMode": "strict",
    }
    (folder / "pyrightconfig.json").write_text(json.dumps(settings), "utf-8")
    return run("pyright", "--project", folder)


def test_mypy_agrees_with_every_case() -> None:
    """The types are those that are asserted, and each wrong use is an error."""
    status, output = mypy(*sorted(CASES.glob("*.py")))
    assert status == 0, output


def test_pyright_agrees_with_every_case(tmp_path: Path) -> None:
    """The same in pyright's strict mode."""
    status, output = pyright(tmp_path, CASES)
    assert status == 0, output
    assert "0 errors" in output


BROKEN = """\
# pyright: reportUnnecessaryTypeIgnoreComment=true
from typing import assert_type

from fluxgate import CircuitBreaker

assert_type(CircuitBreaker("x").call(int, "5"), str)
CircuitBreaker("x")  # type: ignore[arg-type]
"""


def test_the_checks_see_a_wrong_type_and_a_missing_error(tmp_path: Path) -> None:
    """Both can fail: on an assertion that does not hold, and on an error that was expected and does not come."""
    case = tmp_path / "case.py"
    case.write_text(BROKEN, "utf-8")
    for status, output in (mypy(case), pyright(tmp_path, case)):
        assert status == 1, output
        assert set(re.findall(r"case\.py:(\d+):.*error", output)) == {"6", "7"}, output
