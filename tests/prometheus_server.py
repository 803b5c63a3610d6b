"""A real Prometheus on loopback, for tests that read back what was scraped or run queries and rules."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

PATIENCE = 60.0  # seconds: an idle machine needs less than two
_LOOK = 0.05
_LISTENING = re.compile(r"[Ll]istening on\"? address=127\.0\.0\.1:(\d+)")


def program(name: str) -> str:
    """The path of Debian's `prometheus`, `promtool` or `prometheus-alertmanager`.

    Where it is missing the test fails in CI and is skipped else.
    """
    path = shutil.which(name)
    if path is None:
        missing = f"needs {name}: apt-get install prometheus prometheus-alertmanager"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    return path


def check_metrics(exposition: bytes) -> str:
    """What ``promtool check metrics`` says of a text exposition: nothing, if all is well."""
    command = [program("promtool"), "check", "metrics"]
    done = subprocess.run(command, input=exposition, capture_output=True, timeout=PATIENCE, check=False)
    said = (done.stdout + done.stderr).decode()
    return said if said or done.returncode == 0 else f"ended with {done.returncode}"


def until(look: Callable[[], Any], what: str) -> Any:
    """The first true answer, asked for again and again."""
    deadline = time.monotonic() + PATIENCE
    while True:
        answer = look()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"no {what} in {PATIENCE:.0f} s"
        time.sleep(_LOOK)


class Series(NamedTuple):
    """One series of a range query."""

    labels: dict[str, str]
    values: list[tuple[float, float]]
    """Each with its time."""


class PrometheusServer:
    """A running server; `server` below starts one."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def get(self, path: str, **parameters: str | float) -> Any:
        """The `data` of an answer of the HTTP API, ``/api/v1/`` + `path`; an error of the server's is raised."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
                body = json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{url}: {error.code} {error.read().decode()}") from None
        return body["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """An instant query: each series' labels, and its value."""
        data = self.get("query", query=expression)
        assert data["resultType"] == "vector", data
        return [(each["metric"], float(each["value"][1])) for each in data["result"]]

    def query_range(self, expression: str, start: float, end: float, step: float) -> list[Series]:
        """A range query: each series' labels, and its values by time."""
        data = self.get("query_range", query=expression, start=start, end=end, step=step)
        assert data["resultType"] == "matrix", data
        return [
            Series(each["metric"], [(float(when), float(value)) for when, value in each["values"]])
            for each in data["result"]
        ]

    def query_at(self, expression: str, when: float) -> list[tuple[dict[str, str], float]]:
        """As `query`, of the past; a scalar is a series without labels."""
        data = self.get("query", query=expression, time=when)
        if data["resultType"] == "scalar":
            return [({}, float(data["result"][1]))]
        assert data["resultType"] == "vector", data
        return [(each["metric"], float(each["value"][1])) for each in data["result"]]

    def rules(self) -> list[dict[str, Any]]:
        """All rules that it evaluates, each with its `health`, and `lastError` where that is bad."""
        groups: list[dict[str, Any]] = self.get("rules")["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def value(self, expression: str) -> float | None:
        """The value of a query that finds one series, or ``None`` where it finds none."""
        found = self.query(expression)
        assert len(found) <= 1, found
        return found[0][1] if found else None

    def wait_for(self, expression: str, value: float) -> None:
        """Until the query finds one series with this value."""
        until(lambda: self.value(expression) == value, f"{expression} == {value}")

    def exemplars(self, expression: str, seconds: float = 3600.0) -> list[dict[str, Any]]:
        """The exemplars of the series that a selector names, of the last `seconds`."""
        now = time.time()
        found = self.get("query_exemplars", query=expression, start=now - seconds, end=now + seconds)
        return [exemplar for series in found for exemplar in series["exemplars"]]

    def targets(self) -> list[dict[str, Any]]:
        """What it scrapes, each with its `health` and `lastError`."""
        active: list[dict[str, Any]] = self.get("targets", state="active")["activeTargets"]
        return active

    def next_scrapes(self) -> None:
        """Until every target has been scraped, begun from now on, without an error."""
        began = time.time()
        # The sample's own time is when its scrape began.
        scraped = f"count(timestamp(up) > {began:.3f} and up == 1)"
        until(lambda: self.value(scraped) == len(self.targets()), "next scrape")


@contextmanager
def server(
    folder: Path,
    targets: Mapping[str, Sequence[str]],
    *,
    interval: str = "500ms",
    rules: Sequence[Path] = (),
    features: Sequence[str] = ("exemplar-storage",),
    configuration: Mapping[str, Any] | None = None,
) -> Iterator[PrometheusServer]:
    """Start a Prometheus that keeps its data in `folder` and scrapes ``{job: ["127.0.0.1:8000"]}``; stop it at the end.

    It is ready, and has scraped every target once, when this begins. A `configuration` of the test's own is taken
    as it is, whatever the interval and the rules.
    """
    configuration = configuration or {
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
        "storage": {"exemplars": {"max_exemplars": 100_000}},
        "rule_files": [str(path) for path in rules],
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": list(addresses)}]} for job, addresses in targets.items()
        ],
    }
    (folder / "prometheus.yml").write_text(json.dumps(configuration), "utf-8")  # JSON is YAML
    command = [
        program("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--web.listen-address=127.0.0.1:0",
        *([f"--enable-feature={','.join(features)}"] if features else []),
    ]
    with started(command, folder / "prometheus.log") as port:
        running = PrometheusServer(port)
        until(lambda: _is_ready(running), "readiness")
        if targets:
            until(lambda: {each["health"] for each in running.targets()} == {"up"}, "healthy target")
        yield running


@contextmanager
def started(command: Sequence[str], log: Path) -> Iterator[int]:
    """Run a server that says in its log on which port of loopback it listens: that port."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=log.parent)
    try:

        def port() -> str | None:
            said = log.read_text("utf-8", "replace")
            assert process.poll() is None, f"{command[0]} has ended\n{said}"
            listening = _LISTENING.search(said)
            return listening[1] if listening else None

        yield int(until(port, f"port in {log}"))
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def backfill(folder: Path, history: Path) -> None:
    """Put a file of OpenMetrics with timestamps where a Prometheus in this folder keeps its data."""
    _promtool("tsdb", "create-blocks-from", "openmetrics", str(history), str(folder / "data"))


def backfill_rules(prometheus: PrometheusServer, folder: Path, rules: Path, start: float, end: float) -> None:
    """Record rules of the past, as another Prometheus' data has it."""
    between = [f"--start={start:.0f}", f"--end={end:.0f}", f"--url={prometheus.url}", "--eval-interval=15s"]
    _promtool("tsdb", "create-blocks-from", "rules", *between, f"--output-dir={folder / 'data'}", str(rules))


def _promtool(*arguments: str) -> None:
    done = subprocess.run([program("promtool"), *arguments], capture_output=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()


def _is_ready(running: PrometheusServer) -> bool:
    try:
        with urllib.request.urlopen(f"{running.url}/-/ready", timeout=PATIENCE) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False
