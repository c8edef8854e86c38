# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Commitment: pulls latents towards their own codes, mean (u - sg(q))^2 with q = sign(u) (docs/method.md 2.4).

For ablations only, its weight is 0 in every config: UniWeTok bounds the latents by SigLu instead, and then lowering
the sample entropy does what this loss did (arXiv 2602.14178, section 3.3). WeTok, whose latents are free, weights it
0.25.
"""

import torch

from ..modeling.codes_uniwetok import binarize


def commitment_loss(latents: torch.Tensor) -> torch.Tensor:
    """Mean squared distance of latents [B, bits, h, w] from their codes. Scalar, in float32."""
    latents = latents.float()
    return (latents - binarize(latents)).square().mean()
