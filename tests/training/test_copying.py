"""Heads that get to copy: what they look at, what they read, and which models have none."""

import copy

import pytest
import torch
from tiny_language import LLAMA, QWEN
from tiny_mllm import BITS, HIDDEN, build, seeded
from tiny_models import build_tiny_mllm
from transformers import CohereConfig, GPT2Config, Qwen3Config

from uniwetok_hf.training.copying import CopyingHeads, add_copying_heads


HEAD_DIM = 8  # two heads carry a token of 16 bits
TEXT = Qwen3Config(**{**QWEN, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": HEAD_DIM})
SETTINGS = CopyingHeads(layer=1, like=2, heads=[0, 1, 3])


@pytest.fixture
def model():
    config = copy.deepcopy(TEXT)
    config.vocab_size = build_tiny_mllm(1).config.text_config.vocab_size
    return build(text_config=config)


def wrong_bits(model, heads, head_dim: int = HEAD_DIM) -> float:
    """Share of bits of random tokens that a linear function of these heads' values in layer 1 gets wrong."""
    tokens = torch.randn(4000, BITS, generator=seeded(1)).sign()
    layer = model.model.language_model.layers[1]
    with torch.no_grad():
        embeddings = model.model.embed_image_tokens(tokens, torch.zeros(HIDDEN))
        values = layer.self_attn.v_proj(layer.input_layernorm(embeddings)).unflatten(-1, (-1, head_dim))
    read = torch.cat([values[:, heads].flatten(1), torch.ones(len(values), 1)], dim=1).double()
    weights = torch.linalg.lstsq(read[:2000], tokens[:2000].double()).solution
    return (read[2000:] @ weights).sign().ne(tokens[2000:]).double().mean().item()


def test_two_heads_carry_what_one_cannot(model):
    before = wrong_bits(model, [0, 1])
    add_copying_heads(model, SETTINGS, seed=0)
    assert wrong_bits(model, [0, 1]) < 0.02 < before
    assert wrong_bits(model, [0]) > 0.1


def test_heads_look_where_the_first_one_looks_and_write_nothing_yet(model):
    before = copy.deepcopy(model)
    add_copying_heads(model, SETTINGS, seed=0)
    old, new = (part.model.language_model.layers[1].self_attn for part in (before, model))
    for name in ("q_proj", "k_proj"):
        found = getattr(new, name).weight.unflatten(0, (4, HEAD_DIM))
        kept = getattr(old, name).weight.unflatten(0, (4, HEAD_DIM))[2]
        assert all(torch.equal(head, kept) for head in found)
    written, kept = (part.o_proj.weight.unflatten(1, (4, HEAD_DIM)) for part in (new, old))
    assert not written[:, [0, 1, 3]].any() and torch.equal(written[:, 2], kept[:, 2])
    values, kept = (part.v_proj.weight.unflatten(0, (4, HEAD_DIM)) for part in (new, old))
    assert torch.equal(values[2], kept[2]) and torch.linalg.matrix_rank(values.flatten(0, 1)) == 4 * HEAD_DIM


def test_values_are_as_long_as_those_of_the_first_head_behind_the_norm(model):
    layer = model.model.language_model.layers[1]
    gains = torch.linspace(0.1, 3.0, HIDDEN)
    layer.input_layernorm.weight.data.copy_(gains)
    add_copying_heads(model, SETTINGS, seed=0)
    values = (layer.self_attn.v_proj.weight * gains).unflatten(0, (4, HEAD_DIM))
    length = values[2].norm(dim=1).mean()
    for head in (0, 1, 3):
        torch.testing.assert_close(values[head] @ values[head].T, length**2 * torch.eye(HEAD_DIM), atol=1e-4, rtol=0)
    assert (values[0] @ values[1].T).abs().max() < 1e-4  # parts of the bits


def test_the_same_seed_gives_the_same_heads(model):
    same, other = copy.deepcopy(model), copy.deepcopy(model)
    for changed, seed in ((model, 0), (same, 0), (other, 1)):
        add_copying_heads(changed, SETTINGS, seed)
    first, second, third = (part.state_dict() for part in (model, same, other))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert not torch.allclose(first["model.projector.fc2.weight"], third["model.projector.fc2.weight"])


def test_bits_that_fill_no_whole_head_are_taken_up_too():
    """16 bits by heads of 12 values."""
    vocab_size = build_tiny_mllm(1).config.text_config.vocab_size
    heads = {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 12, "vocab_size": vocab_size}
    model = build(text_config=Qwen3Config(**{**QWEN, **heads}))
    torch.nn.init.orthogonal_(model.model.projector.fc1.weight, generator=seeded(0))
    add_copying_heads(model, CopyingHeads(layer=1, like=0, heads=[1, 2]), seed=0)
    assert wrong_bits(model, [1, 2], head_dim=12) < 0.02


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"layer": 2}, r"`copying_heads.layer` must be from 0 to 1, got 2"),
        ({"like": 4}, r"heads are from 0 to 3, got 4"),
        ({"heads": [0, -1]}, r"heads are from 0 to 3, got -1"),
        ({"heads": [1, 2]}, r"`copying_heads.heads` must be others than `like`, each once, got \[1, 2\]"),
        ({"heads": [1, 1]}, r"each once, got \[1, 1\]"),
        ({"heads": []}, r"each once, got \[\]"),
    ],
)
def test_heads_that_there_are_not(model, fields, message):
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        add_copying_heads(model, CopyingHeads(**{"layer": 1, "like": 2, "heads": [0, 1]} | fields), seed=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "text, message",
    [
        (Qwen3Config(**QWEN), "needs as many key heads as query heads, got 1 and 2"),
        (Qwen3Config(**{**QWEN, "hidden_size": 8}), "16 bits have no directions of their own among 8"),
        (Qwen3Config(**QWEN, attention_bias=True), "`self_attn.q_proj` must be linear and without bias"),
        (GPT2Config(n_embd=HIDDEN, n_layer=1, n_head=2), "GPT2Model has no `layers`"),
        (CohereConfig(**LLAMA), "`input_layernorm` must be an RMS norm"),
    ],
)
def test_language_models_that_have_no_such_heads(text, message):
    text = copy.deepcopy(text)
    text.vocab_size = build_tiny_mllm(1).config.text_config.vocab_size
    model = build(text_config=text, head={"condition_size": text.hidden_size})
    with pytest.raises(ValueError, match=message):
        add_copying_heads(model, CopyingHeads(0, 0, [1]), seed=0)
