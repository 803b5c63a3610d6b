"""Writes out what is shipped for operators: dashboards, rules, runbooks, and what starts Grafana with them."""

import os
from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath

_SHIPPED = "fluxgate.dashboards"
_CODE = (".py", ".pyc", "__pycache__")  # builds the files; whoever uses them has no need of it


class FolderInUseError(Exception):
    """The folder to write to has files already."""


def export(folder: Path, *, force: bool = False) -> list[Path]:
    """Write every file for operators into `folder`, which is made if need be; give back where each is.

    Args:
        force: Write into a folder that has files: those of the same names are replaced, others are left alone.

    Raises:
        FolderInUseError: there is something in the folder, and `force` is not set.
        OSError: the folder cannot be made, or written to.
    """
    if not force and os.path.lexists(folder) and any(folder.iterdir()):
        raise FolderInUseError(f"{folder} is not empty: choose another folder, or replace what it has with --force")
    written: list[Path] = []
    for name, shipped in sorted(_walk(files(_SHIPPED), PurePosixPath())):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(shipped.read_bytes())
        written.append(path)
    return written


def _walk(folder: Traversable, below: PurePosixPath) -> Iterator[tuple[PurePosixPath, Traversable]]:
    for each in folder.iterdir():
        if each.name.endswith(_CODE):
            continue
        if each.is_dir():
            yield from _walk(each, below / each.name)
        else:
            yield below / each.name, each
