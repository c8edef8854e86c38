"""Heads that get to copy: what they look at, what they read, and which models have none."""

import copy

import pytest
import torch
from tiny_language import QWEN
from tiny_mllm import BITS, HIDDEN, build, seeded
from tiny_models import build_tiny_mllm
from transformers import GPT2Config, Qwen3Config

from uniwetok_hf.training.copying import CopyingHeads, add_copying_heads


HEAD_DIM = 8  # two heads carry a token of 16 bits
TEXT = Qwen3Config(**{**QWEN, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": HEAD_DIM})
SETTINGS = CopyingHeads(layer=1, like=2, heads=[0, 1, 3])


@pytest.fixture
def model():
    config = copy.deepcopy(TEXT)
    config.vocab_size = build_tiny_mllm(1).config.text_config.vocab_size
    return build(text_config=config)


def wrong_bits(model, heads) -> float:
    """Share of bits of random tokens that a linear function of these heads' values in layer 1 gets wrong."""
    tokens = torch.randn(4000, BITS, generator=seeded(1)).sign()
    layer = model.model.language_model.layers[1]
    with torch.no_grad():
        embeddings = model.model.embed_image_tokens(tokens, torch.zeros(HIDDEN))
        values = layer.self_attn.v_proj(layer.input_layernorm(embeddings)).unflatten(-1, (-1, HEAD_DIM))
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


def test_the_same_seed_gives_the_same_heads(model):
    same, other = copy.deepcopy(model), copy.deepcopy(model)
    for changed, seed in ((model, 0), (same, 0), (other, 1)):
        add_copying_heads(changed, SETTINGS, seed)
    weights = [part.model.projector.fc2.weight for part in (model, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.allclose(weights[0], weights[2])


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


def test_language_models_that_have_no_such_heads():
    vocab_size = build_tiny_mllm(1).config.text_config.vocab_size
    shared_keys = Qwen3Config(**QWEN, vocab_size=vocab_size)
    with pytest.raises(ValueError, match="needs a key head for each query head"):
        add_copying_heads(build(text_config=shared_keys), CopyingHeads(0, 0, [1]), seed=0)
    narrow = Qwen3Config(**{**QWEN, "hidden_size": 8, "num_key_value_heads": 2, "vocab_size": vocab_size})
    with pytest.raises(ValueError, match="16 bits have no directions of their own among 8"):
        add_copying_heads(build(text_config=narrow, head={"condition_size": 8}), CopyingHeads(0, 0, [1]), seed=0)
    other = GPT2Config(n_embd=HIDDEN, n_layer=1, n_head=2, vocab_size=vocab_size)
    with pytest.raises(ValueError, match="layers as those of Llama or Qwen3|`copying_heads.layer`"):
        add_copying_heads(build(text_config=other), CopyingHeads(0, 0, [1]), seed=0)
