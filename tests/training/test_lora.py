"""Training of adapters: the model stays as it is, checkpoints and result hold the adapter alone, a stopped run resumes
exactly, and pipelines load what comes out."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny_encoded import (
    build_vision,
    encode,
    language_training,
    later,
    pictures,
    run,
    stop_before,
)
from tiny_training import assert_same_weights, log_lines, train_file

from uniwetok_hf import UniWeTokPipeline, embedded_path
from uniwetok_hf.provenance import read_training_record
from uniwetok_hf.training import train_mllm
from uniwetok_hf.training.config import find_config, read_config
from uniwetok_hf.training.lora import LoraSettings, add_lora
from uniwetok_hf.training.start import find_result
from uniwetok_hf.training.train_mllm import MLLMTrainingConfig


ADAPTER = ("adapter", "adapter_model.safetensors")


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    """A training of an adapter on drawing and describing, on top of a tiny pipeline."""
    folder = tmp_path_factory.mktemp("base")
    fields = language_training(folder)
    # Long enough for the head to say something: a new one gives 0, whatever an adapter does before.
    more = {"max_train_steps": 20, "checkpointing_steps": 20, "learning_rate": 3e-3, "ema_decay": 0.5}
    base = run(fields, folder, validation_data=[], **more)
    return later(fields, init_from=str(base), lora={"r": 2, "alpha": 4})


@pytest.fixture(scope="module")
def trained(fields, tmp_path_factory):
    return run(fields, tmp_path_factory.mktemp("trained"), prompts=["a red square of 12 pixels"])


def base_of(fields) -> UniWeTokPipeline:
    pipeline = UniWeTokPipeline.from_pretrained(find_result(fields["init_from"], "pipeline"), dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline("a red square of 12 pixels", generator=torch.Generator().manual_seed(0), output_type="pt").images


def test_a_run_leaves_an_adapter_alone(trained, fields):
    assert not (trained / "pipeline").exists()
    names = {"README.md", "adapter_config.json", "adapter_model.safetensors", "training.json"}
    assert {path.name for path in (trained / "adapter").iterdir()} == names
    config = json.loads((trained / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (2, 4, "run")
    tensors = load_file(trained.joinpath(*ADAPTER))
    assert tensors and all(".lora_" in name for name in tensors)
    assert read_training_record(trained / "adapter") is not None

    kept = load_file(trained / "checkpoints" / "step-000004" / "model.safetensors")
    assert len(kept) == len(tensors) and all(".lora_" in name for name in kept)
    assert [line["step"] for line in log_lines(trained)] == [1, 2, 3, 4]
    assert "validation_bit_accuracy_t0.0" in log_lines(trained)[-1]
    assert (trained / "samples" / "drawings-000004.png").exists()


def test_the_averaged_adapter_is_saved(trained, fields, tmp_path):
    plain = run(fields, tmp_path, ema_decay=None)
    averaged, last = load_file(trained.joinpath(*ADAPTER)), load_file(plain.joinpath(*ADAPTER))
    assert any(not torch.equal(averaged[name], last[name]) for name in last)
    checkpoint = load_file(plain / "checkpoints" / "step-000004" / "model.safetensors")
    for name, tensor in checkpoint.items():
        assert torch.equal(last["base_model.model." + name.replace(".default", "")], tensor)


def test_pipelines_and_peft_load_it(trained, fields):
    pipeline = base_of(fields)
    before, weights = draw(pipeline), {n: t.clone() for n, t in pipeline.mllm.state_dict().items()}
    pipeline.load_lora_weights(trained / "adapter", adapter_name="heart", adapter_weight=50.0)
    assert not torch.equal(draw(pipeline), before)
    pipeline.unload_lora_weights()
    assert torch.equal(draw(pipeline), before)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in pipeline.mllm.state_dict().items())
    assert PeftModel.from_pretrained(base_of(fields).mllm, trained / "adapter").peft_config["default"].r == 2


def test_it_learns(fields, tmp_path):
    """A few pictures by heart, measured at the same times and noise."""
    rows = {"image": pictures(2), "text": ["one", "two"]}
    data = [{"path": encode(rows, tmp_path / "codes", build_vision()), "task": "captions"}]
    more = {"lora": {"r": 8}, "learning_rate": 2e-2, "ema_decay": None, "max_train_steps": 36, "validation_steps": 2}
    lines = log_lines(run(fields, tmp_path, data=data, validation_data=data, checkpointing_steps=36, **more))
    first, *_, end = (line[name] for line in lines if (name := "validation_image_loss_captions") in line)
    assert end < 0.9 * first


@pytest.mark.parametrize("step", [1, 3])
def test_a_run_stopped_anywhere_resumes_exactly(fields, trained, tmp_path, monkeypatch, step):
    stop_before(step, monkeypatch, fields, tmp_path, prompts=["a red square of 12 pixels"])
    resumed = run(fields, tmp_path, prompts=["a red square of 12 pixels"])
    assert_same_weights(resumed.joinpath(*ADAPTER), trained.joinpath(*ADAPTER))
    assert log_lines(resumed) == log_lines(trained)


def test_other_options(fields, tmp_path):
    """DoRA on the language model alone, in bfloat16, with what saves memory."""
    lora = {"targets": ["language_model"], "options": {"use_dora": True}}
    more = {"gradient_checkpointing": True, "gradient_accumulation_steps": 2, "save_dtype": "bfloat16"}
    folder = run(fields, tmp_path, lora=lora, max_train_steps=2, **more)
    tensors = load_file(folder.joinpath(*ADAPTER))
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert all("language_model" in name for name in tensors) and any("magnitude" in name for name in tensors)
    base_of(fields).load_lora_weights(folder / "adapter")


def test_a_checkpoint_of_another_training(fields, tmp_path, monkeypatch):
    stop_before(3, monkeypatch, fields, tmp_path, validation_data=[])
    for lora in ({"r": 3}, {"r": 2, "targets": ["head"]}, {"r": 2, "options": {"use_dora": True}}):
        with pytest.raises(ValueError, match=r"`lora\.\w+` is .* and was .*step-000002"):
            run(fields, tmp_path, lora=lora, validation_data=[])
    stop_before(3, monkeypatch, {**fields, "lora": None}, tmp_path / "whole", validation_data=[])
    with pytest.raises(ValueError, match="`lora` is {.*} and was None"):
        run(fields, tmp_path / "whole", validation_data=[])


@pytest.mark.filterwarnings("ignore:.*did not keep the settings")
def test_an_old_checkpoint_of_another_training(fields, tmp_path, monkeypatch):
    """Without settings the weights show it."""
    stop_before(3, monkeypatch, fields, tmp_path, validation_data=[])
    manifest = tmp_path / "run" / "checkpoints" / "step-000002" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"settings": None}))
    with pytest.raises(ValueError, match="step-000002 is of another training: of all weights, or with other `lora`"):
        run(fields, tmp_path, lora={"r": 3}, validation_data=[])


@pytest.mark.parametrize(
    "more, message",
    [
        ({"lora": {"r": 0}}, "`lora.r` must be 1 or more, got 0"),
        ({"lora": {"targets": ["decoder"]}}, "`lora.targets` must be of language_model and head, got decoder"),
        ({"lora": {"rank": 4}}, "unknown field lora.rank"),
        ({"trainable": ["image_head"]}, "`trainable` can't be given with `lora`"),
        ({"mllm": {"patch_size": 4}}, "`lora` needs `init_from`"),
        ({"init_from": None, "vision_model": "x", "text_model": {"model_type": "qwen3"}}, "`lora` needs `init_from`"),
        ({"lora": {"options": {"target_modules": r".*\.conv1"}}}, "must not match layers of the image tokenizer"),
    ],
)
def test_bad_settings_are_named(fields, tmp_path, more, message):
    with pytest.raises(ValueError, match=message):
        run(fields, tmp_path, **more)


def test_a_part_without_layers_of_known_names(fields):
    mllm = base_of(fields).mllm
    for layer in mllm.model.language_model.layers:
        layer.attention = layer._modules.pop("self_attn")
        layer.feed_forward = layer._modules.pop("mlp")
    with pytest.raises(
        ValueError, match="`lora.targets`: no layer of language_model is called as in the Llama family"
    ):
        add_lora(mllm, LoraSettings(), 0)
    parameters = add_lora(mllm, LoraSettings(options={"target_modules": r".*feed_forward\.up_proj"}), 0)
    assert len(parameters) == 2


def test_what_a_training_can_start_from(trained, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="is a training of an adapter: it has no `pipeline`"):
        find_result(trained, "pipeline")
    monkeypatch.chdir(tmp_path)
    assert find_result("uniwetok-emoji", "pipeline") == str(embedded_path("uniwetok-emoji"))
    (tmp_path / "uniwetok-emoji").mkdir()  # a folder of that name comes first
    assert find_result("uniwetok-emoji", "pipeline") == "uniwetok-emoji"


@pytest.mark.slow
def test_the_shipped_config_teaches_the_embedded_model(tmp_path):
    """With the steps and the sizes of a test."""
    rows = {"image": pictures(4, size=(128, 128)), "text": [f"a night emoji of thing {i}" for i in range(4)]}
    vision = UniWeTokPipeline.from_pretrained(embedded_path("uniwetok-emoji"), dtype=torch.float32).mllm.vision_model
    codes = encode(rows, tmp_path / "codes", vision, sizes=((128, 128),))
    shipped = read_config(MLLMTrainingConfig, find_config("small_lora"))
    assert shipped.init_from == "uniwetok-emoji" and shipped.lora
    overrides = {"data": [{"path": codes, "task": "captions"}], "max_train_steps": 2, "batch_size": 2}
    overrides |= {"output_dir": str(tmp_path / "run"), "mixed_precision": "no", "prompts": []}
    folder = train_file(train_mllm, find_config("small_lora"), **overrides)
    pipeline = UniWeTokPipeline.from_pretrained(embedded_path("uniwetok-emoji"), dtype=torch.float32)
    pipeline.load_lora_weights(folder)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "uniwetok-emoji"
