# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""`evaluate generation`: the quality of generated pictures, of each beside its prompt (R-precision, nearest picture)
and of all as a set beside real pictures (Fréchet distance, precision, recall).

One picture is generated from the prompt of each row; the rows' own pictures are the reference. With few samples the
Fréchet distance of two samples of one distribution is far from 0, so other real pictures, where the data have them,
show what a perfect model would score.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from .choices import chance_of, choose_rivals, nearest_is_own, r_precision_outcomes, thumbnail
from .distributions import frechet_score, precision_recall_outcomes
from .intervals import Score, share_score
from .judges import Judge
from .processes import ALONE, Processes
from .prompts import check_prompts
from .reconstruction import reconstruct_all
from .reports import Report, ScoreRow
from .rows import batched, choose_rows, describe_choice, fill_template, read_rows


NUM_NEIGHBOURS = 3


def evaluate_generation(
    pipe,
    rows: Iterable[Mapping],
    prompt: str = "{text}",
    image_column: str = "image",
    within: str | None = None,
    count: int | None = None,
    judge: Judge | None = None,
    feature_model: Judge | None = None,
    num_rivals: int = 31,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    seed: int = 0,
    batch_size: int = 16,
    processes: Processes = ALONE,
) -> Report:
    """
    Generates and scores one picture per row.

    Args:
        pipe: a [`UniWeTokPipeline`].
        rows: with a PIL picture in `image_column` and the columns of `prompt` and `within` ([`PictureRows`], of which
            rows are left out whose prompt the model can't read).
        prompt: template of the prompts, with columns in braces; of a list of texts the first is taken.
        within: rivals have the same value of this column as the right one, where there are others.
        count: number of pictures to generate, from every second row where there are twice as many; the others are then
            the other real pictures. None: from all rows.
        judge: a dual encoder for R-precision and the nearest picture, which no training loss used
            (`unseen_by` of [`Judge.from_pretrained`]).
        feature_model: a vision model for the Fréchet distance, precision and recall; the same holds for it.
        num_rivals: candidates beside the right one.
        num_inference_steps, guidance_scale: of the pipeline, its defaults when None.
        seed: of the choice of rivals; picture i is generated with the seed `seed` + i.
        processes: those that share the pictures, batch by batch.

    Returns:
        The report, the same in all processes, with rows for the model; the real pictures after the image tokenizer, a
        ceiling; the real pictures; other real pictures.

    Raises:
        ValueError: when fewer than two prompts differ, or the judge reads no texts.
    """

    def check(row: Mapping) -> None:
        side = pipe.config.default_size
        check_prompts(pipe, [fill_template(prompt, row)], side, side)

    rows = read_rows(rows, check)
    read, others = split_rows(rows, count, seed)
    prompts = [fill_template(prompt, row) for row in read]
    real = [row[image_column] for row in read]
    if len(set(prompts)) < 2:
        raise ValueError(f"`rows` must hold 2 or more different prompts, got {len(set(prompts))}.")
    groups = [str(row[within]) for row in read] if within else None
    generator = torch.Generator().manual_seed(seed)
    rivals = choose_rivals(prompts, num_rivals, generator, groups)
    alone = sum(not own for own in rivals)  # in a group of one prompt: rivals of all groups
    if alone:
        others_of_all = choose_rivals(prompts, num_rivals, generator)
        rivals = [own or other for own, other in zip(rivals, others_of_all, strict=True)]
    texts = judge.embed_texts(prompts) if judge is not None else None  # first: a judge that reads none ends here

    call = generation_call(pipe, num_inference_steps, guidance_scale)
    pictures = {
        "model": generate_all(pipe, prompts, seed=seed, batch_size=batch_size, processes=processes, **call),
        "real, through the codes": reconstruct_all(pipe.mllm.vision_model, real, seed, batch_size, processes),
    }
    shown = [row[image_column] for row in others]
    scores = generation_scores(pictures, real, shown, rivals, texts, judge, feature_model, processes)
    report = Report("generation")
    report.rows = [ScoreRow({"what": what}, found, what == "model") for what, found in scores.items() if found]
    report.protocol = {
        "rows": "every second" if others else describe_choice(rows, count, seed),
        "prompts": f"{len(prompts)}, such as: {prompts[0]}",
        **generation_protocol(pipe, **call, seed=seed),
        "rivals": f"up to {num_rivals} others"
        + (f" of the same {within}" if within else "")
        + (f", of any for {alone}" if alone else ""),
    }
    if judge is not None:
        report.protocol |= {"judge": judge.describe(), "did training losses see the judge": judge.seen}
    if feature_model is not None:
        report.protocol["features of the sets"] = feature_model.describe()
        report.protocol["did training losses see the features"] = feature_model.seen
        report.protocol["precision and recall"] = f"{NUM_NEIGHBOURS} nearest neighbours"
    return report


def split_rows(rows: list[Mapping], count: int | None, seed: int) -> tuple[list[Mapping], list[Mapping]]:
    """The rows to generate, at most `count`, and as many others, of every second row; none where there are too few."""
    num_others = 0 if count is None else min(count, len(rows) - count)
    if count is None or num_others < 0.9 * count:  # some pictures may be damaged
        return choose_rows(rows, (), count, seed), []
    places = range(1, 2 * num_others, 2)
    chosen = [row for place, row in enumerate(rows[: count + num_others]) if place not in places]
    return chosen, [rows[place] for place in places]


def generation_scores(
    pictures: Mapping[str, Sequence[Image.Image]],
    real: Sequence[Image.Image],
    others: Sequence[Image.Image],
    rivals: Sequence[Sequence[int]],
    texts: np.ndarray | None = None,
    judge: Judge | None = None,
    feature_model: Judge | None = None,
    processes: Processes = ALONE,
) -> dict[str, dict[str, Score]]:
    """
    The scores of `pictures` by what made them, and those of real pictures.

    Args:
        pictures: one picture for each prompt, by what made them.
        real: the picture that belongs to each prompt.
        others: other real pictures.
        rivals: of each prompt the numbers of wrong ones.
        texts: the judge's embeddings of the prompts.
    """
    chance = chance_of(rivals)
    scores: dict[str, dict[str, Score]] = {what: {} for what in (*pictures, "real", "other real")}
    thumbnails = [thumbnail(picture) for picture in real]
    for what, made in pictures.items():
        nearest = [
            nearest_is_own(thumbnail(picture), thumbnails[index], [thumbnails[other] for other in rivals[index]])
            for index, picture in enumerate(made)
        ]
        scores[what]["nearest_by_pixels"] = share_score(nearest, chance)
    if judge is not None:
        references = judge.embed_images(real, processes=processes)
        scores["real"]["r_precision"] = share_score(r_precision_outcomes(references, texts, rivals), chance)
        for what, made in pictures.items():
            found = judge.embed_images(made, processes=processes)
            scores[what]["r_precision"] = share_score(r_precision_outcomes(found, texts, rivals), chance)
            scores[what]["nearest_by_judge"] = share_score(r_precision_outcomes(found, references, rivals), chance)
    if feature_model is not None:
        references = feature_model.embed_images(real, processes=processes)
        for what, made in {**pictures, "other real": others}.items():
            if made:
                scores[what] |= set_scores(feature_model.embed_images(made, processes=processes), references)
    return scores


def generate_all(
    pipe,
    prompts: Sequence[str],
    images: Sequence[Image.Image] | None = None,
    seed: int = 0,
    batch_size: int = 16,
    processes: Processes = ALONE,
    **call,
) -> list[Image.Image]:
    """One picture for each prompt, in batches; picture i is generated with the seed `seed` + i.

    Args:
        pipe: a [`UniWeTokPipeline`], or with `images` a [`UniWeTokEditPipeline`].
        images: the pictures to edit, of any sizes; those of one encoded size share batches.
        processes: those that share the batches.
        call: further arguments of the pipeline.

    Raises:
        ValueError: when a prompt is empty or no text.
    """
    for number, prompt in enumerate(prompts):
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(f"`prompts` must be texts that are not empty, got {prompt!r} for picture {number}.")
    sources, sizes = None, [None] * len(prompts)
    if images is not None:
        # By each process: it takes little beside editing.
        sources = [source for part in batched(images, batch_size) for source in pipe.encode_image(part)]
        sizes = [source.pixel_size for source in sources]
    parts = [
        part
        for size in dict.fromkeys(sizes)
        for part in batched((i for i, own in enumerate(sizes) if own == size), batch_size)
    ]
    generated = {}
    with processes.bar(len(prompts), "generating" if images is None else "editing") as bar:
        for _, part in processes.own(parts):
            picture = {} if sources is None else {"image": [sources[i] for i in part]}
            generators = [torch.Generator().manual_seed(seed + i) for i in part]
            results = pipe(prompt=[prompts[i] for i in part], generator=generators, **picture, **call).images
            generated |= zip(part, results, strict=True)
            bar.update(len(part))
    return processes.merge(generated)


def generate_classes(pipe, classes: Sequence[int], batch_size: int = 32) -> list[Image.Image]:
    """One picture for each class number by a [`UniWeTokClassToImagePipeline`], in batches; picture i is generated with
    the seed i."""
    pictures = []
    with tqdm(total=len(classes), desc="generating", disable=None) as bar:
        for part in batched(range(len(classes)), batch_size):
            generators = [torch.Generator().manual_seed(number) for number in part]
            pictures += pipe([classes[number] for number in part], generator=generators).images
            bar.update(len(part))
    return pictures


def generation_call(pipe, num_inference_steps: int | None, guidance_scale: float | None) -> dict:
    """Arguments of a pipeline's call, its defaults where they are None."""
    given = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
    return {name: pipe.value_or_default(name, value) for name, value in given.items()}


def generation_protocol(pipe, num_inference_steps: int, guidance_scale: float, seed: int) -> dict:
    """The lines of a protocol that say how pictures are generated and compared."""
    return {
        "diffusion steps per patch": num_inference_steps,
        "guidance scale": guidance_scale,
        "temperature": pipe.scheduler.config.temperature,
        "shift": pipe.scheduler.config.shift,
        "dtype": str(pipe.mllm.dtype).removeprefix("torch."),
        "seeds": f"{seed} + number of the picture",
        "pixels": "squared difference of 32x32 thumbnails",
    }


def set_scores(features: np.ndarray, references: np.ndarray) -> dict[str, Score]:
    """Fréchet distance, precision and recall of two sets of features; nothing where they are too small."""
    if min(len(features), len(references)) <= NUM_NEIGHBOURS:
        return {}
    precision, recall = precision_recall_outcomes(features, references, NUM_NEIGHBOURS)
    return {
        "frechet": frechet_score(features, references),
        "precision": share_score(precision),
        "recall": share_score(recall),
    }
