"""Linear layers with few rows: another order of the same sums, only where it is meant to be."""

import copy
import pickle

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from tiny_models import build_tiny_pipeline
from torch import nn

from uniwetok_hf.modeling.linear_uniwetok import UniWeTokLinear, pack_linears, use_fast_linears


@pytest.fixture
def linears():
    """The usual layer, and ours with its weights."""
    usual = nn.Linear(24, 40)
    fast = nn.Sequential(nn.Linear(24, 40))
    fast[0].load_state_dict(usual.state_dict())
    use_fast_linears(fast)
    return usual, fast[0]


def test_layers_become_fast_and_keep_names(linears):
    usual, fast = linears
    assert type(fast) is UniWeTokLinear and list(fast.state_dict()) == list(usual.state_dict())
    mllm = build_tiny_pipeline().mllm
    parts = (mllm.model.language_model.layers[0].mlp.up_proj, mllm.image_head.layers[0].mlp.up_proj, mllm.lm_head)
    assert all(type(part) is UniWeTokLinear for part in parts)


@pytest.mark.parametrize("shape", [(1, 24), (2, 24), (2, 1, 24), (1, 5, 24), (6, 24), (2, 2, 24), (0, 24), (24,)])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients(linears, shape, bias):
    usual, fast = linears
    if not bias:
        usual.bias = fast.bias = None
    inputs = torch.randn(shape, requires_grad=True)
    other = inputs.detach().clone().requires_grad_()
    assert fast._is_fast(inputs)
    results = [usual(inputs), fast(other)]
    torch.testing.assert_close(*results)
    assert results[1].is_contiguous()
    for result in results:
        result.square().sum().backward()
    torch.testing.assert_close(other.grad, inputs.grad)
    torch.testing.assert_close(fast.weight.grad, usual.weight.grad)


def test_other_dtypes_are_left_alone(linears):
    _, fast = linears
    fast.to(torch.bfloat16)
    inputs = torch.randn(2, 24, dtype=torch.bfloat16)
    assert not fast._is_fast(inputs) and fast(inputs).dtype is torch.bfloat16


@pytest.mark.parametrize("rows", [1, 3, 8, 40])
def test_packed_weights(linears, rows):
    usual, fast = linears
    pack_linears(fast, rows=8)
    inputs = torch.randn(2, rows, 24)
    with torch.no_grad():
        torch.testing.assert_close(fast(inputs), usual(inputs))
        for layer in (usual, fast):
            layer.weight.mul_(2)
        torch.testing.assert_close(fast(inputs), usual(inputs))  # not the packed ones of before
        pack_linears(fast, rows=8)
        for layer in (usual, fast):
            layer.weight.data += 1  # as peft fuses an adapter
        torch.testing.assert_close(fast(inputs), usual(inputs))
    assert list(fast.state_dict()) == list(usual.state_dict())
    for layer in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert layer._packed is None
        torch.testing.assert_close(layer(inputs), usual(inputs))
    fast(inputs).sum().backward()
    assert fast.weight.grad is not None


@pytest.mark.parametrize("shape", [(6, 24), (2, 40, 24)])
@pytest.mark.parametrize("bias", [True, False])
def test_weights_in_int8(linears, shape, bias):
    usual, fast = linears
    if not bias:
        usual.bias = fast.bias = None
    pack_linears(fast, dtype=torch.int8)
    inputs = torch.randn(shape)
    inputs[..., :1] *= 5  # rows of other scales
    with torch.no_grad():
        found, expected = fast(inputs), usual(inputs)
        assert found.shape == expected.shape and found.dtype is torch.float32
        error = (found - expected).abs().max() / expected.abs().max()
        assert 0 < error < 0.03  # a hundred and twenty-seventh for each factor, and most of it cancels
        for few in (inputs[..., :0, :], inputs.reshape(-1, 24)[:4]):
            torch.testing.assert_close(fast(few), usual(few))  # exact
        usual.weight.mul_(2)
        fast.weight.mul_(2)
        torch.testing.assert_close(fast(inputs), usual(inputs))  # a changed weight is taken as it is
    fast(inputs).sum().backward()
    assert fast.weight.grad is not None


def test_rows_of_zeros_in_int8(linears):
    _, fast = linears
    pack_linears(fast, dtype=torch.int8)
    with torch.no_grad():
        torch.testing.assert_close(fast(torch.zeros(8, 24)), fast.bias.expand(8, 40))
        fast.weight.zero_()
        pack_linears(fast, dtype=torch.int8)
        torch.testing.assert_close(fast(torch.randn(8, 24)), fast.bias.expand(8, 40))


def test_a_packed_model_generates_the_same():
    pipe = build_tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    settings = {"prompt": ["a cat"] * 4, "guidance_scale": 3.0, "output_type": "latent", "num_inference_steps": 2}
    settings["generator"] = [torch.Generator().manual_seed(seed) for seed in range(4)]
    before = pipe(**settings).images
    pack_linears(pipe.mllm, rows=8)
    settings["generator"] = [torch.Generator().manual_seed(seed) for seed in range(4)]
    after = pipe(**settings).images
    equal = torch.stack([(one > 0) == (other > 0) for one, other in zip(before, after, strict=True)])
    assert equal.float().mean() > 0.99


@pytest.mark.parametrize(
    "model, rows, message",
    [
        (nn.Linear(4, 4), 8, "no linear layers that can be packed"),
        (UniWeTokLinear(4, 4, dtype=torch.bfloat16), 8, "in float32 on a CPU"),
        (UniWeTokLinear(4, 4), 0, "`rows` must be 1 or more"),
    ],
)
def test_what_can_not_be_packed(model, rows, message):
    with pytest.raises(ValueError, match=message):
        pack_linears(model, rows)


def test_dtypes_of_packed_weights():
    with pytest.raises(ValueError, match="`dtype` must be torch.float32 or torch.int8, got torch.bfloat16"):
        pack_linears(UniWeTokLinear(4, 4), dtype=torch.bfloat16)


def test_autocast(linears):
    usual, fast = linears
    inputs = torch.randn(2, 24)
    with torch.autocast("cpu", torch.bfloat16):
        assert fast(inputs).dtype is usual(inputs).dtype is torch.bfloat16
        torch.testing.assert_close(fast(inputs), usual(inputs))


def test_adapters_take_them_for_linear_layers(linears):
    _, fast = linears
    model = nn.ModuleDict({"part": fast})
    inputs = torch.randn(3, 24)
    before = model["part"](inputs)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["part"]), model)
    torch.testing.assert_close(model["part"](inputs), before)
