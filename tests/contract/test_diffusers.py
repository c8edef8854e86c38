"""What diffusers expects of every pipeline: the requirements of `PipelineTesterMixin` of its repository.

Those tests are in no distribution on PyPI, so what they require is written here and in tests/pipelines/ (saving,
batches, output types, offloading), and that of `SchedulerCommonTest` in tests/schedulers/. Their own classes were run
by hand on ours, too (diffusers 58eb52c0 against 0.42.1). They fail where the contract has no meaning here:

- `test_compatibles`, `test_trained_betas`: no other scheduler samples bits, and there are no betas
- `test_encode_prompt_works_in_isolation`: the model that reads the prompt is the one that generates
- `test_pipeline_call_signature` of class-to-image: there are no prompts to have a number of images
"""

import inspect
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from PIL import Image
from tiny_mllm import BITS, seeded
from tiny_models import build_tiny_class_pipeline, build_tiny_pipeline

from uniwetok_hf import UniWeTokEditPipeline, UniWeTokPipeline
from uniwetok_hf.modeling.codes_uniwetok import tokens_to_codes
from uniwetok_hf.modeling.noise_uniwetok import draw_noise


CALLS = {
    "text-to-image": {"prompt": "a cat"},
    "edit": {"prompt": "redder"},
    "class-to-image": {"class_labels": 1, "guidance_schedule": "constant"},
}
CASES = [("text-to-image", 1), ("text-to-image", 2), ("edit", 1), ("edit", 2), ("class-to-image", 2)]


@dataclass
class Case:
    """A pipeline of patches of p x p tokens that makes pictures of 2 x 2 patches, and a call of it."""

    pipe: DiffusionPipeline
    call: dict
    p: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return 1, BITS, 2 * self.p, 2 * self.p

    @property
    def first(self) -> tuple[slice, ...]:
        """The place of the first patch."""
        return slice(None), slice(None), slice(self.p), slice(self.p)

    def generate(self, **options) -> torch.Tensor:
        options = {"generator": seeded(0), "output_type": "latent", "return_dict": False} | options
        return self.pipe(**self.call, **options)[0]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def case(request) -> Case:
    kind, p = request.param
    call, side = dict(CALLS[kind]), 64 * p
    if kind == "class-to-image":
        return Case(build_tiny_class_pipeline(p), call, p)
    pipe = build_tiny_pipeline(p, default_size=side, default_image_guidance_scale=1.5)
    if kind == "edit":
        pipe = UniWeTokEditPipeline.from_pipe(pipe)
        pipe.set_progress_bar_config(disable=True)
        pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
        call["image"] = pipe.encode_image(Image.fromarray(pixels))
    return Case(pipe, call, p)


def test_call_signature(case: Case):
    parameters = inspect.signature(type(case.pipe).__call__).parameters
    optional = {name for name, one in parameters.items() if one.default is not inspect.Parameter.empty}
    assert optional >= {"num_inference_steps", "generator", "latents", "output_type", "return_dict", "guidance_scale"}
    assert optional >= {"callback_on_step_end", "callback_on_step_end_tensor_inputs"}
    if "prompt" in parameters:
        assert optional >= {"height", "width", "negative_prompt", "num_images_per_prompt"}


@pytest.mark.parametrize("name", ["prompt_embeds", "negative_prompt_embeds"])
def test_ready_embeddings_are_refused_by_name(case, name):
    with pytest.raises(TypeError, match=f"'{name}'"):
        case.generate(**{name: torch.zeros(1, 4, 32)})


# --- latents ---


def test_latents_are_the_noise_that_each_patch_starts_from(case):
    """The noise that the generator would have given to the first patch, at its place; the rest is another matter."""
    generator, p = seeded(0), case.p
    latents = torch.zeros(case.shape)
    latents[case.first] = tokens_to_codes(draw_noise((1, p * p, BITS), generator, "cpu"), p, p, p)
    codes = case.generate(latents=latents, generator=generator)
    assert torch.equal(codes[case.first], case.generate()[case.first])


def test_latents_matter_everywhere_and_nothing_else_is_changed(case):
    p, latents = case.p, torch.randn(case.shape, generator=seeded(1))
    given = latents.clone()
    codes = case.generate(latents=latents)
    assert torch.equal(latents, given) and codes.abs().unique().tolist() == [1.0]
    assert torch.equal(case.generate(latents=latents.double()), codes)
    last = latents.clone()
    last[:, :, -p:, -p:] *= -3
    other = case.generate(latents=last)
    assert not torch.equal(other[:, :, -p:, -p:], codes[:, :, -p:, -p:])
    other[:, :, -p:, -p:] = codes[:, :, -p:, -p:]
    assert torch.equal(other, codes)


WRONG = {
    "width": lambda latents: latents[..., :-1],
    "pictures": lambda latents: latents.expand(2, -1, -1, -1),
    "no batch": lambda latents: latents[0],
    "whole numbers": lambda latents: latents.long(),
    "no tensor": lambda latents: latents.tolist(),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_wrong_latents_are_named(case, change):
    with pytest.raises(ValueError, match="`latents`"):
        case.generate(latents=change(torch.zeros(case.shape)))


# --- callbacks ---


def test_callback_gets_what_it_asks_for(case):
    pipe, generate, seen = case.pipe, case.generate, []

    def callback(pipe, step, total, tensors):
        seen.append(set(tensors))
        return tensors

    plain = generate()
    for asked in ([], ["latents"], ["codes"], pipe._callback_tensor_inputs):
        codes = generate(callback_on_step_end=callback, callback_on_step_end_tensor_inputs=asked)
        assert torch.equal(codes, plain)
        assert len(seen) == pipe.num_timesteps and all(one == set(asked) for one in seen)
        seen.clear()
    assert {"latents", "codes"} <= set(pipe._callback_tensor_inputs)


class Flips(PipelineCallback):
    tensor_inputs = ["latents"]

    def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
        assert set(callback_kwargs) == set(self.tensor_inputs)
        return {"latents": -callback_kwargs["latents"]} if step_index == 0 else callback_kwargs


def test_callbacks_of_diffusers_get_their_tensors(case):
    wanted = case.generate(**flip_first(lambda tensors: {"latents": -tensors["latents"]}))
    callback = Flips(cutoff_step_ratio=1.0)
    assert torch.equal(case.generate(callback_on_step_end=callback), wanted)
    assert torch.equal(case.generate(callback_on_step_end=MultiPipelineCallbacks([callback])), wanted)
    callback.tensor_inputs = ["prompt_embeds"]
    with pytest.raises(ValueError, match="may hold .*got \\['prompt_embeds'\\]"):
        case.generate(callback_on_step_end=callback)


def flip_first(change, names=("latents",)):
    """A callback that changes the codes after the first patch, as `change` does it."""

    def callback(pipe, step, total, tensors):
        return change(tensors) if step == 0 else None

    return {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": list(names)}


def test_codes_that_a_callback_returns_are_gone_on_from(case):
    generate, first = case.generate, case.first
    plain = generate()
    flipped = generate(**flip_first(lambda tensors: {"latents": -tensors["latents"]}))
    assert torch.equal(flipped[first], -plain[first])
    later = torch.ones(case.shape, dtype=torch.bool)
    later[first] = False
    assert not torch.equal(flipped[later], plain[later])  # the model has read them
    both = ("codes", "latents")
    ways = [
        flip_first(lambda tensors: {"codes": -tensors["codes"]}, ["codes"]),
        flip_first(lambda tensors: tensors | {"latents": -tensors["latents"]}, both),
        flip_first(lambda tensors: tensors | {"codes": -tensors["codes"]}, both),
        flip_first(lambda tensors: {"latents": tensors["latents"].neg_()}),
    ]
    for way in ways:
        assert torch.equal(generate(**way), flipped)
    for unused in (lambda tensors: None, lambda tensors: {}, lambda tensors: {"latents": None}):
        assert torch.equal(generate(**flip_first(unused)), plain)


def test_zeros_from_the_last_step(case):
    """As in diffusers' `test_callback_inputs`."""

    def callback(pipe, step, total, tensors):
        if step == pipe.num_timesteps - 1:
            tensors["latents"] = torch.zeros_like(tensors["latents"])
        return tensors

    names = case.pipe._callback_tensor_inputs
    codes = case.generate(callback_on_step_end=callback, callback_on_step_end_tensor_inputs=names)
    assert codes.abs().sum() == 0


@pytest.mark.parametrize("name", ["width", "pictures", "no tensor"])
def test_wrong_codes_from_a_callback_are_named(case, name):
    with pytest.raises(ValueError, match="`callback_on_step_end` must return `latents`"):
        case.generate(**flip_first(lambda tensors: {"latents": WRONG[name](tensors["latents"])}))


def test_a_callback_changes_the_guidance(case):
    """As in diffusers' `test_callback_cfg`, and the patches that follow have the new scale."""
    pipe, generate, first = case.pipe, case.generate, case.first

    def more(pipe, step, total, tensors):
        pipe._guidance_scale += 1.0
        return tensors

    generate(guidance_scale=2.0, callback_on_step_end=more)
    assert pipe.guidance_scale == 2.0 + pipe.num_timesteps

    def end(pipe, step, total, tensors):
        pipe._guidance_scale = 1.0

    guided, ended = generate(guidance_scale=4.0), generate(guidance_scale=4.0, callback_on_step_end=end)
    assert torch.equal(ended[first], guided[first]) and not torch.equal(ended, guided)
    assert not pipe.do_classifier_free_guidance
    with pytest.raises(ValueError, match="`guidance_scale` must be over 1 from the first patch on"):
        generate(guidance_scale=1.0, callback_on_step_end=more)
    with pytest.raises(ValueError, match="`_guidance_scale` must be a number"):
        generate(callback_on_step_end=lambda pipe, *rest: setattr(pipe, "_guidance_scale", "5"))


# --- negative_prompt of text-to-image ---


@pytest.fixture(scope="module", params=[1, 2], ids=["single tokens", "patches"])
def pipe(request) -> UniWeTokPipeline:
    return build_tiny_pipeline(request.param, default_guidance_scale=3.0)


def generate(pipe, prompt="a cat", **options) -> torch.Tensor:
    options = {"height": 128, "width": 64, "generator": seeded(0), "output_type": "latent"} | options
    return pipe(prompt, **options).images


def test_guidance_is_measured_against_the_negative_prompt(pipe):
    inputs, _ = pipe.processor.generation_inputs(["a cat"], 128, 64)
    negative, _ = pipe.processor.generation_inputs(["a long dog"], 128, 64)
    wanted = pipe.mllm.generate_codes(
        inputs["input_ids"],
        negative_input_ids=negative["input_ids"],
        guidance_scale=3.0,
        num_inference_steps=2,
        generator=seeded(0),
    ).codes
    codes = generate(pipe, negative_prompt="a long dog")
    assert torch.equal(codes, wanted) and not torch.equal(codes, generate(pipe))
    unguided = generate(pipe, guidance_scale=1.0)
    assert torch.equal(generate(pipe, guidance_scale=1.0, negative_prompt="a long dog"), unguided)


@pytest.mark.parametrize("empty", ["", "  ", [""]])
def test_an_empty_negative_prompt_is_none(pipe, empty):
    assert torch.equal(generate(pipe, negative_prompt=empty), generate(pipe))


def test_one_negative_prompt_for_each_prompt(pipe):
    negatives, generators = ["a dog", "", "quite a long text"], [seeded(index) for index in range(6)]
    codes = generate(pipe, ["a", "b", "c"], negative_prompt=negatives, generator=generators, num_images_per_prompt=2)
    for index in range(6):
        alone = generate(
            pipe, "abc"[index // 2], negative_prompt=negatives[index // 2] or None, generator=[seeded(index)]
        )
        assert torch.equal(codes[index], alone[0])


@pytest.mark.parametrize("wrong", [["a", "b"], [], 3, [3], "<|im_end|>", "long " * 5000])
def test_wrong_negative_prompts_are_named(pipe, wrong):
    with pytest.raises(ValueError, match="`negative_prompt`"):
        generate(pipe, negative_prompt=wrong)
