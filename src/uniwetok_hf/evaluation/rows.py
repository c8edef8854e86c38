# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The rows that an evaluation reads: a `datasets.Dataset`, a stream, or any dicts with the columns of the protocol."""

import re
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

import torch
from PIL import Image

from ..data.images import ImageReadError, read_image
from ..data.sources import read_cell


def choose_rows(rows: Iterable[Mapping], columns: Iterable[str] = (), count: int | None = None, seed: int = 0):
    """`count` rows of a data set: a choice by `seed`, in the order of the data; of a stream the first. All rows when
    `count` is None or there are fewer.

    Raises:
        ValueError: when one of `columns` is missing; the message names those there are.
    """
    if not hasattr(rows, "column_names") and not isinstance(rows, Sequence):
        rows = list(rows)
    names = rows.column_names if hasattr(rows, "column_names") else list(rows[0]) if rows else None
    if names is not None and (missing := [name for name in columns if name not in names]):
        raise ValueError(f"`columns`: the data have no column {', '.join(missing)}; they have {', '.join(names)}.")
    if not hasattr(rows, "__len__"):
        return rows if count is None else rows.take(count)
    if count is None or count >= len(rows):
        return rows
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    chosen = sorted(order[:count].tolist())
    return rows.select(chosen) if hasattr(rows, "select") else [rows[index] for index in chosen]


def read_pictures(rows: Iterable[Mapping], columns: Sequence[str], skipped: list[str]) -> Iterator[dict]:
    """Rows with the pictures of `columns` as RGB. A row whose picture can't be read is left out; the reason is added
    to `skipped`."""
    for number, row in enumerate(rows):
        try:
            yield dict(row) | {column: picture_of(row[column], f"{column} of row {number}") for column in columns}
        except ImageReadError as error:
            skipped.append(str(error))


def picture_of(cell, name: str = "the picture") -> Image.Image:
    """The RGB picture in a cell of a data set: bytes, a path, `{"bytes", "path"}`, or a PIL image."""
    return read_image(cell) if isinstance(cell, Image.Image) else read_cell(cell, name)


def batched(rows: Iterable, size: int) -> Iterator[list]:
    """Lists of `size` rows; the last may be shorter."""
    iterator = iter(rows)
    while part := list(islice(iterator, size)):
        yield part


def template_columns(template: str) -> list[str]:
    """The columns that a template such as `"a photo of {label}"` is filled from.

    Raises:
        ValueError: when it is not a template.
    """
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
    except ValueError as error:
        raise ValueError(f"`prompt` {template!r} is no template like '{{text}}': {error}.") from None
    names = [re.split(r"[.\[]", field)[0] for field in fields]
    if not all(names):
        raise ValueError(f"`prompt` {template!r} is no template like '{{text}}': name the columns in the braces.")
    return names


def fill_template(template: str, row: Mapping) -> str:
    """`template` with `{column}` replaced; of a list of texts the first is taken."""
    return template.format_map(
        {key: value[0] if isinstance(value, list) and value else value for key, value in row.items()}
    )
