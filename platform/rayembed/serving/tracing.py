"""Optional OpenTelemetry traces: one span in the replica for each request, below the caller's.

Without configuration the OpenTelemetry interface does nothing. With the variable OTEL_EXPORTER_OTLP_ENDPOINT
set, spans go there; the exporter is an extra package.
"""

import contextlib
import logging
import os
from collections.abc import Mapping

from opentelemetry import propagate, trace

from rayembed.common.errors import ConfigError

logger = logging.getLogger(__name__)

_ENDPOINT_VARIABLE = "OTEL_EXPORTER_OTLP_ENDPOINT"
_tracer = trace.get_tracer("rayembed.serving")


def configure() -> None:
    """Send this process's spans to the collector that the environment names, if it names one.

    Raises:
        ConfigError: a collector is named and the exporter is not installed.
    """
    if _ENDPOINT_VARIABLE not in os.environ:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError(
            f"{_ENDPOINT_VARIABLE} is set and the exporter is missing: pip install 'rayembed[tracing]'"
        ) from error
    provider = TracerProvider(resource=Resource.create({"service.name": "rayembed"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    logger.info("traces go to the collector of %s", _ENDPOINT_VARIABLE)


def span(
    name: str, parent: Mapping[str, str], **attributes: str | int
) -> contextlib.AbstractContextManager[object]:
    """Record a block as a span under `parent`'s trace headers.

    Attributes are numbers and names, never inputs.
    """
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):  # nobody listens
        return contextlib.nullcontext()
    return _tracer.start_as_current_span(name, context=propagate.extract(parent), attributes=attributes)
