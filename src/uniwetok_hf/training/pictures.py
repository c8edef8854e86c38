# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Pictures for training the image tokenizer, and grids of pictures to look at."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset


class PictureDataset(Dataset):
    """Pictures of one split of a folder made by `uniwetok data`, as float [3, resolution, resolution] in [-1, 1].

    With a `crop_probability` every read draws its own flip and crop from `generator`.
    """

    def __init__(self, folder: str | os.PathLike, split: str, resolution: int, crop_probability: float = 0.0):
        from datasets import load_from_disk

        if not (Path(folder) / "pictures").is_dir():
            raise ValueError(f"`data`: {folder} holds no pictures; `uniwetok data emoji {folder}` builds a set.")
        pictures = load_from_disk(str(Path(folder) / "pictures"))
        if split not in pictures:
            raise ValueError(f"`split` must be one of {', '.join(pictures)}, got {split!r}.")
        self.images = pictures[split].select_columns(["image"])
        self.resolution = resolution
        self.crop_probability = crop_probability
        self.generator = torch.Generator()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        image = self.images[index]["image"].convert("RGB")
        box = None
        if self.crop_probability:
            image, box = self._augment(image)
        filter = Image.Resampling.BOX if box is None else Image.Resampling.BILINEAR
        image = image.resize((self.resolution, self.resolution), filter, box)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # [3, H, W]
        return {"pixel_values": pixels.float() / 127.5 - 1}

    def _augment(self, image: Image.Image) -> tuple[Image.Image, tuple[float, ...] | None]:
        flip, crop, scale, left, top = torch.rand(5, generator=self.generator).tolist()
        if flip < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if crop >= self.crop_probability:
            return image, None
        width, height = image.size
        scale = 0.4 + 0.6 * scale  # side of the crop over the picture's
        left, top = left * width * (1 - scale), top * height * (1 - scale)
        return image, (left, top, left + width * scale, top + height * scale)


def picture_grid(pictures: Sequence[torch.Tensor], columns: int) -> Image.Image:
    """One picture of many float [3, H, W] in [-1, 1] of one size, row by row."""
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    height, width = pictures[0].shape[1:]
    sheet = Image.new("RGB", (columns * (width + 2), len(rows) * (height + 2)), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            pixels = (127.5 * picture + 128).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
            sheet.paste(Image.fromarray(pixels), (x * (width + 2), y * (height + 2)))
    return sheet
