# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""What the tokens mean: zero-shot and linear-probe accuracy of latents (before the sign) and codes (after it), paper
tables 1 and 4.

Zero-shot: the pools of Pre-Post Distillation carry latents and codes into the teacher's space, where the nearest of
the classes' texts is the answer; the teacher's own accuracy on the same crops stands beside. Linear probe: logistic
regression on the mean over a picture's tokens, fitted on another split.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm.auto import tqdm

from ..losses.distillation import PrePostDistillation
from ..losses.teacher import Teacher
from ..modeling.image_processing_uniwetok import UniWeTokImageProcessor
from ..modeling.modeling_uniwetok import UniWeTokModel
from .choices import cosines, top_k_outcomes
from .drawing import thumbnail
from .intervals import Score, share_score
from .probe import linear_probe_outcomes
from .reports import Row
from .rows import batched


PIXELS = "8x8 pixels"


@dataclass
class Embedded:
    """Pictures as vectors [N, channels] by what made them: `means` over tokens (of teacher and pixels, the vector
    itself), and `pooled` in the teacher's space; `labels`, one a picture."""

    labels: list[str] = field(default_factory=list)
    means: dict[str, np.ndarray] = field(default_factory=dict)
    pooled: dict[str, np.ndarray] = field(default_factory=dict)


@torch.no_grad()
def embed_rows(
    model: UniWeTokModel,
    rows: Iterable[Mapping],
    size: int,
    label_column: str,
    image_column: str = "image",
    pools: PrePostDistillation | None = None,
    teacher: Teacher | None = None,
    batch_size: int = 16,
    total: int | None = None,
) -> Embedded:
    """
    Vectors of all rows, at centre crops of `size` x `size` pixels (the crop of `reconstruction`).

    Raises:
        ValueError: for a size that is no multiple of the stride, pools for another number of bits, or no rows.
    """
    if pools is not None and pools.config["num_bits"] != model.config.num_bits:
        raise ValueError(f"`pools` are for {pools.config['num_bits']} bits, the model has {model.config.num_bits}.")
    square = {"height": size, "width": size}
    processor = UniWeTokImageProcessor(stride=model.config.stride, fit="crop", size=square)
    embedded, means, pooled = Embedded(), {}, {}
    with tqdm(total=total, desc="encoding", disable=None) as bar:
        for part in batched(rows, batch_size):
            pixel_values = processor([row[image_column] for row in part])["pixel_values"].to(model.device)
            found = model.encode(pixel_values.to(model.dtype))
            latents, codes = found.latents.float(), found.codes.float()
            vectors = {
                "latents": latents.mean((2, 3)),
                "codes": codes.mean((2, 3)),
                PIXELS: _small(part, image_column),
            }
            inside = {}
            if pools is not None:
                inside = {"latents": pools.embed_latents(latents), "codes": pools.embed_codes(codes)}
            if teacher is not None:
                vectors["teacher"] = inside["teacher"] = teacher.embed_pictures(pixel_values)
            for kept, new in ((means, vectors), (pooled, inside)):
                for name, values in new.items():
                    kept.setdefault(name, []).append(values.cpu().numpy())
            embedded.labels += [str(row[label_column]) for row in part]
            bar.update(len(part))
    if not embedded.labels:
        raise ValueError("`rows` holds no picture that can be read.")
    embedded.means = {name: np.concatenate(parts) for name, parts in means.items()}
    embedded.pooled = {name: np.concatenate(parts) for name, parts in pooled.items()}
    return embedded


def _small(rows: Sequence[Mapping], image_column: str) -> torch.Tensor:
    """[B, 192]: what colours alone tell."""
    return torch.stack([torch.from_numpy(thumbnail(row[image_column], 8)).flatten() for row in rows])


def class_embeddings(teacher: Teacher, labels: Sequence[str], templates: Sequence[str]) -> np.ndarray:
    """Vectors [classes, channels] of texts: for each label, the mean of the directions of its texts.

    Args:
        templates: texts with `{label}` in them.

    Raises:
        ValueError: for a template without `{label}`.
    """
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
    test: Embedded, train: Embedded | None = None, classes: Sequence[str] = (), texts: np.ndarray | None = None
) -> list[Row]:
    """
    Rows of the table: latents, codes, teacher, pixels.

    Args:
        test: what is scored.
        train: what linear probes are fitted on; without it there are none.
        classes, texts: the labels to choose from and their vectors, for zero-shot accuracy.
    """
    rows = []
    for name in ("latents", "codes", "teacher", PIXELS):
        scores = {}
        if texts is not None and name in test.pooled:
            scores |= _zero_shot(test.pooled[name], test.labels, classes, texts)
        if train is not None and name in test.means:
            outcomes = linear_probe_outcomes(train.means[name], train.labels, test.means[name], test.labels)
            scores["probe"] = share_score(outcomes, _blind_chance(train.labels, test.labels))
        if scores:
            rows.append(Row({"what": name}, scores, name in ("latents", "codes")))
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
        for k in (1, 5)
        if k < len(classes)
    }


def _blind_chance(labels: Sequence[str], test_labels: Sequence[str]) -> float:
    """What the most common label of the training split scores."""
    usual = max(sorted(set(labels)), key=labels.count)
    return sum(label == usual for label in test_labels) / len(test_labels)
