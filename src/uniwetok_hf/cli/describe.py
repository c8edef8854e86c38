"""`uniwetok describe`: answers to a question about pictures."""

import argparse
from pathlib import Path

from .common import CommandError, add_command, add_model_options, positive_int, read_pictures, user_errors
from .loading import load_language_model


def add_commands(commands) -> None:
    """Adds the sub-command."""
    parser = add_command(
        commands,
        "describe",
        run_describe,
        "Answer a question about pictures.\nPrints one line per picture: its path and the answer.",
        ["apple.png", 'pictures/*.png --question "which style is this?"'],
    )
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="any picture that Pillow reads")
    add_model_options(parser)
    parser.add_argument("--question", metavar="TEXT", default="what is this?", help='default: "what is this?"')
    parser.add_argument(
        "--max-new-tokens", type=positive_int, metavar="N", default=40, help="longest answer in tokens (default: 40)"
    )


def run_describe(args: argparse.Namespace) -> None:
    """`uniwetok describe`."""
    from uniwetok_hf.pipelines.image_intake import as_encoded_images
    from uniwetok_hf.pipelines.writing import answer_question

    if not args.question.strip():
        raise CommandError("--question is empty")
    if asked := [path for path in args.pictures if " " in path and not Path(path).exists()]:
        raise CommandError(f"{asked[0]}: no such file; a question goes into --question")
    pictures = read_pictures(args.pictures)
    mllm, processor = load_language_model(args.model, args.device)
    for path, picture in zip(args.pictures, pictures, strict=True):
        with user_errors(prefix=f"{path}: "):
            images = as_encoded_images(mllm, processor, [picture])
        with user_errors():
            (answer,) = answer_question(mllm, processor, images, args.question, args.max_new_tokens)
        print(f"{path}: {answer}", flush=True)
