"""`uniwetok decode`: a file of codes to pictures."""

import argparse
from pathlib import Path

from .common import (
    ANY_CHECKPOINT,
    add_command,
    add_model_options,
    add_seed_option,
    make_generator,
    output_paths,
    user_errors,
    warn,
)
from .loading import load_vision_model
from .picture_sizes import picture_errors


def add_commands(commands) -> None:
    """Adds the sub-command."""
    parser = add_command(
        commands,
        "decode",
        run_decode,
        "Decode saved codes to pictures of their original sizes, as CODES-decoded.png.\n"
        "Needs the checkpoint that encoded them; codes of a model with other dimensions are refused.",
        ["codes.safetensors", "photos.safetensors --output photos --seed 1"],
    )
    parser.add_argument("codes", metavar="CODES", help="file that `uniwetok encode` wrote")
    add_model_options(parser, ANY_CHECKPOINT)
    parser.add_argument("--output", metavar="DIR|FILE", help="folder, or file of a single picture (default: .)")
    add_seed_option(parser, "seed of the decoder's noise")


def run_decode(args: argparse.Namespace) -> None:
    """`uniwetok decode`."""
    import torch

    from uniwetok_hf import UniWeTokImageProcessor, load_codes
    from uniwetok_hf.data.images import save_image

    with user_errors():
        saved = load_codes(args.codes)
    stem, count = Path(args.codes).stem, len(saved.codes)
    names = [f"{stem}-decoded"] if count == 1 else [f"{stem}-decoded-{index + 1:03d}" for index in range(count)]
    targets = output_paths(args.output, names)
    model = load_vision_model(args.model, args.device)
    with user_errors(prefix=f"{args.codes}: "):
        saved.check_fits(model.config)
    maker, name = saved.metadata.get("model"), model.config._name_or_path
    if maker and Path(maker).name != Path(name).name:
        warn(f"{args.codes} was encoded by {maker} and is decoded by {name}")
    image_processor = UniWeTokImageProcessor(stride=model.config.stride)
    for index, (codes, target) in enumerate(zip(saved.codes, targets, strict=True)):
        sizes = [None if values is None else [values[index]] for values in (saved.original_sizes, saved.content_sizes)]
        # One generator per picture, so that it does not depend on those decoded before it.
        with picture_errors(args.codes), torch.no_grad():
            batch = codes[None].to(model.device, model.dtype)
            sample = model.decode(batch, generator=make_generator(args.seed)).sample.float()
            (picture,) = image_processor.postprocess(sample, *sizes)
        print(save_image(picture, target))
