# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""How the bits of the codes are used, for the figures shown while a tokenizer trains.

A bit that is +1 in a share p of all tokens carries at most H_b(p) bits of information. One that never changes is
*stuck*; one that carries less than 0.1 bit, stuck or not, is *dead*.
"""

from collections.abc import Callable

import torch

from ..losses.processes import sum_over_processes


DEAD_BELOW = 0.1  # bits; p below 1.3 % or above 98.7 %


def bit_usage(codes: torch.Tensor) -> torch.Tensor:
    """Share of +1 of every bit, [bits], of codes [B, bits, h, w] of {-1, +1}."""
    return (codes > 0).float().transpose(0, 1).flatten(1).mean(1)


def bit_entropies(usage: torch.Tensor) -> torch.Tensor:
    """Binary entropy, in bits, of each share of a tensor of any shape."""
    return (torch.special.entr(usage) + torch.special.entr(1 - usage)) / torch.log(usage.new_tensor(2))


def bit_entropy(usage: torch.Tensor) -> float:
    """Mean over bits of the binary entropy of shares [bits]: 1 when every bit is +1 half of the time."""
    return bit_entropies(usage).mean().item()


class BitUsage:
    """Counts how often every bit is +1, over the codes of any number of batches.

    used = BitUsage()
    used.update(codes)                  # every step
    total = used.over_processes()       # when figures are shown, on all processes
    total.mean_entropy, total.stuck, total.dead
    used.reset()
    """

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        self._counts = None  # int64 [bits + 1]: how often each bit was +1, and the number of tokens

    @torch.no_grad()
    def update(self, codes: torch.Tensor) -> None:
        """Counts codes [B, bits, h, w] of {-1, +1}. Stays on their device, so it does not wait for it."""
        ones = (codes > 0).transpose(0, 1).flatten(1).sum(1)  # [bits]
        counts = torch.cat([ones, ones.new_tensor([codes[:, 0].numel()])])
        self._counts = counts if self._counts is None else self._counts.to(counts.device) + counts

    def over_processes(self, reduce: Callable[[torch.Tensor], torch.Tensor] = sum_over_processes) -> "BitUsage":
        """The same with the counts of all processes, each of which must call this; `reduce` sums a tensor over them
        (`accelerator.reduce` is one)."""
        total = BitUsage()
        total._counts = reduce(self._given_counts())
        return total

    def state_dict(self) -> dict[str, list[int] | None]:
        """The counts of this process so far, as plain numbers, for a checkpoint."""
        return {"counts": None if self._counts is None else self._counts.tolist()}

    def load_state_dict(self, state: dict[str, list[int] | None]) -> None:
        self._counts = None if state["counts"] is None else torch.tensor(state["counts"])

    @property
    def usage(self) -> torch.Tensor:
        """Share of +1 of every bit, [bits]."""
        counts = self._given_counts().float()
        return counts[:-1] / counts[-1]

    @property
    def mean_entropy(self) -> float:
        """As [`bit_entropy`]."""
        return bit_entropy(self.usage)

    @property
    def stuck(self) -> int:
        """How many bits had one value in all tokens."""
        counts = self._given_counts()
        return int(((counts[:-1] == 0) | (counts[:-1] == counts[-1])).sum())

    @property
    def dead(self) -> int:
        """How many bits carry less than 0.1 bit."""
        return int((bit_entropies(self.usage) < DEAD_BELOW).sum())

    def _given_counts(self) -> torch.Tensor:
        if self._counts is None:
            raise ValueError("There are no figures before the first `update` with codes.")
        return self._counts
