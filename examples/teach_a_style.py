# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Teaches the model that ships with the package a style that it has never seen, from 30 pictures, on a laptop
(docs/fine-tuning.md).

    python examples/emoji/emoji_data.py data/emoji
    python examples/teach_a_style.py

A style is a fixed change of Noto's pictures: "delft", blue on white, or with `--style` "blueprint", white on blue,
which is further from all that the model knows. An adapter (LoRA) learns it from 30 concepts. So that it does not
forget, it is also trained on what the model itself generates of these and of 100 other concepts in its old styles.
Before and after, the model generates other concepts, in the new style and in Noto's own. `--output` (runs/delft)
then holds the captioned pictures, the generations, their codes, the training, `scores.json`, `scores.md`, and
`before_and_after.jpg`.

Scores, each over generations of concepts that the adapter was not trained on:

- in style: is the generation, as a 32x32 thumbnail, nearer to the concept's own picture in the style that the prompt
  names than to the one in the other style? Chance is 1/2.
- right concept: is it nearer to that picture than to 31 other concepts' pictures in that style? Chance is 1/32.
- R-precision, with `--judge`: does a dual encoder that no training loss used find the caption among 32? The judge has
  never seen the new style, so its score says less there.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from datasets import load_from_disk
from PIL import Image, ImageOps

from uniwetok_hf import UniWeTokPipeline, embedded_path
from uniwetok_hf.cli import sheets
from uniwetok_hf.cli.main import main as uniwetok
from uniwetok_hf.evaluation.choices import chance_of, choose_rivals, nearest_is_own, r_precision_outcomes, thumbnail
from uniwetok_hf.evaluation.generation import generate_all
from uniwetok_hf.evaluation.intervals import Score, share_score
from uniwetok_hf.evaluation.judges import Judge
from uniwetok_hf.provenance import check_unseen


OLD, OLD_STYLES = "noto", ("noto", "fluent flat", "fluent")
NUM_LEARNT, NUM_REHEARSED, NUM_RIVALS, NUM_SHOWN = 30, 100, 31, 8
NUM_STEPS = 300
STYLES = {  # the colours that replace black, grey and white
    "delft": ("#0b1f66", "#4f86ff", "white"),
    "blueprint": ("white", "#93b4ff", "#1d4ed8"),
}


def restyle(picture: Image.Image, style: str) -> Image.Image:
    black, mid, white = STYLES[style]
    return ImageOps.colorize(ImageOps.grayscale(picture), black, white, mid=mid)


def choose_rows(data: str, count: int) -> list[dict]:
    """`count` pictures of Noto's, of different concepts without skin tones, always in the same order."""
    rows = load_from_disk(f"{data}/pictures")["train"].select_columns(["image", "style", "label", "tone"])
    kept = [i for i, (s, tone) in enumerate(zip(rows["style"], rows["tone"], strict=True)) if s == OLD and not tone]
    order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(0))[:count]
    return [rows[kept[i]] for i in order.tolist()]


def write_captioned_pictures(folder: Path, pictures: list[Image.Image], captions: list[str]) -> None:
    """What a person would prepare by hand: pictures, and a line of JSON with the caption of each."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for index, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        picture.save(folder / f"{index:02}.png")
        lines.append(json.dumps({"file_name": f"{index:02}.png", "text": caption}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")


def prompts(style: str, rows: list[dict]) -> list[str]:
    return [f"a {style} emoji of {row['label']}" for row in rows]


def teach(folder: Path, settings: list[str]) -> None:
    """The commands of docs/fine-tuning.md."""
    commands, data = [], []
    for name, variants, weight in (("pictures", 4, 1.0), ("generations", 1, 2.0)):
        codes = str(folder / f"{name}-codes")
        size = ["--size", "128", "--variants", str(variants)]
        commands.append(["encode-dataset", str(folder / name), codes, *size])
        data.append({"path": codes, "task": "captions", "weight": weight})
    settings = [f"output_dir={folder / 'run'}", f"data={json.dumps(data)}", f"max_train_steps={NUM_STEPS}", *settings]
    train = ["train", "mllm", "--config", "small_lora"]
    commands.append([*train, *(part for setting in settings for part in ("--set", setting))])
    for command in commands:
        if uniwetok(command):
            raise SystemExit(1)


def generate(pipe: UniWeTokPipeline, rows: list[dict], new: str) -> dict[str, list[Image.Image]]:
    """A picture of each row in both styles."""
    return {style: generate_all(pipe, prompts(style, rows)) for style in (new, OLD)}


def score(generated: dict, real: dict, rows: list[dict], judge: Judge | None) -> dict[str, dict[str, Score]]:
    """Scores of the generations in each style."""
    rivals = choose_rivals([row["label"] for row in rows], NUM_RIVALS, torch.Generator().manual_seed(0))
    thumbnails = {style: [thumbnail(picture) for picture in pictures] for style, pictures in real.items()}
    scores = {}
    for style, other in zip(generated, reversed(generated), strict=True):
        small, own = [thumbnail(picture) for picture in generated[style]], thumbnails[style]
        in_style = [nearest_is_own(*three[:2], three[2:]) for three in zip(small, own, thumbnails[other], strict=True)]
        right = [nearest_is_own(small[i], own[i], [own[j] for j in rivals[i]]) for i in range(len(rows))]
        scores[style] = {
            "in style": share_score(in_style, 1 / 2),
            "right concept": share_score(right, chance_of(rivals)),
        }
        if judge is not None:
            texts = judge.embed_texts(prompts(style, rows))
            found = r_precision_outcomes(judge.embed_images(generated[style]), texts, rivals)
            scores[style]["R-precision"] = share_score(found, chance_of(rivals))
    return scores


def table(before: dict, after: dict) -> str:
    lines = ["| style | score | chance | before | after |", "| --- | --- | ---: | ---: | ---: |"]
    for style in before:
        for name, first in before[style].items():
            both = [
                f"{100 * s.value:.0f} % ({100 * s.interval[0]:.0f}-{100 * s.interval[1]:.0f})"
                for s in (first, after[style][name])
            ]
            lines.append(f"| {style} | {name} | {100 * first.chance:.0f} % | {both[0]} | {both[1]} |")
    return "\n".join(lines) + "\n"


def figure(rows: list[dict], real: dict, before: dict, after: dict) -> Image.Image:
    """The first few concepts: rows of pictures, each under its title."""
    parts = [sheets.beside([sheets.text_block(row["label"], 12, 98, num_lines=2) for row in rows[:NUM_SHOWN]])]
    for style in real:
        for name, pictures in (("real", real), ("generated before", before), ("generated after", after)):
            row = sheets.beside([sheets.framed(picture, 96) for picture in pictures[style][:NUM_SHOWN]])
            parts.append(sheets.below([sheets.text_block(f"{style}, {name}", 13, colour=sheets.GREY), row], gap=2))
    return sheets.page([sheets.below(parts)])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data/emoji", help="folder that examples/emoji/emoji_data.py wrote")
    parser.add_argument("--style", choices=STYLES, default="delft", help="style to teach")
    parser.add_argument("--output", help="folder to write (default: runs/STYLE)")
    parser.add_argument("--count", type=int, default=96, help="concepts to generate before and after")
    parser.add_argument("--judge", help="dual encoder for R-precision, such as examples/emoji/weights/emoji_judge")
    parser.add_argument("--figure", help="another place for the figure, such as docs/assets/teach_a_style.jpg")
    parser.add_argument(
        "--set", action="append", default=[], help="a field of the training config, as in `uniwetok train`"
    )
    args = parser.parse_args(argv)
    new, folder, start = args.style, Path(args.output or f"runs/{args.style}"), time.monotonic()
    judge = Judge.from_pretrained(args.judge) if args.judge else None
    if judge is not None:
        check_unseen(judge.model, args.judge, embedded_path("uniwetok-emoji"))

    rows = choose_rows(args.data, NUM_LEARNT + args.count + NUM_REHEARSED)
    learnt, rows = rows[:NUM_LEARNT], rows[NUM_LEARNT:]
    rows, rehearsed = rows[: args.count], rows[args.count :]
    pipe = UniWeTokPipeline.from_pretrained(embedded_path("uniwetok-emoji"), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pictures = [restyle(row["image"], new) for row in learnt]
    write_captioned_pictures(folder / "pictures", pictures, prompts(new, learnt))
    known = [prompt for style in OLD_STYLES for prompt in prompts(style, learnt + rehearsed)]
    write_captioned_pictures(folder / "generations", generate_all(pipe, known), known)
    teach(folder, args.set)
    taught = time.monotonic()

    before = generate(pipe, rows, new)
    pipe.load_lora_weights(folder / "run" / "adapter", adapter_name=new)
    after = generate(pipe, rows, new)
    old = [row["image"].convert("RGB") for row in rows]
    real = {new: [restyle(picture, new) for picture in old], OLD: old}

    scores = {name: score(generated, real, rows, judge) for name, generated in (("before", before), ("after", after))}
    plain = {
        name: {s: {n: x.to_dict() for n, x in of.items()} for s, of in part.items()} for name, part in scores.items()
    }
    (folder / "scores.json").write_text(json.dumps(plain, indent=1), encoding="utf-8")
    (folder / "scores.md").write_text(table(scores["before"], scores["after"]), encoding="utf-8")
    sheet = figure(rows, real, before, after)
    for path in [folder / "before_and_after.jpg", *([args.figure] if args.figure else [])]:
        sheet.save(path, quality=88)
    print((folder / "scores.md").read_text(encoding="utf-8"))
    print(f"taught in {taught - start:.0f} s, generated and scored in {time.monotonic() - taught:.0f} s")


if __name__ == "__main__":
    main()
