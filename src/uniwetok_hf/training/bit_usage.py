# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""How the bits of the codes are used, for the log of a tokenizer's training.

A bit that is +1 in a share p of all tokens carries at most H_b(p) bits of information. It is *dead* when that is less
than 0.1 bit, and *stuck* when its rarer value comes in less than `STUCK` of the tokens (`evaluation/bits.py`).
"""

from collections.abc import Callable

import torch

from ..evaluation.bits import STUCK
from ..losses.processes import sum_over_processes


DEAD_BELOW = 0.1  # bits; p below 1.3 % or above 98.7 %


class BitUsage:
    """Counts how often each bit is +1, over the codes of any number of batches.

    used = BitUsage()
    used.update(codes)                  # every step
    total = used.over_processes()       # for the log, on all processes
    total.mean_entropy, total.stuck, total.dead
    used.reset()
    """

    def __init__(self):
        self._counts: torch.Tensor | None = None  # int64 [bits + 1]: how often each bit was +1, and number of tokens

    def reset(self) -> None:
        self._counts = None

    @torch.no_grad()
    def update(self, codes: torch.Tensor) -> None:
        """Counts codes [B, bits, h, w] of {-1, +1}. The counts stay on their device, so this does not wait for it."""
        ones = (codes > 0).transpose(0, 1).flatten(1).sum(1)  # [bits]
        counts = torch.cat([ones, ones.new_full((1,), codes[:, 0].numel())])
        self._counts = counts if self._counts is None else self._counts.to(counts.device) + counts

    def over_processes(self, reduce: Callable[[torch.Tensor], torch.Tensor] = sum_over_processes) -> "BitUsage":
        """The counts of all processes, each of which must call this; `reduce` sums a tensor over them."""
        total = BitUsage()
        total._counts = reduce(self.counts)
        return total

    def state_dict(self) -> dict[str, list[int] | None]:
        """The counts of this process so far, as plain numbers, for a checkpoint."""
        return {"counts": None if self._counts is None else self._counts.tolist()}

    def load_state_dict(self, state: dict[str, list[int] | None]) -> None:
        self._counts = None if state["counts"] is None else torch.tensor(state["counts"])

    @property
    def counts(self) -> torch.Tensor:
        """How often each bit was +1, and the number of tokens, [bits + 1].

        Raises:
            ValueError: before the first update.
        """
        if self._counts is None:
            raise ValueError("There are no counts before the first `update` with codes.")
        return self._counts

    @property
    def usage(self) -> torch.Tensor:
        """Share of +1 of each bit, [bits]."""
        counts = self.counts.float()
        return counts[:-1] / counts[-1]

    @property
    def entropies(self) -> torch.Tensor:
        """Binary entropy of the usage of each bit, in bits, [bits]."""
        usage = self.usage
        return (torch.special.entr(usage) + torch.special.entr(1 - usage)) / torch.log(usage.new_tensor(2))

    @property
    def mean_entropy(self) -> float:
        """Mean entropy of the bits: 1 when each is +1 half of the time."""
        return self.entropies.mean().item()

    @property
    def stuck(self) -> int:
        """Number of bits whose rarer value comes in less than `STUCK` of the tokens."""
        ones, total = self.counts[:-1], self.counts[-1].item()
        return int((torch.minimum(ones, total - ones) < STUCK * total).sum())

    @property
    def dead(self) -> int:
        """Number of bits that carry less than 0.1 bit."""
        return int((self.entropies < DEAD_BELOW).sum())
