# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Do edits do what they were told? Of the target, the source and other candidates, which is the result nearest to?

The source is among the candidates, so a model that changes nothing scores zero; other edits of the same source are
among them, so it is not enough to change something. Beside the model stand two shortcuts: giving the source back, and
drawing from the instruction without seeing the source.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from .choices import cosines, top_k_outcomes
from .drawing import draw_all, nearest_is_own, thumbnail
from .intervals import mean_score, share_score
from .judges import Judge
from .metrics import psnr
from .reports import Row


@dataclass
class Edit:
    """`source` changed by `instruction` gives `target`; `others` are wrong results, `kind` is what results are grouped
    by."""

    source: Image.Image
    instruction: str
    target: Image.Image
    others: list[Image.Image] = field(default_factory=list)
    kind: str = ""


def edits_of_pairs(rows: Sequence[Mapping], num_others: int = 6, seed: int = 0, by: str | None = None) -> list[Edit]:
    """Edits of rows with `source`, `instruction` and `target`; the others are targets of other rows."""
    generator = torch.Generator().manual_seed(seed)
    edits = []
    for index, row in enumerate(rows):
        order = torch.randperm(len(rows), generator=generator).tolist()
        candidates = (rows[i]["target"] for i in order if i != index)
        others = distinct_pictures(candidates, [row["source"], row["target"]], num_others)
        edits.append(Edit(row["source"], row["instruction"], row["target"], others, str(row[by]) if by else ""))
    return edits


def edits_of_emoji(
    edits: Sequence[Mapping],
    pictures: Mapping[str, Image.Image],
    chosen: Sequence[int],
    num_others: int = 6,
    seed: int = 0,
) -> list[Edit]:
    """Edits of a folder of `uniwetok data emoji`.

    Args:
        edits: all rows of a split of its `edits`.
        pictures: its pictures by id.
        chosen: which of the rows to return.
        num_others: wrong results of each: first other targets of the same source, then others of the target's style.
    """
    generator = torch.Generator().manual_seed(seed)
    targets: dict[str, list[str]] = {}
    styles: dict[str, list[str]] = {}
    for row in edits:
        targets.setdefault(row["source"], []).append(row["target"])
    for name in pictures:
        styles.setdefault(name.split("/")[0], []).append(name)
    result = []
    for index in chosen:
        row = edits[index]
        near = _shuffled(targets[row["source"]], generator)
        far = _shuffled(styles[row["target"].split("/")[0]], generator)
        source, target = pictures[row["source"]], pictures[row["target"]]
        others = distinct_pictures((pictures[name] for name in [*near, *far]), [source, target], num_others)
        result.append(Edit(source, row["instruction"], target, others, row["kind"]))
    return result


def _shuffled(names: Sequence[str], generator: torch.Generator) -> list[str]:
    return [names[i] for i in torch.randperm(len(names), generator=generator).tolist()]


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


def evaluate_editing(
    edit_pipe, pipe, edits: Sequence[Edit], judge: Judge | None = None, seed: int = 0, batch_size: int = 16, **call
) -> list[Row]:
    """
    Makes the edits and scores them.

    Args:
        edit_pipe, pipe: [`UniWeTokEditPipeline`] and [`UniWeTokPipeline`] of one model.
        judge: compares pictures by its features' cosine; pixels do without. The caller sees to it that no training
            loss looked through it (`records.check_unseen`).
        seed: drawing i has the seed `seed` + i.
        call: further arguments of both pipelines.

    Returns:
        Rows of the table: the model, of all edits and of each kind; a copy of the source; a drawing from the
        instruction alone.

    Raises:
        ValueError: when there are no edits.
    """
    if not edits:
        raise ValueError("`edits` is empty.")
    instructions, sources = [edit.instruction for edit in edits], [edit.source for edit in edits]
    methods = {
        "model": draw_all(edit_pipe, instructions, sources, seed, batch_size, **call),
        "copy of the source": sources,
        "words alone": draw_all(pipe, instructions, None, seed, batch_size, **call),
    }
    kinds = sorted({edit.kind for edit in edits})
    rows = []
    for name, results in methods.items():
        outcomes = edit_outcomes(results, edits, judge)
        chosen = {"all": outcomes} if len(kinds) > 1 else {"": outcomes}
        if len(kinds) > 1:
            chosen |= {kind: [o for o, e in zip(outcomes, edits, strict=True) if e.kind == kind] for kind in kinds}
        rows += [_row(name, kind, found) for kind, found in chosen.items()]
    return rows


def score_edits(what: str, results: Sequence[Image.Image], edits: Sequence[Edit], judge: Judge | None = None) -> Row:
    """A row of the table for results that are no model's."""
    return _row(what, "", edit_outcomes(results, edits, judge))


def edit_outcomes(
    results: Sequence[Image.Image], edits: Sequence[Edit], judge: Judge | None = None
) -> list[dict[str, float]]:
    """What each result scored."""
    return [_outcomes(result, edit, judge) for result, edit in zip(results, edits, strict=True)]


def _outcomes(result: Image.Image, edit: Edit, judge: Judge | None) -> dict[str, float]:
    """What one result scored, and the `chance` of its choice."""
    wrong = [edit.source, *edit.others]
    own = thumbnail(edit.target)
    fitted = result if result.size == edit.target.size else result.resize(edit.target.size, Image.Resampling.BICUBIC)
    outcomes = {
        "psnr_to_target": psnr(fitted, edit.target),
        "nearest_by_pixels": nearest_is_own(thumbnail(result), own, [thumbnail(picture) for picture in wrong]),
        "chance": 1 / (1 + len(wrong)),
    }
    if judge is not None:
        features = judge.embed_images([result, edit.target, *wrong])
        outcomes["nearest_by_judge"] = bool(top_k_outcomes(cosines(features[:1], features[1:]), np.array([0]))[0])
    return outcomes


def _row(name: str, kind: str, outcomes: Sequence[Mapping[str, float]]) -> Row:
    chance = float(np.mean([found["chance"] for found in outcomes]))
    scores = {"psnr_to_target": mean_score(found["psnr_to_target"] for found in outcomes)}
    for choice in ("nearest_by_pixels", "nearest_by_judge"):
        if choice in outcomes[0]:
            scores[choice] = share_score((found[choice] for found in outcomes), chance)
    return Row({"what": name} | ({"of": kind} if kind else {}), scores, name == "model" and kind in ("", "all"))
