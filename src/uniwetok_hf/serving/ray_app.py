# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The server as an application of Ray Serve, which then listens in place of `uniwetok serve`. Needs the extras `serve`
and `ray`.
"""

from .api import create_app
from .metrics import ServerMetrics
from .ray_engine import RayEngine, ReplicaSettings, replicas
from .service import ServerSettings


class Ingress:
    """The addresses of OpenAI's API, in front of the replicas.

    Args:
        handle: handle of the replicas.
        max_open: requests that it has at a time; more are refused.
        settings: limits.
    """

    async def __init__(self, handle, max_open: int, settings: ServerSettings):
        self.settings, self.metrics = settings, ServerMetrics()
        self.engine = RayEngine(handle, await handle.info.remote(), max_open, self.metrics.observe_batch)

    def __serve_build_asgi_app__(self):
        return create_app(self.engine, self.settings, self.metrics)


def ray_application(models: ReplicaSettings, settings: ServerSettings = ServerSettings()):
    """The server and its replicas, for `serve.run`.

    Args:
        models: what the replicas are made of.
        settings: limits of the server.
    """
    from ray import serve

    ingress = serve.deployment(
        serve.ingress()(Ingress),
        name="Server",
        max_ongoing_requests=2 * models.max_open,  # also those that are refused, and those that ask for numbers
        graceful_shutdown_timeout_s=settings.timeout,
        ray_actor_options={"num_cpus": 0},  # it waits for the replicas, which have them
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    return ingress.bind(replicas(models), models.max_open, settings)


__all__ = ["Ingress", "ray_application"]
