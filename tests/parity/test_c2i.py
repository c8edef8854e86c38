"""Converted class-to-image models against the golden runs (tests/fixtures/golden/README.md)."""

import json

import pytest
import torch
from safetensors.torch import load_file

from uniwetok_hf import UniWeTokClassToImagePipeline, convert_checkpoint
from uniwetok_hf.modeling.codes_uniwetok import codes_to_tokens


@pytest.fixture(scope="module", params=["c2i_1x", "c2i_4x"])
def folder(request, fixtures):
    return fixtures / "golden" / request.param


@pytest.fixture(scope="module")
def converted(folder, tmp_path_factory):
    return convert_checkpoint(folder, tmp_path_factory.mktemp("c2i") / "out")


@pytest.fixture
def pipeline(converted, device):
    pipeline = UniWeTokClassToImagePipeline.from_pretrained(converted, dtype=torch.float32).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def golden(folder, device):
    return {name: tensor.to(device) for name, tensor in load_file(folder / "golden.safetensors").items()}


@pytest.fixture
def call(folder):
    return json.loads((folder / "golden.json").read_text())


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_every_bit_and_condition(pipeline, golden, call, attn_implementation):
    pipeline.transformer.set_attn_implementation(attn_implementation)
    output = pipeline.transformer.generate_codes(
        torch.tensor(call["class_labels"], device=golden["codes"].device),
        call["cfg_scale"],
        call["cfg_schedule"],
        call["num_sampling_steps"],
        generator=torch.Generator().manual_seed(call["seed"]),
        output_conditions=True,
    )
    assert torch.equal(output.codes, golden["codes"])
    conditions = torch.stack(output.conditions).view_as(golden["head_condition"])
    torch.testing.assert_close(conditions, golden["head_condition"], atol=1e-4, rtol=0)


def test_the_pipeline_generates_the_same(pipeline, golden, call):
    generator = torch.Generator().manual_seed(call["seed"])
    options = {"num_inference_steps": call["num_sampling_steps"], "guidance_scale": call["cfg_scale"]}
    codes = pipeline(call["class_labels"], **options, generator=generator, output_type="latent").images
    assert torch.equal(codes, golden["codes"])
    with torch.no_grad():
        torch.testing.assert_close(pipeline.vision_model.decode(codes).sample, golden["image"], atol=1e-4, rtol=0)


def test_loss_and_gradients(pipeline, golden, call):
    model, draws = pipeline.transformer, call["diff_batch_mul"]
    patch_size, block = model.config.patch_size, model.config.tokens_per_patch
    labels = torch.tensor(call["class_labels"], device=golden["codes"].device)
    conditions = model.read(golden["codes"], labels)
    torch.testing.assert_close(
        conditions.view_as(golden["train_condition"]), golden["train_condition"], atol=1e-4, rtol=0
    )
    tokens = codes_to_tokens(golden["codes"], patch_size).reshape(-1, block, model.config.num_bits)
    tokens = tokens.repeat(draws, 1, 1)  # [draws * M, P, bits]
    conditions = conditions.reshape(-1, block, conditions.shape[-1]).repeat(draws, 1, 1)
    noise = golden["train_noise"].view_as(tokens)
    loss = model.image_head.losses_at(tokens, conditions, golden["train_timesteps"], noise)[0].mean()
    torch.testing.assert_close(loss, golden["train_loss"][0], atol=0, rtol=1e-5)

    loss.backward()
    attention = model.layers[0].self_attn
    qkv = torch.cat([part.weight.grad for part in (attention.q_proj, attention.k_proj, attention.v_proj)])
    gradients = {
        "cls_embedding.weight": model.class_embedding.weight.grad,
        "head.net.final_layer.linear.weight": model.image_head.proj_out.weight.grad,
        "layers.0.attention.wqkv.weight": qkv,
        "pos_for_diff.weight": model.position_embedding.weight.grad,
    }
    assert set(gradients) == {name.removeprefix("grad.") for name in golden if name.startswith("grad.")}
    for name, gradient in gradients.items():
        wanted = golden[f"grad.{name}"]
        assert (gradient - wanted).abs().max() <= 1e-4 * wanted.abs().max(), name
