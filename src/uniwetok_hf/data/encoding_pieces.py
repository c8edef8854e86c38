# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Which rows of a source are in which part of an encoded dataset, and how parts come together.

- Parts of more than `PIECE_ROWS` rows are made in pieces of so many, which lie in the folder `unfinished` until their
  part is joined of them. So a run that is killed loses a piece, however large its parts are.
- Rows are numbered through; part k holds rows k * n ... (k + 1) * n - 1.
- Shards of a stream may be encoded apart from each other instead, so that who makes the parts of one reads nothing
  else. A row's number is then made of those of its shard and of the row in it, and no part has rows of two shards.
  What is not known before a shard was read, the number of its parts, is noted in `unfinished`.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..files import one_line, read_json, whole_file
from .encoded import part_path
from .encoded_parts import SHARD_ROWS, EncodingSettings, join_parts, read_summary, row_name
from .skipped import SkippedItems


PIECE_ROWS = 1000  # minutes of work on a CPU, seconds on a GPU
PART_BYTES = 100_000_000
LEAST_PARTS = 64  # of a dataset that has the rows for them, so that processes and machines have something to share
MOST_SHARDS = 1024  # of more, neighbours are one: 16 for each of 64 machines
UNFINISHED = "unfinished"


@dataclass(frozen=True)
class Piece:
    """Rows that are encoded together.

    part, path: files of the part that they belong to, and of themselves: the part, when it has no other piece.
    first_row: number of the first row.
    table: the rows in Arrow; None when they are there already, or another machine's.
    """

    part: Path
    path: Path
    first_row: int
    table: object = None


def choose_rows_per_part(settings: EncodingSettings, config, num_rows: int | None) -> int:
    """As many rows as have codes of `PART_BYTES`, rounded down to a number of one digit and zeros, but not so many
    that there are fewer than `LEAST_PARTS` parts; at least `PIECE_ROWS`.

    Args:
        settings: with columns; a list of pictures counts as one.
        config: of the [`UniWeTokModel`].
        num_rows: of the source, when it is known.
    """
    pixels = max(height * width for height, width in settings.sizes or [(settings.longest_edge,) * 2])
    codes = pixels // config.stride**2 * config.num_bits // 8
    rows = PART_BYTES // (codes * settings.num_encodings * len(settings.columns))
    if num_rows is not None:
        rows = min(rows, num_rows // LEAST_PARTS)
    if rows <= PIECE_ROWS:
        return PIECE_ROWS
    step = 10 ** (len(str(rows)) - 1)
    return rows // step * step


def pieces_of_table(dataset, folder: Path, rows_per_part: int, parts: Iterable[int]) -> Iterator[Piece]:
    """The pieces of the given parts of a `datasets.Dataset`."""
    dataset = dataset.with_format("arrow")  # rows as they are stored, no picture decoded
    for index in parts:
        part, first = part_path(folder, index), index * rows_per_part
        end = min(first + rows_per_part, len(dataset))
        if read_summary(part) is not None:
            yield Piece(part, part, first)
            continue
        for number, start in enumerate(range(first, end, PIECE_ROWS)):
            path = _piece_path(part, number, rows_per_part)
            is_there = read_summary(path) is not None
            yield Piece(part, path, start, None if is_there else dataset[start : min(start + PIECE_ROWS, end)])


def pieces_of_stream(
    dataset,
    folder: Path,
    rows_per_part: int,
    shard: int | None = None,
    is_ours: Callable[[int], bool] = lambda part: True,
) -> Iterator[Piece]:
    """The pieces of an `IterableDataset`, or of one shard of it when `dataset` is that shard.

    Raises:
        ValueError: when the rows can't be read.
    """
    # Row by row: a stream in Arrow's format fails where files have their fields in another order, or lack one.
    rows, schema = iter(dataset.decode(False)), dataset.features.arrow_schema
    first_of_all = 0 if shard is None else (shard + 1) * SHARD_ROWS

    def read(first: int, count: int) -> list[dict]:
        try:
            return list(itertools.islice(rows, count))
        except Exception as error:  # of a user's own stream
            raise ValueError(
                f"`dataset`: reading the rows from {row_name(first).removeprefix('row ')} on raised "
                f"{type(error).__name__}: {error}"
            ) from error

    for index in itertools.count():
        part, first = part_path(folder, index, shard), first_of_all + index * rows_per_part
        is_done = not is_ours(index) or read_summary(part) is not None
        for number, start in enumerate(range(0, rows_per_part, PIECE_ROWS)):
            found = read(first + start, min(PIECE_ROWS, rows_per_part - start))
            if not found:
                return
            path = part if is_done else _piece_path(part, number, rows_per_part)
            is_missing = not is_done and read_summary(path) is None
            table = _table(found, schema, first + start) if is_missing else None
            if number == 0 or not is_done:
                yield Piece(part, path, first + start, table)


def _table(rows: list[dict], schema, first_row: int):
    """Rows in Arrow.

    Raises:
        ValueError: naming the first row and column that are not of the schema.
    """
    import pyarrow

    failures = (pyarrow.ArrowException, ValueError, TypeError, OverflowError)
    try:
        return pyarrow.Table.from_pylist(rows, schema)
    except failures:
        for number, row in enumerate(rows, first_row):
            for field in schema:
                try:
                    pyarrow.array([row.get(field.name)], field.type)
                except failures as error:
                    kind = f"its type, {field.type}" if len(str(field.type)) < 100 else "its type"
                    raise ValueError(
                        f"`dataset`: {row_name(number)}: the column {field.name} is not of {kind}: {one_line(error)}"
                    ) from error
        raise


def pieces_of_shard(dataset, folder: Path, rows_per_part: int, shard: int, num_shards: int) -> Iterator[Piece]:
    """The pieces of one of the `num_shards` shards of an `IterableDataset`. When all are there, nothing is read."""
    parts = shard_parts(folder, shard)
    if parts is not None and all(read_summary(part) for part in parts):
        yield from (Piece(part, part, 0) for part in parts)
        return
    part_index = -1
    rows = dataset.shard(num_shards, shard)
    for part_index, (_, pieces) in enumerate(
        itertools.groupby(pieces_of_stream(rows, folder, rows_per_part, shard), lambda piece: piece.part)
    ):
        yield from pieces
    with whole_file(_shard_path(folder, shard), is_shared=True) as temporary:
        temporary.write_text(json.dumps({"parts": part_index + 1}), encoding="utf-8")


def shard_parts(folder: Path, shard: int) -> list[Path] | None:
    """The parts of a shard; None when it was not yet read to its end."""
    path = _shard_path(folder, shard)
    if not path.exists():
        return None
    return [part_path(folder, index, shard) for index in range(read_json(path)["parts"])]


def make_parts(
    pieces: Iterable[Piece],
    write_part: Callable,
    wait: Callable[[], object],
    skipped: SkippedItems,
    is_stopped: Callable[[], bool],
) -> list[Path] | None:
    """Has the pieces made that are missing, and joins them.

    Args:
        write_part: called with rows, the number of the first and the file; it may return before the file is there.
        wait: called at the end; returns when all files are there.
        skipped: counts the rows that are left out.

    Returns:
        The parts of all pieces; None when it was stopped before the last.

    Raises:
        ValueError: when too many rows are left out.
    """
    parts: list[Path] = []
    written: list[Path] = []  # not seen there yet
    unjoined: dict[Path, list[Path]] = {}
    for part, group in itertools.groupby(pieces, lambda piece: piece.part):
        paths = []
        for piece in group:
            if piece.table is None:
                count_skipped([piece.path], skipped)
            elif is_stopped():
                wait()
                return None
            else:
                write_part(piece.table, piece.first_row, piece.path)
                written = count_skipped([*written, piece.path], skipped)
            paths.append(piece.path)
        parts.append(part)
        if paths != [part]:
            unjoined[part] = paths
        unjoined = _join(unjoined, written)
    wait()
    _join(unjoined, count_skipped(written, skipped))
    return parts


def count_skipped(paths: list[Path], skipped: SkippedItems) -> list[Path]:
    """Counts what was left out of the files that are there; returns the others."""
    waiting = []
    for path in paths:
        if (summary := read_summary(path)) is None:
            waiting.append(path)
        else:
            reasons = [f"{row_name(one)}, {one['column']}: {one['error']} ({path.name})" for one in summary.skipped]
            skipped.add(reasons, summary.num_rows)
    return waiting


def _join(unjoined: dict[Path, list[Path]], written: list[Path]) -> dict[Path, list[Path]]:
    """Joins the parts none of whose pieces are under way; returns the others."""
    waiting = {}
    for part, paths in unjoined.items():
        if set(paths) & set(written):
            waiting[part] = paths
        else:
            join_parts(paths, part)
    return waiting


def _piece_path(part: Path, number: int, rows_per_part: int) -> Path:
    if rows_per_part <= PIECE_ROWS:
        return part
    return part.parent / UNFINISHED / f"{part.stem}-{number:04d}{part.suffix}"


def _shard_path(folder: Path, shard: int) -> Path:
    return folder / UNFINISHED / f"shard-{shard:05d}.json"
