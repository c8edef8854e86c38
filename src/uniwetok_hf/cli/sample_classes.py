"""`uniwetok sample-classes`: many pictures of all classes, for the scores of a class-to-image model."""

import argparse
import sys
import threading
from pathlib import Path

from uniwetok_hf.signals import signals_set

from .common import add_command, add_seed_option, finite_float, positive_int, user_errors
from .encode_dataset import device_of_process, machine


def add_commands(commands) -> None:
    """Adds the sub-command."""
    parser = add_command(
        commands,
        "sample-classes",
        run_sample_classes,
        "Generate thousands of pictures of all classes, into an npz file that evaluators read.\n"
        "Under `accelerate launch` all processes share them; an interrupted run is resumed by the same command.",
        ["runs/imagenet_b/pipeline results/imagenet_b", "runs/classes/pipeline results/classes --num-images 1000"],
    )
    add_sampling_options(parser)


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """What `run_sample_classes` reads."""
    parser.add_argument("pipeline", metavar="PIPELINE", help="class-to-image pipeline folder or Hub id")
    parser.add_argument("out", metavar="OUT", help="folder: settings.json, and at the end samples.npz")
    parser.add_argument(
        "--num-images", type=positive_int, default=50_000, metavar="N", help="number of pictures (default: 50000)"
    )
    parser.add_argument(
        "--batch-size", type=positive_int, default=50, metavar="N", help="pictures generated at once (default: 50)"
    )
    parser.add_argument(
        "--steps", type=positive_int, metavar="N", help="diffusion steps per patch (default: the model's)"
    )
    parser.add_argument(
        "--guidance-scale", type=finite_float, metavar="W", help="weight of the class (default: the model's)"
    )
    parser.add_argument(
        "--guidance-schedule",
        choices=("linear", "constant"),
        help="course of the guidance over the patches (default: the model's)",
    )
    parser.add_argument("--device", default="cpu", help="cpu (default, in float32), cuda, cuda:1, ... or mps")
    add_seed_option(parser, "seed of all pictures")


def run_sample_classes(args: argparse.Namespace) -> None:
    """`uniwetok sample-classes`."""
    result = sample(args)
    if result is None:
        print(
            f"{args.out}: the pictures of process {machine()[0]} are done; the last of {machine()[1]} joins them",
            file=sys.stderr,
        )
    else:
        print(result)


def sample(args: argparse.Namespace) -> Path | None:
    """Generates the pictures; returns the `.npz`, or None where other processes still work."""
    from tqdm.auto import tqdm

    from uniwetok_hf.evaluation.class_sampling import sample_classes

    from .loading import load_class_pipeline

    rank, world_size = machine()
    pipeline = load_class_pipeline(args.pipeline, device_of_process(args.device))
    stop = threading.Event()
    share = sum(
        min(start + args.batch_size, args.num_images) - start
        for start in range(rank * args.batch_size, args.num_images, world_size * args.batch_size)
    )
    with (
        user_errors(),
        signals_set(stop, "Stopping after this batch. Press Ctrl-C again to stop at once."),
        tqdm(total=share, desc="sampling", unit=" pictures", disable=None if rank == 0 else True) as bar,
    ):
        return sample_classes(
            pipeline,
            args.out,
            args.num_images,
            args.batch_size,
            seed=args.seed,
            num_inference_steps=args.steps,
            guidance_scale=args.guidance_scale,
            guidance_schedule=args.guidance_schedule,
            process_index=rank,
            num_processes=world_size,
            on_images=bar.update,
            stop=stop,
        )
