# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""`evaluate editing`: of the target, the source and other candidates, which is the result of an edit nearest to?

The source is among the candidates, so a model that changes nothing scores zero; other edits of the same source may be
among them, so that it is not enough to change something. Beside the model stand two shortcuts, a copy of the source
and a picture generated from the instruction without the source, and the ceiling, the targets after the image
tokenizer.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from .choices import cosines, nearest_is_own, thumbnail
from .generation import generate_all, generation_call, generation_protocol
from .intervals import Score, mean_score, share_score
from .judges import Judge
from .metrics import psnr
from .processes import ALONE, Processes
from .prompts import check_edit, check_prompts
from .reconstruction import reconstruct_all
from .reports import Report, score_rows
from .rows import read_rows


@dataclass
class EditPair:
    """`source` edited by `instruction` gives `target`; `others` are wrong results; `kind` is its row of the table."""

    source: Image.Image
    instruction: str
    target: Image.Image
    others: list[Image.Image] = field(default_factory=list)
    kind: str = ""


def evaluate_editing(
    edit_pipe,
    pipe,
    rows: Iterable[Mapping],
    by: str | None = None,
    judge: Judge | None = None,
    num_rivals: int = 6,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    image_guidance_scale: float | None = None,
    describe_first: bool | None = None,
    seed: int = 0,
    batch_size: int = 16,
    processes: Processes = ALONE,
) -> Report:
    """
    Edits the pictures of all rows and scores the results.

    Args:
        edit_pipe, pipe: [`UniWeTokEditPipeline`] and [`UniWeTokPipeline`] of one model.
        rows: see [`edit_pairs`]. Of [`PictureRows`], those are left out whose instruction or source the model can't
            read.
        by: column whose values have a row of the table each, beside the row of all edits.
        judge: compares pictures by the cosine of its features, where pixels alone are compared without; no training
            loss used it (`unseen_by` of [`Judge.from_pretrained`]).
        num_rivals: see [`edit_pairs`].
        num_inference_steps, guidance_scale: of both pipelines, their defaults when None.
        image_guidance_scale, describe_first: of `edit_pipe`, its defaults when None.
        seed: of the choice of rivals; picture i is generated with the seed `seed` + i.
        processes: those that share the edits, batch by batch.

    Returns:
        The report, the same in all processes.

    Raises:
        ValueError: when there are no edits.
    """

    def check(row: Mapping) -> None:
        check_edit(edit_pipe, row["source"], row["instruction"])
        check_prompts(pipe, [row["instruction"]], pipe.config.default_size, pipe.config.default_size)

    pairs = edit_pairs(read_rows(rows, check), by, num_rivals, seed)
    if not pairs:
        raise ValueError("`rows` holds no edit that can be read.")
    instructions = [pair.instruction for pair in pairs]
    sources = [pair.source for pair in pairs]
    targets = [pair.target for pair in pairs]
    kinds = [pair.kind for pair in pairs]
    if describe_first is None:
        describe_first = edit_pipe.config.default_describe_first
    call = generation_call(pipe, num_inference_steps, guidance_scale)
    edit_call = call | {"image_guidance_scale": image_guidance_scale, "describe_first": describe_first}
    results = {
        "model": generate_all(edit_pipe, instructions, sources, seed, batch_size, processes, **edit_call),
        "copy of the source": sources,
        "words alone": generate_all(pipe, instructions, None, seed, batch_size, processes, **call),
        "targets, through the codes": reconstruct_all(pipe.mllm.vision_model, targets, seed, batch_size, processes),
    }

    report = Report("editing")
    for what, pictures in results.items():
        judged = list(zip(pictures, pairs, strict=True))
        outcomes = processes.map(lambda part: edit_outcomes(*zip(*part, strict=True), judge), judged, batch_size)

        def score(chosen: Sequence[int], outcomes: list = outcomes) -> dict[str, Score]:
            return edit_scores([outcomes[index] for index in chosen])

        report.rows += score_rows({"what": what}, kinds, score, what == "model")

    report.protocol = {
        "candidates": f"target, source, up to {num_rivals} others",
        **generation_protocol(edit_pipe, **call, seed=seed),
        "edits described first": "yes" if describe_first else "no",
    }
    picture_scale = edit_pipe.scale_for_images(call["guidance_scale"], image_guidance_scale)
    if picture_scale is not None:
        report.protocol["image guidance scale"] = picture_scale
        report.protocol["negative prompt"] = edit_pipe.config.default_negative_prompt or "none"
    if judge is not None:
        report.protocol |= {"judge": judge.describe(), "did training losses see the judge": judge.seen}
    return report


def edit_pairs(rows: Iterable[Mapping], by: str | None = None, num_rivals: int = 6, seed: int = 0) -> list[EditPair]:
    """
    The edits of rows.

    Args:
        rows: with PIL pictures `source` and `target`, `instruction` and the column `by` ([`PictureRows`]). The wrong
            results of a row are its own `others`, a list of PIL pictures; where there is no such list, the targets of
            other rows.
        by: column of the kind of edit.
        num_rivals: number of targets of other rows, at most.
        seed: of their choice.
    """
    rows = list(rows)
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for index, row in enumerate(rows):
        order = torch.randperm(len(rows), generator=generator).tolist()
        if row.get("others") is None:
            candidates, count = (rows[i]["target"] for i in order if i != index), num_rivals
        else:
            candidates, count = row["others"], len(row["others"])
        others = distinct_pictures(candidates, [row["source"], row["target"]], count)
        kind = str(row[by]) if by else ""
        pairs.append(EditPair(row["source"], row["instruction"], row["target"], others, kind))
    return pairs


def distinct_pictures(candidates: Iterable[Image.Image], known: list[Image.Image], count: int) -> list[Image.Image]:
    """The first `count` candidates whose pixels are not those of a known picture or of each other."""
    seen = {(picture.size, picture.tobytes()) for picture in known}
    kept = []
    for candidate in candidates:
        if len(kept) == count:
            break
        key = candidate.size, candidate.tobytes()
        if key not in seen:
            seen.add(key)
            kept.append(candidate)
    return kept


def edit_outcomes(
    results: Sequence[Image.Image], pairs: Sequence[EditPair], judge: Judge | None = None
) -> list[dict[str, float]]:
    """The outcome of each result: `psnr_to_target`, `nearest_by_pixels`, with a judge `nearest_by_judge`, and the
    `chance` of a blind choice among the candidates."""
    outcomes = []
    for result, pair in zip(results, pairs, strict=True):
        size = pair.target.size
        wrong = [pair.source, *pair.others]
        fitted = result if result.size == size else result.resize(size, Image.Resampling.BICUBIC)
        rivals = [thumbnail(picture) for picture in wrong]
        outcome = {
            "psnr_to_target": psnr(fitted, pair.target),
            "nearest_by_pixels": nearest_is_own(thumbnail(result), thumbnail(pair.target), rivals),
            "chance": 1 / (1 + len(wrong)),
        }
        if judge is not None:
            features = judge.embed_images([result, pair.target, *wrong])
            own, *others = cosines(features[:1], features[1:])[0]
            outcome["nearest_by_judge"] = all(own > other for other in others)
        outcomes.append(outcome)
    return outcomes


def edit_scores(outcomes: Sequence[Mapping[str, float]]) -> dict[str, Score]:
    """The scores of [`edit_outcomes`]."""
    chance = float(np.mean([outcome["chance"] for outcome in outcomes]))
    scores = {"psnr_to_target": mean_score(outcome["psnr_to_target"] for outcome in outcomes)}
    for choice in ("nearest_by_pixels", "nearest_by_judge"):
        if choice in outcomes[0]:
            scores[choice] = share_score((outcome[choice] for outcome in outcomes), chance)
    return scores
