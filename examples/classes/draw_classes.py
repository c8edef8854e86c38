# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Draws pictures of eight classes: a shape of a random colour, size and place on a pale ground.

    python examples/classes/draw_classes.py data/classes

writes `train` and `test` with a folder for each class, as `datasets` reads them.
"""

import argparse
import colorsys
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm.auto import tqdm


SIDE, OVERSAMPLING = 128, 4  # pixels; drawn larger and scaled down, for smooth edges
CLASSES = ("circle", "cross", "diamond", "heart", "ring", "square", "star", "triangle")


def star(points: int, inner: float) -> list[tuple[float, float]]:
    """Corners of a star in the unit circle."""
    radii, angles = [1.0, inner] * points, [math.pi * (i / points - 0.5) for i in range(2 * points)]
    return [(radius * math.cos(angle), radius * math.sin(angle)) for radius, angle in zip(radii, angles, strict=True)]


def heart() -> list[tuple[float, float]]:
    steps = [2 * math.pi * i / 100 for i in range(100)]
    return [
        (math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 17)
        for t in steps
    ]


POLYGONS = {
    "cross": [(x, y) for x, y in ((-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3), (0.3, 1))]
    + [(-0.3, 1), (-0.3, 0.3), (-1, 0.3), (-1, -0.3), (-0.3, -0.3)],
    "diamond": [(0, -1), (0.7, 0), (0, 1), (-0.7, 0)],
    "heart": heart(),
    "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
    "star": star(5, 0.45),
    "triangle": [(0, -0.9), (0.95, 0.75), (-0.95, 0.75)],
}


def draw(name: str, generator: np.random.Generator) -> Image.Image:
    """One picture of a class."""
    hue, ground, radius = generator.random(), generator.random(), generator.uniform(0.2, 0.4) * SIDE * OVERSAMPLING
    pale, fill = (
        tuple(int(255 * part) for part in colorsys.hsv_to_rgb(*colour))
        for colour in ((ground, 0.1, 1), (hue, 0.8, 0.85))
    )
    side = SIDE * OVERSAMPLING
    image = Image.new("RGB", (side, side), pale)
    centre = generator.uniform(radius, side - radius, 2)
    pen = ImageDraw.Draw(image)
    box = [*(centre - radius), *(centre + radius)]
    if name == "circle":
        pen.ellipse(box, fill=fill)
    elif name == "ring":
        pen.ellipse(box, outline=fill, width=int(0.35 * radius))
    else:
        pen.polygon([(centre[0] + radius * x, centre[1] + radius * y) for x, y in POLYGONS[name]], fill=fill)
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to be made")
    parser.add_argument("--per-class", type=int, default=250, help="training pictures of each class (default: 250)")
    args = parser.parse_args(argv)
    if args.out.exists():
        raise SystemExit(f"{args.out} exists already")
    for split, count, seed in (("train", args.per_class, 0), ("test", max(1, args.per_class // 8), 1)):
        for number, name in enumerate(tqdm(CLASSES, desc=split)):
            generator, folder = np.random.default_rng([seed, number]), args.out / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                draw(name, generator).save(folder / f"{index:04d}.png")
    print(args.out)


if __name__ == "__main__":
    main()
