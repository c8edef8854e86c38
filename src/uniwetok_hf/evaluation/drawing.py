# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Do drawings look like what was asked for? A check that needs no learned judge.

A prompt is drawn; its own picture and 31 random others of the same style are shrunk to 32x32 pixels; the drawing is
right when its own is the nearest by squared difference. Chance is 1 in 32. This tells only whether prompts steer the
drawing, not
how good it is: R-precision by a judge model is another measure.

    python -m uniwetok_hf.evaluation.drawing DATA [--model FOLDER] [--split train] [--count 200]
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

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


def wilson_interval(successes: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share (Wilson)."""
    share = successes / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return centre - half, centre + half


def nearest_picture_accuracy(
    pipe, rows, count: int = 200, num_others: int = 31, batch_size: int = 20, seed: int = 0, **call
) -> dict:
    """Draws `count` pictures of a `datasets` split (columns `image`, `style`, `label`) from their prompts.

    Args:
        pipe: a [`UniWeTokPipeline`].
        rows: the split; pictures and rivals are chosen from it with `seed`, and so are the drawings' generators.
        call: further arguments of the pipeline.

    Returns:
        `right`, `count`, `accuracy`, `interval` (95 %), `chance` and `times_chance`.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(rows), generator=generator)[:count].tolist()
    thumbnails = [thumbnail(image) for image in tqdm(rows["image"], desc="reading")]
    styles = list(rows["style"])
    right = 0
    for start in tqdm(range(0, len(order), batch_size), desc="drawing"):
        chosen = order[start : start + batch_size]
        prompts = [f"a {styles[i]} emoji of {rows[i]['label']}" for i in chosen]
        generators = [torch.Generator().manual_seed(seed + i) for i in chosen]
        for index, image in zip(chosen, pipe(prompts, generator=generators, **call).images, strict=True):
            rivals = [i for i in range(len(rows)) if styles[i] == styles[index] and i != index]
            picks = torch.randperm(len(rivals), generator=generator)[:num_others].tolist()
            others = [thumbnails[rivals[i]] for i in picks]
            right += nearest_is_own(thumbnail(image), thumbnails[index], others)
    chance = 1 / (num_others + 1)
    return {
        "right": right,
        "count": len(order),
        "accuracy": right / len(order),
        "interval": wilson_interval(right, len(order)),
        "chance": chance,
        "times_chance": right / len(order) / chance,
    }


def main() -> None:
    from datasets import load_from_disk

    from ..embedded import embedded_path
    from ..pipelines import UniWeTokPipeline

    parser = argparse.ArgumentParser(description="How often a drawing is nearest to its own picture among 32.")
    parser.add_argument("data", help="folder of `uniwetok data emoji`")
    parser.add_argument("--model", help="pipeline folder (default: the embedded one)")
    parser.add_argument("--split", default="train")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance-scale", type=float)
    options = parser.parse_args()
    folder = options.model or embedded_path("uniwetok-emoji")
    pipe = UniWeTokPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    rows = load_from_disk(str(Path(options.data) / "pictures"))[options.split]
    call = {"num_inference_steps": options.steps, "guidance_scale": options.guidance_scale}
    print(json.dumps(nearest_picture_accuracy(pipe, rows, options.count, **call)))


if __name__ == "__main__":
    main()
