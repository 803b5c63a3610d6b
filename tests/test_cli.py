"""The command `fluxgate`: help, errors and exit codes that a shell and its user can rely on."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fluxgate import MissingExtraError, _plugins, cli

PYPROJECT: dict[str, Any] = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))

# Fast and free of the environment: which libraries are there is decided by the test.
WITHOUT = """
import sys, types
for name in ("httpx", "rich", "structlog", "prometheus_client", "opentelemetry.trace", "opentelemetry.metrics"):
    sys.modules[name] = None if name.partition(".")[0] == {missing!r} else types.ModuleType(name)
from fluxgate.cli import main
sys.exit(main({arguments!r}))
"""


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=60)


def without(missing: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run("-c", WITHOUT.format(missing=missing, arguments=list(arguments)))


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What stderr says about arguments that make no sense."""
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    return output.err


def test_help_lists_the_commands() -> None:
    """`python -m fluxgate --help` says what there is and exits with 0."""
    done = run("-m", "fluxgate", "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: fluxgate")
    assert "demo" in done.stdout
    assert "listeners" in done.stdout


@pytest.mark.parametrize(
    ("command", "words"),
    [("demo", ["--duration", "--json", "--log"]), ("listeners", ["entry-point"]), ("dashboards", ["export"])],
)
def test_each_command_has_help(command: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """`fluxgate COMMAND --help` explains the command and its options."""
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    output = capsys.readouterr().out
    assert all(word in output for word in words)


def test_no_command_is_answered_with_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a command the help goes to stderr, and the exit code says that nothing was done."""
    assert cli.main([]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert "usage: fluxgate" in output.err
    assert "demo" in output.err


def test_an_unknown_command_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown command is named beside those that exist, with exit code 2."""
    error = refusal(capsys, "dmeo")
    assert "dmeo" in error
    assert "demo" in error
    assert "listeners" in error


def test_version_is_the_distributions(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` prints the installed distribution's version."""
    from importlib.metadata import version

    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"fluxgate {version('fluxgate')}\n"


@pytest.mark.parametrize("value", ["2.9", "-5", "0", "nan", "inf", "soon", ""])
def test_a_duration_that_makes_no_sense_is_refused(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A duration is a number of at least 3 seconds; the error quotes what was given."""
    error = refusal(capsys, "demo", f"--duration={value}")
    assert "--duration" in error
    assert "at least 3" in error
    assert repr(value) in error


def test_a_log_that_cannot_be_written_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A log file in a folder that does not exist is an error before anything starts."""
    place = str(tmp_path / "nowhere" / "demo.log")
    error = refusal(capsys, "demo", "--log", place)
    assert place in error
    assert "No such file or directory" in error


@pytest.mark.parametrize("library", ["httpx", "rich"])
def test_a_missing_extra_is_one_sentence(library: str) -> None:
    """Where a library of the demo is missing, one line on stderr names it and the extra, and the exit code is 1."""
    done = without(library, "demo")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("fluxgate: the demo needs ")
    assert library in done.stderr
    assert "'demo'" in done.stderr


def test_help_needs_nothing() -> None:
    """The command itself imports no module of the demo's, nor anything from outside the standard library."""
    code = "import sys, json, fluxgate.cli; print(json.dumps(sorted(sys.modules)))"
    loaded: list[str] = json.loads(run("-I", "-c", code).stdout)
    assert not [name for name in loaded if name.startswith("fluxgate.demo.")]
    assert not {"httpx", "rich", "structlog"} & set(loaded)


def test_a_keyboard_interrupt_ends_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C, whenever it comes, is exit code 130 rather than a traceback."""

    def interrupted() -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(_plugins, "entry_points", interrupted)
    assert cli.main(["listeners"]) == 130


class Point:
    """An entry point that loads to what it is given."""

    value = "shop.events:Listener"

    def __init__(self, load: Callable[[], Any]) -> None:
        self.load = load


def fails(error: Exception) -> Callable[..., Any]:
    def fail(*_: object) -> Any:
        raise error

    return fail


def conditions(output: str) -> dict[str, str]:
    return dict(line.split(maxsplit=1) for line in output.splitlines())


def listed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, **points: Point) -> dict[str, str]:
    monkeypatch.setattr(_plugins, "entry_points", lambda: points)
    assert cli.main(["listeners"]) == 0
    return conditions(capsys.readouterr().out)


def test_listeners_tells_the_condition_of_each(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listener is ready, or misses a library that its extra brings, or is broken, and the list says which and why."""
    rows = listed(
        capsys,
        monkeypatch,
        fine=Point(lambda: type("Fine", (), {"automatic": "log"})),
        lacking=Point(
            lambda: type("L", (), {"automatic": "x", "__init__": fails(MissingExtraError("needs 'paging'"))})
        ),
        asked=Point(lambda: type("A", (), {"automatic": "z", "__init__": None, "require": lambda: None})),
        unasked=Point(lambda: type("U", (), {"require": fails(MissingExtraError("needs 'chat'"))})),
        typo=Point(fails(ImportError("no module named shop"))),
        faulty=Point(lambda: type("F", (), {"automatic": "y", "__init__": fails(ValueError("no token"))})),
    )
    assert rows == {
        "fine": "ready: shop.events.Listener",
        "lacking": "missing: needs 'paging'",
        "asked": "ready: shop.events.Listener",
        "unasked": "missing: needs 'chat'",
        "typo": "broken: ImportError: no module named shop",
        "faulty": "broken: ValueError: no token",
    }


def test_listeners_makes_only_those_that_observe_would_make(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listener that needs arguments, or acts when it is made, is loaded and left at that."""
    point = Point(lambda: type("Pager", (), {"__init__": fails(TypeError("which number?"))}))
    assert listed(capsys, monkeypatch, pager=point) == {"pager": "ready: shop.events.Listener"}


def test_no_listener_is_said_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty list is a sentence, not silence."""
    monkeypatch.setattr(_plugins, "entry_points", dict)
    assert cli.main(["listeners"]) == 0
    assert capsys.readouterr().out == "no listener is installed\n"


LACKING = {
    "structlog": {"structlog": "structlog"},
    "prometheus_client": {"prometheus": "prometheus"},
    "opentelemetry": {"opentelemetry": "opentelemetry", "opentelemetry-metrics": "opentelemetry"},
    "httpx": {"slack": "webhook", "webhook": "webhook"},
}


@pytest.mark.parametrize("library", LACKING)
def test_listeners_of_this_installation(library: str) -> None:
    """The log and the alerts need nothing; without a library its listeners name the extra that brings it."""
    done = without(library, "listeners")
    assert done.returncode == 0
    rows = conditions(done.stdout)
    assert rows["log"] == "ready: fluxgate.listeners.log.LogListener"
    assert rows["alerts"] == "ready: fluxgate.listeners.alerts.AlertListener"
    for name, extra in LACKING[library].items():
        assert re.fullmatch(rf"missing: \w+Listener needs .* with its extra '{extra}'", rows[name]), rows[name]
    assert rows.keys() == PYPROJECT["project"]["entry-points"]["fluxgate.listeners"].keys()
