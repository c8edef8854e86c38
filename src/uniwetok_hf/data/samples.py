# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Which sample comes when, and the random numbers that belong to it: all of it a function of the seed and the sample's
running number in the training, never of what was drawn before.

So a resumed run goes on exactly, and the same run on two processes, with half of each batch on either, draws the same
crops and noise as on one. Running numbers count from 0 over the whole training: step n of batches of b holds the
samples n * b ... (n + 1) * b - 1.
"""

from collections.abc import Sequence

import torch


# What a sample's random numbers are for; each purpose has a stream of its own.
AUGMENTATION, NOISE, TASK, PRIOR = range(4)


def sample_generator(seed: int, number: int, purpose: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A new generator for one sample and one purpose."""
    return torch.Generator(device).manual_seed(hash((seed, number, purpose)))  # hashes of integers never change


def sample_generators(
    seed: int, numbers: Sequence[int], purpose: int, device: torch.device | str = "cpu"
) -> list[torch.Generator]:
    """[`sample_generator`] of each of a batch."""
    return [sample_generator(seed, number, purpose, device) for number in numbers]


class EpochOrder:
    """The order in which the rows of one source come: each epoch a new permutation of all of them."""

    def __init__(self, length: int, seed: int):
        self.length, self.seed = length, seed
        self._epoch, self._order = -1, []

    def __getitem__(self, position: int) -> int:
        """Row at `position`, which counts on over the epochs."""
        epoch, index = divmod(position, self.length)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = self._arrange(torch.Generator().manual_seed(hash((self.seed, epoch))))
        return self._order[index]

    def _arrange(self, generator: torch.Generator) -> list[int]:
        return torch.randperm(self.length, generator=generator).tolist()


class GroupedOrder(EpochOrder):
    """As [`EpochOrder`], but rows with the same one of `keys` follow each other, `size` at a time: the order of such
    groups is new in each epoch, and so is which rows form one. What is left of a key makes a smaller group."""

    def __init__(self, keys: Sequence, size: int, seed: int):
        super().__init__(len(keys), seed)
        self.keys, self.size = list(keys), size

    def _arrange(self, generator: torch.Generator) -> list[int]:
        groups, filling = [], {}
        for row in super()._arrange(generator):
            group = filling.get(self.keys[row])
            if group is None or len(group) == self.size:
                group = filling[self.keys[row]] = []
                groups.append(group)
            group.append(row)
        order = torch.randperm(len(groups), generator=generator).tolist()
        return [row for index in order for row in groups[index]]


class Mixture:
    """Which of several weighted sources the k-th sample comes from.

    Every `cycle` samples hold each source as often as its weight says (the largest remainders are rounded up), in an
    order of their own. So shares are kept closely, and how often a source came before is known without counting.

    Raises:
        ValueError: when there is no source, or a weight is not above 0.
    """

    def __init__(self, weights: Sequence[float], seed: int, cycle: int = 1000):
        if not weights or min(weights) <= 0:
            raise ValueError(f"`weight` of each source must be above 0, got {list(weights)}.")
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
        generator = torch.Generator().manual_seed(hash((self.seed, cycle, len(sources))))
        seen, places = [0] * len(self.counts), []
        for i in torch.randperm(len(sources), generator=generator).tolist():
            places.append((sources[i], seen[sources[i]]))
            seen[sources[i]] += 1
        return places
