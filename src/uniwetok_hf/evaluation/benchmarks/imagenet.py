# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""ImageNet: what ADM's evaluator (Dhariwal & Nichol 2021) prints about the pictures of `sample_classes`."""

import re
from pathlib import Path

from ...files import read_json
from ...provenance import short_name
from ..intervals import Score
from ..reports import Report, ScoreRow
from ..runs import SETTINGS_FILE, told
from .base import read_text


NUM_IMAGES = 50_000  # as published; a dry run is for no card
LINES = {
    "fid": "FID",
    "sfid": "sFID",
    "inception_score": "Inception Score",
    "precision": "Precision",
    "recall": "Recall",
}


def collect_imagenet(out: str | Path, output: str | Path, model_name: str, judge: str | None = None) -> Report:
    """The report of what the evaluator printed about a run.

    Args:
        out: folder of the run.
        output: file with what it printed.
        model_name: of the pipeline.
        judge: the judge and its version, where they differ from ADM's.

    Raises:
        ValueError: when `out` is no folder of samples, or the output can't be read or lacks a score.
    """
    path = Path(out) / SETTINGS_FILE
    settings, names = read_json(path) if path.is_file() else {}, ("num_images", "num_classes", "image_size")
    names += ("num_inference_steps", "guidance_scale", "guidance_schedule", "seed", "dtype")
    if any(name not in settings for name in names):
        raise ValueError(f"{out} is no folder of `sample-classes`: it has no {SETTINGS_FILE} of one.")
    text, scores = read_text(output, "the judge's output"), {}
    for name, title in LINES.items():
        found = re.findall(rf"^{title}: (\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*$", text, re.MULTILINE)
        if len(found) != 1:
            raise ValueError(
                f"{output} has {len(found)} lines of `{title}: number`, not one: it is not ADM's evaluator's."
            )
        scores[name] = Score(float(found[0]), settings["num_images"])
    protocol = {"judge": judge or "ADM's evaluator.py, TensorFlow graph of December 2015"}
    protocol |= told(settings, (*names, "shift", "temperature"))  # folders of before lack these two
    is_whole = settings["num_images"] >= NUM_IMAGES
    rows = [ScoreRow({"what": "generated"}, scores, for_card=is_whole)]
    return Report("classes", short_name(model_name), "ImageNet", "train", protocol, rows)
