# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Quality of generated pictures over the time they take, by diffusion steps, guidance, temperature and patch size: the
defaults of the emoji model are chosen by it.

    python examples/emoji/generation_quality.py data/emoji runs/judge/model runs/mllm/pipeline [more pipelines]

R-precision and the nearest by pixels are those of `evaluate_emoji.py`, on other pictures that training showed: the
mean over the groups that are no people, and people. The time is that of one picture from one prompt, with everything
loaded: the median of several. Writes a table, and a figure to --figure.
"""

import argparse
import itertools
import statistics
import time
from pathlib import Path

import torch
from emoji_packages import GROUPS, PEOPLE
from evaluate_emoji import (
    THINGS,
    CaptionScore,
    PixelScore,
    caption_of,
    choose_by_group,
    load_pictures,
    rival_captions,
    rows_by_group,
)

from uniwetok_hf import BinaryFlowScheduler, UniWeTokPipeline
from uniwetok_hf.evaluation.generation import generate_all
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
    """R-precision of things over seconds: a line for each patch size, guidance and temperature, a point for each
    number."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    names = [(row["patch"], row["guidance"], row["temperature"]) for row in found]
    for name in dict.fromkeys(names):
        part = [row for row, other in zip(found, names, strict=True) if other == name]
        times, scores = [row["seconds"] for row in part], [100 * row["things"].value for row in part]
        label = f"{name[0]} x {name[0]} tokens per step, guidance {name[1]:g}, temperature {name[2]:g}"
        axes.plot(times, scores, "o-", label=label)
        for row, x, y in zip(part, times, scores, strict=True):
            axes.annotate(str(row["steps"]), (x, y), textcoords="offset points", xytext=(5, 4), fontsize=8)
    axes.set(xlabel="seconds per picture", ylabel="R-precision of things, %")
    axes.legend()
    axes.grid(alpha=0.3)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder that examples/emoji/emoji_data.py made")
    parser.add_argument("judge", help="dual encoder that no training loss used")
    parser.add_argument("pipelines", nargs="+", help="pipelines, of one patch size each")
    parser.add_argument("--count", type=int, default=30, help="pictures of each group")
    parser.add_argument(
        "--scored", type=int, default=100, help="pictures of each group that `evaluate_emoji.py` scores: none of them"
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 6, 8, 12])
    parser.add_argument("--guidance", type=float, nargs="+", default=[2.0, 3.0, 5.0])
    parser.add_argument("--temperature", type=float, nargs="+", help="default: the pipeline's")
    parser.add_argument("--figure", default="results/quality_over_time.svg")
    options = parser.parse_args()

    splits = load_pictures(options.data)
    pool = [row for split in splits.values() for row in split]
    scored = {row["id"] for row in choose_by_group(splits["train"], options.scored, seed=0)}
    rows = choose_by_group([row for row in splits["train"] if row["id"] not in scored], options.count, seed=0)
    generator = torch.Generator().manual_seed(0)
    captions, groups = [caption_of(row) for row in rows], [row["group"] for row in rows]
    rivals = [rival_captions(row, pool, generator) for row in rows]
    judged = CaptionScore(Judge.from_pretrained(options.judge), captions, rivals)
    seen = PixelScore(rows, pool, generator)

    print("| | | | | | things | | people | |")
    print(
        "| tokens per step | guidance | temperature | steps | seconds | R-precision | by pixels | R-precision "
        "| by pixels |"
    )
    print("| ---: | ---: | ---: | ---: | ---: | --- | --- | --- | --- |")
    found = []
    for folder in options.pipelines:
        pipe = UniWeTokPipeline.from_pretrained(folder, dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        temperatures = options.temperature or [pipe.scheduler.temperature]
        for guidance, temperature, steps in itertools.product(options.guidance, temperatures, options.steps):
            pipe.scheduler = BinaryFlowScheduler.from_config(pipe.scheduler.config, temperature=temperature)
            call = {"num_inference_steps": steps, "guidance_scale": guidance}
            seconds = seconds_per_picture(pipe, captions[:8], **call)
            made = generate_all(pipe, captions, batch_size=16, **call)
            outcomes = {
                "r_precision": (judged(made), judged.chances),
                "nearest_by_pixels": (seen(made), seen.chances),
            }
            table = rows_by_group({"what": "model"}, groups, outcomes)
            scores = {row.labels["group"]: row.scores for row in table}
            patch = pipe.mllm.config.patch_size
            cells = [str(patch * patch), f"{guidance:g}", f"{temperature:g}", str(steps), f"{seconds:.2f}"]
            for group in (THINGS, GROUPS[PEOPLE]):
                for score in scores[group].values():
                    low, high = score.interval
                    cells.append(f"{score.value:.1%} [{low:.1%}, {high:.1%}]")
            print(f"| {' | '.join(cells)} |", flush=True)
            setting = {"patch": patch, "guidance": guidance, "temperature": temperature, "steps": steps}
            found.append(setting | {"seconds": seconds, "things": scores[THINGS]["r_precision"]})
    draw_figure(found, options.figure)
    print(f"\n{options.figure}")


if __name__ == "__main__":
    main()
