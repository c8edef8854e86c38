# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Share of edits that are nearest to their target, over the weights of picture and instruction in guidance: the emoji
model's `default_image_guidance_scale` is chosen by it.

    python examples/emoji/edit_guidance.py data/emoji runs/mllm/pipeline --guidance 5 --image-guidance 3 4 4.5 5

By pixels, and by a `--judge`, among the candidates of `evaluate_emoji.py`, on edits of the validation split, whose
concepts training never shows; as many of each group as there are. An image guidance that equals the guidance is the
usual one, against neither picture nor words.
"""

import argparse
from collections import Counter

import torch
from datasets import load_from_disk
from evaluate_emoji import choose_edits, combination_edits, load_pictures

from uniwetok_hf import BinaryFlowScheduler, UniWeTokEditPipeline
from uniwetok_hf.evaluation.editing import edit_outcomes, edit_pairs
from uniwetok_hf.evaluation.generation import generate_all
from uniwetok_hf.evaluation.intervals import share_score
from uniwetok_hf.evaluation.judges import Judge


def share(right: list[bool]) -> str:
    score = share_score(right, 0.0)
    low, high = score.interval
    return f"{score.value:.1%} [{low:.1%}, {high:.1%}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder that examples/emoji/emoji_data.py made")
    parser.add_argument("pipeline")
    parser.add_argument("--judge", help="dual encoder that no training loss used")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--count", type=int, default=300, help="edits of each setting")
    parser.add_argument("--steps", type=int, nargs="+", default=[6])
    parser.add_argument("--guidance", type=float, nargs="+", default=[5.0])
    parser.add_argument("--image-guidance", type=float, nargs="+", default=[3.0, 4.0, 4.5, 5.0])
    parser.add_argument("--temperature", type=float, help="default: the pipeline's")
    parser.add_argument("--describe-first", action=argparse.BooleanOptionalAction)
    options = parser.parse_args()

    pictures = [row for split in load_pictures(options.data).values() for row in split]
    groups = {row["id"]: row["group"] for row in pictures}
    rows = load_from_disk(f"{options.data}/edits")[options.split].to_list()
    chosen = choose_edits(rows, groups, lambda group: True, options.count, seed=0)
    edits = edit_pairs(combination_edits(rows, pictures, chosen), by="kind")
    prompts, sources = [edit.instruction for edit in edits], [edit.source for edit in edits]
    kinds = [kind for kind, _ in Counter(edit.kind for edit in edits).most_common()]

    judge = Judge.from_pretrained(options.judge) if options.judge else None
    pipe = UniWeTokEditPipeline.from_pretrained(options.pipeline, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    if options.temperature is not None:
        pipe.scheduler = BinaryFlowScheduler.from_config(pipe.scheduler.config, temperature=options.temperature)
    is_described = pipe.config.default_describe_first if options.describe_first is None else options.describe_first
    print(f"Negative prompt: {pipe.config.default_negative_prompt!r}; described first: {is_described}\n")
    print(f"| guidance | of the picture | diffusion steps | nearest by | all | {' | '.join(kinds)} |")
    print(f"| ---: | ---: | ---: | --- | --- |{' --- |' * len(kinds)}")
    for guidance in options.guidance:
        for image_guidance in options.image_guidance:
            for steps in options.steps:
                call = {"guidance_scale": guidance, "image_guidance_scale": image_guidance}
                call["describe_first"] = is_described
                edited = generate_all(pipe, prompts, sources, num_inference_steps=steps, **call)
                outcomes = edit_outcomes(edited, edits, judge)
                for name in ("pixels", "judge") if judge else ("pixels",):
                    right = [outcome[f"nearest_by_{name}"] for outcome in outcomes]
                    cells = [f"{guidance:g}", f"{image_guidance:g}", str(steps), name, share(right)]
                    for kind in kinds:
                        cells.append(share([hit for hit, edit in zip(right, edits, strict=True) if edit.kind == kind]))
                    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
