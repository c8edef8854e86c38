"""`uniwetok app`: the web page."""

import argparse
import os
from pathlib import Path

from .common import CommandError, add_command, add_model_options, positive_int, read_keys, user_errors
from .loading import EMBEDDED, load_pipeline


def add_commands(commands) -> None:
    """Adds the sub-command."""
    parser = add_command(
        commands,
        "app",
        run_app,
        "Open a web page to chat, generate, edit, describe and reconstruct.\n"
        'Runs until it is interrupted. Needs gradio: pip install "uniwetok-hf[app]".',
        ["", "--model runs/my_mllm/pipeline --port 8000", "--host 0.0.0.0", "--server http://127.0.0.1:8000"],
    )
    add_model_options(parser)
    parser.add_argument(
        "--server",
        metavar="URL",
        help="address of a `uniwetok serve` that does the work: no model here, no previews, no reconstructing",
    )
    parser.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help="the server's key; of several, one per line, the first"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine only)")
    parser.add_argument("--port", type=positive_int, metavar="N", help="default: the first free one from 7860")


def run_app(args: argparse.Namespace) -> None:
    """`uniwetok app`."""
    if args.server is not None and (args.model is not None or args.device != args.parser.get_default("device")):
        raise CommandError("--server has a model and a device of its own: leave out --model and --device")
    if args.server is None and args.api_key_file is not None:
        raise CommandError("--api-key-file holds the key of a server: give --server, too")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise CommandError('the web page needs gradio: pip install "uniwetok-hf[app]"') from None
    from uniwetok_hf.web_app import build_app, launch_options

    if args.server is None:
        page = build_app(load_pipeline(args.model, args.device), args.model or EMBEDDED)
    else:
        page = _remote_page(args.server, args.api_key_file)
    try:
        page.launch(server_name=args.host, server_port=args.port, **launch_options())
    except OSError as error:
        raise CommandError(f"--port {args.port}: {error}") from None


def _remote_page(server: str, key_file: Path | None):
    from uniwetok_hf.serving.client import ServerClient
    from uniwetok_hf.web_app_remote import build_remote_app

    keys = read_keys(key_file)
    with user_errors(prefix=f"--server {server}: "):
        return build_remote_app(ServerClient(server, keys[0] if keys else None))
