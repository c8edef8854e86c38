# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Parquet files on this machine, looked at before they are read: each that can't be read is named."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from ..files import one_line
from .skipped import MAX_SHARE


def readable_files(paths: Sequence[str]) -> list[str]:
    """Those of Parquet files that are whole and fit together, by their metadata. Files without content, and up to
    `MAX_SHARE` of damaged ones, are left out with a warning.

    Raises:
        ValueError: naming the files, when more are damaged, or one has other columns than the first.
    """
    import pyarrow.parquet

    schemas, damaged, empty = {}, {}, []
    for path in paths:
        if Path(path).stat().st_size == 0:
            empty.append(path)
            continue
        try:
            schemas[path] = pyarrow.parquet.read_schema(path)
        except (pyarrow.ArrowException, OSError) as error:
            damaged[path] = str(error)
    reasons = [f"{path} is damaged: {reason}" for path, reason in damaged.items()]
    if len(damaged) > MAX_SHARE * len(paths) or not schemas:
        reasons = reasons or ["all files are empty"]
        raise ValueError(f"{len(damaged)} of {len(paths)} files can't be read: {'; '.join(reasons[:3])}")
    if reasons := [f"{path} is empty" for path in empty] + reasons:
        warnings.warn(f"{len(reasons)} Parquet files are left out: {'; '.join(reasons[:10])}.", stacklevel=2)
    first, expected = next(iter(schemas.items()))
    for path, schema in schemas.items():
        if (why := _difference(expected, schema)) is not None:
            raise ValueError(f"{path} does not go with {first}: {why}")
    return list(schemas)


def find_damage(paths: Sequence[str | Path]) -> tuple[str | Path, str] | None:
    """The first file whose content can't be read, and why; reads all of them."""
    import pyarrow.parquet

    for path in paths:
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                for _ in file.iter_batches(batch_size=100):
                    pass
        except (pyarrow.ArrowException, OSError) as error:
            return path, one_line(error)
    return None


def _difference(expected, schema) -> str | None:
    """What keeps a table from being read as another: `datasets` casts the columns to the types of the first file."""
    import pyarrow

    if set(expected.names) != set(schema.names):
        return f"it has the columns {', '.join(schema.names)}, not {', '.join(expected.names)}"
    for field in expected:
        found = schema.field(field.name).type
        try:
            pyarrow.array([], found).cast(field.type)
        except pyarrow.ArrowException:
            return f"its column `{field.name}` is of type {found}, not {field.type}"
    return None
