# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Codes as pictures to look at."""

import torch
from PIL import Image


PLANES_PER_ROW = 16


def bit_planes(codes: torch.Tensor, tile: int = 48, gap: int = 4) -> Image.Image:
    """All bits of one picture's tokens: one small map per bit, row by row, 16 in a row; black is -1, white +1, and
    grey 0, where nothing is generated yet.

    Args:
        codes: [bits, h, w] of {-1, 0, +1}.
        tile: pixels of the longer side of a map.
        gap: pixels between maps.

    Raises:
        ValueError: when `codes` does not have three dimensions.
    """
    if codes.ndim != 3:
        raise ValueError(f"`codes` must be those of one picture, [bits, h, w], got {list(codes.shape)}.")
    bits, height, width = codes.shape
    scale = max(1, tile // max(height, width))
    levels = ((codes.sign() + 1) * 127.5).round().to(torch.uint8)
    planes = levels.repeat_interleave(scale, 1).repeat_interleave(scale, 2).cpu().numpy()
    step_x, step_y = width * scale + gap, height * scale + gap
    columns = min(bits, PLANES_PER_ROW)
    sheet = Image.new("L", (columns * step_x + gap, -(-bits // columns) * step_y + gap), 200)
    for bit, plane in enumerate(planes):
        row, column = divmod(bit, columns)
        sheet.paste(Image.fromarray(plane), (gap + column * step_x, gap + row * step_y))
    return sheet
