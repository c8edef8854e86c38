# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""`evaluate reconstruction`: how well the image tokenizer reconstructs pictures (paper table 2): PSNR, SSIM,
perceptual and Fréchet distance, beside WebP of as many bytes and two trivial baselines.

One protocol. At a size N each picture is cropped once: halved with a box filter while at least twice too large, scaled
(bicubic) to cover N x N, cut in the centre, as 8-bit RGB. That crop is the model's input and the reference of its
output. At the native size nothing is scaled: the model reads the picture padded to its stride, the output is cut back
to the picture. Outputs are rounded to 8 bits. PSNR and SSIM of a set are means over its pictures.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import length_hint

import numpy as np
import PIL
import torch
from PIL import Image

from ..modeling.codes_uniwetok import pack_codes, unpack_codes
from ..modeling.image_processing_uniwetok import UniWeTokImageProcessor
from ..modeling.modeling_uniwetok import UniWeTokModel
from .baselines import small_thumbnail, webp, white
from .bits import BitStatistics
from .distributions import frechet_scores
from .inception import InceptionFeatures
from .intervals import Score, mean_score
from .judges import Judge, PerceptualNetwork
from .metrics import perceptual_distance, psnr, ssim
from .processes import ALONE, Processes
from .reports import Report, ScoreRow, score_rows
from .rows import own_batches
from .text_reading import TextReader
from .words import character_accuracy


PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
NATIVE = "native"
METHODS = ("model", "WebP of as many bytes", "8x8 thumbnail", "all white")
ORIGINAL = "the pictures themselves"
BOUNDS, NO_BOUNDS = {"ssim": (-1.0, 1.0), "text": (0.0, 1.0)}, (-math.inf, math.inf)


def evaluate_reconstruction(
    model: UniWeTokModel,
    rows: Iterable[Mapping],
    sizes: Sequence[int | None] = (None,),
    image_column: str = "image",
    by: str | None = None,
    feature_model: Judge | InceptionFeatures | None = None,
    perceptual: PerceptualNetwork | None = None,
    text_column: str | None = None,
    text_reader: TextReader | None = None,
    seed: int = 0,
    batch_size: int = 16,
    processes: Processes = ALONE,
) -> Report:
    """
    Scores of the model and the baselines at each size.

    Args:
        rows: with a PIL picture in `image_column` ([`PictureRows`]). One batch is kept at a time.
        sizes: sides of the square crops in pixels, multiples of the model's stride; None for the native size.
        by: column whose values have a row of the table each, beside the row of all pictures.
        feature_model: a vision model for the Fréchet distance; FID's Inception network gives rFID.
        perceptual: a network for the perceptual distance.
        text_column: column of the text that stands in a picture, or of its lines; rows may have None.
        text_reader: reads it back, for the share of its characters that are right.
        seed: of the decoder's noise.
        processes: those that share the pictures, batch by batch.

    Returns:
        The report, the same in all processes. Its facts are statistics of the codes, the number of pictures that were
        enlarged, and the number of pictures that WebP can't make as small as their codes, which are left out of its
        scores.

    Raises:
        ValueError: for a size that is no multiple of the stride, or when there is no picture.
    """
    report, stride = Report("reconstruction"), model.config.stride
    for size in sizes:
        if size is not None and (size < stride or size % stride):
            raise ValueError(f"`size` must be a multiple of the model's {stride} pixels, got {size}.")
    if (text_column is None) != (text_reader is None):
        raise ValueError("`text_column` and `text_reader` must be given together.")
    tables = [_SizeTable(model, size, feature_model, perceptual, text_reader, seed) for size in sizes]
    with processes.bar(length_hint(rows), "reconstructing") as bar:
        for number, part in own_batches(rows, batch_size, processes):
            if part:
                numbers = range(number * batch_size, number * batch_size + len(part))
                groups = [str(row[by]) if by else "" for row in part]
                texts = [text_of(row.get(text_column)) if text_column else "" for row in part]
                for table in tables:
                    table.add(numbers, [row[image_column] for row in part], groups, texts)
            bar.update(batch_size)
    if not any(processes.gather(len(tables[0].groups))):
        raise ValueError("`rows` holds no picture that can be read.")

    for table in tables:
        table.merge(processes)
        report.rows += table.rows()
        report.facts[f"codes at {table.size or NATIVE}"] = table.facts()
    report.protocol = {
        "crop": "the same for reference and output: scaled to cover the size, centre cut out; native: not scaled",
        "compared": "8-bit RGB; PSNR and SSIM (7x7 windows) are means over pictures",
        "seed of the decoder's noise": seed,
        "WebP": f"Pillow {PIL.__version__}, the best of 8 scales, its quality the highest that fits, header included",
    }
    if feature_model is not None:
        report.protocol["features of the Fréchet distance"] = feature_model.describe()
        report.protocol["did training losses see them"] = feature_model.seen
    if perceptual is not None:
        report.protocol["perceptual distance"] = perceptual.describe()
        report.protocol["did training losses see it"] = perceptual.seen
    if text_reader is not None:
        report.protocol["text read back"] = (
            f"{text_reader.describe()}: 1 - edit distance / length, without case and white space, mean over pictures"
        )
    return report


class _SizeTable:
    """The scores of all methods at one size. Of the pictures only numbers and codes are kept, by their places."""

    def __init__(self, model, size, feature_model, perceptual, text_reader, seed: int):
        crop = {"fit": "crop", "size": {"height": size, "width": size}} if size is not None else {}
        self.processor = UniWeTokImageProcessor(stride=model.config.stride, **crop)
        self.model, self.size, self.seed = model, size, seed
        self.feature_model, self.perceptual, self.text_reader = feature_model, perceptual, text_reader
        self.groups: dict[int, str] = {}
        self.enlarged: dict[int, bool] = {}
        self.packed_codes: dict[int, np.ndarray] = {}  # uint8 [1, h, w, bits / 8]
        # nan: no score
        self.values: dict[str, dict[int, dict[str, float]]] = {method: {} for method in (*METHODS, ORIGINAL)}
        self.features: dict[str, dict[int, np.ndarray]] = {method: {} for method in (*METHODS, "reference")}

    def add(
        self,
        numbers: Sequence[int],
        pictures: Sequence[Image.Image],
        groups: Sequence[str],
        texts: Sequence[str],
    ) -> None:
        """Reconstructs pictures and scores the outputs of all methods; `texts` stand in them."""
        found = reconstruct(self.model, pictures, self.seed, self.processor)
        self.groups |= zip(numbers, groups, strict=True)
        self.enlarged |= {
            number: min(picture.size) < (self.size or 0) for number, picture in zip(numbers, pictures, strict=True)
        }
        self.packed_codes |= zip(numbers, (pack_codes(one.codes[None]).cpu().numpy() for one in found), strict=True)
        originals = [one.original for one in found]
        squeezed = [webp(one.original, one.num_bytes) for one in found]
        outputs = (
            [one.result for one in found],
            [None if result is None else result[0] for result in squeezed],
            [small_thumbnail(original) for original in originals],
            [white(original) for original in originals],
        )
        for method, results in zip(METHODS, outputs, strict=True):
            for number, result, original in zip(numbers, results, originals, strict=True):
                self.values[method][number] = self._score(result, original)
        if self.text_reader is not None:
            for method, results in zip(self.values, (*outputs, originals), strict=True):
                for number, result, text in zip(numbers, results, texts, strict=True):
                    read = self.values[method].setdefault(number, {})
                    read["text"] = self._score_text(result, text)
        if self.feature_model is not None:
            for method, results in zip(self.features, (*outputs, originals), strict=True):
                made = {number: one for number, one in zip(numbers, results, strict=True) if one is not None}
                if made:
                    embedded = self.feature_model.embed_images(list(made.values()))
                    self.features[method] |= zip(made, embedded, strict=True)

    def _score(self, result: Image.Image | None, original: Image.Image) -> dict[str, float]:
        """The metrics of one output; nan without an output, and for SSIM where a side is shorter than its window."""
        is_large = min(original.size) >= 7
        scores = {
            "psnr": math.nan if result is None else psnr(result, original),
            "ssim": ssim(result, original) if result is not None and is_large else math.nan,
        }
        if self.perceptual is not None:
            network = self.perceptual.network
            scores["perceptual"] = math.nan if result is None else perceptual_distance(result, original, network)
        return scores

    def _score_text(self, result: Image.Image | None, text: str) -> float:
        """The share of the characters that can be read; nan without an output or a text."""
        return math.nan if result is None or not text else character_accuracy(self.text_reader(result), text)

    def merge(self, processes: Processes) -> None:
        """Brings together what all processes have found, in the order of the pictures."""
        self.all_groups = processes.merge(self.groups)
        self.all_values = {method: processes.merge(found) for method, found in self.values.items()}
        self.num_enlarged = sum(processes.merge(self.enlarged))
        self.statistics = BitStatistics(self.model.config.num_bits)
        self.statistics.add_all(
            unpack_codes(torch.from_numpy(packed)) for packed in processes.merge(self.packed_codes)
        )
        self.frechet = {}
        if self.feature_model is not None:
            of_methods = {method: self.features[method] for method in METHODS}
            self.frechet = frechet_scores(of_methods, self.features["reference"], processes)

    def rows(self) -> list[ScoreRow]:
        """The table, method by method. A method without an output in a group has no row there."""
        label = NATIVE if self.size is None else f"{self.size}x{self.size}"
        rows = []
        for method in (method for method, found in self.all_values.items() if found):

            def score(chosen: Sequence[int], method: str = method) -> dict[str, Score]:
                values = [self.all_values[method][i] for i in chosen]
                scores = {
                    metric: mean_score((found[metric] for found in values), bounds=BOUNDS.get(metric, NO_BOUNDS))
                    for metric in values[0]
                }
                if all(math.isnan(score.value) for score in scores.values()):
                    return {}
                if len(chosen) == len(self.all_groups) and method in self.frechet:
                    scores["rfid" if isinstance(self.feature_model, InceptionFeatures) else "frechet"] = self.frechet[
                        method
                    ]
                return scores

            rows += score_rows({"what": method, "size": label}, self.all_groups, score, method == "model")
        return rows

    def facts(self) -> dict[str, float | int]:
        """Statistics of the codes, and the counts of pictures that are not measured like the others."""
        counts = {
            "pictures_that_were_enlarged": self.num_enlarged,
            "pictures_too_small_for_WebP": sum(math.isnan(found["psnr"]) for found in self.all_values[METHODS[1]]),
        }
        return {name: count for name, count in counts.items() if count} | self.statistics.compute()


def text_of(cell: str | Sequence[str] | None) -> str:
    """What is written in a picture, of a cell that holds a text, its lines, or nothing.

    Raises:
        ValueError: when it holds something else.
    """
    lines = [cell] if isinstance(cell, str) else list(cell) if isinstance(cell, (list, tuple)) else cell or []
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise ValueError(f"`text_column` must hold texts or lists of them, got {cell!r}.")
    return " ".join(lines)


@dataclass
class Reconstruction:
    """`original` and `result` have the size of the original. `seen` and `decoded` are the same two at the model's
    size, without padding: equal to the first two unless the picture was scaled. `codes` [bits, h, w]."""

    original: Image.Image
    result: Image.Image
    seen: Image.Image
    decoded: Image.Image
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
    decoded = image_processor.postprocess(samples, None, sizes[1])
    seen = image_processor.postprocess(list(inputs["pixel_values"]), None, sizes[1])
    originals = seen if image_processor.fit == "crop" else pictures  # a crop is not undone
    return [Reconstruction(*parts) for parts in zip(originals, results, seen, decoded, codes, strict=True)]


def reconstruct_all(
    model: UniWeTokModel,
    pictures: Sequence[Image.Image],
    seed: int = 0,
    batch_size: int = 16,
    processes: Processes = ALONE,
) -> list[Image.Image]:
    """Pictures after the image tokenizer: the ceiling of what a model that writes its codes can reach."""
    return processes.map(lambda part: [one.result for one in reconstruct(model, part, seed)], pictures, batch_size)


def photographs() -> list[dict]:
    """Pictures that come inside scikit-image's wheel, as rows with `image` and `name`."""
    from skimage import data

    return [{"name": name, "image": Image.fromarray(getattr(data, name)()).convert("RGB")} for name in PHOTOGRAPHS]
