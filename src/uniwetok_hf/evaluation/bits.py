# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Statistics of codes: usage, entropy and correlation of the bits, and compressed size."""

import math
import zlib
from collections.abc import Iterable, Sequence

import torch

from ..modeling.codes_uniwetok import pack_codes


STUCK = 0.001  # a bit is stuck when its rarer value comes in less than this share of the tokens


class BitStatistics:
    """Statistics of codes of {-1, +1} that are added picture by picture; memory does not grow with their number.

    statistics = BitStatistics(num_bits=128)
    statistics.add(codes)  # [bits, h, w] or [B, bits, h, w], as often as wanted
    statistics.compute()
    """

    def __init__(self, num_bits: int):
        self.num_bits = num_bits
        self.num_tokens = 0
        self.num_pictures = 0
        self.num_bytes = 0
        self.compressed_bytes = 0
        self._sums = torch.zeros(num_bits, dtype=torch.float64)
        self._products = torch.zeros(num_bits, num_bits, dtype=torch.float64)
        self._compressor = zlib.compressobj(9)

    def add(self, codes: torch.Tensor) -> None:
        """
        Raises:
            ValueError: when `codes` are not [bits, h, w] or [B, bits, h, w] of {-1, +1}.
        """
        batch = codes[None] if codes.ndim == 3 else codes
        if batch.ndim != 4 or batch.shape[1] != self.num_bits:
            raise ValueError(f"`codes` must be [B, {self.num_bits}, h, w] or without B, got {list(codes.shape)}.")
        batch = batch.detach().to("cpu", torch.float64)
        if not (batch.abs() == 1).all():
            raise ValueError("`codes` must hold -1 and +1 only.")
        tokens = batch.movedim(1, -1).reshape(-1, self.num_bits)  # [tokens, bits]
        self._sums += tokens.sum(0)
        self._products += tokens.T @ tokens
        self.num_tokens += len(tokens)
        self.num_pictures += len(batch)
        packed = pack_codes(batch).numpy().tobytes()
        self.num_bytes += len(packed)
        self.compressed_bytes += len(self._compressor.compress(packed))

    def add_all(self, codes: Iterable[torch.Tensor]) -> None:
        """[`add`] for pictures of any sizes."""
        for picture in codes:
            self.add(picture)

    def compute(self) -> dict[str, float | int]:
        """
        Returns:
            `num_pictures`, `num_tokens`, `num_bits`; the smallest and largest `usage` of a bit (share of +1); the mean
            `entropy` of a bit (1 at best); `stuck_bits`, whose rarer value comes in less than 1 of 1000
            tokens; the largest absolute `correlation` of two bits that are not stuck; `bytes_per_picture` of
            packed codes, and `zlib_bytes_per_picture` when all codes are compressed together.

        Raises:
            ValueError: when there are no codes yet.
        """
        if self.num_tokens == 0:
            raise ValueError("`codes`: none were added.")
        usage = (self._sums / self.num_tokens + 1) / 2
        rarer = torch.minimum(usage, 1 - usage)
        entropy = -(torch.xlogy(usage, usage) + torch.xlogy(1 - usage, 1 - usage)) / math.log(2)
        compressed = self.compressed_bytes + len(self._compressor.copy().flush())
        return {
            "num_pictures": self.num_pictures,
            "num_tokens": self.num_tokens,
            "num_bits": self.num_bits,
            "usage_min": usage.min().item(),
            "usage_max": usage.max().item(),
            "entropy": entropy.mean().item(),
            "stuck_bits": int((rarer < STUCK).sum()),
            "largest_correlation": self._largest_correlation(rarer >= STUCK),
            "bytes_per_picture": self.num_bytes / self.num_pictures,
            "zlib_bytes_per_picture": compressed / self.num_pictures,
        }

    def _largest_correlation(self, moving: torch.Tensor) -> float:
        """Largest |correlation| of two different bits that `moving` marks; 0 when there are not two."""
        if moving.sum() < 2:
            return 0.0
        mean = (self._sums / self.num_tokens)[moving]
        covariance = (self._products / self.num_tokens)[moving][:, moving] - mean[:, None] * mean
        deviation = (1 - mean**2).sqrt()  # a bit's square is 1
        correlation = (covariance / (deviation[:, None] * deviation)).abs().fill_diagonal_(0)
        return correlation.max().clamp(max=1).item()


def bit_statistics(codes: torch.Tensor | Sequence[torch.Tensor]) -> dict[str, float | int]:
    """[`BitStatistics`] of codes [B, bits, h, w], or a list of [bits, h, w] of any sizes."""
    if len(codes) == 0:
        raise ValueError("`codes` is empty.")
    statistics = BitStatistics(codes[0].shape[0])
    statistics.add_all(codes)
    return statistics.compute()
