"""`uniwetok convert` and `data`: making checkpoints and what they are trained on."""

import argparse
import warnings

from .common import add_command, one_line, positive_int, user_errors, warn


DTYPES = ("float32", "bfloat16", "float16")


def add_commands(commands) -> None:
    """Adds the sub-commands."""
    parser = add_command(
        commands,
        "convert",
        run_convert,
        "Turn a published checkpoint into a folder for from_pretrained.\n"
        "SRC is a tokenizer file or folder (OUT: UniWeTokModel) or a text-to-image folder (OUT: UniWeTokPipeline).",
        ["UniWeTok-1B uniwetok", "ae.ckpt uniwetok --num-attention-heads 16 --dtype bfloat16"],
    )
    parser.add_argument("src", metavar="SRC", help="published folder or file")
    parser.add_argument("out", metavar="OUT", help="folder to be made")
    parser.add_argument(
        "--num-attention-heads", type=positive_int, metavar="N", help="where SRC has no config that says it"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="how weights are stored (default: as in SRC)")
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="PREFIX",
        help="leave out tensors of a training checkpoint whose names start so; repeat",
    )

    parser = add_command(
        commands,
        "data",
        run_data,
        "Build a dataset: `emoji`, captioned pictures of three styles and edits between them.\n"
        "Fetches the icons with npm unless --package-dir has them; needs the extra `train`.",
        ["emoji data/emoji", "emoji data/emoji --size 64 --package-dir downloads"],
    )
    parser.add_argument("dataset", choices=("emoji",), help="which dataset")
    parser.add_argument("out", metavar="OUT", help="folder to be made")
    parser.add_argument("--size", type=positive_int, default=128, metavar="N", help="side in pixels (default: 128)")
    parser.add_argument("--package-dir", metavar="DIR", help="folder with the .tgz files of `npm pack`")
    parser.add_argument("--styles", nargs="+", metavar="STYLE", help='of noto, "fluent flat", fluent (default: all)')
    parser.add_argument("--limit", type=positive_int, metavar="N", help="only the first N concepts, for a quick try")


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


def run_data(args: argparse.Namespace) -> None:
    """`uniwetok data`."""
    from uniwetok_hf.data import build_emoji_dataset

    with user_errors(ValueError, OSError, ImportError, RuntimeError):
        print(build_emoji_dataset(args.out, args.size, args.package_dir, args.styles, args.limit))
