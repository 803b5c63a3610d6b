"""One library in a process of its own, which samples when told: ``python -m benchmarks.worker NAME WORKLOAD``.

It answers each line of its input with one line of JSON: the first, once all is in its steady state, with nothing or
with what the library lacks; each other one with a sample.
"""

import json
import sys
from typing import Any

from . import adapters, footprint, peers, workloads
from .adapters import Lacks


def subject(name: str, workload: str) -> Any:
    """What is to be sampled: a peer's workload, or one of a feature of Fluxgate's."""
    if (peer := next((peer for peer in peers.PEERS if peer.name == name), None)) is None:
        from . import features  # imports Fluxgate, which other environments do not have

        return features.workload(name, workload)
    adapter = adapters.adapter(peer)
    if workload in footprint.FOOTPRINT:
        return footprint.FOOTPRINT[workload](adapter)
    return workloads.workload(adapter, workload)


def main(name: str, workload: str) -> None:
    """Serve until the input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    timed: Any = None
    for line in sys.stdin:
        answer: dict[str, Any] = {}
        if timed is None:
            try:
                timed = subject(name, workload)
                timed.warm_up()
            except Lacks as lack:
                answer["lacks"] = str(lack)
        else:
            answer = timed.sample(int(line))
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
