"""`uniwetok export`: models, pipelines and adapters of checkpoints, which load like the results of trainings."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_encoded import class_training, language_training, later
from tiny_training import VISION, train_file, write

from uniwetok_hf import UniWeTokModel, UniWeTokPipeline
from uniwetok_hf.provenance import read_training_record
from uniwetok_hf.training import train_class_to_image, train_mllm, train_uniwetok


def assert_same(one: Path, other: Path, equal: bool = True) -> None:
    """Whether two files hold the same tensors."""
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items()) is equal


@pytest.fixture(scope="module")
def tokenizer(fixtures, tmp_path_factory) -> Path:
    """A finished run of the tokenizer with averages."""
    folder = tmp_path_factory.mktemp("tokenizer")
    fields = {**VISION, "data": [{"path": str(fixtures / "emoji")}], "output_dir": str(folder / "run")}
    return train_file(train_uniwetok, write(folder, fields, ema_decay=0.5, trainable=["decoder", "encoder"])).parent


@pytest.fixture(scope="module")
def language(tmp_path_factory) -> tuple[dict, Path]:
    """Fields and folder of a finished run of the language model with averages."""
    folder = tmp_path_factory.mktemp("language")
    fields = language_training(folder)
    return fields, train_file(train_mllm, write(folder, fields, output_dir=str(folder / "run"))).parent


def test_the_last_checkpoint_is_the_result(succeeds, tokenizer):
    assert succeeds("export", tokenizer, "mine") == ["mine"]
    assert sorted(path.name for path in Path("mine").iterdir()) == sorted(os.listdir(tokenizer / "model"))
    assert_same(Path("mine/model.safetensors"), tokenizer / "model" / "model.safetensors")
    assert (
        Path("mine/preprocessor_config.json").read_text() == (tokenizer / "model/preprocessor_config.json").read_text()
    )
    record = json.loads(Path("mine/training.json").read_text())
    assert (record["training"]["exported_step"], record["training"]["exported_weights"]) == (6, "averaged")
    assert read_training_record("mine") == read_training_record(tokenizer / "model")


def test_any_checkpoint_averaged_or_not(succeeds, tokenizer, workplace):
    """Also when the run has moved to where neither data nor start are."""
    moved = tokenizer.rename(workplace / "moved")
    try:
        step = moved / "checkpoints" / "step-000004"
        succeeds("export", step, "averaged")
        succeeds("export", step, "raw", "--raw")
    finally:
        moved.rename(tokenizer)
    assert_same(Path("raw/model.safetensors"), Path("averaged/model.safetensors"), equal=False)
    assert_same(Path("averaged/model.safetensors"), tokenizer / "model" / "model.safetensors", equal=False)
    stored = load_file(tokenizer / "checkpoints" / "step-000004" / "model.safetensors")
    own = UniWeTokModel.from_pretrained("raw").state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in stored.items())


def test_a_pipeline_generates(succeeds, language):
    fields, run = language
    succeeds("export", run, "mine")
    assert_same(Path("mine/mllm/model.safetensors"), run / "pipeline" / "mllm" / "model.safetensors")
    for name in ("model_index.json", "mllm/config.json", "mllm/generation_config.json"):
        assert json.loads(Path("mine", name).read_text()) == json.loads((run / "pipeline" / name).read_text()), name
    vocabularies = [
        json.loads((folder / "processor/tokenizer.json").read_text()) for folder in (Path("mine"), run / "pipeline")
    ]
    assert vocabularies[0]["model"] == vocabularies[1]["model"]
    assert vocabularies[0]["added_tokens"] == vocabularies[1]["added_tokens"]
    succeeds("generate", "a red square", "--model", "mine", "--output", "square.png")
    succeeds("export", run / "checkpoints" / "step-000002", "raw", "--raw")
    assert_same(Path("raw/mllm/model.safetensors"), Path("mine/mllm/model.safetensors"), equal=False)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}])
def test_an_adapter_loads(succeeds, language, tmp_path, options):
    fields, start = language
    fields = later(fields, init_from=str(start), lora={"r": 2, "options": options}, ema_decay=0.5)
    run = train_file(train_mllm, write(tmp_path, fields, output_dir=str(tmp_path / "run"))).parent
    succeeds("export", run, "mine")
    assert_same(Path("mine/adapter_model.safetensors"), run / "adapter" / "adapter_model.safetensors")
    configs = [json.loads((folder / "adapter_config.json").read_text()) for folder in (Path("mine"), run / "adapter")]
    assert {**configs[0], "target_modules": 0} == {**configs[1], "target_modules": 0}
    pipeline = UniWeTokPipeline.from_pretrained(start / "pipeline", dtype=torch.float32)
    pipeline.load_lora_weights("mine")


def test_what_cannot_be_exported(fails, tokenizer, language, tmp_path):
    assert "nowhere: there is no such folder" in fails("export", "nowhere", "out")
    Path("empty").mkdir()
    assert "neither a checkpoint" in fails("export", "empty", "out")
    Path("full").mkdir()
    Path("full/file").touch()
    assert fails("export", tokenizer, "full") == "full exists already and is not empty."
    step = tokenizer / "checkpoints" / "step-000004"
    weights = (step / "model.safetensors").read_bytes()
    (step / "model.safetensors").write_bytes(weights[:-1])
    try:
        assert "step-000004 is broken: model.safetensors has" in fails("export", step, "out")
    finally:
        (step / "model.safetensors").write_bytes(weights)
    architecture = (tokenizer / "architecture").rename(tokenizer / "hidden")
    try:
        assert "was started by an earlier version" in fails("export", step, "out")
    finally:
        architecture.rename(tokenizer / "architecture")
    assert sorted(path.name for path in Path().iterdir()) == ["empty", "full"]


def test_a_class_to_image_training(succeeds, tmp_path):
    fields = class_training(tmp_path)
    run = train_file(train_class_to_image, write(tmp_path, fields, output_dir=str(tmp_path / "run"))).parent
    succeeds("export", run, "mine")
    assert_same(Path("mine/transformer/model.safetensors"), run / "pipeline" / "transformer" / "model.safetensors")
    succeeds("export", run, "raw", "--raw")
    assert_same(Path("raw/transformer/model.safetensors"), Path("mine/transformer/model.safetensors"), equal=False)
    assert succeeds("generate", "--class", "red", "--model", "mine") == ["red-0.png"]
