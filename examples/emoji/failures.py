# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Failures of the emoji model in pictures, chosen by a judge.

    python examples/emoji/failures.py data/emoji runs/judge/model runs/mllm/pipeline --output docs/assets

`failures.jpg`: of known things and held-out combinations of people that were generated, edited and named, the
pictures whose own caption the judge ranks lowest of 32, the edits that are nearest to a wrong picture, and wrong
answers, spread over the failures.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from datasets import load_from_disk
from emoji_packages import GROUPS, PEOPLE
from evaluate_emoji import (
    caption_of,
    choose_by_group,
    choose_edits,
    combination_edits,
    load_pictures,
    question_rows,
    rival_captions,
)
from PIL import Image

from uniwetok_hf import UniWeTokEditPipeline, UniWeTokPipeline
from uniwetok_hf.cli import sheets
from uniwetok_hf.data.images import save_image
from uniwetok_hf.evaluation.captioning import answer_all
from uniwetok_hf.evaluation.choices import cosines
from uniwetok_hf.evaluation.editing import edit_outcomes, edit_pairs
from uniwetok_hf.evaluation.generation import generate_all
from uniwetok_hf.evaluation.judges import Judge
from uniwetok_hf.evaluation.words import exact_match


TILE = 112


def spread(items: list, count: int) -> list:
    """`count` of the items, evenly over the list."""
    return [items[i] for i in np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)]


def cell(pictures: list[Image.Image], lines: list[str]) -> Image.Image:
    """Framed pictures side by side, and under them what is to say."""
    shown = sheets.beside([sheets.framed(picture, TILE) for picture in pictures], gap=4)
    width = max(shown.width, 2 * TILE)
    words = [sheets.text_block(line, 13, width, sheets.GREY if i else (0, 0, 0), 2) for i, line in enumerate(lines)]
    return sheets.below([shown, sheets.below(words, gap=1)], gap=4)


def wrong_generations(pipe, rows, pool, judge: Judge, count: int) -> tuple[list[Image.Image], str]:
    """Real and generated picture of the prompts that the judge ranks lowest, and the caption that it prefers."""
    generator = torch.Generator().manual_seed(0)
    generated = generate_all(pipe, [caption_of(row) for row in rows])
    found = []
    for row, picture in zip(rows, generated, strict=True):
        captions = [caption_of(row), *rival_captions(row, pool, generator)]
        scores = cosines(judge.embed_images([picture]), judge.embed_texts(captions))[0]
        if best := int(scores.argmax()):
            lines = [captions[0], f"seen as: {captions[best]}"]
            found.append((int((scores > scores[0]).sum()), cell([row["image"], picture], lines)))
    found.sort(key=lambda pair: -pair[0])
    return [made for _, made in spread(found[: max(count, len(found) // 2)], count)], f"{len(found)} of {len(rows)}"


def wrong_edits(pipe, edits, count: int) -> tuple[list[Image.Image], str]:
    """Source, result and true target of edits whose result is nearer, by pixels, to another picture."""
    results = generate_all(pipe, [edit.instruction for edit in edits], [edit.source for edit in edits])
    outcomes = edit_outcomes(results, edits)
    found = [
        cell([edit.source, result, edit.target], [edit.instruction, "source, result, what was meant"])
        for edit, result, outcome in zip(edits, results, outcomes, strict=True)
        if not outcome["nearest_by_pixels"]
    ]
    return spread(found, count), f"{len(found)} of {len(edits)}"


def wrong_names(pipe, rows, count: int) -> tuple[list[Image.Image], str]:
    """Pictures whose name is answered wrong."""
    asked = [row for row in question_rows(rows) if row["kind"] == "name"]
    pictures, questions = [row["image"] for row in asked], [row["question"] for row in asked]
    answers = answer_all(pipe.mllm, pipe.processor, pictures, questions)
    found = [
        cell([row["image"]], [f"“{answer}”", f"is: {row['answer']}"])
        for row, answer in zip(asked, answers, strict=True)
        if not exact_match(answer, row["answer"])
    ]
    return spread(found, count), f"{len(found)} of {len(rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder that examples/emoji/emoji_data.py made")
    parser.add_argument("judge", help="dual encoder that no training loss used")
    parser.add_argument("pipeline", help="folder of the pipeline")
    parser.add_argument(
        "--count", type=int, default=120, help="things of each kind that are tried, and a quarter as many people"
    )
    parser.add_argument("--shown", type=int, default=8, help="how many failures of each kind are shown")
    parser.add_argument("--output", default="docs/assets")
    options = parser.parse_args()

    splits = load_pictures(options.data)
    pool = [row for split in splits.values() for row in split]
    groups = {row["id"]: row["group"] for row in pool}
    things = [row for row in splits["train"] if row["group"] != PEOPLE]
    rows = choose_by_group(things, -(-options.count // (len(GROUPS) - 1)), seed=0)
    rows += choose_by_group(splits["test_combinations"], options.count // 4, seed=0)
    edits = []
    for split, kept, count in (
        ("test_edits", lambda group: group != PEOPLE, options.count),
        ("test_combinations", lambda group: group == PEOPLE, options.count // 4),
    ):
        of_split = load_from_disk(f"{options.data}/edits")[split].to_list()
        chosen = choose_edits(of_split, groups, kept, count, seed=0)
        edits += combination_edits(of_split, pool, chosen)

    judge = Judge.from_pretrained(options.judge)
    pipe = UniWeTokPipeline.from_pretrained(options.pipeline, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    edit_pipe = UniWeTokEditPipeline.from_pipe(pipe)
    edit_pipe.set_progress_bar_config(disable=True)
    kinds = {
        "Generations": wrong_generations(pipe, rows, pool, judge, options.shown),
        "Edits": wrong_edits(edit_pipe, edit_pairs(edits, by="kind"), options.shown),
        "Names": wrong_names(pipe, rows, options.shown),
    }
    sections = []
    for title, (cells, share) in kinds.items():
        print(f"{title}: {share} fail")
        if cells:
            sections.append(sheets.section(title, f"{share} fail; some of them.", sheets.grid(cells, 4)))
    print(save_image(sheets.page(sections), Path(options.output) / "failures.jpg"))


if __name__ == "__main__":
    main()
