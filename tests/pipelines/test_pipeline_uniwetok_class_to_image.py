"""The contract of a diffusers pipeline, on the class-to-image pipeline."""

import copy
import inspect
import json

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from diffusers import DDIMScheduler, DiffusionPipeline, DiTPipeline
from PIL import Image
from tiny_mllm import seeded
from tiny_models import LABELS, TINY_VISION, build_tiny_class_pipeline, build_tiny_class_to_image, randomized

from uniwetok_hf import (
    BinaryFlowScheduler,
    UniWeTokClassToImageModel,
    UniWeTokClassToImagePipeline,
    UniWeTokConfig,
    UniWeTokImageProcessor,
    UniWeTokModel,
)
from uniwetok_hf.pipelines import UniWeTokPipelineOutput


@pytest.fixture(scope="module", params=[1, 2], ids=["single tokens", "patches"])
def pipeline(request) -> UniWeTokClassToImagePipeline:
    return build_tiny_class_pipeline(request.param)


def generate(pipeline, class_labels=(3,), seed: int = 0, **options) -> torch.Tensor:
    """Codes, unless told otherwise."""
    options = {"output_type": "latent", "generator": seeded(seed)} | options
    return pipeline(list(class_labels), **options).images


# --- what is generated ---


def test_codes_are_those_of_the_model(pipeline):
    wanted = pipeline.transformer.generate_codes(
        torch.tensor([3, 0]), 4.0, "constant", num_inference_steps=3, generator=seeded(0)
    ).codes
    options = {"guidance_scale": 4.0, "guidance_schedule": "constant", "num_inference_steps": 3}
    assert torch.equal(generate(pipeline, [3, 0], **options), wanted)
    assert pipeline.guidance_scale == 4.0 and pipeline.do_classifier_free_guidance
    assert pipeline.num_timesteps == 16 // pipeline.transformer.config.tokens_per_patch


def test_everything_that_is_asked_for_matters(pipeline):
    codes = generate(pipeline)
    assert codes.abs().unique().tolist() == [1.0]
    others = {"class_labels": [2]}, {"seed": 1}, {"guidance_scale": 9.0}, {"num_inference_steps": 5}
    for other in (*others, {"guidance_schedule": "constant", "guidance_scale": 9.0}):
        assert not torch.equal(generate(pipeline, **other), codes), other
    assert torch.equal(generate(pipeline, num_inference_steps=2, guidance_scale=2.0), codes)  # the defaults
    assert torch.equal(generate(pipeline, guidance_scale=1.0), generate(pipeline, guidance_scale=0.0))


def test_same_generator_same_picture(pipeline):
    state = torch.get_rng_state()
    first, again = (pipeline(2, generator=seeded(3), output_type="pt").images for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), state)  # no other randomness


def test_a_batch_equals_single_pictures(pipeline):
    labels = [0, 3, 3]
    images = pipeline(labels, generator=[seeded(seed) for seed in (5, 6, 7)], output_type="pt").images
    for row, label in enumerate(labels):
        alone = pipeline(label, generator=seeded(5 + row), output_type="pt").images
        torch.testing.assert_close(images[row], alone[0], atol=1e-4, rtol=0)


def test_pictures_of_one_class_lie_side_by_side(pipeline):
    generators = [seeded(seed) for seed in range(4)]
    codes = generate(pipeline, [1, 2], num_images_per_label=2, generator=generators)
    for row, label in enumerate([1, 1, 2, 2]):
        assert torch.equal(generate(pipeline, [label], seed=row)[0], codes[row])


# --- names of classes ---


def test_names_of_classes(pipeline):
    assert pipeline.get_label_ids(["otter", "Tinca tinca", "tench"]) == [3, 0, 0]
    assert pipeline.get_label_ids("golden retriever") == [2]
    assert pipeline.labels == {"Tinca tinca": 0, "golden retriever": 2, "otter": 3, "tench": 0, LABELS[0]: 0}
    assert torch.equal(generate(pipeline, ["otter", 0]), generate(pipeline, [3, "tench"]))


def test_a_name_that_two_classes_have_or_none(pipeline):
    with pytest.raises(ValueError, match="'crane' is the name of several classes: 1 .crane., 4 .crane.. Give a numb"):
        pipeline("crane")
    with pytest.raises(ValueError, match="no class is called 'oter'; the nearest are 'otter'"):
        pipeline(["otter", "oter"])
    with pytest.raises(ValueError, match="has no names of classes, give numbers, got 'otter'"):
        build_tiny_class_pipeline(id2label=None)("otter")


# --- what is returned ---


def test_output_types(pipeline):
    def images(output_type: str):
        return pipeline([0, 1], generator=seeded(0), output_type=output_type).images

    codes, tensor, array, pictures = (images(name) for name in ("latent", "pt", "np", "pil"))
    assert codes.shape == (2, 16, 4, 4)
    assert tensor.shape == (2, 3, 128, 128) and tensor.dtype == torch.float32
    assert array.shape == (2, 128, 128, 3) and array.dtype == np.float32
    np.testing.assert_array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    assert all(isinstance(picture, Image.Image) and picture.size == (128, 128) for picture in pictures)
    assert pipeline.image_size == 128


def test_pictures_are_the_decoded_codes(pipeline):
    generator, again = seeded(0), seeded(0)
    picture = pipeline(3, generator=generator, output_type="pt").images
    codes = generate(pipeline, generator=again)  # leaves its generator before the decoder's noise
    with torch.no_grad():
        sample = pipeline.vision_model.decode(codes, generator=again).sample
    torch.testing.assert_close(picture, (sample / 2 + 0.5).clamp(0, 1))


def test_dict_and_tuple_are_the_same(pipeline):
    as_dict, as_tuple = (
        pipeline(0, generator=seeded(0), output_type="np", return_dict=flag) for flag in (True, False)
    )
    assert isinstance(as_dict, UniWeTokPipelineOutput)
    np.testing.assert_array_equal(as_dict.images, as_tuple[0])


def test_it_is_called_as_dit_is():
    parameters = list(inspect.signature(UniWeTokClassToImagePipeline.__call__).parameters)
    assert set(inspect.signature(DiTPipeline.__call__).parameters) <= set(parameters)
    assert parameters[:3] == ["self", "class_labels", "guidance_scale"]


# --- callbacks and progress ---


def test_callback_gets_the_codes_so_far_and_interrupts(pipeline):
    calls = []

    def callback(pipe, step, total, tensors):
        calls.append((step, total, tensors["codes"].clone()))
        pipe._interrupt = step == 1

    codes = generate(pipeline, callback_on_step_end=callback)
    p = pipeline.transformer.config.patch_size
    assert [(step, total) for step, total, _ in calls] == [(0, 16 // p**2), (1, 16 // p**2)]
    assert pipeline.interrupt and torch.equal(calls[1][2], codes)
    whole = generate(pipeline)
    assert not pipeline.interrupt
    assert torch.equal(codes[:, :, :p, : 2 * p], whole[:, :, :p, : 2 * p])
    assert (codes[:, :, p:] == 0).all()


def test_progress_bar_counts_patches(pipeline, capsys):
    loud = copy.copy(pipeline)
    loud.set_progress_bar_config(disable=False)
    total = 16 // pipeline.transformer.config.tokens_per_patch
    generate(loud)
    assert f"{total}/{total}" in capsys.readouterr().err


# --- refused inputs ---


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"class_labels": []}, "class_labels"),
        ({"class_labels": 5}, "class_labels"),
        ({"class_labels": [0, -1]}, "class_labels"),
        ({"class_labels": [1.5]}, "class_labels"),
        ({"class_labels": None}, "class_labels"),
        ({"class_labels": True}, "class_labels"),
        ({"guidance_scale": "3"}, "guidance_scale"),
        ({"guidance_schedule": "cosine"}, "guidance_schedule"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_images_per_label": 0}, "num_images_per_label"),
        ({"output_type": "jpg"}, "output_type"),
        ({"class_labels": [1, 2], "generator": [seeded(0)]}, "generator"),
        ({"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, "callback_on_step_end_tensor_inputs"),
    ],
)
def test_wrong_arguments_are_named(pipeline, options, named):
    with pytest.raises(ValueError, match=f"`{named}`"):
        pipeline(**{"class_labels": 1, "output_type": "latent"} | options)


def test_parts_that_do_not_fit():
    parts = dict(build_tiny_class_pipeline().components)
    other = randomized(UniWeTokModel(UniWeTokConfig(**TINY_VISION | {"num_bits": 8})))
    with pytest.raises(ValueError, match="`vision_model` has tokens of 8 bits, `transformer` generates tokens of 16"):
        UniWeTokClassToImagePipeline(**parts | {"vision_model": other})
    with pytest.raises(ValueError, match="`id2label` must have a name for each number from 0 to 4, got 2 names"):
        UniWeTokClassToImagePipeline(**parts, id2label={0: "a", 1: "b"})
    with pytest.raises(ValueError, match="`scheduler` must be a BinaryFlowScheduler.* It is a DDIMScheduler"):
        UniWeTokClassToImagePipeline(**parts | {"scheduler": DDIMScheduler()})(0)


def test_loaded_without_the_image_tokenizer(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    loaded = UniWeTokClassToImagePipeline.from_pretrained(tmp_path, vision_model=None)
    loaded.set_progress_bar_config(disable=True)
    codes, wanted = (pipe(0, generator=seeded(0), output_type="latent").images for pipe in (loaded, pipeline))
    assert torch.equal(codes, wanted)


# --- saving ---


def test_saved_and_loaded(pipeline, tmp_path, capfd):
    pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["transformer"] == ["uniwetok_hf", "UniWeTokClassToImageModel"]
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    assert {name: type(part) for name, part in loaded.components.items()} == {
        "transformer": UniWeTokClassToImageModel,
        "vision_model": UniWeTokModel,
        "image_processor": UniWeTokImageProcessor,
        "scheduler": BinaryFlowScheduler,
    }
    assert type(loaded) is UniWeTokClassToImagePipeline
    assert "Expected types" not in capfd.readouterr().err  # of diffusers, about our arguments
    assert loaded.labels == pipeline.labels
    assert loaded.config.default_guidance_scale == 2.0
    loaded.set_progress_bar_config(disable=True)
    before, after = (pipe(["otter"], generator=seeded(0), output_type="pt").images for pipe in (pipeline, loaded))
    torch.testing.assert_close(before, after)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_runs_in_low_precision(pipeline, dtype):
    low = copy.deepcopy(pipeline).to(dtype)
    images = low(0, generator=seeded(0), output_type="pt").images
    assert images.dtype == torch.float32 and images.isfinite().all()


def test_model_offloading_brings_each_model_before_it_is_used(pipeline, device):
    wanted = pipeline(0, generator=seeded(0), output_type="pt").images
    offloaded = build_tiny_class_pipeline(pipeline.transformer.config.patch_size)
    offloaded.enable_model_cpu_offload(device=device)
    calls = []
    for name in ("transformer", "vision_model"):
        hook = offloaded.components[name]._hf_hook
        bring = hook.pre_forward
        hook.pre_forward = lambda *args, name=name, bring=bring, **more: calls.append(name) or bring(*args, **more)
    images = offloaded(0, generator=seeded(0), output_type="pt").images
    assert calls == ["transformer", "vision_model"]
    torch.testing.assert_close(images.cpu(), wanted, atol=1e-4, rtol=0)


def test_a_callback_may_decode_while_models_are_offloaded(pipeline, device):
    """The decoder takes the place of the transformer, which is brought back for the next patch."""
    offloaded = build_tiny_class_pipeline(pipeline.transformer.config.patch_size)
    offloaded.enable_model_cpu_offload(device=device)
    there: list[str] = []
    for name in ("transformer", "vision_model"):
        hook = offloaded.components[name]._hf_hook
        bring = hook.pre_forward
        hook.pre_forward = lambda *args, name=name, bring=bring, **more: there.append(name) or bring(*args, **more)

    def preview(pipe, step, timestep, tensors):
        there.append("a step")
        pipe.decode(tensors["codes"], seeded(0), "pil")
        return {}

    images = offloaded(0, generator=seeded(0), output_type="pt", callback_on_step_end=preview).images
    steps = there.count("a step")
    assert steps > 1 and there == ["transformer", *["a step", "vision_model", "transformer"] * steps, "vision_model"]
    torch.testing.assert_close(
        images.cpu(), pipeline(0, generator=seeded(0), output_type="pt").images, atol=1e-4, rtol=0
    )


def test_sequential_offloading_keeps_nothing_on_the_device(pipeline, device):
    wanted = pipeline(0, generator=seeded(0), output_type="pt").images
    offloaded = build_tiny_class_pipeline(pipeline.transformer.config.patch_size)
    for model in (offloaded.transformer, offloaded.vision_model):
        cpu_offload(model, device)
    images = offloaded(0, generator=seeded(0), output_type="pt").images
    torch.testing.assert_close(images.cpu(), wanted, atol=1e-4, rtol=0)
    assert {parameter.device.type for parameter in offloaded.transformer.parameters()} == {"meta"}


def test_a_model_may_be_swapped(pipeline):
    other = UniWeTokClassToImagePipeline(
        **dict(pipeline.components) | {"transformer": build_tiny_class_to_image(seed=1)}, id2label=LABELS
    )
    other.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 2, "guidance_scale": 2.0}
    assert not torch.equal(generate(other, **options), generate(pipeline, **options))
