"""`uniwetok generate`: text to image."""

import argparse

from .common import add_command, output_paths, slug, user_errors, warn
from .sampling import (
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
        "Generate pictures from text.\n"
        "Picture i of a prompt has the seed SEED + i and the name PROMPT-SEED.png, and does not depend on its batch.",
        ['"a fluent flat emoji of blue heart"', '"a noto emoji of rocket" "a noto emoji of cat face" --num-images 4'],
    )
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help="what to generate")
    add_generation_options(parser)


def run_generate(args: argparse.Namespace) -> None:
    """`uniwetok generate`."""
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
