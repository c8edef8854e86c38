# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Group-wise entropy of binary tokens (WeTok; arXiv 2602.14178, equation 3; docs/method.md 2.4), exact and without a
codebook.

A latent u picks among the 2^d' codes of its group with p(c) = softmax(2 u.c / tau). The codebook is the whole
hypercube, so p factorises into bits, P(bit = +1) = sigmoid(4 u / tau), and

- the *sample* entropy (how undecided a token is; to be minimised) is a sum of binary entropies: no enumeration;
- the *batch* entropy (how evenly all codes are used; to be maximised) is that of one histogram over 2^d' codes, pooled
  over pictures, positions and groups. The histogram of a group's two halves is an outer product, hence its mean over M
  tokens is one matrix product of [2^(d'/2), M] and [M, 2^(d'/2)]: memory M x 32 instead of M x 256 for d' = 8.

The histogram is that of the whole batch: under several processes it is averaged over all of them, gradients included.
(The published loss takes each process' own, which is a smaller batch with a lower entropy.)
"""

from typing import NamedTuple

import torch
from torch.nn import functional as F
from transformers.utils.generic import maybe_autocast

from .processes import mean_over_processes


class EntropyLoss(NamedTuple):
    """`loss` = sample_weight * sample_entropy - batch_weight * batch_entropy; scalars in nats."""

    loss: torch.Tensor
    sample_entropy: torch.Tensor
    batch_entropy: torch.Tensor


def sample_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Mean over tokens of the entropy of one group's code, from bit logits [M, d']. Scalar, at most d' ln 2."""
    probabilities = torch.sigmoid(logits)
    per_bit = probabilities * F.softplus(-logits) + (1 - probabilities) * F.softplus(logits)
    return per_bit.sum(-1).mean()


def code_histogram(logits: torch.Tensor) -> torch.Tensor:
    """Mean probability of every code, [2^d'], from bit logits [M, d']; entry r is the code whose bit j is r >> j &
    1."""
    half = logits.shape[1] // 2
    low, high = _joint_probabilities(logits[:, :half]), _joint_probabilities(logits[:, half:])
    return (high.T @ low).flatten() / len(logits)  # high bits are the slower index


def batch_entropy(histogram: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    """Entropy of a code histogram [2^d']. `eps` sits in the logarithm only, as in the published loss."""
    return -(histogram * torch.log(histogram + eps)).sum()


def entropy_loss(
    latents: torch.Tensor,
    bits_per_group: int = 8,
    temperature: float = 0.01,
    sample_weight: float = 1.0,
    batch_weight: float = 1.0,
) -> EntropyLoss:
    """Entropy loss of latents [B, bits, h, w], computed in float32 whatever their dtype.

    Under several processes all must call it, with equally many positions. The batch entropy is then the same on all,
    the sample entropy each one's own; with gradients averaged over processes, as DDP does, they are those of one
    process with the whole batch.

    Raises:
        ValueError: when the bits are no multiple of `bits_per_group`.
    """
    if latents.ndim != 4 or latents.shape[1] % bits_per_group:
        raise ValueError(
            f"`latents` must be [B, bits, h, w] with bits a multiple of `bits_per_group`={bits_per_group}, got "
            f"{tuple(latents.shape)}."
        )
    with maybe_autocast(latents.device.type, enabled=False):  # torch's own fails on devices without autocast
        logits = latents.float().movedim(1, -1).reshape(-1, bits_per_group) * (4 / temperature)  # [B*h*w*groups, d']
        sample = sample_entropy(logits)
        batch = batch_entropy(mean_over_processes(code_histogram(logits)))
    return EntropyLoss(sample_weight * sample - batch_weight * batch, sample, batch)


def _joint_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """[M, n] bit logits to [M, 2^n] probabilities of all values of n bits, bit 0 the fastest index."""
    joint = logits.new_ones(len(logits), 1)
    for bit in logits.unbind(1):
        joint = torch.cat([joint * torch.sigmoid(-bit)[:, None], joint * torch.sigmoid(bit)[:, None]], dim=1)
    return joint
