"""`uniwetok convert` and `data`, end to end."""

import functools
import hashlib
import io
import json
import shutil
import tarfile
from dataclasses import replace

import pytest
import torch
from datasets import load_from_disk
from emoji_packages import PACKAGES
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import uniwetok_hf.data


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
        "uniwetok: warning: 128x64 is not the model's own 512x512: it makes sense if that was trained, too"
    ]
    assert Image.open("apple-0.png").size == (128, 64)


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


@pytest.fixture
def packages(workplace, monkeypatch):
    """A folder with packages of two emoji in three styles, which the command takes for the pinned ones."""
    folder = workplace / "packages"
    folder.mkdir()
    names = {"2764": "red heart", "1F355": "pizza"}
    labels = [
        {"hexcode": code, "label": label, "tags": [], "group": 0, "subgroup": 0, "type": 1}
        for code, label in names.items()
    ]
    groups = {"groups": {"0": "things"}, "subgroups": {"0": "all"}}
    contents = {"labels": {"en/data.json": labels, "meta/groups.json": groups}}
    for index, style in enumerate(("noto", "fluent flat", "fluent")):
        icons = {
            label.replace(" ", "-"): {"body": f'<path fill="#f{index}0" d="M0 0h{16 + 4 * number}v32h-16z"/>'}
            for number, label in enumerate(names.values())
        }
        chars = {code.lower(): label.replace(" ", "-") for code, label in names.items()}
        sheet = {"prefix": "tiny", "width": 32, "height": 32, "icons": icons}
        contents[style] = {"icons.json": sheet, "chars.json": chars}
    table = {}
    for key, files in contents.items():
        path = folder / PACKAGES[key].file_name
        with tarfile.open(path, "w:gz") as archive:
            for name, content in files.items():
                data = json.dumps(content).encode()
                info = tarfile.TarInfo(f"package/{name}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        table[key] = replace(PACKAGES[key], sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    build = functools.partial(uniwetok_hf.data.build_emoji_dataset, packages=table)
    monkeypatch.setattr(uniwetok_hf.data, "build_emoji_dataset", build)
    return folder


def test_data_emoji(uniwetok, packages):
    result = uniwetok(
        "data", "emoji", "out", "--size", 32, "--package-dir", packages, "--styles", "noto", "fluent flat"
    )
    assert (result.code, result.out) == (0, ["out"])
    rows = [row for split in load_from_disk("out/pictures").values() for row in split]
    assert sorted((row["label"], row["style"]) for row in rows) == [
        (label, style) for label in ("pizza", "red heart") for style in ("fluent flat", "noto")
    ]
    assert {row["image"].size for row in rows} == {(32, 32)}
    result = uniwetok("data", "emoji", "few", "--size", 32, "--package-dir", packages, "--limit", 1)
    assert result.code == 0
    assert {row["label"] for split in load_from_disk("few/pictures").values() for row in split} == {"red heart"}


def test_data_that_cannot_be_built(fails, photo, packages):
    here = ["--package-dir", packages]
    assert "sketch" in fails("data", "emoji", "out", "--styles", "sketch", *here)
    assert "photo.png" in fails("data", "emoji", photo, "--size", 32, *here)
    (packages / PACKAGES["noto"].file_name).write_bytes(b"")
    assert PACKAGES["noto"].file_name in fails("data", "emoji", "out", "--size", 32, *here)
    (packages / PACKAGES["noto"].file_name).unlink()
    assert PACKAGES["noto"].file_name in fails("data", "emoji", "out", "--size", 32, *here)


def test_data_faces_and_text(uniwetok, fails):
    result = uniwetok("data", "faces-and-text", "out", "--size", 32, "--count", 20)
    assert (result.code, result.out) == (0, ["out"])
    rows = [row for split in load_from_disk("out/pictures").values() for row in split]
    assert {row["kind"] for row in rows} == {"face", "text"} and len(rows) == 20
    assert "built with" in fails("data", "faces-and-text", "out", "--size", 32, "--count", 30)
