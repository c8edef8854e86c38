# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Steps of a number of tokens: samples of all tasks behind each other in one row, without padding.

Each process reads samples of its own, one in `num_processes`, and fills rows of at most `packed_tokens` tokens: with
the sample that has waited longest, then with the longest-waiting ones of the next `LOOKAHEAD` that still fit. So every
step has about as many tokens on every process, and no sample waits for long. What waits after a step is its position
in the data: a run that goes on, on any number of processes, trains on every sample once.

Samples may be read and made into tokens by processes of their own (`num_readers`), each the next few; they come back
in their order, so that nothing of the above depends on how many there are.
"""

import multiprocessing
import pickle
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain, count, islice

import torch
from torch.utils.data import DataLoader, Dataset

from ..modeling.processing_uniwetok import UniWeTokProcessor
from ..signals import leave_signals
from .agreement import sendable
from .conversation_batches import ConversationBatches, MicroBatch
from .tasks import TaskMixture


LOOKAHEAD = 64  # samples that wait; more fill rows better and cost memory
AT_ONCE, AHEAD = 8, 4  # samples that a reader takes, and how often it does before they are asked for


@dataclass
class PackingPosition:
    """Where a process is in the data after `step` steps: the running numbers of samples that it has read and not
    trained on, and how many of its own samples, `start` + `index` + k `stride`, it has read."""

    step: int
    waiting: list[int]
    num_read: int
    start: int
    index: int
    stride: int

    def numbers(self) -> Iterator[int]:
        """Those that come next."""
        yield from self.waiting
        yield from count(self.start + self.index + self.num_read * self.stride, self.stride)


def share_positions(positions: Sequence[PackingPosition], index: int, stride: int) -> PackingPosition:
    """The position of process `index` of `stride`, after those of all processes of a run: its own where they are as
    many; else an equal part of what none of them has trained on."""
    if len(positions) == stride:
        return positions[index]
    start = max(one.start + one.index + one.num_read * one.stride for one in positions)
    left = [number for one in positions for number in _below(one, start)]
    return PackingPosition(positions[0].step, sorted(left)[index::stride], 0, start, index, stride)


def _below(position: PackingPosition, end: int) -> list[int]:
    """The numbers of a process that come next and are below `end`; those that wait all are."""
    first = position.start + position.index + position.num_read * position.stride
    return [*position.waiting, *range(first, end, position.stride)]


class PackedBatches(ConversationBatches):
    """
    Args:
        mixture, processor, num_bits, seed: as of [`ConversationBatches`].
        packed_tokens: of a row, at most.
        accumulation_steps: rows per step on each process.
        process_index, num_processes: which samples this process reads.
        max_length: maximum number of tokens of a sample; by default those of a row.
        num_readers: processes that read samples; with none, they are read when they are asked for.

    Steps are read one after the other. Samples that don't fit are replaced, as in [`ConversationBatches`].
    """

    def __init__(
        self,
        mixture: TaskMixture,
        processor: UniWeTokProcessor,
        num_bits: int,
        packed_tokens: int,
        seed: int,
        accumulation_steps: int = 1,
        process_index: int = 0,
        num_processes: int = 1,
        max_length: int | None = None,
        num_readers: int = 0,
    ):
        longest = packed_tokens if max_length is None else min(max_length, packed_tokens)
        super().__init__(mixture, processor, num_bits, 1, seed, 1, 1, process_index, num_processes, longest)
        self.packed_tokens, self.accumulation_steps = packed_tokens, accumulation_steps
        self.num_readers, self._readers = num_readers, None
        self.micro_batch_size = 1  # of a validation
        self.resume(PackingPosition(0, [], 0, 0, process_index, num_processes))

    def resume(self, position: PackingPosition) -> None:
        """Goes on from a position."""
        self._numbers, self._step = position.numbers(), position.step
        self._waiting: deque[tuple[int, MicroBatch]] = deque()
        self._position, self._num_taken = position, 0
        self._positions: dict[int, PackingPosition] = {position.step: position}  # by the number of steps before them
        self._read: dict[int, int] = {}  # samples of the steps

    def position(self, num_steps: int) -> PackingPosition:
        """The position after so many steps: as many as were read, or one fewer."""
        return self._positions[num_steps]

    def state_dict(self, num_steps: int) -> dict:
        return asdict(self.position(num_steps))

    def load_state_dict(self, states: list[dict]) -> None:
        positions = [PackingPosition(**state) for state in states]
        self.resume(share_positions(positions, self.process_index, self.num_processes))

    def skipped(self, step: int) -> tuple[list[str], int]:
        return self._skipped.pop(step), self._read.pop(step)

    def __getitem__(self, step: int) -> list[MicroBatch]:
        if step != self._step:
            raise ValueError(f"Steps are read one after the other: {self._step} comes next, not {step}.")
        self._skipped[step], before = [], self._num_taken
        rows = [self._fill(step) for _ in range(self.accumulation_steps)]
        self._read[step] = self._num_taken - before
        self._step += 1
        self._positions = {step: self._positions[step], self._step: self._position_now()}
        return rows

    def _position_now(self) -> PackingPosition:
        """Of what was taken from the numbers, what still waits, and where the rest begins."""
        begun = self._position
        still = begun.waiting[self._num_taken :]
        waiting = [number for number, _ in self._waiting]
        num_read = begun.num_read + max(self._num_taken - len(begun.waiting), 0)
        return PackingPosition(self._step, [*waiting, *still], num_read, begun.start, begun.index, begun.stride)

    def _fill(self, step: int) -> MicroBatch:
        """A row."""
        chosen, room = [], self.packed_tokens
        while True:
            self._look_ahead(step)
            place = next((i for i, (_, one) in enumerate(self._waiting) if one.num_tokens <= room), None)
            if place is None:
                return pack([one for _, one in chosen])
            chosen.append(self._waiting[place])
            room -= chosen[-1][1].num_tokens
            del self._waiting[place]

    def _look_ahead(self, step: int) -> None:
        while len(self._waiting) < LOOKAHEAD:
            number, sample, skipped = next(self._readers) if self._readers else self.read(next(self._numbers))
            self._skipped[step] += skipped
            self._num_taken += 1
            self._waiting.append((number, sample))

    def read(self, number: int) -> tuple[int, MicroBatch, list[str]]:
        """The sample of a number, and why those before it in its place were left out."""
        sample, skipped = self.mixture.find(number, self.check)
        return number, self.collate([(number, sample)]), skipped

    @contextmanager
    def readers(self) -> Iterator[None]:
        """In the block `num_readers` processes read, if it is not 0. They are forked from this thread."""
        others = set(multiprocessing.active_children())
        if self.num_readers:
            loader = DataLoader(
                _Samples(self),
                batch_sampler=iter(lambda: list(islice(self._numbers, AT_ONCE)), []),
                collate_fn=list,
                num_workers=self.num_readers,
                prefetch_factor=AHEAD,
                worker_init_fn=lambda reader: leave_signals(),
                multiprocessing_context="fork",
                generator=torch.Generator(),  # it draws a seed, from torch's own generator if from no other
            )
            self._readers = map(_received, chain.from_iterable(iter(loader)))
        try:
            yield
        finally:
            self._readers = None  # which ends them, unless they wait for a disk
            for reader in set(multiprocessing.active_children()) - others:
                reader.kill()

    def validation_batches(self, count: int) -> list[MicroBatch]:
        """As of [`ConversationBatches`], in packed rows."""
        rows, room = [[]], self.packed_tokens
        for one in super().validation_batches(count):
            if one.num_tokens > room:
                rows.append([])
                room = self.packed_tokens
            rows[-1].append(one)
            room -= one.num_tokens
        return [pack(row) for row in rows if row]


class _Samples(Dataset):
    """Samples by their numbers, as bytes: tensors would be shared with the reader, each by a file of its own."""

    def __init__(self, batches: PackedBatches):
        self.batches = batches

    def __getitem__(self, number: int) -> bytes:
        try:
            return pickle.dumps(self.batches.read(number))
        except Exception as error:
            return pickle.dumps(sendable(error))


def _received(sent: bytes) -> tuple[int, MicroBatch, list[str]]:
    received = pickle.loads(sent)
    if isinstance(received, Exception):
        raise received
    return received


def pack(samples: Sequence[MicroBatch]) -> MicroBatch:
    """Micro-batches of one sample each as one packed row: `position_ids` start again with each sample, and there is
    no `attention_mask`."""
    inputs = [one.inputs for one in samples]
    packed = {name: torch.cat([one[name] for one in inputs], dim=1) for name in ("input_ids", "labels")}
    lengths = [one["input_ids"].shape[1] for one in inputs]
    packed["position_ids"] = torch.cat([torch.arange(length) for length in lengths])[None]
    if any("codes" in one for one in inputs):
        packed["codes"] = [picture for one in inputs for picture in one.get("codes", [])]
        packed["image_is_target"] = torch.cat([one["image_is_target"] for one in inputs if "codes" in one])
    return MicroBatch(
        inputs=packed,
        numbers=[number for one in samples for number in one.numbers],
        tasks=torch.cat([one.tasks for one in samples]),
        text_tokens=torch.cat([one.text_tokens for one in samples]),
        image_tokens=torch.cat([one.image_tokens for one in samples]),
    )
