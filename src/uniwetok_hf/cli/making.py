"""`uniwetok convert` and `data`: making checkpoints and what they are trained on."""

import argparse
import warnings

from .common import add_command, add_group, add_seed_option, one_line, positive_int, user_errors, warn


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

    kinds = add_group(
        commands,
        "data",
        "Build a dataset to train on: emoji, or faces and text.\n"
        "A finished set of the same settings is left as it is; needs the extra `train`.",
        ["emoji data/emoji", "faces-and-text data/faces_and_text"],
        metavar="DATASET",
    )
    parser = add_command(
        kinds,
        "emoji",
        run_emoji,
        "Captioned pictures of emoji in three styles, and edits between them.\n"
        "Fetches the icons with npm unless --package-dir has them.",
        ["data/emoji", "data/emoji --size 64 --package-dir downloads"],
    )
    _add_output(parser)
    parser.add_argument("--package-dir", metavar="DIR", help="folder with the .tgz files of `npm pack`")
    parser.add_argument("--styles", nargs="+", metavar="STYLE", help='of noto, "fluent flat", fluent (default: all)')
    parser.add_argument("--limit", type=positive_int, metavar="N", help="only the first N concepts, for a quick try")

    parser = add_command(
        kinds,
        "faces-and-text",
        run_faces_and_text,
        "Drawn faces and written words with captions, for the last stage of the image tokenizer.\n"
        "Every choice follows from the seed.",
        ["data/faces_and_text", "data/faces_and_text --size 64 --count 1000"],
    )
    _add_output(parser)
    parser.add_argument("--count", type=positive_int, default=4000, metavar="N", help="how many (default: 4000)")
    add_seed_option(parser, "of all choices")


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", help="folder to be made")
    parser.add_argument("--size", type=positive_int, default=128, metavar="N", help="side in pixels (default: 128)")


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


def run_emoji(args: argparse.Namespace) -> None:
    """`uniwetok data emoji`."""
    from uniwetok_hf.data import build_emoji_dataset

    with user_errors(ValueError, OSError, ImportError, RuntimeError):
        print(build_emoji_dataset(args.out, args.size, args.package_dir, args.styles, args.limit))


def run_faces_and_text(args: argparse.Namespace) -> None:
    """`uniwetok data faces-and-text`."""
    from faces_and_text import build_faces_and_text

    with user_errors(ValueError, OSError, ImportError):
        print(build_faces_and_text(args.out, args.size, args.count, args.seed))
