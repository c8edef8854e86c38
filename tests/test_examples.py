"""The scripts in examples/; the one that trains is in test_fine_tuning.py."""

import importlib.util
import shutil
from pathlib import Path

import pytest
from PIL import Image

from uniwetok_hf import load_codes
from uniwetok_hf.cli.main import main
from uniwetok_hf.embedded import FOLDER


EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name: str):
    spec = importlib.util.spec_from_file_location(Path(name).name, EXAMPLES / f"{name}.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    return example


def test_story(tmp_path):
    """Two pictures and an answer in a strip."""
    load("story").main(["draw a blue heart", "make it green", "what is it?", "--output", str(tmp_path / "story.jpg")])
    strip = Image.open(tmp_path / "story.jpg").copy()
    assert strip.width > 3 * 160 and 160 < strip.height < 400
    colours = [strip.getpixel((x, 160)) for x in range(0, strip.width, 4)]
    assert any(b > r + 60 and b > g + 60 for r, g, b in colours)  # the heart is blue


def test_folder_to_codes(tmp_path, capsys):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in ("noto-pizza.png", "fluent-teddy-bear.png"):
        shutil.copy(FOLDER / "pictures" / name, pictures)
    load("folder_to_codes").main([str(pictures), "--output", str(tmp_path / "codes")])
    assert load_codes(tmp_path / "codes" / "noto-pizza.safetensors").codes[0].shape[0] == 128
    assert Image.open(tmp_path / "codes" / "sheet.jpg").copy().width > 2 * 3 * 160
    assert "2 files of codes" in capsys.readouterr().out


def test_an_empty_folder_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        load("folder_to_codes").main([str(tmp_path)])
    assert f"{tmp_path} holds no PNG, JPEG or WebP pictures" in capsys.readouterr().err


@pytest.mark.slow
def test_drawn_classes(tmp_path, capsys, monkeypatch):
    """As its README runs it, but with few pictures and steps."""
    monkeypatch.chdir(tmp_path)
    load("classes/draw_classes").main(["data/classes", "--per-class", "16"])
    encode = ["encode-dataset", "data/classes", "runs/small_classes", "--split", "train", "--size", "128"]
    assert main([*encode, "--variants", "2", "--mirrored"]) == 0
    train = ["train", "class-to-image", "--config", "small_class_to_image", "--set", "max_train_steps=2"]
    assert main([*train, "--set", "sample_classes=[]"]) == 0
    load("classes/score_classes").main(["runs/small_class_to_image/pipeline", "data/classes", "--per-class", "1"])
    out = capsys.readouterr().out
    assert "chance 12.5%" in out and "test pictures: " in out and "(95 %: " in out and "N = 8)" in out
    assert Image.open("classes.png").copy().size == (130, 8 * 130)
