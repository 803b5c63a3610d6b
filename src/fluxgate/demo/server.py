"""A Prometheus of the demo's own, where one is installed: it scrapes the demo and evaluates the shipped rules."""

import json
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx

_PATIENCE = 15.0
_LOOK = 0.1
_INTERVAL = "1s"
_SHOWN = "circuit_breaker_state == 1"
_REFUSED = "sum by (circuit_name) (circuit_breaker_rejected_calls_total)"
_ALERTS = "max by (alertname, alertstate, circuit_name, severity) (ALERTS)"


class Server:
    """The server, as long as the demo runs; its data goes with it."""

    name = "prometheus server"

    def __init__(self, metrics: str) -> None:
        self._stack = ExitStack()
        self._url: str | None = None
        program = shutil.which("prometheus")
        if program is None:
            self.where = "prometheus: none is started, since none is installed (https://prometheus.io/download)"
            return
        try:
            self._url = self._start(program, metrics)
        except BaseException:
            self._stack.close()
            raise
        if self._url is None:
            self._stack.close()
            return
        shown = urlencode({"g0.expr": _SHOWN, "g0.tab": 0, "g0.range_input": "5m"})
        self.where = (
            f"prometheus: {self._url}/graph?{shown}\n"
            f"alerts there: {self._url}/alerts, until the demo ends (they wait a minute: --duration 180)"
        )

    def _start(self, program: str, metrics: str) -> str | None:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="fluxgate-prometheus-")))
        rules = self._stack.enter_context(as_file(files("fluxgate.dashboards") / "prometheus"))
        configuration = {
            "global": {"scrape_interval": _INTERVAL, "scrape_timeout": _INTERVAL, "evaluation_interval": _INTERVAL},
            "rule_files": [str(rules / "recording.yml"), str(rules / "alerts.yml")],
            "scrape_configs": [
                {"job_name": "fluxgate-demo", "static_configs": [{"targets": [httpx.URL(metrics).netloc.decode()]}]}
            ],
        }
        (folder / "prometheus.yml").write_text(json.dumps(configuration), "utf-8")  # JSON is YAML
        url = f"http://127.0.0.1:{_free_port()}"
        command = [
            program,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={url.removeprefix('http://')}",
        ]
        log = folder / "log"
        with log.open("wb") as output:
            # A session of its own: Ctrl-C is for the demo, which still asks it something at the end.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder, start_new_session=True
            )
        self._stack.callback(_stop, process)
        if _soon(lambda: process.poll() is not None or _is_ready(url)) and process.poll() is None:
            return url
        said = log.read_text("utf-8", "replace").strip().splitlines() or ["it said nothing"]
        self.where = f"prometheus: it did not start: {said[-1]}"
        return None

    def listeners(self) -> Iterable[Any]:
        """None: it looks for itself."""
        return []

    def report(self) -> list[str]:
        """What the server itself knows of refusals and alerts, once it has seen the end of the run."""
        if self._url is None:
            return []
        began = time.time()
        try:
            _soon(lambda: bool(self._query(f"timestamp(up) > {began:.3f}")))
            return self._told()
        except httpx.HTTPError as error:
            return ["What Prometheus knows cannot be had:", f"{type(error).__name__}: {error}"]

    def _told(self) -> list[str]:
        refused = {labels["circuit_name"]: value for labels, value in self._query(_REFUSED)}
        lines = [f"{name}: {value} calls refused" for name, value in refused.items()]
        lines += [
            f"{labels['alertname']} {labels['alertstate']}: {labels.get('circuit_name', 'all circuits')}"
            for labels, _ in self._query(_ALERTS)
        ]
        return ["What Prometheus knows of refusals and alerts:", *lines] if lines else []

    def _query(self, expression: str) -> list[tuple[dict[str, str], str]]:
        answer = httpx.get(f"{self._url}/api/v1/query", params={"query": expression}, trust_env=False)
        return [(each["metric"], each["value"][1]) for each in answer.raise_for_status().json()["data"]["result"]]

    def close(self) -> None:
        """Stop it."""
        self._stack.close()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready", trust_env=False).is_success
    except httpx.TransportError:
        return False


def _soon(is_so: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + _PATIENCE
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK)
    return True


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
