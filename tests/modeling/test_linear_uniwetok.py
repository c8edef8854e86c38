"""Linear layers with few rows: another order of the same sums, only where it is meant to be."""

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from tiny_models import build_tiny_pipeline
from torch import nn

from uniwetok_hf.modeling.linear_uniwetok import FEWEST, MOST, UniWeTokLinear, use_fast_linears


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
    assert fast._takes_columns(inputs) == (FEWEST <= inputs.numel() // 24 <= MOST)
    results = [usual(inputs), fast(other)]
    torch.testing.assert_close(*results)
    assert results[1].is_contiguous()
    for result in results:
        result.square().sum().backward()
    torch.testing.assert_close(other.grad, inputs.grad)
    torch.testing.assert_close(fast.weight.grad, usual.weight.grad)


def test_other_dtypes_are_left_alone(linears):
    _, fast = linears
    assert not fast._takes_columns(torch.randn(2, 24, dtype=torch.float64))
    fast.to(torch.bfloat16)
    inputs = torch.randn(2, 24, dtype=torch.bfloat16)
    assert not fast._takes_columns(inputs) and fast(inputs).dtype is torch.bfloat16


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
