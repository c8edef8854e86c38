# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The network of a perceptual distance, from what the user has: any vision model, or weights of LPIPS."""

import os

import torch

from ..losses.perceptual import LPIPS, FeatureDistance, PerceptualLoss
from ..provenance import short_name


def load_network(source: str | os.PathLike, device: str | torch.device = "cpu") -> FeatureDistance:
    """
    The network in `source`: a `.safetensors` file of `convert_lpips`, or folder or Hub name of a vision model.

    Raises:
        ValueError: when there is none.
    """
    try:
        if str(source).endswith(".safetensors"):
            return LPIPS.from_file(source).to(device)
        return PerceptualLoss.from_pretrained(source).to(device)
    except (OSError, KeyError) as error:
        raise ValueError(f"`network` {source} can't be loaded: {error}") from error


def describe_network(network: FeatureDistance, source: str | os.PathLike) -> str:
    """What results call it."""
    name = short_name(source)
    if isinstance(network, LPIPS):
        return f"LPIPS with the weights of {name}"
    return f"features of {name} ({type(network.model).__name__}), weights 1"
