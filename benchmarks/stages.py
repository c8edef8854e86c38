# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""What each training stage of the image tokenizer adds, in pictures.

    python benchmarks/stages.py data/emoji data/faces_and_text runs/emoji_uniwetok_stage1 runs/emoji_uniwetok_stage2 \\
        runs/emoji_uniwetok_stage3 runs/emoji_uniwetok_decoder --output docs/assets

- `stages.jpg`: held-out emoji, faces and words at two sizes, and their reconstructions after each stage;
- `sizes.jpg`: the last stage at sizes that it was trained on, and at sizes that it was not;
- `training_curve.svg`: PSNR of held-out pictures over the hours of training.
"""

import argparse
import json
from pathlib import Path

import torch
from datasets import load_from_disk
from PIL import Image

from uniwetok_hf import UniWeTokModel
from uniwetok_hf.cli import sheets
from uniwetok_hf.data.images import save_image
from uniwetok_hf.evaluation.metrics import psnr
from uniwetok_hf.evaluation.reconstruction import reconstruct


SIZES = [(64, 64), (128, 128), (96, 160), (192, 192)]  # height, width
NEW_SIZES = {(96, 160), (192, 192)}
TILE = 128


def fitted(picture: Image.Image, height: int, width: int) -> Image.Image:
    """A picture scaled to lie inside the size, on white."""
    scale = min(height / picture.height, width / picture.width)
    small = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)
    ground = Image.new("RGB", (width, height), "white")
    ground.paste(small, ((width - small.width) // 2, (height - small.height) // 2))
    return ground


def choose(folder: str, count: int, step: int) -> list[Image.Image]:
    """Pictures of the test split, some rows apart."""
    rows = load_from_disk(f"{folder}/pictures")["test"]
    return [rows[(index * step) % len(rows)]["image"].convert("RGB") for index in range(count)]


def labelled(picture: Image.Image, original: Image.Image | None, height: int = TILE) -> Image.Image:
    """A framed picture, and below it its PSNR."""
    framed = sheets.framed(picture, height)
    words = "original" if original is None else f"{float(psnr([picture], [original])[0]):.1f} dB"
    return sheets.below([framed, sheets.text_block(words, 12, framed.width, sheets.GREY, 1)], gap=2)


def stages_sheet(models: dict[str, UniWeTokModel], pictures: list[Image.Image]) -> Image.Image:
    """One row per picture and size: the original, then the reconstruction of each stage."""
    rows = []
    for height, width in [(64, 64), (128, 128)]:
        for picture in pictures:
            original = fitted(picture, height, width)
            cells = [labelled(original, None)]
            cells += [labelled(reconstruct(model, [original])[0].result, original) for model in models.values()]
            rows.append(sheets.beside([sheets.text_block(f"{height} x {width}", 13, 70), *cells], middle=True))
    note = "Left the original, then its reconstructions after: " + ", ".join(models) + "."
    return sheets.page([sheets.section("What each stage adds", note, sheets.grid(rows, 2))])


def sizes_sheet(model: UniWeTokModel, pictures: list[Image.Image]) -> Image.Image:
    """One column per size: originals and reconstructions."""
    rows = []
    for picture in pictures:
        cells = []
        for height, width in SIZES:
            original = fitted(picture, height, width)
            pair = [
                labelled(original, None, height),
                labelled(reconstruct(model, [original])[0].result, original, height),
            ]
            name = f"{height} x {width}" + (", never trained on" if (height, width) in NEW_SIZES else "")
            cells.append(sheets.below([sheets.text_block(name, 13, 2 * width + 20, max_lines=1), sheets.beside(pair)]))
        rows.append(sheets.beside(cells, gap=2 * sheets.MARGIN))
    return sheets.page(
        [sheets.section("Any size", "Left the original, right the reconstruction.", sheets.below(rows))]
    )


def draw_curve(runs: list[Path], path: Path) -> None:
    """Validation PSNR over the time that the steps took, stage after stage."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    curves: dict[str, list[tuple[float, float]]] = {}
    hours, ends = 0.0, []
    for run in runs:
        last = 0
        for line in map(json.loads, (run / "log.jsonl").read_text().splitlines()):
            if "steps_per_second" in line:
                hours, last = hours + (line["step"] - last) / line["steps_per_second"] / 3600, line["step"]
            for name, value in line.items():
                if name.startswith("validation_psnr_"):
                    curves.setdefault(name.removeprefix("validation_psnr_"), []).append((hours, value))
        ends.append(hours)
    for size, points in curves.items():
        axes.plot(*zip(*points, strict=True), "o-", markersize=3, label=size)
    for end in ends[:-1]:
        axes.axvline(end, color="grey", linestyle=":")
    axes.set_title("dotted: a stage ends", fontsize=10)
    axes.set(xlabel="hours of training on two CPU cores", ylabel="PSNR of held-out pictures, dB")
    axes.legend(title="size")
    axes.grid(alpha=0.3)
    figure.savefig(path, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("emoji", help="folder of `examples/emoji/emoji_data.py`")
    parser.add_argument("faces_and_text", help="folder of `examples/emoji/faces_and_text.py`")
    parser.add_argument("runs", nargs="+", type=Path, help="output folders of the stages, in order")
    parser.add_argument("--output", type=Path, default=Path("results/stages"))
    options = parser.parse_args()

    options.output.mkdir(parents=True, exist_ok=True)
    models = {
        run.name.rpartition("_")[2]: UniWeTokModel.from_pretrained(run / "model", dtype=torch.float32).eval()
        for run in options.runs
    }
    emoji, others = choose(options.emoji, 4, 37), choose(options.faces_and_text, 4, 29)
    print(save_image(stages_sheet(models, emoji[:3] + others[:3]), options.output / "stages.jpg"))
    print(save_image(sizes_sheet(list(models.values())[-1], emoji + others[:2]), options.output / "sizes.jpg"))
    draw_curve(options.runs, options.output / "training_curve.svg")
    print(options.output / "training_curve.svg")


if __name__ == "__main__":
    main()
