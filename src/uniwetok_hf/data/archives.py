# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""WebDataset archives on this machine, read so that damage costs the rows that it hits and no others.

Members of one name are a row, as in `datasets`, whose decoders are used. A row that is not whole says why in
`ERROR_COLUMN`: a member that is cut off or can't be decoded, an archive that ends too early. Empty archives hold no
rows.
"""

import errno
import os
import tarfile
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path


ERROR_COLUMN = "__error__"
DAMAGE = (tarfile.TarError, EOFError, OSError, zlib.error)
# Not of the file, but of the disk or the machine that it is on: what comes next would be lost, too.
OUTAGES = {
    getattr(errno, name)
    for name in ("EIO", "ENOENT", "EACCES", "EPERM", "ESTALE", "ETIMEDOUT", "EMFILE", "ENFILE", "ENODEV", "ENXIO")
    + ("ENOMEM", "ENOTCONN", "EHOSTDOWN", "ECONNRESET", "EREMOTEIO")
    if hasattr(errno, name)
}
NUM_INFERRED = 5  # rows that the columns are found from, as in `datasets`


def open_archives(paths: Sequence[str], streaming: bool):
    """The rows of tar files as a `datasets.Dataset`, or an `IterableDataset` with a shard for each file that is not
    empty. All rows have the columns of the first ones, and `ERROR_COLUMN`, which is None in whole rows.

    Raises:
        ValueError: when no archive holds a whole row.
    """
    from datasets import Dataset, Features, Image, IterableDataset, Value
    from datasets.features.features import cast_to_python_objects
    from datasets.packaged_modules.webdataset.webdataset import WebDataset

    full, empty = [], []
    for path in map(str, paths):
        (empty if is_empty(path) else full).append(path)
    if empty:
        warnings.warn(f"{len(empty)} archives hold nothing: {', '.join(empty[:10])}.", stacklevel=2)
    found, reason = [], "all of them are empty"
    for row in (row for path in full for row in _rows(path)):
        if row[ERROR_COLUMN] is None:
            found.append(row)
        else:
            reason = row[ERROR_COLUMN]
        if len(found) == NUM_INFERRED:
            break
    if not found:
        raise ValueError(f"no archive holds a row that can be read: {reason}")
    import pyarrow

    tables = [pyarrow.Table.from_pylist(cast_to_python_objects([row], only_1d_for_numpy=True)) for row in found]
    schema = pyarrow.concat_tables(tables, promote_options="default").schema
    features = dict(Features.from_arrow_schema(schema))
    pictures = [name for name in features if name.rsplit(".", 1)[-1].lower() in WebDataset.IMAGE_EXTENSIONS]
    features |= dict.fromkeys(pictures, Image(decode=False)) | {ERROR_COLUMN: Value("string")}
    # Size and time belong to the arguments, so that the copy of an archive that has changed is not found again.
    files = [(path, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in full]
    make = IterableDataset.from_generator if streaming else Dataset.from_generator
    arguments = {"files": files, "columns": tuple(features), "pictures": tuple(pictures)}
    return make(archive_rows, features=Features(features), gen_kwargs=arguments)


def archive_rows(files: Sequence[tuple], columns: Sequence[str], pictures: Sequence[str]) -> Iterator[dict]:
    """The rows of archives with the given columns; pictures as `{"bytes", "path"}`."""
    for path, *_ in files:
        for row in _rows(path):
            row = {column: row.get(column) for column in columns}
            for column in pictures:
                if row[column]:
                    row[column] = {"path": f"{row['__key__']}.{column}", "bytes": row[column]}
                elif row[ERROR_COLUMN]:  # which is then the picture's name in an error
                    row[column] = {"path": row[ERROR_COLUMN], "bytes": b""}
            yield row


def is_empty(path: str | os.PathLike) -> bool:
    """Whether an archive has no member: a file without content, or its end alone."""
    if os.path.getsize(path) == 0:
        return True
    try:
        with tarfile.open(path, "r:*") as archive:
            return archive.next() is None
    except DAMAGE as error:
        if getattr(error, "errno", None) in OUTAGES:
            raise
        return False


def _rows(path: str) -> Iterator[dict]:
    """The members of each name, decoded, under their endings; `__key__`, the name, `__url__` and `ERROR_COLUMN`."""
    from datasets.packaged_modules.webdataset.webdataset import WebDataset, base_plus_ext

    row, columns = {}, set()
    for name, content, problem in _members(path):
        key, ending = base_plus_ext(name) if name else (None, None)
        if key is None and problem is None:
            continue
        # Where an archive ends too early, the last row is whole if it has what the row before has.
        if row and (key != row["__key__"] if key else columns <= set(row)):
            yield row
            row, columns = {}, set(row)
        row = row or {"__key__": key, "__url__": path, ERROR_COLUMN: None}
        decode = WebDataset.DECODERS.get((ending or "").split(".")[-1].lower(), bytes)
        try:
            if content is not None:
                row[ending] = decode(content)
        except Exception as error:  # of the decoders
            problem = f"{name} in {Path(path).name}: {type(error).__name__}: {error}"
        row[ERROR_COLUMN] = row[ERROR_COLUMN] or problem
    if row:
        yield row


def _members(path: str) -> Iterator[tuple[str | None, bytes | None, str | None]]:
    """Name, content and problem of each file in an archive, up to its end or to where it is damaged.

    Raises:
        OSError: when not the archive is damaged, but the disk does not give it.
    """
    member, name = None, Path(path).name
    try:
        with tarfile.open(path, "r:*") as archive:
            while (member := archive.next()) is not None:
                archive.members = []
                if member.isreg() and not os.path.basename(member.name).startswith((".", "__")):
                    yield member.name, archive.extractfile(member).read(), None
            archive.fileobj.seek(archive.offset)
            end = archive.fileobj.read(512)  # of zeros, in a whole archive
    except DAMAGE as error:
        if getattr(error, "errno", None) in OUTAGES:
            raise
        yield member and member.name, None, f"{member.name + ' in ' if member else ''}{name} is damaged: {error}"
        return
    if any(end) or len(end) < 512:
        yield None, None, f"{name} ends too early, after {archive.offset} bytes"
