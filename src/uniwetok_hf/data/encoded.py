# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Datasets whose pictures are stored as packed codes, as `uniwetok encode-dataset` writes them: a language model is
trained on them without the encoder.

A folder holds `part-00000.parquet`, `part-00001.parquet`, ... and `encoding.json`, which is written last. Where shards
of a stream were encoded apart from each other, parts have two numbers: `part-00003-00001.parquet` is the second of
shard 3. Rows are in the order of the source when the parts are in the order of their names.

In the parts all columns of the source are as they were, but those of pictures: a picture is a list with one item per
variant, the plain picture first and then its random crops. An item is `{"codes", "height", "width"}`: packed bits
(`pack_codes`, row by row, 16 bytes a token of 128 bits) of height x width tokens. Variant k of all pictures of a row
was cropped and mirrored alike; with `same_crops`, that of all rows. With `mirrored`, each is followed by its mirror
image. A column of lists of pictures holds lists of such lists.
"""

import dataclasses
import hashlib
import os
import re
import typing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..files import read_json
from ..modeling.codes_uniwetok import unpack_codes
from .parquet_files import find_damage
from .sources import opening


ENCODING_FILE = "encoding.json"
PART_NAME = re.compile(r"part-\d+(-\d+)?\.parquet")
PARTIAL_FILE = "encoding.partial.json"  # the settings, while parts are missing
ENCODING_FORMAT = 1


@dataclass
class Encoding:
    """What `encoding.json` says.

    model: name of the model that encoded the pictures.
    fingerprint: [`encoder_fingerprint`] of it.
    num_bits, stride: bits of a token, and pixels a side of it.
    picture_columns: names of the columns that hold codes.
    num_variants: encodings of each picture, the plain one included.
    num_rows: rows in all parts.
    num_parts: number of Parquet files.
    num_skipped: rows of the source that were left out, since a picture could not be read; `skipped.jsonl` lists them.
    bytes: mean bytes per picture: "codes" (of one variant), "source" (as stored before), and "jpeg" (quality 90 at the
        encoded size, of a sample of "jpeg_pictures"); also "parts", the size of all Parquet files.
    pictures_per_second: encodings per second in the run that finished the folder, where it made any.
    settings: with which settings it was made.
    parts_of_shards: number of parts of each shard, where shards of a stream were encoded apart from each other.
    """

    model: str
    fingerprint: str
    num_bits: int
    stride: int
    picture_columns: list[str]
    num_variants: int
    num_rows: int
    num_parts: int
    num_skipped: int
    bytes: dict
    pictures_per_second: float | None
    settings: dict
    format: int = ENCODING_FORMAT
    parts_of_shards: list[int] | None = None


def part_path(folder: str | os.PathLike, index: int, shard: int | None = None) -> Path:
    """Where part `index` of an encoded dataset lies, or that of a shard of it."""
    name = f"{index:05d}" if shard is None else f"{shard:05d}-{index:05d}"
    return Path(folder) / f"part-{name}.parquet"


def part_paths(folder: str | os.PathLike, encoding: Encoding) -> list[Path]:
    """Where all parts of an encoded dataset lie, in the order of its source."""
    if encoding.parts_of_shards is None:
        return [part_path(folder, index) for index in range(encoding.num_parts)]
    return [
        part_path(folder, index, shard)
        for shard, count in enumerate(encoding.parts_of_shards)
        for index in range(count)
    ]


def is_begun(folder: str | os.PathLike) -> bool:
    """Whether `folder` holds an encoded dataset, or a part of one."""
    folder = Path(folder)
    return any((folder / name).exists() for name in (ENCODING_FILE, PARTIAL_FILE)) or any(
        PART_NAME.fullmatch(path.name)
        for path in folder.glob("part-*.parquet")  # other programs call theirs so, too
    )


def read_encoding(folder: str | os.PathLike) -> Encoding:
    """Reads the description of an encoded dataset.

    Raises:
        ValueError: when `folder` holds no encoded dataset, an unfinished one, or one of a newer format.
    """
    path = Path(folder) / ENCODING_FILE
    if not path.is_file():
        why = "an unfinished encoded dataset: run its `uniwetok encode-dataset` again, and it goes on where it stopped"
        if not is_begun(folder):
            why = "no encoded dataset (no encoding.json); `uniwetok encode-dataset` makes one"
        raise ValueError(f"`folder` {folder} holds {why}.")
    try:
        values = read_json(path)
        version = values["format"]
    except KeyError as error:
        raise ValueError(f"`folder`: {path} is damaged (KeyError: {error}).") from None
    if version != ENCODING_FORMAT:
        raise ValueError(
            f"`folder`: {path} is of format {version}, this version of uniwetok-hf reads {ENCODING_FORMAT}."
        )
    names = {field.name for field in dataclasses.fields(Encoding)}
    values = {"parts_of_shards": None} | values  # which older folders don't say
    if missing := sorted(names - set(values)):
        raise ValueError(f"`folder`: {path} lacks {', '.join(missing)}.")
    for name, hint in typing.get_type_hints(Encoding).items():
        kinds = tuple(typing.get_origin(kind) or kind for kind in typing.get_args(hint)) or hint
        if not isinstance(values[name], list if typing.get_origin(hint) is list else kinds):
            raise ValueError(f"`folder`: {path} is damaged (`{name}` is {values[name]!r:.100}).")
    return Encoding(**{name: values[name] for name in names})


def open_encoded(folder: str | os.PathLike):
    """All parts as one memory-mapped `datasets.Dataset`, in the order of the source.

    Parquet can't be memory-mapped, so `datasets` writes an Arrow copy into its cache when a folder is opened first,
    and finds it again for as long as the parts don't change.

    Raises:
        ValueError: as [`read_encoding`] does, or when a part is missing or damaged.
        WriteError: when there is no room in the cache of `datasets`.
    """
    from datasets import Dataset

    encoding = read_encoding(folder)
    parts = part_paths(folder, encoding)
    if missing := [part.name for part in parts if not part.is_file()]:
        raise ValueError(
            f"`folder` {folder} lacks {missing[0]}, the first of {len(missing)} missing of {len(parts)} parts; run "
            "its `uniwetok encode-dataset` again to make them."
        )
    # By default it reads as many rows at once as the first row group has, and fails when a part lost all of its rows.
    try:
        with opening(f"`folder` {folder}"):
            dataset = Dataset.from_parquet([str(part) for part in parts], batch_size=1000)
    except Exception as error:  # of `datasets`, which name neither the file nor, often, the cause
        if (damaged := find_damage(parts)) is None:
            raise
        raise ValueError(
            f"`folder`: {damaged[0]} is damaged ({damaged[1]}). Remove it and encoding.json, and run its `uniwetok "
            "encode-dataset` again."
        ) from error
    if len(dataset) != encoding.num_rows:
        raise ValueError(f"`folder` {folder} holds {len(dataset)} rows, its encoding.json says {encoding.num_rows}.")
    return dataset


def cell_codes(cell: list[dict], variant: int, num_bits: int) -> torch.Tensor:
    """Codes of one picture.

    Args:
        cell: one picture of a row of [`open_encoded`]: `row["image"]`, or `row["images"][0]` in a column of lists.
        variant: which encoding of it, 0 (the plain picture) ... `num_variants` - 1.
        num_bits: bits of a token, as `encoding.json` says.

    Returns:
        float32 [bits, h, w] of {-1, +1}.

    Raises:
        ValueError: when there is no such variant, or the codes are not of `num_bits`.
    """
    if not 0 <= variant < len(cell):
        raise ValueError(f"`variant` must be 0 to {len(cell) - 1}, got {variant}.")
    picture = cell[variant]
    check_code_size(picture, num_bits)
    tokens = np.frombuffer(picture["codes"], np.uint8).reshape(1, picture["height"], picture["width"], num_bits // 8)
    return unpack_codes(torch.from_numpy(tokens.copy()))[0]


def check_code_size(picture: dict, num_bits: int) -> None:
    """
    Raises:
        ValueError: when the codes of a picture are not as many bytes as its tokens of `num_bits` have.
    """
    height, width, found = picture["height"], picture["width"], len(picture["codes"])
    if found * 8 != height * width * num_bits:
        raise ValueError(
            f"`num_bits`: {height}x{width} tokens of {num_bits} bits are {height * width * num_bits // 8} bytes, "
            f"`cell` holds {found}."
        )


def encoder_fingerprint(model) -> str:
    """SHA-256 of the encoder's weights of a [`UniWeTokModel`]: models of one fingerprint give the same codes.

    Weights are rounded to bfloat16 first, so that a model has one fingerprint whether it is loaded in float32 or in
    bfloat16.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.encoder.state_dict().items()):
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        rounded = tensor.detach().to("cpu", torch.bfloat16).contiguous()
        digest.update(rounded.view(torch.int16).numpy().tobytes())  # numpy has no bfloat16
    return digest.hexdigest()
