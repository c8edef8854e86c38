"""The contract of a diffusers pipeline, on the text-to-image pipeline."""

import copy
import inspect
import json

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from diffusers import AutoPipelineForImage2Image, AutoPipelineForText2Image, DDIMScheduler, DiffusionPipeline
from full_disk import files_limited
from PIL import Image
from safetensors import safe_open
from tiny_mllm import BITS, seeded
from tiny_models import build_tiny_pipeline

from uniwetok_hf import (
    BinaryFlowScheduler,
    UniWeTokEditPipeline,
    UniWeTokForCausalLM,
    UniWeTokModel,
    UniWeTokPipeline,
    UniWeTokProcessor,
)
from uniwetok_hf.pipelines import UniWeTokPipelineOutput


DEFAULTS = ("default_size", "default_num_inference_steps", "default_guidance_scale")


@pytest.fixture(scope="module", params=[1, 2], ids=["single tokens", "patches"])
def pipeline(request) -> UniWeTokPipeline:
    return build_tiny_pipeline(request.param)


@pytest.fixture
def side(pipeline) -> int:
    """Pixels of a patch's side."""
    return 32 * pipeline.processor.patch_size


def generate(pipeline: UniWeTokPipeline, prompt="a cat", seed: int = 0, **options) -> torch.Tensor:
    """Codes, unless told otherwise."""
    options = {"output_type": "latent", "generator": seeded(seed)} | options
    return pipeline(prompt, **options).images


# --- what is generated ---


def test_codes_are_those_of_generate_codes(pipeline, side):
    """The pipeline adds nothing to the model and the processor."""
    inputs, negative = pipeline.processor.generation_inputs(["a cat"], 2 * side, side)
    wanted = pipeline.mllm.generate_codes(
        inputs["input_ids"],
        negative_input_ids=negative["input_ids"],
        guidance_scale=3.0,
        num_inference_steps=4,
        generator=seeded(0),
    ).codes
    codes = generate(pipeline, height=2 * side, width=side, guidance_scale=3.0, num_inference_steps=4)
    assert torch.equal(codes, wanted)


def test_everything_that_is_asked_for_matters(pipeline, side):
    size = {"height": 2 * side, "width": 2 * side}
    codes = generate(pipeline, **size)
    assert codes.abs().unique().tolist() == [1.0]
    others = {"prompt": "a dog"}, {"seed": 1}, {"guidance_scale": 6.0}, {"num_inference_steps": 5}
    for other in others:
        assert not torch.equal(generate(pipeline, **size | other), codes), other


def test_same_generator_same_picture(pipeline, side):
    first, again = (pipeline("a cat", side, side, generator=seeded(3), output_type="pt").images for _ in range(2))
    assert torch.equal(first, again)
    state = torch.get_rng_state()
    pipeline("a cat", side, side, generator=seeded(3), output_type="pt")
    assert torch.equal(torch.get_rng_state(), state)  # no other randomness


def test_a_batch_equals_single_pictures(pipeline, side):
    """Prompts of different lengths, one generator a picture, decoder noise included."""
    prompts, size = ["a", "a much longer prompt", "two words"], {"height": 2 * side, "width": side}
    generators = [seeded(s) for s in (5, 6, 7)]
    codes = generate(pipeline, prompts, generator=generators, **size)
    pictures = pipeline(prompts, generator=[seeded(s) for s in (5, 6, 7)], output_type="pt", **size).images
    for row, prompt in enumerate(prompts):
        assert torch.equal(generate(pipeline, prompt, seed=5 + row, **size)[0], codes[row])
        alone = pipeline(prompt, generator=seeded(5 + row), output_type="pt", **size).images
        torch.testing.assert_close(pictures[row], alone[0], atol=1e-4, rtol=0)


def test_pictures_of_one_prompt_lie_side_by_side(pipeline, side):
    size = {"height": side, "width": side}
    generators = [seeded(s) for s in range(4)]
    codes = generate(pipeline, ["a cat", "a dog"], num_images_per_prompt=2, generator=generators, **size)
    assert codes.shape[0] == 4
    for index, prompt in enumerate(["a cat", "a cat", "a dog", "a dog"]):
        assert torch.equal(generate(pipeline, prompt, seed=index, **size)[0], codes[index])


def test_defaults_come_from_the_config(pipeline):
    default = pipeline("a cat", generator=seeded(0), output_type="latent").images
    given = generate(pipeline, height=64, width=64, num_inference_steps=2, guidance_scale=2.0)
    assert torch.equal(default, given)
    half = generate(pipeline, height=128)
    assert half.shape[2:] == (4, 2)


def test_no_guidance_at_one_or_less(pipeline):
    codes = generate(pipeline, guidance_scale=1.0)
    assert not pipeline.do_classifier_free_guidance
    assert torch.equal(generate(pipeline, guidance_scale=0.0), codes)
    assert pipeline.guidance_scale == 0.0
    generate(pipeline, guidance_scale=2.0)
    assert pipeline.do_classifier_free_guidance


def test_scheduler_can_be_swapped_from_its_config(pipeline):
    size = {"height": 128, "width": 128}
    even = generate(pipeline, **size)
    other = UniWeTokPipeline(**pipeline.components, **{name: pipeline.config[name] for name in DEFAULTS})
    other.set_progress_bar_config(disable=True)
    other.scheduler = BinaryFlowScheduler.from_config(pipeline.scheduler.config)
    assert torch.equal(generate(other, **size), even)
    other.scheduler = BinaryFlowScheduler.from_config(pipeline.scheduler.config, shift=8.0)
    assert not torch.equal(generate(other, **size), even)
    assert pipeline.scheduler.config.shift == 1.0


# --- what is returned ---


def test_output_types(pipeline, side):
    height, width, stride = 2 * side, side, 32

    def images(output_type: str):
        return pipeline(["a", "b"], height, width, generator=seeded(0), output_type=output_type).images

    codes, tensor, array, pictures = (images(name) for name in ("latent", "pt", "np", "pil"))
    assert codes.shape == (2, BITS, height // stride, width // stride)
    assert tensor.shape == (2, 3, height, width) and tensor.dtype == torch.float32
    assert 0 <= tensor.min() < 0.4 and 0.6 < tensor.max() <= 1
    assert array.shape == (2, height, width, 3) and array.dtype == np.float32
    np.testing.assert_array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    assert all(isinstance(picture, Image.Image) and picture.size == (width, height) for picture in pictures)
    as_bytes = np.stack([np.asarray(picture) for picture in pictures])
    assert np.abs(as_bytes / 255 - array).max() <= 1 / 255 + 1e-6


def test_pictures_are_the_decoded_codes(pipeline, side):
    generator, again = seeded(0), seeded(0)
    picture = pipeline("a cat", side, side, generator=generator, output_type="pt").images
    codes = generate(
        pipeline, height=side, width=side, generator=again
    )  # leaves its generator before the decoder's noise
    sample = pipeline.mllm.vision_model.decode(codes, generator=again).sample
    torch.testing.assert_close(picture, (sample / 2 + 0.5).clamp(0, 1))


def test_dict_and_tuple_are_the_same(pipeline, side):
    as_dict, as_tuple = (
        pipeline("a", side, side, generator=seeded(0), output_type="np", return_dict=flag) for flag in (True, False)
    )
    assert isinstance(as_dict, UniWeTokPipelineOutput)
    assert isinstance(as_tuple, tuple) and len(as_tuple) == 1
    np.testing.assert_array_equal(as_dict.images, as_tuple[0])


def test_call_signature():
    parameters = inspect.signature(UniWeTokPipeline.__call__).parameters
    wanted = "prompt height width num_inference_steps guidance_scale num_images_per_prompt generator output_type "
    wanted += "return_dict callback_on_step_end callback_on_step_end_tensor_inputs negative_prompt latents"
    assert list(parameters)[1:] == wanted.split()
    assert parameters["output_type"].default == "pil"
    assert parameters["return_dict"].default is True
    assert parameters["num_images_per_prompt"].default == 1


# --- callbacks and progress ---


def test_callback_gets_the_codes_so_far(pipeline, side):
    calls = []

    def callback(pipe, step, total, tensors):
        calls.append((step, total, tensors["codes"].clone()))
        assert pipe is pipeline and set(tensors) == {"codes"}
        return tensors

    whole = generate(pipeline, height=2 * side, width=side, callback_on_step_end=callback)
    p = pipeline.processor.patch_size
    assert [(step, total) for step, total, _ in calls] == [(0, 2), (1, 2)]
    assert pipeline.num_timesteps == 2
    first = calls[0][2]
    assert torch.equal(first[:, :, :p], whole[:, :, :p])
    assert (first[:, :, p:] == 0).all()
    assert torch.equal(calls[1][2], whole)


def test_codes_so_far_can_be_previewed(pipeline, side):
    """Finite pictures of full size that change with every patch; the last of them is the picture."""
    previews = []

    def preview(pipe, step, total, tensors):
        previews.append(pipe.decode(tensors["codes"], seeded(1), "pt"))

    codes = generate(pipeline, height=2 * side, width=2 * side, callback_on_step_end=preview)
    assert len(previews) == 4
    assert all(images.shape == (1, 3, 2 * side, 2 * side) and images.isfinite().all() for images in previews)
    assert torch.equal(previews[-1], pipeline.decode(codes, seeded(1), "pt"))
    assert not any(torch.equal(later, earlier) for earlier, later in zip(previews, previews[1:], strict=False))


def test_callback_can_ask_for_nothing(pipeline, side):
    seen = []
    options = {"callback_on_step_end": lambda *args: seen.append(args[3]), "callback_on_step_end_tensor_inputs": []}
    generate(pipeline, height=side, width=side, **options)
    assert seen == [{}]


def test_interrupt_stops_after_the_patch(pipeline, side):
    def stop(pipe, step, total, tensors):
        pipe._interrupt = step == 0
        return tensors

    p, size = pipeline.processor.patch_size, {"height": 2 * side, "width": side}
    codes = generate(pipeline, callback_on_step_end=stop, **size)
    assert pipeline.interrupt
    assert torch.equal(codes[:, :, :p], generate(pipeline, **size)[:, :, :p])
    assert (codes[:, :, p:] == 0).all()
    assert not pipeline.interrupt  # the next call starts anew
    pictures = pipeline("a", generator=seeded(0), callback_on_step_end=stop, **size).images
    assert pictures[0].size == (side, 2 * side)


def test_progress_bar_counts_patches_and_can_be_disabled(pipeline, side, capsys):
    loud = UniWeTokPipeline(**pipeline.components)
    options = {"height": 3 * side, "width": side, "num_inference_steps": 1, "guidance_scale": 1.0}
    generate(loud, **options)
    assert "3/3" in capsys.readouterr().err
    loud.set_progress_bar_config(disable=True)
    generate(loud, **options)
    assert "3/3" not in capsys.readouterr().err


# --- refused inputs ---


@pytest.mark.parametrize(
    "options, named",
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": "  "}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt"),
        ({"prompt": ["a", 3]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": "a " * 5000}, "prompt"),  # more than the model's positions
        ({"guidance_scale": "3"}, "guidance_scale"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_inference_steps": -1}, "num_inference_steps"),
        ({"num_inference_steps": 2.5}, "num_inference_steps"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt"),
        ({"output_type": "jpg"}, "output_type"),
        ({"generator": [seeded(0)] * 3}, "generator"),
        ({"prompt": ["a", "b"], "generator": [seeded(0)]}, "generator"),
        ({"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, "callback_on_step_end_tensor_inputs"),
        ({"height": 100}, "height"),
        ({"width": 100}, "width"),
        ({"height": 0}, "height"),
        ({"width": -64}, "width"),
        ({"height": 32 * 18}, "height"),
    ],
)
def test_wrong_arguments_are_named(pipeline, options, named):
    with pytest.raises(ValueError, match=f"`{named}`"):
        pipeline(**{"prompt": "a", "output_type": "latent"} | options)


@pytest.mark.parametrize(
    "token", ["<|im_end|>", "<|im_start|>", "<|vision_start|>", "<|image_pad|>", "<|query_1|>", "<|res_2|>"]
)
def test_prompts_with_special_tokens_are_refused(token):
    """They would begin turns and pictures in the middle of the prompt."""
    with pytest.raises(ValueError, match="prompt"):
        build_tiny_pipeline(2)(f"draw {token} here", output_type="latent")


# --- saving, types ---


def test_saved_and_loaded(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    loaded = UniWeTokPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert {name: type(part) for name, part in loaded.components.items()} == {
        "processor": UniWeTokProcessor,
        "mllm": UniWeTokForCausalLM,
        "scheduler": BinaryFlowScheduler,
    }
    for name in DEFAULTS:
        assert loaded.config[name] == pipeline.config[name]
    assert not loaded.mllm.training
    before, after = (pipe("a cat", generator=seeded(0), output_type="pt").images for pipe in (pipeline, loaded))
    torch.testing.assert_close(before, after)  # to the last digit, but for how the weights lie in memory


def test_loaded_in_low_precision(pipeline, tmp_path):
    copy.deepcopy(pipeline).to(torch.bfloat16).save_pretrained(tmp_path)
    as_saved = UniWeTokPipeline.from_pretrained(tmp_path)
    assert as_saved.mllm.dtype == torch.bfloat16
    loaded = UniWeTokPipeline.from_pretrained(tmp_path, dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.mllm.dtype == torch.float32
    rounded = copy.deepcopy(pipeline).to(torch.bfloat16).to(torch.float32)
    assert torch.equal(generate(loaded, guidance_scale=2.0), generate(rounded, guidance_scale=2.0))


def test_saved_folder(pipeline, tmp_path):
    """What `model_index.json` names decides whether the pipeline loads by Hub id without trusting remote code."""
    pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "UniWeTokPipeline"
    assert index["processor"] == ["uniwetok_hf", "UniWeTokProcessor"]
    assert index["mllm"] == ["uniwetok_hf", "UniWeTokForCausalLM"]
    assert index["scheduler"] == ["uniwetok_hf", "BinaryFlowScheduler"]
    assert {path.name for path in tmp_path.iterdir()} >= {"processor", "mllm", "scheduler"}
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.safetensors")] == [
        "mllm/model.safetensors"
    ]
    assert not list(tmp_path.rglob("*.py")) and not list(tmp_path.rglob("*.bin"))


def test_image_tokenizer_is_stored_once_and_loads_alone(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    with safe_open(tmp_path / "mllm" / "model.safetensors", "pt") as weights:
        stored = [name for name in weights.keys() if "vision_model" in name]  # noqa: SIM118, not a dict
    own = pipeline.mllm.vision_model.state_dict()
    assert sorted(stored) == sorted(f"model.vision_model.{name}" for name in own)
    loaded, info = UniWeTokModel.from_pretrained(tmp_path, subfolder="mllm", output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.config.to_dict() == pipeline.mllm.config.vision_config.to_dict() | {
        "_name_or_path": loaded.config._name_or_path,
        "architectures": loaded.config.architectures,
        "dtype": loaded.config.to_dict().get("dtype"),
    }
    assert all(torch.equal(own[name], tensor) for name, tensor in loaded.state_dict().items())


def test_diffusers_finds_our_class(pipeline, side, tmp_path):
    pipeline.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded) is UniWeTokPipeline
    assert torch.equal(generate(loaded, height=side, width=side), generate(pipeline, height=side, width=side))


def test_another_scheduler_or_generator_is_refused(pipeline, side):
    other = UniWeTokPipeline(pipeline.processor, pipeline.mllm, DDIMScheduler(), default_size=side)
    with pytest.raises(ValueError, match="`scheduler` must be a BinaryFlowScheduler.* It is a DDIMScheduler"):
        other("a cat")
    for generator in (0, [seeded(0), 1]):
        with pytest.raises(ValueError, match="`generator` must be a torch.Generator, or a list"):
            pipeline(["a cat", "a dog"], generator=generator)
    assert len(pipeline(["a cat", "a dog"], side, side, generator=(seeded(0), seeded(1))).images) == 2


def test_variants_are_saved_and_loaded(pipeline, side, tmp_path):
    half = copy.deepcopy(pipeline).to(torch.float16)
    half.save_pretrained(tmp_path, variant="fp16")
    assert [path.name for path in tmp_path.rglob("*.safetensors")] == ["model.fp16.safetensors"]
    loaded = UniWeTokPipeline.from_pretrained(tmp_path, variant="fp16", dtype=torch.float16)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.dtype == torch.float16
    size = {"height": side, "width": side}
    assert torch.equal(generate(loaded, **size), generate(half, **size))


def test_weights_of_another_variant_stay(pipeline, side, tmp_path):
    pipeline.save_pretrained(tmp_path, max_shard_size="20KB")
    pipeline.save_pretrained(tmp_path)
    half = copy.deepcopy(pipeline).to(torch.float16)
    half.save_pretrained(tmp_path, variant="fp16", max_shard_size="20KB")
    assert len(list(tmp_path.rglob("*fp16*"))) > 3
    half.save_pretrained(tmp_path, variant="fp16")
    files = sorted(path.name for path in (tmp_path / "mllm").iterdir() if "safetensors" in path.name)
    assert files == ["model.fp16.safetensors", "model.safetensors"]
    loaded = UniWeTokPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    size = {"height": side, "width": side}
    assert torch.equal(generate(loaded, **size), generate(pipeline, **size))


def test_weights_are_saved_as_safetensors(pipeline, tmp_path):
    with pytest.raises(ValueError, match="`safe_serialization` must be True"):
        pipeline.save_pretrained(tmp_path / "pickles", safe_serialization=False)
    assert not (tmp_path / "pickles").exists()


def test_auto_pipelines_find_ours(pipeline, side, tmp_path):
    pipeline.save_pretrained(tmp_path)
    found = AutoPipelineForText2Image.from_pretrained(tmp_path)
    assert type(found) is UniWeTokPipeline and found.config.default_size == pipeline.config.default_size
    edit = AutoPipelineForImage2Image.from_pipe(found)
    assert type(edit) is UniWeTokEditPipeline and edit.mllm is found.mllm
    assert type(AutoPipelineForImage2Image.from_pretrained(tmp_path)) is UniWeTokEditPipeline
    edit.set_progress_bar_config(disable=True)
    assert edit(Image.new("RGB", (side, side)), "x", generator=seeded(0)).images[0].size == (side, side)


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_runs_in_low_precision(pipeline, side, output_type, dtype):
    low = copy.deepcopy(pipeline).to(dtype)
    assert low.dtype == dtype
    images = low("a cat", side, side, generator=seeded(0), output_type=output_type).images
    assert len(images) == 1
    if output_type != "pil":
        assert images.dtype in (torch.float32, np.float32) and np.isfinite(np.asarray(images)).all()


def test_parts_are_named_and_the_offload_order_covers_the_models():
    assert UniWeTokPipeline.model_cpu_offload_seq == "mllm"
    expected, optional = UniWeTokPipeline._get_signature_keys(UniWeTokPipeline)
    assert set(expected) >= {"processor", "mllm", "scheduler"}
    edits = {f"default_{name}" for name in ("image_guidance_scale", "negative_prompt", "describe_first")}
    assert set(optional) == {*DEFAULTS, *edits}


# --- offloading ---


def own(pipeline: UniWeTokPipeline) -> UniWeTokPipeline:
    """A pipeline with a model of its own, which may be moved about."""
    return build_tiny_pipeline(pipeline.processor.patch_size)


def test_model_offloading_brings_the_model_before_it_is_used(pipeline, device):
    """The hook that brings it waits for a call of the whole model, which generation never makes. Where everything is
    on the CPU anyway, the calls of the hook show it."""
    expected = pipeline("a cat", generator=seeded(0), output_type="pt").images
    offloaded = own(pipeline)
    offloaded.enable_model_cpu_offload(device=device)
    hook, calls = offloaded.mllm._hf_hook, []
    bring, forward = hook.pre_forward, offloaded.mllm.model.forward
    hook.pre_forward = lambda *args, **kwargs: calls.append("brought") or bring(*args, **kwargs)
    offloaded.mllm.model.forward = lambda *args, **kwargs: calls.append("used") or forward(*args, **kwargs)
    images = offloaded("a cat", generator=seeded(0), output_type="pt").images
    assert calls[:2] == ["brought", "used"]
    torch.testing.assert_close(images.cpu(), expected, atol=1e-4, rtol=0)
    assert offloaded.mllm._hf_hook is not hook  # put away again, for the next call
    assert next(offloaded.mllm.parameters()).device.type == "cpu"


def test_sequential_offloading_keeps_nothing_on_the_device(pipeline, device):
    """accelerate's hooks on every layer, as `enable_sequential_cpu_offload` sets them; that itself wants an index on
    its device, with which accelerate can't handle the CPU."""
    offloaded = own(pipeline)
    if device.type == "cpu":
        cpu_offload(offloaded.mllm, device)
    else:
        offloaded.enable_sequential_cpu_offload(device=device)
    assert {parameter.device.type for parameter in offloaded.mllm.parameters()} == {"meta"}
    images = offloaded("a cat", generator=seeded(0), output_type="pt").images
    expected = pipeline("a cat", generator=seeded(0), output_type="pt").images
    torch.testing.assert_close(images.cpu(), expected, atol=1e-4, rtol=0)
    assert {parameter.device.type for parameter in offloaded.mllm.parameters()} == {"meta"}
    source, call = Image.new("RGB", (64, 64), "red"), {"describe_first": True, "num_inference_steps": 1}
    edits = [UniWeTokEditPipeline.from_pipe(one)(source, "green", **call) for one in (offloaded, pipeline)]
    assert edits[0].descriptions == edits[1].descriptions


@pytest.mark.parametrize("offload_type", ["leaf_level", "block_level"])
def test_group_offloading(pipeline, device, offload_type):
    offloaded = own(pipeline)
    options = {"num_blocks_per_group": 1} if offload_type == "block_level" else {}
    offloaded.enable_group_offload(device, offload_type=offload_type, **options)
    images = offloaded("a cat", generator=seeded(0), output_type="pt").images
    expected = pipeline("a cat", generator=seeded(0), output_type="pt").images
    torch.testing.assert_close(images.cpu(), expected, atol=1e-4, rtol=0)


def test_offloading_without_a_device_to_offload_from_is_refused(pipeline):
    if torch.accelerator.is_available():
        pytest.skip("there is such a device here")
    with pytest.raises(RuntimeError, match="requires accelerator"):
        own(pipeline).enable_model_cpu_offload()


def test_pictures_are_decoded_without_a_graph(pipeline):
    codes, graphs = pipeline("a cat", generator=seeded(0), output_type="latent").images, []
    decoder = pipeline.mllm.vision_model.decoder
    assert any(parameter.requires_grad for parameter in decoder.parameters())
    hook = decoder.register_forward_hook(lambda module, inputs, output: graphs.append(output.requires_grad))
    pipeline.decode(codes, seeded(0), "pil")
    hook.remove()
    assert graphs == [False]


def test_an_older_pipeline_stays_when_the_disk_is_full(tmp_path):
    folder = tmp_path / "pipe"
    build_tiny_pipeline(seed=0).save_pretrained(folder)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for size in (0, 1_000, 50_000):  # other files are the first that don't fit
        with files_limited(size), pytest.raises(OSError, match="pipe can't be written: File too large"):
            build_tiny_pipeline(seed=1).save_pretrained(folder)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
