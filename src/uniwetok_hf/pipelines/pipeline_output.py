# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""What the pipelines return."""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image


@dataclass
class UniWeTokPipelineOutput(BaseOutput):
    """`images`: a list of PIL pictures, an array [B, H, W, 3] or a tensor [B, 3, H, W] in [0, 1], or codes [B, bits,
    h, w], as `output_type` asks. `descriptions`: what each was said to be before it was drawn, where it was said."""

    images: list[Image.Image] | np.ndarray | torch.Tensor
    descriptions: list[str] | None = None
