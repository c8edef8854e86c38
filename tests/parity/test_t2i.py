"""A converted text-to-image model against the golden run (tests/fixtures/golden/README.md)."""

import json

import pytest
import torch
from safetensors.torch import load_file

from uniwetok_hf import UniWeTokPipeline, convert_checkpoint
from uniwetok_hf.modeling.codes_uniwetok import codes_to_tokens


@pytest.fixture
def golden(fixtures, device):
    tensors = load_file(fixtures / "golden" / "t2i_4x" / "golden.safetensors")
    return {name: tensor.to(device) for name, tensor in tensors.items()}


@pytest.fixture
def call(fixtures):
    """The arguments of the golden run."""
    call = json.loads((fixtures / "golden" / "t2i_4x" / "golden.json").read_text())
    return {
        "prompt": call["prompt"],
        "height": call["height"],
        "width": call["width"],
        "num_inference_steps": call["num_sampling_steps"],
        "guidance_scale": call["guidance_scale"],
        "num_images_per_prompt": call["num_images"],
    }


@pytest.fixture(scope="module")
def converted(fixtures, tmp_path_factory):
    return convert_checkpoint(fixtures / "golden" / "t2i_4x", tmp_path_factory.mktemp("t2i") / "out")


@pytest.fixture
def pipeline(converted, device):
    pipeline = UniWeTokPipeline.from_pretrained(converted, dtype=torch.float32).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seed_42():
    return torch.Generator().manual_seed(42)


@torch.no_grad()
def test_head(pipeline, golden):
    prediction = pipeline.mllm.image_head(golden["head_x"], golden["head_t"], golden["head_c"])
    torch.testing.assert_close(prediction, golden["head_out"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_all_bits(pipeline, golden, call, attn_implementation):
    pipeline.mllm.set_attn_implementation(attn_implementation)
    codes = pipeline(**call, generator=seed_42(), output_type="latent").images
    assert codes.shape == golden["codes"].shape == (2, 32, 4, 2)
    assert torch.equal(codes, golden["codes"])
    assert torch.equal(codes_to_tokens(codes, 2), golden["tokens"])


@pytest.mark.parametrize("uses_scheduler", [True, False])
def test_head_conditions(pipeline, golden, call, device, uses_scheduler):
    prompts = [call["prompt"]] * call["num_images_per_prompt"]
    inputs, negative = pipeline.processor.generation_inputs(prompts, call["height"], call["width"])
    output = pipeline.mllm.generate_codes(
        inputs["input_ids"].to(device),
        attention_mask=inputs["attention_mask"].to(device),
        negative_input_ids=negative["input_ids"].to(device),
        guidance_scale=call["guidance_scale"],
        num_inference_steps=call["num_inference_steps"],
        scheduler=pipeline.scheduler if uses_scheduler else None,
        generator=seed_42(),
        output_conditions=True,
    )
    assert torch.equal(output.codes, golden["codes"])
    torch.testing.assert_close(torch.cat(output.conditions, dim=1), golden["head_condition"], atol=1e-4, rtol=0)


@torch.no_grad()
def test_picture(pipeline, golden):
    sample = pipeline.mllm.vision_model.decode(golden["codes"], noise=golden["decoder_noise"]).sample
    torch.testing.assert_close(sample, golden["image"], atol=1e-4, rtol=0)


def test_saved_again(pipeline, golden, call, tmp_path, device):
    pipeline.save_pretrained(tmp_path / "again")
    again = UniWeTokPipeline.from_pretrained(tmp_path / "again", dtype=torch.float32).to(device)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(again(**call, generator=seed_42(), output_type="latent").images, golden["codes"])
