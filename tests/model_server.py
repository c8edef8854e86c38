"""`uniwetok serve` in a thread of this process."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from running_server import running_server

from uniwetok_hf.serving.engine import LocalEngine
from uniwetok_hf.serving.metrics import ServerMetrics
from uniwetok_hf.serving.service import ServerSettings


@dataclass
class RunningServer:
    """Its address, without `/v1`, and what is behind it."""

    url: str
    engine: LocalEngine
    metrics: ServerMetrics

    def count(self, path: str, status: int) -> int:
        """Requests that were answered so."""
        labels = {"path": path, "status": str(status)}
        return int(self.metrics.registry.get_sample_value("uniwetok_requests_total", labels) or 0)


@contextmanager
def model_server(pipe, name: str = "tiny", adapters: Mapping[str, str] | None = None, **settings) -> Iterator:
    """A [`RunningServer`] of a pipeline, which nothing else may use meanwhile; `settings` are those of
    [`ServerSettings`]."""
    metrics = ServerMetrics()
    engine = LocalEngine(pipe, name, adapters, on_batch=metrics.observe_batch)
    with running_server(engine, ServerSettings(**settings), metrics) as (url, _):
        yield RunningServer(url, engine, metrics)


def wait_until(is_so, seconds: float = 120) -> None:
    """Waits until `is_so()`.

    Raises:
        AssertionError: when it is not so after all that time.
    """
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it did not become so"
        time.sleep(0.01)
