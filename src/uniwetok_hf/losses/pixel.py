# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Reconstruction: how far the pixels are from the picture (docs/method.md 2.1).

The paper prints L2, |I - I'|^2 (arXiv 2602.14178, equation 2), the published code of its predecessor uses L1; both are
here, and a config weights them. They are means over pictures, channels and pixels, in float32 also under autocast.
"""

import torch


def l1_loss(sample: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
    """Mean |sample - pixel_values| of two [B, 3, H, W]. Scalar.

    Raises:
        ValueError: when the shapes differ.
    """
    return _difference(sample, pixel_values).abs().mean()


def l2_loss(sample: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
    """Mean (sample - pixel_values)^2 of two [B, 3, H, W]. Scalar; in [-1, 1] the PSNR is 10 log10(4 / it).

    Raises:
        ValueError: when the shapes differ.
    """
    return _difference(sample, pixel_values).square().mean()


def _difference(sample: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
    if sample.shape != pixel_values.shape:  # else they would be broadcast
        raise ValueError(
            f"`sample` must be shaped like `pixel_values`, {tuple(pixel_values.shape)}, got {tuple(sample.shape)}."
        )
    return sample.float() - pixel_values.float()
