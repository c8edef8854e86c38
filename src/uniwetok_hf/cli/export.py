"""`uniwetok export`: a model, a pipeline or an adapter of a checkpoint of a training."""

import argparse

from .common import add_command, user_errors
from .loading import quiet_transformers


def add_commands(commands) -> None:
    """Adds the sub-command."""
    parser = add_command(
        commands,
        "export",
        run_export,
        "Make a model, a pipeline or an adapter of a checkpoint of a training, finished or not.\n"
        "OUT is what the end of the training would have saved; neither the data nor the start are read.",
        ["runs/my_mllm/checkpoints/step-000500 my_pipeline", "runs/my_tokenizer my_tokenizer --raw"],
    )
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="folder RUN/checkpoints/step-N, or RUN for its last checkpoint"
    )
    parser.add_argument("out", metavar="OUT", help="output folder")
    parser.add_argument(
        "--raw",
        action="store_true",
        help="the weights of that step (default: their moving average, where the training has one)",
    )


def run_export(args: argparse.Namespace) -> None:
    """`uniwetok export`."""
    from uniwetok_hf.training.export import export_checkpoint

    with user_errors(ValueError, OSError, ImportError), quiet_transformers():
        out = export_checkpoint(args.checkpoint, args.out, averaged=not args.raw)
    print(out)
