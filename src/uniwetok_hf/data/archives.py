# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""WebDataset archives on this machine, read so that damage costs the rows that it hits and no others.

Members of one name are a row, as in `datasets`, whose decoders are used. A row that is not whole says why in
`ERROR_COLUMN`: a member that is cut off or can't be decoded, an archive that ends too early, a value that is not of
the type that the first rows have there. Empty archives hold no rows.
"""

import errno
import functools
import json
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
NUM_INFERRED = 100  # whole rows that columns and types are found from
MOST_NAMED = 100  # fields that are in none of these rows: of a table of ids, each row has others
# What Arrow calls a type, and what an error does.
KINDS = {
    "string": "text",
    "boolean": "true or false",
    "integer": "whole numbers",
    "floating": "numbers",
    "list": "lists",
    "struct": "objects",
}

_named: set[str] = set()  # such fields, of which this process has warned


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
    types, num_found, reason = {}, 0, "all of them are empty"
    for row in (row for path in full for row in _rows(path)):
        if row[ERROR_COLUMN] is None:
            num_found += 1
            del row[ERROR_COLUMN]
            for name, value in cast_to_python_objects(row, only_1d_for_numpy=True).items():
                types[name] = _merged(types[name], _type_of(value)) if name in types else _type_of(value)
        else:
            reason = row[ERROR_COLUMN]
        if num_found == NUM_INFERRED:
            break
    if not num_found:
        raise ValueError(f"no archive holds a row that can be read: {reason}")
    import pyarrow

    schema = pyarrow.schema({name: _known(kind) for name, kind in types.items()})
    features = dict(Features.from_arrow_schema(schema))
    pictures = [name for name in features if name.rsplit(".", 1)[-1].lower() in WebDataset.IMAGE_EXTENSIONS]
    features |= dict.fromkeys(pictures, Image(decode=False)) | {ERROR_COLUMN: Value("string")}
    # Size and time belong to the arguments, so that the copy of an archive that has changed is not found again.
    files = [(path, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in full]
    make = IterableDataset.from_generator if streaming else Dataset.from_generator
    arguments = {"files": files, "schema": schema, "pictures": tuple(pictures)}
    return make(archive_rows, features=Features(features), gen_kwargs=arguments)


def archive_rows(files: Sequence[tuple], schema, pictures: Sequence[str]) -> Iterator[dict]:
    """The rows of archives with the columns of an Arrow `schema`, whose types the values get; pictures as
    `{"bytes", "path"}`. A warning names what else there is, each field once."""
    from datasets.features.features import cast_to_python_objects

    for path, *_ in files:
        unknown: set[str] = set()
        for found in _rows(path):
            problem, row = found.pop(ERROR_COLUMN), {}
            found = cast_to_python_objects(found, only_1d_for_numpy=True)
            unknown.update(found.keys() - set(schema.names))
            for name, kind in zip(schema.names, schema.types, strict=True):
                fields: set[str] = set()
                try:
                    row[name] = _fitted(found.get(name), kind, "", fields)
                except ValueError as error:
                    row[name] = None
                    problem = problem or f"{found['__key__']}.{name} in {Path(path).name}: {error}"
                unknown.update(name + field for field in fields)
            # Names of members may be in any encoding.
            row[ERROR_COLUMN] = problem and problem.encode(errors="backslashreplace").decode()
            for name in pictures:
                if row[name]:
                    row[name] = {"path": f"{row['__key__']}.{name}", "bytes": row[name]}
                elif problem:  # which is then the picture's name in an error
                    row[name] = {"path": row[ERROR_COLUMN], "bytes": b""}
            yield row
        if (new := unknown - _named) and len(_named) < MOST_NAMED:
            _named.update(new)
            warnings.warn(
                f"{path} has fields that none of the first {NUM_INFERRED} rows has, and they are left out: "
                f"{', '.join(sorted(new)[:10])}.",
                stacklevel=2,
            )


def _type_of(value):
    """The Arrow type of what a decoder returned: null where it tells none, and text where Arrow has none for it."""
    import pyarrow

    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return pyarrow.struct({name: _type_of(one) for name, one in value.items()})
    if isinstance(value, list):
        return pyarrow.list_(functools.reduce(_merged, map(_type_of, value), pyarrow.null()))
    try:
        return pyarrow.array([value]).type
    except (pyarrow.ArrowException, ValueError, TypeError, OverflowError):
        return pyarrow.string()


def _merged(one, other):
    """The Arrow type for values of two: text, as JSON, where no other takes both."""
    import pyarrow

    types = pyarrow.types
    if types.is_null(one) or one == other:
        return other
    if types.is_null(other):
        return one
    if types.is_list(one) and types.is_list(other):
        return pyarrow.list_(_merged(one.value_type, other.value_type))
    if types.is_struct(one) and types.is_struct(other):
        fields = {field.name: field.type for field in one}
        for field in other:
            fields[field.name] = _merged(fields.get(field.name, pyarrow.null()), field.type)
        return pyarrow.struct(fields)
    try:
        both = [pyarrow.schema({"value": kind}) for kind in (one, other)]
        return pyarrow.unify_schemas(both, promote_options="permissive").field("value").type
    except pyarrow.ArrowException:
        return pyarrow.string()


def _known(kind):
    """An Arrow type with text in the place of what no row told: nulls, lists of them, objects without fields."""
    import pyarrow

    types = pyarrow.types
    inner = kind
    while types.is_list(inner):
        inner = inner.value_type
    if types.is_null(inner) or (types.is_struct(inner) and not inner.num_fields):
        return pyarrow.string()
    if types.is_list(kind):
        return pyarrow.list_(_known(kind.value_type))
    if types.is_struct(kind):
        return pyarrow.struct({field.name: _known(field.type) for field in kind})
    return kind


def _fitted(value, kind, path: str, unknown: set[str]):
    """`value` as one of an Arrow type, exactly: other values are JSON in a text. `unknown` gets the paths of fields
    that the type has not.

    Raises:
        ValueError: saying where the value is not of the type.
    """
    import pyarrow

    types = pyarrow.types
    if value is None:
        return None
    if types.is_struct(kind) and isinstance(value, dict):
        fields = {field.name: field.type for field in kind}
        unknown.update(f"{path}.{name}" for name in value if name not in fields)
        return {name: _fitted(value.get(name), inner, f"{path}.{name}", unknown) for name, inner in fields.items()}
    if types.is_list(kind) and isinstance(value, list):
        return [_fitted(one, kind.value_type, f"{path}[{i}]", unknown) for i, one in enumerate(value)]
    try:
        return _fitted_leaf(value, kind)
    except (pyarrow.ArrowException, ValueError, TypeError, OverflowError, RecursionError):
        words = next((words for name, words in KINDS.items() if getattr(types, f"is_{name}")(kind)), str(kind))
        name = path.removeprefix(".") or "it"
        raise ValueError(f"{name} is {value!r:.60}, where the first rows have {words}") from None


def _fitted_leaf(value, kind):
    import pyarrow

    types = pyarrow.types
    if types.is_string(kind):
        text = value if isinstance(value, str) else json.dumps(value)
        text.encode()  # JSON may hold halves of a pair of surrogates
        return text
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and types.is_floating(kind):
        return float(value)
    if is_number and types.is_integer(kind) and value == int(value):
        return pyarrow.array([int(value)], kind)[0].as_py()
    if is_number or isinstance(value, bool) != types.is_boolean(kind) or isinstance(value, str):
        raise TypeError
    pyarrow.array([value]).cast(kind)
    return value


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
