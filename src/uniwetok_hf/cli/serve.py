"""`uniwetok serve`: the model behind OpenAI's API."""

import argparse
import functools
import ipaddress
import re
from collections.abc import Callable
from pathlib import Path

from .common import CommandError, add_command, finite_float, positive_int, read_keys, user_errors, warn
from .loading import Checkpoint, find_checkpoint, load_pipeline


def add_commands(commands) -> None:
    """Adds the sub-command."""
    parser = add_command(
        commands,
        "serve",
        run_serve,
        "Answer OpenAI's API: chat with pictures, image generation and edits.\n"
        'Runs until it is interrupted. Needs FastAPI: pip install "uniwetok-hf[serve]".',
        [
            "",
            "runs/my_mllm/pipeline --port 8000",
            "--adapter cats=runs/cats/adapter --api-key-file keys.txt",
            "--engine ray --num-replicas 4 --device cuda",
        ],
    )
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="pipeline folder or Hub id (default: uniwetok-emoji, the embedded model)",
    )
    parser.add_argument("--device", default="cpu", help="cpu (default, in float32), cuda, cuda:1, ... or mps")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine only)")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="default: 8000; 0: a free one")
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="a LoRA adapter, which requests choose as model NAME; may be repeated",
    )
    parser.add_argument(
        "--max-batch-size", type=positive_int, default=16, metavar="N", help="requests computed at once (default: 16)"
    )
    parser.add_argument(
        "--max-waiting", type=positive_int, default=100, metavar="N", help="requests that may wait (default: 100)"
    )
    parser.add_argument(
        "--timeout",
        type=finite_float,
        default=120.0,
        metavar="SECONDS",
        help="longest time to an answer (default: 120)",
    )
    parser.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help="keys, one per line, of which requests bring one"
    )
    parser.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="HOST",
        help="a host whose addresses of pictures are fetched (default: none); may be repeated",
    )
    parser.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="local: the model in this process (default); ray: several, on the cluster of RAY_ADDRESS, or on a Ray of "
        'this machine (pip install "uniwetok-hf[serve,ray]")',
    )
    parser.add_argument(
        "--num-replicas", type=positive_int, default=2, metavar="N", help="models of --engine ray (default: 2)"
    )
    parser.add_argument(
        "--replica-cpus", type=positive_int, default=1, metavar="N", help="cores of each of them (default: 1)"
    )


def run_serve(args: argparse.Namespace) -> None:
    """`uniwetok serve`."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise CommandError(f'the server needs {error.name}: pip install "uniwetok-hf[serve]"') from None
    from uniwetok_hf.serving.metrics import ServerMetrics
    from uniwetok_hf.serving.server import bind, run_server
    from uniwetok_hf.serving.service import ServerSettings

    if args.timeout <= 0:
        raise CommandError(f"--timeout must be more than 0 seconds, got {args.timeout:g}")
    adapters = dict(_adapter(text) for text in args.adapter)
    if len(adapters) < len(args.adapter):
        raise CommandError("--adapter: two adapters have the same name")
    settings = ServerSettings(
        api_keys=read_keys(args.api_key_file),
        allowed_hosts=tuple(host.lower() for host in args.allowed_host),
        timeout=args.timeout,
        max_requests=args.max_waiting + 2 * args.max_batch_size * (args.num_replicas if args.engine == "ray" else 1),
    )
    checkpoint, name = find_pipeline(args.model)
    with user_errors(OSError, OverflowError, prefix=f"--host {args.host} --port {args.port}: "):
        bound = bind(args.host, args.port)
    with bound:
        metrics = ServerMetrics()
        engine = _make_engine(args, checkpoint, name, adapters, metrics.observe_batch)
        host, port = bound.getsockname()[:2]
        if not settings.api_keys and not ipaddress.ip_address(host).is_loopback:
            warn(f"whoever reaches {host} can use this server: --api-key-file asks for keys")
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        print(f"{', '.join((name, *adapters))} at http://{address}/v1 (Ctrl-C stops)", flush=True)
        run_server(bound, engine, settings, metrics)


def find_pipeline(model: str | None) -> tuple[Checkpoint, str]:
    """The checkpoint of a pipeline, and the name by which requests call it."""
    checkpoint = find_checkpoint(model, ("pipeline",))
    name = checkpoint.folder.resolve().parent.name if checkpoint.name == "pipeline" else checkpoint.name
    return checkpoint, name


def for_replicas(name: str | None) -> str | None:
    """The name of a folder or on the Hub as it is found from the folders in which replicas run."""
    return str(Path(name).resolve()) if name is not None and Path(name).exists() else name


def _make_engine(
    args: argparse.Namespace, checkpoint: Checkpoint, name: str, adapters: dict[str, str], on_batch: Callable
):
    limits = {"max_batch_size": args.max_batch_size, "max_waiting": args.max_waiting}
    if args.engine == "local":
        from uniwetok_hf.serving.engine import LocalEngine

        pipe = load_pipeline(checkpoint, args.device)
        with user_errors():
            return LocalEngine(pipe, name, adapters, **limits, on_batch=on_batch)
    if args.device not in ("cpu", "cuda"):
        raise CommandError(f"--device must be cpu, or cuda, whose number Ray chooses, got {args.device}")
    try:
        from ray import serve  # noqa: F401
    except ImportError as error:
        raise CommandError(f'--engine ray needs {error.name}: pip install "uniwetok-hf[serve,ray]"') from None
    from uniwetok_hf.serving.ray_engine import RayEngine, ReplicaSettings

    with user_errors(ValueError, OSError):
        settings = ReplicaSettings(
            load=functools.partial(load_pipeline, for_replicas(args.model), args.device),
            name=name,
            adapters={adapter: for_replicas(folder) for adapter, folder in adapters.items()},
            num_replicas=args.num_replicas,
            num_cpus=args.replica_cpus,
            num_gpus=1 if args.device == "cuda" else 0,
            **limits,
        )
        return RayEngine.start(settings, on_batch)


def _adapter(text: str) -> tuple[str, str]:
    name, is_named, folder = text.partition("=")
    if not is_named or not re.fullmatch(r"[\w-]+", name) or not folder:
        raise CommandError(f"--adapter must be NAME=FOLDER, NAME of letters, digits, '_' and '-', got {text}")
    return name, folder
