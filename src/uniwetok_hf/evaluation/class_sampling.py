# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Many pictures of all classes, as scores of class-to-image models want them: 50,000 of ImageNet's 1,000.

Picture i has the class i modulo the number of classes, a generator of its own, and its place in a batch of pictures
i // B * B to i // B * B + B - 1: it depends neither on how many processes share the work, nor on interruptions.
Classes take turns, because evaluators take the Inception score of parts, in the order of the file: of parts with few
classes it would be low. A batch is a file in `parts` until the last one is there; then they become one `.npz` with
`arr_0`, uint8 [count, H, W, 3], as the evaluator of ADM (Dhariwal & Nichol 2021) reads it. No more than one batch is
in memory.
"""

import shutil
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ..data.samples import stream_seed
from ..files import whole_file, writing
from ..signals import Stopped
from .runs import begin_run, weights_digest


PARTS, SAMPLES = "parts", "samples.npz"


def sample_classes(
    pipe,
    folder: str | Path,
    num_images: int,
    batch_size: int = 50,
    *,
    seed: int = 0,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    guidance_schedule: str | None = None,
    process_index: int = 0,
    num_processes: int = 1,
    on_images: Callable[[int], object] | None = None,
    stop: threading.Event | None = None,
) -> Path | None:
    """Generates this process' batches, and goes on where an interrupted run stopped.

    Args:
        pipe: a [`UniWeTokClassToImagePipeline`].
        folder: gets `settings.json` and, when all is done, `samples.npz`.
        num_images: pictures in all, the same number of each class, or one more.
        batch_size: pictures generated at once; those of a batch don't depend on the number of processes.
        seed: of all pictures.
        num_inference_steps, guidance_scale, guidance_schedule: as in a call of the pipeline.
        process_index, num_processes: which batches are this process'.
        on_images: called with the number of pictures after each batch, also for those that were there.
        stop: when it is set, the run ends after the current batch.

    Returns:
        The `.npz`, or None when batches of other processes are missing.

    Raises:
        ValueError: when `folder` was begun with other settings or weights, or holds pictures of no known ones, or an
            argument is out of range.
        Stopped: when `stop` was set.
        OSError: when the folder can't be written.
    """
    for name, value in {"num_images": num_images, "batch_size": batch_size}.items():
        if value < 1:
            raise ValueError(f"`{name}` must be 1 or more, got {value}.")
    folder, config = Path(folder), pipe.config
    settings = {
        "num_images": num_images,
        "batch_size": batch_size,
        "seed": seed,
        "num_inference_steps": num_inference_steps or config.default_num_inference_steps,
        "guidance_scale": config.default_guidance_scale if guidance_scale is None else guidance_scale,
        "guidance_schedule": guidance_schedule or config.default_guidance_schedule,
        "shift": pipe.scheduler.config.shift,
        "temperature": pipe.scheduler.config.temperature,
        "num_classes": pipe.transformer.config.num_classes,
        "class_of_picture": "its number modulo num_classes",
        "image_size": pipe.image_size,
        "dtype": str(pipe.transformer.dtype).removeprefix("torch."),
        "weights": weights_digest(pipe.transformer, pipe.vision_model),
    }
    begin_run(folder, settings, outputs=(PARTS, SAMPLES))
    with writing(folder):
        (folder / PARTS).mkdir(exist_ok=True)
    result, options = folder / SAMPLES, ("num_inference_steps", "guidance_scale", "guidance_schedule")
    if result.is_file():
        return result
    num_batches = -(-num_images // batch_size)
    for index in range(process_index, num_batches, num_processes):
        numbers = range(index * batch_size, min((index + 1) * batch_size, num_images))
        path = _part(folder, index)
        if not path.is_file():
            if stop is not None and stop.is_set():
                raise Stopped(f"stopped before picture {numbers[0]}; the same command continues from there")
            images = pipe(
                [number % settings["num_classes"] for number in numbers],
                generator=[torch.Generator().manual_seed(stream_seed(seed, number)) for number in numbers],
                **{name: settings[name] for name in options},
            ).images
            with whole_file(path) as temporary, open(temporary, "wb") as file:
                np.save(file, np.stack([np.asarray(image) for image in images]))
        if on_images is not None:
            on_images(len(numbers))
    return _finish(folder, num_images, num_batches)


def _part(folder: Path, index: int) -> Path:
    return folder / PARTS / f"{index:06d}.npy"


def _finish(folder: Path, num_images: int, num_batches: int) -> Path | None:
    """Joins the parts, when all are there. Several processes may do so at once: one result replaces the other."""
    parts, result = [_part(folder, index) for index in range(num_batches)], folder / SAMPLES
    try:
        if not all(part.is_file() for part in parts):
            return result if result.is_file() else None
        shape = (num_images, *np.load(parts[0], mmap_mode="r").shape[1:])
        with (
            whole_file(result, is_shared=True) as temporary,
            zipfile.ZipFile(temporary, "w") as archive,
            # Of no date, so that equal pictures are equal files.
            archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as file,
        ):
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_2_0(file, header)
            for part in parts:
                file.write(np.load(part).tobytes())
    except FileNotFoundError:  # another process has joined and removed them
        if not result.is_file():
            raise
    shutil.rmtree(folder / PARTS, ignore_errors=True)
    return result
