"""What a person sees: each transition with its sentence as it happens, a live view beneath, and a table at the end."""

import time
from collections.abc import Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import NamedTuple, Self

from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ..events import StateChanged
from ..state import State
from .figures import policies, summary, view, word
from .service import SCRIPT
from .tally import CircuitTally

_STEPS = 4  # lines about the progress, where no terminal shows it live


class _Line(NamedTuple):
    timestamp: float
    circuit: str
    what: Text
    why: str


class Show:
    """Listens to transitions. It only notes them: no caller is to wait until they are printed."""

    events = (StateChanged,)

    def __init__(self, console: Console, circuits: Mapping[str, CircuitTally], began: float, duration: float) -> None:
        if not console.is_terminal:
            console.width = 300  # a line is a line, for grep
        self._console = console
        self._circuits = circuits
        self._began = began
        self._duration = duration
        self._news: SimpleQueue[StateChanged] = SimpleQueue()
        self._cues = _cues(began, duration)
        self._steps = [began + duration * step / _STEPS for step in range(1, _STEPS)]
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

    def begin(self, url: str, places: Sequence[str]) -> None:
        """Say what is going to happen."""
        circuits = self._circuits.values()
        self._say(f"[bold]fluxgate demo[/]: {len(circuits)} circuits guard a service that falls ill and recovers,")
        self._say(f"{self._duration:g} s of real HTTP at {url}")
        for place in places:
            self._console.print(Text(place, "dim"), soft_wrap=True)
        self._say("")
        self._console.print(policies(circuits), "", highlight=False)

    def refresh(self, now: float) -> None:
        """Print what happened since the last time, and bring the view up to date."""
        lines = [cue for cue in self._cues if cue.timestamp <= now]
        del self._cues[: len(lines)]
        while (change := self._next_change()) is not None:
            move = Text.assemble(word(change.old_state), " → ", word(change.new_state))
            why = sentence(change, self._circuits[change.circuit_name])
            lines.append(_Line(change.timestamp, change.circuit_name, move, why))
        for line in sorted(lines, key=lambda line: line.timestamp):
            self._console.print(_laid_out(line))
        if self._live:
            self._live.update(self._view(now), refresh=True)
        elif self._steps and now >= self._steps[0]:
            self._say(_progress(self._circuits, self._steps.pop(0) - self._began, self._duration))

    def _next_change(self) -> StateChanged | None:
        try:
            return self._news.get_nowait()
        except Empty:
            return None

    def _view(self, now: float) -> Panel:
        width = min(max(self._console.width - 52, 10), 72)
        return view(self._circuits.values(), self._began, now, self._duration, width)

    def end(self, now: float, issued: int, served: int, reports: Sequence[Sequence[str]]) -> None:
        """Say what the run came to; the live view stays above it."""
        if not self._live:
            self._console.print(self._view(now))
        gap = 1 if self._console.width >= 100 else 0
        self._console.print("", summary(self._circuits.values(), now, gap), "")
        for heading, *lines in filter(None, reports):
            self._console.print(heading, highlight=False)
            self._console.print(Text("\n".join(lines) + "\n", "dim"), soft_wrap=True)
        refused = sum(tally.refused for tally in self._circuits.values())
        self._say(f"{issued:,} calls issued: {served:,} reached the service, {refused:,} were refused")

    def verdict(self, missed: Sequence[str], *, stopped: str | None) -> None:
        """Say whether the run showed what it was to show."""
        if stopped:
            self._say(f"[yellow]■[/] {stopped}")
        elif missed:
            self._say(f"[red]✘[/] {'; '.join(missed)}")
        else:
            self._say("[green]✔[/] each circuit opened and recovered")

    def _say(self, markup: str) -> None:
        self._console.print(markup, highlight=False)


def sentence(change: StateChanged, tally: CircuitTally) -> str:
    """Why the circuit moved, and what that means for the next calls."""
    parts = [change.reason]
    if change.new_state is State.OPEN:
        if change.last_error is not None and change.old_state is State.CLOSED:
            parts.append(change.last_error.text.partition(" for url")[0].rstrip("."))
        if change.wait is not None:
            parts.append(f"next probe in {change.wait:.3g} s")
    elif change.new_state is State.CLOSED:
        before = (each for each in tally.changes if each.sequence < change.sequence and each.old_state is State.CLOSED)
        parts.append(f"recovered after {change.timestamp - max(each.timestamp for each in before):.1f} s")
    return "; ".join(parts)


def _cues(began: float, duration: float) -> list[_Line]:
    """The service's script as lines to print, in the order of time."""
    cues = [
        _Line(began + share * duration, name, Text("service", "dim"), what)
        for name, phases in SCRIPT.items()
        for phase in phases
        for share, what in ((phase.begin, phase.fault.value), (phase.end, "is healthy again"))
    ]
    return sorted(cues, key=lambda cue: cue.timestamp)


def _laid_out(line: _Line) -> Table:
    clock = time.strftime("%H:%M:%S", time.localtime(line.timestamp)) + f".{int(line.timestamp % 1 * 1000):03}"
    grid = Table.grid(padding=(0, 1))
    for width in (12, 9, 18, None):
        grid.add_column(min_width=width)
    grid.add_row(Text(clock, "dim"), Text(line.circuit, "bold"), line.what, Text(line.why))
    return grid


def _progress(circuits: Mapping[str, CircuitTally], elapsed: float, duration: float) -> str:
    told = (
        f"{name} {word(each.state)}, {each.calls['success']} ok, {each.calls['failed']} failed, {each.refused} refused"
        for name, each in circuits.items()
    )
    return f"[dim]{elapsed:.1f} of {duration:g} s: {'; '.join(told)}[/]"
