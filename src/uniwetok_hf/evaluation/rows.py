# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The rows that an evaluation looks at, of any data that trainings read too."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import torch
from PIL import Image

from ..data.images import ImageReadError, read_image
from ..data.sources import read_cell


# What an evaluation of a folder of `uniwetok data emoji` asks for where nothing else is said.
EMOJI_FILE = "emoji.json"
EMOJI_PROMPT = "a {style} emoji of {label}"


def is_emoji_folder(path: str) -> bool:
    """Whether `uniwetok data emoji` built the folder."""
    return (Path(path) / EMOJI_FILE).is_file() or (Path(path) / "edits").is_dir()


def choose_rows(dataset, columns: Iterable[str], count: int | None = None, seed: int = 0):
    """`count` rows of a dataset: of one in memory or on disk, a choice by `seed` in its own order; of a stream, the
    first. All rows where there are fewer, or `count` is None.

    Raises:
        ValueError: when one of `columns` is missing; the message names those there are.
    """
    names = dataset.column_names
    if names is not None and (missing := [name for name in columns if name not in names]):
        raise ValueError(f"`columns`: the data have no column {', '.join(missing)}; they have {', '.join(names)}.")
    if not hasattr(dataset, "__len__"):
        return dataset if count is None else dataset.take(count)
    if count is None or count >= len(dataset):
        return dataset
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    return dataset.select(sorted(order[:count].tolist()))


def readable(rows: Iterable[Mapping], columns: Sequence[str], skipped: list[str]) -> Iterator[dict]:
    """Rows with the pictures in `columns` as RGB; a row whose picture can't be read is left out, and why goes to
    `skipped`."""
    for number, row in enumerate(rows):
        try:
            yield dict(row) | {column: picture_of(row[column], f"{column} of row {number}") for column in columns}
        except ImageReadError as error:
            skipped.append(str(error))


def picture_of(cell, name: str = "the picture") -> Image.Image:
    """The RGB picture in a cell of a dataset: encoded as bytes or a path, or decoded already."""
    return read_image(cell) if isinstance(cell, Image.Image) else read_cell(cell, name)


def batched(rows: Iterable, size: int) -> Iterator[list]:
    """Lists of `size` rows; the last may be shorter."""
    iterator = iter(rows)
    while part := list(islice(iterator, size)):
        yield part


def fill_template(template: str, row: Mapping) -> str:
    """`template` with `{column}` replaced; of a list of texts the first is taken.

    Raises:
        ValueError: when the row lacks a column.
    """
    try:
        return template.format_map({key: _first(value) for key, value in row.items()})
    except KeyError as error:
        names = ", ".join(key for key, value in row.items() if isinstance(_first(value), str))
        raise ValueError(f"`prompt` {template!r} needs the column {error}; texts are in {names}.") from None
    except (ValueError, IndexError) as error:
        raise ValueError(f"`prompt` {template!r} is no template like '{{text}}': {error}.") from None


def _first(value):
    return value[0] if isinstance(value, list) and value else value
