"""`uniwetok convert`, end to end."""

import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file


@pytest.fixture
def golden(fixtures):
    return fixtures / "golden"


def dtypes(path):
    with safe_open(path, framework="pt") as file:
        return {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118


def test_converted_image_tokenizer_reconstructs(succeeds, photo, golden):
    assert succeeds("convert", golden / "tokenizer_uniwetok", "converted", "--dtype", "bfloat16") == ["converted"]
    assert dtypes("converted/model.safetensors") == {"BF16"}
    (line, *_) = succeeds("reconstruct", photo, "--model", "converted")
    assert line.startswith("photo.png: 100x70 pixels, ")


def test_converted_text_to_image_folder_draws(uniwetok, succeeds, golden):
    assert succeeds("convert", golden / "t2i_4x", "converted") == ["converted"]
    options = ["--model", "converted", "--height", 64, "--width", 128, "--steps", 2]
    result = uniwetok("generate", "apple", *options)
    assert (result.code, result.out) == (0, ["apple-0.png"])
    assert result.err == [
        "uniwetok: warning: 128x64 is not the model's default 512x512: use sizes that it was trained on"
    ]
    assert Image.open("apple-0.png").copy().size == (128, 64)


@pytest.mark.filterwarnings("default:No JSON tells the attention heads")
def test_number_of_heads_is_asked_for_in_one_line(uniwetok, succeeds, golden, workplace):
    weights = golden / "tokenizer_uniwetok" / "ae.safetensors"
    heads = json.loads((golden / "tokenizer_uniwetok" / "ae_config.json").read_text())["ddconfig"]["n_heads"]
    shutil.copyfile(weights, workplace / "alone.safetensors")
    succeeds("convert", "alone.safetensors", "told", "--num-attention-heads", heads)
    assert json.loads((workplace / "told" / "config.json").read_text())["num_attention_heads"] == heads
    result = uniwetok("convert", "alone.safetensors", "guessed")
    assert len(result.err) == 1 and "num_attention_heads" in result.err[0].replace("-", "_")
    assert result.err[0].startswith("uniwetok: " + ("warning: " if result.code == 0 else "error: "))


def test_tensors_of_a_training_can_be_ignored(fails, succeeds, golden, workplace):
    shutil.copytree(golden / "tokenizer_uniwetok", workplace / "training")
    weights = workplace / "training" / "ae.safetensors"
    save_file(load_file(weights) | {"teacher.weight": torch.zeros(1)}, weights)
    assert "teacher.weight" in fails("convert", "training", "out")
    succeeds("convert", "training", "out", "--ignore", "teacher.", "--ignore", "prior.")


def test_conversions_that_fail(fails, golden, workplace, photo, pipeline_folder):
    assert "no such file or folder" in fails("convert", "missing", "out")
    assert "no weight file" in fails("convert", photo, "out")
    assert "converted pipeline already" in fails("convert", pipeline_folder, "out")
    assert "exists already" in fails("convert", golden / "tokenizer_uniwetok", ".")
    shutil.copytree(golden / "tokenizer_uniwetok", workplace / "cut")
    weights = workplace / "cut" / "ae.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    assert "truncated" in fails("convert", "cut", "out")
    assert not (workplace / "out").exists()
