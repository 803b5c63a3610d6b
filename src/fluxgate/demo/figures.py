"""Figures as a person reads them: the view of a run, and the table of what it came to."""

from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise

from rich import box
from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ..state import State
from .service import Fault, fault_at
from .tally import CircuitTally

# The mark and the colour of each state. Where several share a place the first of them shows.
_STATES = {State.HALF_OPEN: ("▒", "yellow"), State.OPEN: ("█", "red"), State.CLOSED: ("━", "green")}
_FAULTS = {
    Fault.ERRORS: ("5", "503"),
    Fault.SOME_ERRORS: (":", "some 503"),
    Fault.DROPS: ("x", "drops"),
    Fault.SLOWNESS: ("~", "slow"),
    None: ("·", "healthy"),
}
_COLUMNS: Mapping[str, Callable[[CircuitTally, Mapping[State, float]], str]] = {
    "ok": lambda tally, _: str(tally.calls["success"]),
    "failed": lambda tally, _: str(tally.calls["failed"]),
    "slow": lambda tally, _: str(tally.slow),
    "ig-\nnored": lambda tally, _: str(tally.calls["ignored"]),
    "refused": lambda tally, _: str(tally.refused),
    "fall-\nbacks": lambda tally, _: str(tally.fallbacks),
    "closed": lambda _, seconds: f"{seconds[State.CLOSED]:.1f}s",
    "half-\nopen": lambda _, seconds: f"{seconds[State.HALF_OPEN]:.1f}s",
    "open": lambda _, seconds: f"{seconds[State.OPEN]:.1f}s",
    "times\nopened": lambda tally, _: str(tally.opened),
    "re-\nopens": lambda tally, _: str(tally.reopens),
}


def word(state: State) -> Text:
    """The state's word in its colour."""
    return Text(str(state).replace("_", "-"), _STATES[state][1])


def view(circuits: Iterable[CircuitTally], began: float, now: float, duration: float, width: int) -> Panel:
    """Each circuit as of `now`: its state, its figures, and over the run what the service did and what it did."""
    whole = max(now - began, duration)  # a circuit may need a little longer than the script
    edges = [began + whole * place / width for place in range(width + 1)]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(min_width=20)
    for tally in circuits:
        faults = (fault_at(tally.name, (edge - began) / duration) for edge in edges[:-1])
        grid.add_row(
            Text.assemble((tally.name, "bold"), "\n", _status(tally, now)),
            Text.assemble(("".join(_FAULTS[fault][0] for fault in faults), "dim"), "\n", _strip(tally, edges, now)),
            f"{tally.calls['success']:>5} ok {tally.calls['failed']:>4} failed\n{tally.refused:>5} refused",
        )
    marks = [Text.assemble(mark, f" {str(state).replace('_', '-')}") for state, mark in _STATES.items()]
    marks += [Text(f"{mark} {short}", "dim") for mark, short in _FAULTS.values()]
    title = f"{min(now - began, whole):.0f} of {duration:g} s"
    return Panel(Group(grid, "", Text("  ").join(marks)), title=title, border_style="dim", expand=False)


def _status(tally: CircuitTally, now: float) -> Text:
    status = word(tally.state)
    if tally.state is State.OPEN:
        left = tally.changes[-1].timestamp + (tally.changes[-1].wait or 0) - now
        status.append(f", probe in {left:.1f} s" if left > 0 else ", probe due", "default")
    return status


def _strip(tally: CircuitTally, edges: list[float], now: float) -> Text:
    strip = Text()
    spans = list(tally.spans(now))
    for left, right in pairwise(edges):
        here = {state for state, begin, end in spans if begin < right and end > left}
        strip.append(*next((mark for state, mark in _STATES.items() if state in here), (" ", "")))
    return strip


def policies(circuits: Iterable[CircuitTally]) -> Table:
    """The rules of each circuit, as it tells them itself."""
    grid = Table.grid(padding=(0, 2))
    for tally in circuits:
        rules = tally.rules
        trips = f"trips on {rules['tripper']} over {rules['window']}"
        grid.add_row(Text(tally.name, "bold"), Text(f"{trips}\nwaits {rules['retry']}, then admits {rules['permit']}"))
    return grid


def summary(circuits: Iterable[CircuitTally], now: float, gap: int) -> Table:
    """What the run came to, a row a circuit."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, gap, 0, 0))
    table.add_column("circuit", style="bold")
    for title in _COLUMNS:
        table.add_column(title, justify="right")
    for tally in circuits:
        seconds = tally.seconds(now)
        table.add_row(tally.name, *(figure(tally, seconds) for figure in _COLUMNS.values()))
    return table
