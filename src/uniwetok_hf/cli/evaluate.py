"""`uniwetok evaluate reconstruction|latents|generation|editing|captioning|emoji`: figures that can be compared."""

import argparse
from importlib.util import find_spec
from pathlib import Path

from . import measuring
from .common import (
    CommandError,
    add_command,
    add_edit_options,
    add_group,
    add_model_options,
    add_seed_option,
    finite_float,
    output_folder,
    positive_int,
    user_errors,
)
from .reconstruct import ANY_CHECKPOINT


DESCRIPTION = """\
Measure reconstruction, latents, generation, editing or captioning on held-out data; or all of the emoji set.
Prints a Markdown table and writes results.json, results.md and model-index.yaml; needs the extra `eval`.
"""
EXAMPLES = [
    "reconstruction data/emoji --sizes 128 --by style",
    "generation data/emoji --judge judges/clip --count 500 --output results/drawing",
]
NATIVE = "native"


def add_commands(commands) -> None:
    """Adds `evaluate` with a sub-command for each protocol."""
    protocols = add_group(commands, "evaluate", DESCRIPTION, EXAMPLES)
    for add in (_add_reconstruction, _add_latents, _add_generation, _add_editing, _add_captioning):
        add(protocols)


def _add_protocol(
    protocols, name: str, measure, description: str, examples: list[str], model: str, optional=False, split="test"
):
    """A protocol with the options that all have."""
    parser = add_command(protocols, name, run_evaluate, description, examples)
    parser.set_defaults(measure=measure)
    parser.add_argument(
        "data",
        nargs="?" if optional else None,
        metavar="DATA",
        help="folder of `uniwetok data` or of `save_to_disk`, folder of pictures, Parquet or WebDataset files, or Hub "
        "name of a dataset",
    )
    parser.add_argument("--split", default=split, help=f"which part of it (default: {split})")
    parser.add_argument("--name", help="configuration of a dataset on the Hub")
    parser.add_argument("--streaming", action="store_true", help="read the dataset as it comes, without a copy of it")
    parser.add_argument("--image-column", default="image", metavar="COLUMN", help="pictures (default: image)")
    add_model_options(parser, model)
    parser.add_argument(
        "--output", metavar="DIR", help=f"folder of the result files (default: results/{name}), made if needed"
    )
    parser.add_argument("--batch-size", type=positive_int, default=16, metavar="N", help="at once (default: 16)")
    return parser


def _add_count(parser: argparse.ArgumentParser, default: int | None, what: str) -> None:
    usual = "all" if default is None else default
    parser.add_argument(
        "--count", type=positive_int, default=default, metavar="N", help=f"{what}, chosen by --seed (default: {usual})"
    )


def _add_drawing_options(parser: argparse.ArgumentParser, judge_required: bool = False) -> None:
    without = "" if judge_required else "; without it only pixels are compared"
    parser.add_argument(
        "--judge",
        metavar="M",
        required=judge_required,
        help=f"folder or Hub name of a CLIP, SigLIP, ... that no training loss looked through{without}",
    )
    parser.add_argument(
        "--steps", type=positive_int, metavar="N", help="diffusion steps a patch (default: the model's)"
    )
    parser.add_argument(
        "--guidance-scale", type=finite_float, metavar="W", help="weight of the words (default: the model's)"
    )


def _add_reconstruction(protocols) -> None:
    parser = _add_protocol(
        protocols,
        "reconstruction",
        measuring.reconstruction,
        "Encode and decode pictures: PSNR, SSIM, perceptual and Fréchet distance.\n"
        "Beside the model: WebP of as many bytes, an 8x8 thumbnail, all white; and statistics of the codes.",
        ["data/emoji --sizes 128 192 256 --by style", "imagenet/val --sizes 256 --features timm/inception_v3.tf_in1k"],
        ANY_CHECKPOINT,
        optional=True,
    )
    parser.add_argument(
        "--photographs", action="store_true", help="measure on scikit-image's photographs in place of DATA"
    )
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=_size,
        default=[None],
        metavar="N",
        help="sides of square centre crops in pixels, or native: whole pictures at their own sizes (default: native)",
    )
    parser.add_argument("--by", metavar="COLUMN", help="a row of the table for each value of a column")
    parser.add_argument(
        "--features", metavar="M", help="folder or Hub name of a vision model: adds the Fréchet distance"
    )
    parser.add_argument(
        "--perceptual", metavar="M", help="vision model, or .safetensors file of LPIPS: adds a perceptual distance"
    )
    _add_count(parser, None, "pictures")
    add_seed_option(parser, "seed of the decoder's noise and of the choice")


def _add_latents(protocols) -> None:
    parser = _add_protocol(
        protocols,
        "latents",
        measuring.latents,
        "What latents and codes know of a label: zero-shot and linear-probe accuracy.\n"
        "Zero-shot needs the teacher of Pre-Post Distillation and its pools; the probe is fitted on another split.",
        [
            "data/emoji --label group --size 128",
            "imagenet --label label --size 256 --model runs/stage1/model --teacher google/siglip2-so400m-patch16-384",
        ],
        ANY_CHECKPOINT,
    )
    parser.add_argument("--label", required=True, metavar="COLUMN", help="what is to be told from a picture")
    parser.add_argument("--size", required=True, type=positive_int, metavar="N", help="side of the crops in pixels")
    parser.add_argument("--train-split", default="train", help="where probes are fitted (default: train)")
    parser.add_argument("--no-probe", action="store_true", help="leave linear probes out")
    parser.add_argument("--teacher", metavar="M", help="folder or Hub name of the teacher: adds zero-shot accuracy")
    parser.add_argument(
        "--pools", metavar="DIR", help="pools of the distillation (default: losses/distillation beside the model)"
    )
    parser.add_argument(
        "--template",
        action="append",
        metavar="TEXT",
        help='what a class is called, with {label} in it (default: "a photo of {label}"); repeat to average',
    )
    _add_count(parser, None, "pictures of each split")
    add_seed_option(parser, "seed of the choice")


def _add_generation(protocols) -> None:
    parser = _add_protocol(
        protocols,
        "generation",
        measuring.generation,
        "Draw from prompts: R-precision, Fréchet distance, precision and recall.\n"
        "A judge compares drawings with prompts, --features looks at all of them as a set; neither may be a teacher.",
        [
            "data/emoji --judge judges/clip --count 500",
            'coco --prompt "{text}" --judge openai/clip-vit-base-patch32 --features timm/inception_v3.tf_in1k',
        ],
        "pipeline folder",
    )
    parser.add_argument(
        "--prompt", metavar="TEXT", help='with columns in braces (default: "{text}", or that of the emoji set)'
    )
    parser.add_argument(
        "--within", metavar="COLUMN", help="rivals have the same value as the right one (emoji set: style)"
    )
    parser.add_argument(
        "--rivals", type=positive_int, default=31, metavar="N", help="candidates beside the right one (default: 31)"
    )
    parser.add_argument("--features", metavar="M", help="vision model for the distances of sets (default: the judge)")
    _add_drawing_options(parser)
    _add_count(parser, 200, "drawings")
    add_seed_option(parser, "seed of the first drawing and of all choices")


def _add_editing(protocols) -> None:
    parser = _add_protocol(
        protocols,
        "editing",
        measuring.editing,
        "Edit pictures: is the result nearest to the target, among the source and other edits?\n"
        "Beside the model: giving the source back, and drawing from the instruction alone.",
        ["data/emoji --count 300 --judge judges/clip", "edits.parquet --split train --by kind"],
        "pipeline folder",
    )
    parser.add_argument("--by", metavar="COLUMN", help="a row for each value of a column (emoji set: kind)")
    parser.add_argument(
        "--rivals", type=positive_int, default=6, metavar="N", help="candidates beside target and source (default: 6)"
    )
    _add_drawing_options(parser)
    add_edit_options(parser)
    _add_count(parser, 200, "edits")
    add_seed_option(parser, "seed of the first drawing and of all choices")


def _add_captioning(protocols) -> None:
    parser = _add_protocol(
        protocols,
        "captioning",
        measuring.captioning,
        "Answer questions about pictures: exact match and F1 of the words, by kind.\n"
        "DATA has the columns image, question and answer; of the emoji set it asks for name, style, group and tone.",
        ["data/emoji --count 300", "vqa.parquet --split train --by kind"],
        "pipeline folder",
    )
    parser.add_argument("--by", metavar="COLUMN", help="a row for each value of a column (emoji set: the question)")
    parser.add_argument(
        "--max-new-tokens", type=positive_int, metavar="N", default=40, help="longest answer in tokens (default: 40)"
    )
    _add_count(parser, 500, "rows")
    add_seed_option(parser, "seed of the choice")


def _size(text: str) -> int | None:
    """Argparse type: a side in pixels, or `native` as None."""
    return None if text == NATIVE else positive_int(text)


def run_evaluate(args: argparse.Namespace) -> None:
    """`uniwetok evaluate`."""
    needed = {"datasets": "datasets", "skimage": "scikit-image"}
    if lacking := [name for module, name in needed.items() if find_spec(module) is None]:
        raise CommandError(f'evaluate needs {" and ".join(lacking)}: pip install "uniwetok-hf[eval]"')
    output = output_folder(args.output or Path("results") / args.kind)
    with user_errors(ValueError, ImportError):
        report = args.measure(args)
        written = report.save(output)
    print(report.to_markdown())
    for path in written:
        print(path)
