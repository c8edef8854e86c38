"""`uniwetok reconstruct`: pictures to codes and back."""

import argparse
import contextlib
from pathlib import Path

from .common import (
    ANY_CHECKPOINT,
    add_command,
    add_model_options,
    add_seed_option,
    check_not_read,
    output_paths,
    read_pictures,
)
from .loading import load_vision_model
from .picture_sizes import add_size_options, make_image_processor, picture_errors, warn_when_large


GAP = 8  # pixels between the two halves of a side-by-side picture


def add_commands(commands) -> None:
    """Adds the sub-command."""
    parser = add_command(
        commands,
        "reconstruct",
        run_reconstruct,
        "Encode pictures to binary codes and decode them again, at any size.\n"
        "Writes NAME-reconstruction.png and NAME-side-by-side.png, and prints PSNR (and SSIM with scikit-image).",
        ["photo.jpg", "photos/*.jpg --longest-edge 512 --output reconstructions"],
    )
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="any picture that Pillow reads")
    add_model_options(parser, ANY_CHECKPOINT)
    parser.add_argument("--output", metavar="DIR|FILE", help="folder, or file of a single reconstruction (default: .)")
    add_size_options(parser)
    add_seed_option(parser, "seed of the decoder's noise")


def run_reconstruct(args: argparse.Namespace) -> None:
    """`uniwetok reconstruct`."""
    from uniwetok_hf.data.images import save_image
    from uniwetok_hf.evaluation.reconstruction import reconstruct_prepared

    targets = output_paths(args.output, [f"{Path(path).stem}-reconstruction" for path in args.pictures], args.pictures)
    besides = [path.with_stem(path.stem.removesuffix("-reconstruction") + "-side-by-side") for path in targets]
    check_not_read(besides, args.pictures)
    pictures = read_pictures(args.pictures)
    model = load_vision_model(args.model, args.device)
    image_processor = make_image_processor(model.config, args)
    for path, picture, target, beside in zip(args.pictures, pictures, targets, besides, strict=True):
        with picture_errors(path):
            inputs = image_processor(picture)
            warn_when_large(model, inputs["pixel_values"].shape, path)
            (result,) = reconstruct_prepared(model, image_processor, inputs, [picture], args.seed)
        print(f"{path}: {describe_reconstruction(result)}")
        print(f"  {save_image(result.result, target)}")
        print(f"  {save_image(side_by_side(result.original, result.result), beside)}")


def describe_reconstruction(result) -> str:
    """The metrics of a `Reconstruction` in one line."""
    width, height = result.original.size
    line = f"{width}x{height} pixels, {result.num_tokens} tokens, {result.num_bytes} bytes, {quality(result)}"
    if result.seen.size != result.original.size:
        line += f" (at the model's {result.seen.width}x{result.seen.height}: {_quality(result.seen, result.decoded)})"
    return line


def quality(result) -> str:
    """PSNR, and SSIM where scikit-image is installed."""
    return _quality(result.original, result.result)


def _quality(original, result) -> str:
    from uniwetok_hf.evaluation.metrics import psnr, ssim

    text = f"PSNR {psnr(result, original):.2f} dB"
    with contextlib.suppress(ImportError):
        if min(original.size) >= 7:  # the window of SSIM
            text += f", SSIM {ssim(result, original):.3f}"
    return text


def side_by_side(left, right):
    """Two pictures of the same size with a white gap between them."""
    from PIL import Image

    both = Image.new("RGB", (left.width + GAP + right.width, left.height), "white")
    both.paste(left, (0, 0))
    both.paste(right, (left.width + GAP, 0))
    return both
