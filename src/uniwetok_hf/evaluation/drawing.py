# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Drawing pictures to be scored, and a comparison of pictures that needs no learned judge: squared difference of
32x32 thumbnails. It sees colours and outlines, not what a thing is."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm


def thumbnail(image: Image.Image, side: int = 32) -> np.ndarray:
    """The picture as float [side, side, 3] in [0, 255]."""
    return np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BOX), dtype=np.float32)


def nearest_is_own(drawn: np.ndarray, own: np.ndarray, others: Sequence[np.ndarray]) -> bool:
    """Whether `own` is nearer to `drawn` than every one of `others` (mean squared difference)."""
    distance = ((drawn - own) ** 2).mean()
    return all(((drawn - other) ** 2).mean() > distance for other in others)


def draw_all(
    pipe,
    prompts: Sequence[str],
    images: Sequence[Image.Image] | None = None,
    seed: int = 0,
    batch_size: int = 16,
    **call,
) -> list[Image.Image]:
    """One picture for each prompt, a few at a time; picture i is drawn with the seed `seed` + i.

    Args:
        pipe: a [`UniWeTokPipeline`], or with `images`, the pictures to change, a [`UniWeTokEditPipeline`].
        call: further arguments of the pipeline.
    """
    drawn = []
    with tqdm(total=len(prompts), desc="drawing" if images is None else "editing", disable=None) as bar:
        for start in range(0, len(prompts), batch_size):
            part = slice(start, start + batch_size)
            generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))[part]]
            sources = {} if images is None else {"image": list(images[part])}
            drawn += pipe(prompt=list(prompts[part]), generator=generators, **sources, **call).images
            bar.update(len(generators))
    return drawn
