# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The rows that an evaluation reads: a `datasets.Dataset`, a stream, or any dicts with the columns of the protocol."""

import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from itertools import islice
from operator import length_hint

import torch
from PIL import Image

from ..data.archives import ERROR_COLUMN
from ..data.images import ImageReadError, read_image
from ..data.skipped import MAX_SHARE, SkippedItems
from ..data.sources import read_cell
from .processes import ALONE, Processes


RowCheck = Callable[[Mapping], object]  # raises a `ValueError` for a row that can't be used


class PictureRows:
    """
    The rows of an evaluation, read when they are iterated. Class labels are given by name. Rows without one of
    `pictures` or of `columns` are left out; `skipped` has the reasons.

    Args:
        rows: a `datasets.Dataset`, a stream, or dicts.
        pictures: columns of pictures of any kind, which are read as RGB.
        columns: other columns that the evaluation needs.
        picture_lists: columns of lists of pictures, which rows may lack or have empty (None). Of a list, only the
            pictures that can't be read are left out.
        count, seed: as in [`choose_rows`].
        max_skipped_share: largest share of the rows that may be left out; ten always may.

    Raises:
        ValueError: when one of the columns is missing; the message names those there are.
    """

    def __init__(
        self,
        rows: Iterable[Mapping],
        pictures: Sequence[str] = ("image",),
        columns: Iterable[str] = (),
        count: int | None = None,
        seed: int = 0,
        picture_lists: Sequence[str] = (),
        max_skipped_share: float = MAX_SHARE,
    ):
        columns = list(columns)
        self.rows, self.all_rows = choose_rows(rows, [*pictures, *columns], count, seed), rows
        self.pictures, self.picture_lists = pictures, picture_lists
        features = getattr(self.rows, "features", None) or {}
        self.class_names = {name: feature.names for name, feature in features.items() if hasattr(feature, "names")}
        self.columns, self.max_skipped_share = columns, max_skipped_share
        self.skipped: dict[int, list[str]] = {}  # by the number of the row
        self.num_rows = 0  # read by all processes

    def __iter__(self) -> Iterator[dict]:
        for _, rows in self.batches(1):
            yield from rows

    def batches(
        self, size: int, processes: Processes = ALONE, check: RowCheck | None = None
    ) -> Iterator[tuple[int, list[dict]]]:
        """This process' batches of `size` rows, with their numbers. Rows that are left out, also those that `check`
        refuses, leave a batch shorter, or empty."""
        counts = SkippedItems(self.max_skipped_share)
        self.skipped, self.num_rows = {}, 0
        for number, part in processes.own(self._parts(size)):
            read = []
            for index, row in part:
                read += self._read(index, row, check)
                counts.num_read = index  # of all processes
                counts.add(self.skipped.get(index, []), 1)
            yield number, read

    def values_of(self, column: str) -> list[str] | None:
        """All values of a column, also of rows that were not chosen, in alphabetical order; None of a stream, of rows
        that are no dataset, and of a column of lists."""
        if not hasattr(self.all_rows, "unique") or not hasattr(self.all_rows.features[column], "dtype"):
            return None
        names = self.class_names.get(column)
        found = [value for value in self.all_rows.unique(column) if value is not None]
        return sorted(str(value) if names is None else names[value] for value in found if names is None or value >= 0)

    def _parts(self, size: int) -> Iterator[Iterable[tuple[int, Mapping]]]:
        """Rows with their numbers. Those of other processes are read from a stream only."""
        if isinstance(self.rows, Sized):
            for numbers in batched(range(len(self.rows)), size):
                self.num_rows += len(numbers)
                yield ((index, self.rows[index]) for index in numbers)
        else:
            for part in batched(enumerate(self.rows), size):
                self.num_rows += len(part)
                yield part

    def all_skipped(self, processes: Processes = ALONE) -> list[str]:
        """The reasons of all processes, in the order of the rows.

        Raises:
            ValueError: when too many rows are left out.
        """
        reasons = [reason for own in processes.merge(self.skipped) for reason in own]
        SkippedItems(self.max_skipped_share).add(reasons, self.num_rows)
        return reasons

    def _read(self, number: int, row: Mapping, check: RowCheck | None) -> list[dict]:
        """The row, or nothing when it is left out."""
        if row.get(ERROR_COLUMN):
            return self._skip(number, f"row {number}: {row[ERROR_COLUMN]}")
        labels = {name: self._label(name, row.get(name)) for name in self.class_names}
        row = dict(row) | labels
        if missing := [name for name in self.columns if row.get(name) is None]:
            return self._skip(number, f"row {number} has no {', '.join(missing)}")
        try:
            read = {column: picture_of(row.get(column), f"{column} of row {number}") for column in self.pictures}
        except ImageReadError as error:
            return self._skip(number, str(error))
        row |= read
        try:
            if check is not None:
                check(row)
        except ValueError as error:
            return self._skip(number, f"row {number}: {str(error).removesuffix('.')}")
        lists = {column: self._read_list(row.get(column), column, number) for column in self.picture_lists}
        return [row | lists]

    def _label(self, column: str, number: int | None) -> str | None:
        """The name of a class; None where there is none, which test splits write as -1."""
        return None if number is None or number < 0 else self.class_names[column][number]

    def _skip(self, number: int, reason: str) -> list[dict]:
        self.skipped.setdefault(number, []).append(reason)
        return []

    def _read_list(self, cells: Sequence | None, column: str, number: int) -> list[Image.Image] | None:
        if cells is None:
            return None
        pictures = []
        for position, cell in enumerate(cells):
            try:
                pictures.append(picture_of(cell, f"{column}[{position}] of row {number}"))
            except ImageReadError as error:
                self._skip(number, str(error))
        return pictures

    def __length_hint__(self) -> int:
        return length_hint(self.rows)


def own_batches(
    rows: Iterable, size: int, processes: Processes = ALONE, check: RowCheck | None = None
) -> Iterator[tuple[int, list[dict]]]:
    """This process' batches of rows, with their numbers. Of [`PictureRows`], no others are read, and rows that `check`
    refuses are left out; other rows are taken as they are."""
    if isinstance(rows, PictureRows):
        return rows.batches(size, processes, check)
    return processes.own(batched(rows, size))


def read_rows(rows: Iterable, check: RowCheck | None = None) -> list[dict]:
    """All rows, as [`own_batches`] reads them."""
    return [row for _, part in own_batches(rows, 1, ALONE, check) for row in part]


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


def describe_choice(rows: Iterable[Mapping], count: int | None, seed: int) -> str:
    """Which of `rows` [`choose_rows`] takes, in words."""
    if count is None or (isinstance(rows, Sized) and count >= len(rows)):
        return "all"
    return f"{count}, chosen with seed {seed}" if isinstance(rows, Sized) else f"the first {count}"


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
