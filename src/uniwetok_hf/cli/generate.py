"""`uniwetok generate`: text to image, or class to image."""

import argparse

from .common import CommandError, add_command, make_generator, output_paths, slug, user_errors, warn
from .loading import load_class_pipeline
from .sampling import (
    BATCH_SIZE,
    add_generation_options,
    generate_pictures,
    load_pipeline_with_adapters,
    not_empty,
    save_all,
)


def add_commands(commands) -> None:
    """Adds the sub-command."""
    parser = add_command(
        commands,
        "generate",
        run_generate,
        "Generate pictures from text, or of a class.\n"
        "Picture i of a prompt has the seed SEED + i and the name PROMPT-SEED.png, and does not depend on its batch.",
        [
            '"a fluent flat emoji of blue heart"',
            '"a noto emoji of rocket" "a noto emoji of cat face" --num-images 4',
            "--class otter --class 207 --model runs/imagenet_b/pipeline",
        ],
    )
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="what to generate")
    parser.add_argument(
        "--class",
        dest="classes",
        action="append",
        default=[],
        metavar="C",
        help="instead of prompts, name or number of a class of a class-to-image pipeline; repeat",
    )
    add_generation_options(parser)


def run_generate(args: argparse.Namespace) -> None:
    """`uniwetok generate`."""
    if bool(args.prompts) == bool(args.classes):
        args.parser.error("give PROMPT, or --class with a class-to-image pipeline as --model")
    if args.classes:
        return generate_classes(args)
    prompts = [not_empty("PROMPT", prompt) for prompt in args.prompts]
    prompts = list(dict.fromkeys(prompts))
    jobs = [(prompt, args.seed + i) for prompt in prompts for i in range(args.num_images)]
    targets = output_paths(args.output, [f"{slug(prompt)}-{seed}" for prompt, seed in jobs])
    pipeline = load_pipeline_with_adapters(args)
    default = pipeline.config.default_size
    height, width = args.height or default, args.width or default
    with user_errors():
        pipeline.processor.check_size(height, width)
    if (height, width) != (default, default):
        warn(f"{width}x{height} is not the model's default {default}x{default}: use sizes that it was trained on")
    pictures = generate_pictures(
        pipeline,
        [prompt for prompt, _ in jobs],
        [seed for _, seed in jobs],
        height=height,
        width=width,
        num_inference_steps=args.steps,
        guidance_scale=args.guidance_scale,
    )
    save_all(pictures, targets)


def generate_classes(args: argparse.Namespace) -> None:
    """Pictures of classes."""
    if given := [name for name in ("lora", "height", "width") if getattr(args, name)]:
        raise CommandError(f"--class takes no --{given[0]}")
    if args.model is None:
        raise CommandError("--class needs a class-to-image pipeline as --model: uniwetok-emoji generates from text")
    pipeline = load_class_pipeline(args.model, args.device)
    classes = list(dict.fromkeys(int(one) if one.isdecimal() else one for one in args.classes))
    with user_errors():
        numbers = pipeline.check_inputs(classes, 1, 1.0, "linear", 1, None, "pil", ())
    jobs = [(name, number, args.seed + i) for name, number in zip(classes, numbers) for i in range(args.num_images)]
    targets = output_paths(args.output, [f"{slug(str(name))}-{seed}" for name, _, seed in jobs])
    for start in range(0, len(jobs), BATCH_SIZE):
        part = slice(start, start + BATCH_SIZE)
        generators = [make_generator(seed) for _, _, seed in jobs[part]]
        codes = pipeline(
            [number for _, number, _ in jobs[part]],
            num_inference_steps=args.steps,
            guidance_scale=args.guidance_scale,
            generator=generators,
            output_type="latent",
        ).images
        # One by one: in a batch the last bits of the pixels would depend on the others.
        decoded = (pipeline.decode(one[None], [own], "pil")[0] for one, own in zip(codes, generators, strict=True))
        save_all(decoded, targets[part])
