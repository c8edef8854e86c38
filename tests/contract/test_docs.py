"""The blocks of docs/deployment.md, and the Trainer's in docs/training.md, run as a reader would run them."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from markdown_blocks import blocks
from PIL import Image


DOCS = Path(__file__).parents[2] / "docs"
pytestmark = pytest.mark.slow


def python_blocks(page: str) -> list[str]:
    return [code for language, code in blocks((DOCS / page).read_text(encoding="utf-8")) if language == "python"]


def run(code: str, names: dict) -> None:
    exec(compile(code, "docs", "exec"), names)


@pytest.mark.parametrize("needs", [None, "onnxruntime", "torchao"])
def test_deployment(needs, tmp_path, monkeypatch):
    """Compiled without generating code, which takes minutes; test_deployment.py has what comes of it."""
    if needs and not find_spec(needs):
        pytest.skip(f"{needs} is not installed")
    monkeypatch.chdir(tmp_path)
    start, *others = python_blocks("deployment.md")
    names = {}
    run(start, names)
    ran = 0
    with torch.compiler.set_stance("force_eager"):
        for code in others:
            optional = [package for package in ("onnxruntime", "torchao") if f"{package}" in code]
            export = needs == "onnxruntime" and "torch.export.export" in code
            if optional == [needs] or export or (needs is None and not optional):
                run(code, names)
                ran += 1
    assert ran == {None: 6, "onnxruntime": 2, "torchao": 1}[needs]
    if needs is None:
        assert len(list(tmp_path.glob("preview-*-of-16.png"))) == 16
        assert (tmp_path / "encoder.pt2").exists()


def test_trainer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.linear_gradient("L").resize((100, 75)).convert("RGB").save("photo.jpg")
    [code] = [block for block in python_blocks("training.md") if "Trainer(" in block]
    names = {}
    run(code, names)
    assert names["trainer"].state.global_step == 3
