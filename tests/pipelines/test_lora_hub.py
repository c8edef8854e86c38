"""Adapters on the Hub: pushed from a pipeline, loaded by id."""

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from tiny_models import build_tiny_pipeline

from uniwetok_hf.adapters import lora_config


@pytest.fixture
def pipe():
    """The tiny pipeline with an adapter of random weights, "sketch"."""
    pipe = build_tiny_pipeline()
    pipe.mllm.add_adapter(lora_config(r=2), "sketch")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in (p for p in pipe.mllm.parameters() if p.requires_grad):
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return pipe


def adapter(pipe) -> dict[str, torch.Tensor]:
    return pipe.mllm.get_adapter_state_dict(pipe.get_active_adapters()[0])


def test_pushed_and_loaded_by_id(hub, pipe, tmp_path):
    pipe.save_lora_weights(tmp_path / "emoji-sketch", push_to_hub=True, repo_id="org/emoji-sketch", private=True)
    files = {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert set(hub.files("org/emoji-sketch")) == files
    assert HfApi().model_info("org/emoji-sketch").private
    assert 'load_lora_weights("org/emoji-sketch"' in ModelCard.load("org/emoji-sketch").text

    loaded = build_tiny_pipeline()
    loaded.load_lora_weights("org/emoji-sketch", adapter_name="drawn")
    first, second = adapter(pipe), adapter(loaded)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(ValueError, match="`pretrained_model_name_or_path` org/nothing is neither a folder here nor"):
        loaded.load_lora_weights("org/nothing")


def test_pushed_by_transformers(hub, pipe):
    """It pushes the active adapter, not the model; the card is that of an adapter."""
    pipe.mllm.push_to_hub("org/by-transformers")
    assert "config.json" not in hub.files("org/by-transformers")
    assert "model.safetensors" not in hub.files("org/by-transformers")
    assert "An adapter (LORA, rank 2)" in ModelCard.load("org/by-transformers").text
    loaded = build_tiny_pipeline()
    loaded.load_lora_weights("org/by-transformers")
    assert all(torch.equal(tensor, adapter(loaded)[name]) for name, tensor in adapter(pipe).items())
