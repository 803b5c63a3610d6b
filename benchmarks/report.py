"""From results to the page: the tables of ``docs/benchmarks.md`` between its markers."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from typing import Any

from .budgets import BUDGETS, Budget
from .features import FEATURES, NO_LISTENER, OUTCOMES
from .peers import OURS, PEERS, ROOT
from .workloads import CIRCUITS, IN_TURN, WINDOW_SIZES

RESULTS = ROOT / "benchmarks" / "results.json"
PAGE = ROOT / "docs" / "benchmarks.md"

Results = Mapping[str, Any]

CALLS = {
    "success": "success",
    "10 % failures": "10 % failures",
    "rejection": "rejection",
    "async success": "async success",
    "block": "`with` block",
    "time window": "time window",
}
"""The workloads of the first table, and how their columns are headed."""
LIBRARIES = ("structlog", "prometheus-client", "opentelemetry-sdk")


def versions() -> dict[str, str]:
    """Of the libraries that listeners write to, in the environment that runs the benchmarks."""
    return {name: metadata.version(name) for name in LIBRARIES}


# -- figures for the budgets ------------------------------------------------------------------------------------------


def _ours(results: Results, workload: str, figure: str) -> float:
    return float(results["peers"][workload][OURS.name][figure][0])


def _growth(results: Results, large: str, small: str) -> float:
    return _ours(results, large, "ratio") / _ours(results, small, "ratio")


FIGURES: dict[str, Callable[[Results], float]] = {
    "success": lambda r: _ours(r, "success", "ratio"),
    "async success": lambda r: _ours(r, "async success", "ratio"),
    "rejection": lambda r: _ours(r, "rejection", "ratio"),
    "8 threads": lambda r: _ours(r, "threads", "relative 8"),
    "drift": lambda r: _ours(r, "threads", "drift"),
    "breaker": lambda r: _ours(r, "memory", "breaker"),
    "call": lambda r: _ours(r, "memory", "call"),
    "window growth": lambda r: _growth(r, "window:100000", "window:10"),
    "circuits growth": lambda r: _growth(r, "among:10000", "among:1"),
    "call listener": lambda r: float(r["features"]["success"]["no-op listener to each call"]["on top"][0]),
    "prometheus": lambda r: float(r["features"]["success"]["PrometheusListener"]["of by hand"][0]),
    "import": lambda r: 1e3 * _ours(r, "import", "import"),
}
"""What the benchmarks say about each budget."""


def verdict(budget: Budget, results: Results) -> tuple[str, bool]:
    """What was measured, and whether the budget is met."""
    measured = FIGURES[budget.figure](results)
    return _digits(measured), budget.holds(measured, budget.limit)


def verdicts(results: Results) -> list[str]:
    """One line for each budget."""
    lines: list[str] = []
    for budget in BUDGETS:
        measured, met = verdict(budget, results)
        lines.append(f"{'met    ' if met else 'NOT MET'} {budget.what}: {measured}, {budget.in_words(budget.limit)}")
    return lines


# -- cells ------------------------------------------------------------------------------------------------------------


def _digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


_UNITS = (("ns", 1e-9), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0))


def _time(seconds: float) -> str:
    unit, size = next((each for each in _UNITS if abs(seconds) < 1000 * each[1]), _UNITS[-1])
    return f"{_digits(seconds / size)} {unit}"


def _range(values: list[float], show: Callable[[float], str]) -> str:
    return f"{show(values[0])} ({show(values[1])} – {show(values[2])})"


def _times(cell: Any) -> str:
    """A ratio, and below it the time of which it is."""
    if isinstance(cell, str):
        return f"*{cell}*"
    return f"**{_digits(cell['ratio'][0])}×**<br>{_range(cell['measured'], _time)}"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def named(name: str) -> str:
    """How a library is called in a table."""
    peer = next(peer for peer in PEERS if peer.name == name)
    return f"**{name}**" if peer.is_ours else name if peer.version in name else f"{name} {peer.version}"


def _by_peer(results: Results, columns: Mapping[str, Callable[[str], str]]) -> list[str]:
    """A row for each library that has something in one of the columns."""
    rows: list[list[str]] = []
    for peer in PEERS:
        cells = [show(peer.name) for show in columns.values()]
        if any(not cell.startswith("*") or cell.startswith("**") for cell in cells):
            rows.append([named(peer.name), *cells])
    return _table(["", *columns], rows)


# -- parts ------------------------------------------------------------------------------------------------------------


def _of(results: Results, workload: str, show: Callable[[Any], str]) -> Callable[[str], str]:
    cells: Mapping[str, Any] = results["peers"][workload]

    def cell(name: str) -> str:
        return f"*{cells[name]}*" if isinstance(cells[name], str) else show(cells[name])

    return cell


def about(results: Results) -> list[str]:
    """When, on what, with which versions."""
    a = results["about"]
    libraries = ", ".join(f"{name} {version}" for name, version in a["versions"].items())
    return [f"{a['date']}, {a['python']} on {a['system']}, {a['machine']}, {a['cores']} cores; {libraries}; "
            f"{a['rounds']} rounds."]  # fmt: skip


def peers(results: Results) -> list[str]:
    """What each library leaves undone."""
    return _table(["library", "compared with Fluxgate"], [[named(p.name), p.less] for p in PEERS if not p.is_ours])


def calls(results: Results) -> list[str]:
    """The cost of a call by how it ends."""
    bare: list[str] = []
    for workload in CALLS:
        cell = results["peers"][workload][OURS.name]
        bare.append(f"1×<br>{_range(cell['bare'], _time)}")
    table = _by_peer(results, {head: _of(results, workload, _times) for workload, head in CALLS.items()})
    return [*table[:2], "| bare call | " + " | ".join(bare) + " |", *table[2:]]


def _relative(number: int) -> Callable[[Any], str]:
    return lambda cell: _digits(cell[f"relative {number}"][0])


def threads(results: Results) -> list[str]:
    """Throughput and drift."""
    columns = {"one thread": _of(results, "threads", lambda cell: f"{_digits(cell['1'][0] / 1e3)} thousand calls/s")}
    columns |= {f"{n} threads": _of(results, "threads", _relative(n)) for n in (2, 4, 8)}
    columns["calls miscounted"] = _of(results, "threads", lambda cell: _drift(cell.get("drift")))
    return _by_peer(results, columns)


def _drift(drift: list[float] | None) -> str:
    return "*counts none*" if drift is None else f"{drift[0]:,.0f} of 16,000"


def windows(results: Results) -> list[str]:
    """The cost of a call by the size of the window."""
    return _by_peer(results, {f"{size:,} calls": _of(results, f"window:{size}", _times) for size in WINDOW_SIZES})


def circuits(results: Results) -> list[str]:
    """The cost of a call by the number of circuits: one of them called, and each in turn."""
    columns = {f"one of {n:,}": _of(results, f"among:{n}", _times) for n in CIRCUITS}
    columns |= {f"each of {n:,}": _of(results, f"each of:{n}", _times) for n in IN_TURN}
    return _by_peer(results, columns)


def footprint(results: Results) -> list[str]:
    """Memory, import, decoration."""
    columns = {
        "a decorated breaker": _of(results, "memory", lambda cell: f"{cell['breaker'][0]:,.0f} B"),
        "a call in the window": _of(
            results, "memory", lambda cell: f"{_digits(cell['call'][0])} B" if "call" in cell else "*no window*"
        ),
        "make and decorate": _of(results, "making", lambda cell: _range(cell["made"], _time)),
        "import": _of(results, "import", lambda cell: _range(cell["import"], _time)),
    }
    return _by_peer(results, columns)


def _feature(cell: Mapping[str, Any]) -> str:
    on_top = cell["on top"][0] * cell["bare"][0]
    text = f"{_times(cell)}<br>{'+' if on_top >= 0 else '−'} {_time(abs(on_top))}"
    if "by hand" in cell:
        text += f"; by hand {_time(cell['by hand'][0])}: {_digits(cell['of by hand'][0])}×"
    return text


def features(results: Results) -> list[str]:
    """What each listener costs."""
    rows: list[list[str]] = []
    for name in FEATURES:
        cells = [results["features"][outcome][name] for outcome in OUTCOMES]
        rows.append([name, *(_times(cell) if name == NO_LISTENER else _feature(cell) for cell in cells)])
    return _table(["", *OUTCOMES], rows)


def budgets(results: Results) -> list[str]:
    """Met or not met."""
    rows: list[list[str]] = []
    for budget in BUDGETS:
        measured, met = verdict(budget, results)
        rows.append([budget.what, budget.in_words(budget.limit), measured, "met" if met else "**not met**"])
    return _table(["", "budget", "measured", ""], rows)


def behind(results: Results) -> list[str]:
    """Where a peer is ahead."""
    lines = [f"- {line}" for line in _behind(results)]
    return lines or ["In none of the rows."]


def _behind(results: Results) -> Iterator[str]:
    figures = {"memory": ("breaker", "call"), "making": ("made",), "import": ("import",), "threads": ("1",)}
    for workload, cells in results["peers"].items():
        for figure in figures.get(workload, ("ratio",)):
            sign = -1 if workload == "threads" else 1
            known: dict[str, float] = {
                name: sign * cell[figure][0]
                for name, cell in cells.items()
                if not isinstance(cell, str) and figure in cell
            }
            ahead = sorted((value, name) for name, value in known.items() if value < known[OURS.name])
            if ahead:
                what = workload if figure in ("ratio", "1", workload, "made") else f"{workload}, {figure}"
                share = known[OURS.name] / ahead[0][0] if sign > 0 else ahead[0][0] / known[OURS.name]
                names = ", ".join(name for _, name in ahead)
                yield f"{what.replace(':', ', ')}: {names} (at best {_digits(share)} times as fast or small)"


PARTS: dict[str, Callable[[Results], list[str]]] = {
    each.__name__: each
    for each in (about, peers, calls, threads, windows, circuits, footprint, features, budgets, behind)
}
"""The generated parts of the page, by the name in their markers."""


def _between(name: str, lines: list[str]) -> tuple[str, str]:
    """What finds a generated part, and what stands there from now on."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    return f"{begin}.*?{end}", "\n".join([begin, "", *lines, "", end])


def fill(page: str, results: Results) -> str:
    """The page with its generated parts anew."""
    for name, part in PARTS.items():
        place, text = _between(name, part(results))
        page, found = re.subn(place, text.replace("\\", r"\\"), page, flags=re.DOTALL)
        if found != 1:
            raise ValueError(f"the page has {found} places for {name}, not one")
    return page


def keep(results: Results) -> None:
    """Write them down, a figure a line."""
    text = json.dumps(results, indent=1, ensure_ascii=False)
    RESULTS.write_text(re.sub(r"\[[^\[\]]*\]", lambda each: " ".join(each[0].split()), text) + "\n", "utf-8")


def write(results: Results) -> None:
    """Bring ``docs/benchmarks.md`` up to date."""
    PAGE.write_text(fill(PAGE.read_text("utf-8"), results), "utf-8")
