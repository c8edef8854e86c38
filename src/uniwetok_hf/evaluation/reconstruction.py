# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""How well pictures survive the image tokenizer (paper table 2): PSNR, SSIM, perceptual and Fréchet distance, beside
what the same bytes buy elsewhere.

One protocol. At a size N each picture is cropped once: halved with a box filter while at least twice too large, scaled
(bicubic) to cover N x N, cut in the centre, as 8-bit RGB. That crop is what the model reads and also what the output
is compared with. At the native size nothing is scaled: the model reads the picture padded to its stride, the output is
cut back to the picture. Outputs are rounded to 8 bits. A set's PSNR and SSIM are means over pictures, not over sets.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from ..losses.perceptual import FeatureDistance
from ..modeling.image_processing_uniwetok import UniWeTokImageProcessor
from ..modeling.modeling_uniwetok import UniWeTokModel
from .baselines import small_thumbnail, webp, white
from .bits import BitStatistics
from .distributions import frechet_distance
from .intervals import Score, jackknife_score, mean_score
from .judges import Judge
from .metrics import perceptual_distance, psnr, ssim
from .reports import Row
from .rows import batched


PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
NATIVE = "native"
METHODS = ("model", "WebP of as many bytes", "8x8 thumbnail", "all white")


@dataclass
class Reconstruction:
    """`original` and `result` have the size of the original. `seen` and `drawn` are the same two at the model's size,
    without padding: equal to the first two unless the picture was scaled. `codes` [bits, h, w]."""

    original: Image.Image
    result: Image.Image
    seen: Image.Image
    drawn: Image.Image
    codes: torch.Tensor

    @property
    def num_tokens(self) -> int:
        return self.codes.shape[1] * self.codes.shape[2]

    @property
    def num_bytes(self) -> int:
        """Of the packed codes."""
        return self.num_tokens * self.codes.shape[0] // 8


def reconstruct(
    model: UniWeTokModel,
    pictures: Sequence[Image.Image],
    seed: int = 0,
    image_processor: UniWeTokImageProcessor | None = None,
) -> list[Reconstruction]:
    """Encodes and decodes pictures of any sizes; those of one size go through the model together.

    Args:
        seed: of the decoder's noise, the same for every picture: none depends on those beside it.
        image_processor: how pictures reach the model's size; by default they are padded, and keep their own.
    """
    image_processor = image_processor or UniWeTokImageProcessor(stride=model.config.stride)
    return reconstruct_prepared(model, image_processor, image_processor(list(pictures)), pictures, seed)


@torch.no_grad()
def reconstruct_prepared(
    model: UniWeTokModel, image_processor: UniWeTokImageProcessor, inputs: Mapping, pictures: Sequence, seed: int
) -> list[Reconstruction]:
    """As [`reconstruct`], of the `inputs` that the image processor made of the pictures."""
    pixel_values = [values.to(model.device, model.dtype) for values in inputs["pixel_values"]]
    codes = model.encode(pixel_values).codes
    generators = [torch.Generator().manual_seed(seed) for _ in codes]
    samples = [sample.float() for sample in model.decode(codes, generator=generators).sample]
    sizes = inputs["original_sizes"], inputs["content_sizes"]
    results = image_processor.postprocess(samples, *sizes)
    drawn = image_processor.postprocess(samples, None, sizes[1])
    seen = image_processor.postprocess(list(inputs["pixel_values"]), None, sizes[1])
    originals = seen if image_processor.fit == "crop" else pictures  # a crop is not undone
    return [Reconstruction(*parts) for parts in zip(originals, results, seen, drawn, codes, strict=True)]


@dataclass
class Judges:
    """Models that score outputs where the user has them: `feature_model` gives features for the Fréchet distance,
    `perceptual` a distance of each output to its original."""

    feature_model: Judge | None = None
    perceptual: FeatureDistance | None = None


class _Tally:
    """What one method scored, picture by picture: `values` by metric, `groups`, and `features` of its outputs."""

    def __init__(self):
        self.values: dict[str, list[float]] = {}
        self.groups: list[str] = []
        self.features: list[np.ndarray] = []

    def add(self, outputs: list[Image.Image], originals: list[Image.Image], groups: list[str], judges: Judges):
        """Measures outputs against originals of the same sizes."""
        figures = {
            "psnr": psnr(outputs, originals),
            "ssim": [_ssim(*pair) for pair in zip(outputs, originals, strict=True)],
        }
        if judges.perceptual is not None:
            figures["perceptual"] = perceptual_distance(outputs, originals, judges.perceptual)
        for name, values in figures.items():
            self.values.setdefault(name, []).extend(map(float, values))
        self.groups += groups
        if judges.feature_model is not None:
            self.features.append(judges.feature_model.embed_images(outputs))

    def scores(self, references: list[np.ndarray], group: str | None = None) -> dict[str, Score]:
        """Means over the pictures of `group`, or of all and the distance of their features to `references`."""
        kept = [group is None or other == group for other in self.groups]
        scores = {name: mean_score(compress(values, kept)) for name, values in self.values.items()}
        if self.features and group is None:
            features, against = np.concatenate(self.features), np.concatenate(references)
            if min(len(features), len(against)) > 2:
                scores["frechet"] = jackknife_score(frechet_distance, features, against)
        return scores


def evaluate_reconstruction(
    model: UniWeTokModel,
    rows: Iterable[Mapping],
    size: int | None = None,
    image_column: str = "image",
    by: str | None = None,
    seed: int = 0,
    judges: Judges | None = None,
    batch_size: int = 8,
    total: int | None = None,
) -> tuple[list[Row], dict[str, float | int]]:
    """
    Scores of the model and the baselines at one size.

    Args:
        rows: with a PIL picture in `image_column` (`rows.readable`). Streamed: nothing but figures is kept.
        size: side of the square crop in pixels, a multiple of the model's stride; None for the native size.
        by: column whose values get a row each, beside the row of all pictures.
        seed: of the decoder's noise.
        judges: models for the Fréchet and the perceptual distance.
        total: number of rows, for the progress bar.

    Returns:
        Rows of the table, and facts: statistics of the codes, pictures that had to be enlarged, pictures that WebP
        could not get as small as their codes (they are missing in its row).

    Raises:
        ValueError: for a size that is no multiple of the stride, or when there is no picture.
    """
    stride = model.config.stride
    if size is not None and (size < stride or size % stride):
        raise ValueError(f"`size` must be a multiple of the model's {stride} pixels, got {size}.")
    crop = {"fit": "crop", "size": {"height": size, "width": size}} if size is not None else {}
    processor = UniWeTokImageProcessor(stride=stride, **crop)
    judges, statistics = judges or Judges(), BitStatistics(model.config.num_bits)
    tallies, references = {name: _Tally() for name in METHODS}, []
    num_enlarged = num_without_webp = 0
    with tqdm(total=total, desc=f"reconstructing at {size or NATIVE}", disable=None) as bar:
        for part in batched(rows, batch_size):
            found = reconstruct(model, [row[image_column] for row in part], seed, processor)
            statistics.add_all(one.codes for one in found)
            if judges.feature_model is not None:
                references.append(judges.feature_model.embed_images([one.original for one in found]))
            num_without_webp += _measure(found, [str(row[by]) if by else "" for row in part], judges, tallies)
            num_enlarged += sum(min(row[image_column].size) < (size or 0) for row in part)
            bar.update(len(part))
    if not statistics.num_pictures:
        raise ValueError("`rows` holds no picture that can be read.")
    label = f"{size}x{size}" if size is not None else NATIVE
    table = [row for name, tally in tallies.items() for row in _rows(name, label, tally, references)]
    counts = {"pictures_that_were_enlarged": num_enlarged, "pictures_too_small_for_WebP": num_without_webp}
    return table, {name: count for name, count in counts.items() if count} | statistics.compute()


def _measure(
    found: Sequence[Reconstruction], groups: Sequence[str], judges: Judges, tallies: Mapping[str, _Tally]
) -> int:
    """Adds what each of `METHODS` makes of the originals to its tally, and returns in how many cases WebP does not get
    as small as the codes."""
    originals = [one.original for one in found]
    squeezed = [webp(one.original, one.num_bytes) for one in found]
    outputs = (
        [one.result for one in found],
        [None if result is None else result[0] for result in squeezed],
        [small_thumbnail(original) for original in originals],
        [white(original) for original in originals],
    )
    for tally, results in zip(tallies.values(), outputs, strict=True):
        done = [output is not None for output in results]
        if any(done):
            tally.add(*(list(compress(values, done)) for values in (results, originals, groups)), judges)
    return squeezed.count(None)


def _ssim(image: Image.Image, reference: Image.Image) -> float:
    """nan, which is left out of means, where a side is shorter than SSIM's window."""
    return ssim(image, reference) if min(image.size) >= 7 else math.nan


def _rows(name: str, size: str, tally: _Tally, references: list[np.ndarray]) -> list[Row]:
    """A row of all pictures, then one for each group where there are several."""
    if not tally.groups:
        return []
    labels, for_card = {"what": name, "size": size}, name == METHODS[0]
    groups = sorted(set(tally.groups))
    if groups == [""]:
        return [Row(labels, tally.scores(references), for_card)]
    rows = [Row(labels | {"of": "all"}, tally.scores(references), for_card)]
    return rows + [Row(labels | {"of": group}, tally.scores(references, group)) for group in groups]


def photographs() -> list[dict]:
    """Pictures that come inside scikit-image's wheel, as rows with `image` and `name`."""
    from skimage import data

    return [{"name": name, "image": Image.fromarray(getattr(data, name)()).convert("RGB")} for name in PHOTOGRAPHS]
