"""From a circuit that opens to whoever is woken: through the shipped rules, Prometheus and Alertmanager, all real."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("prometheus_client")
pytest.importorskip("yaml")

from prometheus_client import CollectorRegistry, start_http_server

from fluxgate import Bus, CircuitBreaker, FailureStreak
from fluxgate.listeners import names
from fluxgate.listeners.prometheus import PrometheusListener
from fluxgate.testing import VirtualClock
from tests import shipped
from tests.conformance.service import Service
from tests.prometheus_server import program, server, started, until


def alerts_in(service: Service, status: str) -> list[dict[str, Any]]:
    """The alerts of this status that a webhook was told of."""
    told = [json.loads(received.body) for received in service.received]
    return [alert for message in told for alert in message["alerts"] if alert["status"] == status]


def test_an_alert_reaches_a_webhook_and_so_does_its_end(tmp_path: Path) -> None:
    """`CircuitOpen` is posted when the circuit opens, with all that the rule says, and again when it has recovered."""
    registry, bus = CollectorRegistry(), Bus()
    httpd, thread = start_http_server(0, "127.0.0.1", registry)
    address = f"127.0.0.1:{httpd.server_port}"
    subscription = bus.attach(PrometheusListener(registry))
    clock = VirtualClock()
    cb = CircuitBreaker("payments", tripper=FailureStreak(1), clock=clock, bus=bus)
    try:
        with Service().running() as service:
            (tmp_path / "alertmanager.yml").write_text(json.dumps(shipped.hasty_alertmanager(service.url)), "utf-8")
            command = [
                program("prometheus-alertmanager"),
                f"--config.file={tmp_path / 'alertmanager.yml'}",
                f"--storage.path={tmp_path / 'alertmanager'}",
                "--web.listen-address=127.0.0.1:0",
                "--cluster.listen-address=",
            ]
            with started(command, tmp_path / "alertmanager.log") as port:
                configuration = shipped.configuration(
                    {"shop": [address]},
                    shipped.hasty_rules(tmp_path),
                    interval="200ms",
                    alertmanager=f"127.0.0.1:{port}",
                )
                with server(tmp_path, {"shop": [address]}, configuration=configuration) as prometheus:
                    prometheus.next_scrapes()
                    assert not service.received, "all is well"
                    cb.call_with_fallback(int, lambda error: 0, "ten euros")
                    [alert] = until(lambda: alerts_in(service, "firing"), "alert that fires")
                    cb.reset()
                    [resolved] = until(lambda: alerts_in(service, "resolved"), "alert that resolves")
    finally:
        subscription.close()
        httpd.shutdown()
        httpd.server_close()
        thread.join()
    assert alert["labels"] == {
        "alertname": names.CIRCUIT_OPEN.name,
        "severity": names.CIRCUIT_OPEN.severity,
        "job": "shop",
        "circuit_name": "payments",
    }
    assert "payments" in alert["annotations"]["summary"]
    assert "shop" in alert["annotations"]["summary"]
    assert alert["annotations"]["runbook_url"].endswith(f"{names.RUNBOOKS}{names.CIRCUIT_OPEN.runbook}")
    assert resolved["labels"] == alert["labels"]
    assert resolved["startsAt"] == alert["startsAt"] < resolved["endsAt"]
