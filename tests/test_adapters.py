"""Adapters on the language model, the head and the image tokenizer's decoder, by `peft` and by transformers."""

import json

import pytest
import torch
from huggingface_hub import ModelCard
from peft import IA3Config, LoHaConfig, LoraConfig, PeftModel, get_peft_model
from tiny_mllm import seeded, training_batch
from tiny_models import build_tiny_mllm

from uniwetok_hf.adapters import lora_config, register_default_targets, save_adapter, target_modules


PLACES = {"language_model": "model.language_model.", "head": "image_head.", "decoder": "model.vision_model.decoder."}


def adapted(model) -> set[str]:
    """Names of the layers that have an adapter."""
    return {name.split(".lora_")[0] for name, _ in model.named_parameters() if ".lora_A" in name}


def disturb(model, seed: int = 0) -> None:
    """Gives the adapters' parameters random values: new ones change nothing."""
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def losses(model) -> torch.Tensor:
    inputs, codes = training_batch()
    output = model(**inputs, codes=codes, generator=seeded(0))
    return torch.stack([output.text_loss, output.image_loss])


def decoded(model) -> torch.Tensor:
    model = getattr(model, "vision_model", model)
    return model.decode(torch.ones(1, 16, 2, 2), generator=seeded(0)).sample


CONFIGS = {
    "lora": lora_config,
    "dora": lambda part: lora_config(part, use_dora=True),
    "loha": lambda part: LoHaConfig(target_modules=target_modules(part)),
}


@pytest.mark.parametrize("part", PLACES)
@pytest.mark.parametrize("method", CONFIGS)
def test_each_method_on_each_part_learns_and_merges(method, part):
    model = build_tiny_mllm()
    with torch.no_grad():
        before = losses(model), decoded(model)
    peft_model = get_peft_model(model, CONFIGS[method](part))
    trained = {name for name, p in peft_model.named_parameters() if p.requires_grad}
    assert trained and all(name.startswith("base_model.model." + PLACES[part]) for name in trained)
    torch.testing.assert_close(losses(peft_model), before[0])  # a new adapter changes nothing

    disturb(peft_model)
    value = decoded(peft_model).square().mean() if part == "decoder" else losses(peft_model).sum()
    value.backward()
    without = [name for name, p in peft_model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without

    with torch.no_grad():
        after = losses(peft_model), decoded(peft_model)
        merged = peft_model.merge_and_unload()
        torch.testing.assert_close((losses(merged), decoded(merged)), after, rtol=1e-4, atol=1e-4)
    is_changed = [not torch.allclose(old, new, atol=1e-4) for old, new in zip(before, after, strict=True)]
    assert is_changed == ([False, True] if part == "decoder" else [True, False])
    assert type(merged) is type(model) and not adapted(merged)


def test_ia3_takes_the_targets_too():
    part = target_modules("language_model")
    peft_model = get_peft_model(
        build_tiny_mllm(), IA3Config(target_modules=part, feedforward_modules=r".*\.(up|down|gate)_proj")
    )
    losses(peft_model).sum().backward()
    trained = [p for p in peft_model.parameters() if p.requires_grad]
    assert len(trained) == 14 and all(p.grad is not None for p in trained)


def test_a_config_without_targets_has_ours():
    register_default_targets()
    model = build_tiny_mllm()
    parts = {"": ("language_model", "head"), "vision_model": ("decoder",), "image_head": ("head",)}
    for name, expected in parts.items():
        module = getattr(model, name) if name else model
        chosen = adapted(get_peft_model(module, LoraConfig()))
        module = getattr(build_tiny_mllm(), name) if name else build_tiny_mllm()
        assert chosen and chosen == adapted(get_peft_model(module, lora_config(*expected)))
        model = build_tiny_mllm()


def test_the_targets_are_all_projections_and_nothing_else():
    names = {
        name.removeprefix("base_model.model.") for name in adapted(get_peft_model(build_tiny_mllm(), lora_config()))
    }
    linear = {name for name, module in build_tiny_mllm().named_modules() if isinstance(module, torch.nn.Linear)}
    kept = {"lm_head", *(name for name in linear if "vision_model" in name or "projector" in name)}
    kept |= {f"image_head.{name}" for name in ("input_proj", "proj_out", "modulation_out")}
    kept |= {f"image_head.time_embed.fc{i}" for i in (1, 2)}
    kept |= {f"image_head.layers.{i}.self_attn.{x}_proj" for i in (0, 1) for x in "qk"}
    assert names == linear - kept


def test_drawing_through_a_peft_model():
    model = build_tiny_mllm()
    peft_model = get_peft_model(model, lora_config("head"))
    inputs = {"input_ids": torch.tensor([[259, 262, 262]]), "num_inference_steps": 2}  # <|vision_start|>, 1 x 1
    before = peft_model.generate_codes(**inputs, generator=seeded(0)).codes
    disturb(peft_model, seed=1)
    assert not torch.equal(peft_model.generate_codes(**inputs, generator=seeded(0)).codes, before)


@pytest.mark.parametrize("problem", [{"parts": ["LM"]}, {"parts": ["head", "encoder"]}])
def test_unknown_parts_are_named(problem):
    with pytest.raises(
        ValueError, match=f"`parts` must be of language_model, head, decoder, got '{problem['parts'][-1]}'"
    ):
        lora_config(*problem["parts"])


def test_transformers_adapters_are_added_switched_saved_and_loaded(tmp_path):
    model = build_tiny_mllm()
    plain = losses(model)
    model.add_adapter(lora_config("language_model", r=4, lora_alpha=8), "one")
    disturb(model)
    one = losses(model).detach()
    model.add_adapter(lora_config("head"), "two")
    disturb(model, seed=1)
    two = losses(model).detach()
    model.set_adapter("one")
    torch.testing.assert_close(losses(model), one)
    model.set_adapter("two")
    torch.testing.assert_close(losses(model), two)
    model.disable_adapters()
    torch.testing.assert_close(losses(model), plain)
    assert not torch.allclose(one, plain) and not torch.allclose(two, plain) and not torch.allclose(one, two)

    model.peft_config["one"].base_model_name_or_path = str(tmp_path)  # a path says too much
    (tmp_path / "kept.txt").write_text("mine")
    save_adapter(model, tmp_path, "one")
    files = {"README.md", "adapter_config.json", "adapter_model.safetensors", "kept.txt"}
    assert {path.name for path in tmp_path.iterdir()} == files
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None and config["r"] == 4 and config["lora_alpha"] == 8
    assert "rank 4" in ModelCard.load(tmp_path / "README.md").text

    by_transformers = build_tiny_mllm()
    by_transformers.load_adapter(str(tmp_path), "sketch")
    torch.testing.assert_close(losses(by_transformers), one)
    by_peft = PeftModel.from_pretrained(build_tiny_mllm(), tmp_path)
    torch.testing.assert_close(losses(by_peft), one)
    save_adapter(model, tmp_path, "two", base_model="someone/emoji")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model == "someone/emoji" and "lora" in card.data.tags


def test_pushing_a_model_with_adapters_writes_their_card(hub):
    model = build_tiny_mllm()
    model.add_adapter(lora_config())
    model.push_to_hub("org/sketch")
    files = hub.files("org/sketch")
    assert {"adapter_config.json", "adapter_model.safetensors"} < files.keys() and "model.safetensors" not in files
    assert 'pipe.load_lora_weights("org/sketch"' in files["README.md"].decode()
