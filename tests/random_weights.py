"""Random weights, by torch alone: `benchmarks/speed_jobs.py` gives them to models of other versions, too."""

import torch
from torch import nn


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """`model` in eval mode, with every parameter random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:  # a bias, or the gain of a norm
                parameter.copy_(("norm" in name and name.endswith("weight")) + 0.1 * noise)
    return model.eval()
