# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Noise from passed generators: the only place in the models where randomness is drawn."""

from collections.abc import Callable, Sequence

import torch


Generators = torch.Generator | Sequence[torch.Generator] | None


def draw_noise(
    shape: Sequence[int], generator: Generators, device: torch.device, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Standard normal noise of `shape`.

    It is drawn in float32 on the generator's device and then moved, so that a CPU generator gives the same numbers on
    every device and in every precision. With a list, generator i draws row i alone: a picture then gets the same
    noise in any batch. Where a list holds one generator several times, it draws its rows together.

    Raises:
        ValueError: when a list of generators does not hold one per row.
    """
    return _draw(torch.randn, shape, generator, device, dtype)


def draw_uniform(
    shape: Sequence[int], generator: Generators, device: torch.device, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Uniform noise in [0, 1) of `shape`, otherwise as [`draw_noise`]."""
    return _draw(torch.rand, shape, generator, device, dtype)


def flip_bits(codes: torch.Tensor, probability: float, generator: Generators) -> torch.Tensor:
    """Codes [B, bits, h, w] with each bit flipped with its own random probability between 0 and `probability`
    (docs/method.md 3.5)."""
    chance, draw = draw_uniform((len(codes), 2, *codes.shape[1:]), generator, codes.device).unbind(1)
    return torch.where(draw < probability * chance, -codes, codes)


def _draw(
    law: Callable, shape: Sequence[int], generator: Generators, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    if generator is not None and not isinstance(generator, torch.Generator):
        if len(generator) != shape[0]:
            raise ValueError(f"`generator` is a list of {len(generator)}, but {shape[0]} pictures are drawn.")
        rows_of: dict[int, list[int]] = {}
        for row, own in enumerate(generator):
            rows_of.setdefault(id(own), []).append(row)
        groups = list(rows_of.values())
        drawn = torch.cat([_draw(law, (len(rows), *shape[1:]), generator[rows[0]], device, dtype) for rows in groups])
        order = [row for rows in groups for row in rows]  # of the rows that were drawn
        places = sorted(range(len(order)), key=order.__getitem__)
        return drawn if places == sorted(places) else drawn[places]
    source = torch.device(device) if generator is None else generator.device
    # Numbers of a CPU generator go to a GPU from pinned memory, so that the loop of the sampler does not wait for it.
    pinned = {"pin_memory": True} if source.type == "cpu" and torch.device(device).type == "cuda" else {}
    drawn = law(tuple(shape), generator=generator, device=source, dtype=torch.float32, **pinned)
    return copy_to_device(drawn, device).to(dtype)


def copy_to_device(tensor: torch.Tensor, device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """`tensor` on `device`, without waiting for what the device still computes. (MPS may read the source later.)"""
    return tensor.to(device, dtype or tensor.dtype, non_blocking=torch.device(device).type != "mps")


__all__ = ["Generators", "copy_to_device", "draw_noise", "draw_uniform", "flip_bits"]
