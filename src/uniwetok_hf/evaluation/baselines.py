# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Baselines of reconstruction: all white, an 8x8 thumbnail, and WebP with no more bytes than the codes."""

import io

import numpy as np
from PIL import Image, features


# WebP may also shrink the picture first: at a few hundred bytes that looks best.
SCALES = (1.0, 0.75, 0.5, 0.375, 0.25, 0.1875, 0.125, 0.0625)


def white(image: Image.Image) -> Image.Image:
    """A white picture of the same size."""
    return Image.new("RGB", image.size, "white")


def small_thumbnail(image: Image.Image) -> Image.Image:
    """8x8 pixels, 192 bytes, enlarged again."""
    return image.resize((8, 8), Image.Resampling.BOX).resize(image.size, Image.Resampling.BICUBIC)


def webp(image: Image.Image, num_bytes: int) -> tuple[Image.Image, int] | None:
    """
    The best lossy WebP of at most `num_bytes`: of several scales the one with the least squared error after
    enlarging, each at the highest quality that fits.

    Args:
        image: an RGB picture.
        num_bytes: the whole file, header included.

    Returns:
        The decoded picture and the bytes of the file, or None when not even the smallest fits.

    Raises:
        ImportError: Pillow was built without WebP.
    """
    if not features.check("webp"):
        raise ImportError("the WebP baseline needs a Pillow that was built with WebP: pip install --upgrade pillow")
    original = np.asarray(image, dtype=np.float64)
    best = None
    for scale in SCALES:
        size = tuple(max(1, round(side * scale)) for side in image.size)
        small = image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)
        data = _largest_that_fits(small, num_bytes)
        if data is None:
            continue
        result = Image.open(io.BytesIO(data)).convert("RGB")
        if size != image.size:
            result = result.resize(image.size, Image.Resampling.BICUBIC)
        error = ((np.asarray(result, dtype=np.float64) - original) ** 2).mean()
        if best is None or error < best[0]:
            best = error, result, len(data)
    return None if best is None else best[1:]


def _largest_that_fits(image: Image.Image, num_bytes: int) -> bytes | None:
    """Bisection over the quality: files grow with it nearly always."""
    fitting, low, high = None, 0, 100
    while low <= high:
        quality = (low + high) // 2
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=quality, method=4)
        if buffer.tell() <= num_bytes:
            fitting, low = buffer.getvalue(), quality + 1
        else:
            high = quality - 1
    return fitting
