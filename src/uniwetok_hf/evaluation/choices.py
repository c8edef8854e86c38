# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Choosing one of several candidates, and whether the choice is right: zero-shot classification, text-image
R-precision, the nearest of several pictures.

A tie is wrong: a model that gives every candidate the same score knows nothing.

Pictures are compared by a judge's features, or without a learned judge by the squared difference of 32x32 thumbnails,
which sees colours and outlines but not objects.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image


def ranks_of_right(scores: np.ndarray, right: Sequence[int] | np.ndarray) -> np.ndarray:
    """How many candidates score at least as high as the right one, itself not counted: 0 is the best.

    Args:
        scores: float [N, candidates], higher is better.
        right: int [N], which candidate is right.

    Raises:
        ValueError: for other shapes, an index out of range, or nan.
    """
    scores, right = np.asarray(scores, dtype=np.float64), np.asarray(right)
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise ValueError(f"`scores` must be [N, candidates] with 2 or more candidates, got {list(scores.shape)}.")
    if right.shape != scores.shape[:1] or not np.issubdtype(right.dtype, np.integer):
        raise ValueError(f"`right` must hold one index for each of {len(scores)} rows, got {list(right.shape)}.")
    if len(right) and not (right.min() >= 0 and right.max() < scores.shape[1]):
        raise ValueError(f"`right` must lie in 0..{scores.shape[1] - 1}, got {right.min()}..{right.max()}.")
    if np.isnan(scores).any():
        raise ValueError("`scores` must not hold nan.")
    own = np.take_along_axis(scores, right[:, None], axis=1)
    return (scores >= own).sum(axis=1) - 1


def top_k_outcomes(scores: np.ndarray, right: Sequence[int] | np.ndarray, k: int = 1) -> np.ndarray:
    """bool [N]: whether the right candidate is among the k best."""
    if k < 1:
        raise ValueError(f"`k` must be 1 or more, got {k}.")
    return ranks_of_right(scores, right) < k


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Cosine similarities [N, M] of rows [N, channels] and [M, channels]; those of a zero row are 0."""
    unit = [np.asarray(rows, dtype=np.float64) for rows in (left, right)]
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(min=1e-12) for rows in unit]
    return unit[0] @ unit[1].T


def choose_rivals(
    meanings: Sequence, num_rivals: int, generator: torch.Generator, groups: Sequence | None = None
) -> list[list[int]]:
    """For each row, `num_rivals` other rows; fewer where there are not as many.

    Args:
        meanings: one hashable value per row (the prompt). Rows that mean the same are never rivals, and of rivals that
            mean the same there is one: otherwise a blind choice would be right more often than one in so many.
        generator: source of the choice.
        groups: one hashable value per row; rivals come from the row's own group, which makes the choice harder.
    """
    groups = [None] * len(meanings) if groups is None else groups
    members: dict[object, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    rivals = []
    for group, meaning in zip(groups, meanings, strict=True):
        others = [member for member in members[group] if meanings[member] != meaning]
        order = torch.randperm(len(others), generator=generator, device=generator.device)
        of_meaning: dict[object, int] = {}
        for pick in order.tolist():
            if len(of_meaning) >= num_rivals:
                break
            of_meaning.setdefault(meanings[others[pick]], others[pick])
        rivals.append(list(of_meaning.values()))
    return rivals


def r_precision_outcomes(
    image_embeddings: np.ndarray, text_embeddings: np.ndarray, rivals: Sequence[Sequence[int]]
) -> np.ndarray:
    """
    Text-image R-precision with one right text: whether each picture is nearer (cosine) to its own text than to its
    rivals'. Features of pictures in place of the texts' give the nearest picture in the same way.

    Args:
        image_embeddings, text_embeddings: float [N, channels]; row i of both belong together.
        rivals: for each row, the rows whose texts compete, as `choose_rivals` gives them.

    Returns:
        bool [N].

    Raises:
        ValueError: when the three are not equally many, or a row has no rivals.
    """
    if not len(image_embeddings) == len(text_embeddings) == len(rivals):
        raise ValueError(
            f"`image_embeddings`, `text_embeddings` and `rivals` must be equally many, got {len(image_embeddings)}, "
            f"{len(text_embeddings)} and {len(rivals)}."
        )
    outcomes = []
    for index, others in enumerate(rivals):
        if len(others) == 0:
            raise ValueError(f"`rivals[{index}]` is empty: a choice needs two candidates.")
        candidates = np.asarray(text_embeddings)[[index, *others]]
        scores = cosines(np.asarray(image_embeddings)[index : index + 1], candidates)
        outcomes.append(bool(top_k_outcomes(scores, np.array([0]))[0]))
    return np.array(outcomes, dtype=bool)


def chance_of(rivals: Sequence[Sequence[int]]) -> float:
    """The share that a blind choice among each row and its rivals would get right."""
    return float(np.mean([1 / (1 + len(others)) for others in rivals]))


def thumbnail(image: Image.Image, side: int = 32) -> np.ndarray:
    """The picture as float [side, side, 3] in [0, 255]."""
    return np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BOX), dtype=np.float32)


def nearest_is_own(result: np.ndarray, own: np.ndarray, others: Sequence[np.ndarray]) -> bool:
    """Whether the thumbnail `own` is nearer to `result` than each of `others` (mean squared difference)."""
    distance = ((result - own) ** 2).mean()
    return all(((result - other) ** 2).mean() > distance for other in others)
