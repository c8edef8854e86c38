# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Writing encoded datasets (`data/encoded.py` describes them): which parts are missing, who makes them, and the end.

- Part k holds rows k * n ... (k + 1) * n - 1 of the source, and nothing but them decides what is in it. So a run can
  be killed at any moment: the next one makes the parts that are missing or cut off, and the result is the same.
- The settings are saved first; a run with others is refused by name.
- Several processes make different parts. Those on one machine share one copy of the weights and are handed their rows
  by the main process, so a stream is read only once. Several machines take the parts k with k % world_size = rank, and
  whoever finds all parts in the shared folder finishes it.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import itertools
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ..files import read_json, whole_file
from ..signals import Stopped
from .archives import ERROR_COLUMN
from .encoded import ENCODING_FILE, Encoding, encoder_fingerprint, part_path, read_encoding
from .encoded_parts import EncodingSettings, PartEncoder, PartSummary, read_summary
from .samples import STREAMS
from .skipped import MAX_SHARE, SkippedItems
from .sources import IMAGE_COLUMN


PARTIAL_FILE = "encoding.partial.json"
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
) -> Encoding | None:
    """Encodes the pictures of a dataset, or goes on with it.

    Args:
        dataset: a `datasets.Dataset`, or an `IterableDataset` whose features are known.
        folder: where the parts go; made if it is not there.
        model: a [`UniWeTokModel`] on the CPU, in the precision in which it is to encode.
        settings: sizes, variants and so on.
        device: where the model runs. Of `cuda` without a number, each process takes one in turn.
        num_processes: processes on this machine; threads are divided between them.
        max_skipped_share: largest share of the rows that may be left out, since they are damaged; ten always may.
        rank, world_size: which machine this is, and of how many, when several encode into one shared folder.
        stop: when it is set, the parts that are being made are the last.

    Returns:
        What `encoding.json` says, or None when other machines still have parts to make.

    Raises:
        ValueError: for settings or columns that don't fit, when the folder was begun with other settings, or when too
            many rows are left out; the parts that are made stay.
        OSError: when a file can't be written.
        Stopped: after the parts that were being made when `stop` was set.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"`rank` must be from 0 to `world_size` - 1, got {rank} of {world_size}.")
    folder = Path(folder)
    settings.check_stride(model.config.stride)
    columns = find_picture_columns(dataset.features, settings.columns)
    settings = dataclasses.replace(settings, columns=columns)
    state = _describe(dataset, model, settings)
    if finished := _begin(folder, state):
        return finished

    # Convolutions are quickest with channels last, 1.4 times on a CPU. Sums are rounded in another way, which turns
    # bits whose latents are next to zero: 5 of a million with the embedded model.
    model = model.eval().to(memory_format=torch.channels_last)
    encoder = PartEncoder(model, settings, encoded_features(dataset.features, columns))
    num_parts, is_stopped = 0, False
    unchecked, skipped = [], SkippedItems(max_skipped_share)
    with (
        _Progress(dataset, settings) as progress,
        _workers(encoder, device, num_processes, rank, progress.update) as write_part,
    ):
        for index, table in _tables(dataset, folder, settings.rows_per_part, rank, world_size):
            num_parts = index + 1
            if is_stopped := table is not None and stop is not None and stop.is_set():
                break
            if table is not None:
                write_part(table, index * settings.rows_per_part, part_path(folder, index))
            unchecked = _check_parts([*unchecked, part_path(folder, index)], skipped)
    if is_stopped:
        raise Stopped(f"stopped; the parts in {folder} are whole, and the same command continues from there")
    _check_parts(unchecked, skipped)
    if num_parts == 0:
        raise ValueError("`dataset` has no rows.")
    return _finish(folder, state, num_parts, progress.speed())


def _check_parts(paths: list[Path], skipped: SkippedItems) -> list[Path]:
    """Counts what was left out of the parts that are made; returns the others.

    Raises:
        ValueError: when it is too much.
    """
    waiting = []
    for path in paths:
        if (summary := read_summary(path)) is None:
            waiting.append(path)
        else:
            reasons = [f"row {one['row']}, {one['column']}: {one['error']}" for one in summary.skipped]
            skipped.add(reasons, summary.num_rows)
    return waiting


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
        return isinstance(feature, Image) or (
            isinstance(feature, List | LargeList) and holds_pictures(feature.feature)
        )

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


def _describe(dataset, model, settings: EncodingSettings) -> dict:
    """All that decides what the parts will hold, as JSON gives it back, and the name of the model."""
    name = model.config._name_or_path
    state = {
        "model": Path(name).name if Path(name).exists() else name,  # of a folder, not where it lies
        "fingerprint": encoder_fingerprint(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "num_bits": model.config.num_bits,
        "stride": model.config.stride,
        "source_rows": len(dataset) if _has_length(dataset) else None,
        "source_words": _digest_of_words(dataset, settings.columns) if _has_length(dataset) else None,
        **dataclasses.asdict(settings),
        "streams": STREAMS,
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


def _begin(folder: Path, state: dict) -> Encoding | None:
    """Saves the settings; compares them when there are some. Returns the description of a folder that is finished."""
    saved = _read_state(folder)
    if saved is None and any(folder.glob("part-*.parquet")):
        raise ValueError(f"`folder` {folder} holds parts, but not the settings they were made with: name another.")
    for name, value in state.items() if saved is not None else ():
        if name == "source_words" and saved.get(name, value) != value:
            raise ValueError(
                f"`dataset`: captions or other columns beside the pictures are not what they were when {folder} was "
                "begun; name another folder, or remove this one."
            )
        before = saved.get(name, False if name in ("same_crops", "mirrored") else None)  # older folders don't say it
        if name not in ("model", "source_words", "streams") and before != value:  # a model: by its fingerprint
            hint = ""
            if name == "fingerprint":
                hint = f" These are of image tokenizers: {saved.get('model')} and {state['model']}."
            elif name == "source_rows" and None in (before, value):
                hint = " The number of rows is not known when they are streamed."
            raise ValueError(
                f"`{name}`: {folder} was begun with {before!r}, and can't go on with {value!r}; name another "
                f"folder, or remove this one.{hint}"
            )
    if (folder / ENCODING_FILE).exists():
        encoding = read_encoding(folder)
        if all(read_summary(part_path(folder, index)) for index in range(encoding.num_parts)):
            (folder / PARTIAL_FILE).unlink(missing_ok=True)
            return encoding
    if saved is not None and state["num_variants"] > 1 and saved.get("streams") != STREAMS:
        raise ValueError(
            f"`folder` {folder} was begun by an earlier version, whose random crops are others: finish it with that "
            "version (commit 84bac22), name another folder, or remove this one."
        )
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / PARTIAL_FILE, json.dumps(state, indent=1))
    (folder / ENCODING_FILE).unlink(missing_ok=True)
    return None


def _read_state(folder: Path) -> dict | None:
    if (folder / ENCODING_FILE).exists():
        return read_encoding(folder).settings
    if (folder / PARTIAL_FILE).exists():
        return read_json(folder / PARTIAL_FILE)
    return None


def _tables(dataset, folder: Path, rows_per_part: int, rank: int, world_size: int) -> Iterator[tuple]:
    """Number and rows of each part, in order. Parts that are there, or another machine's, come with None."""

    def is_missing(index: int) -> bool:
        return index % world_size == rank and read_summary(part_path(folder, index)) is None

    if _has_length(dataset):
        dataset = dataset.with_format("arrow")  # rows as they are stored, no picture decoded
        for index in range(-(-len(dataset) // rows_per_part)):
            rows = slice(index * rows_per_part, (index + 1) * rows_per_part)
            yield index, dataset[rows] if is_missing(index) else None
        return

    import pyarrow

    # Row by row: a stream in Arrow's format fails where files have their fields in another order, or lack one.
    rows, schema = iter(dataset.decode(False)), dataset.features.arrow_schema
    for index in itertools.count():
        try:
            part = list(itertools.islice(rows, rows_per_part))
        except Exception as error:  # of a user's own stream
            first = index * rows_per_part
            raise ValueError(
                f"`dataset`: reading the rows from {first} on raised {type(error).__name__}: {error}"
            ) from error
        if not part:
            return
        yield index, pyarrow.Table.from_pylist(part, schema) if is_missing(index) else None


def _has_length(dataset) -> bool:
    return hasattr(dataset, "__len__")


class _Progress:
    """Counts encodings, with a bar on terminals. How many pictures lists hold is not known before they are read."""

    def __init__(self, dataset, settings: EncodingSettings):
        from datasets import List

        total = None
        if _has_length(dataset) and not any(isinstance(dataset.features[name], List) for name in settings.columns):
            total = len(dataset) * len(settings.columns) * settings.num_encodings
        self.bar = tqdm(total=total, desc="encoding", unit=" pictures", leave=False, disable=None)
        self.count, self.start = 0, time.monotonic()
        self.times: list[tuple[float, int]] = []  # of the first and of the last report, with all encodings up to it

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()

    def update(self, count: int) -> None:
        if count:
            self.bar.update(count)
            self.count += count
            self.times[1:] = [(time.monotonic(), self.count)]

    def speed(self) -> float | None:
        """Encodings a second, when there were any: after the first report, since new processes take seconds to start.
        A single report is compared with the start."""
        if not self.times:
            return None
        (end, count), (start, before) = self.times[-1], self.times[0] if len(self.times) > 1 else (self.start, 0)
        return round((count - before) / (end - start), 1)


@contextlib.contextmanager
def _workers(encoder: PartEncoder, device: str, num_processes: int, rank: int, report) -> Iterator[Callable]:
    """Gives a function that makes a part or has it made, by this process or by `num_processes` new ones. `report` is
    called with the number of encodings made since the last time."""
    if num_processes == 1:
        encoder.model.to(_device(device, rank))
        encoder.on_pictures = report
        yield encoder.write_part
        return
    others = set(multiprocessing.active_children())
    pool = _Pool(encoder, device, num_processes, rank * num_processes, report)
    try:
        yield pool.submit
        pool.wait(0)
    except KeyboardInterrupt:
        for worker in set(multiprocessing.active_children()) - others:
            worker.kill()
        raise
    finally:
        pool.executor.shutdown(cancel_futures=True)


class _Pool:
    """New processes that make parts. `first` is the place of the first of them among those of all machines."""

    def __init__(self, encoder: PartEncoder, device: str, num_processes: int, first: int, report):
        context = multiprocessing.get_context("spawn")
        threads = max(1, torch.get_num_threads() // num_processes)
        self.num_processes, self.report = num_processes, report
        self.running: set[concurrent.futures.Future] = set()
        self.counter, self.reported = context.Value("q", 0), 0
        # The weights are handed over as shared memory: torch teaches multiprocessing to.
        settings = (encoder, device, threads, context.Value("q", first), self.counter)
        self.executor = concurrent.futures.ProcessPoolExecutor(num_processes, context, _start_worker, settings)

    def submit(self, table, first_row: int, path: Path) -> None:
        """Hands out a part, and waits while all processes have one and another is ready."""
        import pyarrow

        stream = pyarrow.BufferOutputStream()  # a pickled table would carry all rows of the chunks it is cut from
        with pyarrow.ipc.new_stream(stream, table.schema) as writer:
            writer.write_table(table)
        self.running.add(self.executor.submit(_write_part, stream.getvalue(), first_row, path))
        self.wait(self.num_processes)

    def wait(self, most: int) -> None:
        """Until no more than `most` parts are under way."""
        while len(self.running) > most:
            done, self.running = concurrent.futures.wait(self.running, 0.5, concurrent.futures.FIRST_COMPLETED)
            count = self.counter.value
            self.report(count - self.reported)
            self.reported = count
            for future in done:
                future.result()


_worker: PartEncoder | None = None  # of this process, when a pool started it


def _start_worker(encoder: PartEncoder, device: str, threads: int, started, counter) -> None:
    global _worker
    for number in (signal.SIGINT, signal.SIGTERM):  # which reach all processes of a group; the main process decides
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    with started.get_lock():
        place, started.value = started.value, started.value + 1
    encoder.model.to(_device(device, place))

    def count(pictures: int) -> None:
        with counter.get_lock():
            counter.value += pictures

    encoder.on_pictures = count
    _worker = encoder


def _end_with_parent() -> None:
    """A killed parent can't stop its workers, and they would go on beside the next run."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _write_part(rows, first_row: int, path: Path) -> None:
    import pyarrow

    _worker.write_part(pyarrow.ipc.open_stream(rows).read_all(), first_row, path)


def _device(name: str, place: int) -> torch.device:
    """The device of the process `place`: of several GPUs, each process takes the next."""
    device = torch.device(name)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", place % torch.cuda.device_count())
    return device


def _finish(folder: Path, state: dict, num_parts: int, speed: float | None) -> Encoding | None:
    """Adds up the parts and writes `skipped.jsonl` and, last, `encoding.json`; None when a part is missing."""
    parts = [read_summary(part_path(folder, index)) for index in range(num_parts)]
    if None in parts:
        return None
    skipped = list(itertools.chain.from_iterable(part.skipped for part in parts))
    if skipped:
        _write(folder / SKIPPED_FILE, "".join(json.dumps(entry) + "\n" for entry in skipped))
    encoding = Encoding(
        model=state["model"],
        fingerprint=state["fingerprint"],
        num_bits=state["num_bits"],
        stride=state["stride"],
        picture_columns=state["columns"],
        num_variants=state["num_variants"] * (2 if state["mirrored"] else 1),
        num_rows=sum(part.num_rows for part in parts) - len(skipped),
        num_parts=num_parts,
        num_skipped=len(skipped),
        bytes=_mean_bytes(parts)
        | {"parts": sum(part_path(folder, index).stat().st_size for index in range(num_parts))},
        pictures_per_second=speed,
        settings=state,
    )
    _write(folder / ENCODING_FILE, json.dumps(dataclasses.asdict(encoding), indent=1))
    with contextlib.suppress(FileNotFoundError):  # another machine may finish at the same time
        (folder / PARTIAL_FILE).unlink()
    return encoding


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
