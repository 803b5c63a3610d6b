"""Runs the code blocks of a Markdown page: ``python -m tests.conformance.pages PAGE URL``.

The conventions of the pages:

- The ``python`` blocks of a page run in order, in one namespace and one process, with warnings as errors.
- A block that begins with ``>>>`` is a session, checked by doctest.
- A ``text`` block directly below a ``python`` block is what that block prints; ``...`` stands for anything, and
  line breaks may fall elsewhere.
- The hosts ``https://NAME.example`` stand for a service on loopback that answers 200 and ``{"stock": 12}``.
"""

from __future__ import annotations

import doctest
import io
import re
import sys
import traceback
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$\n?(?P<below>\n?```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)
_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Block:
    """One fenced block: where its first line is, what it holds, and what it is to print."""

    line: int
    language: str
    code: str
    output: str | None

    @property
    def is_session(self) -> bool:
        """Whether it is a session with prompts."""
        return self.code.startswith(">>> ")


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text("utf-8")
    return [
        Block(text.count("\n", 0, match.start(2)) + 1, match[1], match[2], match[4] if match["below"] else None)
        for match in _BLOCK.finditer(text)
    ]


def _run(block: Block, page: str, namespace: dict[str, Any], printed: io.StringIO) -> str | None:
    """Run one block; what is wrong with it."""
    if block.is_session:
        report = io.StringIO()
        session = doctest.DocTestParser().get_doctest(block.code, namespace, page, page, block.line - 1)
        results = doctest.DocTestRunner(optionflags=_FLAGS).run(session, out=report.write, clear_globs=False)
        namespace.update(session.globs)
        return report.getvalue() if results.failed else None
    printed.seek(0)
    printed.truncate()
    try:
        exec(compile("\n" * (block.line - 1) + block.code, page, "exec"), namespace)
    except Exception:
        return traceback.format_exc()
    if block.output is not None and not doctest.OutputChecker().check_output(block.output, printed.getvalue(), _FLAGS):
        return f"expected:\n{block.output}\nprinted:\n{printed.getvalue()}"
    return None


def run(page: Path, url: str) -> list[str]:
    """Run a page against the service at `url`; what is wrong, by line."""
    namespace: dict[str, Any] = {"__name__": "__page__"}
    printed = io.StringIO()
    wrong: list[str] = []
    with redirect_stdout(printed):
        for block in blocks(page):
            if block.language == "python":
                code = re.sub(r"https://\w+\.example", url, block.code)
                problem = _run(Block(block.line, block.language, code, block.output), str(page), namespace, printed)
                if problem is not None:
                    wrong.append(f"{page.name}, line {block.line}:\n{problem}")
    return wrong


if __name__ == "__main__":
    problems = run(Path(sys.argv[1]), sys.argv[2])
    sys.exit("\n".join(problems) or 0)
