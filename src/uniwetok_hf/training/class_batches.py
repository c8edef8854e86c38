# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Batches of codes with their classes, for the class-to-image model.

Which rows a step has, and which encodings of their pictures, are functions of the seed and of running numbers
(`samples`), on any number of processes. A row of an encoded dataset has the whole picture and crops of it
(`encode-dataset --variants`), each also mirrored with `--mirrored`. Crops are shown until shortly before the end, and
then, more and more often, the whole picture (docs/method.md 4).
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..data.encoded import cell_codes, open_encoded, read_encoding
from ..data.samples import AUGMENTATION, EpochOrder, Mixture, sample_generator, stream_seed
from ..data.skipped import SkippedItems
from .config import KEEP, setting


MAX_FAILURES = 1000  # more rows after each other that can't be used are an error


@dataclass
class ClassSource:
    """One encoded dataset whose rows have a class."""

    path: str = setting(help="folder that `uniwetok encode-dataset` made", on_resume=KEEP)
    weight: float = setting(1.0, "how often it is sampled, relative to the others", on_resume=KEEP)
    image_column: str = setting("image", "column of the pictures' codes", on_resume=KEEP)
    label_column: str = setting("label", "column of the classes: numbers, or names", on_resume=KEEP)


@dataclass
class ClassBatch:
    """What one process computes at once: `codes` [b, bits, h, w], `class_labels` int64 [b], and running numbers."""

    codes: torch.Tensor
    class_labels: torch.Tensor
    numbers: list[int]


class _Rows:
    """The rows of one source that have a class."""

    def __init__(self, source: ClassSource, labels: list[str] | None):
        self.path, self.image_column = source.path, source.image_column
        try:
            self.encoding = read_encoding(source.path)
        except ValueError as error:
            raise ValueError(
                f"`path` {source.path}: {error} Training reads codes; this makes them: `uniwetok encode-dataset "
                f"SOURCE {source.path} --size N --variants 11 --mirrored --model TOKENIZER`."
            ) from None
        dataset = open_encoded(source.path)
        for column, values in ((source.image_column, self.encoding.picture_columns), (source.label_column, None)):
            if column not in dataset.features or (values is not None and column not in values):
                known = ", ".join(values or dataset.features)
                raise ValueError(f"`path` {source.path}: there is no such column `{column}`; there are {known}.")
        self.cells = dataset.select_columns([source.image_column])
        self.mirrored = bool(self.encoding.settings.get("mirrored"))
        self.names, numbers = _read_classes(dataset, source, labels)
        self.classes = torch.tensor(numbers)
        self.indices = (self.classes >= 0).nonzero()[:, 0].tolist()
        self.num_unlabelled = len(numbers) - len(self.indices)
        if not self.indices:
            raise ValueError(f"`path` {source.path}: no row has a class in its column `{source.label_column}`.")

    def __len__(self) -> int:
        return len(self.indices)

    def codes(self, place: int, crop_probability: float, generator: torch.Generator) -> torch.Tensor:
        """One encoding of a picture: the whole picture, or one of its crops, and either as it is or mirrored.

        Raises:
            ValueError: when the codes are not of their size.
        """
        index = self.indices[place]
        cell = self.cells[index][self.image_column]
        crop, which, mirror = torch.rand(3, dtype=torch.float32, generator=generator).tolist()
        copies = 2 if self.mirrored else 1
        num_crops = len(cell) // copies - 1
        variant = 1 + int(which * num_crops) if num_crops and crop < crop_probability else 0
        try:
            return cell_codes(cell, copies * variant + (copies == 2 and mirror < 0.5), self.encoding.num_bits)
        except ValueError as error:
            raise ValueError(f"{self.path}, row {index}: {error}") from None


def _read_classes(dataset, source: ClassSource, labels: list[str] | None) -> tuple[list[str] | None, list[int]]:
    """Names of the classes, None where nothing tells them, and the class of each row, -1 where it has none."""
    from datasets import ClassLabel

    feature, values = dataset.features[source.label_column], dataset.data.column(source.label_column).to_pylist()
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
        sources: encoded datasets; a [`Mixture`] chooses one for each sample.
        batch_size: samples per step, over all processes.
        seed: of order, and of the choice of crops.
        labels: names of the classes in the order of their numbers; by default those of the first source.
        accumulation_steps: micro-batches per step on each process.
        process_index, num_processes: which of them this process computes.

    Raises:
        ValueError: when a source can't be opened, has no classes, or sources don't have the same names and sizes.
    """

    def __init__(
        self,
        sources: Sequence[ClassSource],
        batch_size: int,
        seed: int,
        labels: list[str] | None = None,
        accumulation_steps: int = 1,
        process_index: int = 0,
        num_processes: int = 1,
    ):
        self.batch_size, self.seed = batch_size, seed
        self.process_index, self.num_processes = process_index, num_processes
        self.micro_batch_size = batch_size // (accumulation_steps * num_processes)
        self.mixture = Mixture([source.weight for source in sources], seed)
        self.sources = [_Rows(source, labels) for source in sources]
        self.orders = [EpochOrder(len(rows), stream_seed(seed, index)) for index, rows in enumerate(self.sources)]
        self.names = self.sources[0].names
        for rows in self.sources[1:]:
            if rows.names != self.names:
                raise ValueError(
                    f"`path` {rows.path} has other classes than {self.sources[0].path}: give their names as `labels`."
                )
        self.num_classes = len(self.names) if self.names else 1 + max(int(rows.classes.max()) for rows in self.sources)
        self.num_bits = self.sources[0].encoding.num_bits
        self.size = self._size()

    def _size(self) -> tuple[int, int]:
        """Height and width in tokens of the first picture, which are those of all."""
        rows = self.sources[0]
        return tuple(rows.codes(0, 0.0, torch.Generator()).shape[1:])

    def check_encoder(self, fingerprint: str) -> None:
        """
        Raises:
            ValueError: when a source was encoded by another image tokenizer than the one of this fingerprint.
        """
        for rows in self.sources:
            if rows.encoding.fingerprint != fingerprint:
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
        samples, skipped = [], []
        for number in range(start, start + share):
            source, position = self.mixture[number]
            samples.append((number, *self._find(source, position, number, crop_probability, skipped)))
        parts = range(0, share, self.micro_batch_size)
        return [_collate(samples[part : part + self.micro_batch_size]) for part in parts], skipped

    def validation_batches(self, count: int) -> list[ClassBatch]:
        """The whole pictures of `count` rows of each source, spread over it, in batches of the size of micro-batches;
        always the same, and all of them on every process."""
        samples, skipped = [], []
        for source, rows in enumerate(self.sources):
            for place in range(0, len(rows), max(1, len(rows) // count))[:count]:
                number = len(samples)
                samples.append((number, *self._find(source, place, number, 0.0, skipped, ordered=False)))
        parts = range(0, len(samples), self.micro_batch_size)
        return [_collate(samples[part : part + self.micro_batch_size]) for part in parts]

    def _find(
        self,
        source: int,
        position: int,
        number: int,
        crop_probability: float,
        skipped: list[str],
        ordered: bool = True,
    ) -> tuple[torch.Tensor, int]:
        """Codes and class of the first row from `position` on that can be used."""
        rows, order = self.sources[source], self.orders[source]
        failures = 0
        for at in range(position, position + min(MAX_FAILURES, len(rows))):
            place = order[at] if ordered else at % len(rows)
            try:
                codes = rows.codes(place, crop_probability, sample_generator(self.seed, number, AUGMENTATION))
                if tuple(codes.shape[1:]) != self.size:
                    raise ValueError(
                        f"{rows.path}, row {rows.indices[place]} has {codes.shape[1]} x {codes.shape[2]} tokens, the "
                        f"model's pictures {self.size[0]} x {self.size[1]}"
                    )
                return codes, int(rows.classes[rows.indices[place]])
            except ValueError as error:
                skipped.append(str(error))
                failures += 1
        raise ValueError(f"`path` {rows.path}: {failures} rows after each other can't be used: {skipped[-1]}")


def _collate(samples: list[tuple[int, torch.Tensor, int]]) -> ClassBatch:
    numbers, codes, classes = zip(*samples, strict=True)
    return ClassBatch(torch.stack(codes), torch.tensor(classes), list(numbers))
