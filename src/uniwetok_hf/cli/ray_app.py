# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The server for the commands of Ray Serve, which find it by the name of this module:

    serve run uniwetok_hf.cli.ray_app:build_ray_app num_replicas=4 num_gpus=1 device=cuda

or, in the file of `serve deploy`, `import_path: uniwetok_hf.cli.ray_app:build_ray_app` and `args`. Needs the extras
`serve` and `ray` on all machines.
"""

import functools
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from uniwetok_hf.serving.ray_app import ray_application
from uniwetok_hf.serving.ray_engine import ReplicaSettings
from uniwetok_hf.serving.service import ServerSettings

from .common import read_keys
from .loading import load_pipeline
from .serve import find_pipeline, for_replicas


class RayAppArgs(BaseModel):
    """The options of `uniwetok serve`, and what each replica gets.

    Args:
        model: pipeline folder, at the same place on all machines, or Hub id; the embedded model when None.
        device: of the replicas.
        adapters: names and folders (or Hub ids) of LoRA adapters.
        num_replicas: processes with a model each.
        num_cpus, num_gpus: of each replica.
        max_batch_size, max_waiting, timeout, api_key_file, allowed_hosts: as in `uniwetok serve`.
    """

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    device: str = "cpu"
    adapters: dict[str, str] = Field(default_factory=dict)
    num_replicas: int = 2
    num_cpus: float = 1
    num_gpus: float = 0
    max_batch_size: int = 16
    max_waiting: int = 100
    timeout: float = Field(120.0, gt=0)
    api_key_file: Path | None = None
    allowed_hosts: tuple[str, ...] = ()


def build_ray_app(args: RayAppArgs):
    """The application of Ray Serve."""
    _, name = find_pipeline(args.model)
    models = ReplicaSettings(
        load=functools.partial(load_pipeline, for_replicas(args.model), args.device),
        name=name,
        adapters={adapter: for_replicas(folder) for adapter, folder in args.adapters.items()},
        num_replicas=args.num_replicas,
        max_batch_size=args.max_batch_size,
        max_waiting=args.max_waiting,
        num_cpus=args.num_cpus,
        num_gpus=args.num_gpus,
    )
    settings = ServerSettings(
        api_keys=read_keys(args.api_key_file),
        allowed_hosts=tuple(host.lower() for host in args.allowed_hosts),
        timeout=args.timeout,
        max_requests=models.max_open,
    )
    return ray_application(models, settings)
