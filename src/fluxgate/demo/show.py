"""What a person sees: each transition with its sentence as it happens, a live view beneath, and a table at the end."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table, box
from rich.text import Text

from ..events import StateChanged
from ..state import State
from .service import SCRIPT, Fault, fault_at
from .tally import CircuitTally

# For each state its colour and its mark, in the order in which one mark outweighs another where they share a place.
LOOKS = {State.HALF_OPEN: ("yellow", "▒"), State.OPEN: ("red", "█"), State.CLOSED: ("green", "━")}
FAULT_MARKS = {Fault.ERRORS: "5", Fault.SOME_ERRORS: ":", Fault.DROPS: "x", Fault.SLOWNESS: "~", None: "·"}
_PROGRESS_LINES = 4  # over the run, where there is no terminal for a live view


class Show:
    """Listens to transitions. It only notes them: whoever made the call does not wait until they are printed."""

    events = (StateChanged,)

    def __init__(self, console: Console, circuits: Mapping[str, CircuitTally], began: float, duration: float) -> None:
        if not console.is_terminal:
            console.width = max(console.width, 160)  # lines are for grep, not for a screen
        self._console = console
        self._circuits = circuits
        self._began = began
        self._duration = duration
        self._news: SimpleQueue[StateChanged] = SimpleQueue()
        self._cues = list(_cues(began, duration))
        self._progress_due = began + duration / _PROGRESS_LINES
        self._live = Live(console=console, auto_refresh=False) if console.is_interactive else None

    def __call__(self, change: StateChanged) -> None:
        self._news.put(change)

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._live:
            self._live.stop()

    def begin(self, url: str) -> None:
        """Say what is going to happen."""
        names = ", ".join(self._circuits)
        self._console.print(
            f"[bold]fluxgate demo[/]: {names} call a service on {url} that falls ill and recovers, for {self._duration:g} s\n",
            highlight=False,
        )

    def refresh(self, now: float) -> None:
        """Print what happened since the last time, and bring the view up to date."""
        lines = [cue for cue in self._cues if cue[0] <= now]
        self._cues = self._cues[len(lines) :]
        while (change := self._next_change()) is not None:
            tally = self._circuits[change.circuit_name]
            lines.append((change.timestamp, change.circuit_name, _move(change), sentence(change, tally)))
        for timestamp, name, what, text in sorted(lines, key=lambda line: line[0]):
            self._console.print(_line(timestamp, name, what, text), highlight=False)
        if self._live:
            self._live.update(self._view(now), refresh=True)
        elif now >= self._progress_due:
            self._progress_due += self._duration / _PROGRESS_LINES
            self._console.print(_progress(now - self._began, self._duration, self._circuits), highlight=False)

    def _next_change(self) -> StateChanged | None:
        try:
            return self._news.get_nowait()
        except Empty:
            return None

    def end(
        self, now: float, issued: Counter[str], served: Counter[str], shortcomings: Sequence[str], *, interrupted: bool
    ) -> None:
        """What the run came to."""
        say = self._console.print
        if self._live is None:
            say(self._view(now))
        say(summary(self._circuits, now))
        refused = sum(tally.rejections.total() for tally in self._circuits.values())
        say(
            f"The clients issued {issued.total():,} calls: {served.total():,} reached the service, "
            f"{refused:,} were refused by a circuit.",
            highlight=False,
        )
        if interrupted:
            say(f"[yellow]interrupted[/] after {now - self._began:.1f} s of {self._duration:g} s")
        elif shortcomings:
            say(f"[red]✘[/] {'; '.join(shortcomings)}")
        else:
            say("[green]✔[/] each circuit opened and recovered")

    def quote(self, log: str) -> None:
        """Show what a program's log has of it, by one line."""
        line = next((line for line in log.splitlines() if "circuit_opened" in line), None)
        if line is not None:
            self._console.print("\nThe log has it too (--log FILE keeps it):")
            self._console.print(Text(line, "dim"))

    def _view(self, now: float) -> RenderableType:
        grid = Table.grid(padding=(0, 2), expand=self._live is not None)
        width = min(max(self._console.width - 52, 10), 72)
        for tally in self._circuits.values():
            grid.add_row(
                Text.assemble((tally.name, "bold"), "\n", _status(tally, now)),
                _strips(tally, self._began, now, self._duration, width),
                Text(
                    f"{tally.calls['success']:>5} ok {tally.calls['failed']:>4} failed\n{tally.rejections.total():>5} refused"
                ),
            )
        elapsed = min(now - self._began, self._duration)
        title = f"{elapsed:.0f} of {self._duration:g} s"
        return Panel(Group(grid, _legend()), title=title, border_style="dim", expand=self._live is not None)


def sentence(change: StateChanged, tally: CircuitTally) -> str:
    """Why the circuit moved, and what that means for the next calls."""
    parts = [change.reason]
    if change.new_state is State.OPEN:
        if change.last_error is not None:
            parts.append(change.last_error.text.partition(" for url")[0].rstrip("."))
        if change.wait is not None:
            parts.append(f"next probe in {change.wait:.1f} s")
    elif change.new_state is State.CLOSED:
        left = max(each.timestamp for each in tally.changes if each.old_state is State.CLOSED)
        parts.append(f"recovered after {change.timestamp - left:.1f} s")
    return "; ".join(parts)


def _cues(began: float, duration: float) -> Iterator[tuple[float, str, Text, str]]:
    """The service's script as lines to print, in the order of time."""
    who = Text("service", "dim")
    cues = [
        (began + share * duration, name, who, text)
        for name, phases in SCRIPT.items()
        for phase in phases
        for share, text in ((phase.begin, phase.fault.value), (phase.end, "is healthy again"))
    ]
    yield from sorted(cues, key=lambda cue: cue[0])


def _move(change: StateChanged) -> Text:
    return Text.assemble(_word(change.old_state), " → ", _word(change.new_state))


def _word(state: State) -> Text:
    return Text(str(state).replace("_", "-"), LOOKS[state][0])


def _line(timestamp: float, name: str, what: Text, text: str) -> Table:
    clock = time.strftime("%H:%M:%S", time.localtime(timestamp)) + f"{timestamp % 1:.3f}"[1:]
    line = Table.grid(padding=(0, 1))
    for width in (12, 9, 18, None):
        line.add_column(min_width=width)
    line.add_row(Text(clock, "dim"), Text(name, "bold"), what, Text(text))
    return line


def _progress(elapsed: float, duration: float, circuits: Mapping[str, CircuitTally]) -> str:
    told = (
        f"{tally.name} {_word(tally.state)}, {tally.calls['success']} ok, {tally.calls['failed']} failed, "
        f"{tally.rejections.total()} refused"
        for tally in circuits.values()
    )
    return f"[dim]{elapsed:.0f} of {duration:g} s: {' · '.join(told)}[/]"


def _status(tally: CircuitTally, now: float) -> Text:
    status = _word(tally.state)
    if tally.state is State.OPEN and tally.changes[-1].wait is not None:
        left = tally.changes[-1].timestamp + tally.changes[-1].wait - now
        status.append(f", probe in {left:.1f} s" if left > 0 else ", probe due")
    return status


def _strips(tally: CircuitTally, began: float, now: float, duration: float, width: int) -> Text:
    """The run from left to right: above what the service did, beneath what the circuit made of it."""
    whole = max(now - began, duration)  # the circuits may need a little longer than the script
    edges = [began + whole * place / width for place in range(width + 1)]
    above = Text("".join(FAULT_MARKS[fault_at(tally.name, (edge - began) / duration)] for edge in edges[:-1]), "dim")
    beneath = Text()
    spans = list(tally.spans(now))
    for left, right in zip(edges, edges[1:], strict=False):
        here = {state for state, begin, end in spans if begin < right and end > left}
        beneath.append(*next(((mark, colour) for state, (colour, mark) in LOOKS.items() if state in here), (" ", "")))
    return Text.assemble(above, "\n", beneath)


def _legend() -> Text:
    states = Text("   ").join(
        Text.assemble((mark, colour), f" {str(state).replace('_', '-')}") for state, (colour, mark) in LOOKS.items()
    )
    return states


def summary(circuits: Mapping[str, CircuitTally], now: float) -> Table:
    """A row a circuit."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("circuit", style="bold")
    for title in (
        "ok",
        "failed",
        "slow",
        "ignored",
        "refused",
        "fall-\nbacks",
        "closed",
        "half-\nopen",
        "open",
        "times\nopened",
        "re-\nopened",
    ):
        table.add_column(title, justify="right")
    for tally in circuits.values():
        seconds = tally.seconds(now)
        counts = (
            tally.calls["success"],
            tally.calls["failed"],
            tally.slow,
            tally.calls["ignored"],
            tally.rejections.total(),
            tally.fallbacks,
        )
        times = (f"{seconds[state]:.1f} s" for state in (State.CLOSED, State.HALF_OPEN, State.OPEN))
        table.add_row(tally.name, *map(str, counts), *times, str(tally.opened), str(tally.reopens))
    return table
