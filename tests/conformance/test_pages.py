"""The README in both languages and the pages of docs/: every code block runs, and does what the page says."""

from __future__ import annotations

import inspect
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")
pytest.importorskip("structlog")

from fluxgate import Bus, CircuitBreaker, State
from fluxgate.events import EVENT_TYPES, CallRejected, CircuitCreated, Event
from fluxgate.listeners import names
from fluxgate.testing import EventRecorder
from tests.conformance import pages
from tests.conformance.service import Answer, Service

ROOT = Path(__file__).parents[2]
README, KOREAN = ROOT / "README.md", ROOT / "README.ko.md"
PAGES = [README, KOREAN, *sorted((ROOT / "docs").rglob("*.md"))]


def fields(kind: type[Event]) -> set[str]:
    """What events of a type carry beyond what all carry."""
    own = {name for base in kind.__mro__[:-1] for name in base.__dict__.get("__slots__", ())}
    return own - set(Event.__slots__)


def cells(page: Path, heading: str) -> list[list[str]]:
    """The body rows of the table that begins with this heading."""
    table = page.read_text("utf-8").split(heading, 1)[1].split("\n\n", 1)[0]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip().replace("\\|", "|").strip("`") for cell in row] for row in rows if "---" not in row[0]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_a_page_runs(page: Path, service: Service) -> None:
    """The blocks of a page run in order in a fresh process, without a warning, and print what stands below them."""
    service.default = Answer(body=b'{"stock": 12}')
    command = [sys.executable, "-W", "error", "-m", "tests.conformance.pages", str(page), service.url]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_blocks_are_found_run_and_compared(tmp_path: Path) -> None:
    """A failing statement, a wrong session and a wrong output are each reported with the line of their block."""
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nx = 1\nprint('one', x)\n```\n```text\none ...\n```\nprose\n"
        "```python\nprint(x)\n```\n\n```text\n2\n```\n"
        "```python\n1 / 0\n```\n"
        "```python\n>>> x + 1\n2\n>>> x\n5\n```\n"
        "```console\n$ false\n```\n",
        "utf-8",
    )
    assert [(block.line, block.language) for block in pages.blocks(page)] == [
        (2, "python"),
        (10, "python"),
        (17, "python"),
        (20, "python"),
        (26, "console"),
    ]
    wrong = pages.run(page, "http://127.0.0.1:1")
    assert [report.split(":")[0] for report in wrong] == [f"page.md, line {line}" for line in (10, 17, 20)]
    assert 'page.md", line 17' in wrong[1]
    assert "Expected:\n    5" in wrong[2]


def test_both_readmes_have_the_same_blocks() -> None:
    """The Korean README shows the code, the commands and the output of the English one, unchanged."""
    shown = [[(block.language, block.code, block.output) for block in pages.blocks(page)] for page in (README, KOREAN)]
    assert shown[0] == shown[1]
    assert len(shown[0]) >= 15
    fences = [page.read_text("utf-8").count("\n```") for page in (README, KOREAN)]
    with_output = sum(output is not None for _, _, output in shown[0])
    assert fences == [2 * (len(shown[0]) + with_output)] * 2, "no block escapes the tests"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Relative links name files that exist, and anchors name headings of the page."""
    text = page.read_text("utf-8")
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = {
        re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in prose.splitlines()
        if line.startswith("#")
    }
    for target in re.findall(r"\]\(([^)]+)\)", prose):
        if target.startswith("#"):
            assert target[1:] in headings
        elif not target.startswith("https://"):
            assert (page.parent / target).exists(), target


def test_the_table_of_log_lines_is_true() -> None:
    """The page about logs lists each line with its level, its event and its keys."""
    expected: dict[str, tuple[str, str, tuple[str, ...]]] = {}
    for kind in EVENT_TYPES:
        more = (names.REJECTED, names.SUPPRESSED) if kind is CallRejected else ()
        keys = tuple(key for key in names.LOG_KEYS[kind] if key not in names.TRACE_KEYS)
        for line in names.log_names(kind):
            expected[line] = (logging.getLevelName(names.LOG_LEVELS[line]), kind.__name__, (*keys, *more))
    shown: dict[str, tuple[str, str, tuple[str, ...]]] = {}
    keys = ()
    for line, level, kind_name, listed in cells(ROOT / "docs" / "listeners" / "log.md", "| line |"):
        keys = keys if listed == "the same" else tuple(re.findall(r"\w+", listed))
        shown[line] = (level, kind_name, keys)
    assert shown == expected


@pytest.mark.parametrize(("page", "heading"), [(README, "| parameter |"), (KOREAN, "| 매개변수 |")])
def test_the_table_of_defaults_is_true(page: Path, heading: str) -> None:
    """The README's table names every parameter of a breaker with its default."""
    recorder = EventRecorder(CircuitCreated)
    cb = CircuitBreaker("any", bus=Bus(), listeners=[recorder])
    rules = recorder.of(CircuitCreated)[0]
    expected: dict[str, str] = {}
    for name, parameter in list(inspect.signature(CircuitBreaker.__init__).parameters.items())[2:]:
        expected[name] = str(getattr(rules, name, parameter.default))
    shown = {row[0]: re.sub(r"\b(trackers|permits)\.", "", row[1]) for row in cells(page, heading)}
    assert shown == expected
    assert cb.state is State.CLOSED


@pytest.mark.parametrize(
    ("page", "states", "kinds"), [(README, "| state |", "| event |"), (KOREAN, "| 상태 |", "| 이벤트 |")]
)
def test_the_tables_of_states_and_events_are_whole(page: Path, states: str, kinds: str) -> None:
    """The README lists each state, and each event type with its own fields."""
    assert [row[0] for row in cells(page, states)] == [state.name for state in State]
    shown = {name.strip("` "): row[1] for row in cells(page, kinds) for name in row[0].split("`, `")}
    assert shown.keys() == {kind.__name__ for kind in EVENT_TYPES}
    for kind in EVENT_TYPES:
        assert fields(kind) <= set(re.findall(r"\w+", shown[kind.__name__])), kind.__name__
