# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Batches of pictures for training the image tokenizer.

- All pictures of a step have one size, its bucket. Larger sizes get fewer pictures, so that steps have about as many
  tokens.
- Which pictures a step has, their crops and its bucket are functions of the seed and of running numbers (`samples`): a
  resumed training continues exactly, and several processes together read what one would.
- A streamed source is read in order, by each process its own part, and shuffled in blocks. It resumes exactly too, but
  the order depends on the number of processes.
- A picture that can't be read is named in `PictureBatch.skipped`, and replaced by the next one of its source.
"""

import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from ..data.images import ImageReadError
from ..data.samples import AUGMENTATION, EpochOrder, Mixture, sample_generator, stream_seed
from ..data.sources import PictureSource, cell_name, open_source, read_cell


# Batches that are read ahead.
LOOKAHEAD = 2
# More unreadable pictures in a row are an error.
MAX_FAILURES = 1000
LARGEST_SIDE = 2**16  # pixels; beyond it, a number was mistyped


@dataclass
class Bucket:
    """One size of pictures."""

    height: int = field(metadata={"help": "in pixels"})
    width: int = field(metadata={"help": "in pixels"})
    weight: float = field(default=1.0, metadata={"help": "share of the steps, relative to the sum of all weights"})


class PictureBatch(NamedTuple):
    """This process' share of one step.

    pixel_values: float [b, 3, H, W] in [-1, 1], in channels-last memory.
    numbers: running numbers of the samples.
    skipped: one line per picture that could not be read, with the reason.
    bucket: index of the bucket.
    num_enlarged: number of pictures that were scaled up.
    """

    pixel_values: torch.Tensor
    numbers: list[int]
    skipped: list[str]
    bucket: int
    num_enlarged: int


def bucket_batch_sizes(buckets: Sequence[Bucket], batch_size: int, multiple: int = 1) -> list[int]:
    """Pictures per step of each bucket, so that no step has more pixels than `batch_size` pictures of the first one:
    multiples of `multiple` (processes x micro-batches), rounded down, but at least `multiple` itself.

    Raises:
        ValueError: when there is no bucket, a side is below 1, or `batch_size` is not a multiple of `multiple`.
    """
    sides = [side for bucket in buckets for side in (bucket.height, bucket.width)]
    if not sides or not 1 <= min(sides) <= max(sides) <= LARGEST_SIDE:
        raise ValueError(
            "`buckets` must be one or more sizes of at least 1 x 1 pixels and at most "
            f"{LARGEST_SIDE} x {LARGEST_SIDE}, got {list(buckets)}."
        )
    if batch_size < 1 or batch_size % multiple:
        raise ValueError(
            f"`batch_size` must be a multiple of {multiple} (`batch_multiple`, or processes x micro-batches), got "
            f"{batch_size}."
        )
    pixels = batch_size * buckets[0].height * buckets[0].width
    return [max(pixels // (bucket.height * bucket.width * multiple), 1) * multiple for bucket in buckets]


def crop_box(
    size: tuple[int, int], height: int, width: int, scale: float = 1.0, left: float = 0.5, top: float = 0.5
) -> tuple[float, float, float, float]:
    """A crop (left, top, right, bottom) of a picture of `size` (width, height), of the shape height : width.

    `scale` is its side relative to that of the largest crop; `left` and `top` are 0 at one edge and 1 at the other.
    """
    ratio = scale * min(size[0] / width, size[1] / height)
    box = min(ratio * width, size[0]), min(ratio * height, size[1])
    left, top = left * (size[0] - box[0]), top * (size[1] - box[1])
    return left, top, min(left + box[0], size[0]), min(top + box[1], size[1])


class PictureBatches:
    """Endless batches of pictures from several sources, in several sizes.

        for batch in PictureBatches([PictureSource("my/pictures")], [Bucket(128, 128)], batch_size=32, seed=0): ...

    Args:
        sources: of the pictures; a [`Mixture`] chooses one for each sample.
        buckets: sizes; a [`Mixture`] chooses one for each step.
        batch_size: pictures per step over all processes at the size of the first bucket; see [`bucket_batch_sizes`].
        seed: of order, crops and buckets.
        flip: whether half of the pictures are mirrored.
        crop_probability: probability of a crop of random size. The other pictures get the largest crop with the aspect
            ratio of the bucket, at a random position too. A source may have its own, as also of the next.
        crop_scale: smallest and largest side of a random crop, relative to the side of the largest one.
        multiple: numbers of pictures per step are multiples of this; by default of the number of processes.
        process_index, num_processes: which slice of each step this process takes.
        num_threads: number of threads that read, decode and crop.
        block_size: pictures of a streamed source that are shuffled at once; up to three blocks are in memory.

    Raises:
        ValueError: when an argument is out of its range, or a source can't be opened. Later: when `MAX_FAILURES`
            pictures in a row, or all of a source, can't be read.
    """

    def __init__(
        self,
        sources: Sequence[PictureSource],
        buckets: Sequence[Bucket],
        batch_size: int,
        seed: int,
        *,
        flip: bool = True,
        crop_probability: float = 1.0,
        crop_scale: tuple[float, float] = (0.8, 1.0),
        multiple: int | None = None,
        process_index: int = 0,
        num_processes: int = 1,
        num_threads: int = 2,
        block_size: int = MAX_FAILURES,
    ):
        if not sources:
            raise ValueError("`sources` is empty: there is nothing to read.")
        self.crops = [
            (
                crop_probability if source.crop_probability is None else source.crop_probability,
                crop_scale if source.crop_scale is None else source.crop_scale,
            )
            for source in sources
        ]
        for probability, scale in self.crops:
            if not 0 <= probability <= 1:
                raise ValueError(f"`crop_probability` must lie in [0, 1], got {probability}.")
            if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
                raise ValueError(f"`crop_scale` must be two numbers in (0, 1], the smaller one first, got {scale}.")
        if num_threads < 1:
            raise ValueError(f"`num_threads` must be 1 or more, got {num_threads}.")
        if (multiple or num_processes) % num_processes:
            raise ValueError(f"`multiple` must be a multiple of the {num_processes} processes, got {multiple}.")
        self.buckets, self.seed, self.flip = list(buckets), seed, flip
        self.batch_sizes = bucket_batch_sizes(buckets, batch_size, multiple or num_processes)
        self.process_index, self.num_processes = process_index, num_processes
        self.num_threads = num_threads
        self.bucket_of_step = Mixture([bucket.weight for bucket in buckets], stream_seed(seed, 0))
        self.source_of_sample = Mixture([source.weight for source in sources], stream_seed(seed, 1))
        self.readers = []
        for index, source in enumerate(sources):
            dataset, order_seed = open_source(source), stream_seed(seed, 2, index)
            if source.streaming:
                count = dataset.num_shards
                if count % num_processes:
                    raise ValueError(
                        f"`path` {source.path}: {count} files can't be divided among {num_processes} processes; "
                        f"streaming needs {num_processes}, {2 * num_processes}, ... files (or read it without "
                        "streaming)."
                    )
                reader = _Stream(dataset, source, order_seed, block_size, process_index, num_processes)
            else:
                reader = _Rows(dataset, source, order_seed)
            self.readers.append(reader)
        self._state = {"step": 0, "number": 0, "streams": [reader.state_dict() for reader in self.readers]}

    @property
    def num_rows(self) -> list[int | None]:
        """Rows of each source; None for a stream."""
        return [reader.order.length if isinstance(reader, _Rows) else None for reader in self.readers]

    def state_dict(self) -> dict:
        """The position after the last batch that was returned, as values for JSON."""
        return {**self._state, "process_index": self.process_index, "num_processes": self.num_processes}

    def load_state_dict(self, state: dict) -> None:
        """The next iterator continues from `state`. With another number of processes, streamed sources start their
        epoch again, with a warning.

        Raises:
            ValueError: when `state` is that of other sources.
        """
        streams, streamed = state["streams"], [isinstance(reader, _Stream) for reader in self.readers]
        if [stream is not None for stream in streams] != streamed:
            raise ValueError(
                f"`state` is that of {len(streams)} sources of which {sum(s is not None for s in streams)} are "
                f"streamed; here are {len(streamed)} of which {sum(streamed)} are, or in another order."
            )
        layout = {"process_index": self.process_index, "num_processes": self.num_processes}
        if any(streamed) and any(state[name] != value for name, value in layout.items()):
            warnings.warn(
                f"Streamed pictures are read by {self.num_processes} processes now and were by "
                f"{state['num_processes']}: each begins the epoch of its streams again.",
                stacklevel=2,
            )
            streams = [stream and _start_of_epoch(stream["epoch"], stream["block"]) for stream in streams]
        self._state = {"step": state["step"], "number": state["number"], "streams": streams}

    def __iter__(self) -> Iterator[PictureBatch]:
        """Continues after the last batch that was returned."""
        step, number = self._state["step"], self._state["number"]
        for reader, state in zip(self.readers, self._state["streams"], strict=True):
            reader.load_state_dict(state)
        pool = ThreadPoolExecutor(self.num_threads, "pictures")
        try:
            waiting: deque[_Planned] = deque()
            while True:
                while len(waiting) <= LOOKAHEAD:
                    planned = self._plan(pool, step, number)
                    step, number = planned.state["step"], planned.state["number"]
                    waiting.append(planned)
                planned = waiting.popleft()
                batch = self._collect(planned)
                self._state = planned.state
                yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            for reader in self.readers:
                reader.close()

    def _plan(self, pool: ThreadPoolExecutor, step: int, number: int) -> "_Planned":
        """Starts to read this process' slice of a step whose first sample is `number`."""
        bucket, _ = self.bucket_of_step[step]
        share = self.batch_sizes[bucket] // self.num_processes
        start = number + self.process_index * share
        samples = []
        for sample in range(start, start + share):
            source, position = self.source_of_sample[sample]
            place = self.readers[source].take(position)
            samples.append((sample, source, place, pool.submit(self._picture, sample, source, place, bucket)))
        streams = [reader.state_dict() for reader in self.readers]
        state = {"step": step + 1, "number": number + self.batch_sizes[bucket], "streams": streams}
        return _Planned(bucket, samples, state)

    def _collect(self, planned: "_Planned") -> PictureBatch:
        """Waits for the pictures of a step, and replaces those that can't be read."""
        pictures, skipped = [], []
        for sample, source, place, future in planned.samples:
            reader, failures = self.readers[source], 0
            for candidate in reader.candidates(place):
                try:
                    pictures.append(
                        self._picture(sample, source, candidate, planned.bucket) if failures else future.result()
                    )
                    break
                except ImageReadError as error:
                    skipped.append(str(error))
                    failures += 1
            else:
                raise ValueError(
                    f"`path` {reader.source.path}: {failures} pictures in a row can't be read, the last one: "
                    f"{skipped[-1]}."
                )
        pixels, is_enlarged = zip(*pictures, strict=True)
        pixels = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)  # [b, H, W, 3] -> [b, 3, H, W]
        pixel_values = pixels.float().div_(127.5).sub_(1)
        numbers = [sample[0] for sample in planned.samples]
        return PictureBatch(pixel_values, numbers, skipped, planned.bucket, sum(is_enlarged))

    def _picture(self, sample: int, source: int, place, bucket: int) -> tuple[np.ndarray, bool]:
        """Reads and crops one picture, uint8 [H, W, 3]; returns it and whether it was scaled up."""
        reader, size = self.readers[source], self.buckets[bucket]
        row, cell = reader.read(place)
        image = read_cell(cell, cell_name(cell, reader.source, row))
        random = torch.rand(5, dtype=torch.float32, generator=sample_generator(self.seed, sample, AUGMENTATION))
        flip, crop, scale, left, top = random.tolist()
        probability, (smallest, largest) = self.crops[source]
        scale = smallest + (largest - smallest) * scale if crop < probability else 1.0
        box = crop_box(image.size, size.height, size.width, scale, left, top)
        picture = np.asarray(image.resize((size.width, size.height), Image.Resampling.BICUBIC, box))
        picture = picture[:, ::-1] if self.flip and flip < 0.5 else picture
        return picture, box[2] - box[0] < size.width - 0.5


def validation_pictures(source: PictureSource, height: int, width: int, limit: int) -> torch.Tensor:
    """The first `limit` pictures of a source, as uint8 [N, 3, height, width]: the largest crop of that aspect ratio
    from the centre of each. Pictures that can't be read are left out, with a warning that names them.

    Raises:
        ValueError: when the source can't be opened, or no picture can be read.
    """
    pictures, skipped = [], []
    for row, example in enumerate(open_source(source).select_columns([source.image_column])):
        cell = example[source.image_column]
        try:
            image = read_cell(cell, cell_name(cell, source, row))
        except ImageReadError as error:
            skipped.append(str(error))
            continue
        image = image.resize((width, height), Image.Resampling.BICUBIC, crop_box(image.size, height, width))
        pictures.append(torch.from_numpy(np.array(image)).permute(2, 0, 1))  # [H, W, 3] -> [3, H, W]
        if len(pictures) == limit:
            break
    if skipped:
        warnings.warn(f"{len(skipped)} pictures were left out: {'; '.join(skipped)}.", stacklevel=2)
    if not pictures:
        raise ValueError(f"`path` {source.path}: not one picture of {source.split} can be read.")
    return torch.stack(pictures)


class _Planned(NamedTuple):
    """A step that is being read: its samples (number, source, place, future picture), and the state after it."""

    bucket: int
    samples: list[tuple[int, int, Any, Future]]
    state: dict


class _Rows:
    """A source whose rows can be read in any order. A place is (position, row)."""

    def __init__(self, dataset, source: PictureSource, seed: int):
        if not len(dataset):
            raise ValueError(f"`path` {source.path} holds no pictures in {source.split}.")
        self.dataset, self.source = dataset.select_columns([source.image_column]), source
        self.order = EpochOrder(len(dataset), seed)

    def take(self, position: int) -> tuple[int, int]:
        """The place of the picture at a position of the source."""
        return position, self.order[position]

    def candidates(self, place: tuple[int, int]) -> Iterator[tuple[int, int]]:
        """`place`, and those that may replace it: the following rows, at most `MAX_FAILURES`."""
        for position in range(place[0], place[0] + min(MAX_FAILURES, len(self.dataset))):
            yield self.take(position)

    def read(self, place: tuple[int, int]) -> tuple[int, Any]:
        """Row and cell; called by several threads at once."""
        return place[1], self.dataset[place[1]][self.source.image_column]

    def state_dict(self) -> None:
        return None  # the position of a sample follows from its number

    def load_state_dict(self, state: None) -> None:
        pass

    def close(self) -> None:
        pass


class _Stream:
    """A source of which this process reads its part in order and shuffles it block by block. A place is (block,
    index).

    The shuffle buffer of `datasets` is lost on resume; a block is read again from its start. A block may go beyond the
    end of an epoch, unless it has all of the epoch.
    """

    def __init__(self, dataset, source, seed: int, block_size: int, process_index: int, num_processes: int):
        self.dataset, self.source, self.seed = dataset.select_columns([source.image_column]), source, seed
        self.process_index, self.num_processes = process_index, num_processes
        self.block_size = block_size
        self.state, self.used = _start_of_epoch(0, 0), 0
        self.reader = None

    def take(self, position: int) -> tuple[list, int]:
        """The place of the next picture, whatever the position: it counts those of other processes too."""
        if self.used == len(self.rows):
            self._take_block()
        self.used += 1
        return self.rows, self.used - 1

    def candidates(self, place: tuple[list, int]) -> Iterator[tuple[list, int]]:
        """`place`, and those that may replace it: the rest of its block, then its beginning."""
        rows, first = place
        for index in range(len(rows)):
            yield rows, (first + index) % len(rows)

    def read(self, place: tuple[list, int]) -> tuple[int, Any]:
        return place[0][place[1]]

    def state_dict(self) -> dict:
        return {**self.state, "used": self.used}

    def load_state_dict(self, state: dict) -> None:
        self.close()
        self._open_epoch(state["epoch"], state["row"], state["position"])
        self.block = state["block"]
        self.reader = ThreadPoolExecutor(1, "stream")  # reads the next block while one is used
        self.next_block = self.reader.submit(self._read_block)
        self._take_block()
        self.used = state["used"]

    def close(self) -> None:
        if self.reader:
            self.reader.shutdown(wait=True, cancel_futures=True)

    def _open_epoch(self, epoch: int, row: int = 0, position: dict | None = None) -> None:
        from datasets.distributed import split_dataset_by_node

        self.epoch, self.row = epoch, row
        self.part = split_dataset_by_node(self.dataset, self.process_index, self.num_processes)
        self.part.set_epoch(
            1 + stream_seed(self.seed, epoch) % 2**31
        )  # above 0 the files come in an order of their own
        if position:
            self.part.load_state_dict(position)
        self.examples = iter(self.part)

    def _take_block(self) -> None:
        self.rows, self.state = self.next_block.result()
        self.used = 0
        self.next_block = self.reader.submit(self._read_block)

    def _read_block(self) -> tuple[list[tuple[int, Any]], dict]:
        """Rows (number, cell) of the next block, shuffled, and the state at its start."""
        position = self.part.state_dict() if self.row else None
        state = {"epoch": self.epoch, "row": self.row, "block": self.block, "position": position, "used": 0}
        rows = []
        while len(rows) < self.block_size:
            example = next(self.examples, None)
            if example is not None:
                rows.append((self.row, example[self.source.image_column]))
                self.row += 1
                continue
            if not self.row:
                raise ValueError(f"`path` {self.source.path} has no pictures for process {self.process_index}.")
            is_whole_epoch = len(rows) == self.row
            self._open_epoch(self.epoch + 1)
            if is_whole_epoch:
                break
        generator = torch.Generator().manual_seed(stream_seed(self.seed, self.block))
        self.block += 1
        return [rows[i] for i in torch.randperm(len(rows), generator=generator).tolist()], state


def _start_of_epoch(epoch: int, block: int) -> dict:
    return {"epoch": epoch, "row": 0, "block": block, "position": None, "used": 0}
