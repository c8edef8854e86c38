# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""An adapter that can't be loaded leaves the pipeline and its model as they were, whichever way it was loaded."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload
from full_disk import files_limited
from safetensors.torch import load_file, save_file
from tiny_models import build_tiny_mllm, build_tiny_pipeline

from uniwetok_hf import UniWeTokModel
from uniwetok_hf.adapters import lora_config, save_adapter
from uniwetok_hf.modeling.adapters_uniwetok import unchanged_on_error


def make_adapter(folder: Path, config=None, build=build_tiny_mllm) -> Path:
    model = build()
    model.add_adapter(config or lora_config("language_model", "head", r=4))
    save_adapter(model, folder)
    return folder


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapters") / "good")


def write_tensors(folder: Path, change) -> None:
    file = folder / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)


def write_config(folder: Path, **fields) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def cut(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def swap_bytes(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[20:60] = b"\xff" * 40
    file.write_bytes(content)


DAMAGES = {
    "shapes": lambda folder: write_tensors(folder, lambda t: {**t, min(t): torch.zeros(3, 3)}),
    "missing tensor": lambda folder: write_tensors(folder, lambda t: {n: v for n, v in t.items() if n != min(t)}),
    "further tensor": lambda folder: write_tensors(folder, lambda t: t | {"x.lora_A.weight": torch.zeros(1)}),
    "other names": lambda folder: write_tensors(
        folder, lambda t: {n.replace("language_model", "lm"): v for n, v in t.items()}
    ),
    "no tensors": lambda folder: write_tensors(folder, lambda t: {}),
    "other layers": lambda folder: write_config(folder, target_modules=["to_q", "to_v"]),
    "layers of no use": lambda folder: write_config(folder, target_modules=["act_fn", "q_proj"]),
    "negative rank": lambda folder: write_config(folder, r=-1),
    "rank as text": lambda folder: write_config(folder, r="four"),
    "unknown kind": lambda folder: write_config(folder, peft_type="NONE"),
    "cut": cut,
    "header": swap_bytes,
    "config is a list": lambda folder: (folder / "adapter_config.json").write_text("[]"),
    "config is cut": lambda folder: (folder / "adapter_config.json").write_text('{"peft_type": "LO'),
    "no config": lambda folder: (folder / "adapter_config.json").unlink(),
    "nothing": lambda folder: [file.unlink() for file in folder.iterdir()],
}


def state_of(model) -> dict:
    """All that an adapter could change in a model."""
    modules = {
        name: (type(module), module.training, list(module.__dict__), len(module._forward_pre_hooks))
        for name, module in model.named_modules()
    }
    return {
        "modules": modules,
        "tensors": {name: (id(value), value.requires_grad) for name, value in model.named_parameters()},
        "adapters": list(getattr(model, "peft_config", None) or {}),
        "is peft": model._hf_peft_config_loaded,
        "scales": [module.scaling for module in model.modules() if hasattr(module, "scaling")],
    }


def assert_unchanged(model, load, name: str) -> None:
    before = state_of(model)
    values = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=name):
        load()
    assert state_of(model) == before
    after = model.state_dict()
    assert list(after) == list(values) and all(torch.equal(after[key], values[key]) for key in values)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("is_used", [False, True], ids=["fresh", "used"])
def test_nothing_is_left_of_it(good, tmp_path, damage, is_used):
    folder = shutil.copytree(good, tmp_path / "bad")
    DAMAGES[damage](folder)
    pipe = build_tiny_pipeline()
    if is_used:
        pipe.load_lora_weights(good, adapter_name="one", adapter_weight=0.6)
        pipe.disable_lora()
    active = pipe.get_active_adapters()
    assert_unchanged(pipe.mllm, lambda: pipe.load_lora_weights(folder), f"`pretrained_model_name_or_path` {folder} is")
    assert_unchanged(
        pipe.mllm, lambda: pipe.mllm.load_adapter(str(folder), "two"), f"`peft_model_id` {folder} is no adapter for"
    )
    assert pipe.get_active_adapters() == active
    pipe.load_lora_weights(good, adapter_name="two")  # the name is free


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"trainable_token_indices": [1, 2]}, "one with `trainable_token_indices`"),
        ({"modules_to_save": ["embed_tokens"]}, "one with `modules_to_save`"),
        ({"bias": "all"}, "one with `bias` 'all'"),
        ({"bias": "lora_only"}, "one with `bias` 'lora_only'"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "one with `layer_replication`"),
        ({"init_lora_weights": "pissa"}, "one with `init_lora_weights` 'pissa'"),
    ],
)
def test_adapters_that_are_more_than_updates(good, tmp_path, fields, kind):
    folder = shutil.copytree(good, tmp_path / "other")
    write_config(folder, **fields)
    for pipe in (build_tiny_pipeline(), build_tiny_pipeline()):
        assert_unchanged(pipe.mllm, lambda p=pipe: p.load_lora_weights(folder), rf"of another kind \({kind}\)")


def test_trained_tokens(tmp_path):
    """They used to stay half loaded."""
    folder = make_adapter(tmp_path, lora_config("language_model", r=4, trainable_token_indices=[1, 2]))
    pipe = build_tiny_pipeline()
    assert_unchanged(pipe.mllm, lambda: pipe.load_lora_weights(folder), "trainable_token_indices")
    pipe.mllm.load_adapter(str(folder))  # transformers can
    assert list(pipe.mllm.peft_config) == ["default"]


def test_of_another_model(tmp_path):
    """An adapter of the language model, and the image tokenizer alone."""
    folder = make_adapter(tmp_path / "language", lora_config("language_model"))
    model = build_tiny_mllm()
    for part in (model.vision_model, model.image_head, UniWeTokModel(model.config.vision_config)):
        assert_unchanged(part, lambda p=part: p.load_adapter(str(folder)), "is no adapter for this model")
        before = state_of(part)
        with pytest.raises(ValueError, match="not found in the base model"):
            part.add_adapter(lora_config("language_model"))
        assert state_of(part) == before


def test_hooks_can_still_be_removed():
    model = build_tiny_mllm()
    handle = model.register_forward_pre_hook(lambda *_: None)
    with pytest.raises(KeyError), unchanged_on_error(model):
        model.register_forward_pre_hook(lambda *_: None)
        model.note = model.config
        raise KeyError
    assert list(model._forward_pre_hooks) == [handle.id] and not hasattr(model, "note")
    handle.remove()
    assert not model._forward_pre_hooks


def test_a_failed_fusion_can_be_tried_again(good, tmp_path):
    folder = shutil.copytree(good, tmp_path / "broken")
    write_tensors(folder, lambda t: {**t, max(t): torch.full_like(t[max(t)], torch.nan)})
    pipe = build_tiny_pipeline()
    pipe.load_lora_weights(good, adapter_name="one", adapter_weight=0.6)
    pipe.load_lora_weights(folder, adapter_name="broken")
    before = {name: value.clone() for name, value in pipe.mllm.state_dict().items()}
    scales = copy.deepcopy(state_of(pipe.mllm)["scales"])
    with pytest.raises(ValueError, match="NaNs"):
        pipe.fuse_lora(lora_scale=0.5, safe_fusing=True, adapter_names=["one", "broken"])
    after = pipe.mllm.state_dict()
    assert all(torch.equal(after[name].nan_to_num(), value.nan_to_num()) for name, value in before.items())
    assert state_of(pipe.mllm)["scales"] == scales
    assert pipe.get_active_adapters() == ["broken"]
    pipe.set_adapters("one", 0.6)
    pipe.fuse_lora(safe_fusing=True)
    pipe.unfuse_lora()


def test_an_interrupted_fusion_is_taken_out_again(good, monkeypatch):
    pipe = build_tiny_pipeline()
    pipe.load_lora_weights(good, adapter_name="one", adapter_weight=0.6)
    before = {name: value.clone() for name, value in pipe.mllm.state_dict().items()}
    scales = copy.deepcopy(state_of(pipe.mllm)["scales"])
    layer = [module for module in pipe.mllm.modules() if hasattr(module, "merged_adapters")][5]
    with monkeypatch.context() as patch:
        patch.setattr(layer, "merge", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pipe.fuse_lora(lora_scale=0.5)
    assert state_of(pipe.mllm)["scales"] == scales and pipe.get_active_adapters() == ["one"]
    for name, value in pipe.mllm.state_dict().items():
        torch.testing.assert_close(value, before[name], atol=1e-6, rtol=0)
    pipe.fuse_lora(lora_scale=0.5)  # once, and not what is left of the first time, too


def test_only_options_that_are_known_are_taken(good):
    for option in ({"weight_name": "step-500.safetensors"}, {"hotswap": True}, {"prefix": "mllm"}):
        with pytest.raises(ValueError, match=f"`{min(option)}` is no option, but subfolder, revision"):
            build_tiny_pipeline().load_lora_weights(good, **option)


@pytest.mark.parametrize("name", ["cats-1.5", "values", "training"])
def test_names_that_layers_can_not_have(good, name):
    pipe = build_tiny_pipeline()
    with pytest.raises(ValueError, match=f"`adapter_name` must have no dot, .* got '{name}'"):
        pipe.load_lora_weights(good, adapter_name=name)
    assert pipe.get_list_adapters() == {}


def test_a_saved_adapter_stays_when_the_disk_is_full(good, tmp_path):
    folder = Path(shutil.copytree(good, tmp_path / "saved"))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    pipe = build_tiny_pipeline()
    pipe.load_lora_weights(good, adapter_name="one")
    for size in (0, 1_000):
        with files_limited(size), pytest.raises(OSError, match="saved can't be written"):
            pipe.save_lora_weights(folder)
        assert {path: path.read_bytes() for path in folder.iterdir()} == before
        assert list(tmp_path.iterdir()) == [folder]
    for name in ("notes.txt", "model.safetensors"):  # an adapter may lie beside its model
        (folder / name).write_text("mine")
    pipe.save_lora_weights(folder)
    assert {(folder / name).read_text() for name in ("notes.txt", "model.safetensors")} == {"mine"}


def test_an_adapter_in_a_subfolder(good, tmp_path):
    shutil.copytree(good, tmp_path / "run" / "adapter")
    pipe = build_tiny_pipeline()
    with pytest.raises(ValueError, match="run/adapter is what the training made"):
        pipe.load_lora_weights(tmp_path / "run")
    pipe.load_lora_weights(tmp_path / "run", subfolder="adapter")
    beside = shutil.copytree(good, tmp_path / "beside")
    (beside / "adapter").mkdir()
    pipe.load_lora_weights(beside)
    assert pipe.get_active_adapters() == ["default_1"]


@pytest.mark.parametrize("how", ["sequential", "group"])
def test_layers_that_are_moved_one_by_one_take_no_adapter(good, how):
    pipe = build_tiny_pipeline()
    if how == "sequential":
        cpu_offload(pipe.mllm, torch.device("cpu"))
    else:
        pipe.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
    with pytest.raises(ValueError, match="must be loaded before `enable_sequential_cpu_offload`"):
        pipe.load_lora_weights(good)
    assert pipe.get_list_adapters() == {}
