# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Sums and means over all processes of a training, through which gradients flow.

PyTorch's own differentiable all-reduce is either deprecated (`torch.distributed.nn`) or private and, with gloo, liable
to abort a process that ends (`_functional_collectives`, torch 2.13), hence these few lines.
"""

import torch
from torch import distributed


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """Sum of each process' `values`, the same tensor on all; alone, the values themselves.

    Every process must call it, and must call backward if one does. The gradient is that of the sum of all processes'
    losses. So when each computes the same loss from the sum, and gradients are then averaged as DDP does, the result
    is the gradient of that loss.
    """
    if count_processes() == 1:
        return values
    return _Sum.apply(values)


def mean_over_processes(values: torch.Tensor) -> torch.Tensor:
    """As [`sum_over_processes`], but the mean."""
    return sum_over_processes(values) / count_processes()


def count_processes() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values):
        total = values.detach().clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient):
        total = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total
