"""`uniwetok encode`: pictures to a file of codes."""

import argparse
from pathlib import Path

from .common import (
    ANY_CHECKPOINT,
    CommandError,
    add_command,
    add_model_options,
    read_pictures,
)
from .loading import load_vision_model
from .picture_sizes import add_size_options, make_image_processor, picture_errors, warn_when_large


def add_commands(commands) -> None:
    """Adds the sub-command."""
    parser = add_command(
        commands,
        "encode",
        run_encode,
        "Save the binary codes of pictures: 16 bytes per token of 128 bits.\n"
        "One file holds the codes of all pictures, and their sizes for `uniwetok decode`.",
        ["photo.jpg", "photos/*.jpg --longest-edge 512 --output photos.safetensors"],
    )
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="any picture that Pillow reads")
    add_model_options(parser, ANY_CHECKPOINT)
    parser.add_argument("--output", metavar="FILE", default="codes.safetensors", help="default: codes.safetensors")
    add_size_options(parser)


def run_encode(args: argparse.Namespace) -> None:
    """`uniwetok encode`."""
    import torch

    from uniwetok_hf import save_codes

    output = Path(args.output)
    if output.suffix != ".safetensors" or output.is_dir():
        raise CommandError(f"--output {output} must be a file with the ending .safetensors")
    pictures = read_pictures(args.pictures)
    model = load_vision_model(args.model, args.device)
    image_processor = make_image_processor(model.config, args)
    codes, original_sizes, content_sizes = [], [], []
    for path, picture in zip(args.pictures, pictures, strict=True):
        with picture_errors(path), torch.no_grad():
            inputs = image_processor(picture)
            warn_when_large(model, inputs["pixel_values"].shape, path)
            (one,) = model.encode(inputs["pixel_values"].to(model.device, model.dtype)).codes
        codes.append(one)
        original_sizes += inputs["original_sizes"]
        content_sizes += inputs["content_sizes"]
        num_tokens = one[0].numel()
        num_bytes = one.numel() // 8
        print(f"{path}: {picture.width}x{picture.height} pixels, {num_tokens} tokens, {num_bytes} bytes")
    output.parent.mkdir(parents=True, exist_ok=True)
    print(save_codes(output, codes, model.config, original_sizes, content_sizes))
