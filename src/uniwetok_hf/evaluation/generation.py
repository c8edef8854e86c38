# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""How good drawings are: as a set beside real pictures (Fréchet distance, precision, recall), and each beside its
prompt (R-precision).

A picture of R rows is drawn from each row's prompt. The rows' own pictures are the reference; other real pictures of
the same number, where the data have them, show what an honest second sample would score: with few samples the Fréchet
distance of two samples of one distribution is far from 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from .choices import chance_of, cosines, draw_rivals, r_precision_outcomes, top_k_outcomes
from .distributions import frechet_distance, precision_recall_outcomes
from .drawing import draw_all, nearest_is_own, thumbnail
from .intervals import Score, jackknife_score, share_score
from .judges import Judge
from .reconstruction import reconstruct
from .reports import Row
from .rows import batched


NUM_NEIGHBOURS = 3


@dataclass
class DrawingRows:
    """`prompts` and the `pictures` that belong to them; `groups`, a value a row, from whose members rivals are drawn;
    `others`, real pictures of no prompt here."""

    prompts: list[str]
    pictures: list[Image.Image]
    groups: list[str] | None = None
    others: list[Image.Image] | None = None


def evaluate_generation(
    pipe,
    rows: DrawingRows,
    judge: Judge | None = None,
    feature_model: Judge | None = None,
    num_rivals: int = 31,
    seed: int = 0,
    batch_size: int = 16,
    **call,
) -> list[Row]:
    """
    Draws and scores one picture a prompt.

    Args:
        pipe: a [`UniWeTokPipeline`].
        judge: a dual encoder for R-precision and the nearest picture; the caller sees to it that no training loss
            looked through it (`records.check_unseen`).
        feature_model: for the Fréchet distance, precision and recall.
        num_rivals: candidates beside the right one.
        seed: of the choice of rivals; drawing i has the seed `seed` + i.
        call: further arguments of the pipeline.

    Returns:
        Rows of the table: the model's drawings; the real pictures after the image tokenizer, which no drawing can
        beat by much; the real pictures; other real pictures.

    Raises:
        ValueError: when there are no rows, or no two prompts differ.
    """
    if len(set(rows.prompts)) < 2:
        raise ValueError(f"`rows` must hold 2 or more different prompts, got {len(set(rows.prompts))}.")
    generator = torch.Generator().manual_seed(seed)
    rivals = draw_rivals(rows.prompts, num_rivals, generator, rows.groups)
    if not all(rivals):  # a group of one prompt: rivals from everywhere
        rivals = draw_rivals(rows.prompts, num_rivals, generator)
    drawn = draw_all(pipe, rows.prompts, seed=seed, batch_size=batch_size, **call)
    vision_model = pipe.mllm.vision_model
    parts = [reconstruct(vision_model, part, seed) for part in batched(rows.pictures, batch_size)]
    decoded = [one.result for part in parts for one in part]
    methods = {"model": drawn, "real, through the codes": decoded, "real": rows.pictures}
    scores: dict[str, dict[str, Score]] = {name: {} for name in methods}
    for name in ("model", "real, through the codes"):
        scores[name]["nearest_by_pixels"] = _nearest_by_pixels(methods[name], rows.pictures, rivals)
    if judge is not None:
        texts, real = judge.embed_texts(rows.prompts), judge.embed_images(rows.pictures)
        for name, pictures in methods.items():
            found = real if pictures is rows.pictures else judge.embed_images(pictures)
            outcomes = r_precision_outcomes(found, texts, rivals)
            scores[name]["r_precision"] = share_score(outcomes, chance_of(rivals))
            if pictures is not rows.pictures:
                scores[name]["nearest_by_judge"] = nearest_by_features(found, real, rivals)
    if feature_model is not None:
        references = feature_model.embed_images(rows.pictures)
        sets = {"model": drawn, "real, through the codes": decoded}
        sets |= {"other real": rows.others} if rows.others else {}
        for name, pictures in sets.items():
            features = feature_model.embed_images(pictures)
            scores.setdefault(name, {}).update(_set_scores(features, references))
    return [Row({"what": name}, found, name == "model") for name, found in scores.items() if found]


def _nearest_by_pixels(
    drawn: Sequence[Image.Image], real: Sequence[Image.Image], rivals: Sequence[Sequence[int]]
) -> Score:
    thumbnails = [thumbnail(picture) for picture in real]
    outcomes = [
        nearest_is_own(thumbnail(picture), thumbnails[index], [thumbnails[other] for other in others])
        for index, (picture, others) in enumerate(zip(drawn, rivals, strict=True))
    ]
    return share_score(outcomes, chance_of(rivals))


def nearest_by_features(found: np.ndarray, real: np.ndarray, rivals: Sequence[Sequence[int]]) -> Score:
    """How often row i of `found` is nearer (cosine) to row i of `real` than to its rivals' rows."""
    outcomes = []
    for index, others in enumerate(rivals):
        scores = cosines(found[index : index + 1], real[[index, *others]])
        outcomes.append(bool(top_k_outcomes(scores, np.array([0]))[0]))
    return share_score(outcomes, chance_of(rivals))


def _set_scores(features: np.ndarray, references: np.ndarray) -> dict[str, Score]:
    """The sets as distributions; nothing where they are too small."""
    if min(len(features), len(references)) <= NUM_NEIGHBOURS:
        return {}
    precision, recall = precision_recall_outcomes(features, references, NUM_NEIGHBOURS)
    return {
        "frechet": jackknife_score(frechet_distance, features, references),
        "precision": share_score(precision),
        "recall": share_score(recall),
    }
