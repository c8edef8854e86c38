# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Does a class-to-image model draw the concept that it is asked for?

    python examples/emoji/evaluate_concepts.py runs/emoji_class_to_image/pipeline --judge runs/emoji_judge/model

A picture is right for the judge when, of the names of all classes, it finds the picture's own the most similar, and
right by pixels when the nearest of all real pictures is one of its class. Beside the model stand the real pictures,
and as its ceiling the real pictures after the image tokenizer. Writes a table, and `concepts.png`: a row of pictures
for each of ten random classes.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from emoji_data import food
from evaluate_emoji import EMOJI_PROMPT
from PIL import Image

from uniwetok_hf import UniWeTokClassToImagePipeline
from uniwetok_hf.evaluation.choices import cosines, thumbnail, top_k_outcomes
from uniwetok_hf.evaluation.generation import generate_classes
from uniwetok_hf.evaluation.intervals import share_score
from uniwetok_hf.evaluation.judges import Judge
from uniwetok_hf.evaluation.reconstruction import reconstruct_all
from uniwetok_hf.evaluation.reports import Report, ScoreRow
from uniwetok_hf.evaluation.rows import picture_of
from uniwetok_hf.training.run import picture_grid


GRID_CLASSES = 10


class ConceptScore:
    """Which pictures show their class, by the judge's texts and by the pixels of real pictures.

    Args:
        judge: a dual encoder.
        pictures, names, styles: the real pictures, what each shows, and in which style.
        classes: names of all classes.
    """

    def __init__(
        self,
        judge: Judge,
        pictures: Sequence[Image.Image],
        names: Sequence[str],
        styles: Sequence[str],
        classes: Sequence[str],
    ):
        self.judge, self.classes = judge, list(classes)
        # A generated picture has no style of its own to be asked for: a class is the mean of its captions.
        self.texts = np.stack(
            [
                judge.embed_texts(
                    [EMOJI_PROMPT.format(style=style, label=name) for style in sorted(set(styles))]
                ).mean(0)
                for name in self.classes
            ]
        )
        self.thumbnails = np.stack([thumbnail(picture).ravel() for picture in pictures])
        self.numbers = np.array([self.classes.index(name) for name in names])

    def by_judge(self, pictures: Sequence[Image.Image], wanted: Sequence[int]) -> np.ndarray:
        """bool [N]."""
        return top_k_outcomes(cosines(self.judge.embed_images(list(pictures)), self.texts), np.array(wanted))

    def by_pixels(self, pictures: Sequence[Image.Image], wanted: Sequence[int]) -> np.ndarray:
        """bool [N]."""
        nearest = [((self.thumbnails - thumbnail(one).ravel()) ** 2).sum(1).argmin() for one in pictures]
        return self.numbers[nearest] == np.array(wanted)

    def pixel_chance(self, wanted: Sequence[int]) -> float:
        """Of a blind choice among the real pictures."""
        return float(np.mean((np.bincount(self.numbers) / len(self.numbers))[np.array(wanted)]))


def evaluate(args: argparse.Namespace) -> tuple[Report, Image.Image]:
    """The table, and the grid of random classes."""
    pipe = UniWeTokClassToImagePipeline.from_pretrained(args.pipeline, dtype=torch.float32)
    judge = Judge.from_pretrained(args.judge, unseen_by=args.pipeline)
    rows = food("train")
    pictures, names = [picture_of(cell) for cell in rows["image"]], list(rows["name"])
    classes = sorted(set(names))
    score = ConceptScore(judge, pictures, names, rows["style"], classes)
    wanted = [number for number in range(len(classes)) for _ in range(args.per_class)]
    pipe.set_progress_bar_config(disable=True)
    drawn = generate_classes(pipe, pipe.get_label_ids([classes[number] for number in wanted]))
    chance = 1 / len(classes)
    table = []
    for what, made, own in (
        ("model", drawn, wanted),
        ("real, through the codes", reconstruct_all(pipe.vision_model, pictures), score.numbers),
        ("real", pictures, score.numbers),
    ):
        scores = {"top1": share_score(score.by_judge(made, own), chance)}
        if what != "real":  # which is nearest to itself
            scores["nearest_by_pixels"] = share_score(score.by_pixels(made, own), score.pixel_chance(own))
        table.append(ScoreRow({"what": what}, scores, what == "model"))
    protocol = {"judge": judge.describe(), "classes": len(classes), "pictures per class": args.per_class}
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(0))[:GRID_CLASSES].tolist()
    shown = [drawn[number * args.per_class + k] for number in order for k in range(args.per_class)]
    arrays = [torch.from_numpy(np.array(one)).permute(2, 0, 1).float() / 127.5 - 1 for one in shown]
    print("rows of concepts.png:", ", ".join(classes[number] for number in order))
    report = Report("concepts", Path(args.pipeline).parent.name, "food and drink", "train", protocol, table)
    return report, picture_grid(arrays, args.per_class)


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", help="class-to-image pipeline")
    parser.add_argument("--judge", required=True, metavar="M", help="folder or Hub name of a dual encoder")
    parser.add_argument("--per-class", type=int, default=4, metavar="N", help="generated pictures (default: 4)")
    parser.add_argument("--output", type=Path, default=Path("results/emoji_concepts"), metavar="DIR")
    args = parser.parse_args(arguments)
    try:
        report, grid = evaluate(args)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"{parser.prog}: {error}")
    print(report.to_markdown())
    for path in report.save(args.output):
        print(path)
    grid.save(args.output / "concepts.png")
    print(args.output / "concepts.png")


if __name__ == "__main__":
    main()
