# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Converts the weights of FID's Inception network to one safetensors file for `evaluation.inception`.

Nothing is downloaded. The user brings the file that torch-fidelity and pytorch-fid load,
`weights-inception-2015-12-05-6726825d.pth` or `pt_inception-2015-12-05-6726825d.pth`.
"""

import os
from pathlib import Path

from safetensors.torch import save_file

from ..files import whole_file
from .tensors import ConversionError, open_tensors


# What tells it from other networks: classes and places of December 2015.
MARKS = {"fc.weight": (1008, 2048), "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3), "Mixed_7c.branch_pool.bn.bias": (192,)}


def convert_inception(source: str | os.PathLike, out: str | os.PathLike) -> Path:
    """Writes `out`, a safetensors file for `InceptionFeatures.from_file`.

    Args:
        source: state dict of the network, a pickle or safetensors.

    Raises:
        ConversionError: for a damaged file, or one of another network.
    """
    found = open_tensors(Path(source), Path(source).name)
    for name, shape in MARKS.items():
        if name not in found.tensors or found.tensors[name].shape != shape:
            raise ConversionError(f"{found.label} is not FID's Inception network: it has no {name} {list(shape)}.")
    weights = {
        name: found.read(name, 0, tensor.shape[0]).float().contiguous()
        for name, tensor in found.tensors.items()
        if tensor.shape and not name.startswith("AuxLogits.")  # counters and a head for training are left out
    }
    out = Path(out)
    with whole_file(out) as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})
    return out


__all__ = ["convert_inception"]
