"""Grafana dashboards, Prometheus rules and runbooks, shipped as data with the package."""
