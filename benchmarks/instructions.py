"""Instructions a call, which no neighbour's load changes: the difference of two loop lengths in fresh processes.

By ``perf stat`` where the machine lets it count, else by valgrind where that is installed.
"""

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from . import features
from .adapters import adapter
from .peers import OURS, ROOT
from .workloads import Timed, workload

SHORT, LONG = 500, 5_500


@cache
def counter() -> list[str]:
    """The command that counts another's instructions; empty where there is none."""
    perf = ["perf", "stat", "-x", ",", "-e", "instructions:u"]
    valgrind = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    for command in (perf, valgrind):
        if shutil.which(command[0]) and _count([*command, "true"]) is not None:
            return command
    return []


def _count(command: list[str]) -> int | None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COVERAGE"))}
    environment |= {"PYTHONHASHSEED": "0", "LC_ALL": "C"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return None if done.returncode else counted(done.stderr)


def counted(report: str) -> int | None:
    """The figure in what perf or valgrind has written."""
    found = re.search(r"^(\d+),,instructions:u|I\s+refs:\s+([\d,]+)", report, re.MULTILINE)
    return int((found[1] or found[2]).replace(",", "")) if found else None


@cache
def _per_iteration(feature: str, outcome: str, loop: str) -> float | None:
    command = [*counter(), sys.executable, "-m", "benchmarks.instructions", feature, outcome, loop]
    with ThreadPoolExecutor(2) as pool:
        short, long = pool.map(_count, ([*command, str(n)] for n in (SHORT, LONG)))
    return None if short is None or long is None else (long - short) / (LONG - SHORT)


def per_call(feature: str, outcome: str) -> dict[str, float] | None:
    """Instructions of the bare and of the measured call, without the loop; ``None`` where nobody can count them.

    `feature`: one of `features`, or ``Fluxgate`` for a workload of `workloads`.
    """
    if not counter():
        return None
    loop, bare = (_per_iteration(OURS.name, outcome, each) for each in ("loop", "bare"))  # the same for all
    measured = _per_iteration(feature, outcome, "measured")
    if loop is None or bare is None or measured is None:
        return None
    return {"bare": bare - loop, "measured": measured - loop}


def main(feature: str, outcome: str, loop: str, n: str) -> None:
    """One loop of that length, in the process whose instructions are counted."""
    prepared = workload(adapter(OURS), outcome) if feature == OURS.name else features.workload(feature, outcome)
    assert isinstance(prepared, Timed)
    prepared.measured(200)
    getattr(prepared, loop)(int(n))


if __name__ == "__main__":
    main(*sys.argv[1:])
