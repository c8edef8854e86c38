"""The Python of the pages that other tests don't run, as a reader would paste it: page by page, in an empty folder
with a photograph."""

from pathlib import Path

import pytest
import torch
from markdown_blocks import blocks
from PIL import Image
from safetensors.torch import load_file


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
