"""`uniwetok serve`: the model behind OpenAI's API."""

import argparse
import re
from pathlib import Path

from .common import CommandError, add_command, finite_float, positive_int, read_keys, user_errors
from .loading import find_checkpoint, load_pipeline


def add_commands(commands) -> None:
    """Adds the sub-command."""
    parser = add_command(
        commands,
        "serve",
        run_serve,
        "Answer OpenAI's API: chat with pictures, image generation and edits.\n"
        'Runs until it is interrupted. Needs FastAPI: pip install "uniwetok-hf[serve]".',
        ["", "runs/my_mllm/pipeline --port 8000", "--adapter cats=runs/cats/adapter --api-key-file keys.txt"],
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


def run_serve(args: argparse.Namespace) -> None:
    """`uniwetok serve`."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise CommandError(f'the server needs {error.name}: pip install "uniwetok-hf[serve]"') from None
    from uniwetok_hf.serving.api import ServerSettings
    from uniwetok_hf.serving.engine import LocalEngine
    from uniwetok_hf.serving.metrics import ServerMetrics
    from uniwetok_hf.serving.server import bind, run_server

    if args.timeout <= 0:
        raise CommandError(f"--timeout must be more than 0 seconds, got {args.timeout:g}")
    adapters = dict(_adapter(text) for text in args.adapter)
    if len(adapters) < len(args.adapter):
        raise CommandError("--adapter: two adapters have the same name")
    settings = ServerSettings(
        api_keys=read_keys(args.api_key_file),
        allowed_hosts=tuple(host.lower() for host in args.allowed_host),
        timeout=args.timeout,
    )
    checkpoint = find_checkpoint(args.model, ("pipeline",))
    with user_errors(OSError, OverflowError, prefix=f"--host {args.host} --port {args.port}: "):
        bound = bind(args.host, args.port)
    with bound:
        pipe, metrics = load_pipeline(checkpoint, args.device), ServerMetrics()
        name = checkpoint.folder.resolve().parent.name if checkpoint.name == "pipeline" else checkpoint.name
        with user_errors():
            engine = LocalEngine(
                pipe, name, adapters, args.max_batch_size, args.max_waiting, on_batch=metrics.observe_batch
            )
        host, port = bound.getsockname()[:2]
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        print(f"{', '.join((name, *adapters))} at http://{address}/v1 (Ctrl-C stops)", flush=True)
        run_server(bound, engine, settings, metrics)


def _adapter(text: str) -> tuple[str, str]:
    name, is_named, folder = text.partition("=")
    if not is_named or not re.fullmatch(r"[\w.-]+", name) or not folder:
        raise CommandError(f"--adapter must be NAME=FOLDER, NAME of letters, digits, '.', '_' and '-', got {text}")
    return name, folder
