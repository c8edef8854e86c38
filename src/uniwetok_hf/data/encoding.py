# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Writing encoded datasets (`data/encoded.py` describes them): which parts are missing, who makes them, and the end.

- A part holds certain rows of the source (`encoding_pieces.py`), and nothing but them decides what is in it. So a run
  can be killed at any moment: the next one makes the parts that are missing or cut off, and the result is the same.
- The settings are saved first; a run with others is refused by name.
- Several processes make different parts. Those on one machine are handed their rows by the main process, so a stream
  is read only once. Several machines take the parts, or the shards of a stream, k with k % world_size = rank, and
  whoever finds all parts in the shared folder finishes it.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ..files import read_json, whole_file
from ..signals import Stopped
from .archives import ERROR_COLUMN
from .encoded import (
    ENCODING_FILE,
    PARTIAL_FILE,
    Encoding,
    encoder_fingerprint,
    is_begun,
    part_path,
    part_paths,
    read_encoding,
)
from .encoded_parts import EncodingSettings, PartEncoder, PartSummary, read_summary
from .encoding_pieces import (
    MOST_SHARDS,
    PIECE_ROWS,
    UNFINISHED,
    choose_rows_per_part,
    make_parts,
    pieces_of_shard,
    pieces_of_stream,
    pieces_of_table,
    shard_parts,
)
from .encoding_ray import RayWork, make_parts_on_ray
from .encoding_workers import workers
from .samples import STREAMS
from .skipped import MAX_SHARE, SkippedItems
from .sources import IMAGE_COLUMN


ENGINES = ("local", "ray")
# Version of the random crops. The first kept the picture's own proportions, and then the middle of that.
CROPS = 2
SKIPPED_FILE = "skipped.jsonl"


def encode_dataset(
    dataset,
    folder: str | os.PathLike,
    model,
    settings: EncodingSettings,
    device: str = "cpu",
    num_processes: int = 1,
    rank: int = 0,
    world_size: int = 1,
    max_skipped_share: float = MAX_SHARE,
    stop: threading.Event | None = None,
    engine: str = "local",
) -> Encoding | None:
    """Encodes the pictures of a dataset, or goes on with it.

    Args:
        dataset: a `datasets.Dataset`, or an `IterableDataset` whose features are known.
        folder: where the parts go; made if it is not there.
        model: a [`UniWeTokModel`] on the CPU, in the precision in which it is to encode.
        settings: sizes, variants and so on.
        device: where the model runs. Of `cuda` without a number, each process takes one in turn.
        num_processes: processes on this machine, or actors of Ray; threads are divided between them.
        max_skipped_share: largest share of the rows that may be left out, since they are damaged; ten always may.
        rank, world_size: which machine this is, and of how many, when several encode into one shared folder. Of a
            stream that has a shard for each, a machine reads its own only.
        stop: when it is set, the parts that are being made are the last. (With `ray`, the first that is done is.)
        engine: who makes the parts: "local", this machine, or "ray", the machines of Ray, which `rank` and
            `world_size` say nothing about.

    Returns:
        What `encoding.json` says, or None when other machines still have parts to make.

    Raises:
        ValueError: for settings or columns that don't fit, when the folder was begun with other settings, or when too
            many rows are left out; the parts that are made stay.
        OSError: when a file can't be written.
        Stopped: after the parts that were being made when `stop` was set.
    """
    _check_machine(engine, rank, world_size)
    folder = Path(folder)
    settings = complete_settings(dataset, folder, model, settings)
    num_shards = choose_shards(dataset, folder, engine, num_processes, world_size)
    if num_shards is None and world_size > 1 and rank == 0 and not has_length(dataset):
        shards = f"a stream of {dataset.num_shards} shards is not divided between {world_size} machines"
        warnings.warn(f"`dataset`: {shards}; each reads all of it, and encodes its parts.", stacklevel=2)
    state = describe(dataset, model, settings, num_shards)
    if finished := begin(folder, state):
        return finished

    encoder = PartEncoder(to_encode(model), settings, encoded_features(dataset.features, settings.columns))
    pieces = _pieces_of_machine(dataset, folder, settings.rows_per_part, num_shards, rank, world_size)
    skipped, is_stopped = SkippedItems(max_skipped_share), (stop or threading.Event()).is_set
    with Progress(dataset, settings) as progress:
        if engine == "ray":
            work = RayWork(dataset, folder.resolve(), encoder, num_shards, device)
            parts = make_parts_on_ray(work, num_processes, skipped, progress.update, is_stopped)
        else:
            with workers(encoder, device, num_processes, rank, progress.update) as (write_part, wait):
                parts = make_parts(pieces, write_part, wait, skipped, is_stopped)
    if parts is None:
        raise Stopped(f"stopped; the parts in {folder} are whole, and the same command continues from there")
    return finish(folder, state, parts, progress.speed())


def _check_machine(engine: str, rank: int, world_size: int) -> None:
    if not 0 <= rank < world_size:
        raise ValueError(f"`rank` must be from 0 to `world_size` - 1, got {rank} of {world_size}.")
    if engine not in ENGINES:
        raise ValueError(f"`engine` must be one of {', '.join(ENGINES)}, got {engine!r}.")
    if engine == "ray" and world_size > 1:
        raise ValueError(f"`world_size` must be 1 with the engine ray, which finds its machines, got {world_size}.")


def complete_settings(dataset, folder: Path, model, settings: EncodingSettings) -> EncodingSettings:
    """`settings` with the columns and rows of a part that are not given.

    Raises:
        ValueError: for sizes or columns that don't fit.
    """
    settings.check_stride(model.config.stride)
    settings = dataclasses.replace(settings, columns=find_picture_columns(dataset.features, settings.columns))
    if settings.rows_per_part is None:
        num_rows = len(dataset) if has_length(dataset) else None
        chosen = (_read_state(folder) or {}).get("rows_per_part")
        rows = chosen or choose_rows_per_part(settings, model.config, num_rows)
        settings = dataclasses.replace(settings, rows_per_part=rows)
    return settings


def choose_shards(dataset, folder: Path, engine: str, num_processes: int, world_size: int) -> int | None:
    """How many shards of a stream are encoded apart from each other; None for one part after the other. A folder that
    is begun stays as it is, however many machines or actors go on with it."""
    if has_length(dataset):
        return None
    num_readers = world_size if engine == "local" else min(num_processes, dataset.num_shards)
    saved = _read_state(folder)
    apart = saved.get("shards") is not None if saved else 1 < num_readers <= dataset.num_shards
    return min(dataset.num_shards, MOST_SHARDS) if apart else None


def to_encode(model):
    """`model` as it encodes: convolutions are quickest with channels last, 1.4 times on a CPU. Sums are rounded in
    another way, which turns bits whose latents are next to zero: 5 of a million with the embedded model."""
    return model.eval().to(memory_format=torch.channels_last)


def _pieces_of_machine(dataset, folder: Path, rows_per_part: int, num_shards: int | None, rank: int, world_size: int):
    """The pieces of one machine. Of a stream that is not divided, those of others too, without rows."""
    if num_shards is not None:
        for shard in range(rank, num_shards, world_size):
            yield from pieces_of_shard(dataset, folder, rows_per_part, shard, num_shards)
    elif has_length(dataset):
        parts = range(rank, -(-len(dataset) // rows_per_part), world_size)
        yield from pieces_of_table(dataset, folder, rows_per_part, parts)
    else:
        yield from pieces_of_stream(dataset, folder, rows_per_part, is_ours=lambda part: part % world_size == rank)


def find_picture_columns(features, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The columns of pictures: `wanted`, or all that are typed `Image` or list of `Image`, or else `image`, of
    paths or bytes.

    Raises:
        ValueError: when there are none, or a wanted one is missing, named twice or holds no pictures.
    """
    from datasets import Image, LargeList, List, Value

    if features is None:
        raise ValueError("`dataset`: its columns are not known before it is read; cast it to its features first.")

    def holds_pictures(feature) -> bool:
        return isinstance(feature.feature if isinstance(feature, List | LargeList) else feature, Image)

    def is_stored_picture(feature) -> bool:  # as in files that don't say which of their columns are pictures
        if isinstance(feature, Value):
            return feature.dtype in ("binary", "large_binary", "string", "large_string")
        return isinstance(feature, dict) and {"bytes", "path"} <= set(feature)

    if wanted is None:
        wanted = [name for name, feature in features.items() if holds_pictures(feature)]
        if not wanted and is_stored_picture(features.get(IMAGE_COLUMN)):
            wanted = [IMAGE_COLUMN]
        if not wanted:
            raise ValueError(
                f"`columns`: no column is typed as pictures; the columns are {', '.join(features)}. Name those that "
                "hold pictures as paths or bytes."
            )
    for name in wanted:
        if name not in features:
            raise ValueError(f"`columns`: there is no column {name}; the columns are {', '.join(features)}.")
        if not (holds_pictures(features[name]) or is_stored_picture(features[name])):
            raise ValueError(f"`columns`: the column {name} holds no pictures, but {features[name]}.")
    if len(set(wanted)) < len(wanted):
        raise ValueError(f"`columns`: a column is named twice in {', '.join(wanted)}.")
    return tuple(wanted)


def encoded_features(features, columns: Sequence[str]):
    """Features of the parts: codes in the place of the pictures of `columns`, other pictures dropped."""
    from datasets import Features, Image, LargeList, List, Value

    codes = List({"codes": Value("binary"), "height": Value("int32"), "width": Value("int32")})
    encoded = {}
    for name, feature in features.items():
        is_list = isinstance(feature, List | LargeList)
        if name in columns:
            encoded[name] = List(codes) if is_list else codes
        elif name != ERROR_COLUMN and not isinstance(feature.feature if is_list else feature, Image):
            encoded[name] = feature
    return Features(encoded)


def describe(dataset, model, settings: EncodingSettings, num_shards: int | None) -> dict:
    """All that decides what the parts will hold, as JSON gives it back, and the name of the model."""
    name = model.config._name_or_path
    state = {
        "model": Path(name).name if Path(name).exists() else name,  # of a folder, not where it lies
        "fingerprint": encoder_fingerprint(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "num_bits": model.config.num_bits,
        "stride": model.config.stride,
        "source_rows": len(dataset) if has_length(dataset) else None,
        "source_words": _digest_of_words(dataset, settings.columns) if has_length(dataset) else None,
        **dataclasses.asdict(settings),
        "streams": STREAMS,
        "crops": CROPS,
        "shards": num_shards,
        "source_shards": None if has_length(dataset) else dataset.num_shards,
    }
    return json.loads(json.dumps(state))


def _digest_of_words(dataset, columns: Sequence[str]) -> str:
    """Of all that is kept beside the codes, column names included: a caption that has changed is another source."""
    kept = [name for name in encoded_features(dataset.features, columns) if name not in columns]
    digest = hashlib.sha256(json.dumps(kept).encode())
    if kept:
        for table in dataset.select_columns(kept).with_format("arrow").iter(1000):
            digest.update(repr(table.to_pylist()).encode())  # values, however Arrow holds them
    return digest.hexdigest()[:16]


def begin(folder: Path, state: dict) -> Encoding | None:
    """Saves the settings; compares them when there are some. Returns the description of a folder that is finished."""
    # Looked at first: another machine, which may begin at the same time, saves the settings before all else.
    others = [name for name in (UNFINISHED, SKIPPED_FILE) if (folder / name).exists()]
    holds_parts, saved = is_begun(folder), _read_state(folder)
    if saved is None and holds_parts:
        raise ValueError(f"`folder` {folder} holds parts, but not the settings they were made with: name another.")
    if saved is None and others:  # which would be deleted at the end
        found = " and ".join(others)
        raise ValueError(f"`folder` {folder} holds {found}, but not the settings of an encoding: name another.")
    for name, value in state.items() if saved is not None else ():
        if name == "source_words" and saved.get(name, value) != value:
            raise ValueError(
                f"`dataset`: captions or other columns beside the pictures are not what they were when {folder} was "
                "begun; name another folder, or remove this one."
            )
        if name == "source_shards" and name not in saved:  # older folders don't say it
            continue
        before = saved.get(name, False if name in ("same_crops", "mirrored") else None)  # older folders don't say it
        compared = name not in ("model", "source_words", "streams", "crops")  # a model: by its fingerprint
        if compared and before != value:
            hint = ""
            if name == "fingerprint":
                hint = f" These are of image tokenizers: {saved.get('model')} and {state['model']}."
            elif name == "source_rows" and None in (before, value):
                hint = " The number of rows is not known when they are streamed."
            elif name == "source_shards":
                hint = " It is the number of the stream's files: some were added or removed."
            raise ValueError(
                f"`{name}`: {folder} was begun with {before!r}, and can't go on with {value!r}; name another "
                f"folder, or remove this one.{hint}"
            )
    if (folder / ENCODING_FILE).exists():
        encoding = read_encoding(folder)
        if all(map(read_summary, part_paths(folder, encoding))):
            _clear(folder)
            return encoding
    is_cut = state["sizes"] and state["fit"] == "crop"
    random = ("streams", *(["crops"] if is_cut else [])) if state["num_variants"] > 1 else ()
    if saved is not None and any(saved.get(name) != state[name] for name in random):
        raise ValueError(
            f"`folder` {folder} was begun by an earlier version, whose random crops are others: finish it with that "
            "version, name another folder, or remove this one."
        )
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / PARTIAL_FILE, json.dumps(state, indent=1))
    if state["shards"] is not None or state["rows_per_part"] > PIECE_ROWS:
        (folder / UNFINISHED).mkdir(exist_ok=True)
    (folder / ENCODING_FILE).unlink(missing_ok=True)
    return None


def _read_state(folder: Path) -> dict | None:
    if (folder / ENCODING_FILE).exists():
        return read_encoding(folder).settings
    if (folder / PARTIAL_FILE).exists():
        return read_json(folder / PARTIAL_FILE)
    return None


def has_length(dataset) -> bool:
    return hasattr(dataset, "__len__")


class Progress:
    """Counts encodings, with a bar on terminals. How many pictures lists hold is not known before they are read."""

    def __init__(self, dataset, settings: EncodingSettings):
        from datasets import List

        total = None
        if has_length(dataset) and not any(isinstance(dataset.features[name], List) for name in settings.columns):
            total = len(dataset) * len(settings.columns) * settings.num_encodings
        self.bar = tqdm(total=total, desc="encoding", unit=" pictures", leave=False, disable=None)
        self.count, self.start = 0, time.monotonic()
        self.times: list[tuple[float, int]] = []  # of the first and of the last report, with all encodings up to it

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()

    def update(self, count: int, seconds: float = 0.0) -> None:
        """Adds `count` encodings; those of a report that comes late took `seconds`."""
        if count:
            now = time.monotonic()
            if seconds and not self.times:
                self.times = [(now - seconds, 0)]
            self.bar.update(count)
            self.count += count
            self.times[1:] = [(now, self.count)]

    def speed(self) -> float | None:
        """Encodings a second, when there were any: after the first report, since new processes take seconds to start.
        A single report is compared with the start."""
        if not self.times:
            return None
        (end, count), (start, before) = self.times[-1], self.times[0] if len(self.times) > 1 else (self.start, 0)
        return round((count - before) / (end - start), 1)


def finish(folder: Path, state: dict, parts: Sequence[Path], speed: float | None) -> Encoding | None:
    """Adds up the parts and writes `skipped.jsonl` and, last, `encoding.json`.

    Args:
        parts: all of them; those of a dataset with a length, or of shards, are found without.

    Returns:
        What `encoding.json` says, or None when a part is missing.

    Raises:
        ValueError: when there are no rows.
    """
    counts = None
    if state["shards"] is not None:
        found = [shard_parts(folder, shard) for shard in range(state["shards"])]
        if None in found:
            return read_encoding(folder) if (folder / ENCODING_FILE).exists() else None
        parts, counts = list(itertools.chain.from_iterable(found)), list(map(len, found))
    elif state["source_rows"] is not None:
        parts = [part_path(folder, index) for index in range(-(-state["source_rows"] // state["rows_per_part"]))]
    summaries = [read_summary(part) for part in parts]
    if None in summaries:
        return None
    if not summaries:
        raise ValueError("`dataset` has no rows.")
    skipped = [
        one | {"part": part.name} for part, summary in zip(parts, summaries, strict=True) for one in summary.skipped
    ]
    if skipped:
        _write(folder / SKIPPED_FILE, "".join(json.dumps(entry) + "\n" for entry in skipped))
    else:
        (folder / SKIPPED_FILE).unlink(missing_ok=True)  # of rows that are mended
    encoding = Encoding(
        model=state["model"],
        fingerprint=state["fingerprint"],
        num_bits=state["num_bits"],
        stride=state["stride"],
        picture_columns=state["columns"],
        num_variants=state["num_variants"] * (2 if state["mirrored"] else 1),
        num_rows=sum(summary.num_rows for summary in summaries) - len(skipped),
        num_parts=len(parts),
        num_skipped=len(skipped),
        bytes=_mean_bytes(summaries) | {"parts": sum(part.stat().st_size for part in parts)},
        pictures_per_second=speed,
        settings=state,
        parts_of_shards=counts,
    )
    _write(folder / ENCODING_FILE, json.dumps(dataclasses.asdict(encoding), indent=1))
    _clear(folder)
    return encoding


def _clear(folder: Path) -> None:
    """Removes what is not needed when all parts are there, and what killed processes left. (Another machine may finish
    at the same time.)"""
    (folder / PARTIAL_FILE).unlink(missing_ok=True)
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
    for leftover in folder.glob(".part-*.tmp"):
        leftover.unlink(missing_ok=True)


def _mean_bytes(parts: Sequence[PartSummary]) -> dict:
    def mean(name: str, count: str) -> float | None:
        number = sum(getattr(part, count) for part in parts)
        return round(sum(getattr(part, name) for part in parts) / number, 1) if number else None

    return {
        "codes": mean("codes_bytes", "pictures"),
        "source": mean("source_bytes", "pictures"),
        "jpeg": mean("jpeg_bytes", "jpeg_pictures"),
        "pictures": sum(part.pictures for part in parts),
        "jpeg_pictures": sum(part.jpeg_pictures for part in parts),
    }


def _write(path: Path, text: str) -> None:
    with whole_file(path, is_shared=True) as temporary:
        temporary.write_text(text, encoding="utf-8")
