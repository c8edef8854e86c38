"""The Python of the pages that other tests don't run, as a reader would paste it: page by page, in an empty folder
with a photograph."""

import shlex
from pathlib import Path

import pytest
import torch
from markdown_blocks import blocks
from PIL import Image
from safetensors.torch import load_file

from uniwetok_hf.cli.main import main


DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize("page", ["index", "concepts", "conversation", "conversion"])
def test_page(page, tmp_path, monkeypatch, fixtures, capsys):
    monkeypatch.chdir(tmp_path)
    Image.linear_gradient("L").resize((100, 75)).convert("RGB").save("photo.jpg")
    torch.save({"state_dict": load_file(fixtures / "golden" / "tokenizer_uniwetok" / "ae.safetensors")}, "ae.ckpt")
    codes = [
        code for language, code in blocks((DOCS / f"{page}.md").read_text(encoding="utf-8")) if language == "python"
    ]
    assert codes
    names = {}
    for code in codes:
        exec(compile(code, f"{page}.md", "exec"), names)


@pytest.mark.slow
def test_a_try_of_both_trainings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my_pictures").mkdir()
    Image.linear_gradient("L").resize((128, 128)).convert("RGB").save("my_pictures/a.png")
    Path("my_pictures/metadata.jsonl").write_text('{"file_name": "a.png", "text": "a grey sky"}\n')
    text = (DOCS / "training.md").read_text(encoding="utf-8").split("## A try in two minutes")[1]
    commands = blocks(text)[0][1].splitlines()
    assert len(commands) == 3
    for command in commands:
        assert main([*shlex.split(command)[1:], *(["--set", "max_train_steps=2"] if "train" in command else [])]) == 0
    assert Path("runs/try_tokenizer/model").is_dir() and Path("runs/try_mllm/pipeline").is_dir()
