"""The trace that the program is in, where it uses OpenTelemetry."""

import sys


def trace_ids(*, sampled: bool = False) -> tuple[str | None, str | None]:
    """The ids of OpenTelemetry's current trace and span, as 32 and 16 hexadecimal digits; `sampled`: of no other.

    W3C Trace Context gives them this form: https://www.w3.org/TR/trace-context/#traceparent-header-field-values
    """
    # Never imported here: where nobody has imported it, there is no span.
    current_span = getattr(sys.modules.get("opentelemetry.trace"), "get_current_span", None)
    if current_span is None:
        return None, None
    try:
        context = current_span().get_span_context()
        if not context.is_valid or (sampled and not context.trace_flags.sampled):
            return None, None
        return f"{context.trace_id:032x}", f"{context.span_id:016x}"
    except Exception:  # a span of somebody else's making: no trace is better than a call that fails
        return None, None
