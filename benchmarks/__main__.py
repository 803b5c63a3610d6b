"""Measure all, and write ``docs/benchmarks.md`` and its picture: ``python -m benchmarks [--quick] [--draw-only]``."""

import argparse
import json
import platform
import sys
import time
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from . import conductor, environments, features, plot, report
from .conductor import Samples, Subject
from .footprint import FOOTPRINT
from .peers import OURS, PEERS, Peer
from .workloads import CALLS, CIRCUITS, IN_TURN, WINDOW_SIZES

WORKLOADS = (
    *CALLS,
    *(f"window:{size}" for size in WINDOW_SIZES),
    *(f"among:{number}" for number in CIRCUITS),
    *(f"each of:{number}" for number in IN_TURN),
    *FOOTPRINT,
)
FEW_ROUNDS = frozenset({"memory", "import", "making", *(name for name in WORKLOADS if "0000" in name)})
"""Workloads that vary little, or take long to prepare."""


def say(text: str) -> None:
    """Tell how far it has come."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def run_peers(peers: Mapping[str, Peer | str], rounds: int, stretches: int) -> dict[str, Any]:
    """Each workload on each peer, or why it cannot be had."""
    results: dict[str, Any] = {}
    for workload in WORKLOADS:
        say(f"peers: {workload}")
        subjects = {
            name: Subject(peer.python, name, workload) for name, peer in peers.items() if isinstance(peer, Peer)
        }
        few = max(rounds // 3, 2) if workload in FEW_ROUNDS else rounds
        found = conductor.play(subjects, few, stretches)
        results[workload] = {
            name: peer if isinstance(peer, str) else _summary(found[name]) for name, peer in peers.items()
        }
    return results


def _summary(samples: Samples | str) -> Any:
    if isinstance(samples, str):
        return samples
    more: dict[str, Any] = {}
    if "8" in samples[0]:
        best = {n: max(sample[n] for sample in samples) for n in ("1", "2", "4", "8")}
        more = {f"relative {n}": conductor.spread([best[n] / best["1"]]) for n in best}
    return conductor.summary(samples) | more


def run_features(rounds: int, stretches: int) -> dict[str, Any]:
    """Each feature, and what it is compared with, by how a call ends."""
    results: dict[str, Any] = {}
    for outcome in features.OUTCOMES:
        say(f"features: {outcome}")
        subjects: dict[str, Subject] = {}
        for name in features.FEATURES:
            subjects[name] = Subject(OURS.python, name, outcome)
            subjects[features.BY_HAND + name] = Subject(OURS.python, name, features.BY_HAND + outcome)
        found = conductor.play(subjects, rounds, stretches)
        results[outcome] = {name: beside(found, name) for name in features.FEATURES}
    return results


def beside(found: Mapping[str, Samples | str], name: str) -> dict[str, Any]:
    """A feature's figures beside those of no listener, and of what is called by hand, in the same rounds."""
    samples, none, by_hand = found[name], found[features.NO_LISTENER], found[features.BY_HAND + name]
    assert not isinstance(samples, str)
    assert not isinstance(none, str)
    on_top = [conductor.ratio(a) - conductor.ratio(b) for a, b in zip(samples, none, strict=True)]
    figures: dict[str, Any] = conductor.summary(samples)
    figures["on top"] = conductor.spread(on_top)
    if not isinstance(by_hand, str):
        figures["by hand"] = conductor.spread(sample["measured"] for sample in by_hand)
        figures["of by hand"] = conductor.spread(
            top / conductor.ratio(sample) for top, sample in zip(on_top, by_hand, strict=True)
        )
    return figures


def machine() -> str:
    """The processor's model."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    """The command."""
    import os

    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds: rough figures")
    parser.add_argument("--rounds", type=int, help="samples of each subject in each workload")
    parser.add_argument("--draw-only", action="store_true", help="page and picture anew from the last results")
    asked = parser.parse_args()
    if not asked.draw_only:
        rounds = asked.rounds or (3 if asked.quick else 10)
        stretches = 1 if asked.quick else 2
        peers: dict[str, Peer | str] = {}
        for peer in PEERS:
            say(f"environment: {peer.name}")
            peers[peer.name] = environments.ready(peer) or peer
        results = {
            "about": {
                "date": date.today().isoformat(),
                "python": f"{platform.python_implementation()} {platform.python_version()}",
                "system": platform.system(),
                "machine": machine(),
                "cores": os.cpu_count(),
                "rounds": rounds,
                "versions": report.versions(),
            },
            "peers": run_peers(peers, rounds, stretches),
            "features": run_features(rounds, stretches),
        }
        report.keep(results)
    read = json.loads(report.RESULTS.read_text("utf-8"))
    report.write(read)
    plot.draw(read)
    print("\n".join(report.verdicts(read)))


if __name__ == "__main__":
    main()
