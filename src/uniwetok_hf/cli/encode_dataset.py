"""`uniwetok encode-dataset`: a dataset of pictures to a dataset of codes, to train the language model on."""

import argparse
import os
import re
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

from uniwetok_hf.files import read_json
from uniwetok_hf.signals import signals_set

from .common import (
    ANY_CHECKPOINT,
    CommandError,
    add_command,
    add_max_skipped_share,
    add_model_options,
    add_seed_option,
    finite_float,
    positive_int,
    resolve_device,
    user_errors,
    warn,
)
from .convert import DTYPES
from .loading import find_checkpoint, load_vision_model


def add_commands(commands) -> None:
    """Adds the sub-command."""
    parser = add_command(
        commands,
        "encode-dataset",
        run_encode_dataset,
        "Encode the pictures of a dataset, to train a language model on codes.\n"
        "Other columns are kept. After an interruption the same command resumes; needs the extra `train`.",
        [
            "photos photo-codes --size 256",
            "edits.parquet edit-codes --columns source target --size 256 --variants 4",
            '"shards/*.parquet" codes --size 512 384x640 640x384 --num-processes 4',
            '"shards/*.tar" codes --streaming --longest-edge 512 --device cuda --dtype bfloat16 --batch-size 64',
        ],
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="folder of `save_to_disk`, folder of pictures, Parquet or WebDataset files, Hub id of a dataset, "
        "FILE.py:NAME (a function of your own, called with the split), or embedded-pictures",
    )
    parser.add_argument("out", metavar="OUT", help="output folder")
    _add_source_options(parser)
    _add_picture_options(parser)
    add_model_options(parser, ANY_CHECKPOINT)
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="precision of the model (default: float32)")
    parser.add_argument(
        "--batch-size", type=positive_int, default=16, metavar="N", help="pictures encoded at once (default: 16)"
    )
    parser.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="local (default): this machine; ray: the cluster of RAY_ADDRESS, or a Ray that is started for it on this "
        "machine (extra `ray`)",
    )
    parser.add_argument(
        "--num-processes",
        type=positive_int,
        default=1,
        metavar="N",
        help="processes on this machine, or actors of Ray (default: 1); with --device cuda they share the GPUs "
        "evenly. On several machines without Ray, run it on each with RANK and WORLD_SIZE set, or by Slurm's srun, "
        "and OUT in a shared folder; of a stream that has a shard for each, a machine reads its own only",
    )


def _add_source_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--split", default="train", help="which part of the dataset (default: train)")
    parser.add_argument("--name", help="configuration of a dataset on the Hub")
    parser.add_argument("--streaming", action="store_true", help="stream the dataset, without a local copy")
    parser.add_argument(
        "--columns", nargs="+", metavar="COLUMN", help="columns of pictures (default: all; the others are dropped)"
    )
    add_max_skipped_share(parser)
    parser.add_argument(
        "--rows-per-part",
        type=positive_int,
        metavar="N",
        help="rows per file of OUT (default: as many as have 100 MB of codes, but at least 1000, and of a dataset "
        "that is not streamed at most a 64th)",
    )


def _add_picture_options(parser: argparse.ArgumentParser) -> None:
    sizes = parser.add_mutually_exclusive_group(required=True)
    sizes.add_argument(
        "--size",
        nargs="+",
        type=_size,
        metavar="N|HxW",
        help="height and width in pixels. A picture is scaled to cover the size and centre-cropped; of several "
        "sizes the one nearest to its aspect ratio is used",
    )
    sizes.add_argument(
        "--longest-edge",
        type=positive_int,
        metavar="N",
        help="keep the aspect ratio; scale larger pictures down to at most N pixels per side",
    )
    parser.add_argument(
        "--fit", choices=("crop", "resize"), default="crop", help="crop (default) or resize what does not fit"
    )
    parser.add_argument(
        "--patch-size",
        type=positive_int,
        metavar="P",
        help="make sides multiples of P tokens, for language models that generate P x P tokens at once (default: "
        "that of the pipeline in --model, or 1)",
    )
    parser.add_argument(
        "--variants",
        type=positive_int,
        default=1,
        metavar="K",
        help="encode each picture K times: whole, and K - 1 random crops, the same in all columns (default: 1)",
    )
    parser.add_argument(
        "--crop-scale", type=finite_float, default=0.8, metavar="S", help="smallest side of a crop (default: 0.8)"
    )
    parser.add_argument(
        "--flip",
        action="store_true",
        help="flip half of the crops horizontally; not where letters, or left and right, matter",
    )
    parser.add_argument(
        "--mirrored",
        action="store_true",
        help="encode the mirror image of each of the K, too, for class-to-image training",
    )
    parser.add_argument(
        "--same-crops",
        action="store_true",
        help="use the same crops in all rows, for edits that are pairs of rows",
    )
    add_seed_option(parser, "seed of the crops")


def _size(text: str) -> tuple[int, int]:
    """Argparse type: `256` or `384x640`, as (height, width)."""
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if not found or 0 in (size := (int(found[1]), int(found[2] or found[1]))):
        raise argparse.ArgumentTypeError(f"must be N or HEIGHTxWIDTH in pixels, got {text!r}")
    return size


def run_encode_dataset(args: argparse.Namespace) -> None:
    """`uniwetok encode-dataset`."""
    if find_spec("datasets") is None:
        raise CommandError('encode-dataset needs datasets: pip install "uniwetok-hf[train]"')
    if args.engine == "ray" and find_spec("ray") is None:
        raise CommandError('--engine ray needs Ray: pip install "uniwetok-hf[ray]"')
    import datasets
    import torch

    from uniwetok_hf.data.encoded import ENCODING_FILE
    from uniwetok_hf.data.encoded_parts import EncodingSettings
    from uniwetok_hf.data.encoding import encode_dataset, encoded_features
    from uniwetok_hf.data.sources import PictureSource, open_rows

    if args.engine == "local":  # the GPUs of Ray are elsewhere
        resolve_device(args.device)
    rank, world_size = machine(reads_slurm=args.engine == "local")  # Ray finds its machines
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    checkpoint = find_checkpoint(args.model)
    model = load_vision_model(checkpoint, "cpu").to(getattr(torch, args.dtype))
    with user_errors(ValueError, OSError):
        # Of the language model, which has the patch size; an image tokenizer alone has none.
        config = read_json(checkpoint.model_folder / "config.json")
        settings = EncodingSettings(
            sizes=tuple(args.size or ()),
            longest_edge=args.longest_edge,
            patch_size=args.patch_size or config.get("patch_size", 1),
            fit=args.fit,
            columns=args.columns and tuple(args.columns),
            num_variants=args.variants,
            crop_scale=args.crop_scale,
            flip=args.flip,
            mirrored=args.mirrored,
            same_crops=args.same_crops,
            seed=args.seed,
            rows_per_part=args.rows_per_part,
            batch_size=args.batch_size,
            source=" ".join(filter(None, (args.source, args.name, args.split))),
        )
        settings.check_stride(model.config.stride)  # before a dataset is downloaded
        dataset = open_rows(PictureSource(args.source, args.split, args.name, streaming=args.streaming))
        ended_before = _time_of(Path(args.out) / ENCODING_FILE)
        stop = threading.Event()
        with signals_set(stop, "Stopping after the parts that are being made. Press Ctrl-C again to stop at once."):
            encoding = encode_dataset(
                dataset,
                args.out,
                model,
                settings,
                args.device,
                args.num_processes,
                rank,
                world_size,
                args.max_skipped_share,
                stop,
                args.engine,
            )
    if encoding is None:
        print(f"{args.out}: the parts of machine {rank} are done; the last of {world_size} machines finishes")
        return
    if encoding.num_skipped:
        warn(f"{encoding.num_skipped} rows were skipped, see {Path(args.out) / 'skipped.jsonl'}")
    features = encoded_features(dataset.features, encoding.picture_columns)
    others = [name for name in features if name not in encoding.picture_columns]
    for line in describe_encoding(encoding):
        print(line)
    none = "none: no text to train on (a folder of pictures has its texts in metadata.jsonl)"
    print(f"columns beside the codes: {', '.join(others) or none}")
    if ended_before is not None and ended_before == _time_of(Path(args.out) / ENCODING_FILE):
        print("it was complete already, nothing to do")
    print(args.out)


def machine(reads_slurm: bool = True) -> tuple[int, int]:
    """Which machine or process this is, and of how many, as the environment says: for those that share work by their
    numbers alone, without `torch.distributed`, so that the tasks of Slurm's `srun` can, too."""
    names = ("RANK", "WORLD_SIZE")
    if reads_slurm and not any(name in os.environ for name in names):
        tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "")  # of `srun`; a script of `sbatch` has a SLURM_PROCID, too
        if "SLURM_PROCID" in os.environ and tasks.isdecimal() and int(tasks) > 1:
            names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
    rank, world_size = (os.environ.get(name, default) for name, default in zip(names, ("0", "1"), strict=True))
    if not (rank.isdecimal() and world_size.isdecimal() and int(rank) < int(world_size)):
        raise CommandError(
            f"{names[0]}={rank} and {names[1]}={world_size} in the environment must be a machine's number, from 0 on, "
            "and the number of machines"
        )
    return int(rank), int(world_size)


def device_of_process(device: str) -> str:
    """`device`, of "cuda" that of this process of a machine."""
    rank = os.environ.get("LOCAL_RANK", "")
    return f"cuda:{rank}" if device == "cuda" and rank.isdecimal() else device


def _time_of(path: Path) -> int | None:
    """When a file was written, if it was."""
    return path.stat().st_mtime_ns if path.exists() else None


def describe_encoding(encoding) -> list[str]:
    """Lines of metrics: sizes and speed."""
    number = encoding.bytes["pictures"]
    variants = f", {encoding.num_variants} variants of each" if encoding.num_variants > 1 else ""
    lines = [f"{encoding.num_rows} rows with {number} pictures{variants}"]
    codes, source, jpeg = (encoding.bytes[name] for name in ("codes", "source", "jpeg"))
    if codes:
        lines.append(f"codes: {codes:.0f} bytes per picture; stored before: {source:.0f} ({source / codes:.1f} times)")
    if codes and jpeg:
        count = encoding.bytes["jpeg_pictures"]
        lines[-1] += f"; as JPEG of quality 90: {jpeg:.0f} ({jpeg / codes:.1f} times, measured on {count})"
    if encoding.pictures_per_second:
        lines.append(f"{encoding.pictures_per_second:.1f} pictures per second")
    return lines
