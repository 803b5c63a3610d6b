"""Holds a change to the budgets, with headroom: ``python -m benchmarks.guard``, or ``make guard``.

Each figure is the median of many short samples, in which the bare call and the measured one take turns. One that is
above its limit for all that is measured again by instructions, which no neighbour's load changes, where somebody can
count them (see `instructions`); what that finds holds. It ends with 1 if a figure is above its limit.
"""

import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

from . import features, instructions
from .adapters import Adapter, adapter
from .budgets import BUDGETS, Budget
from .conductor import Subject, Worker, ratio
from .peers import OURS
from .workloads import Timed, workload

Measure = Callable[[], float | None]
"""What a figure is now; ``None`` where this machine cannot tell."""

SAMPLES = 15
"""Of each figure."""


def _ours() -> Adapter:
    return adapter(OURS)


def _ratio(name: str) -> float:
    timed = _timed(name)
    return median(ratio(timed.sample(1)) for _ in range(SAMPLES))


def _timed(name: str) -> Timed:
    timed = workload(_ours(), name)
    assert isinstance(timed, Timed)
    return timed


def _growth(large: str, small: str) -> float:
    """The median of the ratios within a round, not the ratio of medians: both meet the same noise."""
    one, other = _timed(large), _timed(small)
    return median(ratio(one.sample(1)) / ratio(other.sample(1)) for _ in range(SAMPLES))


def _on_top(feature: str) -> float:
    bare, listened = (features.workload(name, "success") for name in (features.NO_LISTENER, feature))
    return median(ratio(listened.sample(1)) - ratio(bare.sample(1)) for _ in range(SAMPLES))


def _of_by_hand(feature: str) -> float:
    names = ((features.NO_LISTENER, "success"), (feature, "success"), (feature, features.BY_HAND + "success"))
    bare, listened, by_hand = (features.workload(*name) for name in names)
    rounds = [[ratio(each.sample(1)) for each in (bare, listened, by_hand)] for _ in range(SAMPLES)]
    return median((with_it - without) / alone for without, with_it, alone in rounds)


def _in_a_process(name: str, figure: str, samples: int = 1) -> float:
    """The least of a figure that needs a process of its own. There must be one: what is missing has met no budget."""
    worker = Worker(*Subject(OURS.python, OURS.name, name))
    try:
        worker.ask(1)
        return min(float(worker.ask(2)[figure]) for _ in range(samples))
    finally:
        worker.close()


def _threads() -> float:
    """The best of eight threads beside the best of one: a neighbour who takes from one must not flatter eight."""
    worker = Worker(*Subject(OURS.python, OURS.name, "threads"))
    try:
        worker.ask(1)
        samples = [worker.ask(1) for _ in range(SAMPLES)]
        eight, one = (max(float(sample[number]) for sample in samples) for number in ("8", "1"))
        return eight / one
    finally:
        worker.close()


CALL_LISTENER = "no-op listener to each call"
MEASURES: dict[str, Measure] = {
    "success": lambda: _ratio("success"),
    "async success": lambda: _ratio("async success"),
    "rejection": lambda: _ratio("rejection"),
    "8 threads": _threads,
    "drift": lambda: _in_a_process("threads", "drift"),
    "breaker": lambda: _in_a_process("memory", "breaker"),
    "call": lambda: _in_a_process("memory", "call"),
    "window growth": lambda: _growth("window:100000", "window:10"),
    "circuits growth": lambda: _growth("among:10000", "among:1"),
    "call listener": lambda: _on_top(CALL_LISTENER),
    "prometheus": lambda: _of_by_hand("PrometheusListener"),
    "import": lambda: 1e3 * _in_a_process("import", "import", 15),
}
"""How each budget's figure is taken."""


def _counted(feature: str, outcome: str) -> float | None:
    counts = instructions.per_call(feature, outcome)
    return None if counts is None else ratio(counts)


def _counted_on_top(feature: str) -> float | None:
    counts = [_counted(name, "success") for name in (feature, OURS.name)]
    return None if counts[0] is None or counts[1] is None else counts[0] - counts[1]


APPEALS: dict[str, Measure] = {
    "success": lambda: _counted(OURS.name, "success"),
    "async success": lambda: _counted(OURS.name, "async success"),
    "rejection": lambda: _counted(OURS.name, "rejection"),
    "call listener": lambda: _counted_on_top(CALL_LISTENER),
}
"""How a figure is taken by instructions, where it has been too high by time."""


@dataclass(frozen=True)
class Finding:
    """A budget and what was measured."""

    budget: Budget
    measured: float | None
    counted: bool = False
    """Whether by instructions."""

    @property
    def failed(self) -> bool:
        """Whether it is above the limit with its headroom."""
        return self.measured is not None and not self.budget.holds(self.measured, self.budget.guarded)

    @property
    def verdict(self) -> str:
        """In a word or two."""
        if self.measured is None:
            return "not measured"
        if self.failed:
            return "ABOVE ITS LIMIT"
        return "ok" if self.budget.holds(self.measured, self.budget.limit) else "ok, by its headroom"


def findings(budgets: Iterable[Budget], measures: dict[str, Measure], appeals: dict[str, Measure]) -> Iterable[Finding]:
    """Measure each budget, and once more by instructions where it is above its limit."""
    for budget in budgets:
        found = Finding(budget, measures[budget.figure]())
        if found.failed and budget.figure in appeals:
            counted = appeals[budget.figure]()
            found = found if counted is None else Finding(budget, counted, counted=True)
        yield found


def row(*cells: str) -> str:
    """One line of the table."""
    return "{:66} {:>14} {:>12} {:>12}  {}".format(*cells)


def line(finding: Finding) -> str:
    """A finding as a line of the table."""
    budget, measured = finding.budget, finding.measured
    bound = "≥" if budget.at_least else "≤"
    shown = "-" if measured is None else f"{measured:.4g}"
    verdict = finding.verdict + (" (by instructions)" if finding.counted else "")
    what = f"{budget.what}, {budget.unit}"
    return row(what, f"{bound} {budget.limit:.4g}", f"{bound} {budget.guarded:.4g}", shown, verdict)


def main() -> int:
    """Print the table; 1 if a figure is above its limit."""
    started, failed = time.monotonic(), 0
    print(row("", "budget", "limit", "measured", ""))
    for finding in findings(BUDGETS, MEASURES, APPEALS):
        print(line(finding), flush=True)
        failed += finding.failed
    print(f"{failed} above the limit, in {time.monotonic() - started:.0f} s")
    if failed and not instructions.counter():
        print("Neither perf nor valgrind can count instructions here: a time above its limit may be a neighbour's.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
