# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""What the pipelines return."""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image


@dataclass
class UniWeTokPipelineOutput(BaseOutput):
    """
    Args:
        images: as `output_type` says, a list of PIL images, an array [B, H, W, 3] or a tensor [B, 3, H, W] in [0, 1],
            or codes [B, bits, h, w] of {-1, +1}.
        descriptions: of edits with `describe_first`, the description behind which each picture was generated.
    """

    images: list[Image.Image] | np.ndarray | torch.Tensor
    descriptions: list[str] | None = None
