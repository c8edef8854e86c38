# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Gaussian noise from passed generators: the only place in the models where randomness is drawn."""

from collections.abc import Sequence

import torch


Generators = torch.Generator | Sequence[torch.Generator] | None


def draw_noise(
    shape: Sequence[int], generator: Generators, device: torch.device, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Standard normal noise of `shape`.

    It is drawn in float32 on the generator's device and then moved, so that a CPU generator gives the same numbers on
    every device and in every precision. With a list, generator i draws row i alone: a picture then gets the same
    noise in any batch.

    Raises:
        ValueError: when a list of generators does not hold one a row.
    """
    if isinstance(generator, (list, tuple)):
        if len(generator) != shape[0]:
            raise ValueError(f"`generator` is a list of {len(generator)}, but {shape[0]} pictures are drawn.")
        return torch.cat([draw_noise((1, *shape[1:]), single, device, dtype) for single in generator])
    source = device if generator is None else generator.device
    return torch.randn(tuple(shape), generator=generator, device=source, dtype=torch.float32).to(device, dtype)


__all__ = ["Generators", "draw_noise"]
