# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Quality of generated pictures over the time they take, by diffusion steps, guidance and patch size: the defaults of
the emoji model are chosen by it.

    python examples/emoji/generation_quality.py data/emoji runs/judge/model runs/mllm/pipeline [more pipelines]

R-precision is that of `evaluate_emoji.py`, on rows of the validation split. The time is that of one picture from one
prompt, with everything loaded: the median of several. Writes a table, and a figure to --figure.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from datasets import load_from_disk
from evaluate_emoji import CaptionScore, caption_of, rival_captions

from uniwetok_hf import UniWeTokPipeline
from uniwetok_hf.evaluation.generation import generate_all
from uniwetok_hf.evaluation.intervals import share_score
from uniwetok_hf.evaluation.judges import Judge


def seconds_per_picture(pipe, prompts: list[str], **call) -> float:
    """Median over single prompts."""
    times = []
    for number, prompt in enumerate(prompts):
        start = time.perf_counter()
        pipe(prompt, generator=torch.Generator().manual_seed(number), **call)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def draw_figure(found: list[dict], path: str) -> None:
    """R-precision over seconds; a line for each patch size and guidance, a point for each number of steps."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for name in dict.fromkeys((row["patch"], row["guidance"]) for row in found):
        part = [row for row in found if (row["patch"], row["guidance"]) == name]
        times, scores = [row["seconds"] for row in part], [100 * row["score"].value for row in part]
        axes.plot(times, scores, "o-", label=f"{name[0]} x {name[0]} tokens per step, guidance {name[1]:g}")
        for row, x, y in zip(part, times, scores, strict=True):
            axes.annotate(str(row["steps"]), (x, y), textcoords="offset points", xytext=(5, 4), fontsize=8)
    axes.set(xlabel="seconds per picture", ylabel="R-precision, %")
    axes.legend()
    axes.grid(alpha=0.3)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder that examples/emoji/emoji_data.py made")
    parser.add_argument("judge", help="dual encoder that no training loss used")
    parser.add_argument("pipelines", nargs="+", help="pipelines, of one patch size each")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--count", type=int, default=150, help="pictures of each setting")
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 8, 12, 20])
    parser.add_argument("--guidance", type=float, nargs="+", default=[2.0, 3.0, 5.0])
    parser.add_argument("--figure", default="results/quality_over_time.svg")
    options = parser.parse_args()

    splits = load_from_disk(f"{options.data}/pictures")
    pool = [row for split in splits.values() for row in split.remove_columns("image").to_list()]
    generator = torch.Generator().manual_seed(0)
    rows = splits[options.split].remove_columns("image").to_list()
    rows = [rows[i] for i in torch.randperm(len(rows), generator=generator)[: options.count].tolist()]
    captions = [caption_of(row) for row in rows]
    rivals = [rival_captions(row, pool, generator) for row in rows]
    score = CaptionScore(Judge.from_pretrained(options.judge), captions, rivals)

    print("| tokens per step | guidance | diffusion steps | seconds per picture | R-precision |")
    print("| ---: | ---: | ---: | ---: | --- |")
    found = []
    for folder in options.pipelines:
        pipe = UniWeTokPipeline.from_pretrained(folder, dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        for guidance in options.guidance:
            for steps in options.steps:
                call = {"num_inference_steps": steps, "guidance_scale": guidance}
                seconds = seconds_per_picture(pipe, captions[:8], **call)
                result = share_score(score(generate_all(pipe, captions, **call)), statistics.mean(score.chances))
                patch = pipe.mllm.config.patch_size
                found.append(
                    {"patch": patch, "guidance": guidance, "steps": steps, "seconds": seconds, "score": result}
                )
                low, high = result.interval
                cells = f"{patch * patch} | {guidance:g} | {steps} | {seconds:.2f}"
                print(f"| {cells} | {result.value:.1%} [{low:.1%}, {high:.1%}] |", flush=True)
    draw_figure(found, options.figure)
    print(f"\n{options.figure}")


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
