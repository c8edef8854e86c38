# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Batches for the language model: which samples a step has, how they are shared out, and their model inputs.

Step n of batches of b has b samples of one window of running numbers; a window is `length_group_steps` steps long and
its samples are sorted by length before they are cut into batches, so that little is padded. A batch is cut the same
way into pieces, each for one process and one turn of gradient accumulation: pieces of a turn are about equally long.
All of it is a function of the seed and n, on any number of processes.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from ..data.samples import stream_seed
from ..modeling.processing_uniwetok import UniWeTokProcessor
from .tasks import Sample, TaskMixture


@dataclass
class Piece:
    """`inputs` of the model (`codes` a list of pictures); of each row its running `number`, the index of its `task`
    among [`ConversationBatches.names`], and how many `text_tokens` it has to say and `image_tokens` to draw."""

    inputs: dict[str, torch.Tensor | list[torch.Tensor]]
    numbers: list[int]
    tasks: torch.Tensor
    text_tokens: torch.Tensor
    image_tokens: torch.Tensor

    @property
    def num_tokens(self) -> int:
        """Positions that are no padding."""
        return int(self.inputs["attention_mask"].sum())

    @property
    def num_text_tokens(self) -> int:
        return int(self.text_tokens.sum())

    @property
    def num_image_tokens(self) -> int:
        return int(self.image_tokens.sum())

    def inputs_on(self, device: torch.device) -> dict[str, torch.Tensor | list[torch.Tensor]]:
        """The inputs, moved to `device`."""

        def move(value):
            return value.to(device) if torch.is_tensor(value) else [part.to(device) for part in value]

        return {name: move(value) for name, value in self.inputs.items()}


class ConversationBatches:
    """
    Args:
        mixture: the samples.
        processor: of the model.
        num_bits: bits of a token.
        batch_size: samples a step, over all processes.
        seed: of the order of the batches of a window.
        length_group_steps: how many steps' samples are sorted by length together.
        accumulation_steps: pieces a step on each process.
        process_index, num_processes: whose pieces to make.
        max_length: tokens that a sample may have.
    """

    def __init__(
        self,
        mixture: TaskMixture,
        processor: UniWeTokProcessor,
        num_bits: int,
        batch_size: int,
        seed: int,
        length_group_steps: int = 1,
        accumulation_steps: int = 1,
        process_index: int = 0,
        num_processes: int = 1,
        max_length: int | None = None,
    ):
        self.mixture, self.processor, self.num_bits = mixture, processor, num_bits
        self.batch_size, self.seed, self.group = batch_size, seed, length_group_steps
        self.accumulation_steps, self.max_length = accumulation_steps, max_length
        self.process_index, self.num_processes = process_index, num_processes
        self.names = list(dict.fromkeys(task.name for task in mixture.tasks))
        self.piece_size = batch_size // (accumulation_steps * num_processes)
        self._window, self._batches = -1, []

    def __getitem__(self, step: int) -> list[Piece]:
        """This process' pieces of a step."""
        window, index = divmod(step, self.group)
        if window != self._window:
            self._window, self._batches = window, self._arrange(window)
        batch = self._batches[index]
        size = self.piece_size
        starts = range(self.process_index * size, len(batch), self.num_processes * size)
        return [self.collate(batch[start : start + size]) for start in starts]

    def held_out(self, count: int) -> list[Piece]:
        """`count` rows of each source in pieces as large as those of a step: on every process all of them, and always
        the same."""
        samples = sorted(self.mixture.held_out(count), key=lambda numbered: numbered[1].length)
        starts = range(0, len(samples), self.piece_size)
        return [self.collate(samples[start : start + self.piece_size]) for start in starts]

    def _arrange(self, window: int) -> list[list[tuple[int, Sample]]]:
        """The batches of a window: its samples by length, the batches then in any order."""
        count = self.group * self.batch_size
        samples = [(number, self.mixture[number]) for number in range(window * count, (window + 1) * count)]
        samples.sort(key=lambda numbered: numbered[1].length)
        batches = [samples[start : start + self.batch_size] for start in range(0, count, self.batch_size)]
        order = torch.randperm(self.group, generator=torch.Generator().manual_seed(stream_seed(self.seed, window)))
        return [batches[index] for index in order.tolist()]

    def collate(self, samples: list[tuple[int, Sample]]) -> Piece:
        """Model inputs of samples and their running numbers.

        Raises:
            ValueError: when a picture does not fit the patches, or a sample is longer than `max_length`.
        """
        stride = self.processor.stride
        numbers, samples = zip(*samples, strict=True)
        sizes = [self._sizes(sample) for sample in samples]
        texts = self.processor.apply_chat_template([sample.messages for sample in samples])
        in_pixels = [(height * stride, width * stride) for row in sizes for height, width in row]
        inputs = dict(self.processor(text=texts, picture_sizes=in_pixels, return_labels=True))
        self._check_lengths(samples, inputs["attention_mask"].sum(1))
        if in_pixels:
            inputs["codes"] = [picture for sample in samples for picture in sample.codes(self.num_bits)]
        is_target = iter(inputs["image_is_target"].tolist())
        image_tokens = [sum(next(is_target) * height * width for height, width in row) for row in sizes]
        return Piece(
            inputs=inputs,
            numbers=list(numbers),
            tasks=torch.tensor([self.names.index(sample.task) for sample in samples]),
            text_tokens=(inputs["labels"][:, 1:] != -100).sum(1),
            image_tokens=torch.tensor(image_tokens),
        )

    def _check_lengths(self, samples: tuple[Sample, ...], lengths: torch.Tensor) -> None:
        longest = int(lengths.argmax())
        if self.max_length is not None and lengths[longest] > self.max_length:
            raise ValueError(
                f"{samples[longest].origin} is {lengths[longest]} tokens long, `max_length` is {self.max_length}."
            )

    def _sizes(self, sample: Sample) -> list[tuple[int, int]]:
        sizes = [(picture["height"], picture["width"]) for picture in sample.pictures]
        p, largest = self.processor.patch_size, self.processor.num_size_tokens
        for height, width in sizes:
            if height % p or width % p or max(height, width) > largest:
                raise ValueError(
                    f"{sample.origin}: a picture of {height} x {width} tokens; sides must be multiples of "
                    f"`patch_size`={p} and at most {largest}."
                )
        return sizes


def prefetched(make: Callable[[int], object], steps: range) -> Iterator:
    """`make(step)` of each step, the next one made by a thread meanwhile."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(make, steps.start) if steps else None
        for step in steps:
            made = coming.result()
            if step + 1 < steps.stop:
                coming = thread.submit(make, step + 1)
            yield made
