# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Batches for the language model: the samples of a step, how processes share them, and their model inputs.

A window is `length_group_steps` steps long. Its samples, of consecutive running numbers, are sorted by length before
they are cut into batches, so that there is little padding. A batch is cut in the same way into micro-batches, one for
each process and accumulation turn; those of a turn have about the same length. All of it is a function of the seed and
the step, on any number of processes.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from ..data.samples import stream_seed
from ..modeling.modeling_uniwetok_mllm import UniWeTokPlaces
from ..modeling.noise_uniwetok import copy_to_device
from ..modeling.processing_uniwetok import UniWeTokProcessor
from .tasks import Sample, TaskMixture


@dataclass
class MicroBatch:
    """Samples that one process computes at once.

    inputs: of the model; `codes` is a list with one tensor per picture.
    numbers: running number of each row.
    tasks: of each row, the index of its task among [`ConversationBatches.names`].
    text_tokens, image_tokens: of each row, how many tokens of text and of pictures the model learns to generate.
    places: what [`UniWeTokForCausalLM.find_places`] finds in the inputs.
    """

    inputs: dict[str, torch.Tensor | list[torch.Tensor]]
    numbers: list[int]
    tasks: torch.Tensor
    text_tokens: torch.Tensor
    image_tokens: torch.Tensor
    places: UniWeTokPlaces | None = None

    @property
    def num_tokens(self) -> int:
        """Positions without padding, of which packed rows have none."""
        mask = self.inputs.get("attention_mask")
        return self.inputs["input_ids"].numel() if mask is None else int(mask.sum())

    @property
    def num_text_tokens(self) -> int:
        return int(self.text_tokens.sum())

    @property
    def num_image_tokens(self) -> int:
        return int(self.image_tokens.sum())

    def inputs_on(self, device: torch.device) -> dict[str, Any]:
        """The inputs and places, moved to `device` without waiting for it."""

        def move(value):
            return [move(part) for part in value] if isinstance(value, list) else copy_to_device(value, device)

        inputs = {name: move(value) for name, value in self.inputs.items()}
        return inputs if self.places is None else inputs | {"places": self.places.to(device)}


class ConversationBatches:
    """
    Args:
        mixture: the samples.
        processor: of the model.
        num_bits: bits per image token.
        batch_size: samples per step, over all processes.
        seed: of the order of the batches of a window.
        length_group_steps: steps of a window.
        accumulation_steps: micro-batches per step on each process.
        process_index, num_processes: which of them this process computes.
        max_length: maximum number of tokens of a sample.

    Samples that don't fit the model, and rows that don't fit their task, are replaced (`TaskMixture.find`) and named
    in `skipped`.
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
        self.batch_size, self.seed, self.max_length = batch_size, seed, max_length
        self.window_steps = length_group_steps
        self.process_index, self.num_processes = process_index, num_processes
        self.names = list(dict.fromkeys(task.name for task in mixture.tasks))
        self.micro_batch_size = batch_size // (accumulation_steps * num_processes)
        self._window, self._batches = -1, []
        self._skipped: dict[int, list[str]] = {}  # of the windows that were read

    def skipped(self, step: int) -> tuple[list[str], int]:
        """At the first step of a window, why rows were left out of its samples, and how many samples it has; nothing
        at the others. The step must have been read."""
        window, index = divmod(step, self.window_steps)
        return ([], 0) if index else (self._skipped.pop(window), self.window_steps * self.batch_size)

    def state_dict(self, num_steps: int) -> dict:
        """The position of this process in the data after so many steps, as many as were read or one fewer; empty
        where it follows from their number."""
        return {}

    def load_state_dict(self, states: list[dict]) -> None:
        """Goes on from the positions of all processes of a run."""

    def __getitem__(self, step: int) -> list[MicroBatch]:
        """The micro-batches of this process in a step."""
        window, index = divmod(step, self.window_steps)
        if window != self._window:
            self._window, self._batches = window, self._arrange(window)
        batch, size = self._batches[index], self.micro_batch_size
        starts = range(self.process_index * size, len(batch), self.num_processes * size)
        return [self.collate(batch[start : start + size]) for start in starts]

    def readers(self) -> contextlib.AbstractContextManager:
        """A block in which more processes may read."""
        return contextlib.nullcontext()

    def validation_batches(self, count: int) -> list[MicroBatch]:
        """`count` rows of each source in batches of the size of micro-batches: always the same, and all of them on
        every process."""
        samples, skipped = self.mixture.held_out(count, self.check)
        if skipped:
            warnings.warn(f"{len(skipped)} rows are left out of the validation: {skipped[0]}", stacklevel=2)
        samples.sort(key=lambda numbered: numbered[1].length)
        starts = range(0, len(samples), self.micro_batch_size)
        return [self.collate(samples[start : start + self.micro_batch_size]) for start in starts]

    def _arrange(self, window: int) -> list[list[tuple[int, Sample]]]:
        """The batches of a window: samples sorted by length, batches in random order."""
        count = self.window_steps * self.batch_size
        samples, self._skipped[window] = [], []
        for number in range(window * count, (window + 1) * count):
            sample, skipped = self.mixture.find(number, self.check)
            samples.append((number, sample))
            self._skipped[window] += skipped
        samples.sort(key=lambda numbered: numbered[1].length)
        batches = [samples[start : start + self.batch_size] for start in range(0, count, self.batch_size)]
        generator = torch.Generator().manual_seed(stream_seed(self.seed, window))
        return [batches[index] for index in torch.randperm(self.window_steps, generator=generator).tolist()]

    def collate(self, samples: list[tuple[int, Sample]]) -> MicroBatch:
        """Model inputs of samples, which [`check`] has passed, and their running numbers."""
        stride = self.processor.stride
        numbers, samples = zip(*samples, strict=True)
        sizes = [self._sizes(sample) for sample in samples]
        texts = self.processor.apply_chat_template([sample.messages for sample in samples])
        in_pixels = [(height * stride, width * stride) for row in sizes for height, width in row]
        inputs = dict(self.processor(text=texts, picture_sizes=in_pixels, return_labels=True))
        if in_pixels:
            inputs["codes"] = [picture for sample in samples for picture in sample.codes(self.num_bits)]
        is_target = iter(inputs["image_is_target"].tolist())
        image_tokens = [sum(next(is_target) * height * width for height, width in row) for row in sizes]
        return MicroBatch(
            inputs=inputs,
            numbers=list(numbers),
            tasks=torch.tensor([self.names.index(sample.task) for sample in samples]),
            text_tokens=(inputs["labels"][:, 1:] != -100).sum(1),
            image_tokens=torch.tensor(image_tokens),
        )

    def check(self, sample: Sample) -> None:
        """
        Raises:
            ValueError: when the model can't take the sample: a picture does not fit the patches or its codes, a text
                holds special tokens, or it is longer than `max_length`; the message begins with the row.
        """
        sizes, words = self._sizes(sample), [item["text"] for item in sample.items if item["type"] == "text"]
        try:
            self.processor.check_words(words, "text")
        except ValueError as error:
            raise ValueError(f"{sample.origin}: {error}") from None
        sample.check_codes(self.num_bits)
        if self.max_length is None:
            return
        # No text has more tokens than bytes: most samples need not be counted.
        overhead = self.processor.patch_size**2 + 4  # of a picture
        most = sum(len(text.encode()) for text in words) + 16 * len(sample.messages)
        if most + sum(height * width + overhead for height, width in sizes) <= self.max_length:
            return
        stride = self.processor.stride
        text = self.processor.apply_chat_template(sample.messages)
        in_pixels = [(height * stride, width * stride) for height, width in sizes]
        length = self.processor(text=[text], picture_sizes=in_pixels)["input_ids"].shape[1]
        if length > self.max_length:
            raise ValueError(f"{sample.origin} is {length} tokens long, `max_length` is {self.max_length}.")

    def _sizes(self, sample: Sample) -> list[tuple[int, int]]:
        """Height and width in tokens of each picture of a sample."""
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
    """`make(step)` for each step; a thread makes the next one in the meantime."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(make, steps.start) if steps else None
        for step in steps:
            made = coming.result()
            if step + 1 < steps.stop:
                coming = thread.submit(make, step + 1)
            yield made
