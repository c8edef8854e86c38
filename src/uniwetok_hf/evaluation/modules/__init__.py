# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""The metrics as modules of the `evaluate` library, one folder each, loaded by path:

    metric = evaluate.load(metric_path("psnr"))
    metric.compute(predictions=outputs, references=originals)

`evaluate.load` copies the one file of a module into its cache and reads the file's imports line by line: no
`import a, b`, and this package by its full name.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..intervals import Score


def metric_names() -> list[str]:
    """Names of all modules."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*/*.py") if path.stem == path.parent.name)


def metric_path(name: str) -> str:
    """What `evaluate.load` takes.

    Raises:
        ValueError: when there is no such metric.
    """
    if name not in metric_names():
        raise ValueError(f"`name` must be one of {', '.join(metric_names())}, got {name!r}.")
    return str(Path(__file__).parent / name / f"{name}.py")


def as_arrays(pictures: Sequence) -> list[np.ndarray]:
    """Pictures as arrays. `datasets` would save a PIL picture in the format that it was read from, JPEG for one, and
    so change it; arrays it saves without loss."""
    return [np.asarray(picture) for picture in pictures]


def result(name: str, score: Score) -> dict:
    """What a module returns: `name`, `count`, and `interval` and `chance` where there are such."""
    values = {name: score.value, "count": score.count}
    values |= {"interval": list(score.interval)} if score.interval is not None else {}
    return values | ({"chance": score.chance} if score.chance is not None else {})
