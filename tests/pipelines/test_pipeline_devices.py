# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Pipelines on the device of `tests/one_device.py`, which fails where devices are mixed."""

import copy

import numpy as np
import pytest
import torch
from one_device import CPU, DEVICE, assert_same, one_device
from PIL import Image
from tiny_mllm import answer_with_pictures, seeded, with_random_weights
from tiny_models import build_tiny_pipeline

from uniwetok_hf import UniWeTokConversation, UniWeTokEditPipeline, UniWeTokPipeline


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


SIDE = 64  # pixels of a patch
OPTIONS = {"num_inference_steps": 2, "guidance_scale": 2.0}


@pytest.fixture(scope="module")
def pipes() -> dict[torch.device, UniWeTokEditPipeline]:
    """A pipeline, and its copy on the device. Its answers are pictures."""
    pipes = {CPU: UniWeTokEditPipeline.from_pipe(build_tiny_pipeline(patch_size=2))}
    answer_with_pictures(with_random_weights(pipes[CPU].mllm), pipes[CPU].processor)
    with one_device():
        pipes[DEVICE] = copy.deepcopy(pipes[CPU]).to(DEVICE)
    for pipe in pipes.values():
        pipe.set_progress_bar_config(disable=True)
    return pipes


@pytest.mark.parametrize("output_type", ["pil", "pt"])
def test_text_to_image(pipes, output_type):
    def compute(device):
        pipe = UniWeTokPipeline.from_pipe(pipes[device])
        pipe.set_progress_bar_config(disable=True)
        generators = [seeded(0), seeded(1)]
        images = pipe(["a", "red apple"], SIDE, SIDE, generator=generators, output_type=output_type, **OPTIONS).images
        return [np.asarray(image) for image in images] if output_type == "pil" else images

    assert_same(compute)


def test_editing(pipes):
    """The source was encoded elsewhere: an `EncodedImage` goes to the device."""
    source = pipes[CPU].encode_image(picture(SIDE, SIDE))[0]
    options = {"image_guidance_scale": 1.5, "describe_first": True, "output_type": "pt", **OPTIONS}

    def compute(device):
        images = [source, picture(SIDE, SIDE - 1)]
        return pipes[device](images, "blue", SIDE, SIDE, generator=seeded(0), **options).images

    assert_same(compute)


def test_conversation(pipes, tmp_path):
    """The answer is a picture; the saved conversation goes on, and its pictures are decoded."""

    def compute(device):
        pipe = pipes[device]
        talk = UniWeTokConversation(pipe)
        first = talk.say("draw", picture(SIDE, SIDE), generator=seeded(0), **OPTIONS)
        talk.save(tmp_path / "talk")
        loaded = UniWeTokConversation.load(tmp_path / "talk", pipe)
        shown = [np.asarray(item["image"]) for turn in loaded.history for item in turn["content"] if "image" in item]
        second = loaded.say("again", generator=seeded(1), **OPTIONS)
        return first.codes, second.codes, [np.asarray(image) for image in first.images], shown

    assert_same(compute)
