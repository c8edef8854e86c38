"""`uniwetok convert`: published checkpoints to folders for `from_pretrained`."""

import argparse
import warnings

from .common import add_command, one_line, positive_int, user_errors, warn


DTYPES = ("float32", "bfloat16", "float16")


def add_commands(commands) -> None:
    """Adds the sub-command."""
    parser = add_command(
        commands,
        "convert",
        run_convert,
        "Convert a published checkpoint into a folder for from_pretrained.\n"
        "SRC is an image tokenizer (OUT: UniWeTokModel), a text-to-image or a class-to-image model (OUT: a pipeline).",
        [
            "UniWeTok-1B uniwetok",
            "ae.ckpt uniwetok --num-attention-heads 16 --dtype bfloat16",
            "BitDance_B_1x.pt bitdance-b-1x",
        ],
    )
    parser.add_argument("src", metavar="SRC", help="published folder or file")
    parser.add_argument("out", metavar="OUT", help="output folder")
    parser.add_argument(
        "--num-attention-heads",
        type=positive_int,
        metavar="N",
        help="number of attention heads, where SRC has no config",
    )
    parser.add_argument("--dtype", choices=DTYPES, help="how weights are stored (default: as in SRC)")
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="PREFIX",
        help="ignore tensors of a training checkpoint whose names start with PREFIX; repeat",
    )


def run_convert(args: argparse.Namespace) -> None:
    """`uniwetok convert`."""
    from uniwetok_hf import convert_checkpoint

    with user_errors(ValueError, OSError), warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: warn(one_line(message))
        out = convert_checkpoint(
            args.src,
            args.out,
            num_attention_heads=args.num_attention_heads,
            dtype=args.dtype,
            ignored_prefixes=args.ignore,
        )
    print(out)
