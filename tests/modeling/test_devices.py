# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Models, computed on the device of `tests/one_device.py`: an operation that mixes devices fails and names itself, and
the traceback names the line. What loss, training, evaluation and pipelines compute is in `test_*_devices.py` there."""

import copy
import functools

import numpy as np
import pytest
import torch
from one_device import DEVICE, assert_same, gradients, on, one_device
from tiny_mllm import BITS, HIDDEN, build, picture_text, random_codes, seeded, size_text, tokenize, training_batch

from uniwetok_hf import BinaryFlowScheduler, UniWeTokForCausalLM, UniWeTokImageProcessor
from uniwetok_hf.losses.pixel import l2_loss
from uniwetok_hf.modeling.codes_uniwetok import load_codes, pack_codes, save_codes, unpack_codes
from uniwetok_hf.modeling.flow_uniwetok import BinaryFlow
from uniwetok_hf.modeling.modeling_uniwetok_head import UniWeTokBinaryHead
from uniwetok_hf.training.run import seeded_weights


@functools.cache
def language_model(patch_size: int) -> UniWeTokForCausalLM:
    return build(patch_size)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed))


# The helper itself.


def test_operations_that_mix_devices_are_refused():
    """What a GPU refuses, and indices of the CPU, which it would copy at each call."""
    with one_device():
        values = torch.arange(4, device=DEVICE)
        for mix in (
            lambda: values + torch.arange(4),
            lambda: values[torch.tensor([0, 1])],
            lambda: torch.stack([values[0], torch.tensor(1)]),
            lambda: torch.tensor(1).add_(values[0]),
            lambda: torch.rand(3, generator=seeded(0), device=DEVICE),
        ):
            with pytest.raises(RuntimeError, match=r"aten\.\w+\.\w+ (mixes devices|draws on meta)"):
                mix()
        assert (values * torch.tensor(2)).tolist() == [0, 2, 4, 6]
        assert torch.zeros(4).copy_(values).tolist() == [0, 1, 2, 3]


def test_a_table_made_on_the_cpu_is_found(monkeypatch, make_model, make_pictures):
    """The fault that the tests below are for: an `arange` without a device."""
    monkeypatch.setattr(
        "uniwetok_hf.modeling.modeling_uniwetok.encoder_grid", lambda length, device: torch.arange(length) + 0.5
    )
    with one_device(), pytest.raises(RuntimeError, match=r"mixes devices: \[\(\d, \d, \d, \d\)\] on meta"):
        make_model().cpu().to(DEVICE).encode(make_pictures(1, 3, 8, 8).cpu().to(DEVICE))


# The image tokenizer.


VISION = {
    "hybrid": {},
    "convolutional": {"architecture": "convolutional", "num_hidden_layers": 0, "decoder_noise": False},
}


@pytest.fixture(params=VISION)
def vision(request, make_model):
    return make_model(**VISION[request.param]).cpu()


@pytest.mark.parametrize("sizes", [[(8, 12), (8, 12)], [(8, 12), (4, 4), (8, 12)]], ids=["batch", "list"])
def test_image_tokenizer(vision, sizes):
    pictures = [noise(3, *size, seed=index).clamp(-1, 1) for index, size in enumerate(sizes)]

    def compute(device):
        model = on(device, vision)
        pixel_values = on(device, pictures if len(set(sizes)) > 1 else torch.stack(pictures))
        generators = [seeded(index) for index in range(len(sizes))]
        with torch.no_grad():
            output = model(pixel_values, generator=seeded(0))
            alone = model.decode(on(device, output.codes), generator=generators).sample
            model.decode(output.codes)  # noise of the device itself: other values
            model.enable_slicing()
            model.encode(pixel_values)
        return dict(output), alone

    assert assert_same(compute) == []


def test_image_tokenizer_in_training(vision):
    pixel_values = noise(2, 3, 8, 12)

    def compute(device):
        model = on(device, vision).train()
        model.activation_checkpointing_enable()
        output = model(pixel_values.to(device), generator=seeded(0))
        return gradients(l2_loss(output.sample, pixel_values.to(device)), model)

    assert_same(compute)


def test_codes_in_bytes_and_in_files(tmp_path, make_config):
    codes = torch.stack([random_codes(1, 2, 3, seed) for seed in (0, 1)])

    def compute(device):
        save_codes(tmp_path / "codes.safetensors", codes.to(device), make_config())
        packed = pack_codes(codes.to(device))
        loaded = torch.stack(load_codes(tmp_path / "codes.safetensors").codes)
        return packed, unpack_codes(packed), loaded.to(device)

    assert_same(compute)


def test_image_processor(make_config):
    """Pictures come in as tensors of the device, and samples go out from it."""
    image_processor = UniWeTokImageProcessor(stride=4)
    pictures, samples = torch.rand(2, 3, 6, 9, generator=seeded(0)), noise(2, 3, 8, 12)

    def compute(device):
        inputs = image_processor(pictures.to(device))
        sizes = torch.tensor(inputs["original_sizes"]).to(device), torch.tensor(inputs["content_sizes"]).to(device)
        images = image_processor.postprocess(samples.to(device), *sizes)
        arrays = image_processor.postprocess(samples.to(device), output_type="np")
        tensors = image_processor.postprocess(list(samples.to(device)), output_type="pt")
        return inputs["pixel_values"].to(device), [np.asarray(image) for image in images], arrays, tensors

    assert_same(compute)


# The binary head and its sampler.


@pytest.fixture(params=[1, 2], ids=["single tokens", "patches"])
def patch_size(request) -> int:
    return request.param


def test_head_forward(patch_size):
    head, tokens = language_model(patch_size).image_head, patch_size**2

    def compute(device):
        noisy, timesteps = on(device, (noise(3, tokens, BITS), torch.rand(3, generator=seeded(1))))
        model, condition = on(device, head), noise(3, tokens, HIDDEN).to(device).requires_grad_()
        return gradients(model(noisy, timesteps, condition).square().mean(), model, condition)

    assert assert_same(compute) == []


@pytest.mark.parametrize("schedule", ["uniform", "logit_normal"])
def test_head_losses(patch_size, schedule):
    config = copy.deepcopy(language_model(patch_size).config.head_config)
    config.timestep_schedule = schedule
    with seeded_weights(0):
        head = UniWeTokBinaryHead(config)
    codes = torch.where(noise(3, patch_size**2, BITS) > 0, 1.0, -1.0)

    def compute(device):
        model, condition = on(device, head), noise(3, patch_size**2, HIDDEN).to(device)
        generators, inputs = [seeded(row) for row in range(3)], (codes.to(device), condition)
        losses, right = model.compute_losses(*inputs, generators, num_draws=2)
        fixed, _ = model.compute_losses(*inputs, seeded(0), timesteps=(0.0, 0.5))
        model.compute_loss(*inputs)
        return gradients(losses.mean(), model), right, fixed

    assert assert_same(compute) == []


GUIDANCE = {"none": {}, "text": {"guidance_scale": 2.0}, "both": {"guidance_scale": 2.0, "image_guidance_scale": 1.5}}


@pytest.mark.parametrize("guidance", GUIDANCE)
def test_head_sample(patch_size, guidance):
    """Nothing is read from the device inside the loop."""
    head, repeats = language_model(patch_size).image_head, 1 + list(GUIDANCE).index(guidance)

    def compute(device):
        sampler, condition = BinaryFlow(shift=2.0), noise(2 * repeats, patch_size**2, HIDDEN).to(device)
        sampler.set_timesteps(3, device=device)
        model = on(device, head)
        model.sample(condition, sampler, **GUIDANCE[guidance])
        generators = [seeded(0), seeded(1)]
        return [model.sample(condition, sampler, generator=g, **GUIDANCE[guidance]) for g in (seeded(0), generators)]

    assert assert_same(compute) == []


@pytest.mark.parametrize("scheduler", [BinaryFlow, BinaryFlowScheduler])
def test_sampler_steps(scheduler):
    def compute(device):
        sampler, sample, steps = scheduler(shift=3.0), noise(2, 4, BITS).to(device), []
        sampler.set_timesteps(3, device)
        step = getattr(sampler, "step", sampler.advance)
        for timestep in sampler.timesteps:
            result = step(noise(2, 4, BITS, seed=1).to(device), timestep, sample, generator=seeded(2))
            sample = getattr(result, "prev_sample", result)
            steps.append(sample)
        return steps

    assert assert_same(compute) == []


# The language model.


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_language_model_reads_text(patch_size, attention):
    inputs = tokenize("a text", "another one, longer", patch_size=patch_size)

    def compute(device):
        model = on(device, language_model(patch_size))
        model.set_attn_implementation(attention)
        with torch.no_grad():
            return model(**on(device, inputs)).logits

    assert_same(compute)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_language_model_losses(patch_size, training):
    """In training with bit flips, from one generator per row; logits of the last position only."""
    inputs, codes = training_batch(patch_size)

    def compute(device):
        model = on(device, language_model(patch_size)).train(training)
        generator = [seeded(1), seeded(2)] if training else seeded(0)
        batch = on(device, inputs) | {"codes": on(device, codes)}
        output = model(**batch, generator=generator, logits_to_keep=1)
        measured = model(**batch, timesteps=(0.0, 0.5), generator=generator)
        parts = {name: value for name, value in output.items() if name != "past_key_values"}
        return gradients(output.loss, model), parts, measured.bit_accuracy

    assert_same(compute)


def test_language_model_losses_without_targets(patch_size):
    inputs = tokenize("a text", "another one, longer", patch_size=patch_size)

    def compute(device):
        model, batch = on(device, language_model(patch_size)).train(), on(device, inputs)
        return gradients(model(**batch, labels=batch["input_ids"]).loss, model)

    assert_same(compute)


def test_language_model_reads_pixels(patch_size):
    """Pictures of two sizes, padded to one tensor."""
    side = 32 * patch_size
    texts = [f"see {picture_text(random_codes(patch_size, *sides), patch_size)}" for sides in ((1, 2), (2, 1))]
    inputs = tokenize(*texts, patch_size=patch_size)
    inputs |= {"pixel_values": noise(2, 3, 2 * side, 2 * side), "image_sizes": torch.tensor([[1, 2], [2, 1]]) * side}

    def compute(device):
        model, batch = on(device, language_model(patch_size)), on(device, inputs)
        with torch.no_grad():
            features = model.get_image_features(batch["pixel_values"], batch["image_sizes"])
            return model(**batch).logits, dict(features)

    assert_same(compute)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"cache_implementation": "static"}], ids=str)
def test_generate(options, patch_size=2):
    codes = [random_codes(patch_size, *sides, seed=index) for index, sides in enumerate(((1, 2), (2, 1), (1, 1)))]
    first, second, third = (picture_text(one, patch_size) for one in codes)
    inputs = tokenize(f"see {first} and {second}", f"see {third}", patch_size=patch_size)

    def compute(device):
        model, batch = on(device, language_model(patch_size)), on(device, inputs) | {"codes": on(device, codes)}
        return model.generate(**batch, max_new_tokens=3, do_sample=False, **options)

    assert_same(compute)


@pytest.mark.parametrize("guidance", GUIDANCE)
def test_generate_codes(patch_size, guidance):
    source, wanted = random_codes(patch_size, 1, 2), random_codes(patch_size, 2, 1)
    start, shown = size_text(wanted, patch_size), picture_text(source, patch_size)
    inputs = tokenize(f"{shown} green {start}", f"{shown} much larger {start}", patch_size=patch_size)
    negative = tokenize(start, patch_size=patch_size)["input_ids"]
    image = tokenize(f"{shown} same {start}", f"{shown} same {start}", patch_size=patch_size)

    def compute(device):
        model, batch = on(device, language_model(patch_size)), on(device, inputs)
        more = {"codes": on(device, [source, source])}
        if guidance == "both":
            more |= {f"image_{name}": value for name, value in on(device, image).items()}
        output = model.generate_codes(
            **batch,
            **more,
            **GUIDANCE[guidance],
            negative_input_ids=negative.to(device),
            num_inference_steps=2,
            generator=[seeded(0), seeded(1)],
            output_conditions=True,
        )
        return dict(output)

    assert_same(compute)
