"""docs/fine-tuning.md and its example run as a reader would run them, with fewer steps."""

import importlib.util
import json
import shlex
from pathlib import Path

import pytest
from markdown_blocks import blocks
from PIL import Image

from uniwetok_hf.cli.main import main


ROOT = Path(__file__).parent.parent
BLOCKS = blocks((ROOT / "docs" / "fine-tuning.md").read_text(encoding="utf-8"))
SHORT = ["--set", "max_train_steps=2", "--set", "batch_size=2", "--set", "mixed_precision='no'"]


@pytest.mark.slow
def test_every_block_of_the_guide_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my_pictures").mkdir()
    for index, line in enumerate(next(code for language, code in BLOCKS if language == "json").splitlines(), 1):
        row = json.loads(line)
        Image.new("RGB", (128, 128), (0, 0, 99 * index)).save(Path("my_pictures") / row["file_name"])
        Path("my_pictures", row["file_name"]).with_suffix(".txt").write_text(row["text"])
    names = {}
    for language, code in BLOCKS:
        if language == "python":
            exec(compile(code, "fine-tuning.md", "exec"), names)
        elif language == "bash":
            for line in code.splitlines():
                assert main([*shlex.split(line)[1:], *(SHORT if "train" in line else [])]) == 0
    written = [json.loads(line) for line in Path("my_pictures/metadata.jsonl").read_text().splitlines()]
    assert written[0] == {"file_name": "01.png", "text": "a delft emoji of rocket"} and len(written) == 2
    assert Image.open("apple.png").copy().size == (128, 128)
    assert Path("emoji-with-delft/model_index.json").exists() and Path("my_decoder/README.md").exists()


@pytest.mark.slow
def test_the_example(fixtures, tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("teach_a_style", ROOT / "examples" / "teach_a_style.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    monkeypatch.setattr(example, "NUM_LEARNT", 2)
    monkeypatch.setattr(example, "NUM_SHOWN", 2)
    options = [
        "--data",
        fixtures / "emoji",
        "--output",
        tmp_path / "run",
        "--count",
        3,
        "--figure",
        tmp_path / "a.jpg",
    ]
    example.main([str(option) for option in options] + SHORT)
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert scores["before"]["noto"]["in style"]["count"] == scores["after"]["delft"]["right concept"]["count"] == 3
    assert scores["before"]["delft"]["right concept"]["chance"] == pytest.approx(1 / 3)
    assert (tmp_path / "run" / "scores.md").read_text() in capsys.readouterr().out
    assert Image.open(tmp_path / "a.jpg").copy().width > 200
