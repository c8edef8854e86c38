# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The order of training samples and their random numbers: functions of the seed and of a sample's running number,
independent of what was sampled before.

So a resumed run continues exactly, and two processes with half of each batch use the same crops and noise as one.
Running numbers count from 0 over all steps: step n of batches of b has the samples n * b ... (n + 1) * b - 1.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch


# Version of the streams below. Checkpoints and encoded datasets record it, since they can't go on with another one.
STREAMS = 2

MOST_LISTED = 1 << 24  # rows whose order is a list, of 36 bytes a row

# What a sample's random numbers are for; each purpose has its own stream.
AUGMENTATION, NOISE, TASK, PRIOR = range(4)


def stream_seed(seed: int, *key: int) -> int:
    """Seed, of 64 bits, of the stream of random numbers that belongs to `key`. None of the numbers may be negative."""
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0])


def sample_generator(seed: int, number: int, purpose: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A new generator for one sample and one purpose."""
    return torch.Generator(device).manual_seed(stream_seed(seed, number, purpose))


def sample_generators(
    seed: int, numbers: Sequence[int], purpose: int, device: torch.device | str = "cpu"
) -> list[torch.Generator]:
    """[`sample_generator`] for each sample of a batch."""
    return [sample_generator(seed, number, purpose, device) for number in numbers]


class EpochOrder:
    """The order of the rows of one source: a new permutation of all of them in each epoch. It is kept in memory up to
    `MOST_LISTED` rows, and computed row by row beyond."""

    def __init__(self, length: int, seed: int):
        self.length, self.seed = length, seed
        self._epoch, self._order = -1, []

    def __getitem__(self, position: int) -> int:
        """Row at `position`, which counts on over the epochs."""
        epoch, index = divmod(position, self.length)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = self._arrange(torch.Generator().manual_seed(stream_seed(self.seed, epoch)))
        return self._order[index]

    def _arrange(self, generator: torch.Generator) -> "list[int] | ComputedOrder":
        if self.length > MOST_LISTED:
            return ComputedOrder(self.length, int(torch.randint(1 << 62, (), generator=generator)))
        return torch.randperm(self.length, generator=generator).tolist()


class ComputedOrder:
    """A permutation of any number of rows that takes no memory: a Feistel network (Luby & Rackoff 1988) over the
    numbers of an even number of bits, followed until it comes back among the rows."""

    ROUNDS = 6

    def __init__(self, length: int, seed: int):
        self.length = length
        self.half = max((length - 1).bit_length() + 1, 2) // 2  # bits of half a number
        self.keys = np.random.SeedSequence(seed).generate_state(self.ROUNDS, np.uint64).tolist()

    def __getitem__(self, index: int) -> int:
        while True:  # at most four times as many numbers as rows: four times on average
            index = self._scramble(index)
            if index < self.length:
                return index

    def _scramble(self, number: int) -> int:
        mask = (1 << self.half) - 1
        left, right = number >> self.half, number & mask
        for key in self.keys:
            mixed = ((right ^ key) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
            mixed = ((mixed ^ (mixed >> 29)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
            left, right = right, left ^ ((mixed ^ (mixed >> 32)) & mask)
        return left << self.half | right


class Mixture:
    """Which of several weighted sources the k-th sample comes from.

    Each cycle of `cycle` samples holds every source in proportion to its weight (the largest remainders are rounded
    up), in a new order. So shares are exact, and the position in a source is known without counting.

    Raises:
        ValueError: when there is no source, or a weight is not above 0.
    """

    def __init__(self, weights: Sequence[float], seed: int, cycle: int = 1000):
        if not weights or not all(weight > 0 for weight in weights) or 1000 * sum(weights) == math.inf:
            raise ValueError(f"`weight` of each source must be above 0 and finite, got {list(weights)}.")
        self.seed, self.cycle = seed, max(cycle, len(weights))
        exact = [self.cycle * weight / sum(weights) for weight in weights]
        self.counts = [max(int(share), 1) for share in exact]
        by_remainder = sorted(range(len(exact)), key=lambda i: self.counts[i] - exact[i])
        while sum(self.counts) != self.cycle:  # off by less than the number of sources
            step = 1 if sum(self.counts) < self.cycle else -1
            chosen = by_remainder.pop(0) if step > 0 else self.counts.index(max(self.counts))
            self.counts[chosen] += step
        self._number, self._places = -1, []

    def __getitem__(self, number: int) -> tuple[int, int]:
        """Source of the sample with this running number, and its position among the source's own samples."""
        cycle, index = divmod(number, self.cycle)
        if cycle != self._number:
            self._number, self._places = cycle, self._arrange(cycle)
        source, before = self._places[index]
        return source, cycle * self.counts[source] + before

    def _arrange(self, cycle: int) -> list[tuple[int, int]]:
        sources = [source for source, count in enumerate(self.counts) for _ in range(count)]
        generator = torch.Generator().manual_seed(stream_seed(self.seed, cycle, len(sources)))
        seen, places = [0] * len(self.counts), []
        for i in torch.randperm(len(sources), generator=generator).tolist():
            places.append((sources[i], seen[sources[i]]))
            seen[sources[i]] += 1
        return places
