"""What happens to circuits in OpenTelemetry."""

from ._otelmetrics import OpenTelemetryMetricsListener

__all__ = ["OpenTelemetryMetricsListener"]
