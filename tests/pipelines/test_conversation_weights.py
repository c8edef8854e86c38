# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""A conversation whose model changes between turns goes on as a new one with the same history would."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_mllm import answer_with_pictures, seeded, with_random_weights
from tiny_models import build_tiny_mllm, build_tiny_pipeline

from uniwetok_hf import UniWeTokConversation, UniWeTokPipeline
from uniwetok_hf.adapters import lora_config, save_adapter
from uniwetok_hf.pipelines.weights_state import state_digest


@pytest.fixture
def pipe() -> UniWeTokPipeline:
    pipe = build_tiny_pipeline(1)
    with_random_weights(pipe.mllm)
    answer_with_pictures(pipe.mllm, pipe.processor)
    return pipe


@pytest.fixture
def adapter(tmp_path):
    model = build_tiny_mllm()
    model.add_adapter(lora_config("language_model", r=4))
    generator = seeded(1)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    save_adapter(model, tmp_path / "adapter")
    return tmp_path / "adapter"


def load(pipe, adapter):
    pipe.load_lora_weights(adapter, adapter_name="one")


def fuse(pipe, adapter):
    load(pipe, adapter)
    pipe.fuse_lora()


def fuse_for_good(pipe, adapter):
    fuse(pipe, adapter)
    pipe.unload_lora_weights()


def load_other_weights(pipe, adapter):
    weights = {name: 1.1 * tensor for name, tensor in pipe.mllm.state_dict().items()}
    pipe.mllm.load_state_dict(weights)


def assign_other_weights(pipe, adapter):
    weights = {name: 1.1 * tensor for name, tensor in pipe.mllm.state_dict().items()}
    pipe.mllm.load_state_dict(weights, assign=True)


def write_past_autograd(pipe, adapter):
    for parameter in pipe.mllm.parameters():
        parameter.data.mul_(1.1)


def train_a_step(pipe, adapter):
    parameters = list(pipe.mllm.model.language_model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=0.05)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad()


def other_model(pipe, adapter):
    other = copy.deepcopy(pipe.mllm)
    load_other_weights(pipe, adapter)
    pipe.register_modules(mllm=other)
    write_past_autograd(pipe, adapter)


def other_dtype(pipe, adapter):
    pipe.to(torch.float64)


CHANGES = [
    load,
    fuse,
    fuse_for_good,
    load_other_weights,
    assign_other_weights,
    write_past_autograd,
    train_a_step,
    other_model,
    other_dtype,
]


def keys(talk) -> torch.Tensor:
    """What the cache holds of all turns."""
    return torch.cat([layer.keys.flatten() for layer in talk._cache.layers])


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_conversation_goes_on_as_a_new_one_would(pipe, adapter, change, tmp_path):
    talk = UniWeTokConversation(pipe)
    talk.say("draw a cat", generator=seeded(0))
    change(pipe, adapter)
    fresh = UniWeTokConversation.load(talk.save(tmp_path / "talk"), pipe)
    replies = [one.say("and again", generator=seeded(1)) for one in (talk, fresh)]
    assert torch.equal(replies[0].codes[0], replies[1].codes[0])
    torch.testing.assert_close(keys(talk), keys(fresh), rtol=0, atol=0)


def test_adapters_that_are_switched(pipe, adapter, tmp_path):
    """Another scale, off, on, fused and taken out again, removed."""
    load(pipe, adapter)
    talk = UniWeTokConversation(pipe)
    talk.say("draw a cat", generator=seeded(0))
    for turn, change in enumerate(
        [
            lambda: pipe.set_adapters("one", 0.5),
            pipe.disable_lora,
            pipe.enable_lora,
            lambda: (pipe.fuse_lora(), pipe.unfuse_lora()),
            lambda: pipe.delete_adapters("one"),
        ]
    ):
        change()
        fresh = UniWeTokConversation.load(talk.save(tmp_path / "talk"), pipe)
        for one in (talk, fresh):
            one.say("and again", generator=seeded(turn))
        torch.testing.assert_close(keys(talk), keys(fresh), rtol=0, atol=0)


def test_the_cache_stays_while_nothing_changes(pipe):
    talk = UniWeTokConversation(pipe)
    talk.say("draw a cat", generator=seeded(0))
    cache = talk._cache
    pipe("something else", generator=seeded(0))
    UniWeTokConversation(pipe).say("draw a dog", generator=seeded(0))
    talk.say("and again", generator=seeded(1))
    assert talk._cache is cache


def test_one_changed_weight_is_seen(pipe, tmp_path):
    """In-place operations count, wherever they write."""
    save_file(pipe.mllm.state_dict(), tmp_path / "weights.safetensors")
    digest = state_digest(pipe.mllm)
    assert state_digest(pipe.mllm) == digest
    weight = pipe.mllm.model.language_model.layers[1].mlp.up_proj.weight
    with torch.no_grad():
        weight[3, 5] += 1
    other = state_digest(pipe.mllm)
    assert other != digest
    pipe.mllm.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert state_digest(pipe.mllm) not in (digest, other)  # the same values, written twice
    pipe.mllm.train()
    trains = state_digest(pipe.mllm)
    pipe.mllm.eval()
    assert state_digest(pipe.mllm) != trains
