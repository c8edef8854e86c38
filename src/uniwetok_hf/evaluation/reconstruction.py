# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""How well pictures survive the image tokenizer: PSNR and SSIM (protocol: `metrics`) on a split of a folder of
`uniwetok data`, or on the photographs that come with scikit-image, beside an all-white picture and an 8x8 thumbnail.

    python -m uniwetok_hf.evaluation.reconstruction DATA [--split test] [--model FOLDER]
    python -m uniwetok_hf.evaluation.reconstruction --photographs
"""

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from ..modeling.image_processing_uniwetok import UniWeTokImageProcessor
from ..modeling.modeling_uniwetok import UniWeTokModel
from .metrics import psnr, ssim


PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")


def white(image: Image.Image) -> Image.Image:
    """What a model that says nothing would show."""
    return Image.new("RGB", image.size, "white")


def small_thumbnail(image: Image.Image) -> Image.Image:
    """8x8 pixels, 192 bytes, enlarged again."""
    return image.resize((8, 8), Image.Resampling.BOX).resize(image.size, Image.Resampling.BICUBIC)


@torch.no_grad()
def reconstruct(model: UniWeTokModel, image: Image.Image, seed: int = 0) -> Image.Image:
    """The picture after encoding and decoding, at its own size: padded to the stride, cropped back."""
    processor = UniWeTokImageProcessor(stride=model.config.stride)
    inputs = processor(image)
    pixel_values = inputs["pixel_values"].to(model.device, model.dtype)
    sample = model(pixel_values, generator=torch.Generator().manual_seed(seed)).sample
    return processor.postprocess(sample.float(), inputs["original_sizes"], inputs["content_sizes"])[0]


def scores(pictures: Iterable[tuple[str, Image.Image]], method: Callable[[Image.Image], Image.Image]) -> dict:
    """Mean PSNR and SSIM of `method` over (group, picture) pairs: of each group, and the mean over groups."""
    groups: dict[str, list[tuple[float, float]]] = {}
    for group, image in pictures:
        result = method(image)
        groups.setdefault(group, []).append((psnr(result, image), ssim(result, image)))
    means = {group: np.mean(values, axis=0) for group, values in groups.items()}
    means["mean"] = np.mean(list(means.values()), axis=0)
    return {group: {"psnr": round(float(p), 3), "ssim": round(float(s), 4)} for group, (p, s) in means.items()}


def photographs() -> list[tuple[str, Image.Image]]:
    """Pictures that come inside scikit-image's wheel."""
    from skimage import data

    return [(name, Image.fromarray(getattr(data, name)()).convert("RGB")) for name in PHOTOGRAPHS]


def main() -> None:
    from ..embedded import embedded_path

    parser = argparse.ArgumentParser(description="PSNR and SSIM of reconstructions.")
    parser.add_argument("data", nargs="?", help="folder of `uniwetok data emoji`")
    parser.add_argument("--photographs", action="store_true", help="measure on scikit-image's photographs instead")
    parser.add_argument("--model", help="pipeline folder (default: the embedded one)")
    parser.add_argument("--split", default="test")
    options = parser.parse_args()
    if bool(options.data) == options.photographs:
        parser.error("give either DATA or --photographs")
    folder = options.model or embedded_path("uniwetok-emoji")
    model = UniWeTokModel.from_pretrained(folder, subfolder="mllm", dtype=torch.float32)
    if options.photographs:
        pictures = photographs()
    else:
        from datasets import load_from_disk

        rows = load_from_disk(str(Path(options.data) / "pictures"))[options.split]
        pictures = [(row["style"], row["image"].convert("RGB")) for row in tqdm(rows, desc="reading")]
    report = {"pictures": len(pictures)}
    methods = {"model": lambda image: reconstruct(model, image), "white": white, "8x8 thumbnail": small_thumbnail}
    for name, method in methods.items():
        report[name] = scores(tqdm(pictures, desc=name), method)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
