# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The pictures of a benchmark, as the files that its judge reads.

Picture k of a benchmark has the seed of its number and its place in a fixed batch: it depends neither on how many
processes share the work, nor on interruptions. A file is written whole or not at all, and what is there is not made
again.
"""

import hashlib
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import isqrt
from pathlib import Path

import torch
from PIL import Image

from ...data.samples import stream_seed
from ...files import whole_file, writing
from ...signals import Stopped
from ..prompts import encoded_size
from ..rows import batched


@dataclass(frozen=True)
class BenchmarkFile:
    """One file: its path below the folder that the judge reads, and what is in it.

    Args:
        path: with `/`, relative.
        prompt: what is to be generated, or done to the source.
        num_images: pictures in it; four are a grid of two by two, row by row, without a border.
        read_source: gives the picture to edit.
    """

    path: str
    prompt: str
    num_images: int = 1
    read_source: Callable[[], Image.Image] | None = None


def prompts_digest(files: Sequence[BenchmarkFile]) -> str:
    """SHA-256 of paths and prompts, in the order of the paths."""
    lines = sorted(f"{file.path}\t{file.prompt}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def sources_digest(files: Sequence[BenchmarkFile]) -> str:
    """SHA-256 of the pixels of all sources, in the order of the paths.

    Raises:
        ValueError: when one can't be read.
    """
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.path):
        source = _source_of(file)
        digest.update(f"{file.path} {source.size}\n".encode() + source.tobytes())
    return digest.hexdigest()


def make_grid(pictures: Sequence[Image.Image]) -> Image.Image:
    """One picture, or a square of several of one size, row by row."""
    if len(pictures) == 1:
        return pictures[0]
    side = isqrt(len(pictures))
    width, height = pictures[0].size
    grid = Image.new("RGB", (side * width, side * height))
    for index, picture in enumerate(pictures):
        grid.paste(picture, (index % side * width, index // side * height))
    return grid


def plan_batches(pipe, files: Sequence[BenchmarkFile], batch_size: int) -> list[list[int]]:
    """Indices of the files that are generated together: all of a batch have one size.

    Raises:
        ValueError: when a source can't be read.
    """
    by_size: dict[tuple[int, int] | None, list[int]] = {}
    for index, file in enumerate(files):
        by_size.setdefault(None if file.read_source is None else _size_of_result(pipe, file), []).append(index)
    files_at_once = max(1, batch_size // files[0].num_images)
    return [part for indices in by_size.values() for part in batched(indices, files_at_once)]


def _source_of(file: BenchmarkFile) -> Image.Image:
    try:
        return file.read_source()  # ty: ignore[call-non-callable]
    except (ValueError, OSError) as error:
        raise ValueError(f"the source of {file.path} can't be read: {error}") from error


def _size_of_result(pipe, file: BenchmarkFile) -> tuple[int, int]:
    """(height, width) in pixels of the edit of a source, with padding."""
    return encoded_size(pipe.processor, _source_of(file))


def generate_files(
    pipe,
    files: Sequence[BenchmarkFile],
    folder: Path,
    batch_size: int = 16,
    seed: int = 0,
    process_index: int = 0,
    num_processes: int = 1,
    on_images: Callable[[int], object] | None = None,
    stop: threading.Event | None = None,
    **call,
) -> None:
    """Generates this process' files.

    Args:
        pipe: a [`UniWeTokPipeline`], or for files with a source a [`UniWeTokEditPipeline`].
        files: all files of the benchmark, of equally many pictures.
        folder: what the judge reads.
        batch_size: pictures generated at once.
        seed: picture k of file i is generated with a seed made of this and of its number.
        process_index, num_processes: which batches are this process'.
        on_images: called with the number of pictures after each batch, also for those that were there.
        stop: when it is set, the run ends after the current batch.
        call: further arguments of the pipeline.

    Raises:
        ValueError: when a source or prompt can't be read.
        Stopped: when `stop` was set.
        OSError: when the folder can't be written.
    """
    for indices in plan_batches(pipe, files, batch_size)[process_index::num_processes]:
        chosen = [files[index] for index in indices]
        if not all((folder / file.path).is_file() for file in chosen):
            if stop is not None and stop.is_set():
                raise Stopped(f"stopped before {chosen[0].path}; the same command continues from there")
            _generate(pipe, indices, chosen, folder, seed, call)
        if on_images is not None:
            on_images(sum(file.num_images for file in chosen))


def _generate(pipe, indices: Sequence[int], files: Sequence[BenchmarkFile], folder: Path, seed: int, call) -> None:
    count = files[0].num_images
    numbers = [index * count + k for index in indices for k in range(count)]
    sources = {}
    if files[0].read_source is not None:
        sources["image"] = [file.read_source() for file in files for _ in range(count)]
    pictures = pipe(
        prompt=[file.prompt for file in files for _ in range(count)],
        generator=[torch.Generator().manual_seed(stream_seed(seed, number)) for number in numbers],
        **sources,
        **call,
    ).images
    for file, own in zip(files, batched(pictures, count), strict=True):
        save_picture(make_grid(own), folder / file.path)


def save_picture(picture: Image.Image, path: Path) -> None:
    """Saves a PNG and makes the folders above it."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, is_shared=True) as temporary:
        picture.save(temporary, format="PNG")


def missing_files(folder: Path, files: Sequence[BenchmarkFile]) -> list[str]:
    """Paths of the files that are not there."""
    return [file.path for file in files if not (folder / file.path).is_file()]


def check_files(folder: Path, files: Sequence[BenchmarkFile], beside: Iterable[str] = ()) -> None:
    """Reads every file: judges leave out what they can't read, and the score is that of the others. `beside` are paths
    of further pictures that the judge reads.

    Raises:
        ValueError: when one is missing, can't be read, or lies there without belonging to the benchmark.
    """
    if missing := missing_files(folder, files):
        raise ValueError(f"{folder} lacks {len(missing)} of {len(files)} pictures, the first is {missing[0]}.")
    for file in files:
        try:
            with Image.open(folder / file.path) as picture:
                picture.load()
        except (OSError, ValueError, SyntaxError) as error:
            raise ValueError(
                f"{folder / file.path} can't be read ({error}): remove it, and run the same command again."
            ) from error
    known = {*(file.path for file in files), *beside}
    if strange := sorted(path for path in folder.rglob("*.png") if path.relative_to(folder).as_posix() not in known):
        raise ValueError(f"{strange[0]} is no picture of this benchmark: the judge would count it.")
