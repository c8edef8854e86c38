# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""`evaluate latents`: what the tokens mean: zero-shot and linear-probe accuracy of latents (before the sign) and codes
(after it), paper tables 1 and 4.

Zero-shot: the pools of Pre-Post Distillation map latents and codes into the teacher's space, where the nearest of the
classes' texts is the answer; the teacher's own accuracy on the same crops is the ceiling. Linear probe: logistic
regression on the mean over a picture's tokens, fitted on another split, beside the same on 8x8 pixels.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import length_hint

import numpy as np
import torch

from ..losses.distillation import PrePostDistillation
from ..losses.teacher import Teacher
from ..modeling.image_processing_uniwetok import UniWeTokImageProcessor
from ..modeling.modeling_uniwetok import UniWeTokModel
from ..provenance import short_name
from .choices import cosines, thumbnail, top_k_outcomes
from .intervals import Score, share_score
from .probe import linear_probe_outcomes
from .processes import ALONE, Processes
from .reports import Report, ScoreRow
from .rows import batched, own_batches


PIXELS = "8x8 pixels"


def evaluate_latents(
    model: UniWeTokModel,
    rows: Iterable[Mapping],
    label: str,
    size: int,
    train_rows: Iterable[Mapping] | None = None,
    image_column: str = "image",
    pools: PrePostDistillation | None = None,
    teacher: Teacher | None = None,
    templates: Sequence[str] = ("a photo of {label}",),
    batch_size: int = 16,
    processes: Processes = ALONE,
    classes: Sequence[str] | None = None,
) -> Report:
    """
    Accuracy of a label that is read from latents and codes.

    Args:
        rows: with a PIL picture in `image_column` and the column `label` ([`PictureRows`]).
        size: side of the centre crops in pixels, a multiple of the model's stride.
        train_rows: rows that linear probes are fitted on; without them there are no probes.
        pools, teacher: of the Pre-Post Distillation that the model was trained with, for zero-shot accuracy.
        templates: texts of the classes, with `{label}` in them; the directions of the texts of a class are averaged.
        processes: those that share the pictures, batch by batch.
        classes: among which names are chosen, with those of `rows`.

    Returns:
        The report, the same in all processes.

    Raises:
        ValueError: for a size that is no multiple of the stride, pools for another number of bits or another teacher,
            a teacher that reads no texts, one label only, or no picture that can be read.
    """
    report, stride = Report("latents"), model.config.stride
    if size < stride or size % stride:
        raise ValueError(f"`size` must be a multiple of the model's {stride} pixels, got {size}.")
    settings = (size, label, image_column, pools, teacher, batch_size, processes)
    test = embed_rows(model, rows, *settings)
    classes, texts, train = sorted({*test.labels, *(classes or ())}), None, None
    report.protocol = {
        "crop": f"scaled to cover {size}x{size}, centre cut out",
        "label": label,
        "probe": "logistic regression (L2 0.001, standardized, L-BFGS) on the mean over tokens of each picture",
        "chance of a probe": "the most common label of the split that it was fitted on",
    }
    if teacher is not None:
        texts = class_embeddings(teacher, classes, templates)
        report.protocol["teacher"] = short_name(teacher.name)
        report.protocol["texts"] = f"{len(classes)} classes of the split, {', '.join(templates)}"
    if train_rows is not None:
        train = embed_rows(model, train_rows, *settings)
        report.protocol["probes fitted on"] = f"{len(train.labels)} pictures"
    report.rows = score_latents(test, train, classes, texts)
    return report


@dataclass
class EmbeddedPictures:
    """Pictures as vectors [N, channels] by what made them: `means` over tokens (of teacher and pixels, the vector
    itself), and `pooled` in the teacher's space; `labels`, one per picture."""

    labels: list[str] = field(default_factory=list)
    means: dict[str, np.ndarray] = field(default_factory=dict)
    pooled: dict[str, np.ndarray] = field(default_factory=dict)


@torch.no_grad()
def embed_rows(
    model: UniWeTokModel,
    rows: Iterable[Mapping],
    size: int,
    label: str,
    image_column: str = "image",
    pools: PrePostDistillation | None = None,
    teacher: Teacher | None = None,
    batch_size: int = 16,
    processes: Processes = ALONE,
) -> EmbeddedPictures:
    """Vectors of all rows, at centre crops of `size` x `size` pixels (the crop of `reconstruction`). Arguments as in
    [`evaluate_latents`]."""
    if pools is not None and pools.config["num_bits"] != model.config.num_bits:
        raise ValueError(f"`pools` are for {pools.config['num_bits']} bits, the model has {model.config.num_bits}.")
    square = {"height": size, "width": size}
    processor = UniWeTokImageProcessor(stride=model.config.stride, fit="crop", size=square)
    found = {}
    with processes.bar(length_hint(rows), "encoding") as bar:
        for number, part in own_batches(rows, batch_size, processes):
            bar.update(batch_size)
            if not part:
                continue
            pictures = [row[image_column] for row in part]
            pixel_values = processor(pictures)["pixel_values"].to(model.device)
            crops = processor.postprocess(pixel_values)
            encoded = model.encode(pixel_values.to(model.dtype))
            latents, codes = encoded.latents.float(), encoded.codes.float()
            means = {
                "latents": latents.mean((2, 3)),
                "codes": codes.mean((2, 3)),
                PIXELS: torch.stack([torch.from_numpy(thumbnail(crop, 8)).flatten() for crop in crops]),
            }
            pooled = {}
            if pools is not None:
                pooled = {"latents": pools.embed_latents(latents), "codes": pools.embed_codes(codes)}
            if teacher is not None:
                means["teacher"] = pooled["teacher"] = teacher.embed_pictures(pixel_values)
            vectors = [{name: values.cpu().numpy() for name, values in kind.items()} for kind in (means, pooled)]
            found[number] = EmbeddedPictures([str(row[label]) for row in part], *vectors)
    parts = processes.merge(found)
    if not parts:
        raise ValueError("`rows` holds no picture that can be read.")
    return EmbeddedPictures(
        [one for part in parts for one in part.labels],
        {name: np.concatenate([part.means[name] for part in parts]) for name in parts[0].means},
        {name: np.concatenate([part.pooled[name] for part in parts]) for name in parts[0].pooled},
    )


def class_embeddings(teacher: Teacher, labels: Sequence[str], templates: Sequence[str]) -> np.ndarray:
    """Vectors [classes, channels] of texts: for each label, the mean of the directions of its texts.

    Args:
        templates: texts with `{label}` in them.

    Raises:
        ValueError: for a template without `{label}`, or a teacher that reads no texts.
    """
    if teacher.text_tokenizer is None:
        raise ValueError(f"`teacher` {teacher.name} reads no texts: give a dual encoder.")
    for template in templates:
        if "{label}" not in template:
            raise ValueError(f"`templates` must hold {{label}}, got {template!r}.")
    total = 0
    for template in templates:
        texts = [template.replace("{label}", label) for label in labels]
        parts = [teacher.embed_texts(part).cpu().numpy() for part in batched(texts, 64)]
        vectors = np.concatenate(parts).astype(np.float64)
        total = total + vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return total


def score_latents(
    test: EmbeddedPictures,
    train: EmbeddedPictures | None = None,
    classes: Sequence[str] = (),
    texts: np.ndarray | None = None,
) -> list[ScoreRow]:
    """
    Rows of the table: latents, codes, teacher, pixels.

    Args:
        test: the pictures that are scored.
        train: the pictures that linear probes are fitted on; without them there are no probes.
        classes, texts: the labels to choose from and their vectors, for zero-shot accuracy.
    """
    rows = []
    for name in ("latents", "codes", "teacher", PIXELS):
        scores = {}
        if texts is not None and name in test.pooled:
            scores |= _zero_shot(test.pooled[name], test.labels, classes, texts)
        if train is not None and name in test.means:
            outcomes = linear_probe_outcomes(train.means[name], train.labels, test.means[name], test.labels)
            usual = max(sorted(set(train.labels)), key=train.labels.count)
            scores["probe"] = share_score(outcomes, sum(label == usual for label in test.labels) / len(test.labels))
        if scores:
            rows.append(ScoreRow({"what": name}, scores, name in ("latents", "codes")))
    return rows


def _zero_shot(
    vectors: np.ndarray, labels: Sequence[str], classes: Sequence[str], texts: np.ndarray
) -> dict[str, Score]:
    if vectors.shape[1] != texts.shape[1]:
        raise ValueError(
            f"`pools` give vectors of {vectors.shape[1]} channels, the teacher's have {texts.shape[1]}: they were "
            "trained with another teacher."
        )
    index = {label: position for position, label in enumerate(classes)}
    right = np.array([index[label] for label in labels])
    similarities = cosines(vectors, texts)
    return {
        f"top{k}": share_score(top_k_outcomes(similarities, right, k), k / len(classes))
        for k in (1, 5, 10)
        if k < len(classes)
    }
