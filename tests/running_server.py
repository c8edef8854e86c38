"""A server of `uniwetok serve` in a thread of this process, on a free port."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from uniwetok_hf.serving.engine import LocalEngine, ServingEngine
from uniwetok_hf.serving.metrics import ServerMetrics
from uniwetok_hf.serving.service import ServerSettings


@contextmanager
def running_server(engine: ServingEngine, settings: ServerSettings = ServerSettings(), metrics=None) -> Iterator:
    """The server's address, `http://host:port`, and the server; it is stopped at the end, and its engine closed."""
    import uvicorn

    from uniwetok_hf.serving.api import create_app
    from uniwetok_hf.serving.server import Server, bind

    with bind("127.0.0.1", 0) as bound:
        app = create_app(engine, settings, metrics)
        server = Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=60), engine)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield f"http://127.0.0.1:{bound.getsockname()[1]}", server
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def serving(pipe, settings: ServerSettings = ServerSettings(), **options) -> Iterator:
    """As [`running_server`], of an engine for a pipeline; gives the address and the engine."""
    metrics = ServerMetrics()
    engine = LocalEngine(pipe, "tiny", on_batch=metrics.observe_batch, **options)
    with running_server(engine, settings, metrics) as (address, _):
        yield address, engine
