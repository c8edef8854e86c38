# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Evaluation with models on the device of `tests/one_device.py`, which fails where devices are mixed."""

import numpy as np
from one_device import assert_same, on
from PIL import Image
from tiny_judges import build_clip
from tiny_mllm import BITS
from tiny_training import build_siglip

from uniwetok_hf.evaluation.bits import bit_statistics
from uniwetok_hf.evaluation.judges import Judge
from uniwetok_hf.evaluation.latents import embed_rows
from uniwetok_hf.evaluation.reconstruction import reconstruct
from uniwetok_hf.losses.distillation import PrePostDistillation
from uniwetok_hf.losses.teacher import Teacher
from uniwetok_hf.training.run import seeded_weights
from uniwetok_hf.visualization import bit_planes


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_reconstruction(make_model):
    model, images = make_model().cpu(), [picture(9, 12), picture(8, 8), picture(9, 12, seed=1)]

    def compute(device):
        found = reconstruct(on(device, model), images)
        maps = [np.asarray(bit_planes(one.codes)) for one in found]
        return [one.codes for one in found], bit_statistics([one.codes for one in found]), maps

    assert_same(compute)


def test_latents(make_model, tmp_path):
    model, teacher = make_model().cpu(), Teacher.from_pretrained(build_siglip(tmp_path))
    with seeded_weights(0):
        pools = PrePostDistillation(BITS, 16, hidden_size=16, num_attention_heads=2)
    rows = [{"image": picture(9, 12, seed), "label": str(seed)} for seed in range(3)]

    def compute(device):
        parts = {"pools": on(device, pools), "teacher": on(device, teacher)}
        found = embed_rows(on(device, model), rows, 8, "label", batch_size=2, **parts)
        return found.means, found.pooled

    assert_same(compute)


def test_judge(tmp_path):
    judge = Judge.from_pretrained(build_clip(tmp_path))

    def compute(device):
        placed = Judge(on(device, judge.model), judge.image_processor, judge.tokenizer)
        return placed.embed_images([picture(32, 40), picture(50, 32)]), placed.embed_texts(["a cat", "a dog"])

    assert_same(compute)
