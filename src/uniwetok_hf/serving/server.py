# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The process of `uniwetok serve`: uvicorn around the app. Needs uvicorn (extra `serve`).

SIGTERM and the first Ctrl-C stop it: nobody new gets in, requests that wait are answered with 503, those that have
begun are finished. A second Ctrl-C doesn't wait for them.
"""

import contextlib
import math
import os
import signal
import socket
import threading

import uvicorn

from .api import create_app
from .engine import ServingEngine
from .metrics import ServerMetrics
from .service import ServerSettings


class Server(uvicorn.Server):
    """uvicorn that tells the engine first, and ends with a return where uvicorn's own ends by the signal."""

    def __init__(self, config: uvicorn.Config, engine: ServingEngine):
        super().__init__(config)
        self.engine = engine

    async def shutdown(self, sockets=None) -> None:
        """As uvicorn's, after the engine has refused those that wait."""
        self.engine.stop_admission()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self):
        """As uvicorn's, without raising the signal again in the end: a server that was asked to stop has done so."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def bind(host: str, port: int) -> socket.socket:
    """A socket at an address, which doesn't listen yet; port 0 is a free one.

    Raises:
        OSError: when the address is taken, or not of this machine.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        if os.name == "posix":  # on Windows it would share an address that is served
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except BaseException:
        bound.close()
        raise
    return bound


def run_server(
    bound: socket.socket, engine: ServingEngine, settings: ServerSettings, metrics: ServerMetrics | None = None
) -> None:
    """Serves until a signal stops it, and closes the engine.

    Args:
        bound: where to listen, from [`bind`].
        engine: what answers.
        settings: limits.
        metrics: where answers are counted.
    """
    config = uvicorn.Config(
        create_app(engine, settings, metrics),
        log_level="warning",  # what is answered is in the metrics
        timeout_keep_alive=75,  # seconds; longer than clients keep a connection that they don't use
        timeout_graceful_shutdown=math.ceil(settings.timeout),
    )
    try:
        Server(config, engine).run(sockets=[bound])
    finally:
        engine.close()  # a second Ctrl-C skips the end of the app


__all__ = ["Server", "bind", "run_server"]
