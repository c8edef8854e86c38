"""What `generate` and `edit` share: options of generation, adapters, and pictures that are saved as they come."""

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from .common import (
    CommandError,
    add_model_options,
    add_seed_option,
    finite_float,
    make_generator,
    positive_int,
    user_errors,
)
from .loading import load_pipeline


BATCH_SIZE = 8  # pictures generated at once
SIDE_HELP = "in pixels (default: the model's, 128 of uniwetok-emoji)"


def add_generation_options(parser: argparse.ArgumentParser) -> None:
    """The options of `generate` and `edit`."""
    add_model_options(parser)
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        type=adapter,
        metavar="A[:W]",
        help="adapter (folder or Hub id) and its weight (default: 1); repeat to mix several",
    )
    parser.add_argument("--output", metavar="DIR|FILE", help="folder, or file of a single picture (default: .)")
    parser.add_argument("--height", type=positive_int, metavar="N", help=SIDE_HELP)
    parser.add_argument("--width", type=positive_int, metavar="N", help=SIDE_HELP)
    parser.add_argument(
        "--steps", type=positive_int, metavar="N", help="diffusion steps per patch (default: the model's)"
    )
    parser.add_argument(
        "--guidance-scale",
        type=finite_float,
        metavar="W",
        help="weight of the prompt, 1 = no guidance (default: the model's)",
    )
    parser.add_argument(
        "--num-images", type=positive_int, default=1, metavar="N", help="number of pictures (default: 1)"
    )
    add_seed_option(parser, "seed of the first picture")


def adapter(text: str) -> tuple[str, float]:
    """Argparse type: a folder or Hub id, with or without `:weight`."""
    name, _, weight = text.rpartition(":")
    with contextlib.suppress(argparse.ArgumentTypeError):
        return (name, finite_float(weight)) if name else (text, 1.0)
    return text, 1.0


def load_pipeline_with_adapters(args: argparse.Namespace):
    """The pipeline of `--model` with the adapters of `--lora`."""
    pipeline = load_pipeline(args.model, args.device)
    names = [f"adapter_{index}" for index in range(len(args.lora))]
    with user_errors(ValueError, ImportError, prefix="--lora: "):
        for name, (source, _) in zip(names, args.lora, strict=True):
            pipeline.load_lora_weights(source, adapter_name=name)
        if names:
            pipeline.set_adapters(names, [weight for _, weight in args.lora])
    return pipeline


def not_empty(name: str, text: str) -> str:
    """`text`, if it has any words; `name` is the argument that the error names."""
    if not text.strip():
        raise CommandError(f"{name} is empty")
    return text


def as_edit_pipeline(pipeline):
    """The edit pipeline of the same parts, without bars of its own."""
    from uniwetok_hf import UniWeTokEditPipeline

    edit_pipeline = UniWeTokEditPipeline.from_pipe(pipeline)
    edit_pipeline.set_progress_bar_config(disable=True)
    return edit_pipeline


def check_prompts(
    pipeline, prompts: Sequence[str], height: int, width: int, images: Sequence | None, describe_first: bool | None
) -> None:
    """Checks all prompts before the first picture is generated.

    Raises:
        CommandError: when a prompt holds special tokens, or is longer than the model can read before it describes the
            result and generates the picture.
    """
    from uniwetok_hf.pipelines.pipeline_uniwetok_edit import MAX_DESCRIPTION_TOKENS

    described = images is not None and pipeline.value_or_default("describe_first", describe_first)
    num_image_tokens = height * width // pipeline.processor.stride**2
    with user_errors():
        for start in range(0, len(prompts), BATCH_SIZE):
            part = slice(start, start + BATCH_SIZE)
            sources = () if images is None else (images[part],)
            inputs = pipeline.encode_prompt(*sources, list(prompts[part]), height, width)
            if described:
                length = inputs["input_ids"].shape[1]
                pipeline.mllm.config.check_positions(length, MAX_DESCRIPTION_TOKENS + num_image_tokens)


def generate_pictures(
    pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    height: int,
    width: int,
    images: Sequence | None = None,
    describe_first: bool | None = None,
    content_size: tuple[int, int] | None = None,
    **options,
) -> Iterator:
    """Generates one picture for each prompt and seed, in batches of `BATCH_SIZE` with one generator per picture.

    Codes are decoded one by one: in a batch the last bits of the pixels would depend on the others.

    Args:
        pipeline: for text-to-image, or with `images` the edit pipeline.
        prompts, seeds: one of each per picture.
        height, width: size in pixels.
        images: what `encode_image` of the edit pipeline returned, one per prompt.
        describe_first: of the edit pipeline.
        content_size: (height, width) in pixels of the top left part of the pictures to keep, where the sources were
            padded.
        options: further ones of a call of the pipeline.

    Raises:
        CommandError: when a prompt can't be read.
    """
    from tqdm.auto import tqdm

    check_prompts(pipeline, prompts, height, width, images, describe_first)
    described = set()
    layout = "{desc}: {percentage:3.0f}% |{bar}| {elapsed}, {remaining} left"
    with tqdm(total=len(prompts), desc="generating", bar_format=layout, leave=False, disable=None) as bar:
        for start in range(0, len(prompts), BATCH_SIZE):
            part = slice(start, start + BATCH_SIZE)
            generators = [make_generator(seed) for seed in seeds[part]]
            count = len(generators)

            def on_patch(pipe, step, num_steps, tensors, count=count):
                bar.update(count / num_steps)

            sources = {} if images is None else {"image": list(images[part]), "describe_first": describe_first}
            output = pipeline(
                **sources,
                prompt=list(prompts[part]),
                height=height,
                width=width,
                generator=generators,
                output_type="latent",
                callback_on_step_end=on_patch,
                **options,
            )
            for description in output.descriptions or []:
                if description not in described:
                    bar.write(f"described as: {description}", file=sys.stderr)
                described.add(description)
            kept = None if content_size is None else [content_size]
            for codes, own in zip(output.images, generators, strict=True):
                yield pipeline.decode(codes[None], [own], "pil", kept)[0]


def save_all(pictures: Iterator, targets: Sequence[Path]) -> None:
    """Saves each picture as soon as it is generated."""
    from tqdm.auto import tqdm

    from uniwetok_hf.data.images import save_image

    for picture, target in zip(pictures, targets, strict=True):
        tqdm.write(str(save_image(picture, target)))  # above the progress bar
