"""Which checkpoints the commands take, and what they say to the others."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig
from transformers.utils import logging

from uniwetok_hf import embedded_path
from uniwetok_hf.cli.loading import (
    EMBEDDED,
    find_checkpoint,
    load_language_model,
    load_pipeline,
    load_vision_model,
)


@pytest.fixture
def pipeline_copy(pipeline_folder, workplace):
    """A pipeline folder to be damaged, called `broken`."""
    shutil.copytree(pipeline_folder, workplace / "broken")
    return workplace / "broken"


@pytest.fixture
def fetched(workplace, monkeypatch):
    """`fetched(folder, name)` puts a checkpoint in the cache of the Hub, as if it had been fetched."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(workplace / "cache"))

    def add(folder, name):
        revision = "0" * 40
        repository = workplace / "cache" / f"models--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(revision)
        shutil.copytree(folder, repository / "snapshots" / revision)

    return add


def same_weights(first, second):
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_image_tokenizer_of_every_kind_of_folder(pipeline_folder, vision_folder):
    of_pipeline = load_vision_model(str(pipeline_folder), "cpu")
    of_language_model = load_vision_model(str(pipeline_folder / "mllm"), "cpu")
    alone = load_vision_model(str(vision_folder), "cpu")
    assert same_weights(of_pipeline, of_language_model)
    assert not same_weights(of_pipeline, alone)
    assert same_weights(of_pipeline, load_pipeline(str(pipeline_folder), "cpu").mllm.vision_model)
    assert not of_pipeline.training and of_pipeline.dtype == torch.float32


def test_pipeline_keeps_its_defaults(pipeline_folder):
    pipeline = load_pipeline(str(pipeline_folder), "cpu")
    assert (pipeline.config.default_size, pipeline.config.default_num_inference_steps) == (64, 2)
    assert pipeline.config.default_guidance_scale == 2.0


def test_checkpoint_stored_in_bfloat16_is_computed_in_float32(pipeline_copy):
    weights = pipeline_copy / "mllm" / "model.safetensors"
    save_file({name: t.bfloat16() for name, t in load_file(weights).items()}, weights, metadata={"format": "pt"})
    config = json.loads((pipeline_copy / "mllm" / "config.json").read_text())
    (pipeline_copy / "mllm" / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    mllm, _ = load_language_model("broken", "cpu")
    assert {parameter.dtype for parameter in mllm.parameters()} == {torch.float32}


def test_sharded_checkpoint(pipeline_folder, workplace):
    model = load_vision_model(str(pipeline_folder), "cpu")
    model.save_pretrained(workplace / "sharded", max_shard_size="100KB")
    assert (workplace / "sharded" / "model.safetensors.index.json").exists()
    assert same_weights(load_vision_model("sharded", "cpu"), model)


def test_hub_ids_of_both_kinds(fetched, pipeline_folder, vision_folder):
    fetched(pipeline_folder, "org/pipeline")
    fetched(vision_folder, "org/vision.1")
    assert load_pipeline("org/pipeline", "cpu").mllm.config._name_or_path == "org/pipeline"
    assert same_weights(load_vision_model("org/pipeline", "cpu"), load_vision_model(str(pipeline_folder), "cpu"))
    assert same_weights(load_vision_model("org/vision.1", "cpu"), load_vision_model(str(vision_folder), "cpu"))


def test_default_is_the_embedded_checkpoint():
    checkpoint = find_checkpoint(None, ("pipeline",))
    assert checkpoint == find_checkpoint(EMBEDDED, ("pipeline",))
    assert (checkpoint.folder, checkpoint.name) == (embedded_path(EMBEDDED), EMBEDDED)


def test_loading_is_quiet_and_leaves_the_libraries_as_they_were(capsys, pipeline_folder):
    logging.enable_progress_bar()
    verbosity = logging.get_verbosity()
    load_pipeline(str(pipeline_folder), "cpu")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert logging.is_progress_bar_enabled() and logging.get_verbosity() == verbosity


def drop_weights(folder):
    (folder / "mllm" / "model.safetensors").unlink()


def cut_weights(folder):
    path = folder / "mllm" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def empty_weights(folder):
    (folder / "mllm" / "model.safetensors").write_bytes(b"")


def point_to_lfs(folder):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 500000\n"
    (folder / "mllm" / "model.safetensors").write_text(text)


def drop_tensors(folder):
    path = folder / "mllm" / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.vision_model.encoder.conv_in.weight"]
    save_file(tensors, path, metadata={"format": "pt"})


def drop_config(folder):
    (folder / "mllm" / "config.json").unlink()


def cut_config(folder):
    path = folder / "mllm" / "config.json"
    path.write_text(path.read_text()[:-20])


def cut_index(folder):
    (folder / "model_index.json").write_text("{")


def change_config(folder):
    path = folder / "mllm" / "config.json"
    config = json.loads(path.read_text())
    config["vision_config"]["base_channels"] = 16
    path.write_text(json.dumps(config))


def lose_shard(folder):
    drop_weights(folder)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "mllm" / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"a": torch.zeros(1)}, folder / "mllm" / "model-00001-of-00002.safetensors")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (drop_weights, "broken/mllm is an incomplete checkpoint: model.safetensors is missing"),
        (cut_weights, "broken/mllm/model.safetensors is damaged or cut off"),
        (empty_weights, "broken/mllm/model.safetensors is damaged or cut off"),
        (point_to_lfs, "broken/mllm/model.safetensors is a Git LFS pointer: run `git lfs pull`"),
        (drop_tensors, "broken/mllm is an incomplete checkpoint: 1 tensors are missing, the first is"),
        (drop_config, "broken/mllm is an incomplete checkpoint: config.json is missing"),
        (cut_config, "broken/mllm/config.json is damaged or cut off"),
        (cut_index, "broken/model_index.json is damaged or cut off"),
        (change_config, "broken/mllm holds decoder.conv_in.bias of the shape"),
        (lose_shard, "broken/mllm is an incomplete checkpoint: model-00002-of-00002.safetensors is missing"),
    ],
)
def test_half_written_checkpoints(fails, photo, pipeline_copy, damage, words):
    damage(pipeline_copy)
    assert fails("reconstruct", photo, "--model", "broken").startswith(words)


@pytest.mark.parametrize("part", ["processor", "scheduler"])
def test_pipelines_without_a_part(fails, pipeline_copy, part):
    shutil.rmtree(pipeline_copy / part)
    message = fails("generate", "a", "--model", "broken")
    assert message == f"broken is an incomplete checkpoint: {part}/{part}_config.json is missing"


def test_pipeline_without_a_text_vocabulary(fails, photo, pipeline_copy):
    (pipeline_copy / "processor" / "tokenizer.json").unlink()
    assert fails("describe", photo, "--model", "broken").startswith("broken/processor can't be loaded: ")


def test_wrong_kinds(fails, photo, fixtures, workplace, pipeline_folder, vision_folder):
    needs = "but this command needs a pipeline folder (model_index.json, mllm/, processor/, scheduler/)"
    vision = f"{vision_folder} holds an image tokenizer (UniWeTokModel), {needs}"
    assert fails("generate", "a", "--model", vision_folder) == vision
    assert fails("describe", photo, "--model", pipeline_folder / "mllm").endswith(needs)

    BertConfig().save_pretrained(workplace / "bert")
    assert "a model of the type 'bert'" in fails("reconstruct", photo, "--model", "bert")
    shutil.copytree(vision_folder, workplace / "run" / "model")
    (workplace / "run" / "log.jsonl").touch()
    assert (
        fails("reconstruct", photo, "--model", "run") == "run is the folder of a training run: its result is run/model"
    )
    (workplace / "flux").mkdir()
    (workplace / "flux" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    assert fails("generate", "a", "--model", "flux") == (
        "flux holds a pipeline of the class FluxPipeline, expected UniWeTokPipeline or UniWeTokEditPipeline or "
        "UniWeTokClassToImagePipeline"
    )
    for name in ("t2i_4x", "tokenizer_uniwetok"):
        message = fails("reconstruct", photo, "--model", fixtures / "golden" / name)
        assert "convert it first with `uniwetok convert " in message


def test_folders_and_files_that_are_no_checkpoints(fails, photo, workplace):
    (workplace / "empty").mkdir()
    assert fails("reconstruct", photo, "--model", "empty").endswith("found nothing")
    assert fails("reconstruct", photo, "--model", ".").endswith("found empty, photo.png")
    assert fails("reconstruct", photo, "--model", photo).startswith("photo.png is a file; --model takes a folder")
    assert fails("reconstruct", photo, "--model", "./nowhere/at/all").startswith("./nowhere/at/all is neither")
    assert fails("reconstruct", photo, "--model", "nowhere").startswith("nowhere is neither a folder nor a Hub id")


def test_unknown_hub_id_offline(fails, photo, fetched):
    message = fails("reconstruct", photo, "--model", "org/unknown")
    assert message.startswith("org/unknown is not a local folder") and "can't be reached" in message


def test_hub_id_of_the_wrong_kind_or_without_weights(fails, fetched, vision_folder, pipeline_copy):
    fetched(vision_folder, "org/vision")
    assert fails("generate", "a", "--model", "org/vision").startswith("org/vision holds an image tokenizer")
    drop_weights(pipeline_copy)
    fetched(pipeline_copy, "org/half")
    assert "model.safetensors is missing" in fails("generate", "a", "--model", "org/half")


@pytest.mark.parametrize("name, value", [("num_res_blocks", "x"), ("rope_theta", 10**400), ("base_channels", [None])])
def test_wrong_values_of_a_config(name, value, fails, vision_folder, workplace, photo):
    """Of which the libraries raise errors of their own kinds."""
    shutil.copytree(vision_folder, workplace / "broken")
    config = workplace / "broken" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {name: value}))
    assert fails("reconstruct", photo, "--model", "broken").startswith("broken can't be loaded: ")
