# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""What `/metrics` tells Prometheus. Needs prometheus-client (extra `serve`)."""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from .engine import BatchReport, ServingEngine


SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class ServerMetrics:
    """The numbers of one server."""

    def __init__(self):
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):  # memory, CPU time, open files, versions
            collector(registry=self.registry)
        self.requests = Counter(
            "uniwetok_requests", "Requests that were answered.", ["path", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "uniwetok_request_seconds",
            "Time from a request to the end of its answer.",
            ["path"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.tokens = Counter(
            "uniwetok_tokens", "Tokens read and generated, of pictures too.", ["kind"], registry=self.registry
        )
        self.batch_size = Histogram(
            "uniwetok_batch_size", "Rows of a batch.", ["kind"], buckets=SIZES, registry=self.registry
        )
        self.batch_seconds = Histogram(
            "uniwetok_batch_seconds", "Time of a batch.", ["kind"], buckets=SECONDS, registry=self.registry
        )

    def watch(self, engine: ServingEngine) -> None:
        """Adds the lengths of an engine's queue."""
        waiting = Gauge("uniwetok_requests_waiting", "Requests that wait.", registry=self.registry)
        waiting.set_function(lambda: engine.num_waiting)
        running = Gauge("uniwetok_requests_running", "Requests that have begun.", registry=self.registry)
        running.set_function(lambda: engine.num_running)

    def observe_batch(self, report: BatchReport) -> None:
        """Counts a batch; for `on_batch` of an engine."""
        self.batch_size.labels(report.kind).observe(report.size)
        self.batch_seconds.labels(report.kind).observe(report.seconds)

    def observe_request(self, path: str, status: int, seconds: float) -> None:
        """Counts an answer."""
        self.requests.labels(path, str(status)).inc()
        self.request_seconds.labels(path).observe(seconds)

    def observe_tokens(self, num_prompt_tokens: int, num_new_tokens: int) -> None:
        """Counts the tokens of an answer."""
        self.tokens.labels("read").inc(num_prompt_tokens)
        self.tokens.labels("generated").inc(num_new_tokens)

    def text(self) -> bytes:
        """All numbers in Prometheus' text format."""
        return generate_latest(self.registry)


__all__ = ["ServerMetrics"]
