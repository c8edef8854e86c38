import pytest
import torch
from safetensors import safe_open

from tests.conversion.published import GOLDEN, to_native, to_published
from uniwetok_hf.conversion.keys import (
    HEAD_RULES,
    PLAIN_HEAD_RULES,
    PROJECTOR_RULES,
    VISION_RULES,
    language_rules,
    native_names,
    published_name,
)
from uniwetok_hf.modeling.configuration_uniwetok_mllm import UniWeTokHeadConfig
from uniwetok_hf.modeling.modeling_uniwetok_head import UniWeTokBinaryHead


@pytest.mark.parametrize(
    "file, rules",
    [
        ("tokenizer_uniwetok/ae.safetensors", VISION_RULES),
        ("tokenizer_bitdance/ae.safetensors", VISION_RULES),
        ("t2i_4x/vision_head.safetensors", HEAD_RULES),
        ("t2i_4x/projector.safetensors", PROJECTOR_RULES),
        ("t2i_4x/model.safetensors", language_rules("model")),
    ],
)
def test_every_golden_name_goes_there_and_back(file, rules):
    with safe_open(GOLDEN / file, "pt") as reader:
        names = list(reader.keys())
    for name in names:
        natives = native_names(name, rules)
        assert natives, name
        assert {published_name(native, rules) for native in natives} == {name}


def test_parts_of_fused_tensors():
    fused = torch.arange(6.0).reshape(6, 1)
    parts = dict(to_native("encoder.mid_attn_blocks.3.attention.wqkv.weight", fused, VISION_RULES))
    prefix = "encoder.transformer.layers.3.self_attn"
    assert {name: part.flatten().tolist() for name, part in parts.items()} == {
        f"{prefix}.q_proj.weight": [0, 1],
        f"{prefix}.k_proj.weight": [2, 3],
        f"{prefix}.v_proj.weight": [4, 5],
    }
    parts = dict(to_native("net.res_blocks.12.w1.bias", torch.arange(4.0), HEAD_RULES))
    assert {name: part.tolist() for name, part in parts.items()} == {
        "layers.12.mlp.gate_proj.bias": [0, 1],
        "layers.12.mlp.up_proj.bias": [2, 3],
    }


def test_names_without_a_rule():
    assert native_names("encoder.conv_in.weight.more", VISION_RULES) == ()
    assert native_names("net.res_blocks.0.mlp.0.weight", HEAD_RULES) == ()
    assert published_name("encoder.conv_in.weights", VISION_RULES) is None
    assert published_name("model.language_model.norm.weight", language_rules("model")) == "model.norm.weight"


def test_base_model_prefix_of_other_language_models():
    rules = language_rules("transformer")
    assert native_names("transformer.h.0.ln_1.weight", rules) == ("model.language_model.h.0.ln_1.weight",)
    assert native_names("model.norm.weight", rules) == ()


@pytest.mark.parametrize("hidden_act, rules", [("swiglu", HEAD_RULES), ("silu", PLAIN_HEAD_RULES)])
def test_rules_of_both_heads_cover_the_model(hidden_act, rules):
    config = UniWeTokHeadConfig(
        num_bits=16, condition_size=8, hidden_size=32, head_dim=16, num_hidden_layers=2, hidden_act=hidden_act
    )
    state_dict = UniWeTokBinaryHead(config).state_dict()
    published = to_published(state_dict, rules)
    assert ("net.res_blocks.0.mlp.0.weight" in published) == (hidden_act == "silu")
    back = {new: part for name, tensor in published.items() for new, part in to_native(name, tensor, rules)}
    assert back.keys() == state_dict.keys()
    assert all(torch.equal(back[name], state_dict[name]) for name in back)
