"""`uniwetok edit`: a picture and an instruction to a picture."""

import argparse
from pathlib import Path

from .common import add_command, add_edit_options, output_paths, read_picture, slug, user_errors
from .sampling import (
    add_generation_options,
    as_edit_pipeline,
    generate_pictures,
    load_pipeline_with_adapters,
    not_empty,
    save_all,
)


def add_commands(commands) -> None:
    """Adds the sub-command."""
    parser = add_command(
        commands,
        "edit",
        run_edit,
        "Edit a picture by an instruction.\nResult i has the seed SEED + i and the name PICTURE-INSTRUCTION-SEED.png.",
        [
            'hand.png "make the skin tone dark"',
            'apple.png "redraw in fluent flat style" --num-images 4 --output edits',
        ],
    )
    parser.add_argument("picture", metavar="PICTURE", help="any picture that Pillow reads")
    parser.add_argument("instruction", metavar="INSTRUCTION", help="what to change")
    add_generation_options(parser)
    add_edit_options(parser)


def run_edit(args: argparse.Namespace) -> None:
    """`uniwetok edit`."""
    instruction = not_empty("INSTRUCTION", args.instruction)
    seeds = [args.seed + i for i in range(args.num_images)]
    stem = f"{Path(args.picture).stem}-{slug(instruction)}"
    targets = output_paths(args.output, [f"{stem}-{seed}" for seed in seeds], [args.picture])
    picture = read_picture(args.picture)
    pipeline = as_edit_pipeline(load_pipeline_with_adapters(args))
    with user_errors(prefix=f"{args.picture}: "):
        (source,) = pipeline.encode_image(picture)
    height, width = args.height or source.pixel_size[0], args.width or source.pixel_size[1]
    with user_errors():
        pipeline.processor.check_size(height, width)
    edited = generate_pictures(
        pipeline,
        [instruction] * len(seeds),
        seeds,
        images=[source] * len(seeds),
        height=height,
        width=width,
        content_size=None if args.height or args.width else source.content_size,
        num_inference_steps=args.steps,
        guidance_scale=args.guidance_scale,
        image_guidance_scale=args.image_guidance_scale,
        describe_first=args.describe_first,
    )
    save_all(edited, targets)
