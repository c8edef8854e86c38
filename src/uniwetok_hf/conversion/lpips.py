# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Converts the weights of LPIPS with VGG16 to one safetensors file for `losses.perceptual.LPIPS`.

Nothing is downloaded. For the metric itself (docs/method.md 2.2) the user brings two files: torchvision's VGG16 (keys
`features.0.weight`...) and LPIPS v0.1 `vgg.pth` (keys `lin0.model.1.weight`...).

The PyPI package `stlpips-pytorch` holds both kinds in one file, `weights/vST0.0/vgg_shift_tolerant.pth`: a VGG16
trained with blurred pooling, and heads for it. It is a perceptual loss as good to learn from, **but its values are not
LPIPS: never compare them with published numbers.**
"""

import os
import re
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..files import whole_file
from ..losses.perceptual import STAGE_ENDS, VGG16_WIDTHS
from .tensors import ConversionError, TensorSource, open_tensors


TRUNK_KEY = re.compile(r"(?:features|net\.slice\d)\.(\d+)\.weight")


def convert_lpips(vgg_path: str | os.PathLike, lpips_path: str | os.PathLike | None, out: str | os.PathLike) -> Path:
    """Writes `out`, a safetensors file for `LPIPS.from_file`.

    Args:
        vgg_path: state dict of VGG16, a pickle or safetensors; only its convolutions are read.
        lpips_path: state dict of the LPIPS heads; None when they are in the first file too.

    Raises:
        ConversionError: for a damaged file, or one without the 13 convolutions or the 5 heads that belong to them.
    """
    trunk = open_tensors(Path(vgg_path), Path(vgg_path).name)
    heads = open_tensors(Path(lpips_path), Path(lpips_path).name) if lpips_path else trunk
    weights = _convolutions(trunk)
    for number, end in enumerate(STAGE_ENDS):
        name, width = f"lin{number}.model.1.weight", len(weights[f"convs.{end}.weight"])
        weights[f"heads.{number}"] = _read(heads, name, (1, width, 1, 1)).flatten()
    out = Path(out)
    with whole_file(out) as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})
    return out


def _convolutions(source: TensorSource) -> dict[str, torch.Tensor]:
    """Weights and biases of the 13 convolutions, and the kernel of the blur if there is one."""
    places = {int(match[1]): name for name in source.tensors if (match := TRUNK_KEY.fullmatch(name))}
    if len(places) != len(VGG16_WIDTHS):
        raise ConversionError(f"{source.label} holds {len(places)} convolutions of a VGG16, not {len(VGG16_WIDTHS)}.")
    weights, inputs = {}, 3
    for index, place in enumerate(sorted(places)):
        name = places[place]
        width = source.tensors[name].shape[0]
        weights[f"convs.{index}.weight"] = _read(source, name, (width, inputs, 3, 3))
        weights[f"convs.{index}.bias"] = _read(source, name.removesuffix("weight") + "bias", (width,))
        inputs = width
    if blurs := [name for name in source.tensors if name.endswith(".filt")]:
        weights["blur"] = _read(source, blurs[0], source.tensors[blurs[0]].shape)[0, 0].clone()  # all are alike
    return weights


def _read(source: TensorSource, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    if name not in source.tensors:
        raise ConversionError(f"{source.label} has no {name}.")
    found = source.tensors[name].shape
    if found != shape:
        raise ConversionError(f"{source.label}: {name} is of shape {list(found)}, not {list(shape)}.")
    return source.read(name, 0, shape[0]).float().contiguous()


__all__ = ["convert_lpips"]
