"""
OpenTelemetry traces: one span a served call, sent over OTLP when an endpoint is set, nothing otherwise.

The W3C context is taken from a call's metadata and given on to peers either way, so that a service without traces of
its own does not cut those of its neighbours.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version

from opentelemetry import context, propagate, trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

__all__ = ["Tracing", "trace_metadata"]


class Tracing:
    """
    The traces of one server.

    Args:
        service: Becomes `service.name`.
        endpoint: http://host:4317 or https://...; None for no traces.
    """

    def __init__(self, service: str, endpoint: str | None) -> None:
        self._provider: TracerProvider | None = None
        if endpoint is not None:
            # Only who sends traces pays for the exporter's import.
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.trace.export import BatchSpanProcessor

            resource = Resource.create({"service.name": f"weft-{service}", "service.version": version("weft")})
            self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
            exporter = OTLPSpanExporter(endpoint=endpoint, insecure=endpoint.startswith("http://"), timeout=5)
            self._provider.add_span_processor(BatchSpanProcessor(exporter))

    def make_global(self) -> None:
        """Let `opentelemetry.trace.get_tracer` of this process use these traces; once a process."""
        if self._provider is not None:
            trace.set_tracer_provider(self._provider)

    @contextmanager
    def call(self, service: str, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> Iterator[trace.Span]:
        """Span one served call, as a child of what its metadata names."""
        carrier = {key: value for key, value in metadata if isinstance(value, str)}
        token = context.attach(propagate.extract(carrier))
        try:
            if self._provider is None:
                yield trace.INVALID_SPAN
                return
            tracer = self._provider.get_tracer("weft_common", version("weft"))
            attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
            with tracer.start_as_current_span(
                f"{service}/{method}",
                kind=trace.SpanKind.SERVER,
                attributes=attributes,
                record_exception=False,
                set_status_on_exception=False,
            ) as span:
                yield span
        finally:
            context.detach(token)

    def close(self) -> None:
        """Send what is left and stop."""
        if self._provider is not None:
            self._provider.shutdown()


def trace_metadata() -> list[tuple[str, str]]:
    """Return the metadata that carries the current trace to a peer; empty without one."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return list(carrier.items())
