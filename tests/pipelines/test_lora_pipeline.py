"""Adapters in a pipeline: by name, with a weight, switched, merged, saved, and refused where they don't fit."""

import json

import pytest
import torch
from peft import IA3Config, LoHaConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import build_tiny_class_pipeline, build_tiny_mllm, build_tiny_pipeline

from uniwetok_hf import UniWeTokClassToImagePipeline, UniWeTokEditPipeline, UniWeTokPipeline
from uniwetok_hf.adapters import lora_config, save_adapter, target_modules


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randomize(model, seed: int) -> None:
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def make_adapter(folder, seed: int, config=None, **options):
    """An adapter of the tiny model with random weights."""
    model = build_tiny_mllm(**options)
    model.add_adapter(config or lora_config("language_model", "head", r=4))
    randomize(model, seed)
    save_adapter(model, folder)
    return folder


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Two adapters, of all and of the head alone."""
    folder = tmp_path_factory.mktemp("adapters")
    return make_adapter(folder / "one", 1), make_adapter(folder / "two", 2, lora_config("head", r=2, lora_alpha=4))


def generate(pipe) -> torch.Tensor:
    return pipe("a red apple", generator=seeded(0), output_type="pt").images


def conditions(pipe) -> torch.Tensor:
    """What the whole model computes, without the rounding to bits that hides small differences."""
    inputs, _ = pipe.processor.generation_inputs(["a red apple"], 64, 64)
    output = pipe.mllm.generate_codes(
        inputs["input_ids"], num_inference_steps=2, output_conditions=True, generator=seeded(0)
    )
    head = pipe.mllm.image_head(torch.ones(1, 1, 16), torch.ones(1), torch.ones(1, 1, 32))
    return torch.cat([torch.cat(output.conditions)[:1].flatten(), head.detach().flatten()])


def test_by_name_with_a_weight(adapters):
    pipe = build_tiny_pipeline()
    plain = conditions(pipe), generate(pipe)
    pipe.load_lora_weights(adapters[0], adapter_name="one")
    assert pipe.get_active_adapters() == ["one"] and pipe.get_list_adapters() == {"mllm": ["one"]}
    one = conditions(pipe)
    assert not torch.allclose(one, plain[0], atol=1e-2) and not torch.equal(generate(pipe), plain[1])

    pipe.set_adapters("one", 0.5)
    half = conditions(pipe)
    assert not torch.allclose(half, one, atol=1e-3) and not torch.allclose(half, plain[0], atol=1e-3)
    pipe.set_adapters("one", 0.0)
    torch.testing.assert_close(conditions(pipe), plain[0])
    pipe.set_adapters("one")
    torch.testing.assert_close(conditions(pipe), one)
    other = build_tiny_pipeline()
    other.load_lora_weights(str(adapters[0]), adapter_weight=0.5)
    assert other.get_active_adapters() == ["default_0"]
    torch.testing.assert_close(conditions(other), half)

    pipe.disable_lora()
    torch.testing.assert_close(conditions(pipe), plain[0])
    pipe.enable_lora()
    torch.testing.assert_close(conditions(pipe), one)
    pipe.unload_lora_weights()
    assert pipe.get_active_adapters() == [] and pipe.get_list_adapters() == {}
    torch.testing.assert_close((conditions(pipe), generate(pipe)), plain, rtol=0, atol=0)


def test_switched_and_mixed(adapters):
    pipe = build_tiny_pipeline()
    pipe.load_lora_weights(adapters[0], adapter_name="one")
    one = conditions(pipe)
    pipe.load_lora_weights(adapters[1])
    assert pipe.get_active_adapters() == ["default_0"] and pipe.get_list_adapters() == {"mllm": ["one", "default_0"]}
    two = conditions(pipe)
    pipe.set_adapters(["one", "default_0"], [1.0, 0.7])
    assert pipe.get_active_adapters() == ["one", "default_0"]
    both = conditions(pipe)
    assert all(not torch.allclose(both, alone, atol=1e-3) for alone in (one, two))
    pipe.set_adapters("one")
    torch.testing.assert_close(conditions(pipe), one)
    edit = UniWeTokEditPipeline.from_pipe(pipe)  # it has the same model
    edit.set_adapters("default_0")
    torch.testing.assert_close(conditions(pipe), two)
    pipe.delete_adapters("default_0")
    assert pipe.get_list_adapters() == {"mllm": ["one"]}
    pipe.set_adapters("one")
    torch.testing.assert_close(conditions(pipe), one)


def test_fused_and_taken_out_again(adapters):
    pipe = build_tiny_pipeline()
    plain = conditions(pipe)
    pipe.load_lora_weights(adapters[0], adapter_name="one", adapter_weight=0.8)
    pipe.load_lora_weights(adapters[1], adapter_name="two")
    pipe.set_adapters("one", 0.4)
    weak = conditions(pipe)
    pipe.set_adapters("one", 0.8)
    strong = conditions(pipe)
    for _ in range(2):  # the scale is not left behind
        with pytest.raises(ValueError, match="`lora_scale` must not be 0"):
            pipe.fuse_lora(lora_scale=0.0)
        pipe.fuse_lora(lora_scale=0.5)
        assert pipe.num_fused_loras == 1 and pipe.fused_loras == {"one"}
        torch.testing.assert_close(conditions(pipe), weak, rtol=1e-4, atol=1e-4)
        for call in (lambda: pipe.set_adapters("one"), pipe.fuse_lora, lambda: pipe.load_lora_weights(adapters[0])):
            with pytest.raises(ValueError, match="Adapters are fused"):
                call()
        pipe.unfuse_lora()
        assert pipe.num_fused_loras == 0
        torch.testing.assert_close(conditions(pipe), strong, rtol=1e-4, atol=1e-4)
    pipe.fuse_lora(adapter_names=["two"])
    assert pipe.fused_loras == {"two"}
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    torch.testing.assert_close(conditions(pipe), plain, rtol=1e-4, atol=1e-4)


def test_a_merged_pipeline_is_saved_as_any_other(adapters, tmp_path):
    pipe = build_tiny_pipeline()
    names = set(pipe.mllm.state_dict())
    pipe.load_lora_weights(adapters[0])
    one = conditions(pipe)
    with pytest.raises(ValueError, match="The pipeline has adapters"):
        pipe.save_pretrained(tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    assert set(pipe.mllm.state_dict()) == names
    pipe.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(
        conditions(UniWeTokPipeline.from_pretrained(tmp_path / "merged")), one, rtol=1e-4, atol=1e-4
    )


def test_saved_as_it_was_loaded(adapters, tmp_path):
    pipe = build_tiny_pipeline()
    pipe.load_lora_weights(adapters[0], adapter_name="one")
    pipe.load_lora_weights(adapters[1], adapter_name="two")
    pipe.save_lora_weights(tmp_path / "two")
    pipe.save_lora_weights(tmp_path / "one", "one")
    for source in adapters:
        saved = tmp_path / source.name
        old, new = (load_file(folder / "adapter_model.safetensors") for folder in (source, saved))
        assert old.keys() == new.keys() and all(torch.equal(old[name], new[name]) for name in old)
        old, new = (json.loads((folder / "adapter_config.json").read_text()) for folder in (source, saved))
        assert old == new
    pipe.set_adapters(["one", "two"])
    with pytest.raises(ValueError, match="`adapter_name` must be given when 2 adapters are active"):
        pipe.save_lora_weights(tmp_path / "both")


def test_what_peft_and_transformers_saved_loads(tmp_path):
    for name, is_peft in (("peft", True), ("transformers", False)):
        pipe = build_tiny_pipeline()
        config = LoHaConfig(target_modules=target_modules("language_model"))
        if is_peft:
            model = get_peft_model(pipe.mllm, config)
        else:
            model = pipe.mllm
            model.add_adapter(config)
        randomize(model, 3)
        expected = conditions(pipe)
        model.save_pretrained(tmp_path / name)
        loaded = build_tiny_pipeline()
        loaded.load_lora_weights(tmp_path / name)
        torch.testing.assert_close(conditions(loaded), expected)


def test_an_adapter_of_the_image_tokenizer_alone(tmp_path):
    pipe = build_tiny_pipeline()
    plain = generate(pipe)
    vision_model = build_tiny_mllm().vision_model
    vision_model.add_adapter(lora_config("decoder"))
    randomize(vision_model, 4)
    save_adapter(vision_model, tmp_path)
    pipe.load_lora_weights(tmp_path)
    codes = torch.ones(1, 16, 2, 2)
    samples = [model.decode(codes, generator=seeded(0)).sample for model in (vision_model, pipe.mllm.vision_model)]
    torch.testing.assert_close(*samples)
    assert not torch.equal(generate(pipe), plain)


def test_an_adapter_of_the_head_alone(tmp_path):
    pipe = build_tiny_pipeline()
    plain = conditions(pipe)
    head = build_tiny_mllm().image_head
    head.add_adapter(lora_config("head"))
    randomize(head, 4)
    save_adapter(head, tmp_path)
    pipe.load_lora_weights(tmp_path)
    tokens = torch.ones(1, 1, 16), torch.ones(1), torch.ones(1, 1, 32)
    torch.testing.assert_close(pipe.mllm.image_head(*tokens), head(*tokens))
    assert not torch.allclose(conditions(pipe), plain)


def test_a_pipeline_with_an_adapter_in_one_part_is_not_saved(tmp_path):
    pipe, of_classes = build_tiny_pipeline(), build_tiny_class_pipeline()
    pipe.mllm.vision_model.add_adapter(lora_config("decoder"))
    of_classes.vision_model.add_adapter(lora_config("decoder"))
    for one, part in ((pipe, "mllm"), (of_classes, "vision_model")):
        with pytest.raises(ValueError, match=f"The pipeline has adapters, in `{part}`"):
            one.save_pretrained(tmp_path / "wrong")
        assert not (tmp_path / "wrong").exists()
    of_classes.vision_model.delete_adapter("default")
    of_classes.save_pretrained(tmp_path / "right")
    UniWeTokClassToImagePipeline.from_pretrained(tmp_path / "right")


def test_dropout_of_the_training_is_off(tmp_path):
    pipe = build_tiny_pipeline()
    pipe.load_lora_weights(make_adapter(tmp_path, 1, lora_config("language_model", lora_dropout=0.5)))
    assert torch.equal(conditions(pipe), conditions(pipe))


def test_names_inside_of_other_names(adapters):
    """transformers' own `load_adapter` takes weights for the adapter's whose names hold the adapter's."""
    pipe = build_tiny_pipeline()
    pipe.load_lora_weights(adapters[0], adapter_name="x")
    other = build_tiny_pipeline()
    other.load_lora_weights(adapters[0], adapter_name="e")
    torch.testing.assert_close(conditions(other), conditions(pipe), rtol=0, atol=0)


def test_a_failure_leaves_the_pipeline_as_it_was(adapters, tmp_path):
    larger = make_adapter(tmp_path / "larger", 5, patch_size=2)  # fits, being of the same layers
    tensors = load_file(larger / "adapter_model.safetensors")
    name = min(tensors)
    save_file({**tensors, name: torch.zeros(3, 3)}, larger / "adapter_model.safetensors")
    missing = make_adapter(tmp_path / "missing", 6)
    save_file({n: t for n, t in tensors.items() if n != name}, missing / "adapter_model.safetensors")
    foreign = make_adapter(tmp_path / "foreign", 7)
    config = json.loads((foreign / "adapter_config.json").read_text())
    (foreign / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["to_q", "to_v"]}))

    fresh, used = build_tiny_pipeline(), build_tiny_pipeline()
    used.load_lora_weights(adapters[0], adapter_name="one", adapter_weight=0.6)
    for pipe in (fresh, used):
        before, known, active = conditions(pipe), pipe.get_list_adapters(), pipe.get_active_adapters()
        for folder in (larger, missing, foreign):
            with pytest.raises(
                ValueError, match=f"`pretrained_model_name_or_path` {folder} is an adapter for another"
            ):
                pipe.load_lora_weights(folder, adapter_name="two")
            assert pipe.get_list_adapters() == known and pipe.get_active_adapters() == active
            torch.testing.assert_close(conditions(pipe), before, rtol=0, atol=0)
    fresh.save_pretrained(tmp_path / "fresh")
    assert set(load_file(tmp_path / "fresh" / "mllm" / "model.safetensors")) == set(build_tiny_mllm().state_dict())
    used.load_lora_weights(adapters[1], adapter_name="two")  # the name is free


def test_wrong_arguments_are_named(adapters, tmp_path):
    pipe = build_tiny_pipeline()
    with pytest.raises(ValueError, match="`fuse_lora` needs an adapter"):
        pipe.fuse_lora()
    with pytest.raises(ValueError, match="there is no adapter 'one'; none is loaded"):
        pipe.set_adapters("one")
    with pytest.raises(ValueError, match="`save_lora_weights` needs an adapter"):
        pipe.save_lora_weights(tmp_path)
    pipe.load_lora_weights(adapters[0], adapter_name="one")
    with pytest.raises(ValueError, match="`adapter_name` 'one' is taken"):
        pipe.load_lora_weights(adapters[1], adapter_name="one")
    for call in (pipe.set_adapters, pipe.delete_adapters, lambda name: pipe.save_lora_weights(tmp_path, name)):
        with pytest.raises(ValueError, match="there is no adapter 'two'; loaded are one"):
            call("two")
    ia3 = IA3Config(target_modules=target_modules("language_model"), feedforward_modules=r".*\.up_proj")
    make_adapter(tmp_path / "ia3", 1, ia3)
    make_adapter(tmp_path / "whole", 1, lora_config("head", modules_to_save=["projector"]))
    for name, kind in (("ia3", "IA3"), ("whole", "one with `modules_to_save`")):
        with pytest.raises(ValueError, match=rf"an adapter of another kind \({kind}\) than .*: LORA, LOHA, LOKR"):
            pipe.load_lora_weights(tmp_path / name)
    pipe.delete_adapters(["one"])
    assert pipe.get_list_adapters() == {} and set(pipe.mllm.state_dict()) == set(build_tiny_mllm().state_dict())


@pytest.mark.parametrize("damage", ["none", "pickle", "cut", "config"])
def test_what_is_no_adapter_is_refused(adapters, tmp_path, damage):
    folder = tmp_path / "adapter"
    if damage != "none":
        make_adapter(folder, 1)
    weights = folder / "adapter_model.safetensors"
    if damage == "pickle":
        torch.save(load_file(weights), folder / "adapter_model.bin")
        weights.unlink()
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "config":
        (folder / "adapter_config.json").write_text('{"peft_type": "NONE"}')
    with pytest.raises(ValueError, match=f"`pretrained_model_name_or_path` {folder} is no adapter"):
        build_tiny_pipeline().load_lora_weights(folder)
    with pytest.raises(ValueError, match="`pretrained_model_name_or_path` must be the folder .* got a dict"):
        build_tiny_pipeline().load_lora_weights({"weight": torch.zeros(1)})
