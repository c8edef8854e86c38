"""`uniwetok generate` and `edit`: pictures from words, with the unified model."""

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from .common import (
    CommandError,
    add_command,
    add_edit_options,
    add_model_options,
    add_seed_option,
    check_pictures,
    finite_float,
    generator,
    output_paths,
    positive_int,
    progress_bar,
    slug,
    user_errors,
    warn,
)
from .loading import load_pipeline


BATCH_SIZE = 8  # pictures drawn at once
SIDE_HELP = "in pixels (default: the model's own, 128 of uniwetok-emoji)"


def add_commands(commands) -> None:
    """Adds the two sub-commands."""
    parser = add_command(
        commands,
        "generate",
        run_generate,
        "Draw pictures from text.\n"
        "Picture i of a prompt is drawn with seed + i and saved as PROMPT-SEED.png, whatever else is drawn with it.",
        ['"a fluent flat emoji of blue heart"', '"a noto emoji of rocket" "a noto emoji of cat face" --num-images 4'],
    )
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help="what to draw")
    _add_drawing_options(parser)

    parser = add_command(
        commands,
        "edit",
        run_edit,
        "Change a picture as told.\n"
        "The results are saved as PICTURE-INSTRUCTION-SEED.png; picture i is drawn with seed + i.",
        [
            'hand.png "make the skin tone dark"',
            'apple.png "redraw in fluent flat style" --num-images 4 --output edits',
        ],
    )
    parser.add_argument("picture", metavar="PICTURE", help="any picture that Pillow reads")
    parser.add_argument("instruction", metavar="INSTRUCTION", help="what to change")
    _add_drawing_options(parser)
    add_edit_options(parser)


def _add_drawing_options(parser: argparse.ArgumentParser) -> None:
    add_model_options(parser)
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        type=_adapter,
        metavar="A[:W]",
        help="adapter to draw with (folder or Hub id) and its weight (default: 1); repeat to mix several",
    )
    parser.add_argument("--output", metavar="DIR|FILE", help="folder, or file of a single picture (default: .)")
    parser.add_argument("--height", type=positive_int, metavar="N", help=SIDE_HELP)
    parser.add_argument("--width", type=positive_int, metavar="N", help=SIDE_HELP)
    parser.add_argument(
        "--steps", type=positive_int, metavar="N", help="diffusion steps a patch (default: the model's)"
    )
    parser.add_argument(
        "--guidance-scale", type=finite_float, metavar="W", help="weight of the words, 1 = none (default: the model's)"
    )
    parser.add_argument(
        "--num-images", type=positive_int, default=1, metavar="N", help="pictures to draw (default: 1)"
    )
    add_seed_option(parser, "seed of the first picture")


def _adapter(text: str) -> tuple[str, float]:
    """Argparse type: a folder or Hub id, with or without `:weight`."""
    name, _, weight = text.rpartition(":")
    with contextlib.suppress(argparse.ArgumentTypeError):
        return (name, finite_float(weight)) if name else (text, 1.0)
    return text, 1.0


def _load_pipeline(args: argparse.Namespace):
    """The pipeline of `--model` with the adapters of `--lora`."""
    pipeline = load_pipeline(args.model, args.device)
    names = [f"adapter_{index}" for index in range(len(args.lora))]
    with user_errors(ValueError, ImportError, prefix="--lora: "):
        for name, (source, _) in zip(names, args.lora, strict=True):
            pipeline.load_lora_weights(source, adapter_name=name)
        if names:
            pipeline.set_adapters(names, [weight for _, weight in args.lora])
    return pipeline


def run_generate(args: argparse.Namespace) -> None:
    """`uniwetok generate`."""
    prompts = [_not_empty("PROMPT", prompt) for prompt in args.prompts]
    prompts = list(dict.fromkeys(prompts))
    jobs = [(prompt, args.seed + i) for prompt in prompts for i in range(args.num_images)]
    targets = output_paths(args.output, [f"{slug(prompt)}-{seed}" for prompt, seed in jobs])
    pipeline = _load_pipeline(args)
    default = pipeline.config.default_size
    height, width = check_size(pipeline, args.height or default, args.width or default)
    if (height, width) != (default, default):
        warn(f"{width}x{height} is not the model's own {default}x{default}: it makes sense if that was trained, too")
    drawn = draw(
        pipeline,
        [prompt for prompt, _ in jobs],
        [seed for _, seed in jobs],
        height=height,
        width=width,
        num_inference_steps=args.steps,
        guidance_scale=args.guidance_scale,
    )
    _save_all(drawn, targets)


def run_edit(args: argparse.Namespace) -> None:
    """`uniwetok edit`."""
    from uniwetok_hf.data.images import read_image

    instruction = _not_empty("INSTRUCTION", args.instruction)
    seeds = [args.seed + i for i in range(args.num_images)]
    stem = f"{Path(args.picture).stem}-{slug(instruction)}"
    targets = output_paths(args.output, [f"{stem}-{seed}" for seed in seeds], [args.picture])
    check_pictures([args.picture])
    pipeline = _load_pipeline(args)
    picture = read_image(args.picture)
    height, width, content = seen_size(pipeline.processor, picture, args.picture)
    if args.height or args.width:
        height, width = check_size(pipeline, args.height or height, args.width or width)
        content = height, width
    drawn = draw(
        pipeline,
        [instruction] * len(seeds),
        seeds,
        images=[picture] * len(seeds),
        height=height,
        width=width,
        num_inference_steps=args.steps,
        guidance_scale=args.guidance_scale,
        image_guidance_scale=args.image_guidance_scale,
        describe_first=args.describe_first,
    )
    # What the processor padded is no part of the picture.
    _save_all((result.crop((0, 0, content[1], content[0])) for result in drawn), targets)


def _not_empty(name: str, text: str) -> str:
    if not text.strip():
        raise CommandError(f"{name} is empty")
    return text


def check_size(pipeline, height: int, width: int) -> tuple[int, int]:
    """`height` and `width` in pixels, if the model can draw them.

    Raises:
        CommandError: when it can't; it says which sizes it can.
    """
    with user_errors():
        pipeline.processor.picture_tokens(height, width)
    return height, width


def seen_size(processor, picture: Image.Image, name: str) -> tuple[int, int, tuple[int, int]]:
    """Height and width at which the language model sees a picture, and the part of it, from the top left, that is no
    padding.

    Raises:
        CommandError: when the model has no such size.
    """
    with user_errors(prefix=f"{name}: "):
        inputs = processor.image_processor(picture)
        height, width = inputs["pixel_values"].shape[-2:]
        processor.picture_tokens(height, width)
    return height, width, inputs["content_sizes"][0]


def check_prompts(
    pipeline,
    prompts: Sequence[str],
    images: Sequence[Image.Image] | None,
    size: tuple[int, int],
    num_written: int = 0,
):
    """
    Raises:
        CommandError: when a prompt holds special tokens, or is longer than the model can read before it writes
            `num_written` tokens and draws.
    """
    stride = pipeline.processor.stride
    num_following = num_written + (size[0] // stride) * (size[1] // stride)
    with user_errors():
        for start in range(0, len(prompts), BATCH_SIZE):
            part = slice(start, start + BATCH_SIZE)
            sources = None if images is None else list(images[part])
            inputs, _ = pipeline.processor.drawing_inputs(list(prompts[part]), *size, sources)
            pipeline.mllm.config.check_positions(inputs["input_ids"].shape[1], num_following)


def draw(
    pipeline, prompts: Sequence[str], seeds: Sequence[int], images: Sequence[Image.Image] | None = None, **options
) -> Iterator[Image.Image]:
    """Draws one picture for each prompt and seed, or edits `images`, a few at a time, with one generator a picture.
    `options` go to the pipeline; `height` and `width` are among them.

    Codes are decoded one by one: in a batch the last bits of the pixels would depend on the others.
    """
    import torch

    from uniwetok_hf import UniWeTokEditPipeline
    from uniwetok_hf.pipelines.pipeline_uniwetok_edit import MAX_DESCRIPTION_TOKENS

    num_written, said = 0, set()
    if images is not None:
        pipeline = UniWeTokEditPipeline.from_pipe(pipeline)
        pipeline.set_progress_bar_config(disable=True)
        describe_first = options.get("describe_first")
        if pipeline.config.default_describe_first if describe_first is None else describe_first:
            num_written = MAX_DESCRIPTION_TOKENS
    check_prompts(pipeline, prompts, images, (options["height"], options["width"]), num_written)
    with progress_bar(len(prompts), "drawing") as bar:
        for start in range(0, len(prompts), BATCH_SIZE):
            part = slice(start, start + BATCH_SIZE)
            count = len(prompts[part])

            def on_patch(pipe, step, num_steps, tensors, count=count):
                bar.update(count / num_steps)

            sources = () if images is None else (list(images[part]),)
            generators = [generator(seed) for seed in seeds[part]]
            output = pipeline(
                *sources,
                prompt=list(prompts[part]),
                generator=generators,
                output_type="latent",
                callback_on_step_end=on_patch,
                **options,
            )
            for words in output.descriptions or []:
                if words not in said:
                    bar.write(f"described as: {words}", file=sys.stderr)
                said.add(words)
            codes = output.images
            with torch.no_grad():
                pictures = [pipeline.decode(codes[i : i + 1], [generators[i]], "pil")[0] for i in range(count)]
            yield from pictures


def _save_all(pictures: Iterator[Image.Image], targets: Sequence[Path]) -> None:
    """Saves pictures as they come."""
    from tqdm.auto import tqdm

    from uniwetok_hf.data.images import save_image

    for picture, target in zip(pictures, targets, strict=True):
        tqdm.write(str(save_image(picture, target)))  # above the progress bar
