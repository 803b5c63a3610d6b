"""The package as users get it: wheel, sdist and editable install, each imported outside of the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import Any, NoReturn

import pytest

ROOT = Path(__file__).parents[1]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
FOLDERS: dict[str, str] = PYPROJECT["tool"]["setuptools"]["package-dir"]
DATA: dict[str, list[str]] = PYPROJECT["tool"]["setuptools"]["package-data"]

# Runs in the environment under test, where no optional library is: every listener must load all the same.
PROBE = """
import importlib.metadata, json, os
import fluxgate, fluxgate.dashboards, fluxgate.listeners

points = importlib.metadata.entry_points(group="fluxgate.listeners")
print(json.dumps({
    "version": importlib.metadata.version("fluxgate"),
    "files": [os.path.realpath(m.__file__) for m in (fluxgate, fluxgate.listeners, fluxgate.dashboards)],
    "typed": os.path.exists(os.path.join(os.path.dirname(fluxgate.__file__), "py.typed")),
    "listeners": {p.name: p.value for p in points if callable(p.load())},
}))
"""


def unavailable(reason: str) -> NoReturn:
    """A test that cannot run is a failure in CI and a skip elsewhere."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    """Run a command away from the tests' own environment and give back what it printed."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COVERAGE"))}
    done = subprocess.run(command, cwd=cwd, env=environment | variables, capture_output=True, text=True)
    assert done.returncode == 0, f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The build backend, fetched once; with these variables pip takes it from the disk."""
    pytest.importorskip("build.env")  # plain `build` is also the folder of that name
    house = tmp_path_factory.mktemp("wheelhouse")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(house)]
    done = subprocess.run(command + PYPROJECT["build-system"]["requires"], capture_output=True, text=True, cwd=house)
    if done.returncode:
        unavailable(f"no build backend to be had: {done.stderr.strip()[-500:]}")
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(house), "PIP_CONFIG_FILE": os.devnull}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, since a build leaves its traces where it runs."""
    junk = (
        ".git",
        ".venv*",
        "build",
        "dist",
        "*.egg-info",
        "__pycache__",
        ".*_cache",
        ".hypothesis",
        ".coverage*",
    )
    return Path(
        shutil.copytree(ROOT, tmp_path_factory.mktemp("copy") / "checkout", ignore=shutil.ignore_patterns(*junk))
    )


@pytest.fixture(scope="module")
def dist(offline: dict[str, str], checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, checkout, cwd=folder, **offline)
    return folder


def only(folder: Path, pattern: str) -> Path:
    (match,) = folder.glob(pattern)
    return match


@pytest.mark.parametrize("kind", ["wheel", "sdist", "editable"])
def test_installed_package_imports_outside_of_the_checkout(
    kind: str, dist: Path, checkout: Path, offline: dict[str, str], tmp_path: Path
) -> None:
    """Each kind of install gives the packages, the entry points, the types, the command and the dashboards."""
    sources: dict[str, list[str | Path]] = {
        "wheel": [only(dist, "*.whl")],
        "sdist": [only(dist, "*.tar.gz")],
        "editable": ["--editable", checkout],
    }
    home = tmp_path / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--quiet", "--no-deps", *sources[kind], cwd=tmp_path, **offline)

    seen = json.loads(run(python, "-I", "-W", "error", "-c", PROBE, cwd=tmp_path))

    place = checkout if kind == "editable" else home
    assert all(Path(file).is_relative_to(place.resolve()) for file in seen["files"]), seen["files"]
    assert seen["version"] == PYPROJECT["project"]["version"]
    assert seen["listeners"] == PYPROJECT["project"]["entry-points"]["fluxgate.listeners"]
    assert seen["typed"]
    assert "fluxgate" in run(home / "bin" / "fluxgate", "--help", cwd=tmp_path)
    assert "fluxgate" in run(python, "-m", "fluxgate", "--help", cwd=tmp_path)

    run(home / "bin" / "fluxgate", "dashboards", "export", "exported", cwd=tmp_path)
    exported = {
        path.relative_to(tmp_path / "exported") for path in (tmp_path / "exported").rglob("*") if path.is_file()
    }
    shipped = checkout / FOLDERS["fluxgate.dashboards"]
    patterns = DATA["fluxgate.dashboards"]
    assert exported == {path.relative_to(shipped) for pattern in patterns for path in shipped.glob(pattern)}


def test_every_folder_with_modules_is_a_declared_package() -> None:
    """Packages are listed by hand: one that is forgotten would be missing from the wheel."""
    found = {
        ".".join([package, *init.parent.relative_to(ROOT / folder).parts])
        for package, folder in FOLDERS.items()
        for init in (ROOT / folder).rglob("__init__.py")
    }
    assert found == set(PYPROJECT["tool"]["setuptools"]["packages"])


def test_the_wheel_holds_the_package_and_nothing_else(dist: Path, checkout: Path) -> None:
    """Every module and every data file travels in the wheel; tests and stray folders do not."""
    expected = {
        f"{package.replace('.', '/')}/{path.relative_to(checkout / folder).as_posix()}"
        for package, folder in FOLDERS.items()
        for pattern in ["**/*.py", *DATA.get(package, [])]
        for path in (checkout / folder).glob(pattern)
    }
    with zipfile.ZipFile(only(dist, "*.whl")) as wheel:
        packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == expected


def test_the_sdist_can_be_tested_by_whoever_packages_it(dist: Path, checkout: Path) -> None:
    """The sdist carries the tests and what they need beside them."""
    with tarfile.open(only(dist, "*.tar.gz")) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    tests = {path.relative_to(checkout).as_posix() for path in (checkout / "tests").rglob("*.py")}
    beside = {"pyproject.toml", "Makefile", "README.md", "CHANGELOG.md", "LICENSE", "listeners/__init__.py"}
    assert tests | beside <= packed
