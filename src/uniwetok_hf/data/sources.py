# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Sources of pictures: one way to open folders, Parquet, WebDataset tars, saved datasets, names on the Hub, and
functions of a user.

All reading is done by the `datasets` library. Nothing is decoded while rows are read: a cell of a picture column is
`{"bytes", "path"}`, and [`read_cell`] turns it into a picture, so that a broken file is one bad row, not a crash.
"""

import contextlib
import errno
import glob
import inspect
import io
import json
import os
import re
import tarfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ..embedded import FOLDER
from ..files import WriteError, is_local_name, one_line
from .archives import open_archives
from .images import ImageReadError, read_image
from .parquet_files import find_damage, readable_files
from .places import is_place, load_place


IMAGE_COLUMN = "image"

# Folders with these names inside a folder of pictures are splits; all others are classes or just folders.
SPLIT_FOLDERS = {"train", "validation", "val", "valid", "dev", "test", "eval"}
# Name of the source of the few captioned pictures that ship with the package.
EMBEDDED_PICTURES = "embedded-pictures"
# What comes after the name of a split: `-00000-of-00002.parquet`, also with a hash, `_0.tar`, `.parquet`.
NUMBERS = re.compile(r"(-\d{5}-of-\d{5}.*|[-_. ]?\d+)?\.(parquet|tar|tar\.gz|tgz)$", re.IGNORECASE)
# Shards of a saved dataset when it is streamed; they come in another order each epoch.
NUM_SHARDS = 64
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


@dataclass
class PictureSource:
    """Pictures from one place, and how often they are sampled relative to other sources. `on_resume` is explained in
    `training/config.py`."""

    path: str = field(
        metadata={
            "help": "folder of `save_to_disk`, folder of pictures, Parquet or WebDataset .tar (file, folder or glob), "
            f"{EMBEDDED_PICTURES}, the name of a dataset on the Hub, or the place of your own function, FILE.py:NAME, "
            "that is called with the split and returns a datasets.Dataset or rows",
            "on_resume": "keep",
        }
    )
    split: str = field(
        default="train", metadata={"help": "which split of it; plain files are all `train`", "on_resume": "keep"}
    )
    name: str | None = field(
        default=None, metadata={"help": "configuration of a dataset on the Hub", "on_resume": "keep"}
    )
    image_column: str = field(
        default=IMAGE_COLUMN,
        metadata={
            "help": "column of the pictures; the only column of pictures is found without it",
            "on_resume": "keep",
        },
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "read in the order of the files, without a local copy",
            "on_resume": "keep",
        },
    )
    weight: float = field(
        default=1.0, metadata={"help": "share of the samples, over the sum of all weights", "on_resume": "keep"}
    )
    crop_probability: float | None = field(
        default=None,
        metadata={
            "help": "of this source, in a training; null: the training's `crop_probability`",
            "on_resume": "apply",
        },
    )
    crop_scale: list[float] | None = field(
        default=None,
        metadata={"help": "of this source, in a training; null: the training's `crop_scale`", "on_resume": "apply"},
    )


def open_source(source: PictureSource):
    """Opens a source as a `datasets.Dataset`, or as an `IterableDataset` when it is streamed.

    All columns are there, and pictures are in `source.image_column`. Columns of type `Image`, and of lists of it, are
    read as `{"bytes", "path"}`; the picture column may also hold bytes or paths. [`read_cell`] reads them all.

    Raises:
        ValueError: when there is no such file, folder or dataset, or it lacks the split or the column.
        WriteError: when there is no room in the cache of `datasets`.
        ImportError: when `datasets` is not installed.
    """
    from datasets import Image as ImageFeature

    dataset = open_rows(source)
    if dataset.features is None:
        raise ValueError(
            f"`streaming`: {source.path} does not say which columns it has; read it without streaming, or as Parquet."
        )
    undecoded = ImageFeature(decode=False)
    for column, feature in dataset.features.items():
        if isinstance(feature, ImageFeature):
            dataset = dataset.cast_column(column, undecoded)
        elif isinstance(getattr(feature, "feature", None), ImageFeature):
            dataset = dataset.cast_column(column, type(feature)(undecoded))
    return _with_image_column(dataset, source)


@contextlib.contextmanager
def opening(what: str) -> Iterator[None]:
    """A block in which `datasets` opens `what`, which it may copy into its cache.

    Raises:
        ValueError: when `what`, with which the message begins, can't be opened.
        WriteError: naming the cache, when there is no room in it.
        ConnectionError: as it is, when the Hub can't be asked.
    """
    from datasets import config
    from datasets.exceptions import DatasetsError

    try:
        yield
    except ConnectionError:
        raise
    except (OSError, ValueError, DatasetsError, tarfile.TarError) as error:
        cause = error.__cause__ or error  # "An error occurred while generating the dataset" says nothing
        if isinstance(cause, OSError) and cause.errno in NO_ROOM:
            raise WriteError(f"{config.HF_DATASETS_CACHE} can't be written: {os.strerror(cause.errno)}") from error
        raise ValueError(f"{what} can't be opened: {one_line(cause)}") from error


def open_rows(source: PictureSource):
    """Like [`open_source`], with all columns as they are stored: rows may have several pictures, or none.

    Raises:
        ValueError: when there is no such file, folder or dataset, or it lacks the split.
        WriteError: when there is no room in the cache of `datasets`.
        ImportError: when `datasets` is not installed.
    """
    if is_place(source.path):
        return _dataset_of_place(source)
    splits = _load_splits(source)
    if source.split not in splits:
        raise ValueError(f"`split` {source.split!r} is not in {source.path}; there is {', '.join(splits)}.")
    return splits[source.split]


def read_cell(cell: dict | bytes | str | None, name: str) -> Image.Image:
    """The picture of one cell of a picture column, as [`read_image`] reads it: upright, RGB, on white.

    Args:
        cell: `{"bytes", "path"}`, bytes of a file, or a path or URL.
        name: what to call the picture when it can't be read.

    Raises:
        ImageReadError: when it can't be read; the message begins with `name`.
    """
    return picture_of_file(cell_content(cell, name), name)


def cell_content(cell: dict | bytes | str | None, name: str) -> bytes:
    """The file of one cell of a picture column, as [`read_cell`] reads it."""
    content = cell
    if isinstance(cell, dict):
        content = cell.get("path") if cell.get("bytes") is None else cell["bytes"]
    if content is None:
        raise ImageReadError(f"{name}: there is no picture in this row")
    return _read_file(content, name) if isinstance(content, str) else content


def picture_of_file(content: bytes, name: str) -> Image.Image:
    """The picture of the `content` of a file, as [`read_cell`] returns it."""
    stream = io.BytesIO(content)
    stream.name = name
    return read_image(stream)


def cell_name(cell: dict | bytes | str | None, source: PictureSource, row: int) -> str:
    """What to call a picture: its path, or its name inside of the source, or the number of its row."""
    path = cell if isinstance(cell, str) else cell.get("path") if isinstance(cell, dict) else None
    if path and (isinstance(cell, str) or cell.get("bytes") is None):
        return path
    return f"{path or f'row {row}'} of {source.path} ({source.split})"


def _read_file(path: str, name: str) -> bytes:
    """Content of a local file, or of a URL that `fsspec` knows (Hub, archives, clouds)."""
    import fsspec

    try:
        with fsspec.open(path, "rb") if "://" in path else open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise ImageReadError(f"{name}: no such file") from None
    except OSError as error:
        raise ImageReadError(f"{name}: {error.strerror or one_line(error) or type(error).__name__}") from error
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # the clients that `fsspec` calls have errors of their own
        if "://" not in path:
            raise
        raise ImageReadError(f"{name}: {type(error).__name__}: {one_line(error)}") from error


def _load_splits(source: PictureSource) -> dict:
    """Split -> dataset. Of a folder of pictures only the split that is asked for is looked at."""
    if not source.path:
        raise ValueError("`path` is empty; `.` is the current folder.")
    path = Path(source.path).expanduser()
    if source.path == EMBEDDED_PICTURES:
        return {"train": _embedded_pictures()}
    if path.is_dir():
        return _load_folder(path.resolve(), source)
    builder = _builder_of(source.path)
    if builder is None and not glob.has_magic(source.path):
        if is_local_name(source.path):
            raise ValueError(f"`path` {source.path}: there is no such file or folder.")
        return _load(source, source.path, name=source.name)
    if builder is None:
        raise ValueError(f"`path` {source.path}: a pattern must end in .parquet, .tar or the suffix of a picture.")
    files = source.path
    if "://" not in files:
        files = glob.escape(str(path)) if path.is_file() else str(path)
        found = sorted(glob.glob(files, recursive=True))
        if not found:
            raise ValueError(f"`path` {source.path}: there is no such file.")
        if builder == "webdataset":
            return {"train": _load_archives(source, found)}
        if builder == "parquet":
            return {"train": _load_parquet(source, found)}
    return _load(source, builder, data_files={"train": files})


def rows_of_place(place: str, split: str):
    """What a user's own function returns for the split: a dataset, or a sequence of rows.

    Raises:
        ValueError: when there is no such function, it fails, or it returns something else or nothing.
    """
    from datasets import Dataset, IterableDataset

    load, name = load_place(place), f"`{Path(place).name}` ({split!r})"
    try:
        inspect.signature(load).bind(split)
    except TypeError as error:
        raise ValueError(f"{name} must be a function of one argument, the split: {error}.") from error
    kinds = (Dataset, IterableDataset, Sequence)
    try:
        rows = load(split)
        if isinstance(rows, Iterable) and not isinstance(rows, (*kinds, Mapping)):
            rows = list(rows)
    except Exception as error:
        raise ValueError(f"{name} raised {type(error).__name__}: {error}") from error
    if not isinstance(rows, kinds) or (isinstance(rows, Sequence) and rows and not isinstance(rows[0], Mapping)):
        raise ValueError(
            f"{name} must return a datasets.Dataset or rows, dicts with the same keys; got {repr(rows)[:80]}."
        )
    if not isinstance(rows, IterableDataset) and len(rows) == 0:
        raise ValueError(f"{name} returned no rows.")
    return rows


def _dataset_of_place(source: PictureSource):
    """The rows of a user's own function as a dataset."""
    from datasets import Dataset, IterableDataset

    try:
        rows = rows_of_place(source.path, source.split)
    except ValueError as error:
        raise ValueError(f"`path`: {error}") from error.__cause__
    if not isinstance(rows, Dataset | IterableDataset):
        try:
            rows = Dataset.from_list(list(rows))
        except Exception as error:  # of pyarrow, and of pictures that can't be saved
            name = Path(source.path).name
            raise ValueError(f"`path`: the rows of `{name}` are no dicts with the same keys: {error}") from error
    return _streamed(rows) if source.streaming and isinstance(rows, Dataset) else rows


def _embedded_pictures():
    from datasets import Dataset, Image

    folder = FOLDER / "pictures"
    rows = json.loads((folder / "pictures.json").read_text(encoding="utf-8"))
    columns = {"image": [str(folder / row["file"]) for row in rows], "text": [row["text"] for row in rows]}
    return Dataset.from_dict(columns).cast_column("image", Image(decode=False))


def _load_folder(path: Path, source: PictureSource) -> dict:
    from datasets import Dataset, load_from_disk

    for folder in (path, path / "pictures"):
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            saved = load_from_disk(str(folder))
            splits = {str(saved.split or "train"): saved} if isinstance(saved, Dataset) else dict(saved)
            return {name: _streamed(split) for name, split in splits.items()} if source.streaming else splits
    builder = _builder_of_folder(path)
    if builder is None:
        raise ValueError(
            f"`path` {source.path}: no saved dataset, pictures, Parquet files or WebDataset tars in this folder."
        )
    if builder == "webdataset" or (builder == "parquet" and not _has_card(path)):
        named = _files_of_splits(path, builder)
        load = _load_archives if builder == "webdataset" else _load_parquet
        chosen = named.get(source.split)
        return dict.fromkeys(named) | ({source.split: load(source, chosen)} if chosen else {})
    if builder != "imagefolder":
        return _load(source, str(path), name=source.name)
    # `datasets` would also take "crash test.png" for a picture of the test split, and then drop all others.
    folders = {entry.name for entry in path.iterdir() if entry.is_dir()}
    if source.split in folders:
        path = path / source.split
    elif source.split != "train" or folders & SPLIT_FOLDERS:
        return dict.fromkeys(sorted(folders & SPLIT_FOLDERS) or ["train"])
    _warn_of_unread(path)
    patterns = [f"{glob.escape(str(path))}/**"]
    walked = []
    for folder, _, names in _walk(path):
        _check_metadata(folder, names)
        walked.append(folder)
    if any(map(os.path.islink, walked)):  # which `**` does not enter
        patterns = [f"{glob.escape(folder)}/*" for folder in walked]
    return _load(source, builder, data_files={source.split: patterns})


def _has_card(path: Path) -> bool:
    """Whether a README as on the Hub says which of the files are what, or how their columns are typed."""
    readme = path / "README.md"
    keys = re.compile("^(configs|dataset_info):", re.MULTILINE)
    return readme.is_file() and keys.search(readme.read_text(encoding="utf-8", errors="replace")) is not None


def _files_of_splits(path: Path, builder: str) -> dict[str, list[str]]:
    """Split -> its Parquet files or archives."""
    splits, doubtful = {}, []
    for file in sorted(os.path.join(folder, name) for folder, _, names in _walk(path) for name in names):
        if _builder_of(file) == builder:
            name = Path(file).relative_to(path).as_posix()
            split = _split_of(name)
            splits.setdefault(split, []).append(file)
            words = set(re.findall("[a-z]+", name.lower()))
            if split == "train" and words & (SPLIT_FOLDERS - {"train"}) and "train" not in name.split("/"):
                doubtful.append(name)
    if doubtful:
        warnings.warn(
            f"{len(doubtful)} files in {path} are taken for `train`, whatever else is in their names: "
            f"{', '.join(doubtful[:10])}. Files of another split belong in a folder of its name.",
            stacklevel=2,
        )
    return splits


def _split_of(name: str) -> str:
    """The split of a file, by its relative path: a folder's name, or that of a file that is called after the split and
    nothing else (`test.parquet`, `test-00000-of-00002.parquet`), or `train`. `datasets` also goes by words in longer
    names, `crash-test.parquet`, and then drops all files without such a word."""
    from datasets.data_files import SPLIT_KEYWORDS

    splits = {word: str(split) for split, words in SPLIT_KEYWORDS.items() for word in words}
    *folders, file = name.split("/")
    stem = NUMBERS.sub("", file)
    if (named := next((splits[word] for word in (*folders, stem.lower()) if word in splits), None)) is not None:
        return named
    return stem if folders == ["data"] and "-of-" in file.removeprefix(stem) else "train"  # the Hub's way


def _warn_of_unread(path: Path) -> None:
    """Warns of pictures that `datasets` does not take for such."""
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    names = [name for _, _, files in _walk(path) for name in files if _builder_of(name) == "imagefolder"]
    suffixes = [os.path.splitext(name)[1].lower() for name in names]
    if unread := [suffix for suffix in suffixes if suffix not in ImageFolder.EXTENSIONS]:
        warnings.warn(
            f"{len(unread)} pictures in {path} are left out: `datasets` does not read files with the suffix "
            f"{', '.join(sorted(set(unread)))}.",
            stacklevel=2,
        )


def _check_metadata(folder: str, names: list[str]) -> None:
    """Raises a ValueError for what is written beside pictures and is not UTF-8: `datasets` does not say which file."""
    for name in sorted({"metadata.csv", "metadata.jsonl"} & set(names)):
        with open(os.path.join(folder, name), "rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    line.decode("utf-8")
                except UnicodeDecodeError as error:
                    why = f"line {number} is not: {one_line(error)}"
                    raise ValueError(f"`path`: {file.name} must be text in UTF-8; {why}.") from error


def _walk(path: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """`os.walk` in order, also through linked folders, each once, without what is hidden."""
    seen = set()
    for folder, folders, files in os.walk(path, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        yield folder, folders, sorted(name for name in files if not name.startswith("."))


def _load_archives(source: PictureSource, files: list[str]):
    with opening(f"`path` {source.path}"):
        return open_archives(files, source.streaming)


def _load_parquet(source: PictureSource, files: list[str]):
    try:
        files = readable_files(files)
    except (OSError, ValueError) as error:
        raise ValueError(f"`path` {source.path} can't be opened: {error}") from error
    try:
        return _load(source, "parquet", data_files={"train": [glob.escape(file) for file in files]})["train"]
    except ValueError as error:  # of pyarrow, which names no file
        if (damaged := find_damage(files)) is not None:
            why = f"{damaged[0]} is damaged: {damaged[1]}"
            raise ValueError(f"`path` {source.path} can't be opened: {why}") from error
        raise


def _load(source: PictureSource, *arguments, **options) -> dict:
    """`load_dataset`, with one kind of error."""
    from datasets import load_dataset

    try:
        with opening(f"`path` {source.path}"):
            return dict(load_dataset(*arguments, streaming=source.streaming, **options))
    except ConnectionError as error:
        raise ValueError(
            f"`path` {source.path}: there is no such file or folder, and the Hub can't be asked: {error}"
        ) from error
    except ValueError as error:  # of the reader of archives, which names none
        if "Must pass at least one table" not in str(error) and not str(error).endswith(": empty file"):
            raise
        raise ValueError(
            f"`path` {source.path} can't be opened: its first archive{_first_file(options)} is empty; leave it out."
        ) from error


def _first_file(options: dict) -> str:
    """The first of the files that `load_dataset` was to read, in commas, where it is known."""
    from datasets.data_files import resolve_pattern

    pattern = options.get("data_files", {}).get("train")
    if not isinstance(pattern, str):
        return ""
    try:
        return f", {resolve_pattern(pattern, base_path='')[0]},"
    except Exception:  # of the place that is asked once more
        return ""


def _streamed(dataset):
    return dataset.to_iterable_dataset(num_shards=max(min(NUM_SHARDS, len(dataset)), 1))


def _builder_of(name: str) -> str | None:
    """The reader of `datasets` for a file of this name."""
    name = name.lower()
    if name.endswith(".parquet"):
        return "parquet"
    if name.endswith((".tar", ".tar.gz", ".tgz")):
        return "webdataset"
    return "imagefolder" if os.path.splitext(name)[1] in Image.registered_extensions() else None


def _builder_of_folder(path: Path) -> str | None:
    """The reader of `datasets` for the first file that has one."""
    for _, _, files in _walk(path):
        for name in files:
            # `metadata.parquet` may lie beside pictures and hold their captions.
            if not name.startswith("metadata.") and (builder := _builder_of(name)):
                return builder
    return None


def _with_image_column(dataset, source: PictureSource):
    """`dataset` with pictures in `source.image_column`."""
    from datasets import Image as ImageFeature
    from datasets import Value

    features, column = dataset.features, source.image_column
    if column not in features:
        pictures = [name for name, feature in features.items() if isinstance(feature, ImageFeature)]
        if column != IMAGE_COLUMN or len(pictures) != 1:
            raise ValueError(
                f"`image_column` {column!r} is not in {source.path}; there is {', '.join(features)}"
                + (f", of which {', '.join(pictures)} hold pictures." if pictures else ", and no column of pictures.")
            )
        return dataset.rename_column(pictures[0], column)
    feature = features[column]
    is_file = isinstance(feature, Value) and feature.dtype in ("binary", "large_binary", "string", "large_string")
    if (
        not isinstance(feature, ImageFeature)
        and not is_file
        and not (isinstance(feature, dict) and "bytes" in feature)
    ):
        raise ValueError(f"`image_column` {column!r} of {source.path} holds no pictures but {feature}.")
    return dataset
