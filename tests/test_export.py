"""`fluxgate dashboards export`: what operators need, as files in a folder of theirs."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from fluxgate import cli

SHIPPED = Path(__file__).parents[1] / "dashboards"


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its place in it."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def export(*arguments: str | Path) -> int:
    return cli.main(["dashboards", "export", *map(str, arguments)])


def test_export_writes_all_that_is_shipped_but_for_the_code(tmp_path: Path) -> None:
    """The folder, made with those above it, has every file for operators, unchanged, and none of Python's."""
    folder = tmp_path / "a" / "b"
    assert export(folder) == 0
    wanted = {name: content for name, content in files(SHIPPED).items() if not name.endswith((".py", ".pyc"))}
    assert files(folder) == wanted
    assert {"compose.yaml", "grafana/fleet.json", "runbooks/CircuitOpen.md"} <= wanted.keys()


def test_export_prints_what_it_wrote_and_what_to_do_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One path a line, then the command that starts everything, which a shell takes as it is."""
    folder = tmp_path / "it's here"
    assert export(folder) == 0
    listed, _, advice = capsys.readouterr().out.partition("\n\n")
    assert listed.splitlines() == sorted(str(folder / name) for name in files(folder))
    command = next(line for line in advice.splitlines() if line.startswith("next: "))
    assert shlex.split(command)[1:6] == ["docker", "compose", "-f", str(folder / "compose.yaml"), "up"]


def test_export_refuses_a_folder_that_is_in_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where there is something already, one sentence says so, the exit code is 1 and nothing is written."""
    (tmp_path / "mine.txt").write_text("mine", "utf-8")
    assert export(tmp_path) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert str(tmp_path) in output.err
    assert "--force" in output.err
    assert files(tmp_path) == {"mine.txt": b"mine"}


def test_force_replaces_files_of_the_same_names_alone(tmp_path: Path) -> None:
    """With --force what is shipped is written over what has its name; all else stays."""
    (tmp_path / "mine.txt").write_text("mine", "utf-8")
    (tmp_path / "grafana").mkdir()
    (tmp_path / "grafana" / "fleet.json").write_text("{}", "utf-8")
    assert export(tmp_path, "--force") == 0
    assert (tmp_path / "mine.txt").read_text("utf-8") == "mine"
    assert json.loads((tmp_path / "grafana" / "fleet.json").read_bytes())["uid"] == "fluxgate-fleet"


def test_an_empty_folder_is_as_good_as_none(tmp_path: Path) -> None:
    """A folder that is there and empty needs no --force."""
    assert export(tmp_path) == 0
    assert files(tmp_path)


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_what_is_no_folder_is_refused(force: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file in the place of the folder is one sentence on stderr, not a traceback."""
    place = tmp_path / "file"
    place.write_text("mine", "utf-8")
    assert export(place, *force) == 1
    output = capsys.readouterr()
    assert output.err.startswith("fluxgate: ")
    assert output.err.count("\n") == 1
    assert str(place) in output.err
    assert place.read_text("utf-8") == "mine"


def test_a_command_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    """`fluxgate dashboards` alone is an error that shows how it is called."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["dashboards"])
    assert ended.value.code == 2
    assert "usage: fluxgate dashboards" in capsys.readouterr().err
