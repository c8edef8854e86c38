"""`uniwetok app`: the web page."""

import argparse
import os

from .common import CommandError, add_command, add_model_options, positive_int
from .loading import EMBEDDED, load_pipeline


def add_commands(commands) -> None:
    """Adds the sub-command."""
    parser = add_command(
        commands,
        "app",
        run_app,
        "Open a web page to chat, generate, edit, describe and reconstruct.\n"
        'Runs until it is interrupted. Needs gradio: pip install "uniwetok-hf[app]".',
        ["", "--model runs/my_mllm/pipeline --port 8000", "--host 0.0.0.0"],
    )
    add_model_options(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine only)")
    parser.add_argument("--port", type=positive_int, metavar="N", help="default: the first free one from 7860")


def run_app(args: argparse.Namespace) -> None:
    """`uniwetok app`."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise CommandError('the web page needs gradio: pip install "uniwetok-hf[app]"') from None
    from uniwetok_hf.web_app import build_app, launch_options

    page = build_app(load_pipeline(args.model, args.device), args.model or EMBEDDED)
    try:
        page.launch(server_name=args.host, server_port=args.port, **launch_options())
    except OSError as error:
        raise CommandError(f"--port {args.port}: {error}") from None
