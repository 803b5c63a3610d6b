"""Asks the workers for samples, each in turn, round after round, so that noise hits all alike."""

import json
import os
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from .peers import ROOT

Samples = list[dict[str, float]]


class Subject(NamedTuple):
    """What a worker measures, and in which environment."""

    python: Path
    name: str
    """A peer's, or a feature's."""
    workload: str


class Worker:
    """A process that takes samples of one workload of one subject."""

    def __init__(self, python: Path, name: str, workload: str) -> None:
        environment = {
            k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COVERAGE", "OTEL_", "PROMETHEUS_"))
        }
        self.name = name
        self._process = subprocess.Popen(
            [str(python), "-m", "benchmarks.worker", name, workload],
            cwd=ROOT,
            env={**environment, "PYTHONHASHSEED": "0"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, stretches: int) -> dict[str, Any]:
        """One line there, one back."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{stretches}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker of {self.name} has ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        with self._process as process:
            process.stdin = process.stdin and process.stdin.close()


def play(subjects: Mapping[str, Subject], rounds: int, stretches: int) -> dict[str, Samples | str]:
    """The samples of each subject, or what it lacks."""
    found: dict[str, Samples | str] = {}
    with ExitStack() as closing:
        workers: list[tuple[Worker, Samples]] = []
        for label, subject in subjects.items():
            worker = Worker(*subject)
            closing.callback(worker.close)
            lacks = worker.ask(stretches).get("lacks")
            if lacks is None:
                samples: Samples = []
                found[label] = samples
                workers.append((worker, samples))
            else:
                found[label] = lacks
        for _ in range(rounds):
            for worker, samples in workers:
                samples.append(worker.ask(stretches))
    return found


def spread(values: Iterable[float]) -> list[float]:
    """Median, least and greatest, to four digits."""
    found = list(values)
    return [float(f"{value:.4g}") for value in (median(found), min(found), max(found))]


def summary(samples: Iterable[Mapping[str, float]]) -> dict[str, list[float]]:
    """The spread of each figure; the ratio to the bare call is that within a sample."""
    whole = [{**sample, **({"ratio": ratio(sample)} if "bare" in sample else {})} for sample in samples]
    return {name: spread(sample[name] for sample in whole) for name in (whole[0] if whole else ())}


def ratio(sample: Mapping[str, float]) -> float:
    """How many times the bare call."""
    return sample["measured"] / sample["bare"]
