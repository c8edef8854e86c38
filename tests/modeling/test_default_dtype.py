# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""`torch.set_default_dtype` and `torch.set_default_device`, as scripts of other models leave them, change no bit."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_mllm import seeded, training_batch, with_random_weights
from tiny_models import build_tiny_pipeline

from uniwetok_hf import UniWeTokConversation, UniWeTokEditPipeline, UniWeTokPipeline
from uniwetok_hf.evaluation.bits import BitStatistics
from uniwetok_hf.losses.adversarial import LeCam
from uniwetok_hf.losses.entropy import entropy_loss
from uniwetok_hf.modeling.codes_uniwetok import binarize, pack_codes, unpack_codes
from uniwetok_hf.modeling.flow_uniwetok import flow_timesteps
from uniwetok_hf.modeling.noise_uniwetok import draw_noise, draw_uniform


PIPE = build_tiny_pipeline(2, default_size=128)
with_random_weights(PIPE.mllm)
EDIT = UniWeTokEditPipeline.from_pipe(PIPE)
EDIT.set_progress_bar_config(disable=True)
CODES = torch.where(torch.randn(2, 16, 4, 4, generator=seeded(0)) > 0, 1.0, -1.0)
BATCH = training_batch(2)


def picture(width: int = 120, height: int = 90) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def edit_in_three_branches():
    return EDIT(picture(), "blue", guidance_scale=3.0, image_guidance_scale=1.5, generator=seeded(0)).images


def converse():
    talk = UniWeTokConversation(PIPE)
    replies = [talk.say(text, picture(), generator=seeded(1), max_new_tokens=4) for text in ("draw", "again")]
    return [(reply.text, reply.codes) for reply in replies]


def encode_and_decode():
    pixel_values = PIPE.processor.image_processor([picture()])["pixel_values"]
    model = PIPE.mllm.vision_model
    encoded = model.encode(pixel_values)
    noisy = model.decode(encoded.codes, generator=seeded(0)).sample
    pictures = PIPE.processor.image_processor.postprocess(noisy.detach())
    return (
        encoded.latents,
        encoded.codes,
        noisy,
        model.decode(encoded.codes.to(torch.int8), seeded(0)).sample,
        pictures,
    )


def train():
    inputs, codes = BATCH
    output = PIPE.mllm(**inputs, codes=codes, generator=seeded(0))
    at_times = PIPE.mllm.image_head.compute_losses(
        torch.ones(2, 4, 16, dtype=torch.float32), torch.ones(2, 4, 32, dtype=torch.float32), seeded(0), 1, [0.1, 0.7]
    )
    return output.loss, output.logits, at_times


def losses():
    latents = torch.randn(2, 16, 4, 4, generator=seeded(0), dtype=torch.float32)
    lecam, logits = LeCam(), latents[:, :1]
    lecam.update(logits, -logits)
    return entropy_loss(latents, 8), lecam(logits, -logits)


def bits():
    statistics = BitStatistics(16)
    statistics.add(CODES)
    return statistics.compute()


JOBS: list[Callable] = [
    lambda: PIPE(["a cat", "a dog"], generator=seeded(0), num_inference_steps=7, output_type="latent").images,
    lambda: PIPE("a cat", generator=[seeded(3)], output_type="pt").images,
    edit_in_three_branches,
    converse,
    encode_and_decode,
    train,
    losses,
    bits,
    lambda: PIPE.processor(
        text=["<|vision_start|><|image_pad|><|vision_end|> a"], images=[picture()], return_labels=True
    ),
    lambda: PIPE.processor.image_processor([picture(), picture(64, 64)], fit="resize")["pixel_values"],
    lambda: (binarize(CODES.to(torch.bfloat16)), pack_codes(CODES), unpack_codes(pack_codes(CODES))),
    lambda: (flow_timesteps(50), flow_timesteps(7, 3.0)),
    lambda: (
        draw_noise((2, 3), seeded(0), torch.device("cpu")),
        draw_uniform((2, 3), [seeded(0)] * 2, torch.device("cpu")),
    ),
]


def flatten(value) -> list:
    """All of a result as text, arrays as dtype, shape and bytes."""
    if torch.is_tensor(value):
        value = value.detach().cpu()
        return [str(value.dtype), tuple(value.shape), value.reshape(-1).view(torch.uint8).numpy().tobytes()]
    if isinstance(value, Image.Image):
        return [value.size, value.tobytes()]
    if isinstance(value, np.ndarray):
        return [str(value.dtype), value.shape, value.tobytes()]
    if hasattr(value, "items"):
        return [part for name, one in value.items() for part in (name, *flatten(one))]
    if isinstance(value, list | tuple):
        return [part for one in value for part in flatten(one)]
    return [value]


@pytest.fixture
def restored():
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)
    torch.set_default_device(None)


@pytest.mark.parametrize("job", range(len(JOBS)))
def test_default_dtype(restored, job):
    alone = flatten(JOBS[job]())
    for dtype in (torch.bfloat16, torch.float64, torch.float16):
        torch.set_default_dtype(dtype)
        assert flatten(JOBS[job]()) == alone, dtype


@pytest.mark.parametrize("job", [4, 9, 10, 11])
def test_default_device(restored, job):
    alone = flatten(JOBS[job]())
    torch.set_default_device("meta")
    assert flatten(JOBS[job]()) == alone


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_a_pipeline_that_is_loaded_meanwhile(restored, dtype, tmp_path):
    PIPE.save_pretrained(tmp_path)

    def load_and_generate():
        loaded = UniWeTokPipeline.from_pretrained(tmp_path)
        loaded.set_progress_bar_config(disable=True)
        assert loaded.mllm.dtype == torch.float32
        return loaded("a cat", generator=seeded(0), output_type="pt").images

    # Loaded both times: weights that lie elsewhere in memory round otherwise on some processors.
    before = load_and_generate()
    torch.set_default_dtype(dtype)
    assert torch.equal(load_and_generate(), before)
