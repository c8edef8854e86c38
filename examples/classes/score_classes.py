# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""How many generated pictures a judge takes for their class.

    python examples/classes/score_classes.py runs/small_class_to_image/pipeline data/classes

The judge is a small convolutional network, trained here on the pictures of `draw_classes.py` in a minute. Beside the
score stand chance, and as ceilings its accuracy on test pictures and on those through the codes. Writes `classes.png`,
a row of random pictures of each class.
"""

import argparse
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from datasets import load_dataset
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from uniwetok_hf import UniWeTokClassToImagePipeline
from uniwetok_hf.evaluation.generation import generate_classes
from uniwetok_hf.evaluation.intervals import wilson_interval
from uniwetok_hf.training.run import picture_grid, seeded_weights


SIDE = 64  # pixels that the judge sees
BATCH = 32


def pixels(pictures) -> torch.Tensor:
    """float [N, 3, SIDE, SIDE] in [-1, 1]."""
    arrays = [np.asarray(picture.convert("RGB").resize((SIDE, SIDE))) for picture in pictures]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1


def train_judge(images: torch.Tensor, labels: torch.Tensor, num_classes: int) -> nn.Module:
    """A network of four strided convolutions, of pictures that are shifted and mirrored at random."""
    generator = torch.Generator().manual_seed(0)
    with seeded_weights(0):
        layers = []
        for before, after in ((3, 16), (16, 32), (32, 64), (64, 64)):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        judge = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * (SIDE // 16) ** 2, num_classes))
    steps = 12 * len(images) // BATCH
    optimizer = torch.optim.AdamW(judge.parameters(), 2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in tqdm(range(steps), desc="judge"):
        rows = torch.randint(len(images), (BATCH,), generator=generator)
        shift = torch.randint(-6, 7, (2,), generator=generator).tolist()
        batch = images[rows].roll(shift, dims=(2, 3))
        batch = batch.flip(3) if torch.rand((), generator=generator) < 0.5 else batch
        F.cross_entropy(judge(batch), labels[rows], label_smoothing=0.1).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return judge.eval()


@torch.no_grad()
def accuracy(judge: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Which pictures are taken for their class, bool [N]."""
    return torch.cat([judge(part).argmax(1) for part in images.split(256)]) == labels


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", help="class-to-image pipeline")
    parser.add_argument("data", help="folder of draw_classes.py")
    parser.add_argument("--per-class", type=int, default=32, help="generated pictures of each class (default: 32)")
    parser.add_argument("--output", type=Path, default=Path("classes.png"), help="the grid (default: classes.png)")
    args = parser.parse_args(argv)
    pipe = UniWeTokClassToImagePipeline.from_pretrained(args.pipeline, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    splits = {split: load_dataset(args.data, split=split) for split in ("train", "test")}
    names = splits["train"].features["label"].names
    images = {split: pixels(rows["image"]) for split, rows in splits.items()}
    labels = {split: torch.tensor(rows["label"]) for split, rows in splits.items()}
    judge = train_judge(images["train"], labels["train"], len(names))

    right = {"test pictures": accuracy(judge, images["test"], labels["test"])}
    with torch.no_grad():
        shown = torch.from_numpy(np.stack([np.asarray(one) for one in splits["test"]["image"]]))
        shown = shown.permute(0, 3, 1, 2).float() / 127.5 - 1  # [N, 3, H, W]
        decoded = [
            pipe.decode(pipe.vision_model.encode(part).codes, torch.Generator().manual_seed(0), "pil")
            for part in tqdm(shown.split(BATCH), desc="through the codes")
        ]
    right["through the codes"] = accuracy(judge, pixels(chain(*decoded)), labels["test"])
    wanted = [number for number in range(len(names)) for _ in range(args.per_class)]
    generated = generate_classes(pipe, wanted, BATCH)
    right["generated"] = accuracy(judge, pixels(generated), torch.tensor(wanted))

    print(f"right of pictures by a judge; chance {1 / len(names):.1%}")
    for what, outcomes in right.items():
        low, high = wilson_interval(int(outcomes.sum()), len(outcomes))
        print(f"{what}: {outcomes.float().mean():.1%} (95 %: {low:.1%} to {high:.1%}, N = {len(outcomes)})")
    for number, name in enumerate(names):
        own = right["generated"][number * args.per_class : (number + 1) * args.per_class]
        print(f"  {name}: {int(own.sum())} of {len(own)}")
    columns = min(8, args.per_class)
    shown = [one for start in range(0, len(wanted), args.per_class) for one in generated[start : start + columns]]
    arrays = [torch.from_numpy(np.array(one)).permute(2, 0, 1).float() / 127.5 - 1 for one in shown]
    picture_grid(arrays, columns).save(args.output)
    print(args.output)


if __name__ == "__main__":
    main()
