# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Batches of codes or pictures with their classes, for the class-to-image model.

Which rows a step has, and which crops of their pictures, are functions of the seed and of running numbers (`samples`),
on any number of processes. A row of an encoded dataset has the whole picture and crops of it (`encode-dataset
--variants`), each also mirrored with `--mirrored`. Other sources are read as pictures, cropped anew each time, and
encoded during the training. Crops are shown until shortly before the end, and then, more and more often, the whole
picture (docs/method.md 4).
"""

import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from PIL import Image

from ..data.encoded import cell_codes, is_begun, open_encoded, read_encoding
from ..data.samples import AUGMENTATION, EpochOrder, Mixture, sample_generator, stream_seed
from ..data.skipped import SkippedItems
from ..data.sources import PictureSource, cell_name, open_source, read_cell
from .config import KEEP, setting
from .picture_batches import crop_box


CROP_SCALE = 0.8  # smallest side of a crop of a picture, relative to the largest one (docs/method.md 4)
MAX_FAILURES = 1000  # more rows after each other that can't be used are an error


@dataclass
class ClassSource:
    """One dataset whose rows have a class."""

    path: str = setting(
        help="folder that `uniwetok encode-dataset` made; or, with `resolution`, any source of pictures of `uniwetok "
        "train tokenizer`",
        on_resume=KEEP,
    )
    weight: float = setting(1.0, "how often it is sampled, relative to the others", on_resume=KEEP)
    image_column: str = setting("image", "column of the pictures, or of their codes", on_resume=KEEP)
    label_column: str = setting("label", "column of the classes: numbers, or names", on_resume=KEEP)
    split: str = setting("train", "of pictures, which split of the source", on_resume=KEEP)
    name: str | None = setting(None, "of pictures, configuration of a dataset on the Hub", on_resume=KEEP)


@dataclass
class ClassBatch:
    """What one process computes at once: `codes` [b, bits, h, w] or `pixel_values` [b, 3, H, W] in [-1, 1],
    `class_labels` int64 [b], and running numbers."""

    codes: torch.Tensor | None
    pixel_values: torch.Tensor | None
    class_labels: torch.Tensor
    numbers: list[int]


class _Rows:
    """The rows of one source that have a class."""

    size: tuple[int, int]  # height and width in tokens

    def __init__(self, dataset, source: ClassSource, labels: list[str] | None):
        self.path, self.image_column = source.path, source.image_column
        for column in (source.image_column, source.label_column):
            if column not in dataset.features:
                raise ValueError(
                    f"`path` {source.path}: there is no such column `{column}`; there are "
                    f"{', '.join(dataset.features)}."
                )
        self.cells = dataset.select_columns([source.image_column])
        self.own_names = getattr(dataset.features[source.label_column], "names", None)  # of a ClassLabel
        self.names, numbers = _read_classes(dataset, source, labels)
        self.classes = torch.tensor(numbers)
        self.indices = (self.classes >= 0).nonzero()[:, 0].tolist()
        self.num_unlabelled = len(numbers) - len(self.indices)
        if not self.indices:
            raise ValueError(f"`path` {source.path}: no row has a class in its column `{source.label_column}`.")

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, place: int, crop_probability: float, generator: torch.Generator) -> torch.Tensor:
        """The whole picture or a crop of it, and either as it is or mirrored.

        Raises:
            ValueError: when it can't be used.
        """
        raise NotImplementedError


class _CodeRows(_Rows):
    """Rows of an encoded dataset: `read` gives codes, float32 [bits, h, w]."""

    def __init__(self, source: ClassSource, labels: list[str] | None):
        self.encoding = read_encoding(source.path)
        super().__init__(open_encoded(source.path), source, labels)
        if source.image_column not in self.encoding.picture_columns:
            known = ", ".join(self.encoding.picture_columns)
            raise ValueError(
                f"`path` {source.path}: column `{source.image_column}` holds no codes; those that do are {known}."
            )
        self.copies = 2 if self.encoding.settings.get("mirrored") else 1
        self.size = self._size()

    def _size(self) -> tuple[int, int]:
        """Height and width in tokens of the first picture that can be read."""
        reason = None
        for place in range(min(len(self), MAX_FAILURES)):
            try:
                height, width = self.read(place, 0.0, torch.Generator()).shape[1:]
                return height, width
            except ValueError as error:
                reason = error
        raise ValueError(f"`path` {self.path}: no codes can be read: {reason}")

    def read(self, place: int, crop_probability: float, generator: torch.Generator) -> torch.Tensor:
        index, copies = self.indices[place], self.copies
        cell = self.cells[index][self.image_column]
        crop, which, mirror = torch.rand(3, dtype=torch.float32, generator=generator).tolist()
        try:
            if not cell:
                raise ValueError("there is no picture in this row")
            num_crops = len(cell) // copies - 1
            variant = 1 + int(which * num_crops) if num_crops and crop < crop_probability else 0
            return cell_codes(cell, copies * variant + (copies == 2 and mirror < 0.5), self.encoding.num_bits)
        except ValueError as error:
            raise ValueError(f"{self.path}, row {index}: {error}") from None


class _PictureRows(_Rows):
    """Rows with pictures: `read` gives pixels, uint8 [3, side, side]."""

    def __init__(self, source: ClassSource, labels: list[str] | None, side: int, stride: int):
        self.source = PictureSource(source.path, source.split, source.name, source.image_column)
        super().__init__(open_source(self.source), source, labels)
        self.side, self.size = side, (side // stride, side // stride)

    def read(self, place: int, crop_probability: float, generator: torch.Generator) -> torch.Tensor:
        index = self.indices[place]
        cell = self.cells[index][self.image_column]
        image = read_cell(cell, cell_name(cell, self.source, index))
        crop, scale, left, top, mirror = torch.rand(5, dtype=torch.float32, generator=generator).tolist()
        places = (CROP_SCALE + (1 - CROP_SCALE) * scale, left, top) if crop < crop_probability else ()
        box = crop_box(image.size, self.side, self.side, *places)
        pixels = np.array(image.resize((self.side, self.side), Image.Resampling.BICUBIC, box))
        return torch.from_numpy(pixels[:, ::-1].copy() if mirror < 0.5 else pixels).permute(2, 0, 1)


def _read_classes(dataset, source: ClassSource, labels: list[str] | None) -> tuple[list[str] | None, list[int]]:
    """Names of the classes, None where nothing tells them, and the class of each row, -1 where it has none."""
    from datasets import ClassLabel

    feature = dataset.features[source.label_column]
    values = list(dataset.select_columns([source.label_column])[:][source.label_column])
    if isinstance(feature, ClassLabel) and labels is not None and set(feature.names) <= set(labels):
        # By name: a split in which a class is missing numbers the others differently.
        values = [None if value is None or value < 0 else feature.names[value] for value in values]
    names = labels if labels is not None else feature.names if isinstance(feature, ClassLabel) else None
    if any(isinstance(value, str) for value in values):
        names = sorted({value for value in values if value}) if names is None else names
        numbers = {name: number for number, name in enumerate(names)}
        if unknown := sorted({value for value in values if value} - set(numbers)):
            raise ValueError(f"`labels` has no {unknown[0]!r}, a class of `path` {source.path}.")
        return names, [numbers.get(value, -1) for value in values]
    if strange := [value for value in values if value is not None and type(value) is not int]:
        raise ValueError(
            f"`path` {source.path}: its column `{source.label_column}` must hold numbers or names of classes, got "
            f"{strange[0]!r}."
        )
    numbers = [-1 if value is None else value for value in values]
    if names is not None and max(numbers) >= len(names):
        raise ValueError(
            f"`path` {source.path}: row {numbers.index(max(numbers))} is of class {max(numbers)}, there are names for "
            f"{len(names)}."
        )
    return names, numbers


class ClassBatches:
    """
    Args:
        sources: datasets with classes, all of them encoded or all of them pictures; a [`Mixture`] chooses one for each
            sample.
        batch_size: samples per step, over all processes.
        seed: of order, and of the choice of crops.
        stride, num_bits: of the image tokenizer.
        labels: names of the classes in the order of their numbers; by default those of the first source.
        resolution: side in pixels of pictures that are not encoded.
        accumulation_steps: micro-batches per step on each process.
        process_index, num_processes: which of them this process computes.
        num_threads: threads that read and crop pictures.

    Raises:
        ValueError: when a source can't be opened, has no classes, or sources don't have the same names and sizes.
    """

    def __init__(
        self,
        sources: Sequence[ClassSource],
        batch_size: int,
        seed: int,
        stride: int,
        num_bits: int,
        labels: list[str] | None = None,
        resolution: int | None = None,
        accumulation_steps: int = 1,
        process_index: int = 0,
        num_processes: int = 1,
        num_threads: int = 2,
    ):
        self.batch_size, self.seed, self.num_bits = batch_size, seed, num_bits
        self.process_index, self.num_processes, self.num_threads = process_index, num_processes, num_threads
        self.micro_batch_size = batch_size // (accumulation_steps * num_processes)
        self.mixture = Mixture([source.weight for source in sources], seed)
        if resolution is not None and (resolution < stride or resolution % stride):
            raise ValueError(f"`resolution` must be a multiple of {stride}, the pixels of a token, got {resolution}.")
        self.sources = [_open(source, labels, resolution, stride) for source in sources]
        self.orders = [EpochOrder(len(rows), stream_seed(seed, index)) for index, rows in enumerate(self.sources)]
        self.names, self.size = self.sources[0].names, self.sources[0].size
        for rows in self.sources[1:]:
            if rows.names != self.names:
                raise ValueError(
                    f"`path` {rows.path} has other classes than {self.sources[0].path}: give their names as `labels`."
                )
            if type(rows) is not type(self.sources[0]):
                raise ValueError(f"`path` {rows.path} and {self.sources[0].path}: one is encoded, the other is not.")
        self.num_classes = len(self.names) if self.names else 1 + max(int(rows.classes.max()) for rows in self.sources)

    def check_encoder(self, fingerprint: str) -> None:
        """
        Raises:
            ValueError: when a source was encoded by another image tokenizer than the one of this fingerprint.
        """
        for rows in self.sources:
            if isinstance(rows, _CodeRows) and rows.encoding.fingerprint != fingerprint:
                raise ValueError(
                    f"`path` {rows.path} was encoded by {rows.encoding.model} (fingerprint "
                    f"{rows.encoding.fingerprint[:12]}), not by `vision_model` ({fingerprint[:12]}): its codes mean "
                    "nothing to it. Encode the data again with `uniwetok encode-dataset`."
                )

    def check_rows(self, max_share: float) -> None:
        """Warns of rows without a class.

        Raises:
            ValueError: when they are more than a share of `max_share` of a source.
        """
        for rows in self.sources:
            if rows.num_unlabelled:
                reasons = [f"{rows.path}: {rows.num_unlabelled} rows have no class"] * rows.num_unlabelled
                SkippedItems(max_share).add(reasons, len(rows) + rows.num_unlabelled)
                warnings.warn(f"{rows.num_unlabelled} rows of {rows.path} are left out: no class.", stacklevel=2)

    @property
    def num_rows(self) -> list[int]:
        """Rows of each source."""
        return [len(rows) for rows in self.sources]

    def step(self, step: int, crop_probability: float) -> tuple[list[ClassBatch], list[str]]:
        """The micro-batches of this process in a step, and why rows before theirs were left out."""
        share = self.batch_size // self.num_processes
        start = step * self.batch_size + self.process_index * share
        numbers = range(start, start + share)
        places = [self.mixture[number] for number in numbers]  # (source, position)
        rows = [self.orders[source][position] for source, position in places]

        def read(number: int, place: tuple[int, int], row: int) -> tuple[torch.Tensor, int] | str:
            return self._read(place[0], row, number, crop_probability)

        with ThreadPoolExecutor(self.num_threads) as threads:
            found = list(threads.map(read, numbers, places, rows))
        samples, skipped = [], []
        for number, (source, position), one in zip(numbers, places, found, strict=True):
            if isinstance(one, str):
                skipped.append(one)
                following = (
                    self.orders[source][at] for at in range(position + 1, position + len(self.sources[source]))
                )
                one = self._first(source, following, number, crop_probability, skipped)
            samples.append((number, *one))
        parts = range(0, share, self.micro_batch_size)
        return [self._collate(samples[part : part + self.micro_batch_size]) for part in parts], skipped

    def validation_batches(self, count: int) -> list[ClassBatch]:
        """The whole pictures of `count` rows of each source, spread over it, in batches of the size of micro-batches;
        always the same, and all of them on every process."""
        samples = []
        for source, rows in enumerate(self.sources):
            for place in range(0, len(rows), max(1, len(rows) // count))[:count]:
                following = ((place + step) % len(rows) for step in range(len(rows)))
                samples.append((len(samples), *self._first(source, following, len(samples), 0.0, [])))
        parts = range(0, len(samples), self.micro_batch_size)
        return [self._collate(samples[part : part + self.micro_batch_size]) for part in parts]

    def _read(self, source: int, place: int, number: int, crop_probability: float) -> tuple[torch.Tensor, int] | str:
        """Sample and class of a row, or why it can't be used. Called by several threads at once."""
        rows = self.sources[source]
        try:
            sample = rows.read(place, crop_probability, sample_generator(self.seed, number, AUGMENTATION))
        except ValueError as error:
            return str(error)
        if isinstance(rows, _CodeRows) and tuple(sample.shape[1:]) != self.size:
            return (
                f"{rows.path}, row {rows.indices[place]} has {sample.shape[1]} x {sample.shape[2]} tokens, the "
                f"model's pictures {self.size[0]} x {self.size[1]}"
            )
        return sample, int(rows.classes[rows.indices[place]])

    def _first(
        self, source: int, places: Iterable[int], number: int, crop_probability: float, skipped: list[str]
    ) -> tuple[torch.Tensor, int]:
        """Sample and class of the first row that can be used; why those before can't is added to `skipped`."""
        failures = ""
        for place in islice(places, MAX_FAILURES):
            one = self._read(source, place, number, crop_probability)
            if not isinstance(one, str):
                return one
            skipped.append(failures := one)
        path = self.sources[source].path
        raise ValueError(f"`path` {path}: too many rows after each other can't be used: {failures}")

    def _collate(self, samples: list[tuple[int, torch.Tensor, int]]) -> ClassBatch:
        numbers, tensors, classes = zip(*samples, strict=True)
        stacked, codes, pixel_values = torch.stack(tensors), None, None
        if isinstance(self.sources[0], _CodeRows):
            codes = stacked
        else:
            pixel_values = stacked.float() / 127.5 - 1
        return ClassBatch(codes, pixel_values, torch.tensor(classes), list(numbers))


def _open(source: ClassSource, labels: list[str] | None, resolution: int | None, stride: int) -> _Rows:
    """
    Raises:
        ValueError: when there is no such source, or it holds pictures and there is no `resolution` for them.
    """
    if is_begun(source.path):
        return _CodeRows(source, labels)
    if resolution is None:
        raise ValueError(
            f"`path` {source.path} holds no encoded dataset. This makes one: `uniwetok encode-dataset SOURCE FOLDER "
            "--size N --variants 11 --mirrored --model TOKENIZER`. With `resolution`, pictures are read as they are, "
            "and encoded each time."
        )
    return _PictureRows(source, labels, resolution, stride)
